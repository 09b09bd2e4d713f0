"""Each loss against its formula, written out in float64, and where a run uses it."""

import math

import numpy as np
import pytest
import recorded
import torch
from torch.nn import functional as F

import MyFramework
import MyVGG
from cifar_lab.losses import LOSSES
from cifar_lab.measures.evaluation import evaluate

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(0, 3, (7, 5))
LABELS = np.array([0, 4, 2, 2, 1, 3, 0])


def log_softmax(row):
    return row - math.log(sum(math.exp(x) for x in row))


def smoothed(row, label):
    """Szegedy et al. (2016), eq. 7, with epsilon 0.1."""
    targets = [0.9 * (k == label) + 0.1 / len(row) for k in range(len(row))]
    return -sum(t * x for t, x in zip(targets, log_softmax(row), strict=True))


def margins(row, label):
    return [max(0, 1 - row[label] + x) for k, x in enumerate(row) if k != label]


BY_HAND = {
    "cross_entropy": lambda row, label: -log_softmax(row)[label],
    "label_smoothing": smoothed,
    "mse": lambda row, label: sum((x - (k == label)) ** 2 for k, x in enumerate(row)) / len(row),
    "hinge": lambda row, label: sum(margins(row, label)) / len(row),
    "focal": lambda row, label: -((1 - math.exp(log_softmax(row)[label])) ** 2) * log_softmax(row)[label],
}


@pytest.mark.parametrize("name", BY_HAND)
def test_a_loss_is_its_formula(name):
    each = [BY_HAND[name](row, label) for row, label in zip(LOGITS, LABELS, strict=True)]
    logits, labels = torch.from_numpy(LOGITS), torch.from_numpy(LABELS)
    for reduction, expected in (((), np.mean(each)), (("mean",), np.mean(each)), (("sum",), sum(each))):
        loss = LOSSES[name].function(logits, labels, *reduction)
        assert loss.shape == () and loss.item() == pytest.approx(expected, rel=1e-13)


def test_every_loss_is_compared_with_its_formula():
    assert LOSSES.keys() == BY_HAND.keys()


@pytest.mark.parametrize("name", LOSSES)
def test_the_gradient_is_that_of_the_loss(name):
    logits = torch.from_numpy(LOGITS).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: LOSSES[name].function(x, torch.from_numpy(LABELS)), logits)


def test_the_default_has_the_bits_of_cross_entropy():
    logits, labels = torch.randn(100, 10), torch.randint(0, 10, (100,))
    for reduction in ("mean", "sum"):
        expected = F.cross_entropy(logits, labels, reduction=reduction)
        assert torch.equal(LOSSES["cross_entropy"].function(logits, labels, reduction), expected)


def test_an_evaluation_sums_the_loss_over_unequal_batches():
    logits, labels = torch.from_numpy(LOGITS).float(), torch.from_numpy(LABELS)
    batches = [(logits[:4], labels[:4]), (logits[4:], labels[4:])]
    for name, by_hand in BY_HAND.items():
        loss, *_ = evaluate(lambda x: x, batches, LOSSES[name].function)
        expected = sum(by_hand(row, label) for row, label in zip(LOGITS, LABELS, strict=True))
        assert loss.item() == pytest.approx(expected, rel=1e-5), name


@pytest.mark.parametrize("script", [MyVGG, MyFramework])
@pytest.mark.parametrize("name", LOSSES)
def test_both_scripts_train_and_test_with_the_loss_that_is_asked_for(script, name, tmp_path):
    """Training, test and probes: at the first step the probes' smallest step size has nearly the loss of the step."""
    data = recorded.write_numbered(tmp_path / "data")
    images = np.load(data / "cifar10.npz")
    step = script.training_step

    def look(run, images, labels):
        with torch.no_grad():
            seen.append((run.forward(images).double().numpy(), labels.numpy()))
        return step(run, images, labels)

    def small(config):
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.AvgPool2d(16), torch.nn.Flatten(), torch.nn.Linear(12, recorded.TRAIN))

    def mean(logits, labels):
        return np.mean([BY_HAND[name](row, label) for row, label in zip(logits, labels, strict=True)])

    seen: list = []
    words = f"--loss {name} --epochs 1 --lrs 1e-4 --optimizer sgd --probe-every 1 --no-augment"
    recorded.train(script, data, words, small, look, results=tmp_path / "results")
    (folder,) = (path.parent for path in (tmp_path / "results").rglob("config.json"))
    assert (f"-{name}-" in folder.name) == (name != "cross_entropy")
    losses = [float(line.split(",")[1]) for line in (folder / "steps.csv").read_text().splitlines()[1:]]
    assert losses == pytest.approx([mean(*batch) for batch in seen], rel=1e-5)
    probes = [line.split(",") for line in (folder / "probes.csv").read_text().splitlines()[1:]]
    assert [float(row[2]) for row in probes[::10]] == pytest.approx(losses, rel=1e-3)
    weights = torch.load(folder / "checkpoint.pt", weights_only=True)["model"]
    pixels = torch.from_numpy(images["test_images"]).permute(0, 3, 1, 2) / 127.5 - 1
    model = small(None)
    model.load_state_dict(weights)
    with torch.no_grad():
        logits = model(pixels).double().numpy()
    (row,) = [line.split(",") for line in (folder / "epochs.csv").read_text().splitlines()[1:]]
    assert float(row[4]) == pytest.approx(mean(logits, images["test_labels"]), rel=1e-5)

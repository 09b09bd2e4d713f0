"""The switches of today's recipe: each against the same thing computed plainly.

That a run with them is resumed bit for bit, and captured in a CUDA graph, is tested with that of the others.
"""

import csv
import itertools

import numpy as np
import pytest
import recorded
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.transforms.functional import resize

import MyFramework
import MyVGG
from cifar_lab.measures.evaluation import predictor
from cifar_lab.networks import NetworkError
from cifar_lab.run_folder.checkpoint import CheckpointError, load_model
from cifar_lab.run_folder.inputs import Inputs
from cifar_lab.settings import RunConfig
from cifar_lab.training.evaluated import estimated_statistics
from cifar_lab.training.export import OfBytes
from cifar_lab.training.plan import epoch_plan, image_size, mixing
from cifar_lab.training.predict import predict

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """130 images with ten labels, told apart by their first pixel."""
    return recorded.write_numbered(tmp_path_factory.mktemp("numbered"), classes=10)


def inputs(data) -> torch.Tensor:
    with np.load(data / "cifar10.npz") as arrays:
        return torch.from_numpy(arrays["test_images"][:20]).permute(0, 3, 1, 2).float() / 127.5 - 1


def labels(data) -> torch.Tensor:
    with np.load(data / "cifar10.npz") as arrays:
        return torch.from_numpy(arrays["test_labels"][:20]).long()


# --- Test-time flip --------------------------------------------------------------------------------------------------


def test_flipped_logits_are_the_mean_of_two():
    images = torch.arange(2 * 3 * 2 * 4.0).view(2, 3, 2, 4)
    weights = torch.tensor([1.0, 2.0, 4.0, 8.0])

    def forward(x: torch.Tensor) -> torch.Tensor:
        return (x * weights).sum((2, 3))

    by_hand = (images * (weights + weights.flip(0)) / 2).sum((2, 3))
    assert torch.equal(predictor(forward, True)(images), by_hand)
    assert predictor(forward, False) is forward


@pytest.mark.parametrize("script", [MyVGG, MyFramework])
def test_what_is_logged_evaluated_and_predicted_is_of_both_images(script, data, tmp_path, capsys):
    words = "--epochs 1 --test-time-flip --precision fp32 --no-channels-last"
    recorded.train(script, data, words, results=tmp_path)
    (folder,) = (path.parent for path in tmp_path.rglob("config.json"))
    assert folder.name.endswith("testflip") or "-testflip-" in folder.name
    network, _ = load_model(folder)
    images = inputs(data)
    with torch.no_grad():
        logits = (network(images) + network(torch.from_numpy(images.numpy()[..., ::-1].copy()))) / 2
    (row,) = csv.DictReader((folder / "epochs.csv").open(newline=""))
    assert float(row["test_loss"]) == pytest.approx(float(F.cross_entropy(logits, labels(data))), abs=2e-5)
    right = logits.argmax(1) == labels(data)
    assert float(row["test_accuracy"]) == pytest.approx(100 * float(right.float().mean()), abs=1e-3)
    capsys.readouterr()
    script.main(["--evaluate", str(folder), "--data-dir", str(data)])
    assert f"test loss {float(row['test_loss']):.4f}" in capsys.readouterr().out
    from PIL import Image

    with np.load(data / "cifar10.npz") as arrays:
        Image.fromarray(arrays["test_images"][3]).save(tmp_path / "picture.png")
    (found,) = predict(folder, [tmp_path / "picture.png"])
    assert found.best[0][1] == pytest.approx(float(logits[3].softmax(0).max()), abs=1e-5)


# --- What is evaluated: averaged weights, statistics estimated again -------------------------------------------------


def checkpoint(results) -> dict:
    (path,) = results.rglob("checkpoint.pt")
    return torch.load(path, weights_only=True)


def logged_loss(results) -> float:
    (path,) = results.rglob("epochs.csv")
    return float([*csv.DictReader(path.open(newline=""))][-1]["test_loss"])


def loss_of(network, data) -> float:
    with torch.no_grad():
        return float(F.cross_entropy(network.eval()(inputs(data)), labels(data)))


@pytest.mark.parametrize("decay", [0.9, 0.15])
def test_the_average_by_hand(decay, data, tmp_path):
    """In place of training, the weights become 1, 2, 3 ... For few steps (1 + t) / (10 + t) decides, not 0.9."""
    number = itertools.count(1)

    def step(run, images, labels):
        with torch.no_grad():
            for p in run.model.parameters():
                p.fill_(next(number) if p is next(run.model.parameters()) else 0.5)
        return recorded.look(run, images, labels)

    words = f"--epochs 2 --ema {decay} --precision fp32"
    first = next(iter(recorded.network(MyVGG, data, words).parameters())).detach().double()
    recorded.train(MyVGG, data, words, step=step, results=tmp_path)
    state = checkpoint(tmp_path)
    name = next(iter(state["model"]))
    taken = next(number) - 1
    assert taken == 6 and (state["model"][name] == 6).all()
    for t in range(taken):
        d = min(decay, (1 + t) / (10 + t))
        first = d * first + (1 - d) * (t + 1)
    assert (state["average"][name] - first).abs().max() < 1e-6


@pytest.mark.parametrize("words", ["--ema 0.8", "--ema 0.8 --bn-images 50", "--bn-images 50"])
def test_the_evaluated_network_is_not_the_trained_one(words, data, tmp_path):
    """What is logged is the loss of what a checkpoint's reader loads, and not that of the weights trained."""
    words += " --bn --epochs 2 --lrs 1e-2 --precision fp32 --no-channels-last"
    recorded.train(MyVGG, data, words, step=MyVGG.training_step, results=tmp_path)
    state = checkpoint(tmp_path)
    (folder,) = (path.parent for path in tmp_path.rglob("config.json"))
    network, _ = load_model(folder)
    assert logged_loss(tmp_path) == pytest.approx(loss_of(network, data), rel=1e-6, abs=2e-5)
    network.load_state_dict(state["model"])
    assert abs(logged_loss(tmp_path) - loss_of(network, data)) > 1e-3


def test_statistics_are_those_of_the_last_epochs_first_images(data, tmp_path):
    words = "--bn --bn-images 50 --augment none --epochs 2 --lrs 1e-2 --precision fp32 --no-channels-last"
    recorded.train(MyVGG, data, words, step=MyVGG.training_step, results=tmp_path)
    state = checkpoint(tmp_path)
    with np.load(data / "cifar10.npz") as arrays:
        order = epoch_plan(0, 2, 130, augment="none").order[:50]
        images = torch.from_numpy(arrays["train_images"][order]).permute(0, 3, 1, 2).float() / 127.5 - 1
    first = F.conv2d(images, state["model"]["features.0.weight"], state["model"]["features.0.bias"], padding=1)
    found = state["statistics"]
    assert (found["features.1.running_mean"] - first.mean((0, 2, 3))).abs().max() < 1e-5
    assert (found["features.1.running_var"] - first.var((0, 2, 3))).abs().max() < 1e-5
    norms = [name for name in state["model"] if name.endswith(("running_mean", "running_var", "num_batches_tracked"))]
    assert found.keys() == set(norms) and len(norms) == 30
    # Training has its own: they are what they would be without.
    recorded.train(
        MyVGG, data, words.replace("--bn-images 50", ""), step=MyVGG.training_step, results=tmp_path / "without"
    )
    plain = checkpoint(tmp_path / "without")["model"]
    assert all(torch.equal(state["model"][name], tensor) for name, tensor in plain.items())


def test_statistics_are_the_mean_over_batches_and_leave_the_network_as_it_was():
    norm = nn.BatchNorm1d(2)
    network = nn.Sequential(norm, nn.Dropout(0.9))
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(8, 2, generator=generator) * scale + scale for scale in (1.0, 3.0, 5.0)]

    def forward(images, others):
        return torch.func.functional_call(network, others, (images,))

    found = estimated_statistics(network, forward, batches)
    for statistic, of in (("running_mean", lambda x: x.mean(0)), ("running_var", lambda x: x.var(0))):
        torch.testing.assert_close(found[f"0.{statistic}"], torch.stack([of(x) for x in batches]).mean(0))
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert norm.momentum == 0.1 and not network.training and not norm.training


@pytest.mark.parametrize("words", ["--ema 0.5", "--bn --bn-images 30"])
def test_a_checkpoint_without_them_is_refused(words, data, tmp_path):
    recorded.train(MyVGG, data, f"{words} --epochs 1", results=tmp_path)
    (path,) = tmp_path.rglob("checkpoint.pt")
    state = torch.load(path, weights_only=True)
    key = "average" if "ema" in words else "statistics"
    state[key] = {next(iter(state[key])): torch.zeros(1)} if key == "statistics" else {}
    torch.save(state, path)
    with pytest.raises(CheckpointError, match=f"{key} has no "):
        MyVGG.main(["--evaluate", str(path.parent), "--data-dir", str(data)])


# --- What is trained on ----------------------------------------------------------------------------------------------


def test_mixed_images_and_their_loss(data):
    """Against the same batches unmixed: images and losses are weighted means with those of the batch reversed."""
    seen = {}

    def step(run, images, labels):
        logits = run.forward(images)
        loss = run.loss(logits, labels).detach()
        seen.setdefault(run.config.mixup, []).append((images, labels, logits.detach(), loss))
        return recorded.look(run, images, labels)

    words = "--epochs 2 --precision fp32 --no-channels-last --loss label_smoothing --seed 3"
    for more in ("", "--mixup 0.7"):
        recorded.train(MyVGG, data, f"{words} {more}", step=step)
    weights = [mixing(3, epoch, 3, 0.7) for epoch in (1, 2)]
    assert len({*np.concatenate(weights)}) == 6
    for (plain, expected, *_), (mixed, labels, logits, loss), w in zip(
        seen[0.0], seen[0.7], np.concatenate(weights).tolist(), strict=True
    ):
        assert torch.equal(labels, expected)
        assert (mixed - (w * plain + (1 - w) * plain.flip(0))).abs().max() < 1e-6
        own, other = (F.cross_entropy(logits, y, label_smoothing=0.1) for y in (labels, labels.flip(0)))
        assert float(loss) == pytest.approx(float(w * own + (1 - w) * other), abs=1e-6)


def test_weights_of_mixup_have_a_beta_distribution():
    """Of Beta(a, a): mean 1/2, variance 1 / (4 (2 a + 1)); of 20,000 draws, within five standard errors."""
    for alpha in (0.2, 1.0, 4.0):
        drawn = mixing(0, 1, 20_000, alpha).astype(float)
        variance = 1 / (4 * (2 * alpha + 1))
        assert abs(drawn.mean() - 0.5) < 5 * (variance / len(drawn)) ** 0.5
        assert drawn.var() == pytest.approx(variance, rel=0.03)
    assert (mixing(0, 1, 5, 0.0) == 1).all()
    assert not np.array_equal(mixing(0, 1, 50, 1.0), mixing(0, 2, 50, 1.0))
    assert not np.array_equal(mixing(0, 1, 50, 1.0), mixing(1, 1, 50, 1.0))


def test_images_grow():
    config = RunConfig("inception", first_size=20, schedule_epochs=10)
    assert [image_size(config, epoch) for epoch in range(1, 11)] == [20, 20, 20, 24, 24, 28, 28, 32, 32, 32]
    assert {image_size(RunConfig("inception", schedule_epochs=10), epoch) for epoch in range(1, 11)} == {32}
    assert image_size(RunConfig("inception", first_size=8, schedule_epochs=1), 1) == 8
    assert image_size(config, 1_000) == 32


def test_small_images_are_the_large_ones_resized(data):
    words = "--epochs 2 --precision fp32 --no-channels-last"
    small = recorded.steps(MyFramework, data, f"{words} --first-size 24")
    large = recorded.steps(MyFramework, data, words)
    assert [len(step.images[0, 0]) for step in small] == [24] * 3 + [28] * 3
    for one, other in zip(small, large, strict=True):
        assert torch.equal(one.labels, other.labels)
        assert (one.images - resize(other.images, one.images.shape[2:], antialias=True)).abs().max() < 1e-5


def test_a_square_is_cut_out_of_training_images_alone(data):
    words = "--epochs 1 --augment none --precision fp32 --no-channels-last"
    with_square = recorded.steps(MyVGG, data, f"{words} --cutout 9", recorded.small)
    without = recorded.steps(MyVGG, data, words, recorded.small)
    plan = epoch_plan(0, 1, 130, augment="none")
    centers = iter(plan.square.astype(int))
    for one, other in zip(with_square, without, strict=True):
        for image, plain in zip(one.images, other.images.clone(), strict=True):
            row, column = next(centers)
            plain[:, max(0, row - 4) : row + 5, max(0, column - 4) : column + 5] = 0
            assert torch.equal(image, plain)
    assert {tuple(center) for center in plan.square.tolist()} - {tuple(epoch_plan(0, 2, 130).square[0])}


# --- What does not go together ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "script, words, said",
    [
        (MyVGG, "--ema 1", "--ema: '1' is not a number from 0 to 0.999999"),
        (MyVGG, "--bn-images 50", "--bn-images 50: vgg_a has no BatchNorm with statistics"),
        (MyVGG, "--bn --bn-images 1", "--bn-images 1: one image may have no variance"),
        (MyVGG, "--bn --bn-images 131", "--bn-images 131: there are 130 images to train on"),
        (MyVGG, "--cutout 33", "--cutout: '33' is not an integer from 0 to 32"),
        (MyVGG, "--mixup nan", "--mixup: 'nan' is not a number from 0 to 100"),
        (MyVGG, "--first-size 24", "--first-size 24: vgg_a cannot be run on images of 24 pixels"),
        (MyFramework, "--first-size 7", "--first-size: '7' is not an integer from 8 to 32"),
        (MyVGG, "--schedule one-cycle --warmup 3 --epochs 2", "--warmup 3: it is longer than the run (--epochs 2)"),
        (MyVGG, "--validation-size 129", "--validation-size 129: --train-size 130 leaves none to train on"),
        (MyVGG, "--optimizer nesterov", "--optimizer nesterov: needs a --momentum above 0"),
    ],
)
def test_settings_that_do_not_go_together(script, words, said, data, tmp_path, capsys):
    with pytest.raises((SystemExit, NetworkError)) as ended:
        recorded.train(script, data, words, results=tmp_path / "results")
    line = str(ended.value) if isinstance(ended.value, NetworkError) else capsys.readouterr().err
    assert said in line
    assert not (tmp_path / "results").exists()


def test_muon_without_matrices(data, tmp_path):
    """A linear classifier has those of its output layer alone."""
    with pytest.raises(NetworkError, match="--optimizer muon: vgg_a has no matrices but those of its output layer"):
        recorded.train(MyVGG, data, "--optimizer muon", recorded.small, results=tmp_path / "results")
    assert not (tmp_path / "results").exists()


# --- Networks of the user's own --------------------------------------------------------------------------------------


class Shared(nn.Module):
    """Two convolutions with one weight, a third that is used twice, BatchNorm used twice, and a mask of infinities."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.second.weight = self.first.weight
        self.third, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.again, self.norm_again = self.third, self.norm
        self.head = nn.Linear(3, 10)
        self.register_buffer("mask", torch.tensor([0.0] * 9 + [-torch.inf]))

    def forward(self, images):
        x = self.norm(self.second(self.first(images)).relu())
        x = self.norm_again(self.again(self.third(x).relu()))
        return self.head(x.mean((2, 3))) + self.mask.clamp(min=-1)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_what_a_network_has_under_several_names_is_trained_averaged_and_evaluated(precision, data, tmp_path):
    words = f"--epochs 2 --lrs 1e-2 --precision {precision} --ema 0.5 --bn-images 50 --batch-size 13 --no-channels-last"
    first, training_step = {}, MyVGG.training_step

    def step(run, images, labels):
        first.setdefault("third.weight", run.model.third.weight.detach().clone())
        loss = training_step(run, images, labels)
        assert run.model.third.weight.dtype == torch.float32
        return loss

    recorded.train(MyVGG, data, words, build=lambda config: Shared(), step=step, results=tmp_path)
    state = checkpoint(tmp_path)
    assert state["model"]["third.weight"].dtype == torch.float32
    assert not torch.equal(state["model"]["third.weight"], first["third.weight"])
    assert torch.equal(state["model"]["third.weight"], state["model"]["again.weight"])
    network = Shared()
    network.load_state_dict(state["model"] | state["average"] | state["statistics"])
    expected = loss_of(network, data)
    assert logged_loss(tmp_path) == pytest.approx(expected, rel=1e-5 if precision == "fp32" else 0.02)


def test_an_export_flips_where_the_runs_predictions_do():
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10))
    images = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    ready = images.permute(0, 3, 1, 2).float() / 127.5 - 1
    by_hand = (network(ready) + network(torch.from_numpy(ready.numpy()[..., ::-1].copy()))) / 2
    inputs = Inputs(tuple("abcdefghij"))
    torch.testing.assert_close(OfBytes(network, inputs, flip=True)(images), by_hand, atol=1e-5, rtol=0)
    torch.testing.assert_close(OfBytes(network, inputs)(images), network(ready), atol=1e-5, rtol=0)

"""Trainings from the command line against a second implementation that shares no code with them (reference.py).

The product computes in float32, the reference in float64. What differs is rounding, and training amplifies it: most
where a ReLU or a max-pool changes sides, where BatchNorm divides by a small deviation, and where Adam and RMSprop
divide a tiny gradient by its own size. The learning rates and seeds of the cases are such that this stays small, also
on a machine that sums in another order: between float64 trainings whose initial weights differ by a relative 1e-6
(float32 rounds to 6e-8) no loss differs by more than its tolerance. The largest differences between product and
reference seen: losses 1e-6 without BatchNorm under SGD and Adam, 3e-5 under AdamW and RMSprop, 6e-5 with BatchNorm,
and 3e-4 without scaling, at losses of 10 to 20. The reference's augmented images differ by 5e-6 from the product's.
"""

import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import count, run, table
from reference import Settings, Trained, rate_factor, train, update
from synthetic import write_synthetic

from cifar_lab.optimizers import build_optimizer
from cifar_lab.settings import RunConfig

# Four steps an epoch, the last of 22 images; test images in batches of 500 and 30; neither is all of the data set.
SIZES = {"train_size": 190, "test_size": 530, "batch_size": 56, "epochs": 3, "width": 0.1}
FIRST_STEP = 2e-5  # nats: before training amplifies anything; the largest difference seen is 2e-6


@dataclass(frozen=True)
class Case:
    """A command and what it trains: settings of the reference, of which a tuple is one run for each value."""

    command: str
    settings: dict
    losses: float  # tolerance, in nats
    weights: float  # tolerance, absolute and relative


CASES = {
    "VGG-A, two learning rates and two seeds": Case(
        "MyVGG.py --lrs 0.005 0.01 --optimizer sgd --momentum 0.9 --weight-decay 0.01 --seed 4 7 --no-augment",
        {"model": "vgg_a", "lr": (0.005, 0.01), "optimizer": "sgd", "momentum": 0.9, "weight_decay": 0.01,
         "seed": (4, 7), "augment": False},
        losses=1e-4, weights=2e-4,
    ),
    "VGG-A, Adam": Case(
        "MyVGG.py --lrs 0.0003 --weight-decay 0.05 --seed 5",
        {"model": "vgg_a", "lr": 0.0003, "optimizer": "adam", "weight_decay": 0.05, "seed": 5},
        losses=2e-5, weights=1e-4,
    ),
    "VGG-A with BatchNorm, Glorot's weights": Case(
        "MyVGG.py --bn --lrs 0.00002 0.00005 --optimizer sgd --weight-decay 0.5 --init xavier --seed 1 --probe-every 3",
        {"model": "vgg_a_bn", "lr": (0.00002, 0.00005), "optimizer": "sgd", "weight_decay": 0.5,
         "init": "xavier", "seed": 1},
        losses=2e-4, weights=2e-4,
    ),
    "VGG-A with BatchNorm, PyTorch's weights, Adam": Case(
        "MyVGG.py --bn --lrs 0.00003 --weight-decay 0.05 --init pytorch --no-augment",
        {"model": "vgg_a_bn", "lr": 0.00003, "optimizer": "adam", "weight_decay": 0.05, "init": "pytorch",
         "augment": False},
        losses=2e-4, weights=2e-4,
    ),
    "Inception, three optimizers": Case(
        "MyFramework.py --model inception --optimizer adam adamw sgd --lr 0.0001 --momentum 0.9 --weight-decay 0.5"
        " --seed 3 --no-augment",
        {"model": "inception", "lr": 0.0001, "optimizer": ("adam", "adamw", "sgd"), "momentum": 0.9,
         "weight_decay": 0.5, "seed": 3, "augment": False},
        losses=1e-4, weights=1e-3,
    ),
    "Inception with BatchNorm": Case(
        "MyFramework.py --model inception --bn --optimizer sgd --momentum 0.9 --lr 0.00001 --weight-decay 0.5",
        {"model": "inception_bn", "lr": 0.00001, "optimizer": "sgd", "momentum": 0.9, "weight_decay": 0.5},
        losses=1e-4, weights=2e-4,
    ),
    "residual Inception, three optimizers": Case(
        "MyFramework.py --optimizer adam adamw rmsprop --lr 0.0003 --weight-decay 0.5 --seed 5",
        {"model": "inception_res", "lr": 0.0003, "optimizer": ("adam", "adamw", "rmsprop"), "weight_decay": 0.5,
         "seed": 5},
        losses=3e-4, weights=3e-3,
    ),
    "residual Inception without scaling": Case(
        "MyFramework.py --optimizer sgd adam --lr 0.0001 --residual-scale 1 --weight-decay 0.5 --seed 3 --no-augment",
        {"model": "inception_res", "lr": 0.0001, "optimizer": ("sgd", "adam"), "scale": 1.0, "weight_decay": 0.5,
         "seed": 3, "augment": False},
        losses=1e-3, weights=1e-4,
    ),
    "residual Inception with BatchNorm": Case(
        "MyFramework.py --bn --optimizer sgd --momentum 0.9 --lr 0.0001 --residual-scale 0.3 --weight-decay 0.05",
        {"model": "inception_res_bn", "lr": 0.0001, "optimizer": "sgd", "momentum": 0.9, "scale": 0.3,
         "weight_decay": 0.05},
        losses=5e-5, weights=1e-4,
    ),
    "VGG-A, GELU, mean squared error": Case(
        "MyVGG.py --lrs 0.01 --optimizer sgd --momentum 0.9 --weight-decay 0.01 --activation gelu --loss mse"
        " --schedule cosine --warmup 0.75 --augment flip-crop",
        {"model": "vgg_a", "lr": 0.01, "optimizer": "sgd", "momentum": 0.9, "weight_decay": 0.01, "activation": "gelu",
         "loss": "mse", "schedule": "cosine", "warmup": 3, "augment": "flip-crop"},
        losses=2e-5, weights=1e-4,
    ),
    "VGG-A with BatchNorm, tanh, label smoothing": Case(
        "MyVGG.py --bn --lrs 0.001 --optimizer sgd --weight-decay 0.05 --activation tanh"
        " --loss label_smoothing --schedule step",
        {"model": "vgg_a_bn", "lr": 0.001, "optimizer": "sgd", "weight_decay": 0.05, "activation": "tanh",
         "loss": "label_smoothing", "schedule": "step"},
        losses=5e-5, weights=1e-4,
    ),
    "residual Inception, SiLU, focal loss": Case(
        "MyFramework.py --optimizer sgd --lr 0.001 --weight-decay 0.05 --activation silu --loss focal"
        " --schedule one-cycle --warmup 1",
        {"model": "inception_res", "lr": 0.001, "optimizer": "sgd", "weight_decay": 0.05, "activation": "silu",
         "loss": "focal", "schedule": "one-cycle", "warmup": 4},
        losses=5e-5, weights=1e-4,
    ),
    "VGG-A, momentum, rates of the width": Case(
        "MyVGG.py --lrs 0.0005 --optimizer sgd --momentum 0.9 --weight-decay 0.01 --seed 4 --no-augment",
        {"model": "vgg_a", "lr": 0.0005, "optimizer": "sgd", "momentum": 0.9, "weight_decay": 0.01, "seed": 4,
         "augment": False, "transfer": True},
        losses=1e-4, weights=2e-4,
    ),
    "VGG-A with BatchNorm, rates of the width": Case(
        "MyVGG.py --bn --lrs 0.000005 --weight-decay 0.05 --no-augment",
        {"model": "vgg_a_bn", "lr": 0.000005, "optimizer": "adam", "weight_decay": 0.05, "augment": False,
         "transfer": True},
        losses=2e-4, weights=2e-4,
    ),
    "residual Inception, rates of the width": Case(
        "MyFramework.py --optimizer adam adamw --lr 0.00003 --weight-decay 0.5 --seed 5",
        {"model": "inception_res", "lr": 0.00003, "optimizer": ("adam", "adamw"), "weight_decay": 0.5, "seed": 5,
         "transfer": True},
        losses=3e-4, weights=3e-3,
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_synthetic(tmp_path_factory.mktemp("data"), train=230, test=550, seed=3)


def runs(settings: dict) -> list[Settings]:
    """One for each combination of the values in tuples."""
    values = [value if isinstance(value, tuple) else (value,) for value in settings.values()]
    return [Settings(**SIZES | dict(zip(settings, chosen, strict=True))) for chosen in itertools.product(*values)]


def largest_differences(folder: Path, expected: Trained) -> dict[str, float]:
    """Between a run folder's logs and weights and the reference, in nats and in units of (1 + the weight's size)."""
    steps, epochs = table(folder / "steps.csv"), table(folder / "epochs.csv")
    weights = torch.load(folder / "checkpoint.pt", weights_only=True)["model"].values()
    expected_weights = [w.detach() for w in expected.weights.values()]
    assert [w.shape for w in weights] == [w.shape for w in expected_weights]
    return {
        "first loss": abs(steps["loss"][0] - expected.losses[0]),
        "losses": np.abs(steps["loss"] - expected.losses).max(),
        "train_loss": np.abs(epochs["train_loss"] - expected.train_loss).max(),
        "test_loss": np.abs(epochs["test_loss"] - [tested.loss for tested in expected.tested]).max(),
        "weights": max(
            float(((a - b).abs() / (1 + b.abs())).max()) for a, b in zip(weights, expected_weights, strict=True)
        ),
    }


@pytest.mark.parametrize("name", CASES)
def test_a_training_is_the_one_that_the_report_describes(name, data, tmp_path):
    case = CASES[name]
    transfer = "" if case.settings.get("transfer") else " --no-width-transfer"
    folders = run(case.command + transfer, data, tmp_path, **SIZES)
    expected_runs = runs(case.settings)
    assert len(folders) == len(expected_runs)
    arrays = dict(np.load(data / "cifar10.npz"))
    for s in expected_runs:
        key = (s.model, s.optimizer, s.lr, s.seed)
        expected = train(arrays, s)
        tolerances = {
            "first loss": FIRST_STEP, "losses": case.losses, "train_loss": case.losses, "test_loss": case.losses,
            "weights": case.weights,
        }  # fmt: skip
        found = largest_differences(folders[key], expected)
        assert [what for what in found if not found[what] <= tolerances[what]] == [], (key, found)
        epochs = table(folders[key] / "epochs.csv")
        assert epochs["epoch"].tolist() == [1, 2, 3]
        assert epochs["learning_rate"] == pytest.approx([s.lr * rate_factor(s, step) for step in (3, 7, 11)], rel=1e-12)
        assert table(folders[key] / "steps.csv")["step"].tolist() == list(range(1, 13))
        for epoch, tested in enumerate(expected.tested):
            for column, images, right, margins in (
                ("train_accuracy", 190, expected.train_right[epoch], expected.train_margins[epoch]),
                ("test_accuracy", 530, tested.right, tested.margins),
            ):
                close = int((margins < 3 * case.losses).sum())  # rounding may decide these
                assert close <= 0.1 * images, (key, column)
                assert abs(count(epochs[column][epoch], images) - right) <= close, (key, column, epoch + 1)


@pytest.mark.parametrize(("name", "momentum"), [("adam", 0), ("adamw", 0), ("rmsprop", 0), ("sgd", 0), ("sgd", 0.9)])
def test_an_optimizer_takes_the_steps_of_its_paper(name, momentum):
    """On gradients from 1e-9 to 10, so that the constant in a denominator counts, which a training hardly shows."""
    start = torch.tensor([0.3, -0.2, 1e-7, -2.0, 0.05, 0.0], dtype=torch.float64)
    gradients = torch.tensor([[1e-9, 1e-7, -1e-5, 1e-3, 0.1, 10.0]], dtype=torch.float64) * torch.tensor(
        [[1.0], [-0.5], [3.0], [0.0], [2.0]]
    )
    weights, by_hand = torch.nn.Parameter(start.clone()), start.clone()
    for weight_decay in (0.0, 0.2):
        config = RunConfig("vgg_a", name, lr=0.01, weight_decay=weight_decay, momentum=momentum)
        optimizer = build_optimizer(config, [weights], torch.device("cpu"))
        kept: dict = {}
        for step, gradient in enumerate(gradients, 1):
            weights.grad = gradient.clone()
            optimizer.step()
            update(name, by_hand, gradient, kept, step, 0.01, weight_decay, momentum)
            assert (weights - by_hand).abs().max() <= 1e-12, step


def test_probes_are_taken_before_the_update(data, tmp_path):
    """The fourth step size is the learning rate, and the batch is the whole data set: the loss there comes next."""
    flags = "--no-width-transfer --optimizer sgd --weight-decay 0 --no-augment --probe-every 1 --lrs 0.02 0.05 --seed 0"
    sizes = SIZES | {"train_size": 60, "batch_size": 60, "test_size": 30, "epochs": 6}
    folders = run(f"MyVGG.py {flags}", data, tmp_path, **sizes)
    assert len(folders) == 2
    for (_, _, lr, _), folder in folders.items():
        losses, probes = table(folder / "steps.csv")["loss"], table(folder / "probes.csv")
        assert probes["step"].reshape(6, 10).tolist() == [[step] * 10 for step in range(1, 7)]
        at_lr = probes["eta"].reshape(6, 10)[:, 3]
        assert at_lr == pytest.approx([lr] * 6, rel=1e-6)
        ahead = probes["loss"].reshape(6, 10)[:, 3]
        assert np.abs(ahead[:-1] - losses[1:]).max() <= 2e-6  # the largest difference seen is 3e-7
        assert np.abs(np.diff(losses)).min() > 1e-4  # a step earlier or later would be seen


def test_probes_are_taken_on_the_steps_own_batch(data, tmp_path):
    """The norm of the gradient, of augmented batches of two sizes, with BatchNorm."""
    flags = "--no-width-transfer --bn --lrs 0.001 --optimizer sgd --weight-decay 0.5 --seed 1 --probe-every 2"
    sizes = SIZES | {"test_size": 10, "epochs": 1}
    (folder,) = run(f"MyVGG.py {flags}", data, tmp_path, **sizes).values()
    settings = {"model": "vgg_a_bn", "lr": 0.001, "optimizer": "sgd", "weight_decay": 0.5, "seed": 1}
    norms = train(dict(np.load(data / "cifar10.npz")), Settings(**sizes | settings)).gradient_norms
    probes = table(folder / "probes.csv")
    assert probes["step"].tolist() == [2] * 10 + [4] * 10
    assert probes["grad_norm"] == pytest.approx([norms[1]] * 10 + [norms[3]] * 10, rel=1e-3)
    assert np.abs(np.diff(norms) / norms[1:]).min() > 1e-2  # another step's would be seen

"""The logs of finished runs against what follows from their checkpoint, the data and a clock beside the command."""

import json
import math
import re
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import SCRIPTS, count, run, table
from reference import Evaluated, Weights, evaluate, is_trained, layers, state_names
from synthetic import write_synthetic

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
WIDTH = 0.1
LOSS = 5e-6  # nats: float32 against float64, and the six decimals of a log; the largest difference seen is 1e-6
MARGIN = 1e-5  # between two logits: below it rounding may decide the prediction


@dataclass(frozen=True)
class Group:
    """A command, and what is known of its runs."""

    command: str
    sizes: dict
    batches: tuple[int, ...]  # images of an epoch's steps
    final: int  # epochs that the final accuracy is the mean of
    scale: float = 0.2


# In the first, most of the time goes into training steps, in the second into tests: where a group's runs do not share
# one of them, their sum is longer than the command.
GROUPS = {
    "a tenth of the epochs": Group(
        "MyVGG.py --no-width-transfer --bn --lrs 0.003 0.01 --seed 2",
        {"train_size": 18, "batch_size": 8, "test_size": 90, "epochs": 41}, (8, 8, 2), final=4,
    ),
    "three epochs": Group(
        "MyFramework.py --no-width-transfer --optimizer adam adamw rmsprop sgd --momentum 0.9 --lr 0.003"
        " --residual-scale 0.5",
        {"train_size": 60, "batch_size": 28, "test_size": 530, "epochs": 4}, (28, 28, 4), final=3, scale=0.5,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Finished:
    """The run folders of a command and how long it took."""

    group: Group
    folders: list[Path]
    wall_seconds: float
    data: Path


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_synthetic(tmp_path_factory.mktemp("data"), train=230, test=550, seed=4)


@pytest.fixture(scope="module", params=GROUPS)
def finished(request, data, tmp_path_factory) -> Finished:
    group = GROUPS[request.param]
    start = time.perf_counter()
    folders = run(group.command, data, tmp_path_factory.mktemp("results"), width=WIDTH, **group.sizes)
    return Finished(group, sorted(folders.values()), time.perf_counter() - start, data)


def checkpoint(folder: Path) -> tuple[str, Weights]:
    """The network's name and its weights, by the names of the reference."""
    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    model = state["config"]["model"]
    names = state_names(model, WIDTH)
    return model, {name: w.double() for name, w in zip(names, state["model"].values(), strict=True)}


def recomputed(finished: Finished, folder: Path, part: str = "test") -> Evaluated:
    model, weights = checkpoint(folder)
    arrays, size = np.load(finished.data / "cifar10.npz"), finished.group.sizes["test_size"]
    images, labels = (arrays[f"{part}_{what}"][:size] for what in ("images", "labels"))
    return evaluate(model, weights, images, labels, finished.group.scale)


def summary(folder: Path) -> dict:
    return json.loads((folder / "summary.json").read_text())


def test_the_last_test_loss_and_accuracy_follow_from_checkpoint_and_test_images(finished):
    for folder in finished.folders:
        epochs, expected = table(folder / "epochs.csv"), recomputed(finished, folder)
        assert epochs["test_loss"][-1] == pytest.approx(expected.loss, abs=LOSS)
        right = count(epochs["test_accuracy"][-1], finished.group.sizes["test_size"])
        assert abs(right - expected.right) <= int((expected.margins < MARGIN).sum())
        on_training_images = recomputed(finished, folder, "train")
        assert abs(on_training_images.loss - expected.loss) > 100 * LOSS  # which of the two is tested would be seen


def test_the_training_loss_is_the_mean_over_images_of_the_steps(finished):
    sizes, epochs = finished.group.batches, finished.group.sizes["epochs"]
    for folder in finished.folders:
        losses = table(folder / "steps.csv")["loss"].reshape(epochs, len(sizes))
        logged = table(folder / "epochs.csv")
        assert logged["train_loss"] == pytest.approx(losses @ sizes / sum(sizes), abs=1e-6)
        assert np.abs(losses.mean(axis=1) - logged["train_loss"]).max() > 1e-4  # the mean over steps would be seen
        for accuracy in logged["train_accuracy"]:
            count(accuracy, sum(sizes))


def test_the_summary_follows_from_logs_and_checkpoint(finished):
    group, sizes = finished.group, finished.group.sizes
    for folder in finished.folders:
        found, epochs = summary(folder), table(folder / "epochs.csv")
        accuracy = epochs["test_accuracy"].tolist()
        assert len(accuracy) == found["epochs"] == sizes["epochs"]
        assert found["steps"] == sizes["epochs"] * len(group.batches) == len(table(folder / "steps.csv")["step"])
        assert found["last_accuracy"] == pytest.approx(accuracy[-1], abs=1e-9)
        assert found["best_accuracy_selected_on_test"] == pytest.approx(max(accuracy), abs=1e-9)
        assert found["final_accuracy"] == pytest.approx(sum(accuracy[-group.final :]) / group.final, abs=1e-9)
        assert len(set(accuracy[-group.final - 1 :])) > 1  # another number of epochs would be seen
        assert found["diverged_at_step"] is None
        _, weights = checkpoint(folder)
        assert found["parameters"] == sum(math.prod(w.shape) for name, w in weights.items() if is_trained(name))
        images = sizes["epochs"] * sum(group.batches)
        assert found["images_per_second"] * found["train_seconds"] == pytest.approx(images)
        tflops = found["images_per_second"] * found["flops_per_training_image"] / 1e12
        assert found["tflops"] == pytest.approx(tflops)
        assert found["matmul_tflops"] > 0
        assert found["share_of_matmul_rate"] == pytest.approx(tflops / found["matmul_tflops"])


def test_the_times_add_up_to_less_than_the_clock_says(finished):
    """A lockstep group's runs share its time: all of them together cannot have taken longer than the command."""
    spent = 0.0
    for folder in finished.folders:
        found, epochs = summary(folder), table(folder / "epochs.csv")
        assert epochs["train_seconds"].min() > 0 and found["test_seconds"] > 0
        rounding = 1e-4 * len(epochs["epoch"])
        assert epochs["train_seconds"].sum() == pytest.approx(found["train_seconds"], abs=rounding)
        images = epochs["images_per_second"] * epochs["train_seconds"]
        assert images == pytest.approx(sum(finished.group.batches), rel=5e-5 / epochs["train_seconds"].min() + 1e-3)
        spent += found["train_seconds"] + found["test_seconds"]
    assert 0 < spent <= finished.wall_seconds
    assert len({summary(folder)["train_seconds"] for folder in finished.folders}) == 1


def test_what_evaluate_says_and_draws_is_the_confusion_matrix(finished, capsys):
    folder, images = finished.folders[-1], finished.group.sizes["test_size"]
    capsys.readouterr()
    flags = [f"--evaluate={folder}", f"--data-dir={finished.data}", "--device=cpu", "--train-size=2"]
    SCRIPTS[finished.group.command.split()[0]]([*flags, f"--test-size={images}"])
    out = capsys.readouterr().out
    expected, drawn = recomputed(finished, folder), drawn_cells(folder / "confusion.svg")
    # A prediction that rounding changes leaves one cell and enters another.
    assert np.abs(drawn - expected.confusion.numpy()).sum() <= 2 * int((expected.margins < MARGIN).sum())
    assert (drawn != drawn.T).any()  # rows and columns exchanged would be seen
    loss, accuracy = re.search(r"test loss ([\d.]+), test accuracy ([\d.]+)%", out).groups()
    assert float(loss) == pytest.approx(expected.loss, abs=5e-5 + LOSS)
    assert accuracy == f"{100 * drawn.trace() / images:.2f}"
    assert re.findall(r"^ +(\w+) +([\d.]+)%  of (\d+)$", out, re.MULTILINE) == [
        (name, f"{100 * drawn[i, i] / drawn[i].sum():.2f}", str(drawn[i].sum())) for i, name in enumerate(CLASSES)
    ]


def drawn_cells(figure: Path) -> np.ndarray:
    """The counts of a confusion matrix by where they stand in the figure: rows from the top, columns from the left.

    The color bar's numbers come after them in the file.
    """
    texts = re.findall(r'<text [^>]*?x="([\d.]+)" y="([\d.]+)"[^>]*>(\d+)</text>', figure.read_text(encoding="utf-8"))
    cells = [(round(float(y)), float(x), int(text)) for x, y, text in texts[:100]]
    return np.array([count for _, _, count in sorted(cells)]).reshape(10, 10)


@pytest.mark.parametrize(
    ("command", "model"),
    [
        ("MyVGG.py --lrs 0.001", "vgg_a"),
        ("MyVGG.py --lrs 0.001 --bn", "vgg_a_bn"),
        ("MyFramework.py --model inception", "inception"),
        ("MyFramework.py --model inception_res", "inception_res"),
        ("MyFramework.py --model inception_res --bn", "inception_res_bn"),
    ],
)
def test_the_arithmetic_of_an_image_is_that_of_its_matrix_products(command, model, data, tmp_path):
    """Two operations for each multiplication, in the forward pass, for the weights' and for the inputs' gradient; the
    images themselves need no gradient."""
    sizes = {"train_size": 5, "batch_size": 3, "test_size": 7, "epochs": 1}
    (folder,) = run(command, data, tmp_path, width=0.5, **sizes).values()
    products = [layer.multiplications for layer in layers(model, 0.5)]
    assert summary(folder)["flops_per_training_image"] == 2 * (3 * sum(products) - products[0])
    assert summary(folder)["final_accuracy"] == table(folder / "epochs.csv")["test_accuracy"][0]

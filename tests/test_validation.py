"""Validation images: balanced, held out of the training, and the test images evaluated once, at the end."""

import csv
import json

import numpy as np
import pytest
import recorded
import torch
from torch import nn
from torch.nn import functional as F

import landscape
import MyFramework
import MyVGG
from cifar_lab.run_folder.reader import read_run
from cifar_lab.training.console import epoch_text, result_text, short_epoch_text
from cifar_lab.training.plan import held_out

LABELS = np.repeat(np.arange(10), [30, 12, 25, 40, 20, 30, 30, 30, 30, 30])


@pytest.mark.parametrize("count, of_each", [(0, {0}), (10, {1}), (100, {10}), (25, {2, 3}), (3, {0, 1}), (120, {12})])
def test_as_many_of_each_class_are_held_out(count, of_each):
    for seed in range(3):
        chosen = held_out(seed, LABELS, count)
        assert len(chosen) == len(set(chosen.tolist())) == count and (np.diff(chosen) > 0).all()
        assert set(np.bincount(LABELS[chosen], minlength=10).tolist()) == of_each


def test_the_seed_decides_which():
    draws = [tuple(held_out(seed, LABELS, 50)) for seed in (0, 0, 1, 2)]
    assert draws[0] == draws[1] and len(set(draws)) == 3
    often = np.bincount(np.concatenate([held_out(seed, LABELS, 15) for seed in range(400)]), minlength=len(LABELS))
    expected = 400 * 1.5 / np.bincount(LABELS)[LABELS]  # every image of a class alike, every class alike
    assert (abs(often - expected) < 5 * expected**0.5).all()


def test_a_class_with_too_few_images_is_an_error():
    with pytest.raises(ValueError, match="that is 13 images of a class; of one, the 277 there are have 12"):
        held_out(0, LABELS, 121)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """130 images with ten labels, told apart by their first pixel."""
    return recorded.write_numbered(tmp_path_factory.mktemp("numbered"), classes=10)


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module", params=[MyVGG, MyFramework])
def trained(request, data, tmp_path_factory):
    """Two epochs with 40 of 130 images held out: what was trained and evaluated on, and the run folder."""
    results = tmp_path_factory.mktemp("results")
    step, seen = request.param.training_step, []

    def build(config):
        torch.manual_seed(0)
        model = nn.Sequential(nn.AvgPool2d(16), nn.Flatten(), nn.Linear(12, 10))
        model.register_forward_hook(
            lambda model, inputs, out: None if out.is_meta else seen.append((model.training, inputs[0].clone()))
        )
        return model

    recorded.train(
        request.param, data, "--validation-size 40 --lr 0.1 --optimizer sgd --no-augment", build, step, results
    )
    (folder,) = (path.parent for path in results.rglob("config.json"))
    return seen, folder


def test_images_held_out_are_not_trained_on_and_the_test_images_come_last(trained, data):
    seen, _ = trained
    arrays = np.load(data / "cifar10.npz")
    number = {
        image.tobytes(): i for i, image in enumerate(np.concatenate([arrays["train_images"], arrays["test_images"]]))
    }
    passes = [
        (
            training,
            [number[np.rint((x.permute(1, 2, 0).numpy() + 1) * 127.5).astype(np.uint8).tobytes()] for x in images],
        )
        for training, images in seen
    ]
    assert [(training, len(images)) for training, images in passes] == [
        (True, 50), (True, 40), (False, 40), (True, 50), (True, 40), (False, 40), (False, 20),
    ]  # fmt: skip
    for at in (0, 3):
        trained_on, validated = passes[at][1] + passes[at + 1][1], passes[at + 2][1]
        assert sorted(trained_on + validated) == list(range(130)) and validated == sorted(validated)
        assert np.bincount(arrays["train_labels"][validated]).tolist() == [4] * 10
    assert passes[2] == passes[5] and passes[6][1] == list(range(130, 150))


def test_the_logs_say_which_images(trained, data):
    seen, folder = trained
    arrays = np.load(data / "cifar10.npz")
    assert folder.name.endswith("-validation40-noaugment")
    epochs, summary = rows(folder / "epochs.csv"), json.loads((folder / "summary.json").read_text())
    assert list(epochs[0]) == [
        "epoch", "learning_rate", "train_loss", "train_accuracy", "validation_loss", "validation_accuracy",
        "train_seconds", "images_per_second",
    ]  # fmt: skip
    weights = torch.load(folder / "checkpoint.pt", weights_only=True)["model"]
    logits = F.linear(F.avg_pool2d(seen[5][1], 16).flatten(1), weights["2.weight"], weights["2.bias"])
    labels = torch.from_numpy(arrays["train_labels"]).long()[held_out(0, arrays["train_labels"], 40)]
    assert float(epochs[1]["validation_loss"]) == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)
    assert float(epochs[1]["validation_accuracy"]) == 2.5 * (logits.argmax(1) == labels).sum().item()
    accuracies = [float(row["validation_accuracy"]) for row in epochs]
    assert summary["best_accuracy_selected_on_validation"] == max(accuracies)
    assert summary["last_accuracy"] == accuracies[1] and summary["final_accuracy"] == np.mean(accuracies)
    assert "best_accuracy_selected_on_test" not in summary
    logits = F.linear(F.avg_pool2d(seen[6][1], 16).flatten(1), weights["2.weight"], weights["2.bias"])
    labels = torch.from_numpy(arrays["test_labels"]).long()
    assert summary["test_loss"] == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)
    right = (logits.argmax(1) == labels).tolist()
    assert summary["test_accuracy"] == 5 * sum(right)
    run = read_run(folder)
    assert run.right.tolist() == right and run.column("test_accuracy").tolist() == accuracies


@pytest.mark.parametrize("script", [MyVGG, MyFramework])
@pytest.mark.parametrize(
    "words, said",
    [
        ("--validation-size=129", "--validation-size 129: --train-size 130 leaves none to train on"),
        ("--validation-size=400", "--validation-size 400: --train-size 130 leaves none to train on"),
        ("--train-size=125 --validation-size=121", "that is 13 images of a class; of one, the 125 there are have 12"),
    ],
)
def test_more_than_there_are_is_refused(script, words, said, data, tmp_path, capsys):
    argv = [*recorded.FLAGS.split(), *words.split(), f"--data-dir={data}", f"--results={tmp_path / 'results'}"]
    with pytest.raises(SystemExit) as stop:
        script.script.run(script.main, argv)
    err = capsys.readouterr().err
    assert stop.value.code == 2 and err.count("\n") == 1 and said in err and not list(tmp_path.iterdir())


def test_the_console_says_which_accuracy():
    results = [(f"lr {lr}", {"train_loss": 1.5, "train_accuracy": 40, "validation_accuracy": 30 + lr}) for lr in (1, 2)]
    assert epoch_text(1, 2, results[:1]) == "epoch 1/2; lr 1: loss 1.500, accuracy 40.0%, validation accuracy 31.00%"
    assert short_epoch_text(1, 2, results, 80) == "epoch 1/2: validation accuracy 1 31.00, 2 32.00%"
    summary = {
        "train_seconds": 1, "test_seconds": 1, "final_accuracy": 40.0, "epochs": 3, "test_accuracy": 39.0,
        "best_accuracy_selected_on_validation": 41.0, "images_per_second": None, "tflops": None,
    }  # fmt: skip
    said = result_text(summary)
    assert said.endswith("final validation accuracy 40.00% (mean of the last 3 epochs), test accuracy 39.00%")


def test_the_surface_is_of_the_images_that_were_trained_on(trained, data, capsys):
    _, folder = trained
    words = ["surface", str(folder), "--images", "91", "--data-dir", str(data)]
    with pytest.raises(SystemExit):
        landscape.main(words)
    assert "--images 91: the run was trained on 90, and no more are used" in capsys.readouterr().err

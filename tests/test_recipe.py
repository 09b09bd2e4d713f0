"""The switches of today's recipe: each against the same thing computed plainly, and resumed bit for bit."""

import csv

import numpy as np
import pytest
import recorded
import torch
from torch.nn import functional as F

import MyFramework
import MyVGG
from cifar_lab.measures.evaluation import predictor
from cifar_lab.run_folder.checkpoint import load_model
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

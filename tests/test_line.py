"""The straight line between two networks: known answers, BatchNorm's statistics on the way, its file, its figure."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from drawn import drawn_by, lines, texts
from test_surface import IMAGES, images, trained  # noqa: F401  (images is a fixture)
from torch import nn

import landscape
from cifar_lab.measures.line import barrier, errors, read_line
from cifar_lab.networks import build
from cifar_lab.run_folder import checkpoint

torch.set_num_threads(1)


class Logits(nn.Module):
    """The same logits for every image: the loss is a known function of them."""

    def __init__(self, *logits: float) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))

    def forward(self, x):
        return self.logits.expand(len(x), -1)


def rows(model, ends, train, test, t):
    return list(errors(model, [end.state_dict() for end in ends], train, test, t))


def test_the_loss_and_the_accuracy_between_two_known_networks():
    """From logits (2, 0) to (0, 4): at t they are (2 - 2t, 4t), equal at t = 1/3. Of class 0 are 3 of the 4 training
    images and 1 of the 5 test images."""
    train = torch.zeros(4, 3, 8, 8), torch.tensor([0, 0, 1, 0])
    test = torch.zeros(5, 3, 8, 8), torch.tensor([1, 0, 1, 1, 1])
    t = [0.0, 0.25, 0.5, 1.0]
    found = rows(Logits(0.0, 0.0), (Logits(2.0, 0.0), Logits(0.0, 4.0)), train, test, t)
    for at, row in zip(t, found, strict=True):
        both = math.log(math.exp(2 - 2 * at) + math.exp(4 * at))
        first, second = both - (2 - 2 * at), both - 4 * at  # the losses of an image of class 0 and of class 1
        right = (75, 20) if at < 1 / 3 else (25, 80)
        expected = ((3 * first + second) / 4, right[0], (first + 4 * second) / 5, right[1])
        assert row == pytest.approx(expected, rel=1e-5)


def scaled_network(scale: float) -> nn.Module:
    """BatchNorm takes the scale out again, if its statistics are those of what it is given."""
    net = nn.Sequential(nn.Conv2d(3, 3, 1, bias=False), nn.BatchNorm2d(3, eps=1e-9), nn.AvgPool2d(4), nn.Flatten())
    with torch.no_grad():
        net[0].weight.copy_(scale * torch.eye(3).view(3, 3, 1, 1))
        net[1].running_var.fill_(1000.0)  # of neither network, nor of any on the way
    return net


def test_batchnorms_statistics_are_those_of_the_network_on_the_line():
    """The scale of the weights goes from 1 to 5 and nothing changes; the loss is that of the images, standardized."""
    generator = torch.Generator().manual_seed(0)
    pictures = torch.randn(300, 3, 4, 4, generator=generator) + torch.tensor([1.0, -2.0, 0.5]).view(3, 1, 1)
    labels = torch.randint(0, 3, (300,), generator=generator)
    pictures[torch.arange(300), labels] += 1  # can be learned
    found = rows(scaled_network(1), (scaled_network(1), scaled_network(5)), (pictures, labels), (pictures, labels),
                 [0.0, 0.3, 1.0])  # fmt: skip
    values = pictures.transpose(0, 1).flatten(1)
    standard = (pictures - values.mean(1).view(3, 1, 1)) / values.std(1).view(3, 1, 1)
    expected = F.cross_entropy(standard.mean((2, 3)), labels).item()
    # The variance is a mean over three batches of 100 images, each around its own mean: 1% off at the most.
    assert [row[0] for row in found] == pytest.approx([expected] * 3, rel=3e-3)
    assert [row[0] for row in found] == pytest.approx([found[0][0]] * 3, rel=1e-5)


def test_a_barrier_is_the_largest_error_above_the_mean_of_the_ends():
    assert barrier(np.array([1.0, 2.5, 4.0, 3.0])) == 2.0
    assert barrier(np.array([3.0, 1.0, 0.5, 1.0])) == 1.0  # the largest is an end
    assert barrier(np.array([2.0, 1.0, 2.0])) == 0.0  # a valley is none


# --- Command line -----------------------------------------------------------------------------------------------------


@pytest.fixture
def with_tests(images):  # noqa: F811
    rng = np.random.default_rng(1)
    images.test_images = rng.integers(0, 256, (2_000, 32, 32, 3), dtype=np.uint8)
    images.test_labels = rng.integers(0, 10, 2_000, dtype=np.uint8)
    return images


def drawn_from(seed: int):
    def built(config):
        torch.manual_seed(seed)
        return build(config)

    return built


FLAGS = ["--points", "3", "--images", "40", "--device", "cpu", "--seed", "2"]


def test_command_line(tmp_path, with_tests):
    first = trained(tmp_path, "vgg_a_lr0.001", drawn_from(0))
    second = trained(tmp_path, "vgg_a_lr0.0001", drawn_from(1))
    drawn = drawn_by(landscape.main, ["line", first, second, *FLAGS], tmp_path)
    (file,) = first.glob("line-*.csv")
    assert file.name == "line-3points-40images-seed2-to-quick-vgg_a-adam-lr1e-4-wd1e-4-seed0.csv"
    line = read_line(file)
    assert line.complete and line.t.tolist() == [0, 0.5, 1]
    chosen = np.random.default_rng(2).permutation(IMAGES)[:40]
    x, test_x = (torch.from_numpy(a).permute(0, 3, 1, 2) / 255 * 2 - 1
                 for a in (with_tests.train_images[chosen], with_tests.test_images))  # fmt: skip
    y, test_y = (torch.from_numpy(a).long() for a in (with_tests.train_labels[chosen], with_tests.test_labels))
    for end, folder in ((0, first), (2, second)):
        model, _ = checkpoint.load_model(folder)
        with torch.no_grad():
            assert line.train_loss[end] == pytest.approx(F.cross_entropy(model(x), y).item(), rel=1e-4)
            logits = model(test_x)
        assert line.test_loss[end] == pytest.approx(F.cross_entropy(logits, test_y).item(), rel=1e-4)
        right = int((logits.argmax(1) == test_y).sum())
        assert line.test_accuracy[end] == pytest.approx(100 * right / 2_000, abs=0.051)
    (figure,) = drawn.figures.values()
    losses, accuracies = figure.axes
    assert lines(losses) == [(line.t.tolist(), line.train_loss.tolist()), (line.t.tolist(), line.test_loss.tolist())]
    assert lines(accuracies)[1] == (line.t.tolist(), line.test_accuracy.tolist())
    assert any("from quick/vgg_a/adam-lr1e-3-wd1e-4-seed0 (t = 0) to quick/vgg_a/adam-lr1e-4-wd1e-4-seed0 (t = 1)" in t
               for t in texts(figure))  # fmt: skip
    assert "BatchNorm" not in "".join(texts(figure))
    content = file.read_bytes()
    assert landscape.main(["line", str(first), str(second), *FLAGS]) == 0
    assert file.read_bytes() == content


def test_a_line_is_among_the_figures_of_a_results_folder(tmp_path, with_tests, capsys):
    first = trained(tmp_path, "vgg_a_lr0.001", drawn_from(0))
    second = trained(tmp_path, "vgg_a_lr0.0001", drawn_from(1))
    drawn_by(landscape.main, ["line", first, second, *FLAGS], tmp_path)
    found = drawn_by(landscape.main, [tmp_path], tmp_path)
    assert any(name.startswith("line-3points") for name in found.figures)
    (file,) = first.glob("line-*.csv")
    file.write_bytes(file.read_bytes()[:-30])
    landscape.main([str(tmp_path)])
    said = capsys.readouterr().out
    assert f"to create it, run: python landscape.py line {first} {second} --points 3 --images 40 --seed 2" in said


def test_runs_that_will_not_do(tmp_path, with_tests, capsys):
    first = trained(tmp_path, "vgg_a_lr0.001")
    other = trained(tmp_path, "vgg_a_bn_lr0.001")
    before = set(tmp_path.rglob("*"))
    for folders, complaint in (
        ([first, first], "needs two different runs"),
        ([first, other], "its network is not that of"),
        ([first, tmp_path / "nowhere"], "no such run folder"),
        ([first], "RUN_FOLDER"),
        ([first, other, "--points", "2"], "--points"),
        ([first, other, "--mode", "train"], "--mode"),
    ):
        with pytest.raises(SystemExit) as ended:
            landscape.main(["line", *map(str, folders)])
        said = capsys.readouterr()
        assert ended.value.code == 2 and not said.out and said.err.count("\n") == 1 and complaint in said.err
    assert set(tmp_path.rglob("*")) == before
    assert Path(first).is_dir()

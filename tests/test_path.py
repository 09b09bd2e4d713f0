"""The trajectory in its principal plane: the checkpoints that are kept for it, known planes, file, figure, command."""

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from drawn import drawn_by, extents, lines, texts
from made_up import write_run
from matplotlib import pyplot as plt
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from test_surface import IMAGES, images, images_and_labels, mean_loss, small_net, trained  # noqa: F401
from trainings import content, flags, folder_in_memory, train_here

import landscape
from cifar_lab.figures import path as figure_of_path
from cifar_lab.figures.style import Figures
from cifar_lab.measures.path import Grid, Path2D, Trajectory, principal_plane, read_path
from cifar_lab.measures.surface import losses_at
from cifar_lab.run_folder import checkpoint
from cifar_lab.run_folder.reader import read_run

torch.set_num_threads(1)

# --- Principal directions ---------------------------------------------------------------------------------------------


def in_two_tensors(rows) -> list[list[torch.Tensor]]:
    """Checkpoints of seven parameters each."""
    return [[torch.tensor(row[:4]).view(2, 2), torch.tensor(row[4:])] for row in np.asarray(rows).tolist()]


def test_a_known_plane():
    """Places (-3, 1), (3, 1), (-1, -1), (1, -1) along two orthonormal axes have variances 20 and 4 and no covariance;
    seen from the last, and with the first in the positive quadrant, they are (4, 2), (-2, 2), (2, 0), (0, 0)."""
    axes = np.linalg.qr(np.random.default_rng(0).normal(size=(7, 2)))[0].T
    places = np.array([[-3, 1], [3, 1], [-1, -1], [1, -1]])
    weights = in_two_tensors(5 + places @ axes)
    directions, points, shares = principal_plane(weights)
    np.testing.assert_allclose(points, [[4, 2], [-2, 2], [2, 0], [0, 0]], atol=1e-5)
    assert shares == pytest.approx((20 / 24, 4 / 24), rel=1e-6)
    found = np.array([torch.cat([t.flatten() for t in d]).tolist() for d in directions])
    np.testing.assert_allclose(found, [-axes[0], axes[1]], atol=1e-6)


def test_more_directions_than_two():
    """Against numpy's singular value decomposition of the centered rows."""
    rows = np.random.default_rng(1).normal(size=(6, 7)) * np.array([5, 3, 1, 1, 0.5, 0.5, 0.5])
    _, points, shares = principal_plane(in_two_tensors(rows))
    _, s, vt = np.linalg.svd(rows - rows.mean(axis=0), full_matrices=False)
    expected = (rows - rows[-1]) @ vt[:2].T
    np.testing.assert_allclose(points, expected * np.sign(expected[0]), atol=1e-5)
    assert shares == pytest.approx(s[:2] ** 2 / (s**2).sum(), rel=1e-5)


@pytest.mark.parametrize("rows", [[[0.0] * 7, [1.0] * 7], [[float(i)] * 7 for i in range(4)], [[1.0] * 7] * 3])
def test_no_plane(rows):
    with pytest.raises(ValueError, match="one line"):
        principal_plane(in_two_tensors(rows))


def test_three_checkpoints_lie_in_their_plane():
    """So the loss at each one's place is its own."""
    (x, y), nets = images_and_labels(), [small_net(seed) for seed in range(3)]
    for net in nets[:2]:
        net[1].load_state_dict(
            {k: v for k, v in nets[2][1].state_dict().items() if "running" in k or "num" in k}
            | dict(net[1].named_parameters())
        )
    expected = [mean_loss(net, x, y) for net in nets]
    directions, points, shares = principal_plane([[p.detach() for p in net.parameters()] for net in nets])
    assert sum(shares) == pytest.approx(1)
    assert list(losses_at(nets[2], x, y, directions, points, "eval")) == pytest.approx(expected, rel=1e-4)


def test_the_grid_is_around_the_trajectory():
    trajectory = Trajectory((0, 1, 2), np.array([[10.0, 1.0], [4.0, -1.0], [0.0, 0.0]]), (0.9, 0.1))
    a, b = trajectory.axes(5)
    np.testing.assert_allclose(a, np.linspace(-1.5, 11.5, 5))
    np.testing.assert_allclose(b, np.linspace(-1.3, 1.3, 5))


# --- Checkpoints that are kept ----------------------------------------------------------------------------------------


def train(data, results, *more):
    ended = train_here([*flags(data, *more), "--results", str(results)])
    assert (ended.status, ended.err) == (0, "")
    return next(results.glob("*/vgg_a/*"))


def weights_of(folder: Path) -> dict[int, dict]:
    return {step: checkpoint.read(path)["model"] for step, path in checkpoint.kept(folder).items()}


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def test_checkpoints_are_kept_every_so_many_steps(synthetic_data):
    """Three steps an epoch, two epochs: before steps 1, 3 and 5. The training is the same as without, and the one
    after an epoch is the checkpoint of a run of one epoch. In one go, and continued."""
    with folder_in_memory() as whole, folder_in_memory() as parts, folder_in_memory() as plain:
        folder = train(synthetic_data, whole, "--epochs", "2", "--keep-every", "2")
        assert sorted(path.name for path in folder.glob("checkpoint.step*")) == [
            "checkpoint.step0.pt", "checkpoint.step2.pt", "checkpoint.step4.pt",
        ]  # fmt: skip
        train(synthetic_data, plain, "--epochs", "2")
        assert content(whole) == content(plain)
        train(synthetic_data, parts, "--epochs", "1", "--keep-every", "2")
        continued = train(synthetic_data, parts, "--epochs", "2", "--keep-every", "2")
        assert content(parts).items() == content(whole).items()
        kept = weights_of(folder)
        assert list(kept) == list(weights_of(continued)) == [0, 2, 4]
        assert all(same(kept[step], weights_of(continued)[step]) for step in kept)
        assert not same(kept[0], kept[2])
    with folder_in_memory() as results, folder_in_memory() as other:
        kept = weights_of(train(synthetic_data, results, "--epochs", "2", "--keep-every", "3"))
        end = train(synthetic_data, other, "--epochs", "1", "--keep-every", "100")
        assert list(kept) == [0, 3] and same(kept[3], checkpoint.read(end / "checkpoint.pt")["model"])
        assert same(kept[0], weights_of(end)[0])


def test_only_names_that_a_run_writes_are_kept_checkpoints(tmp_path):
    for name in ("0", "2", "02", "+4", "\u0663", "1_0", "-1", "x", "17"):
        (tmp_path / f"checkpoint.step{name}.pt").touch()
    assert list(checkpoint.kept(tmp_path)) == [0, 2, 17]


# --- Command line -----------------------------------------------------------------------------------------------------

FLAGS = ["--points", "3", "--images", "20", "--device", "cpu", "--seed", "4"]
NAME = "path-3x3-20images-seed4-eval.csv"


def with_kept(folder: Path, *steps: int) -> list[dict]:
    """A trained run's folder, at step 200, with kept checkpoints of other weights; theirs and then its own."""
    final = checkpoint.read(folder / "checkpoint.pt")
    generator, states = torch.Generator().manual_seed(7), []
    for step in steps:
        moved = {name: t + 0.02 * torch.randn(t.shape, generator=generator) for name, t in final["model"].items()}
        epochs, begun = divmod(step, 100)
        of_epoch = {"losses": torch.zeros(begun), "correct": torch.zeros(begun, dtype=torch.int64)}
        checkpoint.keep(folder, step, final | of_epoch | {"model": moved, "epochs": epochs, "step": begun})
        states.append(moved)
    return [*states, final["model"]]


def test_command_line(tmp_path, images, capsys):  # noqa: F811
    folder = trained(tmp_path, "vgg_a_lr0.001", epochs=2)
    states = with_kept(folder, 0, 50, 100)
    with_kept(folder, 300)  # after the newest checkpoint: a run that was interrupted will write it again
    drawn = drawn_by(landscape.main, ["path", folder, *FLAGS], tmp_path)
    path = read_path(folder / NAME)
    assert path.complete and path.trajectory.steps == (0, 50, 100, 200)
    rows = np.array([torch.cat([t.flatten() for t in state.values()]).tolist() for state in states])
    _, s, vt = np.linalg.svd(rows - rows.mean(axis=0), full_matrices=False)
    expected = (rows - rows[-1]) @ vt[:2].T
    signs = np.sign(expected[0])
    np.testing.assert_allclose(path.trajectory.points, expected * signs, rtol=1e-3, atol=1e-4)
    assert path.trajectory.shares == pytest.approx(s[:2] ** 2 / (s**2).sum(), rel=1e-3)

    chosen = np.random.default_rng(4).permutation(IMAGES)[:20]
    x = torch.from_numpy(images.train_images[chosen]).permute(0, 3, 1, 2) / 255 * 2 - 1
    y = torch.from_numpy(images.train_labels[chosen]).long()
    model, _ = checkpoint.load_model(folder)
    a, b = path.trajectory.axes(3)
    for place, (at_a, at_b) in {1: (a[0], b[1]), 6: (a[2], b[0])}.items():  # b runs first
        moved = torch.from_numpy(rows[-1] + at_a * signs[0] * vt[0] + at_b * signs[1] * vt[1]).float()
        torch.nn.utils.vector_to_parameters(moved, model.parameters())
        with torch.no_grad():
            assert path.losses[place] == pytest.approx(F.cross_entropy(model(x), y).item(), rel=1e-3)

    (figure,) = drawn.figures.values()
    axes = figure.axes[0]
    assert lines(axes)[0] == tuple(column.tolist() for column in path.trajectory.points.T)
    assert axes.get_xlabel() == f"a, first direction: {100 * path.trajectory.shares[0]:.1f}% of the variance"
    assert [t.get_text() for t in axes.texts] == ["step 0", "step 200"]
    words = "".join(texts(figure))
    assert "eval mode: no dropout; " in words and "BatchNorm" not in words
    before = (folder / NAME).read_bytes()
    assert landscape.main(["path", str(folder), *FLAGS]) == 0
    assert (folder / NAME).read_bytes() == before
    (folder / NAME).write_bytes(before[:-40])
    landscape.main([str(tmp_path)])
    said = capsys.readouterr().out
    assert f"run: python landscape.py path {folder} --points 3 --images 20 --seed 4" in said


def drawn_around(trajectory, loss, tmp_path, monkeypatch) -> Figure:
    """The figure of a trajectory; loss: a function of a and b."""
    kept = []
    monkeypatch.setattr(Figures, "add", lambda self, figure, *_: kept.append(figure))
    a, b = np.meshgrid(*trajectory.axes(25), indexing="ij")
    run = read_run(write_run(tmp_path, "vgg_a_lr0.001"))
    figure_of_path.draw(Figures(), tmp_path, run, Path2D(Grid(), trajectory, loss(a, b).ravel()))
    (figure,) = kept
    plt.close(figure)
    return figure


def test_the_colours_show_the_valley_between_high_walls(tmp_path, monkeypatch):
    """From 2.3 to 1.9 along the trajectory, as after a short training; at one end of the plane it goes up to 100."""
    points = np.array([[20, 2], [12, -5], [6, -7], [2, -5], [0, 0]], float)
    trajectory = Trajectory((0, 20, 40, 60, 80), points, (0.76, 0.17))
    figure = drawn_around(
        trajectory, lambda a, b: 1.9 + 0.02 * a.clip(0) + np.exp(2 * (a - 20.5)).clip(0, 98), tmp_path, monkeypatch
    )
    axes = figure.axes[0]
    extents(figure)
    levels = axes.collections[0].levels
    assert sum(1.9 < level < 2.3 for level in levels) >= 10
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    box = axes.get_window_extent()
    assert box.width / (right - left) == pytest.approx(box.height / (top - bottom), rel=1e-3)
    for text in axes.texts:  # white on a dark box, inside the panel
        assert to_hex(text.get_bbox_patch().get_facecolor()) == "#000000" and to_hex(text.get_color()) == "#ffffff"
        words = text.get_window_extent()
        assert box.x0 <= words.x0 and words.x1 <= box.x1 and box.y0 <= words.y0 and words.y1 <= box.y1
    label = axes.yaxis.label.get_window_extent()
    assert box.y0 - 1 <= label.y0 and label.y1 <= box.y1 + 1


def test_a_long_way_down_is_logarithmic(tmp_path, monkeypatch):
    trajectory = Trajectory((0, 1, 2), np.array([[10, 1], [5, 8], [0, 0]], float), (0.8, 0.1))
    figure = drawn_around(trajectory, lambda a, b: 0.001 + 0.23 * np.abs(a), tmp_path, monkeypatch)
    ratios = np.diff(np.log(figure.axes[0].collections[0].levels))
    np.testing.assert_allclose(ratios, ratios[0], rtol=1e-6)


@pytest.mark.parametrize("value", [np.nan, np.inf, 2.0])
def test_losses_that_are_not_finite_or_all_the_same(value, tmp_path, monkeypatch):
    trajectory = Trajectory((0, 1, 2), np.array([[10, 1], [5, 8], [0, 0]], float), (0.8, 0.1))
    losses = lambda a, b: np.where((a < 1) & (b < 1), 2.0, value)  # noqa: E731
    assert drawn_around(trajectory, losses, tmp_path, monkeypatch)


def test_runs_that_will_not_do(tmp_path, images, capsys):  # noqa: F811
    runs = [*(f"vgg_a_lr{lr}" for lr in ("0.001", "0.0005", "0.0001", "5e-05")), "inception"]
    folders = [trained(tmp_path, run, epochs=2) for run in runs]
    with_kept(folders[0], 0)
    with_kept(folders[1], 0, 100)
    state = checkpoint.read(folders[1] / "checkpoint.step100.pt")
    checkpoint.keep(folders[1], 100, state | {"fingerprint": "0" * 16})
    with_kept(folders[2], 0, 100)
    state["model"] = {name: t * float("nan") for name, t in state["model"].items()}
    own = checkpoint.read(folders[2] / "checkpoint.step100.pt")
    checkpoint.keep(folders[2], 100, own | {"model": state["model"]})
    (final,) = with_kept(folders[3])
    for step in (0, 100):  # on one line
        checkpoint.keep(folders[3], step, checkpoint.read(folders[3] / "checkpoint.pt") | {
            "epochs": step // 100, "model": {name: t * (2 + step) for name, t in final.items()}})  # fmt: skip
    with_kept(folders[4], 0, 50)
    (folders[4] / "checkpoint.step50.pt").rename(folders[4] / "checkpoint.step60.pt")
    complaints = (
        "1 kept checkpoints", "of another network", "not finite", "on one line",
        "checkpoint.step60.pt: holds the weights after step 50",
    )  # fmt: skip
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for folder, complaint in zip(folders, complaints, strict=True):
        with pytest.raises(SystemExit) as ended:
            landscape.main(["path", str(folder), *FLAGS])
        said = capsys.readouterr()
        assert ended.value.code == 2 and not said.out
        assert said.err.count("\n") == 1 and complaint in said.err and said.err.startswith("landscape.py path: ")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_settings_of_a_grid():
    assert asdict(Grid()) == {"points": 25, "images": 512, "seed": 0, "mode": "eval"}
    with pytest.raises(ValueError, match="no such grid"):
        Grid(mode="both")

"""The filter-normalized surface: its directions, its file, what interrupts it, its figures and its command line."""

import copy
import json
import math
import re
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up import write_run
from matplotlib.axes import Axes
from torch import nn

import landscape
import MyFramework  # noqa: F401  (registers its networks)
import MyVGG
from cifar_lab.experiments import config_of
from cifar_lab.figures import kinds
from cifar_lab.figures.style import Figures
from cifar_lab.figures.surface import draw
from cifar_lab.measures.evaluation import evaluate
from cifar_lab.measures.surface import Grid, compute, direction, grid_losses, layout, read_surface
from cifar_lab.networks import build, describe
from cifar_lab.run_folder import checkpoint
from cifar_lab.run_folder.reader import read_run, read_runs
from cifar_lab.run_folder.schema import RunFileError

torch.set_num_threads(1)

IMAGES = config_of("vgg_a_lr0.001", "quick").train_size  # of which a surface's are chosen

ROOT = Path(landscape.__file__).parent


def small_net(seed=0) -> nn.Sequential:
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.5), nn.Linear(4 * 6 * 6, 10)
    )
    for _ in range(3):  # running statistics that are not those of the images
        net.train()(torch.randn(16, 3, 8, 8) * 2 + 1)
    return net.eval()


def images_and_labels(count=197):  # two batches, of 99 and 98 images
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 3, 8, 8, generator=generator), torch.randint(0, 10, (count,), generator=generator)


def slow_direction(parameters, generator):
    """Filter by filter, zero for biases and BatchNorm's parameters."""
    drawn = []
    for p in parameters:
        d = torch.zeros_like(p, requires_grad=False)
        if p.dim() > 1:
            noise = torch.randn(len(p), p[0].numel(), generator=generator, dtype=torch.float64)
            for i in range(len(p)):
                own, random = math.sqrt(sum(x**2 for x in p[i].flatten().tolist())), math.sqrt((noise[i] ** 2).sum())
                d[i] = (noise[i] * own / random).view(p[i].shape)
        drawn.append(d)
    return drawn


def slow_surface(model, images, labels, points, seed=0):
    """The loss of all images at once at the given (a, b), in the mode that the model has."""
    generator = torch.Generator().manual_seed(seed)
    parameters = [p.detach() for p in model.parameters()]
    d1, d2 = (slow_direction(parameters, generator) for _ in range(2))
    losses = []
    for a, b in points:
        moved = copy.deepcopy(model)
        with torch.no_grad():
            for p, x, y in zip(moved.parameters(), d1, d2, strict=True):
                p += a * x + b * y
            losses.append(F.cross_entropy(moved(images), labels).item())
    return losses


def ignore(_):
    """Takes the number of rows, and does nothing."""


# --- Directions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [MyVGG.VGG_BatchNorm(width=0.125), build(config_of("inception", "quick"))])
def test_each_filter_has_the_norm_of_the_networks_own(model):
    parameters = list(model.parameters())
    drawn = direction(parameters, torch.Generator().manual_seed(0))
    for p, d in zip(parameters, drawn, strict=True):
        if p.dim() < 2:  # biases, and BatchNorm's scale and shift
            assert d is None
        else:
            assert d.shape == p.shape and d.dtype == p.dtype
            torch.testing.assert_close(d.flatten(1).norm(dim=1), p.flatten(1).norm(dim=1), rtol=1e-5, atol=0)
            assert not torch.equal(d, p)


def test_a_direction_is_standard_normal_up_to_the_norms():
    """The same numbers as filter by filter, in single precision; the second direction continues the stream."""
    parameters = [p.detach() for p in small_net().parameters()]
    generators = torch.Generator().manual_seed(6), torch.Generator().manual_seed(6)
    for _ in range(2):
        drawn, slow = direction(parameters, generators[0]), slow_direction(parameters, generators[1])
        for d, expected in zip(drawn, slow, strict=True):
            torch.testing.assert_close(torch.zeros_like(expected) if d is None else d, expected, rtol=1e-5, atol=0)


def test_biases_and_batchnorm_stay_where_they_are():
    model = small_net()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    points = grid_losses(model, *images_and_labels(), Grid(points=3))
    next(iter(points))  # at a = b = -1
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {"0.weight", "5.weight"}


def test_directions_repeat_with_the_seed_and_differ_without():
    parameters = [nn.Parameter(torch.ones(3, 4))]
    a, b, c = (direction(parameters, torch.Generator().manual_seed(seed))[0] for seed in (0, 0, 1))
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_a_filter_of_zeros_does_not_move():
    assert torch.equal(direction([nn.Parameter(torch.zeros(2, 3))], torch.Generator())[0], torch.zeros(2, 3))


# --- The surface ------------------------------------------------------------------------------------------------------


def mean_loss(model, images, labels) -> float:
    """In equal batches of at most 128 images."""
    batches = -(-len(images) // 128)
    pairs = zip(images.tensor_split(batches), labels.tensor_split(batches), strict=True)
    return float(evaluate(model, pairs)[0]) / len(images)


def test_the_center_is_the_evaluated_loss():
    model, (images, labels) = small_net(), images_and_labels()
    grid = Grid(points=5, images=200)
    losses = list(grid_losses(model, images, labels, grid))
    assert len(losses) == 25 and len(set(losses)) == 25
    model = small_net()
    assert losses[12] == mean_loss(model, images, labels)  # bit for bit: w + 0 d1 + 0 d2 is w
    with torch.no_grad():
        assert losses[12] == pytest.approx(F.cross_entropy(model(images), labels).item(), rel=1e-5)


def test_a_runs_slowest_and_the_range_is_reached():
    """In the order of the file: b from -range to range, for each a."""
    axis = [-0.75, -0.375, 0.0, 0.375, 0.75]
    assert Grid(points=5, range=0.75).coordinates().tolist() == [[a, b] for a in axis for b in axis]
    assert Grid(points=5, range=0.75, dims=1).coordinates().tolist() == [[a, 0.0] for a in axis]


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_each_point_is_the_loss_at_its_weights(mode):
    """In one batch of 90, as a slow surface has them; a goes along the first direction. Seen: 2e-7 apart."""
    images, labels = images_and_labels(90)
    losses = list(grid_losses(small_net(), images, labels, Grid(points=3, range=0.5, seed=4, mode=mode)))
    model = small_net()
    model[1].train(mode == "train")  # no dropout in either
    points = [(a, b) for a in (-0.5, 0, 0.5) for b in (-0.5, 0, 0.5)]
    assert losses == pytest.approx(slow_surface(model, images, labels, points, seed=4), rel=2e-6)
    assert len({round(loss, 4) for loss in losses}) == 9


def test_train_mode_uses_the_statistics_of_each_batch_and_eval_mode_the_running_ones():
    """197 images are batches of 99 and 98, which count by their sizes."""
    images, labels = images_and_labels()
    reference = small_net()
    reference[1].train()
    with torch.no_grad():
        parts = [F.cross_entropy(reference(images[i:j]), labels[i:j]).item() for i, j in ((0, 99), (99, 197))]
        running = F.cross_entropy(small_net()(images), labels).item()
    losses = {
        mode: list(grid_losses(small_net(), images, labels, Grid(points=3, mode=mode))) for mode in ("eval", "train")
    }
    assert losses["train"][4] == pytest.approx((99 * parts[0] + 98 * parts[1]) / 197, rel=1e-6)
    assert losses["eval"][4] == pytest.approx(running, rel=1e-6)
    assert abs(losses["train"][4] - losses["eval"][4]) > 1e-3
    assert losses["train"] == list(grid_losses(small_net(), images, labels, Grid(points=3, mode="train")))


def test_batches_count_by_their_sizes():
    """257 images, of which the first hundred have another loss: batches of 86, 86 and 85."""
    images, labels = images_and_labels(257)
    images[:100] *= 4
    model = small_net()
    with torch.no_grad():
        assert mean_loss(model, images, labels) == pytest.approx(
            F.cross_entropy(model(images), labels).item(), rel=1e-6
        )


def test_one_dimension_is_the_middle_column():
    images, labels = images_and_labels()
    line = list(grid_losses(small_net(), images, labels, Grid(dims=1, points=5)))
    plane = list(grid_losses(small_net(), images, labels, Grid(points=5)))
    assert line == plane[2::5]


# --- The file ---------------------------------------------------------------------------------------------------------

GRID = Grid(points=3, images=50)
SAME, BEFORE, AFTER = 64 * "0", 64 * "b", 64 * "a"  # digests of weights
FILE = f"{GRID.stem}.csv"


def compute_small(file, each=ignore, weights=SAME, grid=GRID):
    compute(file, small_net(), weights, *images_and_labels(50), grid, each)


class Killed(Exception):
    pass


@pytest.mark.parametrize("rows", [0, 1, 4, 9])
@pytest.mark.parametrize("half_a_row", [b"", b"0.0,", b"1.0,1.0,2.0"])
def test_interrupted_and_continued_equals_in_one_go(tmp_path, rows, half_a_row):
    (tmp_path / "whole").mkdir()
    compute_small(tmp_path / "whole" / FILE)

    def stop(done):
        if done == rows:
            raise Killed

    file = tmp_path / FILE
    with pytest.raises(Killed):
        compute_small(file, stop)
    assert len(read_surface(file).losses) == rows
    with file.open("ab") as end:
        end.write(half_a_row)
    assert len(read_surface(file).losses) == rows
    computed = []
    compute_small(file, computed.append)
    assert computed == list(range(rows, 10))
    assert file.read_bytes() == (tmp_path / "whole" / FILE).read_bytes()


def test_file_says_what_it_is_and_reads_as_csv(tmp_path):
    file = tmp_path / FILE
    compute_small(file)
    first, second, *rows = file.read_text(encoding="utf-8").splitlines()
    about = json.loads(first.removeprefix("# "))
    assert about.items() >= {"points": 3, "images": 50, "mode": "eval", "weights_sha256": SAME}.items()
    assert second == "a,b,loss"
    table = np.loadtxt(rows, delimiter=",")
    np.testing.assert_array_equal(table[:, :2], GRID.coordinates())
    np.testing.assert_array_equal(table[:, 2], read_surface(file).losses)
    assert read_surface(file).center == table[4, 2]


def test_a_file_of_other_weights_is_set_aside(tmp_path):
    file = tmp_path / FILE
    compute_small(file, weights=BEFORE)
    old = file.read_bytes()
    compute_small(file, weights=AFTER)
    assert read_surface(file).weights_sha256 == AFTER
    (aside,) = tmp_path.glob(f".{GRID.stem}.before-*.csv")
    assert aside.read_bytes() == old


def test_a_second_writer_is_noticed(tmp_path):
    file = tmp_path / FILE

    def other(done):
        if done == 4:
            with file.open("ab") as end:
                end.write(b"x")

    with pytest.raises(RunFileError, match="another process"):
        compute_small(file, other)


def test_settings_name_the_file():
    names = [
        replace(Grid(), **change).stem
        for change in ({}, {"dims": 1}, {"points": 5}, {"range": 0.25}, {"images": 9}, {"seed": 3}, {"mode": "train"})
    ]
    assert len(set(names)) == len(names)
    assert names[0] == "surface-2d-25x25-range1-512images-seed0-eval"


@pytest.mark.parametrize(
    "change", [{"dims": 3}, {"points": 4}, {"points": 1}, {"range": 0.0}, {"range": float("nan")}, {"mode": "both"}]
)
def test_a_grid_that_cannot_be(change):
    with pytest.raises(ValueError, match="no such grid"):
        Grid(**change)


def test_malformed_rows_are_named_with_their_line(tmp_path):
    file = tmp_path / FILE
    compute_small(file)
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    for number, line, complaint in (
        (1, "{}\n", "header"), (2, "a,b,c\n", "header"), (4, "-1.0,0.0\n", "not a row"),
        (4, "-1.0,0.5,2.0\n", "follows"), (5, "\n", "not a row"), (12, "1.0,1.0,2.0\n", "more than 9"),
    ):  # fmt: skip
        changed = [*lines[: number - 1], line, *lines[number:]]
        file.write_text("".join(changed), encoding="utf-8")
        with pytest.raises(RunFileError, match=complaint) as error:
            read_surface(file)
        assert str(error.value).startswith(f"{file}:{number}: ")


def test_a_file_in_another_grids_place_is_refused(tmp_path):
    """The surface of 50 images under the name of one of 60."""
    file = tmp_path / FILE
    compute_small(file)
    other = file.rename(tmp_path / "surface-2d-3x3-range1-60images-seed0-eval.csv")
    with pytest.raises(RunFileError) as error:
        read_surface(other)
    assert str(error.value) == f"{other}:1: this surface belongs into surface-2d-3x3-range1-50images-seed0-eval.csv"


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200), st.integers(0, 400), st.booleans())
def test_arbitrary_bytes_give_a_clean_error(tmp_path_factory, noise, at, whole_header):
    file = tmp_path_factory.mktemp("noise") / FILE
    good = layout(GRID, SAME).header.encode() if whole_header else b""
    file.write_bytes(good[:at] + noise + good[at:])
    complaint = str(file)
    try:
        read_surface(file)
    except RunFileError as error:
        complaint = str(error)
    assert complaint.startswith(str(file))


# --- Figures ----------------------------------------------------------------------------------------------------------


def surface_file(folder: Path, grid: Grid, losses) -> Path:
    rows = [f"{a!r},{b!r},{loss!r}\n" for (a, b), loss in zip(grid.coordinates().tolist(), losses, strict=False)]
    file = folder / f"{grid.stem}.csv"
    file.write_text(layout(grid, SAME).header + "".join(rows), encoding="utf-8")
    return file


@pytest.mark.parametrize("highest", [2.0, 2000.0, float("inf"), 0.0])
@pytest.mark.parametrize("dims", [1, 2])
def test_figures_side_by_side(tmp_path, dims, highest):
    grid = Grid(dims=dims, points=5)
    losses = np.linspace(0, 1, 5**dims).tolist()
    losses[0] = highest
    surfaces = {}
    for model in ("vgg_a", "vgg_a_bn"):
        folder = write_run(tmp_path, replace(config_of("vgg_a_lr0.001", "quick"), model=model))
        surfaces[read_run(folder)] = read_surface(surface_file(folder, grid, losses))
    figures = Figures()
    draw(figures, tmp_path / "figures", surfaces)
    assert len(figures.drawn) == 1
    for stem, caption in figures.drawn:
        assert "VGG-A + BatchNorm" in caption and "vgg_a-vs-vgg_a_bn" in stem.name
        assert Path(f"{stem}.png").stat().st_size > 5000
        svg = Path(f"{stem}.svg").read_text(encoding="utf-8")
        assert "eval mode" in svg and ("are drawn there" in svg.replace("\n", " ")) == (highest > 100)


def test_a_is_drawn_to_the_right_and_b_upwards(tmp_path, monkeypatch):
    drawn = {}

    def recorded(cls, name):
        original = getattr(cls, name)

        def function(self, a, b, losses, *args, **options):
            a, b = np.broadcast_arrays(np.asarray(a), np.asarray(b)[:, None] if np.ndim(b) == 1 else b)
            drawn.setdefault(name, []).append((self.get_xlabel, a, b, losses))
            return original(self, a, b, losses, *args, **options)

        monkeypatch.setattr(cls, name, function)

    for cls, name in ((Axes, "contourf"), (Axes, "contour")):
        recorded(cls, name)
    grid = Grid(points=5, range=2.0)
    folder = write_run(tmp_path, "vgg_a_lr0.001")
    losses = [3 + a + b**2 / 4 for a in (-2, -1, 0, 1, 2) for b in (-2, -1, 0, 1, 2)]
    draw(Figures(), tmp_path / "figures", {read_run(folder): read_surface(surface_file(folder, grid, losses))})
    assert set(drawn) == {"contourf", "contour"}
    for ((label, a, b, shown),) in drawn.values():
        assert label() == "a"
        np.testing.assert_allclose(a, np.tile([-2, -1, 0, 1, 2], (5, 1)))
        np.testing.assert_allclose(b, a.T)
        np.testing.assert_allclose(shown, 3 + a + b**2 / 4)


@pytest.mark.parametrize(
    ("model", "said"),
    [("vgg_a", "no dropout"), ("inception", "no dropout"),
     ("vgg_a_bn", "no dropout, BatchNorm with its running statistics"),
     ("own", "no dropout, BatchNorm, if there is any, with its running statistics")],
)  # fmt: skip
def test_batchnorm_is_named_where_a_network_has_it(tmp_path, model, said):
    """Of a network of one's own the run folder does not say it."""
    folder = write_run(tmp_path, replace(config_of("vgg_a_lr0.001", "quick"), model=model))
    surface, figures = surface_file(folder, Grid(points=3), np.linspace(0.5, 1, 9).tolist()), Figures()
    draw(figures, tmp_path / "figures", {read_run(folder): read_surface(surface)})
    ((stem, _),) = figures.drawn
    svg = " ".join(re.sub("<[^>]*>", " ", Path(f"{stem}.svg").read_text(encoding="utf-8")).split())
    assert svg.partition("eval mode: ")[2].rstrip() == said


def test_results_folder_with_surfaces(tmp_path):
    grid = Grid(points=3)
    folders = [write_run(tmp_path, name) for name in ("vgg_a_lr0.001", "vgg_a_bn_lr0.001", "inception")]
    surface_file(folders[0], grid, np.linspace(0.5, 1, 9).tolist())
    surface_file(folders[1], grid, np.linspace(0.5, 1, 9).tolist())
    surface_file(folders[2], grid, [1.0, 2.0])
    (folders[2] / "surface-bad.csv").write_bytes(b"bad\n")
    figures = kinds.draw(kinds.LANDSCAPE, tmp_path, "quick", read_runs(tmp_path, "quick")[0])
    assert [stem.name for stem, _ in figures.drawn] == [
        f"{grid.stem}-vgg_a-vs-vgg_a_bn-adam-lr1e-3-wd1e-4-seed0-contour"
    ]
    assert (grid.stem, f"python landscape.py surface {folders[2]} --points 3") in figures.missing
    assert [str(error) for error in figures.errors] == [
        f"{folders[2] / 'surface-bad.csv'}:1: not the header of a surface file"
    ]


# --- Command line -----------------------------------------------------------------------------------------------------


def trained(results: Path, run: str, build=build, epochs: int = 5) -> Path:
    """A run folder with a checkpoint, of a network that was not really trained."""
    folder = write_run(results, run, epochs=epochs)
    config = config_of(run, "quick")
    torch.manual_seed(0)
    state = {"epochs": epochs, "step": 0} | dict.fromkeys(("epoch_seconds", "train_seconds", "test_seconds"), 0.0)
    state |= {"losses": torch.empty(0), "correct": torch.empty(0, dtype=torch.int64), "optimizer": {}}
    model = build(config)
    checkpoint.save(
        folder,
        state | {"config": asdict(config), "fingerprint": describe(model).fingerprint, "model": model.state_dict()},
    )
    return folder


@pytest.fixture
def images(monkeypatch):
    """A data set of noise in the place of CIFAR-10."""
    rng = np.random.default_rng(0)
    noise = type("Noise", (), {})()
    noise.train_images = rng.integers(0, 256, (IMAGES, 32, 32, 3), dtype=np.uint8)
    noise.train_labels = rng.integers(0, 10, IMAGES, dtype=np.uint8)
    noise.normalization = ((0.5,) * 3, (0.5,) * 3)
    monkeypatch.setattr(landscape, "of_run", lambda config, data_dir=None: noise)
    return noise


SMALL = ["--points", "3", "--images", "20", "--device", "cpu"]


def test_command_line(tmp_path, images, capsys):
    folders = [trained(tmp_path, run) for run in ("vgg_a_lr0.001", "vgg_a_bn_lr0.001")]
    assert landscape.main(["surface", *map(str, folders), *SMALL]) == 0
    out = capsys.readouterr().out
    stem = "surface-2d-3x3-range1-20images-seed0-eval"
    assert f"figures/{stem}-vgg_a-vs-vgg_a_bn-adam-lr1e-3-wd1e-4-seed0-contour.png" in out
    for folder in folders:
        found = read_surface(folder / f"{stem}.csv")
        model, _ = checkpoint.load_model(folder)
        chosen = np.random.default_rng(0).permutation(IMAGES)[:20]
        x = torch.from_numpy(images.train_images[chosen]).permute(0, 3, 1, 2) / 255 * 2 - 1
        with torch.no_grad():
            expected = F.cross_entropy(model(x), torch.from_numpy(images.train_labels[chosen]).long())
        assert found.complete and found.center == pytest.approx(expected.item(), rel=1e-4)
    before = (folders[0] / f"{stem}.csv").stat().st_mtime_ns
    assert landscape.main(["surface", str(folders[0]), *SMALL]) == 0  # nothing is left to compute
    assert (folders[0] / f"{stem}.csv").stat().st_mtime_ns == before


def test_an_inception_along_one_direction(tmp_path, images):
    """Of 20 images that the seed chooses among those that the run was trained on, along the direction that it draws."""
    folder = trained(tmp_path, "inception")
    flags = ["--dims", "1", "--mode", "train", "--range", "0.5", "--seed", "3"]
    assert landscape.main(["surface", str(folder), *SMALL, *flags]) == 0
    found = read_surface(folder / "surface-1d-3-range0.5-20images-seed3-train.csv")
    model, _ = checkpoint.load_model(folder)
    chosen = np.random.default_rng(3).permutation(IMAGES)[:20]
    x = torch.from_numpy(images.train_images[chosen]).permute(0, 3, 1, 2) / 255 * 2 - 1
    y = torch.from_numpy(images.train_labels[chosen]).long()
    expected = slow_surface(model.eval(), x, y, [(-0.5, 0), (0, 0), (0.5, 0)], seed=3)
    assert found.complete and found.losses == pytest.approx(expected, rel=1e-5)


def everything_below(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


def refused(capsys, *words) -> str:
    """The one line with which bad input is refused."""
    with pytest.raises(SystemExit) as error:
        landscape.main(["surface", *map(str, words)])
    captured = capsys.readouterr()
    assert error.value.code == 2
    assert captured.err.count("\n") == 1 and not captured.out
    return captured.err


def test_folders_that_will_not_do(tmp_path, images, capsys):
    good = trained(tmp_path, "vgg_a_lr0.001")
    untrained = write_run(tmp_path, "vgg_a_bn_lr0.001")
    other = write_run(tmp_path, "vgg_a_lr0.0001")
    (other / "checkpoint.pt").write_bytes((good / "checkpoint.pt").read_bytes())
    wrong = trained(tmp_path, "vgg_a_lr0.0005", lambda config: build(replace(config, width=0.25)))
    stolen = write_run(tmp_path, "inception")
    (stolen / "checkpoint.pt").write_bytes((good / "checkpoint.pt").read_bytes())
    broken = trained(tmp_path, "vgg_a_lr5e-05")
    (broken / "checkpoint.pt").write_bytes((broken / "checkpoint.pt").read_bytes()[:-200])
    empty = tmp_path / "empty"
    empty.mkdir()
    before = everything_below(tmp_path)
    for folder, complaint in (
        (untrained, "there is no checkpoint; to create it, run: python MyVGG.py"),
        (wrong, "of another network"),
        (stolen, "vgg_a"),
        (broken, "not a whole checkpoint"),
        (empty, "config.json"),
        (tmp_path / "nowhere", "no such run folder"),
    ):
        line = refused(capsys, good, folder, *SMALL)
        assert str(folder) in line and complaint in line
    assert everything_below(tmp_path) == before
    (good / "surface-2d-3x3-range1-20images-seed0-eval.csv").write_text("a,b,loss\n", encoding="utf-8")
    assert "eval.csv:1: not the header" in refused(capsys, good, *SMALL)


@pytest.mark.parametrize(
    "words",
    [
        ["--points", "4"], ["--points", "1"], ["--points", "x"], ["--range", "0"], ["--range", "inf"],
        ["--images", "1"], ["--images", str(IMAGES + 1)], ["--seed", "-1"], ["--mode", "test"], ["--dims", "3"],
        ["--device", "tpu"], ["--data-dir", ""], ["--what"],
    ],
)  # fmt: skip
def test_flags_that_will_not_do(tmp_path, images, capsys, words):
    folder = trained(tmp_path, "vgg_a_lr0.001")
    before = everything_below(tmp_path)
    assert words[0] in refused(capsys, folder, *words)
    assert everything_below(tmp_path) == before
    assert "RUN_FOLDER" in refused(capsys)


@pytest.mark.skipif(sys.platform == "win32", reason="a process cannot be sent these signals there")
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_end_it_after_a_whole_row(tmp_path, number, status):
    """In a process of its own, with noise as data, killed when three rows are there."""
    folder = trained(tmp_path, "vgg_a_lr0.001")
    script = (
        "import sys, types, numpy as np, landscape\n"
        "rng = np.random.default_rng(0)\n"
        f"noise = types.SimpleNamespace(train_images=rng.integers(0, 256, ({IMAGES}, 32, 32, 3), dtype=np.uint8),\n"
        f"                              train_labels=rng.integers(0, 10, {IMAGES}, dtype=np.uint8),\n"
        "                              normalization=((0.5,) * 3, (0.5,) * 3))\n"
        "landscape.of_run = lambda config, data_dir=None: noise\n"
        "sys.exit(landscape.main(sys.argv[1:]))\n"
    )
    words = ["surface", str(folder), "--points", "101", "--images", "64", "--device", "cpu"]
    process = subprocess.Popen([sys.executable, "-c", script, *words], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    file = folder / "surface-2d-101x101-range1-64images-seed0-eval.csv"
    deadline = time.monotonic() + 60
    while not (file.exists() and file.read_bytes().count(b"\n") > 4) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == status
    assert stderr.count("\n") == 1 and "the same command continues" in stderr
    assert file.read_bytes().endswith(b"\n") and 3 <= len(read_surface(file).losses) < 101**2
    assert not (tmp_path / "quick" / "figures").exists()

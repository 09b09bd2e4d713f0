"""The files of the four measures around a network: what no measure writes is one line, and the other figures are drawn;
what cannot be measured is refused before anything is written."""

import json
import math
import shutil
import tracemalloc
import warnings
from pathlib import Path

import pytest
import torch
from drawn import drawn_by
from made_up import write_run
from test_line import with_tests  # noqa: F401  (a fixture)
from test_path import with_kept
from test_surface import everything_below, images, trained  # noqa: F401  (images is a fixture)

import landscape
from cifar_lab.figures import line as line_figure
from cifar_lab.figures import path as path_figure
from cifar_lab.figures import sharpness as sharpness_figure
from cifar_lab.figures import surface as surface_figure
from cifar_lab.measures import sharpness
from cifar_lab.measures.line import read_line
from cifar_lab.measures.path import principal_plane, read_path
from cifar_lab.measures.sharpness import lanczos, read_sharpness
from cifar_lab.measures.surface import read_surface
from cifar_lab.networks import build
from cifar_lab.run_folder import checkpoint
from cifar_lab.run_folder.measured import MeasureError
from cifar_lab.run_folder.schema import RunFileError

torch.set_num_threads(1)

READ = {"surface": read_surface, "path": read_path, "line": read_line, "sharpness": read_sharpness}
FIGURES = {"surface": surface_figure, "path": path_figure, "line": line_figure, "sharpness": sharpness_figure}
SHA = 64 * "a"
# A whole file of each: its name, its first line, its columns, its rows.
FILES = {
    "surface": (
        "surface-1d-3-range1-50images-seed0-eval",
        {"what": "loss at w + a d1 + b d2, filter-normalized directions (Li et al. 2018)", "dims": 1, "points": 3,
         "range": 1.0, "images": 50, "seed": 0, "mode": "eval", "weights_sha256": SHA},
        "a,b,loss",
        ["-1.0,0.0,inf", "0.0,0.0,0.5", "1.0,0.0,2.5"],
    ),
    "path": (
        "path-3x3-50images-seed0-eval",
        {"what": "loss in the plane of a trajectory's two principal directions (Li et al. 2018)", "points": 3,
         "images": 50, "seed": 0, "mode": "eval", "steps": [0, 50, 100],
         "trajectory": [[20.0, 10.0], [10.0, 0.0], [0.0, 0.0]], "shares": [0.75, 0.25], "weights_sha256": SHA},
        "a,b,loss",
        [f"{a},{b},{loss}" for a, of_a in zip((-3.0, 10.0, 23.0), ("nan", 1.5, 2.5), strict=True)
         for b, loss in zip((-1.5, 5.0, 11.5), (of_a, 1.0, 2.0), strict=True)],
    ),
    "line": (
        "line-3points-50images-seed0-to-quick-vgg_a-other",
        {"what": "loss and accuracy at (1 - t) u + t v, BatchNorm's statistics estimated again (Frankle et al. 2020)",
         "points": 3, "images": 50, "seed": 0, "to": "quick/vgg_a/other", "weights_sha256": [SHA, SHA]},
        "t,train_loss,train_accuracy,test_loss,test_accuracy",
        ["0.0,0.1,100.0,0.5,90.0", "0.5,inf,10.0,nan,0.0", "1.0,0.2,99.0,0.6,80.0"],
    ),
    "sharpness": (
        "sharpness-2iterations-2vectors-50images-seed0-eval",
        {"what": "eigenvalues of the loss's Hessian by the Lanczos method", "iterations": 2, "vectors": 2,
         "images": 50, "seed": 0, "mode": "eval", "weights_sha256": SHA},
        "vector,index,eigenvalue,weight,residual",
        ["0.0,0.0,-1.5,0.25,0.1", "0.0,1.0,20.0,0.75,0.2", "1.0,0.0,-1.0,0.5,0.0", "1.0,1.0,19.0,0.5,0.5"],
    ),
}  # fmt: skip


def write(folder: Path, kind: str, about=(), rows=(), name=("", "")) -> Path:
    """A file of a measure. about: fields of its first line; rows: those in the place of others, by line; name: a part
    of the file's name, and what is there instead."""
    stem, usual, columns, usual_rows = FILES[kind]
    lines = dict(enumerate(usual_rows, start=3)) | dict(rows)
    file = folder / f"{stem.replace(*name)}.csv"
    file.write_text("\n".join([f"# {json.dumps(usual | dict(about))}", columns, *lines.values(), ""]))
    return file


@pytest.mark.parametrize("kind", FILES)
def test_a_whole_file_is_read(tmp_path, kind):
    READ[kind](write(tmp_path, kind))


ROWS = [  # kind, line, row, complaint
    *(("surface", 5, f"1.0,0.0,{cell}", "not a row of a,b,loss")
      for cell in (" 2.5", "2_5", "0x10", "infinity", "1e5,", "", "2.5\r")),
    ("surface", 5, "1.0,0.0,1e39", "loss is 1e+39, which is not a number from -3.5e+38 to 3.5e+38"),
    ("surface", 3, "-1.0,0.0,-inf", "loss is -inf, which is not a number"),
    ("surface", 4, "0.0,0.0,nan", "loss is nan at the trained network"),
    ("surface", 4, "0.0,0.0,inf", "loss is inf at the trained network"),
    ("path", 6, "10.0,-1.5,1e308", "loss is 1e+308, which"),
    ("line", 4, "0.5,1e308,1,1,1", "train_loss is 1e+308, which"),
    ("line", 4, "0.5,1,900,1,1", "train_accuracy is 900, which is not a number from 0 to 100"),
    ("line", 4, "0.5,1,1,1,-1e308", "test_accuracy is -1e+308, which"),
    ("line", 4, "0.5,1,nan,1,1", "train_accuracy is nan, which"),
    ("line", 3, "0.0,0.1,100.0,nan,90.0", "test_loss is nan at the trained network"),
    ("line", 5, "1.0,inf,99.0,0.6,80.0", "train_loss is inf at the trained network"),
    ("sharpness", 3, "0.0,0.0,nan,0.25,0.1", "eigenvalue is nan, which"),
    ("sharpness", 4, "0.0,1.0,inf,0.75,0.2", "eigenvalue is inf, which"),
    ("sharpness", 4, "0.0,1.0,1e308,0.75,0.2", "eigenvalue is 1e+308, which"),
    ("sharpness", 6, "1.0,1.0,19.0,-5,0.5", "weight is -5, which is not a number from 0 to 1"),
    ("sharpness", 6, "1.0,1.0,19.0,0.5,-0.5", "residual is -0.5, which is not a number from 0 to 3.5e+38"),
    ("sharpness", 6, "1.0,1.0,19.0,0.5,nan", "residual is nan, which"),
    ("sharpness", 6, "1.0,1.0, 1_9 ,0.5,0.5", "not a row of vector,index,eigenvalue,weight,residual"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "line", "row", "complaint"), ROWS)
def test_rows_that_no_measure_writes(tmp_path, kind, line, row, complaint):
    file = write(tmp_path, kind, rows={line: row})
    with pytest.raises(RunFileError) as error:
        READ[kind](file)
    assert str(error.value).startswith(f"{file}:{line}: {complaint}")


@pytest.mark.parametrize(
    ("kind", "rows", "at", "complaint"),
    [
        ("path", {line: f"{row.rpartition(',')[0]},nan" for line, row in enumerate(FILES["path"][3], start=3)},
         "", "loss is finite nowhere"),
        ("sharpness", {5: "1.0,0.0,-1.0,0,0.0", 6: "1.0,1.0,19.0,0,0.5"}, ":5",
         "the weights of this vector do not add up to 1"),
        ("sharpness", {3: "0.0,0.0,20.5,0.25,0.1"}, ":3", "the eigenvalues of this vector do not ascend"),
    ],
)  # fmt: skip
def test_rows_that_do_not_go_together(tmp_path, kind, rows, at, complaint):
    file = write(tmp_path, kind, rows=rows)
    with pytest.raises(RunFileError) as error:
        READ[kind](file)
    assert str(error.value) == f"{file}{at}: {complaint}"


MANY = "is not an integer from"
TRAJECTORY = FILES["path"][1]["trajectory"]
HEADERS = [  # kind, fields, a part of the name and what is there instead, complaint
    *((kind, {"images": count}, ("50images", f"{count}images"), f"images: '{count}' {MANY} 2 to 10000000")
      for kind in FILES for count in (-5, 0, 1, 10_000_001)),
    *((kind, {"seed": seed}, ("seed0", f"seed{seed}"), f"seed: '{seed}' {MANY} 0 to 4294967295")
      for kind in FILES for seed in (-1, 2**32)),
    *((kind, {"mode": "both"}, ("-eval", "-both"), "mode: 'both' is not one of eval, train")
      for kind in ("surface", "path", "sharpness")),
    ("surface", {"points": 1003}, ("1d-3", "1d-1003"), f"points: '1003' {MANY} 3 to 1001"),
    ("path", {"points": 1002}, ("3x3", "1002x1002"), f"points: '1002' {MANY} 3 to 1001"),
    ("line", {"points": 2}, ("3points", "2points"), f"points: '2' {MANY} 3 to 1001"),
    ("surface", {"range": 1e9}, ("range1", "range1000000000"), "range: '1000000000.0' is not a number"),
    ("surface", {"range": 5e-324}, ("range1", "range5e-324"), "range: '5e-324' is not a number"),
    ("sharpness", {"iterations": 10_001}, ("2it", "10001it"), f"iterations: '10001' {MANY} 2 to 10000"),
    ("sharpness", {"vectors": 1001}, ("2vec", "1001vec"), f"vectors: '1001' {MANY} 1 to 1000"),
    *(("path", {"steps": steps}, (), complaint) for steps, complaint in (
        ([], "steps: 0 of them, with 3 points"), ([0], "steps: 1 of them"), ([0, 1, 2, 3], "steps: 4 of them"),
        ([-4, 2, 10], "steps: they do not ascend"), ([0, 5, 5], "steps: they do not ascend"),
        ([0, 2, 10**30], "steps: they do not ascend"))),
    *(("path", {"steps": [0, 1, 2], "trajectory": points}, (), complaint) for points, complaint in (
        ([*TRAJECTORY, [0.0, 0.0]], "steps: 3 of them, with 4 points"),
        ([*TRAJECTORY[:2], [0.0, 1.0]], "trajectory: it does not come from elsewhere to (0, 0)"),
        ([[0.0, 0.0]] * 3, "trajectory: it does not come from elsewhere"),
        ([[math.nan, 1.0], *TRAJECTORY[1:]], "trajectory: a point is not finite"),
        ([[1e308, 1e308], *TRAJECTORY[1:]], "trajectory: a point is not finite, or beyond float32"))),
    ("path", {"steps": [9], "trajectory": [[0.0, 0.0]]}, (), "steps: 1 of them, with 1 points"),
    *(("path", {"shares": shares}, (), "shares: not two numbers from 0 to 1 whose sum is at most 1")
      for shares in ([7e9, 0.1], [0.5, math.nan], [math.nan, 0.5], [-0.1, 0.5], [0.75, 0.5])),
    *((kind, {"weights_sha256": sha}, (), "weights_sha256: not 64 hexadecimal digits")
      for kind in ("surface", "path", "sharpness") for sha in ("x", SHA[1:], SHA.upper())),
    ("line", {"weights_sha256": [SHA, "x"]}, (), "weights_sha256: not 64 hexadecimal digits"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "about", "name", "complaint"), HEADERS)
def test_first_lines_that_no_measure_writes(tmp_path, kind, about, name, complaint):
    file = write(tmp_path, kind, about, name=name or ("", ""))
    with pytest.raises(RunFileError) as error:
        READ[kind](file)
    said = str(error.value).replace("no such grid: ", "")
    assert said.startswith(f"{file}:1: not the header of a {kind} file: {complaint}")


def test_a_long_word_does_not_fill_the_terminal(tmp_path):
    file = write(tmp_path, "surface", {"mode": 10_000 * "x"})
    with pytest.raises(RunFileError) as error:
        read_surface(file)
    assert len(str(error.value)) < len(str(file)) + 300


@pytest.mark.parametrize("digests", [[SHA], [SHA] * 3])
def test_a_line_has_two_networks(tmp_path, digests):
    file = write(tmp_path, "line", {"weights_sha256": digests})
    with pytest.raises(RunFileError, match=":1: not the header of a line file"):
        read_line(file)


@pytest.mark.parametrize(
    ("kind", "about", "name"),
    [
        ("sharpness", {"iterations": 10_000, "vectors": 1_000}, ("2iterations-2v", "10000iterations-1000v")),
        ("sharpness", {"iterations": 10_000, "vectors": 100}, ()),  # in another one's place
        ("surface", {"dims": 2, "points": 1001}, ()),
        ("path", {"points": 1001}, ()),
    ],
)
def test_a_first_line_alone_asks_for_no_memory(tmp_path, kind, about, name):
    """A million places are 16 MB."""
    file = write(tmp_path, kind, about, name=name or ("", ""))
    tracemalloc.start()
    try:
        with pytest.raises(RunFileError, match=":1: "):
            READ[kind](file)
        assert tracemalloc.get_traced_memory()[1] < 1e6
    finally:
        tracemalloc.stop()


# --- The figures ------------------------------------------------------------------------------------------------------


@pytest.fixture
def four(tmp_path):
    """The folder of a run with a file of each measure."""
    folder = write_run(tmp_path, "vgg_a_lr0.001")
    for kind in FILES:
        write(folder, kind)
    return folder


def kinds_drawn(results: Path) -> set[str]:
    return {file.name.partition("-")[0] for file in results.glob("quick/figures/*.png")}


@pytest.mark.parametrize(
    ("kind", "about", "rows"),
    [
        ("surface", {}, {4: "0.0,0.0,nan"}),
        ("path", {"steps": []}, {}),
        ("path", {"steps": [0, 50, 501]}, {}),  # of a run of 500
        ("line", {}, {4: "0.5,1e308,1,1e308,1"}),
        ("sharpness", {}, {4: "0.0,1.0,inf,1,0"}),
    ],
)
def test_a_bad_file_is_one_line_and_the_others_are_drawn(tmp_path, four, capsys, kind, about, rows):
    file = write(four, kind, about, rows)
    assert landscape.main([str(tmp_path)]) == 1
    err = capsys.readouterr().err
    assert err.startswith(f"{file}:") and err.count("\n") == 1
    assert kinds_drawn(tmp_path) == FILES.keys() - {kind}


@pytest.mark.parametrize("kind", FILES)
def test_a_figure_that_fails_is_one_line_and_the_others_are_drawn(tmp_path, four, capsys, monkeypatch, kind):
    def fail(*content):
        raise IndexError("tuple index\nout of range")

    monkeypatch.setattr(FIGURES[kind], "draw", fail)
    assert landscape.main([str(tmp_path)]) == 1
    said = f"{four / FILES[kind][0]}.csv: cannot be drawn (IndexError: tuple index)\n"
    assert capsys.readouterr().err == said
    assert kinds_drawn(tmp_path) == FILES.keys() - {kind}


@pytest.mark.parametrize("error", [MemoryError(), KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_what_is_not_a_files_fault_ends_the_program(tmp_path, four, monkeypatch, error):
    def fail(*content):
        raise error

    monkeypatch.setattr(FIGURES["path"], "draw", fail)
    with pytest.raises(type(error)):
        landscape.main([str(tmp_path)])


@pytest.mark.parametrize(
    ("kind", "rows"),
    [
        ("line", {4: "0.5,3e38,0,3e38,100"}),
        ("line", {3: "0.0,0,0,0,0", 4: "0.5,0,0,0,0", 5: "1.0,0,0,0,0"}),
        ("surface", {3: "-1.0,0.0,3e38", 5: "1.0,0.0,nan"}),
        ("path", {3: "-3.0,-1.5,3e38", 4: "-3.0,5.0,inf"}),
        *(("sharpness", {line: f"{line // 5}.0,{(line + 1) % 2}.0,{value},0.5,{abs(value)}"
                         for line, value in enumerate(values, start=3)})
          for values in ((-3e38, 3e38) * 2, (0.0,) * 4, (5.0,) * 4, (1e30,) * 4, (1e30, 1.000000000000001e30) * 2,
                         (0.0, 1e-320) * 2, (0.0, 1e-45) * 2)),
    ],
)  # fmt: skip
def test_what_a_measure_may_write_is_drawn_without_a_word(tmp_path, kind, rows):
    write(write_run(tmp_path, "vgg_a_lr0.001"), kind, rows=rows)
    with warnings.catch_warnings(action="error"):
        assert landscape.main([str(tmp_path)]) == 0
    assert kinds_drawn(tmp_path) == {kind}


# --- Command lines ----------------------------------------------------------------------------------------------------

SMALL = ["--images", "20", "--device", "cpu"]


def exploded(config):
    model = build(config)
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(3e38)
    return model


def refused(capsys, *words) -> str:
    with pytest.raises(SystemExit) as ended:
        landscape.main([*map(str, words), *SMALL])
    said = capsys.readouterr()
    assert ended.value.code == 2 and not said.out and said.err.count("\n") == 1
    return said.err


@pytest.mark.parametrize("kind", FILES)
def test_a_network_whose_loss_is_not_finite(tmp_path, with_tests, capsys, kind):  # noqa: F811
    """Alone, or after one whose loss is finite, of which nothing is written either."""
    good, bad = trained(tmp_path, "vgg_a_lr0.0001"), trained(tmp_path, "vgg_a_lr0.001", exploded)
    with_kept(bad, 0, 50)
    before = everything_below(tmp_path)
    for folders in [[bad]] * (kind != "line") + [[good, bad]] * (kind in ("line", "surface")):
        said = refused(capsys, kind, *folders)
        assert said.startswith(f"landscape.py {kind}: {bad}: the loss of the trained network is not finite")
    assert everything_below(tmp_path) == before


def test_a_hessian_that_is_not_finite(tmp_path, images, capsys, monkeypatch):  # noqa: F811
    """Where the loss is: its second derivatives overflow first."""
    folder = trained(tmp_path, "vgg_a_lr0.001")
    before = everything_below(tmp_path)
    monkeypatch.setattr(sharpness, "hessian_product", lambda *of: lambda vector: vector * math.inf)
    assert refused(capsys, "sharpness", folder) == (
        f"landscape.py sharpness: {folder}: the loss's Hessian is not finite\n"
    )
    assert everything_below(tmp_path) == before


def test_products_and_distances_that_overflow():
    with pytest.raises(MeasureError, match="Hessian is not finite"):
        lanczos(lambda v: v * torch.tensor([3e38, 1.0]) * 10, torch.ones(2), 2)
    with pytest.raises(MeasureError, match="distances between the checkpoints are not finite"):
        principal_plane([[torch.tensor([x, y])] for x, y in ((3e38, 1.0), (-3e38, 2.0), (3e38, 3.0))])


def test_more_eigenvalues_than_a_file_holds(tmp_path, images, capsys):  # noqa: F811
    folder = trained(tmp_path, "vgg_a_lr0.001")
    said = refused(capsys, "sharpness", folder, "--iterations", "10000", "--vectors", "101")
    assert "10000 iterations from 101 vectors are more than 1000000 eigenvalues" in said


@pytest.mark.parametrize("words", [["surface", "--points", "3"], ["sharpness", "--iterations", "2"]])
def test_batchnorms_statistics_are_not_part_of_what_is_measured_in_train_mode(tmp_path, images, words):  # noqa: F811
    """The first look at the network moves them, and the file is still of the network as it is in the checkpoint."""
    folder = trained(tmp_path, "vgg_a_bn_lr0.001")
    command = [words[0], str(folder), *words[1:], "--mode", "train", *SMALL]
    assert landscape.main(command) == 0
    (file,) = folder.glob(f"{words[0]}-*.csv")
    content = file.read_bytes()
    model, _ = checkpoint.load_model(folder)
    digest = json.loads(content.partition(b"\n")[0].removeprefix(b"# "))["weights_sha256"]
    assert digest == landscape.weights_digest(model.state_dict())
    assert landscape.main(command) == 0
    assert file.read_bytes() == content and not list(folder.glob(".*.before-*"))


# --- Names ------------------------------------------------------------------------------------------------------------


def test_a_line_to_a_run_with_a_long_name(tmp_path, with_tests):  # noqa: F811
    """Of 224 bytes, the most that a run's folder has; and to another one that differs at its end."""
    first = trained(tmp_path / "one", "vgg_a_lr0.001")
    source = trained(tmp_path / "other", "vgg_a_lr0.0001")
    others = [source.with_name(f"{223 * 'x'}{end}") for end in "12"]
    for other in others:
        shutil.copytree(source, other)
    for other in others:
        words = ["line", first, other, "--points", "3", *SMALL]
        assert landscape.main([*map(str, words)]) == 0
    figures = tmp_path / "one" / "quick" / "figures"
    assert len(list(first.glob("line-*.csv"))) == len(list(figures.glob("line-*.png"))) == 2
    state = checkpoint.read(first / "checkpoint.pt")
    checkpoint.save(first, state | {"model": {name: t * 1.01 for name, t in state["model"].items()}})
    assert landscape.main([*map(str, words)]) == 0
    assert len(list(first.glob("line-*.csv"))) == 2 and len(list(first.glob(".line-*.before-*.csv"))) == 1
    assert landscape.main([str(tmp_path / "one")]) == 0


def test_a_run_under_two_names_is_one(tmp_path, with_tests, capsys):  # noqa: F811
    folder = trained(tmp_path, "vgg_a_lr0.001")
    alias = tmp_path / "alias"
    alias.symlink_to(folder, target_is_directory=True)
    for other in (alias, folder / ".." / folder.name):
        assert "needs two different runs" in refused(capsys, "line", folder, other)
    drawn = drawn_by(landscape.main, ["surface", folder, alias, "--points", "3", *SMALL], tmp_path)
    (name,) = drawn.figures
    assert "-vs-" not in name and f"figures/{name}" in drawn.said and len(drawn.figures[name].axes) == 2

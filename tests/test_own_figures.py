"""Figures, tables and TensorBoard logs of whatever was trained: the README's "you want, you type", on real output, and
how runs are grouped, on made-up logs."""

import contextlib
import csv
import glob
import io
import json
import re
import shlex
import sys
import types
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from drawn import drawn_by, extents, legend, lines, plotted, same, texts
from made_up import write_run
from matplotlib.table import Table
from PIL import Image

import landscape
import MyFramework
import MyVGG
import plot_results
from cifar_lab.data.cache import load, write_cache
from cifar_lab.data.datasets import DATA_SETS
from cifar_lab.experiments import config_of
from cifar_lab.figures import sets
from cifar_lab.settings import RunConfig

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
TYPED = re.findall(r"^\|.*\| `(.+)` \|$", README.partition("### You want, you type")[2].partition("\n**")[0], re.M)
SCRIPTS = {f"{script.__name__}.py": script.main for script in (MyVGG, MyFramework, landscape, plot_results)}
TINY = "--train-size=80 --batch-size=4 --test-size=6 --epochs=1 --device=cpu"
RATES = ("2e-3", "1e-3", "5e-4", "1e-4")
SIZES = "batch4-train80-test6"
PNG = b"\x89PNG"


def rows_of(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


# --- The README's lines, on real output -------------------------------------------------------------------------------


class Writer:
    """In place of TensorBoard's SummaryWriter: a JSON line per scalar."""

    def __init__(self, folder):
        Path(folder).mkdir(parents=True, exist_ok=True)
        self.file = Path(folder) / f"events.out.tfevents.{len(list(Path(folder).iterdir()))}"

    def add_scalar(self, tag, value, step):
        with self.file.open("a") as file:
            file.write(json.dumps([tag, value, step]) + "\n")

    def flush(self):
        pass

    close = flush


def stand_in(patch):
    patch.setitem(sys.modules, "torch.utils.tensorboard", types.SimpleNamespace(SummaryWriter=Writer))


def scalars(folder):
    """{tag: [(step, value), ...]} of what the stand-in has written."""
    (file,) = folder.glob("events.out.tfevents.*")
    found = {}
    for line in file.read_text().splitlines():
        tag, value, step = json.loads(line)
        found.setdefault(tag, []).append((step, value))
    return found


def lines_that_start(start):
    """The lines of the table that start so; only the one that is no longer, if it is there."""
    return [start] if start in TYPED else [command for command in TYPED if command.startswith(start)]


def meant(word):
    """What a word stands for: of a run's folder the one whose name ends in the small sizes."""
    pattern = f"{word}-{SIZES}*" if word.startswith("results/quick/") and not word.endswith("*") else word
    return sorted(glob.glob(pattern)) if "*" in pattern else [word]


def typed(start, project, data=None, *more):
    """Runs the lines of the table that start so, in a folder of its own; returns what they say. more: last words."""
    commands = lines_that_start(start)
    assert commands, start
    with contextlib.chdir(project), contextlib.redirect_stdout(io.StringIO()) as said:
        for command in commands:
            _, script, *words = shlex.split(command)
            words = [file for word in words for file in meant(word)]
            if script.startswith("My") and "--evaluate" not in words:
                words += [*TINY.split(), f"--results={project / 'results'}"]
            words += [f"--data-dir={data}"] * (data is not None) + list(more)
            assert not SCRIPTS[script](words)
    return said.getvalue()


@pytest.fixture(scope="module")
def project(tmp_path_factory, synthetic_data):
    """Both networks trained at the rates of the table."""
    project = tmp_path_factory.mktemp("own")
    typed("python MyVGG.py --preset quick --lrs", project, synthetic_data)
    return project


def losses_of(project, model, rate):
    rows = rows_of(project / f"results/quick/{model}/adam-lr{rate}-wd1e-4-seed0-{SIZES}/steps.csv")
    return [float(row["loss"]) for row in rows]


def test_every_line_of_the_table_is_typed_in_a_test():
    """By this file: the lines here are the arguments of `typed`, and the one for pandas."""
    source = Path(__file__).read_text(encoding="utf-8")
    starts = {*re.findall(r'typed\(\s*"(python [^"]+)"', source), "pandas.concat"}
    assert len(TYPED) == 36
    assert set(TYPED) == {command for start in starts for command in lines_that_start(start)}


def test_own_rates_give_both_bands_with_their_ratio_and_the_overviews(project):
    drawn = drawn_by(lambda _: typed("python plot_results.py results/", project) and 0, [], project / "results")
    pair = f"VGG-A-vs-VGG-A-BatchNorm-adam-wd1e-4-{SIZES}"
    names = {f"landscape-{pair}", f"landscape_ratio-{pair}"}
    names |= {f"overview-lr-{model}-adam-wd1e-4-{SIZES}" for model in ("vgg_a", "vgg_a_bn")}
    names |= {f"overview-model-adam-lr{rate}-wd1e-4-{SIZES}" for rate in RATES}
    assert names == drawn.figures.keys()
    assert (project / "results" / "quick" / "report.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    figure = drawn.figures[f"landscape-{pair}"]
    assert "learning rates 2e-3, 1e-3, 5e-4, 1e-4; first half of the run" in " ".join(texts(figure))
    for model, colour in (("vgg_a", "#D55E00"), ("vgg_a_bn", "#0072B2")):
        losses = np.array([losses_of(project, model, rate)[:10] for rate in RATES])
        same(lines(figure.axes[0], colour), [(range(1, 11), losses.min(0)), (range(1, 11), losses.max(0))])
    overview = drawn.figures[f"overview-lr-vgg_a-adam-wd1e-4-{SIZES}"]
    assert [label for label, _ in legend(overview)] == [f"learning rate {rate}" for rate in reversed(RATES)]


def test_each_switch_is_drawn_beside_the_default(tmp_path, synthetic_data):
    MyVGG.main([*f"--preset=quick {TINY} --data-dir={synthetic_data} --results={tmp_path / 'results'}".split()])
    typed("python MyVGG.py --preset quick --activation", tmp_path, synthetic_data)
    typed("python MyVGG.py --preset quick --loss", tmp_path, synthetic_data)
    typed("python MyVGG.py --preset quick --schedule", tmp_path, synthetic_data)
    typed("python MyVGG.py --preset quick --warmup", tmp_path, synthetic_data)
    typed("python MyVGG.py --preset quick --augment", tmp_path, synthetic_data)
    typed("python MyVGG.py --preset quick --test-time-flip", tmp_path, synthetic_data)
    typed("python MyVGG.py --preset quick --ema", tmp_path, synthetic_data)
    typed("python MyVGG.py --preset quick --cutout", tmp_path, synthetic_data)
    typed("python MyVGG.py --preset quick --mixup", tmp_path, synthetic_data)
    typed("python MyVGG.py --optimizer muon", tmp_path, synthetic_data)
    typed("python MyVGG.py --preset quick --validation-size", tmp_path, synthetic_data, "--validation-size=20")
    drawn = plotted(tmp_path / "results")
    labels = {
        stem.split("-")[1]: ([label for label, _ in legend(figure)], figure.axes[1].get_ylabel())
        for stem, figure in drawn.figures.items()
    }
    assert labels == {
        "activation": (["ReLU", "GELU"], "training loss (nats)"),
        "loss": (["cross-entropy", "label smoothing"], "training loss (nats)"),
        "schedule": (["constant rate", "cosine schedule over 1 epoch"], "training loss (nats)"),
        "warmup": (["warm-up epochs 0", "warm-up epochs 1"], "training loss (nats)"),
        "augment": (["the report's augmentation", "flips and crops"], "training loss (nats)"),
        "test_time_flip": (["no flip at test time", "flip at test time"], "training loss (nats)"),
        "ema": (["weight average 0", "weight average 0.99"], "training loss (nats)"),
        "cutout": (["cutout 0", "cutout 8"], "training loss (nats)"),
        "mixup": (["mixup 0", "mixup 0.2"], "training loss (nats)"),
        "optimizer": (["Adam", "Muon"], "training loss (nats)"),
        "validation_size": (["validation images 0", "validation images 20"], "training loss (nats)"),
    }
    held_out = {stem.split("-")[1]: figure.axes[0].get_ylabel() for stem, figure in drawn.figures.items()}
    assert held_out.pop("validation_size") == "test or validation accuracy (%)"
    assert set(held_out.values()) == {"test accuracy (%)"}


def test_switches_that_depend_on_the_length_of_the_run_are_drawn_beside_the_default(tmp_path, synthetic_data):
    shared = f"--preset=quick {TINY} --data-dir={synthetic_data} --results={tmp_path / 'results'}"
    MyVGG.main(["--bn", *shared.split()])
    MyFramework.main([*shared.split(), "--width=0.03"])
    typed("python MyVGG.py --bn --preset quick --bn-images", tmp_path, synthetic_data, "--bn-images=20")
    typed("python MyFramework.py --preset quick --first-size", tmp_path, synthetic_data, "--width=0.03")
    labels = {
        stem.split("-")[1]: [label for label, _ in legend(figure)]
        for stem, figure in plotted(tmp_path / "results").figures.items()
    }
    assert labels == {
        "bn_images": ["images for BatchNorm's statistics 0", "images for BatchNorm's statistics 20 in 1 epoch"],
        "first_size": ["first image size 20 in 1 epoch", "first image size 32"],
    }


def test_optimizers_times_learning_rates_are_one_group(tmp_path, synthetic_data):
    """In both scripts: the four runs of a command see the same batches, and are drawn by optimizer and by rate."""
    typed("python MyVGG.py --preset quick --optimizer", tmp_path, synthetic_data)
    typed("python MyFramework.py --preset quick --optimizer", tmp_path, synthetic_data, "--width=0.03")
    assert {path.parent.name for path in tmp_path.glob("results/quick/vgg_a/*/config.json")} == {
        f"{name}-lr{lr}-wd1e-4-seed0-{SIZES}" for name in ("adam", "nadam") for lr in ("1e-3", "5e-4")
    }
    for model, first in (("vgg_a", None), ("inception_res", None)):
        for folder in tmp_path.glob(f"results/quick/{model}/*/"):
            loss = rows_of(folder / "steps.csv")[0]["loss"]
            assert loss == (first or loss)
            first = loss
    stems = plotted(tmp_path / "results").figures
    for model in ("vgg_a", "inception_res"):
        assert sum(stem.startswith("overview-optimizer-") and model in stem for stem in stems) == 2
        assert sum(stem.startswith("overview-lr-") and model in stem for stem in stems) == 2
    assert sum(stem.startswith("landscape-") for stem in stems) == 2


def test_losses_without_a_unit_are_drawn_without_one(tmp_path):
    for loss in ("hinge", "mse"):
        for rate in (3e-3, 2e-3):
            write_run(tmp_path, replace(BASE, loss=loss, lr=rate))
    figures = plotted(tmp_path).figures
    labels = {figure.axes[-1 if "overview" in stem else 0].get_ylabel() for stem, figure in figures.items()}
    assert {label for label in labels if "loss" in label} == {"training loss"} and len(figures) == 6
    bands = [figure for stem, figure in figures.items() if stem.startswith("landscape")]
    assert len(bands) == 2  # each loss in its own unit: their widths are not compared
    for table in (table for figure in bands for table in figure.findobj(Table)):
        assert table[0, 1].get_text().get_text().startswith("mean width:")


def test_any_runs_in_one_file(project):
    said = typed("python plot_results.py results/quick/vgg_a/*", project)
    assert said == "runs.png: VGG-A, VGG-A + BatchNorm: test accuracy and training loss\n"
    assert (project / "runs.png").read_bytes().startswith(PNG)


def test_the_band_of_any_runs(project):
    assert typed("python landscape.py band results/quick/vgg_a/adam-lr*-seed0 --save", project).startswith("band.png: ")
    assert (project / "band.png").read_bytes().startswith(PNG)
    said = typed("python landscape.py band results/quick/vgg_a/adam-lr*-seed0 --against", project)
    ratio, band = sorted(said.splitlines(), key=len)
    assert "of VGG-A and VGG-A + BatchNorm: " in band and ratio.endswith("VGG-A + BatchNorm / VGG-A")
    for line in (ratio, band):
        assert Path(line.partition(".png")[0] + ".png").read_bytes().startswith(PNG)


def test_measures_around_trained_networks(tmp_path, synthetic_data):
    typed("python MyVGG.py --preset quick --seed 1 --keep-every", tmp_path, synthetic_data, "--epochs=6")
    typed("python MyVGG.py --preset quick --seed 1 --keep-every", tmp_path, synthetic_data, "--epochs=6", "--seed=0")
    said = typed("python landscape.py path", tmp_path, synthetic_data, "--points=3")
    said += typed("python landscape.py line", tmp_path, synthetic_data, "--points=3")
    said += typed("python landscape.py sharpness", tmp_path, synthetic_data, "--iterations=3")
    found = [word for word in said.split() if word.endswith(".png")]
    for words in ("barrier of the training loss: ", "barrier of the test error: ", "largest eigenvalues: "):
        assert words in said
    figures = sorted((tmp_path / "results/quick/figures").glob("*.png"))
    assert [path.name.partition("-")[0] for path in figures] == ["line", "path", "sharpness"], found
    for path in figures:
        assert path.read_bytes().startswith(PNG)


def test_a_trained_network_is_looked_into_used_and_taken_away(project, synthetic_data):
    data = load(synthetic_data)
    for i in range(12):
        file = project / "pictures" / data.classes[data.test_labels[i]] / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(data.test_images[i]).save(file)
    Image.fromarray(data.test_images[0]).save(project / "cat.png")
    said = typed("python MyVGG.py --evaluate results/quick/vgg_a_bn/adam-lr1e-3-wd1e-4-seed0", project, synthetic_data)
    assert "6 test images" in said
    typed("python MyVGG.py --evaluate results/quick/vgg_a_bn/adam-lr1e-3-wd1e-4-seed0 --data", project)
    typed("python MyVGG.py --evaluate results/quick/vgg_a_bn/adam-lr1e-3-wd1e-4-seed0 --predict", project)
    assert len(rows_of(project / "predictions.csv")) == 13
    pytest.importorskip("safetensors", reason="pip install -r requirements-export.txt")
    pytest.importorskip("onnxscript", reason="pip install -r requirements-export.txt")
    typed("python MyVGG.py --evaluate results/quick/vgg_a_bn/adam-lr1e-3-wd1e-4-seed0 --export", project)
    assert (project / "net.safetensors").stat().st_size > 10_000 and (project / "net.onnx").stat().st_size > 10_000


def test_the_table_of_all_runs(project):
    assert typed("python plot_results.py results/ --table", project) == "runs.csv: 8 runs\n"
    table = {(row["model"], float(row["lr"])): row for row in rows_of(project / "runs.csv")}
    assert table.keys() == {(m, float(lr)) for m in ("vgg_a", "vgg_a_bn") for lr in RATES}
    row = table["vgg_a_bn", 0.002]
    folder = project / "results" / row["run"]
    config, summary = (json.loads((folder / f"{name}.json").read_text()) for name in ("config", "summary"))
    settings = {name: value for name, value in config["settings"].items() if name != "options"}
    for name, value in {**settings, **summary}.items():
        assert row[name] == ("" if value is None else str(value)), name
    assert (row["preset"], row["published"], row["state"], row["epochs_planned"]) == ("quick", "False", "complete", "1")
    assert row["label"] == "VGG-A + BatchNorm" and row["machine_device"] == config["environment"]["device"]


def test_every_epoch_in_one_frame(project):
    """With pandas, if it is there; else with the two functions that the line needs."""
    (line,) = [command for command in TYPED if command.startswith("pandas.")]
    try:
        import pandas
    except ImportError:
        pandas = types.SimpleNamespace(read_csv=rows_of, concat=lambda found: [x for of in found.values() for x in of])
    with contextlib.chdir(project):
        frame = eval(line, {"pandas": pandas, "glob": glob})
    assert len(frame) == 8
    column = frame["test_accuracy"].tolist() if hasattr(frame, "columns") else [x["test_accuracy"] for x in frame]
    files = project.glob("results/quick/*/*/epochs.csv")
    assert sorted(map(float, column)) == sorted(float(row["test_accuracy"]) for file in files for row in rows_of(file))


def logged(folder):
    """{tag: [(step, value), ...]} of a run's CSV files."""
    return {
        f"{first}/{name}": [(int(row[first]), float(row[name])) for row in rows]
        for first, rows in (("epoch", rows_of(folder / "epochs.csv")), ("step", rows_of(folder / "steps.csv")))
        for name in rows[0]
        if name != first
    }


def test_logs_that_exist_for_tensorboard(project, monkeypatch):
    stand_in(monkeypatch)
    for _ in range(2):  # the second time replaces the files of the first
        said = typed("python plot_results.py results/ --to tensorboard", project)
        assert said == "logs/: 8 runs; to see them: tensorboard --logdir logs/\n"
        for folder in project.glob("results/quick/*/*/"):
            assert scalars(project / "logs" / folder.relative_to(project / "results")) == logged(folder)


def test_tensorboard_while_training_and_after_a_resume(tmp_path, synthetic_data, monkeypatch):
    stand_in(monkeypatch)
    typed("python MyVGG.py --preset quick --log tensorboard", tmp_path, synthetic_data)
    (folder,) = (path.parent for path in tmp_path.glob("results/quick/vgg_a/*/config.json"))
    assert scalars(folder / "tensorboard") == logged(folder) and len(logged(folder)["step/loss"]) == 20
    words = f"--preset quick {TINY} --epochs=2 --log=tensorboard --data-dir={synthetic_data}"
    MyVGG.main([*words.split(), f"--results={tmp_path / 'results'}"])
    assert scalars(folder / "tensorboard") == logged(folder) and len(logged(folder)["step/loss"]) == 40


def test_tensorboard_itself_reads_them(project):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    typed("python plot_results.py results/ --to tensorboard", project)
    folder = project / f"results/quick/vgg_a/adam-lr1e-3-wd1e-4-seed0-{SIZES}"
    events = EventAccumulator(str(project / "logs" / folder.relative_to(project / "results"))).Reload()
    assert set(events.Tags()["scalars"]) == logged(folder).keys()
    for tag, expected in logged(folder).items():
        found = [(event.step, event.value) for event in events.Scalars(tag)]
        assert found == [(step, pytest.approx(value, rel=1e-6)) for step, value in expected]


def refusal(capsys, main, *argv):
    with pytest.raises(SystemExit) as stop:
        main(list(map(str, argv)))
    assert stop.value.code == 2
    captured = capsys.readouterr()
    assert not captured.out and captured.err.count("\n") == 1
    return captured.err


def test_without_the_package_nothing_is_created(tmp_path, capsys, synthetic_data, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    write_run(tmp_path / "runs", "inception")
    for main, words in (
        (plot_results.main, [tmp_path / "runs", "--to", "tensorboard", tmp_path / "logs"]),
        (lambda words: MyVGG.script.run(MyVGG.main, words), ["--log=tensorboard", f"--results={tmp_path / 'new'}"]),
    ):
        assert "python -m pip install -r requirements-tensorboard.txt" in refusal(capsys, main, *words)
    assert {path.name for path in tmp_path.iterdir()} == {"runs"}


def test_other_data_sets_by_name_and_by_folder(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(120):
        file = tmp_path / "pictures" / ("cats", "dogs")[i % 2] / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40, 30, 3), dtype=np.uint8)).save(file)
    arrays = {}
    for part, count in (("train", 80), ("test", 6)):
        pixels = rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        arrays |= {f"{part}_images": pixels, f"{part}_labels": rng.integers(0, 100, count, dtype=np.uint8)}
    write_cache(tmp_path / "data", arrays, source=DATA_SETS["cifar100"])
    typed("python MyVGG.py --preset quick --dataset cifar100", tmp_path, tmp_path / "data")
    typed("python MyVGG.py --preset quick --dataset pictures/", tmp_path, tmp_path / "data")
    for name, classes in (("cifar100", 100), ("pictures", 2)):
        folder = tmp_path / f"results/quick/vgg_a/adam-lr1e-3-wd1e-4-seed0-{SIZES}-data{name}"
        weights = torch.load(folder / "checkpoint.pt", weights_only=True)["model"]
        assert [*weights.values()][-1].shape == (classes,)


# --- How runs are grouped ---------------------------------------------------------------------------------------------

BASE = replace(config_of("vgg_a_lr0.001", "quick"), lr=3e-3)  # at a rate that the report does not have
OTHER = {bool: lambda x: not x, int: lambda x: x + 5, float: lambda x: 2 * x + 0.25, str: lambda x: "other"}
VALID = {
    "optimizer": "adamw",
    "momentum": 0.5,
    "activation": "gelu",
    "loss": "hinge",
    "augment": "flip-crop",
    "schedule": "cosine",
    "ema": 0.9,
    "first_size": 20,
}  # others would be refused
# Not told by a run's name: a folder holds one device's runs, one precision's, and of a data set one state of it.
UNNAMED = ("device", "precision", "classes", "data_digest")
NAMED = [f for f in fields(RunConfig) if f.name not in ("model", "seed", "lr", "options", *UNNAMED)]


@pytest.mark.parametrize("setting", [f.name for f in NAMED])
def test_two_runs_that_differ_in_any_setting_are_compared(tmp_path, setting):
    """Also in one that is added later: every field of RunConfig is tried."""
    base = replace(BASE, schedule="cosine") if setting == "schedule_epochs" else BASE
    value = getattr(base, setting)
    other = replace(base, **{setting: OTHER[type(value)](value)})
    if setting in VALID:
        other = replace(base, **{setting: VALID[setting]})
    accuracies = [[10, 20, 30.5], [15, 35, 55.25]]
    for config, accuracy in zip((base, other), accuracies, strict=True):
        write_run(tmp_path, config, epochs=3, test_accuracy=accuracy)
    drawn = plotted(tmp_path)
    (stem,) = (stem for stem in drawn.figures if stem.startswith("overview-"))
    part_of = {"momentum": "optimizer", "schedule_epochs": "schedule"}
    assert stem.startswith(f"overview-{part_of.get(setting, setting)}-")
    figure = drawn.figures[stem]
    labels = [label for label, _ in legend(figure)]
    assert len(set(labels)) == 2 and len({colour for _, colour in legend(figure)}) == 2
    shown = sorted(list(line.get_ydata()) for line in figure.axes[0].lines)
    assert shown == accuracies
    words = {"optimizer": "Adam", "batch_size": "batch", "augment": "augmentation", "activation": "GELU",
             "loss": "hinge", "schedule": "cosine", "warmup": "warm-up", "schedule_epochs": "epochs",
             "validation_size": "validation images", "test_time_flip": "flip at test time", "ema": "weight average",
             "bn_images": "images for BatchNorm's statistics", "first_size": "first image size"}  # fmt: skip
    words["dataset"] = "data"
    assert any(words.get(setting, setting.replace("_", " ")) in label for label in labels)


def test_labels_say_the_values(tmp_path):
    for config in (
        BASE, replace(BASE, batch_size=50), replace(BASE, augment="none"), replace(BASE, augment="flip-crop"),
        replace(BASE, validation_size=1000), replace(BASE, weight_decay=5e-4),
        replace(BASE, optimizer="sgd", momentum=0.9), replace(BASE, activation="leaky_relu"), replace(BASE, loss="mse"),
        replace(BASE, schedule="cosine", schedule_epochs=5), replace(BASE, schedule="cosine", schedule_epochs=8),
        replace(BASE, warmup=1.5),
    ):  # fmt: skip
        write_run(tmp_path, config)
    drawn = plotted(tmp_path)
    found = {stem.split("-")[1]: [label for label, _ in legend(figure)] for stem, figure in drawn.figures.items()}
    assert found == {
        "batch_size": ["batch 50", "batch 100"],
        "augment": ["the report's augmentation", "flips and crops", "no augmentation"],
        "validation_size": ["validation images 0", "validation images 1,000"],
        "weight_decay": ["weight decay 1e-4", "weight decay 5e-4"], "optimizer": ["Adam", "SGD with momentum 0.9"],
        "schedule": ["constant rate", "cosine schedule over 5 epochs", "cosine schedule over 8 epochs"],
        "warmup": ["warm-up epochs 0", "warm-up epochs 1.5"],
        "activation": ["ReLU", "leaky ReLU"], "loss": ["cross-entropy", "mean squared error"],
    }  # fmt: skip


def test_an_option_that_has_its_default_is_called_by_its_value(tmp_path):
    """config.json holds it beside the options that were given, which alone are settings."""
    usual = config_of("inception_res", "quick")
    for config, value in (
        (replace(usual, lr=3e-3), 0.2),
        (replace(usual, lr=3e-3, options={"residual_scale": 0.1}), 0.1),
    ):
        file = write_run(tmp_path, config) / "config.json"
        content = json.loads(file.read_text())
        content["network"]["options"] = {"residual_scale": value}
        file.write_text(json.dumps(content))
    (figure,) = plotted(tmp_path).figures.values()
    assert [label for label, _ in legend(figure)] == ["residual scale 0.2", "residual scale 0.1"]


def test_seeds_of_a_setting_are_a_mean_and_thin_lines(tmp_path):
    rows = {0: [10, 20, 30], 1: [20, 40, 35], 4: [60, 30, 40]}
    for seed, accuracy in rows.items():
        write_run(tmp_path, replace(BASE, seed=seed), epochs=3, test_accuracy=accuracy)
        write_run(tmp_path, replace(BASE, seed=seed, init="pytorch"), epochs=3, test_accuracy=[x / 2 for x in accuracy])
    (figure,) = plotted(tmp_path).figures.values()
    assert [label for label, _ in legend(figure)] == ["init he (n = 3)", "init pytorch (n = 3)"]
    (_, colour), _ = legend(figure)
    same(lines(figure.axes[0], colour), [(range(1, 4), row) for row in (*rows.values(), [30, 30, 35])])


def test_a_hidden_curve_is_the_wider_one(tmp_path):
    for init, accuracy in (("he", [10, 50, 60]), ("pytorch", [10.1, 50, 60.2]), ("xavier", [20, 55, 80])):
        write_run(tmp_path, replace(BASE, init=init), epochs=3, test_accuracy=accuracy)
    (figure,) = plotted(tmp_path).figures.values()
    widths = [line.get_linewidth() for line in figure.axes[0].lines]
    assert widths == [3.9, 1.4, 1.4]
    assert any(text.endswith("; wide: a curve on which another one lies") for text in texts(figure))


def test_a_blow_up_in_the_first_epoch_does_not_flatten_the_rest(tmp_path):
    for init, loss in (("he", [16.25, 1.8, 1.2]), ("pytorch", [1.9, 1.5, 0.6])):
        write_run(tmp_path, replace(BASE, init=init), epochs=3, test_accuracy=[10, 20, 30], train_loss=loss)
    (figure,) = plotted(tmp_path).figures.values()
    assert figure.axes[1].get_ylim() == pytest.approx((0, 1.05 * 1.5 * 1.8))
    assert any(text.endswith("; the largest loss, 16.2, lies above the axis") for text in texts(figure))


def test_a_strip_of_losses_uses_the_axis_and_has_room_above(tmp_path):
    for init, loss in (("he", [2.4, 2.3, 2.2]), ("pytorch", [2.0, 2.25, 2.1])):
        write_run(tmp_path, replace(BASE, init=init), epochs=3, test_accuracy=[10, 20, 30], train_loss=loss)
    (figure,) = plotted(tmp_path).figures.values()
    assert figure.axes[1].get_ylim() == pytest.approx((1.9, 2.4 + 0.05 * 0.5))


def write_rates(results, rates, epochs=4, config=BASE, **given):
    """A run per learning rate, with losses of its own at each of its 100 steps per epoch."""
    folders = []
    for i, lr in enumerate(rates):
        losses = 0.5 + i / 10 + np.random.default_rng(i).uniform(0, 0.1, 100 * epochs)
        folders.append(write_run(results, replace(config, lr=lr), epochs=epochs, losses=losses, **given))
    return folders


def test_runs_of_unequal_length_have_the_band_of_their_common_steps(tmp_path):
    short = write_rates(tmp_path, (3e-3,), epochs=2)
    long = write_rates(tmp_path, (2e-3,), epochs=4)
    (figure,) = (figure for stem, figure in plotted(tmp_path).figures.items() if stem.startswith("landscape"))
    said = "first half of the shortest run, 100 steps that all have: they are 200 to 400 long"
    assert any(said in text for text in texts(figure))
    losses = [[float(row["loss"]) for row in rows_of(folder / "steps.csv")][:100] for folder in (*short, *long)]
    low, high = ([edge(pair) for pair in zip(*losses, strict=True)] for edge in (min, max))
    same(lines(figure.axes[0]), [(range(1, 101), low), (range(1, 101), high)])


def test_two_bands_are_drawn_together_if_they_share_their_rates_and_differ_in_one_setting(tmp_path):
    two, three = (3e-3, 2e-3), (3e-3, 2e-3, 4e-3)
    other = replace(BASE, batch_size=50, train_size=5_000)
    for config, rates in (
        (BASE, two), (replace(BASE, init="pytorch"), two), (replace(BASE, init="xavier"), three), (other, two),
    ):  # fmt: skip
        write_rates(tmp_path, rates, config=config)
    figures = plotted(tmp_path).figures
    bands = {stem: figure for stem, figure in figures.items() if stem.startswith("landscape")}
    pair = "init-he-vs-init-pytorch-vgg_a-adam-wd1e-4"
    assert bands.keys() == {
        f"landscape-{pair}", f"landscape_ratio-{pair}", "landscape-vgg_a-adam-wd1e-4-initxavier",
        "landscape-vgg_a-adam-wd1e-4-batch50-train5000",
    }  # fmt: skip
    assert [label for label, _ in legend(bands[f"landscape-{pair}"])] == ["init he", "init pytorch", "overlap"]


def test_seeds_without_all_rates_are_not_in_a_band(tmp_path):
    for seed, rates in ((0, (3e-3,)), (1, (3e-3, 2e-3)), (2, (3e-3, 2e-3)), (5, (2e-3,))):
        write_rates(tmp_path, rates, config=replace(BASE, seed=seed))
    figures = plotted(tmp_path).figures
    (band,) = (figure for stem, figure in figures.items() if stem.startswith("landscape"))
    assert any("drawn: seed 1;" in text for text in texts(band))
    (table,) = band.findobj(Table)
    assert table[1, 0].get_text().get_text() == "VGG-A (n = 2)"


def test_of_very_many_sets_the_first_are_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr(sets, "MOST", 1)
    for init in ("he", "pytorch"):
        for batch in (50, 100):
            write_run(tmp_path, replace(BASE, init=init, batch_size=batch))
    drawn = plotted(tmp_path)
    assert len(drawn.figures) == 1
    left = "3 more overviews, by init, batch"
    assert f"missing: {left}: python plot_results.py RUN_FOLDER RUN_FOLDER ...\n" in drawn.said


def test_any_runs_are_called_by_what_they_differ_in(tmp_path):
    folders = [
        write_run(tmp_path / place, config, epochs=3)
        for place, config in (
            ("", BASE), ("", replace(BASE, seed=1)), ("", replace(BASE, lr=1e-3, init="xavier")),
            ("published", replace(BASE, lr=1e-3, init="xavier")),
        )
    ]  # fmt: skip
    (figure,) = drawn_by(plot_results.main, [*folders, folders[0]], tmp_path).figures.values()
    assert [label for label, _ in legend(figure)] == [
        "learning rate 3e-3, init he (n = 2)", "learning rate 1e-3, init xavier",
        "learning rate 1e-3, init xavier (published)",
    ]  # fmt: skip
    assert not (tmp_path / "published" / "quick" / "figures").exists()


@pytest.mark.filterwarnings("error")
def test_runs_that_differ_in_very_much_have_a_taller_figure(tmp_path):
    other = replace(
        BASE, optimizer="sgd", momentum=0.9, weight_decay=5e-4, activation="leaky_relu", loss="label_smoothing",
        schedule="one-cycle", warmup=0.5, schedule_epochs=3, width=0.06, width_transfer=False, bias_decay=False,
        seed_per_rate=True, init="pytorch", batch_size=50, train_size=500, test_size=100, validation_size=100,
        augment="flip-crop",
    )  # fmt: skip
    configs = [BASE, *(replace(other, lr=lr) for lr in (1e-2, 2e-2, 3e-2, 4e-2, 5e-2))]
    folders = [write_run(tmp_path, config) for config in configs]
    (figure,) = drawn_by(plot_results.main, folders, tmp_path).figures.values()
    boxes = extents(figure)
    assert len(legend(figure)) == len(folders)
    panels = [axes.get_window_extent() for axes in figure.axes]
    assert all(panel.height > 1.8 * figure.dpi and panel.width > 3 * figure.dpi for panel in panels)
    assert not any(box.overlaps(panel) for words, box in boxes.items() if words == "legend" for panel in panels)


def test_what_cannot_be_drawn_is_refused(tmp_path, capsys):
    a, b = write_rates(tmp_path, (3e-3, 2e-3))
    other = write_rates(tmp_path, (4e-3,), config=replace(BASE, batch_size=50))[0]
    empty = write_run(tmp_path, replace(BASE, lr=5e-3), test_accuracy=[], losses=[], complete=False)
    band = landscape.main
    for words, complaint in (
        (["band", a], "a band has two learning rates or more, each of them once for every seed"),
        (["band", a, b, other], "differ in nothing but the learning rate, these in batch 100 / batch 50"),
        (["band", a, b, "--against", other], "a band has two learning rates or more"),
        (["band", a, empty], "has no step yet"),
        (["band", a, tmp_path / "none"], "none"),
        (["band", a, b, "--save", tmp_path / "figure.txt"], "does not end in .png, .svg, .pdf"),
    ):
        assert complaint in refusal(capsys, band, *words)
    for words, complaint in (
        ([a, empty], "no epoch has ended yet"), ([a, tmp_path / "none"], "none"),
        ([tmp_path, "--save", tmp_path / "figure.png"], "a results folder has many figures"),
        ([tmp_path, "--to", "elsewhere", tmp_path / "logs"], "logs are written for tensorboard, and nothing else"),
    ):  # fmt: skip
        assert complaint in refusal(capsys, plot_results.main, *words)
    assert [path.name for path in tmp_path.iterdir()] == ["quick"]
    assert not (tmp_path / "quick" / "figures").exists()


def test_claims_without_runs_are_one_line(tmp_path):
    """A folder of the user's own, but for two runs that are the report's by chance."""
    for name in ("vgg_a_lr0.001", "vgg_a_bn_lr0.001"):
        write_run(tmp_path, name)
    write_run(tmp_path, BASE)
    drawn = plotted(tmp_path)
    command = f"python -m cifar_lab.reproduce quick --results {tmp_path}"
    assert f"  missing: the report's own figures and claims: {command}\n" in drawn.said
    assert drawn.said.count("missing") == 1 and "not run" not in drawn.said + drawn.report
    assert re.findall(r"^  (bn-accuracy|level|scaling) ", drawn.said, re.M) == ["bn-accuracy"]
    assert len({row["claim"] for row in rows_of(tmp_path / "quick" / "verdicts.csv")}) == 12


# --- What tells figures apart ----------------------------------------------------------------------------------------


def test_figures_of_the_same_networks_and_setting_have_titles_of_their_own(tmp_path):
    for optimizer in ("adam", "nadam"):
        for rate in (3e-3, 2e-3):
            write_run(tmp_path, replace(BASE, optimizer=optimizer, lr=rate))
    titles = {figure.get_suptitle() for stem, figure in plotted(tmp_path).figures.items() if "overview-lr" in stem}
    shared = ": test accuracy and training loss"
    assert titles == {f"VGG-A by learning rate, {name}{shared}" for name in ("Adam", "NAdam")}


def test_a_band_of_one_step_is_not_drawn(tmp_path):
    for rate in (3e-3, 2e-3):
        config = replace(BASE, lr=rate, batch_size=250, train_size=500)
        write_run(tmp_path, config, epochs=1, test_accuracy=[10])
    figures = plotted(tmp_path).figures
    assert [stem for stem in figures if "landscape" in stem] == [] and len(figures) == 1
    (overview,) = figures.values()
    assert any("1 epoch," in text for text in texts(overview))


def test_a_band_that_leaves_the_axis_at_once_is_shown(tmp_path):
    for rate, loss in ((3e-3, 40.0), (2e-3, 9.0)):
        write_run(tmp_path, replace(BASE, lr=rate), losses=[2.3, *[loss] * 499])
    (band,) = (figure for stem, figure in plotted(tmp_path).figures.items() if stem.startswith("landscape"))
    assert band.axes[0].get_ylim()[1] > 40


@pytest.mark.parametrize("words", ["--augment flip-crop --no-augment", "--no-augment --augment report"])
def test_two_augmentations_contradict_each_other(words, capsys):
    assert "not allowed with argument" in refusal(capsys, MyVGG.main, *words.split())

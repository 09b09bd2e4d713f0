"""What the figures and report.md show: title, legend, axes and small print against the data of every line.

Every made-up run has random data of its own in every column, so that a line tells which run and which column it holds.
"""

import csv
import json
import math
import re
import statistics
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from drawn import assert_axes, drawn_by, extents, filled, legend, lines, one_line, plotted, same, texts
from made_up import write_run
from matplotlib.colors import to_hex
from matplotlib.contour import ContourSet
from matplotlib.legend import Legend
from matplotlib.table import Table

import landscape
import MyVGG
import plot_results
from cifar_lab.networks import build, describe
from cifar_lab.run_folder import checkpoint
from cifar_lab.settings import RunConfig

# What a curve is called, and its colour (Okabe and Ito 2008), in every figure.
INCEPTION = ("Inception v1", "#000000")
RESIDUAL = ("residual Inception", "#009E73")
ADAM, ADAMW, RMSPROP = ("Adam", "#E69F00"), ("AdamW", "#56B4E9"), ("RMSprop", "#CC79A7")
VGG, VGG_BN = ("VGG-A", "#D55E00"), ("VGG-A + BatchNorm", "#0072B2")


# --- Made-up runs -----------------------------------------------------------------------------------------------------

EPOCH_RANGES = {
    "train_loss": (0.1, 2.4), "train_accuracy": (5, 95), "test_loss": (0.2, 3), "test_accuracy": (5, 95),
    "train_seconds": (10, 90), "images_per_second": (1000, 9000),
}  # fmt: skip


def write(results, name, epochs=5, done=None, preset="report", settings=None, losses=None, **given):
    """Writes the run that belongs into `<results>/<preset>/<name>`, with random data of its own in every column."""
    found = re.fullmatch(
        r"(\w+)/([a-z]+)-lr([\de.-]+)-wd([\de-]+)-seed(\d+)(?:-scale([\d.]+))?(?:-momentum([\d.]+))?(?:-probe(\d+))?",
        name,
    )
    model, optimizer, lr, decay, seed, scale, momentum, probe = found.groups()
    config = RunConfig(
        model, optimizer, float(lr), float(decay), int(seed), options={"residual_scale": float(scale)} if scale else {},
        momentum=float(momentum or 0), **({"probe_every": int(probe)} if probe else {}), **(settings or {}),
    )  # fmt: skip
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    done = epochs if done is None else done
    columns = {column: rng.uniform(*span, done).round(4).tolist() for column, span in EPOCH_RANGES.items()}
    summary = {
        "train_seconds": sum(columns["train_seconds"]), "images_per_second": round(rng.uniform(1000, 9000), 1),
        "parameters": int(rng.integers(1e5, 1e7)),
    }  # fmt: skip
    if losses is None:  # a log that is cut before a divergence has every step up to there
        losses = np.resize(rng.uniform(0.1, 2.4, 7), given.get("diverged_at_step", 8) - 1)
    accuracy, loss = columns.pop("test_accuracy"), columns.pop("train_loss")
    folder = write_run(
        results, config, preset, epochs=epochs, test_accuracy=accuracy, train_loss=loss, losses=losses,
        columns=columns, summary=summary, **given,
    )  # fmt: skip
    assert folder == Path(results, preset, name)
    return folder


def column(folder, name, file="epochs.csv"):
    """A column of a run's CSV."""
    with (folder / file).open() as lines:
        return [float(row[name]) for row in csv.DictReader(lines)]


# --- What is written and said -----------------------------------------------------------------------------------------


def captions(report):
    """(stem, caption) of each figure in report.md; the caption stands at its own image and link."""
    entries = re.findall(r"!\[(.+)\]\(figures/(.+)\.png\)\n\n(.+) \(\[SVG\]\(figures/(.+)\.svg\)\)", report)
    assert all(alt == caption and stem == svg for alt, stem, caption, svg in entries)
    assert len(entries) == report.count("![")
    return [(stem, caption) for _, stem, caption, _ in entries]


def listed(drawn):
    """(figure, command) of each missing figure in report.md; the console has the same list."""
    missing = re.findall(r"^- (.+): `(.+)`$", drawn.report.partition("\n## Missing\n")[2], re.MULTILINE)
    said = [line for line in drawn.said.splitlines() if "missing: " in line]
    assert said == [f"  missing: {name}: {command}" for name, command in missing]
    return missing


# --- The report's figures, one seed -----------------------------------------------------------------------------------

# Every run of the report with its epochs, and two that no figure shows beside those of the other learning rates.
REPORT_RUNS = {
    "inception/adam-lr1e-4-wd0-seed3": 5,
    "inception_res/adam-lr1e-4-wd0-seed3": 41,
    "inception_res/adam-lr1e-4-wd1e-4-seed3": 10,
    "inception_res/adamw-lr1e-4-wd1e-4-seed3": 9,
    "inception_res/rmsprop-lr1e-4-wd1e-4-seed3": 7,
    "inception_res/adam-lr1e-4-wd0-seed3-scale1": 5,
    "inception_res/adam-lr1e-3-wd1e-4-seed3": 4,
    "inception_res/adam-lr1e-2-wd1e-4-seed3": 4,
    "inception_res/sgd-lr1e-2-wd1e-4-seed3-momentum0.9": 4,
    **{f"vgg_a/adam-lr{lr}-wd1e-4-seed3": 4 for lr in ("1e-3", "1e-4", "5e-4", "5e-5")},
    **{f"vgg_a_bn/adam-lr{lr}-wd1e-4-seed3": 6 for lr in ("1e-3", "1e-4", "5e-4", "5e-5")},
    "inception/rmsprop-lr1e-4-wd0-seed3": 5,
    "vgg_a_bn/adam-lr1e-3-wd0-seed3": 5,
}
ACCURACY, LOSS = ("test_accuracy", "test accuracy (%)"), ("train_loss", "training loss (nats)")
# File: title; a panel a quantity; a line a run with its label; epochs, batch and optimizer in the small print.
CURVES = {
    "figure_01": (
        "Figure 1: Inception v1, test accuracy", [ACCURACY], {"inception/adam-lr1e-4-wd0-seed3": INCEPTION},
        "5 epochs, batch 100, Adam, learning rate 1e-4, weight decay 0",
    ),
    "figure_02": (
        "Figure 2: Inception v1, training loss", [LOSS], {"inception/adam-lr1e-4-wd0-seed3": INCEPTION},
        "5 epochs, batch 100, Adam, learning rate 1e-4, weight decay 0",
    ),
    "figure_04": (
        "Figure 4: residual Inception, test accuracy", [ACCURACY], {"inception_res/adam-lr1e-4-wd0-seed3": RESIDUAL},
        "41 epochs, batch 100, Adam, learning rate 1e-4, weight decay 0",
    ),
    "figure_05": (
        "Figure 5: residual Inception, training loss", [LOSS], {"inception_res/adam-lr1e-4-wd0-seed3": RESIDUAL},
        "41 epochs, batch 100, Adam, learning rate 1e-4, weight decay 0",
    ),
    "figure_06": (
        "Figure 6: residual Inception with L2, Adam, test accuracy", [ACCURACY],
        {"inception_res/adam-lr1e-4-wd1e-4-seed3": ADAM},
        "10 epochs, batch 100, Adam, learning rate 1e-4, weight decay 1e-4",
    ),
    "figure_07": (
        "Figure 7: residual Inception with L2, AdamW, test accuracy", [ACCURACY],
        {"inception_res/adamw-lr1e-4-wd1e-4-seed3": ADAMW},
        "9 epochs, batch 100, AdamW, learning rate 1e-4, weight decay 1e-4",
    ),
    "figure_08": (
        "Figure 8: residual Inception with L2, RMSprop, test accuracy", [ACCURACY],
        {"inception_res/rmsprop-lr1e-4-wd1e-4-seed3": RMSPROP},
        "7 epochs, batch 100, RMSprop, learning rate 1e-4, weight decay 1e-4",
    ),
    "figure_09": (
        "Figure 9: VGG-A with BatchNorm, test accuracy", [ACCURACY], {"vgg_a_bn/adam-lr1e-3-wd1e-4-seed3": VGG_BN},
        "6 epochs, batch 100, Adam, learning rate 1e-3, weight decay 1e-4",
    ),
    "figure_10": (
        "Figure 10: VGG-A, test accuracy", [ACCURACY], {"vgg_a/adam-lr1e-3-wd1e-4-seed3": VGG},
        "4 epochs, batch 100, Adam, learning rate 1e-3, weight decay 1e-4",
    ),
    "overview_inception": (
        "Inception v1, plain and residual", [ACCURACY, LOSS],
        {"inception/adam-lr1e-4-wd0-seed3": INCEPTION, "inception_res/adam-lr1e-4-wd0-seed3": RESIDUAL},
        "5 / 41 epochs, batch 100, Adam, learning rate 1e-4, weight decay 0",
    ),
    "overview_optimizers": (
        "Residual Inception with L2, three optimizers", [ACCURACY, LOSS],
        {
            "inception_res/adam-lr1e-4-wd1e-4-seed3": ADAM, "inception_res/adamw-lr1e-4-wd1e-4-seed3": ADAMW,
            "inception_res/rmsprop-lr1e-4-wd1e-4-seed3": RMSPROP,
        },
        "10 / 9 / 7 epochs, batch 100, Adam / AdamW / RMSprop, learning rate 1e-4, weight decay 1e-4",
    ),
    "overview_vgg": (
        "VGG-A with and without BatchNorm", [ACCURACY, LOSS],
        {"vgg_a/adam-lr1e-3-wd1e-4-seed3": VGG, "vgg_a_bn/adam-lr1e-3-wd1e-4-seed3": VGG_BN},
        "4 / 6 epochs, batch 100, Adam, learning rate 1e-3, weight decay 1e-4",
    ),
}  # fmt: skip
BAND_CAPTION = "The learning-rate band of {}: largest and smallest training loss over the learning rates"
BOTH_BANDS = BAND_CAPTION.format("VGG-A and VGG-A + BatchNorm")
# What else is drawn: every set that differs in one setting and has a run that no figure of the report shows.
OTHERS = {
    "overview-model-adam-lr1e-3-wd1e-4":
        "Residual Inception, VGG-A, VGG-A + BatchNorm by network: test accuracy and training loss",
    "overview-optimizer-inception-lr1e-4-wd0": "Inception v1 by optimizer: test accuracy and training loss",
    "overview-optimizer-inception_res-lr1e-2-wd1e-4":
        "Residual Inception by optimizer: test accuracy and training loss",
    "overview-lr-inception_res-adam-wd1e-4": "Residual Inception by learning rate: test accuracy and training loss",
    "overview-weight_decay-vgg_a_bn-adam-lr1e-3":
        "VGG-A + BatchNorm by weight decay: test accuracy and training loss",
    "overview-residual_scale-inception_res-adam-lr1e-4-wd0":
        "Residual Inception by residual scale: test accuracy and training loss",
    "landscape": BOTH_BANDS,
    "landscape-inception_res-adam-wd1e-4": BAND_CAPTION.format("residual Inception"),
}  # fmt: skip


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    results = tmp_path_factory.mktemp("report")
    for name, epochs in REPORT_RUNS.items():
        vgg = name.startswith("vgg")
        machine = {"device": "NVIDIA made up", "environment": {"precision": "bf16"}} if vgg else {}
        write(results, name, epochs, **machine)
    return plotted(results)


def test_every_figure_of_the_report_is_drawn_and_each_other_set(report):
    """Seven steps are too few for the ratio's figure."""
    assert sorted(report.figures) == sorted([*CURVES, *OTHERS])
    assert captions(report.report) == [*((stem, row[0]) for stem, row in CURVES.items()), *OTHERS.items()]
    assert "missing" not in report.said and "## Missing" not in report.report


@pytest.mark.parametrize("stem", CURVES)
def test_a_figure_shows_the_runs_and_the_quantities_that_it_names(report, stem):
    title, panels, runs, settings = CURVES[stem]
    figure = report.figures[stem]
    assert title in texts(figure)
    machine = "NVIDIA made up, bf16" if "VGG" in title else "cpu: made up (2 threads), fp32"
    small_print = f"preset report, width 1, 50,000 training images, {settings}, seed 3, {machine}"
    assert small_print in texts(figure)
    assert legend(figure) == list(runs.values())
    assert len(figure.axes) == len(panels)
    for axes, (quantity, label) in zip(figure.axes, panels, strict=True):
        assert_axes(axes, "epoch", label)
        assert (axes.get_xscale(), axes.get_yscale()) == ("linear", "linear")
        assert len(axes.lines) == len(runs)
        for name, (_, colour) in runs.items():
            values = column(report.results / "report" / name, quantity)
            assert lines(axes, colour) == [(list(range(1, REPORT_RUNS[name] + 1)), values)]
        if quantity == "train_loss":
            assert axes.get_ylim()[0] == 0
        highest = max(max(line.get_ydata()) for line in axes.lines)
        assert axes.get_ylim()[1] > highest  # a marker is not cut


@pytest.mark.parametrize("stems", [("01", "04", "06", "07", "08"), ("02", "05"), ("09", "10")])
def test_figures_of_one_quantity_have_equal_axes(report, stems):
    axes = [report.figures[f"figure_{stem}"].axes[0] for stem in stems]
    assert len({(panel.get_xlim(), panel.get_ylim()) for panel in axes}) == 1
    values = [value for panel in axes for line in panel.lines for value in line.get_ydata()]
    assert axes[0].get_ylim()[0] < min(values) and max(values) < axes[0].get_ylim()[1]


def test_the_words_of_a_figure_can_be_read_in_its_svg(tmp_path):
    """Rendered: the SVG holds its words as text, line by line; the PNG is one."""
    write(tmp_path, "inception_res/adamw-lr1e-4-wd1e-4-seed3", 9)
    assert plot_results.main([str(tmp_path)]) == 0
    folder = tmp_path / "report" / "figures"
    assert sorted(file.name for file in folder.iterdir()) == ["figure_07.png", "figure_07.svg"]
    words = re.findall(r"<text[^>]*>([^<]*)</text>", (folder / "figure_07.svg").read_text(encoding="utf-8"))
    title, (_, ylabel), small_print = CURVES["figure_07"][0], ACCURACY, CURVES["figure_07"][3]
    assert {title, "epoch", ylabel, "AdamW"} <= set(words)
    assert f"preset report, width 1, 50,000 training images, {small_print}, seed 3, cpu: made up" in " ".join(words)
    assert (folder / "figure_07.png").read_bytes().startswith(b"\x89PNG")


@pytest.fixture(scope="module", params=[1, 3], ids=["one seed", "three seeds"])
def crowded(request, tmp_path_factory):
    """The report's figures with a device of a long name."""
    results = tmp_path_factory.mktemp("crowded")
    for name in dict.fromkeys(name for _, _, runs, _ in CURVES.values() for name in runs):
        for seed in range(request.param):
            device = "cpu: AMD EPYC 7763 64-Core Processor (2 threads)"
            write(results, name.replace("seed3", f"seed{seed}"), device=device)
    return plotted(results)


@pytest.mark.parametrize("stem", CURVES)
def test_words_lie_inside_the_page_and_off_the_curves(crowded, stem):
    figure = crowded.figures[stem]
    figure.draw_without_rendering()
    page = figure.bbox.padded(1)
    title, small_print = (
        next(text.get_window_extent() for text in figure.texts if text.get_text() == words)
        for words in (figure.get_suptitle(), figure.get_supxlabel())
    )
    (key,) = (box.get_window_extent() for box in figure.findobj(Legend))
    for box in (key, title, small_print):
        assert page.x0 <= box.x0 and box.x1 <= page.x1 and page.y0 <= box.y0 and box.y1 <= page.y1
    assert not key.overlaps(title)
    assert not any(box.overlaps(axes.get_window_extent()) for box in (title, small_print) for axes in figure.axes)
    assert key.y0 >= figure.axes[0].get_window_extent().y1


# --- report.md --------------------------------------------------------------------------------------------------------


def final(values):
    """Mean over the last tenth of the epochs, at least the last three."""
    return sum(values[-max(3, len(values) // 10) :]) / max(3, len(values) // 10)


def cells(report, start):
    """The cells of the rows of a table in report.md whose first cell starts so."""
    rows = [line for line in report.splitlines() if line.startswith(f"| {start}")]
    return [[cell.strip() for cell in row[1:-1].split(" | ")] for row in rows]


def test_the_table_of_runs_has_the_numbers_of_each_run(report):
    (head,) = cells(report.report, "run |")
    assert head == ["run", "epochs", "final (%)", "last (%)", "parameters", "seconds", "images/s", "device", ""]
    rows = cells(report.report, "inception") + cells(report.report, "vgg")
    assert sorted(row[0] for row in rows) == sorted(REPORT_RUNS)
    for row in rows:
        folder = report.results / "report" / row[0]
        accuracy, summary = column(folder, "test_accuracy"), json.loads((folder / "summary.json").read_text())
        assert row[1:] == [
            f"{REPORT_RUNS[row[0]]}", f"{final(accuracy):.2f}", f"{accuracy[-1]:.2f}", f"{summary['parameters']:,}",
            f"{sum(column(folder, 'train_seconds')):,.0f}", f"{summary['images_per_second']:,.0f}",
            "NVIDIA made up" if row[0].startswith("vgg") else "cpu: made up (2 threads)", "",
        ]  # fmt: skip


def test_the_machine_and_the_versions_stand_above_the_results(report):
    seconds = sum(sum(column(report.results / "report" / name, "train_seconds")) for name in REPORT_RUNS)
    assert report.report.startswith(
        "# Results at the preset `report`\n\n"
        "- machine: cpu: made up (2 threads), NVIDIA made up; Linux\n"
        "- precision: fp32, bf16; PyTorch 2.14.1; Python 3.11.7\n"
        "- commit: abc1234\n"
        "- seeds: 3\n"
        f"- 19 runs, {seconds / 60:,.1f} minutes of training\n"
    )


def test_the_table_of_verdicts_has_each_claims_own_numbers(report):
    accuracy = {name: column(report.results / "report" / name, "test_accuracy") for name in REPORT_RUNS}
    finals = {name: final(values) for name, values in accuracy.items()}
    plain, residual, adam, adamw, rmsprop, unscaled = list(REPORT_RUNS)[:6]
    vgg, vgg_bn = "vgg_a/adam-lr1e-3-wd1e-4-seed3", "vgg_a_bn/adam-lr1e-3-wd1e-4-seed3"
    three = [finals[name] for name in (adam, adamw, rmsprop)]
    pairs = zip(
        ("Adam minus AdamW", "Adam minus RMSprop", "AdamW minus RMSprop"), ((0, 1), (0, 2), (1, 2)), strict=True
    )

    def said(agrees):
        return f"**too few seeds (n = 1, sign {'as claimed' if agrees else 'opposite'})**"

    cannot = "**this preset cannot decide it**"
    for id, sentence, when, measured, verdict in (
        ("level", "Inception v1 settles at about 85%", "within 2 points of 85",
         f"final test accuracy: {finals[plain]:.2f} %", said(83 < finals[plain] < 87)),
        ("residual", "residual + scaling improves it, 85 to 87%", "above 0",
         f"difference of the final test accuracies: {finals[residual] - finals[plain]:+.2f} points",
         said(finals[residual] > finals[plain])),
        ("optimizers", "Adam, AdamW and RMSprop differ little", "every difference of two within 1 point",
         "<br>".join(f"final test accuracy, {pair}: {three[a] - three[b]:+.2f} points" for pair, (a, b) in pairs)
         + "<br>cannot be decided here: a run has 3,500 steps; a settled one has at least 10,000", cannot),
        ("bn-accuracy", "BN lifts VGG from 85 to 88%", "above 0",
         f"difference of the final test accuracies: {finals[vgg_bn] - finals[vgg]:+.2f} points",
         said(finals[vgg_bn] > finals[vgg])),
    ):  # fmt: skip
        ((_, *row),) = cells(report.report, f"`{id}` |")
        assert (row[0], row[1], row[3], row[4]) == (sentence, when, "3", verdict)
        # Behind the numbers may stand that a run has other epochs than the preset's, and what is folded away.
        assert row[2] == measured or row[2].startswith(f"{measured}<br>")
        folded = {
            "residual": f"the same with scale 1.0: {finals[unscaled] - finals[plain]:+.2f} points",
            "bn-accuracy": f"the same minus the report's 3 points: {finals[vgg_bn] - finals[vgg] - 3:+.2f} points",
        }
        if id in folded:
            assert row[2].endswith(f"<br><details><summary>1 more</summary>{folded[id]}</details>")
    (head,) = cells(report.report, "claim |")
    assert head == ["claim", "the report says", "supported when", "measured", "seeds", "verdict"]


# --- Several seeds, runs that diverged and runs that are not finished -------------------------------------------------


@pytest.fixture(scope="module")
def seeds(tmp_path_factory):
    results = tmp_path_factory.mktemp("seeds")
    for seed, state in (
        (0, {}),
        (2, {"done": 3, "complete": False}),
        (4, {"done": 2, "diverged_at_step": 1200}),
        (7, {}),
    ):
        write(results, f"inception/adam-lr1e-4-wd0-seed{seed}", **state)
    for seed in (2, 7):
        write(results, f"inception_res/adam-lr1e-4-wd0-seed{seed}", epochs=6)
    for seed, step in ((0, 1700), (2, 900)):
        write(results, f"vgg_a/adam-lr1e-3-wd1e-4-seed{seed}", done=step // 500, diverged_at_step=step)
    write(results, "vgg_a_bn/adam-lr1e-3-wd1e-4-seed7", epochs=4)
    return plotted(results)


N3, N2 = ("Inception v1 (n = 3)", INCEPTION[1]), ("residual Inception (n = 2)", RESIDUAL[1])
UNFINISHED = "Inception v1, seed 2, in progress: 3 of 5 epochs; Inception v1, seed 4, diverged at step 1,200"
BOTH_DIVERGED = "VGG-A, seed 0, diverged at step 1,700; VGG-A, seed 2, diverged at step 900"
BOLD = "; bold: mean over n seeds, thin: each seed"
INCEPTIONS = ("inception/adam-lr1e-4-wd0-seed", INCEPTION[1], (0, 2, 4, 7), (0, 2, 7))
RESIDUALS = ("inception_res/adam-lr1e-4-wd0-seed", RESIDUAL[1], (2, 7), (2, 7))
PLAIN = ("vgg_a/adam-lr1e-3-wd1e-4-seed", VGG[1], (0, 2), ())
BN = ("vgg_a_bn/adam-lr1e-3-wd1e-4-seed", VGG_BN[1], (7,), ())
# File: title and what it adds; panels; legend; (runs, colour, each seed drawn, seeds of the mean); small print's end.
SEEDS = {
    "figure_01": (f"Figure 1: Inception v1, test accuracy {UNFINISHED}", [ACCURACY], [N3], [INCEPTIONS],
                  "5 epochs, batch 100, Adam, learning rate 1e-4, weight decay 0, seed 0 2 4 7"),
    "figure_02": (f"Figure 2: Inception v1, training loss {UNFINISHED}", [LOSS], [N3], [INCEPTIONS],
                  "5 epochs, batch 100, Adam, learning rate 1e-4, weight decay 0, seed 0 2 4 7"),
    "figure_04": ("Figure 4: residual Inception, test accuracy", [ACCURACY], [N2], [RESIDUALS],
                  "6 epochs, batch 100, Adam, learning rate 1e-4, weight decay 0, seed 2 7"),
    "figure_05": ("Figure 5: residual Inception, training loss", [LOSS], [N2], [RESIDUALS],
                  "6 epochs, batch 100, Adam, learning rate 1e-4, weight decay 0, seed 2 7"),
    "figure_09": ("Figure 9: VGG-A with BatchNorm, test accuracy", [ACCURACY], [VGG_BN], [BN],
                  "4 epochs, batch 100, Adam, learning rate 1e-3, weight decay 1e-4, seed 7"),
    "figure_10": (f"Figure 10: VGG-A, test accuracy {BOTH_DIVERGED}", [ACCURACY], [VGG], [PLAIN],
                  "5 epochs, batch 100, Adam, learning rate 1e-3, weight decay 1e-4, seed 0 2"),
    "overview_inception": (f"Inception v1, plain and residual {UNFINISHED}", [ACCURACY, LOSS], [N3, N2],
                           [INCEPTIONS, RESIDUALS],
                           "5 / 6 epochs, batch 100, Adam, learning rate 1e-4, weight decay 0, seed 0 2 4 7"),
    "overview_vgg": (f"VGG-A with and without BatchNorm {BOTH_DIVERGED}", [ACCURACY, LOSS], [VGG, VGG_BN], [PLAIN, BN],
                     "5 / 4 epochs, batch 100, Adam, learning rate 1e-3, weight decay 1e-4, seed 0 2 7"),
}  # fmt: skip


@pytest.mark.parametrize("stem", SEEDS)
def test_several_seeds_are_thin_lines_and_a_bold_mean(seeds, stem):
    title, panels, entries, drawn, settings = SEEDS[stem]
    figure = seeds.figures[stem]
    assert title in texts(figure)
    bold = BOLD if any(len(of) > 1 for _, _, of, _ in drawn) else ""
    small_print = f"preset report, width 1, 50,000 training images, {settings}, cpu: made up (2 threads), fp32{bold}"
    assert small_print in texts(figure)
    assert legend(figure) == entries
    assert len(figure.axes) == len(panels)
    for axes, (quantity, label) in zip(figure.axes, panels, strict=True):
        assert_axes(axes, "epoch", label)
        for run, colour, of, averaged in drawn:
            values = {seed: column(seeds.results / "report" / f"{run}{seed}", quantity) for seed in of}
            expected = [(range(1, len(v) + 1), v) for v in values.values()]
            ended = [values[seed] for seed in of if (run, seed) in {(INCEPTIONS[0], 4), (PLAIN[0], 0), (PLAIN[0], 2)}]
            diverged = [([len(v) for v in ended], [v[-1] for v in ended])] if ended else []
            assert lines(axes, colour, "x") == diverged
            if averaged:
                shortest = min(len(values[seed]) for seed in averaged)
                mean = [sum(values[seed][e] for seed in averaged) / len(averaged) for e in range(shortest)]
                expected.append((range(1, shortest + 1), mean))
                *thin, bold = (line for line in axes.lines if to_hex(line.get_color()).upper() == colour)
                same([(bold.get_xdata(), bold.get_ydata())], expected[-1:])
                assert bold.get_linewidth() > 1.5 * max(
                    line.get_linewidth() for line in thin if line.get_marker() != "x"
                )
            same(lines(axes, colour), expected + diverged)
        assert {to_hex(line.get_color()).upper() for line in axes.lines} == {colour for _, colour, _, _ in drawn}


def test_runs_that_are_not_whole_have_no_final_accuracy_in_the_table(seeds):
    runs = seeds.results / "report"
    rows = {row[0]: row for row in cells(seeds.report, "inception/") + cells(seeds.report, "vgg_a/")}
    for name, epochs, state in (
        ("inception/adam-lr1e-4-wd0-seed2", "3 of 5", "in progress: 3 of 5 epochs"),
        ("inception/adam-lr1e-4-wd0-seed4", "2 of 5", "diverged at step 1,200"),
        ("vgg_a/adam-lr1e-3-wd1e-4-seed2", "1 of 5", "diverged at step 900"),
    ):
        last = column(runs / name, "test_accuracy")[-1]
        assert rows[name][1:4] == [epochs, "-", f"{last:.2f}"] and rows[name][-1] == state
    assert rows["inception/adam-lr1e-4-wd0-seed2"][4:7] == ["-", "-", "-"]  # they stand in summary.json


def test_what_is_missing_is_listed_with_its_command_for_all_seeds(seeds):
    end = f"--seed 0 2 4 7 --results {seeds.results}"
    optimizers = f"python MyFramework.py --model inception_res --optimizer adam adamw rmsprop --epochs 300 {end}"
    assert listed(seeds) == [
        ("Figure 6: residual Inception with L2, Adam, test accuracy", optimizers),
        ("Figure 7: residual Inception with L2, AdamW, test accuracy", optimizers),
        ("Figure 8: residual Inception with L2, RMSprop, test accuracy", optimizers),
        ("Residual Inception with L2, three optimizers", optimizers),
        ("landscape band of vgg_a", f"python MyVGG.py --lrs 1e-3 1e-4 5e-4 5e-5 --epochs 200 {end}"),
        ("landscape band of vgg_a_bn", f"python MyVGG.py --bn --lrs 1e-3 1e-4 5e-4 5e-5 --epochs 200 {end}"),
    ]


# --- The learning-rate band -------------------------------------------------------------------------------------------

RATES = ("1e-3", "1e-4", "5e-4", "5e-5")
BAND_TITLE = "Learning-rate band: largest and smallest training loss over four learning rates"
# Settings of the runs' losses: where a curve starts and ends (nats), how fast it falls (steps), how far the rates are
# apart, and after how many steps a spike comes.
BAND_SHAPES = {"vgg_a": (2.4, 0.35, 400, 0.5, 97), "vgg_a_bn": (1.9, 0.2, 150, 0.3, 61)}


def write_band(results, model, seed, epochs, rate_that_ends=None, steps=None, **state):
    """Writes a network's four runs, each with losses of its own; one of the rates may end early, in a state."""
    start, end, fall, spread, period = BAND_SHAPES[model]
    for i, rate in enumerate(RATES):
        name = f"{model}/adam-lr{rate}-wd1e-4-seed{seed}"
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        step = np.arange(epochs * 500)
        losses = end + (start - end) * np.exp(-step / (fall + 20 * seed)) + rng.uniform(0, spread, step.size)
        losses[(29 * i + 13 * seed) % period :: period + seed] *= 1.6 + 0.5 * i
        if rate == rate_that_ends:
            write(results, name, epochs, losses=losses[:steps], **state)
        else:
            write(results, name, epochs, losses=losses)


@dataclass
class NaiveBand:
    """The band of a network's runs over the first half of the run, by its definition alone."""

    upper: np.ndarray
    lower: np.ndarray
    window: int

    def median(self, curve):
        """Running median over a centred window, the ends repeated."""
        half = self.window // 2
        padded = np.concatenate([[curve[0]] * half, curve, [curve[-1]] * half])
        return np.median(np.lib.stride_tricks.sliding_window_view(padded, self.window), axis=1)

    def settled(self):
        """The step after which the median of the middle stays under 1.0."""
        return 1 + max(i for i, value in enumerate(self.median((self.upper + self.lower) / 2)) if value >= 1)

    def spikes(self):
        """Per 1,000 steps: above twice the median of the upper curve, and above that median plus 0.5."""
        median = self.median(self.upper)
        counts = sum(self.upper > 2 * median), sum(self.upper > median + 0.5)
        return [1000 * count / len(self.upper) for count in counts]


def naive_band(folder, model, seed, steps, window):
    """At each step the largest and the smallest loss of the runs that still have one."""
    losses = [column(folder / model / f"adam-lr{r}-wd1e-4-seed{seed}", "loss", "steps.csv")[:steps] for r in RATES]
    at_step = [[loss[t] for loss in losses if t < len(loss)] for t in range(steps)]
    return NaiveBand(np.array([max(values) for values in at_step]), np.array([min(v) for v in at_step]), window)


@pytest.fixture(scope="module")
def bands(tmp_path_factory):
    """VGG-A with seeds 1, 4 and 7 and with BatchNorm 4, 7 and 9; a run that diverged and one that is not finished."""
    results = tmp_path_factory.mktemp("bands")
    for seed in (1, 4, 7):
        diverged = {"rate_that_ends": "1e-3", "steps": 699, "done": 1, "diverged_at_step": 700} if seed == 4 else {}
        write_band(results, "vgg_a", seed, 5, **diverged)
    for seed in (4, 7, 9):
        unfinished = {"rate_that_ends": "5e-4", "steps": 1000, "done": 2, "complete": False} if seed == 9 else {}
        write_band(results, "vgg_a_bn", seed, 5, **unfinished)
    drawn = plotted(results)
    naive = {
        (model, seed): naive_band(results / "report", model, seed, 1250, 499)
        for model, of in (("vgg_a", (1, 4, 7)), ("vgg_a_bn", (4, 7, 9)))
        for seed in of
    }
    return drawn, naive


def test_the_band_lies_between_the_largest_and_the_smallest_loss_of_each_step(bands):
    drawn, naive = bands
    figure = drawn.figures["landscape"]
    axes = figure.axes[0]
    assert BAND_TITLE in texts(figure)
    assert legend(figure) == [VGG, VGG_BN, ("overlap", VGG[1])]  # of the two patches that lie on each other, the lower
    assert_axes(axes, "training step", "training loss (nats)")
    # A loss that falls to a tenth is read on a logarithmic axis, down to a third of the lowest median.
    lowest = min(naive[model, 4].lower.min() for model in ("vgg_a", "vgg_a_bn"))
    floor = min(naive[model, 4].median(naive[model, 4].lower).min() for model in ("vgg_a", "vgg_a_bn"))
    assert axes.get_xlim() == (1, 1250) and axes.get_yscale() == "log"
    assert axes.get_ylim() == pytest.approx((max(0.95 * lowest, floor / 3), 3))
    steps = list(range(1, 1251))
    for model, (_, colour) in (("vgg_a", VGG), ("vgg_a_bn", VGG_BN)):
        band = naive[model, 4]  # the lowest seed that both networks have
        same(lines(axes, colour), [(steps, band.lower), (steps, band.upper)])
        area = filled(axes, colour)
        assert [area[step] for step in steps] == list(zip(band.lower, band.upper, strict=True))
    assert len(axes.lines) == 4
    highest = max(naive[model, 4].upper.max() for model in ("vgg_a", "vgg_a_bn"))
    small_print = (
        "preset report: 5 epochs of 50,000 images, width 1, Adam, batch 100, weight decay 1e-4, init he, learning "
        "rates 1e-3, 1e-4, 5e-4, 5e-5; first half of the run; drawn: seed 4; "
        f"medians in the table: running, over 499 steps; the largest loss, {highest:.3g}, lies above the axis; "
        "VGG-A at 1e-3, seed 4, diverged at step 700 and is missing from there on; VGG-A + BatchNorm at 5e-4, seed 9, "
        "is not finished: 1,000 of 2,500 steps"
    )
    assert small_print in texts(figure)


def test_the_bands_table_has_the_means_over_the_seeds(bands):
    drawn, naive = bands
    figure = drawn.figures["landscape"]
    (table,) = figure.findobj(Table)
    rows = [[one_line(table[row, i].get_text().get_text()) for i in range(5)] for row in range(3)]
    assert max(table.get_celld()) == (2, 4)
    expected = []
    for model, label in (("vgg_a", "VGG-A (n = 3)"), ("vgg_a_bn", "VGG-A + BatchNorm (n = 3)")):
        of = [band for (name, _), band in naive.items() if name == model]
        columns = (
            [(band.upper - band.lower).mean() for band in of], [band.settled() for band in of],
            *zip(*(band.spikes() for band in of), strict=True),
        )  # fmt: skip
        forms = (".3f", ",.0f", ".2f", ".2f")
        spread = [(statistics.mean(column), statistics.stdev(column)) for column in columns]
        expected.append([label, *(f"{m:{form}} ± {s:{form}}" for (m, s), form in zip(spread, forms, strict=True))])
    assert rows[1:] == expected
    assert len({cell for row in expected for cell in row}) == 10  # else one could stand for another
    assert rows[0] == [
        "", "mean width (nats): largest minus smallest loss", "step after which the loss halfway is under 1.0",
        "steps per 1,000: largest loss over 2 x its median", "steps per 1,000: largest loss over median + 0.5",
    ]  # fmt: skip
    ratios, shares = [], []
    for seed in (4, 7):  # those that both networks have
        bn, plain = (naive[model, seed].upper - naive[model, seed].lower for model in ("vgg_a_bn", "vgg_a"))
        ratios.append(bn.mean() / plain.mean())
        shares.append((bn < plain).mean())
    ratio, share = np.sqrt(np.prod(ratios)), np.mean(shares)
    assert ratio < 0.95 and 0.55 < share < 0.95  # neither is its own inverse or complement
    comparison = "VGG-A + BatchNorm / VGG-A: ratio of the mean widths "
    comparison += f"{ratio:.2f}, narrower at {share:.1%} of the steps"
    assert comparison in texts(figure)


def test_what_the_inception_figures_lack_is_listed_with_its_command(bands):
    drawn, _ = bands
    end = f"--seed 1 4 7 9 --results {drawn.results}"
    plain, residual, optimizers = (
        f"python MyFramework.py --model {flags} {end}"
        for flags in (
            "inception --optimizer adam --weight-decay 0 --epochs 200",
            "inception_res --optimizer adam --weight-decay 0 --epochs 200",
            "inception_res --optimizer adam adamw rmsprop --epochs 300",
        )
    )
    assert listed(drawn) == [
        ("Figure 1: Inception v1, test accuracy", plain),
        ("Figure 2: Inception v1, training loss", plain),
        ("Figure 4: residual Inception, test accuracy", residual),
        ("Figure 5: residual Inception, training loss", residual),
        ("Figure 6: residual Inception with L2, Adam, test accuracy", optimizers),
        ("Figure 7: residual Inception with L2, AdamW, test accuracy", optimizers),
        ("Figure 8: residual Inception with L2, RMSprop, test accuracy", optimizers),
        ("Inception v1, plain and residual", f"{plain} && {residual}"),
        ("Residual Inception with L2, three optimizers", optimizers),
    ]
    assert captions(drawn.report) == [
        ("figure_09", "Figure 9: VGG-A with BatchNorm, test accuracy"),
        ("figure_10", "Figure 10: VGG-A, test accuracy"),
        ("overview_vgg", "VGG-A with and without BatchNorm"),
        ("landscape", BOTH_BANDS),
        ("landscape_ratio", "The ratio of the bands' mean widths up to each step, VGG-A + BatchNorm / VGG-A"),
    ]


def test_the_ratio_of_the_widths_up_to_each_step(bands):
    """Of the seeds that both networks have, and their geometric mean; with batch noise from step 10 on."""
    drawn, naive = bands
    figure = drawn.figures["landscape_ratio"]
    (axes,) = figure.axes
    assert_axes(axes, "training step t", "ratio of the mean widths\nup to step t")
    assert figure.get_suptitle() == "Ratio of the widths of two learning-rate bands:\nVGG-A + BatchNorm / VGG-A"
    ratios = []
    for seed in (4, 7):
        bn, plain = (naive[model, seed].upper - naive[model, seed].lower for model in ("vgg_a_bn", "vgg_a"))
        ratios.append(np.cumsum(bn) / np.cumsum(plain))
    mean = np.sqrt(ratios[0] * ratios[1])
    steps = list(range(10, 1251))
    found = [line for line in axes.lines if line.get_linestyle() == "-" and len(line.get_xdata()) == len(steps)]
    assert [list(line.get_xdata()) for line in found] == [steps] * 3
    for line, expected in zip(found, (*ratios, mean), strict=True):
        np.testing.assert_allclose(line.get_ydata(), expected[9:], rtol=1e-9)
    dashed = [line for line in axes.lines if line.get_linestyle() == "--"]
    assert [line.get_xdata()[0] for line in dashed] == [250] * 3  # before it a mean over 499 steps repeats the first
    folder, smoothed = drawn.results / "report", []
    for seed in (4, 7):
        widths = []
        for model in ("vgg_a_bn", "vgg_a"):
            runs = [column(folder / model / f"adam-lr{r}-wd1e-4-seed{seed}", "loss", "steps.csv")[:1250] for r in RATES]
            padded = [np.concatenate([[run[0]] * 249, run, [run[-1]] * 249]) for run in runs]
            means = [np.convolve(run, np.ones(499) / 499, mode="valid") for run in padded]
            there = [[mean[t] for mean in means if t < len(mean)] for t in range(1250)]
            widths.append(np.cumsum([max(of) - min(of) for of in there]))
        smoothed.append(widths[0] / widths[1])
    for line, expected in zip(dashed, (*smoothed, np.sqrt(np.prod(smoothed, axis=0))), strict=True):
        np.testing.assert_allclose(line.get_ydata(), expected[249:], rtol=1e-9)
    assert [label for label, _ in legend(figure)] == [
        f"raw losses: {mean[-1]:.2f} over all steps",
        f"losses averaged over 499 steps: {dashed[-1].get_ydata()[-1]:.2f} over all steps",
    ]
    assert any("the claim needs 10,000 steps" in text for text in texts(figure))


def test_the_words_of_published_bands_have_room(tmp_path):
    for model in ("vgg_a", "vgg_a_bn"):
        for rate in ("0.001", "0.0005", "0.0001", "5e-05"):
            write_run(tmp_path / "published", f"{model}_lr{rate}", "report", epochs=1)
    figures = plotted(tmp_path).figures
    for name in ("landscape", "landscape_ratio"):
        figure = figures[f"{name}-published"]
        boxes = extents(figure)
        panel, label = (part.get_window_extent() for part in (figure.axes[0], figure.axes[0].yaxis.label))
        assert panel.y0 <= label.y0 and label.y1 <= panel.y1
        assert not boxes["legend"].overlaps(panel) and not boxes["legend"].overlaps(
            boxes[one_line(figure.get_suptitle())]
        )
    (cells,) = (table.get_celld() for table in figures["landscape-published"].findobj(Table))
    words = [cell.get_text().get_window_extent() for cell in cells.values() if cell.get_text().get_text().strip()]
    assert len(words) == 14
    assert not any(word.overlaps(other) for i, word in enumerate(words) for other in words[:i])


def test_a_long_band_has_the_running_medians_of_both_curves(tmp_path):
    """More than 2,000 steps: there raw curves hide each other. By landscape.py's own command line."""
    write_band(tmp_path, "vgg_a_bn", 0, 9)
    drawn = drawn_by(landscape.main, [tmp_path], tmp_path)
    command = f"python MyVGG.py --lrs 1e-3 1e-4 5e-4 5e-5 --epochs 200 --results {tmp_path}"
    assert drawn.said.splitlines() == [
        f"{tmp_path}/report/figures/landscape.png, .svg: {BAND_CAPTION.format('VGG-A + BatchNorm')}",
        f"report: missing: landscape band of vgg_a; to create it, run: {command}",
    ]
    figure = drawn.figures["landscape"]
    axes = figure.axes[0]
    band = naive_band(tmp_path / "report", "vgg_a_bn", 0, 2250, 501)
    whole = slice(250, 2000)  # where the window repeats no end
    steps = np.arange(1, 2251)
    medians = [(steps[whole], band.median(curve)[whole]) for curve in (band.lower, band.upper)]
    same(lines(axes, VGG_BN[1]), [(steps, band.lower), (steps, band.upper), *medians])
    same(lines(axes, "#FFFFFF"), medians)  # below the coloured ones
    assert legend(figure) == [VGG_BN] and axes.get_xlim() == (1, 2250)
    assert any(
        "drawn: seed 0; filled: raw; lines: running medians of both curves over 501 steps" in t for t in texts(figure)
    )


# --- The probes along the gradient ------------------------------------------------------------------------------------

ETAS = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4)
PAPER = {"batch_size": 128, "augment": "none", "init": "xavier", "probe_every": 50}
PROBED = {  # run: the last probed step
    "vgg_a/sgd-lr1e-1-wd0-seed0": 1150, "vgg_a/sgd-lr1e-1-wd0-seed2": 1150,
    "vgg_a_bn/sgd-lr1e-1-wd0-seed0": 1150, "vgg_a_bn/sgd-lr1e-1-wd0-seed2": 750,
}  # fmt: skip
CHANGE = r"$\|\nabla L(w - \eta g) - g\|$"
RELATIVE = r"$\|\nabla L(w - \eta g) - g\| \,/\, \|g\|$"
BETA = r"$\|\nabla L(w - \eta g) - g\| \,/\, \|\eta g\|$"
COSINE = r"$\cos(\nabla L(w - \eta g),\, g)$"
LOSS_AT = r"$L(w - \eta g)$ (nats)"


def made_up_probes(name, last, every=50, etas=ETAS):
    """Rows of probes.csv: step, eta, loss, ||g||, ||dg||, cosine, beta; those of one step are in no order of size."""
    rng = np.random.default_rng(zlib.crc32(f"probes of {name}".encode()))
    rows = []
    for step in range(every, last + 1, every):
        norm = rng.uniform(0.5, 3)
        for eta in etas:
            change = rng.uniform(0.3, 2)
            rows.append((step, eta, rng.uniform(0.2, 2.5), norm, change, rng.uniform(-0.5, 1), change / (eta * norm)))
    return rows


@pytest.fixture(scope="module")
def probes(tmp_path_factory):
    """Both networks at the paper's settings with two seeds, and one run with Adam and one with momentum."""
    results = tmp_path_factory.mktemp("probes")
    for name, last in PROBED.items():
        rows = made_up_probes(name, last)
        if name == "vgg_a_bn/sgd-lr1e-1-wd0-seed0":
            for row in (45, 130):  # eta 0.3 at step 300, eta 0.15 at step 850
                rows[row] = (*rows[row][:2], math.inf, rows[row][3], math.nan, math.nan, math.nan)
        settings = PAPER | {"probe_every": 100}  # the preset's own: not a part of the folder's name
        losses = np.random.default_rng(last).uniform(0.02, 2, 1173)
        unfinished = {"losses": losses[:700], "done": 2, "complete": False} if last == 750 else {"losses": losses}
        write(results, name, 3, preset="paper", settings=settings, probes=rows, **unfinished)
    for name in ("vgg_a/adam-lr1e-3-wd1e-4-seed5-probe50", "vgg_a_bn/sgd-lr1e-2-wd0-seed5-momentum0.9-probe50"):
        write(results, name, preset="report", probes=made_up_probes(name, 100))
    return drawn_by(landscape.main, [results], results)


def at_each_step(rows, quantity):
    """{step: values over the step sizes} of the rows of probes.csv."""
    found = {}
    for step, _, loss, norm, change, cosine, beta in rows:
        value = {"loss": loss, "change": change, "relative": change / norm, "cosine": cosine, "beta": beta}[quantity]
        found.setdefault(step, []).append(value)
    return {step: values if all(map(math.isfinite, values)) else [math.nan] for step, values in found.items()}


def probe_rows(drawn, name, preset="paper"):
    """The rows of a run's probes.csv."""
    lines = (drawn.results / preset / name / "probes.csv").read_text().splitlines()
    assert lines[0] == "step,eta,loss,grad_norm,grad_change,grad_cosine,beta"
    return [tuple(map(float, line.split(","))) for line in lines[1:]]


PROBE_PRINT = (
    "preset paper: 3 epochs of 50,000 images, width 1, SGD, batch 128, weight decay 0, init xavier, no augmentation, "
    "learning rate 1e-1; 8 step sizes η from 0.05 to 0.4; loss and gradients of the step's own batch, BatchNorm in "
    "train mode; VGG-A n = 2, VGG-A + BatchNorm n = 2, the lowest seed strong, the others thin; VGG-A + BatchNorm at "
    "1e-1, seed 2, is not finished: 700 of 1,173 steps; 2 probes with a value that is not finite are left out"
)
# File: title; a panel each: its title, the label of its y axis, what it holds (of "beta" the largest value alone).
PROBE_FIGURES = {
    "probes-sgd-lr1e-1-wd0": (
        "Loss and gradient, down the gradient trained with SGD",
        ("(a) variation of the loss: its range over $\\eta$", LOSS_AT, "loss"),
        ("(b) gradient predictiveness: the change's range over $\\eta$", CHANGE, "change"),
        ("(c) effective $\\beta$-smoothness: the maximum over $\\eta$", BETA, "beta"),
    ),
    "probes_relative-sgd-lr1e-1-wd0": (
        "Change of the gradient, down the gradient trained with SGD",
        ("absolute change: its range over $\\eta$", CHANGE, "change"),
        ("relative change: its range over $\\eta$", RELATIVE, "relative"),
        ("cosine between the gradients: its range over $\\eta$", COSINE, "cosine"),
    ),
}


@pytest.mark.parametrize("stem", PROBE_FIGURES)
def test_the_panels_of_the_probes_have_the_range_of_the_quantity_that_they_name(probes, stem):
    title, *panels = PROBE_FIGURES[stem]
    figure = probes.figures[stem]
    assert title in texts(figure) and PROBE_PRINT in texts(figure)
    assert legend(figure) == [VGG, VGG_BN]
    assert len(figure.axes) == len(panels)
    for axes, (heading, label, quantity) in zip(figure.axes, panels, strict=True):
        assert one_line(axes.get_title()) == heading
        assert_axes(axes, "training step", label)
        for model, (_, colour) in (("vgg_a", VGG), ("vgg_a_bn", VGG_BN)):
            expected = []
            for seed in (0, 2):
                values = at_each_step(probe_rows(probes, f"{model}/sgd-lr1e-1-wd0-seed{seed}"), quantity)
                low, high = ([edge(of) for of in values.values()] for edge in (min, max))
                expected += (
                    [(list(values), high)] if quantity == "beta" else [(list(values), low), (list(values), high)]
                )
                if seed == 0 and quantity != "beta":
                    ranges = zip(values, low, high, strict=True)
                    ranges = {step: (bottom, top) for step, bottom, top in ranges if math.isfinite(top)}
                    assert filled(axes, colour) == ranges
            same(lines(axes, colour), expected)
            widths = [line.get_linewidth() for line in axes.lines if to_hex(line.get_color()).upper() == colour]
            half = len(widths) // 2
            assert min(widths[:half]) > max(widths[half:])  # the lowest seed is the strong one
        assert {to_hex(line.get_color()).upper() for line in axes.lines} == {VGG[1], VGG_BN[1]}


def test_the_step_size_figure_has_the_gradients_change_early_and_late(probes):
    figure = probes.figures["probes_eta-sgd-lr1e-1-wd0"]
    assert "Change of the gradient against the step size trained with SGD" in texts(figure)
    assert PROBE_PRINT in texts(figure) and legend(figure) == [VGG, VGG_BN]
    # All runs were probed at the 15 steps up to 750: early is the one after a tenth of them, late the last.
    for axes, title, step in zip(figure.axes, ("early: step 100", "late: step 750"), (100, 750), strict=True):
        assert axes.get_title() == title
        assert_axes(axes, r"step size $\eta$", CHANGE)
        for model, (_, colour) in (("vgg_a", VGG), ("vgg_a_bn", VGG_BN)):
            rows = [probe_rows(probes, f"{model}/sgd-lr1e-1-wd0-seed{seed}") for seed in (0, 2)]
            changes = [at_each_step(of, "change")[step] for of in rows]
            assert lines(axes, colour) == [(list(ETAS), change) for change in changes]
        assert len(axes.lines) == 4


def test_the_matched_figure_has_each_probe_at_the_loss_of_its_step(probes):
    """Over both seeds; of the run in progress the last probe's step is not logged yet."""
    figure = probes.figures["probes_matched-sgd-lr1e-1-wd0"]
    assert [one_line(axes.get_title()) for axes in figure.axes] == [
        "range of the loss over $\\eta$", "largest relative change of the gradient over $\\eta$",
    ]  # fmt: skip
    edges = (1e-4, 1e-3, 1e-2, 0.05, 0.2, 0.5, 1.0, 2.5)
    for axes, quantity in zip(figure.axes, ("loss", "relative"), strict=True):
        for model, (_, colour) in (("vgg_a", VGG), ("vgg_a_bn", VGG_BN)):
            points = []
            for seed in (0, 2):
                name = f"{model}/sgd-lr1e-1-wd0-seed{seed}"
                losses = column(probes.results / "paper" / name, "loss", "steps.csv")
                for step, values in at_each_step(probe_rows(probes, name), quantity).items():
                    if step <= len(losses):
                        value = max(values) - min(values) if quantity == "loss" else max(values)
                        points.append((losses[int(step) - 1], value))
            assert len(points) == (46 if model == "vgg_a" else 37)
            same(lines(axes, colour), [tuple(zip(*points, strict=True))])
            (stairs,) = [p for p in axes.patches if to_hex(p.get_edgecolor()).upper() == colour]
            medians, drawn_edges, _ = stairs.get_data()
            assert tuple(drawn_edges) == edges
            for low, high, median in zip(edges[:-1], edges[1:], medians, strict=True):
                inside = [value for loss, value in points if low <= loss < high and math.isfinite(value)]
                assert median == pytest.approx(np.median(inside) if inside else math.nan, nan_ok=True)


@pytest.mark.parametrize(
    "stem, name, label, optimizer",
    [
        (
            "adam-lr1e-3-wd1e-4-probe50", "vgg_a/adam-lr1e-3-wd1e-4-seed5-probe50", VGG,
            "Adam: along the gradient, not the step that Adam takes",
        ),
        (
            "sgd-lr1e-2-wd0-momentum0.9-probe50", "vgg_a_bn/sgd-lr1e-2-wd0-seed5-momentum0.9-probe50", VGG_BN,
            "SGD with momentum 0.9: along the gradient, not the step that SGD with momentum 0.9 takes",
        ),
    ],
)  # fmt: skip
def test_probes_of_another_optimizer_say_that_the_gradient_is_not_its_step(probes, stem, name, label, optimizer):
    assert f"The probes of Santurkar et al. (2018), figure 4 ({optimizer})\n" in probes.said
    for kind, what in (
        ("probes", "Loss and gradient, down the gradient"),
        ("probes_relative", "Change of the gradient, down the gradient"),
        ("probes_eta", "Change of the gradient against the step size"),
    ):  # fmt: skip
        figure = probes.figures[f"{kind}-{stem}"]
        assert f"{what} trained with {optimizer}" in texts(figure) and legend(figure) == [label]
    losses = at_each_step(probe_rows(probes, name, "report"), "loss")
    edges = [(list(losses), [edge(of) for of in losses.values()]) for edge in (min, max)]
    same(lines(probes.figures[f"probes-{stem}"].axes[0]), edges)


def test_each_figure_of_the_probes_is_named_with_its_file(probes):
    folder = probes.results / "paper" / "figures"
    captions = {
        "probes": "The probes of Santurkar et al. (2018), figure 4 (SGD)",
        "probes_relative": "Absolute and relative change of the gradient, and the cosine (SGD)",
        "probes_eta": "Change of the gradient against the step size, at an early and a late step (SGD)",
        "probes_matched": "The probes at equal loss: ranges against L(w), with medians (SGD)",
    }
    assert [line for line in probes.said.splitlines() if line.startswith(f"{folder}/")] == [
        f"{folder}/{kind}-sgd-lr1e-1-wd0.png, .svg: {caption}" for kind, caption in captions.items()
    ]


# --- The filter-normalized surface ------------------------------------------------------------------------------------

# Each file: its settings, and what the loss is for each network, linear in a and b so that every contour is known.
SURFACES = {
    "surface-2d-5x5-range0.5-50images-seed1-eval": (
        {"dims": 2, "points": 5, "range": 0.5, "images": 50, "seed": 1, "mode": "eval"},
        {"vgg_a": (2.0, 0.6, -0.25), "vgg_a_bn": (1.5, -0.3, 0.1)},
    ),
    "surface-2d-3x3-range1-60images-seed0-train": (
        {"dims": 2, "points": 3, "range": 1.0, "images": 60, "seed": 0, "mode": "train"},
        {"vgg_a": (5.0, 4.7, 0.2), "vgg_a_bn": (4.0, -0.5, 1.5)},
    ),
    "surface-1d-7-range1-60images-seed0-eval": (
        {"dims": 1, "points": 7, "range": 1.0, "images": 60, "seed": 0, "mode": "eval"},
        {"vgg_a": (1.0, 0.6, 0), "vgg_a_bn": (1.5, -0.3, 0)},
    ),
}  # fmt: skip
NOTES = {
    "surface-2d-5x5-range0.5-50images-seed1-eval": (
        "5 x 5 points, seed 1; loss on 50 training images, not augmented; eval mode: no dropout, BatchNorm with its "
        "running statistics"
    ),
    "surface-2d-3x3-range1-60images-seed0-train": (
        "3 x 3 points, seed 0; loss on 60 training images, not augmented; train mode: no dropout, BatchNorm with the "
        "statistics of up to 128 images"
    ),
    "surface-1d-7-range1-60images-seed0-eval": (
        "7 points, seed 0; loss on 60 training images, not augmented; eval mode: no dropout, BatchNorm with its "
        "running statistics"
    ),
}
PAIR = "vgg_a-vs-vgg_a_bn-adam-lr1e-3-wd1e-4-seed3"
PLANES = [stem for stem in SURFACES if "-2d-" in stem]


def axis(grid):
    half = grid["points"] // 2
    return [i / half * grid["range"] for i in range(-half, half + 1)]


def write_surface(folder, stem, grid, loss):
    """A surface file: a changes slowest. loss: at (0, 0), its slope along a and along b."""
    about = {"what": "loss at w + a d1 + b d2, filter-normalized directions (Li et al. 2018)", **grid}
    rows = [
        f"{a!r},{b!r},{loss[0] + loss[1] * a + loss[2] * b!r}"
        for a in axis(grid)
        for b in (axis(grid) if grid["dims"] == 2 else [0.0])
    ]
    text = "\n".join([f"# {json.dumps(about | {'weights_sha256': 64 * '0'})}", "a,b,loss", *rows, ""])
    (folder / f"{stem}.csv").write_text(text)


@pytest.fixture(scope="module")
def surfaces(tmp_path_factory):
    results = tmp_path_factory.mktemp("surfaces")
    for model in ("vgg_a", "vgg_a_bn"):
        folder = write(results, f"{model}/adam-lr1e-3-wd1e-4-seed3")
        for stem, (grid, losses) in SURFACES.items():
            write_surface(folder, stem, grid, losses[model])
    return drawn_by(landscape.main, [results], results)


def test_a_figure_of_a_surface_says_of_which_runs_and_how_it_was_made(surfaces):
    drawn = surfaces
    for stem, note in NOTES.items():
        mode = stem.rpartition("-")[2]
        file = f"{stem}-{PAIR}{'-contour' if stem in PLANES else ''}"
        words = texts(drawn.figures[file])
        assert f"Filter-normalized surface around the trained network ({mode} mode)" in words
        assert f"report, adam-lr1e-3-wd1e-4-seed3: {note}" in words
        caption = f"Filter-normalized surface (Li et al. 2018) of VGG-A and VGG-A + BatchNorm, {mode} mode"
        assert f"{drawn.results}/report/figures/{file}.png, .svg: {caption}\n" in drawn.said
    assert len(drawn.figures) == 3


@pytest.mark.parametrize("stem", PLANES)
def test_contours_lie_where_the_loss_has_their_level(surfaces, stem):
    """On a plane c + p a + q b interpolation is exact but for rounding; the largest difference seen was 9e-16."""
    figure = surfaces.figures[f"{stem}-{PAIR}-contour"]
    grid, losses = SURFACES[stem]
    everywhere = [c + p * a + q * b for c, p, q in losses.values() for a in axis(grid) for b in axis(grid)]
    panels = [axes for axes in figure.axes if axes.get_xlabel() == "a"]
    assert [axes.get_title() for axes in panels] == [
        f"VGG-A\nf(0, 0) = {losses['vgg_a'][0]:.3f}", f"VGG-A + BatchNorm\nf(0, 0) = {losses['vgg_a_bn'][0]:.3f}",
    ]  # fmt: skip
    assert_axes(panels[0], "a", "b")
    for axes, (c, p, q) in zip(panels, losses.values(), strict=True):
        assert axes.get_aspect() == 1
        shown = [item for item in axes.get_children() if isinstance(item, ContourSet)]
        assert sorted(item.filled for item in shown) == [False, True]
        for contours in shown:
            levels = contours.levels
            assert (levels[0], levels[-1]) == pytest.approx((min(everywhere), max(everywhere)), rel=1e-12)
            steps = np.diff(np.log(levels) if stem.endswith("train") else levels)  # there the losses span over a decade
            np.testing.assert_allclose(steps, steps[0], rtol=1e-12)
            for i, path in enumerate(contours.get_paths()):
                a, b = path.vertices.reshape(-1, 2).T
                loss = c + p * a + q * b
                low, high = levels[i], levels[i + 1] if contours.filled else levels[i]
                assert (loss >= low - 1e-12).all() and (loss <= high + 1e-12).all()
                there = [c + p * a + q * b for a in axis(grid) for b in axis(grid)]
                assert len(loss) or not (min(there) + 1e-9 < high and low < max(there) - 1e-9)
        (cross,) = axes.lines
        assert (list(cross.get_xdata()), list(cross.get_ydata())) == ([0], [0])
    (bar,) = (axes for axes in figure.axes if axes.get_ylabel() == "loss (nats)")
    for tick, label in zip(bar.get_yticks(), bar.get_yticklabels(), strict=True):
        assert label.get_text() == f"{tick:.3g}"


def test_a_line_has_the_loss_along_the_direction(surfaces):
    stem = "surface-1d-7-range1-60images-seed0-eval"
    (axes,) = surfaces.figures[f"{stem}-{PAIR}"].axes
    assert_axes(axes, "a, along the direction", "loss (nats)")
    assert legend(axes.figure) == [VGG, VGG_BN]
    a = axis(SURFACES[stem][0])
    assert lines(axes, VGG[1]) == [(a, [1.0 + 0.6 * x for x in a])]
    assert lines(axes, VGG_BN[1]) == [(a, [1.5 + -0.3 * x for x in a])]


# --- The confusion matrix ---------------------------------------------------------------------------------------------

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def test_the_confusion_matrix_has_a_row_for_each_true_class_and_a_column_for_each_prediction(tmp_path, synthetic_data):
    config = RunConfig("vgg_a", lr=1e-3, width=0.125, train_size=950, test_size=430)
    sums = json.loads((synthetic_data / "dataset.json").read_text())["sha256"]
    folder = write_run(tmp_path, config, "report", epochs=2, environment={"data_sha256": sums})
    with np.load(synthetic_data / "cifar10.npz") as arrays:
        images, true = torch.from_numpy(arrays["test_images"][:430]), arrays["test_labels"][:430]
    torch.manual_seed(0)
    model = build(config).eval()
    images = (images.permute(0, 3, 1, 2) / 255 - 0.5) / 0.5
    with torch.no_grad():
        last = [layer for layer in model.modules() if isinstance(layer, torch.nn.Linear)][-1]
        logits = model(images)  # an untrained network predicts a class or two: standardized, it predicts all
        last.weight /= logits.std(0)[:, None]
        last.bias.copy_((last.bias - logits.mean(0)) / logits.std(0))
        predicted = model(images).argmax(1).numpy()  # the two largest logits are at least 6e-4 apart
    counts = np.zeros((10, 10), int)
    for pair in zip(true, predicted, strict=True):
        counts[pair] += 1
    assert (counts != counts.T).sum() > 40
    state = {"config": asdict(config), "fingerprint": describe(model).fingerprint, "model": model.state_dict()}
    state |= {"optimizer": {}, "epochs": 2, "step": 0}
    state |= dict.fromkeys(("epoch_seconds", "train_seconds", "test_seconds"), 0.0)
    checkpoint.save(folder, state | {"losses": torch.empty(0), "correct": torch.empty(0, dtype=torch.int64)})

    words = [
        "--evaluate",
        folder,
        "--data-dir",
        synthetic_data,
        "--train-size",
        950,
        "--test-size",
        430,
        "--device",
        "cpu",
    ]
    figure = drawn_by(MyVGG.main, words, tmp_path).figures["confusion"]
    assert f"vgg_a, {folder.name}: test images by class" in texts(figure)
    axes, bar = figure.axes
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted class", "true class")
    assert bar.get_ylabel() == "share of the true class (%)"
    for labels, places in ((axes.get_xticklabels(), axes.get_xticks()), (axes.get_yticklabels(), axes.get_yticks())):
        assert [label.get_text() for label in labels] == CLASSES and list(places) == list(range(10))
    assert axes.get_xlim() == (-0.5, 9.5) and axes.get_ylim() == (9.5, -0.5)  # the first row is the upper one
    shown = {text.get_position(): text.get_text() for text in axes.texts}
    assert shown == {(p, t): str(counts[t, p]) for t in range(10) for p in range(10)}
    (image,) = axes.images
    np.testing.assert_allclose(image.get_array(), 100 * counts / counts.sum(1, keepdims=True), rtol=1e-12)
    assert image.get_clim() == (0, 100)


def test_many_seeds_are_a_band_where_90_percent_of_them_lie_and_a_bold_mean(tmp_path):
    """21 seeds that are 0 to 20 points above a line, and one that diverged; residual Inception's are all diverged."""
    line = [10.0, 30.0, 40.0]
    for seed in range(21):
        accuracy = [value + seed for value in line]
        write_run(tmp_path, "inception", "quick", seed=seed, epochs=3, test_accuracy=accuracy)
        write_run(tmp_path, "inception_res", "quick", seed=seed, epochs=3, test_accuracy=accuracy, diverged_at_step=150)
    write_run(tmp_path, "inception", "quick", seed=30, epochs=3, test_accuracy=[50, 60, 70], diverged_at_step=201)
    figures = plotted(tmp_path).figures
    (axes,) = figures["figure_01"].axes
    (band,) = axes.collections
    edges = sorted({(x, round(y, 6)) for x, y in band.get_paths()[0].vertices.tolist()})
    assert edges == [(x + 1, value + above) for x, value in enumerate(line) for above in (1, 19)]
    assert lines(axes, INCEPTION[1]) == [([2], [60]), ([1, 2, 3], [20, 40, 50])]
    assert [label for label, _ in legend(figures["figure_01"])] == ["Inception v1 (n = 21)"]
    assert one_line(texts(figures["figure_01"])[-1]).endswith("mean over n seeds, shaded: where 90% of the seeds lie")
    (axes,) = figures["figure_04"].axes
    assert [(len(x), y[0]) for x, y in lines(axes, RESIDUAL[1])] == [(1, 10), (21, 10)] and not axes.collections
    assert "and 11 more" in " ".join(texts(figures["figure_04"]))

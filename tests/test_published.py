"""The runs that come with the repository: never written to, drawn beside the user's own and told from them."""

import contextlib
import csv
import json
import shutil
import subprocess
from pathlib import Path

import matplotlib.figure
import numpy as np
import pytest
from made_up import write_run

import MyVGG
import plot_results
from cifar_lab.measures.band import band, width_ratio
from cifar_lab.measures.probes import matched_medians, probe_ranges
from cifar_lab.run_folder.reader import read_runs, report_runs
from cifar_lab.training import script

ROOT = Path(__file__).resolve().parent.parent


def test_a_fresh_clone_has_no_run_of_the_user():
    tracked = subprocess.run(["git", "ls-files", "results"], cwd=ROOT, capture_output=True, text=True).stdout.split()
    assert all(path.startswith("results/published/") for path in tracked)
    runs = [path for path in tracked if path.endswith("config.json")]
    assert len(runs) == 117  # thirteen at the report preset, 51 each at laptop and quick, two at the paper's


@pytest.mark.parametrize("results", ["results/published", "results/published/sub", "./results/report/../published", ""])
def test_training_is_refused_there(results, capsys, tmp_path):
    if not results:  # a folder of the preset that is a link
        results = tmp_path
        (tmp_path / "report").symlink_to(ROOT / "results" / "published" / "report")
    with contextlib.chdir(ROOT), pytest.raises(SystemExit) as end:
        script.run(MyVGG.main, ["--results", str(results)])
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert "came with the repository" in error and error.count("\n") == 1


@pytest.mark.parametrize(
    "preset, count, device",
    [("report", 13, "NVIDIA H100 80GB HBM3"), ("laptop", 51, "NVIDIA H200"), ("paper", 2, "NVIDIA H100 80GB HBM3")],
)
def test_the_published_runs_are_read_whole(preset, count, device):
    runs, errors = read_runs(ROOT / "results" / "published", preset)
    assert not errors and len(runs) == count
    for run in runs:
        assert run.complete and run.environment["device"] == f"cuda: {device}"
        assert (run.settings["device"], run.settings["precision"]) == ("cuda", "bf16")
        assert len(run.losses) == run.summary["steps"] == run.steps_planned


def test_published_verdicts_are_those_that_were_recomputed(tmp_path):
    """The numbers of an independent recomputation from the same logs."""
    for run in (ROOT / "results/published/report").glob("vgg*/*/"):
        (tmp_path / run.relative_to(ROOT / "results")).parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(run, tmp_path / run.relative_to(ROOT / "results"))
    assert plot_results.main([str(tmp_path), "--preset", "report"]) == 0
    assert 1e6 < (tmp_path / "report" / "report.html").stat().st_size < 3e6  # every loss of eight runs
    with open(tmp_path / "report" / "verdicts.csv", encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["claim"].startswith("bn-") and row["mean"]]
    assert {row["runs"] for row in rows} == {"published runs"}
    means = {(row["claim"], row["measure"]): float(row["mean"]) for row in rows}
    expected = {
        ("bn-band", "ratio of the mean widths, BatchNorm / plain"): 0.7177,
        ("bn-band", "share of the steps at which BatchNorm's is narrower"): 77.58,
        ("bn-band", "mean width with BatchNorm"): 0.1647,
        ("bn-band", "mean width without"): 0.2295,
        ("bn-speed", "that step with BatchNorm"): 1094,
        ("bn-speed", "that step without"): 2067,
        ("bn-band", "the same without batch noise"): 0.65,
        ("bn-band", "step after which the ratio up to there stays below 1"): 5636,
        # Counted from the first step: the referee's are the numbers of steps before.
        ("bn-speed", "steps to a loss of 1.0, fastest rate without"): 1430 + 1,
        ("bn-speed", "steps to a loss of 0.5, fastest rate without"): 6053 + 1,
        ("bn-speed", "steps to a loss of 0.2, fastest rate without"): 18_403 + 1,
        ("bn-speed", "steps to a loss of 0.1, fastest rate without"): 32_371 + 1,
        ("bn-speed", "steps to a loss of 1.0, fastest rate with BatchNorm"): 707 + 1,
        ("bn-speed", "steps to a loss of 0.5, fastest rate with BatchNorm"): 4592 + 1,
        ("bn-speed", "steps to a loss of 0.2, fastest rate with BatchNorm"): 17_532 + 1,
        ("bn-speed", "steps to a loss of 0.1, fastest rate with BatchNorm"): 37_662 + 1,
        ("bn-fluctuation", "ratio of the fluctuations at 1e-3"): 0.609 / 0.622,
        ("bn-fluctuation", "ratio of the fluctuations at 1e-4"): 0.79,
        ("bn-fluctuation", "ratio of the fluctuations at 5e-4"): 0.81,
        ("bn-fluctuation", "ratio of the fluctuations at 5e-5"): 0.80,
        ("bn-accuracy", "difference of the final test accuracies"): 1.745,
        ("bn-spikes", "relative spikes (above 2 x median), BatchNorm minus plain"): (111 - 45) / 50,
        ("bn-spikes", "absolute spikes (above median + 0.5), BatchNorm minus plain"): (1 - 2) / 50,
    }
    for measure, value in expected.items():
        rounded = 0.006 if "fluctuation" in measure[0] or "noise" in measure[1] else 0.0006
        assert means[measure] == pytest.approx(value, abs=rounded if abs(value) < 5 else 0.006), measure


def test_the_laptop_verdicts_are_those_of_their_logs():
    """Finals, the BatchNorm claims' means and an interval, computed from the CSV files by hand."""
    laptop = ROOT / "results" / "published" / "laptop"

    def column(run: str, file: str, name: str) -> np.ndarray:
        with open(laptop / run / file, encoding="utf-8", newline="") as opened:
            return np.array([float(row[name]) for row in csv.DictReader(opened)])

    def final(run: str) -> float:
        return column(run, "epochs.csv", "test_accuracy")[-4:].mean()  # a tenth of 42 epochs

    def width(network: str, seed: int) -> float:
        rates = ("1e-3", "1e-4", "5e-4", "5e-5")
        runs = [f"{network}/adam-lr{rate}-wd1e-4-seed{seed}" for rate in rates]
        return np.ptp([column(run, "steps.csv", "loss")[: 21_000 // 2] for run in runs], axis=0).mean()

    def gain(of: str, over: str) -> list[float]:
        return [final(f"{of}-seed{seed}") - final(f"{over}-seed{seed}") for seed in (0, 1, 2)]

    gains = gain("vgg_a_bn/adam-lr1e-3-wd1e-4", "vgg_a/adam-lr1e-3-wd1e-4")
    residual = gain("inception_res/adam-lr1e-4-wd0", "inception/adam-lr1e-4-wd0")
    ratios = [width("vgg_a_bn", s) / width("vgg_a", s) for s in (0, 1, 2)]
    with open(laptop / "verdicts.csv", encoding="utf-8", newline="") as file:
        rows = {(row["claim"], row["measure"]): row for row in csv.DictReader(file)}
    for claim, values in (("bn-accuracy", gains), ("residual", residual)):
        measured = rows[claim, "difference of the final test accuracies"]
        half = 4.302653 * np.std(values, ddof=1) / np.sqrt(3)  # Student's t, two degrees of freedom
        expected = [np.mean(values), np.mean(values) - half, np.mean(values) + half]
        assert [float(measured[key]) for key in ("mean", "low", "high")] == pytest.approx(expected, rel=1e-4)
    measured = rows["bn-band", "ratio of the mean widths, BatchNorm / plain"]
    assert float(measured["mean"]) == pytest.approx(np.exp(np.log(ratios).mean()), rel=1e-4)
    assert [float(value) for value in measured["values"].split()] == pytest.approx(ratios, rel=1e-3)


def test_the_ratio_of_the_widths_over_time_is_the_one_that_was_recomputed():
    found = report_runs(read_runs(ROOT / "results" / "published", "report")[0], "report")
    bn, plain = (
        band([found[f"{network}_lr{lr}"][0].losses for lr in ("0.001", "0.0001", "0.0005", "5e-05")], 50_000, 100_000)
        for network in ("vgg_a_bn", "vgg_a")
    )
    ratio = width_ratio(bn, plain)
    at = {125: 1.35, 1_000: 1.66, 2_000: 1.38, 5_000: 1.03, 10_000: 0.92, 50_000: 0.72}
    assert {t: round(float(ratio[t - 1]), 2) for t in at} == at


def test_the_probes_at_matched_losses_are_those_that_were_recomputed():
    """Where L(w) lies in [0.05, 0.2), medians with BatchNorm and without; the old grid of eight step sizes."""
    runs = {run.model: run for run in read_runs(ROOT / "results" / "published", "paper")[0]}
    pair = [runs["vgg_a_bn"], runs["vgg_a"]]
    ranges = [probe_ranges(run.probes) for run in pair]
    losses = [run.losses[of.step - 1] for run, of in zip(pair, ranges, strict=True)]
    for quantity, expected in (
        (lambda of: np.diff(of.loss)[:, 0], [0.13, 0.88]),
        (lambda of: of.relative[:, 1], [1.56, 3.51]),
        (lambda of: of.beta, [19.9, 20.0]),
    ):
        medians, counts = matched_medians([quantity(of) for of in ranges], losses, (0.05, 0.2))
        assert medians[:, 0] == pytest.approx(expected, abs=0.006 if expected[0] < 10 else 0.06)
        assert counts.tolist() == [[22], [24]]
    assert np.mean(losses[0] < losses[1]) == pytest.approx(0.954, abs=0.0006)  # BatchNorm is further in its training


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Two runs of the user's and the same two published ones, with other accuracies; what is drawn of them."""
    results = tmp_path_factory.mktemp("both")
    curves = {"": ([10, 20, 40.5], [50, 60, 71]), "published": ([11, 22, 30], [55, 65, 90.25])}
    for source, accuracies in curves.items():
        for name, accuracy in zip(("vgg_a_lr0.001", "vgg_a_bn_lr0.001"), accuracies, strict=True):
            write_run(results / source, name, "report", epochs=3, test_accuracy=accuracy, device=f"{source} device")
    before = {p: p.read_bytes() for p in (results / "published").rglob("*") if p.is_file()}
    figures = {}
    save = matplotlib.figure.Figure.savefig

    def keep(figure, file, **options):
        figures[Path(file.name).name.split(".")[1]] = figure  # .<stem>.png.<process>.tmp
        save(figure, file, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matplotlib.figure.Figure, "savefig", keep)
        assert plot_results.main([str(results)]) == 0
    return results, figures, before


def test_curves_of_both_are_in_one_figure_the_published_ones_dashed(both):
    _, figures, _ = both
    lines = {line.get_label(): line for line in figures["overview_vgg"].axes[0].lines}
    assert {label: line.get_linestyle() for label, line in lines.items()} == {
        "VGG-A": "-", "VGG-A (published)": "--", "VGG-A + BatchNorm": "-", "VGG-A + BatchNorm (published)": "--",
    }  # fmt: skip
    assert np.array_equal(lines["VGG-A"].get_ydata(), [10, 20, 40.5])
    assert np.array_equal(lines["VGG-A + BatchNorm (published)"].get_ydata(), [55, 65, 90.25])
    assert lines["VGG-A"].get_color() == lines["VGG-A (published)"].get_color()


def test_tables_tell_them_apart(both):
    results, _, before = both
    report = (results / "report" / "report.md").read_text(encoding="utf-8")
    assert "| vgg_a/adam-lr1e-3-wd1e-4-seed0 | 3 | 23.50 |" in report  # mean of 10, 20 and 40.5
    assert "| vgg_a/adam-lr1e-3-wd1e-4-seed0 (published) | 3 | 21.00 |" in report
    with open(results / "report" / "verdicts.csv", encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["claim"] == "bn-accuracy" and row["decides"] == "yes"]
    assert {row["runs"]: float(row["mean"]) for row in rows} == pytest.approx(
        {"own runs": 181 / 3 - 70.5 / 3, "published runs": 210.25 / 3 - 21}, abs=1e-4
    )
    assert "## Verdicts from the published runs" in report
    assert {p: p.read_bytes() for p in (results / "published").rglob("*") if p.is_file()} == before


def test_a_command_that_is_named_trains_outside_of_them(tmp_path, capsys):
    write_run(tmp_path / "published", "vgg_a_lr0.001", "report", epochs=3)
    write_run(tmp_path, "inception", "report", epochs=3)
    assert plot_results.main([str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "landscape band of vgg_a_bn: " in out and "landscape band of vgg_a: " not in out  # the user lacks neither
    commands = [line for line in out.splitlines() if "python My" in line]
    assert commands and all(f"--results {tmp_path}" in line for line in commands)
    assert not any("published" in line.split("--results")[1] for line in commands)
    config = next((tmp_path / "published").rglob("config.json"))
    assert json.loads(config.read_text())["preset"] == "report"

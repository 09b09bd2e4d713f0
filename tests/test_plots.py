"""plot_results.py on made-up logs: what it draws and writes, what it says is missing, and what it refuses."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from made_up import write_run

import plot_results
from cifar_lab.config import RunConfig
from cifar_lab.experiments import EXPERIMENTS, PAPER_EXPERIMENTS, command_for
from cifar_lab.figures import COLOURS, plt
from cifar_lab.runs import read_runs, report_runs
from verdicts import CLAIMS

ROOT = Path(plot_results.__file__).parent
NUMBERS = ("01", "02", "04", "05", "06", "07", "08", "09", "10")
OVERVIEWS = ("overview_inception", "overview_optimizers", "overview_vgg")
STEMS = [*(f"figure_{number}" for number in NUMBERS), *OVERVIEWS, "landscape"]


def snapshot(folder):
    """Every file below a folder, with its content."""
    return {path: path.read_bytes() for path in sorted(Path(folder).rglob("*")) if path.is_file()}


def text_of(svg):
    """All words of an SVG; the figures keep text as text."""
    return " ".join(re.findall(r"<text[^>]*>([^<]*)</text>", svg.read_text(encoding="utf-8")))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A results folder with every run of the report at the quick preset, drawn; the runs' files before; the output."""
    results = tmp_path_factory.mktemp("work") / "results"
    for name in dict.fromkeys(run for experiment in EXPERIMENTS for run in experiment.runs):
        write_run(results, name)
    before = snapshot(results)
    command = [sys.executable, "plot_results.py", str(results)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return results, before, done.stdout


@pytest.fixture
def drawn(monkeypatch):
    """Figures are caught here, by stem, instead of being saved."""
    caught = {}
    monkeypatch.setattr(plot_results, "save", lambda figure, stem: caught.update({Path(stem).name: figure}))
    yield caught
    plt.close("all")


def draw(results, stem, preset="quick"):
    """Draws one figure of a results folder."""
    figure = next(figure for figure in plot_results.FIGURES if figure.stem == stem)
    plot_results.draw(figure, report_runs(read_runs(results, preset)[0], preset), Path(stem))


def lines_of(axes):
    """(label, colour, y values) of each curve."""
    return [(line.get_label(), line.get_color(), line.get_ydata().tolist()) for line in axes.lines]


# --- What is written --------------------------------------------------------------------------------------------------


def test_every_figure_is_drawn_twice(whole):
    folder = whole[0] / "quick" / "figures"
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        f"{s}.{kind}" for s in STEMS for kind in ("png", "svg")
    )
    for stem in STEMS:
        assert (folder / f"{stem}.png").read_bytes().startswith(b"\x89PNG")


def test_nothing_else_is_touched(whole):
    results, before, _ = whole
    after = snapshot(results)
    assert {path: content for path, content in after.items() if path in before} == before
    written = {path.relative_to(results / "quick").parts[0] for path in after.keys() - before.keys()}
    assert written == {"figures", "report.md", "verdicts.csv"}


def test_report_shows_everything(whole):
    results, before, _ = whole
    folder = results / "quick"
    report = (folder / "report.md").read_text(encoding="utf-8")
    assert report.startswith("# Results at the preset `quick`\n\n- machine: cpu: made up (2 threads); Linux\n")
    assert "\n- commit: abc1234\n- seeds: 0\n- 17 runs, " in report
    images = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", report)
    assert images == [f"figures/{stem}.png" for stem in STEMS]
    assert all((folder / image).exists() for image in images)
    for link in re.findall(r"[^!]\[[^\]]+\]\(([^)]+)\)", report):
        assert (folder / link).exists()
    rows = [line.split(" | ") for line in report.splitlines() if line.startswith(("| vgg", "| inception"))]
    assert len(rows) == len([path for path in before if path.name == "config.json"]) == 17
    assert {len(row) for row in rows} == {9}
    assert [line.split("`")[1] for line in report.splitlines() if line.startswith("| `")] == [c.id for c in CLAIMS]
    assert "## Missing" not in report and "best" not in report


def test_a_row_of_the_table_of_runs(tmp_path):
    write_run(tmp_path, "inception", test_accuracy=[10, 20, 30, 40, 52.5], device="GPU | rack 3")
    assert plot_results.main([str(tmp_path)]) == 0
    row = "| inception/adam-lr1e-4-wd0-seed0 | 5 | 40.83 | 52.50 | 123,456 | 8 | 3,000 | GPU \\| rack 3 |  |"
    assert row in (tmp_path / "quick" / "report.md").read_text().splitlines()


def test_console_has_the_verdicts(whole):
    results, _, output = whole
    assert output.startswith(f"{results / 'quick'}: 17 runs, {len(STEMS)} figures in ")
    lines = output.splitlines()
    assert [line.split()[0] for line in lines[-len(CLAIMS) :]] == [claim.id for claim in CLAIMS]


def test_the_same_logs_give_the_same_bytes(whole, tmp_path, capsys):
    results, before, _ = whole
    for path, content in before.items():
        copy = tmp_path / path.relative_to(results)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(content)
    assert plot_results.main([str(tmp_path)]) == 0
    again = {path.relative_to(tmp_path): content for path, content in snapshot(tmp_path).items()}
    assert again == {path.relative_to(results): content for path, content in snapshot(results).items()}


def test_one_preset_alone(tmp_path, capsys):
    write_run(tmp_path, "vgg_a_lr0.001", "quick")
    write_run(tmp_path, "vgg_a_lr0.001", "report", epochs=3)
    assert plot_results.main([str(tmp_path), "--preset", "quick"]) == 0
    assert (tmp_path / "quick" / "report.md").exists() and not (tmp_path / "report" / "report.md").exists()
    said = capsys.readouterr().out
    assert "at the preset quick" in said and "report:" not in said
    with pytest.raises(SystemExit) as ended:
        plot_results.main([str(tmp_path), "--preset", "laptop"])
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"plot_results.py: --preset laptop: {tmp_path} has no run folders of it\n"


def test_presets_are_drawn_apart(tmp_path, capsys):
    write_run(tmp_path, "inception", "quick")
    write_run(tmp_path, "inception", "laptop", epochs=2)
    assert plot_results.main([str(tmp_path)]) == 0
    for preset, width in (("quick", "0.125"), ("laptop", "0.25")):
        text = text_of(tmp_path / preset / "figures" / "figure_01.svg")
        assert f"preset {preset}, width {width}, " in text


# --- What a figure shows ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stem", STEMS[:-1])
def test_figures_are_labelled(whole, stem):
    text = text_of(whole[0] / "quick" / "figures" / f"{stem}.svg")
    figure = next(figure for figure in plot_results.FIGURES if figure.stem == stem)
    assert figure.title in text and "epoch" in text
    for quantity in figure.quantities:
        assert plot_results.QUANTITIES[quantity] in text
    for words in ("preset quick", "width 0.125", "5,000 training images", "5 epochs", "batch 100", "seed 0", "made up"):
        assert words in text
    rate, decay = ("1e-3", "1e-4") if "VGG" in figure.title else ("1e-4", "1e-4" if "L2" in figure.title else "0")
    assert f"learning rate {rate}, weight" in text
    assert re.search(rf"weight\s+decay {decay},", text)


def test_one_seed_is_a_line(tmp_path, drawn):
    write_run(tmp_path, "inception", test_accuracy=[10, 20, 30, 40, 50], train_loss=[2, 1.5, 1, 0.8, 0.7])
    draw(tmp_path, "figure_01")
    draw(tmp_path, "figure_02")
    assert lines_of(drawn["figure_01"].axes[0]) == [("Inception v1", COLOURS["inception"], [10, 20, 30, 40, 50])]
    assert lines_of(drawn["figure_02"].axes[0]) == [("Inception v1", COLOURS["inception"], [2, 1.5, 1, 0.8, 0.7])]
    assert drawn["figure_02"].axes[0].get_ylim()[0] == 0


def test_several_seeds_are_a_mean_and_thin_lines(tmp_path, drawn):
    for seed in range(3):
        write_run(tmp_path, "inception", seed=seed, test_accuracy=[10 + seed, 20, 30 + 2 * seed, 40, 50])
    draw(tmp_path, "figure_01")
    *thin, mean = lines_of(drawn["figure_01"].axes[0])
    assert mean[0] == "Inception v1 (n = 3)"
    assert mean[2] == [11, 20, 32, 40, 50]
    assert [curve[2][0] for curve in thin] == [10, 11, 12]


def test_an_overview_compares(tmp_path, drawn):
    for optimizer in ("adam", "adamw", "rmsprop"):
        write_run(tmp_path, f"inception_res_{optimizer}")
    draw(tmp_path, "overview_optimizers")
    for axes in drawn["overview_optimizers"].axes:
        assert [line[:2] for line in lines_of(axes)] == [
            ("Adam", COLOURS["adam"]), ("AdamW", COLOURS["adamw"]), ("RMSprop", COLOURS["rmsprop"]),
        ]  # fmt: skip


def test_a_run_in_progress_is_labelled(tmp_path, drawn):
    write_run(tmp_path, "inception", test_accuracy=[10, 20, 30], complete=False)
    write_run(tmp_path, "inception", seed=1, test_accuracy=[20, 30, 40, 50, 60])
    draw(tmp_path, "figure_01")
    assert "Inception v1, seed 0, in progress: 3 of 5 epochs" in drawn["figure_01"].get_suptitle()
    assert lines_of(drawn["figure_01"].axes[0])[-1][2] == [15, 25, 35]


def test_a_diverged_run_is_labelled_and_not_averaged(tmp_path, drawn):
    write_run(tmp_path, "inception", test_accuracy=[20, 30, 40, 50, 60])
    write_run(tmp_path, "inception", seed=1, test_accuracy=[10, 10], diverged_at_step=120)
    draw(tmp_path, "figure_01")
    assert "Inception v1, seed 1, diverged at step 120" in drawn["figure_01"].get_suptitle()
    assert lines_of(drawn["figure_01"].axes[0])[-1][::2] == ("Inception v1 (n = 1)", [20, 30, 40, 50, 60])


@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize("stem", STEMS[:-1])
def test_words_lie_inside_the_page_and_off_the_curves(tmp_path, drawn, stem, seeds):
    figure = next(figure for figure in plot_results.FIGURES if figure.stem == stem)
    for name in figure.runs:
        for seed in range(seeds):
            write_run(tmp_path, name, seed=seed, device="cpu: AMD EPYC 7763 64-Core Processor (2 threads)")
    draw(tmp_path, stem)
    canvas = drawn[stem]
    canvas.draw_without_rendering()
    page = canvas.bbox.padded(1)
    legend = canvas.axes[0].get_legend().get_window_extent()
    title = canvas._suptitle.get_window_extent()
    small = canvas._supxlabel.get_window_extent()
    for box in (legend, title, small):
        assert page.x0 <= box.x0 and box.x1 <= page.x1 and page.y0 <= box.y0 and box.y1 <= page.y1
    assert not legend.overlaps(title)
    assert not any(box.overlaps(axes.get_window_extent()) for box in (title, small) for axes in canvas.axes)
    assert legend.y0 >= canvas.axes[0].get_window_extent().y1


# --- What is missing --------------------------------------------------------------------------------------------------


def test_missing_figures_are_listed_with_their_command(tmp_path, capsys):
    write_run(tmp_path, "inception")
    assert plot_results.main([str(tmp_path)]) == 0
    output, report = capsys.readouterr().out, (tmp_path / "quick" / "report.md").read_text()
    folder = tmp_path / "quick" / "figures"
    assert sorted(path.name for path in folder.iterdir()) == [
        "figure_01.png",
        "figure_01.svg",
        "figure_02.png",
        "figure_02.svg",
    ]
    command = command_for("inception_res", "quick", results=tmp_path)
    for title in ("Figure 4: residual Inception, test accuracy", "Inception v1, plain and residual"):
        assert f"  missing: {title}: {command}\n" in output
        assert f"- {title}: `{command}`\n" in report
    assert output.count("  missing: ") >= 11
    assert "landscape band" in report and command_for("vgg_a_bn_lr0.001", "quick", results=tmp_path) in report


def test_missing_runs_are_asked_for_at_the_seeds_that_are_there(tmp_path, capsys):
    for seed in (0, 1, 2):
        write_run(tmp_path, "inception", seed=seed)
    plot_results.main([str(tmp_path)])
    assert (
        f"missing: Figure 10: VGG-A, test accuracy: {command_for('vgg_a_lr0.001', 'quick', (0, 1, 2), tmp_path)}"
        in capsys.readouterr().out
    )


def test_before_its_first_epoch_a_run_has_no_figure(tmp_path, capsys):
    write_run(tmp_path, "inception", test_accuracy=[], complete=False)
    write_run(tmp_path, "inception_res", diverged_at_step=3)
    assert plot_results.main([str(tmp_path)]) == 0
    output = capsys.readouterr().out
    assert (
        f"missing: Figure 1: Inception v1, test accuracy: {command_for('inception', 'quick', results=tmp_path)}"
        in output
    )
    assert (
        "missing: Figure 4: residual Inception, test accuracy: nothing to draw: diverged in the first epoch" in output
    )
    report = (tmp_path / "quick" / "report.md").read_text()
    assert "| in progress: 0 of 5 epochs |" in report
    assert "| 0 of 5 | - | - | 123,456 | 0 | 3,000 | cpu: made up (2 threads) | diverged at step 3 |" in report


def test_runs_with_other_settings_are_in_the_table_alone(tmp_path, capsys):
    write_run(tmp_path, RunConfig("inception", width=0.5, weight_decay=0.0, train_size=5_000, test_size=2_000))
    assert plot_results.main([str(tmp_path)]) == 0
    assert "inception/adam-lr1e-4-wd0-seed0-width0.5" in (tmp_path / "quick" / "report.md").read_text()
    assert not (tmp_path / "quick" / "figures" / "figure_01.png").exists()


def test_a_paper_preset_has_no_figures_of_the_report(tmp_path, capsys):
    etas = np.linspace(0.05, 0.4, 8)
    probes = [(step, eta, 2 + eta, 1.5, eta, 1 - eta, 0.7) for step in (10, 20, 30) for eta in etas.tolist()]
    for experiment in PAPER_EXPERIMENTS:
        write_run(tmp_path, experiment.runs[0], "paper-quick", epochs=2, probes=probes)
    assert plot_results.main([str(tmp_path)]) == 0
    folder = tmp_path / "paper-quick"
    assert sorted(path.name for path in folder.iterdir()) == ["figures", "report.md", "vgg_a", "vgg_a_bn"]
    figures = {path.name for path in (folder / "figures").iterdir()}
    assert figures and all(name.startswith("probes") for name in figures)
    report = (folder / "report.md").read_text()
    assert "## Verdicts" not in report and report.count("\n| vgg_a") == 2
    assert "missing" not in capsys.readouterr().out


# --- What is refused --------------------------------------------------------------------------------------------------


def refusal(capsys, *argv):
    """The one line on standard error of a command line that ends with status 2."""
    with pytest.raises(SystemExit) as stop:
        plot_results.main(argv)
    assert stop.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    return captured.err


def test_no_results_folder(tmp_path, capsys):
    line = refusal(capsys, str(tmp_path / "nowhere"))
    assert line == f"plot_results.py: {tmp_path / 'nowhere'}: there is no such folder\n"
    (tmp_path / "file").write_text("")
    assert refusal(capsys, str(tmp_path / "file")).endswith("file: there is no such folder\n")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_an_empty_results_folder(tmp_path, capsys):
    assert "no run folders; python MyVGG.py and python MyFramework.py make them" in refusal(capsys, str(tmp_path))
    (tmp_path / "quick" / "inception").mkdir(parents=True)
    refusal(capsys, str(tmp_path))
    assert not snapshot(tmp_path)


@pytest.mark.parametrize(("depth", "what"), [(1, "a preset's folder"), (2, "a model's folder"), (3, "a run's folder")])
def test_a_folder_inside_the_results_folder(tmp_path, capsys, depth, what):
    folder = write_run(tmp_path, "inception")
    before = snapshot(tmp_path)
    given = Path(tmp_path, *folder.relative_to(tmp_path).parts[:depth])
    assert (
        refusal(capsys, str(given)) == f"plot_results.py: {given}: this is {what}; the results folder is {tmp_path}\n"
    )
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("argv", [["--draw"], ["a", "b"], [""], ["a\0b"]])
def test_a_wrong_command_line(capsys, argv):
    assert refusal(capsys, *argv).startswith("plot_results.py: ")


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("steps.csv", "step,loss\n1,2.3\n2,x\n", "steps.csv:3: loss is not a finite number: 'x'"),
        ("config.json", "{\n", "config.json:2: not JSON: Expecting property name enclosed in double quotes"),
        ("summary.json", "[]", "summary.json: not a JSON object"),
    ],
)
def test_a_corrupt_file_is_named_and_the_other_runs_are_drawn(tmp_path, capsys, name, content, complaint):
    write_run(tmp_path, "inception")
    bad = write_run(tmp_path, "inception_res")
    (bad / name).write_text(content)
    assert plot_results.main([str(tmp_path)]) == 1
    assert capsys.readouterr().err == f"{bad.joinpath(complaint)}\n"
    assert (tmp_path / "quick" / "figures" / "figure_01.png").exists()
    report = (tmp_path / "quick" / "report.md").read_text()
    assert f"## Not readable\n\n- `{bad.joinpath(complaint)}`\n" in report
    assert "Figure 4: residual Inception, test accuracy: `python " in report


def test_nothing_but_corrupt_files(tmp_path, capsys):
    folder = write_run(tmp_path, "inception")
    (folder / "config.json").write_text("")
    before = snapshot(tmp_path)
    assert plot_results.main([str(tmp_path)]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert snapshot(tmp_path) == before


def test_a_folder_that_is_no_preset(tmp_path, capsys):
    write_run(tmp_path, "inception")
    shutil.copytree(tmp_path / "quick", tmp_path / "mine")
    assert plot_results.main([str(tmp_path)]) == 1
    assert "these settings belong to the folder " in capsys.readouterr().err
    assert (tmp_path / "quick" / "report.md").exists() and not (tmp_path / "mine" / "report.md").exists()


def test_a_place_that_cannot_be_written_to(tmp_path, capsys):
    write_run(tmp_path, "inception")
    (tmp_path / "quick" / "figures").write_text("a file in the folder's place")
    with pytest.raises(SystemExit) as stop:
        plot_results.main([str(tmp_path)])
    assert stop.value.code == 1
    assert capsys.readouterr().err == f"plot_results.py: {tmp_path / 'quick' / 'figures'}: File exists\n"

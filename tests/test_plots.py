"""plot_results.py on made-up logs: what it draws and writes, what it says is missing, and what it refuses."""

import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made_up import write_run

import plot_results
from cifar_lab import settings
from cifar_lab.experiments import config_of
from cifar_lab.figures import curves
from cifar_lab.figures.style import Look
from cifar_lab.run_folder import files
from cifar_lab.run_folder.reader import read_run

ROOT = Path(plot_results.__file__).parent
NUMBERS = ("01", "02", "04", "05", "06", "07", "08", "09", "10")
OVERVIEWS = ("overview_inception", "overview_optimizers", "overview_vgg")
OTHERS = (  # of runs that no figure of the report shows
    "overview-model-adam-lr1e-3-wd1e-4", "overview-optimizer-inception_res-lr1e-2-wd1e-4",
    "overview-lr-inception_res-adam-wd1e-4", "overview-residual_scale-inception_res-adam-lr1e-4-wd0",
)  # fmt: skip
BANDS = ("landscape", "landscape_ratio", "landscape-inception_res-adam-wd1e-4")
STEMS = [*(f"figure_{number}" for number in NUMBERS), *OVERVIEWS, *OTHERS, *BANDS]
RUNS = (
    "inception", "inception_res", "inception_res_adam", "inception_res_adamw", "inception_res_rmsprop",
    "inception_res_unscaled", "large_lr_adam_1e-3", "large_lr_adam_1e-2", "large_lr_sgd_momentum",
    "vgg_a_lr0.001", "vgg_a_lr0.0001", "vgg_a_lr0.0005", "vgg_a_lr5e-05",
    "vgg_a_bn_lr0.001", "vgg_a_bn_lr0.0001", "vgg_a_bn_lr0.0005", "vgg_a_bn_lr5e-05",
)  # fmt: skip
CLAIMS = [
    "level", "residual", "scaling", "overfitting", "optimizers", "l2", "large-lr", "bn-accuracy", "bn-fluctuation",
    "bn-speed", "bn-band", "bn-spikes",
]  # fmt: skip
RESIDUAL_COMMAND = (
    "python MyFramework.py --model inception_res --optimizer adam --weight-decay 0 --preset quick --results {}"
)


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
    for name in RUNS:
        write_run(results, name)
    before = snapshot(results)
    command = [sys.executable, "plot_results.py", str(results)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return results, before, done.stdout


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
    assert written == {"figures", "report.html", "report.md", "verdicts.csv"}


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
    assert [line.split("`")[1] for line in report.splitlines() if line.startswith("| `")] == CLAIMS
    assert "## Missing" not in report and "best" not in report


def test_a_row_of_the_table_of_runs(tmp_path):
    write_run(tmp_path, "inception", test_accuracy=[10, 20, 30, 40, 52.5], device="GPU | rack 3")
    assert plot_results.main([str(tmp_path)]) == 0
    row = "| inception/adam-lr1e-4-wd0-seed0 | 5 | 40.83 | 52.50 | 123,456 | 8 | 3,000 | GPU \\| rack 3 |  |"
    assert row in (tmp_path / "quick" / "report.md").read_text().splitlines()


def test_the_runs_stand_in_the_order_of_the_reports_list(whole):
    report = (whole[0] / "quick" / "report.md").read_text(encoding="utf-8")
    runs = [line.split(" | ")[0].removeprefix("| ") for line in report.splitlines() if line.startswith(("| v", "| i"))]
    rates = [f"adam-lr{lr}-wd1e-4-seed0" for lr in ("1e-3", "1e-4", "5e-4", "5e-5")]
    assert runs[:8] == [f"{model}/{rate}" for model in ("vgg_a", "vgg_a_bn") for rate in rates]
    assert runs[8] == "inception/adam-lr1e-4-wd0-seed0" and runs[-1].startswith("inception_res/sgd")


@pytest.mark.parametrize("epochs, marker", [(3, "o"), (20, "o"), (21, "None")])
def test_the_epochs_of_a_short_run_are_marked(epochs, marker, tmp_path):
    run = read_run(write_run(tmp_path, "inception", epochs=epochs))
    figure = curves.draw("title", ("test_accuracy",), [curves.Curve(Look("inception", "label", "#000000"), [run])])
    assert [line.get_marker() for line in figure.axes[0].lines] == [marker]


def test_console_has_the_verdicts(whole):
    results, _, output = whole
    assert output.startswith(f"{results / 'quick'}: 17 runs, {len(STEMS)} figures in ")
    lines = output.splitlines()
    assert [line.split()[0] for line in lines[-len(CLAIMS) :]] == CLAIMS


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
    write_run(tmp_path, "inception", "quick")
    write_run(tmp_path, "inception", "report", epochs=3)
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


# --- What is missing --------------------------------------------------------------------------------------------------


def test_a_run_that_is_missing_is_asked_for_with_its_command(tmp_path, capsys):
    write_run(tmp_path, "inception")
    assert plot_results.main([str(tmp_path)]) == 0
    files = sorted(path.name for path in (tmp_path / "quick" / "figures").iterdir())
    assert files == ["figure_01.png", "figure_01.svg", "figure_02.png", "figure_02.svg"]
    command = RESIDUAL_COMMAND.format(tmp_path)
    output = capsys.readouterr().out
    for title in ("Figure 4: residual Inception, test accuracy", "Inception v1, plain and residual"):
        assert f"  missing: {title}: {command}\n" in output
    assert output.count("  missing: ") == 12  # seven figures, three overviews, two bands


def test_before_its_first_epoch_a_run_has_no_figure(tmp_path, capsys):
    write_run(tmp_path, "inception", test_accuracy=[], complete=False)
    write_run(tmp_path, "inception_res", diverged_at_step=3)
    assert plot_results.main([str(tmp_path)]) == 0
    output = capsys.readouterr().out
    command = "python MyFramework.py --model inception --optimizer adam --weight-decay 0 --preset quick"
    assert f"missing: Figure 1: Inception v1, test accuracy: {command} --results {tmp_path}\n" in output
    assert (
        "missing: Figure 4: residual Inception, test accuracy: nothing to draw: diverged in the first epoch" in output
    )
    report = (tmp_path / "quick" / "report.md").read_text()
    assert "| in progress: 0 of 5 epochs |" in report
    assert "| 0 of 5 | - | - | 123,456 | 0 | 3,000 | cpu: made up (2 threads) | diverged at step 3 |" in report


def test_runs_with_other_settings_are_in_the_table_and_in_no_figure_of_the_report(tmp_path, capsys):
    write_run(tmp_path, replace(config_of("inception", "quick"), width=0.5))
    assert plot_results.main([str(tmp_path)]) == 0
    report = (tmp_path / "quick" / "report.md").read_text()
    assert "inception/adam-lr1e-4-wd0-seed0-width0.5" in report
    figures = {path.name for path in (tmp_path / "quick" / "figures").iterdir()}
    assert figures == {f"overview-inception-adam-lr1e-4-wd0-width0.5.{kind}" for kind in ("png", "svg")}
    command = f"python -m cifar_lab.reproduce quick --results {tmp_path}"
    output = capsys.readouterr().out
    assert f"  missing: the report's own figures and claims: {command}\n" in output
    assert output.count("missing") == 1 and "not run" not in output + report


def test_a_paper_preset_has_no_figures_of_the_report(tmp_path, capsys):
    etas = np.linspace(0.05, 0.4, 8)
    probes = [(step, eta, 2 + eta, 1.5, eta, 1 - eta, 0.7) for step in (10, 20, 30) for eta in etas.tolist()]
    for name in ("paper_vgg_a", "paper_vgg_a_bn"):
        write_run(tmp_path, name, "paper-quick", epochs=2, probes=probes)
    assert plot_results.main([str(tmp_path)]) == 0
    folder = tmp_path / "paper-quick"
    written = sorted(path.name for path in folder.iterdir())
    assert written == ["figures", "report.html", "report.md", "vgg_a", "vgg_a_bn"]
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
    into = f"--results {tmp_path}"
    create = f"no run folders; to create them, run python MyVGG.py {into} or python MyFramework.py {into}\n"
    assert refusal(capsys, str(tmp_path)).endswith(create)
    (tmp_path / "quick" / "inception").mkdir(parents=True)
    refusal(capsys, str(tmp_path))
    assert not snapshot(tmp_path)


@pytest.mark.parametrize(("depth", "what"), [(1, "a preset's folder"), (2, "a model's folder")])
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
    assert stop.value.code == 74
    assert capsys.readouterr().err == f"plot_results.py: {tmp_path / 'quick' / 'figures'}: File exists\n"


def counted(patch, owner, name):
    """Replaces a function by one that also notes its first argument; returns the notes."""
    function, notes = getattr(owner, name), []
    patch.setattr(owner, name, lambda first, *more, **named: (notes.append(first), function(first, *more, **named))[1])
    return notes


def test_work_grows_no_faster_than_the_number_of_seeds(tmp_path, monkeypatch, capsys):
    """Every file is opened once, and the names of folders are worked out as often for each further seed."""
    names = ("vgg_a_lr0.001", "vgg_a_bn_lr0.001", "inception_res")
    opened, named, more = counted(monkeypatch, files, "open_regular"), counted(monkeypatch, settings, "run_name"), []
    for seeds in (2, 4, 8):
        for name in names:
            for seed in range(seeds):
                write_run(tmp_path / str(seeds), name, seed=seed)
        opened.clear(), named.clear()
        assert plot_results.main([str(tmp_path / str(seeds))]) == 0
        logs = [path for path in opened if path.name in ("config.json", "summary.json", "epochs.csv", "steps.csv")]
        assert len(logs) == len(set(logs)) == 4 * len(names) * seeds
        more.append(len(named))
    assert more[2] - more[1] == 2 * (more[1] - more[0]) <= 4 * 4 * len(names)


def test_thousands_of_seeds_are_named_by_the_first_and_the_last(tmp_path, capsys):
    for seed in range(12):
        write_run(tmp_path, "inception", seed=seed)
    for seed in (*range(11), 40):
        write_run(tmp_path, "inception_res", seed=seed, complete=seed < 5)
    assert plot_results.main([str(tmp_path)]) == 0
    printed = text_of(tmp_path / "quick" / "figures" / "figure_01.svg")
    assert "seed 0 to 11," in printed
    assert "seed 0 to 40 (12 of them)," in text_of(tmp_path / "quick" / "figures" / "figure_04.svg")
    assert "--preset quick --seed 0 1 2 3 4 5 6 7 8 9 --results" in capsys.readouterr().out

"""Draws the report's figures from a results folder and writes its tables and verdicts. Trains nothing.

    python plot_results.py results/
    python plot_results.py results/ --preset quick

For each preset found there: results/<preset>/figures/ (PNG and SVG), report.md, which shows everything, and
verdicts.csv. A figure whose runs are missing is listed with the command that trains them. Runs may still be training.
"""

import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

import verdicts
from cifar_lab import files
from cifar_lab.config import PAPER_PRESETS, PRESETS, number
from cifar_lab.experiments import command_for
from cifar_lab.figures import COLOURS, LABELS, plt, save, small_print
from cifar_lab.run_files import RunFileError
from cifar_lab.runs import Run, find_run_folders, read_runs, report_runs, results_folder
from cifar_lab.settings import Parser, choice, fail, path
from landscape_plots import Figures, all_figures

EPOCHS_WITH_MARKERS = 20  # up to here an epoch is marked, so that a line shows how few points it joins


# --- Figures ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Figure:
    """A figure of curves over the epochs: a panel a quantity, a curve a run."""

    stem: str
    title: str
    quantities: tuple[str, ...]  # columns of epochs.csv
    runs: tuple[str, ...]  # names in `experiments.RUNS`


QUANTITIES = {"test_accuracy": "test accuracy (%)", "train_loss": "training loss (nats)"}
ACCURACY, LOSS = ("test_accuracy",), ("train_loss",)
ADAM, ADAMW, RMSPROP = OPTIMIZER_RUNS = "inception_res_adam", "inception_res_adamw", "inception_res_rmsprop"
VGG, VGG_BN = "vgg_a_lr0.001", "vgg_a_bn_lr0.001"

FIGURES = (
    Figure("figure_01", "Figure 1: Inception v1, test accuracy", ACCURACY, ("inception",)),
    Figure("figure_02", "Figure 2: Inception v1, training loss", LOSS, ("inception",)),
    Figure("figure_04", "Figure 4: residual Inception, test accuracy", ACCURACY, ("inception_res",)),
    Figure("figure_05", "Figure 5: residual Inception, training loss", LOSS, ("inception_res",)),
    Figure("figure_06", "Figure 6: residual Inception with L2, Adam, test accuracy", ACCURACY, (ADAM,)),
    Figure("figure_07", "Figure 7: residual Inception with L2, AdamW, test accuracy", ACCURACY, (ADAMW,)),
    Figure("figure_08", "Figure 8: residual Inception with L2, RMSprop, test accuracy", ACCURACY, (RMSPROP,)),
    Figure("figure_09", "Figure 9: VGG-A with BatchNorm, test accuracy", ACCURACY, (VGG_BN,)),
    Figure("figure_10", "Figure 10: VGG-A, test accuracy", ACCURACY, (VGG,)),
    Figure("overview_inception", "Inception v1, plain and residual", ACCURACY + LOSS, ("inception", "inception_res")),
    Figure("overview_optimizers", "Residual Inception with L2, three optimizers", ACCURACY + LOSS, OPTIMIZER_RUNS),
    Figure("overview_vgg", "VGG-A with and without BatchNorm", ACCURACY + LOSS, (VGG, VGG_BN)),
)


def draw(figure: Figure, found: Mapping[str, Mapping[int, Run]], stem: Path) -> None:
    """Draws a figure to `<stem>.png` and `<stem>.svg`. found: the figure's runs, by their name and their seed."""
    wide = len(figure.quantities) > 1
    canvas, panels = plt.subplots(1, len(figure.quantities), figsize=(9.6, 4.2) if wide else None, squeeze=False)
    for axes, quantity in zip(panels[0], figure.quantities, strict=True):
        for name in figure.runs:
            _draw_seeds(axes, quantity, list(found[name].values()), _key(name, found))
        axes.set(xlabel="epoch", ylabel=QUANTITIES[quantity])
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if quantity == "train_loss":
            axes.set_ylim(bottom=0)
    # Above the axes no curve can run into it; one legend serves both panels.
    style = {"borderaxespad": 0.2, "columnspacing": 1.0, "handlelength": 1.2, "fontsize": 9}
    panels[0][0].legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=len(figure.runs), **style)
    states = [
        f"{LABELS[_key(name, found)]}, seed {seed}, {_state(run)}"
        for name in figure.runs
        for seed, run in found[name].items()
        if _state(run)
    ]
    canvas.suptitle("\n".join([figure.title, *textwrap.wrap("; ".join(states), 110 if wide else 72)]), fontsize=11)
    runs = [run for name in figure.runs for run in found[name].values()]
    text = settings_text(runs)
    if len(runs) > len(figure.runs):
        text += "; bold: mean over n seeds, thin: each seed"
    small_print(canvas, textwrap.fill(text, 165 if wide else 108))
    save(canvas, stem)


def _key(name: str, found: Mapping[str, Mapping[int, Run]]) -> str:
    """What a curve is told apart by: its key in `COLOURS` and `LABELS`."""
    run = next(iter(found[name].values()))
    return run.settings["optimizer"] if name in OPTIMIZER_RUNS else run.model


def _draw_seeds(axes: Axes, quantity: str, runs: Sequence[Run], key: str) -> None:
    """The curve of each seed and, with several, the mean of those that did not diverge, as far as all of them go."""
    curves = [run.epochs[quantity] for run in runs]
    averaged = [c for c, run in zip(curves, runs, strict=True) if len(c) and run.diverged_at_step is None]
    several = len(runs) > 1
    for i, (curve, run) in enumerate(zip(curves, runs, strict=True)):
        label = LABELS[key] if i == 0 and not (several and averaged) else None
        _draw_curve(axes, curve, key, label, **({"linewidth": 0.8, "alpha": 0.5} if several else {}))
        if run.diverged_at_step is not None and len(curve):
            axes.plot(len(curve), curve[-1], "x", color=COLOURS[key], markersize=8)
    if several and averaged:
        mean = np.mean([curve[: min(map(len, averaged))] for curve in averaged], axis=0)
        _draw_curve(axes, mean, key, f"{LABELS[key]} (n = {len(averaged)})", linewidth=1.8)


def _draw_curve(axes: Axes, curve: np.ndarray, key: str, label: str | None, **style: float) -> None:
    marker = "o" if len(curve) <= EPOCHS_WITH_MARKERS else None
    axes.plot(
        np.arange(1, len(curve) + 1), curve, color=COLOURS[key], label=label, marker=marker, markersize=3, **style
    )


def _state(run: Run) -> str:
    """What a reader must know of a run that is not whole; empty where it is."""
    if run.diverged_at_step is not None:
        return f"diverged at step {run.diverged_at_step:,}"
    return "" if run.complete else f"in progress: {run.epochs_done} of {run.epochs_planned} epochs"


def settings_text(runs: Sequence[Run]) -> str:
    """Preset, settings, seeds and device in one line; a setting in which the runs differ with each of its values."""

    def each(form: Callable[[Run], str]) -> str:
        return " / ".join(dict.fromkeys(map(form, runs)))

    words = [
        f"preset {each(lambda r: r.preset)}",
        f"width {each(lambda r: format(r.settings['width'], 'g'))}",
        f"{each(lambda r: format(r.settings['train_size'], ','))} training images",
        f"{each(lambda r: str(r.epochs_planned))} epochs",
        f"batch {each(lambda r: str(r.settings['batch_size']))}",
        each(lambda r: LABELS.get(r.settings["optimizer"], r.settings["optimizer"])),
        f"learning rate {each(lambda r: number(r.settings['lr']))}",
        f"weight decay {each(lambda r: number(r.settings['weight_decay']))}",
        f"seed {_seeds(runs)}",
        each(lambda r: r.environment["device"] or "device not known"),
        each(lambda r: r.environment["precision"] or "precision not known"),
    ]
    return ", ".join(words)


def draw_figures(results: Path, preset: str, runs: Sequence[Run]) -> Figures:
    """Every figure that a preset's runs allow, into `<results>/<preset>/figures/`."""
    figures, found = Figures(), report_runs(runs, preset)
    seeds = tuple(sorted({run.seed for run in runs}))
    for figure in FIGURES if preset not in PAPER_PRESETS else ():
        runs_of = {name: list(found.get(name, {}).values()) for name in figure.runs}
        # Before the end of its first epoch a run has nothing to show; if it diverged there, it never will.
        without = [name for name, of in runs_of.items() if not any(run.epochs_done or run.complete for run in of)]
        if without:
            commands = dict.fromkeys(command_for(name, preset, seeds, results) for name in without)
            figures.missing.append((figure.title, " && ".join(commands)))
        elif not any(run.epochs_done for of in runs_of.values() for run in of):
            figures.missing.append((figure.title, "nothing to draw: diverged in the first epoch"))
        else:
            stem = results / preset / "figures" / figure.stem
            draw(figure, found, stem)
            figures.drawn.append((stem, figure.title))
    landscape = all_figures(results, preset, runs)
    figures.drawn += landscape.drawn
    figures.missing += landscape.missing
    figures.errors += landscape.errors
    return figures


# --- report.md --------------------------------------------------------------------------------------------------------

VERDICTS_ARE_READ = """\
Measured: the mean over the seeds, paired by seed, with its 95% t interval in brackets. With three or more seeds a claim
is supported or reversed where the whole interval lies on its side or on the other, else undecided; with one or two, the
side of the mean alone is told ("agrees", "disagrees"). "Final" is the mean test accuracy over the last tenth of the
epochs, at least three. Fluctuation is the standard deviation of the epoch-to-epoch differences of test accuracy over
the last half of the run, divided by the square root of 2. Spikes and bands are defined in `landscape.py`, all effects
in `verdicts.py`."""
RUNS_ARE_READ = """\
Test accuracy: final is the mean over the last tenth of the epochs, at least three; last is the last epoch's. Seconds
are training time; what runs trained in lockstep took together is shared among them."""


def report_text(preset: str, runs: Sequence[Run], figures: Figures, judged: Sequence[verdicts.Verdict]) -> str:
    """The content of report.md: machine, verdicts, figures, runs, and what is missing."""
    parts = [f"# Results at the preset `{preset}`", _provenance(runs)]
    if judged:
        parts += [
            "## Verdicts",
            verdicts.to_markdown(judged),
            VERDICTS_ARE_READ,
            "The same numbers and each seed's: [verdicts.csv](verdicts.csv).",
        ]
    parts.append("## Figures")
    for stem, caption in figures.drawn:
        image = f"figures/{stem.name}"
        parts.append(f"![{caption}]({image}.png)\n\n{caption} ([SVG]({image}.svg))")
    parts += ["## Runs", _table_of_runs(preset, runs), RUNS_ARE_READ]
    if figures.missing:
        lines = [f"- {name}: `{command}`" for name, command in figures.missing]
        parts += [
            "## Missing",
            "Figures whose runs are not there, with the command that trains them:",
            "\n".join(lines),
        ]
    if figures.errors:
        parts += ["## Not readable", "\n".join(f"- `{error}`" for error in figures.errors)]
    return "\n\n".join(parts) + "\n"


def _provenance(runs: Sequence[Run]) -> str:
    """Machine, precision, versions, commit and seeds, each with every value that occurs."""

    def each(key: str) -> str:
        return ", ".join(dict.fromkeys(run.environment[key] or "not known" for run in runs))

    minutes = sum(run.summary["train_seconds"] for run in runs if run.summary) / 60
    lines = (
        f"machine: {each('device')}; {each('platform')}",
        f"precision: {each('precision')}; PyTorch {each('torch')}; Python {each('python')}",
        f"commit: {each('commit')}",
        f"seeds: {_seeds(runs)}",
        f"{len(runs)} runs, {minutes:,.1f} minutes of training",
    )
    return "\n".join(f"- {line}" for line in lines)


def _seeds(runs: Sequence[Run]) -> str:
    return " ".join(map(str, sorted({run.seed for run in runs})))


def _table_of_runs(preset: str, runs: Sequence[Run]) -> str:
    """A row a run: the report's in the order of its experiments, then all others."""
    ordered = [run for by_seed in report_runs(runs, preset).values() for run in by_seed.values()]
    ordered += [run for run in runs if run not in ordered]
    head = ("run", "epochs", "final (%)", "last (%)", "parameters", "seconds", "images/s", "device", "")
    lines = [f"| {' | '.join(head)} |", "|---|" + "---:|" * 6 + "---|---|"]
    for run in ordered:
        accuracy, summary = run.epochs["test_accuracy"], run.summary or {}
        whole = run.complete and run.diverged_at_step is None
        cells = (
            f"{run.model}/{run.name}",
            str(run.epochs_done) if whole else f"{run.epochs_done} of {run.epochs_planned}",
            _shown(run.final_accuracy if whole else None, ".2f"),
            _shown(accuracy[-1] if len(accuracy) else None, ".2f"),
            _shown(summary.get("parameters"), ","),
            _shown(summary.get("train_seconds"), ",.0f"),
            _shown(summary.get("images_per_second"), ",.0f"),
            (run.environment["device"] or "not known").replace("|", r"\|"),
            _state(run),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _shown(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


# --- Command line -----------------------------------------------------------------------------------------------------


def parser() -> Parser:
    """The command line's flags."""
    p = Parser(prog="plot_results.py", description=__doc__.split("\n\n")[0], allow_abbrev=False)
    p.add_argument("results", nargs="?", default="results", type=path, help="the results folder (results)")
    presets = (*PRESETS, *PAPER_PRESETS)
    p.add_argument("--preset", type=choice(*presets), help=f"only this preset: {', '.join(presets)} (all there are)")
    return p


def main(argv: Sequence[str]) -> int:
    """Draws everything; returns the exit status, 1 where a file could not be read or written."""
    args = parser().parse_args(argv)
    try:
        results = results_folder(Path(args.results))
    except RunFileError as error:
        fail(f"plot_results.py: {error}")
    presets = {folder.relative_to(results).parts[0] for folder in find_run_folders(results, args.preset)}
    if not presets:
        fail(f"plot_results.py: --preset {args.preset}: {results} has no run folders of it")
    failed = False
    for preset in sorted(presets):
        runs, errors = read_runs(results, preset)
        if runs:
            try:
                errors += _plot_preset(results, preset, runs, errors)
            except OSError as error:
                fail(f"plot_results.py: {error.filename or results / preset}: {error.strerror}", 1)
        for error in errors:
            print(error, file=sys.stderr)
        failed |= bool(errors)
    return int(failed)


def _plot_preset(results: Path, preset: str, runs: Sequence[Run], errors: Sequence[RunFileError]) -> list[RunFileError]:
    """Draws and writes everything of a preset, and says so; returns the files besides `errors` that are unreadable."""
    folder = results / preset
    figures = draw_figures(results, preset, runs)
    found_while_drawing = list(figures.errors)
    figures.errors[:0] = errors
    judged = [] if preset in PAPER_PRESETS else verdicts.judge_all(runs, preset)
    files.write_text(folder / "report.md", report_text(preset, runs, figures, judged))
    print(f"{folder}: {len(runs)} runs, {len(figures.drawn)} figures in {folder / 'figures'}, {folder / 'report.md'}")
    drawn = sum(map(len, report_runs(runs, preset).values()))
    if drawn < len(runs):
        print(f"  {len(runs) - drawn} with other settings than the preset's: in the table of runs alone")
    for name, command in figures.missing:
        print(f"  missing: {name}: {command}")
    if judged:
        files.write_text(folder / "verdicts.csv", verdicts.to_csv(judged))
        print(f"verdicts at the preset {preset} (mean over the seeds, 95% interval):")
        print(verdicts.to_text(judged))
    return found_while_drawing


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        fail("interrupted", 130)

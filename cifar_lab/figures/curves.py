"""Curves over the epochs: the report's figures, and one for each set of runs that differ in one setting."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import MaxNLocator

from cifar_lab.experiments import EXPERIMENTS, command_for
from cifar_lab.figures import band, sets
from cifar_lab.figures.style import (
    MOST_LINES,
    OF_SEEDS,
    Figures,
    Look,
    View,
    heading,
    legend_above,
    legend_label,
    loss_floor,
    loss_label,
    network_label,
    off_axis,
    plt,
    seeds_of,
    set_limits,
    settings_text,
    shade,
    small_print,
)
from cifar_lab.run_folder.reader import Run, report_runs
from cifar_lab.settings import PAPER_PRESETS, PRESETS, first_of, name_of

EPOCHS_WITH_MARKERS = 20  # up to here an epoch is marked, so that a line shows how few points it joins
BLOW_UP = 4.0  # a ratio of the first epoch's loss to the largest later one from which on the first is not shown
SAME = 0.02  # of the axis: curves nearer than this at most epochs hide each other


@dataclass(frozen=True)
class Figure:
    """A figure of the report: a panel per quantity, a curve per run."""

    stem: str
    title: str
    quantities: tuple[str, ...]  # columns of epochs.csv
    runs: tuple[str, ...]  # names in `experiments.RUNS`
    named_by: str = "model"  # the setting by which its curves are called


QUANTITIES = {
    "test_accuracy": "test accuracy (%)", "train_accuracy": "training accuracy (%)", "test_loss": "test loss",
    "train_loss": "training loss",
}  # fmt: skip
ACCURACY, LOSS = ("test_accuracy",), ("train_loss",)
ADAM, ADAMW, RMSPROP = OPTIMIZER_RUNS = "inception_res_adam", "inception_res_adamw", "inception_res_rmsprop"
VGG, VGG_BN = "vgg_a_lr0.001", "vgg_a_bn_lr0.001"

FIGURES = (
    Figure("figure_01", "Figure 1: Inception v1, test accuracy", ACCURACY, ("inception",)),
    Figure("figure_02", "Figure 2: Inception v1, training loss", LOSS, ("inception",)),
    Figure("figure_04", "Figure 4: residual Inception, test accuracy", ACCURACY, ("inception_res",)),
    Figure("figure_05", "Figure 5: residual Inception, training loss", LOSS, ("inception_res",)),
    Figure("figure_06", "Figure 6: residual Inception with L2, Adam, test accuracy", ACCURACY, (ADAM,), "optimizer"),
    Figure("figure_07", "Figure 7: residual Inception with L2, AdamW, test accuracy", ACCURACY, (ADAMW,), "optimizer"),
    Figure(
        "figure_08", "Figure 8: residual Inception with L2, RMSprop, test accuracy", ACCURACY, (RMSPROP,), "optimizer"
    ),
    Figure("figure_09", "Figure 9: VGG-A with BatchNorm, test accuracy", ACCURACY, (VGG_BN,)),
    Figure("figure_10", "Figure 10: VGG-A, test accuracy", ACCURACY, (VGG,)),
    Figure("overview_inception", "Inception v1, plain and residual", ACCURACY + LOSS, ("inception", "inception_res")),
    Figure(
        "overview_optimizers",
        "Residual Inception with L2, three optimizers",
        ACCURACY + LOSS,
        OPTIMIZER_RUNS,
        "optimizer",
    ),
    Figure("overview_vgg", "VGG-A with and without BatchNorm", ACCURACY + LOSS, (VGG, VGG_BN)),
)


@dataclass(frozen=True, eq=False)
class Curve:
    """One line of a figure: the same settings at each seed."""

    look: Look
    runs: Sequence[Run]

    @property
    def style(self) -> str:
        return "--" if self.runs[0].published else "-"

    @property
    def shaded(self) -> bool:
        """Whether a band shows where the seeds lie, in place of a line for each."""
        return len(self.runs) > MOST_LINES

    def averaged(self, quantity: str) -> list[np.ndarray]:
        """The rows, one per seed, of the runs that did not diverge, as far as all of them go."""
        rows = [run.column(quantity) for run in self.runs if run.epochs_done and run.diverged_at_step is None]
        shortest = min(map(len, rows), default=0)
        return [row[:shortest] for row in rows]

    def line(self, quantity: str) -> np.ndarray:
        """The mean over the seeds; of diverged runs alone the first one's row."""
        return np.mean(self.averaged(quantity) or [self.runs[0].column(quantity)], axis=0)


def draw(title: str, quantities: Sequence[str], curves: Sequence[Curve]) -> Canvas:
    """A figure with a panel per quantity, a column of epochs.csv."""
    wide = len(quantities) > 1
    canvas, panels = plt.subplots(1, len(quantities), figsize=(9.6, 4.2) if wide else None, squeeze=False)
    covered, notes = 0, []
    runs = [run for curve in curves for run in curve.runs]
    for axes, quantity in zip(panels[0], quantities, strict=True):
        under = _under([curve.line(quantity) for curve in curves])
        covered = max(covered, *under)
        for curve, count in zip(curves, under, strict=True):
            _draw_seeds(axes, quantity, curve, 2.5 * count)
        axes.set(xlabel="epoch", ylabel=quantity_label(quantity, runs))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if quantity.endswith("loss"):
            notes += _set_loss_axis(axes, [run.column(quantity) for run in runs])
    legend_above(panels[0, 0])
    states = [f"{c.look.label}, seed {run.seed}, {run.state}" for c in curves for run in c.runs if run.state]
    heading(canvas, "\n".join([title, "; ".join(first_of(states))]))
    text = settings_text(runs)
    if len(runs) > len(curves):
        each = dict.fromkeys(OF_SEEDS[curve.shaded] for curve in curves if len(curve.runs) > 1)
        text += f"; bold: mean over n seeds, {', '.join(each)}"
    if covered:
        text += "; wide: a curve on which another one lies"
    small_print(canvas, "; ".join([text, *notes]))
    return canvas


def _set_loss_axis(axes: Axes, rows: Sequence[np.ndarray]) -> list[str]:
    """The loss axis, with room above the first epochs; returns which losses lie beyond it.

    If the first epoch of a run was a blow-up that would leave the others a strip, it is not shown.
    """
    rows = [row for row in rows if len(row)]
    if not rows:
        return []
    lowest, highest = min(map(np.min, rows)), max(map(np.max, rows))
    later = max((row[1:].max() for row in rows if len(row) > 1), default=highest)
    shown = 1.5 * later if highest > BLOW_UP * later > 0 else highest
    bottom = loss_floor(lowest, shown)
    set_limits(axes, bottom, shown + 0.05 * (shown - bottom))
    return [off_axis(highest)] if shown < highest else []


def _under(rows: Sequence[np.ndarray]) -> list[int]:
    """How many of the later curves hide each one: they are within `SAME` of the axis at nine of ten common epochs."""
    values = np.concatenate(rows)
    height = SAME * np.ptp(values) if len(values) else 0
    counts = []
    for i, row in enumerate(rows):
        common = [np.abs(row[: len(other)] - other[: len(row)]) for other in rows[i + 1 :]]
        counts.append(sum(bool(len(apart)) and np.mean(apart <= height) >= 0.9 for apart in common))
    return counts


def _draw_seeds(axes: Axes, quantity: str, curve: Curve, wider: float) -> None:
    """The curve of each seed, or a band of many, and the mean of those that did not diverge, as far as all of them go.

    Of runs that diverged alone, a band has the first one's curve.
    """
    averaged = curve.averaged(quantity)
    several = len(curve.runs) > 1
    if curve.shaded and averaged:
        rows = np.stack(averaged)
        shade(axes, np.arange(1, rows.shape[1] + 1), rows, curve.look.colour)
    for i, run in enumerate(curve.runs[: not averaged] if curve.shaded else curve.runs):
        label = curve.look.label if i == 0 and not (several and averaged) else None
        style = {"linewidth": 0.8, "alpha": 0.5} if several else {"linewidth": 1.4 + wider}
        _draw_line(axes, run.column(quantity), curve, label, **style)
    ended = [run.column(quantity) for run in curve.runs if run.diverged_at_step and run.epochs_done]
    if ended:
        axes.plot([len(row) for row in ended], [row[-1] for row in ended], "x", color=curve.look.colour, markersize=8)
    if several and averaged:
        label = f"{curve.look.label} (n = {len(averaged)})"
        _draw_line(axes, curve.line(quantity), curve, label, linewidth=1.8 + wider)


def _draw_line(axes: Axes, row: np.ndarray, curve: Curve, label: str | None, **style: float) -> None:
    marker = "o" if len(row) <= EPOCHS_WITH_MARKERS else None
    epochs = np.arange(1, len(row) + 1)
    label = None if label is None else legend_label(axes, label)
    axes.plot(epochs, row, curve.style, color=curve.look.colour, label=label, marker=marker, markersize=3, **style)


def draw_all(figures: Figures, results: Path, preset: str, runs: Sequence[Run]) -> None:
    """The report's figures that a preset's runs allow, then each set with a run of the user's that they do not show."""
    folder = results / preset / "figures"
    sources = [[run for run in runs if not run.published], [run for run in runs if run.published]]
    found = [report_runs(source, preset) for source in sources]
    shown: set[Run] = set()
    canvases: dict[Figure, Canvas] = {}
    views: dict[Figure, View] = {}
    for figure in FIGURES if preset in PRESETS else ():
        runs_of = {name: [r for f in found for r in f.get(name, {}).values()] for name in figure.runs}
        # Before the end of its first epoch a run has nothing to show; if it diverged there, it never will.
        without = [name for name, of in runs_of.items() if not any(run.epochs_done or run.complete for run in of)]
        if without:
            commands = dict.fromkeys(command_for(name, preset, seeds_of(sources[0]), results) for name in without)
            figures.lacking.append((figure.title, " && ".join(commands)))
        elif not any(run.epochs_done for of in runs_of.values() for run in of):
            figures.missing.append((figure.title, "nothing to draw: diverged in the first epoch"))
        else:
            groups = [list(f[name].values()) for name in figure.runs for f in found if name in f]
            canvases[figure] = draw(figure.title, figure.quantities, _curves(groups, (figure.named_by,)))
            views[figure] = _view(figure.quantities, groups)
            shown.update(run for group in groups for run in group)
    _equalize(canvases)
    for figure, canvas in canvases.items():
        figures.add(canvas, folder / figure.stem, figure.title, views[figure])
    for of in found:
        in_bands = [name for model, rates in band.of_report(of).items() if rates for name in band.BANDS[model]]
        names = of if preset in PAPER_PRESETS else in_bands
        shown.update(run for name in names for run in of[name].values())
    logged = [run for run in runs if run.epochs_done]
    own = [
        (name, [of.runs for of in series])
        for name, series in sets.overviews(logged)
        if any(run not in shown and not run.published for of in series for run in of.runs)
    ]
    for (name, groups), what in zip(own[: sets.MOST], _told_apart(own), strict=False):
        every = [run for group in groups for run in group]
        title = _title(what, every)
        canvas = draw(title, ACCURACY + LOSS, _curves(groups, (name,)))
        figures.add(canvas, folder / sets.file_stem(f"overview-{name}", every), title, _view(ACCURACY, groups))
    left = [name for name, _ in own[sets.MOST :]]
    figures.more(left, "overviews", "plot_results.py", "RUN_FOLDER", "RUN_FOLDER", "...")
    shown.update(run for _, groups in own for group in groups for run in group)
    others = [run for run in logged if run not in shown and not run.published]
    if others:
        draw_any(figures, folder / sets.file_stem("overview", others), others)


def _told_apart(own: Sequence[tuple[str, Sequence[Sequence[Run]]]]) -> list[str]:
    """What each overview shows: networks, by which setting, and what tells it from others of the same networks and
    setting."""
    shown, common = [], []
    for name, groups in own:
        series = [sets.Series(tuple(group)) for group in groups]
        networks = ", ".join(dict.fromkeys(network_label(run) for group in groups for run in group))
        shown.append(f"{networks} by {name_of(name)}")
        common.append((series[0], set.intersection(*(set(of.settings.items()) for of in series))))
    titles = []
    for what, (first, settings) in zip(shown, common, strict=True):
        alike = [other for same, (_, other) in zip(shown, common, strict=True) if same == what]
        apart = [name for name, value in first.settings.items() if any((name, value) not in of for of in alike)]
        told = ", ".join(first.named(name) for name in apart if (name, first.settings[name]) in settings)
        titles.append(f"{what}, {told}" if told else what)
    return titles


def draw_any(figures: Figures, stem: Path, runs: Sequence[Run]) -> None:
    """One figure of any runs, called by the settings in which they differ."""
    series = sets.series_of(runs)
    networks = ", ".join(dict.fromkeys(map(network_label, runs)))
    title = _title(networks, runs)
    curves = _curves([of.runs for of in series], sets.differing(series))
    figures.add(draw(title, ACCURACY + LOSS, curves), stem, title, _view(ACCURACY, [of.runs for of in series]))


def _view(quantities: Sequence[str], groups: Sequence[Sequence[Run]]) -> View:
    return View(quantities[0], tuple(map(tuple, groups)))


def _title(what: str, runs: Sequence[Run]) -> str:
    return f"{what[:1].upper()}{what[1:]}: {_held_out(runs)} accuracy and training loss"


def quantity_label(quantity: str, runs: Sequence[Run]) -> str:
    """What a column of epochs.csv is called on an axis."""
    label = QUANTITIES[quantity].replace("test", _held_out(runs))
    return loss_label(label, runs) if quantity.endswith("loss") else label


def _held_out(runs: Sequence[Run]) -> str:
    """What the runs are evaluated on after each epoch."""
    return " or ".join(sorted({run.held_out for run in runs}))


def _curves(groups: Sequence[Sequence[Run]], named_by: Sequence[str]) -> list[Curve]:
    return [Curve(look, group) for look, group in zip(sets.told_apart(groups, named_by), groups, strict=True)]


def _equalize(canvases: Mapping[Figure, Canvas]) -> None:
    """Gives the figures of one panel that show the same quantity in the same part of the report the same axes."""
    part = {name: experiment.script for experiment in EXPERIMENTS for name in experiment.names}
    alike: dict[tuple, list[Axes]] = {}
    for figure, canvas in canvases.items():
        if len(canvas.axes) == 1:
            alike.setdefault((part[figure.runs[0]], figure.quantities), []).append(canvas.axes[0])
    for axes in alike.values():
        for limits, change in ((Axes.get_xlim, Axes.set_xlim), (Axes.get_ylim, Axes.set_ylim)):
            low, high = zip(*map(limits, axes), strict=True)
            for panel in axes:
                change(panel, min(low), max(high))

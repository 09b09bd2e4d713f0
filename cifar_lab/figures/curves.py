"""Curves over the epochs: the report's figures, and one for each network that is not the report's."""

import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from cifar_lab.experiments import NETWORKS, command_for
from cifar_lab.figures.style import (
    OTHER_COLOURS,
    Figures,
    looks,
    optimizer_label,
    plt,
    seeds_of,
    settings_text,
    small_print,
)
from cifar_lab.optimizers import OPTIMIZERS
from cifar_lab.run_folder.reader import Run, report_runs
from cifar_lab.settings import PAPER_PRESETS

EPOCHS_WITH_MARKERS = 20  # up to here an epoch is marked, so that a line shows how few points it joins


@dataclass(frozen=True)
class Figure:
    """A figure of the report: a panel per quantity, a curve per run."""

    stem: str
    title: str
    quantities: tuple[str, ...]  # columns of epochs.csv
    runs: tuple[str, ...]  # names in `experiments.RUNS`


QUANTITIES = {
    "test_accuracy": "test accuracy (%)", "train_accuracy": "training accuracy (%)", "test_loss": "test loss (nats)",
    "train_loss": "training loss (nats)",
}  # fmt: skip
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


@dataclass(frozen=True, eq=False)
class Curve:
    """One line of a figure: the same settings at each seed."""

    label: str
    colour: str
    runs: Sequence[Run]

    @property
    def style(self) -> str:
        return "--" if self.runs[0].published else "-"


def draw(title: str, quantities: Sequence[str], curves: Sequence[Curve]):
    """A figure with a panel per quantity, a column of epochs.csv."""
    wide = len(quantities) > 1
    canvas, panels = plt.subplots(1, len(quantities), figsize=(9.6, 4.2) if wide else None, squeeze=False)
    for axes, quantity in zip(panels[0], quantities, strict=True):
        for curve in curves:
            _draw_seeds(axes, quantity, curve)
        axes.set(xlabel="epoch", ylabel=QUANTITIES[quantity])
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if quantity.endswith("loss"):
            axes.set_ylim(bottom=0)
    # Above the axes no curve can run into it; one legend serves both panels.
    style = {"borderaxespad": 0.2, "columnspacing": 1.0, "handlelength": 1.6, "fontsize": 9}
    panels[0][0].legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3 if wide else 2, **style)
    states = [f"{c.label}, seed {run.seed}, {run.state}" for c in curves for run in c.runs if run.state]
    canvas.suptitle("\n".join([title, *textwrap.wrap("; ".join(states), 110 if wide else 72)]), fontsize=11)
    runs = [run for curve in curves for run in curve.runs]
    text = settings_text(runs)
    if len(runs) > len(curves):
        text += "; bold: mean over n seeds, thin: each seed"
    small_print(canvas, textwrap.fill(text, 165 if wide else 108))
    return canvas


def _draw_seeds(axes: Axes, quantity: str, curve: Curve) -> None:
    """The curve of each seed and, with several, the mean of those that did not diverge, as far as all of them go."""
    rows = [run.epochs[quantity] for run in curve.runs]
    averaged = [r for r, run in zip(rows, curve.runs, strict=True) if len(r) and run.diverged_at_step is None]
    several = len(rows) > 1
    for i, (row, run) in enumerate(zip(rows, curve.runs, strict=True)):
        label = curve.label if i == 0 and not (several and averaged) else None
        _draw_line(axes, row, curve, label, **({"linewidth": 0.8, "alpha": 0.5} if several else {}))
        if run.diverged_at_step is not None and len(row):
            axes.plot(len(row), row[-1], "x", color=curve.colour, markersize=8)
    if several and averaged:
        mean = np.mean([row[: min(map(len, averaged))] for row in averaged], axis=0)
        _draw_line(axes, mean, curve, f"{curve.label} (n = {len(averaged)})", linewidth=1.8)


def _draw_line(axes: Axes, row: np.ndarray, curve: Curve, label: str | None, **style: float) -> None:
    marker = "o" if len(row) <= EPOCHS_WITH_MARKERS else None
    epochs = np.arange(1, len(row) + 1)
    axes.plot(epochs, row, curve.style, color=curve.colour, label=label, marker=marker, markersize=3, **style)


def draw_all(figures: Figures, results: Path, preset: str, runs: Sequence[Run]) -> None:
    """The report's figures that a preset's runs allow, then one for each network of the user's own."""
    folder = results / preset / "figures"
    sources = [[run for run in runs if not run.published], [run for run in runs if run.published]]
    found = [report_runs(source, preset) for source in sources]
    for figure in FIGURES if preset not in PAPER_PRESETS else ():
        runs_of = {name: [r for f in found for r in f.get(name, {}).values()] for name in figure.runs}
        # Before the end of its first epoch a run has nothing to show; if it diverged there, it never will.
        without = [name for name, of in runs_of.items() if not any(run.epochs_done or run.complete for run in of)]
        if without:
            commands = dict.fromkeys(command_for(name, preset, seeds_of(sources[0]), results) for name in without)
            figures.missing.append((figure.title, " && ".join(commands)))
        elif not any(run.epochs_done for of in runs_of.values() for run in of):
            figures.missing.append((figure.title, "nothing to draw: diverged in the first epoch"))
        else:
            curves = [_curve(name, f[name]) for name in figure.runs for f in found if name in f]
            figures.add(draw(figure.title, figure.quantities, curves), folder / figure.stem, figure.title)
    others: dict[str, dict[str, list[Run]]] = {}  # network, settings without the seed
    for run in runs:
        if run.model not in NETWORKS and run.epochs_done:
            others.setdefault(run.model, {}).setdefault(run.settings_name, []).append(run)
    for model, by_settings in others.items() if preset not in PAPER_PRESETS else ():
        # Not more than there are colours: the rest is in the table.
        chosen = list(by_settings.items())[: len(OTHER_COLOURS)]
        words = [re.split(r"[- ](?=[a-z(])", name) for name, _ in chosen]
        shared = set.intersection(*map(set, words)) if len(words) > 1 else set()
        curves = [
            Curve(" ".join(word for word in words[i] if word not in shared), OTHER_COLOURS[i], group)
            for i, (_, group) in enumerate(chosen)
        ]
        title = f"{looks(runs)[curves[0].runs[0]].label}: test accuracy and training loss"
        figures.add(draw(title, ACCURACY + LOSS, curves), folder / f"curves-{model}", title)


def _curve(name: str, by_seed: Mapping[int, Run]) -> Curve:
    """The named run of the report: told apart by its optimizer among the optimizers' runs, else by its network."""
    runs = list(by_seed.values())
    if name in OPTIMIZER_RUNS:
        label = optimizer_label(runs[0]) + (" (published)" if runs[0].published else "")
        return Curve(label, OPTIMIZERS[runs[0].settings["optimizer"]].colour, runs)
    look = looks(runs)[runs[0]]
    return Curve(look.label, look.colour, runs)

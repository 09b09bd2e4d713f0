"""The figure of an optimizer's trajectory over the loss in its plane, from the files of `measures.path`."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from cifar_lab import escape
from cifar_lab.figures.style import Figures, network_label, plt, small_print, wrapped
from cifar_lab.figures.surface import Scale, add_loss_bar, draw_contours, images_note
from cifar_lab.measures.path import Path2D, read_path
from cifar_lab.run_folder.measured import command
from cifar_lab.run_folder.reader import Run, measured_files


def draw_all(figures: Figures, results: Path, preset: str, runs: Sequence[Run]) -> None:
    """Draws the path files that the runs have."""
    for run, file, found in measured_files(runs, "path-*.csv", read_path, figures.errors):
        if found.complete:
            draw(figures, results / preset / "figures", run, found)
        else:
            figures.missing.append((file.stem, command("path", [run.folder], found.grid)))


def draw(figures: Figures, folder: Path, run: Run, path: Path2D) -> None:
    """The trajectory, a point for each checkpoint, over contours of the loss."""
    scale = Scale.of(path.losses, [run])
    if scale is None:
        return
    scale = replace(scale, logarithmic=scale.lowest > 0)  # the valley is what there is to see
    trajectory, grid = path.trajectory, path.grid
    a, b = trajectory.axes(grid.points)
    figure, axes = plt.subplots(figsize=(6.4, 5.2))
    filled = draw_contours(axes, a, b, scale.clipped(path.losses).reshape(len(a), len(b)).T, scale)
    axes.plot(*trajectory.points.T, "o-", color="white", markersize=3, linewidth=1, markeredgecolor="black")
    axes.plot(0, 0, "+", color="white", markersize=9)
    for place, words in ((0, f"step {trajectory.steps[0]:,}"), (-1, f"step {trajectory.steps[-1]:,}")):
        axes.annotate(words, trajectory.points[place], (4, 4), textcoords="offset points", color="white", fontsize=8)
    first, second = (f"{100 * share:.1f}% of the variance" for share in trajectory.shares)
    axes.set(xlabel=f"a, first direction: {first}", ylabel=f"b, second direction: {second}")
    add_loss_bar(figure, [axes], filled, scale)
    title = f"{network_label(run)}: trajectory in its principal plane ({grid.mode} mode)"
    figure.suptitle(escape.figure(title), fontsize=11)
    note = (
        f"{run.preset}, {run.name}: {len(trajectory.steps)} checkpoints; {grid.points} x {grid.points} points; "
        f"{images_note(grid)}{scale.above(path.losses)}; a and b are distances between weights"
    )
    small_print(figure, wrapped(note))
    share = 100 * float(np.sum(trajectory.shares))
    figures.add(
        figure, folder / f"{grid.stem}-{run.model}-{run.name}{'-published' * run.published}",
        f"Trajectory of {network_label(run)} in the plane of its two principal directions (Li et al. 2018), "
        f"{share:.1f}% of the variance, {grid.mode} mode",
    )  # fmt: skip

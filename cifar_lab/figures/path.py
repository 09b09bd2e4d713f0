"""The figure of an optimizer's trajectory over the loss in its plane, from the files of `measures.path`."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cifar_lab.figures.style import Figures, heading, network_label, plt, small_print
from cifar_lab.figures.surface import Scale, add_loss_bar, draw_contours, images_note
from cifar_lab.measures.path import Path2D, read_path
from cifar_lab.run_folder.measured import command
from cifar_lab.run_folder.reader import Run, measured_files
from cifar_lab.run_folder.schema import RunFileError

SPAN = 2.0  # times the trajectory's height above the lowest loss: so far up go the colours


def draw_all(figures: Figures, results: Path, preset: str, runs: Sequence[Run]) -> None:
    """Draws the path files that the runs have."""
    for run, file, found in measured_files(runs, "path-*.csv", read_path, figures.errors):
        last = found.trajectory.steps[-1]
        if last > run.steps_planned:
            says = f"config.json has {run.steps_planned} steps"
            figures.errors.append(RunFileError(file, f"steps: the last is {last}; {says}", 1))
        elif found.complete:
            with figures.of_file(file):
                draw(figures, results / preset / "figures", run, found)
        else:
            figures.missing.append((file.stem, command("path", [run.folder], found.grid)))


def draw(figures: Figures, folder: Path, run: Run, path: Path2D) -> None:
    """The trajectory, a point for each checkpoint, over contours of the loss."""
    trajectory, grid = path.trajectory, path.grid
    a, b = trajectory.axes(grid.points)
    scale = Scale.of(path.losses[path.losses <= _highest(path, a, b)], [run])
    height = 4.6 * np.ptp(b) / np.ptp(a)  # of the panel, in inches
    figure, axes = plt.subplots(figsize=(6.4, 1.35 + np.clip(height, 1.8, 6.0)), layout="compressed")
    axes.set_aspect("equal")
    filled = draw_contours(axes, a, b, scale.clipped(path.losses).reshape(len(a), len(b)).T, scale)
    axes.plot(*trajectory.points.T, "o-", color="white", markersize=3, linewidth=1, markeredgecolor="black")
    axes.plot(0, 0, "+", color="white", markersize=9)
    for place, words in ((0, f"step {trajectory.steps[0]:,}"), (-1, f"step {trajectory.steps[-1]:,}")):
        point = trajectory.points[place]
        side, align = (-5, "right") if point[0] > a.mean() else (5, "left")  # so that it stays inside the panel
        axes.annotate(
            words, point, (side, 5), textcoords="offset points", ha=align, color="white", fontsize=8,
            bbox={"boxstyle": "round,pad=0.2", "facecolor": "black", "edgecolor": "none", "alpha": 0.6},
        )  # fmt: skip
    first, second = (f"{100 * share:.1f}% of the variance" for share in trajectory.shares)
    axes.set(xlabel=f"a, first direction: {first}", ylabel=f"b, second direction:\n{second}")
    add_loss_bar(figure, [axes], filled, scale)
    title = f"{network_label(run)}: trajectory in its principal plane ({grid.mode} mode)"
    heading(figure, title)
    note = (
        f"{run.preset}, {run.name}: {len(trajectory.steps)} checkpoints; {grid.points} x {grid.points} points; "
        f"{images_note(grid, [run])}{scale.above(path.losses)}; a and b are distances between weights"
    )
    small_print(figure, note)
    share = 100 * float(np.sum(trajectory.shares))
    figures.add(
        figure, folder / f"{grid.stem}-{run.model}-{run.name}{'-published' * run.published}",
        f"Trajectory of {network_label(run)} in the plane of its two principal directions (Li et al. 2018), "
        f"{share:.1f}% of the variance, {grid.mode} mode",
    )  # fmt: skip


def _highest(path: Path2D, a: np.ndarray, b: np.ndarray) -> float:
    """Where the colours end, so that they show the valley: the walls can be a hundred times as high."""
    first, second = (
        np.abs(axis - places[:, None]).argmin(axis=1)
        for axis, places in zip((a, b), path.trajectory.points.T, strict=True)
    )
    along = path.losses.reshape(len(a), len(b))[first, second]  # at the nearest points of the grid
    lowest = np.min(path.losses, where=np.isfinite(path.losses), initial=np.inf)
    return float(lowest + SPAN * (np.max(along, where=np.isfinite(along), initial=lowest) - lowest))

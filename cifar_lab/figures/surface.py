"""The figures of filter-normalized surfaces, from the files of `measures.surface`: contours and lines."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.colors import LogNorm, Normalize
from matplotlib.ticker import LogLocator

from cifar_lab.figures.style import Figures, looks, plt, small_print, wrapped
from cifar_lab.measures.surface import BATCH, Grid, Surface, command, read_surface
from cifar_lab.run_folder.reader import Run
from cifar_lab.run_folder.schema import RunFileError

SHOWN = 10  # times the loss of a uniform guess; what is above is drawn as if it were this
DECADE = 10.0  # a ratio of largest to smallest loss from which on the scale is logarithmic


@dataclass(frozen=True, eq=False)
class Panel:
    """One network's part of a figure."""

    label: str
    colour: str | None  # of its line; None: the next of matplotlib's
    surface: Surface
    losses: np.ndarray  # in the order of the file; what is above the scale, or not finite, is at its end

    def table(self, low: float, high: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The axes a and b, and the losses within [low, high] with a row for each b."""
        axis = np.unique(self.surface.grid.coordinates()[:, 0])
        return axis, axis, self.losses.reshape(len(axis), -1).T.clip(low, high)


@dataclass(frozen=True)
class Scale:
    """The losses that all panels of a figure span, in nats."""

    lowest: float
    highest: float
    logarithmic: bool


def draw_all(figures: Figures, results: Path, preset: str, runs: Sequence[Run]) -> None:
    """Draws the surface files that the runs have; networks that share all other settings side by side."""
    groups: dict[tuple[str, str, int], dict[Run, Surface]] = {}
    for run in sorted(runs, key=lambda run: run.model):
        for file in sorted(run.folder.glob("surface-*.csv")):
            try:
                surface = read_surface(file)
            except RunFileError as error:
                figures.errors.append(error)
                continue
            if surface.complete:
                groups.setdefault((surface.grid.stem, run.settings_name, run.seed), {})[run] = surface
            else:
                figures.missing.append((file.stem, command([run.folder], surface.grid)))
    for surfaces in groups.values():
        draw(figures, results / preset / "figures", surfaces)


def draw(figures: Figures, folder: Path, surfaces: Mapping[Run, Surface]) -> None:
    """A figure of surfaces of one grid: contours side by side on one scale or, of one dimension, a line each."""
    grid = next(iter(surfaces.values())).grid
    everything = np.concatenate([surface.losses for surface in surfaces.values()])
    finite = everything[np.isfinite(everything)]
    if not len(finite):
        return
    guess = float(max(np.log(run.settings["classes"]) for run in surfaces))
    highest = min(float(finite.max()), SHOWN * guess)
    lowest = min(max(float(finite.min()), highest * 1e-4), highest)
    named = dict.fromkeys(f"{run.preset}, {run.name}" for run in surfaces)
    note = f"{'; '.join(named)}: {_note(grid)}"
    above = int((~(everything <= highest)).sum())
    if above:
        note += f"; {above} of {len(everything)} points are above {highest:.3g} nats and are drawn there"
    repeated = len({run.model for run in surfaces}) < len(surfaces)
    look_of = looks(list(surfaces))
    panels = [
        Panel(
            look_of[run].label + (f"\n{run.name}" if repeated else ""), None if repeated else look_of[run].colour,
            surface, np.where(surface.losses <= highest, surface.losses, highest),
        )
        for run, surface in surfaces.items()
    ]  # fmt: skip
    scale = Scale(lowest, max(highest, 1.001 * lowest), highest > DECADE * lowest)
    caption = f"Filter-normalized surface (Li et al. 2018) of {' and '.join(p.label for p in panels)}, {grid.mode} mode"
    figure = (_lines if grid.dims == 1 else _contours)(panels, scale)
    figure.suptitle(f"Filter-normalized surface around the trained network ({grid.mode} mode)", fontsize=11)
    small_print(figure, wrapped(note, int(16.5 * figure.get_figwidth())))
    suffix = "" if grid.dims == 1 else "-contour"
    figures.add(figure, folder / f"{grid.stem}-{_joined(list(surfaces))}{suffix}", caption)


def _note(grid: Grid) -> str:
    batchnorm = "with its running statistics" if grid.mode == "eval" else f"with the statistics of up to {BATCH} images"
    size = f"{grid.points} x {grid.points}" if grid.dims == 2 else f"{grid.points}"
    return (
        f"{size} points, seed {grid.seed}; loss on {grid.images} training images, not augmented; "
        f"{grid.mode} mode: BatchNorm {batchnorm}, no dropout"
    )


def _joined(runs: Sequence[Run]) -> str:
    """The runs' part of a figure's file name."""
    published = "-published" if runs[0].published else ""
    if len({run.name for run in runs}) == 1:
        return f"{'-vs-'.join(run.model for run in runs)}-{runs[0].name}{published}"
    joined = "-vs-".join(f"{run.model}-{run.name}" for run in runs)
    if len(joined) >= 150:
        joined = f"{len(runs)}runs-{hashlib.sha256(joined.encode()).hexdigest()[:12]}"
    return joined + published


def _lines(panels: Sequence[Panel], scale: Scale):
    figure, axes = plt.subplots()
    for panel in panels:
        a = panel.surface.grid.coordinates()[:, 0]
        axes.plot(a, panel.losses, color=panel.colour, label=panel.label)
    axes.set(xlabel="a, along the direction", ylabel="loss (nats)")
    if scale.logarithmic:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("")
    axes.legend()
    return figure


def _contours(panels: Sequence[Panel], scale: Scale):
    levels = (np.geomspace if scale.logarithmic else np.linspace)(scale.lowest, scale.highest, 25)
    norm = (LogNorm if scale.logarithmic else Normalize)(levels[0], levels[-1])
    figure, axes = plt.subplots(1, len(panels), figsize=(1.3 + 3.9 * len(panels), 4.8), squeeze=False, sharey=True)
    for ax, panel in zip(axes[0], panels, strict=True):
        a, b, losses = panel.table(levels[0], levels[-1])
        filled = ax.contourf(a, b, losses, levels, norm=norm, cmap="viridis")
        ax.contour(a, b, losses, levels, norm=norm, colors="white", linewidths=0.3)
        ax.plot(0, 0, "+", color="white", markersize=9)
        ax.set(title=f"{panel.label}\nf(0, 0) = {panel.surface.center:.3f}", xlabel="a", aspect="equal")
        ax.grid(False)
    axes[0, 0].set_ylabel("b")
    bar = figure.colorbar(filled, ax=axes[0].tolist(), label="loss (nats)", shrink=0.8)
    bar.set_ticks(levels[::4], labels=[f"{level:.3g}" for level in levels[::4]])
    bar.minorticks_off()
    return figure

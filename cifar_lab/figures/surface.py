"""The figures of filter-normalized surfaces, from the files of `measures.surface`: contours and lines."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.colors import LogNorm, Normalize
from matplotlib.ticker import LogLocator

from cifar_lab import escape
from cifar_lab.figures.style import Figures, batchnorm, heading, looks, loss_unit, plt, small_print
from cifar_lab.measures.surface import BATCH, Grid, Surface, read_surface
from cifar_lab.run_folder.measured import command
from cifar_lab.run_folder.reader import Run, measured_files

SHOWN = 10  # times the loss of a uniform guess; what is above is drawn as if it were this
FLAT = 1e-9  # nats that a scale spans at least
DECADE = 10.0  # a ratio of largest to smallest loss from which on the scale is logarithmic


@dataclass(frozen=True, eq=False)
class Panel:
    """One network's part of a figure."""

    label: str
    colour: str | None  # of its line; None: the next of matplotlib's
    surface: Surface
    losses: np.ndarray  # in the order of the file; what is above the scale, or not finite, is at its end

    def table(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The axes a and b, and the losses with a row for each b."""
        axis = np.unique(self.surface.grid.coordinates()[:, 0])
        return axis, axis, self.losses.reshape(len(axis), -1).T


@dataclass(frozen=True)
class Scale:
    """The losses that all panels of a figure span."""

    lowest: float
    highest: float
    logarithmic: bool
    unit: str  # of the losses; empty if one of them has none

    @property
    def label(self) -> str:
        """Of the losses' axis."""
        return f"loss ({self.unit})" if self.unit else "loss"

    @classmethod
    def of(cls, losses: np.ndarray, runs: Iterable[Run]) -> "Scale":
        """The scale of the losses (n,) of runs, of which one at least is finite; what is above is drawn at its end."""
        finite = losses[np.isfinite(losses)]
        most = SHOWN * float(max(np.log(run.settings["classes"]) for run in runs))
        highest = min(float(finite.max()), most)
        lowest = min(max(float(finite.min()), -most), highest)
        if lowest >= 0:
            lowest = max(lowest, highest * 1e-4)
        highest = max(highest, lowest + max(1e-3 * abs(lowest), FLAT))
        return cls(lowest, highest, highest > DECADE * lowest > 0, loss_unit(runs))

    def above(self, losses: np.ndarray) -> str:
        """How many of the losses lie above, in words; empty if none does."""
        above = int((~(losses <= self.highest)).sum())
        highest = f"{self.highest:.3g} {self.unit}".strip()
        return f"; {above} of {len(losses)} points are above {highest} and are drawn there" * bool(above)

    def levels(self) -> np.ndarray:
        """(25,) losses at which contours are drawn."""
        return (np.geomspace if self.logarithmic else np.linspace)(self.lowest, self.highest, 25)

    def norm(self) -> Normalize:
        """From losses to colours."""
        return (LogNorm if self.logarithmic else Normalize)(self.levels()[0], self.levels()[-1])

    def clipped(self, losses: np.ndarray) -> np.ndarray:
        """The losses with what is above, or not finite, at the end of the scale."""
        return np.where(losses <= self.highest, losses.clip(self.lowest), self.highest)


def draw_all(figures: Figures, results: Path, preset: str, runs: Sequence[Run]) -> None:
    """Draws the surface files that the runs have; networks that share all other settings side by side."""
    groups: dict[tuple[str, str, int], dict[Run, Surface]] = {}
    for run, file, surface in measured_files(runs, "surface-*.csv", read_surface, figures.errors):
        if surface.complete:
            groups.setdefault((surface.grid.stem, run.settings_name, run.seed), {})[run] = surface
        else:
            figures.missing.append((file.stem, command("surface", [run.folder], surface.grid)))
    for surfaces in groups.values():
        run, surface = next(iter(surfaces.items()))
        with figures.of_file(run.folder / f"{surface.grid.stem}.csv"):
            draw(figures, results / preset / "figures", surfaces)


def draw(figures: Figures, folder: Path, surfaces: Mapping[Run, Surface]) -> None:
    """A figure of surfaces of one grid: contours side by side on one scale or, of one dimension, a line each."""
    grid = next(iter(surfaces.values())).grid
    everything = np.concatenate([surface.losses for surface in surfaces.values()])
    scale = Scale.of(everything, surfaces)
    named = dict.fromkeys(f"{run.preset}, {run.name}" for run in surfaces)
    note = f"{'; '.join(named)}: {_note(grid, surfaces)}{scale.above(everything)}"
    repeated = len({run.model for run in surfaces}) < len(surfaces)
    look_of = looks(list(surfaces))
    panels = [
        Panel(
            look_of[run].label + (f"\n{run.name}" if repeated else ""), None if repeated else look_of[run].colour,
            surface, scale.clipped(surface.losses),
        )
        for run, surface in surfaces.items()
    ]  # fmt: skip
    caption = f"Filter-normalized surface (Li et al. 2018) of {' and '.join(p.label for p in panels)}, {grid.mode} mode"
    figure = (_lines if grid.dims == 1 else _contours)(panels, scale)
    heading(figure, f"Filter-normalized surface around the trained network ({grid.mode} mode)")
    small_print(figure, note)
    suffix = "" if grid.dims == 1 else "-contour"
    figures.add(figure, folder / f"{grid.stem}-{_joined(list(surfaces))}{suffix}", caption)


def _note(grid: Grid, runs: Iterable[Run]) -> str:
    size = f"{grid.points} x {grid.points}" if grid.dims == 2 else f"{grid.points}"
    return f"{size} points, seed {grid.seed}; {images_note(grid, runs)}"


def images_note(grid, runs: Iterable[Run]) -> str:
    """On which images the loss is, and how. grid: a measure's settings, with `images` and `mode`."""
    how = "with its running statistics" if grid.mode == "eval" else f"with the statistics of up to {BATCH} images"
    mode = f"{grid.mode} mode: no dropout{batchnorm(runs, how)}"
    return f"loss on {grid.images} training images, not augmented; {mode}"


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
        axes.plot(a, panel.losses, color=panel.colour, label=escape.figure(panel.label))
    axes.set(xlabel="a, along the direction", ylabel=scale.label)
    if scale.logarithmic:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("")
    axes.legend()
    return figure


def _contours(panels: Sequence[Panel], scale: Scale):
    figure, axes = plt.subplots(1, len(panels), figsize=(1.3 + 3.9 * len(panels), 4.8), squeeze=False, sharey=True)
    for ax, panel in zip(axes[0], panels, strict=True):
        filled = draw_contours(ax, *panel.table(), scale)
        ax.plot(0, 0, "+", color="white", markersize=9)
        center = panel.surface.center
        title = escape.figure(f"{panel.label}\nf(0, 0) = {center:{'.3f' if abs(center) < 1e4 else '.3g'}}")
        ax.set(title=title, xlabel="a", aspect="equal")
    axes[0, 0].set_ylabel("b")
    add_loss_bar(figure, axes[0].tolist(), filled, scale)
    return figure


def draw_contours(ax, a: np.ndarray, b: np.ndarray, losses: np.ndarray, scale: Scale):
    """Filled contours of losses (points of b, points of a) at 25 levels of a scale; returns what is filled."""
    levels = scale.levels()
    shown = losses.clip(levels[0], levels[-1])
    filled = ax.contourf(a, b, shown, levels, norm=scale.norm(), cmap="viridis")
    ax.contour(a, b, shown, levels, norm=scale.norm(), colors="white", linewidths=0.3)
    ax.grid(False)
    return filled


def add_loss_bar(figure, axes: list, filled, scale: Scale) -> None:
    """The colours of `draw_contours` beside the axes. filled: what it returned."""
    bar = figure.colorbar(filled, ax=axes, label=scale.label, shrink=0.8)
    bar.set_ticks(filled.levels[::4], labels=[f"{level:.3g}" for level in filled.levels[::4]])
    bar.minorticks_off()

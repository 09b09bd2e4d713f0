"""Every kind of figure. A kind is a function that draws what a preset's runs allow; adding one is adding an entry."""

from collections.abc import Callable, Sequence
from pathlib import Path

from cifar_lab.figures import band, curves, probes, surface
from cifar_lab.figures.style import Figures
from cifar_lab.run_folder.reader import Run

Kind = Callable[[Figures, Path, str, Sequence[Run]], None]
LANDSCAPE: tuple[Kind, ...] = (band.draw_all, probes.draw_all, surface.draw_all)
ALL: tuple[Kind, ...] = (curves.draw_all, *LANDSCAPE)


def draw(kinds: Sequence[Kind], results: str | Path, preset: str, runs: Sequence[Run]) -> Figures:
    """Draws these kinds of figures into `<results>/<preset>/figures/`."""
    figures = Figures()
    for kind in kinds:
        kind(figures, Path(results), preset, runs)
    return figures

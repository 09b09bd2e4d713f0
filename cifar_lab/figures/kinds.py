"""Every kind of figure. A kind is a function that draws what a preset's runs allow; adding one is adding an entry."""

from collections.abc import Callable, Sequence
from pathlib import Path

from cifar_lab.experiments import experiments
from cifar_lab.figures import band, curves, line, path, probes, sharpness, surface, switches
from cifar_lab.figures.style import Figures
from cifar_lab.project import command
from cifar_lab.run_folder.reader import Run, report_runs
from cifar_lab.settings import training_root

Kind = Callable[[Figures, Path, str, Sequence[Run]], None]
LANDSCAPE: tuple[Kind, ...] = (
    band.draw_all, probes.draw_all, surface.draw_all, path.draw_all, line.draw_all, sharpness.draw_all,
)  # fmt: skip
ALL: tuple[Kind, ...] = (curves.draw_all, *LANDSCAPE, switches.draw_all)


def draw(kinds: Sequence[Kind], results: str | Path, preset: str, runs: Sequence[Run]) -> Figures:
    """Draws these kinds of figures into `<results>/<preset>/figures/`.

    The report's figures that lack runs are one line, unless the runs of one of its commands are there.
    """
    figures = Figures()
    for kind in kinds:
        kind(figures, Path(results), preset, runs)
    lacking = figures.lacking
    if lacking and not begun(runs, preset):
        every = command("cifar_lab.reproduce", preset, results=training_root(results))
        lacking = [("the report's own figures and claims", every)]
    figures.missing[:0] = lacking
    return figures


def begun(runs: Sequence[Run], preset: str) -> bool:
    """Whether the user's own runs include all of one command of the preset's list."""
    found = report_runs([run for run in runs if not run.published], preset)
    return any(found.keys() >= set(experiment.names) for experiment in experiments(preset))

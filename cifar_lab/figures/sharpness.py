"""The figure of a Hessian's spectrum, from the files of `measures.sharpness`."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cifar_lab import escape
from cifar_lab.figures.style import Figures, looks, network_label, plt, small_print, wrapped
from cifar_lab.figures.surface import images_note
from cifar_lab.measures.sharpness import Grid, Spectrum, read_sharpness
from cifar_lab.run_folder.measured import command
from cifar_lab.run_folder.reader import Run, measured_files

BLUR = 0.01  # standard deviation of the Gaussian, as a share of the spectrum's extent
LOWEST = 1e-9  # densities below this times the largest are not shown


def draw_all(figures: Figures, results: Path, preset: str, runs: Sequence[Run]) -> None:
    """Draws the sharpness files that the runs have."""
    for run, file, (grid, spectrum) in measured_files(runs, "sharpness-*.csv", read_sharpness, figures.errors):
        if spectrum is not None:
            draw(figures, results / preset / "figures", run, grid, spectrum)
        else:
            figures.missing.append((file.stem, command("sharpness", [run.folder], grid)))


def draw(figures: Figures, folder: Path, run: Run, grid: Grid, spectrum: Spectrum) -> None:
    """The density on a logarithmic axis, with a mark at each of the largest eigenvalues."""
    values = spectrum.eigenvalues
    extent = float(values.max() - values.min()) or 1.0
    width = BLUR * extent
    at = np.linspace(values.min() - 5 * width, values.max() + 5 * width, 2_000)
    density = spectrum.density(at, width)
    figure, axes = plt.subplots()
    axes.semilogy(at, density, color=looks([run])[run].colour)
    axes.set(ylim=(LOWEST * density.max(), 3 * density.max()), xlabel="eigenvalue", ylabel="density")
    largest = spectrum.outer(5)
    axes.plot([value for value, _ in largest], np.full(len(largest), 3 * LOWEST * density.max()), "|", color="black")
    top = largest[0][0]
    title = f"{network_label(run)}: spectrum of the Hessian, largest eigenvalue {top:.4g}"
    figure.suptitle(escape.figure(title), fontsize=11)
    note = (
        f"{run.preset}, {run.name}: {grid.iterations} Lanczos iterations from {grid.vectors} random "
        f"vector{'s' * (grid.vectors > 1)}, seed {grid.seed}; {images_note(grid)}; blurred by a Gaussian of standard "
        f"deviation {width:.2g}; marks: the five largest"
    )
    small_print(figure, wrapped(note))
    figures.add(
        figure, folder / f"{grid.stem}-{run.model}-{run.name}{'-published' * run.published}",
        f"Density of the Hessian's spectrum of {network_label(run)} (Ghorbani et al. 2019), largest eigenvalue "
        f"{top:.4g}, {grid.mode} mode",
    )  # fmt: skip

"""The figure of a Hessian's spectrum, from the files of `measures.sharpness`."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cifar_lab.figures.style import Figures, heading, looks, network_label, plt, small_print
from cifar_lab.figures.surface import images_note
from cifar_lab.measures.sharpness import Grid, Spectrum, read_sharpness
from cifar_lab.run_folder.measured import command
from cifar_lab.run_folder.reader import Run, measured_files

BLUR = 0.01  # standard deviation of the Gaussian, as a share of the spectrum's extent
FLAT = 1e-6  # extent of a spectrum at least, as a share of its largest magnitude
SMALLEST = 1e-38  # below it a spectrum counts as zeros
LOWEST = 1e-9  # densities below this times the largest are not shown
REACH = 7.0  # standard deviations from an eigenvalue to where its part of the density is below that
MARKED = 5  # eigenvalues at each end


def draw_all(figures: Figures, results: Path, preset: str, runs: Sequence[Run]) -> None:
    """Draws the sharpness files that the runs have."""
    for run, file, (grid, spectrum) in measured_files(runs, "sharpness-*.csv", read_sharpness, figures.errors):
        if spectrum is not None:
            with figures.of_file(file):
                draw(figures, results / preset / "figures", run, grid, spectrum)
        else:
            figures.missing.append((file.stem, command("sharpness", [run.folder], grid)))


def draw(figures: Figures, folder: Path, run: Run, grid: Grid, spectrum: Spectrum) -> None:
    """The density on a logarithmic axis, with a mark at each of the outer eigenvalues."""
    values = spectrum.eigenvalues
    extent = max(float(np.ptp(values)), FLAT * float(np.abs(values).max()))
    if extent < SMALLEST:
        extent = 1.0
    width = BLUR * extent
    at = np.linspace(values.min() - REACH * width, values.max() + REACH * width, 2_000)
    density = spectrum.density(at, width)
    figure, axes = plt.subplots()
    axes.semilogy(at, density, color=looks([run])[run].colour)
    axes.set(ylim=(LOWEST * density.max(), 3 * density.max()), xlabel="eigenvalue", ylabel="density")
    outer = [value for largest in (True, False) for value, _ in spectrum.outer(MARKED, largest=largest)]
    axes.plot(outer, np.full(len(outer), 3 * LOWEST * density.max()), "|", color="black")
    top = outer[0]
    title = f"{network_label(run)}: spectrum of the Hessian, largest eigenvalue {top:.4g}"
    heading(figure, title)
    note = (
        f"{run.preset}, {run.name}: {grid.iterations} Lanczos iterations from {grid.vectors} random "
        f"vector{'s' * (grid.vectors > 1)}, seed {grid.seed}; {images_note(grid, [run])}; density: blurred by a "
        f"Gaussian of standard deviation {width:.2g}, {BLUR:.0%} of the spectrum's extent; marks: the {MARKED} "
        f"largest and the {MARKED} smallest"
    )
    small_print(figure, note)
    figures.add(
        figure, folder / f"{grid.stem}-{run.model}-{run.name}{'-published' * run.published}",
        f"Density of the Hessian's spectrum of {network_label(run)} (Ghorbani et al. 2019), largest eigenvalue "
        f"{top:.4g}, {grid.mode} mode",
    )  # fmt: skip

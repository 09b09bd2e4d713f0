"""The figure of the straight line between two networks, from the files of `measures.line`."""

from collections.abc import Sequence
from pathlib import Path

from cifar_lab.figures.style import (
    Figures,
    batchnorm,
    heading,
    loss_label,
    loss_unit,
    network_label,
    plt,
    small_print,
)
from cifar_lab.measures.line import Line, barrier, read_line
from cifar_lab.run_folder.measured import command
from cifar_lab.run_folder.reader import Run, measured_files
from cifar_lab.settings import above

COLOURS = {"training": "#0072B2", "test": "#D55E00"}


def draw_all(figures: Figures, results: Path, preset: str, runs: Sequence[Run]) -> None:
    """Draws the whole line files that the runs have."""
    for run, file, found in measured_files(runs, "line-*.csv", read_line, figures.errors):
        if found.complete:
            with figures.of_file(file):
                draw(figures, results / preset / "figures", run, file.stem, found)
        else:
            ends = [run.folder, above(run.folder, 3) / found.to]
            figures.missing.append((file.stem, command("line", ends, found.grid)))


def draw(figures: Figures, folder: Path, run: Run, stem: str, line: Line) -> None:
    """Loss and accuracy on training and test images, with the barrier of each."""
    figure, (losses, accuracies) = plt.subplots(1, 2, figsize=(9.6, 4.0))
    parts = {"training": (line.train_loss, line.train_accuracy), "test": (line.test_loss, line.test_accuracy)}
    unit = loss_unit([run])
    for name, (loss, accuracy) in parts.items():
        losses.plot(line.t, loss, color=COLOURS[name], label=f"{name}, barrier {barrier(loss):.3g} {unit}".rstrip())
        label = f"{name}, barrier {barrier(100 - accuracy):.1f} points"
        accuracies.plot(line.t, accuracy, color=COLOURS[name], label=label)
    losses.set(xlabel="t, from the first network to the second", ylabel=loss_label("loss", [run]))
    accuracies.set(xlabel="t", ylabel="accuracy (%)")
    losses.legend()
    accuracies.legend()
    label = network_label(run)
    heading(figure, f"{label}: the straight line between two networks")
    note = (
        f"from {run.preset}/{run.model}/{run.name} (t = 0) to {line.to} (t = 1); {line.grid.points} points; "
        f"{line.grid.images} training images, not augmented"
        f"{batchnorm([run], 'with statistics estimated again on them at each point')}; "
        "barrier: the largest error on the line minus the mean of those at its ends"
    )
    small_print(figure, note)
    figures.add(
        figure, folder / f"{stem}-from-{run.model}-{run.name}{'-published' * run.published}",
        f"Loss and accuracy on the line between two networks of {label} (Frankle et al. 2020): barrier "
        f"{barrier(100 - line.test_accuracy):.1f} points of test accuracy",
    )  # fmt: skip

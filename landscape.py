"""Draws the loss landscape: what different measures say, each under its own name.

    python landscape.py results/                              every landscape figure that the runs there allow
    python landscape.py band RUN_FOLDER RUN_FOLDER ...        one band, over the learning rates of these runs
    python landscape.py band RUN_FOLDER ... --against RUN_FOLDER ...            beside another one, on common steps
    python landscape.py surface RUN_FOLDER                    surface, 25 x 25 points
    python landscape.py surface RUN_FOLDER RUN_FOLDER         both networks side by side, on one colour scale
    python landscape.py surface RUN_FOLDER --dims 1           along one direction
    python landscape.py path RUN_FOLDER                       the trajectory of a run trained with --keep-every
    python landscape.py line RUN_FOLDER RUN_FOLDER            loss and accuracy between two networks
    python landscape.py sharpness RUN_FOLDER                  largest eigenvalues and spectrum of the Hessian

1. The learning-rate band: over runs that differ in nothing but the learning rate, the largest and the smallest training
   loss at each step (`cifar_lab/measures/band.py`).
2. The probes along the gradient (Santurkar et al. 2018): in one run, loss and gradient at several distances down a
   step's own gradient (`cifar_lab/measures/probes.py`).
3. The filter-normalized surface around a trained network (Li et al. 2018, `cifar_lab/measures/surface.py`).
4. The trajectory in the plane of its two principal directions (Li et al. 2018, `cifar_lab/measures/path.py`).
5. The straight line between two networks (Frankle et al. 2020, `cifar_lab/measures/line.py`).
6. The spectrum of the Hessian (Ghorbani et al. 2019, `cifar_lab/measures/sharpness.py`).
"""

import cifar_lab  # noqa: F401  first, see there

# isort: split
import argparse
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from cifar_lab.data.cache import DataError, check_labels, of_run
from cifar_lab.escape import terminal
from cifar_lab.losses import LOSSES
from cifar_lab.measures import line, sharpness, surface
from cifar_lab.measures import path as trajectory
from cifar_lab.measures.surface import weights_digest
from cifar_lab.program import BUSY, DISK, OTHER, fail, is_out_of_memory
from cifar_lab.program import run as run_program
from cifar_lab.project import RESULTS, command
from cifar_lab.run_folder import measured
from cifar_lab.run_folder.reader import Run, figures_folder, presets_in, read_given, read_run, read_runs, results_folder
from cifar_lab.run_folder.schema import RunFileError
from cifar_lab.settings import (
    DEVICES,
    Parser,
    Settings,
    device_name,
    figure_file,
    path,
)

# --- Figures of the runs in a results folder -------------------------------------------------------------------------


def parser() -> Parser:
    """The flags of the command line whose first word is not one of `COMMANDS`."""
    p = Parser("landscape.py", __doc__)
    p.add_argument("results", nargs="?", default=RESULTS, type=path, help="results folder (results)")
    return p


@np.errstate(all="ignore")  # what comes of logs with zeros or huge numbers is shown as it is
def main(argv: list[str]) -> int:
    """Runs the command line; returns the exit status, 1 if a file could not be read and the others were drawn."""
    if argv and argv[0] in COMMANDS:
        parser_of, run = COMMANDS[argv[0]]
        return run(parser_of().parse_args(argv[1:]))
    try:
        results = results_folder(Path(parser().parse_args(argv).results))
    except RunFileError as error:
        fail(f"landscape.py: {error}")
    from cifar_lab.figures import kinds  # matplotlib takes a second to import

    unreadable = []
    for preset in presets_in(results):
        runs, errors = read_runs(results, preset)
        figures = kinds.draw(kinds.LANDSCAPE, results, preset, runs)
        print(*figures.lines(), sep="\n", end="\n" if figures.drawn else "")
        for name, create in figures.missing:
            print(f"{preset}: missing: {terminal(name)}; to create it, run: {create}")
        unreadable += errors + figures.errors
    for error in unreadable:
        print(error, file=sys.stderr)
    return int(bool(unreadable))


# --- The band of any runs --------------------------------------------------------------------------------------------


def band_parser() -> Parser:
    """The flags of `landscape.py band`."""
    p = Parser("landscape.py band", __doc__)
    add = p.add_argument
    add("folders", nargs="+", type=path, metavar="RUN_FOLDER", help="runs that differ in nothing but the learning rate")
    add("--against", nargs="+", type=path, default=(), metavar="RUN_FOLDER", help="the runs of a second band")
    add("--save", type=figure_file, metavar="FILE", help="write the figure to this file: .png, .svg or .pdf")
    return p


def band_main(options: argparse.Namespace) -> int:
    """Draws the band, or the two bands, that the command line asks for; returns the exit status."""
    from cifar_lab.figures import band, sets
    from cifar_lab.figures.style import Figures

    try:
        groups = [read_given(folders) for folders in (options.folders, options.against) if folders]
        bands = [sets.band_of(group) for group in groups]
    except (RunFileError, ValueError) as error:
        fail(f"landscape.py band: {error}")
    every = [run for group in groups for run in group]
    names = [name for name in sets.differing([sets.Series((group[0],)) for group in groups]) if name != "lr"]
    figures = Figures(file=options.save)
    kind = "-vs-".join(["landscape", *(groups[1][0].model for _ in groups[1:])])
    band.draw(figures, figures_folder(every[0]) / sets.file_stem(kind, every), bands, names)
    print(*figures.lines(), sep="\n")
    return 0


# --- Measures around trained networks ---------------------------------------------------------------------------------

NOT_FINITE = "the loss of the trained network is not finite, and nothing is measured around it"


@dataclass(frozen=True, eq=False)
class Opened:
    """A trained network, on the device, its run, and the data set that it is measured on."""

    model: Any
    state: dict[str, Any]  # the checkpoint
    run: Run
    data: Any
    device: Any
    digest: str  # of the weights, before anything is measured

    def training_images(self, grid: Any, train_size: int | None = None) -> tuple:
        """Images (N, 3, 32, 32), not augmented, and labels (N,), of those that the run was trained on.

        grid: how many (`images`), and the seed of their choice. train_size: of a run that was trained on fewer.
        """
        from cifar_lab.training.plan import held_out, seed_of

        config = self.run.config
        validation = held_out(seed_of(config), self.data.train_labels[: config.train_size], config.validation_size)
        trained = np.setdiff1d(np.arange(train_size or config.train_size), validation)
        chosen = trained[np.random.default_rng(grid.seed).permutation(len(trained))[: grid.images]]
        return self.placed(self.data.train_images[chosen], self.data.train_labels[chosen])

    @property
    def loss(self) -> Callable:
        """The one that the run was trained with."""
        return LOSSES[self.run.settings["loss"]].function

    def check_loss(self, kind: str, grid: Any) -> None:
        """Ends the program with one line if the loss at the trained network is not finite; nothing is written yet."""
        from cifar_lab.measures.evaluation import in_batches, mean_loss, set_mode

        set_mode(self.model, grid.mode)
        batches = in_batches(*self.training_images(grid), surface.BATCH)
        if not math.isfinite(mean_loss(self.model, batches, self.loss)):
            fail(f"landscape.py {kind}: {self.run.folder}: {NOT_FINITE}")

    def placed(self, images: np.ndarray, labels: np.ndarray) -> tuple:
        """Images (N, 32, 32, 3) and labels (N,), both bytes, as a network takes them."""
        import torch

        from cifar_lab.training.augment import network_input

        given = self.device.place(network_input(torch.from_numpy(images), self.data.normalization))
        return given, torch.from_numpy(labels).long().to(self.device.torch)


def measure_parser(kind: str, cls: type, folders: int | str) -> Parser:
    """The flags of a measure: of its settings `cls`, and of what it needs. folders: how many."""
    p = Parser(f"landscape.py {kind}", __doc__)
    p.add_argument("folders", nargs=folders, type=path, metavar="RUN_FOLDER", help="folder of a trained run")
    for f in fields(cls):
        words, default = f.metadata["documentation"], str(f.default)
        shown = default.removesuffix(".0")
        if f.name == "images":  # as many as there are, if that is fewer: `runs_of`
            default, shown = None, f"{shown}, or all"
        p.add_argument(f"--{f.name}", type=f.metadata["kind"], default=default, help=f"{words} ({shown})")
    p.add_argument("--device", type=device_name, default="auto", help=", ".join(DEVICES))
    p.add_argument("--data-dir", type=path, help="folder of the data sets (default: $CIFAR10_DIR, else data/)")
    p.add_argument("--script", type=path, help="file that defines the network, if it is not in the project's folder")
    return p


def runs_of(kind: str, options: argparse.Namespace, cls: type) -> tuple[dict[Path, Run], Any]:
    """The runs that a command line names, each once, and the settings of its measure; an error ends the program with
    one line."""
    runs = {}
    given = {os.path.realpath(folder): Path(folder) for folder in reversed(options.folders)}  # by its first name
    try:
        for folder in reversed(given.values()):
            if not os.path.isdir(folder):  # pathlib raises if a name is too long
                create = " or ".join(map(command, ("MyVGG.py", "MyFramework.py")))
                raise RunFileError(folder, f"there is no such run folder; to create one, run {create}")
            runs[folder] = read_run(folder)
        fewest = min(run.trained_images for run in runs.values())
        images = min(cls.images, fewest) if options.images is None else options.images
        for folder, run in runs.items():
            if images > (size := run.trained_images):
                raise RunFileError(folder, f"--images {images}: the run was trained on {size}, and no more are used")
        return runs, cls.of(vars(options) | {"images": images})
    except (RunFileError, measured.MeasureError) as error:
        fail(f"landscape.py {kind}: {error}")


def opened(
    kind: str, options: argparse.Namespace, runs: Mapping[Path, Run], existing: Mapping[Path, Callable[[Path], Any]]
) -> list[Opened]:
    """The trained networks; ends the program with one line on whatever is wrong, before anything is written.

    existing: readers of the files that the measure will write to, which are read if they are there.
    """
    # PyTorch takes two seconds to import: the other commands and a wrong command line do without it.
    from cifar_lab.networks import describe
    from cifar_lab.run_folder.checkpoint import CheckpointError, load_model
    from cifar_lab.training.device import DeviceError, choose

    found = []
    try:
        for file, read in existing.items():
            if file.exists():
                read(file)
        loaded = {folder: load_model(folder, options.script) for folder in runs}
        device = choose(Settings(device=options.device, precision="fp32"))
        for folder, run in runs.items():
            model, state = loaded[folder]
            size, classes = run.settings["train_size"], run.settings["classes"]
            try:
                data = of_run({"settings": run.settings, "environment": run.environment}, options.data_dir)
                if size > len(data.train_images):
                    raise DataError(f"was trained on {size} images; the data set has {len(data.train_images)}")
                check_labels(data.train_labels[:size], describe(model, classes).classes)
            except DataError as error:
                raise DataError(f"{folder}: {error}") from None
            digest = weights_digest(model.state_dict())
            found.append(Opened(device.place(model), state, run, data, device, digest))
    except (RunFileError, CheckpointError, DeviceError, DataError) as error:
        fail(f"landscape.py {kind}: {error}")
    return found


@contextmanager
def measuring(kind: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
    """Gives a function that is told how much of the total is done: it moves a bar, and ends the program if a signal has
    come. Files that cannot be written or read end it too, with one line."""
    from cifar_lab.training.console import Stopped, StopSignals

    try:
        with StopSignals() as stop, tqdm(total=total, unit=unit, disable=None, dynamic_ncols=True) as bar:

            def each(done: int) -> None:
                bar.update(max(0, done - bar.n))
                if stop.received and done < total:
                    raise Stopped(stop.received)

            yield each
    except Stopped as stopped:
        fail(f"landscape.py {kind}: stopped; what is computed is saved, and the same command continues", stopped.status)
    except (RunFileError, measured.MeasureError) as error:
        fail(f"landscape.py {kind}: {error}", BUSY if isinstance(error, measured.Busy) else OTHER)
    except OSError as error:
        if is_out_of_memory(error):
            raise
        fail(f"landscape.py {kind}: {error.filename}: {error.strerror}; the same command continues later", DISK)


def drawn(draw: Callable[..., None], file: Path, *content: Any) -> int:
    """Draws the figure of a file, and says so; returns the exit status. content: what `draw` takes, a folder first."""
    from cifar_lab.figures.style import Figures

    figures = Figures()
    with figures.of_file(file):
        draw(figures, *content)
    print(*figures.lines(), sep="\n", end="\n" if figures.drawn else "")
    for error in figures.errors:
        print(error, file=sys.stderr)
    return int(bool(figures.errors))


# --- The surface ------------------------------------------------------------------------------------------------------


def surface_parser() -> Parser:
    """The flags of `landscape.py surface`."""
    return measure_parser("surface", surface.Grid, "+")


def surface_main(options: argparse.Namespace) -> int:
    """Computes and draws the surfaces that the command line asks for; returns the exit status."""
    runs, grid = runs_of("surface", options, surface.Grid)
    file_of = {run: folder / f"{grid.stem}.csv" for folder, run in runs.items()}
    networks = opened("surface", options, runs, dict.fromkeys(file_of.values(), surface.read_surface))
    for found in networks:
        found.check_loss("surface", grid)
    surfaces = {}
    for found in sorted(networks, key=lambda found: found.run.model):  # as the figures of a results folder have them
        file = file_of[found.run]
        with measuring("surface", grid.rows, "point") as each:
            surface.compute(file, found.model, found.digest, *found.training_images(grid), grid, each, found.loss)
            surfaces[found.run] = surface.read_surface(file)
    from cifar_lab.figures import surface as figure

    first = next(iter(surfaces))
    return drawn(figure.draw, file_of[first], figures_folder(first), surfaces)


# --- The trajectory ---------------------------------------------------------------------------------------------------


def path_parser() -> Parser:
    """The flags of `landscape.py path`."""
    return measure_parser("path", trajectory.Grid, 1)


def path_main(options: argparse.Namespace) -> int:
    """Computes and draws the trajectory of a run in its principal plane; returns the exit status."""
    from cifar_lab.run_folder.checkpoint import CheckpointError, evaluated, kept_weights

    runs, grid = runs_of("path", options, trajectory.Grid)
    ((folder, run),) = runs.items()
    file = folder / f"{grid.stem}.csv"
    (found,) = opened("path", options, runs, {file: trajectory.read_path})
    found.check_loss("path", grid)
    model, state = found.model, found.state
    last = state["epochs"] * run.steps_per_epoch + state["step"]
    names = [name for name, _ in model.named_parameters()]
    try:
        weights = kept_weights(folder, model, state, last) | {last: evaluated(state)}
        if len(weights) < 3:
            raise CheckpointError(
                f"{folder}: {len(weights) - 1} kept checkpoints, a plane takes two and the trained network; train the "
                "run with --keep-every STEPS (and --fresh, if it is complete)"
            )
        directions, points, shares = trajectory.principal_plane([[of[n] for n in names] for of in weights.values()])
        seen = trajectory.Trajectory(tuple(weights), points, shares)
    except CheckpointError as error:
        fail(f"landscape.py path: {error}")
    except measured.MeasureError as error:
        fail(f"landscape.py path: {folder}: {error}")
    digest = sha256("".join(map(weights_digest, weights.values())).encode()).hexdigest()
    made = trajectory.layout(grid, seen, digest)
    placed = [[d.to(p) for d, p in zip(of, model.parameters(), strict=True)] for of in directions]
    with measuring("path", len(made.places), "point") as each:
        rows = trajectory.rows(model, *found.training_images(grid), placed, made, grid.mode, found.loss)
        measured.compute(file, made, trajectory.layout_of, rows, each)
        content = trajectory.read_path(file)
    from cifar_lab.figures import path as figure

    return drawn(figure.draw, file, figures_folder(run), run, content)


# --- The line between two networks -----------------------------------------------------------------------------------


def line_parser() -> Parser:
    """The flags of `landscape.py line`."""
    return measure_parser("line", line.Grid, 2)


def line_main(options: argparse.Namespace) -> int:
    """Computes and draws the line between two networks; returns the exit status."""
    runs, grid = runs_of("line", options, line.Grid)
    if len(runs) < 2:
        fail(f"landscape.py line: {options.folders[0]}: the line needs two different runs")
    first, second = runs
    to = "/".join(second.resolve().parts[-3:])
    file = first / f"{line.stem(grid, to)}.csv"
    found = opened("line", options, runs, {file: line.read_line})
    for what, values in (
        ("network", [of.state["fingerprint"] for of in found]),
        ("loss", [of.run.settings["loss"] for of in found]),
        ("data", [f"{of.run.settings['dataset']} {of.run.settings['data_digest']}".strip() for of in found]),
    ):
        if values[0] != values[1]:
            fail(f"landscape.py line: {second}: its {what} is not that of {first} ({' and '.join(values)})")
    train_size, tests = (min(of.run.settings[name] for of in found) for name in ("train_size", "test_size"))
    train, model = found[0].training_images(grid, train_size), found[0].model
    test = found[0].placed(found[0].data.test_images[:tests], found[0].data.test_labels[:tests])
    ends = [{name: t.clone() for name, t in of.model.state_dict().items()} for of in found]
    errors = partial(line.errors, model, ends, train, test, criterion=found[0].loss)
    for folder, row in zip(runs, errors([0.0, 1.0]), strict=True):
        if not all(map(math.isfinite, row)):
            fail(f"landscape.py line: {folder}: {NOT_FINITE}")
    with measuring("line", grid.points, "point") as each:
        made = line.layout(grid, to, [of.digest for of in found])
        measured.compute(file, made, line.layout_of, lambda done: errors(made.places[done:, 0].tolist()), each)
        content = line.read_line(file)
    for name, error in (("training loss", content.train_loss), ("test error", 100 - content.test_accuracy)):
        unit = LOSSES[found[0].run.settings["loss"]].unit if "loss" in name else "points"
        print(f"barrier of the {name}: {line.barrier(error):.4g} {unit}".rstrip())
    from cifar_lab.figures import line as figure

    return drawn(figure.draw, file, figures_folder(runs[first]), runs[first], file.stem, content)


# --- Sharpness --------------------------------------------------------------------------------------------------------


def sharpness_parser() -> Parser:
    """The flags of `landscape.py sharpness`."""
    return measure_parser("sharpness", sharpness.Grid, 1)


def sharpness_main(options: argparse.Namespace) -> int:
    """Computes, prints and draws the spectrum of a network's Hessian; returns the exit status."""
    runs, grid = runs_of("sharpness", options, sharpness.Grid)
    ((folder, run),) = runs.items()
    file = folder / f"{grid.stem}.csv"
    (found,) = opened("sharpness", options, runs, {file: sharpness.read_sharpness})
    model = found.model
    if grid.iterations > (parameters := sum(p.numel() for p in model.parameters())):
        fail(f"landscape.py sharpness: --iterations {grid.iterations}: the network has {parameters} parameters")
    found.check_loss("sharpness", grid)
    spectra = partial(sharpness.spectra, model, *found.training_images(grid), criterion=found.loss)
    try:
        next(iter(spectra(replace(grid, iterations=2, vectors=1), int, 0)))
    except measured.MeasureError as error:
        fail(f"landscape.py sharpness: {folder}: {error}")
    with measuring("sharpness", grid.rows, "product") as each:
        made = sharpness.layout(grid, found.digest)
        measured.compute(file, made, sharpness.layout_of, partial(spectra, grid, each), each)
        _, spectrum = sharpness.read_sharpness(file)
    for name, largest in (("largest", True), ("smallest", False)):
        values = ", ".join(f"{value:.6g} ± {residual:.1g}" for value, residual in spectrum.outer(5, largest=largest))
        print(f"{name} eigenvalues: {values}")
    from cifar_lab.figures import sharpness as figure

    return drawn(figure.draw, file, figures_folder(run), run, grid, spectrum)


COMMANDS = {
    "band": (band_parser, band_main),
    "surface": (surface_parser, surface_main),
    "path": (path_parser, path_main),
    "line": (line_parser, line_main),
    "sharpness": (sharpness_parser, sharpness_main),
}


if __name__ == "__main__":
    run_program(main, sys.argv[1:])

"""Draws the loss landscape: what three different measures say, each under its own name.

    python landscape.py results/                              every landscape figure that the runs there allow
    python landscape.py band RUN_FOLDER RUN_FOLDER ...        one band, over the learning rates of these runs
    python landscape.py band RUN_FOLDER ... --against RUN_FOLDER ...            beside another one, on common steps
    python landscape.py surface RUN_FOLDER                    surface, 25 x 25 points
    python landscape.py surface RUN_FOLDER RUN_FOLDER         both networks side by side, on one colour scale
    python landscape.py surface RUN_FOLDER --dims 1           along one direction

1. The learning-rate band: over runs that differ in nothing but the learning rate, the largest and the smallest training
   loss at each step (`cifar_lab/measures/band.py`).
2. The probes along the gradient (Santurkar et al. 2018): in one run, loss and gradient at several distances down a
   step's own gradient (`cifar_lab/measures/probes.py`).
3. The filter-normalized surface around a trained network (Li et al. 2018, `cifar_lab/measures/surface.py`).
"""

import argparse
import os
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import cifar_lab  # noqa: F401  before PyTorch, see there

# isort: split
import numpy as np
from tqdm import tqdm

from cifar_lab.data.cache import DataError, check_labels, of_run
from cifar_lab.measures import surface
from cifar_lab.project import RESULTS
from cifar_lab.run_folder.reader import figures_folder, presets_in, read_given, read_run, read_runs, results_folder
from cifar_lab.run_folder.schema import RunFileError, read_config
from cifar_lab.settings import (
    DEVICES,
    LARGEST_SEED,
    MOST_IMAGES,
    Parser,
    Settings,
    choice,
    device_name,
    fail,
    figure_file,
    integer,
    path,
    real,
)

# --- Figures of the runs in a results folder -------------------------------------------------------------------------


def parser() -> Parser:
    """The flags of the command line whose first word is neither `band` nor `surface`."""
    p = Parser("landscape.py", __doc__)
    p.add_argument("results", nargs="?", default=RESULTS, type=path, help="results folder (results)")
    return p


def main(argv: list[str]) -> int:
    """Runs the command line; returns the exit status, 1 if a file could not be read and the others were drawn."""
    if argv[:1] == ["surface"]:
        return surface_main(argv[1:])
    if argv[:1] == ["band"]:
        return band_main(argv[1:])
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
        for name, command in figures.missing:
            print(f"{preset}: missing: {name}; to create it, run: {command}")
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


def band_main(argv: list[str]) -> int:
    """Draws the band, or the two bands, that the command line asks for; returns the exit status."""
    options = band_parser().parse_args(argv)
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


# --- The surface around trained networks -----------------------------------------------------------------------------


def surface_parser() -> Parser:
    """The flags of `landscape.py surface`."""
    default = surface.Grid()
    p = Parser("landscape.py surface", __doc__)
    add = p.add_argument
    add("folders", nargs="+", type=path, metavar="RUN_FOLDER", help="folder of a trained run")
    add("--dims", type=choice("1", "2"), default="2", help="directions: 1 or 2 (2)")
    add("--points", type=_odd, default=default.points, help=f"along each direction, odd ({default.points})")
    add("--range", type=real(0, 1e3, above=True), default=default.range, help="largest |a| and |b| (1)")
    add("--images", type=integer(2, MOST_IMAGES), help=f"training images ({default.images}, or all)")
    add("--seed", type=integer(0, LARGEST_SEED), default=0, help="seed for directions and image subset (0)")
    add("--mode", type=choice("eval", "train"), default="eval", help="BatchNorm mode: eval or train (eval)")
    add("--device", type=device_name, default="auto", help=", ".join(DEVICES))
    add("--data-dir", type=path, default=None, help="folder of the data sets (default: $CIFAR10_DIR, else data/)")
    add("--script", type=path, default=None, help="file that defines the network, if it is not in the project's folder")
    return p


def _odd(text: str) -> int:
    value = integer(3, surface.LARGEST_GRID)(text)
    if value % 2 == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is even; the trained network itself is a point only if it is odd")
    return value


def surface_main(argv: list[str]) -> int:
    """Computes and draws the surfaces that the command line asks for; returns the exit status."""
    options = surface_parser().parse_args(argv)
    folders = list(dict.fromkeys(map(Path, options.folders)))

    # PyTorch takes two seconds to import: the other command and a wrong command line do without it.
    from cifar_lab.networks import describe
    from cifar_lab.run_folder.checkpoint import CheckpointError, load_model
    from cifar_lab.training.console import Stopped
    from cifar_lab.training.device import DeviceError, choose

    try:  # everything that can be wrong, before anything is written
        configs = {folder: _config(folder) for folder in folders}
        if options.images is None:
            options.images = min(surface.Grid.images, *(of["settings"]["train_size"] for of in configs.values()))
        grid = surface.Grid(**{f.name: f.type(getattr(options, f.name)) for f in fields(surface.Grid)})
        for folder, config in configs.items():
            _check_surface(folder, config["settings"]["train_size"], grid)
        models = {folder: load_model(folder, options.script)[0] for folder in folders}
        device = choose(Settings(device=options.device, precision="fp32"))
        images = {
            folder: _images(
                folder, config, grid, options.data_dir, describe(models[folder], config["settings"]["classes"]).classes
            )
            for folder, config in configs.items()
        }
    except (RunFileError, CheckpointError, DeviceError, DataError) as error:
        fail(f"landscape.py surface: {error}")

    try:
        for folder, model in models.items():
            _compute(folder / f"{grid.stem}.csv", device.place(model), *images[folder], grid, device)

        from cifar_lab.figures import surface as figure
        from cifar_lab.figures.style import Figures

        figures = Figures()
        runs = sorted(map(read_run, folders), key=lambda run: run.model)  # as the figures of a results folder have them
        surfaces = {run: surface.read_surface(run.folder / f"{grid.stem}.csv") for run in runs}
        # Run folders are results/<preset>/<model>/<name>; the figures go to results/<preset>/figures.
        figure.draw(figures, runs[0].folder.resolve().parents[1] / "figures", surfaces)
        print(*figures.lines(), sep="\n")
    except Stopped as stopped:
        fail("landscape.py surface: stopped; what is computed is saved, and the same command continues", stopped.status)
    except RunFileError as error:
        fail(f"landscape.py surface: {error}", 1)
    except OSError as error:
        fail(f"landscape.py surface: {error.filename}: {error.strerror}; the same command continues later", 1)
    return 0


def _config(folder: Path) -> dict[str, Any]:
    """A run's config.json. Raises RunFileError."""
    if not os.path.isdir(folder):  # pathlib raises if a name is too long
        raise RunFileError(
            folder, "there is no such run folder; to create one, run python MyVGG.py or python MyFramework.py"
        )
    return read_config(folder)


def _check_surface(folder: Path, train_size: int, grid: surface.Grid) -> None:
    """Raises RunFileError if a run cannot have this surface. train_size: how many images it was trained on."""
    file = folder / f"{grid.stem}.csv"
    if file.exists():
        surface.read_surface(file)
    if grid.images > train_size:
        raise RunFileError(folder, f"--images {grid.images}: the run was trained on {train_size}, and no more are used")


def _images(folder: Path, config: dict[str, Any], grid: surface.Grid, data_dir: str | None, classes: int) -> tuple:
    """What a run's surface is computed on: images (N, 3, 32, 32), normalized, labels (N,). Raises DataError."""
    import torch

    from cifar_lab.training.augment import normalize, to_unit

    train_size = config["settings"]["train_size"]
    try:
        data = of_run(config, data_dir)
        if train_size > len(data.train_images):
            raise DataError(f"was trained on {train_size} images; the data set has {len(data.train_images)}")
        check_labels(data.train_labels[:train_size], classes)
    except DataError as error:
        raise DataError(f"{folder}: {error}") from None
    chosen = np.random.default_rng(grid.seed).permutation(train_size)[: grid.images]
    images = normalize(to_unit(torch.from_numpy(data.train_images[chosen])), data.normalization)
    return images, torch.from_numpy(data.train_labels[chosen]).long()


def _compute(file: Path, model, images, labels, grid: surface.Grid, device) -> None:
    """Computes what a surface file lacks, with a bar. Raises Stopped, after a whole row, if a signal has come."""
    from cifar_lab.training.console import Stopped, StopSignals

    images, labels = device.place(images), labels.to(device.torch)
    total = len(grid.coordinates())
    with StopSignals() as stop, tqdm(total=total, unit="point", disable=None, dynamic_ncols=True) as bar:

        def each(done: int) -> None:
            bar.update(done - bar.n)
            if stop.received and done < total:
                raise Stopped(stop.received)

        surface.compute(file, model, surface.weights_digest(model), images, labels, grid, each)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        fail("landscape.py: interrupted", 130)
    except OSError as error:
        fail(f"landscape.py: {error.filename}: {error.strerror}", 1)

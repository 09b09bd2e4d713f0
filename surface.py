"""The filter-normalized loss surface around a trained network (Li et al. 2018, "Visualizing the Loss Landscape of
Neural Nets"): f(a, b) = L(w + a d1 + b d2), with random directions whose filters have the norms of the network's own.

    python landscape.py surface RUN_FOLDER                    2D, 25 x 25 points, contour and 3D figures
    python landscape.py surface RUN_FOLDER RUN_FOLDER         both networks side by side, on one colour scale
    python landscape.py surface RUN_FOLDER --dims 1           along one direction

`compute` writes a file into the run folder, a row a grid point, and goes on where an earlier one stopped; the figures
are drawn from the files alone.
"""

import argparse
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from pathlib import Path

import numpy as np

from cifar_lab import files
from cifar_lab.run_files import RunFileError, read_config, training_command
from cifar_lab.settings import LARGEST_SEED, Parser, choice, fail, integer, path, real

BATCH = 128  # images a forward pass, at most: the fastest on a CPU
LARGEST_GRID = 1001  # points along a direction
COLUMNS = "a,b,loss"


@dataclass(frozen=True)
class Grid:
    """What is evaluated: these settings name the file, so that files of different surfaces never meet."""

    dims: int = 2
    points: int = 25  # along each direction; odd, so that the trained network is one of them
    range: float = 1.0  # a and b go from -range to range
    images: int = 512  # the first of a permutation of the run's training images, not augmented
    seed: int = 0  # of the directions and of that permutation
    mode: str = "eval"  # of BatchNorm: eval, with its running statistics, or train, with those of the images

    def __post_init__(self) -> None:
        if self.dims not in (1, 2) or self.mode not in ("eval", "train"):
            raise ValueError(f"no such grid: {self}")
        if self.points % 2 == 0 or not 3 <= self.points <= LARGEST_GRID or not 0 < self.range < np.inf:
            raise ValueError(f"no such grid: {self}")

    @property
    def stem(self) -> str:
        size = "x".join([str(self.points)] * self.dims)
        reach = repr(self.range).removesuffix(".0")
        return f"surface-{self.dims}d-{size}-range{reach}-{self.images}images-seed{self.seed}-{self.mode}"

    def coordinates(self) -> np.ndarray:
        """(points ** dims, 2): a and b of each grid point, in the order of the file; b = 0 in one dimension."""
        half = self.points // 2
        axis = np.arange(-half, half + 1) / half * self.range
        a, b = np.meshgrid(axis, axis if self.dims == 2 else [0.0], indexing="ij")
        return np.stack([a.ravel(), b.ravel()], axis=1)


@dataclass(frozen=True, eq=False)
class Surface:
    """A surface file's content so far."""

    grid: Grid
    weights_sha256: str
    losses: np.ndarray  # (n,) nats, of the first n grid points
    size: int  # bytes of the file up to the end of its last whole row

    @property
    def complete(self) -> bool:
        return len(self.losses) == self.grid.points**self.grid.dims

    @property
    def center(self) -> float:
        """f(0, 0): the loss of the trained network."""
        return float(self.losses[len(self.losses) // 2])


# --- The file ---------------------------------------------------------------------------------------------------------


def header(grid: Grid, weights_sha256: str) -> str:
    """The first two lines of a surface file: what it is, as JSON behind a '#', and the columns."""
    about = {"what": "loss at w + a d1 + b d2, filter-normalized directions (Li et al. 2018)", **asdict(grid)}
    return f"# {json.dumps(about | {'weights_sha256': weights_sha256})}\n{COLUMNS}\n"


def read_surface(file: str | Path) -> Surface:
    """Reads a surface file; half a last row is ignored. Raises RunFileError, naming file and line."""
    file = Path(file)
    try:
        data = file.read_bytes()
    except OSError as error:
        raise RunFileError(file, error.strerror or "cannot be read") from None
    lines = data.split(b"\n")[:-1]  # what follows the last newline is half a row
    try:
        about = json.loads(lines[0].removeprefix(b"# "))
        grid = Grid(**{f.name: f.type(about[f.name]) for f in fields(Grid)})
        expected = header(grid, str(about["weights_sha256"])).encode().split(b"\n")[:-1]
        coordinates = grid.coordinates()
    except (LookupError, TypeError, ValueError, ArithmeticError, RecursionError, MemoryError):
        raise RunFileError(file, "not the header of a surface file", 1) from None
    if lines[:2] != expected:
        raise RunFileError(file, "not the header of a surface file", 1 if lines[0] != expected[0] else 2)
    losses = []
    for line_number, (line, place) in enumerate(zip(lines[2:], coordinates, strict=False), start=3):
        try:
            a, b, loss = map(float, line.split(b","))
        except ValueError:
            raise RunFileError(file, f"not a row of {COLUMNS}", line_number) from None
        if (a, b) != tuple(place):
            raise RunFileError(file, f"a, b are {a:g}, {b:g} where {place[0]:g}, {place[1]:g} follows", line_number)
        losses.append(loss)
    if len(lines) - 2 > len(coordinates):
        raise RunFileError(file, f"more than {len(coordinates)} rows", len(coordinates) + 3)
    return Surface(grid, str(about["weights_sha256"]), np.array(losses), data.rfind(b"\n") + 1)


# --- The surface ------------------------------------------------------------------------------------------------------


def direction(parameters: Iterable, generator) -> list:
    """One filter-normalized random direction: a tensor for each parameter, None where the direction is zero.

    Standard normal, then each filter (for a convolution the weights of an output channel, for a linear layer the
    weights of an output unit) is scaled to the norm of the network's own. Biases and BatchNorm's parameters, the
    tensors of one dimension, stay where they are. Drawn on the CPU: the same on every device.
    """
    import torch

    result = []
    for p in parameters:
        if p.dim() < 2:
            result.append(None)
            continue
        w = p.detach().cpu().double().flatten(1)  # (filters, weights of each)
        d = torch.randn(w.shape, generator=generator, dtype=torch.float64)
        d *= w.norm(dim=1, keepdim=True) / d.norm(dim=1, keepdim=True)
        result.append(torch.empty_like(p.detach()).copy_(d.view(p.shape)))
    return result


def mean_loss(model, images, labels) -> float:
    """Mean cross-entropy (nats) in equal batches of at most 128. images (N, 3, 32, 32), labels (N,), on one device."""
    import torch

    batches = -(-len(images) // BATCH)
    with torch.no_grad():
        losses = [
            torch.nn.functional.cross_entropy(model(x), y, reduction="sum")
            for x, y in zip(images.tensor_split(batches), labels.tensor_split(batches), strict=True)
        ]
        return float(torch.stack(losses).cpu().double().sum() / len(images))


def evaluate(model, images, labels, grid: Grid, done: int = 0) -> Iterable[float]:
    """The loss at each grid point in the file's order, without the first `done`. The model's weights are moved about.

    Dropout is off in both modes.
    """
    import torch

    model.eval()
    if grid.mode == "train":
        for module in model.modules():
            if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                module.train()
    parameters = list(model.parameters())
    generator = torch.Generator().manual_seed(grid.seed)
    directions = [direction(parameters, generator) for _ in range(2)]
    moved = [
        (p, p.detach().clone(), d1, d2) for p, d1, d2 in zip(parameters, *directions, strict=True) if d1 is not None
    ]
    # One point after the other: batching them (torch.func.vmap over the weights) is slower. Measured on 2 CPU cores
    # with 512 images, VGG-A at width 0.125, 0.25 and 1 takes 137, 229 and 1,236 ms a point with it, and 11, 29 and
    # 415 ms without, in batches of 128 images, channels last. Not measured on a GPU.
    for a, b in grid.coordinates()[done:].tolist():
        with torch.no_grad():
            for p, w, d1, d2 in moved:
                p.copy_(w).add_(d1, alpha=a).add_(d2, alpha=b)
        yield mean_loss(model, images, labels)


def compute(file: Path, model, weights_sha256: str, images, labels, grid: Grid, each: Callable[[int], None]) -> None:
    """Writes the rows that a surface file still lacks. Each is on the disk before the next is computed.

    each: is told the number of rows after every one. A file of other weights (the run was trained further) is moved
    aside, not deleted. Raises RunFileError on a malformed one, and OSError.
    """
    if file.exists():
        found = read_surface(file)
        if found.weights_sha256 != weights_sha256:
            os.replace(file, file.with_name(f".{file.stem}.before-{datetime.now():%Y%m%d-%H%M%S-%f}.csv"))
        elif file.stat().st_size > found.size:
            os.truncate(file, found.size)
    if not file.exists():
        files.write_text(file, header(grid, weights_sha256))
    found = read_surface(file)
    done, size = len(found.losses), found.size
    each(done)
    places = grid.coordinates()[done:].tolist()
    for (a, b), loss in zip(places, evaluate(model, images, labels, grid, done), strict=True):
        if file.stat().st_size != size:
            raise RunFileError(file, "another process writes to it")
        row = f"{a!r},{b!r},{loss!r}\n"
        files.append(file, row)
        files.sync(file)
        done, size = done + 1, size + len(row)
        each(done)


def weights_digest(model) -> str:
    """SHA-256 of a network's parameters and buffers."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


# --- Command line -----------------------------------------------------------------------------------------------------


def command(folders: Sequence[Path], grid: Grid) -> str:
    """The command that computes a surface."""
    default = Grid()
    flags = [f"--{name} {value}" for name, value in asdict(grid).items() if value != getattr(default, name)]
    return " ".join(["python landscape.py surface", *map(str, folders), *flags])


def parser() -> argparse.ArgumentParser:
    """The command line's flags."""
    default = Grid()
    raw = argparse.RawDescriptionHelpFormatter
    p = Parser(prog="landscape.py surface", description=__doc__, allow_abbrev=False, formatter_class=raw)
    p.add_argument("folders", nargs="+", type=path, metavar="RUN_FOLDER", help="folder of a trained run")
    p.add_argument("--dims", type=choice("1", "2"), default="2", help="directions: 1 or 2 (2)")
    p.add_argument("--points", type=_odd, default=default.points, help=f"along each direction, odd ({default.points})")
    p.add_argument("--range", type=real(0, 1e3, above=True), default=default.range, help="largest |a| and |b| (1)")
    p.add_argument(
        "--images", type=integer(2, 50_000), default=default.images, help=f"training images ({default.images})"
    )
    p.add_argument("--seed", type=integer(0, LARGEST_SEED), default=0, help="of directions and images (0)")
    p.add_argument("--mode", type=choice("eval", "train"), default="eval", help="of BatchNorm: eval or train (eval)")
    p.add_argument("--device", type=choice("auto", "cpu", "cuda", "mps"), default="auto", help="auto, cpu, cuda or mps")
    p.add_argument("--data-dir", type=path, default=None, help="folder of CIFAR-10 (default: $CIFAR10_DIR, else data/)")
    return p


def _odd(text: str) -> int:
    value = integer(3, LARGEST_GRID)(text)
    if value % 2 == 0:
        raise argparse.ArgumentTypeError(
            f"{text!r} is even: the trained network itself is a point only where it is odd"
        )
    return value


def main(argv: list[str]) -> int:
    """Computes and draws the surfaces that the command line asks for; returns the exit status."""
    options = parser().parse_args(argv)
    folders = list(dict.fromkeys(map(Path, options.folders)))
    grid = Grid(**{f.name: f.type(getattr(options, f.name)) for f in fields(Grid)})

    from cifar_lab.checkpoint import CheckpointError
    from cifar_lab.console import Stopped
    from cifar_lab.data import DataError, load
    from cifar_lab.device import DeviceError, choose
    from cifar_lab.settings import Settings

    try:  # everything that can be wrong, before anything is written
        networks = {folder: _network(folder, grid) for folder in folders}
        device = choose(Settings(device=options.device, precision="fp32"))
        data = load(options.data_dir)
        for folder, (_, train_size) in networks.items():
            if train_size > len(data.train_images):
                raise DataError(
                    f"{folder} was trained on {train_size} images; the data set has {len(data.train_images)}"
                )
    except (RunFileError, CheckpointError, DeviceError, DataError) as error:
        fail(f"landscape.py surface: {error}")

    try:
        for folder, (model, train_size) in networks.items():
            _compute(folder / f"{grid.stem}.csv", device.place(model), data, train_size, grid, device)

        from surface_plots import draw

        folders.sort(key=lambda folder: folder.resolve().parent.name)  # by network, as `draw_all` has them
        surfaces = {folder: read_surface(folder / f"{grid.stem}.csv") for folder in folders}
        # Run folders are results/<preset>/<model>/<name>; the figures go to results/<preset>/figures.
        for stem, caption in draw(surfaces, folders[0].resolve().parents[1] / "figures"):
            print(f"{stem}.png, .svg: {caption}")
    except Stopped as stopped:
        fail("landscape.py surface: stopped; what is computed is saved, and the same command goes on", stopped.status)
    except RunFileError as error:
        fail(f"landscape.py surface: {error}", 1)
    except OSError as error:
        fail(f"landscape.py surface: {error.filename}: {error.strerror}; the same command goes on later", 1)
    return 0


def _compute(file: Path, model, data, train_size: int, grid: Grid, device) -> None:
    """`compute` on a run's training images, with a bar. Raises Stopped, after a whole row, where a signal says so."""
    import torch
    from tqdm import tqdm

    from cifar_lab.augment import normalize, to_unit
    from cifar_lab.console import Stopped, StopSignals

    chosen = np.random.default_rng(grid.seed).permutation(train_size)[: grid.images]
    images = device.place(normalize(to_unit(torch.from_numpy(data.train_images[chosen]))))
    labels = torch.from_numpy(data.train_labels[chosen]).long().to(device.torch)
    total = len(grid.coordinates())
    with StopSignals() as stop, tqdm(total=total, unit="point", disable=None, dynamic_ncols=True) as bar:

        def each(done: int) -> None:
            bar.update(done - bar.n)
            if stop.received and done < total:
                raise Stopped(stop.received)

        compute(file, model, weights_digest(model), images, labels, grid, each)


def _network(folder: Path, grid: Grid):
    """A run's trained network, and how many of the data set's images it was trained on. Writes nothing.

    Raises RunFileError and CheckpointError, which say what would make what is missing.
    """
    from cifar_lab.checkpoint import CheckpointError, load_model

    if not os.path.isdir(folder):  # pathlib raises where a name is too long
        raise RunFileError(folder, "there is no such run folder; python MyVGG.py and python MyFramework.py make them")
    config = read_config(folder)
    name, train_size = config["settings"]["model"], config["settings"]["train_size"]
    if name.startswith("vgg"):
        from MyVGG import build
    else:
        from MyFramework import build

    try:
        model, _ = load_model(folder, build, (name,))
    except CheckpointError as error:
        raise CheckpointError(f"{error}; what makes it: {training_command(folder, config)}") from None
    file = folder / f"{grid.stem}.csv"
    if file.exists():
        read_surface(file)
    if grid.images > train_size:
        raise RunFileError(folder, f"--images {grid.images}: the run was trained on {train_size}, and no more are used")
    return model, train_size

"""The filter-normalized loss surface around a trained network (Li et al. 2018, "Visualizing the Loss Landscape of
Neural Nets"): f(a, b) = L(w + a d1 + b d2), with random directions whose filters have the norms of the network's own.

`compute` writes a file into the run folder, one row per grid point, and continues if it was stopped; the figures are
drawn from the files alone.
"""

import hashlib
import json
import os
import shlex
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout

from cifar_lab.run_folder import files
from cifar_lab.run_folder.schema import RunFileError, read_bytes

BATCH = 128  # images per forward pass, at most: the fastest on a CPU
LARGEST_GRID = 1001  # points along a direction
LARGEST_FILE = 1 << 27  # bytes
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
    data = read_bytes(file, LARGEST_FILE)
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
    if file.stem != grid.stem:
        raise RunFileError(file, f"this surface belongs into {grid.stem}.csv", 1)
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
    """One filter-normalized random direction: a tensor for each parameter, None if the direction is zero.

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


def grid_losses(model, images, labels, grid: Grid, done: int = 0) -> Iterable[float]:
    """The mean cross-entropy (nats) at each grid point in the file's order, without the first `done`.

    images (N, 3, 32, 32), labels (N,). Changes the model's weights. Dropout is off in both modes.
    """
    import torch  # here and above: whoever draws figures does not wait for it

    from cifar_lab.measures.evaluation import evaluate

    model.eval()
    if grid.mode == "train":
        for module in model.modules():
            if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                module.train()
    parameters = list(model.parameters())
    batches = -(-len(images) // BATCH)
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
        # In equal batches.
        pairs = zip(images.tensor_split(batches), labels.tensor_split(batches), strict=True)
        yield float(evaluate(model, pairs)[0]) / len(images)


def compute(file: Path, model, weights_sha256: str, images, labels, grid: Grid, each: Callable[[int], None]) -> None:
    """Writes the rows that a surface file still lacks. Each is on the disk before the next is computed.

    each: is told the number of rows after every one. A file of other weights (the run was trained further) is moved
    aside, not deleted. Raises RunFileError on a malformed one, or if another process writes to it, and OSError.
    """
    lock = FileLock(file.with_name(f".{file.stem}.lock"))
    try:
        files.lock(lock)
    except Timeout:
        raise RunFileError(file, "another process writes to it") from None
    try:
        _compute(file, model, weights_sha256, images, labels, grid, each)
    finally:
        lock.release()


def _compute(file: Path, model, weights_sha256: str, images, labels, grid: Grid, each: Callable[[int], None]) -> None:
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
    for (a, b), loss in zip(places, grid_losses(model, images, labels, grid, done), strict=True):
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


def command(folders: Sequence[Path], grid: Grid) -> str:
    """The command that computes a surface."""
    default = Grid()
    flags = [f"--{name} {value}" for name, value in asdict(grid).items() if value != getattr(default, name)]
    return " ".join(["python landscape.py surface", *(shlex.quote(str(folder)) for folder in folders), *flags])

"""The filter-normalized loss surface around a trained network (Li et al. 2018, "Visualizing the Loss Landscape of
Neural Nets"): f(a, b) = L(w + a d1 + b d2), with random directions whose filters have the norms of the network's own.

`compute` writes a file into the run folder, one row per grid point, and continues if it was stopped; the figures are
drawn from the files alone.
"""

import argparse
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cifar_lab.losses import cross_entropy
from cifar_lab.run_folder import measured
from cifar_lab.settings import choice, flag, integer, real

BATCH = 128  # images per forward pass, at most: the fastest on a CPU
KIND = "surface"


def _odd(text: str) -> int:
    value = integer(3, measured.MOST_POINTS)(text)
    if value % 2 == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is even; the trained network itself is a point only if it is odd")
    return value


@dataclass(frozen=True)
class Grid(measured.Settings):
    """What is evaluated: these settings name the file, so that files of different surfaces never meet."""

    dims: int = flag(2, "directions: 1 or 2", choice("1", "2"))
    points: int = flag(25, "along each direction, odd", _odd)
    range: float = flag(1.0, "largest |a| and |b|", real(1e-9, 1e3))  # below, no weight of single precision moves
    images: int = measured.images(512)  # the first of a permutation of the run's training images, not augmented
    seed: int = measured.seed()  # of the directions and of that permutation
    mode: str = measured.mode()  # eval: BatchNorm with its running statistics, train: with those of the images

    @property
    def stem(self) -> str:
        size = "x".join([str(self.points)] * self.dims)
        reach = repr(self.range).removesuffix(".0")
        return f"surface-{self.dims}d-{size}-range{reach}-{self.images}images-seed{self.seed}-{self.mode}"

    @property
    def rows(self) -> int:
        return self.points**self.dims

    def coordinates(self) -> np.ndarray:
        """(rows, 2): a and b of each grid point, in the order of the file; b = 0 in one dimension."""
        half = self.points // 2
        axis = np.arange(-half, half + 1) / half * self.range
        a, b = np.meshgrid(axis, axis if self.dims == 2 else [0.0], indexing="ij")
        return np.stack([a.ravel(), b.ravel()], axis=1)


@dataclass(frozen=True, eq=False)
class Surface:
    """A surface file's content so far."""

    grid: Grid
    weights_sha256: str
    losses: np.ndarray  # (n,) of the first n grid points

    @property
    def complete(self) -> bool:
        return len(self.losses) == self.grid.rows

    @property
    def center(self) -> float:
        """f(0, 0): the loss of the trained network."""
        return float(self.losses[len(self.losses) // 2])


# --- The file ---------------------------------------------------------------------------------------------------------


def layout(grid: Grid, weights_sha256: str) -> measured.Layout:
    """What a surface file holds."""
    about = {"what": "loss at w + a d1 + b d2, filter-normalized directions (Li et al. 2018)", **asdict(grid)}
    return measured.Layout(
        KIND, grid.stem, about | {"weights_sha256": weights_sha256}, "a,b", {"loss": measured.LOSS}, grid.rows,
        grid.coordinates, trained=(grid.rows // 2,),
    )  # fmt: skip


def _layout_of(about: Mapping[str, Any]) -> measured.Layout:
    return layout(Grid.of(about), measured.digest(about["weights_sha256"]))


def read_surface(file: str | Path) -> Surface:
    """Reads a surface file; half a last row is ignored. Raises RunFileError, naming file and line."""
    found = measured.read(file, KIND, _layout_of)
    about = found.layout.about
    return Surface(Grid.of(about), about["weights_sha256"], found.values[:, 0])


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


def grid_losses(
    model, images, labels, grid: Grid, done: int = 0, criterion: Callable = cross_entropy
) -> Iterable[float]:  # fmt: skip
    """The mean loss, one of `losses.LOSSES`, at each grid point in the file's order, without the first `done`.

    images (N, 3, 32, 32), labels (N,). Changes the model's weights. Dropout is off in both modes.
    """
    import torch  # here and above: whoever draws figures does not wait for it

    generator = torch.Generator().manual_seed(grid.seed)
    directions = [direction(model.parameters(), generator) for _ in range(2)]
    return losses_at(model, images, labels, directions, grid.coordinates()[done:], grid.mode, criterion)


def losses_at(
    model, images, labels, directions: Sequence[Sequence], places: np.ndarray, mode: str,
    criterion: Callable = cross_entropy,
) -> Iterable[float]:  # fmt: skip
    """The mean loss at w + a d1 + b d2 for each (a, b) of places (n, 2), w the model's weights.

    directions: d1 and d2, a tensor for each parameter, None if the parameter stays. Else as `grid_losses`.
    """
    import torch

    from cifar_lab.measures.evaluation import in_batches, mean_loss, set_mode

    set_mode(model, mode)
    parameters = list(model.parameters())
    batches = in_batches(images, labels, BATCH)
    moved = [
        (p, p.detach().clone(), d1, d2) for p, d1, d2 in zip(parameters, *directions, strict=True) if d1 is not None
    ]
    # One point after the other: batching them (torch.func.vmap over the weights) is slower. Measured on 2 CPU cores
    # with 512 images, VGG-A at width 0.125, 0.25 and 1 takes 137, 229 and 1,236 ms a point with it, and 11, 29 and
    # 415 ms without, in batches of 128 images, channels last. Not measured on a GPU.
    for a, b in places.tolist():
        with torch.no_grad():
            for p, w, d1, d2 in moved:
                p.copy_(w).add_(d1, alpha=a).add_(d2, alpha=b)
        yield mean_loss(model, batches, criterion)


def compute(
    file: Path, model, weights_sha256: str, images, labels, grid: Grid, each: Callable[[int], None],
    criterion: Callable = cross_entropy,
) -> None:  # fmt: skip
    """Writes the rows that a surface file still lacks: `measured.compute`."""

    def rows(done: int) -> Iterable[tuple[float]]:
        return ((loss,) for loss in grid_losses(model, images, labels, grid, done, criterion))

    measured.compute(file, layout(grid, weights_sha256), _layout_of, rows, each)


def weights_digest(weights: Mapping[str, Any]) -> str:
    """SHA-256 of a network's parameters and buffers, a state dictionary."""
    digest = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        digest.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()

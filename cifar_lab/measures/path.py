"""The optimizer's trajectory in the plane of its two principal directions (Li et al. 2018, "Visualizing the Loss
Landscape of Neural Nets", section 7.2).

Two random directions show nothing of a trajectory: in many dimensions they are orthogonal to it. So, with w_i the
weights of checkpoint i and w_n those of the trained network, the directions are the first two principal components of
w_0, ..., w_n over all parameters, and the loss is computed at w_n + a d1 + b d2. The paper has the rows w_0 - w_n, ...,
w_(n-1) - w_n, of which principal components subtract the mean; its authors' program has w_n among them too, as here.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from cifar_lab.losses import cross_entropy
from cifar_lab.measures.surface import losses_at
from cifar_lab.run_folder import measured
from cifar_lab.run_folder.schema import LARGEST_INTEGER
from cifar_lab.settings import flag, integer

KIND = "path"
MARGIN = 0.15  # of the trajectory's extent, on each side
SMALLEST = float(np.finfo(np.float32).tiny)  # of that extent: weights differ by more
ROUNDING = 1e-6  # by which the shares' sum may exceed 1


@dataclass(frozen=True)
class Grid(measured.Settings):
    """What is evaluated."""

    points: int = flag(25, "along each direction", integer(3, measured.MOST_POINTS))
    images: int = measured.images(512)  # training images, not augmented
    seed: int = measured.seed()  # of their choice
    mode: str = measured.mode()  # of BatchNorm, as for the surface

    @property
    def stem(self) -> str:
        return f"path-{self.points}x{self.points}-{self.images}images-seed{self.seed}-{self.mode}"


@dataclass(frozen=True, eq=False)
class Trajectory:
    """A trajectory in the plane of its two principal directions. Raises MeasureError if no trajectory has this."""

    steps: tuple[int, ...]  # taken before each checkpoint; the trained network is the last
    points: np.ndarray  # (checkpoints, 2): a and b of each; the last is at (0, 0)
    shares: tuple[float, float]  # of the checkpoints' variance, along each direction

    def __post_init__(self) -> None:
        steps, points = self.steps, self.points
        if not len(steps) == len(points) >= 3:
            raise measured.MeasureError(f"steps: {len(steps)} of them, with {len(points)} points; 3 are the fewest")
        if steps[0] < 0 or steps[-1] > LARGEST_INTEGER or any(a >= b for a, b in pairwise(steps)):
            raise measured.MeasureError(f"steps: they do not ascend from 0 to at most {LARGEST_INTEGER}")
        if not (np.abs(points) <= measured.LARGEST_NUMBER).all():
            raise measured.MeasureError("trajectory: a point is not finite, or beyond float32")
        if points[-1].any() or not np.ptp(points, axis=0).max() >= SMALLEST:
            raise measured.MeasureError("trajectory: it does not come from elsewhere to (0, 0)")
        if not (min(self.shares) >= 0 and sum(self.shares) <= 1 + ROUNDING):
            raise measured.MeasureError("shares: not two numbers from 0 to 1 whose sum is at most 1")

    def axes(self, points: int) -> list[np.ndarray]:
        """a and b of a grid around it, `points` of each."""
        low, high = self.points.min(axis=0), self.points.max(axis=0)
        margin = MARGIN * np.maximum(high - low, 0.1 * (high - low).max())
        return [np.linspace(low[i] - margin[i], high[i] + margin[i], points) for i in (0, 1)]


@dataclass(frozen=True, eq=False)
class Path2D:
    """A path file's content so far."""

    grid: Grid
    trajectory: Trajectory
    losses: np.ndarray  # (n,) nats, of the first n grid points: b from its lowest to its highest, for each a

    @property
    def complete(self) -> bool:
        return len(self.losses) == self.grid.points**2


def principal_plane(weights: Sequence[Sequence]) -> tuple[list[list], np.ndarray, tuple[float, float]]:
    """The two directions, the checkpoints' places in their plane (n, 2), and the shares of the variance.

    weights: of each of n > 2 checkpoints in the order of training, a torch tensor for each parameter. Directions have
    norm 1 over all parameters together, and the first checkpoint has no negative place. Raises MeasureError if all lie
    on one line, or too far apart.
    """
    import torch

    parameters = [torch.stack(list(of)) for of in zip(*weights, strict=True)]  # (n, ...) each
    centered = [p - p.mean(dim=0, keepdim=True) for p in parameters]
    n = len(weights)
    gram = torch.zeros(n, n, dtype=torch.float64)
    for p in centered:
        rows = p.reshape(n, -1).double().cpu()
        gram += rows @ rows.T
    if not gram.isfinite().all():
        raise measured.MeasureError("the distances between the checkpoints are not finite")
    variances, vectors = torch.linalg.eigh(gram)  # ascending; those of the n x n matrix are those of the P x P one
    if n < 3 or not variances[-2] > 1e-12 * variances[-1]:
        raise measured.MeasureError("the checkpoints lie on one line")
    directions, places = [], []
    for k in (-1, -2):
        mixed = vectors[:, k] / variances[k].sqrt()
        direction = [torch.tensordot(mixed.to(p), p, dims=1) for p in centered]
        along = sum(
            ((p - p[-1:]).reshape(n, -1).double() @ d.reshape(-1).double()).cpu()
            for p, d in zip(parameters, direction, strict=True)
        )
        sign = -1 if along[0] < 0 else 1
        directions.append([sign * d for d in direction])
        places.append(sign * along)
    shares = (variances.flip(0)[:2] / variances.sum()).tolist()
    return directions, torch.stack(places, dim=1).numpy(), tuple(shares)


def layout(grid: Grid, trajectory: Trajectory, weights_sha256: str) -> measured.Layout:
    """What a path file holds."""
    about = {
        "what": "loss in the plane of a trajectory's two principal directions (Li et al. 2018)", **asdict(grid),
        "steps": list(trajectory.steps), "trajectory": trajectory.points.tolist(), "shares": list(trajectory.shares),
        "weights_sha256": weights_sha256,
    }  # fmt: skip

    def coordinates() -> np.ndarray:
        a, b = np.meshgrid(*trajectory.axes(grid.points), indexing="ij")
        return np.stack([a.ravel(), b.ravel()], axis=1)

    return measured.Layout(KIND, grid.stem, about, "a,b", {"loss": measured.LOSS}, grid.points**2, coordinates)


def _content(about: Mapping[str, Any]) -> tuple[Grid, Trajectory]:
    points = np.array(about["trajectory"], dtype=float).reshape(-1, 2)
    first, second = map(float, about["shares"])
    return Grid.of(about), Trajectory(tuple(map(int, about["steps"])), points, (first, second))


def layout_of(about: Mapping[str, Any]) -> measured.Layout:
    """The layout that a file's first line stands for."""
    return layout(*_content(about), measured.digest(about["weights_sha256"]))


def read_path(file: str | Path) -> Path2D:
    """Reads a path file. Raises RunFileError, naming file and line."""
    found = measured.read(file, KIND, layout_of)
    return Path2D(*_content(found.layout.about), found.values[:, 0])


def rows(
    model, images, labels, directions: list[list], made: measured.Layout, mode: str, criterion: Callable = cross_entropy
) -> Callable:
    """What `measured.compute` asks for the rows of a path file."""

    def after(done: int) -> Iterable[tuple[float]]:
        return ((loss,) for loss in losses_at(model, images, labels, directions, made.places[done:], mode, criterion))

    return after

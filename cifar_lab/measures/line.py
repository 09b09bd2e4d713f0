"""Loss and accuracy on the straight line between two networks: linear mode connectivity (Frankle et al. 2020, "Linear
Mode Connectivity and the Lottery Ticket Hypothesis", section 2).

At w(t) = (1 - t) u + t v, for t from 0 to 1, the weights of two trained networks u and v are averaged, and BatchNorm's
running statistics are estimated again, as for averaged weights in Izmailov et al. (2018), "Averaging Weights Leads to
Wider Optima and Better Generalization", section 3.2: an average of statistics is not the statistics of an average. The
barrier is the largest error on the line minus the mean of the errors at its ends; with none, both networks lie in one
linearly connected region.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cifar_lab import escape
from cifar_lab.losses import cross_entropy
from cifar_lab.run_folder import measured
from cifar_lab.settings import flag, integer

BATCH = 128  # images per forward pass, at most
COLUMNS = {
    f"{part}_{name}": kind for part in ("train", "test")
    for name, kind in (("loss", measured.LOSS), ("accuracy", measured.ACCURACY))
}  # fmt: skip
KIND = "line"


@dataclass(frozen=True)
class Grid(measured.Settings):
    """What is evaluated."""

    points: int = flag(25, "on the line, both ends included", integer(3, measured.MOST_POINTS))  # evenly spaced
    images: int = measured.images(2_000)  # training images, not augmented; BatchNorm's statistics are of them too
    seed: int = measured.seed()  # of their choice

    def coordinates(self) -> np.ndarray:
        """(points, 1): t of each point."""
        return np.linspace(0, 1, self.points)[:, None]


@dataclass(frozen=True, eq=False)
class Line:
    """A line file's content so far: columns (n,), losses in nats and accuracies in percent."""

    grid: Grid
    to: str  # the other network's run: <preset>/<model>/<name>
    t: np.ndarray
    train_loss: np.ndarray
    train_accuracy: np.ndarray
    test_loss: np.ndarray
    test_accuracy: np.ndarray

    @property
    def complete(self) -> bool:
        return len(self.t) == self.grid.points


def barrier(error: np.ndarray) -> float:
    """The largest error on the line minus the mean of those at its two ends (Frankle et al. 2020, section 2).

    error: (n,) in any unit, from one network to the other.
    """
    return float(np.max(error) - (error[0] + error[-1]) / 2)


def stem(grid: Grid, to: str) -> str:
    """The name of the file in the first network's run folder, without its suffix."""
    whole = f"line-{grid.points}points-{grid.images}images-seed{grid.seed}-to-{to.replace('/', '-')}"
    return escape.shortened(whole, measured.LONGEST_STEM)


def layout(grid: Grid, to: str, weights_sha256: Sequence[str]) -> measured.Layout:
    """What a line file holds. weights_sha256: of both networks."""
    about = {
        "what": "loss and accuracy at (1 - t) u + t v, BatchNorm's statistics estimated again (Frankle et al. 2020)",
        **asdict(grid), "to": to, "weights_sha256": list(weights_sha256),
    }  # fmt: skip
    ends = 0, grid.points - 1
    return measured.Layout(KIND, stem(grid, to), about, "t", COLUMNS, grid.points, grid.coordinates, trained=ends)


def layout_of(about: Mapping[str, Any]) -> measured.Layout:
    """The layout that a file's first line stands for."""
    first, second = map(measured.digest, about["weights_sha256"])
    return layout(Grid.of(about), str(about["to"]), [first, second])


def read_line(file: str | Path) -> Line:
    """Reads a line file. Raises RunFileError, naming file and line."""
    found = measured.read(file, KIND, layout_of)
    about = found.layout.about
    grid = Grid.of(about)
    return Line(grid, about["to"], grid.coordinates()[: len(found.values), 0], *found.values.T)


def errors(
    model, ends: Sequence[Mapping], train: tuple, test: tuple, t: Sequence[float], criterion: Callable = cross_entropy
) -> Iterable[tuple]:
    """Loss and accuracy (percent) on training and test images for each t.

    model: a network of the ends' architecture, whose weights and buffers are changed. ends: the state dictionaries u
    and v, on its device. train, test: images (N, 3, 32, 32), labels (N,). Dropout is off where losses are computed.
    """
    import torch
    from torch.optim.swa_utils import update_bn

    from cifar_lab.measures.evaluation import evaluate, in_batches

    parts = [in_batches(*part, BATCH) for part in (train, test)]
    statistics = [images for images, _ in parts[0]]
    for at in t:
        u, v = ends
        model.load_state_dict({k: torch.lerp(u[k], v[k], at) if u[k].is_floating_point() else u[k] for k in u})
        update_bn(statistics, model)  # a mean over the batches; does nothing to a network without BatchNorm
        model.eval()
        row: list[float] = []
        for batches in parts:
            loss, confusion, _ = evaluate(model, batches, criterion)
            images = int(confusion.sum())
            row += [float(loss) / images, 100 * int(confusion.trace()) / images]  # the host waits for the device
        yield tuple(row)

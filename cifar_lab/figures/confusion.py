"""The confusion matrix."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cifar_lab import escape
from cifar_lab.figures.style import heading, plt, save

LARGE = 15  # classes up to which a cell has room for its number


def draw_confusion(
    counts: np.ndarray, classes: Sequence[str], stem: str | Path, *, title: str, what: str = "test images"
) -> list[Path]:
    """Confusion matrix: counts (C, C), row the true class, column the prediction. Returns the files' paths.

    what: of which images.
    """
    large, page = len(classes) <= LARGE, max(1.0, len(classes) / 40)  # their names need it
    figure, axes = plt.subplots(figsize=(6.4 * page, 5.6 * page))
    share = 100 * counts / counts.sum(axis=1, keepdims=True).clip(min=1)
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=100)
    for (row, column), count in np.ndenumerate(counts) if large else ():
        color = "white" if share[row, column] > 50 else "black"
        axes.text(column, row, str(count), ha="center", va="center", fontsize=8, color=color)
    names = [escape.figure(name) for name in classes]
    axes.set_xticks(range(len(classes)), names, **{"rotation": 45, "ha": "right"} if large else {"rotation": 90})
    axes.set_yticks(range(len(classes)), names)
    axes.tick_params(labelsize="medium" if large else 6)
    axes.set(xlabel="predicted class", ylabel="true class")
    axes.grid(False)
    heading(figure, f"{title}: {what} by class", 10)
    figure.colorbar(image, label="share of the true class (%)", shrink=0.8)
    return save(figure, stem)

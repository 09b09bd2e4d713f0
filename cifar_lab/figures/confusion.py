"""The confusion matrix."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cifar_lab.figures.style import plt, save


def draw_confusion(counts: np.ndarray, classes: Sequence[str], stem: str | Path, *, title: str) -> list[Path]:
    """Confusion matrix: counts (C, C), row the true class, column the prediction. Returns the files' paths."""
    figure, axes = plt.subplots(figsize=(6.4, 5.6))
    share = 100 * counts / counts.sum(axis=1, keepdims=True).clip(min=1)
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=100)
    for (row, column), count in np.ndenumerate(counts):
        color = "white" if share[row, column] > 50 else "black"
        axes.text(column, row, str(count), ha="center", va="center", fontsize=8, color=color)
    axes.set_xticks(range(len(classes)), classes, rotation=45, ha="right")
    axes.set_yticks(range(len(classes)), classes)
    axes.set(xlabel="predicted class", ylabel="true class")
    axes.grid(False)
    figure.suptitle(f"{title}: test images by class", fontsize=10)
    figure.colorbar(image, label="share of the true class (%)", shrink=0.8)
    return save(figure, stem)

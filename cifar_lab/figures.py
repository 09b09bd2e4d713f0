"""The look that all figures share: sizes, a colour-blind-safe palette, the small print, PNG and SVG side by side."""

import functools
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np

from cifar_lab.files import write_whole

matplotlib.use("Agg")
import matplotlib.pyplot as plt

# Okabe and Ito (2008): distinguishable with every common colour vision. One colour, one meaning, in all figures.
COLOURS = {
    "vgg_a": "#D55E00",
    "vgg_a_bn": "#0072B2",
    "inception": "#000000",
    "inception_res": "#009E73",
    "adam": "#E69F00",
    "adamw": "#56B4E9",
    "rmsprop": "#CC79A7",
}
LABELS = {
    "vgg_a": "VGG-A",
    "vgg_a_bn": "VGG-A + BatchNorm",
    "inception": "Inception v1",
    "inception_res": "residual Inception",
    "adam": "Adam",
    "adamw": "AdamW",
    "rmsprop": "RMSprop",
    "sgd": "SGD",
}

plt.rcParams.update(
    {
        "figure.figsize": (6.4, 4.0),
        "figure.dpi": 100,
        "savefig.dpi": 160,
        "figure.constrained_layout.use": True,
        "font.size": 10,
        "axes.titlesize": 11,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.alpha": 0.25,
        "lines.linewidth": 1.4,
        "legend.frameon": False,
        "svg.hashsalt": "cifar-lab",  # the same figure gives the same file
        "svg.fonttype": "none",
    }
)


def small_print(figure, text: str) -> None:
    """Puts the preset and the settings under the axes, inside the page."""
    figure.supxlabel(text, fontsize=7.5, color="0.35", x=0.01, ha="left")


def save(figure, stem: str | Path) -> list[Path]:
    """Writes `<stem>.png` and `<stem>.svg` and closes the figure. Returns both paths."""
    stem = Path(stem)
    stem.parent.mkdir(parents=True, exist_ok=True)
    paths = []
    for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None})):
        paths.append(stem.with_name(f"{stem.name}.{kind}"))
        write_whole(paths[-1], functools.partial(figure.savefig, format=kind, metadata=metadata))
    plt.close(figure)
    return paths


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

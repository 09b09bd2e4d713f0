"""A look inside a trained network: first filters, most confident mistakes, how far its probabilities can be trusted."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cifar_lab import escape
from cifar_lab.figures.style import heading, height_of, plt, save, wrapped
from cifar_lab.measures.calibration import Calibration


def draw_filters(weights: np.ndarray, stem: str | Path, *, title: str) -> list[Path]:
    """The filters (F, 3, K, K) of a first convolution as colors: 0 is gray, and each goes as far as its largest weight.

    Returns the files' paths.
    """
    largest = np.abs(weights).max(axis=(1, 2, 3), keepdims=True)
    images = 0.5 + 0.5 * weights / np.where(largest > 0, largest, 1)
    title += ": the filters of the first convolution"
    figure = _pictures(images.transpose(0, 2, 3, 1), [""] * len(images), title, columns=16, size=0.5)
    return save(figure, stem)


def draw_mistakes(images: np.ndarray, words: Sequence[str], stem: str | Path, *, title: str) -> list[Path]:
    """Images (N, 32, 32, 3) uint8 that the network takes for another class, with words under each; N may be 0."""
    title += f": the most confident mistakes{'' if len(images) else ' (none)'}"
    figure = _pictures(images, words, title, columns=6, size=1.5)
    return save(figure, stem)


def _pictures(images: np.ndarray, words: Sequence[str], title: str, columns: int, size: float):
    """Images (N, H, W, 3) in rows, with words under each; size: of one, in inches."""
    columns = max(1, min(columns, len(images)))
    rows = max(1, -(-len(images) // columns))
    width = max(3.0, columns * size)  # the title needs it
    figure, axes = plt.subplots(rows, columns, figsize=(width, 1), squeeze=False, layout="compressed")
    heading(figure, title, 10)
    words = [wrapped(figure, text, 7, 0.95 * size / width) for text in words]
    lines = max((1 + text.count("\n") for text in words if text), default=0)
    figure.set_figheight(rows * (size + 0.12 * lines + 0.1) + height_of(figure.texts) + 0.15)
    for ax in axes.flat:
        ax.set_axis_off()
    for ax, image, text in zip(axes.flat, images, words, strict=False):
        ax.imshow(image)
        ax.set_title(escape.figure(text), fontsize=7, y=0, pad=-3, va="top")
    return figure


def draw_reliability(measured: Calibration, stem: str | Path, *, title: str) -> list[Path]:
    """Accuracy against confidence (Guo et al. 2017, figure 1), and how many images there are of each confidence."""
    figure, (axes, below) = plt.subplots(2, 1, figsize=(5.2, 5.8), sharex=True, height_ratios=(3, 1))
    width = np.diff(measured.edges)
    axes.bar(
        measured.edges[:-1], np.nan_to_num(measured.accuracy), width, align="edge", edgecolor="white", label="accuracy"
    )
    axes.plot(measured.confidence, measured.confidence, "_", color="black", markersize=14, label="mean confidence")
    axes.plot([0, 1], [0, 1], "--", color="0.5", linewidth=1, label="perfectly calibrated")
    axes.set(xlim=(0, 1), ylim=(0, 1), ylabel="share of right predictions")
    axes.legend(loc="upper left")
    below.bar(measured.edges[:-1], measured.count, width, align="edge", edgecolor="white", color="0.5")
    below.set(xlabel="confidence: probability of the predicted class", ylabel="images")
    error = measured.expected_error
    heading(figure, f"{title}: expected calibration error {100 * error:.2f}% ({len(width)} bins)", 10)
    return save(figure, stem)

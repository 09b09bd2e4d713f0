"""A small data set in the place of CIFAR-10, in the same cache format, whose classes can be learned in a few epochs."""

import colorsys
from pathlib import Path

import numpy as np

from cifar_lab.data.cache import write_cache


def write_synthetic(folder: Path, train: int = 2000, test: int = 500, seed: int = 0) -> Path:
    """Makes `folder` a data directory of `train` and `test` images and returns it.

    A class is one of five hues, and stripes that lie or stand: neither a flip nor the color jitter makes one class
    another. Phase, period and contrast of the stripes, and the noise, are each image's own.
    """
    rng = np.random.default_rng(seed)
    arrays = {}
    for part, count in (("train", train), ("test", test)):
        labels = rng.permutation(np.arange(count) % 10).astype(np.uint8)
        arrays |= {f"{part}_images": _images(labels, rng), f"{part}_labels": labels}
    write_cache(folder, arrays, name=f"synthetic stripes (seed {seed})")
    return folder


def _images(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    count = len(labels)
    colors = 255 * np.array([colorsys.hsv_to_rgb(hue / 5, 0.6, 0.7) for hue in range(5)], np.float32)
    period, phase, contrast = (rng.uniform(*r, (count, 1)) for r in ((6, 10), (0, 2 * np.pi), (0.3, 0.5)))
    wave = 1 + contrast * np.sin(2 * np.pi * np.arange(32) / period + phase)  # (count, 32)
    lies = (labels >= 5)[:, None, None]
    pattern = np.where(lies, wave[:, :, None], wave[:, None, :])  # (count, 32, 32)
    images = pattern[..., None] * colors[labels % 5][:, None, None, :]
    return np.clip(images + rng.normal(0, 20, images.shape), 0, 255).astype(np.uint8)

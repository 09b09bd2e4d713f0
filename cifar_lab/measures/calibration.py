"""Calibration: whether a network is right as often as it says (Guo et al. 2017, "On Calibration of Modern Neural
Networks", section 2)."""

from dataclasses import dataclass

import numpy as np

BINS = 15  # of equal width, as in the paper's tables


@dataclass(frozen=True, eq=False)
class Calibration:
    """The images by their confidence, the probability of the class that is predicted. Arrays (bins,)."""

    edges: np.ndarray  # (bins + 1,) of the confidence, from 0 to 1; a bin is without its lower edge
    count: np.ndarray  # images
    accuracy: np.ndarray  # share that is right; NaN in an empty bin
    confidence: np.ndarray  # mean; NaN in an empty bin

    @property
    def expected_error(self) -> float:
        """The expected calibration error: the mean over the images of |accuracy - confidence| of their bin (eq. 3)."""
        filled = self.count > 0
        gaps = np.abs(self.accuracy - self.confidence)[filled]
        return float(gaps @ self.count[filled] / self.count.sum())


def calibration(confidence: np.ndarray, right: np.ndarray, bins: int = BINS) -> Calibration:
    """confidence: (N,) from 0 to 1. right: (N,) bool, whether the class that it is of is the true one."""
    edges = np.linspace(0, 1, bins + 1)
    place = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)
    count, correct, total = (np.bincount(place, weights, bins) for weights in (None, right, confidence))
    with np.errstate(invalid="ignore"):
        return Calibration(edges, count, correct / count, total / count)

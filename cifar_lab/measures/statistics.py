"""Statistics of accuracies and of effects over seeds. Functions of arrays."""

import math

import numpy as np


def fluctuation(test_accuracy: np.ndarray, epochs: int) -> float:
    """Jaggedness of the last half of the first `epochs` epochs, in points; NaN with fewer than two differences.

    Standard deviation (n - 1) of the differences from epoch to epoch, divided by sqrt(2): the standard deviation of
    the epochs themselves if they scatter independently around a trend.
    """
    differences = np.diff(test_accuracy[epochs // 2 : epochs])
    return float(differences.std(ddof=1) / math.sqrt(2)) if len(differences) >= 2 else math.nan


# Two-sided 95% quantiles of Student's t for 1 to 30 degrees of freedom (Abramowitz & Stegun 1964, table 26.10).
T_QUANTILES = (
    12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281,
    2.2010, 2.1788, 2.1604, 2.1448, 2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860,
    2.0796, 2.0739, 2.0687, 2.0639, 2.0595, 2.0555, 2.0518, 2.0484, 2.0452, 2.0423,
)  # fmt: skip


def t_quantile(degrees: int) -> float:
    """The 97.5% quantile of Student's t; beyond 30 degrees of freedom to 2e-6 (Abramowitz & Stegun, 26.7.5)."""
    if degrees <= len(T_QUANTILES):
        return T_QUANTILES[degrees - 1]
    z = 1.959963985
    return (
        z
        + (z**3 + z) / (4 * degrees)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * degrees**3)
    )

"""A screening design: the effects of up to eleven two-level factors from twelve observations."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cifar_lab.measures.statistics import t_quantile

# Plackett & Burman (1946), "The Design of Optimum Multifactorial Experiments", the generating row for N = 12.
GENERATOR = (1, 1, -1, 1, 1, 1, -1, -1, -1, 1, -1)


def plackett_burman() -> np.ndarray:
    """The design of 12 rows and 11 columns of -1 and 1: the generating row shifted cyclically, then a row of -1.

    Columns are balanced and orthogonal. An interaction of two factors is spread over all other columns with a weight of
    1/3: main effects are what such a design tells, and a large one deserves a run of its own.
    """
    return np.array([*(np.roll(GENERATOR, shift) for shift in range(11)), [-1] * 11])


@dataclass(frozen=True, eq=False)
class MainEffects:
    """What is said of the columns that hold a factor."""

    effects: np.ndarray  # (k,): mean at 1 minus mean at -1
    half: float | None  # of their 95% intervals; None if the other columns do not scatter, or there are none
    degrees: int  # of freedom


def main_effects(values: np.ndarray, columns: Sequence[int]) -> MainEffects:
    """Main effects from one value per row of the design; columns: the k that hold a factor.

    The m = 11 - k other columns have only error for an effect, whose interval is E +- t(0.975, m) sqrt(sum of their
    squared effects / m). That is the t interval of the least-squares fit of k main effects, whose residuals have m
    degrees of freedom (Plackett & Burman 1946; Box, Hunter & Hunter 2005, "Statistics for Experimenters").
    """
    changes = values - values[-1]
    every = plackett_burman().T @ changes / 6
    every[np.abs(every) < 1e-12 * np.abs(changes).max()] = 0.0  # but for rounding
    rest = np.delete(every, columns)
    half = t_quantile(len(rest)) * float(np.sqrt(np.mean(rest**2))) if rest.any() else None
    return MainEffects(every[list(columns)], half, len(rest))

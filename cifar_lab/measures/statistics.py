"""Statistics of accuracies and of effects over seeds. Functions of arrays."""

import math
from collections.abc import Sequence

import numpy as np

FEWEST_SEEDS, MOST_SEEDS = 3, 10  # from and up to which effects are tested

# --- Accuracies -------------------------------------------------------------------------------------------------------


def fluctuation(test_accuracies: Sequence[np.ndarray], epochs: int) -> float:
    """Jaggedness of the last half of the first `epochs` epochs, in points, pooled over runs.

    Per run the standard deviation (n - 1) of the n differences of test accuracy from epoch to epoch, divided by
    sqrt(2): the standard deviation of the epochs themselves if they scatter independently around a trend. Pooled is the
    root of the mean variance, weighted by n - 1. NaN if a run has fewer than two differences.
    """
    differences = [np.diff(accuracy[epochs // 2 : epochs]) for accuracy in test_accuracies]
    if min(map(len, differences)) < 2:
        return math.nan
    squares = sum(float(((d - d.mean()) ** 2).sum()) for d in differences)
    return math.sqrt(squares / sum(len(d) - 1 for d in differences) / 2)


def differences_of(epochs: int) -> int:
    """How many differences of a run's accuracies `fluctuation` is from."""
    return max(0, epochs - epochs // 2 - 1)


def bootstrap_over_images(differences: np.ndarray, resamples: int = 2_000) -> tuple[float, float]:
    """95% percentile interval of a mean over test images, in points: paired bootstrap (Efron & Tibshirani 1993).

    differences: (N,), per image the share of seeds in which the first network is right minus that of the second; the
    same images for both. It says how much the difference depends on which images are in the test set, given these
    trained networks; it says nothing about other seeds. Always the same resamples.
    """
    rng = np.random.default_rng(0)
    n = len(differences)
    means = [differences[rng.integers(n, size=n)].mean() for _ in range(resamples)]
    low, high = np.percentile(means, [2.5, 97.5])
    return 100 * float(low), 100 * float(high)


# --- Distributions ----------------------------------------------------------------------------------------------------


def student_tail(t: np.ndarray | float, degrees: int) -> np.ndarray:
    """P(T > t) for Student's t with an integer number of degrees of freedom (Abramowitz & Stegun 1964, 26.7.3-4)."""
    angle = np.arctan(np.asarray(t, dtype=np.float64) / math.sqrt(degrees))
    cosine, odd = np.cos(angle), degrees % 2
    term = cosine if odd else np.ones_like(angle)
    total = np.zeros_like(angle) if degrees == 1 else term
    for k in range(2 + odd, degrees - 1, 2):
        term = term * cosine**2 * (k - 1) / k
        total = total + term
    inside = (angle + np.sin(angle) * total) * 2 / math.pi if odd else np.sin(angle) * total
    return (1 - inside) / 2


def t_quantile(degrees: int, level: float = 0.05) -> float:
    """The t beyond which Student's distribution has `level` on both sides together; to 1e-9 of itself."""
    low, high = 0.0, 1.0
    while student_tail(high, degrees) > level / 2:
        high *= 2
    while high - low > 1e-9 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if student_tail(middle, degrees) > level / 2 else (low, middle)
    return high


def binomial_tail(k: int, n: int, p: float = 0.5) -> float:
    """P(X >= k) for X the number of successes in n independent trials of probability p."""
    return math.fsum(math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(max(0, k), n + 1))


def clopper_pearson(k: int, n: int, level: float = 0.05) -> tuple[float, float]:
    """Exact confidence limits (1 - level) of a probability after k successes in n trials (Clopper & Pearson 1934)."""

    def solve(tail) -> float:
        """Where a tail that grows with p reaches level / 2."""
        low, high = 0.0, 1.0
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if tail(middle) < level / 2 else (low, middle)
        return low

    lower = solve(lambda p: binomial_tail(k, n, p)) if k else 0.0
    upper = 1 - solve(lambda q: binomial_tail(n - k, n, q)) if k < n else 1.0
    return lower, upper


# --- Tests ------------------------------------------------------------------------------------------------------------


def which_side(value: float, side: tuple[float, float]) -> int:
    """1: in the open interval `side`, to which an infinite end belongs; -1: outside; 0: on its end, or NaN."""
    low, high = side
    if value < low or value > high:
        return -1
    return int((value > low or low == -math.inf) and (value < high or high == math.inf))


def sides(values: np.ndarray, side: tuple[float, float], exact: bool = False) -> tuple[float, float]:
    """One-sided p-values for "the mean lies in the open interval `side`" and for "it lies outside".

    values: (n,), one per seed. Student's t against each finite end (two one-sided tests, Schuirmann 1987). The exact
    sign test, of the median, if `exact`, and if t says nothing: an infinite value (censored: "not reached"), or no
    scatter at all. NaN has no side and does not count. With fewer than three values (1, 1).
    """
    values = values[~np.isnan(values)]
    n = len(values)
    if n < FEWEST_SEEDS:
        return 1.0, 1.0
    spread = 0.0 if exact or not np.isfinite(values).all() else float(values.std(ddof=1)) / math.sqrt(n)
    if spread:
        mean = float(values.mean())
        below, above = (float(student_tail((mean - end) / spread, n - 1)) for end in side)
        return max(below, 1 - above), min(1 - below, above)
    lies = [which_side(value, side) for value in values]
    inside, outside = lies.count(1), lies.count(-1)  # a value on the end itself is a tie
    return binomial_tail(inside, inside + outside), binomial_tail(outside, inside + outside)


# Of a two-sided test that is repeated after each of 3 to 10 seeds, the level of each look at which all looks together
# err in 0.05 / m of null cases, for m = 1, 2, ... (Pocock 1977, here with Student's t). Computed by
# `python -m bench.null_verdicts --levels`.
LOOK_LEVELS = (
    0.0119, 0.00547, 0.00348, 0.00253, 0.00199, 0.00162, 0.00136, 0.00118, 0.00104, 0.00093, 0.00084, 0.00076,
    0.00070, 0.00064, 0.00060, 0.00056, 0.00052, 0.00049, 0.00046, 0.00044, 0.00042, 0.00040, 0.00038, 0.00036,
)  # fmt: skip


def holm(p: Sequence[float]) -> list[tuple[float, bool]]:
    """For each p-value of a family the level that it is compared with, and whether it decides (Holm 1979).

    The smallest of m is compared with the level of each look for 0.05 / m, the next with that for 0.05 / (m - 1), and
    so on; after the first that exceeds its level, none decides. So at most 5% of families of true null hypotheses have
    a false decision at any look (the combination: Maurer & Bretz 2013).
    """
    results = [(0.0, False)] * len(p)
    going = True
    for rank, i in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        level = LOOK_LEVELS[len(p) - rank - 1]
        going = going and p[i] <= level
        results[i] = (level, going)
    return results

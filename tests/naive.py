"""The measures of the report computed slowly, step by step, from their definitions: expected values for tests.

Shares no code with the modules that it is compared with.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

# Two-sided 95% quantile of Student's t by the number of values: 12.7062 for one degree of freedom, and so on.
T_95 = {2: 12.7062, 3: 4.3027, 4: 3.1824, 5: 2.7764, 6: 2.5706, 7: 2.4469, 8: 2.3646, 9: 2.3060}
# Exact 95% limits of a share by successes and trials (Clopper & Pearson 1934, from tables of the F distribution).
EXACT_95 = {(0, 1): (0, 0.975), (1, 1): (0.025, 1), (0, 3): (0, 0.7076), (3, 3): (0.2924, 1), (0, 9): (0, 0.3363),
            (3, 9): (0.0749, 0.7007), (6, 9): (0.2993, 0.9251), (9, 9): (0.6637, 1)}  # fmt: skip


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The 95% t interval of the mean."""
    n, mean = len(values), sum(values) / len(values)
    half = T_95[n] * math.sqrt(sum((x - mean) ** 2 for x in values) / (n - 1)) / math.sqrt(n)
    return mean - half, mean + half


# --- Curves over the epochs -------------------------------------------------------------------------------------------


def last_epochs(epochs: int) -> int:
    """The last tenth of a run, at least the last three."""
    return min(epochs, max(3, epochs // 10))


def final(accuracy: Sequence[float]) -> float:
    count = last_epochs(len(accuracy))
    return sum(accuracy[-count:]) / count


def geometric(values: Sequence[float]) -> tuple[float, float, float]:
    """Geometric mean, and the ends of its interval: those of the logarithms' mean, exponentiated."""
    logs = [math.log(x) for x in values]
    ends = interval(logs) if len(logs) > 1 else (math.nan, math.nan)
    return (math.exp(sum(logs) / len(logs)), *map(math.exp, ends))


def pooled_fluctuation(accuracies: Sequence[Sequence[float]], shared: int) -> float:
    """Of runs of one length, which have equally many differences: the root of the mean variance."""
    return math.sqrt(sum(fluctuation(accuracy, shared) ** 2 for accuracy in accuracies) / len(accuracies))


def fluctuation(accuracy: Sequence[float], shared: int) -> float:
    """Over the last half of the first `shared` epochs; of an odd number the middle epoch belongs to it."""
    half = list(accuracy[:shared])[shared // 2 :]
    differences = [after - before for before, after in pairwise(half)]
    mean = sum(differences) / len(differences)
    return math.sqrt(sum((d - mean) ** 2 for d in differences) / (len(differences) - 1) / 2)


def quarters_end(epochs: int) -> list[int]:
    """The epochs (from 1) around the first quarter's end, as many as "final" has: 41 to 60 of 200; 1 and 2 of 5."""
    count = last_epochs(epochs)
    first = max(1, epochs // 4) + 1 - math.ceil(count / 2)
    return list(range(max(1, first), first + count))


def gain_and_fall(accuracy: Sequence[float], loss: Sequence[float]) -> tuple[float, float]:
    """From the first quarter's end to the end: gain of accuracy in points, fall of the loss in percent."""
    quarter = quarters_end(len(accuracy))
    before = [sum(curve[epoch - 1] for epoch in quarter) / len(quarter) for curve in (accuracy, loss)]
    return final(accuracy) - before[0], 100 * (before[1] - final(loss)) / before[1]


# --- Curves over the steps --------------------------------------------------------------------------------------------


def window(run_steps: int) -> int:
    """501 steps, or a fifth of the run, the next smaller odd number; at least 1."""
    return max(n for n in range(1, 502, 2) if n == 1 or 5 * n <= run_steps)


def running_median(curve: Sequence[float], width: int) -> np.ndarray:
    """Centred; beyond the ends the first and the last value are repeated."""
    positions = np.arange(len(curve))[:, None] + np.arange(-(width // 2), width // 2 + 1)
    return np.median(np.asarray(curve)[positions.clip(0, len(curve) - 1)], axis=1)


def running_mean(curve: Sequence[float], width: int) -> np.ndarray:
    """Centred; beyond the ends the first and the last value are repeated."""
    positions = np.arange(len(curve))[:, None] + np.arange(-(width // 2), width // 2 + 1)
    return np.asarray(curve)[positions.clip(0, len(curve) - 1)].mean(axis=1)


def times_to_levels(curve: Sequence[float], width: int, levels: Sequence[float]) -> list[float]:
    """For each level the first step whose running median is under it; infinite: not reached."""
    medians = running_median(curve, width)
    return [next((t for t, x in enumerate(medians, start=1) if x < level), math.inf) for level in levels]


def last_wider_step(bn: Sequence[Sequence[float]], plain: Sequence[Sequence[float]]) -> int:
    """The last step up to which BN's widths add up to no less than the plain ones; both bands have two runs."""
    sums, last = [0.0, 0.0], 0
    for t, pair in enumerate(zip(bn, plain, strict=True), start=1):
        sums = [total + max(losses) - min(losses) for total, losses in zip(sums, pair, strict=True)]
        last = t if sums[0] >= sums[1] else last
    return last


def excursions(at_each_step: Sequence[Sequence[float]], width: int) -> int:
    """Starts of stretches in which the upper curve's median over 21 steps is above its long median plus 0.3."""
    upper = [max(losses) for losses in at_each_step if losses]
    high = running_median(upper, min(21, width)) > running_median(upper, width) + 0.3
    return sum(now and not before for before, now in pairwise([False, *high]))


def band(losses: Sequence[Sequence[float]], steps: int) -> list[list[float]]:
    """At each step the losses of the runs that are still there: before their end and their first non-finite loss."""
    there = []
    for curve in losses:
        bad = [t for t, loss in enumerate(curve) if not math.isfinite(loss)]
        there.append(min([len(curve), *bad]))
    return [[float(curve[t]) for curve, end in zip(losses, there, strict=True) if t < end] for t in range(steps)]


def spikes(at_each_step: Sequence[Sequence[float]], width: int, *rules: tuple[str, float]) -> list[float]:
    """Steps per 1,000 at which the upper curve is above its running median times, or plus, the rule's threshold."""
    upper = np.array([max(losses) for losses in at_each_step if losses])
    median = running_median(upper, width)
    limits = [median * threshold if kind == "relative" else median + threshold for kind, threshold in rules]
    return [1000 * sum(upper > limit) / len(upper) for limit in limits]


def settled_step(at_each_step: Sequence[Sequence[float]], width: int, level: float = 1.0) -> int | None:
    """The step after which the running median of the middle stays under the level; None: not reached."""
    if not at_each_step[-1]:
        return None
    medians = running_median([(max(losses) + min(losses)) / 2 for losses in at_each_step], width)
    settled = len(medians)
    while settled and medians[settled - 1] < level:
        settled -= 1
    return settled if settled < len(medians) else None


def compare_widths(bn: Sequence[Sequence[float]], plain: Sequence[Sequence[float]]) -> tuple[float, ...]:
    """Ratio of the mean widths (BN / plain), share of steps with the narrower BN (%), and both mean widths.

    Over the steps at which both bands have two runs or more.
    """
    pairs = [(max(b) - min(b), max(p) - min(p)) for b, p in zip(bn, plain, strict=False) if min(len(b), len(p)) > 1]
    bn_width, plain_width = (sum(widths) / len(pairs) for widths in zip(*pairs, strict=True))
    return bn_width / plain_width, 100 * sum(b < p for b, p in pairs) / len(pairs), bn_width, plain_width

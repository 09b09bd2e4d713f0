"""The learning-rate band: runs of one network that differ in nothing but the learning rate; at each step the largest
and the smallest training loss over them, and what is computed from the two curves. Functions of arrays."""

import math
from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

MEDIAN_WINDOW = 501  # steps
SPIKE_THRESHOLDS = {"relative": 2.0, "absolute": 0.5}
DECIDING_STEPS = 10_000  # a band's ratio of widths crosses 1 for the last time after step 5,636 at the report preset
LEVELS = (1.0, 0.5, 0.2, 0.1)  # nats, of the training loss
EXCURSION_WINDOW, EXCURSION_HEIGHT = 21, 0.3  # steps, nats


def band_steps(run_steps: int) -> int:
    """Over how many steps of a run its band is read: the first half, and 10,000 steps if the run has so many."""
    return max(1, run_steps // 2, DECIDING_STEPS if run_steps >= DECIDING_STEPS else 0)


def default_window(run_steps: int) -> int:
    """Window of the running medians: 501 steps, or a fifth of the run if that is shorter; odd."""
    window = max(1, min(MEDIAN_WINDOW, run_steps // 5))
    return window - (window + 1) % 2


def running_median(x: np.ndarray, window: int) -> np.ndarray:
    """Centred running median with the ends repeated. x: (T,) without NaN; window: odd, in steps. Returns (T,) float64.

    The window is kept as a sorted list, one removal and one insertion per step: exact, and 20 times as fast as
    `numpy.partition` of every window.
    """
    if window < 1 or window % 2 == 0:
        raise ValueError(f"the window of a running median is odd and positive, not {window}")
    x = np.asarray(x, dtype=np.float64)
    if not len(x):
        return x.copy()
    half = window // 2
    padded = np.pad(x, half, mode="edge").tolist()
    ordered = sorted(padded[:window])
    medians = [ordered[half]]
    for leaving, entering in zip(padded, padded[window:], strict=False):
        del ordered[bisect_left(ordered, leaving)]
        insort(ordered, entering)
        medians.append(ordered[half])
    return np.array(medians)


def running_mean(x: np.ndarray, window: int) -> np.ndarray:
    """Centred running mean with the ends repeated, as `running_median` has them. x: (T,) without NaN. (T,) float64."""
    x = np.asarray(x, dtype=np.float64)
    if not len(x):
        return x.copy()
    sums = np.cumsum(np.insert(np.pad(x, window // 2, mode="edge"), 0, 0.0))
    return (sums[window:] - sums[:-window]) / window


@dataclass(frozen=True, eq=False)
class Band:
    """The band of R training losses over the first T of its steps, those that a run has logged.

    From the step on at which no run is left, the curves are NaN.
    """

    upper: np.ndarray  # (T,) nats: the largest loss over the runs
    lower: np.ndarray  # (T,) nats: the smallest
    present: np.ndarray  # (T,) number of runs that still have a finite loss
    runs: int  # R
    window: int  # of the running medians, in steps
    steps: int  # that it is to have; T if a run has logged them all

    @property
    def middle(self) -> np.ndarray:
        """(T,) nats: halfway between the two curves."""
        return (self.upper + self.lower) / 2

    @property
    def width(self) -> np.ndarray:
        """(T,) nats: upper - lower. NaN if fewer than two runs are left: one curve has no width."""
        return np.where(self.present >= 2, self.upper - self.lower, np.nan)

    @cached_property
    def upper_median(self) -> np.ndarray:
        """(T,) nats: running median of the upper curve."""
        return self._median(self.upper, self.window)

    @cached_property
    def lower_median(self) -> np.ndarray:
        """(T,) nats: running median of the lower curve."""
        return self._median(self.lower, self.window)

    @cached_property
    def middle_median(self) -> np.ndarray:
        """(T,) nats: running median of the middle."""
        return self._median(self.middle, self.window)

    def _median(self, curve: np.ndarray, window: int) -> np.ndarray:
        left = int(np.count_nonzero(self.present))  # runs never come back: the curve is a finite head and a NaN tail
        return np.concatenate([running_median(curve[:left], window), curve[left:]])


def band(losses: Sequence[np.ndarray], steps: int, run_steps: int | None = None, *, batch_noise: bool = True) -> Band:
    """The learning-rate band, upper(t) = max over the runs of loss(t) and lower(t) = min: raw values, not smoothed.

    batch_noise: if not, each run's loss is first replaced by its running mean over the window of the running medians
    (501 steps). The raw width includes the scatter of single batches, this one does not.

    losses: R arrays (S_r,), the loss of each run at the steps 1 to S_r. A run is missing from its first non-finite
    loss on, and after its end. steps: how many steps the band has, `band_steps` of the planned ones. run_steps: the
    planned steps, from which the running medians' window follows (default: twice `steps`). Raises ValueError without
    losses or without steps.
    """
    if not len(losses) or steps < 1:
        raise ValueError(f"a band needs at least one run and one step, not {len(losses)} and {steps}")
    window = default_window(2 * steps if run_steps is None else run_steps)
    table = np.full((len(losses), min(steps, max(map(len, losses)))), np.nan)  # not steps that are only planned
    for row, loss in zip(table, losses, strict=True):
        loss = np.asarray(loss, dtype=np.float64)[:steps]
        lost = np.flatnonzero(~np.isfinite(loss))
        end = lost[0] if len(lost) else len(loss)
        row[:end] = loss[:end] if batch_noise else running_mean(loss[:end], window)
    return Band(
        upper=np.fmax.reduce(table),
        lower=np.fmin.reduce(table),
        present=np.isfinite(table).sum(axis=0),
        runs=len(losses),
        window=window,
        steps=steps,
    )


def spikes(band: Band, kind: str = "relative", threshold: float | None = None) -> float:
    """Spikes of the upper curve per 1,000 steps; steps are counted, not excursions. NaN if no run has a step.

    relative: steps at which upper is above `threshold` (default 2) times its running median; absolute: at which it is
    above that median plus `threshold` (default 0.5 nats). The two disagree if the loss is small, so both are shown.
    """
    if kind not in SPIKE_THRESHOLDS:
        raise ValueError(f"spikes are {' or '.join(SPIKE_THRESHOLDS)}, not {kind!r}")
    threshold = SPIKE_THRESHOLDS[kind] if threshold is None else threshold
    median = band.upper_median
    limit = median * threshold if kind == "relative" else median + threshold
    steps = np.count_nonzero(band.present)
    return 1000 * int(np.count_nonzero(band.upper > limit)) / steps if steps else math.nan


def settled_step(band: Band, level: float = 1.0) -> int | None:
    """The step after which the running median of the band's middle stays under `level` (nats).

    0 where it is under from the first step on; None if it is not under at the band's end.
    """
    above = np.flatnonzero(~(band.middle_median < level))  # NaN, if no run is left, is not under
    last = int(above[-1]) + 1 if len(above) else 0
    return None if last == len(band.upper) or len(band.upper) < band.steps else last


def times_to_levels(losses: np.ndarray, levels: Sequence[float], window: int) -> list[int | None]:
    """For each level (nats) the first step at which the running median of one run's loss is under it; None: never.

    losses: (S,) nats, read up to the first that is not finite. window: of the running median, in steps, odd.
    """
    losses = np.asarray(losses, dtype=np.float64)
    finite = np.isfinite(losses)
    median = running_median(losses if finite.all() else losses[: finite.argmin()], window)
    return [int((median < level).argmax()) + 1 if (median < level).any() else None for level in levels]


def excursions(band: Band) -> int:
    """How often the upper curve leaves its course and stays away: a count of excursions, however long each lasts.

    An excursion is an unbroken series of steps at which the running median of upper over 21 steps is above its running
    median over 501 steps plus 0.3 nats. A single bad batch is none: at least 11 of 21 steps have to be high.
    """
    short = band._median(band.upper, min(EXCURSION_WINDOW, band.window))
    away = short > band.upper_median + EXCURSION_HEIGHT
    return int(np.count_nonzero(np.diff(away.astype(int), prepend=0) == 1))


def width_ratio(bn: Band, plain: Band) -> np.ndarray:
    """(T,) ratio(t), the mean width of BN's band over the steps up to t, divided by that of the plain band.

    The last value is `compare_bands`'s width_ratio if both bands have a width at each step. A step at which one has
    none counts for neither; NaN before the first that counts, and where the plain band has had no width but 0.
    """
    steps = min(len(bn.upper), len(plain.upper))
    widths = np.stack([bn.width[:steps], plain.width[:steps]])
    widths[:, ~np.isfinite(widths).all(axis=0)] = 0
    sums = widths.cumsum(axis=1)
    return np.divide(sums[0], sums[1], out=np.full(steps, np.nan), where=sums[1] > 0)


def compare_bands(bn: Band, plain: Band) -> dict[str, float]:
    """Both bands over the steps at which both have a width; NaN if there is no such step.

    Returns bn_width and plain_width (mean widths, nats), width_ratio (BN / plain), narrower_share (share of the steps,
    0 to 1, at which BN's band is the narrower one) and steps (how many are compared).
    """
    steps = min(len(bn.upper), len(plain.upper))
    widths = np.stack([bn.width[:steps], plain.width[:steps]])
    widths = widths[:, np.isfinite(widths).all(axis=0)]
    if not widths.size:
        return dict.fromkeys(("bn_width", "plain_width", "width_ratio", "narrower_share"), math.nan) | {"steps": 0}
    bn_width, plain_width = widths.mean(axis=1).tolist()
    return {
        "bn_width": bn_width,
        "plain_width": plain_width,
        "width_ratio": bn_width / plain_width if plain_width else math.nan,
        "narrower_share": float((widths[0] < widths[1]).mean()),
        "steps": widths.shape[1],
    }

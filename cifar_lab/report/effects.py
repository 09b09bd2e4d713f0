"""The effects that the claims measure: from one seed's runs to numbers. Which number decides what is in `claims`."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from cifar_lab.experiments import BN_BAND, PLAIN_BAND, SCALED_RATES, UNSCALED_RATES
from cifar_lab.measures import band
from cifar_lab.measures.statistics import fluctuation
from cifar_lab.run_folder.reader import Run, final_accuracy, final_epochs

FAILED_BELOW = 15.0  # percent: a run that ends under it has not learned; a uniform guess has 10
# Both definitions of a spike, then each at half and at twice its threshold.
SPIKES = tuple(
    (kind, threshold * factor)
    for factors in ((1.0,), (0.5, 2.0))
    for kind, threshold in band.SPIKE_THRESHOLDS.items()
    for factor in factors
)

Runs = Mapping[str, Run]  # by name in `experiments.RUNS`; all of one seed


def final(run: Run) -> float:
    final = run.final_accuracy
    return math.nan if final is None else final


def difference(a: str, b: str, runs: Runs) -> float:
    """Of the final accuracies, in points; NaN without one of the runs."""
    return final(runs[a]) - final(runs[b]) if a in runs and b in runs else math.nan


def _failed(run: Run) -> bool:
    return run.diverged_at_step is not None or final(run) < FAILED_BELOW


def _ratio(a: float, b: float) -> float:
    """a / b; infinite values are censored ones: both infinite have no ratio."""
    if math.isinf(a) and math.isinf(b):
        return math.nan
    return a / b if b else math.nan if not a else math.inf


def _accuracies(runs: Runs, names: Sequence[str]) -> list[np.ndarray]:
    return [runs[name].epochs["test_accuracy"] for name in names]


def _shared_epochs(runs: Runs) -> int:
    return min(run.epochs_done for run in runs.values())


def residual(runs: Runs) -> Sequence[float]:
    """Against the plain network, against one with as many parameters, and the same with scale 1.0 against the plain."""
    scaled, unscaled, plain = "inception_res", "inception_res_unscaled", "inception"
    return tuple(
        difference(*pair, runs) for pair in ((scaled, plain), (scaled, "inception_matched"), (unscaled, plain))
    )


def overfitting(runs: Runs) -> Sequence[float]:
    """Between two means over as many epochs as "final" has: around the first quarter's end, and at the end.

    If a run has fewer than eight epochs, the first mean is over epochs 1 and 2: the third is before the run. The peak
    is where the running mean of the test accuracy over that many epochs (one more if that is even) is the largest.
    """
    run = runs["inception_res"]
    if not run.epochs_done:
        return (math.nan,) * 4
    window = final_epochs(run.epochs_done)
    start = max(1, run.epochs_done // 4) - (window + 1) // 2
    quarter = slice(max(0, start), start + window)
    accuracy, loss, test_loss = (run.epochs[name] for name in ("test_accuracy", "train_loss", "test_loss"))
    fall = 1 - loss[-window:].mean() / loss[quarter].mean()
    rise = test_loss[-window:].mean() - test_loss[quarter].mean()
    peak = int(band.running_mean(accuracy, window + 1 - window % 2).argmax()) + 1
    gain = final_accuracy(accuracy) - float(accuracy[quarter].mean())
    return gain, 100 * float(fall), float(rise), 100 * peak / run.epochs_done


OPTIMIZERS = ("inception_res_adam", "inception_res_adamw", "inception_res_rmsprop")
OPTIMIZER_PAIRS = ((OPTIMIZERS[0], OPTIMIZERS[1]), (OPTIMIZERS[0], OPTIMIZERS[2]), (OPTIMIZERS[1], OPTIMIZERS[2]))


def optimizers(runs: Runs) -> Sequence[float]:
    return tuple(difference(a, b, runs) for a, b in OPTIMIZER_PAIRS)


def l2(runs: Runs) -> Sequence[float]:
    a, b = "inception_res_adam", "inception_res"
    with_l2, without = (fluctuation(_accuracies(runs, [name]), _shared_epochs(runs)) for name in (a, b))
    return _ratio(with_l2, without), difference(a, b, runs), with_l2, without


def failures(runs: Runs) -> Sequence[float]:
    return tuple(float(_failed(run)) for run in runs.values())


def _spike_rates(area: band.Band) -> np.ndarray:
    """Spikes per 1,000 steps by both definitions and at other thresholds, in the order of `SPIKES`."""
    return np.array([band.spikes(area, kind, threshold) for kind, threshold in SPIKES])


def scaling(runs: Runs) -> Sequence[float]:
    """Spikes are over the whole run: each run's loss is a band of one curve. They have no rate if a run diverged."""
    unscaled, scaled = runs["inception_res_unscaled"], runs["inception_res"]
    failed = [float(_failed(run)) for run in (unscaled, scaled)]
    spikes = np.full(len(SPIKES), math.nan)
    if unscaled.diverged_at_step is None and scaled.diverged_at_step is None:
        steps = max(1, min(len(unscaled.losses), len(scaled.losses)))
        rates = [_spike_rates(band.band([run.losses], steps, run.steps_planned)) for run in (unscaled, scaled)]
        spikes = rates[0] - rates[1]
    largest = [
        max((run.settings["lr"] for run in (at_1e_4, *(runs[n] for n in names if n in runs)) if not _failed(run)),
            default=math.nan)
        for at_1e_4, names in ((unscaled, UNSCALED_RATES), (scaled, SCALED_RATES))
    ]  # fmt: skip
    return failed[0] - failed[1], *failed, *largest, *spikes


def _bands(runs: Runs, *, batch_noise: bool = True) -> tuple[band.Band, band.Band]:
    """BN's band and the plain one."""
    planned = min(run.steps_planned for run in runs.values())
    bn, plain = (
        band.band([runs[name].losses for name in names], band.band_steps(planned), planned, batch_noise=batch_noise)
        for names in (BN_BAND, PLAIN_BAND)
    )
    return bn, plain


def bn_fluctuation(runs: Runs) -> Sequence[float]:
    """Pooled over the learning rates, then the ratio at each, in the order of `LEARNING_RATES`."""
    shared = _shared_epochs(runs)
    bn, plain = (fluctuation(_accuracies(runs, names), shared) for names in (BN_BAND, PLAIN_BAND))
    each = [
        _ratio(*(fluctuation(_accuracies(runs, [name]), shared) for name in pair))
        for pair in zip(BN_BAND, PLAIN_BAND, strict=True)
    ]
    return _ratio(bn, plain), bn, plain, *each


def speed(runs: Runs) -> Sequence[float]:
    """A level that is not reached is reached after any that is: its step counts as infinite.

    For each level the ratio of the best learning rates' steps, and these steps; then, for each level, the ratio at each
    learning rate; then the step after which the running median of the band's middle stays under 1.0.
    """
    planned = min(run.steps_planned for run in runs.values())
    window = band.default_window(planned)
    bn, plain = (
        [
            [_or_infinite(t) for t in band.times_to_levels(runs[name].losses[:planned], band.LEVELS, window)]
            for name in names
        ]
        for names in (BN_BAND, PLAIN_BAND)
    )  # a row per learning rate, a column per level
    best = [[min(column) for column in zip(*rows, strict=True)] for rows in (bn, plain)]
    ratios = [_ratio(*pair) for pair in zip(*best, strict=True)]
    each = [_ratio(a[i], b[i]) for i in range(len(band.LEVELS)) for a, b in zip(bn, plain, strict=True)]
    settled = [_or_infinite(band.settled_step(area)) for area in _bands(runs)]
    return *ratios, *best[0], *best[1], *each, settled[0] - settled[1], *settled


def _or_infinite(step: int | None) -> float:
    return math.inf if step is None else float(step)


def band_widths(runs: Runs) -> Sequence[float]:
    raw, smooth = (band.compare_bands(*_bands(runs, batch_noise=noise)) for noise in (True, False))
    bands = _bands(runs)
    ratio = band.width_ratio(*bands)
    wider = np.flatnonzero(ratio >= 1)
    crossed = int(wider[-1]) + 1 if len(wider) else 0
    if crossed == len(ratio):  # it stays where it is after the last step that both have
        crossed = min(of.steps for of in bands)
    return (
        raw["width_ratio"], smooth["width_ratio"], 100 * raw["narrower_share"], raw["bn_width"], raw["plain_width"],
        smooth["bn_width"], smooth["plain_width"], float(crossed),
    )  # fmt: skip


def band_jumps(runs: Runs) -> Sequence[float]:
    bn, plain = _bands(runs)
    counts = np.array([band.excursions(area) for area in (bn, plain)], dtype=np.float64)
    rates = 1000 * counts / [max(1, np.count_nonzero(area.present)) for area in (bn, plain)]
    return rates[0] - rates[1], *counts, *(_spike_rates(bn) - _spike_rates(plain))

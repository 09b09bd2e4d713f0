"""The report's claims: `CLAIMS` is the table.

A claim's sentence, the runs that it needs, the effect measured on one seed's runs, and the side on which the effect
supports the claim stand together, so adding a claim is adding an entry. If a claim compares runs, they are paired by
seed: same initialization, same batches.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cifar_lab.experiments import BN_BAND, PLAIN_BAND
from cifar_lab.measures import band
from cifar_lab.measures.statistics import fluctuation
from cifar_lab.run_folder.reader import Run, final_accuracy, final_epochs

ABOVE_0, BELOW_0, BELOW_1 = (0.0, math.inf), (-math.inf, 0.0), (-math.inf, 1.0)

Runs = Mapping[str, Run]  # by name in `experiments.RUNS`; all of one seed


@dataclass(frozen=True)
class Measure:
    """One number per seed. `side` is the open interval in which it supports the claim; None: shown, decides nothing."""

    name: str
    unit: str
    form: str  # format specification
    side: tuple[float, float] | None = None
    words: Mapping[str, str] | None = None  # what the values "-inf", "inf" and "nan" mean


@dataclass(frozen=True)
class Claim:
    """A sentence of the report that data can decide."""

    id: str
    statement: str
    runs: tuple[str, ...]
    effect: Callable[[Runs], Sequence[float]]  # the measures' values on one seed's runs, in their order
    measures: tuple[Measure, ...]
    supported_when: str
    rival_definitions: bool = False  # the deciding measures are definitions of one thing, not parts of the claim
    decided_at: str | None = None  # the only preset at which the claim is decided
    divergence_counts: bool = False  # the effect has a value if a run diverged


# --- Effects ----------------------------------------------------------------------------------------------------------


def _final(run: Run) -> float:
    final = run.final_accuracy
    return math.nan if final is None else final


def _final_difference(a: str, b: str) -> Callable[[Runs], Sequence[float]]:
    return lambda runs: (_final(runs[a]) - _final(runs[b]),)


def _fluctuation_difference(a: str, b: str) -> Callable[[Runs], Sequence[float]]:
    def effect(runs: Runs) -> Sequence[float]:
        shared = min(runs[a].epochs_done, runs[b].epochs_done)
        values = [fluctuation(runs[name].epochs["test_accuracy"], shared) for name in (a, b)]
        return values[0] - values[1], *values

    return effect


def _overfitting(runs: Runs) -> Sequence[float]:
    """Between two means over as many epochs as "final" has: around the first quarter's end, and at the end.

    If a run has fewer than eight epochs, the first mean is over epochs 1 and 2: the third is before the run.
    """
    run = runs["inception_res"]
    if not run.epochs_done:
        return math.nan, math.nan
    window = final_epochs(run.epochs_done)
    start = max(1, run.epochs_done // 4) - (window + 1) // 2
    quarter = slice(max(0, start), start + window)
    accuracy, loss = run.epochs["test_accuracy"], run.epochs["train_loss"]
    fall = 1 - loss[-window:].mean() / loss[quarter].mean()
    return final_accuracy(accuracy) - float(accuracy[quarter].mean()), 100 * float(fall)


def _spread_of_finals(runs: Runs) -> Sequence[float]:
    finals = [_final(run) for run in runs.values()]
    return (max(finals) - min(finals),)


def _failures(runs: Runs) -> Sequence[float]:
    return (sum(run.diverged_at_step is not None or _final(run) < 15 for run in runs.values()),)


def _spike_rates(area: band.Band) -> np.ndarray:
    """Spikes per 1,000 steps by both definitions and at other thresholds, in the order of `SPIKES`."""
    return np.array([band.spikes(area, kind, threshold) for kind, threshold in SPIKES])


def _scaling_spikes(runs: Runs) -> Sequence[float]:
    """Over the whole run: each run's loss is a band of one curve."""
    unscaled, scaled = runs["inception_res_unscaled"], runs["inception_res"]
    if unscaled.diverged_at_step is None and scaled.diverged_at_step is None:
        steps = max(1, min(len(unscaled.losses), len(scaled.losses)))
        rates = [_spike_rates(band.band([run.losses], steps, run.steps_planned)) for run in (unscaled, scaled)]
        return rates[0] - rates[1]
    only_unscaled = scaled.diverged_at_step is None
    only_scaled = unscaled.diverged_at_step is None
    decided = math.inf if only_unscaled else -math.inf if only_scaled else math.nan
    return decided, *[math.nan] * (len(SPIKES) - 1)


def _bands(runs: Runs) -> tuple[band.Band, band.Band]:
    """BN's band and the plain one, over the first half of the run."""
    planned = min(run.steps_planned for run in runs.values())
    bn, plain = ([runs[name].losses for name in names] for names in (BN_BAND, PLAIN_BAND))
    steps = max(1, planned // 2)
    return band.band(bn, steps, planned), band.band(plain, steps, planned)


def _speed(runs: Runs) -> Sequence[float]:
    """A band that does not settle under 1.0 settles later than any that does: its step counts as infinite."""
    steps = [band.settled_step(area) for area in _bands(runs)]
    bn, plain = (math.inf if step is None else float(step) for step in steps)
    return bn - plain, bn, plain


def _band_widths(runs: Runs) -> Sequence[float]:
    compared = band.compare_bands(*_bands(runs))
    return compared["width_ratio"], 100 * compared["narrower_share"], compared["bn_width"], compared["plain_width"]


def _band_spikes(runs: Runs) -> Sequence[float]:
    bn, plain = _bands(runs)
    return _spike_rates(bn) - _spike_rates(plain)


# --- The table --------------------------------------------------------------------------------------------------------

FINAL_DIFFERENCE = "difference of the final test accuracies"
# Both definitions of a spike, then each at half and at twice its threshold.
SPIKES = tuple(
    (kind, threshold * factor)
    for factors in ((1.0,), (0.5, 2.0))
    for kind, threshold in band.SPIKE_THRESHOLDS.items()
    for factor in factors
)


def _fluctuation_measures(of_first: str, side: tuple[float, float]) -> tuple[Measure, ...]:
    return (
        Measure("difference of the fluctuations", "points", "+z.3f", side),
        Measure(of_first, "points", ".3f"),
        Measure("without", "points", ".3f"),
    )


def _spike_measures(
    compared: str, sides: Mapping[str, tuple[float, float]], words: Mapping[str, str] | None = None
) -> tuple[Measure, ...]:
    """A measure for each of `SPIKES`; at a definition's own threshold it decides, if `sides` has that definition."""
    limits = {"relative": "{:g} x median", "absolute": "median + {:g}"}
    measures = []
    for kind, threshold in SPIKES:
        name = f"{kind} spikes (above {limits[kind].format(threshold)}), {compared}"
        side = sides.get(kind) if threshold == band.SPIKE_THRESHOLDS[kind] else None
        measures.append(Measure(name, "per 1,000 steps", "+z.2f", side, words))
    return tuple(measures)


CLAIMS: tuple[Claim, ...] = (
    Claim(
        id="level",
        statement="Inception v1 settles at about 85%",
        runs=("inception",),
        effect=lambda runs: (_final(runs["inception"]),),
        measures=(Measure("final test accuracy", "%", ".2f", (83.0, 87.0)),),
        supported_when="within 2 points of 85",
        decided_at="report",
    ),
    Claim(
        id="residual",
        statement="residual + scaling improves it, 85 to 87%",
        runs=("inception_res", "inception"),
        effect=_final_difference("inception_res", "inception"),
        measures=(Measure(FINAL_DIFFERENCE, "points", "+z.2f", ABOVE_0),),
        supported_when="above 0",
    ),
    Claim(
        id="scaling",
        statement="without scaling, training is unstable",
        runs=("inception_res_unscaled", "inception_res"),
        effect=_scaling_spikes,
        measures=_spike_measures(
            "scale 1.0 minus 0.2",
            {"relative": ABOVE_0},
            {"inf": "only scale 1.0 diverged", "-inf": "only scale 0.2 diverged", "nan": "both diverged"},
        ),
        supported_when="relative spikes above 0 (scale 1.0 minus 0.2), or only scale 1.0 diverged",
        divergence_counts=True,
    ),
    Claim(
        id="overfitting",
        statement="loss still falls at epoch 200 while accuracy peaks by about 50",
        runs=("inception_res",),
        effect=_overfitting,
        measures=(
            Measure("gain of test accuracy after the first quarter", "points", "+z.2f", BELOW_1),
            Measure("fall of the training loss after the first quarter", "%", ".1f", (20.0, math.inf)),
        ),
        supported_when="gain under 1 point while the loss falls by more than 20%",
    ),
    Claim(
        id="optimizers",
        statement="Adam, AdamW and RMSprop differ little",
        runs=("inception_res_adam", "inception_res_adamw", "inception_res_rmsprop"),
        effect=_spread_of_finals,
        measures=(Measure("largest minus smallest final test accuracy", "points", ".2f", BELOW_1),),
        supported_when="under 1 point",
    ),
    Claim(
        id="l2",
        statement="L2 keeps accuracy and lowers its fluctuation",
        runs=("inception_res_adam", "inception_res"),
        effect=_fluctuation_difference("inception_res_adam", "inception_res"),
        measures=_fluctuation_measures("with weight decay 1e-4", BELOW_0),
        supported_when="below 0",
    ),
    Claim(
        id="large-lr",
        statement="a larger learning rate or momentum explodes",
        runs=("large_lr_adam_1e-3", "large_lr_adam_1e-2", "large_lr_sgd_momentum"),
        effect=_failures,
        measures=(Measure("settings that diverge or end below 15%", "of 3", ".3g", (2.5, math.inf)),),
        supported_when="all three",
        divergence_counts=True,
    ),
    Claim(
        id="bn-accuracy",
        statement="BN lifts VGG from 85 to 88%",
        runs=("vgg_a_bn_lr0.001", "vgg_a_lr0.001"),
        effect=_final_difference("vgg_a_bn_lr0.001", "vgg_a_lr0.001"),
        measures=(Measure(FINAL_DIFFERENCE, "points", "+z.2f", ABOVE_0),),
        supported_when="above 0",
    ),
    Claim(
        id="bn-fluctuation",
        statement="the BN run fluctuates more",
        runs=("vgg_a_bn_lr0.001", "vgg_a_lr0.001"),
        effect=_fluctuation_difference("vgg_a_bn_lr0.001", "vgg_a_lr0.001"),
        measures=_fluctuation_measures("with BatchNorm", ABOVE_0),
        supported_when="above 0",
    ),
    Claim(
        id="bn-speed",
        statement="with BN the loss falls faster",
        runs=BN_BAND + PLAIN_BAND,
        effect=_speed,
        measures=(
            Measure(
                "step after which the band's middle stays under 1.0, BatchNorm minus plain",
                "steps",
                "+z.0f",
                BELOW_0,
                {
                    "inf": "reached without BatchNorm only",
                    "-inf": "reached with BatchNorm only",
                    "nan": "reached by neither",
                },
            ),
            Measure("that step with BatchNorm", "", ".0f", None, {"inf": "not reached"}),
            Measure("that step without", "", ".0f", None, {"inf": "not reached"}),
        ),
        supported_when="below 0",
        divergence_counts=True,
    ),
    Claim(
        id="bn-band",
        statement="with BN the band is narrower",
        runs=BN_BAND + PLAIN_BAND,
        effect=_band_widths,
        measures=(
            Measure("ratio of the mean widths, BatchNorm / plain", "", ".3f", BELOW_1),
            Measure("share of the steps at which BatchNorm's is narrower", "%", ".1f"),
            Measure("mean width with BatchNorm", "nats", ".3f"),
            Measure("mean width without", "nats", ".3f"),
        ),
        supported_when="ratio below 1",
        divergence_counts=True,
    ),
    Claim(
        id="bn-spikes",
        statement="with BN the loss jumps up less often",
        runs=BN_BAND + PLAIN_BAND,
        effect=_band_spikes,
        measures=_spike_measures("BatchNorm minus plain", {"relative": BELOW_0, "absolute": BELOW_0}),
        supported_when="below 0 by both definitions of a spike",
        rival_definitions=True,
        divergence_counts=True,
    ),
)

"""The report's claims: `CLAIMS` is the table.

A claim's sentence, the runs that it needs, the effects measured on one seed's runs, the side on which each supports the
claim, and the regime in which it can be decided stand together, so adding a claim is adding an entry. If a claim
compares runs, they are paired by seed: same initialization, same batches.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from cifar_lab.experiments import BN_BAND, LEARNING_RATES, PLAIN_BAND, SCALED_RATES, UNSCALED_RATES
from cifar_lab.measures import band
from cifar_lab.measures.statistics import differences_of
from cifar_lab.report import effects
from cifar_lab.settings import RunConfig, number

ABOVE_0, BELOW_0, BELOW_1, ABOVE_1 = (0.0, math.inf), (-math.inf, 0.0), (-math.inf, 1.0), (1.0, math.inf)
ANY, NOT_NEGATIVE, PERCENT = (-math.inf, math.inf), (0.0, math.inf), (0.0, 100.0)
FEWEST_DIFFERENCES = 20  # that a fluctuation is from
FEWEST_EVENTS = 10  # over all seeds, of a claim that counts events
FEWEST_STEPS = 10_000  # of a run that has settled
STEPS_TO_LEARN = 1_000  # after which a run near chance has failed


@dataclass(frozen=True)
class Measure:
    """One number per seed. `side` is the open interval in which it supports the claim; None: shown, decides nothing.

    scale: what the mean over the seeds and its interval are. linear: mean, t interval. ratio: exp of the mean of the
    logarithms and of its t interval; a seed's value may be 0 or infinite. share: 0 or 1 per seed, share of ones and
    exact limits. sign: only the side of a seed's value counts.
    """

    name: str
    unit: str
    form: str  # format specification
    side: tuple[float, float] | None = None
    words: Mapping[str, str] | None = None  # what the values "0", "-inf", "inf" and "nan" mean
    scale: str = "linear"
    on_page: bool = True  # in report.md; all are in verdicts.csv
    events: bool = False  # counts events, of which the claim needs `FEWEST_EVENTS`
    possible: tuple[float, float] = ANY  # values that it can have; its interval is cut there

    def text(self, value: float) -> str:
        """A value with its unit; a dash for NaN."""
        return "-" if math.isnan(value) else format(value, self.form) + (f" {self.unit}" if self.unit else "")

    def said(self, value: float) -> str:
        """A seed's value in words, if it has any, else as text."""
        return (self.words or {}).get(f"{value:g}", self.text(value))

    @property
    def side_on_scale(self) -> tuple[float, float] | None:
        """`side` in the logarithm for a ratio."""
        if self.side is None or self.scale != "ratio":
            return self.side
        low, high = (math.log(end) if 0 < end < math.inf else math.copysign(math.inf, end) for end in self.side)
        return low, high


@dataclass(frozen=True)
class Plan:
    """A run as it is planned at a preset, or as it was planned by whoever trained it."""

    config: RunConfig
    epochs: int
    steps: int


Regime = Callable[[str, Sequence[Plan]], str]  # from preset and plans: why the claim cannot be decided there; or empty


@dataclass(frozen=True)
class Claim:
    """A sentence of the report that data can decide."""

    id: str
    statement: str
    runs: tuple[str, ...]
    effect: Callable[[effects.Runs], Sequence[float]]  # the measures' values on one seed's runs, in their order
    measures: tuple[Measure, ...]
    supported_when: str
    rival_definitions: bool = False  # the deciding measures are definitions of one thing, not parts of the claim
    regime: Regime = lambda preset, plans: ""
    divergence_counts: bool = False  # the effect has a value if a run diverged
    controls: tuple[str, ...] = ()  # runs that are measured too where they are there
    pairs: tuple[tuple[str, str], ...] = ()  # runs whose accuracies are compared on the same test images


# --- Regimes ----------------------------------------------------------------------------------------------------------


def _report_only(because: str) -> Regime:
    return lambda preset, plans: "" if preset == "report" else because


def _settled(preset: str, plans: Sequence[Plan]) -> str:
    steps = min(plan.steps for plan in plans)
    return "" if steps >= FEWEST_STEPS else f"a run has {steps:,} steps; a settled one has at least {FEWEST_STEPS:,}"


def _long_band(preset: str, plans: Sequence[Plan]) -> str:
    steps = band.band_steps(min(plan.steps for plan in plans))
    if steps >= band.DECIDING_STEPS:
        return ""
    return f"the band has {steps:,} steps; at full size it changes sides until step 5,636, so it needs 10,000"


def _enough_differences(preset: str, plans: Sequence[Plan]) -> str:
    """The plans are those of two networks, at one learning rate or more."""
    count = differences_of(min(plan.epochs for plan in plans)) * len(plans) // 2
    if count >= FEWEST_DIFFERENCES:
        return ""
    return f"the fluctuation is from {count} differences of accuracies; it needs {FEWEST_DIFFERENCES}"


def _settled_with_differences(preset: str, plans: Sequence[Plan]) -> str:
    return _settled(preset, plans) or _enough_differences(preset, plans)


def _large_rates(preset: str, plans: Sequence[Plan]) -> str:
    if not all(plan.config.width == 1 or plan.config.width_transfer for plan in plans):
        return "a learning rate that is too large at width 1 is not at a smaller one without width transfer"
    steps = min(plan.steps for plan in plans)
    if steps < STEPS_TO_LEARN:
        return f"after {steps:,} steps a run may be near chance and yet not have failed; it needs {STEPS_TO_LEARN:,}"
    return ""


# --- The table --------------------------------------------------------------------------------------------------------

FINAL_DIFFERENCE = "difference of the final test accuracies"
LOG_RATIO = "ratio of the fluctuations"
NOT_REACHED = {"inf": "reached without BatchNorm only", "nan": "reached by neither"}
NO_RATIO = NOT_REACHED | {"0": "reached with BatchNorm only"}
NO_DIFFERENCE = NOT_REACHED | {"-inf": "reached with BatchNorm only"}


def _spike_measures(compared: str) -> tuple[Measure, ...]:
    """A measure for each of `effects.SPIKES`; none decides: relative spikes are batch noise about a small loss."""
    limits = {"relative": "{:g} x median", "absolute": "median + {:g}"}
    return tuple(
        Measure(
            f"{kind} spikes (above {limits[kind].format(threshold)}), {compared}", "per 1,000 steps", "+z.2f",
            on_page=threshold == band.SPIKE_THRESHOLDS[kind],
        )
        for kind, threshold in effects.SPIKES
    )  # fmt: skip


def _rates(form: str) -> list[str]:
    return [form.format(number(rate)) for rate in LEARNING_RATES]


CLAIMS: tuple[Claim, ...] = (
    Claim(
        id="level",
        statement="Inception v1 settles at about 85%",
        runs=("inception",),
        effect=lambda runs: (effects.final(runs["inception"]),),
        measures=(Measure("final test accuracy", "%", ".2f", (83.0, 87.0), possible=PERCENT),),
        supported_when="within 2 points of 85",
        regime=_report_only("85% is the level of the full network, trained to the end"),
    ),
    Claim(
        id="residual",
        statement="residual + scaling improves it, 85 to 87%",
        runs=("inception_res", "inception"),
        controls=("inception_matched", "inception_res_unscaled"),
        effect=effects.residual,
        measures=(
            Measure(FINAL_DIFFERENCE, "points", "+z.2f", ABOVE_0),
            Measure("the same against a plain network with as many parameters", "points", "+z.2f"),
            Measure("the same with scale 1.0", "points", "+z.2f"),
        ),
        supported_when="above 0",
        pairs=(("inception_res", "inception"),),
    ),
    Claim(
        id="scaling",
        statement="without scaling, training is unstable",
        runs=("inception_res_unscaled", "inception_res"),
        controls=SCALED_RATES + UNSCALED_RATES,
        effect=effects.scaling,
        measures=(
            Measure("failures, scale 1.0 minus 0.2", "per seed", "+z.2f", ABOVE_0, scale="sign"),
            Measure("share of seeds that fail with scale 1.0", "", ".2f", scale="share"),
            Measure("with scale 0.2", "", ".2f", scale="share"),
            *(
                Measure(f"largest learning rate tried at which scale {scale} does not fail", "", ".3g",
                        possible=NOT_NEGATIVE)
                for scale in ("1.0", "0.2")
            ),
            *_spike_measures("scale 1.0 minus 0.2"),
        ),
        supported_when="more seeds fail (diverge or end below 15%) with scale 1.0 than with 0.2",
        divergence_counts=True,
    ),
    Claim(
        id="overfitting",
        statement="loss still falls at epoch 200 while accuracy peaks by about 50",
        runs=("inception_res",),
        effect=effects.overfitting,
        measures=(
            Measure("gain of test accuracy after the first quarter", "points", "+z.2f", BELOW_1),
            Measure("fall of the training loss after the first quarter", "%", ".1f", (20.0, math.inf),
                    possible=(-math.inf, 100.0)),
            Measure("rise of the test loss after the first quarter", "nats", "+z.3f", ABOVE_0),
            # On a plateau the largest of many equal values may be anywhere, so it decides nothing.
            Measure("highest smoothed test accuracy, at this share of the epochs", "%", ".0f", possible=PERCENT),
        ),
        supported_when="gain under 1 point while the training loss falls by more than 20% and the test loss rises",
        regime=_report_only("its 200 epochs of the full network are what the claim is about"),
    ),
    Claim(
        id="optimizers",
        statement="Adam, AdamW and RMSprop differ little",
        runs=effects.OPTIMIZERS,
        effect=effects.optimizers,
        measures=tuple(
            Measure(f"final test accuracy, {name}", "points", "+z.2f", (-1.0, 1.0))
            for name in ("Adam minus AdamW", "Adam minus RMSprop", "AdamW minus RMSprop")
        ),
        supported_when="every difference of two within 1 point",
        regime=_settled,
        pairs=effects.OPTIMIZER_PAIRS,
    ),
    Claim(
        id="l2",
        statement="L2 keeps accuracy and lowers its fluctuation",
        runs=("inception_res_adam", "inception_res"),
        effect=effects.l2,
        measures=(
            Measure(f"{LOG_RATIO}, with weight decay 1e-4 / without", "", ".3f", BELOW_1, scale="ratio"),
            Measure(FINAL_DIFFERENCE, "points", "+z.2f", (-1.0, math.inf)),
            Measure("fluctuation with weight decay 1e-4", "points", ".3f", possible=NOT_NEGATIVE),
            Measure("fluctuation without", "points", ".3f", possible=NOT_NEGATIVE),
        ),
        supported_when="ratio below 1 while the accuracy loses less than 1 point",
        regime=_settled_with_differences,
        pairs=(("inception_res_adam", "inception_res"),),
    ),
    Claim(
        id="large-lr",
        statement="a larger learning rate or momentum explodes",
        runs=("large_lr_adam_1e-3", "large_lr_adam_1e-2", "large_lr_sgd_momentum"),
        effect=effects.failures,
        measures=tuple(
            Measure(f"share of seeds that fail, {setting}", "", ".2f", (0.5, math.inf), scale="share")
            for setting in ("Adam at 1e-3", "Adam at 1e-2", "SGD at 1e-2 with momentum 0.9")
        ),
        supported_when="each setting fails (diverges or ends below 15%) in more than half of the seeds",
        regime=_large_rates,
        divergence_counts=True,
    ),
    Claim(
        id="bn-accuracy",
        statement="BN lifts VGG from 85 to 88%",
        runs=("vgg_a_bn_lr0.001", "vgg_a_lr0.001"),
        effect=lambda runs: (d := effects.difference("vgg_a_bn_lr0.001", "vgg_a_lr0.001", runs), d - 3),
        measures=(
            Measure(FINAL_DIFFERENCE, "points", "+z.2f", ABOVE_0),
            Measure("the same minus the report's 3 points", "points", "+z.2f"),
        ),
        supported_when="above 0",
        pairs=(("vgg_a_bn_lr0.001", "vgg_a_lr0.001"),),
    ),
    Claim(
        id="bn-fluctuation",
        statement="the BN run fluctuates more",
        runs=BN_BAND + PLAIN_BAND,
        effect=effects.bn_fluctuation,
        measures=(
            Measure(f"{LOG_RATIO} over the learning rates, BatchNorm / plain", "", ".3f", ABOVE_1, scale="ratio"),
            Measure("fluctuation with BatchNorm", "points", ".3f", possible=NOT_NEGATIVE),
            Measure("fluctuation without", "points", ".3f", possible=NOT_NEGATIVE),
            *(
                Measure(name, "", ".3f", scale="ratio", on_page=i == 0)
                for i, name in enumerate(_rates(LOG_RATIO + " at {}"))
            ),
        ),
        supported_when="ratio above 1",
        regime=_enough_differences,
    ),
    Claim(
        id="bn-speed",
        statement="with BN the loss falls faster",
        runs=BN_BAND + PLAIN_BAND,
        effect=effects.speed,
        measures=(
            *(
                Measure(f"steps to a loss of {level}, fastest rates, BatchNorm / plain", "", ".3f", BELOW_1, NO_RATIO,
                        "ratio")
                for level in band.LEVELS
            ),
            *(
                Measure(f"steps to a loss of {level}, fastest rate {name}", "", ".0f", None, {"inf": "not reached"},
                        on_page=False, possible=NOT_NEGATIVE)
                for name in ("with BatchNorm", "without")
                for level in band.LEVELS
            ),
            *(
                Measure(name, "", ".3f", None, NO_RATIO, "ratio", on_page=False)
                for level in band.LEVELS
                for name in _rates(f"steps to a loss of {level} at {{}}, BatchNorm / plain")
            ),
            Measure("step after which the band's middle stays under 1.0, BatchNorm minus plain", "steps", "+z.0f", None,
                    NO_DIFFERENCE),
            Measure("that step with BatchNorm", "", ".0f", None, {"inf": "not reached"}, possible=NOT_NEGATIVE),
            Measure("that step without", "", ".0f", None, {"inf": "not reached"}, possible=NOT_NEGATIVE),
        ),
        supported_when="ratio below 1 at every level that a run reaches",
        rival_definitions=True,
        regime=_long_band,
        divergence_counts=True,
    ),
    Claim(
        id="bn-band",
        statement="with BN the band is narrower",
        runs=BN_BAND + PLAIN_BAND,
        effect=effects.band_widths,
        measures=(
            Measure("ratio of the mean widths, BatchNorm / plain", "", ".3f", BELOW_1, scale="ratio"),
            Measure("the same without batch noise", "", ".3f", scale="ratio"),
            Measure("share of the steps at which BatchNorm's is narrower", "%", ".1f", possible=PERCENT),
            Measure("mean width with BatchNorm", "nats", ".3f", possible=NOT_NEGATIVE),
            Measure("mean width without", "nats", ".3f", possible=NOT_NEGATIVE),
            Measure("mean width with BatchNorm and without batch noise", "nats", ".3f", on_page=False,
                    possible=NOT_NEGATIVE),
            Measure("mean width without either", "nats", ".3f", on_page=False, possible=NOT_NEGATIVE),
            Measure("step after which the ratio up to there stays below 1", "", ".0f", possible=NOT_NEGATIVE),
        ),
        supported_when="ratio below 1",
        regime=_long_band,
        divergence_counts=True,
    ),
    Claim(
        id="bn-spikes",
        statement="with BN the loss jumps up less often",
        runs=BN_BAND + PLAIN_BAND,
        effect=effects.band_jumps,
        measures=(
            Measure("persistent excursions, BatchNorm minus plain", "per 1,000 steps", "+z.3f", BELOW_0),
            Measure("excursions with BatchNorm", "", ".1f", events=True, possible=NOT_NEGATIVE),
            Measure("excursions without", "", ".1f", events=True, possible=NOT_NEGATIVE),
            *_spike_measures("BatchNorm minus plain"),
        ),
        supported_when="fewer excursions of the upper curve (its median over 21 steps above that over 501 plus 0.3)",
        divergence_counts=True,
    ),
)  # fmt: skip

"""The report's claims, each with its effect and its rule, and what the runs say about it.

`CLAIMS` is the table: a claim's sentence, the runs that it needs, the effect measured on one seed's runs, and the side
on which the effect supports the claim stand together, so adding a claim is adding an entry. Where a claim compares
runs, they are paired by seed: same initialization, same batches.

The verdict. With three or more seeds: "supported" where the 95% t interval of the effect over the seeds lies wholly on
the claim's side, "reversed" where it lies wholly on the other, else "undecided". With one or two seeds there is no
interval worth the name: the side of the mean alone is told, "agrees" or "disagrees", with the number of seeds.
"diverged": a run whose accuracy the claim needs has none. "not run": a run is missing or not complete.
Accuracy of a selected epoch decides nothing.
"""

import csv
import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

import landscape
from cifar_lab.config import PAPER_PRESETS, PRESETS
from cifar_lab.experiments import BN_BAND, PLAIN_BAND, command_for, experiments
from cifar_lab.runs import Run, final_accuracy, final_epochs, report_runs

SUPPORTED, REVERSED, UNDECIDED = "supported", "reversed", "undecided"
DEPENDS, DIVERGED, NOT_RUN = "depends on the definition", "diverged", "not run"
SIDE_ALONE = {SUPPORTED: "agrees", REVERSED: "disagrees"}
SEEDS_FOR_AN_INTERVAL = 3

ABOVE_0, BELOW_0, BELOW_1 = (0.0, math.inf), (-math.inf, 0.0), (-math.inf, 1.0)

Runs = Mapping[str, Run]  # by name in `experiments.RUNS`; all of one seed


@dataclass(frozen=True)
class Measure:
    """One number a seed. `side` is the open interval in which it supports the claim; None: shown, decides nothing."""

    name: str
    unit: str
    form: str  # format specification
    side: tuple[float, float] | None = None
    words: Mapping[str, str] | None = None  # what the values "-inf", "inf" and "nan" stand for


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
    divergence_counts: bool = False  # the effect has a value where a run diverged


# --- Effects ----------------------------------------------------------------------------------------------------------


def fluctuation(test_accuracy: np.ndarray, epochs: int) -> float:
    """Jaggedness of the last half of the first `epochs` epochs, in points; NaN with fewer than two differences.

    Standard deviation (n - 1) of the differences from epoch to epoch, divided by sqrt(2): the standard deviation of
    the epochs themselves where they scatter independently around a trend.
    """
    differences = np.diff(test_accuracy[epochs // 2 : epochs])
    return float(differences.std(ddof=1) / math.sqrt(2)) if len(differences) >= 2 else math.nan


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

    Of a run of fewer than eight epochs the first mean is over epochs 1 and 2: the third lies before the run.
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


def _spike_rates(band: landscape.Band) -> np.ndarray:
    """Spikes per 1,000 steps by both definitions and at other thresholds, in the order of `SPIKES`."""
    return np.array([landscape.spikes(band, kind, threshold) for kind, threshold in SPIKES])


def _scaling_spikes(runs: Runs) -> Sequence[float]:
    """Over the whole run: each run's loss is a band of one curve."""
    unscaled, scaled = runs["inception_res_unscaled"], runs["inception_res"]
    if unscaled.diverged_at_step is None and scaled.diverged_at_step is None:
        steps = max(1, min(len(unscaled.losses), len(scaled.losses)))
        rates = [_spike_rates(landscape.band([run.losses], steps, run.steps_planned)) for run in (unscaled, scaled)]
        return rates[0] - rates[1]
    only_unscaled = scaled.diverged_at_step is None
    only_scaled = unscaled.diverged_at_step is None
    decided = math.inf if only_unscaled else -math.inf if only_scaled else math.nan
    return decided, *[math.nan] * (len(SPIKES) - 1)


def _bands(runs: Runs) -> tuple[landscape.Band, landscape.Band]:
    """BN's band and the plain one, over the first half of the run."""
    planned = min(run.steps_planned for run in runs.values())
    bn, plain = ([runs[name].losses for name in names] for names in (BN_BAND, PLAIN_BAND))
    steps = max(1, planned // 2)
    return landscape.band(bn, steps, planned), landscape.band(plain, steps, planned)


def _speed(runs: Runs) -> Sequence[float]:
    """A band that does not settle under 1.0 settles later than any that does: its step counts as infinite."""
    steps = [landscape.settled_step(band) for band in _bands(runs)]
    bn, plain = (math.inf if step is None else float(step) for step in steps)
    return bn - plain, bn, plain


def _band_widths(runs: Runs) -> Sequence[float]:
    compared = landscape.compare_bands(*_bands(runs))
    return compared["width_ratio"], 100 * compared["narrower_share"], compared["bn_width"], compared["plain_width"]


def _band_spikes(runs: Runs) -> Sequence[float]:
    bn, plain = _bands(runs)
    return _spike_rates(bn) - _spike_rates(plain)


# --- The table --------------------------------------------------------------------------------------------------------

FINAL_DIFFERENCE = "difference of the final test accuracies"
FLUCTUATION_DIFFERENCE = "difference of the fluctuations"
# Both definitions of a spike, then each at half and at twice its threshold.
SPIKES = tuple(
    (kind, threshold * factor)
    for factors in ((1.0,), (0.5, 2.0))
    for kind, threshold in landscape.SPIKE_THRESHOLDS.items()
    for factor in factors
)


def _spike_measures(
    compared: str, sides: Mapping[str, tuple[float, float]], words: Mapping[str, str] | None = None
) -> tuple[Measure, ...]:
    """A measure for each of `SPIKES`; at a definition's own threshold it decides, if `sides` has that definition."""
    limits = {"relative": "{:g} x median", "absolute": "median + {:g}"}
    measures = []
    for kind, threshold in SPIKES:
        name = f"{kind} spikes (above {limits[kind].format(threshold)}), {compared}"
        side = sides.get(kind) if threshold == landscape.SPIKE_THRESHOLDS[kind] else None
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
        measures=(
            Measure(FLUCTUATION_DIFFERENCE, "points", "+z.3f", BELOW_0),
            Measure("with weight decay 1e-4", "points", ".3f"),
            Measure("without", "points", ".3f"),
        ),
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
        measures=(
            Measure(FLUCTUATION_DIFFERENCE, "points", "+z.3f", ABOVE_0),
            Measure("with BatchNorm", "points", ".3f"),
            Measure("without", "points", ".3f"),
        ),
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


def claims() -> list[tuple[str, str]]:
    """Id and sentence of each claim."""
    return [(claim.id, claim.statement) for claim in CLAIMS]


# --- Verdicts ---------------------------------------------------------------------------------------------------------

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


@dataclass(frozen=True, eq=False)
class Estimate:
    """A measure over the seeds: mean and 95% t interval; without an interval where it has fewer than two values."""

    measure: Measure
    values: np.ndarray  # (n,): a value a seed

    @property
    def mean(self) -> float:
        """NaN where a value is NaN, or values are infinite in both directions."""
        with np.errstate(invalid="ignore"):
            return float(self.values.mean()) if len(self.values) else math.nan

    @property
    def interval(self) -> tuple[float, float] | None:
        """None with fewer than two values, or where they are not finite."""
        n = len(self.values)
        if n < 2 or not np.isfinite(self.values).all():
            return None
        half = t_quantile(n - 1) * float(self.values.std(ddof=1)) / math.sqrt(n)
        return self.mean - half, self.mean + half

    @property
    def outcome(self) -> str:
        """Supported, reversed or undecided, by the interval where there are seeds enough, else by the mean."""
        if not len(self.values) or np.isnan(self.values).any():
            return UNDECIDED
        if np.isinf(self.values).any():  # neither mean nor interval: the seeds have to agree
            sides = {_side(value, value, self.measure.side) for value in self.values}
            return sides.pop() if len(sides) == 1 else UNDECIDED
        if len(self.values) >= SEEDS_FOR_AN_INTERVAL:
            return _side(*self.interval, self.measure.side)
        return _side(self.mean, self.mean, self.measure.side)

    def __str__(self) -> str:
        measure = self.measure
        unit = f" {measure.unit}" if measure.unit else ""
        if not np.isfinite(self.values).all() and measure.words:
            said = [measure.words.get(f"{v:g}") or format(v, measure.form) + unit for v in self.values]
            return said[0] if len(set(said)) == 1 else ", ".join(said)
        if math.isnan(self.mean):
            return "-"
        text = format(self.mean, measure.form) + unit
        if self.interval:
            text += " [{}, {}]".format(*(format(bound, measure.form) for bound in self.interval))
        return text


def _side(low: float, high: float, side: tuple[float, float]) -> str:
    """On which side of the claim the interval from `low` to `high` lies."""
    above = low > side[0] or side[0] == -math.inf
    below = high < side[1] or side[1] == math.inf
    if above and below:
        return SUPPORTED
    return REVERSED if high < side[0] or low > side[1] else UNDECIDED


@dataclass(frozen=True, eq=False)
class Verdict:
    """What the runs of a preset say about a claim."""

    claim: Claim
    outcome: str
    seeds: tuple[int, ...] = ()  # those that the estimates are from
    estimates: tuple[Estimate, ...] = ()  # one a measure of the claim, or none
    notes: tuple[str, ...] = ()
    commands: tuple[str, ...] = ()  # those that train what is missing


def judge_all(runs: Sequence[Run], preset: str) -> list[Verdict]:
    """A verdict on each claim from a preset's runs, in the order of `CLAIMS`."""
    found = report_runs(runs, preset)
    return [judge(claim, found, preset) for claim in CLAIMS]


def judge(claim: Claim, found: Mapping[str, Mapping[int, Run]], preset: str) -> Verdict:
    """The verdict on a claim. found: a run by its name in `experiments.RUNS` and its seed; only complete ones count."""
    notes = [
        f"in progress: {name}, seed {seed}, {run.epochs_done} of {run.epochs_planned} epochs"
        for name in claim.runs
        for seed, run in found.get(name, {}).items()
        if not run.complete
    ]
    complete = {name: {s: run for s, run in found.get(name, {}).items() if run.complete} for name in claim.runs}
    wanted = set.union(*map(set, complete.values()))
    paired = set.intersection(*map(set, complete.values()))
    if not paired:
        asked = wanted or set().union(*found.values()) or {0}
        missing = {name: tuple(sorted(asked - set(complete[name]))) for name in claim.runs}
        there = [run.folder for by_seed in found.values() for run in by_seed.values()]  # results/preset/model/name
        results = there[0].parents[2] if there else "results"
        commands = dict.fromkeys(command_for(name, preset, seeds, results) for name, seeds in missing.items() if seeds)
        return Verdict(claim, NOT_RUN, notes=tuple(notes), commands=tuple(commands))
    if wanted > paired:
        notes.append(f"left out, as not every run has it: seed {_listed(wanted - paired)}")
    for name in claim.runs:
        lengths = {complete[name][seed].epochs_planned for seed in paired} - {planned_epochs(name, preset)}
        notes += [f"{name} has {n} epochs instead of {planned_epochs(name, preset)}" for n in sorted(lengths)]
    diverged = {
        seed: [n for n in claim.runs if complete[n][seed].diverged_at_step is not None] for seed in sorted(paired)
    }
    notes += [
        f"diverged: {name}, seed {seed}, at step {complete[name][seed].diverged_at_step:,}"
        for seed, names in diverged.items()
        for name in names
    ]
    measured = tuple(seed for seed, names in diverged.items() if claim.divergence_counts or not names)
    values = [claim.effect({name: complete[name][seed] for name in claim.runs}) for seed in measured]
    estimates = tuple(
        Estimate(measure, np.array([value[i] for value in values], dtype=np.float64))
        for i, measure in enumerate(claim.measures)
    )
    outcome = _outcome(claim, estimates, len(measured) < len(paired), preset)
    return Verdict(claim, outcome, measured, estimates, tuple(notes))


def _outcome(claim: Claim, estimates: Sequence[Estimate], diverged: bool, preset: str) -> str:
    if diverged:
        return DIVERGED
    if claim.decided_at not in (None, preset):
        return f"{claim.decided_at} preset only"
    outcomes = {estimate.outcome for estimate in estimates if estimate.measure.side}
    if claim.rival_definitions and {SUPPORTED, REVERSED} <= outcomes:
        outcome = DEPENDS
    elif REVERSED in outcomes and not (claim.rival_definitions and UNDECIDED in outcomes):
        outcome = REVERSED
    else:
        outcome = SUPPORTED if outcomes == {SUPPORTED} else UNDECIDED
    seeds = len(estimates[0].values)
    if seeds >= SEEDS_FOR_AN_INTERVAL:
        return outcome
    return f"{SIDE_ALONE.get(outcome, outcome)} ({seeds} seed{'s' if seeds > 1 else ''})"


def planned_epochs(run: str, preset: str) -> int:
    """How many epochs the named run has at a preset."""
    if preset == "report":
        return next(e.epochs for e in experiments(preset) if run in e.runs)
    return (PRESETS | PAPER_PRESETS)[preset]["epochs"]


def _listed(seeds: Iterable[int]) -> str:
    return " ".join(map(str, sorted(seeds)))


# --- Tables -----------------------------------------------------------------------------------------------------------

CSV_COLUMNS = (
    "claim", "the report says", "supported when", "verdict", "measure", "unit", "decides", "mean", "low", "high",
    "seeds", "values", "notes",
)  # fmt: skip


def to_csv(verdicts: Sequence[Verdict]) -> str:
    """One row a measure, the claim's verdict in each; a claim without a measurement has one row. low, high: 95%."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for verdict in verdicts:
        claim = verdict.claim
        row = [claim.id, claim.statement, claim.supported_when, verdict.outcome]
        notes = "; ".join([*verdict.notes, *(f"run: {command}" for command in verdict.commands)])
        for estimate in verdict.estimates:
            measure = estimate.measure
            numbers = [estimate.mean, *(estimate.interval or (math.nan, math.nan))]
            cells = ["" if math.isnan(x) else f"{x:.6g}" for x in numbers]
            values = " ".join(f"{x:.6g}" for x in estimate.values)
            decides = "yes" if measure.side else "no"
            writer.writerow([*row, measure.name, measure.unit, decides, *cells, _listed(verdict.seeds), values, notes])
        if not verdict.estimates:
            writer.writerow([*row, *[""] * 8, notes])
    return out.getvalue()


def to_text(verdicts: Sequence[Verdict]) -> str:
    """A line a claim for the console: id, verdict, and the measures that decide or the command that is missing."""
    lines = []
    for verdict in verdicts:
        said = [str(e) for e in verdict.estimates if e.measure.side] or list(verdict.commands)
        said += [note for note in verdict.notes if "instead of" in note]  # the others stand in report.md
        lines.append(f"  {verdict.claim.id:<15} {verdict.outcome:<34} {'; '.join(said)}".rstrip())
    return "\n".join(lines)


def to_markdown(verdicts: Sequence[Verdict]) -> str:
    """A table, a row a claim, and what it needs to be read."""
    lines = ["| claim | the report says | supported when | measured | seeds | verdict |", "|---|---|---|---|---|---|"]
    for verdict in verdicts:
        claim = verdict.claim
        measured = [f"{estimate.measure.name}: {estimate}" for estimate in verdict.estimates]
        measured += [*verdict.notes, *(f"run `{command}`" for command in verdict.commands)]
        cells = [f"`{claim.id}`", claim.statement, claim.supported_when, "<br>".join(measured), _listed(verdict.seeds)]
        lines.append(f"| {' | '.join([*cells, f'**{verdict.outcome}**'])} |")
    return "\n".join(lines)

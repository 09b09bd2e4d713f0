"""What the runs say about each claim.

A claim is decided by the runs of 3 to 10 seeds: "supported" if its effect lies on the claim's side, "reversed" if on
the other, else "undecided". A false decision has a probability of at most 5% over all claims that a preset can decide
and over looking after each seed (Holm 1979 over the claims, Pocock 1977 over the looks: `measures/statistics.py`). The
95% intervals, and what they alone would say ("plain verdict"), are shown beside and are not corrected.

"depends on the definition": rival definitions are decided in both directions. "too few seeds": one or two; only the
sign is told. "this preset cannot decide it": the runs do not reach the regime that the claim is about. "no
information": of the events that the claim counts there are fewer than ten. "diverged": a run whose accuracy the claim
needs has none. "not run": a run is missing or not complete. Accuracy of a selected epoch decides nothing.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from cifar_lab.experiments import command_for, config_of, known_experiments
from cifar_lab.measures.statistics import (
    FEWEST_SEEDS,
    MOST_SEEDS,
    bootstrap_over_images,
    clopper_pearson,
    holm,
    sides,
    t_quantile,
    which_side,
)
from cifar_lab.report.claims import CLAIMS, FEWEST_EVENTS, Claim, Measure, Plan
from cifar_lab.run_folder.reader import Run, own_runs, report_runs
from cifar_lab.settings import above, first_of, seeds_in_words

SUPPORTED, REVERSED, UNDECIDED = "supported", "reversed", "undecided"
DEPENDS, DIVERGED, NOT_RUN = "depends on the definition", "diverged", "not run"
CANNOT, NO_INFORMATION, TOO_FEW = "this preset cannot decide it", "no information", "too few seeds"
SIGNS = {SUPPORTED: "sign as claimed", REVERSED: "sign opposite", DEPENDS: "sign depends on the definition"}
PLAIN_LEVEL = 0.05


def _exp(x: float) -> float:
    """Of a number of any size."""
    with np.errstate(over="ignore"):
        return float(np.exp(x))


@dataclass(frozen=True, eq=False)
class Estimate:
    """A measure over the seeds: mean and 95% interval, on the measure's scale."""

    measure: Measure
    values: np.ndarray  # (n,): a value per seed

    @property
    def _used(self) -> np.ndarray:
        """The values as the inference takes them: without seeds that have none, logarithms of ratios."""
        values = self.values[~np.isnan(self.values)]
        with np.errstate(divide="ignore"):
            return np.log(values) if self.measure.scale == "ratio" else values

    @property
    def mean(self) -> float:
        """Over the seeds that have a value. NaN if none has, or values are infinite in both directions."""
        used = self._used
        with np.errstate(invalid="ignore", over="ignore"):
            mean = float(used.mean()) if len(used) else math.nan
        return _exp(mean) if self.measure.scale == "ratio" else mean

    @property
    def interval(self) -> tuple[float, float] | None:
        """Cut at what is possible. None with fewer than two values, if they are not finite, and if they do not scatter:
        [0, 0] is none."""
        used, n = self._used, len(self._used)
        if self.measure.scale == "share":
            return clopper_pearson(int(used.sum()), n) if n else None
        if n < 2 or not np.isfinite(used).all() or not used.std() or self.measure.scale == "sign":
            return None
        half = t_quantile(n - 1) * float(used.std(ddof=1)) / math.sqrt(n)
        low, high = float(used.mean()) - half, float(used.mean()) + half
        if self.measure.scale == "ratio":
            return _exp(low), _exp(high)
        least, most = self.measure.possible
        return max(low, least), min(high, most)

    @property
    def p(self) -> tuple[float, float]:
        """One-sided p-values for the claim's side and for the other."""
        return sides(self._used, self.measure.side_on_scale, exact=self.measure.scale in ("share", "sign"))

    @property
    def sign(self) -> str:
        """On which side the mean lies."""
        return {1: SUPPORTED, -1: REVERSED, 0: UNDECIDED}[which_side(self.mean, self.measure.side)]

    def __str__(self) -> str:
        measure = self.measure
        if any(f"{value:g}" in (measure.words or {}) for value in self.values):
            said = [measure.said(value) for value in self.values]
            return said[0] if len(set(said)) == 1 else ", ".join(said)
        text = measure.text(self.mean)
        if self.interval:
            text += " [{}, {}]".format(*(format(bound, measure.form) for bound in self.interval))
        return text


@dataclass(frozen=True, eq=False)
class Verdict:
    """What the runs of a preset say about a claim."""

    claim: Claim
    outcome: str
    seeds: tuple[int, ...] = ()  # those that the estimates are from
    estimates: tuple[Estimate, ...] = ()  # one per measure of the claim, or none
    notes: tuple[str, ...] = ()
    commands: tuple[str, ...] = ()  # those that train what is missing
    direction: str = UNDECIDED  # the outcome, if `p` is small enough
    p: float | None = None  # two-sided; None if the seeds are too few, or nothing is to be decided
    level: float | None = None  # what p must not exceed, in the family of the preset's claims

    @property
    def plain(self) -> str:
        """The verdict without any correction, at 5%; empty without p."""
        return "" if self.p is None else self.direction if self.p <= PLAIN_LEVEL else UNDECIDED

    @property
    def open(self) -> bool:
        """Whether more seeds could decide it."""
        closed = self.outcome in (SUPPORTED, REVERSED, DEPENDS, CANNOT, DIVERGED)
        return not closed and len(self.seeds) < MOST_SEEDS


def judge_sources(runs: Sequence[Run], preset: str, results: str | Path | None = None) -> dict[str, list[Verdict]]:
    """Verdicts from the user's own runs, under "", and from published ones; of a source without runs there is none."""
    sources = {"": [r for r in runs if not r.published], "published runs": [r for r in runs if r.published]}
    return {source: judge_all(of_source, preset, results) for source, of_source in sources.items() if of_source}


def judge_all(
    runs: Sequence[Run], preset: str, results: str | Path | None = None, claims: Sequence[Claim] = CLAIMS
) -> list[Verdict]:
    """A verdict on each claim from a preset's runs, in the order of `claims`, which are the family that is corrected.

    results: the folder into which the commands named in a verdict train; by default the one that the runs are in.
    """
    results = results or (above(runs[0].folder, 3) if runs else "results")
    found = report_runs(runs, preset)
    return decide([weigh(claim, found, preset, results) for claim in claims])


def open_claims(results: str | Path, preset: str) -> list[Verdict]:
    """The verdicts of a results folder's own runs that more seeds could still decide: what is left to train.

    Those that are not run are among them. A claim that the preset cannot decide is not, nor is one with ten seeds.
    """
    return [verdict for verdict in judge_all(own_runs(results, preset), preset, results) if verdict.open]


def decide(weighed: Sequence[Verdict]) -> list[Verdict]:
    """The verdicts of one family: those that have a p-value and one small enough get their direction.

    The family is every claim that the preset can decide, also those that have no p-value yet.
    """
    family = [v for v in weighed if v.outcome != CANNOT]
    results = holm([1.0 if v.p is None else v.p for v in family])
    levels = {v.claim.id: result for v, result in zip(family, results, strict=True)}
    decided = []
    for verdict in weighed:
        if verdict.p is not None and verdict.claim.id in levels:
            level, rejected = levels[verdict.claim.id]
            verdict = replace(verdict, level=level, outcome=verdict.direction if rejected else verdict.outcome)
        decided.append(verdict)
    return decided


def weigh(
    claim: Claim, found: Mapping[str, Mapping[int, Run]], preset: str, results: str | Path = "results"
) -> Verdict:
    """A claim's estimates and p-value. found: a run by its name in `experiments.RUNS` and its seed; only complete ones
    count, and of more than ten seeds the ten lowest."""
    notes = first_of([
        f"in progress: {name}, seed {seed}, {run.epochs_done} of {run.epochs_planned} epochs"
        for name in claim.runs
        for seed, run in found.get(name, {}).items()
        if not run.complete
    ])  # fmt: skip
    complete = {
        name: {s: run for s, run in found.get(name, {}).items() if run.complete}
        for name in (*claim.runs, *claim.controls)
    }
    wanted = set.union(*(set(complete[name]) for name in claim.runs))
    paired = sorted(set.intersection(*(set(complete[name]) for name in claim.runs)))
    reason = claim.regime(preset, [plan_of(name, preset, complete[name].values()) for name in claim.runs])
    if reason:
        notes.append(f"cannot be decided here: {reason}")
    if not paired:
        if reason:
            return Verdict(claim, CANNOT, notes=tuple(notes))
        asked = sorted(wanted or set().union(*found.values()) or {0})[:MOST_SEEDS]
        missing = {name: tuple(seed for seed in asked if seed not in complete[name]) for name in claim.runs}
        commands = dict.fromkeys(command_for(name, preset, seeds, results) for name, seeds in missing.items() if seeds)
        return Verdict(claim, NOT_RUN, notes=tuple(notes), commands=tuple(commands))
    if wanted > set(paired):
        notes.append(f"left out, as not every run has it: seed {seeds_in_words(wanted - set(paired))}")
    if len(paired) > MOST_SEEDS:
        notes.append(f"not used, as verdicts are for at most {MOST_SEEDS} seeds: {seeds_in_words(paired[MOST_SEEDS:])}")
        paired = paired[:MOST_SEEDS]
    for name in claim.runs:
        lengths = {complete[name][seed].epochs_planned for seed in paired} - {planned_epochs(name, preset)}
        notes += [f"{name} has {n} epochs instead of {planned_epochs(name, preset)}" for n in sorted(lengths)]
    diverged = {seed: [n for n in claim.runs if complete[n][seed].diverged_at_step is not None] for seed in paired}
    notes += [
        f"diverged: {name}, seed {seed}, at step {complete[name][seed].diverged_at_step:,}"
        for seed, names in diverged.items()
        for name in names
    ]
    measured = tuple(seed for seed, names in diverged.items() if claim.divergence_counts or not names)
    values = [claim.effect({name: of[seed] for name, of in complete.items() if seed in of}) for seed in measured]
    estimates = tuple(
        Estimate(measure, np.array([value[i] for value in values], dtype=np.float64))
        for i, measure in enumerate(claim.measures)
    )
    for a, b in claim.pairs:
        notes += _image_note(claim, a, b, [(complete[a][seed], complete[b][seed]) for seed in measured])
    if reason:
        return Verdict(claim, CANNOT, measured, estimates, tuple(notes))
    if len(measured) < len(paired):
        return Verdict(claim, DIVERGED, measured, estimates, tuple(notes))
    return weigh_estimates(claim, measured, estimates, tuple(notes))


def weigh_estimates(
    claim: Claim, seeds: tuple[int, ...], estimates: tuple[Estimate, ...], notes: tuple[str, ...] = ()
) -> Verdict:
    """A verdict with its p-value, from the estimates of a claim that the preset can decide.

    If the deciding measures are parts of the claim, it is supported by all of them and reversed by any; if they are
    rival definitions of one thing, those with a value have to agree. Where one of k would be enough, its p-value counts
    k-fold (Bonferroni).
    """
    counted = [estimate for estimate in estimates if estimate.measure.events]
    events = sum(float(np.nansum(estimate.values)) for estimate in counted)
    if counted and events < FEWEST_EVENTS:
        notes = (*notes, f"{events:g} events over all seeds; a verdict needs {FEWEST_EVENTS}")
        return Verdict(claim, NO_INFORMATION, seeds, estimates, notes)
    deciding = [estimate for estimate in estimates if estimate.measure.side]
    if claim.rival_definitions:
        deciding = [e for e in deciding if not np.isnan(e.values).all()] or deciding[:1]
    if len(seeds) < FEWEST_SEEDS:
        said = {estimate.sign for estimate in deciding}
        sign = _combined(said, claim.rival_definitions)
        outcome = f"{TOO_FEW} (n = {len(seeds)}, {SIGNS.get(sign, 'no sign')})"
        return Verdict(claim, outcome, seeds, estimates, notes, direction=sign)
    k = len(deciding)
    supported, reverse = zip(*(estimate.p for estimate in deciding), strict=True)
    p = {SUPPORTED: max(supported), REVERSED: max(reverse) if claim.rival_definitions else k * min(reverse)}
    if claim.rival_definitions and k > 1:
        p[DEPENDS] = k * max(min(supported), min(reverse))
    direction = min(p, key=p.get)
    return Verdict(
        claim, UNDECIDED, seeds, estimates, notes, direction=direction, p=min(1.0, 2 * p[direction])
    )  # fmt: skip


def _combined(said: set[str], rivals: bool) -> str:
    """What the signs of the deciding measures say together."""
    if rivals and {SUPPORTED, REVERSED} <= said:
        return DEPENDS
    if REVERSED in said and not (rivals and UNDECIDED in said):
        return REVERSED
    return SUPPORTED if said == {SUPPORTED} else UNDECIDED


def _image_note(claim: Claim, a: str, b: str, pairs: Sequence[tuple[Run, Run]]) -> list[str]:
    """How much a difference of accuracies depends on which images are in the test set, if the predictions are there."""
    right = [(first.right, second.right) for first, second in pairs]
    if not right or any(r is None for pair in right for r in pair):
        return []
    differences = np.mean([first.astype(np.float64) - second for first, second in right], axis=0)
    low, high = bootstrap_over_images(differences)
    mean = 100 * float(differences.mean())
    return [f"last epoch, {a} minus {b}: {mean:+z.2f} points [{low:+z.2f}, {high:+z.2f}] over test images"]


def plan_of(name: str, preset: str, runs: Iterable[Run]) -> Plan:
    """The shortest of a run's plans over the seeds; the preset's if there is none."""
    plans = [Plan(run.config, run.epochs_planned, run.steps_planned) for run in runs]
    if plans:
        return min(plans, key=lambda plan: plan.steps)
    config, epochs = config_of(name, preset), planned_epochs(name, preset)
    return Plan(config, epochs, epochs * -(-config.train_size // config.batch_size))


def planned_epochs(run: str, preset: str) -> int:
    """How many epochs the named run has at a preset."""
    return next(e.epochs_at(preset) for e in known_experiments(preset) if run in e.names)

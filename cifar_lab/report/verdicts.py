"""What the runs say about each claim.

With three or more seeds: "supported" if the 95% t interval of the effect over the seeds lies wholly on the claim's
side, "reversed" if it lies wholly on the other, else "undecided". With one or two seeds an interval says little: only
the side of the mean is given, "agrees" or "disagrees", with the number of seeds. "diverged": a run whose accuracy the
claim needs has none. "not run": a run is missing or not complete. Accuracy of a selected epoch decides nothing.
"""

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cifar_lab.experiments import command_for, experiments
from cifar_lab.measures.statistics import t_quantile
from cifar_lab.report.claims import CLAIMS, Claim, Measure
from cifar_lab.run_folder.reader import Run, report_runs
from cifar_lab.settings import ALL_PRESETS

SUPPORTED, REVERSED, UNDECIDED = "supported", "reversed", "undecided"
DEPENDS, DIVERGED, NOT_RUN = "depends on the definition", "diverged", "not run"
SIDE_ALONE = {SUPPORTED: "agrees", REVERSED: "disagrees"}
SEEDS_FOR_AN_INTERVAL = 3


@dataclass(frozen=True, eq=False)
class Estimate:
    """A measure over the seeds: mean and 95% t interval; without an interval if it has fewer than two values."""

    measure: Measure
    values: np.ndarray  # (n,): a value per seed

    @property
    def mean(self) -> float:
        """NaN if a value is NaN, or values are infinite in both directions."""
        with np.errstate(invalid="ignore"):
            return float(self.values.mean()) if len(self.values) else math.nan

    @property
    def interval(self) -> tuple[float, float] | None:
        """None with fewer than two values, or if they are not finite."""
        n = len(self.values)
        if n < 2 or not np.isfinite(self.values).all():
            return None
        half = t_quantile(n - 1) * float(self.values.std(ddof=1)) / math.sqrt(n)
        return self.mean - half, self.mean + half

    @property
    def outcome(self) -> str:
        """Supported, reversed or undecided, by the interval if there are enough seeds, else by the mean."""
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


def judge_sources(runs: Sequence[Run], preset: str, results: str | Path | None = None) -> dict[str, list[Verdict]]:
    """Verdicts from the user's own runs, under "", and from published ones; of a source without runs there is none."""
    sources = {"": [r for r in runs if not r.published], "published runs": [r for r in runs if r.published]}
    return {source: judge_all(of_source, preset, results) for source, of_source in sources.items() if of_source}


def judge_all(runs: Sequence[Run], preset: str, results: str | Path | None = None) -> list[Verdict]:
    """A verdict on each claim from a preset's runs, in the order of `CLAIMS`.

    results: the folder into which the commands named in a verdict train; by default the one that the runs are in.
    """
    results = results or (runs[0].folder.parents[2] if runs else "results")
    found = report_runs(runs, preset)
    return [judge(claim, found, preset, results) for claim in CLAIMS]


def judge(
    claim: Claim, found: Mapping[str, Mapping[int, Run]], preset: str, results: str | Path = "results"
) -> Verdict:
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
        return next(e.epochs for e in experiments(preset) if run in e.names)
    return ALL_PRESETS[preset]["epochs"]


def _listed(seeds: Iterable[int]) -> str:
    return " ".join(map(str, sorted(seeds)))


# --- Tables -----------------------------------------------------------------------------------------------------------

CSV_COLUMNS = (
    "claim", "the report says", "supported when", "verdict", "measure", "unit", "decides", "mean", "low", "high",
    "seeds", "values", "notes", "runs",
)  # fmt: skip


def to_csv(judged: Mapping[str, Sequence[Verdict]]) -> str:
    """One row per measure, the claim's verdict in each; a claim without a measurement has one row. low, high: 95%.

    judged: verdicts by source, as `judge_sources` returns them.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for source, verdict in ((source, verdict) for source, of_source in judged.items() for verdict in of_source):
        claim, runs = verdict.claim, source or "own runs"
        row = [claim.id, claim.statement, claim.supported_when, verdict.outcome]
        notes = "; ".join([*verdict.notes, *(f"run: {command}" for command in verdict.commands)])
        for estimate in verdict.estimates:
            measure = estimate.measure
            numbers = [estimate.mean, *(estimate.interval or (math.nan, math.nan))]
            cells = [
                measure.name, measure.unit, "yes" if measure.side else "no",
                *("" if math.isnan(x) else f"{x:.6g}" for x in numbers),
                _listed(verdict.seeds), " ".join(f"{x:.6g}" for x in estimate.values),
            ]  # fmt: skip
            writer.writerow([*row, *cells, notes, runs])
        if not verdict.estimates:
            writer.writerow([*row, *[""] * 8, notes, runs])
    return out.getvalue()


def to_text(verdicts: Sequence[Verdict]) -> str:
    """A line per claim for the console: id, verdict, and the measures that decide or the command that is missing."""
    lines = []
    for verdict in verdicts:
        said = [str(e) for e in verdict.estimates if e.measure.side] or list(verdict.commands)
        said += [note for note in verdict.notes if "instead of" in note]  # the others are in report.md
        lines.append(f"  {verdict.claim.id:<15} {verdict.outcome:<34} {'; '.join(said)}".rstrip())
    return "\n".join(lines)


def to_markdown(verdicts: Sequence[Verdict]) -> str:
    """A table with a row per claim."""
    lines = ["| claim | the report says | supported when | measured | seeds | verdict |", "|---|---|---|---|---|---|"]
    for verdict in verdicts:
        claim = verdict.claim
        measured = [f"{estimate.measure.name}: {estimate}" for estimate in verdict.estimates]
        measured += [*verdict.notes, *(f"run `{command}`" for command in verdict.commands)]
        cells = [f"`{claim.id}`", claim.statement, claim.supported_when, "<br>".join(measured), _listed(verdict.seeds)]
        lines.append(f"| {' | '.join([*cells, f'**{verdict.outcome}**'])} |")
    return "\n".join(lines)

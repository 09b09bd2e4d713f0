"""The verdicts as verdicts.csv, as a Markdown table, and as lines for the console."""

import math
from collections.abc import Mapping, Sequence

from cifar_lab.escape import code, csv_text
from cifar_lab.report.verdicts import Verdict
from cifar_lab.settings import seeds_in_words

CSV_COLUMNS = (
    "claim", "the report says", "supported when", "verdict", "p", "level", "plain verdict", "measure", "unit",
    "decides", "mean", "low", "high", "seeds", "values", "notes", "runs",
)  # fmt: skip


def to_csv(judged: Mapping[str, Sequence[Verdict]]) -> str:
    """One row per measure, the claim's verdict in each; a claim without a measurement has one row. low, high: 95%.

    p: two-sided, of the claim; level: what it must not exceed, after correction. judged: verdicts by source, as
    `judge_sources` returns them.
    """
    rows: list[Sequence] = [CSV_COLUMNS]
    for source, verdict in ((source, verdict) for source, of_source in judged.items() for verdict in of_source):
        claim, runs = verdict.claim, source or "own runs"
        decision = ("" if x is None else f"{x:.3g}" for x in (verdict.p, verdict.level))
        row = [claim.id, claim.statement, claim.supported_when, verdict.outcome, *decision, verdict.plain]
        notes = "; ".join([*verdict.notes, *(f"run: {command}" for command in verdict.commands)])
        for estimate in verdict.estimates:
            measure = estimate.measure
            numbers = [estimate.mean, *(estimate.interval or (math.nan, math.nan))]
            cells = [
                measure.name, measure.unit, "yes" if measure.side else "no",
                *("" if math.isnan(x) else f"{x:.6g}" for x in numbers),
                seeds_in_words(verdict.seeds), " ".join(f"{x:.6g}" for x in estimate.values),
            ]  # fmt: skip
            rows.append([*row, *cells, notes, runs])
        if not verdict.estimates:
            rows.append([*row, *[""] * 8, notes, runs])
    return csv_text(rows)


def to_text(verdicts: Sequence[Verdict]) -> str:
    """A line per claim for the console: id, verdict, and the measures that decide or the command that is missing."""
    lines = []
    for verdict in verdicts:
        said = [str(e) for e in verdict.estimates if e.measure.side] or list(verdict.commands)
        said += [note for note in verdict.notes if "instead of" in note]  # the others are in report.md
        lines.append(f"  {verdict.claim.id:<15} {verdict.outcome:<41} {'; '.join(said)}".rstrip())
    return "\n".join(lines)


def to_markdown(verdicts: Sequence[Verdict]) -> str:
    """A table with a row per claim; of its measures, those that do not decide it are folded away."""
    lines = ["| claim | the report says | supported when | measured | seeds | verdict |", "|---|---|---|---|---|---|"]
    for verdict in verdicts:
        claim = verdict.claim
        shown = [e for e in verdict.estimates if e.measure.on_page and (e.measure.side or str(e) != "-")]
        deciding, others = (
            [f"{e.measure.name}: {e}" for e in shown if bool(e.measure.side) == decides] for decides in (True, False)
        )
        measured = [*deciding, *verdict.notes, *(f"run {code(command, cell=True)}" for command in verdict.commands)]
        if others:
            measured.append(f"<details><summary>{len(others)} more</summary>{'<br>'.join(others)}</details>")
        seeds = seeds_in_words(verdict.seeds)
        cells = [f"`{claim.id}`", claim.statement, claim.supported_when, "<br>".join(measured), seeds]
        decision = f"**{verdict.outcome}**"
        if verdict.p is not None:
            decision += f"<br>p = {verdict.p:.2g}, needs {verdict.level:.2g}<br>plain: {verdict.plain}"
        lines.append(f"| {' | '.join([*cells, decision])} |")
    return "\n".join(lines)

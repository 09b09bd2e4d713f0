"""A screening design as switches-<claim>.csv, as a Markdown table, and as lines for the console."""

from collections.abc import Sequence

from cifar_lab.escape import csv_text
from cifar_lab.report.screening import Effect, Screening
from cifar_lab.settings import seeds_in_words

CSV_COLUMNS = (
    "claim", "the report says", "measure", "unit", "seeds", "with the preset's settings", "changes side at",
    "degrees of freedom", "switch", "effect", "low", "high", "at the preset's level", "at the other level", "sign",
    "notes",
)  # fmt: skip
ARE_READ = """\
Effect: mean of the claim's effect over the six rows of a 12-run design (Plackett & Burman 1946) with the switch at its
other level, minus that over the six with the preset's, of a ratio in logarithms; in brackets the 95% interval from the
columns without a switch, not corrected for their number. An interaction of two switches moves the effects of all others
by a third of its own. A switch flips the sign if its two levels lie on different sides of the claim, or if its interval
moves the preset's value to the other side; confirmed: also when it alone differs from the preset's settings."""


def to_csv(screening: Screening) -> str:
    """A row per switch."""
    rows: list[Sequence] = [CSV_COLUMNS]
    claim = screening.claim
    shared = (
        claim.id, claim.statement, screening.measure.name, screening.unit, seeds_in_words(screening.seeds),
        f"{screening.value:.6g}", " ".join(f"{limit:.6g}" for limit in screening.limits), screening.degrees,
    )  # fmt: skip
    for of in screening.effects:
        numbers = [f"{x:.6g}" for x in (of.effect, *(of.interval or ()), *of.means)]
        numbers[1:1] = [] if of.interval else ["", ""]
        rows.append([*shared, of.name, *numbers, of.sign, "; ".join(screening.notes)])
    return csv_text(rows)


def _measured(of: Effect) -> str:
    interval = " [{:+.3g}, {:+.3g}]".format(*of.interval) if of.interval else ""
    return f"{of.effect:+.3g}{interval}"


def to_markdown(screening: Screening) -> str:
    """A sentence and a table with a row per switch."""
    unit = f" ({screening.unit})" if screening.unit else ""
    lines = [
        f"{screening.claim.statement}: {screening.measure.name}{unit}, with the preset's settings "
        f"{screening.value:+.3g}; seed {seeds_in_words(screening.seeds)}; {screening.degrees} degrees of freedom"
        + "".join(f"; {note}" for note in screening.notes) + ".",
        "",
        "| switch | effect | at the preset's level | at the other level | sign |",
        "|---|---|---:|---:|---|",
    ]  # fmt: skip
    for of in screening.effects:
        own, other = (f"{mean:+.3g}" for mean in of.means)
        lines.append(f"| {of.name} | {_measured(of)} | {own} | {other} | {of.sign} |")
    return "\n".join(lines)


def to_text(screening: Screening) -> str:
    """For the console: a line per switch."""
    unit = f", {screening.unit}" if screening.unit else ""
    head = f"switches of {screening.claim.id} ({screening.measure.name}{unit}; preset's: {screening.value:+.3g}):"
    return "\n".join([head, *(f"  {of.name:<60} {_measured(of):<28} {of.sign}" for of in screening.effects)])

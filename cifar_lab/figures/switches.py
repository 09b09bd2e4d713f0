"""The figure of a screening design: the effect of each switch, from `<results>/<preset>/switches-*.csv`."""

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path

from cifar_lab import escape
from cifar_lab.figures.style import OTHER_COLOURS, Figures, heading, plt, small_print, wrapped
from cifar_lab.run_folder.reader import Run
from cifar_lab.run_folder.schema import RunFileError, read_bytes
from cifar_lab.switches import SWITCHES

LONGEST = 1_000  # characters of a text
FLIPS = OTHER_COLOURS[0]  # of a switch that flips the sign


def draw_all(figures: Figures, results: Path, preset: str, runs: Sequence[Run]) -> None:
    """A figure for each claim whose design is complete."""
    for file in sorted((results / preset).glob("switches-*.csv")):
        try:
            lines = io.StringIO(read_bytes(file).decode(), newline="")
            figure, caption = _draw(list(csv.DictReader(lines, strict=True)), preset)
        except RunFileError as error:
            figures.errors.append(error)
        except (csv.Error, KeyError, IndexError, TypeError, ValueError) as error:
            figures.errors.append(RunFileError(file, f"not a table of switches ({error})"))
        else:
            figures.add(figure, results / preset / "figures" / file.stem, caption)


def _draw(rows: list[dict[str, str]], preset: str):
    """Horizontal intervals, the largest effect on top; figure and caption."""
    if len(rows) > len(SWITCHES) or max(len(text) for row in rows for text in row.values()) > LONGEST:
        raise ValueError("more rows, or a longer text, than a design has")
    rows = sorted(rows, key=lambda row: abs(float(row["effect"])))
    first = rows[-1]
    unit = f" ({first['unit']})" if first["unit"] else ""
    bars = [(float(row["effect"]), float(row["low"] or "nan"), float(row["high"] or "nan")) for row in rows]
    largest = max(abs(x) for bar in bars for x in bar if not math.isnan(x))
    limits = [float(limit) for limit in first["changes side at"].split()]
    limits = [limit for limit in limits if abs(limit) < 2 * largest]  # others would leave no room for the intervals
    figure, axes = plt.subplots(figsize=(8.0, 1.8 + 0.4 * len(rows)))
    axes.axvline(0, color="0.6", linewidth=0.8)
    for limit in limits:
        axes.axvline(limit, color="black", linewidth=1.0, linestyle=":")
    labels = []
    for y, (row, (effect, low, high)) in enumerate(zip(rows, bars, strict=True)):
        flips = row["sign"] != "same"
        labels.append(f"{row['switch']}\n({row['sign']})" if flips else row["switch"])
        colour = FLIPS if flips else "0.35"
        axes.plot([low, high], [y, y], color=colour, linewidth=2)
        axes.plot(effect, y, "o", color=colour)
    what = escape.figure(wrapped(figure, f"effect on the {first['measure']}{unit}", 10, 0.6))
    axes.set(xlabel=what, ylim=(-0.6, len(rows) - 0.4))
    axes.set_yticks(range(len(rows)), [escape.figure(label) for label in labels])
    title = f'{first["claim"]}: effects of the switches on "{first["the report says"]}"'
    heading(figure, title)
    value = float(first["with the preset's settings"])
    note = (
        f"preset {preset}, seed {first['seeds']}: main effects of a 12-run design, 95% intervals "
        f"({first['degrees of freedom']} degrees of freedom); with the preset's settings {value:+.3g}; dotted, if "
        "near: the effect at which that changes sides"
    )
    small_print(figure, f"{note}; {first['notes']}" if first["notes"] else note)
    return figure, f"Effects of the switches on the claim {first['claim']}: {first['measure']}"

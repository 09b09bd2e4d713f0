"""report.html: one file, without any request, of charts that can be zoomed, all verdicts, pictures and origins.

Everything that comes from a file is text: `_tag` escapes it, `_json` keeps it inside its script, and the page's own
script (`web/page.js`) never makes markup of it. Without JavaScript all but the charts is there.
"""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cifar_lab import escape
from cifar_lab.experiments import command_for
from cifar_lab.figures.style import Figures, settings_text
from cifar_lab.report import page
from cifar_lab.report.chart_data import chart_data
from cifar_lab.report.verdicts import REVERSED, SUPPORTED, Verdict
from cifar_lab.run_folder.reader import Run

WEB = Path(__file__).parent / "web"
CHARTS = (
    ("steps", "Training loss at every step",
     "A learning-rate band is filled from the smallest to the largest loss over its learning rates, of the selected "
     "seed. If several steps share a pixel, what is drawn reaches from the smallest to the largest of them, so that no "
     "spike is lost; over it lie running medians. Drag to zoom in."),
    ("epochs", "Curves over the epochs",
     "Of several seeds the thick line is the mean, as far as all of them go without divergence. Drag to zoom in."),
)  # fmt: skip


class _Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def report_html(preset: str, runs: Sequence[Run], figures: Figures, judged: Mapping[str, Sequence[Verdict]]) -> str:
    """The content of report.html. judged: verdicts by what the runs behind them are called; "" for the user's own."""
    content, numbers = chart_data(runs, figures)
    script = "".join(map(_asset, ("uplot/uPlot.iife.min.js", "page.js")))
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{allowed}'"
    title = f"Results at the preset {preset}"
    sections = [
        *(_verdicts(source, of, preset) for source, of in judged.items()),
        *(_chart(*chart) for chart in CHARTS if content["series"]),
        _pictures(figures),
        _runs(preset, runs),
        _missing(figures),
        _origin(runs),
    ]
    sections = [section for section in sections if section]
    links = (_tag("a", name, href=f"#{place}") for place, name, _ in sections)
    body = [
        _tag("header", _tag("h1", title), _tag("p", _summary(runs)), _tag("nav", *links, aria_label="Sections")),
        _tag("main", *(_tag("section", _tag("h2", name), *parts, id=place) for place, name, parts in sections)),
        _tag("script", _json(content), type="application/json", id="content"),
        _tag("script", _Markup(numbers), type="text/plain", id="numbers"),
        _tag("script", _Markup(script)),
    ]
    head = [
        _Markup('<meta charset="utf-8">'),
        _Markup(f'<meta http-equiv="Content-Security-Policy" content="{policy}">'),
        _Markup('<meta name="viewport" content="width=device-width, initial-scale=1">'),
        _tag("title", title),
        _tag("style", _Markup(_asset("uplot/uPlot.min.css") + _asset("page.css"))),
        _Markup(f"<!-- uPlot:\n{_asset('uplot/LICENSE')}\n-->"),
    ]
    page_of = _tag("html", _tag("head", *head), _tag("body", *body), lang="en")
    return f"<!DOCTYPE html>\n{page_of}\n"


# --- Sections: the anchor, the heading and the parts; None where there is nothing to show -----------------------------

Section = tuple[str, str, Sequence[str]]


def _summary(runs: Sequence[Run]) -> str:
    told = dict(page.provenance(runs))
    return f"{told['']} · {told['machine'].split(';')[0]} · seeds {told['seeds']} · commit {told['commit']}"


def _verdicts(source: str, verdicts: Sequence[Verdict], preset: str) -> Section:
    folded = [_claim(verdict, preset) for verdict in verdicts]
    read = _tag("details", _tag("summary", "How verdicts are made"), _tag("p", page.VERDICTS_ARE_READ.replace("`", "")))
    place = f"claims-{source.replace(' ', '-')}" if source else "claims"
    return place, f"Claims{source and ', from the '}{source}", [*folded, read]


def _claim(verdict: Verdict, preset: str) -> _Markup:
    """A claim, folded: in sight what is claimed and the outcome, in it the rule, every seed's values, the commands.

    These name no results folder, so that the page is the same wherever the logs are.
    """
    claim = verdict.claim
    kind = verdict.outcome if verdict.outcome in (SUPPORTED, REVERSED) else "open"
    deciding = [_tag("span", f"{e.measure.name}: {e}") for e in verdict.estimates if e.measure.side]
    head = _tag(
        "summary",
        _tag("span", claim.statement[:1].upper() + claim.statement[1:], class_="statement"),
        _tag("span", verdict.outcome, class_=f"outcome {kind}"),
        _tag("span", *deciding, class_="measured"),
    )
    facts = [("claim", _tag("code", claim.id)), ("supported when", claim.supported_when)]
    if verdict.p is not None:
        facts.append(("p-value", f"{verdict.p:.2g}, needs {verdict.level:.2g}; without correction: {verdict.plain}"))
    facts += [("note", note) for note in verdict.notes]
    commands = dict.fromkeys(command_for(name, preset, verdict.seeds or (0,)) for name in claim.runs)
    facts.append(("runs, trained by", _Markup("".join(_tag("pre", _tag("code", command)) for command in commands))))
    values = ""
    if verdict.estimates:
        columns = ["measure", "mean [95% interval]", *(f"seed {seed}" for seed in verdict.seeds), "decides"]
        rows = [
            (e.measure.name, str(e), *map(e.measure.said, e.values), "yes" if e.measure.side else "")
            for e in verdict.estimates
        ]
        values = _table(columns, rows)
    return _tag("details", head, _facts(facts), values, class_="claim")


def _chart(place: str, title: str, note: str) -> Section:
    """A place that the page's script fills."""
    without = _tag("noscript", _tag("p", "The charts need JavaScript; the same figures are in the folder figures/."))
    return place, title, [_tag("figure", without, class_="chart", data_chart=place), _tag("p", note, class_="note")]


def _pictures(figures: Figures) -> Section | None:
    """The figures that are not curves of runs, as they are saved."""
    pictures = []
    for stem, caption in figures.drawn:
        if stem not in figures.views:
            image = base64.b64encode(stem.with_name(f"{stem.name}.svg").read_bytes()).decode()
            picture = _tag("img", src=f"data:image/svg+xml;base64,{image}", alt=caption)
            pictures.append(_tag("figure", picture, _tag("figcaption", caption), class_="picture"))
    return ("pictures", "Pictures", pictures) if pictures else None


def _runs(preset: str, runs: Sequence[Run]) -> Section:
    head, *rows = page.rows_of_runs(preset, runs)
    table = _table([*head[:-1], "state"], rows)
    return "runs", "Runs", [table, _tag("p", page.RUNS_ARE_READ, class_="note")]


def _missing(figures: Figures) -> Section | None:
    lacking = [(name, _tag("pre", _tag("code", command))) for name, command in figures.missing]
    unreadable = [("not readable", str(error)) for error in figures.errors]
    return ("missing", "Missing", [_facts([*lacking, *unreadable])]) if lacking or unreadable else None


def _origin(runs: Sequence[Run]) -> Section:
    facts = [(name or "runs", text) for name, text in page.provenance(runs)]
    return "origin", "Origin", [_facts([*facts, ("settings", settings_text(runs))])]


# --- HTML -------------------------------------------------------------------------------------------------------------


def _tag(name: str, *content: str, **attributes: str) -> _Markup:
    """An element. Text is escaped, elements are not; class_ is class, data_x is data-x."""
    named = "".join(f' {key.rstrip("_").replace("_", "-")}="{escape.html(x)}"' for key, x in attributes.items())
    if name == "img":
        return _Markup(f"<img{named}>")
    inside = "".join(part if isinstance(part, _Markup) else escape.html(part) for part in content)
    return _Markup(f"<{name}{named}>{inside}</{name}>")


def _facts(facts: Sequence[tuple[str, str]]) -> _Markup:
    return _tag("dl", *(part for name, text in facts for part in (_tag("dt", name), _tag("dd", text))))


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> _Markup:
    """A table that scrolls sideways where it has to, also by keyboard; the first cell of a row is its heading."""
    head = _tag("tr", *(_tag("th", name, scope="col") for name in columns))
    body = (_tag("tr", _tag("th", row[0], scope="row"), *(_tag("td", cell) for cell in row[1:])) for row in rows)
    table = _tag("table", _tag("thead", head), _tag("tbody", *body))
    return _tag("div", table, class_="wide", tabindex="0", role="region", aria_label=f"Table of each {columns[0]}")


def _json(content: Any) -> _Markup:
    """JSON inside a script element, which nothing in it can end."""
    text = json.dumps(content, separators=(",", ":"), allow_nan=False)
    return _Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def _asset(name: str) -> str:
    """A file of the page's own."""
    return (WEB / name).read_text(encoding="utf-8")

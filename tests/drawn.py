"""Figures as they are saved, and what is on them. Nothing is rendered: a figure is kept, and the files hold a mark that
says which figure they would show."""

import io
import re
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.text import Text

import plot_results


@dataclass
class Drawn:
    """What a command line has drawn, written and said."""

    results: Path
    figures: dict[str, Figure]  # by the name of their files without suffix
    report: str  # report.md, where there is one
    said: str


def drawn_by(main, argv, results):
    """Runs a command line, and keeps the figures that it saves below `results`. PNG and SVG are of one figure."""
    kept = []

    def savefig(figure, file, *, format, **_):
        kept.append(figure)
        first = next(place for place, other in enumerate(kept) if other is figure)
        file.write(f"figure {first} as {format}".encode())

    with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()) as said:
        patch.setattr(Figure, "savefig", savefig)
        assert not main([str(word) for word in argv])
    figures = {}
    for file in sorted(results.rglob("*.png")):
        place = int(re.fullmatch(r"figure (\d+) as png", file.read_text())[1])
        assert file.with_suffix(".svg").read_text() == f"figure {place} as svg"
        figures[file.stem] = kept[place]
    assert len(list(results.rglob("*.svg"))) == len(figures) == len({id(figure) for figure in kept})
    report = "".join(file.read_text() for file in results.glob("*/report.md"))
    return Drawn(results, figures, report, said.getvalue())


def plotted(results):
    """What plot_results.py makes of a results folder."""
    return drawn_by(plot_results.main, [results], results)


def one_line(text):
    return " ".join(text.split())


def texts(figure):
    """Every text of a figure, each in one line."""
    return [one_line(text.get_text()) for text in figure.findobj(Text) if text.get_text().strip()]


def extents(figure):
    """The boxes of the titles, labels, notes and legends of a figure as its PNG has them, in pixels, by their words.

    None lies outside the page.
    """
    figure.set_dpi(160)
    figure.draw_without_rendering()
    page, parts = figure.bbox.padded(1), [*figure.texts, *figure.findobj(Legend)]
    for axes in figure.axes:
        parts += [axes.title, axes.xaxis.label, axes.yaxis.label, *axes.texts]
    boxes = {}
    for part in parts:
        words = part.get_text() if isinstance(part, Text) else "legend"
        if words.strip():
            boxes[one_line(words)] = box = part.get_window_extent()
            assert page.x0 <= box.x0 and box.x1 <= page.x1 and page.y0 <= box.y0 and box.y1 <= page.y1, words
    return boxes


def legend(figure):
    """(label, colour) of every entry of a figure's legends."""
    entries = []
    for box in figure.findobj(Legend):
        for text, handle in zip(box.get_texts(), box.legend_handles, strict=True):
            colour = handle.get_color() if hasattr(handle, "get_color") else handle.get_facecolor()
            entries.append((text.get_text(), to_hex(colour).upper()))
    return entries


def lines(axes, colour=None, marker=None):
    """(x, y) of each line of a panel, in the order of drawing; only those of a colour and of a marker."""
    return [
        (list(line.get_xdata()), list(line.get_ydata()))
        for line in axes.lines
        if colour in (None, to_hex(line.get_color()).upper()) and marker in (None, line.get_marker())
    ]


def filled(axes, colour):
    """{x: (lowest y, highest y)} of the areas of a colour."""
    points = {}
    for area in axes.collections:
        if to_hex(area.get_facecolor()[0]).upper() == colour:
            for x, y in np.concatenate([path.vertices for path in area.get_paths()]):
                low, high = points.get(x, (y, y))
                points[x] = min(low, y), max(high, y)
    return points


def assert_axes(axes, xlabel, ylabel):
    """The labels, and that neither axis runs backwards."""
    assert (axes.get_xlabel(), axes.get_ylabel()) == (xlabel, ylabel)
    assert axes.get_xlim()[0] < axes.get_xlim()[1] and axes.get_ylim()[0] < axes.get_ylim()[1]


def same(found, expected):
    """The same lines, in any order, NaN equal to NaN; to 1e-12, as a mean may be summed in another order (seen: 0)."""
    found, expected = ([np.asarray(line, float).tolist() for line in group] for group in (found, expected))
    assert len(found) == len(expected)
    for line in expected:
        assert any(np.shape(o) == np.shape(line) and np.allclose(o, line, 1e-12, 0, equal_nan=True) for o in found)

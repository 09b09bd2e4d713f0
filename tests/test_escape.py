"""Nothing that a file says is obeyed: each place where text is shown has one function that makes it harmless there."""

import csv
import html
import json
import os
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from made_up import write_run
from matplotlib.cbook import is_math_text
from matplotlib.figure import Figure
from matplotlib.text import Text

import landscape
import plot_results
from cifar_lab import escape
from cifar_lab.figures.style import plt
from cifar_lab.measures.surface import Grid, layout

# Markup of every place, control characters, bytes that are no text (surrogates), and characters that turn lines.
PIECES = [
    "$", "$x$", r"\frac{", r"\$", "\\", "_", "*", "`", "``", "|", "<b>", "</td>", "<script>", "&amp;", '"', "'",
    "[a](b)", "![", "~~", "://", "www.", "#", "\n", "\r", "\t", "\0", "\x1b[31m", "\x1b]0;t\x07", "\x7f", "\x9b",
    "\u2028", "\u202e", "\ud800", "\udce9", "=1+1", "@", "+", "-", "/", "..", ".", " ", "é", "实验", "\U0001f600",
    "a", "B", "7",
]  # fmt: skip
hostile = st.lists(st.sampled_from(PIECES), max_size=8).map("".join)
line = st.lists(st.sampled_from([piece for piece in PIECES if piece.isprintable()]), max_size=8).map("".join)
often = settings(max_examples=200, derandomize=True, deadline=None)


@given(hostile)
@often
def test_a_terminal_gets_one_line_without_orders(text):
    shown = escape.terminal(text)
    assert shown.isprintable()
    assert shown == text or not text.isprintable()
    assert shown.encode("utf-8").decode() == shown


def test_what_is_shown_of_what_cannot_be_printed():
    assert escape.terminal("a\nb\x1b[0m \udce9\u202e\0") == r"a\nb\x1b[0m \xe9\u202e\x00"


@given(hostile)
@often
def test_text_in_markdown_is_no_markup(text):
    shown = escape.markdown(text)
    assert shown.isprintable()
    bare = re.sub(r"\\[!-/:-@\[-`{-~]", "", shown)  # without what a backslash makes plain
    assert not re.search(r"[\\`*\[\]<>|~$&]|://|www\.", bare)
    assert not re.search(r"(?<![^\W_])_|_(?![^\W_])", shown.replace(r"\_", ""))
    assert re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", shown) == escape.terminal(text)


@given(hostile, st.booleans())
@often
def test_a_span_of_code_holds_the_text_and_nothing_else(text, cell):
    shown = escape.code(text, cell=cell)
    fence, content = re.fullmatch(r"(`+)(.*?)\1", shown).groups()
    assert fence not in re.findall("`+", content)  # a run of as many backticks would end it
    if cell:
        assert not re.search(r"(?<!\\)\|", content)
        content = content.replace(r"\|", "|")
    if content[:1] == content[-1:] == " " and content.strip():
        content = content[1:-1]  # as CommonMark has it
    assert content == escape.terminal(text) or (not text and content.strip() == "")


@given(hostile)
@often
def test_text_in_html_stays_text(text):
    found = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attributes: found.append((tag, attributes))
    parser.feed(f'<p title="{escape.html(text)}">{escape.html(text)}')
    shown = "\n".join(map(escape.terminal, text.split("\n")))
    assert found == [("p", [("title", shown)])]
    assert html.unescape(escape.html(text)) == shown


@given(text=hostile)
@example(text="\x1b$a$_b$")
@settings(max_examples=40, derandomize=True, deadline=None)
def test_text_in_a_figure_is_drawn_as_it_is(text, tmp_path_factory):
    figure, axes = plt.subplots()
    axes.plot([1], [1], label=escape.figure(f"{text}."))
    assert len(axes.legend().get_texts()) == 1  # a label that begins with _ would have none
    title = axes.set_title(escape.figure(text))
    plain, is_math = title._preprocess_math(title.get_text())
    assert not is_math
    assert [line.removeprefix(" ") for line in plain.split("\n")] == [
        escape.terminal(line).removeprefix(" ") for line in text.split("\n")
    ]
    file = tmp_path_factory.getbasetemp() / "figure.svg"
    figure.savefig(file)
    plt.close(figure)
    ElementTree.parse(file)


@given(hostile)
@often
def test_a_file_name_is_one(text):
    name = escape.file_name(text)
    assert re.fullmatch(r"[\w.-]+", name) and not name.startswith(".")
    assert len(os.fsencode(f".{name}.before-20261126-050646-123456")) <= 255


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=200, max_size=300))
@often
def test_long_names_stay_apart(text):
    one, other = (escape.shortened(text + end) for end in "ab")
    assert (len(os.fsencode(one)) <= 224) and one != other


@pytest.mark.parametrize(
    "value, shown",
    [
        ("=1+1", "'=1+1"), ("+1", "'+1"), ("-x", "'-x"), ("@a", "'@a"), ("a=1", "a=1"), ("a\tb", r"a\tb"),
        (-1.5, -1.5), (None, None), (True, True),
    ],
)  # fmt: skip
def test_a_spreadsheet_takes_no_cell_for_a_formula(value, shown):
    assert escape.csv_cell(value) == shown


# --- Every field of every file ----------------------------------------------------------------------------------------

GRID = Grid(dims=1, points=3, images=64)
SWITCHES = ("claim", "the report says", "measure", "unit", "seeds", "switch", "sign", "notes")  # of switches-*.csv


def write_hostile(results, texts, lines):
    """A run and what may stand beside it, with hostile text in every field that a figure, a page or the console shows;
    a run that is refused for it, and a sound one. lines: the texts that config.json may hold."""
    write_run(results, "inception")
    folder = write_run(results, "vgg_a_lr0.001")
    config = json.loads((folder / "config.json").read_text())
    for key in ("label", "script"):
        config["network"][key] = lines()[:100]
    for key in ("commit", "device", "precision", "torch", "python", "platform"):
        config["environment"][key] = lines()
    config["earlier_environments"] = [{"commit": lines(), "device": lines()}]
    config["command"] = texts()
    (folder / "config.json").write_text(json.dumps(config))
    broken = write_run(results, "vgg_a_bn_lr0.001")
    settings = json.loads((broken / "config.json").read_text())
    settings["settings"][texts()] = texts()
    (broken / "config.json").write_text(json.dumps(settings))
    name = re.sub(r"[/\0]", "", texts())
    for file in (folder / f"surface-{name}.csv", results / "quick" / f"switches-{name}.csv"):
        file.write_text("")
    (folder / f"{GRID.stem}.csv").write_text(f"{layout(GRID, 64 * '0').header}-1.0,0.0,2.5\n")
    row = {"effect": "0.5", "low": "", "high": "", "changes side at": "1.0", "with the preset's settings": "0.1",
           "degrees of freedom": "3"} | {key: texts() for key in SWITCHES}  # fmt: skip
    with open(results / "quick" / "switches-level.csv", "w", newline="", encoding="utf-8", errors="replace") as lines:
        writer = csv.DictWriter(lines, list(row))
        writer.writeheader()
        writer.writerow(row)


@pytest.mark.parametrize("main", [plot_results.main, landscape.main])
@given(data=st.data())
@settings(max_examples=12, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
def test_nothing_is_injected(main, data, tmp_path_factory, capsys):
    results = tmp_path_factory.mktemp("results")
    write_hostile(results, lambda: data.draw(hostile), lambda: data.draw(line))
    kept = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", lambda figure, file, **_: (kept.append(figure), file.write(b"figure")))
        main([str(results)])
    said = capsys.readouterr()
    assert all(said_line.isprintable() for said_line in (said.out + said.err).split("\n"))
    for figure in kept:
        for text in figure.findobj(Text):
            own = re.sub(r"\$\\math[^$]*\$", "", text.get_text())  # without the ticks of a logarithmic axis
            assert not is_math_text(own) and all(part.isprintable() for part in own.split("\n"))
    for file in (results / "quick" / "figures").glob("*"):
        assert re.fullmatch(r"[\w.-]+", file.name)
    if main is landscape.main:
        return
    assert any("Figure 1" in text.get_text() for figure in kept for text in figure.findobj(Text))  # the sound run's
    for row in (results / "quick" / "report.md").read_text(encoding="utf-8").split("\n"):
        assert row.isprintable()
        without_code = re.sub(r"(`+).*?\1", "", re.sub(r"\\[!-/:-@\[-`{-~]", "", row))
        assert not re.search(r"<(?!br>|/?details>|/?summary>)|\$", without_code), row
        if row.startswith(("| inception/", "| vgg_a/")):
            assert len(re.split(r"(?<!\\)\|", row)) == 11

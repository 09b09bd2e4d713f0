"""report.html without a browser: what is stored of the losses, what is written, that nothing of it is markup."""

import base64
import hashlib
import json
import zlib
from html.parser import HTMLParser

import numpy as np
import pytest
from drawn import plotted
from hypothesis import given
from hypothesis import strategies as st
from made_up import NETWORKS, write_run

import plot_results
from cifar_lab.report import chart_data, html_page
from cifar_lab.report.web import vendor

BANDS = [f"{network}_lr{lr}" for network in ("vgg_a", "vgg_a_bn") for lr in ("0.001", "0.0001", "0.0005", "5e-05")]


class Page(HTMLParser):
    """The elements of a page, with their attributes and text."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.open = [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        element = {"tag": tag, "text": "", **dict(attrs)}
        self.elements.append(element)
        if tag not in ("meta", "img", "br"):
            self.open.append(element)

    def handle_endtag(self, tag):
        assert self.open.pop()["tag"] == tag

    def handle_data(self, data):
        for element in self.open:
            element["text"] += data

    def all(self, tag, **attributes):
        return [e for e in self.elements if e["tag"] == tag and attributes.items() <= e.items()]

    def text(self, tag, **attributes):
        (element,) = self.all(tag, **attributes)
        return element["text"]


def unpacked(text, shift):
    """The numbers behind a text that `pack` wrote, by its description: upper bytes of all, then the lower ones."""
    data = zlib.decompress(base64.b64decode(text))
    half = len(data) // 2
    codes = [256 * upper + lower for upper, lower in zip(data[:half], data[half:], strict=True)]
    return np.array([code << shift for code in codes], dtype=np.uint32).view(np.float32)


# --- The numbers ------------------------------------------------------------------------------------------------------


@given(
    st.lists(st.floats(0, 1e4), min_size=1, max_size=70), st.integers(0, 69), st.floats(1e4, 1e30),
    st.sampled_from([1, 2, 4, 8, 64]),
)  # fmt: skip
def test_a_spike_of_one_step_is_in_its_bucket(losses, at, spike, bucket):
    losses[at % len(losses)] = spike
    lows, highs = chart_data.extremes(np.array(losses), bucket)
    parts = [losses[i : i + bucket] for i in range(0, len(losses), bucket)]
    assert lows.tolist() == [min(part) for part in parts]
    assert highs.tolist() == [max(part) for part in parts]
    assert highs[at % len(losses) // bucket] == spike


@given(st.lists(st.floats(-1e30, 1e30).filter(lambda x: x == 0 or abs(x) > 1e-30), max_size=40))
def test_numbers_are_stored_to_a_fifth_of_a_percent_in_their_order(values):
    shift, text = chart_data.pack([np.array(values[:7]), np.array(values[7:])])
    stored = unpacked(text, shift).astype(float)
    negative = any(np.signbit(values))
    assert np.all(np.abs(stored - values) <= (0.004 if negative else 0.002) * np.abs(values))
    assert np.all(np.diff(stored[np.argsort(values, kind="stable")]) >= 0)


def test_what_is_no_number_is_stored_as_none():
    shift, text = chart_data.pack([np.array([1.5, np.nan, np.inf, 0.0])])
    assert repr(unpacked(text, shift).tolist()) == "[1.5, nan, inf, 0.0]"


@pytest.mark.parametrize("runs, bucket", [(0, 1), (8, 1), (12, 1), (13, 4), (24, 4), (25, 8), (480, 128)])
def test_steps_are_joined_only_if_the_page_would_be_too_large(runs, bucket):
    """Runs of 100,000 steps; a bucket of several steps takes two numbers, so one of two saves nothing."""
    assert chart_data.bucket_of([100_000] * runs) == bucket


def test_the_page_holds_every_loss_and_the_medians(tmp_path):
    losses = np.random.default_rng(3).uniform(0.5, 3, (2, 1_000))
    losses[1, 777] = 40.25
    for name, of in zip(("vgg_a_lr0.001", "vgg_a_lr0.0001"), losses, strict=True):
        write_run(tmp_path, name, epochs=10, losses=of)
    page = Page(html_of(plotted(tmp_path)))
    content = json.loads(page.text("script", id="content"))
    stored = unpacked(page.text("script", id="numbers"), content["shift"])
    assert [run["steps"] for run in content["runs"]] == [1_000, 1_000] and content["bucket"] == 1
    by_rate = {of["settings"]: of["runs"]["0"] for of in content["series"]}
    for name, of in zip(("learning rate 1e-3", "learning rate 1e-4"), losses, strict=True):
        (i,) = by_rate[name]["runs"]
        assert stored[1_000 * i : 1_000 * (i + 1)] == pytest.approx(of, rel=0.002)
    # A running median over 199 steps, a fifth of the run, at every 19th of the steps that have a whole window.
    lines, used = [], 2_000
    for line in content["medians"]:
        assert (line["first"], line["every"], line["count"]) == (100, 19, 43)
        lines.append(stored[used : used + 43])
        used += 43
    assert used == len(stored)
    (band,) = content["bands"]
    lower, upper = (lines[i] for i in band["runs"]["0"]["medians"])
    (of_first,) = by_rate["learning rate 1e-3"]["medians"]
    for line, curve in ((lower, losses.min(axis=0)), (upper, losses.max(axis=0)), (lines[of_first], losses[0])):
        expected = [np.median(curve[i - 99 : i + 100]) for i in range(99, 99 + 43 * 19, 19)]
        assert line == pytest.approx(expected, rel=0.002)


# --- The page ---------------------------------------------------------------------------------------------------------


def html_of(drawn):
    (page,) = drawn.results.glob("*/report.html")
    return page.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    results = tmp_path_factory.mktemp("page")
    for name in BANDS:
        for seed in range(3):
            better = (3 + seed) * name.startswith("vgg_a_bn")
            accuracy = [40 + better, 50 + better, 60 + better]
            write_run(results, name, seed=seed, epochs=3, test_accuracy=accuracy, commit="0123abc")
    return Page(html_of(plotted(results)))


def test_a_claim_is_folded_out_to_its_rule_its_seeds_and_its_commands(page):
    claims = page.all("details", **{"class": "claim"})
    (claim,) = [claim for claim in claims if "bn-accuracy" in claim["text"]]
    text = claim["text"]
    assert len(claims) == 12 and "BN lifts VGG from 85 to 88%" in text
    assert "supported whenabove 0" in text
    # Differences of 3, 4 and 5 points: 4 +- t(2) / sqrt(3), t(2) being 4.303.
    each = "+3.00 points+4.00 points+5.00 points"
    assert "seed 0seed 1seed 2decides" in text
    assert f"difference of the final test accuracies+4.00 points [+1.52, +6.48]{each}yes" in text
    for flags in ("--bn --lrs", "--lrs"):
        assert f"python MyVGG.py {flags} 1e-3 1e-4 5e-4 5e-5 --preset quick --seed 0 1 2" in text


def test_the_page_says_where_the_numbers_are_from(page):
    origin = page.text("section", id="origin")
    for said in ("cpu: made up (2 threads)", "0123abc", "PyTorch 2.14.1", "width 0.125", "batch 100", "fp32"):
        assert said in origin
    assert len(page.all("tr")) >= 24 and "vgg_a_bn/adam-lr5e-5-wd1e-4-seed2" in page.text("section", id="runs")


def test_figures_are_views_and_all_others_are_pictures(page):
    content = json.loads(page.text("script", id="content"))
    views = {view["title"]: view for view in content["views"]}
    assert len(page.all("option")) == 0 and "Figure 10: VGG-A, test accuracy" in views
    band = next(view for title, view in views.items() if title.startswith("The learning-rate band of VGG-A and"))
    assert [content["bands"][i]["network"] for i in band["on"]] == ["VGG-A", "VGG-A + BatchNorm"]
    shown = [content["series"][i] for i in views["Figure 10: VGG-A, test accuracy"]["on"]]
    assert [(of["network"], of["settings"]) for of in shown] == [("VGG-A", "learning rate 1e-3")]
    assert sorted(shown[0]["runs"]) == ["0", "1", "2"]
    pictures = page.all("img")
    assert [p["alt"] for p in pictures] == [
        "The ratio of the bands' mean widths up to each step, VGG-A + BatchNorm / VGG-A"
    ]
    head, data = pictures[0]["src"].split(",")
    assert head == "data:image/svg+xml;base64" and base64.b64decode(data).endswith(b"as svg")


HOSTILE = "</script><img src=x onerror=hacked()>&amp;'\"<!--"


def test_nothing_from_a_file_is_markup(tmp_path, monkeypatch):
    monkeypatch.setitem(NETWORKS, "vgg_a", ("MyVGG.py", HOSTILE, None))
    for lr in ("0.001", "0.0001"):
        write_run(
            tmp_path, f"vgg_a_lr{lr}", device=HOSTILE, commit=HOSTILE, epochs=3,
            environment={"precision": HOSTILE, "torch": HOSTILE, "python": HOSTILE, "platform": HOSTILE},
        )  # fmt: skip
    (tmp_path / "quick" / "vgg_a" / "broken").mkdir()
    (tmp_path / "quick" / "vgg_a" / "broken" / "config.json").write_text("{}")
    assert plot_results.main([str(tmp_path)]) == 1
    page = Page((tmp_path / "quick" / "report.html").read_text(encoding="utf-8"))
    assert [script.get("id") for script in page.all("script")] == ["content", "numbers", None]
    assert {e["src"].split(",")[0] for e in page.elements if "src" in e} <= {"data:image/svg+xml;base64"}
    assert not [name for e in page.elements for name in e if name.startswith("on")]
    assert HOSTILE in page.text("section", id="origin") and HOSTILE in page.text("section", id="runs")
    assert "broken" in page.text("section", id="missing")
    content = json.loads(page.text("script", id="content"))
    assert {of["network"] for of in content["series"]} == {HOSTILE}


def test_no_other_script_can_run_and_nothing_be_loaded(page):
    (policy,) = [e["content"] for e in page.all("meta") if e.get("http-equiv") == "Content-Security-Policy"]
    script = page.all("script")[-1]["text"]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'" == policy
    assert not page.all("link") and not page.all("iframe")


def test_the_plotting_library_is_the_one_of_its_package():
    files = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in vendor.FOLDER.iterdir()}
    assert files == {name.split("/")[-1]: digest for name, digest in vendor.FILES.items()}
    assert "MIT" in (html_page.WEB / "uplot" / "LICENSE").read_text()

"""report.html in a real browser: chromium without a window. Skipped where there is none (see tests/README.md)."""

import csv
import re
import shutil

import numpy as np
import pytest
from drawn import plotted
from made_up import NETWORKS, write_run

sync_api = pytest.importorskip("playwright.sync_api", reason="pip install -r requirements-browser.txt")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="no chromium: on Debian, apt-get install chromium")

RATES = ("0.001", "0.0001")
STEPS = 30_000  # far more than a chart has pixels
SPIKE, SPIKE_AT = 61.5, 23_457  # a loss that is ten times as high as any other, at a single step


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Two networks at two learning rates and two seeds, 30,000 steps each."""
    results, rng = tmp_path_factory.mktemp("browser"), np.random.default_rng(8)
    for network in ("vgg_a", "vgg_a_bn"):
        for lr in RATES:
            for seed in (0, 1):
                losses = 0.2 + 2 * np.exp(-np.arange(STEPS) / 5_000) + rng.uniform(0, 0.5, STEPS)
                if (network, lr, seed) == ("vgg_a", "0.001", 0):
                    losses[SPIKE_AT - 1] = SPIKE
                write_run(results, f"{network}_lr{lr}", seed=seed, epochs=STEPS // 100, losses=losses)
    plotted(results)
    return results


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def opened(browser, results):
    """A function that opens the page; at the end nothing was said on the console, and nothing asked for anywhere."""
    contexts, said, asked = [], [], []

    def opened(width=1280, **options):
        contexts.append(browser.new_context(viewport={"width": width, "height": 900}, **options))
        page = contexts[-1].new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        address = (results / "quick" / "report.html").as_uri()
        page.goto(address)
        page.wait_for_selector("html[data-ready]", state="attached")
        asked.remove(address)
        return page

    yield opened
    assert said == []
    assert [url for url in asked if not url.startswith(("data:", "blob:"))] == []
    for context in contexts:
        context.close()


def chart(page, name="steps"):
    return page.locator(f"[data-chart={name}]")


def extent(page, name="steps"):
    """The steps, or epochs, that are shown: the first and the last."""
    text = chart(page, name).locator(".extent").inner_text().replace(",", "")
    first, last = re.match(r"\w+ (\d+) to (\d+) of", text).groups()
    return int(first), int(last)


def hover(page, name, share):
    """Moves the mouse to a share of a chart's width; returns what the tooltip says: its head, and value by curve."""
    over = chart(page, name).locator(".u-over")
    over.scroll_into_view_if_needed()
    box = over.bounding_box()
    page.mouse.move(box["x"] + share * box["width"], box["y"] + box["height"] / 2)
    tooltip = chart(page, name).locator(".tooltip")
    tooltip.wait_for(state="visible")
    rows = [row.split("\t") for row in tooltip.locator("table").inner_text().split("\n")]
    return tooltip.locator("strong").inner_text(), {name.strip(): value.strip() for name, value in rows}


def drag(page, name, start, end):
    over = chart(page, name).locator(".u-over")
    over.scroll_into_view_if_needed()
    box = over.bounding_box()
    y = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + start * box["width"], y)
    page.mouse.down()
    page.mouse.move(box["x"] + end * box["width"], y, steps=4)
    page.mouse.up()


def switch(page, name, label):
    return chart(page, name).get_by_role("checkbox", name=label, exact=True)


def logged(results, run, file, column):
    with open(results / "quick" / run / file, encoding="utf-8", newline="") as rows:
        return [float(row[column]) for row in csv.DictReader(rows)]


def test_it_opens_with_the_bands_of_the_first_half(opened):
    page = opened()
    assert extent(page) == (1, STEPS // 2)
    _, values = hover(page, "steps", 0.5)
    assert list(values) == ["VGG-A, band", "VGG-A + BatchNorm, band"]


def test_a_tooltip_tells_what_the_log_says(opened, results):
    page = opened()
    chart(page).get_by_label("Figure").select_option("The loss of every run")
    chart(page).get_by_label("Seed").select_option("1")
    while extent(page)[1] - extent(page)[0] > 20:
        chart(page).get_by_role("button", name="Zoom in").click()
    for share in (0.11, 0.52, 0.93):
        head, values = hover(page, "steps", share)
        step = int(re.fullmatch(r"step ([\d,]+)", head)[1].replace(",", ""))
        assert extent(page)[0] <= step <= extent(page)[1] and len(values) == 4
        run = "vgg_a_bn/adam-lr1e-4-wd1e-4-seed1"
        value = float(values["VGG-A + BatchNorm, learning rate 1e-4"])
        assert value == pytest.approx(logged(results, run, "steps.csv", "loss")[step - 1], rel=0.002, abs=0.005)


def test_a_tooltip_tells_an_epoch_exactly(opened, results):
    page = opened()
    chart(page, "epochs").get_by_label("Quantity").select_option("test loss (nats)")
    head, values = hover(page, "epochs", 0.31)
    epoch = int(re.fullmatch(r"epoch (\d+)", head)[1])
    losses = [
        logged(results, f"vgg_a/adam-lr1e-3-wd1e-4-seed{seed}", "epochs.csv", "test_loss")[epoch - 1] for seed in (0, 1)
    ]
    name = "VGG-A, learning rate 1e-3"
    told = [float(values[f"{name}, {which}"]) for which in ("seed 0", "seed 1", "mean (n = 2)")]
    assert told == pytest.approx([*losses, sum(losses) / 2], rel=1e-6)


def test_a_spike_of_one_step_is_seen_at_every_zoom(opened):
    page = opened()
    chart(page).get_by_role("button", name="All steps", exact=True).click()
    chart(page).locator(".plot").focus()
    for _ in range(14):
        first, last = extent(page)
        share = (SPIKE_AT - first) / (last - first)
        found = page.evaluate("charts.steps.readings[0].highs.reduce((a, b) => Math.max(a, b))")
        assert found == pytest.approx(SPIKE, rel=0.002)
        # On the canvas: something that is not the page's white beside the grid, where only the spike reaches.
        painted = page.evaluate(
            """([step, loss]) => {
              const { chart } = charts.steps, i = chart.data[0].findIndex((x, k) =>
                charts.steps.steps(k)[0] <= step && step <= charts.steps.steps(k)[1]);
              const x = chart.valToPos(chart.data[0][i], "x", true), y = chart.valToPos(loss, "y", true);
              const { data } = chart.ctx.getImageData(x - 2, y, 5, 6);
              return data.filter((value, k) => k % 4 === 2 && value < 215).length;
            }""",
            [SPIKE_AT, 0.97 * SPIKE],
        )
        assert painted > 2
        if last - first < 20:
            break
        over = chart(page).locator(".u-over").bounding_box()
        page.mouse.move(over["x"] + share * over["width"], over["y"] + 50)
        page.keyboard.press("+")
    head, values = hover(page, "steps", (SPIKE_AT - first) / (last - first))
    assert head == f"step {SPIKE_AT:,}" and values["VGG-A, band"].endswith(f"to {SPIKE}")


def test_dragging_zooms_and_all_shows_all(opened):
    page = opened()
    drag(page, "steps", 0.2, 0.4)
    first, last = extent(page)
    assert first == pytest.approx(3_000, abs=40) and last == pytest.approx(6_000, abs=40)
    chart(page).get_by_role("button", name="Later").click()
    assert extent(page)[0] == pytest.approx(4_500, abs=60)
    chart(page).locator(".u-over").dblclick()
    assert extent(page) == (1, STEPS)
    drag(page, "epochs", 0.5, 1)
    assert extent(page, "epochs")[1] == 300 and extent(page) == (1, STEPS)


def test_runs_are_switched_off_and_on(opened):
    page = opened()
    hover(page, "steps", 0.5)
    switch(page, "steps", "VGG-A").uncheck()
    assert list(hover(page, "steps", 0.51)[1]) == ["VGG-A + BatchNorm, band"]
    chart(page).get_by_role("group", name="VGG-A", exact=True).get_by_label("learning rate 1e-4").check()
    assert list(hover(page, "steps", 0.52)[1]) == ["VGG-A + BatchNorm, band", "VGG-A, learning rate 1e-4"]
    assert chart(page).get_by_label("Figure").evaluate("of => of.selectedOptions[0].text") == "own selection"
    chart(page).get_by_role("button", name="Hide all").click()
    assert page.evaluate("charts.steps.chart.series.length") == 1


@pytest.mark.parametrize("name, unit", [("steps", "steps"), ("epochs", "epochs")])
def test_axes_are_linear_or_logarithmic(opened, name, unit):
    page = opened()
    distributions = f"['x', 'y'].map((axis) => charts.{name}.chart.scales[axis].distr)"
    assert page.evaluate(distributions) == ([1, 3] if name == "steps" else [1, 1])
    for label, expected in ((f"logarithmic {unit}", 3), ("logarithmic values", 1 if name == "steps" else 3)):
        switch(page, name, label).click()
        axis = 0 if label.endswith(unit) else 1
        assert page.evaluate(distributions)[axis] == expected
    if name == "steps":
        chart(page).get_by_role("button", name="All steps", exact=True).click()
        head, _ = hover(page, name, 0.5)
        numbers = [int(number.replace(",", "")) for number in re.findall(r"[\d,]+", head)]
        assert np.mean(numbers) == pytest.approx(STEPS**0.5, rel=0.02)  # halfway between 1 and 30,000


def test_the_keyboard_reads_and_zooms(opened, results):
    page = opened()
    chart(page, "epochs").locator(".plot").focus()
    for key in ("ArrowRight", "ArrowRight", "ArrowRight", "ArrowLeft"):
        page.keyboard.press(key)
    said = chart(page, "epochs").locator(".unseen").inner_text()
    value = logged(results, "vgg_a/adam-lr1e-3-wd1e-4-seed1", "epochs.csv", "test_accuracy")[1]
    assert said.startswith("epoch 2; ") and f"VGG-A, learning rate 1e-3, seed 1: {value:.7g}" in said
    page.keyboard.press("+")
    first, last = extent(page, "epochs")
    assert first <= 2 and last - first == 149
    page.keyboard.press("Escape")
    assert extent(page, "epochs") == (1, 300)


def test_everything_is_reached_by_the_tabulator_and_has_a_name(opened):
    page = opened()
    names = page.evaluate(
        """() => [...document.querySelectorAll("a, button, select, input, summary, [tabindex]")].map((of) =>
          of.tabIndex < 0 ? "" : of.ariaLabel || of.labels?.[0]?.textContent || of.textContent)"""
    )
    assert len(names) > 40 and all(name.strip() for name in names)
    assert page.locator("h1").count() == 1 and page.locator("html[lang=en]").count() == 1
    assert page.evaluate("[...document.images].every((image) => image.alt)")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colors_can_be_seen_in_light_and_dark(opened, scheme):
    page = opened(color_scheme=scheme)
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert paper == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 24, 29)"}[scheme]
    ratios = page.evaluate(
        """[...charts.steps.curves, { color: "#000000", shade: 1 }, { color: "#ffff00", shade: 1 }]
          .map((curve) => contrast(shown(curve), rgb(css("--paper"))))"""
    )
    assert min(ratios) >= 2.9
    texts = page.evaluate(
        '["--ink", "--soft", "--link", "--good", "--bad"].map((of) => contrast(rgb(css(of)), rgb(css("--paper"))))'
    )
    assert min(texts) >= 4.5


def test_it_fits_a_narrow_window(opened):
    page = opened(width=390)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert hover(page, "steps", 0.9)[1]
    box = chart(page).locator(".tooltip").bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= 390


def test_on_paper_everything_is_unfolded_and_light(opened):
    page = opened(color_scheme="dark")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("details:not([open])").count() == 0
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.locator("details[open]").count() == 0
    assert page.pdf().startswith(b"%PDF")


def test_runs_that_have_only_begun_are_a_page_too(browser, tmp_path):
    write_run(tmp_path, "inception", complete=False, test_accuracy=[], train_loss=[], losses=[])
    plotted(tmp_path)
    page = browser.new_page()
    page.goto((tmp_path / "quick" / "report.html").as_uri())
    page.wait_for_selector("html[data-ready]", state="attached")
    assert page.locator(".chart").count() == 0 and "0 of 5" in page.locator("#runs").inner_text()
    page.close()


def test_a_file_cannot_write_into_the_page(browser, tmp_path, monkeypatch):
    hostile = "</script><img src=x onerror='window.hacked=1'><b>"
    monkeypatch.setitem(NETWORKS, "vgg_a", ("MyVGG.py", hostile, None))
    for lr in RATES:
        write_run(tmp_path, f"vgg_a_lr{lr}", epochs=3, device=hostile)
    plotted(tmp_path)
    page = browser.new_page()
    page.goto((tmp_path / "quick" / "report.html").as_uri())
    page.wait_for_selector("html[data-ready]", state="attached")
    hover(page, "steps", 0.5)
    assert page.evaluate("window.hacked") is None and page.locator("b").count() == 0
    assert hostile in chart(page).inner_text()
    page.close()

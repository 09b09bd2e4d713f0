"""The learning-rate band and its scalars, the ranges of the probes, and the figures drawn from made-up logs."""

import subprocess
import sys
from pathlib import Path

import naive
import numpy as np
import pytest
from made_up import write_run
from matplotlib.figure import Figure

import landscape
from cifar_lab.experiments import BN_BAND, PLAIN_BAND
from cifar_lab.figures import kinds
from cifar_lab.figures.band import draw_band
from cifar_lab.figures.style import Look, plt
from cifar_lab.measures import probes
from cifar_lab.measures.band import (
    band,
    band_steps,
    compare_bands,
    default_window,
    excursions,
    running_median,
    settled_step,
    spikes,
    times_to_levels,
    width_ratio,
)
from cifar_lab.run_folder.reader import read_runs

ROOT = Path(landscape.__file__).parent


def landscape_figures(results, preset):
    return kinds.draw(kinds.LANDSCAPE, results, preset, read_runs(results, preset)[0])


PLAIN_COMMAND = "python MyVGG.py --lrs 1e-3 1e-4 5e-4 5e-5 --preset quick --results {}"


# --- Running medians --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("run_steps", "window"),
    [
        (100_000, 501),
        (2505, 501),
        (2504, 499),
        (250, 49),
        (255, 51),
        (29, 5),
        (24, 3),
        (15, 3),
        (14, 1),
        (1, 1),
        (0, 1),
    ],
)
def test_window_is_501_or_a_fifth_of_the_run(run_steps, window):
    assert default_window(run_steps) == window


@pytest.mark.parametrize(("length", "window"), [(1, 1), (1, 7), (3, 7), (50, 1), (50, 9), (50, 51), (700, 501)])
def test_running_median_equals_the_slow_one(length, window):
    x = np.random.default_rng(length).normal(size=length).round(1)  # rounded: ties
    np.testing.assert_array_equal(running_median(x, window), naive.running_median(x, window))


def test_running_median_of_nothing_and_of_an_even_window():
    assert running_median(np.empty(0), 5).shape == (0,)
    with pytest.raises(ValueError, match="odd"):
        running_median(np.zeros(10), 4)


# --- The band ---------------------------------------------------------------------------------------------------------


def test_band_is_the_raw_maximum_and_minimum():
    b = band([[3, 1, 2, 9], [2, 2, 2, 9], [1, 5, 2, 9]], steps=3)
    np.testing.assert_array_equal(b.upper, [3, 5, 2])
    np.testing.assert_array_equal(b.lower, [1, 1, 2])
    np.testing.assert_array_equal(b.middle, [2, 3, 2])
    np.testing.assert_array_equal(b.width, [2, 4, 0])
    assert (b.runs, b.present[-1], b.window) == (3, 3, default_window(6))


@pytest.mark.parametrize("end", [[], [np.nan, 1.0], [np.inf, 1.0], [-np.inf, 50.0]])
def test_a_diverged_run_is_missing_from_its_first_loss_that_is_not_finite(end):
    b = band([[4.0, 4.0, *end], [1.0, 2.0, 1.0, 2.0], [2.0, 1.0, 2.0, 1.0]], steps=4)
    np.testing.assert_array_equal(b.upper, [4, 4, 2, 2])
    np.testing.assert_array_equal(b.lower, [1, 1, 1, 1])
    np.testing.assert_array_equal(b.present, [3, 3, 2, 2])
    assert b.runs - b.present[-1] == 1


def test_one_curve_has_no_width_and_none_no_curve():
    b = band([[1.0, 2.0, 3.0], [2.0]], steps=5)
    np.testing.assert_array_equal(b.width, [1, np.nan, np.nan])  # of the five steps no run has logged the last two
    np.testing.assert_array_equal(b.upper, [2, 2, 3])
    assert (b.runs, b.present.tolist(), b.steps) == (2, [2, 1, 1], 5)
    nothing = band([[np.nan, 1.0]], steps=2)
    assert np.isnan(nothing.upper).all() and np.isnan(nothing.upper_median).all()
    assert np.isnan(spikes(nothing)) and settled_step(nothing) is None


def test_memory_follows_the_logged_steps():
    """Two networks' bands of which a billion steps are planned, and a few logged, the first one always wider."""
    wide, narrow = (band([[2.0, 3.0], [1.0, 1.0, 2.0]], 10**9), band([[2.0, 2.0], [1.0, 1.5]], 10**9))
    assert (len(wide.upper), wide.steps, settled_step(narrow, 5.0)) == (3, 10**9, None)
    np.testing.assert_allclose(width_ratio(wide, narrow), [1, 2])
    assert compare_bands(wide, narrow)["steps"] == 2


def test_band_needs_runs_and_steps():
    with pytest.raises(ValueError, match="at least one run"):
        band([], steps=3)
    with pytest.raises(ValueError, match="one step"):
        band([[1.0]], steps=0)


def test_spikes_by_both_definitions():
    loss = np.full(1000, 0.1)
    loss[[100, 101, 500]] = 0.3  # three steps, two excursions: above twice the median, not above it by 0.5
    high = loss + 1.0  # the same jumps on a high plateau: by no definition
    high[700] = 1.7  # above the median by 0.6, not twice it
    assert spikes(band([loss], 1000)) == 3
    assert spikes(band([loss], 1000), "absolute") == 0
    assert spikes(band([high], 1000)) == 0
    assert spikes(band([high], 1000), "absolute") == 1
    assert spikes(band([loss], 1000), "relative", threshold=4.0) == 0
    assert spikes(band([high], 1000), "absolute", threshold=0.15) == 4
    assert spikes(band([loss, loss / 2], 2000), "relative") == 3  # per 1,000 of the steps that there are
    with pytest.raises(ValueError, match="relative or absolute"):
        spikes(band([loss], 1000), "both")


def test_settled_step_is_the_last_one_not_under_the_level():
    middle = np.concatenate([np.full(40, 2.0), np.full(10, 0.5), np.full(30, 1.0), np.full(20, 0.9)])
    one = band([middle + 0.3, middle - 0.3], 100, run_steps=5)  # a window of one step
    assert one.window == 1
    assert settled_step(one) == 80  # 1.0 itself is not under 1.0
    assert settled_step(one, level=3.0) == 0
    assert settled_step(one, level=0.7) is None
    assert settled_step(band([middle[:50]], 60, run_steps=5)) is None  # the run is gone at the band's end


def test_a_single_spike_does_not_unsettle():
    loss = np.full(200, 0.5)
    loss[150] = 30.0
    assert settled_step(band([loss], 200)) == 0


def test_compare_bands():
    plain = band([[1.0, 1.0, 1.0, 1.0], [2.0, 3.0, 2.0, 2.0]], steps=4)  # widths 1, 2, 1, 1
    bn = band([[1.0, 1.0, 1.0, 1.0], [1.5, 2.0, 3.0]], steps=4)  # widths 0.5, 1, 2 and none
    compared = compare_bands(bn, plain)
    assert compared == {
        "bn_width": pytest.approx(3.5 / 3), "plain_width": pytest.approx(4 / 3), "width_ratio": pytest.approx(3.5 / 4),
        "narrower_share": pytest.approx(2 / 3), "steps": 3,
    }  # fmt: skip
    nothing = compare_bands(band([[1.0]], 1), plain)
    assert nothing["steps"] == 0 and np.isnan(nothing["width_ratio"])


@pytest.mark.parametrize(
    ("run_steps", "steps"),
    [(100_000, 50_000), (20_002, 10_001), (12_000, 10_000), (10_000, 10_000), (9_999, 4_999), (250, 125), (1, 1)],
)
def test_the_band_is_the_first_half_of_a_run_and_10000_steps_where_it_has_them(run_steps, steps):
    assert band_steps(run_steps) == steps


def test_the_ratio_up_to_each_step():
    plain = band([[1.0, 1.0, 1.0, 1.0], [2.0, 3.0, 2.0, 2.0]], steps=4)  # widths 1, 2, 1, 1
    bn = band([[1.0, 1.0, 1.0, 1.0], [4.0, 2.0, 1.5]], steps=4)  # widths 3, 1, 0.5 and none
    np.testing.assert_allclose(width_ratio(bn, plain), [3, 4 / 3, 4.5 / 4, 4.5 / 4])
    assert width_ratio(bn, plain)[-1] == pytest.approx(compare_bands(bn, plain)["width_ratio"])
    flat = band([[1.0, 1.0], [1.0, 2.0]], steps=2)
    np.testing.assert_array_equal(width_ratio(bn, flat), [np.nan, 4])


def test_the_width_without_batch_noise_is_that_of_running_means():
    """Means over three steps, the ends repeated: 2, 3, 6, 8 and 1, 1, 1, 1. The raw width is 0 at the second step."""
    losses = [[2.0, 2.0, 5.0, 11.0, 8.0], [1.0] * 5]
    smooth = band(losses, steps=5, run_steps=15, batch_noise=False)
    assert smooth.window == 3
    np.testing.assert_allclose(smooth.width, [1, 2, 5, 7, 8])  # means 2, 3, 6, 8, 9
    gone = band([[2.0, 2.0, 5.0, np.inf, 8.0], [1.0] * 5], steps=5, run_steps=15, batch_noise=False)
    np.testing.assert_allclose(gone.upper, [2, 3, 4, 1, 1])  # what is after the end of a run is in no mean


def test_an_excursion_is_one_however_long_and_a_single_bad_batch_is_none():
    loss = np.full(3000, 0.5)
    loss[[200, 210, 1500]] = 30.0  # three of 21 steps at most
    assert excursions(band([loss], 3000)) == 0
    loss[400:411] = 0.81  # 11 of 21 steps
    assert excursions(band([loss], 3000)) == 1
    loss[2000:2100] = 2.0  # however long
    assert excursions(band([loss, loss / 2], 3000)) == 2
    loss[2600:2610] = 9.0  # 10 of 21 steps are not most of them
    assert excursions(band([loss], 3000)) == 2
    loss[2600:2700] = 0.79  # less than 0.3 above the median
    assert excursions(band([loss], 3000)) == 2


def test_time_to_a_level_is_the_first_step_whose_median_is_under_it():
    loss = np.array([2.0, 2.0, 0.4, 2.0, 0.9, 0.8, 2.0, 0.9, 1.0, 1.0])
    assert times_to_levels(loss, (3.0, 1.0, 0.4), window=1) == [1, 3, None]  # 0.4 itself is not under 0.4
    assert times_to_levels(loss, (1.0, 0.85), window=3) == [
        4,
        None,
    ]  # medians from the first step on: 2, 2, 2, 0.9, ...
    assert times_to_levels([2.0, np.nan, 0.1, 0.1], (1.0,), window=1) == [None]


def test_equal_widths_are_not_narrower():
    plain = band([[1.0, 1.0, 1.0, 1.0], [2.0, 2.0, 2.5, 2.0]], steps=4)
    assert compare_bands(band([[1.0, 1.0, 1.0, 1.0], [2.0, 1.5, 2.0, 2.5]], steps=4), plain)["narrower_share"] == 0.5


def test_a_spike_is_above_its_limit():
    """A step at the limit itself is none: 2 x 0.25 and 0.25 + 0.5."""
    losses = np.full(400, 0.25)
    losses[[50, 60, 70]] = 0.5, 0.5001, 0.75
    assert spikes(band([losses], 400)) == 5  # two of 400 steps
    losses[80] = 0.7501
    assert spikes(band([losses], 400), "absolute") == 2.5


# --- Against the slow measures ----------------------------------------------------------------------------------------

RULES = (
    ("relative", 2.0), ("absolute", 0.5), ("relative", 1.0), ("relative", 4.0), ("absolute", 0.25), ("absolute", 1.0),
)  # fmt: skip


def falling_losses(lengths, rng):
    """Losses that fall from about 2.3 to 0.4 with noise and spikes; every other one is twice not finite."""
    curves = []
    for i, length in enumerate(lengths):
        losses = (0.4 + 1.9 * np.exp(-np.arange(length) / (40 + 20 * i))) * rng.uniform(0.8, 1.2, length)
        losses[rng.choice(length, 9, replace=False)] *= rng.uniform(1.5, 5, 9)
        if i % 2:
            losses[[length - 20, length - 5]] = rng.choice([np.nan, np.inf, -np.inf], 2)
        curves.append(losses)
    return curves


@pytest.mark.parametrize("seed", range(5))
def test_the_scalars_equal_the_slow_ones(seed):
    """Unequal lengths, runs that end or diverge, bands of other lengths. Equal but for the order of sums: 1e-12."""
    rng = np.random.default_rng(seed)
    steps = {"bn": 211, "plain": 187}
    run_steps = {"bn": None, "plain": 307}
    curves = {
        "bn": falling_losses(rng.permutation([250, 211, 163, 98]), rng),
        "plain": falling_losses(rng.permutation([187, 151, 300]), rng),
    }
    fast = {name: band(curves[name], steps[name], run_steps[name]) for name in curves}
    slow = {name: naive.band(curves[name], steps[name]) for name in curves}
    windows = {"bn": naive.window(422), "plain": naive.window(307)}  # unless it is said, a run has twice the steps
    for name, at_each_step in slow.items():
        there = [losses for losses in at_each_step if losses]
        gone = [np.nan] * (min(steps[name], max(map(len, curves[name]))) - len(there))
        np.testing.assert_array_equal(fast[name].upper, [max(losses) for losses in there] + gone)
        np.testing.assert_array_equal(fast[name].lower, [min(losses) for losses in there] + gone)
        np.testing.assert_array_equal(fast[name].present, [len(losses) for losses in at_each_step][: len(there + gone)])
        assert fast[name].window == windows[name]
        for curve, median in ((max, fast[name].upper_median), (min, fast[name].lower_median)):
            slow_median = naive.running_median([curve(losses) for losses in there], windows[name])
            np.testing.assert_array_equal(median, [*slow_median, *gone])
        got = [spikes(fast[name], kind, threshold) for kind, threshold in RULES]
        assert got == pytest.approx(naive.spikes(at_each_step, windows[name], *RULES), rel=1e-12)
        assert [spikes(fast[name]), spikes(fast[name], "absolute")] == got[:2]
        for level in (0.6, 1.0, 1.6):
            assert settled_step(fast[name], level) == naive.settled_step(at_each_step, windows[name], level)
        assert settled_step(fast[name]) == settled_step(fast[name], 1.0)
    compared = compare_bands(fast["bn"], fast["plain"])
    got = [compared["width_ratio"], 100 * compared["narrower_share"], compared["bn_width"], compared["plain_width"]]
    assert got == pytest.approx(naive.compare_widths(slow["bn"], slow["plain"]), rel=1e-12)
    assert compared["steps"] == sum(min(len(b), len(p)) > 1 for b, p in zip(slow["bn"], slow["plain"], strict=False))


# --- Ranges of the probes ---------------------------------------------------------------------------------------------


def columns(rows):
    names = ("step", "eta", "loss", "grad_norm", "grad_change", "grad_cosine", "beta")
    return dict(zip(names, np.array(rows, dtype=float).T, strict=True))


def test_probe_ranges():
    rows = [
        (10, 0.1, 3, 2, 1.0, 0.9, 5),
        (10, 0.2, 1, 2, 4.0, 0.2, 10),
        (20, 0.1, 5, 4, 2.0, 1, 5),
        (20, 0.2, 6, 4, 1.0, 0, 1),
    ]
    ranges = probes.probe_ranges(columns(rows))
    np.testing.assert_array_equal(ranges.step, [10, 20])
    np.testing.assert_array_equal(ranges.loss, [[1, 3], [5, 6]])
    np.testing.assert_array_equal(ranges.change, [[1, 4], [1, 2]])
    np.testing.assert_array_equal(ranges.beta, [10, 5])
    np.testing.assert_array_equal(ranges.relative, [[0.5, 2], [0.25, 0.5]])
    np.testing.assert_array_equal(ranges.cosine, [[0.2, 0.9], [0, 1]])


def test_probe_ranges_of_what_is_not_finite_or_not_whole():
    rows = [(10, 0.1, 3, 2, 1, 1, 5), (10, 0.2, np.inf, 2, np.nan, np.nan, np.nan), (20, 0.1, 1, 1, 1, 1, 1)]
    ranges = probes.probe_ranges(columns(rows))  # step 20 lacks its second row: it is being written
    np.testing.assert_array_equal(ranges.step, [10])
    assert np.isnan(ranges.loss).all() and np.isnan(ranges.beta).all()
    assert len(probes.probe_ranges({name: np.empty(0) for name in columns(rows)}).step) == 0
    with pytest.raises(ValueError, match="2 rows per step"):
        probes.probe_ranges(columns([rows[0], rows[1], rows[2], (30, 0.2, 1, 1, 1, 1, 1)]))
    with pytest.raises(ValueError, match="in the order of the steps"):  # step 20 twice, at one step size each
        probes.probe_ranges(columns([rows[0], rows[2], rows[2]]))


def test_etas_are_eight_from_half_to_four_times_the_learning_rate_and_two_far_below():
    grid = probes.etas(0.1)
    np.testing.assert_allclose(grid, [0.001, 0.01, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4])


def test_ranges_are_over_the_papers_step_sizes_alone():
    """Those down to an eighth of the largest; the smallest of all gives the curvature."""
    old = [(10, eta, eta, 2, eta, 1 - eta, 5 * eta) for eta in (0.05, 0.1, 0.4)]
    small = [(10, eta, 99, 2, 99, -99, beta) for eta, beta in ((0.001, 77), (0.01, 66), (0.0499, 55))]
    with_small, without = (probes.probe_ranges(columns(rows)) for rows in (small + old, old))
    for quantity in ("loss", "change", "relative", "cosine", "beta"):
        np.testing.assert_array_equal(getattr(with_small, quantity), getattr(without, quantity))
    np.testing.assert_allclose(without.loss, [[0.05, 0.4]])
    np.testing.assert_array_equal(with_small.curvature, [77])
    assert np.isnan(without.curvature).all()


def test_medians_at_matched_losses():
    values = [np.array([1.0, 2.0, 9.0, 4.0, np.nan]), np.array([5.0, 7.0])]
    losses = [np.array([0.1, 0.05, 0.2, 0.19, 0.1]), np.array([0.3, 0.5])]
    medians, counts = probes.matched_medians(values, losses, (0.05, 0.2, 0.5))
    np.testing.assert_array_equal(medians, [[2, 9], [np.nan, 5]])  # an interval has its lower end, not its upper one
    np.testing.assert_array_equal(counts, [[3, 1], [0, 1]])


# --- Figures and command line -----------------------------------------------------------------------------------------


def some_probes(steps):
    return [(t, eta, 2 / t + eta, 1.5, eta, 0.9, 1 / 1.5) for t in steps for eta in probes.etas(0.1)]


def assert_drawn(figures):
    assert figures.drawn
    for stem, caption in figures.drawn:
        assert caption
        assert Path(f"{stem}.png").stat().st_size > 5000
        assert Path(f"{stem}.svg").read_text(encoding="utf-8").rstrip().endswith("</svg>")


def test_the_loss_axis_of_a_band_begins_near_a_strip_and_else_at_zero():
    """An untrained network's losses lie in a strip far above 0."""
    look = Look("vgg_a", "VGG-A", "#D55E00")
    for lowest, bottom in ((2.0, 1.9), (0.5, 0)):
        _, axes = plt.subplots()
        draw_band(axes, [(look, band([np.array([2.4, lowest]), np.array([2.3, 2.2])], 2))])
        assert axes.get_ylim() == pytest.approx((bottom, 1.05 * 2.4))
        plt.close()


def test_the_words_of_the_probes_figures_lie_inside_the_page(tmp_path, monkeypatch):
    for name in ("paper_vgg_a", "paper_vgg_a_bn"):
        write_run(tmp_path, name, "paper", epochs=1, probes=some_probes([100, 200, 300]))
    kept = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **o: (kept.append(self), save(self, *a, **o)))
    landscape_figures(tmp_path, "paper")
    assert len(kept) == 2 * 4  # each as PNG and SVG
    for figure in kept[::2]:
        width, height = figure.get_size_inches() * figure.dpi
        legends = [text for legend in figure.legends for text in legend.get_texts()]
        assert len(figure.texts) == 2 and len(legends) == 2  # title and small print; the two networks
        for words in [*figure.texts, *legends, *(axes.title for axes in figure.axes)]:
            box = words.get_window_extent()
            assert box.x0 >= -1 and box.y0 >= -1 and box.x1 <= width + 1 and box.y1 <= height + 1, words.get_text()


def test_a_band_with_a_missing_run_is_listed_and_the_other_one_drawn(tmp_path):
    for name in (*PLAIN_BAND[1:], *BN_BAND):
        write_run(tmp_path, name)
    figures = landscape_figures(tmp_path, "quick")
    assert figures.missing == [("landscape band of vgg_a", PLAIN_COMMAND.format(tmp_path))]
    assert_drawn(figures)


def test_nothing_is_drawn_from_nothing(tmp_path):
    write_run(tmp_path, "inception")
    figures = landscape_figures(tmp_path, "quick")
    assert not figures.drawn and len(figures.missing) == 2
    assert not (tmp_path / "quick/figures").exists()


def test_missing_probes_are_listed_with_their_command(tmp_path):
    write_run(tmp_path, "paper_vgg_a", "paper-quick", epochs=1, probes=some_probes([10]))
    figures = landscape_figures(tmp_path, "paper-quick")
    command = f"python MyVGG.py --bn --preset paper-quick --results {tmp_path}"
    assert figures.missing == [("probes along the gradient of vgg_a_bn", command)]


def command_line(folder, *words):
    command = [sys.executable, ROOT / "landscape.py", *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)


def test_command_line_draws_what_it_can_and_names_what_it_cannot_read(tmp_path):
    for name in BN_BAND:
        write_run(tmp_path, name)
    broken = write_run(tmp_path, PLAIN_BAND[0])
    with (broken / "steps.csv").open("a", encoding="utf-8") as file:
        file.write("not,a number\n")
    done = command_line(tmp_path, tmp_path)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1 and str(broken / "steps.csv") in done.stderr
    assert (tmp_path / "quick/figures/landscape.png").exists()
    there = PLAIN_COMMAND.format(tmp_path).replace("MyVGG.py", str(ROOT / "MyVGG.py"))  # typed in another folder
    assert there in done.stdout


BAND_WORDS = [["band"], ["band", "none"], ["band", ".", "--save", "figure.txt"]]


@pytest.mark.parametrize("words", [*BAND_WORDS, ["there is none"], ["a", "b"], ["--what", "."], ["surface"], [""]])
def test_bad_input_is_one_line_and_status_2(words, tmp_path):
    done = command_line(tmp_path, *words)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and "Traceback" not in done.stderr
    assert not done.stdout


def test_measures_do_not_import_torch_nor_matplotlib():
    code = "import sys, landscape; assert not {'torch', 'matplotlib'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)

"""The figures of the learning-rate band."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.legend_handler import HandlerTuple
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, MaxNLocator

from cifar_lab import escape
from cifar_lab.experiments import BN_BAND, PLAIN_BAND, command_for
from cifar_lab.figures import sets
from cifar_lab.figures.sets import Rates
from cifar_lab.figures.style import (
    MOST_LINES,
    OF_SEEDS,
    OTHER_COLOURS,
    Figures,
    Look,
    View,
    caveats,
    heading,
    legend_above,
    legend_label,
    loss_floor,
    loss_label,
    off_axis,
    plt,
    seeds_of,
    seeds_text,
    set_limits,
    setting_text,
    shade,
    small_print,
    wrapped,
)  # fmt: skip
from cifar_lab.measures.band import (
    DECIDING_STEPS,
    Band,
    band,
    band_steps,
    compare_bands,
    settled_step,
    spikes,
    width_ratio,
)
from cifar_lab.run_folder.reader import Run, report_runs
from cifar_lab.settings import PRESETS, counted, number

BANDS = {"vgg_a": PLAIN_BAND, "vgg_a_bn": BN_BAND}  # of the report's figure: network, names of its runs
LOSS_SHOWN = 3.0  # nats: the band's axis ends there, if there are ten classes: a uniform guess has a loss of 2.3
LOGARITHMIC = 5.0  # ratio of the largest loss to the smallest median from which on the axis is logarithmic
RATIO_FROM = 10  # steps: the ratio up to earlier ones is that of a few batches
OF_RUNS = ("RUN_FOLDER", "...")
DENSE = 2_000  # steps from which on a band's edges are drawn thin


def draw_all(figures: Figures, results: Path, preset: str, runs: Sequence[Run]) -> None:
    """The report's bands, published runs apart, then every other band of the user's own runs.

    Two that share their learning rates and differ in one setting are drawn together, with the ratio of their widths.
    """
    folder = results / preset / "figures"
    shown: set[Run] = set()
    for published in (False, True) if preset in PRESETS else ():
        report = of_report(report_runs([run for run in runs if run.published == published], preset))
        for model, rates in report.items() if not published else ():
            if not rates and not any(run.published and run.model == model for run in runs):
                command = command_for(BANDS[model][0], preset, seeds_of(runs), results)
                figures.lacking.append((f"landscape band of {model}", command))
        if there := [rates for rates in report.values() if rates]:
            draw(figures, folder / f"landscape{'-published' if published else ''}", there)
            shown.update(run for rates in there for run in _runs(rates))
    bands = [rates for rates in sets.bands([run for run in runs if not run.published]) if _is_drawn(rates)]
    new = [not shown.issuperset(_runs(rates)) for rates in bands]
    together = [(a, b, name) for a, b, name in sets.pairs(bands) if new[a] or new[b]]
    alone = set(np.flatnonzero(new)) - {i for a, b, _ in together for i in (a, b)}
    own = [([bands[a], bands[b]], name) for a, b, name in together]
    own += [([bands[i]], "model") for i in sorted(alone)]
    for of, name in own[: sets.MOST]:
        every = [run for rates in of for run in _runs(rates)]
        names = "-vs-".join(look.label for look in sets.told_apart([_runs(rates) for rates in of], (name,)))
        kind = f"landscape-{names}" if len(of) > 1 else "landscape"
        draw(figures, folder / sets.file_stem(kind, every), of, (name,))
    figures.more(
        [name for _, name in own[sets.MOST :]], "bands", "landscape.py", "band", *OF_RUNS, "--against", *OF_RUNS
    )


def _is_drawn(rates: Rates) -> bool:
    """Whether its part of the runs has two steps, between which there is something to see."""
    return band_steps(min(run.steps_planned for run in _runs(rates))) > 1


def of_report(found: Mapping[str, Mapping[int, Run]]) -> dict[str, Rates]:
    """The runs of the report's bands by network; those of the seeds at which all have logged a step.

    found: by name in `experiments.RUNS` and by seed.
    """
    bands = {}
    for model, names in BANDS.items():
        seeds = set.intersection(*(set(found.get(name, ())) for name in names))
        groups = {seed: [found[name][seed] for name in names] for seed in sorted(seeds)}
        bands[model] = {seed: group for seed, group in groups.items() if all(len(run.losses) for run in group)}
    return bands


def draw(figures: Figures, stem: Path, bands: Sequence[Rates], named_by: Sequence[str] = ("model",)) -> None:
    """A figure of one band or more and, of two, the figure of the ratio of their widths.

    named_by: the settings by which the bands are called. The steps are those that all runs plan.
    """
    every = [run for rates in bands for run in _runs(rates)]
    looks = sets.told_apart([_runs(rates) for rates in bands], named_by)
    planned = min(run.steps_planned for run in every)
    areas = [_areas(rates, planned) for rates in bands]
    shared = sorted(set.intersection(*(set(of) for of in areas)))
    seeds = [shared[0] if shared else min(of) for of in areas]

    figure, (axes, below) = plt.subplots(2, 1, figsize=(6.8, 5.8), height_ratios=(4, 1))
    drawn = [of[seed] for of, seed in zip(areas, seeds, strict=True)]
    classes = max(run.settings["classes"] for run in every)
    beyond = draw_band(axes, list(zip(looks, drawn, strict=True)), classes)
    axes.set_ylabel(loss_label("training loss", every))
    rates = list(dict.fromkeys(tuple(run.settings["lr"] for run in next(iter(of.values()))) for of in bands))
    count = {2: "two", 3: "three", 4: "four"}.get(len(rates[0]), str(len(rates[0]))) if len(rates) == 1 else "the"
    heading(figure, f"Learning-rate band: largest and smallest training loss over {count} learning rates")
    _band_table(below, looks, areas, shared, loss_label("mean width", every))
    dense = drawn[0].steps > DENSE
    lines = "filled: raw; lines: running medians of both curves" if dense else "medians in the table: running,"
    notes = [f"drawn: seed {' and '.join(map(str, sorted(set(seeds))))}", f"{lines} over {drawn[0].window} steps"]
    listed = " / ".join(", ".join(map(number, of)) for of in rates)
    text = f"{setting_text(every)}, learning rates {listed}; {_span(every)}"
    small_print(figure, "; ".join([text, *notes, *beyond, *caveats(every)]))
    names = " and ".join(look.label for look in looks)
    figures.add(
        figure, stem, f"The learning-rate band of {names}: largest and smallest training loss over the learning rates",
        View(None, tuple(tuple(_runs(rates)) for rates in bands)),
    )  # fmt: skip
    if len(bands) == 2 and shared and not figures.file:
        ratio = stem.with_name(stem.name.replace("landscape", "landscape_ratio", 1))
        _draw_ratio(figures, ratio, looks, [{seed: of[seed] for seed in shared} for of in bands])


def _runs(rates: Rates) -> list[Run]:
    return [run for group in rates.values() for run in group]


def _areas(rates: Rates, planned: int, *, batch_noise: bool = True) -> dict[int, Band]:
    """The band of each seed over the part of `planned` steps that a band is read over."""
    return {
        seed: band([run.losses for run in group], band_steps(planned), planned, batch_noise=batch_noise)
        for seed, group in rates.items()
    }


def _span(runs: Sequence[Run]) -> str:
    """Which part of the runs their band is."""
    planned = sorted({run.steps_planned for run in runs})
    steps = band_steps(planned[0])
    part = "first half" if steps == planned[0] // 2 else f"first {counted(steps, 'step')}"
    if len(planned) == 1:
        return f"{part} of the run"
    common = f"{counted(steps, 'step')} that all have"
    return f"{part} of the shortest run, {common}: they are {planned[0]:,} to {planned[-1]:,} long"


def draw_band(axes: Axes, bands: Sequence[tuple[Look, Band]], classes: int = 10) -> list[str]:
    """Fills between the raw upper and lower curve of each band; returns which losses lie beyond the axis.

    If many steps share a pixel, the raw curves hide each other: then their running medians are drawn over them.
    """
    dense = any(area.steps > DENSE for _, area in bands)
    fill = 0.25 if dense else 0.35
    for look, area in bands:
        step = np.arange(1, len(area.upper) + 1)
        style = {"color": look.colour, "rasterized": True}  # 50,000 steps as vectors are megabytes of SVG
        axes.fill_between(step, area.lower, area.upper, alpha=fill, linewidth=0, **style)
        # The edges show spikes, which as filled area are thinner than a pixel.
        width, alpha = (0.2, 0.35) if dense else (0.7, 1)
        for curve in (area.lower, area.upper):
            axes.plot(step, curve, linewidth=width, alpha=alpha, **style)
    for look, area in bands if dense else ():
        half = area.window // 2
        whole = slice(half, max(half, np.count_nonzero(area.present) - half))  # not where the window repeats an end
        step = np.arange(1, len(area.upper) + 1)[whole]
        for median in (area.lower_median[whole], area.upper_median[whole]):
            axes.plot(step, median, color="white", linewidth=2.6, rasterized=True)
            axes.plot(step, median, color=look.colour, linewidth=1.4, rasterized=True)
    axes.set_xlabel("training step")
    axes.set_xlim(1, max(2, *(area.steps for _, area in bands)))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    patches = [Patch(facecolor=look.colour, alpha=fill, label=legend_label(axes, look.label, 8)) for look, _ in bands]
    entries: dict[str, Patch | tuple[Patch, ...]] = {patch.get_label(): patch for patch in patches}
    if len(bands) > 1:
        entries["overlap"] = tuple(patches)
    handlers = {tuple: HandlerTuple(ndivide=1)}
    legend_above(axes, entries.values(), entries.keys(), size=8, handler_map=handlers)
    return _set_loss_axis(axes, [area for _, area in bands], LOSS_SHOWN * np.log(classes) / np.log(10))


def _set_loss_axis(axes: Axes, areas: Sequence[Band], shown: float) -> list[str]:
    """The loss axis: logarithmic if the loss falls far, so that a band can be read at its end too."""
    highest = max(float(np.nanmax(area.upper, initial=0)) for area in areas)
    lowest = min(float(np.nanmin(area.lower, initial=highest)) for area in areas)
    floor = min(float(np.nanmin(area.lower_median, initial=highest)) for area in areas)
    bottom, top = loss_floor(lowest, highest), 1.05 * highest
    lower = np.concatenate([area.lower[np.isfinite(area.lower)] for area in areas])
    if shown < top and np.mean(lower < shown) > 0.5:  # else there would be next to nothing to see
        top = shown
    if highest > LOGARITHMIC * floor > 0:
        bottom = max(0.95 * lowest, floor / 3)  # single batches far below the medians would take half of the axis
        axes.set_yscale("log")
        _label_logarithmic(axes, (1, 2, 5))
    set_limits(axes, bottom, top)
    above = [off_axis(highest)] if highest > top else []
    return above + ([f"the smallest loss, {lowest:.2g}, lies below the axis"] if lowest < bottom else [])


def _label_logarithmic(axes: Axes, numbers: Sequence[float]) -> None:
    axes.yaxis.set_major_locator(LogLocator(subs=numbers))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("")


def _band_table(
    axes: Axes, looks: Sequence[Look], areas: Sequence[Mapping[int, Band]], shared: Sequence[int], width: str
) -> None:
    """The bands' scalars as a table: mean and standard deviation over the seeds. width: what their width is called."""
    columns = (
        "", f"{width}:\nlargest minus\nsmallest loss", "step after which\nthe loss halfway\nis under 1.0",
        "steps per 1,000:\nlargest loss over\n2 x its median", "steps per 1,000:\nlargest loss over\nmedian + 0.5",
    )  # fmt: skip
    rows, shares = [], (0.27, 0.185, 0.175, 0.185, 0.185)
    for look, by_seed in zip(looks, areas, strict=True):
        of = list(by_seed.values())
        reached = [step for step in map(settled_step, of) if step is not None]
        settled = _mean(reached, ",.0f") if reached else "not reached"
        if 0 < len(reached) < len(of):
            settled += f" ({len(reached)} of {len(of)} seeds)"
        widths = [float(np.nanmean(area.width)) for area in of if np.isfinite(area.width).any()]
        rows.append([
            escape.figure(wrapped(axes.figure, f"{look.label} (n = {len(of)})", 8, 0.95 * shares[0])),
            _mean(widths, ".3f") if widths else "-",
            settled,
            *(_mean([spikes(area, kind) for area in of], ".2f") for kind in ("relative", "absolute")),
        ])  # fmt: skip
    axes.axis("off")
    grid = {"colWidths": shares, "bbox": (0, 0.2, 1, 0.95), "cellLoc": "center", "edges": "open"}
    table = axes.table(rows, colLabels=columns, **grid)
    table.auto_set_font_size(False)
    table.set_fontsize(8)
    for row in range(1 + len(rows)):
        table[row, 0].set_text_props(ha="left")
        for column in range(len(columns)):
            table[row, column].set_height(2.4 if row == 0 else max(1, 0.8 * (1 + rows[row - 1][0].count("\n"))))
    if len(looks) == 2 and shared:
        compared = [compare_bands(areas[1][seed], areas[0][seed]) for seed in shared]
        ratio = geometric_mean([pair["width_ratio"] for pair in compared])
        share = np.mean([pair["narrower_share"] for pair in compared])
        text = f"{looks[1].label} / {looks[0].label}: ratio of the mean widths {ratio:.2f}, "
        text += f"narrower at {share:.1%} of the steps"
        text = escape.figure(wrapped(axes.figure, text, 8, 0.85))
        axes.text(0.5, 0.17, text, transform=axes.transAxes, ha="center", va="top", fontsize=8)


def _mean(values: Sequence[float], form: str) -> str:
    """Over the seeds, with the standard deviation if there are several."""
    spread = f" ± {np.std(values, ddof=1):{form}}" if len(values) > 1 else ""
    return f"{np.mean(values):{form}}{spread}"


def geometric_mean(values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Over the first axis; NaN counts for none, and 0 makes it 0."""
    logs = np.log(np.maximum(values, np.finfo(float).tiny))
    counted = np.isfinite(logs)
    with np.errstate(invalid="ignore"):
        return np.exp(np.where(counted, logs, 0).sum(axis=0) / counted.sum(axis=0))


def _draw_ratio(figures: Figures, stem: Path, looks: Sequence[Look], bands: Sequence[Rates]) -> None:
    """The ratio of the mean widths, second / first, up to each step, with batch noise and without.

    bands: both of the same seeds.
    """
    every = [run for rates in bands for run in _runs(rates)]
    planned = min(run.steps_planned for run in every)
    first, second = (
        {noise: _areas(rates, planned, batch_noise=noise).values() for noise in (True, False)} for rates in bands
    )
    compared = {noise: list(zip(second[noise], first[noise], strict=True)) for noise in (True, False)}
    steps = max(compare_bands(*pair)["steps"] for pair in compared[True])
    curves = {noise: [width_ratio(*pair) for pair in of] for noise, of in compared.items()}
    if steps < RATIO_FROM:
        return
    figure, axes = plt.subplots(figsize=(6.8, 4.0))
    window = compared[True][0][0].window
    for noise, colour, style in ((True, OTHER_COLOURS[0], "-"), (False, OTHER_COLOURS[1], "--")):
        begin = RATIO_FROM if noise else max(RATIO_FROM, window // 2 + 1)  # before it the mean repeats the first loss
        if begin > steps:  # runs in progress
            continue
        step = np.arange(begin, steps + 1)
        of_seeds = (np.pad(ratio, (0, max(0, steps - len(ratio))), mode="edge") for ratio in curves[noise])
        each = np.stack([ratio[begin - 1 : steps] for ratio in of_seeds])
        look = {"color": colour, "linestyle": style, "rasterized": steps > DENSE}
        if len(each) > MOST_LINES:
            shade(axes, step, each, colour)
        for ratio in each if 1 < len(each) <= MOST_LINES else ():
            axes.plot(step, ratio, linewidth=0.5, alpha=0.6, **look)
        mean = geometric_mean(each)
        label = "raw losses" if noise else f"losses averaged over {window} steps"
        axes.plot(step, mean, linewidth=1.8, label=f"{label}: {mean[-1]:.2f} over all steps", **look)
    axes.axhline(1, color="0.2", linewidth=0.8)
    axes.set(xscale="log", yscale="log", xlabel="training step t", xlim=(RATIO_FROM, max(steps, RATIO_FROM + 1)))
    compares = f"{looks[1].label} / {looks[0].label}"
    axes.set_ylabel("ratio of the mean widths\nup to step t")
    _label_logarithmic(axes, (1, 1.5, 2, 3, 5, 7))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.xaxis.set_minor_formatter("")
    of_claim = [look.model for look in looks] == list(BANDS)
    if of_claim and steps >= DECIDING_STEPS:
        axes.axvspan(DECIDING_STEPS, steps, color="0.9", zorder=0, label="enough steps to decide the claim")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=1, borderaxespad=0.2, fontsize=8)
    heading(figure, f"Ratio of the widths of two learning-rate bands:\n{compares}")
    several = f"; bold: geometric mean, {OF_SEEDS[len(bands[0]) > MOST_LINES]}" if len(bands[0]) > 1 else ""
    undecided = f"; the claim needs {DECIDING_STEPS:,} steps" if of_claim and steps < DECIDING_STEPS else ""
    notes = [
        setting_text(every),
        f"{_span(every)}, seed {seeds_text(every)}{several}{undecided}",
        f"above 1: the band of {looks[1].label} is the wider one",
        *caveats(every),
    ]
    small_print(figure, "; ".join(notes))
    figures.add(figure, stem, f"The ratio of the bands' mean widths up to each step, {compares}")

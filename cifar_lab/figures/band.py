"""The figures of the learning-rate band."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator

from cifar_lab.experiments import BN_BAND, NETWORKS, PLAIN_BAND, command_for
from cifar_lab.figures.style import (
    OTHER_COLOURS,
    Figures,
    Look,
    caveats,
    looks,
    plt,
    seeds_of,
    seeds_text,
    setting_text,
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
from cifar_lab.settings import PAPER_PRESETS, number

BANDS = {"vgg_a": PLAIN_BAND, "vgg_a_bn": BN_BAND}  # of the report's figure: network, names of its runs
LOSS_SHOWN = 3.0  # nats: the band's axis ends there; a uniform guess among ten classes has a loss of 2.3
RATIO_FROM = 10  # steps: the ratio up to earlier ones is that of a few batches
DENSE = 2_000  # steps from which on a band's edges are drawn thin


def draw_all(figures: Figures, results: Path, preset: str, runs: Sequence[Run]) -> None:
    """The report's band, and one for each network of the user's own at several learning rates.

    Runs of one band differ in nothing but the learning rate. Published runs have figures of their own.
    """
    folder = results / preset / "figures"
    for published in (False, True):
        source = [run for run in runs if run.published == published]
        suffix = "-published" if published else ""
        found = report_runs(source, preset)
        report = {model: _complete_groups(found, names) for model, names in BANDS.items()}
        if preset not in PAPER_PRESETS:
            if not published:
                figures.missing += [
                    (f"landscape band of {model}", command_for(BANDS[model][0], preset, seeds_of(runs), results))
                    for model, by_seed in report.items()
                    if not by_seed and not any(run.published and run.model == model for run in runs)
                ]
            drawn = [by_seed for by_seed in report.values() if by_seed]
            if drawn:
                _figure(figures, folder / f"landscape{suffix}", drawn)
            if len(drawn) == len(BANDS):
                _ratio_figure(figures, folder / f"landscape_ratio{suffix}", *drawn)
        others: dict[tuple[str, str], dict[int, list[Run]]] = {}
        for run in sorted(source, key=lambda run: -run.settings["lr"]):
            if run.model not in NETWORKS and len(run.losses):
                name = run.settings_name.replace(f"-lr{number(run.settings['lr'])}", "", 1)
                others.setdefault((run.model, name.split()[0]), {}).setdefault(run.seed, []).append(run)
        for (model, name), by_seed in others.items():
            several = {seed: group for seed, group in sorted(by_seed.items()) if len(group) > 1}
            if several:
                _figure(figures, folder / f"landscape-{model}-{name}{suffix}", [several])


def _complete_groups(found: Mapping[str, Mapping[int, Run]], names: Sequence[str]) -> dict[int, list[Run]]:
    """By seed, the named runs if all of them have logged a step."""
    seeds = set.intersection(*(set(found.get(name, ())) for name in names))
    groups = {seed: [found[name][seed] for name in names] for seed in sorted(seeds)}
    return {seed: group for seed, group in groups.items() if all(len(run.losses) for run in group)}


def draw_band(axes: Axes, bands: Sequence[tuple[Look, Band]]) -> None:
    """Fills between the raw upper and lower curve of each network's band.

    If many steps share a pixel, the raw curves hide each other: then their running medians are drawn over them.
    """
    dense = any(len(area.upper) > DENSE for _, area in bands)
    for look, area in bands:
        step = np.arange(1, len(area.upper) + 1)
        style = {"color": look.colour, "rasterized": True}  # 50,000 steps as vectors are megabytes of SVG
        fill = 0.25 if dense else 0.35
        axes.fill_between(step, area.lower, area.upper, alpha=fill, linewidth=0, label=look.label, **style)
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
    highest = max(float(np.nanmax(area.upper, initial=0)) for _, area in bands)
    lowest = min(float(np.nanmin(area.lower, initial=highest)) for _, area in bands)
    bottom = 0.95 * lowest if lowest > highest / 2 else 0  # an untrained network's band is a strip far above 0
    axes.set(xlabel="training step", ylabel="training loss (nats)", ylim=(bottom, min(LOSS_SHOWN, 1.05 * highest)))
    axes.set_xlim(1, max(2, *(len(area.upper) for _, area in bands)))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    if highest > LOSS_SHOWN:
        axes.set_title(f"the largest loss, {highest:.3g}, lies above the axis", loc="left", fontsize=7.5, color="0.35")
    # Above the axes no curve runs into it.
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, borderaxespad=0.2, fontsize=8)


def _band(group: Sequence[Run], *, batch_noise: bool = True) -> Band:
    """The band of runs at several learning rates."""
    planned = min(run.steps_planned for run in group)
    return band([run.losses for run in group], band_steps(planned), planned, batch_noise=batch_noise)


def _span(run: Run) -> str:
    """Which part of a run its band is."""
    steps = band_steps(run.steps_planned)
    return "first half of the run" if steps == run.steps_planned // 2 else f"first {steps:,} steps of the run"


def _figure(figures: Figures, stem: Path, grouped: Sequence[Mapping[int, Sequence[Run]]]) -> None:
    """One figure. grouped: for each network, by seed, a run per learning rate."""
    every = [run for by_seed in grouped for group in by_seed.values() for run in group]
    bands: dict[Look, dict[int, Band]] = {}
    for by_seed in grouped:
        bands[looks(every)[next(iter(by_seed.values()))[0]]] = {seed: _band(group) for seed, group in by_seed.items()}
    shared = sorted(set.intersection(*(set(by_seed) for by_seed in bands.values())))
    drawn = {look: shared[0] if shared else min(by_seed) for look, by_seed in bands.items()}

    figure, (axes, below) = plt.subplots(2, 1, figsize=(6.8, 5.4), height_ratios=(4, 1))
    areas = [(look, bands[look][seed]) for look, seed in drawn.items()]
    draw_band(axes, areas)
    rates = list(dict.fromkeys(run.settings["lr"] for run in every))
    count = {2: "two", 3: "three", 4: "four"}.get(len(rates), str(len(rates)))
    figure.suptitle(f"Learning-rate band: largest and smallest training loss over {count} learning rates", fontsize=11)
    _band_table(below, bands, shared)
    notes = [f"drawn: seed {' and '.join(map(str, sorted(set(drawn.values()))))}"]
    if any(len(area.upper) > DENSE for _, area in areas):
        notes.append(f"filled: raw; lines: running medians of both curves over {areas[0][1].window} steps")
    notes += caveats(every)
    text = f"{setting_text(every[0])}, learning rates {', '.join(map(number, rates))}; {_span(every[0])}"
    small_print(figure, wrapped(f"{text}; {'; '.join(notes)}"))
    caption = "The learning-rate band: the largest and the smallest training loss over the learning rates"
    figures.add(figure, stem, caption + (" (published runs)" if every[0].published else ""))


def _band_table(axes: Axes, bands: Mapping[Look, Mapping[int, Band]], shared: Sequence[int]) -> None:
    """The band's scalars as a table, means over the seeds."""
    columns = (
        "", "mean width\n(nats)", "middle under 1.0\nafter step", "spikes per 1,000\n(> 2 x median)",
        "spikes per 1,000\n(> median + 0.5)",
    )  # fmt: skip
    rows = []
    for look, by_seed in bands.items():
        areas = list(by_seed.values())
        reached = [step for step in map(settled_step, areas) if step is not None]
        settled = f"{np.mean(reached):,.0f}" if reached else "not reached"
        if 0 < len(reached) < len(areas):
            settled += f" ({len(reached)} of {len(areas)} seeds)"
        widths = [float(np.nanmean(area.width)) for area in areas if np.isfinite(area.width).any()]
        rows.append([
            f"{look.label} (n = {len(areas)})", f"{np.mean(widths):.3f}" if widths else "-", settled,
            *(f"{np.mean([spikes(area, kind) for area in areas]):.2f}" for kind in ("relative", "absolute")),
        ])  # fmt: skip
    axes.axis("off")
    grid = {"colWidths": (0.28, 0.13, 0.19, 0.2, 0.2), "bbox": (0, 0.25, 1, 0.85), "cellLoc": "center", "edges": "open"}
    table = axes.table(rows, colLabels=columns, **grid)
    table.auto_set_font_size(False)
    table.set_fontsize(8)
    for row in range(1 + len(rows)):
        table[row, 0].set_text_props(ha="left")
        for column in range(len(columns)):
            table[row, column].set_height(1.7 if row == 0 else 1)
    if [look.model for look in bands] == ["vgg_a", "vgg_a_bn"] and shared:
        pairs = [compare_bands(*(by_seed[seed] for by_seed in reversed(bands.values()))) for seed in shared]
        ratio = geometric_mean([pair["width_ratio"] for pair in pairs])
        share = np.mean([pair["narrower_share"] for pair in pairs])
        text = f"BN / plain: ratio of the mean widths {ratio:.2f}; BN's band is narrower at {share:.1%} of the steps"
        axes.text(0.5, 0.0, text, transform=axes.transAxes, ha="center", va="bottom", fontsize=8)


def geometric_mean(values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Over the first axis; NaN counts for none, and 0 makes it 0."""
    logs = np.log(np.maximum(values, np.finfo(float).tiny))
    counted = np.isfinite(logs)
    with np.errstate(invalid="ignore"):
        return np.exp(np.where(counted, logs, 0).sum(axis=0) / counted.sum(axis=0))


def _ratio_figure(
    figures: Figures, stem: Path, plain: Mapping[int, Sequence[Run]], bn: Mapping[int, Sequence[Run]]
) -> None:
    """The ratio of the mean widths up to each step, with batch noise and without. By seed, a run per rate."""
    shared = sorted(set(plain) & set(bn))
    if not shared:
        return
    pairs = {
        noise: [[_band(of[seed], batch_noise=noise) for of in (bn, plain)] for seed in shared]
        for noise in (True, False)
    }
    steps = max(compare_bands(*pair)["steps"] for pair in pairs[True])
    curves = {noise: [width_ratio(*pair) for pair in of] for noise, of in pairs.items()}
    if steps < RATIO_FROM:
        return
    figure, axes = plt.subplots(figsize=(6.8, 4.0))
    window = pairs[True][0][0].window
    for noise, colour, style in ((True, OTHER_COLOURS[0], "-"), (False, OTHER_COLOURS[1], "--")):
        first = RATIO_FROM if noise else max(RATIO_FROM, window // 2 + 1)  # before it the mean repeats the first loss
        if first > steps:  # runs in progress
            continue
        step = np.arange(first, steps + 1)
        each = np.stack([ratio[first - 1 : steps] for ratio in curves[noise]])
        look = {"color": colour, "linestyle": style, "rasterized": steps > DENSE}
        for ratio in each if len(each) > 1 else ():
            axes.plot(step, ratio, linewidth=0.5, alpha=0.6, **look)
        mean = geometric_mean(each)
        label = "raw losses" if noise else f"losses averaged over {window} steps"
        axes.plot(step, mean, linewidth=1.8, label=f"{label}: {mean[-1]:.2f} over all steps", **look)
    axes.axhline(1, color="0.2", linewidth=0.8)
    axes.set(xscale="log", yscale="log", xlabel="training step t", xlim=(RATIO_FROM, max(steps, RATIO_FROM + 1)))
    axes.set_ylabel("mean width up to step t, BatchNorm / plain\n(above 1: wider with BatchNorm)")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    if steps >= DECIDING_STEPS:
        axes.axvspan(DECIDING_STEPS, steps, color="0.9", zorder=0, label="enough steps to decide the claim")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=1, borderaxespad=0.2, fontsize=8)
    figure.suptitle("Width of the learning-rate band with BatchNorm, relative to the plain network", fontsize=11)
    every = [run for by_seed in (plain, bn) for seed in shared for run in by_seed[seed]]
    several = "; bold: geometric mean, thin: each seed" if len(shared) > 1 else ""
    undecided = "" if steps >= DECIDING_STEPS else f"; the claim needs {DECIDING_STEPS:,} steps"
    notes = [
        setting_text(every[0]),
        f"{_span(every[0])}, seed {seeds_text(every)}{several}{undecided}",
        *caveats(every),
    ]
    small_print(figure, wrapped("; ".join(notes)))
    caption = "The ratio of the bands' mean widths up to each step, BatchNorm / plain"
    figures.add(figure, stem, caption + (" (published runs)" if every[0].published else ""))

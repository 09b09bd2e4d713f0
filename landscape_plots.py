"""The figures of the landscape measures: the learning-rate band, and the probes along the gradient.

Each figure says which of the quantities of `landscape.py` it shows, and from which optimizer.
"""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

import surface_plots
from cifar_lab.config import PAPER_PRESETS, number
from cifar_lab.experiments import BN_BAND, LEARNING_RATES, PAPER_EXPERIMENTS, PLAIN_BAND, command_for
from cifar_lab.figures import COLOURS, LABELS, plt, save, small_print
from cifar_lab.run_files import RunFileError
from cifar_lab.runs import Run, report_runs
from landscape import Band, ProbeRanges, band, compare_bands, probe_ranges, probe_table, settled_step, spikes

BANDS = {"vgg_a": PLAIN_BAND, "vgg_a_bn": BN_BAND}  # model: the names of its runs
LOSS_SHOWN = 3.0  # nats: the band's axis ends there; a uniform guess among ten classes has a loss of 2.3
DENSE = 2_000  # steps from which on a band's edges are drawn thin
DECADES = 20.0  # a ratio of largest to smallest value from which on an axis is logarithmic
CHANGE = r"$\|\nabla L(w - \eta g) - g\|$"
RELATIVE = rf"{CHANGE[:-1]} \,/\, \|g\|$"
BETA = rf"{CHANGE[:-1]} \,/\, \|\eta g\|$"


@dataclass
class Figures:
    """What was drawn, and what was not."""

    drawn: list[tuple[Path, str]] = field(default_factory=list)  # path without suffix (.png and .svg exist), caption
    missing: list[tuple[str, str]] = field(default_factory=list)  # name of the figure, the command that makes it
    errors: list[RunFileError] = field(default_factory=list)  # files that could not be read

    def add(self, figure: plt.Figure, stem: Path, caption: str) -> None:
        save(figure, stem)
        self.drawn.append((stem, caption))


def all_figures(results: str | Path, preset: str, runs: Sequence[Run]) -> Figures:
    """Every landscape figure that the preset's runs allow, into `<results>/<preset>/figures/`."""
    figures, folder = Figures(), Path(results) / preset / "figures"
    if preset not in PAPER_PRESETS:
        _band_figure(figures, Path(results), preset, runs)
    _probe_figures(figures, Path(results), preset, runs)
    surface_plots.draw_all(figures, folder, runs)
    return figures


# --- The learning-rate band -------------------------------------------------------------------------------------------


def draw_band(axes: Axes, bands: Mapping[str, Band]) -> None:
    """Fills between the raw upper and lower curve of each network's band. bands: by model name.

    Where many steps share a pixel the raw curves hide each other: there their running medians are drawn over them.
    """
    dense = any(len(area.upper) > DENSE for area in bands.values())
    for model, area in bands.items():
        step = np.arange(1, len(area.upper) + 1)
        style = {"color": COLOURS[model], "rasterized": True}  # 50,000 steps as vectors are megabytes of SVG
        fill = 0.25 if dense else 0.35
        axes.fill_between(step, area.lower, area.upper, alpha=fill, linewidth=0, label=LABELS[model], **style)
        # The edges show spikes, which as filled area are thinner than a pixel.
        width, alpha = (0.2, 0.35) if dense else (0.7, 1)
        for curve in (area.lower, area.upper):
            axes.plot(step, curve, linewidth=width, alpha=alpha, **style)
    for model, area in bands.items() if dense else ():
        half = area.window // 2
        whole = slice(half, max(half, np.count_nonzero(area.present) - half))  # not where the window repeats an end
        step = np.arange(1, len(area.upper) + 1)[whole]
        for median in (area.lower_median[whole], area.upper_median[whole]):
            axes.plot(step, median, color="white", linewidth=2.6, rasterized=True)
            axes.plot(step, median, color=COLOURS[model], linewidth=1.4, rasterized=True)
    highest = max(float(np.nanmax(area.upper, initial=0)) for area in bands.values())
    lowest = min(float(np.nanmin(area.lower, initial=highest)) for area in bands.values())
    bottom = 0.95 * lowest if lowest > highest / 2 else 0  # an untrained network's band is a strip far above 0
    axes.set(xlabel="training step", ylabel="training loss (nats)", ylim=(bottom, min(LOSS_SHOWN, 1.05 * highest)))
    axes.set_xlim(1, max(2, *(len(area.upper) for area in bands.values())))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    if highest > LOSS_SHOWN:
        axes.set_title(f"the largest loss, {highest:.3g}, lies above the axis", loc="left", fontsize=7.5, color="0.35")
    # Above the axes no curve runs into it.
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, borderaxespad=0.2, fontsize=8)


def _band_figure(figures: Figures, results: Path, preset: str, runs: Sequence[Run]) -> None:
    found = report_runs(runs, preset)
    grouped: dict[str, dict[int, list[Run]]] = {}  # model, seed: a run for each learning rate
    for model, names in BANDS.items():
        for seed in sorted(set.intersection(*(set(found.get(name, ())) for name in names))):
            group = [found[name][seed] for name in names]
            if all(len(run.losses) for run in group):
                grouped.setdefault(model, {})[seed] = group
    figures.missing += [
        (f"landscape band of {LABELS[model]}", command_for(names[0], preset, _seeds(runs), results))
        for model, names in BANDS.items()
        if model not in grouped
    ]
    if not grouped:
        return

    bands = {
        model: {
            seed: band([run.losses for run in group], max(1, group[0].steps_planned // 2), group[0].steps_planned)
            for seed, group in by_seed.items()
        }
        for model, by_seed in grouped.items()
    }
    shared = sorted(set.intersection(*(set(by_seed) for by_seed in bands.values())))
    drawn = {model: shared[0] if shared else min(by_seed) for model, by_seed in bands.items()}

    figure, (axes, below) = plt.subplots(2, 1, figsize=(6.8, 5.4), height_ratios=(4, 1))
    draw_band(axes, {model: bands[model][seed] for model, seed in drawn.items()})
    figure.suptitle("Learning-rate band: largest and smallest training loss over four learning rates", fontsize=11)
    _band_table(below, bands, shared)
    example = next(iter(grouped[m][s][0] for m, s in drawn.items()))
    notes = [f"drawn: seed {' and '.join(map(str, sorted(set(drawn.values()))))}"]
    areas = [bands[model][seed] for model, seed in drawn.items()]
    if any(len(area.upper) > DENSE for area in areas):
        notes.append(f"filled: raw; lines: running medians of both curves over {areas[0].window} steps")
    notes += [note for by_seed in grouped.values() for group in by_seed.values() for note in _caveats(group)]
    rates = ", ".join(map(number, LEARNING_RATES))
    small_print(
        figure, _wrapped(f"{_setting(example)}, learning rates {rates}; first half of the run; {'; '.join(notes)}")
    )
    stem = results / preset / "figures" / "landscape"
    figures.add(
        figure, stem, "The learning-rate band: the largest and the smallest training loss over the learning rates"
    )


def _band_table(axes: Axes, bands: Mapping[str, Mapping[int, Band]], shared: Sequence[int]) -> None:
    """The band's scalars as a table, means over the seeds."""
    columns = (
        "", "mean width\n(nats)", "middle under 1.0\nafter step", "spikes per 1,000\n(> 2 x median)",
        "spikes per 1,000\n(> median + 0.5)",
    )  # fmt: skip
    rows = []
    for model, by_seed in bands.items():
        areas = list(by_seed.values())
        reached = [step for step in map(settled_step, areas) if step is not None]
        settled = f"{np.mean(reached):,.0f}" if reached else "not reached"
        if 0 < len(reached) < len(areas):
            settled += f" ({len(reached)} of {len(areas)} seeds)"
        widths = [float(np.nanmean(area.width)) for area in areas if np.isfinite(area.width).any()]
        rows.append([
            f"{LABELS[model]} (n = {len(areas)})", f"{np.mean(widths):.3f}" if widths else "-", settled,
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
    if len(bands) == 2 and shared:
        pairs = [compare_bands(bands["vgg_a_bn"][seed], bands["vgg_a"][seed]) for seed in shared]
        ratio, share = (np.mean([pair[key] for pair in pairs]) for key in ("width_ratio", "narrower_share"))
        text = f"BN / plain: ratio of the mean widths {ratio:.2f}; BN's band is narrower at {share:.1%} of the steps"
        axes.text(0.5, 0.0, text, transform=axes.transAxes, ha="center", va="bottom", fontsize=8)


def _caveats(runs: Sequence[Run]) -> list[str]:
    """What about the runs a reader of their curves must know."""
    notes = []
    for run in runs:
        name = f"{LABELS[run.model]} at {number(run.settings['lr'])}, seed {run.seed},"
        if run.diverged_at_step is not None:
            notes.append(f"{name} diverged at step {run.diverged_at_step:,} and is missing from there on")
        elif not run.complete:
            notes.append(f"{name} is not finished: {len(run.losses):,} of {run.steps_planned:,} steps")
    return notes


# --- The probes along the gradient ------------------------------------------------------------------------------------


def _probe_figures(figures: Figures, results: Path, preset: str, runs: Sequence[Run]) -> None:
    folder = results / preset / "figures"
    groups: dict[str, dict[str, list[Run]]] = {}  # settings without the seed; model: its runs by seed
    for run in sorted(runs, key=lambda run: (run.model, run.seed)):
        if run.model in BANDS and run.probes is not None and len(run.probes["step"]):
            settings = run.name.replace(f"-seed{run.seed}", "", 1)
            groups.setdefault(settings, {}).setdefault(run.model, []).append(run)
    if preset in PAPER_PRESETS:
        probed = {run.model for run in runs if run.probes is not None and len(run.probes["step"])}
        for experiment in PAPER_EXPERIMENTS:
            model = experiment.runs[0].removeprefix("paper_")
            if model not in probed:
                name = f"probes along the gradient of {LABELS[model]}"
                figures.missing.append((name, experiment.command(preset, _seeds(runs), results)))
    for settings, by_model in groups.items():
        ranges = {model: [probe_ranges(run.probes) for run in group] for model, group in by_model.items()}
        step, print_text = _gradient_step(by_model), _probe_print(by_model)
        _paper_figure(figures, folder / f"probes-{settings}", ranges, step, print_text)
        _relative_figure(figures, folder / f"probes_relative-{settings}", ranges, step, print_text)
        _eta_figure(figures, folder / f"probes_eta-{settings}", by_model, step, print_text)


def _gradient_step(by_model: Mapping[str, Sequence[Run]]) -> str:
    """What the probed direction is to the optimizer."""
    settings = next(iter(by_model.values()))[0].settings
    name = _optimizer(settings)
    if settings["momentum"]:
        name += f" with momentum {settings['momentum']:g}"
    elif settings["optimizer"] == "sgd":
        return "SGD"
    return f"{name}: along the gradient, not the step that {name} takes"


def _probe_print(by_model: Mapping[str, Sequence[Run]]) -> str:
    runs = [run for group in by_model.values() for run in group]
    grid = np.unique(probe_table(runs[0].probes)["eta"][0])
    seeds = ", ".join(f"{LABELS[model]} n = {len(group)}" for model, group in by_model.items())
    several = "" if all(len(group) == 1 for group in by_model.values()) else ", the lowest seed strong, the others thin"
    text = (
        f"{_setting(runs[0])}, learning rate {number(runs[0].settings['lr'])}; {len(grid)} step sizes η "
        f"from {grid[0]:g} to {grid[-1]:g}; loss and gradients of the step's own batch, BatchNorm in train mode; "
        f"{seeds}{several}"
    )
    notes = _caveats(runs)
    left_out = sum(int(np.isnan(probe_ranges(run.probes).beta).sum()) for run in runs)
    if left_out:
        notes.append(f"{left_out} probes with a value that is not finite are left out")
    return "; ".join([text, *notes])


def _draw_ranges(axes: Axes, ranges: Mapping[str, Sequence[ProbeRanges]], quantity: str) -> None:
    """The range of a quantity over the step sizes, against the training step; the lowest seed filled."""
    for model, seeds in ranges.items():
        for i, seed in enumerate(seeds):
            low, high = getattr(seed, quantity).T
            if i == 0:
                axes.fill_between(
                    seed.step, low, high, color=COLOURS[model], alpha=0.35, linewidth=0, label=LABELS[model]
                )
            for edge in (low, high):
                axes.plot(
                    seed.step, edge, color=COLOURS[model], linewidth=0.8 if i == 0 else 0.4, alpha=1 if i == 0 else 0.6
                )
    axes.set_xlabel("training step")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    if quantity != "cosine":
        _log_where_wide(axes, np.concatenate([getattr(seed, quantity) for seeds in ranges.values() for seed in seeds]))


def _log_where_wide(axes: Axes, values: np.ndarray) -> bool:
    """A logarithmic axis where the values span more than a decade, and whether they do."""
    values = values[np.isfinite(values)]
    wide = bool(len(values)) and values.min() > 0 and values.max() > DECADES * values.min()
    if wide:
        axes.set_yscale("log")
    return wide


def _finish(figure: plt.Figure, first: Axes, title: str, text: str) -> None:
    """Title, small print, and one legend for all panels, beside the title, where it covers no curve."""
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    small_print(figure, text)
    figure.legend(*first.get_legend_handles_labels(), loc="upper right", fontsize=8)


def _paper_figure(
    figures: Figures, stem: Path, ranges: Mapping[str, Sequence[ProbeRanges]], step: str, text: str
) -> None:
    """Figure 4 of Santurkar et al. (2018), its three panels from left to right."""
    figure, axes = plt.subplots(1, 3, figsize=(10.5, 4.0))
    _draw_ranges(axes[0], ranges, "loss")
    axes[0].set(title="(a) variation of the loss:\nits range over $\\eta$", ylabel=r"$L(w - \eta g)$ (nats)")
    _draw_ranges(axes[1], ranges, "change")
    axes[1].set(title="(b) gradient predictiveness:\nthe change's range over $\\eta$", ylabel=CHANGE)
    for model, seeds in ranges.items():
        for i, seed in enumerate(seeds):
            width, alpha = (1.4, 1) if i == 0 else (0.5, 0.6)
            axes[2].plot(seed.step, seed.beta, color=COLOURS[model], linewidth=width, alpha=alpha)
    axes[2].xaxis.set_major_formatter("{x:,.0f}")
    _log_where_wide(axes[2], np.concatenate([seed.beta for seeds in ranges.values() for seed in seeds]))
    axes[2].set(
        title="(c) effective $\\beta$-smoothness:\nthe maximum over $\\eta$", ylabel=BETA, xlabel="training step"
    )
    _finish(figure, axes[0], f"Loss and gradient, down the gradient\ntrained with {step}", _wrapped(text, 190))
    figures.add(figure, stem, f"The probes of Santurkar et al. (2018), figure 4 ({step})")


def _relative_figure(
    figures: Figures, stem: Path, ranges: Mapping[str, Sequence[ProbeRanges]], step: str, text: str
) -> None:
    """The gradient's change in three ways; the first depends on the norm of weights that BN makes scale-free."""
    figure, axes = plt.subplots(1, 3, figsize=(10.5, 4.0))
    for panel, quantity, title, label in zip(
        axes, ("change", "relative", "cosine"), ("absolute change", "relative change", "cosine between the gradients"),
        (CHANGE, RELATIVE, r"$\cos(\nabla L(w - \eta g),\, g)$"), strict=True,
    ):  # fmt: skip
        _draw_ranges(panel, ranges, quantity)
        panel.set(title=f"{title}:\nits range over $\\eta$", ylabel=label)
    _finish(figure, axes[0], f"Change of the gradient, down the gradient\ntrained with {step}", _wrapped(text, 190))
    figures.add(figure, stem, f"Absolute and relative change of the gradient, and the cosine ({step})")


def _eta_figure(figures: Figures, stem: Path, by_model: Mapping[str, Sequence[Run]], step: str, text: str) -> None:
    """Figure 11 of Santurkar et al. (2018): the gradient's change against the step size, early and late."""
    tables = {model: [probe_table(run.probes) for run in group] for model, group in by_model.items()}
    everywhere = set.intersection(*(set(t["step"][:, 0].tolist()) for group in tables.values() for t in group))
    if not everywhere:
        return
    probed = sorted(everywhere)
    figure, axes = plt.subplots(1, 2, figsize=(7.4, 3.6))
    for panel, at, when in zip(axes, (probed[len(probed) // 10], probed[-1]), ("early", "late"), strict=True):
        for model, group in tables.items():
            for i, table in enumerate(group):
                row = int(np.flatnonzero(table["step"][:, 0] == at)[0])
                panel.plot(
                    table["eta"][row], table["grad_change"][row], color=COLOURS[model], marker="o" if i == 0 else None,
                    markersize=4, linewidth=1.4 if i == 0 else 0.5, label=LABELS[model] if i == 0 else None,
                )  # fmt: skip
        panel.set(title=f"{when}: step {at:,.0f}", xlabel=r"step size $\eta$", ylabel=CHANGE)
        rows = [t["grad_change"][t["step"][:, 0] == at] for group in tables.values() for t in group]
        if not _log_where_wide(panel, np.concatenate(rows)):
            panel.set_ylim(bottom=0)
    _finish(figure, axes[0], f"Change of the gradient against the step size\ntrained with {step}", _wrapped(text, 130))
    figures.add(figure, stem, f"Change of the gradient against the step size, at an early and a late step ({step})")


# --- Small print ------------------------------------------------------------------------------------------------------


def _setting(run: Run) -> str:
    """Preset and settings that runs compared in a figure share."""
    s = run.settings
    words = [
        f"preset {run.preset}: {run.epochs_planned} epochs of {s['train_size']:,} images", f"width {s['width']:g}",
        _optimizer(s), f"batch {s['batch_size']}", f"weight decay {number(s['weight_decay'])}",
        f"init {s['init']}",
    ]  # fmt: skip
    return ", ".join(words if s["augment"] else [*words, "no augmentation"])


def _optimizer(settings: Mapping) -> str:
    return LABELS.get(settings["optimizer"], settings["optimizer"])


def _seeds(runs: Sequence[Run]) -> tuple[int, ...]:
    return tuple(sorted({run.seed for run in runs})) or (0,)


def _wrapped(text: str, width: int = 115) -> str:
    return "\n".join(textwrap.wrap(text, width))

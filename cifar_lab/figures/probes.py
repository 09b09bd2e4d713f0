"""The figures of the probes along the gradient. Each says from which optimizer."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from cifar_lab import escape
from cifar_lab.experiments import PAPER_EXPERIMENTS
from cifar_lab.figures.style import (
    Figures,
    Look,
    batchnorm,
    caveats,
    looks,
    loss_label,
    optimizer_label,
    plt,
    seeds_of,
    setting_text,
    small_print,
)  # fmt: skip
from cifar_lab.measures.probes import MATCHED_EDGES, ProbeRanges, matched_medians, probe_ranges, probe_table
from cifar_lab.run_folder.reader import Run
from cifar_lab.settings import PAPER_PRESETS, number

DECADES = 20.0  # a ratio of largest to smallest value from which on an axis is logarithmic
CHANGE = r"$\|\nabla L(w - \eta g) - g\|$"
RELATIVE = rf"{CHANGE[:-1]} \,/\, \|g\|$"
BETA = rf"{CHANGE[:-1]} \,/\, \|\eta g\|$"


def draw_all(figures: Figures, results: Path, preset: str, runs: Sequence[Run]) -> None:
    """Three figures for each set of probed runs whose settings are equal but for network and seed."""
    folder = results / preset / "figures"
    probed = [run for run in runs if run.probes is not None and len(run.probes["step"])]
    for experiment in PAPER_EXPERIMENTS if preset in PAPER_PRESETS else ():
        if not any(run.model == experiment.network for run in probed):
            name = f"probes along the gradient of {experiment.network}"
            figures.lacking.append((name, experiment.command(preset, seeds_of(runs), results)))
    look_of = looks(probed)
    groups: dict[str, dict[Look, list[Run]]] = {}  # settings without the seed
    for run in sorted(probed, key=lambda run: (run.model, run.seed)):
        groups.setdefault(run.settings_name, {}).setdefault(look_of[run], []).append(run)
    for settings, by_look in groups.items():
        ranges = {look: [probe_ranges(run.probes) for run in group] for look, group in by_look.items()}
        step, print_text = _gradient_step(by_look), _probe_print(by_look)
        unit = loss_label("", [run for group in by_look.values() for run in group])
        stem = settings.replace(" (published)", "-published")
        _paper_figure(figures, folder / f"probes-{stem}", ranges, step, print_text, unit)
        _relative_figure(figures, folder / f"probes_relative-{stem}", ranges, step, print_text)
        _eta_figure(figures, folder / f"probes_eta-{stem}", by_look, step, print_text)
        losses = {look: [run.losses for run in group] for look, group in by_look.items()}
        _matched_figure(figures, folder / f"probes_matched-{stem}", ranges, losses, step, print_text, unit)


def _gradient_step(by_look: Mapping[Look, Sequence[Run]]) -> str:
    """What the probed direction is to the optimizer."""
    run = next(iter(by_look.values()))[0]
    name = optimizer_label(run)
    if run.settings["optimizer"] == "sgd" and not run.settings["momentum"]:
        return name
    return f"{name}: along the gradient, not the step that {name} takes"


def _probe_print(by_look: Mapping[Look, Sequence[Run]]) -> str:
    runs = [run for group in by_look.values() for run in group]
    grid = np.unique(probe_table(runs[0].probes)["eta"][0])
    seeds = ", ".join(f"{look.label} n = {len(group)}" for look, group in by_look.items())
    several = "" if all(len(group) == 1 for group in by_look.values()) else ", the lowest seed strong, the others thin"
    text = (
        f"{setting_text(runs)}, learning rate {number(runs[0].settings['lr'])}; {len(grid)} step sizes η "
        f"from {grid[0]:g} to {grid[-1]:g}; loss and gradients of the step's own batch"
        f"{batchnorm(runs, 'in train mode')}; {seeds}{several}"
    )
    notes = caveats(runs)
    left_out = sum(int(np.isnan(probe_ranges(run.probes).beta).sum()) for run in runs)
    if left_out:
        notes.append(f"{left_out} probes with a value that is not finite are left out")
    return "; ".join([text, *notes])


def _draw_ranges(axes: Axes, ranges: Mapping[Look, Sequence[ProbeRanges]], quantity: str) -> None:
    """The range of a quantity over the step sizes, against the training step; the lowest seed filled."""
    for look, seeds in ranges.items():
        for i, seed in enumerate(seeds):
            low, high = getattr(seed, quantity).T
            if i == 0:
                axes.fill_between(seed.step, low, high, color=look.colour, alpha=0.35, linewidth=0, label=look.text)
            for edge in (low, high):
                axes.plot(
                    seed.step, edge, color=look.colour, linewidth=0.8 if i == 0 else 0.4, alpha=1 if i == 0 else 0.6
                )
    axes.set_xlabel("training step")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    if quantity != "cosine":
        _log_if_wide(axes, np.concatenate([getattr(seed, quantity) for seeds in ranges.values() for seed in seeds]))


def _log_if_wide(axes: Axes, values: np.ndarray) -> bool:
    """Makes the axis logarithmic if the values span more than `DECADES`; returns whether they do."""
    values = values[np.isfinite(values)]
    wide = bool(len(values)) and values.min() > 0 and values.max() > DECADES * values.min()
    if wide:
        axes.set_yscale("log")
    return wide


def _finish(figure, first: Axes, title: str, text: str) -> None:
    """Title, small print, and one legend for all panels, beside the title, so that it covers no curve."""
    figure.suptitle(escape.figure(title), x=0.01, ha="left", fontsize=11)
    figure.legend(*first.get_legend_handles_labels(), loc="upper right", fontsize=8)
    small_print(figure, text)


def _paper_figure(
    figures: Figures, stem: Path, ranges: Mapping[Look, Sequence[ProbeRanges]], step: str, text: str, unit: str
) -> None:
    """Figure 4 of Santurkar et al. (2018), its three panels from left to right."""
    figure, axes = plt.subplots(1, 3, figsize=(10.5, 4.0))
    _draw_ranges(axes[0], ranges, "loss")
    axes[0].set(title="(a) variation of the loss:\nits range over $\\eta$", ylabel=rf"$L(w - \eta g)${unit}")
    _draw_ranges(axes[1], ranges, "change")
    axes[1].set(title="(b) gradient predictiveness:\nthe change's range over $\\eta$", ylabel=CHANGE)
    for look, seeds in ranges.items():
        for i, seed in enumerate(seeds):
            width, alpha = (1.4, 1) if i == 0 else (0.5, 0.6)
            axes[2].plot(seed.step, seed.beta, color=look.colour, linewidth=width, alpha=alpha)
    axes[2].xaxis.set_major_formatter("{x:,.0f}")
    _log_if_wide(axes[2], np.concatenate([seed.beta for seeds in ranges.values() for seed in seeds]))
    axes[2].set(
        title="(c) effective $\\beta$-smoothness:\nthe maximum over $\\eta$", ylabel=BETA, xlabel="training step"
    )
    _finish(figure, axes[0], f"Loss and gradient, down the gradient\ntrained with {step}", text)
    figures.add(figure, stem, f"The probes of Santurkar et al. (2018), figure 4 ({step})")


def _relative_figure(
    figures: Figures, stem: Path, ranges: Mapping[Look, Sequence[ProbeRanges]], step: str, text: str
) -> None:
    """The gradient's change in three ways; the first depends on the norm of weights that BN makes scale-free."""
    figure, axes = plt.subplots(1, 3, figsize=(10.5, 4.0))
    for panel, quantity, title, label in zip(
        axes, ("change", "relative", "cosine"), ("absolute change", "relative change", "cosine between the gradients"),
        (CHANGE, RELATIVE, r"$\cos(\nabla L(w - \eta g),\, g)$"), strict=True,
    ):  # fmt: skip
        _draw_ranges(panel, ranges, quantity)
        panel.set(title=f"{title}:\nits range over $\\eta$", ylabel=label)
    _finish(figure, axes[0], f"Change of the gradient, down the gradient\ntrained with {step}", text)
    figures.add(figure, stem, f"Absolute and relative change of the gradient, and the cosine ({step})")


def _eta_figure(figures: Figures, stem: Path, by_look: Mapping[Look, Sequence[Run]], step: str, text: str) -> None:
    """Figure 11 of Santurkar et al. (2018): the gradient's change against the step size, early and late."""
    tables = {look: [probe_table(run.probes) for run in group] for look, group in by_look.items()}
    everywhere = set.intersection(*(set(t["step"][:, 0].tolist()) for group in tables.values() for t in group))
    if not everywhere:
        return
    probed = sorted(everywhere)
    figure, axes = plt.subplots(1, 2, figsize=(7.4, 3.6))
    for panel, at, when in zip(axes, (probed[len(probed) // 10], probed[-1]), ("early", "late"), strict=True):
        for look, group in tables.items():
            for i, table in enumerate(group):
                row = int(np.flatnonzero(table["step"][:, 0] == at)[0])
                panel.plot(
                    table["eta"][row], table["grad_change"][row], color=look.colour, marker="o" if i == 0 else None,
                    markersize=4, linewidth=1.4 if i == 0 else 0.5, label=look.text if i == 0 else None,
                )  # fmt: skip
        panel.set(title=f"{when}: step {at:,.0f}", xlabel=r"step size $\eta$", ylabel=CHANGE)
        rows = [t["grad_change"][t["step"][:, 0] == at] for group in tables.values() for t in group]
        if not _log_if_wide(panel, np.concatenate(rows)) and panel.get_ylim()[1] > 0:
            panel.set_ylim(bottom=0)
        if (eta := next(iter(tables.values()))[0]["eta"][0]).max() > DECADES * eta.min():
            panel.set_xscale("log")
    _finish(figure, axes[0], f"Change of the gradient against the step size\ntrained with {step}", text)
    figures.add(figure, stem, f"Change of the gradient against the step size, at an early and a late step ({step})")


def _matched_figure(
    figures: Figures, stem: Path, ranges: Mapping[Look, Sequence[ProbeRanges]],
    losses: Mapping[Look, Sequence[np.ndarray]], step: str, text: str, unit: str,
) -> None:  # fmt: skip
    """The probes against the loss L(w) that they start from: at equal L(w) no network is further in its training.

    A dot per probe, the seeds together, and medians over intervals of L(w). losses: of the runs, at every step. A run
    in progress may have probes at steps whose loss is not in its log yet: they are left out.
    """
    quantities = [
        ("range of the loss over $\\eta$", f"largest minus smallest loss{unit}", lambda r: np.diff(r.loss)[:, 0]),
        ("largest relative change\nof the gradient over $\\eta$", RELATIVE, lambda r: r.relative[:, 1]),
    ]
    if any(np.isfinite(seed.curvature).any() for seeds in ranges.values() for seed in seeds):
        label = f"{BETA} at the smallest $\\eta$"
        quantities.append(("change of the gradient\nper distance near w", label, lambda r: r.curvature))
    logged = {
        look: [s.step <= len(loss) for s, loss in zip(ranges[look], losses[look], strict=True)] for look in losses
    }
    at = {
        look: np.concatenate(
            [loss[s.step[known] - 1] for s, loss, known in zip(ranges[look], of, logged[look], strict=True)]
        )
        for look, of in losses.items()
    }
    if not any(map(len, at.values())):
        return
    figure, axes = plt.subplots(1, len(quantities), figsize=(3.9 * len(quantities), 4.2), squeeze=False)
    for panel, (title, label, quantity) in zip(axes[0], quantities, strict=True):
        values = {
            look: np.concatenate([quantity(s)[known] for s, known in zip(seeds, logged[look], strict=True)])
            for look, seeds in ranges.items()
        }
        medians, _ = matched_medians(list(values.values()), list(at.values()))
        for (look, value), of_look in zip(values.items(), medians, strict=True):
            panel.plot(at[look], value, ".", color=look.colour, markersize=3, alpha=0.4, rasterized=True)
            panel.stairs(of_look, MATCHED_EDGES, color=look.colour, linewidth=2, baseline=None, label=look.text)
        for edge in MATCHED_EDGES[1:]:
            panel.axvline(edge, color="0.85", linewidth=0.6, zorder=0)
        panel.set(title=title, xlabel=f"L(w), the loss at the step{unit}", ylabel=label, xscale="log")
        _log_if_wide(panel, np.concatenate(list(values.values())))
    note = "dots: probes, all seeds; steps: medians over intervals of L(w)"
    title = f"The probes at equal loss L(w)\ntrained with {step}"
    _finish(figure, axes[0, 0], title, f"{text}; {note}")
    figures.add(figure, stem, f"The probes at equal loss: ranges against L(w), with medians ({step})")

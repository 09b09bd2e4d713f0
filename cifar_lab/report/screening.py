"""What the switches do to a claim's effect: a screening design, whose rows are run folders like any others.

A row trains the claim's runs with some switches at their other level; the row of minus is the preset's own runs. Its
value is the first of the claim's deciding measures, the logarithm of a ratio, and the mean over the seeds that have
every row. A switch whose two levels, or whose interval about the preset's value, lie on the claim's two sides changes
the answer if the design is right: that is confirmed by training it alone.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from cifar_lab import project
from cifar_lab.experiments import Experiment, at_preset
from cifar_lab.measures.screening import main_effects, plackett_burman
from cifar_lab.measures.statistics import which_side
from cifar_lab.report.claims import CLAIMS, Claim, Measure
from cifar_lab.report.verdicts import plan_of, planned_epochs
from cifar_lab.run_folder.reader import Run, by_settings
from cifar_lab.run_folder.schema import trained_to
from cifar_lab.settings import RunConfig, run_folder, seeds_in_words, training_root
from cifar_lab.switches import SWITCHES, Switch, shown, switched, switches_of

On = tuple[Switch, ...]  # those at their other level


@dataclass(frozen=True, eq=False)
class Effect:
    """What one switch does, on the measure's scale."""

    switch: Switch
    levels: tuple[Any, Any]  # the preset's and the other one
    effect: float  # mean at the other level minus mean at the preset's
    interval: tuple[float, float] | None  # 95%
    means: tuple[float, float]  # of the claim's effect at the two levels
    flips: bool  # whether the design says that it changes the claim's side
    alone: float | None  # the claim's effect with this switch alone; None: not trained, or not for all seeds
    confirmed: bool  # whether that lies on the other side than with the preset's settings

    @property
    def sign(self) -> str:
        """What it does to the claim's side, in words."""
        if not self.flips:
            return "same"
        if self.alone is None:
            return "flips, not trained alone yet"
        return f"flips, {'' if self.confirmed else 'not '}confirmed: {self.alone:+.3g} alone"

    @property
    def name(self) -> str:
        own, other = map(shown, self.levels)
        return f"{self.switch.name}: {own} to {other}"


@dataclass(frozen=True, eq=False)
class Screening:
    """A claim's effects at a preset."""

    claim: Claim
    preset: str
    seeds: tuple[int, ...]
    value: float  # of the claim's effect with the preset's settings, on the measure's scale
    effects: tuple[Effect, ...]
    degrees: int  # of freedom of the intervals
    notes: tuple[str, ...] = ()

    @property
    def measure(self) -> Measure:
        return deciding(self.claim)

    @property
    def unit(self) -> str:
        return "log" if self.measure.scale == "ratio" else self.measure.unit

    @property
    def limits(self) -> list[float]:
        """The effects at which the preset's value would reach an end of the claim's side."""
        return [end - self.value for end in self.measure.side_on_scale if np.isfinite(end)]


class Design:
    """The rows of a claim's design at a preset, as far as they are trained."""

    def __init__(self, claim: Claim, runs: Sequence[Run], preset: str) -> None:
        """runs: the user's own."""
        self.claim, self.preset = claim, preset
        self.switches = switches_of(claim.runs)
        self._by_settings = by_settings(runs, preset)
        self.seeds = sorted({seed for by_seed in self._by_settings.values() for seed in by_seed})
        self._trained: dict[On, dict[str, dict[int, Run]]] = {}
        table = plackett_burman()[:, [SWITCHES.index(switch) for switch in self.switches]]
        self.rows: list[On] = [tuple(s for s, x in zip(self.switches, row, strict=True) if x > 0) for row in table]

    def runs(self, on: On, seed: int) -> dict[str, Run] | None:
        """The claim's runs with these switches, by name; None if one of them is not trained to its end."""
        if on not in self._trained:
            every = [item for e in switched(self.claim.runs, on, self.preset) for item in e.runs.items()]
            self._trained[on] = {name: self._find(name, at_preset(config, self.preset)) for name, config in every}
        found = {name: by_seed.get(seed) for name, by_seed in self._trained[on].items()}
        return None if None in found.values() else {name: found[name] for name in self.claim.runs}

    def _find(self, name: str, config: RunConfig) -> dict[int, Run]:
        """The runs with these settings that are trained to their end, by seed."""
        found = self._by_settings.get(run_folder("", self.preset, config), {})
        if config.precision != "auto":  # one that is the usual precision is not in a folder's name
            usual = self._by_settings.get(run_folder("", self.preset, replace(config, precision="auto")), {})
            found = {seed: run for seed, run in usual.items() if run.config.precision == config.precision} | found
        epochs = planned_epochs(name, self.preset)
        return {seed: run for seed, run in found.items() if trained_to(run.summary, epochs)}

    def lacking(self, rows: Collection[On], seeds: Sequence[int]) -> list[tuple[Experiment, int]]:
        """The experiments that rows lack, row after row, each with a seed."""
        return [
            (experiment, seed)
            for on in rows
            for seed in seeds
            if self.runs(on, seed) is None
            for experiment in switched(self.claim.runs, on, self.preset)
        ]

    @cached_property
    def complete(self) -> dict[int, list[dict[str, Run]]]:
        """The runs of the 12 rows, for each seed that has all of them."""
        every = {seed: [self.runs(on, seed) for on in self.rows] for seed in self.seeds}
        return {seed: rows for seed, rows in every.items() if None not in rows}

    @property
    def begun(self) -> bool:
        """Whether a row is there, besides the preset's own runs."""
        return any(self.runs(on, seed) for on in self.rows if on for seed in self.seeds)

    def screen(self) -> Screening | None:
        """The effects of the switches; None as long as no seed has every row, with a value."""
        rows = {seed: np.array([self._value(runs) for runs in of_seed]) for seed, of_seed in self.complete.items()}
        without = [seed for seed, values in rows.items() if not np.isfinite(values).all()]
        seeds = tuple(seed for seed in rows if seed not in without)
        if not seeds:
            return None
        notes = [f"left out, as a row has no finite value: seed {seeds_in_words(without)}"] if without else []
        base = [self.complete[seed][-1] for seed in seeds]
        plans = [plan_of(name, self.preset, [runs[name] for runs in base]) for name in self.claim.runs]
        if reason := self.claim.regime(self.preset, plans):
            notes.append(f"the preset {self.preset} cannot decide this claim: {reason}")
        trained = [(name, run) for seed in seeds for runs in self.complete[seed] for name, run in runs.items()]
        used = list(self.switches)
        precisions = {run.config.precision for _, run in trained}
        for switch in self.switches:  # auto and fp32 can be the same
            if switch.setting == "precision" and len(precisions) == 1:
                used.remove(switch)
                notes.append(f"precision: {precisions.pop()} at both levels, so that its column has no factor")
        lengths = {(name, run.epochs_done) for name, run in trained if run.diverged_at_step is None}
        wanted = {name: planned_epochs(name, self.preset) for name in self.claim.runs}
        notes += [
            f"{name} has {epochs} epochs instead of {wanted[name]} in a row"
            for name, epochs in sorted(lengths) if epochs != wanted[name]
        ]  # fmt: skip
        values = np.mean([rows[seed] for seed in seeds], axis=0)
        main = main_effects(values, [SWITCHES.index(switch) for switch in used])
        value, mean = float(values[-1]), float(values.mean())
        effects = [
            self._effect(switch, float(effect), main.half, value, mean, seeds)
            for switch, effect in zip(used, main.effects, strict=True)
        ]
        return Screening(self.claim, self.preset, seeds, value, tuple(effects), main.degrees, tuple(notes))

    def _effect(
        self, switch: Switch, effect: float, half: float | None, value: float, mean: float, seeds: Sequence[int]
    ) -> Effect:
        side = deciding(self.claim).side_on_scale
        means = mean - effect / 2, mean + effect / 2
        interval = None if half is None else (effect - half, effect + half)
        own = which_side(value, side)
        flips = {which_side(x, side) for x in means} == {-1, 1}
        flips |= interval is not None and own != 0 and _lies(value + interval[0], value + interval[1], side) == -own
        runs = [self.runs((switch,), seed) for seed in seeds]
        alone = None if None in runs else float(np.mean([self._value(of_seed) for of_seed in runs]))
        confirmed = alone is not None and which_side(alone, side) == -own != 0
        levels = switch.levels_of(self.claim.runs)
        return Effect(switch, levels, effect, interval, means, flips, alone, confirmed)

    def _value(self, runs: Mapping[str, Run]) -> float:
        """The claim's effect in one row, on the measure's scale; NaN if it needs an accuracy and a run diverged."""
        if not self.claim.divergence_counts and any(run.diverged_at_step is not None for run in runs.values()):
            return np.nan
        measure = deciding(self.claim)
        value = self.claim.effect(runs)[self.claim.measures.index(measure)]
        with np.errstate(divide="ignore"):
            return float(np.log(value)) if measure.scale == "ratio" else float(value)


def command(claim: Claim, preset: str, results: str | Path) -> str:
    """The command that trains a claim's design."""
    return project.command("cifar_lab.reproduce", preset, "--switches", claim.id, results=training_root(results))


def deciding(claim: Claim) -> Measure:
    """The first of the measures that decide."""
    return next(measure for measure in claim.measures if measure.side)


def _lies(low: float, high: float, side: tuple[float, float]) -> int:
    """1: the whole interval is inside `side`, -1: outside, 0: neither."""
    if which_side(low, side) == which_side(high, side) == 1:
        return 1
    return -(high < side[0] or low > side[1])


def screen_all(runs: Sequence[Run], preset: str) -> tuple[list[Screening], list[Claim]]:
    """The claims whose design is complete, and those of which some rows are."""
    designs = [Design(claim, runs, preset) for claim in CLAIMS]
    screened = {design.claim.id: result for design in designs if (result := design.screen())}
    return list(screened.values()), [d.claim for d in designs if d.claim.id not in screened and d.begun]

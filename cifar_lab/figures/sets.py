"""Which runs are compared: series, which differ in nothing but the seed; sets of series that differ in one setting.

Every field of `RunConfig` and every option of a network is a setting, so that a new one needs no entry here.
"""

import hashlib
import itertools
import re
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
from matplotlib.colors import to_hex

from cifar_lab.figures.style import (
    OTHER_COLOURS,
    Look,
    looks,
    network_label,
    optimizer_label,
    planned_label,
    plt,
    schedule_label,
)
from cifar_lab.optimizers import OPTIMIZERS
from cifar_lab.run_folder.reader import Run
from cifar_lab.settings import RunConfig, words

LABELS = {  # of settings that include another one
    "optimizer": optimizer_label, "schedule": schedule_label,
    **{setting: partial(planned_label, setting) for setting in ("first_size", "bn_images")},
}  # fmt: skip
MOST = 24  # figures of a kind, beside the report's
Rates = dict[int, list[Run]]  # by seed a run per learning rate, the same rates for each seed, the largest first


@dataclass(frozen=True, eq=False)
class Series:
    """The runs of one setting, by seed."""

    runs: tuple[Run, ...]

    @property
    def published(self) -> bool:
        return self.runs[0].published

    @cached_property
    def settings(self) -> dict[str, Hashable]:
        """All but the seed, and the preset. An optimizer includes its momentum, a schedule the epochs that it goes
        over, a data set its classes and digest; options stand beside the settings."""
        run = self.runs[0]
        settings = {"preset": run.preset} | run.settings
        data = tuple(settings.pop(name) for name in ("dataset", "classes", "data_digest"))
        del settings["seed"], settings["momentum"], settings["schedule_epochs"]
        labels = {name: label(run) for name, label in LABELS.items()}
        return settings | settings.pop("options") | labels | {"dataset": data}

    def named(self, setting: str) -> str:
        """A setting in words. The options in config.json include those that have their default."""
        run = self.runs[0]
        if label := {"model": network_label, **LABELS}.get(setting):
            return label(run)
        if setting == "dataset":
            return words(setting, run.settings[setting])
        options = run.network.get("options")
        default = options.get(setting, "default") if isinstance(options, dict) else "default"
        return words(setting, self.settings.get(setting, default))


def series_of(runs: Sequence[Run]) -> list[Series]:
    """The runs by their settings, published ones apart, each series in the order of its seeds."""
    found: dict[Hashable, list[Run]] = {}
    for run in sorted(runs, key=lambda run: run.seed):
        found.setdefault((run.published, frozenset(Series((run,)).settings.items())), []).append(run)
    return [Series(tuple(of)) for of in found.values()]


def differing(series: Sequence[Series]) -> list[str]:
    """The names of the settings that are not the same in all series."""
    names = dict.fromkeys(name for of in series for name in of.settings)
    return [name for name in names if len({of.settings.get(name) for of in series}) > 1]


def one_apart(settings: Sequence[Mapping[str, Hashable]]) -> Iterator[tuple[str, list[int]]]:
    """The sets that differ in one setting: its name, and the places of two or more, in the order of its values."""

    def order(value: Hashable) -> tuple:
        if isinstance(value, int | float):
            return True, False, False, value
        return value is not None, True, value != getattr(RunConfig, name, None), str(value)  # the default first

    for name in dict.fromkeys(name for of in settings for name in of):
        alike: dict[Hashable, list[int]] = {}
        for i, of in enumerate(settings):
            alike.setdefault(frozenset(item for item in of.items() if item[0] != name), []).append(i)
        for places in alike.values():
            if len({settings[i].get(name) for i in places}) > 1:
                yield name, sorted(places, key=lambda i: order(settings[i].get(name)))


def overviews(runs: Sequence[Run]) -> list[tuple[str, list[Series]]]:
    """Every set of series that differ in one setting, with its name."""
    series = series_of(runs)
    return [(name, [series[i] for i in places]) for name, places in one_apart([of.settings for of in series])]


def rates_of(runs: Sequence[Run]) -> Rates:
    """Runs that differ in nothing but learning rate and seed: those of the seeds that have the most learning rates.

    The rates of the lowest of these seeds; what does not fit is left out, so a band has the same rates at each seed.
    Empty if no seed has two.
    """
    by_seed: dict[int, dict[float, Run]] = {}
    for run in sorted(runs, key=lambda run: (run.seed, -run.settings["lr"])):
        by_seed.setdefault(run.seed, {})[run.settings["lr"]] = run
    rates = max(by_seed.values(), key=len, default={})
    if len(rates) < 2:
        return {}
    return {seed: [of[lr] for lr in rates] for seed, of in by_seed.items() if rates.keys() <= of.keys()}


def band_of(runs: Sequence[Run]) -> Rates:
    """These runs as one band. Raises ValueError if they are none, or cannot all be in it."""
    if short := [run for run in runs if not len(run.losses)]:
        raise ValueError(f"{short[0].folder} has no step yet")
    series = series_of(runs)
    if names := [name for name in differing(series) if name != "lr"]:
        values = "; ".join(" / ".join(dict.fromkeys(of.named(name) for of in series)) for name in names)
        raise ValueError(f"the runs of a band differ in nothing but the learning rate, these in {values}")
    rates = rates_of(runs)
    if sum(map(len, rates.values())) < len(runs):
        raise ValueError("a band has two learning rates or more, each of them once for every seed")
    return rates


def bands(runs: Sequence[Run]) -> list[Rates]:
    """Every set of runs that differ in nothing but learning rate and seed, as the runs of a learning-rate band."""
    found = overviews([run for run in runs if len(run.losses)])
    sets = [rates_of([run for of in series for run in of.runs]) for name, series in found if name == "lr"]
    return [of for of in sets if of]


def pairs(sets: Sequence[Rates]) -> list[tuple[int, int, str]]:
    """The places of every two that share their learning rates and differ in one setting, and its name.

    Losses of two kinds have two units: widths of their bands have no ratio.
    """
    settings = []
    for of in sets:
        group = next(iter(of.values()))
        settings.append(Series((group[0],)).settings | {"lr": tuple(run.settings["lr"] for run in group)})
    return [
        (a, b, name)
        for name, places in one_apart(settings)
        if name not in ("lr", "loss")
        for a, b in itertools.combinations(places, 2)
    ]


def told_apart(groups: Sequence[Sequence[Run]], names: Sequence[str] = ()) -> list[Look]:
    """How the curve, or band, of each group of runs is drawn: called by the settings `names`, by the network if empty.

    Networks and optimizers have the colours of their registries; the published runs have that of the user's own.
    """
    names = tuple(names) or ("model",)
    series = [Series(tuple(group)) for group in groups]
    values = [tuple(of.settings.get(name) for name in names) for of in series]
    own = looks([of.runs[0] for of in series])

    def registered(run: Run) -> str | None:
        if names == ("model",):
            return own[run].colour
        optimizer = OPTIMIZERS.get(run.settings["optimizer"])
        return optimizer.colour if optimizer and names == ("optimizer",) else None

    colours = {value: registered(of.runs[0]) for value, of in zip(values, series, strict=True)}
    if None in colours.values() or len(set(colours.values())) < len(colours):
        free: Sequence[str] = OTHER_COLOURS
        if len(colours) > len(free):
            free = [to_hex(colour) for colour in plt.colormaps["viridis"](np.linspace(0, 0.9, len(colours)))]
        colours = dict(zip(colours, free, strict=False))
    return [
        Look(of.runs[0].model, ", ".join(map(of.named, names)) + " (published)" * of.published, colours[value])
        for value, of in zip(values, series, strict=True)
    ]


def file_stem(kind: str, runs: Sequence[Run]) -> str:
    """A figure's file name: its kind, and what the names of the run folders share but for the seed."""
    parts = [[run.model, *re.split(r"-(?=[a-z])", run.name)] for run in runs]
    shared = [part for part in parts[0] if all(part in of for of in parts) and not re.fullmatch(r"seed\d+", part)]
    stem = re.sub(r"[^\w.]+", "-", "-".join([kind, *shared]))
    return stem if len(stem) < 150 else f"{stem[:100]}-{hashlib.sha256(stem.encode()).hexdigest()[:12]}"

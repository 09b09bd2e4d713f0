"""The switches: what else the compared runs could have been trained with, and might explain a claim's effect by.

Each has two levels. A claim's runs have one of them at a preset, the other is what it is switched to. A network
without the setting stays as it is. Without weight decay the decay of biases and norms changes nothing, so its effect is
that over both levels of weight decay.
"""

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

from cifar_lab.experiments import EXPERIMENTS, RUNS, Experiment, experiments_of, word
from cifar_lab.settings import RunConfig

INCEPTIONS = ("inception", "inception_res")


@dataclass(frozen=True)
class Switch:
    """A setting at two levels."""

    name: str
    setting: str  # a field of `RunConfig`, or an option of the networks
    levels: tuple[Any, Any]  # the report's, and the other one
    networks: tuple[str, ...] | None = None  # that have it; None: all
    rates: bool = False  # only for claims that compare several learning rates of a command

    def level(self, config: RunConfig) -> Any:
        """What a run has; None if its network does not have the setting."""
        if self.networks and config.model not in self.networks:
            return None
        return getattr(config, self.setting, config.options.get(self.setting, self.levels[0]))

    def levels_of(self, names: Collection[str]) -> tuple[Any, Any]:
        """What the named runs have, and what they are switched to."""
        (own,) = {self.level(RUNS[name]) for name in names} - {None}
        return own, self.levels[self.levels[0] == own]

    def applies(self, names: Collection[str]) -> bool:
        """Whether it can be switched in the named runs: it can't if it is what tells them apart, or none has it."""
        several = any(len(set(e.names) & set(names)) > 1 for e in EXPERIMENTS if "lrs" in e.flags)
        return len({self.level(RUNS[name]) for name in names} - {None}) == 1 and (several or not self.rates)


# A switch's place is its column in the design of `measures.screening`, whose columns without one estimate the error: a
# new one goes to the end, so that the runs of the others stay what they are.
SWITCHES: tuple[Switch, ...] = (
    Switch("initialization", "init", ("he", "pytorch")),
    Switch("weight decay", "weight_decay", (1e-4, 0.0)),
    Switch("decay of biases and norms", "bias_decay", (True, False)),
    Switch("augmentation", "augment", ("report", "none")),
    Switch("a seed for each learning rate", "seed_per_rate", (False, True), rates=True),
    Switch("precision", "precision", ("auto", "fp32")),
    Switch("dropout", "dropout", (0.4, 0.0), INCEPTIONS),
    Switch("scaled side", "residual_side", ("branch", "shortcut"), ("inception_res",)),
)


def switches_of(names: Collection[str]) -> tuple[Switch, ...]:
    """Those that can be switched in the named runs."""
    return tuple(switch for switch in SWITCHES if switch.applies(names))


def switched(names: Collection[str], switches: Collection[Switch], preset: str) -> list[Experiment]:
    """The commands that train the named runs with these switches at their other level, all else as at the preset."""
    changes = {switch: switch.levels_of(names)[1] for switch in switches}
    return [
        replace(e, flags={**e.flags, **{
            switch.setting: level for switch, level in changes.items()
            if not switch.networks or e.network in switch.networks
        }})
        for e in experiments_of(names, preset)
    ]  # fmt: skip


def shown(level: Any) -> str:
    """A level in words."""
    return ("no", "yes")[level] if isinstance(level, bool) else word(level)

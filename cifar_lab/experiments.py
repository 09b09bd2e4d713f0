"""The report's runs: one table from which `make`, the README, the figures and the verdicts take runs and commands.

An experiment is one command and the runs that it trains in lockstep. A run here is a setting with a name; with several
seeds it has a folder for each.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields, replace
from itertools import product
from pathlib import Path
from typing import Any

from cifar_lab import project
from cifar_lab.settings import (
    ALL_PRESETS,
    MODERN_PRESETS,
    PAPER_PRESETS,
    RunConfig,
    number,
    preset_defaults,
    run_folder,
    training_root,
)

LEARNING_RATES = (1e-3, 1e-4, 5e-4, 5e-5)


@dataclass(frozen=True)
class Experiment:
    """One command."""

    script: str
    network: str
    flags: Mapping[str, Any]  # given to the script: those that name the network, and settings
    epochs: int | None  # at the report preset; None: it is not among the report's
    names: tuple[str, ...]  # of its runs: optimizers, and for each of them the learning rates
    wider: float = 1.0  # factor on the preset's width
    short: bool = False  # has a tenth of the epochs of the others

    @property
    def runs(self) -> dict[str, RunConfig]:
        """The settings of each run at the report preset, seed 0, by its name."""
        known = {f.name for f in fields(RunConfig)}
        plain = {k: v for k, v in self.flags.items() if k in known and k not in ("model", "optimizer")}
        own = {k: v for k, v in self.flags.items() if k not in {*known, "bn", "lr", "lrs"}}
        rates = self.flags.get("lrs") or (self.flags.get("lr", RunConfig.lr),)
        each = product(self.flags.get("optimizer", ("adam",)), rates)
        return {
            name: RunConfig(
                self.network, width=self.wider, **plain | {"optimizer": optimizer, "lr": lr, "options": own}
            )
            for name, (optimizer, lr) in zip(self.names, each, strict=True)
        }

    def only(self, names: Collection[str]) -> "Experiment":
        """The command that trains no other of its runs than the named ones."""
        chosen = {name: config for name, config in self.runs.items() if name in names}
        several = {
            "optimizer": tuple(dict.fromkeys(config.optimizer for config in chosen.values())),
            "lrs": tuple(dict.fromkeys(config.lr for config in chosen.values())),
        }
        several = {flag: values for flag, values in several.items() if flag in self.flags}
        return replace(self, flags={**self.flags, **several}, names=tuple(chosen))

    def epochs_at(self, preset: str) -> int:
        """The number of epochs at a preset. Short ones have at least the three that a final accuracy averages over."""
        if preset == "report":
            return self.epochs
        own = ALL_PRESETS[preset]["epochs"]
        return max(3, round(own / 10)) if self.short else own

    def command(
        self, preset: str = "report", seeds: tuple[int, ...] = (0,), results: str | Path = project.RESULTS
    ) -> str:
        """The command line, as a user types it."""
        given = dict(self.flags)
        given |= {"preset": preset} if preset != "report" else {}
        given |= {"epochs": self.epochs_at(preset)} if preset == "report" or self.short else {}
        given |= {"width": self.wider * preset_width(preset)} if self.wider != 1 else {}
        given |= {"seed": seeds} if seeds != (0,) else {}
        words: list[str] = []
        for name, value in given.items():
            values = value if isinstance(value, tuple) else () if isinstance(value, bool) else (value,)
            words.append(f"--{'no-' if value is False else ''}{name.replace('_', '-')}")
            words += map(word, values)
        return project.command(self.script, *words, results=training_root(results))


def word(value: Any) -> str:
    """A flag's value on a command line."""
    return number(value) if isinstance(value, float) and value < 0.1 else str(value)


def preset_width(preset: str) -> float:
    """The width of a preset's networks."""
    return preset_defaults(preset).get("width", RunConfig.width)


_VGG, _INCEPTION = "MyVGG.py", "MyFramework.py"
_PLAIN, _RESIDUAL = {"model": "inception"}, {"model": "inception_res"}
_NO_L2 = {"optimizer": ("adam",), "weight_decay": 0.0}
PLAIN_BAND, BN_BAND = (tuple(f"{network}_lr{lr:g}" for lr in LEARNING_RATES) for network in ("vgg_a", "vgg_a_bn"))

EXPERIMENTS: tuple[Experiment, ...] = (
    Experiment(_VGG, "vgg_a", {"lrs": LEARNING_RATES}, 200, PLAIN_BAND),
    Experiment(_VGG, "vgg_a_bn", {"bn": True, "lrs": LEARNING_RATES}, 200, BN_BAND),
    Experiment(_INCEPTION, "inception", _PLAIN | _NO_L2, 200, ("inception",)),
    Experiment(_INCEPTION, "inception_res", _RESIDUAL | _NO_L2, 200, ("inception_res",)),
    Experiment(_INCEPTION, "inception_res", _RESIDUAL | {"optimizer": ("adam", "adamw", "rmsprop")}, 300,
               ("inception_res_adam", "inception_res_adamw", "inception_res_rmsprop")),
    Experiment(_INCEPTION, "inception_res", _RESIDUAL | {"residual_scale": 1.0, "weight_decay": 0.0}, 200,
               ("inception_res_unscaled",)),
    Experiment(_INCEPTION, "inception_res", _RESIDUAL | {"lr": 1e-3}, 20, ("large_lr_adam_1e-3",), short=True),
    Experiment(_INCEPTION, "inception_res", _RESIDUAL | {"lr": 1e-2}, 20, ("large_lr_adam_1e-2",), short=True),
    Experiment(_INCEPTION, "inception_res", _RESIDUAL | {"optimizer": ("sgd",), "momentum": 0.9, "lr": 1e-2}, 20,
               ("large_lr_sgd_momentum",), short=True),
)  # fmt: skip

# Not in a preset's list, which they would make longer; what claims show beside their effect where these runs are there.
# The plain network has, at 1.18 times the width, 92 to 105% of the residual one's parameters (widths 0.125 to 1).
_RATES = (1e-3, 1e-2)
SCALED_RATES, UNSCALED_RATES = (tuple(f"inception_res_scale{s}_lr{lr:g}" for lr in _RATES) for s in ("0.2", "1.0"))
CONTROLS: tuple[Experiment, ...] = (
    Experiment(_INCEPTION, "inception", _PLAIN | _NO_L2, 200, ("inception_matched",), 1.18),
    Experiment(_INCEPTION, "inception_res", _RESIDUAL | {"weight_decay": 0.0, "lrs": _RATES}, 20,
               SCALED_RATES, short=True),
    Experiment(_INCEPTION, "inception_res", _RESIDUAL | {"residual_scale": 1.0, "weight_decay": 0.0, "lrs": _RATES}, 20,
               UNSCALED_RATES, short=True),
)  # fmt: skip

# Santurkar et al. (2018): both networks under plain SGD, with probes along the gradient.
PAPER_EXPERIMENTS: tuple[Experiment, ...] = (
    Experiment(_VGG, "vgg_a", {}, None, ("paper_vgg_a",)),
    Experiment(_VGG, "vgg_a_bn", {"bn": True}, None, ("paper_vgg_a_bn",)),
)

# Today's recipe: the headline of `make modern`.
MODERN_EXPERIMENTS: tuple[Experiment, ...] = (Experiment(_VGG, "vgg_a_bn", {}, None, ("modern_vgg_a_bn",)),)

_OTHERS = dict.fromkeys(PAPER_PRESETS, PAPER_EXPERIMENTS) | dict.fromkeys(MODERN_PRESETS, MODERN_EXPERIMENTS)

RUNS: dict[str, RunConfig] = {
    name: config
    for e in (*EXPERIMENTS, *CONTROLS, *PAPER_EXPERIMENTS, *MODERN_EXPERIMENTS)
    for name, config in e.runs.items()
}
NETWORKS = frozenset(config.model for config in RUNS.values())  # of the report; others are the user's own


def config_of(run: str, preset: str, seed: int = 0) -> RunConfig:
    """The settings of the named run at a preset."""
    return at_preset(RUNS[run], preset, seed)


def at_preset(config: RunConfig, preset: str, seed: int = 0) -> RunConfig:
    """The settings of a run at a preset; config: those at the report's."""
    at = replace(config, seed=seed, **preset_defaults(preset))
    return at if at.width is None else replace(at, width=config.width * preset_width(preset))


def folder_of(run: str, results: str | Path, preset: str, seed: int = 0) -> Path:
    """The folder of the named run at a preset."""
    return run_folder(results, preset, config_of(run, preset, seed))


def experiments(preset: str) -> tuple[Experiment, ...]:
    """The preset's experiments, in the order in which they are run."""
    return _OTHERS.get(preset, EXPERIMENTS)


def known_experiments(preset: str) -> tuple[Experiment, ...]:
    """The preset's experiments, and the controls that go with them."""
    return _OTHERS.get(preset, EXPERIMENTS + CONTROLS)


def experiments_of(names: Collection[str], preset: str) -> list[Experiment]:
    """The commands that train the named runs and no others."""
    return [e.only(names) for e in known_experiments(preset) if set(e.names) & set(names)]


def command_for(run: str, preset: str, seeds: tuple[int, ...] = (0,), results: str | Path = project.RESULTS) -> str:
    """The command that trains the named run."""
    return next(e for e in known_experiments(preset) if run in e.names).command(preset, seeds, results)

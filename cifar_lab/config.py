"""The settings that decide a run's numbers, the presets that fill them in, and the folder name they give.

Two runs that would give different numbers have different folders,

    results/<preset>/<model>/<optimizer>-lr<lr>-wd<weight decay>-seed<seed>[-<other settings>]

where a setting outside the fixed four is named only where it differs from the preset's own.
"""

from dataclasses import dataclass, fields
from decimal import Decimal
from pathlib import Path


@dataclass(frozen=True)
class RunConfig:
    """Every setting that changes the numbers of one run (epochs, device and versions do not count)."""

    model: str  # inception, inception_res, vgg_a; "_bn" appended where every convolution has a BatchNorm
    optimizer: str = "adam"
    lr: float = 1e-4
    weight_decay: float = 1e-4
    seed: int = 0
    momentum: float = 0.0  # SGD only
    residual_scale: float = 0.2  # inception_res only
    width: float = 1.0
    init: str = "he"
    batch_size: int = 100
    train_size: int = 50_000
    test_size: int = 10_000
    augment: bool = True
    precision: str = "auto"
    probe_every: int = 0  # steps between two probes of the landscape; 0: none


# A preset is a purpose: what it sets differs from the defaults above and in the scripts. Each flag still overrides.
PRESETS: dict[str, dict] = {
    "report": {},
    "laptop": {"width": 0.25, "epochs": 20},
    "quick": {"width": 0.125, "train_size": 5_000, "test_size": 2_000, "epochs": 5},
}
# The setting of Santurkar et al. (2018), section 3.2: VGG, plain SGD, learning rate 0.1, batch 128, 15,000 steps,
# no augmentation. For MyVGG.py alone.
_PAPER = {
    "optimizer": "sgd",
    "lrs": (0.1,),
    "weight_decay": 0.0,
    "batch_size": 128,
    "augment": False,
    "init": "xavier",
    "epochs": 39,  # of 391 steps: the paper's 15,000 are reached in the 39th
    "probe_every": 100,
}
PAPER_PRESETS: dict[str, dict] = {
    "paper": _PAPER,
    # 40 whole batches: of 5,000 images every fourth probe would fall on a last batch of 8.
    "paper-quick": _PAPER | {"width": 0.25, "train_size": 5_120, "test_size": 2_000, "epochs": 10, "probe_every": 10},
}

NAMED_ALWAYS = ("model", "optimizer", "lr", "weight_decay", "seed")
# What a setting is called in a folder's name; the value follows. Booleans stand without one.
SHORT = {
    "momentum": "momentum",
    "residual_scale": "scale",
    "width": "width",
    "init": "init",
    "batch_size": "batch",
    "train_size": "train",
    "test_size": "test",
    "augment": "noaugment",
    "precision": "",
    "probe_every": "probe",
}


def number(value: float) -> str:
    """The shortest exact name of a number: 0.001 gives 1e-3, 0.00015 gives 1.5e-4, 0 gives 0."""
    return f"{Decimal(repr(float(value))).normalize():e}" if value else "0"


def preset_defaults(preset: str) -> dict:
    """The preset's own values for the fields of `RunConfig`."""
    chosen = (PRESETS | PAPER_PRESETS)[preset]
    names = {f.name for f in fields(RunConfig)}
    return {k: v for k, v in chosen.items() if k in names}


def run_name(config: RunConfig, preset: str) -> str:
    """The run folder's own name, for example `adam-lr1e-4-wd0-seed0-scale1`."""
    own = RunConfig(config.model, **preset_defaults(preset))
    parts = [config.optimizer, f"lr{number(config.lr)}", f"wd{number(config.weight_decay)}", f"seed{config.seed}"]
    for key, short in SHORT.items():
        value = getattr(config, key)
        if value == getattr(own, key):
            continue
        shown = "" if isinstance(value, bool) else repr(value) if isinstance(value, float) else value
        parts.append(f"{short}{str(shown).removesuffix('.0')}")
    return "-".join(parts)


def run_folder(results: str | Path, preset: str, config: RunConfig) -> Path:
    """Where the run's files lie below the results folder."""
    return Path(results) / preset / config.model / run_name(config, preset)

"""The report's runs: one table from which `make`, the README, the figures and the verdicts take their commands.

A run here is a setting; with several seeds it has a folder for each. `RUNS` names the settings, `EXPERIMENTS` the
commands that train them, in the order in which `make report` runs them.
"""

import shlex
from dataclasses import dataclass, replace
from pathlib import Path

from cifar_lab.config import PAPER_PRESETS, RunConfig, preset_defaults, run_folder

LEARNING_RATES = (1e-3, 1e-4, 5e-4, 5e-5)

RUNS: dict[str, RunConfig] = {
    "inception": RunConfig("inception", weight_decay=0.0),
    "inception_res": RunConfig("inception_res", weight_decay=0.0),
    "inception_res_adam": RunConfig("inception_res"),
    "inception_res_adamw": RunConfig("inception_res", optimizer="adamw"),
    "inception_res_rmsprop": RunConfig("inception_res", optimizer="rmsprop"),
    "inception_res_unscaled": RunConfig("inception_res", weight_decay=0.0, residual_scale=1.0),
    "large_lr_adam_1e-3": RunConfig("inception_res", lr=1e-3),
    "large_lr_adam_1e-2": RunConfig("inception_res", lr=1e-2),
    "large_lr_sgd_momentum": RunConfig("inception_res", optimizer="sgd", lr=1e-2, momentum=0.9),
    **{f"vgg_a_lr{lr:g}": RunConfig("vgg_a", lr=lr) for lr in LEARNING_RATES},
    **{f"vgg_a_bn_lr{lr:g}": RunConfig("vgg_a_bn", lr=lr) for lr in LEARNING_RATES},
    "paper_vgg_a": RunConfig("vgg_a", lr=0.1),  # the paper presets set the rest
    "paper_vgg_a_bn": RunConfig("vgg_a_bn", lr=0.1),
}
PLAIN_BAND = tuple(f"vgg_a_lr{lr:g}" for lr in LEARNING_RATES)
BN_BAND = tuple(f"vgg_a_bn_lr{lr:g}" for lr in LEARNING_RATES)


def config_of(run: str, preset: str, seed: int = 0) -> RunConfig:
    """The settings of the named run at a preset."""
    return replace(RUNS[run], seed=seed, **preset_defaults(preset))


def folder_of(run: str, results: str | Path, preset: str, seed: int = 0) -> Path:
    """The folder of the named run at a preset."""
    return run_folder(results, preset, config_of(run, preset, seed))


@dataclass(frozen=True)
class Experiment:
    """One command: the runs it trains together, and the figures and claims that need them."""

    script: str
    flags: str
    epochs: int  # at the report preset; elsewhere the preset's own number
    runs: tuple[str, ...]
    figures: tuple[str, ...] = ()
    claims: tuple[str, ...] = ()

    def command(self, preset: str = "report", seeds: tuple[int, ...] = (0,), results: str | Path = "results") -> str:
        """The command line, as a user types it."""
        words = ["python", self.script, *([self.flags] if self.flags else [])]
        if preset == "report":
            words.append(f"--epochs {self.epochs}")
        else:
            words.append(f"--preset {preset}")
        if seeds != (0,):
            words.append("--seed " + " ".join(map(str, seeds)))
        if Path(results) != Path("results"):
            words.append(f"--results {shlex.quote(str(results))}")
        return " ".join(words)


_VGG_CLAIMS = ("bn-accuracy", "bn-fluctuation", "bn-speed", "bn-band", "bn-spikes")

EXPERIMENTS: tuple[Experiment, ...] = (
    Experiment("MyVGG.py", "--lrs 1e-3 1e-4 5e-4 5e-5", 200, PLAIN_BAND, ("10", "landscape"), _VGG_CLAIMS),
    Experiment("MyVGG.py", "--bn --lrs 1e-3 1e-4 5e-4 5e-5", 200, BN_BAND, ("9", "landscape"), _VGG_CLAIMS),
    Experiment("MyFramework.py", "--model inception --optimizer adam --weight-decay 0", 200,
               ("inception",), ("1", "2"), ("level", "residual")),
    Experiment("MyFramework.py", "--model inception_res --optimizer adam --weight-decay 0", 200,
               ("inception_res",), ("4", "5"), ("residual", "scaling", "overfitting", "l2")),
    Experiment("MyFramework.py", "--model inception_res --optimizer adam adamw rmsprop", 300,
               ("inception_res_adam", "inception_res_adamw", "inception_res_rmsprop"), ("6", "7", "8"),
               ("optimizers", "l2")),
    Experiment("MyFramework.py", "--model inception_res --residual-scale 1.0 --weight-decay 0", 200,
               ("inception_res_unscaled",), (), ("scaling",)),
    Experiment("MyFramework.py", "--model inception_res --lr 1e-3", 20, ("large_lr_adam_1e-3",), (), ("large-lr",)),
    Experiment("MyFramework.py", "--model inception_res --lr 1e-2", 20, ("large_lr_adam_1e-2",), (), ("large-lr",)),
    Experiment("MyFramework.py", "--model inception_res --optimizer sgd --momentum 0.9 --lr 1e-2", 20,
               ("large_lr_sgd_momentum",), (), ("large-lr",)),
)  # fmt: skip

# Santurkar et al. (2018): both networks under plain SGD, with probes along the gradient.
PAPER_EXPERIMENTS: tuple[Experiment, ...] = (
    Experiment("MyVGG.py", "", 39, ("paper_vgg_a",), ("probes",)),
    Experiment("MyVGG.py", "--bn", 39, ("paper_vgg_a_bn",), ("probes",)),
)


def experiments(preset: str) -> tuple[Experiment, ...]:
    """The preset's experiments, in the order in which they are run."""
    return PAPER_EXPERIMENTS if preset in PAPER_PRESETS else EXPERIMENTS


def command_for(run: str, preset: str, seeds: tuple[int, ...] = (0,), results: str | Path = "results") -> str:
    """The command that trains the named run."""
    return next(e for e in experiments(preset) if run in e.runs).command(preset, seeds, results)

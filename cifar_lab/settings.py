"""What a run is: command-line flags as typed settings, presets, the settings that decide a run's numbers, folder names.

A field of a frozen dataclass is a flag and its documentation is the flag's `--help`. A script subclasses `Settings`,
adds its own fields and calls `parse`. A preset replaces defaults; a flag that is given replaces both. A value that is
not allowed ends the program with one line on standard error and status 2.
"""

import argparse
import inspect
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields, replace
from decimal import Decimal
from pathlib import Path
from typing import Any, ClassVar, NoReturn, Self

from cifar_lab import escape
from cifar_lab.activations import ACTIVATIONS
from cifar_lab.losses import LOSSES
from cifar_lab.optimizers import OPTIMIZERS
from cifar_lab.program import fail
from cifar_lab.project import RESULTS
from cifar_lab.schedules import SCHEDULES

AUGMENTS = {  # with what figures call them
    "none": "no augmentation", "flip-crop": "flips and crops", "report": "the report's augmentation",
}  # fmt: skip
INITS = ("he", "pytorch", "xavier")
PRECISIONS = ("auto", "fp32", "tf32", "bf16")
DEVICES = ("auto", "cpu", "cuda", "cuda:N", "mps")
LARGEST_SEED = 2**32 - 1
MOST_EPOCHS = 1_000_000
PUBLISHED = "published"  # in the results folder: results root of the runs that came with the repository
SIZE = 32  # pixels, height and width of an image
LARGEST_DECAY = 0.999999  # of a moving average: its mean is over a million steps
MOST_IMAGES, MOST_CLASSES = 10_000_000, 256  # of a data set; a label is a byte
LONGEST_OUTPUT = 200  # bytes of a file's name, so that a temporary name for it is possible too
# What a run writes and is continued from, and what is computed from its checkpoint.
OF_A_RUN = re.compile(
    r"(config|summary)\.json|(epochs|steps|probes|(surface|path|line|sharpness)-.*)\.csv|"
    r"predictions\.txt|checkpoint.*\.pt"
)
EXPORTS = (".safetensors", ".onnx", ".pt2")

# --- Values of flags -------------------------------------------------------------------------------------------------


def integer(low: int, high: int) -> Callable[[str], int]:
    """A parser of integers from `low` to `high`."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is not an integer from {low} to {high}")
        return value

    return parse


def real(low: float, high: float, *, above: bool = False) -> Callable[[str], float]:
    """A parser of finite numbers from `low` (excluded if `above`) to `high`."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (low < value if above else low <= value) or not value <= high:
            bound = f"above {low:g}" if above else f"from {low:g}"
            raise argparse.ArgumentTypeError(f"{text!r} is not a number {bound} to {high:g}")
        return value + 0.0  # without the sign of -0.0, which would give the run a second name

    return parse


def choice(*allowed: str) -> Callable[[str], str]:
    """A parser of one of the given words."""

    def parse(text: str) -> str:
        if text not in allowed:
            raise argparse.ArgumentTypeError(f"{text!r} is not one of {', '.join(allowed)}")
        return text

    return parse


def device_name(text: str) -> str:
    """A parser of one of `DEVICES`, N a number."""
    return text if re.fullmatch(r"cuda:\d{1,3}", text) else choice(*DEVICES)(text)


def path(text: str) -> str:
    """A parser of a path: not empty, no NUL, and in UTF-8 (other bytes arrive as surrogates and cannot be printed).

    A home folder (~) is looked up: shells do not, after `--results=` or in quotes.
    """
    if not text or "\0" in text or any("\ud800" <= c <= "\udfff" for c in text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a path")
    return os.path.expanduser(text)


def folder(text: str) -> Path:
    """The same, as a Path."""
    return Path(path(text))


def output(*suffixes: str) -> Callable[[str], str]:
    """A parser of the path of a file to write: of one of these kinds, absent or a regular file, and no run's own.

    A link stands for what it leads to.
    """

    def parse(text: str) -> str:
        file = folder(text)
        if file.suffix not in suffixes:
            raise argparse.ArgumentTypeError(f"{text!r} does not end in {', '.join(suffixes)}")
        file = Path(os.path.realpath(file)) if os.path.islink(file) else file
        if not os.path.isdir(file.parent):
            raise argparse.ArgumentTypeError(f"{text!r}: there is no folder {file.parent}")
        if len(os.fsencode(file.name)) > LONGEST_OUTPUT:
            raise argparse.ArgumentTypeError(f"{text!r}: the name has more than {LONGEST_OUTPUT} bytes")
        if os.path.lexists(file) and not os.path.isfile(file):
            raise argparse.ArgumentTypeError(f"{text!r} is not a regular file")
        if OF_A_RUN.fullmatch(file.name) and os.path.exists(file.parent / "config.json"):
            raise argparse.ArgumentTypeError(f"{text!r} is a run's own file")
        return str(file)

    return parse


def figure_file(text: str) -> Path:
    """A parser of the path of a figure's file."""
    return Path(output(".png", ".svg", ".pdf")(text))


def flag(
    default: Any, documentation: str, kind: Callable | None = None, *, many: bool = False, metavar: str = "",
    also: str = "",
) -> Any:  # fmt: skip
    """A field that is also a command-line flag; a boolean field without `kind` is a switch (`--x`, or `--no-x`).

    documentation: what the value is, or what the switch does. many: it takes several values. also: a second name.
    """
    metadata = {"documentation": documentation, "kind": kind, "many": many, "metavar": metavar, "also": also}
    return field(default=default, metadata=metadata)


def learning_rates(*default: float) -> Any:
    """The flag of the learning rates, with a script's own default."""
    kind = real(0, 1e6, above=True)
    return flag(default, "learning rates, trained in lockstep", kind, many=True, also="--lr")


def epochs(default: int) -> Any:
    """The flag of the number of epochs, with a script's own default."""
    return flag(default, "passes over the training images", integer(1, MOST_EPOCHS))


# --- The settings of one run -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RunConfig:
    """Every setting that changes the numbers of one run. The number of epochs and versions are not among them."""

    model: str  # name in `networks.NETWORKS`
    optimizer: str = "adam"
    lr: float = 1e-4
    weight_decay: float = 1e-4
    seed: int = 0
    momentum: float = 0.0  # SGD only
    activation: str = "relu"  # of a network that has one to choose
    loss: str = "cross_entropy"
    schedule: str = "constant"
    warmup: float = 0.0  # epochs
    schedule_epochs: int = 0  # of the whole run, where its course depends on them (`Settings.runs`); else 0
    test_time_flip: bool = False  # whether a prediction is the mean of those of a picture and of its mirror image
    ema: float = 0.0  # decay of the moving average of the weights that evaluations use; 0: the weights themselves
    bn_images: int = 0  # of the last epoch, on which BatchNorm's statistics are estimated again after it; 0: none
    cutout: int = 0  # side of a gray square, pixels; 0: none
    mixup: float = 0.0  # parameter of the Beta distribution of the weight of an image; 0: images are not mixed
    first_size: int = SIZE  # pixels of the images of the first epochs: `training.plan.image_size`
    bias_decay: bool = True  # whether biases and norms have weight decay too
    seed_per_rate: bool = False  # whether each learning rate draws from a seed of its own: `training.plan.seed_of`
    width: float | None = 1.0  # None: the network has one width only
    width_transfer: bool = True  # rates, decay, output layer: `cifar_lab.width`; always true without a width, and at 1
    init: str = "he"
    batch_size: int = 100
    train_size: int = 50_000
    test_size: int = 10_000
    validation_size: int = 0  # of these training images, held out
    augment: str = "report"
    device: str = "auto"  # of a run that is trained: what auto resolved to
    precision: str = "auto"  # the same
    probe_every: int = 0  # steps between two probes of the landscape; 0: none
    options: Mapping[str, Any] = field(default_factory=dict)  # of this network, those that differ from their default
    dataset: str = "cifar10"  # name of the data set: one of `data.datasets`, or that of a folder of pictures
    classes: int = 10  # of the data set
    data_digest: str = ""  # of its images, labels and classes; empty: CIFAR-10, whose sums are known

    @property
    def steps_per_epoch(self) -> int:
        """Steps per epoch, the partial last batch included."""
        return -(-(self.train_size - self.validation_size) // self.batch_size)


# A preset is a set of settings for one purpose; what is not in it has the script's default. Each flag overrides it.
# These are the report's, whose claims are judged.
PRESETS: dict[str, dict] = {
    "report": {},
    "laptop": {"width": 0.25, "epochs": 42},
    "quick": {"width": 0.125, "train_size": 10_000, "test_size": 2_000, "epochs": 9},
}
# The setting of Santurkar et al. (2018), section 3.2: VGG, plain SGD, learning rate 0.1, batch 128, 15,000 steps,
# no augmentation.
_PAPER = {
    "optimizer": ("sgd",),
    "lrs": (0.1,),
    "weight_decay": 0.0,
    "batch_size": 128,
    "augment": "none",
    "init": "xavier",
    "epochs": 39,  # of 391 steps: the paper's 15,000 are reached in the 39th
    "probe_every": 100,
}
PAPER_PRESETS: dict[str, dict] = {
    "paper": _PAPER,
    # 40 whole batches: with 5,000 images every fourth probe would fall on a last batch of 8.
    # Without width transfer, so that a step goes along the gradient, as the probes do.
    "paper-quick": _PAPER | {
        "width": 0.25, "width_transfer": False, "train_size": 5_120, "test_size": 2_000, "epochs": 10,
        "probe_every": 10,
    },
}  # fmt: skip
# Today's recipe for the report's networks, as bench/recipe.py chose it. A script without a flag of one of these names
# does without it.
MODERN_PRESETS: dict[str, dict] = {
    "modern": {
        "bn": True, "width": 0.25, "epochs": 14, "batch_size": 256, "optimizer": ("muon",), "lrs": (8e-3,),
        "schedule": "one-cycle", "weight_decay": 0.1, "init": "pytorch", "augment": "flip-crop", "test_time_flip": True,
    },
}  # fmt: skip
ALL_PRESETS = PRESETS | PAPER_PRESETS | MODERN_PRESETS

# What a setting is called in a folder's name, followed by its value; booleans stand without one: their word says that
# they have not their default, and with or without "no" before it that they have, unlike the preset. Model, optimizer,
# learning rate, weight decay and seed are always in the name, these only if they differ from the preset's own.
SHORT = {
    "momentum": "momentum",
    "activation": "",
    "loss": "",
    "schedule": "",
    "warmup": "warmup",
    "schedule_epochs": "epochs",
    "width": "width",
    "width_transfer": "notransfer",
    "bias_decay": "nobiasdecay",
    "seed_per_rate": "seedperrate",
    "test_time_flip": "testflip",
    "ema": "ema",
    "bn_images": "bnimages",
    "cutout": "cutout",
    "mixup": "mixup",
    "first_size": "firstsize",
    "init": "init",
    "batch_size": "batch",
    "train_size": "train",
    "test_size": "test",
    "validation_size": "validation",
    "augment": "",
    "precision": "",
    "probe_every": "probe",
    "dataset": "data",
}
CHOICES = ("width", "activation")  # settings of the networks whose builder has a parameter of that name
OPTION = r"[\w.+-]{1,64}"  # what the value of a network's option can be
AUTO_PRECISION = {"cuda": "bf16"}  # what auto is, for runs that do not say what it was; fp32 on the other devices


def number(value: float) -> str:
    """The shortest exact name of a number: 0.001 gives 1e-3, 0.00015 gives 1.5e-4, 0 gives 0."""
    return f"{Decimal(repr(float(value))).normalize():e}" if value else "0"


# What a setting is called in figures, if that is not the name of its field.
_NAMES = {
    "model": "network",
    "lr": "learning rate",
    "batch_size": "batch",
    "augment": "augmentation",
    "warmup": "warm-up epochs",
    "test_time_flip": "flip at test time",
    "ema": "weight average",
    "bn_images": "images for BatchNorm's statistics",
    "first_size": "first image size",
    "validation_size": "validation images",
    "dataset": "data",
}
_REGISTRIES = {"activation": ACTIVATIONS, "loss": LOSSES, "schedule": SCHEDULES}
_LABELS = {name: {value: entry.label for value, entry in of.items()} for name, of in _REGISTRIES.items()}
_LABELS["augment"] = AUGMENTS


def name_of(setting: str) -> str:
    """What figures call a setting of a run, or an option of its network: `learning rate`."""
    return _NAMES.get(setting, setting.replace("_", " "))


def counted(number: int, noun: str) -> str:
    """A number with its noun: 1 epoch, 2 epochs."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


MOST_LISTED = 10  # of seeds, or of runs, that a line names one by one


def seeds_in_words(seeds: Iterable[int]) -> str:
    """Seeds in order: each of them, or if they are more than ten the first and the last: `0 to 1999`."""
    ordered = sorted(seeds)
    if len(ordered) <= MOST_LISTED:
        return " ".join(map(str, ordered))
    consecutive = ordered[-1] - ordered[0] == len(ordered) - 1
    return f"{ordered[0]} to {ordered[-1]}" + ("" if consecutive else f" ({len(ordered):,} of them)")


def first_of(texts: Sequence[str]) -> list[str]:
    """The first ten of what would be said of each run, and how many more there are."""
    left = len(texts) - MOST_LISTED
    return [*texts[:MOST_LISTED], *([f"and {left:,} more"] if left > 0 else [])]


def words(setting: str, value: Any) -> str:
    """A setting with its value: `learning rate 1e-3`, `no augmentation`."""
    name = name_of(setting)
    if setting in _LABELS and value in _LABELS[setting]:
        return _LABELS[setting][value]
    if isinstance(value, bool) or value is None:
        return name if value else f"no {name}"
    if setting in ("lr", "weight_decay"):
        return f"{name} {number(value)}"
    return f"{name} {value:{',' if isinstance(value, int) else 'g' if isinstance(value, float) else ''}}"


def preset_defaults(preset: str) -> dict:
    """The preset's own values for the fields of `RunConfig`."""
    chosen = {k: v[0] if isinstance(v, tuple) else v for k, v in ALL_PRESETS[preset].items()}
    chosen |= {"lr": chosen["lrs"]} if "lrs" in chosen else {}
    names = {f.name for f in fields(RunConfig)}
    own = {k: v for k, v in chosen.items() if k in names}
    return own | ({"schedule_epochs": chosen["epochs"]} if _is_planned(own) else {})


def _is_planned(settings: Mapping[str, Any]) -> bool:
    """Whether the course of a run depends on its length, which is then part of its identity; what is not given has its
    default."""
    schedule, first_size, bn_images = (
        settings.get(name, getattr(RunConfig, name)) for name in ("schedule", "first_size", "bn_images")
    )
    return SCHEDULES[schedule].planned or first_size < SIZE or bn_images > 0


def run_name(config: RunConfig, preset: str, usual_precision: str | None = None) -> str:
    """The run folder's own name, for example `adam-lr1e-4-wd0-seed0-scale1`.

    usual_precision: what `--precision auto` gave on the machine; the name leaves it out. An option of the network is
    called by the last word of its name: residual_scale by `scale`.
    """
    own = dict(vars(RunConfig(config.model, **preset_defaults(preset))))
    if "auto" not in (config.device, config.precision):
        own["precision"] = usual_precision or AUTO_PRECISION.get(config.device, "fp32")
    parts = [config.optimizer, f"lr{number(config.lr)}", f"wd{number(config.weight_decay)}", f"seed{config.seed}"]
    values = vars(config) | {"augment": "noaugment" if config.augment == "none" else config.augment}
    defaults = {short: getattr(RunConfig, key) for key, short in SHORT.items()}
    named = [(short, values[key]) for key, short in SHORT.items() if getattr(config, key) not in (own[key], None)]
    named += [(name.split("_")[-1], value) for name, value in sorted(config.options.items())]
    for short, value in named:
        if isinstance(value, bool) and value == defaults.get(short):  # where the preset has the other one
            short = short[2:] if short.startswith("no") else f"no{short}"
        shown = repr(value).removesuffix(".0") if isinstance(value, float) else value
        parts.append(short if isinstance(value, bool) else f"{short}{shown}")
    return escape.shortened("-".join(parts))


def differing(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """The settings in which a run found on disk differs from the one asked for, as `name old -> new`."""
    return [f"{k} {old.get(k)} -> {new.get(k)}" for k in {**old, **new} if old.get(k) != new.get(k)]


def above(folder: Path, levels: int) -> Path:
    """The folder so many levels above another one, or the highest. Three above a run's folder is its results folder."""
    return [folder, *folder.parents][: levels + 1][-1]


def training_root(results: str | Path) -> Path:
    """The results folder into which runs like those of `results` are trained: never among the published ones."""
    return Path(results).parent if Path(results).name == PUBLISHED else Path(results)


def run_folder(results: str | Path, preset: str, config: RunConfig, usual_precision: str | None = None) -> Path:
    """`<results>/<preset>/<model>/<run name>`."""
    return Path(results) / preset / config.model / run_name(config, preset, usual_precision)


# --- The flags of a training script ----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The flags that every training script has; a script adds its own and says with `network` which one they name."""

    presets: ClassVar[dict[str, dict]] = PRESETS | MODERN_PRESETS
    networks: ClassVar[Mapping[str, Any]] = {}  # those of the script, by name; set by `parse`
    command: ClassVar[str] = ""  # the command line; set by `parse`
    choosing: ClassVar[tuple[str, ...]] = ("model", "bn")  # flags that do no more than choose the network

    preset: str = flag("report", "", metavar="NAME")
    epochs: int = epochs(200)
    batch_size: int = flag(100, "images per step", integer(2, 100_000))
    optimizer: tuple[str, ...] = flag(
        ("adam",), f"optimizers, trained in lockstep: {', '.join(OPTIMIZERS)}", choice(*OPTIMIZERS), many=True
    )
    lrs: tuple[float, ...] = learning_rates(1e-3)
    schedule: str = flag("constant", f"learning-rate schedule: {', '.join(SCHEDULES)}", choice(*SCHEDULES))
    warmup: float = flag(
        0.0, "epochs in which the learning rate rises linearly from 0; of one-cycle, in which it rises (0: 30%)",
        real(0, 1e6), metavar="EPOCHS",
    )  # fmt: skip
    test_time_flip: bool = flag(False, "a prediction is the mean of those of a picture and of its mirror image")
    ema: float = flag(
        0.0, "evaluate an exponential moving average of the weights: its decay per step, for example 0.999; 0: none",
        real(0, LARGEST_DECAY), metavar="DECAY",
    )  # fmt: skip
    bn_images: int = flag(
        0, "estimate BatchNorm's statistics again after the last epoch, on so many training images; 0: no",
        integer(0, MOST_IMAGES), metavar="IMAGES",
    )  # fmt: skip
    cutout: int = flag(0, "side of the gray square in a training image; 0: none", integer(0, SIZE), metavar="PIXELS")
    mixup: float = flag(
        0.0, "train on weighted means of two images, with weights from a Beta(A, A) distribution; 0: no",
        real(0, 100), metavar="A",
    )  # fmt: skip
    first_size: int = flag(
        SIZE, "side of the training images in the first epochs, from where it grows to 32", integer(8, SIZE),
        metavar="PIXELS",
    )  # fmt: skip
    momentum: float = flag(0.0, "momentum of sgd and nesterov", real(0, 1))
    loss: str = flag("cross_entropy", f"loss: {', '.join(LOSSES)}", choice(*LOSSES))
    activation: str = flag("relu", f"activation: {', '.join(ACTIVATIONS)}", choice(*ACTIVATIONS))
    weight_decay: float = flag(1e-4, "L2 regularization (decoupled from the gradient in AdamW)", real(0, 10))
    bias_decay: bool = flag(True, 'no weight decay on biases and norms (He et al. 2019, "Bag of Tricks")')
    seed: tuple[int, ...] = flag(
        (0,), "seeds; each is a lockstep group of its own", integer(0, LARGEST_SEED), many=True
    )
    seed_per_rate: bool = flag(
        False, "each learning rate has initial weights and batches of its own, from a seed that follows from --seed"
    )
    width: float = flag(1.0, "factor on every channel count", real(0, 8, above=True))
    width_transfer: bool = flag(
        True, "at another width than 1: same learning rate, weight decay and output layer for all widths, not per layer"
    )
    init: str = flag("he", f"initialization of the weights: {', '.join(INITS)}", choice(*INITS))
    augment: str = flag("report", f"augmentation: {', '.join(AUGMENTS)}", choice(*AUGMENTS))
    dataset: str = flag(
        RunConfig.dataset, "cifar10, cifar100, svhn, fashion-mnist, or a folder with pictures in a subfolder per class",
        path,
    )  # fmt: skip
    train_size: int = flag(50_000, "training images used, the first of the data set", integer(2, MOST_IMAGES))
    validation_size: int = flag(
        0, "of these, as many of each class, held out: epochs are evaluated on them, on the test images only the end",
        integer(0, MOST_IMAGES), metavar="IMAGES",
    )  # fmt: skip
    test_size: int = flag(10_000, "test images used, the first of the data set", integer(1, MOST_IMAGES))
    probe_every: int = flag(
        0, "steps between two probes of the landscape along the gradient; 0: none", integer(0, 10**9)
    )
    device: str = flag("auto", f"device to train on: {', '.join(DEVICES)}", device_name)
    precision: str = flag(
        "auto", "fp32, tf32, bf16, or auto: bf16 where the device has it in hardware and is faster with it, else fp32",
        choice(*PRECISIONS),
    )  # fmt: skip
    threads: int | None = flag(None, "CPU threads (default: the cores that are allowed, at most 16)", integer(1, 1024))
    cuda_graph: bool = flag(True, "launch every kernel from Python instead of replaying a CUDA graph")
    channels_last: bool = flag(True, "keep activations in NCHW order in memory")
    deterministic: bool = flag(False, "only kernels that give the same bits in every run (slower on CUDA)")
    results: str = flag(RESULTS, "folder that run folders are written to", path)
    log: str | None = flag(None, "write the logs for another viewer too: tensorboard", choice("tensorboard"))
    data_dir: str | None = flag(None, "folder of the data sets (default: $CIFAR10_DIR, else data/)", path)
    checkpoint_seconds: float = flag(60.0, "seconds between two checkpoints", real(0, 1e9), metavar="SECONDS")
    keep_every: int = flag(
        0, "steps between two checkpoints that are kept, for `landscape.py path`, the first before any step; 0: none",
        integer(0, 10**9), metavar="STEPS",
    )  # fmt: skip
    fresh: bool = flag(False, "start again; what the run folder holds is moved aside, never deleted")
    evaluate: str | None = flag(
        None,
        "evaluate this run's checkpoint on its test images (or the first --test-size), and train nothing",
        path,
        metavar="RUN_FOLDER",
    )
    data: str | None = flag(
        None, "with --evaluate: on the pictures of this folder instead, a subfolder for each class", path,
        metavar="FOLDER",
    )  # fmt: skip
    export: str | None = flag(
        None, "with --evaluate: write the network to this file instead: .safetensors, .onnx or .pt2",
        output(*EXPORTS), metavar="FILE",
    )  # fmt: skip
    predict: tuple[str, ...] | None = flag(
        None, "with --evaluate: classify these pictures, and all in these folders, instead", path, many=True,
        metavar="PICTURE",
    )  # fmt: skip
    save: str | None = flag(
        None, "with --predict: write the predictions to this CSV file too", output(".csv"), metavar="FILE"
    )
    options: Mapping[str, Any] = field(default_factory=dict)  # of the networks, those that were given
    given: frozenset[str] = frozenset()  # the fields whose flags were given
    classes: int = RunConfig.classes  # of the data set
    data_digest: str = RunConfig.data_digest

    @property
    def network(self) -> str:
        """The name of the network to train: the script's only one, unless it has flags to choose."""
        if len(self.networks) != 1:
            fail(f"the script registers {len(self.networks)} networks; its settings need a `network` that chooses one")
        return next(iter(self.networks))

    def complaint(self) -> str:
        """Why these settings do not go together; empty if they do."""
        for name, needed in (
            ("data", "evaluate"),
            ("export", "evaluate"),
            ("predict", "evaluate"),
            ("save", "predict"),
        ):
            if getattr(self, name) and not getattr(self, needed):
                return f"--{name}: goes with --{needed} only"
        if self.data and (self.export or self.predict):
            return "--data: goes neither with --export nor with --predict"
        network = self.networks[self.network]
        for name in self.options:
            if name not in network.options:
                have = ", ".join(n for n, other in self.networks.items() if name in other.options)
                return f"--{name.replace('_', '-')}: {self.network} has no such option (only {have})"
        if self.momentum and "momentum" in self.given and not any(OPTIMIZERS[name].momentum for name in self.optimizer):
            able = ", ".join(name for name, o in OPTIMIZERS.items() if o.momentum)
            return f"--momentum: only --optimizer {able} has momentum (asked for: {' '.join(self.optimizer)})"
        if lacking := [name for name in self.optimizer if OPTIMIZERS[name].needs_momentum and not self.momentum]:
            return f"--optimizer {lacking[0]}: needs a --momentum above 0"
        if self.train_size - self.validation_size < 2:
            return f"--validation-size {self.validation_size}: --train-size {self.train_size} leaves none to train on"
        if self.bn_images == 1:
            return "--bn-images 1: one image may have no variance"
        if self.bn_images > self.train_size - self.validation_size:
            return (
                f"--bn-images {self.bn_images}: there are {self.train_size - self.validation_size} images to train on"
            )
        if self.warmup > self.epochs:
            return f"--warmup {self.warmup:g}: it is longer than the run (--epochs {self.epochs})"
        return ""

    def of_data(self, name: str, classes: int, sizes: tuple[int, int]) -> Self:
        """The settings with a data set of so many training and test images: all of them, or as many as the preset
        has, if flags do not say how many. Raises ValueError if they ask for more."""
        fitted = {"dataset": name, "classes": classes}
        for key, there in zip(("train_size", "test_size"), sizes, strict=True):
            asked = getattr(self, key) if key in self.given else self.presets[self.preset].get(key, there)
            if asked > there and key in self.given:
                raise ValueError(f"--{key.replace('_', '-')} {asked}: the data set has {there} images")
            fitted[key] = min(asked, there)
        return replace(self, **fitted)

    def _own_flags(self) -> dict[str, Any]:
        """The flags of a script's own that differ from their default: they decide a run's numbers too."""
        shared = {f.name for f in fields(Settings)} | set(self.choosing)
        own = [f for f in fields(self) if f.name not in shared]
        return {f.name: getattr(self, f.name) for f in own if getattr(self, f.name) != f.default}

    def runs(self, seed: int) -> list[RunConfig]:
        """One lockstep group: a run per optimizer and learning rate. Device and precision are still as asked for."""
        network = self.networks[self.network]
        shared = {f.name: getattr(self, f.name) for f in fields(RunConfig) if hasattr(self, f.name)}
        width = self.width if network.takes("width") else None
        shared |= {
            "model": self.network,
            "seed": seed,
            "schedule_epochs": self.epochs if _is_planned(shared) else 0,
            "width": width,
            "width_transfer": self.width_transfer or width in (None, 1),
            "options": self._own_flags() | {k: v for k, v in self.options.items() if v != network.options[k].default},
        }
        return [
            RunConfig(**shared | {
                "optimizer": name, "lr": lr, "momentum": self.momentum if OPTIMIZERS[name].momentum else 0.0,
            })
            for name in self.optimizer
            for lr in self.lrs
        ]  # fmt: skip


class Parser(argparse.ArgumentParser):
    """A parser that shows its description as it is written, and refuses a command line in one line."""

    def __init__(self, prog: str, description: str) -> None:
        raw = argparse.RawDescriptionHelpFormatter
        super().__init__(prog=prog, description=description, allow_abbrev=False, formatter_class=raw)

    def error(self, message: str) -> NoReturn:
        """One line, without the usage that argparse puts before it."""
        fail(f"{self.prog}: {message.removeprefix('argument ')}")


def parse(
    cls: type[Settings], argv: list[str], *, prog: str, description: str, networks: Mapping[str, Any]
) -> Settings:
    """The settings that a command line asks for.

    networks: those that the script may train (`networks.Network` by name), whose options become flags. Exits with
    status 2 on a value that is not allowed, and with status 0 after `--help`.
    """
    declared = inspect.get_annotations(cls) if cls is not Settings else {}
    cls = type(cls.__name__, (cls,), {"networks": networks, "command": escape.shell(["python", prog, *argv])})
    parser = Parser(prog, description)
    options = {name: f for network in networks.values() for name, f in network.options.items()}
    own = parser.add_argument_group("flags of this script")
    shared = parser.add_argument_group("flags of every training script")
    augmentation = shared.add_mutually_exclusive_group()
    for name, f in [*((f.name, f) for f in fields(cls)), *options.items()]:
        needed = {"width_transfer": "width"}.get(name, name)
        if f.metadata and (needed not in CHOICES or any(n.takes(needed) for n in networks.values())):
            group = augmentation if name == "augment" else own if name in declared or name in options else shared
            _add_flag(group, name, f, cls.presets)
    augmentation.add_argument("--no-augment", dest="augment", action="store_const", const="none", help="--augment none")
    given = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in vars(parser.parse_args(argv)).items()
        if value is not None
    }
    for name, value in given.items():
        if isinstance(value, tuple) and len(set(value)) < len(value):
            parser.error(f"--{name.replace('_', '-')}: a value is given twice")
    given["options"] = {name: given.pop(name) for name in options if name in given}
    for name, value in given["options"].items():
        if not re.fullmatch(OPTION, str(value)):
            parser.error(f"--{name.replace('_', '-')}: {value!r} cannot be part of a folder's name")
    has = {f.name for f in fields(cls)}
    preset = {k: v for k, v in cls.presets[given.get("preset", "report")].items() if k in has}
    settings = cls(**preset | given, given=frozenset(given))
    for name in CHOICES:
        if name in given and not networks[settings.network].takes(name):
            parser.error(f"--{name}: {settings.network} has one {name} only")
    if complaint := settings.complaint():
        parser.error(complaint)
    return settings


def _said(setting: tuple[str, Any]) -> str:
    """A preset's value of a setting in words."""
    name, value = setting
    words = name.replace("_", " ")
    if isinstance(value, bool):
        return words if value else f"no {words}"
    return " ".join([words, *map(str, value if isinstance(value, tuple) else (value,))])


def _add_flag(parser: argparse._ActionsContainer, field_name: str, f: Field, presets: Mapping[str, dict]) -> None:
    """Adds one field's flag; one that is not given stays None, so that a preset can fill it."""
    name, meta, default = field_name.replace("_", "-"), f.metadata, f.default
    documentation, kind = meta["documentation"], meta["kind"]
    if isinstance(default, bool):
        for value, switch in ((True, f"--{name}"), (False, f"--no-{name}")):  # the one that a preset's can be undone by
            said = documentation if value != default else argparse.SUPPRESS
            parser.add_argument(switch, dest=field_name, help=said, action="store_const", const=value, default=None)
        return
    if field_name == "preset":
        listed = [f"{name} ({', '.join(map(_said, own.items())) or 'full size'})" for name, own in presets.items()]
        documentation, kind = f"settings that other flags replace: {', '.join(listed)}", choice(*presets)
    if default is not None:
        values = default if meta["many"] else (default,)
        documentation += f" ({' '.join(f'{v:g}' if isinstance(v, float) else str(v) for v in values)})"
    parser.add_argument(
        f"--{name}", *([meta["also"]] if meta["also"] else []), dest=field_name, type=kind, default=None,
        nargs="+" if meta["many"] else None, metavar=meta["metavar"] or name.split("-")[-1].upper(),
        help=documentation.replace("%", "%%"),
    )  # fmt: skip

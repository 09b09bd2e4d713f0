"""Command lines as typed settings: a field of a frozen dataclass is a flag, its documentation the flag's `--help`.

A script subclasses `Settings`, adds its own fields and calls `parse`. A preset replaces defaults; a flag that is given
replaces both. A value that is not allowed ends the program with one line on standard error and status 2.
"""

import argparse
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, NoReturn

INITS = ("he", "pytorch", "xavier")
PRECISIONS = ("auto", "fp32", "tf32", "bf16")
OPTIMIZERS = ("adam", "adamw", "rmsprop", "sgd")
LARGEST_SEED = 2**32 - 1


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
    """A parser of finite numbers from `low` (excluded where `above`) to `high`."""

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


def path(text: str) -> str:
    """A parser of a path: not empty, no NUL, and in UTF-8 (other bytes arrive as surrogates and cannot be printed)."""
    if not text or "\0" in text or any("\ud800" <= c <= "\udfff" for c in text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a path")
    return text


def flag(
    default: Any, documentation: str, kind: Callable | None = None, *, many: bool = False, metavar: str = ""
) -> Any:
    """A field that is also a command-line flag; a boolean field without `kind` is a switch (`--x`, or `--no-x`)."""
    return field(
        default=default,
        metadata={"documentation": documentation, "kind": kind, "many": many, "metavar": metavar},
    )


EPOCHS = "passes over the training images", integer(1, 1_000_000)  # documentation and kind; each script's own default


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The flags that every training script has; a script adds its own, `complaint` and `runs`."""

    preset: str = flag("report", "", metavar="NAME")
    epochs: int = flag(200, *EPOCHS)
    batch_size: int = flag(100, "images a training step", integer(2, 100_000))
    weight_decay: float = flag(1e-4, "L2 regularization (decoupled from the gradient in AdamW)", real(0, 10))
    seed: tuple[int, ...] = flag(
        (0,), "seeds; each is a lockstep group of its own", integer(0, LARGEST_SEED), many=True
    )
    width: float = flag(1.0, "factor on every channel count", real(0, 8, above=True))
    init: str = flag("he", f"initialization of the weights: {', '.join(INITS)}", choice(*INITS))
    augment: bool = flag(True, "train on the images as they are")
    train_size: int = flag(50_000, "training images used, the first of the data set", integer(2, 50_000))
    test_size: int = flag(10_000, "test images used, the first of the data set", integer(1, 10_000))
    device: str = flag("auto", "auto, cpu, cuda or mps", choice("auto", "cpu", "cuda", "mps"))
    precision: str = flag("auto", "auto is bf16 on CUDA and fp32 elsewhere; or fp32, tf32, bf16", choice(*PRECISIONS))
    cuda_graph: bool = flag(True, "launch every kernel from Python instead of replaying a CUDA graph")
    channels_last: bool = flag(True, "keep activations in NCHW order in memory")
    deterministic: bool = flag(False, "only kernels that give the same bits in every run (slower on CUDA)")
    results: str = flag("results", "folder that run folders are written to", path)
    data_dir: str | None = flag(None, "folder of CIFAR-10 (default: $CIFAR10_DIR, else data/)", path)
    checkpoint_seconds: float = flag(60.0, "time between two checkpoints", real(0, 1e9), metavar="SECONDS")
    fresh: bool = flag(False, "start again; what the run folder holds is moved aside, never deleted")
    evaluate: str | None = flag(None, "evaluate this run's checkpoint, and train nothing", path, metavar="RUN_FOLDER")


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, without the usage that argparse puts before it."""
        fail(f"{self.prog}: {message.removeprefix('argument ')}")


def fail(message: str, status: int = 2) -> NoReturn:
    """Ends the program with one line on standard error."""
    print(" ".join(str(message).split()), file=sys.stderr)
    sys.exit(status)


def parse(cls: type[Settings], argv: list[str], *, prog: str, description: str, presets: dict[str, dict]) -> Settings:
    """The settings that a command line asks for.

    `presets` maps each preset's name to the defaults that it replaces. Exits with status 2 on a value that is not
    allowed, and with status 0 after `--help`.
    """
    parser = Parser(
        prog=prog, description=description, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for f in fields(cls):
        _add_flag(parser, f.name, f.default, f.metadata, presets)
    given = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in vars(parser.parse_args(argv)).items()
        if value is not None
    }
    for name, value in given.items():
        if isinstance(value, tuple) and len(set(value)) < len(value):
            parser.error(f"--{name.replace('_', '-')}: a value is given twice")
    settings = cls(**presets[given.get("preset", "report")] | given)
    if complaint := settings.complaint():
        parser.error(complaint)
    return settings


def _add_flag(parser: argparse.ArgumentParser, field_name: str, default: Any, meta: Any, presets: dict) -> None:
    """Adds one field's flag; one that is not given stays None, so that a preset can fill it."""
    name, documentation, kind = field_name.replace("_", "-"), meta["documentation"], meta["kind"]
    if isinstance(default, bool):
        switch, action = (f"--no-{name}", "store_false") if default else (f"--{name}", "store_true")
        parser.add_argument(switch, dest=field_name, help=documentation, action=action, default=None)
        return
    if field_name == "preset":
        documentation, kind = f"settings for one purpose: {', '.join(presets)}", choice(*presets)
    if default is not None:
        values = default if meta["many"] else (default,)
        documentation += f" ({' '.join(f'{v:g}' if isinstance(v, float) else str(v) for v in values)})"
    parser.add_argument(
        f"--{name}",
        dest=field_name,
        type=kind,
        default=None,
        nargs="+" if meta["many"] else None,
        metavar=meta["metavar"] or name.split("-")[-1].upper(),
        help=documentation.replace("%", "%%"),
    )


def complaint_about_optimizers(optimizers: tuple[str, ...], momentum: float) -> str:
    """Why these optimizers do not go with this momentum; empty where they do."""
    if momentum and "sgd" not in optimizers:
        return f"--momentum: only --optimizer sgd has momentum (asked for: {' '.join(optimizers)})"
    return ""

"""config.json and summary.json of a run folder, read strictly.

A file that is not exactly what a run writes raises `RunFileError`, which names the file and the line.
"""

import argparse
import codecs
import json
import math
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, NoReturn

from cifar_lab import escape
from cifar_lab.activations import ACTIVATIONS
from cifar_lab.losses import LOSSES
from cifar_lab.run_folder.files import read_regular
from cifar_lab.schedules import SCHEDULES
from cifar_lab.settings import ALL_PRESETS, AUGMENTS, MOST_CLASSES, OPTION, RunConfig, Settings

NEWEST, PREVIOUS = "checkpoint.pt", "checkpoint.previous.pt"
SCHEMA = 2  # since 2, config.json names the network's script, label and fingerprint
LARGEST_TEXT = 1 << 24  # bytes of a JSON file
LARGEST_INTEGER = 2**53  # beyond it a float, and with it most readers of JSON, skips integers


class RunFileError(Exception):
    """A file of a run folder that cannot be used: `<path>:<line>: <reason>`, or `<path>: <reason>`."""

    def __init__(self, path: str | Path, reason: str, line: int | None = None) -> None:
        super().__init__(escape.terminal(f"{path}{'' if line is None else f':{line}'}: {reason}"))


# --- JSON ------------------------------------------------------------------------------------------------------------

# A kind returns a value as it is used, or raises ValueError with what the value is not.
Kind = Callable[[Any], Any]


def _kind(of: Callable[[Any], bool], what: str) -> Kind:
    def kind(value: Any) -> Any:
        if not of(value):
            raise ValueError(what)
        return value

    return kind


def _integer(low: int) -> Kind:
    def fits(value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and low <= value <= LARGEST_INTEGER

    return _kind(fits, f"an integer from {low} to {LARGEST_INTEGER}")


def _real(low: float = -math.inf, high: float = math.inf) -> Kind:
    what = "a finite number" if (low, high) == (-math.inf, math.inf) else f"a number from {low:g} to {high:g}"

    def kind(value: Any) -> float:
        try:
            number = math.nan if isinstance(value, bool) or not isinstance(value, int | float) else float(value)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number) or not low <= number <= high:
            raise ValueError(what)
        return number

    return kind


def _within(parse: Callable[[str], Any], kind: Kind) -> Kind:
    """Of that kind, and what the parser of a flag takes."""

    def check(value: Any) -> Any:
        value = kind(value)
        try:
            parse(repr(value))
        except argparse.ArgumentTypeError as error:
            raise ValueError(str(error).partition(" is not ")[2]) from None
        return value

    return check


def _or_none(kind: Kind) -> Kind:
    return lambda value: None if value is None else kind(value)


def _form(pattern: str, what: str) -> Kind:
    return _kind(lambda value: isinstance(value, str) and re.fullmatch(pattern, value) is not None, what)


LONGEST_LINE = 300  # characters


def a_line(text: str) -> str:
    """A text from elsewhere (a device, a tag of git, the environment) as a config.json may hold it."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:LONGEST_LINE]


def _line(longest: int) -> Kind:
    def kind(value: Any) -> str:
        if not isinstance(value, str) or not value.isprintable():
            raise ValueError("a line of text")
        if len(value) > longest:
            raise ValueError(f"a line of at most {longest:,} characters")
        return value

    return kind


def _one_of(names: Collection[str]) -> Kind:
    return _kind(lambda value: _TEXT(value) in names, f"one of {', '.join(names)}")


_TEXT, _LABEL = _line(LONGEST_LINE), _line(100)
_NAMES = _line(1_000_000)
_WORD = _form(rf"(?!\.){OPTION}", "a word of letters, digits and _.+-")  # part of a folder's name
_BOOLEAN = _kind(lambda value: isinstance(value, bool), "true or false")
_MAPPING = _kind(lambda value: isinstance(value, dict), "a JSON object")
_LIST = _kind(lambda value: isinstance(value, list), "a JSON list")


def _option(value: Any) -> Any:
    kinds = {bool: _BOOLEAN, int: _integer(-LARGEST_INTEGER), float: _real()}
    return kinds.get(type(value), _form(OPTION, "a plain value"))(value)


def _options(value: Any) -> dict[str, Any]:
    if not all(re.fullmatch(r"[a-z0-9_]{1,64}", name) for name in _MAPPING(value)):
        raise ValueError("a JSON object of options")
    return {name: _option(x) for name, x in value.items()}


_SETTINGS = {f.name: {str: _WORD, bool: _BOOLEAN, int: _integer(0), float: _real()}.get(f.type, _options)
             for f in fields(RunConfig)}  # fmt: skip
_SETTINGS["width"] = _or_none(_real(0, 8))
_SETTINGS |= {"activation": _one_of(ACTIVATIONS), "loss": _one_of(LOSSES), "schedule": _one_of(SCHEDULES)}
_SETTINGS |= {"augment": _one_of(AUGMENTS), "warmup": _real(0, 1e6)}
_SETTINGS |= dict.fromkeys(("batch_size", "train_size", "test_size"), _integer(1))
_SETTINGS["classes"] = _kind(lambda value: _integer(2)(value) <= MOST_CLASSES, f"an integer from 2 to {MOST_CLASSES}")
_SETTINGS["dataset"] = _form(OPTION, "the name of a data set")
_SETTINGS["data_digest"] = _form("([0-9a-f]{16})?", "16 hexadecimal digits, or empty")
_FACTORS = {"rate": _real(0), "decay": _real(0), "parameters": _NAMES}  # of the width transfer; names, space-separated
_NETWORK = {
    "options": _or_none(lambda value: {name: _or_none(_option)(x) for name, x in _MAPPING(value).items()}),
    "script": _TEXT, "label": _LABEL, "colour": _or_none(_form("#[0-9a-fA-F]{6}", "a colour as #rrggbb")),
    "fingerprint": _or_none(_form("[0-9a-f]{16}", "16 hexadecimal digits")),
}  # fmt: skip
_ENVIRONMENT = {
    **dict.fromkeys(("commit", "device", "precision", "usual_precision", "torch", "python", "platform"),
                    _or_none(_TEXT)),
    "threads": _or_none(_integer(1)),
}  # fmt: skip
# A number that is a flag has the flag's bounds.
_FLAGS = {{"lrs": "lr"}.get(f.name, f.name): f.metadata["kind"] for f in fields(Settings) if f.metadata}
for _name in {f.name for f in fields(RunConfig) if f.type in (int, float)} & _FLAGS.keys():
    _SETTINGS[_name] = _within(_FLAGS[_name], _SETTINGS[_name])
_SUMMARY = {
    "epochs": _integer(0), "steps": _integer(0), "parameters": _integer(1), "train_seconds": _real(0, math.inf),
    "diverged_at_step": _or_none(_integer(1)), "probes_stopped_at_step": _or_none(_integer(1)),
    "test_loss": _or_none(_real(0, math.inf)),
    **dict.fromkeys(("final_accuracy", "last_accuracy", "best_accuracy_selected_on_test",
                     "best_accuracy_selected_on_validation", "test_accuracy"), _or_none(_real(0, 100))),
    **dict.fromkeys(("test_seconds", "images_per_second", "flops_per_training_image", "tflops", "matmul_tflops",
                     "share_of_matmul_rate"), _or_none(_real(0, math.inf))),
}  # fmt: skip


# Not in the summary of every run.
_SOMETIMES = {
    "probes_stopped_at_step", "test_loss", "test_accuracy", "best_accuracy_selected_on_test",
    "best_accuracy_selected_on_validation",
}  # fmt: skip


def _checked(path: Path, content: Mapping[str, Any], kinds: Mapping[str, Kind]) -> dict[str, Any]:
    """The content with each of `kinds` checked; a key that is missing counts as null."""
    checked = dict(content)
    for key, kind in kinds.items():
        try:
            checked[key] = kind(content.get(key))
        except ValueError as error:
            raise RunFileError(path, f"{key} is not {error}") from None
    return checked


def completed(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a run as this version has them.

    A run from before there was width transfer was trained without; at width 1 that is the same. One from before there
    was another setting was trained with that one's default.
    """
    later = (
        "activation", "loss", "schedule", "warmup", "schedule_epochs", "test_time_flip", "ema", "bn_images", "cutout",
        "mixup", "first_size", "bias_decay", "seed_per_rate", "validation_size", "dataset", "classes", "data_digest",
    )  # fmt: skip
    found = {name: getattr(RunConfig, name) for name in later} | dict(settings)
    if isinstance(found.get("augment"), bool):  # while there was one augmentation
        found["augment"] = "report" if found["augment"] else "none"
    return {"width_transfer": found.get("width", RunConfig.width) in (None, 1), **found}


def read_config(folder: str | Path) -> dict[str, Any]:
    """The checked content of config.json; `settings` holds every field of `RunConfig`. Raises RunFileError."""
    path = Path(folder) / "config.json"
    return check_config(path, _read_json(path))


def check_config(path: Path, config: dict[str, Any]) -> dict[str, Any]:
    """The content of a config.json, or of one that is to be written, as `read_config` gives it. Raises RunFileError."""
    if config.get("schema") != SCHEMA or isinstance(config["schema"], bool):
        raise RunFileError(path, f"schema is not {SCHEMA}, the one this version reads")
    config = {"earlier_environments": [], "width_factors": []} | config
    config = _checked(path, config, {
        "preset": _one_of(ALL_PRESETS), "epochs": _integer(1), "settings": _MAPPING, "network": _MAPPING,
        "environment": _MAPPING,
        **dict.fromkeys(
            ("earlier_environments", "width_factors"), lambda value: [_MAPPING(entry) for entry in _LIST(value)]
        ),
    })  # fmt: skip
    given = completed(config["settings"])
    if unknown := sorted(given.keys() - _SETTINGS.keys()):
        raise RunFileError(path, f"unknown setting {unknown[0]!r:.80}")
    if "model" not in given:
        raise RunFileError(path, "setting 'model' is missing")
    settings = _checked(path, given, {name: _SETTINGS[name] for name in given})
    settings = asdict(RunConfig(**settings))
    if settings["validation_size"] >= settings["train_size"]:
        raise RunFileError(path, "validation_size is not below train_size")
    return config | {
        "settings": settings,
        "network": _checked(path, config["network"], _NETWORK),
        "environment": _checked(path, config["environment"], _ENVIRONMENT),
        "earlier_environments": [_checked(path, entry, _ENVIRONMENT) for entry in config["earlier_environments"]],
        "width_factors": [_checked(path, entry, _FACTORS) for entry in config["width_factors"]],
    }


def read_summary(path: Path) -> dict[str, Any] | None:
    """The checked content of summary.json, None if there is none. Raises RunFileError."""
    if not path.exists():
        return None
    content = _read_json(path)
    if unknown := sorted(content.keys() - _SUMMARY.keys()):
        raise RunFileError(path, f"unknown key {unknown[0]!r:.80}")
    checked = _checked(path, content, _SUMMARY)
    return {key: value for key, value in checked.items() if key in content or key not in _SOMETIMES}


def trained_to(summary: Mapping[str, Any] | None, epochs: int) -> bool:
    """Whether a run of which this is the summary has nothing left to train for so many epochs."""
    return summary is not None and (summary["diverged_at_step"] is not None or summary["epochs"] >= epochs)


def _read_json(path: Path) -> dict[str, Any]:
    """A JSON object; stricter than Python's reader, which takes NaN and lets a repeated key win silently."""

    def refuse_constant(text: str) -> NoReturn:
        raise ValueError(f"{text} is not a JSON number")

    def without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        content = dict(pairs)
        if len(content) < len(pairs):
            raise ValueError("a key is given twice")
        return content

    try:
        text = read_bytes(path).decode("utf-8")
        content = json.loads(text, parse_constant=refuse_constant, object_pairs_hook=without_repetition)
    except json.JSONDecodeError as error:
        raise RunFileError(path, f"not JSON: {error.msg}", error.lineno) from None
    except UnicodeDecodeError:
        raise RunFileError(path, "not UTF-8 text") from None
    except ValueError as error:
        raise RunFileError(path, f"not JSON: {error}") from None
    except RecursionError:
        raise RunFileError(path, "nested too deeply") from None
    if not isinstance(content, dict):
        raise RunFileError(path, "not a JSON object")
    return content


def read_bytes(path: Path, largest: int = LARGEST_TEXT) -> bytes:
    """The content of a regular file of at most so many bytes, without the byte order mark that spreadsheets put before
    it. Raises RunFileError."""
    try:
        return read_regular(path, largest).removeprefix(codecs.BOM_UTF8)
    except OSError as error:
        raise RunFileError(path, error.strerror or "cannot be read") from None

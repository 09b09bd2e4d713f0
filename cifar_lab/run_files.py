"""The files of a run folder, read strictly: config.json, summary.json, and the CSV logs.

A file that is not exactly what a run writes raises `RunFileError`, which names the file and the line. The one
exception is half a last row of a CSV, without its newline: a run is writing it, and it is ignored. Files are described
in README.md, "Where everything lies".
"""

import io
import json
import math
import re
import shlex
from collections.abc import Collection, Sequence
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from cifar_lab.config import PAPER_PRESETS, PRESETS, RunConfig

SCHEMA = 1
EPOCH_COLUMNS = (
    "epoch", "learning_rate", "train_loss", "train_accuracy", "test_loss", "test_accuracy", "train_seconds",
    "images_per_second",
)  # fmt: skip
STEP_COLUMNS = ("step", "loss")
PROBE_COLUMNS = ("step", "eta", "loss", "grad_norm", "grad_change", "grad_cosine", "beta")
# At a large step size the loss along the gradient may overflow while training itself stays finite.
PROBE_COLUMNS_NOT_FINITE = ("loss", "grad_change", "grad_cosine", "beta")

_NUMBER = re.compile(rb"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_NOT_FINITE = re.compile(rb"[+-]?(inf|nan)")
_LARGEST_INTEGER = 2**53  # beyond it a float, and with it most readers of JSON, skips integers


class RunFileError(Exception):
    """A file of a run folder that cannot be used: `<path>:<line>: <reason>`, or `<path>: <reason>`."""

    def __init__(self, path: str | Path, reason: str, line: int | None = None) -> None:
        super().__init__(f"{path}{'' if line is None else f':{line}'}: {reason}")


def read_config(folder: str | Path) -> dict[str, Any]:
    """The checked content of config.json; `settings` holds every field of `RunConfig`. Raises RunFileError."""
    path = Path(folder) / "config.json"
    config = _read_json(path)
    if config.get("schema") != SCHEMA or isinstance(config["schema"], bool):
        raise RunFileError(path, f"schema is not {SCHEMA}, the one this version reads")
    preset = _text(path, config, "preset")
    if preset not in PRESETS | PAPER_PRESETS:
        raise RunFileError(path, f"preset is not one of {', '.join(PRESETS | PAPER_PRESETS)}")
    environment = _mapping(path, config, "environment")
    for key in ("commit", "device", "precision", "torch", "python", "platform"):
        environment[key] = _text(path, environment, key) if environment.get(key) is not None else None
    return config | {
        "epochs": _integer(path, config, "epochs", low=1),
        "settings": _settings(path, _mapping(path, config, "settings")),
        "environment": environment,
    }


def training_command(folder: str | Path, config: dict[str, Any]) -> str:
    """The command that trains a run anew into the folder where it lies, from its config.json."""
    try:
        words = shlex.split(str(config.get("command", "")))
    except ValueError:  # a quote that does not end
        words = []
    if not words:
        return "training the run again with --fresh"
    kept, skip = [], False
    for word in words:
        name, equals, _ = word.partition("=")
        if not skip and name not in ("--results", "--data-dir", "--fresh"):
            kept.append(word)
        skip = not skip and name in ("--results", "--data-dir") and not equals  # its value follows
    results = Path(folder).absolute().parents[2]
    where = [] if results == Path("results").absolute() else ["--results", str(results)]
    return shlex.join([*kept, *where, "--fresh"])


def _settings(path: Path, given: dict[str, Any]) -> dict[str, Any]:
    """Every field of RunConfig; one that the file lacks has its default."""
    known = {f.name: f for f in fields(RunConfig)}
    if unknown := sorted(given.keys() - known.keys()):
        raise RunFileError(path, f"unknown setting {unknown[0]!r:.80}")
    if missing := [name for name, f in known.items() if f.default is MISSING and name not in given]:
        raise RunFileError(path, f"setting {missing[0]!r} is missing")
    checks = {str: _text, bool: _boolean, int: _integer, float: _real}
    values = {name: checks[known[name].type](path, given, name) for name in given}
    for name in ("batch_size", "train_size", "test_size"):
        _integer(path, values, name, low=1) if name in values else None
    return asdict(RunConfig(**values))


def read_summary(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    summary = _read_json(path)
    for key in ("epochs", "steps"):
        _integer(path, summary, key)
    _integer(path, summary, "parameters", low=1)
    if summary.setdefault("diverged_at_step", None) is not None:
        _integer(path, summary, "diverged_at_step", low=1)
    summary["train_seconds"] = _real(path, summary, "train_seconds", low=0)
    for key, high in (
        ("test_seconds", math.inf),
        ("final_accuracy", 100), ("last_accuracy", 100), ("best_accuracy_selected_on_test", 100),
        ("flops_per_training_image", math.inf), ("tflops", math.inf), ("matmul_tflops", math.inf),
        ("share_of_matmul_rate", math.inf), ("images_per_second", math.inf),
    ):  # fmt: skip
        if summary.setdefault(key, None) is not None:
            summary[key] = _real(path, summary, key, low=0, high=high)
    return summary


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
        text = _read_bytes(path).decode("utf-8")
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


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise RunFileError(path, error.strerror or "cannot be read") from None


def _mapping(path: Path, content: dict[str, Any], key: str) -> dict[str, Any]:
    if not isinstance(content.get(key), dict):
        raise RunFileError(path, f"{key} is not a JSON object")
    return dict(content[key])


def _text(path: Path, content: dict[str, Any], key: str) -> str:
    value = content.get(key)
    if not isinstance(value, str) or not value.isprintable():
        raise RunFileError(path, f"{key} is not a line of text")
    return value


def _boolean(path: Path, content: dict[str, Any], key: str) -> bool:
    if not isinstance(content.get(key), bool):
        raise RunFileError(path, f"{key} is not true or false")
    return content[key]


def _integer(path: Path, content: dict[str, Any], key: str, low: int = 0) -> int:
    value = content.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= _LARGEST_INTEGER:
        raise RunFileError(path, f"{key} is not an integer from {low} to {_LARGEST_INTEGER}")
    return value


def _real(path: Path, content: dict[str, Any], key: str, low: float = -math.inf, high: float = math.inf) -> float:
    value = content.get(key)
    try:
        number = math.nan if isinstance(value, bool) or not isinstance(value, int | float) else float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number) or not low <= number <= high:
        bounds = "a finite number" if (low, high) == (-math.inf, math.inf) else f"a number from {low:g} to {high:g}"
        raise RunFileError(path, f"{key} is not {bounds}")
    return number


def read_table(
    path: Path, columns: Sequence[str], complete: bool, not_finite: Collection[str] = ()
) -> dict[str, np.ndarray]:
    """The whole rows of a CSV of numbers, by column. Only the columns in `not_finite` may hold inf and nan."""
    if not path.exists() and not complete:
        return {name: np.empty(0) for name in columns}
    data = _read_bytes(path).replace(b"\r\n", b"\n")
    header, newline, body = data.partition(b"\n")
    expected = ",".join(columns).encode()
    if header != expected and (complete or newline or not expected.startswith(header)):
        raise RunFileError(path, f"the header is not {expected.decode()}", 1)
    body = body[: body.rfind(b"\n") + 1]
    if not body:
        return {name: np.empty(0) for name in columns}
    consecutive = None if columns is PROBE_COLUMNS else columns[0]
    table = _parse(body, len(columns))
    if table is None or not _row_checks(table, columns, not_finite, consecutive).all():
        _find_bad_row(path, body, columns, not_finite, consecutive)
    return dict(zip(columns, np.ascontiguousarray(table.T), strict=True))


def _parse(body: bytes, columns: int) -> np.ndarray | None:
    """The rows of `body`, (rows, columns) float64, or None where it is anything but rows of numbers."""
    # What numpy would forgive is refused first: blank lines, spaces, comments, quotes, hexadecimal, underscores.
    if body.translate(None, b"0123456789.eE+-,infa\n") or body.startswith(b"\n") or b"\n\n" in body:
        return None
    try:
        table = np.loadtxt(io.BytesIO(body), delimiter=",", comments=None, ndmin=2)
    except ValueError:
        return None
    return table if table.shape == (body.count(b"\n"), columns) else None


def _row_checks(
    table: np.ndarray, columns: Sequence[str], not_finite: Collection[str], consecutive: str | None
) -> np.ndarray:
    """Which rows of (rows, columns) are sound, (rows,) bool: finite, and numbered from 1 where `consecutive` says."""
    sound = np.isfinite(table[:, [name not in not_finite for name in columns]]).all(axis=1)
    if consecutive:
        sound &= table[:, 0] == np.arange(1, len(table) + 1)
    return sound


def _find_bad_row(
    path: Path, body: bytes, columns: Sequence[str], not_finite: Collection[str], consecutive: str | None
) -> NoReturn:
    """Raises the RunFileError of the first row that is not sound. Slow: only for files known to have one."""
    for number, row in enumerate(body[:-1].split(b"\n"), start=1):
        cells = row.split(b",")
        if len(cells) != len(columns):
            raise RunFileError(path, f"{len(cells)} columns instead of {len(columns)}", number + 1)
        for name, cell in zip(columns, cells, strict=True):
            finite = _NUMBER.fullmatch(cell) and math.isfinite(float(cell))
            if not finite and not (name in not_finite and (_NUMBER.fullmatch(cell) or _NOT_FINITE.fullmatch(cell))):
                shown = ascii(cell[:40].decode("latin-1"))
                raise RunFileError(path, f"{name} is not a finite number: {shown}", number + 1)
        if consecutive and float(cells[0]) != number:
            raise RunFileError(path, f"{consecutive} is {float(cells[0]):g} where {number} follows", number + 1)
    raise RunFileError(path, "not a table of numbers")


def check_epochs(path: Path, epochs: dict[str, np.ndarray]) -> None:
    for name in ("train_accuracy", "test_accuracy"):
        bad = (epochs[name] < 0) | (epochs[name] > 100)
        if bad.any():
            row = int(bad.argmax())
            raise RunFileError(path, f"{name} is {epochs[name][row]:g}, not a percentage", row + 2)


def check_probes(path: Path, probes: dict[str, np.ndarray], complete: bool) -> dict[str, np.ndarray]:
    """Each probed step has one row per step size, in the order of training; the last step's may still be missing."""
    steps, etas = probes["step"], probes["eta"]
    if not len(steps):
        return probes
    bad = (steps < 1) | (steps != np.floor(steps)) | (np.diff(steps, prepend=steps[0]) < 0) | (etas <= 0)
    if bad.any():
        raise RunFileError(path, "step does not grow, or eta is not above 0", int(bad.argmax()) + 2)
    _, starts, sizes = np.unique(steps, return_index=True, return_counts=True)
    odd = sizes != sizes[0]
    if not complete and odd[-1] and sizes[-1] < sizes[0]:
        probes, odd = {name: column[: starts[-1]] for name, column in probes.items()}, odd[:-1]
    if odd.any():
        raise RunFileError(path, f"a step without its {sizes[0]} rows", int(starts[odd.argmax()]) + 2)
    return probes

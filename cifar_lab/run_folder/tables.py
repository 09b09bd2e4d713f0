"""The CSV logs and the predictions of a run folder, read strictly.

A row that is not exactly what a run writes raises `RunFileError`, which names the file and the line. The one exception
is half a last row, without its newline: a run is writing it, and it is ignored.
"""

import io
import math
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NoReturn

import numpy as np

from cifar_lab.run_folder.schema import LARGEST_INTEGER, RunFileError, read_bytes
from cifar_lab.schedules import factor_at
from cifar_lab.settings import RunConfig

EPOCH_COLUMNS = (
    "epoch", "learning_rate", "train_loss", "train_accuracy", "test_loss", "test_accuracy", "train_seconds",
    "images_per_second",
)  # fmt: skip
VALIDATED_COLUMNS = tuple(name.replace("test_", "validation_") for name in EPOCH_COLUMNS)  # with --validation-size
STEP_COLUMNS = ("step", "loss")
PROBE_COLUMNS = ("step", "eta", "loss", "grad_norm", "grad_change", "grad_cosine", "beta")
# At a large step size the loss along the gradient may overflow while training itself stays finite.
PROBE_COLUMNS_NOT_FINITE = ("loss", "grad_change", "grad_cosine", "beta")

# A character per test image, in the data set's order, 100 in a line: a dot if the network is right, else the digit of
# the class that it takes the image for (x beyond 9: a network may have more than ten outputs).
PREDICTIONS = "predictions.txt"
PREDICTIONS_IN_LINE = 100

LARGEST_TABLE = 1 << 30  # bytes of a CSV file: the steps of 40,000 epochs at full size
LARGEST = 3.5e38  # of a number in epochs.csv and steps.csv: float32 has none above 3.41e38

_NUMBER = re.compile(rb"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_NOT_FINITE = re.compile(rb"[+-]?(inf|nan)")


def read_table(
    path: Path, columns: Sequence[str], complete: bool, not_finite: Collection[str] = (), largest: int = LARGEST_TABLE
) -> dict[str, np.ndarray]:
    """The whole rows of a CSV of numbers, by column. Only the columns in `not_finite` may hold inf and nan.

    largest: bytes of the file.
    """
    if not path.exists() and not complete:
        return {name: np.empty(0) for name in columns}
    data = read_bytes(path, largest).replace(b"\r\n", b"\n")
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
    """The rows of `body`, (rows, columns) float64, or None if it is anything but rows of numbers."""
    # What numpy would forgive is refused first: blank lines, spaces, comments, quotes, hexadecimal, underscores.
    if body.translate(None, b"0123456789.eE+-,infa\n") or body.startswith(b"\n") or b"\n\n" in body:
        return None
    try:
        table = np.loadtxt(io.BytesIO(body), delimiter=",", comments=None, ndmin=2)
    except ValueError:
        return None
    return table if table.shape == (body.count(b"\n"), columns) else None


def number_in(cell: bytes) -> float | None:
    """The number that a cell holds, None if it has another form: Python's own would take spaces and underscores too."""
    return float(cell) if _NUMBER.fullmatch(cell) or _NOT_FINITE.fullmatch(cell) else None


def _row_checks(
    table: np.ndarray, columns: Sequence[str], not_finite: Collection[str], consecutive: str | None
) -> np.ndarray:
    """Which rows of (rows, columns) are sound, (rows,) bool: finite, and numbered from 1 if `consecutive` says so."""
    sound = np.isfinite(table[:, [name not in not_finite for name in columns]]).all(axis=1)
    if columns is not PROBE_COLUMNS:
        sound &= (np.abs(table) <= LARGEST).all(axis=1)
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
            value = number_in(cell)
            if value is None or not (math.isfinite(value) or name in not_finite):
                shown = ascii(cell[:40].decode("latin-1"))
                raise RunFileError(path, f"{name} is not a finite number: {shown}", number + 1)
            if columns is not PROBE_COLUMNS and abs(value) > LARGEST:
                raise RunFileError(path, f"{name} is {value:g}, which is beyond float32", number + 1)
        if consecutive and float(cells[0]) != number:
            raise RunFileError(path, f"{consecutive} is {float(cells[0]):g} where {number} follows", number + 1)
    raise RunFileError(path, "not a table of numbers")


def predictions_text(labels: np.ndarray, predictions: np.ndarray) -> str:
    """The content of predictions.txt; labels, predictions: (N,) integers."""
    taken_for = np.array([*"0123456789x."])[np.where(predictions == labels, 11, np.minimum(predictions, 10))]
    lines = [taken_for[i : i + PREDICTIONS_IN_LINE] for i in range(0, len(taken_for), PREDICTIONS_IN_LINE)]
    return "".join("".join(line) + "\n" for line in lines)


def read_predictions(path: Path, images: int, accuracy: float, source: str = "epochs.csv") -> np.ndarray:
    """Which of the test images the network got right, (images,) bool. Raises RunFileError.

    accuracy: percent (three decimals at least), which the file must agree with. source: the file that it is from.
    """
    *lines, rest = read_bytes(path).decode("latin-1").replace("\r\n", "\n").split("\n")
    for number, line in enumerate(lines, start=1):
        expected = min(PREDICTIONS_IN_LINE, max(0, images - (number - 1) * PREDICTIONS_IN_LINE))
        if not expected or not re.fullmatch(rf"[0-9x.]{{{expected}}}", line):
            raise RunFileError(path, f"not {expected} of the characters 0 to 9, x and .", number)
    if rest:
        raise RunFileError(path, "the last line is not whole")
    right = np.array([*"".join(lines)]) == "."
    if len(right) != images:
        raise RunFileError(path, f"{len(right)} images instead of {images}")
    if abs(100 * right.mean() - accuracy) > 0.001:
        raise RunFileError(path, f"{100 * right.mean():.3f}% right; {source} says {accuracy:.3f}")
    return right


def check_epochs(path: Path, epochs: dict[str, np.ndarray], config: RunConfig) -> None:
    """Raises RunFileError if a row has what no run with these settings writes."""
    ends = range(config.steps_per_epoch - 1, len(epochs["epoch"]) * config.steps_per_epoch, config.steps_per_epoch)
    rates = np.array([config.lr * factor_at(config, config.steps_per_epoch, step) for step in ends])
    for name, column in epochs.items():
        bad, what = column < 0, "negative"
        if name.endswith("_accuracy"):
            bad, what = bad | (column > 100), "not a percentage"
        elif name == "learning_rate":
            bad, what = ~np.isclose(column, rates, rtol=1e-6, atol=0), "not that of the settings"
        if bad.any():
            row = int(bad.argmax())
            raise RunFileError(path, f"{name} is {column[row]:g}, {what}", row + 2)


def check_probes(path: Path, probes: dict[str, np.ndarray], complete: bool) -> dict[str, np.ndarray]:
    """Each probed step has one row per step size, in the order of training; the last step's may still be missing."""
    steps, etas = probes["step"], probes["eta"]
    if not len(steps):
        return probes
    bad = (
        (steps < 1)
        | (steps > LARGEST_INTEGER)
        | (steps != np.floor(steps))
        | (np.diff(steps, prepend=steps[0]) < 0)
        | (etas <= 0)
    )
    if bad.any():
        raise RunFileError(path, "step does not grow, or eta is not above 0", int(bad.argmax()) + 2)
    _, starts, sizes = np.unique(steps, return_index=True, return_counts=True)
    odd = sizes != sizes[0]
    if not complete and odd[-1] and sizes[-1] < sizes[0]:
        probes, odd = {name: column[: starts[-1]] for name, column in probes.items()}, odd[:-1]
    if odd.any():
        raise RunFileError(path, f"a step without its {sizes[0]} rows", int(starts[odd.argmax()]) + 2)
    return probes

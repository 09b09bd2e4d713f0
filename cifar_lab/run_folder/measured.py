"""Files of a measure around a trained network: tables that are computed row by row and continue where they stopped.

The first line says what the file holds, as JSON behind a '#', the second the columns. The first columns of a row say
where it was measured, and are known before.
"""

import argparse
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
from filelock import FileLock, Timeout

from cifar_lab import project
from cifar_lab.escape import LONGEST_NAME, SUFFIX
from cifar_lab.run_folder import files
from cifar_lab.run_folder.schema import LARGEST_TEXT, RunFileError, read_bytes
from cifar_lab.run_folder.tables import LARGEST as LARGEST_NUMBER
from cifar_lab.run_folder.tables import number_in
from cifar_lab.settings import LARGEST_SEED, MOST_IMAGES, choice, flag, integer

LARGEST = 1 << 27  # bytes
LONGEST_STEM = LONGEST_NAME - SUFFIX - len(".csv")  # bytes
MOST_POINTS = 1001  # along a direction
MOST_ROWS = 1_000_000  # of a file whose settings do not bound them otherwise: as many fit into LARGEST
MALFORMED = (LookupError, TypeError, ValueError, ArithmeticError, RecursionError)


class MeasureError(ValueError):
    """What no measure has, or a network on which nothing can be measured; the text says why."""


class Busy(RunFileError):
    """Another process writes to the file."""


# --- Settings: the fields of a measure's `Grid` ----------------------------------------------------------------------


class Settings:
    """A measure's settings, a dataclass whose fields are flags: a command line and a file are held to the same bounds.

    Raises MeasureError on a value that the flag would refuse.
    """

    def __post_init__(self) -> None:
        for f in fields(self):
            try:
                f.metadata["kind"](str(getattr(self, f.name)))
            except argparse.ArgumentTypeError as error:
                raise MeasureError(f"no such grid: {f.name}: {error}") from None

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Self:
        """Those that a first line, or a command line, gives by name."""
        return cls(**{f.name: f.type(given[f.name]) for f in fields(cls)})


def images(default: int) -> Any:
    """The number of training images."""
    return flag(default, "training images", integer(2, MOST_IMAGES))


def seed() -> Any:
    """The seed of whatever is random."""
    return flag(0, "seed of the image subset and of whatever else is random", integer(0, LARGEST_SEED))


def mode() -> Any:
    """The mode of BatchNorm."""
    return flag("eval", "BatchNorm mode: eval or train", choice("eval", "train"))


def digest(value: Any) -> str:
    """The SHA-256 of a network's weights, as a first line has it. Raises MeasureError if it is none."""
    if not isinstance(value, str) or not re.fullmatch("[0-9a-f]{64}", value):
        raise MeasureError("weights_sha256: not 64 hexadecimal digits")
    return value


# --- The file --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Column:
    """What the values of a column may be."""

    low: float = -LARGEST_NUMBER
    high: float = LARGEST_NUMBER
    explodes: bool = False  # inf and nan too: what networks far from a trained one give

    def holds(self, value: float) -> bool:
        return self.low <= value <= self.high or (self.explodes and (math.isnan(value) or value == math.inf))


LOSS, ACCURACY = Column(explodes=True), Column(0, 100)


@dataclass(frozen=True, eq=False)
class Layout:
    """What a file holds once it is whole."""

    kind: str  # of measure, in messages: surface
    stem: str  # of the file's name
    about: dict[str, Any]  # the first line
    at: str  # the first p columns: a,b
    values: Mapping[str, Column]  # the others, by name
    rows: int
    coordinates: Callable[[], np.ndarray]  # of the rows, float64 (rows, p)
    trained: tuple[int, ...] = ()  # the rows that are of trained networks: finite

    @property
    def columns(self) -> str:
        return ",".join([self.at, *self.values])

    @cached_property
    def places(self) -> np.ndarray:
        """(rows, p) float64: the first p columns. Only what is known to belong to a file asks for so many numbers."""
        return self.coordinates()

    @property
    def header(self) -> str:
        """The first two lines."""
        return f"# {json.dumps(self.about)}\n{self.columns}\n"


@dataclass(frozen=True, eq=False)
class Measured:
    """A file's content so far."""

    layout: Layout
    values: np.ndarray  # (n, q) float64: what was measured at the first n places
    size: int  # bytes of the file up to the end of its last whole row

    @property
    def complete(self) -> bool:
        return len(self.values) == self.layout.rows


def read(file: str | Path, kind: str, layout_of: Callable[[dict[str, Any]], Layout]) -> Measured:
    """Reads a file; half a last row is ignored. Raises RunFileError, naming file and line.

    layout_of: the layout that a first line stands for; raises one of MALFORMED if it stands for none.
    """
    file = Path(file)
    data = read_bytes(file, LARGEST)
    data = data[: data.rfind(b"\n") + 1]  # what follows the last newline is half a row
    first, _, rest = data.partition(b"\n")
    refusal = f"not the header of a {kind} file"
    try:
        layout = layout_of(json.loads(first[:LARGEST_TEXT].removeprefix(b"# ")))
        expected = layout.header.encode().split(b"\n")
    except MeasureError as error:
        raise RunFileError(file, f"{refusal}: {str(error)[:200]}", 1) from None
    except MALFORMED:
        raise RunFileError(file, refusal, 1) from None
    second, *lines = rest.split(b"\n", layout.rows + 2)  # the last is empty, or what follows one row too many
    if [first, second] != expected[:2]:
        raise RunFileError(file, refusal, 1 if first != expected[0] else 2)
    if file.stem != layout.stem:
        raise RunFileError(file, f"this {kind} belongs into {layout.stem}.csv", 1)
    names, count = layout.columns.split(","), layout.at.count(",") + 1
    values = []
    for number, (line, place) in enumerate(zip(lines[:-1], layout.places, strict=False), start=3):
        row = [number_in(cell) for cell in line.split(b",", len(names))]
        if len(row) != len(names) or None in row:
            raise RunFileError(file, f"not a row of {layout.columns}", number)
        if row[:count] != place.tolist():
            found, follows = (", ".join(f"{x:g}" for x in at) for at in (row[:count], place))
            raise RunFileError(file, f"{', '.join(names[:count])} are {found} where {follows} follows", number)
        for (name, column), value in zip(layout.values.items(), row[count:], strict=True):
            if not column.holds(value):
                bounds = f"from {column.low:g} to {column.high:g}"
                raise RunFileError(file, f"{name} is {value:g}, which is not a number {bounds}", number)
            if number - 3 in layout.trained and not math.isfinite(value):
                raise RunFileError(file, f"{name} is {value:g} at the trained network", number)
        values.append(row[count:])
    if len(lines) - 1 > layout.rows:
        raise RunFileError(file, f"more than {layout.rows} rows", layout.rows + 3)
    found = Measured(layout, np.array(values).reshape(-1, len(layout.values)), len(data))
    for name, column in zip(layout.values, found.values.T, strict=True):
        if found.complete and not np.isfinite(column).any():
            raise RunFileError(file, f"{name} is finite nowhere")
    return found


def compute(
    file: Path, layout: Layout, layout_of: Callable[[dict[str, Any]], Layout],
    rows: Callable[[int], Iterable[Sequence[float]]], each: Callable[[int], None],
) -> None:  # fmt: skip
    """Writes the rows that a file still lacks. Each is on the disk before the next is asked for.

    rows: what is measured at each place, without the first so many. each: is told the number of rows after every one. A
    file with another header (the run was trained further) is moved aside, not deleted. Raises RunFileError on a
    malformed one, Busy if another process writes to it, and OSError. Before, the caller makes sure that the trained
    network's own values are finite, so that no file is begun that cannot be read.
    """
    lock = FileLock(file.with_name(f".{file.stem}.lock"))
    try:
        files.lock(lock)
    except Timeout:
        raise Busy(file, "another process writes to it") from None
    try:
        _compute(file, layout, layout_of, rows, each)
    finally:
        lock.release()


def _compute(file: Path, layout: Layout, layout_of: Callable, rows: Callable, each: Callable[[int], None]) -> None:
    if file.exists():
        found = read(file, layout.kind, layout_of)
        if found.layout.header != layout.header:
            os.replace(file, file.with_name(f".{file.stem}.before-{datetime.now():%Y%m%d-%H%M%S-%f}.csv"))
        elif file.stat().st_size > found.size:
            os.truncate(file, found.size)
    if not file.exists():
        files.write_text(file, layout.header)
    found = read(file, layout.kind, layout_of)
    done, size = len(found.values), found.size
    each(done)
    for place, values in zip(layout.places[done:].tolist(), rows(done), strict=True):
        if file.stat().st_size != size:
            raise Busy(file, "another process writes to it")
        row = ",".join(map(repr, (*place, *values))) + "\n"
        files.append(file, row)
        files.sync(file)
        done, size = done + 1, size + len(row)
        each(done)


def command(kind: str, folders: Sequence[Path], grid: Any) -> str:
    """The command that computes a measure. grid: a dataclass, whose fields are the command's flags."""
    default = type(grid)()
    flags = [(f"--{name}", value) for name, value in asdict(grid).items() if value != getattr(default, name)]
    return project.command("landscape.py", kind, *folders, *(word for flag in flags for word in flag))

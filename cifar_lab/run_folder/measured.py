"""Files of a measure around a trained network: tables that are computed row by row and continue where they stopped.

The first line says what the file holds, as JSON behind a '#', the second the columns. The first columns of a row say
where it was measured, and are known before.
"""

import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from cifar_lab import project
from cifar_lab.run_folder import files
from cifar_lab.run_folder.schema import RunFileError, read_bytes

LARGEST = 1 << 27  # bytes
MALFORMED = (LookupError, TypeError, ValueError, ArithmeticError, RecursionError)


@dataclass(frozen=True, eq=False)
class Layout:
    """What a file holds once it is whole."""

    kind: str  # of measure, in messages: surface
    stem: str  # of the file's name
    about: dict[str, Any]  # the first line
    columns: str
    places: np.ndarray  # (rows, p) float64: the first p columns

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
        return len(self.values) == len(self.layout.places)


def read(file: str | Path, kind: str, layout_of: Callable[[dict[str, Any]], Layout]) -> Measured:
    """Reads a file; half a last row is ignored. Raises RunFileError, naming file and line.

    layout_of: the layout that a first line stands for; raises one of MALFORMED if it stands for none.
    """
    file = Path(file)
    data = read_bytes(file, LARGEST)
    lines = data.split(b"\n")[:-1]  # what follows the last newline is half a row
    try:
        layout = layout_of(json.loads(lines[0].removeprefix(b"# ")))
        expected = layout.header.encode().split(b"\n")[:-1]
    except MALFORMED:
        raise RunFileError(file, f"not the header of a {kind} file", 1) from None
    if lines[:2] != expected:
        raise RunFileError(file, f"not the header of a {kind} file", 1 if lines[0] != expected[0] else 2)
    if file.stem != layout.stem:
        raise RunFileError(file, f"this {kind} belongs into {layout.stem}.csv", 1)
    names, count = layout.columns.split(","), layout.places.shape[1]
    values = []
    for number, (line, place) in enumerate(zip(lines[2:], layout.places, strict=False), start=3):
        try:
            row = [float(cell) for _, cell in zip(names, line.split(b","), strict=True)]
        except ValueError:
            raise RunFileError(file, f"not a row of {layout.columns}", number) from None
        if row[:count] != place.tolist():
            found, follows = (", ".join(f"{x:g}" for x in at) for at in (row[:count], place))
            raise RunFileError(file, f"{', '.join(names[:count])} are {found} where {follows} follows", number)
        values.append(row[count:])
    if len(lines) - 2 > len(layout.places):
        raise RunFileError(file, f"more than {len(layout.places)} rows", len(layout.places) + 3)
    return Measured(layout, np.array(values).reshape(-1, len(names) - count), data.rfind(b"\n") + 1)


def compute(
    file: Path, layout: Layout, layout_of: Callable[[dict[str, Any]], Layout],
    rows: Callable[[int], Iterable[Sequence[float]]], each: Callable[[int], None],
) -> None:  # fmt: skip
    """Writes the rows that a file still lacks. Each is on the disk before the next is asked for.

    rows: what is measured at each place, without the first so many. each: is told the number of rows after every one. A
    file with another header (the run was trained further) is moved aside, not deleted. Raises RunFileError on a
    malformed one, or if another process writes to it, and OSError.
    """
    lock = FileLock(file.with_name(f".{file.stem}.lock"))
    try:
        files.lock(lock)
    except Timeout:
        raise RunFileError(file, "another process writes to it") from None
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
            raise RunFileError(file, "another process writes to it")
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

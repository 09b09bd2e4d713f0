"""Files that are whole or absent: written to a temporary name, flushed to disk, renamed."""

import glob
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Puts the file's name into an OSError: one that is raised by a write or a flush has none."""
    try:
        yield
    except OSError as error:
        error.filename = str(path)
        raise


def write_whole(path: Path, write: Callable[[BinaryIO], object], *, keep: Path | None = None) -> None:
    """Replaces a file by what `write` puts into it; until the new one is whole, the old one stays.

    keep: a name that the old file gets instead of being dropped. Raises OSError, and then leaves the old file, under
    that name if it had it already.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with _naming(path):
        try:
            with open(temporary, "wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            if keep is not None and path.exists():
                os.replace(path, keep)
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def remove_unfinished(path: Path) -> None:
    """Removes what a killed process left of a file that nobody else writes now."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        left.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Replaces a text file as a whole."""
    write_whole(path, lambda file: file.write(text.encode()))


def append(path: Path, text: str) -> None:
    """Appends to a file that exists, all of it or nothing. Durable only after `sync`. Raises OSError."""
    with _naming(path), open(path, "r+b", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        data = memoryview(text.encode())
        try:
            while data:
                data = data[file.write(data) :]
        except OSError:
            file.truncate(size)
            raise


def sync(path: Path) -> None:
    """Waits until a file's content is on the disk."""
    with _naming(path), open(path, "r+b") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Waits until a folder's entries are on the disk, if the system can do that (Windows cannot)."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

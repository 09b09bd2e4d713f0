"""Files that are whole or absent: written to a temporary name, flushed to disk, renamed. Only regular files are read.

What changes a file asks first whether it may (`may` raises if not), with the file or its folder already open: a process
that was paused in between then still acts on what it has asked about, and not on what another one has put in its place.
"""

import errno
import glob
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from io import BufferedWriter
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock, Timeout

May = Callable[[], object]
# What file systems say that cannot do something: FAT, network drives, some of FUSE.
UNSUPPORTED = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOLCK}


class NotRegular(OSError):
    """What lies in the place of a file is none that can be read: a folder, a FIFO, a device, or far too large."""


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Puts the file's name into an OSError: one that is raised by a write or a flush has none."""
    try:
        yield
    except OSError as error:
        if error.errno is not None:  # not what a reader of its content raises, Pillow for example
            error.filename = str(path)
        raise


@contextmanager
def open_regular(path: Path, largest: int) -> Iterator[BinaryIO]:
    """Opens a regular file of at most so many bytes, to be read. Raises NotRegular and other OSErrors.

    Nothing is waited for: a FIFO has no writer, a device no end.
    """
    with _naming(path):
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        try:
            status = os.fstat(handle)
            if stat.S_ISDIR(status.st_mode):
                raise NotRegular(errno.EISDIR, os.strerror(errno.EISDIR))
            if not stat.S_ISREG(status.st_mode):
                raise NotRegular(errno.EINVAL, "not a regular file")
            if status.st_size > largest:
                raise NotRegular(errno.EFBIG, f"larger than {largest:,} bytes")
        except OSError:
            os.close(handle)
            raise
        with os.fdopen(handle, "rb") as file:
            yield file


def read_regular(path: Path, largest: int) -> bytes:
    """The content of a regular file of at most so many bytes. Raises NotRegular and other OSErrors."""
    with open_regular(path, largest) as file:
        return file.read(os.fstat(file.fileno()).st_size)


def lock_of(folder: Path) -> FileLock:
    """The lock that a process holds while it writes to a run folder."""
    return FileLock(folder.with_name(f".{folder.name}.lock"))


def lock(by: FileLock) -> bool:
    """Locks a file; False if the file system has no locks. Raises Timeout if another process has it, and OSError."""
    try:
        by.acquire(timeout=0)
    except NotImplementedError:
        return False
    except OSError as error:
        if isinstance(error, Timeout) or error.errno not in UNSUPPORTED:
            raise
        return False
    return True


class _Folder:
    """A folder, opened: what is done through it is done in this very one, also if another has got its name since."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._handle = os.open(path, os.O_RDONLY) if os.name == "posix" else None  # Windows opens no folders

    def __enter__(self) -> "_Folder":
        return self

    def __exit__(self, *error: object) -> None:
        if self._handle is not None:
            os.close(self._handle)

    def _name(self, name: str) -> str:
        return name if self._handle is not None else str(self._path / name)

    def open(self, name: str, mode: str) -> BinaryIO:
        return open(self._name(name), mode, 0, opener=partial(os.open, mode=0o666, dir_fd=self._handle))

    def rename(self, old: str, new: str) -> None:
        of_both = {} if self._handle is None else {"src_dir_fd": self._handle, "dst_dir_fd": self._handle}
        os.replace(self._name(old), self._name(new), **of_both)

    def remove(self, name: str) -> None:
        """Removes a file if it is there."""
        with suppress(FileNotFoundError):
            os.unlink(self._name(name), dir_fd=self._handle)

    def sync(self) -> None:
        """Waits until the folder's entries are on the disk, if the file system can do that."""
        if self._handle is None:
            return
        try:
            os.fsync(self._handle)
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                raise


def always() -> None:
    """A file that nobody else writes may always be changed."""


def write_whole(
    path: Path, write: Callable[[BinaryIO], object], *, keep: Path | None = None, may: May = always
) -> None:
    """Replaces a file by what `write` puts into it; until the new one is whole, the old one stays.

    keep: a name in the same folder that the old file gets instead of being dropped. Raises OSError, and then leaves the
    old file, under that name if it had it already, and what `may` raises.
    """
    temporary = f".{path.name}.{secrets.token_hex(4)}.tmp"  # in containers every process is number 1
    with _naming(path), _Folder(path.parent) as folder:
        try:
            with folder.open(temporary, "wb") as raw, BufferedWriter(raw) as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            may()
            if keep is not None and path.exists():
                folder.rename(path.name, keep.name)
            folder.rename(temporary, path.name)
        except BaseException:
            folder.remove(temporary)
            raise
        folder.sync()


def write_text(path: Path, text: str, may: May = always) -> None:
    """Replaces a text file as a whole."""
    write_whole(path, lambda file: file.write(text.encode()), may=may)


def append(path: Path, text: str, may: May = always) -> None:
    """Appends to a file that exists, all of it or nothing. Durable only after `sync`. Raises OSError."""
    with _naming(path), _Folder(path.parent) as folder, folder.open(path.name, "r+b") as file:
        may()
        size = file.seek(0, os.SEEK_END)
        data = memoryview(text.encode())
        try:
            while data:
                data = data[file.write(data) :]
        except OSError:
            file.truncate(size)
            raise


def rename(path: Path, name: str, may: May = always) -> None:
    """Gives a file another name in its folder. Raises OSError."""
    with _naming(path), _Folder(path.parent) as folder:
        may()
        folder.rename(path.name, name)


def remove(path: Path, may: May = always) -> None:
    """Removes a file if it is there. Raises OSError."""
    if not os.path.lexists(path):
        return
    with _naming(path), _Folder(path.parent) as folder:
        may()
        folder.remove(path.name)


def remove_unfinished(path: Path, may: May = always) -> None:
    """Removes what a killed process left of a file that nobody else writes now."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        remove(left, may)


def sync(path: Path) -> None:
    """Waits until a file's content is on the disk."""
    with _naming(path), open(path, "r+b") as file:
        os.fsync(file.fileno())

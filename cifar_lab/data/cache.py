"""A data set as four arrays of bytes, cached in one file and verified each time it is loaded.

The data directory is --data-dir, else the environment variable CIFAR10_DIR, else data/. If it has no cache of the data
set, `<name>.npz`, that is made from the files that are there, or from the first download that gives the right ones; of
an image folder again whenever its pictures are others. --data-dir may also name a `cifar-10-batches-py` folder or its
archive: it is read, and nothing is written.

Another data set of the same form can take the place of CIFAR-10 if a file `dataset.json` beside the cache declares it:
{"name": ..., "sha256": {"train_images": ..., ...}}.
"""

import hashlib
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from cifar_lab.data.datasets import DATA_SETS, Normalization, Source
from cifar_lab.data.folder import image_folder
from cifar_lab.data.sources import BATCH_FILES, KEYS, Arrays, DataError, naming
from cifar_lab.escape import terminal
from cifar_lab.program import STOP_SIGNALS, handling
from cifar_lab.project import DATA
from cifar_lab.run_folder.files import open_regular, read_regular, write_text, write_whole
from cifar_lab.settings import OPTION, SIZE, RunConfig

CIFAR10 = RunConfig.dataset
MANIFEST = "dataset.json"
LARGEST, LARGEST_MANIFEST = 1 << 32, 1 << 20  # bytes
BLOCK = 1_000  # images whose pixels are summed at once


@dataclass(frozen=True, eq=False)
class DataSet:
    """A verified data set; the first axis is the image, in the data set's order."""

    train_images: np.ndarray  # (N, 32, 32, 3) uint8, RGB
    train_labels: np.ndarray  # (N,) uint8, index into `classes`
    test_images: np.ndarray  # (M, 32, 32, 3) uint8
    test_labels: np.ndarray  # (M,) uint8
    sha256: dict[str, str]  # of each of the four, as computed from the arrays
    name: str
    classes: tuple[str, ...] = DATA_SETS[CIFAR10].classes
    normalization: Normalization = DATA_SETS[CIFAR10].normalization
    digest: str = ""  # of images, labels and classes, 16 hexadecimal digits; empty: CIFAR-10

    @property
    def counts(self) -> str:
        """Its sizes in words."""
        train, test = len(self.train_images), len(self.test_images)
        return f"{train:,} training and {test:,} test images in {len(self.classes)} classes"


def directory(data_dir: str | Path | None) -> Path:
    """The data directory."""
    return Path(os.path.expanduser(data_dir or os.environ.get("CIFAR10_DIR") or DATA))


def find(dataset: str, data_dir: str | Path | None = None) -> Source:
    """A data set by its name, by the folder of its pictures, or, without them, by the name of the cache of such a
    folder. Nothing is read but the list of the pictures. Raises DataError."""
    if dataset in DATA_SETS:
        return DATA_SETS[dataset]
    if os.path.isdir(dataset):
        return image_folder(dataset)
    where = directory(data_dir)
    cache = where / f"{dataset}.npz"
    if re.fullmatch(OPTION, dataset) and cache.exists():
        with _reading(cache) as content:
            sizes = len(content["train_labels"]), len(content["test_labels"])
            return Source(name=dataset, label=dataset, classes=tuple(map(str, content["classes"])), sizes=sizes)
    raise DataError(f"{dataset}: neither {', '.join(DATA_SETS)}, nor a folder, nor the name of one cached in {where}")


def load(data_dir: str | Path | None = None, download: bool = True, source: Source | None = None) -> DataSet:
    """A data set, CIFAR-10 by default, fetched and cached if it is not there yet. Raises DataError."""
    source = source or DATA_SETS[CIFAR10]
    folder = directory(data_dir)
    with naming(folder):
        if source.name == CIFAR10 and _is_batches(folder):
            return _verified(source.read_from(folder), source, source.sha256, source.label)
        sums, label = _declared(folder) if source.name == CIFAR10 else (source.sha256, source.label)
        cache = folder / f"{source.name}.npz"
        if cache.exists():
            with _reading(cache) as content:
                if not source.stamp or source.stamp == str(content["stamp"]):
                    return _verified({key: content[key] for key in KEYS}, source, sums, label)
        if label != source.label:
            raise DataError(f"{MANIFEST} declares {label}, but {cache.name} is missing")
        # They raise an exception, as Ctrl-C does, so that a download is stopped and its files are removed.
        with handling(lambda number, frame: sys.exit(128 + number), STOP_SIGNALS[1:]):
            return _fetch(folder, source, download)


def check_labels(labels: np.ndarray, classes: int) -> None:
    """Raises DataError if a network with so many classes does not know all of these labels."""
    if (largest := labels.max(initial=0)) >= classes:
        raise DataError(f"a label is {largest}; the network has {classes} classes, from 0")


def of_run(config: Mapping[str, Any], data_dir: str | Path | None = None, dataset: str | None = None) -> DataSet:
    """The data that a run was trained on. Raises DataError if what is there are others.

    config: the run's config.json, as `read_config` gives it. dataset: where they are, if not under the run's name.
    """
    settings = config["settings"]
    source = find(dataset or settings["dataset"], data_dir)
    if source.name != settings["dataset"]:
        raise DataError(f"the run was trained on {settings['dataset']}, not on {source.name}")
    data = load(data_dir, source=source)
    if settings["data_digest"] != data.digest or config["environment"].get("data_sha256", data.sha256) != data.sha256:
        raise DataError(f"the images of {data.name} are not those that the run was trained on")
    return data


def write_cache(folder: Path, arrays: Arrays, name: str | None = None, source: Source | None = None) -> None:
    """Writes four arrays as the cache of a data set, CIFAR-10 by default, in a data directory.

    name: declares that other data are in the place of CIFAR-10.
    """
    source = source or DATA_SETS[CIFAR10]
    folder.mkdir(parents=True, exist_ok=True)
    if name:
        manifest = {"name": name, "sha256": {key: _sha256(arrays[key]) for key in KEYS}}
        write_text(folder / MANIFEST, json.dumps(manifest, indent=2) + "\n")
    about = {"classes": np.array(source.classes), "stamp": np.array(source.stamp)} if source.sha256 is None else {}
    write_whole(folder / f"{source.name}.npz", lambda file: np.savez(file, **arrays, **about))


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


@contextmanager
def _reading(cache: Path) -> Iterator[Mapping[str, np.ndarray]]:
    """The content of a cache file, which is named if it is damaged."""
    advice = f"{cache.name} is not used (move it away, and the data are fetched again)"
    with naming(advice), open_regular(cache, LARGEST) as file, _opened(file) as content:
        yield content


def _verified(arrays: Arrays, source: Source, sums: Mapping[str, str] | None, label: str) -> DataSet:
    """The arrays as a data set. Raises DataError if they do not have these sums."""
    for part in ("train", "test"):
        images, labels = arrays[f"{part}_images"], arrays[f"{part}_labels"]
        found = images.dtype, images.shape, labels.dtype, labels.shape
        if found != (np.uint8, (labels.size, SIZE, SIZE, 3), np.uint8, (labels.size,)):
            raise DataError(f"{part} images and labels are {found}, not uint8 (N, 32, 32, 3) and uint8 (N,)")
    computed = {key: _sha256(arrays[key]) for key in KEYS}
    for key, digest in computed.items() if sums else ():
        if digest != sums[key]:
            raise DataError(f"{key} is altered (SHA-256 {digest[:12]}..., {label} has {sums[key][:12]}...)")
    digest = ""
    if source.name != CIFAR10:
        digest = hashlib.sha256(json.dumps([source.classes, computed]).encode()).hexdigest()[:16]
    return DataSet(
        **arrays, sha256=computed, name=label, classes=source.classes, digest=digest,
        normalization=source.normalization or _statistics(arrays["train_images"]),
    )  # fmt: skip


def _statistics(images: np.ndarray) -> Normalization:
    """Mean and standard deviation of each channel of images (N, 32, 32, 3) uint8, in the unit of [0, 1]."""
    first, second, count = np.zeros(3, np.int64), np.zeros(3, np.int64), images.size // 3
    for start in range(0, len(images), BLOCK):
        values = images[start : start + BLOCK].astype(np.int64)
        first += values.sum((0, 1, 2))
        second += (values**2).sum((0, 1, 2))
    mean = first / count
    deviation = np.sqrt(np.maximum(second / count - mean**2, 1))  # at least one of 255 levels: a channel may be black
    return tuple((mean / 255).tolist()), tuple((deviation / 255).tolist())


def _is_batches(path: Path) -> bool:
    """Whether a path is itself CIFAR-10's batches folder or its archive, not a folder that may hold them."""
    named = path.name == "cifar-10-batches-py" or path.name.endswith((".tar.gz", ".tgz", ".tar"))
    return named or (path / BATCH_FILES[-1]).is_file()


def _declared(folder: Path) -> tuple[Mapping[str, str], str]:
    """The sums that a data directory's cache of CIFAR-10 must have, and the name of the data."""
    source = DATA_SETS[CIFAR10]
    if not (folder / MANIFEST).exists():
        return source.sha256, source.label
    with naming(MANIFEST):
        content = json.loads(read_regular(folder / MANIFEST, LARGEST_MANIFEST).decode("utf-8-sig"))
        name, sums = content["name"], content["sha256"]
        texts = all(isinstance(text, str) for text in (name, *sums.values()))
        if not texts or name in ("", source.label) or sums.keys() != set(KEYS):
            raise DataError("does not declare another name and the sums of the four arrays")
    print(terminal(f"{folder}: {name}, not {source.label} (declared by {MANIFEST})"), flush=True)
    return sums, name


def _fetch(folder: Path, source: Source, download: bool) -> DataSet:
    """Makes the cache from the first place that gives the data: files that are there, then downloads."""
    local = source.local(folder)
    nearest = next(path for path in (folder, *folder.parents) if path.exists())
    if not local and not (nearest.is_dir() and os.access(nearest, os.W_OK)):
        raise DataError("cannot be written; --data-dir or CIFAR10_DIR can name another folder")
    if source.package and find_spec(source.package) is None:
        file = f"requirements-{source.name}.txt"
        raise DataError(f"{source.label} needs the package {source.package}: python -m pip install -r {file}")
    cache = folder / f"{source.name}.npz"
    failures = []
    with tempfile.TemporaryDirectory(prefix=f"{source.name}-", ignore_cleanup_errors=True) as work:
        downloads = [(name, partial(fetch, Path(work))) for name, fetch in source.downloads() if download]
        for name, fetch in local + downloads:
            how = f"{cache.name} is made from" if source.stamp else f"no {cache.name} there, trying"
            print(f"{folder}: {how} {name}", flush=True)
            try:
                with naming(name):
                    data = _verified(fetch(), source, source.sha256, source.label)
            except DataError as error:
                if not source.by_hand:
                    raise
                print(f"{error}; not used", flush=True)
                failures.append(f"- {error}")
                continue
            try:
                write_cache(folder, {key: getattr(data, key) for key in KEYS}, source=source)
                verified = "SHA-256 sums verified" if source.sha256 else data.counts
                print(f"{cache}: {source.label}, {verified}", flush=True)
            except OSError as error:  # read-only files can be used too; it takes a second or two more at every start
                print(f"{cache}: not written ({error.strerror}); {name} is used without it", flush=True)
            return data
    lines = [f"no {source.label} there, and no source gives it", *failures, f"By hand: {source.by_hand}"]
    raise DataError("\n".join(lines))

"""A folder of pictures as a data set: a subfolder for each class, or train/ and test/ (or val/) with one each.

Without train/ and test/, a fifth of each class is the test set: the pictures whose paths have the smallest SHA-256
sums, so that one more picture moves hardly any other. In that order, which has nothing to do with the classes, the
images are kept, as `pictures` decodes them.
"""

import hashlib
import os
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from cifar_lab.data.datasets import DATA_SETS, Source
from cifar_lab.data.pictures import SUFFIXES, decode
from cifar_lab.data.sources import Arrays, DataError, naming
from cifar_lab.settings import MOST_CLASSES

TEST_SHARE = 5  # without a test folder, one picture of so many

Listed = tuple[tuple[Path, int], ...]  # pictures with their labels


@dataclass(frozen=True, kw_only=True)
class ImageFolder(Source):
    """The pictures of a folder, found and not yet read."""

    folder: Path
    train: Listed
    test: Listed

    def local(self, folder: Path) -> list[tuple[str, Callable[[], Arrays]]]:
        return [(str(self.folder), self._decode)]

    def _decode(self) -> Arrays:
        arrays = {}
        for part, pictures in (("train", self.train), ("test", self.test)):
            paths, labels = zip(*pictures, strict=True)
            arrays[f"{part}_labels"] = np.array(labels, np.uint8)
            with ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow lets go of the interpreter lock
                decoded = tqdm(pool.map(_pixels, paths), part, len(paths), unit="picture", leave=False, disable=None)
                try:
                    arrays[f"{part}_images"] = np.stack(list(decoded))
                except BaseException:
                    pool.shutdown(cancel_futures=True)
                    raise
        return arrays


def image_folder(path: str | Path) -> ImageFolder:
    """The data set that lies in a folder. Raises DataError if it is none; no picture is opened yet."""
    folder = Path(os.path.abspath(path))
    name = re.sub(r"[^\w.+-]", "_", folder.name.casefold())[:64]  # as it can be in a run's name
    with naming(path):
        if not name or name in DATA_SETS:
            raise DataError(f"a folder of pictures cannot be called {name or 'this'}; give it another name")
        below = {entry.name: entry for entry in _subfolders(folder)}
        held_out = below.get("test") or below.get("val")
        split = "train" in below and held_out is not None
        classes = _subfolders(below["train"]) if split else list(below.values())
        if len(classes) < 2:
            found = f"only one, {classes[0].name}" if classes else "none"
            raise DataError(f"a subfolder for each class is needed, at least two; there is {found}")
        if len(classes) > MOST_CLASSES:
            raise DataError(f"{len(classes)} subfolders; there can be {MOST_CLASSES} classes")
        if strange := [entry.name for entry in classes if not entry.name.isprintable()]:
            raise DataError(f"the class {strange[0]!r} has a name that cannot be printed")
        names = [entry.name for entry in classes]
        train, test = [], []
        if split and (unlike := set(names) ^ {entry.name for entry in _subfolders(held_out)}):
            raise DataError(f"the class {min(unlike)} is in only one of train/ and {held_out.name}/")
        for label, entry in enumerate(classes):
            pictures = _pictures(entry, folder)
            if split:
                train += [(p, label) for p in pictures]
                test += [(p, label) for p in _pictures(held_out / entry.name, folder)]
            elif len(pictures) < 2:
                raise DataError(f"{entry.name}: one picture; a class needs one for training and one for the test")
            else:
                count = max(1, round(len(pictures) / TEST_SHARE))
                test += [(p, label) for p in pictures[:count]]
                train += [(p, label) for p in pictures[count:]]
        order = partial(_digest, folder)
        train, test = (tuple(sorted(of, key=lambda picture: order(picture[0]))) for of in (train, test))
        return ImageFolder(
            name=name, label=name, classes=tuple(names), sizes=(len(train), len(test)), folder=folder, train=train,
            test=test, stamp=_stamp(folder, [path for path, _ in train + test]),
        )  # fmt: skip


def _subfolders(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _pictures(folder: Path, root: Path) -> list[Path]:
    """The pictures below a folder, in the order of the sums of their paths below the root."""

    def refuse(error: OSError) -> None:  # os.walk would leave out a folder that cannot be read
        raise error

    found = [Path(place, name) for place, _, names in os.walk(folder, onerror=refuse) for name in names]
    found = [path for path in found if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")]
    if not found:
        raise DataError(f"{folder.relative_to(root)}: no pictures ({' '.join(SUFFIXES)})")
    return sorted(found, key=partial(_digest, root))


def _digest(root: Path, path: Path) -> bytes:
    return hashlib.sha256(os.fsencode(path.relative_to(root).as_posix())).digest()


def _stamp(root: Path, paths: list[Path]) -> str:
    """A sum of the pictures' paths, sizes and times of change: another one if any of them may be another."""
    states = [(os.fsencode(path.relative_to(root)), path.stat()) for path in paths]
    lines = [f"{name!r} {state.st_size} {state.st_mtime_ns}" for name, state in states]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _pixels(path: Path) -> np.ndarray:
    """A picture as (32, 32, 3) uint8. Raises DataError."""
    try:
        return decode(path)
    except DataError as error:
        raise DataError(f"{path.parent.name}/{path.name}: {error}") from None

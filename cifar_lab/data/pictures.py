"""Pictures of any kind as the images that a network takes."""

import os
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from cifar_lab.data.sources import LARGEST_PART, DataError
from cifar_lab.program import is_out_of_memory
from cifar_lab.run_folder.files import NotRegular, open_regular
from cifar_lab.settings import SIZE

# Of the pictures in a folder: torchvision's IMG_EXTENSIONS, and GIF.
SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp", ".gif")


def find(given: Iterable[str | Path]) -> list[Path]:
    """The pictures that are given, where a folder stands for all below it, in the order of their names.

    Raises DataError for a path that is not there and for a folder without pictures.
    """
    found: list[Path] = []
    for path in map(Path, given):
        if not os.path.exists(path):  # pathlib raises if a name is too long
            raise DataError(f"{path}: there is no such picture or folder")
        if not path.is_dir():
            found.append(path)
            continue
        named = [p for p in sorted(path.rglob("*")) if p.suffix.lower() in SUFFIXES and not p.name.startswith(".")]
        below = [p for p in named if not p.is_dir()]
        if not below:
            raise DataError(f"{path}: no pictures ({' '.join(SUFFIXES)})")
        found += below
    return found


def labeled(folder: str | Path, classes: Sequence[str]) -> list[tuple[Path, int]]:
    """The pictures of a folder that has a subfolder for each class, or for some, and the number of the class of each.

    Raises DataError for a subfolder of another name, and if there is none.
    """
    if not os.path.isdir(folder):
        raise DataError(f"{folder}: there is no such folder")
    below = sorted(entry for entry in Path(folder).iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if unknown := [entry.name for entry in below if entry.name not in classes]:
        raise DataError(f"{folder}: {unknown[0]} is not a class of the network ({', '.join(classes)})")
    if not below:
        raise DataError(f"{folder}: no subfolders; one for each class is needed ({', '.join(classes)})")
    return [(path, classes.index(entry.name)) for entry in below for path in find([entry])]


def pixels(path: str | Path) -> np.ndarray:
    """A picture as (32, 32, 3) uint8, red, green, blue. Raises DataError, which names it."""
    try:
        return decode(Path(path))
    except DataError as error:
        raise DataError(f"{path}: {error}") from None


def decode(path: Path) -> np.ndarray:
    """A picture as (32, 32, 3) uint8, red, green, blue. Raises DataError, which says why it cannot be decoded.

    It is turned as its camera says, what is transparent is laid on white, 16 bits a channel become 8, gray becomes
    three equal channels, and it is stretched to 32 x 32 (bilinear, over all pixels that fall into one).
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with (
            warnings.catch_warnings(action="ignore"),  # of Pillow, that a picture is large
            open_regular(path, LARGEST_PART) as file,
            Image.open(file) as image,
        ):
            image.draft("RGB", (4 * SIZE, 4 * SIZE))  # a large JPEG is decoded at a fraction of its size
            upright = ImageOps.exif_transpose(image)
            if upright.mode[0] in "IF":
                upright = _eight_bits(upright, image.format)
            if upright.has_transparency_data:
                upright = upright.convert("RGBA")
                upright = Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright)
            return np.asarray(upright.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BILINEAR))
    except Exception as error:  # a parser raises nearly anything on a damaged file
        if is_out_of_memory(error):
            raise
        if isinstance(error, NotRegular):
            why = error.strerror
        elif isinstance(error, UnidentifiedImageError):
            why = "not a picture"
        elif isinstance(error, Image.DecompressionBombError):
            why = f"more than {2 * Image.MAX_IMAGE_PIXELS // 1_000_000} million pixels"
        else:
            why = f"cannot be decoded: {error}"
        raise DataError(" ".join(why.split())) from None


def _eight_bits(image, format: str):
    """A picture of 16 bits in its only channel with 8; Pillow's own conversion would cut off at 255.

    format: of its file. In some, Pillow gives pictures of 16 bits in 32; a TIFF that has 32 has numbers of any scale.
    """
    from PIL import Image

    values = np.asarray(image)
    of_any_scale = format == "TIFF" and image.mode == "I"
    if of_any_scale or values.dtype.kind == "f" or values.min() < 0 or values.max() > 0xFFFF:
        raise ValueError("not 8 or 16 bits in a channel")
    eight = Image.fromarray(((values.astype(np.int64) + 128) // 257).astype(np.uint8))
    if (color := image.info.get("transparency")) is not None:
        eight.putalpha(Image.fromarray(np.where(values == color, 0, 255).astype(np.uint8)))
    return eight

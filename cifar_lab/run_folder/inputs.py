"""What a trained network takes and what its outputs stand for: what whoever uses it elsewhere has to know."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from cifar_lab.settings import SIZE

HALF = (0.5, 0.5, 0.5)
LEAST_DEVIATION = 1e-4  # of a channel; images that are nearly all the same color


@dataclass(frozen=True)
class Inputs:
    """An image, as bytes divided by 255, has the mean subtracted and is divided by the deviation, by channel."""

    classes: tuple[str, ...]  # of the outputs, in their order
    shape: tuple[int, ...] = (3, SIZE, SIZE)  # of an image: channels (red, green, blue), height, width
    mean: tuple[float, ...] = HALF
    deviation: tuple[float, ...] = HALF

    def plain(self) -> dict[str, list]:
        """As lists, for JSON and checkpoints."""
        return {name: list(value) for name, value in asdict(self).items()}

    @classmethod
    def of_plain(cls, found: Mapping[str, list]) -> "Inputs":
        """What `plain` gave."""
        return cls(**{name: tuple(value) for name, value in found.items()})

    @property
    def normalization(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and deviation, as `training.augment.normalize` takes them."""
        return self.mean, self.deviation


def is_plain(found: Any) -> bool:
    """Whether a value is what `Inputs.plain` gives."""
    keys = {"classes", "shape", "mean", "deviation"}
    if not isinstance(found, dict) or found.keys() != keys or not all(type(of) is list for of in found.values()):
        return False
    names = all(isinstance(name, str) and name.isprintable() for name in found["classes"])
    numbers = [x for key in ("mean", "deviation") for x in found[key]]
    real = len(numbers) == 6 and all(type(x) is float and 0 <= x <= 1 for x in numbers)  # of bytes divided by 255
    return names and found["shape"] == [3, SIZE, SIZE] and real and min(found["deviation"]) >= LEAST_DEVIATION

"""The epoch plan: the order of the images and every augmentation parameter of an epoch, drawn ahead on the host.

What a batch holds is a function of (seed, epoch, step) alone: not of the device, the number of workers, or where a run
was interrupted. Order and augmentation are independent streams of one seed.
"""

from dataclasses import dataclass
from math import log

import numpy as np

from cifar_lab.settings import SIZE, RunConfig

SCALE = (0.8, 1.0)  # area of the crop as a share of the image's
RATIO = (3 / 4, 4 / 3)  # aspect ratio of the crop, torchvision's default
BRIGHTNESS = CONTRAST = SATURATION = 0.2  # factors are uniform in 1 +- this
HUE = 0.1  # shift, uniform in +- this, as a share of the colour circle
DEGREES = 10.0  # rotation, uniform in +- this
PADDING = 4  # pixels that a crop of `flip-crop` reaches beyond the image, at most (He et al. 2016, section 4.2)
CROP_TRIES = 10  # torchvision's: then the largest central crop within RATIO, here the whole image

# Streams of a seed. A new kind of draw gets a new number, so that the existing ones keep their values.
INITIALIZATION, ORDER, AUGMENTATION, DROPOUT, RATE, VALIDATION, CUTOUT, MIXUP = range(8)
GROWTH, GROWN = 4, 0.7  # of progressive images: pixels at a time, and the share of the run after which they are full


def stream(seed: int, kind: int, epoch: int = 0) -> np.random.Generator:
    """The generator of one stream of a seed, at an epoch."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, kind, epoch))))


def stream_seed(seed: int, kind: int) -> int:
    """A 32-bit seed for a generator outside numpy."""
    return int(np.random.SeedSequence((seed, kind)).generate_state(1)[0])


def seed_of(config: RunConfig) -> int:
    """The seed of all streams of a run: the one in its settings, or, with `seed_per_rate`, a 32-bit one that follows
    from it and the learning rate. So two networks still share it at each rate."""
    if not config.seed_per_rate:
        return config.seed
    rate = int(np.float64(config.lr).view(np.uint64))
    return int(np.random.SeedSequence((config.seed, RATE, rate)).generate_state(1)[0])


def held_out(seed: int, labels: np.ndarray, count: int) -> np.ndarray:
    """Which training images are held out for validation: (count,) indices, in order, as many of each class.

    labels: (N,) of all training images. If the count is no multiple of the number of classes, some classes, drawn too,
    have one more. Raises ValueError if a class has too few.
    """
    rng = stream(seed, VALIDATION)
    classes, there = np.unique(labels, return_counts=True)
    of_each = np.full(len(classes), count // len(classes))
    of_each[rng.permutation(len(classes))[: count % len(classes)]] += 1
    most = -(-count // len(classes))
    if most > there.min():
        raise ValueError(f"that is {most} images of a class; of one, the {len(labels)} there are have {there.min()}")
    drawn = [rng.choice(np.flatnonzero(labels == c), n, replace=False) for c, n in zip(classes, of_each, strict=True)]
    return np.sort(np.concatenate(drawn))


@dataclass(frozen=True)
class EpochPlan:
    """One epoch's draws for N images, in the order in which they are visited."""

    order: np.ndarray  # (N,) int64: index of the image
    crop: np.ndarray  # (N, 4) float32: top, left, height, width in pixels
    flip: np.ndarray  # (N,) float32: 1 mirrors left and right, 0 does not
    angle: np.ndarray  # (N,) float32: degrees, counter-clockwise
    color: np.ndarray  # (N, 4) float32: factors of brightness, contrast, saturation; shift of hue
    square: np.ndarray  # (N, 2) float32: center row and column of the cutout, in pixels

    def table(self) -> np.ndarray:
        """All augmentation parameters side by side: (N, 12) float32, the columns in the order above."""
        return np.concatenate([self.crop, self.flip[:, None], self.angle[:, None], self.color, self.square], axis=1)


def _crops(rng: np.random.Generator, n: int) -> np.ndarray:
    """Random resized crops as torchvision draws them: area and log aspect ratio uniform, redrawn until they fit."""
    crop = np.tile(np.array([0, 0, SIZE, SIZE], dtype=np.float32), (n, 1))
    todo = np.arange(n)
    for _ in range(CROP_TRIES):
        area = SIZE * SIZE * rng.uniform(*SCALE, len(todo))
        ratio = np.exp(rng.uniform(log(RATIO[0]), log(RATIO[1]), len(todo)))
        width, height = np.rint(np.sqrt(area * ratio)), np.rint(np.sqrt(area / ratio))
        corner = rng.random((2, len(todo)))
        fits = (width > 0) & (width <= SIZE) & (height > 0) & (height <= SIZE)
        top, left = np.floor(corner * (SIZE + 1 - np.stack([height, width])))
        crop[todo[fits]] = np.stack([top, left, height, width], axis=1)[fits]
        todo = todo[~fits]
    return crop


def epoch_plan(seed: int, epoch: int, images: int, *, augment: str = "report") -> EpochPlan:
    """The plan of an epoch (from 1) over `images` images.

    augment: one of `settings.AUGMENTS`. With `none` the parameters change nothing; with `flip-crop` the crop has the
    image's size and may reach beyond it.
    """
    order = stream(seed, ORDER, epoch).permutation(images)
    square = stream(seed, CUTOUT, epoch).integers(0, SIZE, (images, 2)).astype(np.float32)
    rng = stream(seed, AUGMENTATION, epoch)
    flip = (rng.random(images) < 0.5).astype(np.float32)
    if augment != "report":
        crop = np.tile(np.array([0, 0, SIZE, SIZE], dtype=np.float32), (images, 1))
        if augment == "flip-crop":
            crop[:, :2] = rng.integers(-PADDING, PADDING + 1, (images, 2))
        zeros = np.zeros(images, dtype=np.float32)
        color = np.tile(np.array([1, 1, 1, 0], dtype=np.float32), (images, 1))
        return EpochPlan(order, crop, flip if augment == "flip-crop" else zeros, zeros, color, square)
    angle = rng.uniform(-DEGREES, DEGREES, images).astype(np.float32)
    low = np.array([1 - BRIGHTNESS, 1 - CONTRAST, 1 - SATURATION, -HUE])
    high = np.array([1 + BRIGHTNESS, 1 + CONTRAST, 1 + SATURATION, HUE])
    color = rng.uniform(low, high, (images, 4)).astype(np.float32)
    return EpochPlan(order, _crops(rng, images), flip, angle, color, square)


def mixing(seed: int, epoch: int, steps: int, alpha: float) -> np.ndarray:
    """The weight of the images of each of an epoch's batches, against others of the same batch: (steps,) float32, from
    a Beta(alpha, alpha) distribution; 1 if alpha is 0."""
    if not alpha:
        return np.ones(steps, dtype=np.float32)
    return stream(seed, MIXUP, epoch).beta(alpha, alpha, steps).astype(np.float32)


def image_size(config: RunConfig, epoch: int) -> int:
    """Side of the training images, in pixels, in an epoch (from 1): it grows from the first size to 32, 4 pixels at a
    time, over the first 70% of the run (progressive resizing: Howard 2018, Tan & Le 2021, section 4)."""
    sizes = range(config.first_size, SIZE, GROWTH)
    at = int((epoch - 1) * len(sizes) / (GROWN * max(1, config.schedule_epochs)))
    return sizes[at] if at < len(sizes) else SIZE

"""Each operation against torchvision's and by hand, and the distributions that its parameters are drawn from."""

import colorsys
from math import cos, log, radians, sin

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as TF
from torchvision.transforms import InterpolationMode

from cifar_lab.training import augment as A
from cifar_lab.training.plan import SIZE, epoch_plan

BATCH = 16
TOLERANCE = 1e-5  # on values in [0, 1], float32


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(BATCH, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def plan():
    return epoch_plan(seed=3, epoch=1, images=BATCH)


def whole() -> torch.Tensor:
    return torch.tensor([[0.0, 0.0, SIZE, SIZE]]).repeat(BATCH, 1)


def assert_each_agrees(got: torch.Tensor, images: torch.Tensor, reference, tolerance: float = TOLERANCE) -> None:
    for i in range(BATCH):
        expected = reference(images[i : i + 1], i)[0]
        assert (got[i] - expected).abs().max() <= tolerance, i


def test_crop_and_resize_agrees_with_torchvision(images, plan):
    zeros = torch.zeros(BATCH)
    got, covered = A.resample(images, torch.from_numpy(plan.crop), zeros, zeros)
    assert (covered == 1).all()
    assert len({tuple(c) for c in plan.crop}) > BATCH / 2
    assert_each_agrees(
        got, images, lambda x, i: TF.resized_crop(x, *map(int, plan.crop[i]), [SIZE, SIZE], antialias=True)
    )


def test_flip_agrees_with_torchvision(images):
    flip = torch.arange(BATCH).remainder(2).float()
    got, _ = A.resample(images, whole(), flip, torch.zeros(BATCH))
    assert_each_agrees(got, images, lambda x, i: TF.hflip(x) if flip[i] else x)


def test_rotation_agrees_with_torchvision(images, plan):
    angle = torch.from_numpy(plan.angle)
    got, covered = A.resample(images, whole(), torch.zeros(BATCH), angle)

    def rotated(x, i):
        return TF.rotate(x, float(angle[i]), InterpolationMode.BILINEAR, fill=[0.0])

    # Inside, where all four neighbours exist, the pixels agree; at the edge, what is covered does.
    inside = TF.rotate(torch.ones(BATCH, 1, SIZE, SIZE), 0.0)
    for i in range(BATCH):
        inside[i] = TF.rotate(torch.ones(1, SIZE, SIZE), float(angle[i]), InterpolationMode.BILINEAR)
    assert (covered - inside).abs().max() <= 1e-4
    assert_each_agrees(got * (covered >= 1 - 1e-6), images, lambda x, i: rotated(x, i) * (covered[i] >= 1 - 1e-6), 1e-4)


@pytest.mark.parametrize(
    ("operation", "reference", "column"),
    [
        (A.brightness, TF.adjust_brightness, 0),
        (A.contrast, TF.adjust_contrast, 1),
        (A.saturation, TF.adjust_saturation, 2),
        (A.hue, TF.adjust_hue, 3),
    ],
)
def test_color_agrees_with_torchvision(images, plan, operation, reference, column):
    images[0] = 0.5  # no chroma
    images[1, 1:] = 0  # one channel
    parameter = torch.from_numpy(plan.color[:, column])
    assert_each_agrees(operation(images, parameter), images, lambda x, i: reference(x, float(parameter[i])))


def test_composition_agrees_with_torchvision_in_the_same_order(images, plan):
    pixels = (images * 255).byte().permute(0, 2, 3, 1).contiguous()

    def reference(x, i):
        x = TF.resized_crop(x, *map(int, plan.crop[i]), [SIZE, SIZE], antialias=True)
        x = TF.hflip(x) if plan.flip[i] else x
        for adjust, parameter in zip(
            (TF.adjust_brightness, TF.adjust_contrast, TF.adjust_saturation, TF.adjust_hue), plan.color[i], strict=True
        ):
            x = adjust(x, float(parameter))
        x = TF.rotate(x, float(plan.angle[i]), InterpolationMode.BILINEAR, fill=[0.0])
        return TF.normalize(x, [0.5] * 3, [0.5] * 3)

    source = A.to_unit(pixels)
    # White noise is the worst case for one interpolation against two, so the mean is compared and not each pixel.
    smooth = torch.nn.functional.avg_pool2d(source, 9, 1, 4, count_include_pad=False)
    got = A.augment((smooth * 255).round().byte().permute(0, 2, 3, 1).contiguous(), torch.from_numpy(plan.table()))
    for i in range(BATCH):
        assert (got[i] - reference(smooth[i : i + 1], i)[0]).abs().mean() <= 0.02, i


def test_without_augmentation_the_batch_is_only_normalized(images):
    pixels = (images * 255).byte().permute(0, 2, 3, 1).contiguous()
    plain = epoch_plan(seed=0, epoch=1, images=BATCH, augment="none")
    got = A.augment(pixels, torch.from_numpy(plain.table()))
    assert (got - A.normalize(A.to_unit(pixels))).abs().max() <= 1e-5


# --- By hand ----------------------------------------------------------------------------------------------------------


def test_positive_angles_turn_counter_clockwise(images):
    for angle, turns in ((90.0, 1), (-90.0, -1), (180.0, 2)):
        got, covered = A.resample(images, whole(), torch.zeros(BATCH), torch.full((BATCH,), angle))
        assert (got - torch.rot90(images, turns, (2, 3))).abs().max() <= TOLERANCE  # 4e-6 seen
        assert (covered - 1).abs().max() <= TOLERANCE


def place_by_hand(i: int, j: int, crop, flip: int, angle: float) -> tuple[float, float]:
    """Column and row of the image that an output pixel (row i, column j) shows, beyond the crop's edge continued."""
    top, left, height, width = crop
    right, up = j - 15.5, 15.5 - i  # from the centre
    a = radians(angle)  # turning the output back, clockwise, gives the place before the rotation
    right, up = cos(a) * right + sin(a) * up, cos(a) * up - sin(a) * right
    right = -right if flip else right
    column, row = left + (16 + right) * width / 32 - 0.5, top + (16 - up) * height / 32 - 0.5
    return min(max(column, left), left + width - 1), min(max(row, top), top + height - 1)


@pytest.mark.parametrize(
    "crop, flip, angle",
    [
        ((0, 0, 32, 32), 0, 10.0), ((0, 0, 32, 32), 1, 10.0), ((0, 0, 32, 32), 0, -10.0), ((5, 0, 27, 29), 0, 0.0),
        ((0, 5, 29, 27), 0, 0.0), ((0, 5, 29, 27), 1, 0.0), ((2, 1, 26, 30), 1, -7.5), ((3, 6, 28, 25), 0, 4.0),
    ],
)  # fmt: skip
def test_crop_then_flip_then_rotation_by_hand(crop, flip, angle):
    """On an image whose red says the column and whose green says the row of each pixel."""
    ramp = torch.arange(32.0) / 31
    image = torch.stack([ramp.expand(32, 32), ramp[:, None].expand(32, 32), torch.zeros(32, 32)])[None]
    got, _ = A.resample(image, torch.tensor([crop]).float(), torch.tensor([float(flip)]), torch.tensor([angle]))
    places = [[place_by_hand(i, j, crop, flip, angle) for j in range(32)] for i in range(32)]
    expected = torch.tensor(places, dtype=torch.float64).permute(2, 0, 1) / 31
    assert (got[0, :2] - expected).abs().max() <= 1e-6  # 2e-7 seen
    assert (got[0, 2] == 0).all()


def colors_by_hand(colors: list, shares: list, brightness=1.0, contrast=1.0, saturation=1.0, hue=0.0) -> np.ndarray:
    """What becomes of the colors of an image of a few areas, in the order of the arguments. shares: of the area."""

    def clipped(x):
        return np.clip(x, 0, 1)

    luma = np.array([0.2989, 0.587, 0.114])
    colors = clipped(brightness * np.array(colors))
    mean = sum(share * color @ luma for share, color in zip(shares, colors, strict=True))
    colors = clipped(contrast * colors + (1 - contrast) * mean)
    colors = np.array([clipped(saturation * color + (1 - saturation) * (color @ luma)) for color in colors])
    turned = []
    for color in colors:
        h, s, v = colorsys.rgb_to_hsv(*color)
        turned.append(colorsys.hsv_to_rgb((h + hue) % 1, s, v))
    return np.array(turned)


AREAS = {(230, 90, 20): 6, (15, 60, 210): 17, (128, 128, 128): 9}  # columns of each color, 32 in all
# An image of them as bytes, (32, 32, 3).
STRIPES = torch.tensor([[color for color, columns in AREAS.items() for _ in range(columns)]] * 32, dtype=torch.uint8)


@pytest.mark.parametrize(
    "name, value",
    [(name, value) for name in ("brightness", "contrast", "saturation") for value in (0.0, 0.8, 1.0, 1.2)]
    + [("hue", value) for value in (-0.5, -0.1, 0.0, 0.1, 1 / 3)],
)
def test_a_color_operation_by_hand(name, value):
    got = getattr(A, name)(A.to_unit(STRIPES[None]), torch.tensor([value]))[0]
    colors = colors_by_hand([np.array(c) / 255 for c in AREAS], [n / 32 for n in AREAS.values()], **{name: value})
    expected = torch.tensor(colors.repeat(list(AREAS.values()), axis=0)).T[:, None]
    assert (got - expected).abs().max() <= 1e-6  # 3e-7 seen


@pytest.mark.parametrize(
    "color",
    [(1.2, 1.2, 1.2, 0.1), (0.8, 0.8, 0.8, -0.1), (1.2, 0.8, 1.2, -0.1), (0.8, 1.2, 0.8, 0.1), (1.2, 0.9, 0.8, 0.05)],
)
def test_all_colors_in_their_order_by_hand(color):
    """The extremes, with values that are clipped on the way: another order would give other colors."""
    got = A.augment(STRIPES[None], torch.tensor([[0, 0, 32, 32, 0, 0, *color]]))[0]
    colors = colors_by_hand([np.array(c) / 255 for c in AREAS], [n / 32 for n in AREAS.values()], *color)
    expected = torch.tensor(2 * colors.repeat(list(AREAS.values()), axis=0) - 1).T[:, None]
    assert (got - expected).abs().max() <= TOLERANCE  # 2.5e-6 seen


def test_the_columns_of_a_plans_table(images, plan):
    """Crop, flip, angle, colors, square: what `augment` does with a table is what its parts do with the fields."""
    assert plan.table().dtype == np.float32 and plan.table().shape == (BATCH, 12)
    got = A.augment((images * 255).byte().permute(0, 2, 3, 1), torch.from_numpy(plan.table()))
    x, covered = A.resample((images * 255).byte() / 255, *map(torch.from_numpy, (plan.crop, plan.flip, plan.angle)))
    for operation, parameter in zip((A.brightness, A.contrast, A.saturation, A.hue), plan.color.T, strict=True):
        x = operation(x, torch.tensor(parameter))
    plain = 2 * x * covered - 1
    assert (got - plain).abs().max() <= 1e-6
    cut = A.augment((images * 255).byte().permute(0, 2, 3, 1), torch.from_numpy(plan.table()), cutout=10)
    for image, expected, (row, column) in zip(cut, plain.clone(), plan.square.astype(int), strict=True):
        expected[:, max(0, row - 5) : row + 5, max(0, column - 5) : column + 5] = 0
        assert (image - expected).abs().max() <= 1e-6


def test_corners_that_a_rotation_uncovers_are_black_and_the_inside_is_not():
    white = torch.full((1, 32, 32, 3), 255, dtype=torch.uint8)
    got = A.augment(white, torch.tensor([[0.0, 0, 32, 32, 0, 10, 1, 1, 1, 0]]))[0]
    for i, j in ((0, 0), (0, 31), (31, 0), (31, 31)):
        assert (got[:, i, j] == -1).all()
    assert (got[:, 6:26, 6:26] - 1).abs().max() <= TOLERANCE


# --- What is drawn ----------------------------------------------------------------------------------------------------

N = 200_000


@pytest.fixture(scope="module")
def many():
    return epoch_plan(seed=1, epoch=1, images=N)


def test_colors_and_angles_are_uniform_in_the_ranges_of_the_report(many):
    ranges = [(0.8, 1.2), (0.8, 1.2), (0.8, 1.2), (-0.1, 0.1), (-10, 10)]
    for values, (low, high) in zip([*many.color.T, many.angle], ranges, strict=True):
        # The outermost of N values lie within 1e-4 of the range from its ends but for a chance of e^-20.
        assert low - 1e-7 <= values.min() <= low + 1e-4 * (high - low)
        assert high - 1e-4 * (high - low) <= values.max() <= high + 1e-7
        # Ten bins of 20,000 each, whose standard deviation is 134.
        assert np.abs(np.histogram(values, 10, (low, high))[0] - N / 10).max() < 4.5 * 134


def test_half_of_the_images_are_flipped(many):
    assert set(many.flip) == {0, 1}
    assert many.flip.mean() == pytest.approx(0.5, abs=4.5 * 0.5 / N**0.5)


def assert_drawn_with(counts: np.ndarray, expected: np.ndarray) -> None:
    """A chi-squared test at five standard deviations; cells in which fewer than 5 are expected count as one."""
    rare = expected < 5
    counts, expected = (np.append(x[~rare], x[rare].sum()) for x in (counts, expected))
    kept = expected > 0
    assert counts[~kept].sum() == 0
    chi = ((counts - expected)[kept] ** 2 / expected[kept]).sum()
    assert chi < kept.sum() + 5 * (2 * kept.sum()) ** 0.5


def test_crops_have_the_sizes_of_torchvisions(many):
    """Area uniform from 80% to 100%, log aspect ratio uniform from 3/4 to 4/3, ten tries, then the whole image."""
    cells = (np.arange(1_500) + 0.5) / 1_500
    area, ratio = 1024 * (0.8 + 0.2 * cells), np.exp(log(3 / 4) + log(16 / 9) * cells[:, None])
    height, width = np.rint(np.sqrt(area / ratio)), np.rint(np.sqrt(area * ratio))
    fits = (height <= 32) & (width <= 32)
    share = np.zeros((33, 33))
    np.add.at(share, (height[fits].astype(int), width[fits].astype(int)), 1 / fits.sum())
    missed = (1 - fits.mean()) ** 10
    share *= 1 - missed
    share[32, 32] += missed
    counts = np.zeros((33, 33))
    np.add.at(counts, tuple(many.crop[:, 2:].astype(int).T), 1)
    assert_drawn_with(counts.ravel(), N * share.ravel())


@pytest.mark.parametrize("start, length", [(0, 2), (1, 3)])
def test_crops_lie_anywhere_where_they_fit(many, start, length):
    starts, lengths = many.crop[:, start].astype(int), many.crop[:, length].astype(int)
    for size in range(25, 33):
        places = np.bincount(starts[lengths == size], minlength=33)
        expected = np.where(np.arange(33) <= 32 - size, places.sum() / (33 - size), 0)
        assert_drawn_with(places, expected)


def test_the_two_sides_of_a_crop_are_placed_independently(many):
    square = many.crop[(many.crop[:, 2:] == 29).all(axis=1)].astype(int)
    assert len(square) > 1_000
    assert_drawn_with(np.bincount(4 * square[:, 0] + square[:, 1], minlength=16), np.full(16, len(square) / 16))


def test_flips_and_crops_are_torchvisions_bit_for_bit():
    """Of each image padded by four black pixels; the offsets and flips of the plan."""
    pixels = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (40, 32, 32, 3), dtype=np.uint8))
    plan = epoch_plan(seed=2, epoch=3, images=40, augment="flip-crop")
    got = A.augment(pixels, torch.from_numpy(plan.table()), kind="flip-crop")
    for image, out, (top, left, *size), flip in zip(pixels, got, plan.crop.astype(int), plan.flip, strict=True):
        expected = TF.crop(TF.pad(image.permute(2, 0, 1), 4), top + 4, left + 4, *size)
        expected = TF.hflip(expected) if flip else expected
        assert torch.equal(out, expected / 255 * 2 - 1)


def test_the_offsets_of_flips_and_crops_are_uniform():
    plan = epoch_plan(seed=0, epoch=1, images=45_000, augment="flip-crop")
    for offsets in plan.crop.T[:2]:
        values, counts = np.unique(offsets, return_counts=True)
        assert values.tolist() == list(range(-4, 5))
        assert abs(counts - 5000).max() < 5 * 5000**0.5  # standard deviations
    assert abs(np.corrcoef(plan.crop.T[:2])[0, 1]) < 5 / 45_000**0.5
    assert (plan.crop[:, 2:] == 32).all() and abs(plan.flip.mean() - 0.5) < 5 * 0.5 / 45_000**0.5
    assert not plan.angle.any() and (plan.color == [1, 1, 1, 0]).all()


def test_without_augmentation_the_parameters_change_nothing():
    plan = epoch_plan(seed=1, epoch=1, images=3, augment="none")
    assert plan.table()[:, :10].tolist() == [[0, 0, 32, 32, 0, 0, 1, 1, 1, 0]] * 3

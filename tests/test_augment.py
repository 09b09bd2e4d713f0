"""Each operation against torchvision's at the same parameters, and the distributions they are drawn from."""

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as TF
from torchvision.transforms import ColorJitter, InterpolationMode, RandomResizedCrop

from cifar_lab import augment as A
from cifar_lab.plan import SIZE, epoch_plan

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
    got = A.augment(pixels, torch.from_numpy(plan.table()))
    assert got.shape == (BATCH, 3, SIZE, SIZE)

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
    plain = epoch_plan(seed=0, epoch=1, images=BATCH, augment=False)
    got = A.augment(pixels, torch.from_numpy(plain.table()))
    assert (got - A.normalize(A.to_unit(pixels))).abs().max() <= 1e-5


def test_crops_are_distributed_as_torchvision_draws_them():
    n = 20_000
    ours = epoch_plan(seed=1, epoch=1, images=n).crop
    torch.manual_seed(0)
    image = torch.zeros(3, SIZE, SIZE)
    theirs = np.array([RandomResizedCrop.get_params(image, [0.8, 1.0], [3 / 4, 4 / 3]) for _ in range(4_000)])
    for column in range(4):
        for moment in (np.mean, np.std):
            assert moment(ours[:, column]) == pytest.approx(moment(theirs[:, column]), abs=0.12), (column, moment)
    assert (ours[:, :2] + ours[:, 2:]).max() <= SIZE
    assert ours[:, :2].min() >= 0


def test_other_parameters_are_uniform_in_the_ranges_of_the_report():
    n = 20_000
    plan = epoch_plan(seed=1, epoch=1, images=n)
    jitter = ColorJitter(0.2, 0.2, 0.2, 0.1)
    ranges = [jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue]
    for values, (low, high) in zip([*plan.color.T, plan.angle], [*ranges, (-10, 10)], strict=True):
        assert np.histogram(values, 10, (low, high))[0].min() > 0.08 * n
        assert low <= values.min() and values.max() <= high
    assert plan.flip.mean() == pytest.approx(0.5, abs=0.02)


def test_a_plan_is_a_function_of_seed_and_epoch():
    one, same = epoch_plan(5, 2, 100), epoch_plan(5, 2, 100)
    assert (one.order == same.order).all() and (one.table() == same.table()).all()
    for other in (epoch_plan(5, 3, 100), epoch_plan(6, 2, 100)):
        assert (one.order != other.order).any() and (one.table() != other.table()).any()
    assert sorted(one.order) == list(range(100))
    # The order does not depend on whether images are augmented.
    assert (epoch_plan(5, 2, 100, augment=False).order == one.order).all()

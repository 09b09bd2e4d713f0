"""Augmentation of whole batches, on the device; the report's is a sampling grid, then colors, each image its own draw.

The report composes torchvision's RandomResizedCrop, RandomHorizontalFlip, ColorJitter and RandomRotation on PIL images.
Each operation here agrees with torchvision's functional one at the same parameters (tests/test_augment.py states the
tolerance), with what is drawn as torchvision draws it. The composition differs in five points:

- crop, flip and rotation are one bilinear interpolation; torchvision interpolates twice, the rotation by nearest pixel;
- the colors come after the rotation instead of before it, and in the order brightness, contrast, saturation, hue;
  torchvision draws a new order for each image;
- contrast blends with the mean gray of the rotated image whose corners are continued from the edge, not of the crop;
- values stay in floating point; PIL rounds to 8 bits after each operation;
- the corners that a rotation uncovers are black, as there, with an edge softened by the interpolation.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from cifar_lab.data.datasets import Normalization
from cifar_lab.run_folder import inputs
from cifar_lab.settings import SIZE
from cifar_lab.training.plan import PADDING

HALF: Normalization = (inputs.HALF, inputs.HALF)
GRAY = (0.2989, 0.587, 0.114)  # ITU-R BT.601 luma, in torchvision's rounding


def to_unit(images: Tensor) -> Tensor:
    """Bytes (B, 32, 32, 3) as (B, 3, 32, 32) in [0, 1]."""
    return images.permute(0, 3, 1, 2).float().div_(255)


def normalize(images: Tensor, by: Normalization = HALF) -> Tensor:
    """Minus the mean and divided by the standard deviation of each channel; of 0.5 and 0.5, [0, 1] becomes [-1, 1]."""
    if all(len(set(values)) == 1 for values in by):
        (mean, *_), (deviation, *_) = by
        return images.sub(mean).mul_(1 / deviation)
    images = images.clone()
    for channel, mean, deviation in zip(images.unbind(1), *by, strict=True):
        channel.sub_(mean).mul_(1 / deviation)
    return images


def network_input(images: Tensor, by: Normalization = HALF) -> Tensor:
    """Bytes (B, 32, 32, 3) as a network takes them, only normalized: (B, 3, 32, 32)."""
    return normalize(to_unit(images), by)


def resample(images: Tensor, crop: Tensor, flip: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    """Crop and resize to 32 x 32, mirror if `flip`, rotate by `angle` degrees: one bilinear interpolation.

    images (B, 3, 32, 32); crop (B, 4): top, left, height, width in pixels; flip, angle (B,). Returns the images
    (B, 3, 32, 32), edges continued outwards, and the share of each pixel that the rotated square covers (B, 1, 32, 32).
    """
    center = (SIZE - 1) / 2
    axis = torch.arange(SIZE, device=images.device, dtype=images.dtype) - center
    radians = torch.deg2rad(angle).view(-1, 1)
    cos, sin = radians.cos() * axis, radians.sin() * axis  # (B, 32)
    # Where each output pixel lies in the unrotated square: (B, 32, 32), a part from its column and one from its row.
    x, y = cos.unsqueeze(1) - sin.unsqueeze(2), sin.unsqueeze(1) + cos.unsqueeze(2)
    # Bilinear weights of a pixel outside the square are zero: from half a pixel beyond the last center inwards.
    edge = SIZE / 2 + 0.5
    covered = (edge - x.abs()).clamp_(0, 1).mul_((edge - y.abs()).clamp_(0, 1)).unsqueeze(1)
    top, left, height, width = (c.view(-1, 1, 1) for c in crop.unbind(1))
    mirrored = (1 - 2 * flip).view(-1, 1, 1)
    grid = torch.empty(*x.shape, 2, device=images.device, dtype=images.dtype)
    for i, (place, start, length, sign) in enumerate(((x, left, width, mirrored), (y, top, height, 1))):
        # From the output's pixel centers to the crop's, of which the outer ones are `first` and `last`; [-1, 1] spans
        # the image's. What lies beyond is clamped: the crop's edge is continued, not the image's.
        first, last = start / center - 1, (start + length - 1) / center - 1
        unclamped = torch.addcmul((first + last) / 2, place, sign * length / (SIZE * center))
        torch.clamp(unclamped, first, last, out=grid[..., i])
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=True), covered


def _blend(images: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    factor = factor.view(-1, 1, 1, 1)
    return torch.addcmul(other * (1 - factor), images, factor).clamp_(0, 1)


def _gray(images: Tensor) -> Tensor:
    red, green, blue = images.unbind(1)
    return (GRAY[0] * red).add_(green, alpha=GRAY[1]).add_(blue, alpha=GRAY[2]).unsqueeze(1)


def brightness(images: Tensor, factor: Tensor) -> Tensor:
    """images (B, 3, 32, 32) in [0, 1] times factor (B,)."""
    return (images * factor.view(-1, 1, 1, 1)).clamp_(0, 1)


def contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Blends with the image's mean gray."""
    return _blend(images, _gray(images).mean((1, 2, 3), keepdim=True), factor)


def saturation(images: Tensor, factor: Tensor) -> Tensor:
    """Blends with the gray image."""
    return _blend(images, _gray(images), factor)


def _equal(a: Tensor, b: Tensor) -> Tensor:
    """1 where equal, else 0, as floats: `torch.lerp` chooses by them ten times as fast as `torch.where` by a mask."""
    return torch.eq(a, b, out=torch.empty_like(a))


def hue(images: Tensor, shift: Tensor) -> Tensor:
    """Turns the colors by `shift` (B,), a share of the circle: through HSV, as torchvision does."""
    red, green, blue = images.unbind(1)
    value = torch.maximum(torch.maximum(red, green), blue)
    chroma = value - torch.minimum(torch.minimum(red, green), blue)
    # The hue in sixths of the circle: from red, green or blue, whichever is the value.
    sixths = (red - green).add_(chroma, alpha=4)
    sixths = torch.lerp(sixths, (blue - red).add_(chroma, alpha=2), _equal(value, green))
    sixths = torch.lerp(sixths, green - blue, _equal(value, red))
    sixths.div_(chroma.clamp(min=1e-9)).add_(6 * shift.view(-1, 1, 1))  # gray has none: 0 / 1e-9
    # HSV to RGB in closed form: a channel lacks all of the chroma if the hue is within 1 sixth of the channel's
    # opposite, and not at all beyond 2. The opposite of red (0), green (2) and blue (4) is 3 sixths away.
    own = 2 * torch.arange(3, device=images.device).view(1, 3, 1, 1)
    from_opposite = (sixths.unsqueeze(1) - own).abs_().sub_(3).abs_()
    lacking = from_opposite.neg_().add_(2).clamp_(0, 1)
    return torch.addcmul(value.unsqueeze(1), chroma.unsqueeze(1), lacking, value=-1)


def flip_crop(images: Tensor, table: Tensor, by: Normalization) -> Tensor:
    """Crops of the image's size at whole pixels, black beyond the image, mirrored if `flip` (He et al. 2016, section
    4.2)."""
    padded = F.pad(images, (0, 0, PADDING, PADDING, PADDING, PADDING))  # (B, 40, 40, 3)
    axis = torch.arange(SIZE, device=images.device)
    rows = table[:, 0:1].long() + PADDING + axis  # (B, 32)
    columns = table[:, 1:2].long() + PADDING + torch.where(table[:, 4:5] > 0, axis.flip(0), axis)
    each = torch.arange(len(images), device=images.device).view(-1, 1, 1)
    return network_input(padded[each, rows.unsqueeze(2), columns.unsqueeze(1)], by)


def of_report(images: Tensor, table: Tensor, by: Normalization) -> Tensor:
    """The report's crop, flip, rotation and colors."""
    crop, flip, angle, color = table[:, :4], table[:, 4], table[:, 5], table[:, 6:10]
    images, covered = resample(to_unit(images), crop, flip, angle)
    images = brightness(images, color[:, 0])
    images = contrast(images, color[:, 1])
    images = saturation(images, color[:, 2])
    images = hue(images, color[:, 3])
    return normalize(images.mul_(covered), by)


def cut_out(images: Tensor, center: Tensor, side: int) -> Tensor:
    """A square of zeros, the middle of what normalization gives, in each image; what lies beyond the edge is cut off
    (DeVries & Taylor 2017, "Improved Regularization of Convolutional Neural Networks with Cutout").

    images (B, 3, 32, 32), normalized; center (B, 2): row and column; side in pixels.
    """
    axis = torch.arange(SIZE, device=images.device)
    rows, columns = (axis - (center[:, i : i + 1] - side // 2) for i in range(2))  # (B, 32), from the square's edge
    inside = ((rows >= 0) & (rows < side)).unsqueeze(2) & ((columns >= 0) & (columns < side)).unsqueeze(1)
    return images.masked_fill(inside.unsqueeze(1), 0)


AUGMENTATIONS = {  # by `settings.AUGMENTS`
    "none": lambda images, table, by: network_input(images, by), "flip-crop": flip_crop, "report": of_report,
}  # fmt: skip


def augment(
    images: Tensor, table: Tensor, by: Normalization = HALF, kind: str = "report", cutout: int = 0
) -> Tensor:  # fmt: skip
    """One batch, augmented and normalized.

    images (B, 32, 32, 3) uint8; table (B, 12), rows of `EpochPlan.table`; cutout: side of a square, 0 for none. Returns
    (B, 3, 32, 32), normalized.
    """
    augmented = AUGMENTATIONS[kind](images, table, by)
    return cut_out(augmented, table[:, 10:], cutout) if cutout else augmented

"""The report's augmentation on whole batches, on the device: a sampling grid, then colors, each image its own draw.

The report composes torchvision's RandomResizedCrop, RandomHorizontalFlip, ColorJitter and RandomRotation on PIL images.
Each operation here agrees with torchvision's functional one at the same parameters (tests/test_augment.py states the
tolerance), with what is drawn as torchvision draws it. The composition differs in five points:

- crop, flip and rotation are one bilinear interpolation; torchvision interpolates twice, the rotation by nearest pixel;
- the colors come after the rotation instead of before it, and in the order brightness, contrast, saturation, hue;
  torchvision draws that order anew for each image;
- contrast blends with the mean gray of the rotated image whose corners are continued from the edge, not of the crop;
- values stay in floating point; PIL rounds to 8 bits after each operation;
- the corners that a rotation uncovers are black, as there, with an edge softened by the interpolation.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from cifar_lab.plan import SIZE

GRAY = (0.2989, 0.587, 0.114)  # ITU-R BT.601 luma, in torchvision's rounding


def to_unit(images: Tensor) -> Tensor:
    """Bytes (B, 32, 32, 3) as (B, 3, 32, 32) in [0, 1]."""
    return images.permute(0, 3, 1, 2).float().div_(255)


def normalize(images: Tensor) -> Tensor:
    """Mean 0.5 and standard deviation 0.5 in each channel: [0, 1] becomes [-1, 1]."""
    return images.mul(2).sub_(1)


def resample(images: Tensor, crop: Tensor, flip: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    """Crop and resize to 32 x 32, mirror where `flip`, rotate by `angle` degrees: one bilinear interpolation.

    images (B, 3, 32, 32); crop (B, 4): top, left, height, width in pixels; flip, angle (B,). Returns the images
    (B, 3, 32, 32), edges continued outwards, and the share of each pixel that the rotated square covers (B, 1, 32, 32).
    """
    center = (SIZE - 1) / 2
    axis = torch.arange(SIZE, device=images.device, dtype=images.dtype) - center
    x, y = axis.view(1, 1, SIZE), axis.view(1, SIZE, 1)
    radians = torch.deg2rad(angle).view(-1, 1, 1)
    cos, sin = radians.cos(), radians.sin()
    x, y = cos * x - sin * y, sin * x + cos * y  # (B, 32, 32): where each output pixel lies in the unrotated square
    # Bilinear weights of a pixel outside the square are zero: from half a pixel beyond the last center inwards.
    covered = ((SIZE / 2 + 0.5 - x.abs()).clamp(0, 1) * (SIZE / 2 + 0.5 - y.abs()).clamp(0, 1)).unsqueeze(1)
    x = x * (1 - 2 * flip).view(-1, 1, 1)
    top, left, height, width = (c.view(-1, 1, 1) for c in crop.unbind(1))
    # Pixel centers of the output to those of the crop; the crop's edge is continued, not the image's.
    x = left + ((x + SIZE / 2) * width / SIZE - 0.5).clamp(min=0).minimum(width - 1)
    y = top + ((y + SIZE / 2) * height / SIZE - 0.5).clamp(min=0).minimum(height - 1)
    grid = torch.stack([x, y], dim=-1) / center - 1
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=True), covered


def _blend(images: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    return torch.lerp(other, images, factor).clamp_(0, 1)


def _gray(images: Tensor) -> Tensor:
    red, green, blue = images.unbind(1)
    return (GRAY[0] * red + GRAY[1] * green + GRAY[2] * blue).unsqueeze(1)


def brightness(images: Tensor, factor: Tensor) -> Tensor:
    """images (B, 3, 32, 32) in [0, 1] times factor (B,)."""
    return (images * factor.view(-1, 1, 1, 1)).clamp_(0, 1)


def contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Blends with the image's mean gray."""
    return _blend(images, _gray(images).mean((1, 2, 3), keepdim=True), factor.view(-1, 1, 1, 1))


def saturation(images: Tensor, factor: Tensor) -> Tensor:
    """Blends with the gray image."""
    return _blend(images, _gray(images), factor.view(-1, 1, 1, 1))


def hue(images: Tensor, shift: Tensor) -> Tensor:
    """Turns the colors by `shift` (B,), a share of the circle: through HSV, as torchvision does."""
    red, green, blue = images.unbind(1)
    value, low = images.amax(1), images.amin(1)
    chroma = value - low
    scale = torch.where(chroma > 0, chroma, 1).reciprocal()
    sixths = torch.where(
        value == red,
        (green - blue) * scale,
        torch.where(value == green, 2 + (blue - red) * scale, 4 + (red - green) * scale),
    )
    sixths = sixths + 6 * shift.view(-1, 1, 1)
    # HSV to RGB in closed form: each channel is a trapezoid in the hue, offset by a third of the circle.
    offsets = (5 - 2 * torch.arange(3, device=images.device)).view(1, 3, 1, 1)
    position = offsets + sixths.unsqueeze(1)
    position = position - 6 * (position / 6).floor()  # modulo 6; torch.remainder takes three times as long on a CPU
    ramp = torch.minimum(position, 4 - position).clamp_(0, 1)
    return value.unsqueeze(1) - chroma.unsqueeze(1) * ramp


def augment(images: Tensor, table: Tensor) -> Tensor:
    """One batch, augmented and normalized.

    images (B, 32, 32, 3) uint8; table (B, 10), rows of `EpochPlan.table`. Returns (B, 3, 32, 32) in [-1, 1].
    """
    crop, flip, angle, color = table[:, :4], table[:, 4], table[:, 5], table[:, 6:]
    images, covered = resample(to_unit(images), crop, flip, angle)
    images = brightness(images, color[:, 0])
    images = contrast(images, color[:, 1])
    images = saturation(images, color[:, 2])
    images = hue(images, color[:, 3])
    return normalize(images * covered)

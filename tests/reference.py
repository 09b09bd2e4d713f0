"""A second, slow implementation of the trainings, from the report and the papers; it imports nothing of the project.

Networks are functions over a dictionary of weights, in the order in which their layers are built; everything is
computed in float64, one network, one batch and one augmented image at a time. What a seed decides is drawn as the
project documents it: numpy's Philox generator of `SeedSequence((seed, stream, epoch))` for the order (stream 1) and
the augmentation (stream 2), and 32-bit seeds `SeedSequence((seed, stream))` for the weights (0) and dropout masks (3).
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
import torchvision.transforms.functional as TF
from torch import Tensor, nn

Weights = dict[str, Tensor]

# Clevert et al. (2016), Hendrycks & Gimpel (2016), Elfwing et al. (2018).
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "leaky_relu": lambda x: torch.where(x > 0, x, 0.01 * x),
    "elu": lambda x: torch.where(x > 0, x, x.clamp(max=0).exp() - 1),
    "gelu": lambda x: x * (1 + torch.erf(x / math.sqrt(2))) / 2,
    "silu": lambda x: x * torch.sigmoid(x),
    "tanh": torch.tanh,
}
GAINS = {
    "relu": math.sqrt(2), "leaky_relu": math.sqrt(2 / 1.0001), "elu": 1.2452, "gelu": 1.53353, "silu": 1.67653,
    "tanh": 5 / 3,
}  # fmt: skip


def loss_of(name: str, scores: Tensor, truth: Tensor) -> Tensor:
    """The mean over the images: scores (B, 10), truth (B,)."""
    log_p, one_hot = scores.log_softmax(1), F.one_hot(truth, scores.shape[1]).to(scores.dtype)
    chosen = (log_p * one_hot).sum(1)
    each = {
        "cross_entropy": -chosen,
        "label_smoothing": -(log_p * (0.9 * one_hot + 0.01)).sum(1),
        "mse": ((scores - one_hot) ** 2).mean(1),
        "hinge": ((1 + scores - (scores * one_hot).sum(1, keepdim=True)).clamp(min=0) * (1 - one_hot)).mean(1),
        "focal": -((1 - chosen.exp()) ** 2) * chosen,
    }
    return each[name].mean()


# --- Networks --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layer:
    """A convolution, or with kernel 0 a linear layer, on images of size x size pixels."""

    name: str
    inputs: int
    outputs: int
    kernel: int
    size: int = 1

    @property
    def multiplications(self) -> int:
        """For one image."""
        return self.inputs * self.outputs * max(self.kernel, 1) ** 2 * self.size**2


# Output channels and image size of VGG's column A.
VGG = {
    "conv1": (64, 32), "conv2": (128, 16), "conv3": (256, 8), "conv4": (256, 8), "conv5": (512, 4), "conv6": (512, 4),
    "conv7": (512, 2), "conv8": (512, 2),
}  # fmt: skip
# Image size, and channels of 1x1, 3x3 reduce, 3x3, 5x5 reduce, 5x5, pool projection.
INCEPTION = {
    "3a": (8, 64, 96, 128, 16, 32, 32),
    "3b": (8, 128, 128, 192, 32, 96, 64),
    "4a": (4, 192, 96, 208, 16, 48, 64),
    "4b": (4, 160, 112, 224, 24, 64, 64),
    "4c": (4, 128, 128, 256, 24, 64, 64),
    "4d": (4, 112, 144, 288, 32, 64, 64),
    "4e": (4, 256, 160, 320, 32, 128, 128),
    "5a": (2, 256, 160, 320, 32, 128, 128),
    "5b": (2, 384, 192, 384, 48, 128, 128),
}


def layers(model: str, width: float) -> list[Layer]:
    """The layers with weights, in the order in which they are built; channels are multiples of 8, at least 8."""

    def scaled(channels: int) -> int:
        return max(8, math.floor(channels * width / 8 + 0.5) * 8)

    found = []
    channels = 3
    if model.startswith("vgg_a"):
        for name, (out, size) in VGG.items():
            found.append(Layer(name, channels, scaled(out), 3, size))
            channels = scaled(out)
        hidden = scaled(512)
        return [*found, Layer("fc1", channels, hidden, 0), Layer("fc2", hidden, hidden, 0), Layer("out", hidden, 10, 0)]
    found += [Layer("stem1", 3, scaled(64), 3, 32), Layer("stem2", scaled(64), scaled(192), 3, 16)]
    channels = scaled(192)
    for name, (size, *table) in INCEPTION.items():
        c1, reduce3, c3, reduce5, c5, pool = map(scaled, table)
        found += [
            Layer(f"{name} 1x1", channels, c1, 1, size),
            Layer(f"{name} reduce3", channels, reduce3, 1, size), Layer(f"{name} 3x3", reduce3, c3, 3, size),
            Layer(f"{name} reduce5", channels, reduce5, 1, size), Layer(f"{name} 5x5", reduce5, c5, 5, size),
            Layer(f"{name} pool", channels, pool, 1, size),
        ]  # fmt: skip
        out = c1 + c3 + c5 + pool
        if model.startswith("inception_res") and out != channels:
            found.append(Layer(f"{name} shortcut", channels, out, 1, size))
        channels = out
    return [*found, Layer("out", channels, 10, 0)]


def state_names(model: str, width: float) -> list[str]:
    """The names of weights and running statistics, in the order of a PyTorch state_dict."""
    names = []
    for layer in layers(model, width):
        names += [f"{layer.name} weight", f"{layer.name} bias"]
        if model.endswith("_bn") and layer.name != "out":
            names += [f"{layer.name} {what}" for what in ("gamma", "beta", "mean", "variance", "batches")]
    return names


def is_trained(name: str) -> bool:
    return name.endswith((" weight", " bias", " gamma", " beta"))


def initial(model: str, width: float, init: str, seed: int, activation: str) -> Weights:
    """PyTorch's own draw of all layers, then He's or Glorot's over it, with zero biases; He leaves the output layer."""
    torch.manual_seed(int(np.random.SeedSequence((seed, 0)).generate_state(1)[0]))
    built = [
        nn.Conv2d(layer.inputs, layer.outputs, layer.kernel) if layer.kernel else nn.Linear(layer.inputs, layer.outputs)
        for layer in layers(model, width)
    ]
    for module in built if init == "xavier" else built[:-1] if init == "he" else []:
        taps = module.weight[0, 0].numel()
        inputs, outputs = module.weight.shape[1] * taps, module.weight.shape[0] * taps
        with torch.no_grad():
            module.bias.zero_()
            if init == "he":
                module.weight.normal_(0, GAINS[activation] / math.sqrt(inputs))
            else:
                bound = math.sqrt(6 / (inputs + outputs))
                module.weight.uniform_(-bound, bound)
    weights = {}
    for layer, module in zip(layers(model, width), built, strict=True):
        weights |= {f"{layer.name} weight": module.weight, f"{layer.name} bias": module.bias}
        if model.endswith("_bn") and layer.name != "out":
            zero = torch.zeros(layer.outputs)
            for what, start in {"gamma": zero + 1, "beta": zero, "mean": zero, "variance": zero + 1}.items():
                weights[f"{layer.name} {what}"] = start
            weights[f"{layer.name} batches"] = torch.tensor(0)
    return {name: w.detach().double().requires_grad_(is_trained(name)) for name, w in weights.items()}


def logits(
    model: str, w: Weights, x: Tensor, *, scale: float, activation: str,
    mask: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:  # fmt: skip
    """Images (B, 3, 32, 32) to logits (B, 10); in training, where a `mask` gives the factors of dropout, or not.

    scale: of the residual. VGG has no dropout: it is in training where there is a mask, and does not use it.
    """
    training = mask is not None
    act = ACTIVATIONS[activation]

    def layer(name: str, x: Tensor, relu: bool = True) -> Tensor:
        weight, bias = w[f"{name} weight"], w[f"{name} bias"]
        x = F.conv2d(x, weight, bias, padding=weight.shape[2] // 2) if weight.dim() == 4 else F.linear(x, weight, bias)
        if f"{name} gamma" in w:
            gamma, beta, mean, variance = (w[f"{name} {what}"] for what in ("gamma", "beta", "mean", "variance"))
            x = F.batch_norm(x, mean, variance, gamma, beta, training=training, momentum=0.1, eps=1e-5)
            w[f"{name} batches"] += training
        return act(x) if relu else x

    if model.startswith("vgg_a"):
        for name in VGG:
            x = layer(name, x)
            if name in ("conv1", "conv2", "conv4", "conv6", "conv8"):
                x = F.max_pool2d(x, 2, 2)
        return layer("out", layer("fc2", layer("fc1", x.flatten(1))), relu=False)

    residual = model.startswith("inception_res")
    x = F.max_pool2d(layer("stem1", x), 3, 2, padding=1)
    x = F.max_pool2d(layer("stem2", x), 3, 2, padding=1)
    for name in INCEPTION:
        branches = torch.cat(
            [
                layer(f"{name} 1x1", x, relu=not residual),
                layer(f"{name} 3x3", layer(f"{name} reduce3", x), relu=not residual),
                layer(f"{name} 5x5", layer(f"{name} reduce5", x), relu=not residual),
                layer(f"{name} pool", F.max_pool2d(x, 3, 1, padding=1), relu=not residual),
            ],
            dim=1,
        )
        if residual:
            shortcut = layer(f"{name} shortcut", x, relu=False) if f"{name} shortcut weight" in w else x
            branches = act(shortcut + scale * branches)
        x = branches
        if name == "3b":
            x = F.max_pool2d(x, 3, 2, padding=1)
        if name == "4e":
            x = F.max_pool2d(x, 2, 2)
    x = F.adaptive_avg_pool2d(x, 1).flatten(1)
    return layer("out", x * mask(x) if training else x, relu=False)


def dropout(seed: int, step: int) -> Callable[[Tensor], Tensor]:
    """Factors 0 or 1 / 0.6 from a hash of seed, step (from 0, over the whole run) and element: Wellons' lowbias32."""

    def mix(x: int) -> int:
        x = (x ^ x >> 16) * 0x7FEB352D % 2**32
        x = (x ^ x >> 15) * 0x846CA68B % 2**32
        return x ^ x >> 16

    key = int(np.random.SeedSequence((seed, 3)).generate_state(1)[0])
    of_step = step * 0x9E3779B1 % 2**32

    def mask(x: Tensor) -> Tensor:
        kept = [mix(mix((element + key) % 2**32) ^ of_step) >= math.floor(0.4 * 2**32) for element in range(x.numel())]
        return torch.tensor(kept).view(x.shape) / torch.tensor(0.6, dtype=x.dtype)

    return mask


# --- Batches ---------------------------------------------------------------------------------------------------------


def generator(seed: int, stream: int, epoch: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, stream, epoch))))


def crops(rng: np.random.Generator, images: int) -> list[tuple[int, int, int, int]]:
    """Top, left, height, width: area and log aspect ratio uniform, ten tries to fit, else the whole image.

    Each try draws for all images that are left: their areas, their ratios, their tops, their lefts.
    """
    found = [(0, 0, 32, 32)] * images
    left_over = list(range(images))
    for _ in range(10):
        n = len(left_over)
        areas, ratios = rng.uniform(0.8, 1.0, n) * 32 * 32, np.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3), n))
        tops, lefts = rng.random(n), rng.random(n)
        misfits = []
        for i, area, ratio, top, left in zip(left_over, areas, ratios, tops, lefts, strict=True):
            width, height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < width <= 32 and 0 < height <= 32:
                found[i] = (int(top * (33 - height)), int(left * (33 - width)), height, width)
            else:
                misfits.append(i)
        left_over = misfits
    return found


def sample(image: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Bilinear interpolation of an image (32, 32, C) at pixel coordinates; 0 outside."""
    padded = np.pad(image, ((1, 2), (1, 2), (0, 0)))
    x, y = np.clip(x + 1, 0, 33), np.clip(y + 1, 0, 33)
    column, row = np.floor(x).astype(int), np.floor(y).astype(int)
    right, down = (x - column)[..., None], (y - row)[..., None]
    upper = padded[row, column] * (1 - right) + padded[row, column + 1] * right
    lower = padded[row + 1, column] * (1 - right) + padded[row + 1, column + 1] * right
    return upper * (1 - down) + lower * down


def augmented(image: np.ndarray, crop: tuple, mirrored: bool, degrees: float, color: np.ndarray) -> Tensor:
    """One image (32, 32, 3) of bytes, cropped, resized, mirrored, rotated, then its colors changed: (3, 32, 32).

    A pixel of the result is followed back through rotation, mirror and crop and interpolated once. The crop's edge is
    continued outwards; what lies outside the rotated square becomes black after the colors.
    """
    top, left, height, width = crop
    down, right = np.mgrid[:32, :32] - 15.5  # from the center
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    x, y = cos * right - sin * down, sin * right + cos * down  # before the counter-clockwise rotation
    inside = sample(np.ones((32, 32, 1)), x + 15.5, y + 15.5)
    x = -x if mirrored else x
    x = np.clip(left + (x + 16) * width / 32 - 0.5, left, left + width - 1)
    y = np.clip(top + (y + 16) * height / 32 - 0.5, top, top + height - 1)
    changed = torch.from_numpy(sample(image / 255, x, y)).permute(2, 0, 1)
    for adjust, parameter in zip(
        (TF.adjust_brightness, TF.adjust_contrast, TF.adjust_saturation, TF.adjust_hue), color.tolist(), strict=True
    ):
        changed = adjust(changed, parameter)
    return normalized(changed * torch.from_numpy(inside[..., 0]))


def normalized(image: Tensor) -> Tensor:
    return TF.normalize(image, [0.5] * 3, [0.5] * 3)


def plain(images: np.ndarray) -> Tensor:
    """Bytes (B, 32, 32, 3) as (B, 3, 32, 32) in [-1, 1]."""
    return normalized(torch.from_numpy(images / 255).permute(0, 3, 1, 2))


def epoch_images(images: np.ndarray, seed: int, epoch: int, augment: bool | str) -> tuple[np.ndarray, Tensor]:
    """The order of an epoch (from 1), and the images in this order; augmentation is drawn in this order, too."""
    order = generator(seed, 1, epoch).permutation(len(images))
    if not augment:
        return order, plain(images[order])
    rng = generator(seed, 2, epoch)
    mirrored = rng.random(len(images)) < 0.5
    if augment == "flip-crop":
        places = zip(images[order], rng.integers(-4, 5, (len(images), 2)) + 4, mirrored, strict=True)
        cropped = [np.pad(image, ((4, 4), (4, 4), (0, 0)))[y : y + 32, x : x + 32] for image, (y, x), _ in places]
        return order, plain(
            np.stack([image[:, ::-1] if m else image for image, m in zip(cropped, mirrored, strict=True)])
        )
    degrees = np.float32(rng.uniform(-10, 10, len(images)))
    color = np.float32(rng.uniform([0.8, 0.8, 0.8, -0.1], [1.2, 1.2, 1.2, 0.1], (len(images), 4)))
    drawn = zip(order, crops(rng, len(images)), mirrored, degrees.tolist(), color, strict=True)
    return order, torch.stack([augmented(images[i], *parameters) for i, *parameters in drawn])


# --- Optimizers ------------------------------------------------------------------------------------------------------


def update(
    optimizer: str, w: Tensor, g: Tensor, kept: dict, step: int, lr: float, weight_decay: float, momentum: float
) -> None:
    """One step (from 1) of one weight tensor, in place. kept: what the optimizer remembers of this tensor."""
    if optimizer == "adamw":
        w *= 1 - lr * weight_decay
    else:
        g = g + weight_decay * w
    if optimizer == "sgd":
        kept["momentum"] = momentum * kept.get("momentum", 0) + g
        w -= lr * kept["momentum"]
    elif optimizer == "rmsprop":
        kept["square"] = 0.99 * kept.get("square", 0) + 0.01 * g**2
        w -= lr * g / (kept["square"].sqrt() + 1e-8)
    else:
        kept["mean"] = 0.9 * kept.get("mean", 0) + 0.1 * g
        kept["square"] = 0.999 * kept.get("square", 0) + 0.001 * g**2
        w -= lr * kept["mean"] / (1 - 0.9**step) / ((kept["square"] / (1 - 0.999**step)).sqrt() + 1e-8)


def rate_factor(s: "Settings", step: int) -> float:
    """Of the learning rate, at a step from 0 of the whole run."""
    steps = s.epochs * math.ceil(s.train_size / s.batch_size)
    if s.schedule == "one-cycle":  # 1/25 to 1 to 1/250,000
        peak = s.warmup - 1
        low, place = (1 / 25, step / peak) if step <= peak else (4e-6, (steps - 1 - step) / (steps - 1 - peak))
        return low + (1 - low) * (1 - math.cos(math.pi * place)) / 2
    warm = min(1, (step + 1) / s.warmup) if s.warmup else 1
    if s.schedule == "cosine":
        return warm * (1 + math.cos(math.pi * max(0, step - s.warmup) / (steps - s.warmup))) / 2
    return warm * (0.1 ** (int(4 * step / steps) - 1) if s.schedule == "step" and 2 * step >= steps else 1)


def transfer_factors(model: str, width: float, optimizer: str) -> dict[str, tuple[float, float]]:
    """What rate and weight decay of each trained weight are multiplied by (Yang et al. 2021, table 3).

    They follow the ratio of a layer's channels to those at width 1, of a shortcut that width 1 does not have the width.
    """
    full = {layer.name: layer for layer in layers(model, 1)}
    found = {}
    for layer in layers(model, width):
        same = layer.name in full
        inputs = layer.inputs / full[layer.name].inputs if same else width
        outputs = layer.outputs / full[layer.name].outputs if same else width
        of_outputs = (outputs, outputs**-0.5) if optimizer == "sgd" else (1.0, outputs**-0.5)
        if layer.inputs == 3:
            of_weight = of_outputs
        elif layer.name == "out":
            of_weight = (1 / inputs, inputs**0.5)
        else:
            of_weight = (1.0 if optimizer == "sgd" else 1 / inputs, 1.0)
        for name, (rate, decay) in {
            "weight": of_weight,
            **dict.fromkeys(("bias", "gamma", "beta"), of_outputs),
        }.items():
            found[f"{layer.name} {name}"] = (rate, 1 / rate if optimizer == "adamw" else decay)
    return found


# --- Training --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What decides the numbers of a run."""

    model: str
    optimizer: str
    lr: float
    epochs: int
    batch_size: int
    train_size: int
    test_size: int
    width: float
    weight_decay: float
    seed: int = 0
    momentum: float = 0.0
    scale: float = 0.2
    init: str = "he"
    activation: str = "relu"
    loss: str = "cross_entropy"
    schedule: str = "constant"
    warmup: int = 0  # steps
    augment: bool | str = True
    transfer: bool = False  # of learning rates, weight decay and output layer to the width


@dataclass(frozen=True)
class Evaluated:
    """Loss and predictions on a set of images."""

    loss: float
    right: int
    margins: Tensor  # (B,)
    confusion: Tensor  # (10, 10): row the true class, column the prediction


@dataclass
class Trained:
    """What a training leaves."""

    losses: list[float] = field(default_factory=list)  # of each step, before its update
    gradient_norms: list[float] = field(default_factory=list)
    train_loss: list[float] = field(default_factory=list)  # of each epoch, as the others
    train_right: list[int] = field(default_factory=list)
    train_margins: list[Tensor] = field(default_factory=list)
    tested: list[Evaluated] = field(default_factory=list)
    weights: Weights = field(default_factory=dict)


def margins(scores: Tensor) -> Tensor:
    """(B,): how far the largest of the logits (B, 10) is above the second; where it is tiny, rounding decides."""
    first, second = scores.detach().topk(2, dim=1).values.unbind(1)
    return first - second


@torch.no_grad()
def evaluate(
    model: str, weights: Weights, images: np.ndarray, labels: np.ndarray, scale: float, activation: str = "relu",
    loss: str = "cross_entropy",
) -> Evaluated:  # fmt: skip
    """All images at once."""
    scores = logits(model, weights, plain(images), scale=scale, activation=activation)
    truth = torch.from_numpy(labels).long()
    predicted = scores.argmax(1)
    confusion = torch.zeros(10, 10, dtype=torch.int64)
    for true, guess in zip(truth, predicted, strict=True):
        confusion[true, guess] += 1
    return Evaluated(loss_of(loss, scores, truth).item(), int((predicted == truth).sum()), margins(scores), confusion)


def batches(images: np.ndarray, labels: np.ndarray, s: Settings, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
    order, ready = epoch_images(images, s.seed, epoch, s.augment)
    truth = torch.from_numpy(labels[order]).long()
    yield from zip(ready.split(s.batch_size), truth.split(s.batch_size), strict=True)


def train(data: dict[str, np.ndarray], s: Settings) -> Trained:
    """A whole training. data: the arrays of cifar10.npz, of which the first images are used."""
    images, labels = data["train_images"][: s.train_size], data["train_labels"][: s.train_size]
    test_images, test_labels = data["test_images"][: s.test_size], data["test_labels"][: s.test_size]
    weights = initial(s.model, s.width, s.init, s.seed, s.activation)
    trained = {name: w for name, w in weights.items() if is_trained(name)}
    factors = dict.fromkeys(trained, (1.0, 1.0))
    if s.transfer:
        factors = transfer_factors(s.model, s.width, s.optimizer)
        inputs, full = (layers(s.model, width)[-1].inputs for width in (s.width, 1))
        with torch.no_grad():
            weights["out weight"] *= math.sqrt(full / inputs)
    kept: dict[str, dict] = {name: {} for name in trained}
    done = Trained(weights=weights)
    for epoch in range(1, s.epochs + 1):
        summed, right, all_margins = 0.0, 0, []
        for x, truth in batches(images, labels, s, epoch):
            mask = dropout(s.seed, len(done.losses))
            scores = logits(s.model, weights, x, scale=s.scale, activation=s.activation, mask=mask)
            loss = loss_of(s.loss, scores, truth)
            gradients = torch.autograd.grad(loss, trained.values())
            done.losses.append(loss.item())
            done.gradient_norms.append(math.sqrt(sum(g.square().sum().item() for g in gradients)))
            with torch.no_grad():
                for (name, w), g in zip(trained.items(), gradients, strict=True):
                    lr = s.lr * rate_factor(s, len(done.losses) - 1)
                    rate, decay = lr * factors[name][0], s.weight_decay * factors[name][1]
                    update(s.optimizer, w, g, kept[name], len(done.losses), rate, decay, s.momentum)
            summed += loss.item() * len(truth)
            right += int((scores.argmax(1) == truth).sum())
            all_margins.append(margins(scores))
        done.train_loss.append(summed / len(images))
        done.train_right.append(right)
        done.train_margins.append(torch.cat(all_margins))
        done.tested.append(evaluate(s.model, weights, test_images, test_labels, s.scale, s.activation, s.loss))
    return done

"""Inception v1 and residual Inception with scaled residuals on CIFAR-10, under several optimizers.

    python MyFramework.py --model inception --optimizer adam --weight-decay 0 --epochs 200      # figures 1 and 2
    python MyFramework.py --model inception_res --optimizer adam --weight-decay 0 --epochs 200  # figures 4 and 5
    python MyFramework.py --model inception_res --optimizer adamw                               # figure 7
    python MyFramework.py --model inception_res --optimizer adam adamw rmsprop                  # figures 6, 7 and 8
    python MyFramework.py --evaluate results/quick/inception_res/adamw-lr1e-4-wd1e-4-seed0

Several optimizers, and for each of them several learning rates, are trained in lockstep: they start from the same
weights and see the same augmented batches in the same order. Every run has a folder of its own below results/.
"""

import cifar_lab  # noqa: F401  first, see there

# isort: split
import sys
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cifar_lab.activations import build_activation, with_max_pool
from cifar_lab.measures.probes import etas, probe
from cifar_lab.networks import Branches, StepDropout, network, scaled
from cifar_lab.settings import Settings, choice, epochs, flag, learning_rates, real
from cifar_lab.training import script
from cifar_lab.training.group import Lockstep
from cifar_lab.training.run import TrainingRun

# --- Settings --------------------------------------------------------------------------------------------------------

MODELS = ("inception", "inception_res")


@dataclass(frozen=True, kw_only=True)
class InceptionSettings(Settings):
    """The flags of this script; the defaults are those of the report's figures 6 to 8."""

    model: str = flag("inception_res", f"network: {', '.join(MODELS)}", choice(*MODELS))
    bn: bool = flag(False, "with BatchNorm after every convolution (not in the report)")
    epochs: int = epochs(300)
    lrs: tuple[float, ...] = learning_rates(1e-4)

    @property
    def network(self) -> str:
        return f"{self.model}_bn" if self.bn else self.model


# --- Network ---------------------------------------------------------------------------------------------------------

# Szegedy et al. (2015), table 1: channels of 1x1, 3x3 reduce, 3x3, 5x5 reduce, 5x5, pool projection. A pair is a
# max-pool (kernel, padding) of stride 2.
STEM = (64, 192)
BLOCKS = (
    (64, 96, 128, 16, 32, 32),  # 3a, 8 x 8
    (128, 128, 192, 32, 96, 64),  # 3b
    (3, 1),
    (192, 96, 208, 16, 48, 64),  # 4a, 4 x 4
    (160, 112, 224, 24, 64, 64),  # 4b
    (128, 128, 256, 24, 64, 64),  # 4c
    (112, 144, 288, 32, 64, 64),  # 4d
    (256, 160, 320, 32, 128, 128),  # 4e
    (2, 0),
    (256, 160, 320, 32, 128, 128),  # 5a, 2 x 2
    (384, 192, 384, 48, 128, 128),  # 5b
)
DROPOUT_RATE = 0.4


def convolution(channels: int, out: int, kernel: int, *, bn: bool, activation: str | None = None) -> list[nn.Module]:
    """A convolution that keeps the image's size, then BatchNorm and an activation if asked for."""
    layers: list[nn.Module] = [nn.Conv2d(channels, out, kernel, padding=kernel // 2)]
    if bn:
        layers.append(nn.BatchNorm2d(out))
    if activation:
        # After a 1x1 convolution, which `Branches` computes as a part of a larger one, a copy is what is needed next.
        layers.append(build_activation(activation, inplace=kernel > 1))
    return layers


class Block(nn.Module):
    """An Inception block, plain or residual: four branches side by side, a ReLU (or another activation) after every
    convolution.

    Plain (Szegedy et al. 2015, figure 2b): `relu(inception(x))`; the ReLU of each branch's last convolution is one, of
    all of them together. Residual (Szegedy et al. 2016, figure 20): `relu(shortcut(x) + scale * inception(x))`; the
    shortcut is the identity, or a linear 1x1 convolution if the channel counts differ. With `residual_side` shortcut,
    the scale multiplies that one instead: `relu(scale * shortcut(x) + inception(x))`, as in the report's author's code.
    """

    def __init__(
        self, channels: int, table: tuple[int, ...], *, residual_scale: float | None, bn: bool,
        residual_side: str = "branch", activation: str = "relu",
    ) -> None:  # fmt: skip
        super().__init__()
        c1, reduce3, c3, reduce5, c5, pool = table
        inner = {"bn": bn, "activation": activation}
        self.branches = Branches(
            [
                nn.Sequential(*convolution(channels, c1, 1, bn=bn)),
                nn.Sequential(*convolution(channels, reduce3, 1, **inner), *convolution(reduce3, c3, 3, bn=bn)),
                nn.Sequential(*convolution(channels, reduce5, 1, **inner), *convolution(reduce5, c5, 5, bn=bn)),
                nn.Sequential(nn.MaxPool2d(3, 1, padding=1), *convolution(channels, pool, 1, bn=bn)),
            ]
        )
        self.out = c1 + c3 + c5 + pool
        self.residual_scale = residual_scale
        self.residual_side = residual_side
        self.activation = build_activation(activation)
        if residual_scale is not None:
            same = channels == self.out
            self.shortcut = nn.Identity() if same else nn.Sequential(*convolution(channels, self.out, 1, bn=bn))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, out, H, W)."""
        if self.residual_scale is None:
            return self.activation(torch.cat(self.branches(x), dim=1))
        *branches, shortcut = self.branches(x, self.shortcut)
        other, multiplied = shortcut, torch.cat(branches, dim=1)
        if self.residual_side == "shortcut":
            other, multiplied = multiplied, other
        return self.activation(torch.add(other, multiplied, alpha=self.residual_scale))


class Inception(nn.Module):
    """Inception v1 (GoogLeNet) without auxiliary classifiers, fitted to 32 x 32 input.

    residual_scale: None for plain blocks (5,971,962 parameters at width 1), a factor for residual ones (7,954,986);
    residual_side: what it multiplies, branch or shortcut. dropout: rate before the output layer. width: factor on every
    channel count.
    """

    def __init__(
        self, *, residual_scale: float | None = None, residual_side: str = "branch", dropout: float = DROPOUT_RATE,
        bn: bool = False, width: float = 1.0, activation: str = "relu", classes: int = 10,
    ) -> None:  # fmt: skip
        super().__init__()
        c1, c2 = (scaled(c, width) for c in STEM)
        layers: list[nn.Module] = []
        for before, after in ((3, c1), (c1, c2)):  # to (B, 64, 16, 16) and (B, 192, 8, 8)
            layers += convolution(before, after, 3, bn=bn)
            layers += with_max_pool(activation, nn.MaxPool2d(3, 2, padding=1))
        channels = c2
        for entry in BLOCKS:
            if len(entry) == 2:
                kernel, padding = entry
                layers.append(nn.MaxPool2d(kernel, 2, padding=padding))
                continue
            table = tuple(scaled(c, width) for c in entry)
            block = Block(
                channels, table, residual_scale=residual_scale, bn=bn, residual_side=residual_side,
                activation=activation,
            )  # fmt: skip
            layers.append(block)
            channels = block.out
        self.features = nn.Sequential(*layers)  # (B, 1024, 2, 2) at width 1
        self.dropout = StepDropout(dropout)
        self.output = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, 3, 32, 32) to logits (B, classes)."""
        return self.output(self.dropout(self.features(x).mean((2, 3))))


RESIDUAL_SCALE = flag(0.2, "factor in a residual block; 1 is unscaled", real(0, 100))
RESIDUAL_SIDE = flag("branch", "what that factor multiplies: branch, shortcut", choice("branch", "shortcut"))
DROPOUT = flag(DROPOUT_RATE, "dropout before the output layer; 0: none", real(0, 0.99))
RESIDUAL = {"residual_scale": RESIDUAL_SCALE, "residual_side": RESIDUAL_SIDE}


@network("inception", label="Inception v1", colour="#000000", dropout=DROPOUT)
def inception(*, width: float = 1.0, activation: str = "relu", classes: int = 10, **options) -> Inception:
    return Inception(width=width, activation=activation, classes=classes, **options)


@network("inception_res", label="residual Inception", colour="#009E73", dropout=DROPOUT, **RESIDUAL)
def inception_res(
    *, residual_scale: float, width: float = 1.0, activation: str = "relu", classes: int = 10, **options
) -> Inception:  # fmt: skip
    return inception(residual_scale=residual_scale, width=width, activation=activation, classes=classes, **options)


@network("inception_bn", label="Inception v1 + BatchNorm", dropout=DROPOUT)
def inception_bn(*, width: float = 1.0, activation: str = "relu", classes: int = 10, **options) -> Inception:
    return inception(bn=True, width=width, activation=activation, classes=classes, **options)


@network("inception_res_bn", label="residual Inception + BatchNorm", dropout=DROPOUT, **RESIDUAL)
def inception_res_bn(
    *, residual_scale: float, width: float = 1.0, activation: str = "relu", classes: int = 10, **options
) -> Inception:  # fmt: skip
    return inception_bn(residual_scale=residual_scale, width=width, activation=activation, classes=classes, **options)


# --- Training --------------------------------------------------------------------------------------------------------


def training_step(run: TrainingRun, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """One update of one network on one batch: images (B, 3, 32, 32), labels (B,).

    Returns the loss before the update and the number of correct predictions, both still on the device.
    """
    logits = run.forward(images)  # (B, classes), in the device's precision
    loss = run.loss(logits, labels)  # the mean over the batch
    run.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    run.optimizer.step()
    return loss.detach(), (logits.argmax(1) == labels).sum()


def train(group: Lockstep) -> None:
    """Trains a lockstep group to its last epoch."""
    update = group.accelerate(training_step)  # on CUDA: the whole step becomes one graph, replayed for each batch
    for epoch in group.epochs():  # those still to do
        for batch in group.batches(epoch):  # shuffled, augmented, on the device
            for run in batch.to_probe:  # at the weights before the update, on the batch that the update will use
                found = probe(run.model, batch.images, batch.labels, etas(run.config.lr), run.loss)
                run.record_probe(batch.step, found)
            update(batch)  # every run takes its step on the same batch; its loss stays on the device
        group.evaluate(epoch)  # test loss and accuracy; writes the epoch's rows


def main(argv: list[str]) -> None:
    for group in script.groups(InceptionSettings, __file__, argv):  # one per seed
        train(group)


if __name__ == "__main__":
    script.run(main, sys.argv[1:])

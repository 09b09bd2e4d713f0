"""VGG-A with and without BatchNorm on CIFAR-10, trained in lockstep at several learning rates.

    python MyVGG.py --bn --lrs 1e-3 1e-4 5e-4 5e-5     # figure 9 and the BatchNorm half of the landscape
    python MyVGG.py --lrs 1e-3 1e-4 5e-4 5e-5          # figure 10 and the other half
    python MyVGG.py --preset paper --bn                # the probes of Santurkar et al. (2018), figure 4
    python MyVGG.py --evaluate results/quick/vgg_a_bn/adam-lr1e-3-wd1e-4-seed0

All learning rates, and optimizers, start from the same weights and see the same augmented batches in the same order, so
that the band between their losses shows what the learning rate does. Every run has a folder of its own below results/.
"""

import cifar_lab  # noqa: F401  first, see there

# isort: split
import sys
from dataclasses import dataclass

from torch import Tensor, nn

from cifar_lab.activations import build_activation, with_max_pool
from cifar_lab.measures.probes import etas, probe
from cifar_lab.networks import network, scaled
from cifar_lab.settings import ALL_PRESETS, Settings, flag
from cifar_lab.training import script
from cifar_lab.training.group import Lockstep
from cifar_lab.training.run import TrainingRun

# --- Settings --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class VGGSettings(Settings):
    """The flags of this script; the defaults are the report's."""

    presets = ALL_PRESETS  # the paper's too

    bn: bool = flag(False, "with BatchNorm after every convolution and hidden linear layer")

    @property
    def network(self) -> str:
        return "vgg_a_bn" if self.bn else "vgg_a"

    def complaint(self) -> str:
        images = self.train_size - self.validation_size
        if self.bn and images % self.batch_size == 1:
            return (
                f"--batch-size {self.batch_size}: the last batch of {images} training images is one image, which has "
                "no variance for --bn; change either of them"
            )
        return super().complaint()


# --- Network ---------------------------------------------------------------------------------------------------------

# Simonyan & Zisserman (2015), table 1, column A: output channels of 3x3 convolutions; M is a 2x2 max-pool.
COLUMN_A = (64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M")
HIDDEN = 512  # units of the two hidden linear layers, in place of ImageNet's 4096


class VGG(nn.Module):
    """VGG-A with a head for 32 x 32 input.

    width: factor on every channel count. bn: a BatchNorm (Ioffe & Szegedy 2015) between each convolution or hidden
    linear layer and its activation; the layers keep their biases, so that both networks draw the same weights.
    """

    def __init__(
        self, *, bn: bool = False, width: float = 1.0, activation: str = "relu", classes: int = 10
    ) -> None:  # fmt: skip
        super().__init__()
        features: list[nn.Module] = []
        channels = 3
        for entry, following in zip(COLUMN_A, (*COLUMN_A[1:], None), strict=True):
            if entry == "M":
                continue
            out = scaled(entry, width)
            features += [nn.Conv2d(channels, out, 3, padding=1), *([nn.BatchNorm2d(out)] if bn else [])]
            if following == "M":
                features += with_max_pool(activation, nn.MaxPool2d(2, 2))
            else:
                features.append(build_activation(activation, inplace=True))
            channels = out
        head: list[nn.Module] = []
        for out in (scaled(HIDDEN, width),) * 2:
            head += [nn.Linear(channels, out), *([nn.BatchNorm1d(out)] if bn else [])]
            head.append(build_activation(activation, inplace=True))
            channels = out
        head.append(nn.Linear(channels, classes))
        self.features = nn.Sequential(*features)
        self.head = nn.Sequential(*head)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, 3, 32, 32) to logits (B, classes)."""
        return self.head(self.features(x).flatten(1))  # (B, 512, 1, 1) before the head at width 1


@network("vgg_a", label="VGG-A", colour="#D55E00")
def VGG_A(*, width: float = 1.0, activation: str = "relu", classes: int = 10) -> VGG:
    """VGG-A without BatchNorm: 9,750,922 parameters at width 1."""
    return VGG(bn=False, width=width, activation=activation, classes=classes)


@network("vgg_a_bn", label="VGG-A + BatchNorm", colour="#0072B2")
def VGG_BatchNorm(*, width: float = 1.0, activation: str = "relu", classes: int = 10) -> VGG:
    """VGG-A with BatchNorm: 9,758,474 parameters at width 1."""
    return VGG(bn=True, width=width, activation=activation, classes=classes)


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
    for group in script.groups(VGGSettings, __file__, argv):  # one per seed
        train(group)


if __name__ == "__main__":
    script.run(main, sys.argv[1:])

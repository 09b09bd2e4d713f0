"""The network that evaluations see, where it is not the one that is being trained.

Its weights are an exponential moving average of those of the steps before, or BatchNorm's statistics are estimated
again. Training goes on from its own weights and statistics, which neither changes.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from cifar_lab.measures.evaluation import set_mode
from cifar_lab.networks import statistics_of


class WeightAverage:
    """After step t (from 0): average + (1 - d) * (weights - average), with d the smaller of the decay and (1 + t) / (10
    + t), so that the first weights are soon forgotten (as TensorFlow's ExponentialMovingAverage).

    BatchNorm's statistics are averaged like weights (Tarvainen & Valpola 2017 average weights alone).
    """

    def __init__(self, model: nn.Module, decay: float, step: Tensor) -> None:
        """step: int64 scalar on the device, the number of steps before the one that `update` follows."""
        # Without masks that hold infinities: they have no mean.
        current = {
            name: tensor for name, tensor in model.state_dict().items()
            if tensor.is_floating_point() and tensor.isfinite().all()
        }  # fmt: skip
        self._current = list(current.values())  # the network's own memory
        self._decay = decay
        self._step = step
        self.tensors = {name: tensor.clone() for name, tensor in current.items()}  # the average, by name

    @torch.no_grad()
    def update(self) -> None:
        """Takes in the weights after a step. Reads nothing from the host, so that a graph can capture it."""
        share = 1 - ((1 + self._step) / (10 + self._step)).clamp(max=self._decay)
        average = list(self.tensors.values())
        change = torch._foreach_sub(self._current, average)
        torch._foreach_mul_(change, share)
        torch._foreach_add_(average, change)


@torch.no_grad()
def estimated_statistics(
    model: nn.Module, forward: Callable[[Tensor, Mapping[str, Tensor]], Any], batches: Iterable[Tensor]
) -> dict[str, Tensor]:  # fmt: skip
    """BatchNorm's statistics by name: means over batches of those that each has of itself ("precise BN": Wu & Johnson
    2021, "Rethinking Batch in BatchNorm", section 3).

    forward: of images (B, 3, 32, 32), with tensors in place of the network's own, which it changes in place. batches:
    images, nearly as many in each, augmented as in training: with plain ones, whose borders are not black, VGG-A lost
    a percent of its accuracy. Leaves the network in eval mode.
    """
    layers = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    each: dict[int, Tensor] = {}  # one under several names stays one
    found = {
        name: each.setdefault(id(buffer), torch.zeros_like(buffer)) for name, buffer in statistics_of(model).items()
    }
    momenta = [layer.momentum for layer in layers]
    set_mode(model, "train")
    for layer in layers:
        layer.momentum = None  # the plain mean over batches
    for images in batches:
        forward(images, found)
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
    model.eval()
    return found

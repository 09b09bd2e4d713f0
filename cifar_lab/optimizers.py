"""The optimizers of the report, by name."""

from collections.abc import Iterable

import torch
from torch import nn

from cifar_lab.config import RunConfig

RMSPROP_ALPHA = 0.99  # smoothing of the squared gradient, the report's


def build_optimizer(
    config: RunConfig, parameters: Iterable[nn.Parameter], device: torch.device
) -> torch.optim.Optimizer:
    """The optimizer of a run; on CUDA its step can be captured in a graph.

    Adam (Kingma & Ba 2015) adds weight decay to the gradient, AdamW (Loshchilov & Hutter 2019) shrinks the weights
    beside it; RMSprop is Tieleman & Hinton's (2012) without momentum.
    """
    shared = {"lr": config.lr, "weight_decay": config.weight_decay}
    cuda = device.type == "cuda"
    # One kernel over all parameters instead of several a parameter; MPS has it only in some versions.
    fused = {"fused": True} if device.type in ("cpu", "cuda") else {}
    if config.optimizer == "adam":
        return torch.optim.Adam(parameters, **shared, **fused, capturable=cuda)
    if config.optimizer == "adamw":
        return torch.optim.AdamW(parameters, **shared, **fused, capturable=cuda)
    if config.optimizer == "rmsprop":
        return torch.optim.RMSprop(parameters, **shared, alpha=RMSPROP_ALPHA, foreach=True, capturable=cuda)
    return torch.optim.SGD(parameters, **shared, **fused, momentum=config.momentum)

"""The optimizers, by name. Adding one is adding an entry to `OPTIMIZERS`.

What torch.optim has beside these does not fit: Rprop and ASGD start their state from the learning rate and follow a
schedule late or not at all, LBFGS evaluates the loss several times a step, its Muon takes matrices only.
"""

import importlib
import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Optimizer:
    """One of torch.optim's, or of another module with the same interface."""

    label: str  # in figures
    colour: str  # of its curves: one colour, one meaning, in all figures
    kind: str  # name in its module
    module: str = "torch.optim"
    options: Mapping[str, Any] = field(default_factory=dict)  # in place of PyTorch's defaults
    momentum: bool = False  # whether it takes --momentum
    needs_momentum: bool = False  # whether that has to be above 0
    adaptive: bool = True  # whether the gradient is divided by its own size, so that its scale does not matter
    decoupled: bool = False  # whether weight decay shrinks the weights, apart from the gradient
    matrices: bool = False  # whether it tells the matrices of hidden layers from other parameters
    ones: tuple[str, ...] = ()  # of its state, what starts from 1; all else starts from 0


OPTIMIZERS: dict[str, Optimizer] = {
    # Kingma & Ba (2015); weight decay is added to the gradient.
    "adam": Optimizer("Adam", "#E69F00", "Adam"),
    # Loshchilov & Hutter (2019); weight decay shrinks the weights, apart from the gradient.
    "adamw": Optimizer("AdamW", "#56B4E9", "AdamW", decoupled=True),
    # Tieleman & Hinton (2012), without momentum; alpha smooths the squared gradient.
    "rmsprop": Optimizer("RMSprop", "#CC79A7", "RMSprop", options={"alpha": 0.99}),
    "sgd": Optimizer("SGD", "#999999", "SGD", momentum=True, adaptive=False),
    # Sutskever et al. (2013), as PyTorch has it: the gradient is added once more to the momentum that it goes into.
    "nesterov": Optimizer(
        "Nesterov SGD", "#44AA99", "SGD", options={"nesterov": True}, momentum=True, needs_momentum=True, adaptive=False
    ),
    # Dozat (2016): Adam with Nesterov's momentum.
    "nadam": Optimizer("NAdam", "#CC3311", "NAdam", ones=("mu_product",)),
    # Liu et al. (2020): without the adaptive step while its variance is large.
    "radam": Optimizer("RAdam", "#6A3D9A", "RAdam"),
    # Kingma & Ba (2015), section 7.1: the largest gradient in place of the mean square.
    "adamax": Optimizer("Adamax", "#1B7837", "Adamax"),
    # Duchi et al. (2011): the sum of all squares.
    "adagrad": Optimizer("Adagrad", "#8C510A", "Adagrad"),
    # Zeiler (2012); its own rate is 1.
    "adadelta": Optimizer("Adadelta", "#EE3377", "Adadelta"),
    # Jordan (2024): orthogonalized momentum, with AdamW for what is no hidden layer's matrix.
    "muon": Optimizer("Muon", "#332288", "Muon", "cifar_lab.muon", decoupled=True, matrices=True),
}


def build_optimizer(config, parameters: Iterable, device):
    """The optimizer of a run (`settings.RunConfig`) on a `torch.device`; on CUDA a graph can capture its step.

    parameters: all of the network's, or groups with settings of their own (`width.parameter_groups`).
    """
    import torch  # plotting reads labels and colours, and does not wait for it

    entry = OPTIMIZERS[config.optimizer]
    kind = getattr(importlib.import_module(entry.module), entry.kind)
    accepted = inspect.signature(kind).parameters
    fast = {}  # changes nothing but the speed
    if device.type in ("cpu", "cuda"):  # one kernel over all parameters; MPS has it only in some versions
        fast = {"fused": True} if "fused" in accepted else {"foreach": True}
    if device.type == "cuda":
        fast["capturable"] = True
    fast["dtype"] = torch.bfloat16 if config.precision == "bf16" else torch.float32
    fast = {name: value for name, value in fast.items() if name in accepted}
    momentum = {"momentum": config.momentum} if entry.momentum else {}
    return kind(parameters, lr=config.lr, weight_decay=config.weight_decay, **entry.options, **momentum, **fast)

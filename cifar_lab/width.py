"""Width transfer: learning rates, weight decay and output layer at a width other than 1, relative to width 1.

With the same learning rate, a narrow network changes less per step than a wide one: of four rates another one is the
best. The maximal update parametrization (Yang et al. 2021, "Tensor Programs V: Tuning Large Neural Networks via
Zero-Shot Hyperparameter Transfer", table 3) scales the rate per parameter such that the activations of every width
change by the same relative amount. A run keeps the rate and the decay of width 1 in its name and settings ("1e-3" stays
1e-3); each parameter has them times a factor, of which this is the table:

    parameters                              rate, adaptive   rate, SGD   decoupled decay   decay in the gradient
    input: first convolution, biases, norms       1              r            1 / rate            r^-1/2
    hidden: all other weights                    1 / r           1            1 / rate              1
    output: the last linear layer                1 / r          1 / r         1 / rate            r^1/2

For hidden and output weights r is the layer's fan-in over its fan-in at width 1; for the others it is the parameter's
size over its size at width 1. Channel counts are rounded and at least 8, so that layers differ in it. Decoupled decay
(AdamW) shrinks a weight by rate times decay per step, whose product stays what it is at width 1, as in mup/optim.py of
that paper. Decay in the gradient keeps the ratio of decay times weight to gradient that width 1 has at initialization
with PyTorch's output layer; this rule is not from the paper.

The output layer's initial weights have a standard deviation proportional to 1 / fan-in (same table): PyTorch draws them
from a uniform distribution with bound 1 / sqrt(fan-in), so they are multiplied by r^-1/2.

Muon, whose update of a matrix has the same root mean square at every width but a norm that grows with its root, has the
factors of an adaptive optimizer too. For it they do not keep the changes alike: hidden layers of VGG-A change about
twice as much at width 0.125 as at 0.5. Its best rate has to be found at the width that is used.

At every width the factor of the decay of biases and norms (parameters of one dimension) is 0 if a run has no bias decay
(He et al. 2019, "Bag of Tricks for Image Classification with Convolutional Neural Networks", section 3.1).
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace

import torch
from torch import nn

from cifar_lab.networks import build
from cifar_lab.optimizers import OPTIMIZERS, Optimizer
from cifar_lab.settings import RunConfig

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class Factors:
    """What the learning rate and the weight decay of a parameter are multiplied by."""

    rate: float = 1.0
    decay: float = 1.0


def factors_of(optimizer: Optimizer, role: str, r: float) -> Factors:
    """The table above. role: input, hidden or output."""
    adaptive = {"input": 1.0, "hidden": 1 / r, "output": 1 / r}
    plain = {"input": r, "hidden": 1.0, "output": 1 / r}
    in_the_gradient = {"input": r**-0.5, "hidden": 1.0, "output": r**0.5}
    rate = (adaptive if optimizer.adaptive else plain)[role]
    return Factors(rate, 1 / rate if optimizer.decoupled else in_the_gradient[role])


def factors(config: RunConfig, model: nn.Module) -> dict[str, Factors]:
    """The factors of each parameter of a run's network, by its name."""
    optimizer = OPTIMIZERS[config.optimizer]
    scaled = {name: factors_of(optimizer, role, r) for name, role, r in _roles(config, model)}
    each = {name: scaled.get(name, Factors()) for name, _ in model.named_parameters()}
    if not config.bias_decay:
        each |= {name: replace(each[name], decay=0.0) for name, p in model.named_parameters() if p.dim() < 2}
    return each


def parameter_groups(config: RunConfig, model: nn.Module) -> list[dict]:
    """The network's parameters as torch.optim takes them: a group per pair of factors, one group if all are 1.

    For an optimizer with `matrices` those are in groups of their own, which say so.
    """
    told = {id(p) for p in matrices(model)} if OPTIMIZERS[config.optimizer].matrices else set()
    groups: dict[tuple[Factors, bool], list[nn.Parameter]] = {}
    for parameter, f in zip(model.parameters(), factors(config, model).values(), strict=True):
        groups.setdefault((f, id(parameter) in told), []).append(parameter)
    return [
        {"params": parameters, "lr": config.lr * f.rate, "weight_decay": config.weight_decay * f.decay}
        | ({"matrices": of_matrices} if told else {})
        for (f, of_matrices), parameters in groups.items()
    ]


def matrices(model: nn.Module) -> list[nn.Parameter]:
    """The weights of hidden layers: of two dimensions or more, without those of the output layer."""
    output = {id(p) for module in _output(model) for p in module.parameters()}
    return [p for p in model.parameters() if p.dim() > 1 and id(p) not in output]


def recorded(config: RunConfig, model: nn.Module) -> list[dict]:
    """The groups for config.json: rate, decay, and the parameters' names in a line; none if all factors are 1."""
    groups: dict[Factors, list[str]] = {}
    for name, f in factors(config, model).items():
        groups.setdefault(f, []).append(name)
    if set(groups) <= {Factors()}:
        return []
    return [asdict(f) | {"parameters": " ".join(names)} for f, names in groups.items()]


@torch.no_grad()
def scale_output(config: RunConfig, model: nn.Module) -> None:
    """Multiplies the output layer's weights as they were drawn by r^-1/2, in place.

    A weight that is computed from others (a parametrization of PyTorch's) stays as it is.
    """
    output = {id(module._parameters.get("weight")) for module in _output(model)}
    r_of = {name: r for name, role, r in _roles(config, model) if role == "output"}
    for name, parameter in model.named_parameters():
        if name in r_of and id(parameter) in output:
            parameter *= r_of[name] ** -0.5


def _output(model: nn.Module) -> list[nn.Module]:
    """The output layer: the last linear layer, of a network without any the last convolution."""
    layers = [module for module in model.modules() if isinstance(module, LAYERS)]
    return ([module for module in layers if isinstance(module, nn.Linear)] or layers)[-1:]


def _roles(config: RunConfig, model: nn.Module) -> Iterator[tuple[str, str, float]]:
    """Name, role and r of each parameter; none at width 1 and without width transfer.

    Roles are told from shapes. A matrix or filter whose fan-in does not change with the width is an input: the first
    convolution, whose input is the image, and depthwise convolutions. So is, outside of linear layers and convolutions,
    whatever grows with the width in one dimension only: biases, norms, embeddings. What grows in two (recurrent or
    attention weights that are no linear layer) is hidden. A parameter that several layers share counts once, as a
    linear layer's or convolution's if it is one's. A layer that width 1 does not have (a projection between channel
    counts that differ after rounding) has the width itself for r.
    """
    if not config.width_transfer or config.width in (None, 1):
        return
    at_width_1 = dict(_at_width_1(config).named_parameters())
    layers = {id(p) for m in model.modules() if isinstance(m, LAYERS) for p in m.parameters()}
    output = {id(p) for m in _output(model) for p in m.parameters()}
    for name, parameter in model.named_parameters():
        fan_in = fan_out = size = config.width
        if (full := at_width_1.get(name)) is not None:
            size = parameter.numel() / full.numel()
            fan_out = len(parameter) / len(full) if parameter.dim() else 1.0
            fan_in = size / fan_out
        if parameter.dim() > 1 and fan_in != 1 and (id(parameter) in layers or fan_out != 1):
            yield name, "output" if id(parameter) in output else "hidden", fan_in
        else:
            yield name, "input", size


def _at_width_1(config: RunConfig) -> nn.Module:
    """The run's network at width 1, for its shapes: on the meta device, or, if it cannot be built there, on the CPU."""
    full = replace(config, width=1.0)
    with torch.random.fork_rng(devices=[]):
        try:
            with torch.device("meta"):
                return build(full)
        except Exception:  # a user's builder may need values
            return build(full)

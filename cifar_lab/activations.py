"""The activations, by name. Adding one is adding an entry to `ACTIVATIONS`."""

from dataclasses import dataclass
from math import sqrt


@dataclass(frozen=True)
class Activation:
    """One of torch.nn's."""

    label: str  # in figures
    kind: str  # name in torch.nn
    gain: float  # of He initialization: keeps the scale of what passes through a layer and the activation
    monotone: bool = True  # so that it commutes with a max-pool
    inplace: bool = False  # whether it can overwrite its input without a copy for the backward pass


# Gains are `torch.nn.init.calculate_gain`'s. For what it does not know, they are He et al.'s (2015, "Delving Deep into
# Rectifiers") for the rectifier carried over: 1 / sqrt(E[f(z)^2]) for a standard normal z, which is sqrt(2) for ReLU.
ACTIVATIONS: dict[str, Activation] = {
    "relu": Activation("ReLU", "ReLU", sqrt(2), inplace=True),
    "leaky_relu": Activation("leaky ReLU", "LeakyReLU", sqrt(2 / (1 + 0.01**2)), inplace=True),
    "elu": Activation("ELU", "ELU", 1.24520, inplace=True),  # Clevert et al. (2016)
    "gelu": Activation("GELU", "GELU", 1.53353, monotone=False),  # Hendrycks & Gimpel (2016)
    "silu": Activation("SiLU", "SiLU", 1.67653, monotone=False),  # Elfwing et al. (2018)
    "tanh": Activation("tanh", "Tanh", 5 / 3),
}


def build_activation(name: str, inplace: bool = False):
    """A module (`torch.nn`) that computes the activation; inplace: it may overwrite its input."""
    from torch import nn  # plotting reads labels, and does not wait for torch

    entry = ACTIVATIONS[name]
    return getattr(nn, entry.kind)(**({"inplace": inplace} if entry.inplace else {}))


def with_max_pool(name: str, pool) -> list:
    """The activation and a max-pool (a module) of its output, as two modules in the order in which they are computed.

    The maximum of a monotone activation is that of its input, activated: values and gradients are the same, and the
    activation is then of a quarter of the numbers, or fewer.
    """
    activation = build_activation(name, inplace=True)
    return [pool, activation] if ACTIVATIONS[name].monotone else [activation, pool]

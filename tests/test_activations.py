"""Each activation against its formula, its gain, its place beside a max-pool, and the networks that have it."""

import math

import numpy as np
import pytest
import torch
from torch import nn

import MyFramework  # noqa: F401  (registers its networks)
import MyVGG  # noqa: F401
from cifar_lab.activations import ACTIVATIONS, build_activation, with_max_pool
from cifar_lab.networks import build, initialize
from cifar_lab.settings import RunConfig

BY_HAND = {
    "relu": lambda z: max(z, 0),
    "leaky_relu": lambda z: z if z > 0 else 0.01 * z,
    "elu": lambda z: z if z > 0 else math.exp(z) - 1,
    "gelu": lambda z: z * (1 + math.erf(z / math.sqrt(2))) / 2,
    "silu": lambda z: z / (1 + math.exp(-z)),
    "tanh": math.tanh,
}
MODULES = {
    "relu": nn.ReLU, "leaky_relu": nn.LeakyReLU, "elu": nn.ELU, "gelu": nn.GELU, "silu": nn.SiLU, "tanh": nn.Tanh,
}  # fmt: skip
# Of He et al. (2015) for ReLU, of PyTorch for tanh; the others integrated to five decimals.
GAINS = {"relu": 1.414214, "leaky_relu": 1.414143, "elu": 1.24520, "gelu": 1.53353, "silu": 1.67653, "tanh": 1.666667}


def test_every_activation_is_compared_with_its_formula():
    assert ACTIVATIONS.keys() == BY_HAND.keys()


@pytest.mark.parametrize("name", BY_HAND)
@pytest.mark.parametrize("inplace", [False, True])
def test_an_activation_is_its_formula(name, inplace):
    z = [-30.0, -2.5, -0.3, 0.0, 0.7, 4.0]
    got = build_activation(name, inplace)(torch.tensor(z, dtype=torch.float64))
    assert got.tolist() == pytest.approx([BY_HAND[name](x) for x in z], rel=1e-14, abs=1e-300)


@pytest.mark.parametrize("name", ["relu", "leaky_relu", "tanh"])
def test_the_gain_is_pytorchs(name):
    assert ACTIVATIONS[name].gain == pytest.approx(nn.init.calculate_gain(name), rel=1e-15)


@pytest.mark.parametrize("name", ["relu", "leaky_relu", "elu", "gelu", "silu"])
def test_the_gain_keeps_the_second_moment(name):
    """Of a standard normal variable, integrated numerically."""
    z = np.linspace(-12, 12, 100_001)
    weights = np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi) * (z[1] - z[0])
    second_moment = sum(weights * np.array([BY_HAND[name](x) for x in z]) ** 2)
    assert ACTIVATIONS[name].gain ** 2 * second_moment == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("name", ["relu", "leaky_relu", "elu", "gelu", "silu"])
def test_a_layer_drawn_with_the_gain_keeps_the_variance(name):
    """From one layer's outputs before the activation to the next one's; with the gain of ReLU it would not."""
    torch.manual_seed(0)
    model = nn.Sequential(build_activation(name), nn.Linear(1000, 1000), nn.Linear(1000, 10))
    initialize(model, "he", name)
    assert model[:-1](torch.randn(200, 1000)).var().item() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_beside_a_max_pool_values_and_gradients_are_those_of_the_pool_after_the_activation(name):
    torch.manual_seed(0)
    x = torch.randn(4, 3, 9, 9, dtype=torch.float64)
    pool = nn.MaxPool2d(3, 2, padding=1)
    results = []
    for layers in ([build_activation(name), pool], with_max_pool(name, pool)):
        leaf = x.clone().requires_grad_()
        out = nn.Sequential(nn.Identity(), *layers)(leaf * 1)  # what is overwritten in place is no leaf
        out.square().sum().backward()
        results.append((out.detach(), leaf.grad))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("model", ["vgg_a", "vgg_a_bn", "inception", "inception_res", "inception_res_bn"])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_a_network_has_the_activation_everywhere_and_is_drawn_with_its_gain(model, name):
    torch.manual_seed(0)
    modules = list(build(RunConfig(model, width=0.03, activation=name)).modules())
    # VGG-A: 8 convolutions and 2 hidden layers. Inception: 2 in the stem, in each of 9 blocks 2 reductions and the sum.
    found = [type(m) for m in modules if isinstance(m, tuple(MODULES.values()))]
    assert found == [MODULES[name]] * (10 if model.startswith("vgg") else 2 + 9 * 3)
    torch.manual_seed(0)
    usual = [m.weight for m in build(RunConfig(model, width=0.03)).modules() if isinstance(m, nn.Conv2d)]
    for weight, of_relu in zip([m.weight for m in modules if isinstance(m, nn.Conv2d)], usual, strict=True):
        torch.testing.assert_close(weight, of_relu * (GAINS[name] / GAINS["relu"]))

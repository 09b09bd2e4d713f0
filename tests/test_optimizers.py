"""Each optimizer of the report: three steps against its paper's formulas, written out in float64."""

import numpy as np
import pytest
import torch
from torch import nn

from cifar_lab.optimizers import build_optimizer
from cifar_lab.settings import RunConfig

STEPS = 3
LR, DECAY = 0.01, 0.3  # a decay large enough to be seen in the first step
START = [np.array([[0.5, -2.0, 3.0], [0.0, 1e-3, -40.0]]), np.array([7.0, -0.25])]
RNG = np.random.default_rng(0)
GRADIENTS = [[RNG.normal(0, scale, x.shape) for x, scale in zip(START, (1, 100), strict=True)] for _ in range(STEPS)]


def adam(w, gradients, decay, *, decoupled):
    """Kingma & Ba (2015), algorithm 1, with beta 0.9 and 0.999; Loshchilov & Hutter (2019), algorithm 2."""
    m = v = 0
    for t, g in enumerate(gradients, start=1):
        if decoupled:
            w = w - LR * decay * w
        else:
            g = g + decay * w
        m = 0.9 * m + 0.1 * g
        v = 0.999 * v + 0.001 * g**2
        w = w - LR * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
    return w


def rmsprop(w, gradients, decay):
    """Tieleman & Hinton (2012), alpha 0.99, L2 in the gradient."""
    v = 0
    for g in gradients:
        g = g + decay * w
        v = 0.99 * v + 0.01 * g**2
        w = w - LR * g / (np.sqrt(v) + 1e-8)
    return w


def sgd(w, gradients, decay, momentum):
    """Gradient descent with Polyak's momentum: the first step has none yet, nothing is dampened, nor looked ahead."""
    velocity = 0
    for g in gradients:
        velocity = momentum * velocity + g + decay * w
        w = w - LR * velocity
    return w


BY_HAND = {
    "adam": lambda w, g, decay, momentum: adam(w, g, decay, decoupled=False),
    "adamw": lambda w, g, decay, momentum: adam(w, g, decay, decoupled=True),
    "rmsprop": lambda w, g, decay, momentum: rmsprop(w, g, decay),
    "sgd": sgd,
}


def steps(config: RunConfig) -> list[np.ndarray]:
    parameters = [nn.Parameter(torch.tensor(x)) for x in START]
    optimizer = build_optimizer(config, parameters, torch.device("cpu"))
    for gradients in GRADIENTS:
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = torch.tensor(gradient)
        optimizer.step()
    return [parameter.detach().numpy() for parameter in parameters]


@pytest.mark.parametrize("decay", [0.0, DECAY])
@pytest.mark.parametrize(
    "name, momentum", [("adam", 0.0), ("adamw", 0.0), ("rmsprop", 0.0), ("sgd", 0.0), ("sgd", 0.9)]
)
def test_steps_by_hand(name, momentum, decay):
    got = steps(RunConfig("vgg_a", optimizer=name, lr=LR, weight_decay=decay, momentum=momentum))
    for i, start in enumerate(START):
        expected = BY_HAND[name](start, [gradients[i] for gradients in GRADIENTS], decay, momentum)
        # Rounding of float64: the largest relative difference seen is 8e-16.
        np.testing.assert_allclose(got[i], expected, rtol=1e-14, atol=0)


@pytest.mark.parametrize("name", ["adam", "adamw", "rmsprop"])
def test_momentum_is_that_of_sgd_alone(name):
    config = RunConfig("vgg_a", optimizer=name, lr=LR, weight_decay=DECAY)
    with_momentum = RunConfig("vgg_a", optimizer=name, lr=LR, weight_decay=DECAY, momentum=0.9)
    for one, other in zip(steps(config), steps(with_momentum), strict=True):
        assert (one == other).all()


@pytest.mark.parametrize("name", BY_HAND)
def test_every_parameter_has_the_same_settings(name):
    """None is left out, and no group has a weight decay or learning rate of its own."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 10))
    optimizer = build_optimizer(
        RunConfig("vgg_a", optimizer=name, lr=LR, weight_decay=DECAY), model.parameters(), torch.device("cpu")
    )
    (group,) = optimizer.param_groups
    assert len(group["params"]) == 6 and (group["lr"], group["weight_decay"]) == (LR, DECAY)


@pytest.mark.parametrize("name", ["adam", "adamw", "rmsprop", "sgd"])
@pytest.mark.parametrize("device", ["cpu", "mps"])
def test_one_kernel_serves_all_parameters_on_a_cpu(name, device):
    """RMSprop has no fused kernel; on MPS only some versions have one, so PyTorch's own choice stands."""
    config = RunConfig("vgg_a", optimizer=name)
    defaults = build_optimizer(config, [nn.Parameter(torch.ones(2))], torch.device(device)).defaults
    own = {"foreach": True} if name == "rmsprop" else {"fused": True}
    assert all(bool(defaults.get(key)) == (value and device == "cpu") for key, value in own.items())
    assert not defaults.get("capturable")


@pytest.mark.parametrize("name", ["adam", "adamw", "rmsprop"])
def test_a_step_can_be_captured_on_cuda(name):
    config = RunConfig("vgg_a", optimizer=name)
    assert build_optimizer(config, [nn.Parameter(torch.ones(2))], torch.device("cuda")).defaults["capturable"]

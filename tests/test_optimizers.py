"""Each optimizer of the report: three steps against its paper's formulas, written out in float64."""

import numpy as np
import pytest
import torch
from torch import nn

import MyFramework  # noqa: F401  registers networks
import MyVGG  # noqa: F401
from cifar_lab.muon import orthogonalized as orthogonalize
from cifar_lab.networks import NETWORKS
from cifar_lab.optimizers import OPTIMIZERS, build_optimizer
from cifar_lab.settings import RunConfig
from cifar_lab.width import parameter_groups

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


def nesterov(w, gradients, decay, momentum):
    """Sutskever et al. (2013), eq. 3 and 4, in the variables of Bengio et al. (2013), eq. 7: the weights that are kept
    are those looked ahead to."""
    velocity = 0
    for g in gradients:
        g = g + decay * w
        velocity = momentum * velocity + g
        w = w - LR * (g + momentum * velocity)
    return w


def nadam(w, gradients, decay):
    """Dozat (2016), with the decay of momentum of PyTorch, 0.004."""
    m = v = 0
    product = 1
    for t, g in enumerate(gradients, start=1):
        g = g + decay * w
        now, following = (0.9 * (1 - 0.5 * 0.96 ** (s * 0.004)) for s in (t, t + 1))
        product *= now
        m = 0.9 * m + 0.1 * g
        v = 0.999 * v + 0.001 * g**2
        step = (1 - now) * g / (1 - product) + following * m / (1 - product * following)
        w = w - LR * step / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
    return w


def radam(w, gradients, decay):
    """Liu et al. (2020), algorithm 2: for so few steps the variance is unbounded, and the step is not adaptive."""
    m = v = 0
    longest = 2 / (1 - 0.999) - 1
    for t, g in enumerate(gradients, start=1):
        g = g + decay * w
        m = 0.9 * m + 0.1 * g
        v = 0.999 * v + 0.001 * g**2
        length = longest - 2 * t * 0.999**t / (1 - 0.999**t)
        step = m / (1 - 0.9**t)
        if length > 5:
            rectified = (length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length)
            step = step * np.sqrt(rectified) * np.sqrt(1 - 0.999**t) / (np.sqrt(v) + 1e-8)
        w = w - LR * step
    return w


def adamax(w, gradients, decay):
    """Kingma & Ba (2015), algorithm 2, with beta 0.9 and 0.999."""
    m = u = 0
    for t, g in enumerate(gradients, start=1):
        g = g + decay * w
        m = 0.9 * m + 0.1 * g
        u = np.maximum(0.999 * u, abs(g) + 1e-8)
        w = w - LR * m / (1 - 0.9**t) / u
    return w


def adagrad(w, gradients, decay):
    """Duchi et al. (2011)."""
    total = 0
    for g in gradients:
        g = g + decay * w
        total = total + g**2
        w = w - LR * g / (np.sqrt(total) + 1e-10)
    return w


def adadelta(w, gradients, decay):
    """Zeiler (2012), algorithm 1, with rho 0.9, and times the learning rate."""
    v = u = 0
    for g in gradients:
        g = g + decay * w
        v = 0.9 * v + 0.1 * g**2
        step = np.sqrt(u + 1e-6) / np.sqrt(v + 1e-6) * g
        u = 0.9 * u + 0.1 * step**2
        w = w - LR * step
    return w


def orthogonalized(matrix):
    """Jordan (2024): five Newton-Schulz iterations X <- a X + b X X^T X + c X X^T X X^T X, from unit Frobenius norm."""
    x = matrix / (np.linalg.norm(matrix) + 1e-7)
    for _ in range(5):
        x = 3.4445 * x - 4.7750 * x @ x.T @ x + 2.0315 * x @ x.T @ x @ x.T @ x
    return x


def muon(w, gradients, decay):
    """Jordan (2024) with Nesterov's momentum 0.95, decoupled decay, and the scale of Liu et al. (2025), eq. 4."""
    momentum = 0
    for g in gradients:
        momentum = 0.95 * momentum + g
        update = orthogonalized((g + 0.95 * momentum).reshape(len(g), -1)).reshape(w.shape)
        w = w - LR * decay * w - LR * 0.2 * np.sqrt(max(len(w), w[0].size)) * update
    return w


BY_HAND = {
    "adam": lambda w, g, decay, momentum: adam(w, g, decay, decoupled=False),
    "adamw": lambda w, g, decay, momentum: adam(w, g, decay, decoupled=True),
    "rmsprop": lambda w, g, decay, momentum: rmsprop(w, g, decay),
    "sgd": sgd,
    "nesterov": nesterov,
    **{
        of.__name__: lambda w, g, decay, momentum, of=of: of(w, g, decay)
        for of in (nadam, radam, adamax, adagrad, adadelta)
    },
    "muon": lambda w, g, decay, momentum: adam(w, g, decay, decoupled=True),  # of parameters that are no matrices
}


def momentum_of(name: str) -> float:
    """What it needs at least."""
    return 0.9 if name == "nesterov" else 0.0


def steps(config: RunConfig) -> list[np.ndarray]:
    parameters = [nn.Parameter(torch.tensor(x)) for x in START]
    optimizer = build_optimizer(config, parameters, torch.device("cpu"))
    for gradients in GRADIENTS:
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = torch.tensor(gradient)
        optimizer.step()
    return [parameter.detach().numpy() for parameter in parameters]


@pytest.mark.parametrize("decay", [0.0, DECAY])
@pytest.mark.parametrize("name, momentum", [*((name, momentum_of(name)) for name in BY_HAND), ("sgd", 0.9)])
def test_steps_by_hand(name, momentum, decay):
    got = steps(RunConfig("vgg_a", optimizer=name, lr=LR, weight_decay=decay, momentum=momentum))
    for i, start in enumerate(START):
        expected = BY_HAND[name](start, [gradients[i] for gradients in GRADIENTS], decay, momentum)
        # Rounding of float64: the largest relative difference seen is 8e-16. NAdam and Muon have factors in float32.
        np.testing.assert_allclose(got[i], expected, rtol=1e-6 if name in ("nadam", "muon") else 1e-14, atol=0)


# --- Muon's matrices --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decay", [0.0, DECAY])
@pytest.mark.parametrize("shape", [(2, 3), (5, 2), (4, 2, 3, 3), (12, 1, 3, 3)])
def test_steps_of_matrices_by_hand(shape, decay):
    start, *gradients = (RNG.normal(0, 1, shape) for _ in range(STEPS + 1))
    parameter = nn.Parameter(torch.tensor(start))
    config = RunConfig("vgg_a", optimizer="muon", lr=LR, weight_decay=decay, precision="fp32")
    optimizer = build_optimizer(config, [{"params": [parameter], "matrices": True}], torch.device("cpu"))
    for gradient in gradients:
        parameter.grad = torch.tensor(gradient)
        optimizer.step()
    # The products are in float32.
    np.testing.assert_allclose(parameter.detach().numpy(), muon(start, gradients, decay), rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("dtype, low, high", [(torch.float32, 0.68, 1.2), (torch.bfloat16, 0.66, 1.25)])
def test_singular_values_become_about_one_and_singular_vectors_stay(dtype, low, high):
    """Jordan's coefficients take singular values from a hundredth of the norm on to within 0.68 and 1.13."""
    generator = torch.Generator().manual_seed(0)
    u, v = (torch.linalg.qr(torch.randn(n, 6, generator=generator, dtype=torch.float64))[0] for n in (6, 40))
    values = torch.tensor([1.0, 0.5, 0.3, 0.1, 0.05, 0.02], dtype=torch.float64)
    for matrix in (u * values @ v.T, v * values @ u.T):
        found = orthogonalize(matrix.float(), dtype).double()
        left, right = (u, v) if len(matrix) == 6 else (v, u)
        core = left.T @ found @ right
        assert low < core.diagonal().min() <= core.diagonal().max() < high
        assert (core - core.diagonal().diag()).abs().max() < (1e-4 if dtype == torch.float32 else 0.05)


def test_muon_orthogonalizes_hidden_weights_and_no_others():
    for model, count in (("vgg_a_bn", 10), ("inception_res", 63)):
        network = NETWORKS[model].build(RunConfig(model, width=0.125))
        groups = parameter_groups(RunConfig(model, optimizer="muon", width=0.125), network)
        named = {id(p): name for name, p in network.named_parameters()}
        told = {named[id(p)] for group in groups if group["matrices"] for p in group["params"]}
        last = "head.6.weight" if model == "vgg_a_bn" else "output.weight"
        assert told == {name for name, p in network.named_parameters() if p.dim() > 1} - {last}
        assert len(told) == count


def test_every_optimizer_is_compared_with_its_paper():
    assert OPTIMIZERS.keys() == BY_HAND.keys()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_learning_rate_in_a_tensor_takes_the_steps_of_a_number(name):
    """As a schedule gives it; the rate falls, and a tensor holds it in single precision."""
    taken = []
    for form in (float, lambda rate: torch.tensor(rate, dtype=torch.float32)):
        parameters = [nn.Parameter(torch.tensor(x)) for x in START]
        config = RunConfig("vgg_a", optimizer=name, lr=LR, momentum=momentum_of(name))
        optimizer = build_optimizer(config, parameters, torch.device("cpu"))
        for rate, gradients in zip((LR, LR / 2, LR / 7), GRADIENTS, strict=True):
            optimizer.param_groups[0]["lr"] = form(rate)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = torch.tensor(gradient)
            optimizer.step()
        taken.append([parameter.detach().numpy() - start for parameter, start in zip(parameters, START, strict=True)])
    for one, other in zip(*taken, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=0)


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
    config = RunConfig("vgg_a", optimizer=name, lr=LR, weight_decay=DECAY, momentum=momentum_of(name))
    optimizer = build_optimizer(config, model.parameters(), torch.device("cpu"))
    (group,) = optimizer.param_groups
    assert len(group["params"]) == 6 and (group["lr"], group["weight_decay"]) == (LR, DECAY)


@pytest.mark.parametrize("name", ["adam", "adamw", "rmsprop", "sgd"])
@pytest.mark.parametrize("device", ["cpu", "mps"])
def test_one_kernel_serves_all_parameters_on_a_cpu(name, device):
    """Some have no fused kernel; on MPS only some versions have one, so PyTorch's own choice stands."""
    config = RunConfig("vgg_a", optimizer=name)
    defaults = build_optimizer(config, [nn.Parameter(torch.ones(2))], torch.device(device)).defaults
    own = {"fused": True} if name in ("adam", "adamw", "sgd", "adagrad") else {"foreach": True}
    assert all(bool(defaults.get(key)) == (value and device == "cpu") for key, value in own.items())
    assert not defaults.get("capturable")


@pytest.mark.parametrize("name", ["adam", "adamw", "rmsprop", "nadam", "radam", "adamax", "adadelta"])
def test_a_step_can_be_captured_on_cuda(name):
    config = RunConfig("vgg_a", optimizer=name)
    assert build_optimizer(config, [nn.Parameter(torch.ones(2))], torch.device("cuda")).defaults["capturable"]

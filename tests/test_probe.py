"""The probe along the gradient: on quadratics with known answers, against a slow one, and that it disturbs nothing."""

import copy
import csv
import gc
import json
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import trainings
from torch import nn

from cifar_lab.measures.probes import Probe, etas, probe
from cifar_lab.networks import StepDropout

torch.set_num_threads(1)


class Point(nn.Module):
    """Parameters that are the input of a function; split into two tensors, as norms are over all of them."""

    def __init__(self, w: torch.Tensor) -> None:
        super().__init__()
        self.head, self.tail = nn.Parameter(w[:2].clone()), nn.Parameter(w[2:].clone())

    def forward(self, _) -> torch.Tensor:
        return torch.cat([self.head, self.tail])


def symmetric(eigenvalues, seed=0):
    """A float64 matrix with the given eigenvalues, and its eigenvectors as columns."""
    q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(len(eigenvalues), len(eigenvalues))))
    return q @ np.diag(eigenvalues) @ q.T, q


def quadratic(w, a):
    return w @ a @ w / 2


def probe_quadratic(w, a, grid):
    return probe(Point(torch.tensor(w)), None, torch.tensor(a), grid, criterion=quadratic)


@pytest.mark.parametrize("seed", range(3))
def test_quadratic(seed):
    eigenvalues = np.array([0.1, 0.5, 1.0, 3.0, 7.0])
    a, _ = symmetric(eigenvalues, seed)
    w = np.random.default_rng(seed).normal(size=5)
    grid = etas(0.3)
    got = probe_quadratic(w, a, grid)
    g = a @ w
    for i, eta in enumerate(grid):
        at = w - eta * g
        h = a @ at
        assert got.loss[i] == pytest.approx(at @ a @ at / 2, rel=1e-5)
        assert got.grad_norm[i] == pytest.approx(np.linalg.norm(g), rel=1e-5)
        assert got.grad_change[i] == pytest.approx(np.linalg.norm(eta * a @ g), rel=1e-5)
        assert got.grad_cosine[i] == pytest.approx(h @ g / np.linalg.norm(h) / np.linalg.norm(g), rel=1e-5)
        assert got.beta[i] == pytest.approx(np.linalg.norm(a @ g) / np.linalg.norm(g), rel=1e-5)
    assert (got.beta <= eigenvalues.max() * (1 + 1e-9)).all()
    assert all(np.isfinite(getattr(got, f.name)).all() for f in fields(got))


@pytest.mark.parametrize("which", range(4))
def test_beta_is_the_eigenvalue_when_g_is_its_eigenvector(which):
    eigenvalues = np.array([0.01, 1.0, 5.0, 40.0])
    a, q = symmetric(eigenvalues)
    got = probe_quadratic(3 * q[:, which], a, etas(0.02))
    np.testing.assert_allclose(got.beta, eigenvalues[which], rtol=1e-5)
    expected = np.sign(1 - got.eta * eigenvalues[which])  # past the minimum the gradient turns round
    np.testing.assert_allclose(got.grad_cosine, expected, rtol=1e-5)


def small_net(dropout: type[nn.Module] = StepDropout) -> nn.Sequential:
    torch.manual_seed(5)
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(4),
        nn.Conv2d(6, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), dropout(0.4), nn.Linear(8 * 4 * 4, 10),
    )  # fmt: skip
    return net.train()


def batch(dtype=torch.float32):
    generator = torch.Generator().manual_seed(3)
    images = torch.randn(12, 3, 16, 16, generator=generator).to(dtype)
    return images, torch.randint(0, 10, (12,), generator=generator)


def slow_probe(model, images, labels, grid):
    """The same by another way: a deep copy for each step size, an explicit vector of all gradients."""

    def gradient(copied):
        copied.zero_grad()
        loss = F.cross_entropy(copied(images), labels)
        loss.backward()
        return loss.item(), torch.cat([p.grad.flatten() for p in copied.parameters()])

    _, g = gradient(copy.deepcopy(model))
    rows = []
    for eta in grid:
        moved = copy.deepcopy(model)
        vector = nn.utils.parameters_to_vector(moved.parameters()).detach() - eta * g
        nn.utils.vector_to_parameters(vector, moved.parameters())
        loss, h = gradient(moved)
        change = (h - g).norm()
        rows.append([eta, loss, g.norm(), change, F.cosine_similarity(h, g, dim=0), change / (eta * g.norm())])
    return np.array(rows, dtype=float).T


def test_agrees_with_a_slow_implementation():
    model = small_net().double()
    images, labels = batch(torch.float64)
    grid = etas(0.1)
    got = probe(model, images, labels, grid)
    for field, expected in zip(fields(Probe), slow_probe(model, images, labels, grid), strict=True):
        np.testing.assert_allclose(getattr(got, field.name), expected, rtol=1e-9, err_msg=field.name)
    assert np.ptp(got.loss) > 0.01 and got.grad_change.min() > 0.01  # something was measured


def test_single_precision_is_near_double():
    images, labels = batch()
    single = probe(small_net(), images, labels, etas(0.1))
    double = probe(small_net().double(), images.double(), labels, etas(0.1))
    for field in fields(Probe):
        np.testing.assert_allclose(getattr(single, field.name), getattr(double, field.name), rtol=2e-4)


def test_all_passes_see_the_same_dropout_mask():
    """With a mask of its own in each pass, the gradient would change although the weights hardly move."""
    images, labels = batch(torch.float64)
    for dropout in (nn.Dropout, StepDropout):
        model = small_net(dropout).double()
        for module in model.modules():
            if isinstance(module, StepDropout):
                module.step.fill_(17)
        got = probe(model, images, labels, [1e-9, 2e-9])
        assert got.grad_change.max() < 1e-6 * got.grad_norm[0]


def train(steps: int, dropout: type[nn.Module], probe_every: int = 0):
    """Losses, and the state of everything that training has, after some steps of Adam."""
    model = small_net(dropout)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    torch.manual_seed(11)
    losses = []
    for step in range(steps):
        images, labels = torch.randn(12, 3, 16, 16), torch.randint(0, 10, (12,))  # from the global generator
        if probe_every and step % probe_every == 0:
            probe(model, images, labels, etas(0.5))
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        for module in model.modules():
            if isinstance(module, StepDropout):
                module.step += 1
        losses.append(loss.item())
    state = [*model.state_dict().values(), *(v for s in optimizer.state_dict()["state"].values() for v in s.values())]
    return losses, [t.clone() for t in state], torch.get_rng_state()


@pytest.mark.parametrize("dropout", [nn.Dropout, StepDropout])
def test_training_with_probes_is_bit_identical(dropout):
    plain, probed = train(7, dropout), train(7, dropout, probe_every=2)
    assert plain[0] == probed[0]
    assert all(torch.equal(a, b) for a, b in zip(plain[1], probed[1], strict=True))
    assert torch.equal(plain[2], probed[2])


def test_a_run_with_probes_has_the_bits_of_one_without(synthetic_data):
    """As the script trains it: two learning rates in lockstep, BatchNorm and dropout in the network."""
    left = {}
    for probe_every in ("0", "1"):
        with trainings.folder_in_memory() as results:
            argv = trainings.flags(
                synthetic_data, "--lrs", "1e-2", "1e-3", "--epochs", "2", "--probe-every", probe_every,
                "--results", results,
            )  # fmt: skip
            ended = trainings.Training(argv, prepare=trainings.with_small_network).wait()
            assert (ended.status, ended.err) == (0, "")
            found = trainings.content(results)
            probed = [key for key in found if key.endswith("probes.csv")]
            assert len(probed) == (2 if probe_every == "1" else 0)
            ours = ("settings", "files", "probe_every", "probes.csv")  # what asking for probes changes
            left[probe_every] = {
                key.replace("-probe1", ""): value for key, value in found.items() if not key.endswith(ours)
            }
    assert len(left["0"]) > 20
    assert trainings.differences(left["0"], left["1"]) == []


@pytest.mark.parametrize("had_gradients", [False, True])
def test_nothing_is_disturbed(had_gradients):
    model = small_net(nn.Dropout)
    images, labels = batch()
    model[5].eval()  # a module's own mode stays too
    if had_gradients:
        F.cross_entropy(model(images), labels).backward()
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    before = {name: t.detach().clone() for name, t in tensors.items()}
    storages = {name: t.data_ptr() for name, t in tensors.items()}
    gradients = {name: (p.grad, None if p.grad is None else p.grad.clone()) for name, p in model.named_parameters()}
    modes, random_state = [m.training for m in model.modules()], torch.get_rng_state()

    with torch.autocast("cpu", torch.bfloat16):
        got = probe(model, images, labels, etas(0.1))
    assert got.loss.tolist() == probe(model, images, labels, etas(0.1)).loss.tolist()  # autocast makes no difference

    for name, t in tensors.items():
        assert torch.equal(t, before[name]) and t.data_ptr() == storages[name]
    for name, p in model.named_parameters():
        assert p.requires_grad and p.is_leaf
        assert p.grad is gradients[name][0]
        assert p.grad is None or torch.equal(p.grad, gradients[name][1])
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random_state)
    assert torch.is_grad_enabled()


def test_nothing_is_disturbed_by_a_probe_that_fails():
    model = small_net()
    images, labels = batch()
    before = copy.deepcopy(model.state_dict())
    calls = []

    def breaks(output, labels):
        calls.append(None)
        if len(calls) == 3:
            raise RuntimeError("out of memory")
        return F.cross_entropy(output, labels)

    with pytest.raises(RuntimeError, match="out of memory"):
        probe(model, images, labels, etas(0.1), breaks)
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))


def test_one_forward_and_backward_pass_a_step_size():
    calls = []
    model = small_net()
    model.register_forward_hook(lambda *_: calls.append("forward"))
    model[8].register_full_backward_hook(lambda *_: calls.append("backward"))
    probe(model, *batch(), etas(0.1))
    assert calls == ["forward", "backward"] * 11  # g, then one for each of ten


@pytest.mark.parametrize("count", [2, 9])
def test_memory_does_not_depend_on_the_grid(count):
    """Tensors of a parameter's shape that live in a pass before its own gradient: w, and once each its copy and g."""
    model = nn.Linear(37, 53)
    alive = []

    def count_alive(output, labels):
        alive.append(sum(issubclass(type(o), torch.Tensor) and o.shape == (53, 37) for o in gc.get_objects()))
        return F.cross_entropy(output, labels)

    probe(model, torch.randn(4, 37), torch.zeros(4, dtype=torch.long), np.linspace(0.1, 1, count), count_alive)
    assert alive == [2] + [3] * count


@pytest.mark.parametrize("grid", [[], [0.0, 0.1], [-0.1, 0.1], [np.nan]])
def test_step_sizes_go_down_the_gradient(grid):
    with pytest.raises(ValueError, match="above 0"):
        probe(small_net(), *batch(), grid)


def test_a_diverged_run_gives_values_that_are_not_finite():
    model = small_net()
    with torch.no_grad():
        model[8].bias[0] = torch.nan
    got = probe(model, *batch(), etas(0.1))
    assert np.isnan(got.grad_norm).all()


def test_a_zero_gradient_has_no_direction():
    got = probe_quadratic(np.zeros(4), np.eye(4), [0.1])
    assert got.grad_norm == 0 and np.isnan(got.beta).all()


def test_parameters_without_effect_or_frozen():
    model = Point(torch.tensor([1.0, 2.0, 3.0]))
    model.unused = nn.Parameter(torch.ones(3))
    model.frozen = nn.Parameter(torch.ones(3), requires_grad=False)
    got = probe(model, None, torch.eye(3), [0.1], criterion=quadratic)
    assert got.grad_norm[0] == pytest.approx(14**0.5)
    assert model.frozen.tolist() == [1, 1, 1]


# --- As MyVGG.py takes it ---------------------------------------------------------------------------------------------


def train_vgg(results: Path, data: Path, *more: str) -> dict[float, Path]:
    """VGG-A of 8 channels under plain SGD, whose step is along the gradient; the run folders by learning rate."""
    argv = trainings.flags(data, "--optimizer", "sgd", "--no-width-transfer", "--results", results, *more)
    ended = trainings.Training(argv).wait()
    assert (ended.status, ended.err) == (0, "")
    configs = results.glob("*/*/*/config.json")
    return {json.loads(path.read_text(encoding="utf-8"))["settings"]["lr"]: path.parent for path in configs}


def rows(file: Path) -> list[dict[str, float]]:
    with file.open(encoding="utf-8", newline="") as lines:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(lines)]


@pytest.mark.parametrize("bn", [(), ("--bn",)], ids=["plain", "bn"])
def test_a_probe_at_the_learning_rate_is_where_training_goes_next(synthetic_data, results, bn):
    """On the whole training set in one batch, w - lr g are the next step's weights, and g is the change / lr.

    The order of the images differs, and with it the rounding: by 2e-7 of the loss and 5e-7 of the norm at most (16
    runs). A unit whose sign the rounding decides changes the gradient of one image of 130 at the next step, as in one
    of those runs (0.9% of the cosine); in the others it is 4e-4.
    """
    whole = [*bn, "--lrs", "0.02", "0.3", "--weight-decay", "0", "--no-augment", "--batch-size", "130"]
    weights: dict[float, list[torch.Tensor]] = {0.02: [], 0.3: []}
    for epochs in ("1", "2", "3"):
        folders = train_vgg(results / epochs, synthetic_data, *whole, "--epochs", epochs, "--probe-every", "1")
        for lr, folder in folders.items():
            model = torch.load(folder / "checkpoint.pt", weights_only=True)["model"]
            parameters = [t for name, t in model.items() if "running" not in name and "num_batches" not in name]
            weights[lr].append(torch.cat([p.flatten() for p in parameters]).double())
    for lr, folder in folders.items():
        probes, losses = rows(folder / "probes.csv"), [row["loss"] for row in rows(folder / "steps.csv")]
        grid = [0.01, 0.1, 0.5, 1, 1.5, 2, 2.5, 3, 3.5, 4]
        assert [row["step"] for row in probes] == [t for t in (1, 2, 3) for _ in grid]
        assert [row["eta"] for row in probes] == pytest.approx([lr * factor for factor in grid] * 3, rel=1e-12)
        assert [row["loss"] for row in probes[3::10]][:2] == pytest.approx(losses[1:], rel=2e-6)
        first, second, third = weights[lr]
        g, h = (first - second) / lr, (second - third) / lr  # at the second step, and at the third
        at_lr = probes[10 + 3]
        assert at_lr["grad_norm"] == pytest.approx(g.norm().item(), rel=1e-5)
        assert at_lr["grad_change"] == pytest.approx((h - g).norm().item(), rel=0.02)
        assert at_lr["grad_cosine"] == pytest.approx((h @ g / h.norm() / g.norm()).item(), rel=0.02)
        assert at_lr["beta"] == pytest.approx(((h - g).norm() / (lr * g.norm())).item(), rel=0.02)


def test_a_probe_sees_the_steps_own_batch_without_the_l2_term(synthetic_data, results):
    """At a vanishing learning rate the loss along the gradient is the loss logged at that step, whatever the decay.

    Largest relative differences seen: 4e-7, of the loss and of the gradient's norm.
    Batches of 50, 50 and 30, augmented; every other step, over two epochs.
    """
    probed = {}
    for decay in ("0", "0.5"):
        tiny = ["--bn", "--lrs", "1e-8", "--weight-decay", decay, "--epochs", "2", "--probe-every", "2"]
        (folder,) = train_vgg(results / decay, synthetic_data, *tiny).values()
        probed[decay] = rows(folder / "probes.csv")
        losses = [row["loss"] for row in rows(folder / "steps.csv")]
        assert [row["step"] for row in probed[decay]] == [t for t in (2, 4, 6) for _ in range(10)]
        own = [losses[int(row["step"]) - 1] for row in probed[decay]]
        assert [row["loss"] for row in probed[decay]] == pytest.approx(own, rel=4e-6)
        assert min(abs(losses[i] - losses[j]) for i in (1, 3, 5) for j in range(6) if i != j) > 1e-3
    assert [row["grad_norm"] for row in probed["0.5"]] == pytest.approx(
        [row["grad_norm"] for row in probed["0"]], rel=4e-6
    )

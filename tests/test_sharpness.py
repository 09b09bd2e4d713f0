"""The Hessian's spectrum: on matrices and networks with known answers, against the full Hessian of a small network and
power iteration on one of full size; its file, its figure, its command line."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from drawn import drawn_by, legend, lines, texts  # noqa: F401
from test_surface import IMAGES, images, trained  # noqa: F401  (images is a fixture)
from torch import nn

import landscape
import MyVGG  # noqa: F401  (registers its networks)
from cifar_lab.measures import sharpness
from cifar_lab.measures.sharpness import Grid, Spectrum, hessian_product, lanczos, read_sharpness, spectra
from cifar_lab.networks import build
from cifar_lab.run_folder import checkpoint
from cifar_lab.settings import RunConfig

torch.set_num_threads(1)


def ignore(_):
    """Takes a number, and does nothing."""


def symmetric(eigenvalues, seed=0):
    """A float64 matrix with these eigenvalues, and its eigenvectors as columns."""
    n = len(eigenvalues)
    q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(n, n)))
    return q @ np.diag(eigenvalues) @ q.T, q


def spectrum_of(matrix, start, iterations):
    a = torch.from_numpy(matrix)
    return lanczos(lambda v: a @ v, torch.from_numpy(start), iterations)


POWER_ITERATIONS = 20
KNOWN = np.array([-2.0, -0.5, 0.0, 0.01, 0.1, 0.3, 1.0, 1.5, 4.0, 9.0])


def test_as_many_products_as_dimensions_give_the_whole_spectrum():
    """Each eigenvalue, weighted by the squared component of the start along its eigenvector; residuals vanish."""
    matrix, q = symmetric(KNOWN)
    start = np.random.default_rng(1).normal(size=10)
    eigenvalues, weights, residuals = spectrum_of(matrix, start, 10)
    np.testing.assert_allclose(eigenvalues, KNOWN, atol=1e-12)
    np.testing.assert_allclose(weights, (q.T @ start / np.linalg.norm(start)) ** 2, atol=1e-10)
    np.testing.assert_allclose(residuals, 0, atol=1e-10)


def test_few_products_give_the_moments_and_bounds():
    """The weighted mean of the k-th powers is v'A^k v up to k = 2m - 1, here 7, and not of the next one; there is an
    eigenvalue within each residual, and one is larger than 0.01."""
    matrix, _ = symmetric(KNOWN, seed=3)
    start = np.random.default_rng(4).normal(size=10)
    eigenvalues, weights, residuals = spectrum_of(matrix, start, 4)
    v = start / np.linalg.norm(start)
    for k in range(9):
        exact = v @ np.linalg.matrix_power(matrix, k) @ v
        assert (weights @ eigenvalues**k == pytest.approx(exact, rel=1e-9)) == (k <= 7)
    distance = np.abs(eigenvalues[:, None] - KNOWN).min(axis=1)
    assert (distance <= residuals + 1e-12).all() and residuals.max() > 0.01


def test_equal_eigenvalues_are_found_as_often_as_they_are_there():
    """From one vector the method sees each once; it then goes on outside the invariant space, with weight zero."""
    matrix, _ = symmetric(np.array([1.0, 1.0, 1.0, 2.0, 2.0]))
    eigenvalues, weights, _ = spectrum_of(matrix, np.ones(5), 5)
    np.testing.assert_allclose(eigenvalues, [1, 1, 1, 2, 2], atol=1e-10)
    assert np.count_nonzero(weights > 1e-9) == 2 and weights.sum() == pytest.approx(1)
    eigenvalues, *_ = spectrum_of(np.zeros((4, 4)), np.ones(4), 3)
    np.testing.assert_allclose(eigenvalues, 0)


def test_softmax_regression_at_zero():
    """With all weights zero each class has probability 1/C, and the Hessian of the mean loss is the second moment of
    the inputs times (I - 1/C) / C, whatever the labels: eigenvalues are those of the moment over C, and 0."""
    x = torch.tensor([[3.0, 0.0], [0.0, 1.0], [3.0, 0.0], [0.0, 1.0], [0.0, 0.0]], dtype=torch.float64)
    model = nn.Linear(2, 4, bias=False).double()
    nn.init.zeros_(model.weight)
    batches = [(x[:3], torch.tensor([0, 1, 2])), (x[3:], torch.tensor([3, 0]))]
    product = hessian_product(model, batches, list(model.parameters()))
    full = torch.stack([product(row) for row in torch.eye(8, dtype=torch.float64)])
    moment = np.array([[2 * 9 / 5, 0], [0, 2 / 5]])
    np.testing.assert_allclose(full, np.kron((np.eye(4) - 1 / 4) / 4, moment), atol=1e-12)
    (largest, _), *_ = Spectrum(*lanczos(product, torch.ones(8).double() + torch.arange(8), 3)[:, None]).outer(1)
    assert largest == pytest.approx(2 * 9 / 5 / 4)


def small_network():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(True), nn.MaxPool2d(2), nn.Dropout(0.5), nn.Flatten(),
        nn.Linear(16, 3),
    )  # fmt: skip
    return model.double()


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_all_eigenvalues_are_those_of_the_full_hessian(mode):
    """Of 171 parameters, against PyTorch's Hessian of the loss as a function of all parameters; two batches in eval
    mode, 199 images; one in train mode, where the statistics are those of a batch. Dropout is off in both."""
    model = small_network()
    count = 199 if mode == "eval" else 100
    generator = torch.Generator().manual_seed(1)
    pictures = torch.randn(count, 3, 4, 4, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 3, (count,), generator=generator)
    names = [name for name, _ in model.named_parameters()]
    model.eval()
    model[1].train(mode == "train")

    def loss(*values):
        weights = dict(zip(names, values, strict=True))
        return F.cross_entropy(torch.func.functional_call(model, weights, (pictures,)), labels)

    blocks = torch.autograd.functional.hessian(loss, tuple(p.detach() for p in model.parameters()))
    sizes = [p.numel() for p in model.parameters()]
    full = torch.cat([torch.cat([b.reshape(n, -1) for b in row], 1) for n, row in zip(sizes, blocks, strict=True)])
    expected = np.linalg.eigvalsh(full.numpy())
    grid = Grid(iterations=len(expected), images=count, mode=mode)
    found = np.array(list(spectra(model, pictures, labels, grid, ignore, 0)))
    np.testing.assert_allclose(found[:, 0], expected, atol=1e-8)
    assert expected[-1] > 0.1 and len(expected) == 171
    few = np.array(list(spectra(model, pictures, labels, Grid(iterations=30, images=count, mode=mode), ignore, 0)))
    np.testing.assert_allclose(few[-3:, 0], expected[-3:], rtol=1e-4)


def test_the_largest_eigenvalue_of_vgg_a_at_full_size_is_that_of_power_iteration():
    """9,750,922 parameters, on 4 images; power iteration (v becomes H v over its norm) from another vector, with
    products of its own."""
    torch.manual_seed(0)
    model = build(RunConfig("vgg_a")).eval()
    pictures, labels = torch.randn(4, 3, 32, 32), torch.tensor([3, 1, 4, 1])
    parameters = list(model.parameters())
    loss = F.cross_entropy(model(pictures), labels)
    gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters, create_graph=True)])
    v = torch.randn(len(gradient), generator=torch.Generator().manual_seed(5))
    for _ in range(POWER_ITERATIONS):
        v /= v.norm()
        product = torch.cat([h.flatten() for h in torch.autograd.grad(gradient @ v, parameters, retain_graph=True)])
        quotient, v = float(v @ product), product
    rows = np.array(list(spectra(model, pictures, labels, Grid(iterations=10, images=4), ignore, 0)))
    assert rows[-1, 0] == pytest.approx(quotient, rel=1e-3)
    assert quotient > 1


# --- The spectrum -----------------------------------------------------------------------------------------------------

TWO = Spectrum(
    np.array([[-1.0, 2.0, 5.0], [-3.0, 1.0, 5.5]]), np.array([[0.2, 0.5, 0.3], [0.1, 0.6, 0.3]]),
    np.array([[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]]),
)  # fmt: skip


def test_of_several_vectors_the_best_estimate_counts():
    """The second largest of T is never above that of H: of 2 and 1, 2 is nearer. From below it is the reverse."""
    assert TWO.outer(2) == [(5.5, 0.6), (2.0, 0.2)]
    assert TWO.outer(2, largest=False) == [(-3.0, 0.4), (1.0, 0.5)]


def test_the_density_is_the_mean_over_the_vectors():
    """Its integral is 1, its mean that of the weighted eigenvalues: 2.3 from the first vector, 1.95 from the second."""
    at = np.linspace(-10, 15, 100_001)
    density = TWO.density(at, 0.25)
    step = at[1] - at[0]
    assert density.sum() * step == pytest.approx(1)
    assert (at * density).sum() * step == pytest.approx((2.3 + 1.95) / 2)
    peak = TWO.density(np.array([2.0]), 0.01)  # only the eigenvalue 2, of weight 0.5, counted half
    assert peak == pytest.approx([0.25 / (0.01 * np.sqrt(2 * np.pi))])


# --- Command line -----------------------------------------------------------------------------------------------------

FLAGS = ["--iterations", "4", "--vectors", "2", "--images", "20", "--device", "cpu", "--seed", "3"]
NAME = "sharpness-4iterations-2vectors-20images-seed3-eval.csv"


def test_command_line(tmp_path, images, monkeypatch, capsys):  # noqa: F811
    folder = trained(tmp_path, "vgg_a_bn_lr0.001")
    drawn = drawn_by(landscape.main, ["sharpness", folder, *FLAGS], tmp_path)
    grid, spectrum = read_sharpness(folder / NAME)
    model, _ = checkpoint.load_model(folder)
    chosen = np.random.default_rng(3).permutation(IMAGES)[:20]
    x = torch.from_numpy(images.train_images[chosen]).permute(0, 3, 1, 2) / 255 * 2 - 1
    y = torch.from_numpy(images.train_labels[chosen]).long()
    expected = np.array(list(spectra(model, x, y, grid, ignore, 0))).reshape(2, 4, 3)
    np.testing.assert_allclose(spectrum.eigenvalues, expected[..., 0], rtol=1e-3, atol=1e-4)
    assert f"largest eigenvalues: {spectrum.eigenvalues[:, -1].max():.6g} ± " in drawn.said
    (figure,) = drawn.figures.values()
    assert any(f"largest eigenvalue {spectrum.eigenvalues.max():.4g}" in text for text in texts(figure))
    assert any("4 Lanczos iterations from 2 random vectors" in text for text in texts(figure))
    (at, density), (marks, _) = lines(figure.axes[0])
    assert marks == [value for largest in (True, False) for value, _ in spectrum.outer(5, largest=largest)]
    assert max(density[0], density[-1]) < figure.axes[0].get_ylim()[0]  # both flanks reach the lower edge
    note = "no dropout, BatchNorm with its running statistics; density: blurred by a Gaussian of standard deviation "
    assert any(note in text and "marks: the 5 largest and the 5 smallest" in text for text in texts(figure))
    width = 0.01 * (spectrum.eigenvalues.max() - spectrum.eigenvalues.min())
    assert density == spectrum.density(np.array(at), width).tolist()

    whole = (folder / NAME).read_bytes()
    (folder / NAME).write_bytes(b"".join(whole.splitlines(keepends=True)[:8]))  # the second vector is not whole
    landscape.main([str(tmp_path)])
    said = capsys.readouterr().out
    assert f"python landscape.py sharpness {folder} --iterations 4 --vectors 2 --images 20 --seed 3" in said
    calls = []
    real = sharpness.lanczos
    monkeypatch.setattr(sharpness, "lanczos", lambda *a: calls.append(a[2]) or real(*a))
    assert landscape.main(["sharpness", str(folder), *FLAGS]) == 0
    assert (folder / NAME).read_bytes() == whole
    assert calls == [2, 4]  # the trained network's own, and the vector that was not whole


@pytest.mark.parametrize(
    "words",
    [["--iterations", "1"], ["--iterations", "x"], ["--vectors", "0"], ["--mode", "test"], ["--images", "1"],
     ["--points", "3"]],
)  # fmt: skip
def test_flags_that_will_not_do(tmp_path, images, capsys, words):  # noqa: F811
    folder = trained(tmp_path, "vgg_a_lr0.001")
    before = set(tmp_path.rglob("*"))
    with pytest.raises(SystemExit) as ended:
        landscape.main(["sharpness", str(folder), *words])
    said = capsys.readouterr()
    assert ended.value.code == 2 and said.err.count("\n") == 1 and words[0] in said.err
    assert set(tmp_path.rglob("*")) == before

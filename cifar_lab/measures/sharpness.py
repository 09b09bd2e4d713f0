"""Sharpness: the largest eigenvalues of the loss's Hessian at a trained network, and the density of its spectrum.

The Hessian H of the mean loss over a set of images, P x P for P parameters, is known by its products with vectors:
H v = grad (grad L . v), two backward passes (Pearlmutter 1994, "Fast Exact Multiplication by the Hessian"). From m such
products the Lanczos method gives an orthonormal basis Q of a Krylov space and the tridiagonal Q'HQ = T. The eigenvalues
of T approach the outer ones of H first. Averaged over random unit vectors v that it starts from, those eigenvalues,
weighted by the squared first components of T's eigenvectors, are a Gaussian quadrature of the density of H's spectrum
(Ghorbani, Krishnan & Xiao 2019, "An Investigation into Neural Net Optimization via Hessian Eigenvalue Density", section
2 and appendix A): the weighted mean of the k-th powers is that of v'H^k v for k up to 2m - 1.

A network with BatchNorm can be rescaled so that its outputs stay and its eigenvalues change (Dinh et al. 2017): compare
them within a network, or together with the norm of its weights.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cifar_lab.losses import cross_entropy
from cifar_lab.run_folder import measured
from cifar_lab.run_folder.schema import RunFileError
from cifar_lab.settings import flag, integer

BATCH = 128  # images per pass, at most
ROUNDING = 1e-6  # of the weights' sum
COLUMNS = {
    "eigenvalue": measured.Column(), "weight": measured.Column(0, 1 + ROUNDING), "residual": measured.Column(0),
}  # fmt: skip
KIND = "sharpness"


@dataclass(frozen=True)
class Grid(measured.Settings):
    """What is computed."""

    iterations: int = flag(
        40, "of the Lanczos method; as many vectors of all parameters are in memory", integer(2, 10_000)
    )  # products with H per vector
    vectors: int = flag(1, "random vectors that the density is averaged over", integer(1, 1_000))
    images: int = measured.images(512)  # training images, not augmented
    seed: int = measured.seed()  # of their choice and of the vectors
    mode: str = measured.mode()  # of BatchNorm, as for the surface

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rows > measured.MOST_ROWS:
            asked = f"{self.iterations} iterations from {self.vectors} vectors"
            raise measured.MeasureError(f"no such grid: {asked} are more than {measured.MOST_ROWS} eigenvalues")

    @property
    def rows(self) -> int:
        return self.iterations * self.vectors

    @property
    def stem(self) -> str:
        size = f"{self.iterations}iterations-{self.vectors}vectors"
        return f"sharpness-{size}-{self.images}images-seed{self.seed}-{self.mode}"

    def places(self) -> np.ndarray:
        """(rows, 2): number of the vector and of the eigenvalue, both from 0, ascending."""
        return np.stack(np.divmod(np.arange(self.rows), self.iterations), axis=1).astype(float)


@dataclass(frozen=True, eq=False)
class Spectrum:
    """What the Lanczos method found from each of V vectors; each row ascends."""

    eigenvalues: np.ndarray  # (V, m) of T: estimates of H's
    weights: np.ndarray  # (V, m), sum 1: of the quadrature
    residuals: np.ndarray  # (V, m): an eigenvalue of H lies no further away than this

    def outer(self, count: int, *, largest: bool = True) -> list[tuple[float, float]]:
        """The largest (or smallest) eigenvalues, each with its residual.

        The k-th largest of T is at most the k-th largest of H, so the best of several vectors is the largest.
        """
        values, residuals = self.eigenvalues, self.residuals
        if largest:
            values, residuals = -values[:, ::-1], residuals[:, ::-1]
        best = values[:, :count].argmin(axis=0)
        sign = -1 if largest else 1
        return [(sign * float(values[v, k]), float(residuals[v, k])) for k, v in enumerate(best)]

    def density(self, at: np.ndarray, width: float) -> np.ndarray:
        """The density of the spectrum at each of `at`, blurred by a Gaussian of that standard deviation."""
        distance = (at[:, None] - self.eigenvalues.ravel()) / width
        kernel = np.exp(-(distance**2) / 2) / (width * np.sqrt(2 * np.pi))
        return kernel @ self.weights.ravel() / len(self.weights)


def layout(grid: Grid, weights_sha256: str) -> measured.Layout:
    """What a sharpness file holds."""
    about = {"what": "eigenvalues of the loss's Hessian by the Lanczos method", **asdict(grid)}
    about |= {"weights_sha256": weights_sha256}
    return measured.Layout(KIND, grid.stem, about, "vector,index", COLUMNS, grid.rows, grid.places)


def layout_of(about: Mapping[str, Any]) -> measured.Layout:
    """The layout that a file's first line stands for."""
    return layout(Grid.of(about), measured.digest(about["weights_sha256"]))


def read_sharpness(file: str | Path) -> tuple[Grid, Spectrum | None]:
    """Reads a sharpness file; no spectrum if it is not whole. Raises RunFileError, naming file and line."""
    found = measured.read(file, KIND, layout_of)
    grid = Grid.of(found.layout.about)
    if not found.complete:
        return grid, None
    spectrum = Spectrum(*found.values.reshape(grid.vectors, grid.iterations, 3).transpose(2, 0, 1))
    for what, bad in (
        ("the eigenvalues of this vector do not ascend", (np.diff(spectrum.eigenvalues) < 0).any(axis=1)),
        ("the weights of this vector do not add up to 1", np.abs(spectrum.weights.sum(axis=1) - 1) > ROUNDING),
    ):
        if bad.any():
            raise RunFileError(file, what, 3 + int(bad.argmax()) * grid.iterations)
    return grid, spectrum


def hessian_product(model, batches, parameters: list, criterion: Callable = cross_entropy) -> Callable:
    """The function v -> H v, vectors (P,) over the parameters in their order, of the mean loss over batches.

    The model is in the mode that it is to have. Products are computed in the parameters' own precision.
    """
    import torch

    images = sum(len(labels) for _, labels in batches)
    sizes = [p.numel() for p in parameters]

    def product(vector):
        parts = [v.view_as(p) for v, p in zip(vector.split(sizes), parameters, strict=True)]
        total = torch.zeros_like(vector)
        for x, y in batches:
            with torch.enable_grad():
                loss = criterion(model(x), y, reduction="sum") / images
                first = torch.autograd.grad(loss, parameters, create_graph=True, materialize_grads=True)
                second = torch.autograd.grad(first, parameters, parts, materialize_grads=True)
            total += torch.cat([s.reshape(-1) for s in second])
        return total

    return product


def lanczos(product: Callable, start, iterations: int, each: Callable[[int], None] = int) -> np.ndarray:
    """(3, m): eigenvalues of T ascending, their weights, their residuals, from m = `iterations` products.

    product: v -> H v of a symmetric H, (P,) to (P,) with P at least m. start: (P,), a torch tensor. each: is told the
    number of products after each. Every new vector is orthogonalized against all before it, twice (Parlett 1998, "The
    Symmetric Eigenvalue Problem", chapter 13): without it, eigenvalues that have converged come back as copies. Raises
    MeasureError if a product is not finite.
    """
    import torch

    basis = torch.empty(iterations, len(start), dtype=start.dtype, device=start.device)  # (m, P)
    diagonal, beside = np.zeros(iterations), np.zeros(iterations)
    generator = torch.Generator().manual_seed(0)
    vector = start / start.norm()
    for k in range(iterations):
        basis[k] = vector
        vector = product(basis[k])
        diagonal[k] = float(vector @ basis[k])  # the host waits for the device
        length = float(vector.norm())
        for _ in range(2):
            vector -= basis[: k + 1].T @ (basis[: k + 1] @ vector)
        beside[k] = float(vector.norm())
        if not np.isfinite([diagonal[k], beside[k]]).all():
            raise measured.MeasureError("the loss's Hessian is not finite")
        each(k + 1)
        if beside[k] <= 1e-6 * max(length, 1e-30):  # the space is invariant under H: go on outside it
            beside[k] = 0.0
            vector = torch.randn(len(start), generator=generator).to(vector)
            for _ in range(2):
                vector -= basis[: k + 1].T @ (basis[: k + 1] @ vector)
        vector = vector / vector.norm()
    tridiagonal = np.diag(diagonal) + np.diag(beside[:-1], 1) + np.diag(beside[:-1], -1)
    eigenvalues, vectors = np.linalg.eigh(tridiagonal)
    rounding = torch.finfo(start.dtype).eps * np.abs(eigenvalues).max()  # of a product: no residual is below it
    return np.stack([eigenvalues, vectors[0] ** 2, np.maximum(np.abs(beside[-1] * vectors[-1]), rounding)])


def spectra(
    model, images, labels, grid: Grid, each: Callable[[int], None], done: int, criterion: Callable = cross_entropy
) -> Iterable[tuple[float, ...]]:
    """The rows of a sharpness file after the first `done`: eigenvalue, weight, residual.

    each: is told the number of products, those of all vectors together, after each.
    """
    import torch

    from cifar_lab.measures.evaluation import in_batches, set_mode

    set_mode(model, grid.mode)
    parameters = [p for p in model.parameters() if p.requires_grad]
    product = hessian_product(model, in_batches(images, labels, BATCH), parameters, criterion)
    generator = torch.Generator().manual_seed(grid.seed)
    starts = [torch.randn(sum(p.numel() for p in parameters), generator=generator) for _ in range(grid.vectors)]
    begun = done // grid.iterations
    for number, start in enumerate(starts[begun:], start=begun):
        before = number * grid.iterations
        found = lanczos(product, start.to(parameters[0]), grid.iterations, lambda k, before=before: each(before + k))
        yield from map(tuple, found.T[max(0, done - before) :].tolist())

"""The probes along the gradient (Santurkar et al. 2018, "How Does Batch Normalization Help Optimization?",
section 3.2): in one run, at a step, loss and gradient at several distances down the step's own gradient.

`probe` needs a network, and changes nothing about it; the rest are functions of arrays.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from cifar_lab.losses import cross_entropy

PAPER_SPAN = 8.0  # largest step size / smallest of the paper's grid
LARGEST = 1e100  # a value beyond is as good as infinite, and no figure has room for it
SMALL_STEPS = (1e-2, 1e-1)  # times the learning rate
MATCHED_EDGES = (
    1e-4,
    1e-3,
    1e-2,
    0.05,
    0.2,
    0.5,
    1.0,
    2.5,
)  # nats, of the loss L(w) at which probes of two runs are compared


def etas(lr: float) -> np.ndarray:
    """(10,) step sizes: a hundredth and a tenth of the learning rate lr, then the paper's grid.

    The paper's grid (Santurkar et al. 2018) is from 1/2 to 4 times lr; 8 values, evenly spaced, are our choice. On it
    beta saturates near 1 / eta of the smallest step size, where the gradient has nothing left of g; the small steps
    show how fast it changes near w. At still smaller ones fp32 does not hold w - eta g: at a thousandth of lr, beta
    was off by 4% where ||g|| was 0.5 (VGG-A + BN at width 0.125, against fp64), at a hundredth by less than 0.1%.
    """
    return np.concatenate([np.multiply(SMALL_STEPS, lr), np.linspace(lr / 2, PAPER_SPAN * lr / 2, 8)])


@dataclass(frozen=True, eq=False)
class Probe:
    """One probe: arrays (E,), a value for each step size. The field names are the columns of probes.csv.

    With w the parameters at the step, g = grad L(w) on the step's own batch and h = grad L(w - eta g):
    """

    eta: np.ndarray
    loss: np.ndarray  # L(w - eta g), without the L2 term
    grad_norm: np.ndarray  # ||g||, the same for every eta
    grad_change: np.ndarray  # ||h - g||
    grad_cosine: np.ndarray  # cosine of the angle between h and g
    beta: np.ndarray  # ||h - g|| / (eta ||g||)


def probe(model, images, labels, etas: Sequence[float], criterion: Callable = cross_entropy) -> Probe:
    """Loss and gradient at w - eta g for every step size eta (Santurkar et al. 2018, section 3.2 and appendix A).

    model: a torch module in train mode, so that BatchNorm uses the batch's statistics. images, labels: the training
    step's own batch, on the model's device. etas: step sizes above 0, else ValueError. criterion(output, labels) is
    the mean loss. Norms are over all parameters together.

    Nothing about the training is disturbed: parameters and buffers are restored from copies, bit for bit; the `grad`
    fields are not touched; random state is as before, and every pass starts from it, so that all of them see the same
    dropout mask. Runs in the parameters' own precision, whatever autocast is on. One forward and backward pass for g
    and one for each eta; one copy of the parameters and g are held beside what a pass needs, however many etas.
    Values that overflow are returned as they are (see `Probe.finite`).
    """
    import torch  # here, so that drawing figures does not wait for it

    etas = np.asarray(etas, dtype=np.float64)
    if not etas.size or not (etas > 0).all():
        raise ValueError(f"a probe goes down the gradient: step sizes are above 0, not {etas.tolist()}")
    parameters = [p for p in model.parameters() if p.requires_grad]
    buffers = list(model.buffers())
    device = parameters[0].device
    wide = torch.float32 if device.type == "mps" else torch.float64  # sums of squares; MPS has no float64

    def one_pass() -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """Loss and gradient at the parameters as they stand, from the buffers and the random state of the step."""
        for b, saved in zip(buffers, saved_buffers, strict=True):
            b.copy_(saved)
        with (
            torch.random.fork_rng([] if device.type == "cpu" else [device], device_type=device.type),
            torch.autocast(device.type, enabled=False),
            torch.enable_grad(),
        ):
            loss = criterion(model(images), labels)
            return loss.detach(), torch.autograd.grad(loss, parameters, materialize_grads=True)

    def row(g: Sequence[torch.Tensor], loss: torch.Tensor, h: Sequence[torch.Tensor]) -> list[float]:
        """The loss and, over all parameters, g.g, h.h, g.h and |h - g|^2. The host waits for the device here."""
        sums = torch.zeros(4, dtype=wide, device=device)
        for a, b in zip(g, h, strict=True):
            a, b = a.to(wide), b.to(wide)
            sums += torch.stack([(a * a).sum(), (b * b).sum(), (a * b).sum(), ((b - a) ** 2).sum()])
        return torch.cat([loss.to(wide).reshape(1), sums]).tolist()

    with torch.no_grad():
        saved_parameters = [p.clone() for p in parameters]
        saved_buffers = [b.clone() for b in buffers]
        try:
            _, g = one_pass()
            rows = []
            for eta in etas.tolist():
                for p, w, direction in zip(parameters, saved_parameters, g, strict=True):
                    p.copy_(w).sub_(direction, alpha=eta)
                rows.append(row(g, *one_pass()))
        finally:
            for tensor, saved in zip(parameters + buffers, saved_parameters + saved_buffers, strict=True):
                tensor.copy_(saved)

    loss, gg, hh, gh, change = np.array(rows, dtype=np.float64).T
    g_norm, h_norm, change = np.sqrt(gg), np.sqrt(hh), np.sqrt(change)
    with np.errstate(divide="ignore", invalid="ignore"):  # a zero gradient has no direction: NaN
        return Probe(etas, loss, g_norm, change, gh / (g_norm * h_norm), change / (etas * g_norm))


@dataclass(frozen=True, eq=False)
class ProbeRanges:
    """What P probes of a run say, over the paper's step sizes. Pairs are (smallest, largest); NaN if any is not finite.

    The paper's are the step sizes down to 1/8 of the largest; smaller ones only decide `curvature`.
    """

    step: np.ndarray  # (P,)
    loss: np.ndarray  # (P, 2) the paper's (a), variation of the loss: L(w - eta g)
    change: np.ndarray  # (P, 2) its (b), gradient predictiveness: ||h - g||
    beta: np.ndarray  # (P,) its (c), effective beta-smoothness: the largest ||h - g|| / ||eta g||
    relative: np.ndarray  # (P, 2) ||h - g|| / ||g||, which does not depend on the scale of w
    cosine: np.ndarray  # (P, 2) between h and g
    curvature: np.ndarray  # (P,) ||h - g|| / ||eta g|| at the smallest step size, if it is below the paper's; else NaN


def probe_table(columns: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The columns of probes.csv, (P * E,) each, as tables (P, E): a row per probed step, a column per step size.

    A last probe that is not whole (the file is read while a run writes it) is left out. Raises ValueError if the
    probes do not all have the same number of step sizes.
    """
    step = np.asarray(columns["step"])
    grid = int(np.count_nonzero(step == step[0])) if len(step) else 1
    whole = len(step) // grid * grid
    table = {name: np.asarray(column)[:whole].reshape(-1, grid) for name, column in columns.items()}
    if (table["step"] != table["step"][:, :1]).any() or (np.diff(table["step"][:, 0]) <= 0).any():
        raise ValueError(f"probes are not {grid} rows per step, in the order of the steps")
    return table


def probe_ranges(columns: Mapping[str, np.ndarray]) -> ProbeRanges:
    """The ranges (a) and (b) and the maximum (c) of section 3.2 at each probed step, from the columns of probes.csv."""
    table = probe_table(columns)
    eta = table["eta"]
    grid = eta[0] >= eta[0].max() / PAPER_SPAN * (1 - 1e-9) if len(eta) else np.ones(eta.shape[1], dtype=bool)
    curvature = np.full(len(eta), np.nan) if grid.all() else table["beta"][:, eta[0].argmin()]

    def extent(values: np.ndarray) -> np.ndarray:
        values = values[:, grid]
        values = np.where((np.abs(values) < LARGEST).all(axis=1, keepdims=True), values, np.nan)
        return np.stack([values.min(axis=1), values.max(axis=1)], axis=1)

    with np.errstate(divide="ignore", invalid="ignore"):
        relative = table["grad_change"] / table["grad_norm"]
    return ProbeRanges(
        step=table["step"][:, 0].astype(np.int64),
        loss=extent(table["loss"]),
        change=extent(table["grad_change"]),
        beta=extent(table["beta"])[:, 1],
        relative=extent(relative),
        cosine=extent(table["grad_cosine"]),
        curvature=curvature,
    )


def matched_medians(
    values: Sequence[np.ndarray], losses: Sequence[np.ndarray], edges: Sequence[float] = MATCHED_EDGES
) -> tuple[np.ndarray, np.ndarray]:
    """Medians of a quantity over the probes at which the unperturbed loss L(w) lies in the same interval.

    A network that is further in its training has a lower loss, and with it a narrower range of losses down the
    gradient, whether or not its landscape is smoother; so probes are compared at equal L(w), not at equal steps.

    values, losses: for each of the R runs or networks an array (P_r,): the quantity and L(w) in nats at its probes. A
    value that is not finite is left out. edges: (B + 1,) of the intervals [low, high). Returns medians (R, B), NaN if
    an interval is empty, and the numbers of probes (R, B) that they are over.
    """
    medians = np.full((len(values), len(edges) - 1), np.nan)
    counts = np.zeros(medians.shape, dtype=np.int64)
    for r, (value, loss) in enumerate(zip(values, losses, strict=True)):
        for b, (low, high) in enumerate(pairwise(edges)):
            chosen = value[(loss >= low) & (loss < high) & np.isfinite(value)]
            counts[r, b] = len(chosen)
            medians[r, b] = np.median(chosen) if len(chosen) else np.nan
    return medians, counts

"""What "loss landscape" means here: three different measures, never one labelled as another.

1. The learning-rate band: runs of one network that differ in nothing but the learning rate; at each step the largest
   and the smallest training loss over them. `band` and what is computed from it.
2. The probes along the gradient (Santurkar et al. 2018, "How Does Batch Normalization Help Optimization?",
   section 3.2): one run; at a step, loss and gradient at several distances down the step's own gradient. `probe`.
3. The filter-normalized surface around a trained network (Li et al. 2018): `surface.py`.

    python landscape.py results/                  draws every landscape figure that the runs in the folder allow
    python landscape.py surface RUN_FOLDER ...    computes and draws the surface around trained networks

The measures are functions of arrays; `probe` alone needs a network, and changes nothing about it.
"""

import argparse
import math
import sys
from bisect import bisect_left, insort
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path

import numpy as np

MEDIAN_WINDOW = 501  # steps
SPIKE_THRESHOLDS = {"relative": 2.0, "absolute": 0.5}


# --- 1. The learning-rate band ----------------------------------------------------------------------------------------


def default_window(run_steps: int) -> int:
    """Window of the running medians: 501 steps, or a fifth of the run where that is shorter; odd."""
    window = max(1, min(MEDIAN_WINDOW, run_steps // 5))
    return window - (window + 1) % 2


def running_median(x: np.ndarray, window: int) -> np.ndarray:
    """Centred running median with the ends repeated. x: (T,) without NaN; window: odd, in steps. Returns (T,) float64.

    The window is kept as a sorted list, one removal and one insertion a step: exact, and 20 times as fast as
    `numpy.partition` of every window.
    """
    if window < 1 or window % 2 == 0:
        raise ValueError(f"the window of a running median is odd and positive, not {window}")
    x = np.asarray(x, dtype=np.float64)
    if not len(x):
        return x.copy()
    half = window // 2
    padded = np.pad(x, half, mode="edge").tolist()
    ordered = sorted(padded[:window])
    medians = [ordered[half]]
    for leaving, entering in zip(padded, padded[window:], strict=False):
        del ordered[bisect_left(ordered, leaving)]
        insort(ordered, entering)
        medians.append(ordered[half])
    return np.array(medians)


@dataclass(frozen=True, eq=False)
class Band:
    """The band of R training losses over T steps. From the step on at which no run is left, the curves are NaN."""

    upper: np.ndarray  # (T,) nats: the largest loss over the runs
    lower: np.ndarray  # (T,) nats: the smallest
    present: np.ndarray  # (T,) number of runs that still have a finite loss
    runs: int  # R
    window: int  # of the running medians, in steps

    @property
    def middle(self) -> np.ndarray:
        """(T,) nats: halfway between the two curves."""
        return (self.upper + self.lower) / 2

    @property
    def width(self) -> np.ndarray:
        """(T,) nats: upper - lower. NaN where fewer than two runs are left: one curve has no width."""
        return np.where(self.present >= 2, self.upper - self.lower, np.nan)

    @property
    def diverged(self) -> int:
        """How many runs are missing from some step on."""
        return int(self.runs - self.present[-1])

    @cached_property
    def upper_median(self) -> np.ndarray:
        """(T,) nats: running median of the upper curve."""
        return self._median(self.upper)

    @cached_property
    def lower_median(self) -> np.ndarray:
        """(T,) nats: running median of the lower curve."""
        return self._median(self.lower)

    @cached_property
    def middle_median(self) -> np.ndarray:
        """(T,) nats: running median of the middle."""
        return self._median(self.middle)

    def _median(self, curve: np.ndarray) -> np.ndarray:
        left = int(np.count_nonzero(self.present))  # runs never come back: the curve is a finite head and a NaN tail
        return np.concatenate([running_median(curve[:left], self.window), curve[left:]])


def band(losses: Sequence[np.ndarray], steps: int, run_steps: int | None = None) -> Band:
    """The learning-rate band, upper(t) = max over the runs of loss(t) and lower(t) = min: raw values, not smoothed.

    losses: R arrays (S_r,), the loss of each run at the steps 1 to S_r. A run is missing from its first non-finite
    loss on, and after its end. steps: how many steps the band has; its scalars are read over the first half of the
    run, so callers give half the planned steps. run_steps: the planned steps, from which the running medians' window
    follows (default: twice `steps`). Raises ValueError without losses or without steps.
    """
    if not len(losses) or steps < 1:
        raise ValueError(f"a band needs at least one run and one step, not {len(losses)} and {steps}")
    table = np.full((len(losses), steps), np.nan)
    for row, loss in zip(table, losses, strict=True):
        loss = np.asarray(loss, dtype=np.float64)[:steps]
        lost = np.flatnonzero(~np.isfinite(loss))
        end = lost[0] if len(lost) else len(loss)
        row[:end] = loss[:end]
    return Band(
        upper=np.fmax.reduce(table),
        lower=np.fmin.reduce(table),
        present=np.isfinite(table).sum(axis=0),
        runs=len(losses),
        window=default_window(2 * steps if run_steps is None else run_steps),
    )


def spikes(band: Band, kind: str = "relative", threshold: float | None = None) -> float:
    """Spikes of the upper curve per 1,000 steps; steps are counted, not excursions. NaN where no run has a step.

    relative: steps at which upper is above `threshold` (default 2) times its running median; absolute: at which it is
    above that median plus `threshold` (default 0.5 nats). The two disagree where the loss is small, so both are shown.
    """
    if kind not in SPIKE_THRESHOLDS:
        raise ValueError(f"spikes are {' or '.join(SPIKE_THRESHOLDS)}, not {kind!r}")
    threshold = SPIKE_THRESHOLDS[kind] if threshold is None else threshold
    median = band.upper_median
    limit = median * threshold if kind == "relative" else median + threshold
    steps = np.count_nonzero(band.present)
    return 1000 * int(np.count_nonzero(band.upper > limit)) / steps if steps else math.nan


def settled_step(band: Band, level: float = 1.0) -> int | None:
    """The step after which the running median of the band's middle stays under `level` (nats).

    0 where it is under from the first step on; None where it is not under at the band's end.
    """
    above = np.flatnonzero(~(band.middle_median < level))  # NaN, where no run is left, is not under
    last = int(above[-1]) + 1 if len(above) else 0
    return None if last == len(band.upper) else last


def compare_bands(bn: Band, plain: Band) -> dict[str, float]:
    """Both bands over the steps at which both have a width; NaN where there is no such step.

    Returns bn_width and plain_width (mean widths, nats), width_ratio (BN / plain), narrower_share (share of the steps,
    0 to 1, at which BN's band is the narrower one) and steps (how many are compared).
    """
    steps = min(len(bn.upper), len(plain.upper))
    widths = np.stack([bn.width[:steps], plain.width[:steps]])
    widths = widths[:, np.isfinite(widths).all(axis=0)]
    if not widths.size:
        return dict.fromkeys(("bn_width", "plain_width", "width_ratio", "narrower_share"), math.nan) | {"steps": 0}
    bn_width, plain_width = widths.mean(axis=1).tolist()
    return {
        "bn_width": bn_width,
        "plain_width": plain_width,
        "width_ratio": bn_width / plain_width if plain_width else math.nan,
        "narrower_share": float((widths[0] < widths[1]).mean()),
        "steps": widths.shape[1],
    }


# --- 2. The probes along the gradient ---------------------------------------------------------------------------------


def etas(lr: float) -> np.ndarray:
    """(8,) step sizes, evenly spaced from 1/2 to 4 times the learning rate: the paper's range, our spacing."""
    return np.linspace(lr / 2, 4 * lr, 8)


@dataclass(frozen=True, eq=False)
class Probe:
    """One probe: arrays (E,), a value for each step size. The field names are the columns of probes.csv.

    With w the parameters at the step, g = grad L(w) on the step's own batch and h = grad L(w - eta g):
    """

    eta: np.ndarray
    loss: np.ndarray  # L(w - eta g), nats, without the L2 term
    grad_norm: np.ndarray  # ||g||, the same for every eta
    grad_change: np.ndarray  # ||h - g||
    grad_cosine: np.ndarray  # cosine of the angle between h and g
    beta: np.ndarray  # ||h - g|| / (eta ||g||)

    @property
    def finite(self) -> bool:
        """Whether every value is finite. Far down the gradient they need not be; ||g|| is not on a diverged run."""
        return all(np.isfinite(getattr(self, f.name)).all() for f in fields(self))


def probe(model, images, labels, etas: Sequence[float], criterion: Callable | None = None) -> Probe:
    """Loss and gradient at w - eta g for every step size eta (Santurkar et al. 2018, section 3.2 and appendix A).

    model: a torch module in train mode, so that BatchNorm uses the batch's statistics. images, labels: the training
    step's own batch, on the model's device. etas: step sizes above 0, else ValueError. criterion(output, labels) is
    the loss, by default the mean cross-entropy. Norms are over all parameters together.

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
    criterion = criterion or torch.nn.functional.cross_entropy
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
    """What P probes of a run say, over their step sizes. Pairs are (smallest, largest); NaN where any is not finite."""

    step: np.ndarray  # (P,)
    loss: np.ndarray  # (P, 2) the paper's (a), variation of the loss: L(w - eta g)
    change: np.ndarray  # (P, 2) its (b), gradient predictiveness: ||h - g||
    beta: np.ndarray  # (P,) its (c), effective beta-smoothness: the largest ||h - g|| / ||eta g||
    relative: np.ndarray  # (P, 2) ||h - g|| / ||g||, which does not depend on the scale of w
    cosine: np.ndarray  # (P, 2) between h and g


def probe_table(columns: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The columns of probes.csv, (P * E,) each, as tables (P, E): a row a probed step, a column a step size.

    A last probe that is not whole (the file is read while a run writes it) is left out. Raises ValueError where the
    probes do not all have the same number of step sizes.
    """
    step = np.asarray(columns["step"])
    grid = int(np.count_nonzero(step == step[0])) if len(step) else 1
    whole = len(step) // grid * grid
    table = {name: np.asarray(column)[:whole].reshape(-1, grid) for name, column in columns.items()}
    if (table["step"] != table["step"][:, :1]).any() or (np.diff(table["step"][:, 0]) <= 0).any():
        raise ValueError(f"probes are not {grid} rows a step, in the order of the steps")
    return table


def probe_ranges(columns: Mapping[str, np.ndarray]) -> ProbeRanges:
    """The ranges (a) and (b) and the maximum (c) of section 3.2 at each probed step, from the columns of probes.csv."""
    table = probe_table(columns)

    def extent(values: np.ndarray) -> np.ndarray:
        values = np.where(np.isfinite(values).all(axis=1, keepdims=True), values, np.nan)
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
    )


# --- Figures and command line -----------------------------------------------------------------------------------------


def landscape_figures(results: str | Path, preset: str):
    """Draws every landscape figure that a preset's runs allow into `<results>/<preset>/figures/`.

    Returns a `landscape_plots.Figures`: what was drawn, what is missing with the command that makes it, and unreadable
    files.
    """
    import landscape_plots  # here: whoever trains imports this module and does not wait for matplotlib
    from cifar_lab.runs import read_runs

    runs, errors = read_runs(results, preset)
    figures = landscape_plots.all_figures(results, preset, runs)
    figures.errors[:0] = errors
    return figures


def parser() -> argparse.ArgumentParser:
    """The command line's flags; `surface` as the first word has its own (surface.py)."""
    from cifar_lab.settings import Parser, path

    raw = argparse.RawDescriptionHelpFormatter
    p = Parser(prog="landscape.py", description=__doc__, allow_abbrev=False, formatter_class=raw)
    p.add_argument("results", nargs="?", default="results", type=path, help="results folder (results)")
    return p


def main(argv: list[str]) -> int:
    """Runs the command line; returns the exit status, 1 where a file could not be read and the others were drawn."""
    if argv[:1] == ["surface"]:
        import surface

        return surface.main(argv[1:])
    from cifar_lab.run_files import RunFileError
    from cifar_lab.runs import find_run_folders, results_folder
    from cifar_lab.settings import fail

    try:
        results = results_folder(Path(parser().parse_args(argv).results))
    except RunFileError as error:
        fail(f"landscape.py: {error}")
    presets = sorted({folder.relative_to(results).parts[0] for folder in find_run_folders(results)})
    unreadable = 0
    for preset in presets:
        figures = landscape_figures(results, preset)
        for stem, caption in figures.drawn:
            print(f"{stem}.png, .svg: {caption}")
        for name, command in figures.missing:
            print(f"{preset}: missing: {name}; what makes it: {command}")
        for error in figures.errors:
            print(error, file=sys.stderr)
        unreadable += len(figures.errors)
    return 1 if unreadable else 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        print("landscape.py: interrupted", file=sys.stderr)
        sys.exit(130)
    except OSError as error:
        print(f"landscape.py: {error.filename}: {error.strerror}", file=sys.stderr)
        sys.exit(1)

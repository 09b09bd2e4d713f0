"""What the charts of report.html are drawn from: curves of all runs, bands among them, figures as views of these.

The losses of single steps are most of it. They are stored as the upper half of a float32, in one compressed text, as
extremes of so many neighboring steps as it takes to stay small; the page makes coarser extremes of these.
"""

import base64
import math
import zlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from cifar_lab.figures import sets
from cifar_lab.figures.curves import QUANTITIES, quantity_label
from cifar_lab.figures.sets import Series
from cifar_lab.figures.style import Figures, looks
from cifar_lab.measures.band import band, band_steps, default_window
from cifar_lab.run_folder.reader import Run

LARGEST = 1_200_000  # stored losses, 1.7 characters each: beside pictures and text a page stays below 3 MB
MEDIANS_IN_WINDOW = 10  # running medians of neighboring steps are nearly equal, so the page joins some of them


def chart_data(runs: Sequence[Run], figures: Figures) -> tuple[dict[str, Any], str]:
    """All that the charts show, as JSON can hold it, and the numbers that `pack` made of the losses.

    The numbers are, one after another: of each run the smallest and, if several steps are one, the largest losses; the
    running medians of each run; those of the lower and the upper curve of each band at each of its seeds.
    """
    runs = [run for run in runs if run.epochs_done or len(run.losses)]
    place = {run: i for i, run in enumerate(runs)}
    captions = dict(figures.drawn)
    views = [(captions[stem], view) for stem, view in figures.views.items()]
    series = sets.series_of(runs)
    together = dict.fromkeys(group for _, view in views if view.quantity is None for group in view.groups)
    bands = [Series(group) for group in together]
    bucket = bucket_of([len(run.losses) for run in runs])
    numbers = [array for run in runs for array in extremes(run.losses, bucket)[: min(bucket, 2)]]
    medians = []

    def median(curve: np.ndarray, steps: int) -> int:
        """Adds a curve's running medians to the numbers; returns their place among them."""
        window = default_window(steps)
        every = max(1, window // MEDIANS_IN_WINDOW)
        windows = np.lib.stride_tricks.sliding_window_view(curve, window) if len(curve) >= window else np.empty((0, 1))
        values = np.median(windows[::every], axis=1)
        numbers.append(values)
        medians.append({"first": 1 + window // 2, "every": every, "count": len(values)})
        return len(medians) - 1

    of_runs = [[median(run.losses, run.steps_planned)] for run in runs]

    def seeds(of: Series, medians_of) -> dict[str, Any]:
        by_seed: dict[int, list[Run]] = {}
        for run in of.runs:
            by_seed.setdefault(run.seed, []).append(run)
        return {
            str(seed): {"runs": [place[run] for run in group], "medians": medians_of(group)}
            for seed, group in sorted(by_seed.items())
        }

    def of_band(group: Sequence[Run]) -> list[int]:
        steps = max(run.steps_planned for run in group)
        area = band([run.losses for run in group], max(len(run.losses) for run in group), steps)
        return [median(curve[np.isfinite(curve)], steps) for curve in (area.lower, area.upper)]

    content = {
        "quantities": {name: quantity_label(name, runs) for name in QUANTITIES},
        "runs": [
            {
                "steps": len(run.losses),
                "diverged": run.diverged_at_step is not None,
                "epochs": {name: list(map(_json_number, run.column(name).tolist())) for name in QUANTITIES},
            }
            for run in runs
        ],
        "series": [
            named | {"runs": seeds(of, lambda group: of_runs[place[group[0]]])}
            for of, named in zip(series, _names(series), strict=True)
        ],
        "bands": [
            named | {"runs": seeds(of, of_band)} for of, named in zip(bands, _names(bands, ("lr",)), strict=True)
        ],
        "views": [
            {
                "title": title,
                "quantity": view.quantity,
                "on": [list(together).index(group) for group in view.groups]
                if view.quantity is None
                else [i for i, of in enumerate(series) if any(set(of.runs) & set(group) for group in view.groups)],
                "steps": band_steps(min(run.steps_planned for group in view.groups for run in group)),
            }
            for title, view in views
        ],
        "bucket": bucket,
        "medians": medians,
    }
    shift, text = pack(numbers)
    return content | {"shift": shift}, text


def _names(series: Sequence[Series], apart: Sequence[str] = ()) -> list[dict[str, Any]]:
    """What each is called and how it looks: its network, the settings in which it differs from others of the same
    network but for those in `apart`, and its place among these, 0 to 1, as a shade of the network's color."""
    look_of = looks([of.runs[0] for of in series])
    networks: dict[str, list[Series]] = {}
    for of in series:
        networks.setdefault(look_of[of.runs[0]].label, []).append(of)
    differing = {label: [n for n in sets.differing(group) if n not in apart] for label, group in networks.items()}
    return [
        {
            "network": (label := look_of[of.runs[0]].label),
            "settings": ", ".join(of.named(name) for name in differing[label]),
            "color": look_of[of.runs[0]].colour,
            "shade": networks[label].index(of) / max(1, len(networks[label]) - 1),
            "published": of.published,
        }
        for of in series
    ]


def _json_number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def bucket_of(lengths: Iterable[int]) -> int:
    """How many neighboring steps are stored as one, a power of two: 1 if each step of all runs has its place."""
    bucket, lengths = 1, list(lengths)
    while sum(math.ceil(length / bucket) for length in lengths) * min(bucket, 2) > LARGEST:
        bucket *= 2
    return bucket


def extremes(losses: np.ndarray, bucket: int) -> tuple[np.ndarray, np.ndarray]:
    """The smallest and the largest of each `bucket` neighboring losses, the last ones of what is left.

    losses: (S,). Two arrays (ceil(S / bucket),).
    """
    padded = np.pad(losses, (0, -len(losses) % bucket), constant_values=np.nan).reshape(-1, bucket)
    return np.fmin.reduce(padded, axis=1), np.fmax.reduce(padded, axis=1)


def pack(arrays: Sequence[np.ndarray]) -> tuple[int, str]:
    """The numbers as text, and which bits of a float32 are left out: those below `shift` and, if none is negative, the
    sign. A number is off by at most 0.2% (if one is negative, 0.4%).

    First the upper bytes of all, which are nearly equal and therefore short, then the lower; zlib, base64.
    """
    values = np.concatenate([*arrays, np.empty(0)]).astype(np.float32)
    shift = 16 if np.signbit(values).any() else 15
    codes = (values.view(np.uint32) + np.uint32(1 << (shift - 1))) >> shift
    data = (codes >> 8).astype(np.uint8).tobytes() + codes.astype(np.uint8).tobytes()
    return shift, base64.b64encode(zlib.compress(data, 9)).decode()

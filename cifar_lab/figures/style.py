"""The look that all figures share: sizes, a colour-blind-safe palette, the small print, PNG and SVG side by side."""

import functools
import itertools
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import matplotlib

from cifar_lab.optimizers import OPTIMIZERS
from cifar_lab.run_folder.files import write_whole
from cifar_lab.run_folder.reader import Run
from cifar_lab.run_folder.schema import RunFileError
from cifar_lab.settings import number

matplotlib.use("Agg")
import matplotlib.pyplot as plt

# One colour, one meaning, in all figures. Those of the report's networks and optimizers are in their registries, from
# Okabe and Ito (2008), distinguishable with every common colour vision; a network without one takes the next of these
# (Paul Tol's "muted").
OTHER_COLOURS = ("#882255", "#44AA99", "#332288", "#999933", "#AA4499", "#117733")


class Look(NamedTuple):
    """How a network's curves are drawn."""

    model: str
    label: str
    colour: str


def _escaped(text: str) -> str:
    """Without mathtext."""
    return text.replace("$", r"\$")


def looks(runs: Sequence[Run]) -> dict[Run, Look]:
    """How each run's network is drawn; published runs are told from the user's own by their label."""
    free = itertools.cycle(OTHER_COLOURS)
    by_model = {run.model: run.network["colour"] for run in sorted(runs, key=lambda run: run.model)}
    colours = {model: colour or next(free) for model, colour in by_model.items()}
    return {
        run: Look(run.model, _escaped(run.network["label"]) + " (published)" * run.published, colours[run.model])
        for run in runs
    }


plt.rcParams.update(
    {
        "figure.figsize": (6.4, 4.0),
        "figure.dpi": 100,
        "savefig.dpi": 160,
        "figure.constrained_layout.use": True,
        "font.size": 10,
        "axes.titlesize": 11,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.alpha": 0.25,
        "lines.linewidth": 1.4,
        "legend.frameon": False,
        "svg.hashsalt": "cifar-lab",  # the same figure gives the same file
        "svg.fonttype": "none",
    }
)


@dataclass
class Figures:
    """What was drawn, and what was not."""

    drawn: list[tuple[Path, str]] = field(default_factory=list)  # path without suffix (.png and .svg exist), caption
    missing: list[tuple[str, str]] = field(default_factory=list)  # name of the figure, the command that trains its runs
    errors: list[RunFileError] = field(default_factory=list)  # files that could not be read

    def add(self, figure, stem: Path, caption: str) -> None:
        """Saves a figure."""
        save(figure, stem)
        self.drawn.append((stem, caption))


def optimizer_label(run: Run) -> str:
    name = run.settings["optimizer"]
    return OPTIMIZERS[name].label if name in OPTIMIZERS else name


def settings_text(runs: Sequence[Run]) -> str:
    """Preset, settings, seeds and device in one line; a setting in which the runs differ with each of its values."""

    def each(form: Callable[[Run], str]) -> str:
        return " / ".join(dict.fromkeys(map(form, runs)))

    words = [
        f"preset {each(lambda r: r.preset)}",
        f"width {each(_width)}",
        f"{each(lambda r: format(r.settings['train_size'], ','))} training images",
        f"{each(lambda r: str(r.epochs_planned))} epochs",
        f"batch {each(lambda r: str(r.settings['batch_size']))}",
        each(optimizer_label),
        f"learning rate {each(lambda r: number(r.settings['lr']))}",
        f"weight decay {each(lambda r: number(r.settings['weight_decay']))}",
        f"seed {seeds_text(runs)}",
        each(lambda r: r.environment["device"] or "device not known"),
        each(lambda r: r.environment["precision"] or "precision not known"),
    ]
    return ", ".join(words)


def setting_text(run: Run) -> str:
    """Preset and settings that runs compared in a figure share."""
    s = run.settings
    words = [
        f"preset {run.preset}: {run.epochs_planned} epochs of {s['train_size']:,} images", f"width {_width(run)}",
        optimizer_label(run), f"batch {s['batch_size']}", f"weight decay {number(s['weight_decay'])}",
        f"init {s['init']}",
    ]  # fmt: skip
    return ", ".join(words if s["augment"] else [*words, "no augmentation"])


def caveats(runs: Sequence[Run]) -> list[str]:
    """What about the runs a reader of their curves must know."""
    notes = []
    for run in runs:
        name = f"{run.network['label']} at {number(run.settings['lr'])}, seed {run.seed},"
        if run.diverged_at_step is not None:
            notes.append(f"{name} diverged at step {run.diverged_at_step:,} and is missing from there on")
        elif not run.complete:
            notes.append(f"{name} is not finished: {len(run.losses):,} of {run.steps_planned:,} steps")
    return notes


def _width(run: Run) -> str:
    if run.settings["width"] is None:
        return "fixed"
    return f"{run.settings['width']:g}{'' if run.settings['width_transfer'] else ' without width transfer'}"


def seeds_of(runs: Sequence[Run]) -> tuple[int, ...]:
    """The seeds among the runs; 0 if there is none."""
    return tuple(sorted({run.seed for run in runs})) or (0,)


def seeds_text(runs: Sequence[Run]) -> str:
    return " ".join(map(str, seeds_of(runs)))


def wrapped(text: str, width: int = 115) -> str:
    return "\n".join(textwrap.wrap(text, width))


def small_print(figure, text: str) -> None:
    """Writes the preset and the settings under the axes, inside the page."""
    figure.supxlabel(text, fontsize=7.5, color="0.35", x=0.01, ha="left")


def save(figure, stem: str | Path) -> list[Path]:
    """Writes `<stem>.png` and `<stem>.svg` and closes the figure. Returns both paths."""
    stem = Path(stem)
    stem.parent.mkdir(parents=True, exist_ok=True)
    paths = []
    for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None})):
        paths.append(stem.with_name(f"{stem.name}.{kind}"))
        write_whole(paths[-1], functools.partial(figure.savefig, format=kind, metadata=metadata))
    plt.close(figure)
    return paths

"""The look that all figures share: sizes, a colour-blind-safe palette, the small print, PNG and SVG side by side."""

import functools
import itertools
import textwrap
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.font_manager import FontProperties
from matplotlib.legend import Legend
from matplotlib.textpath import text_to_path

from cifar_lab import escape
from cifar_lab.experiments import EXPERIMENTS
from cifar_lab.losses import LOSSES
from cifar_lab.measures.statistics import MOST_SEEDS
from cifar_lab.optimizers import OPTIMIZERS
from cifar_lab.program import complaint
from cifar_lab.project import command
from cifar_lab.run_folder.files import write_whole
from cifar_lab.run_folder.reader import Run
from cifar_lab.run_folder.schema import RunFileError
from cifar_lab.schedules import SCHEDULES
from cifar_lab.settings import RunConfig, counted, first_of, name_of, number, seeds_in_words, words

# One colour, one meaning, in all figures. Those of the report's networks and optimizers are in their registries, from
# Okabe and Ito (2008), distinguishable with every common colour vision; a network without one takes the next of these
# (Paul Tol's "muted").
OTHER_COLOURS = ("#882255", "#44AA99", "#332288", "#999933", "#AA4499", "#117733")

KINDS = ("png", "svg")  # what each figure is saved as
MOST_LINES = 20  # seeds up to which each has a line of its own; of more, a band shows where 90% of them lie
OF_SEEDS = {True: "shaded: where 90% of the seeds lie", False: "thin: each seed"}  # by whether a band is drawn
PANEL = 0.88  # of its share of the figure's width is about what a panel has, its labels aside
PANELS = 0.65  # of the height that a figure is drawn with is what its panels, labels included, keep at least


class Look(NamedTuple):
    """How a network's curves are drawn."""

    model: str
    label: str
    colour: str

    @property
    def text(self) -> str:
        """The label in a figure; a legend leaves out an empty one."""
        return escape.figure(self.label) or " "


def network_label(run: Run) -> str:
    """The network's label as its script gives it; in a figure through `escape.figure`."""
    return run.network["label"]


def looks(runs: Sequence[Run]) -> dict[Run, Look]:
    """How each run's network is drawn; published runs are told from the user's own by their label."""
    free = itertools.cycle(OTHER_COLOURS)
    by_model = {run.model: run.network["colour"] for run in sorted(runs, key=lambda run: run.model)}
    colours = {model: colour or next(free) for model, colour in by_model.items()}
    return {
        run: Look(run.model, network_label(run) + " (published)" * run.published, colours[run.model]) for run in runs
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


@dataclass(frozen=True, eq=False)
class View:
    """What a figure shows of the runs' curves, for a page that has all of them."""

    quantity: str | None  # a column of epochs.csv; None: the loss at each step, a learning-rate band per group
    groups: tuple[tuple[Run, ...], ...]  # the runs of each curve, or band


@dataclass
class Figures:
    """What was drawn, and what was not."""

    file: Path | None = None  # the one figure's, if it is not to go into the results folder
    drawn: list[tuple[Path, str]] = field(default_factory=list)  # path without suffix, caption
    lacking: list[tuple[str, str]] = field(default_factory=list)  # of the report's, without runs: name, their command
    missing: list[tuple[str, str]] = field(default_factory=list)  # name of a figure, the command that it needs
    errors: list[RunFileError] = field(default_factory=list)  # files that could not be read
    views: dict[Path, View] = field(default_factory=dict)  # what those drawn that are curves, or bands, show

    def add(self, figure, stem: Path, caption: str, view: View | None = None) -> None:
        """Saves a figure: as `<stem>.png` and `<stem>.svg`, or in the file that was asked for."""
        stem = stem.with_name(escape.file_name(stem.name))
        taken = [other for other, _ in self.drawn]
        while stem in taken:
            stem = stem.with_name(escape.file_name(f"{stem.name}-again"))
        if self.file:
            stem = self.file.with_suffix("")
            save(figure, stem, (self.file.suffix[1:],))
        else:
            save(figure, stem)
        self.drawn.append((stem, caption))
        if view:
            self.views[stem] = view

    @contextmanager
    def of_file(self, file: Path) -> Iterator[None]:
        """What goes wrong with the figure of a file is a line among the errors, so that the others are drawn.

        What is not the file's fault (memory, disk) is raised.
        """
        try:
            yield
        except Exception as error:
            if complaint(error):
                raise
            plt.close("all")
            first = next(iter(str(error).splitlines()), "")
            self.errors.append(RunFileError(file, f"cannot be drawn ({type(error).__name__}: {first:.200})"))

    def more(self, names: Sequence[str], what: str, *words: str) -> None:
        """A figure more could be drawn for each of the settings that runs differ in, by the command of these words."""
        if names:
            settings = ", ".join(dict.fromkeys(map(name_of, names)))
            self.missing.append((f"{len(names)} more {what}, by {settings}", command(*words)))

    def lines(self) -> list[str]:
        """What was drawn, a line per figure with its files and its caption."""
        kinds = self.file.suffix if self.file else ", ".join(f".{kind}" for kind in KINDS)
        return [escape.terminal(f"{stem}{kinds}: {caption}") for stem, caption in self.drawn]


def optimizer_label(run: Run) -> str:
    """The optimizer in words, with its momentum."""
    name, momentum = run.settings["optimizer"], run.settings["momentum"]
    label = OPTIMIZERS[name].label if name in OPTIMIZERS else name
    return f"{label} with momentum {momentum:g}" if momentum else label


def schedule_label(run: Run) -> str:
    """The learning-rate schedule in words, with the epochs that it goes over."""
    schedule, epochs = run.settings["schedule"], run.settings["schedule_epochs"]
    planned = schedule in SCHEDULES and SCHEDULES[schedule].planned
    return words("schedule", schedule) + (f" over {counted(epochs, 'epoch')}" if planned and epochs else "")


def planned_label(setting: str, run: Run) -> str:
    """A setting that depends on the length of the run, with the epochs if the schedule does not say them."""
    value, epochs = run.settings[setting], run.settings["schedule_epochs"]
    said = value == getattr(RunConfig, setting) or "over" in schedule_label(run)
    return words(setting, value) + ("" if said else f" in {counted(epochs, 'epoch')}")


def _each(runs: Sequence[Run], form: Callable[[Run], str]) -> str:
    """A setting in words, in which the runs may differ: each of its values."""
    return " / ".join(dict.fromkeys(map(form, runs)))


def _epochs(runs: Sequence[Run]) -> str:
    longest = max(run.epochs_planned for run in runs)
    return f"{_each(runs, lambda r: f'{r.epochs_planned:,}')} epoch{'s' * (longest > 1)}"


def settings_text(runs: Sequence[Run]) -> str:
    """Preset, settings, seeds and device in one line; a setting in which the runs differ with each of its values."""
    shown = [
        f"preset {_each(runs, lambda r: r.preset)}",
        f"width {_each(runs, _width)}",
        f"{_each(runs, lambda r: format(r.settings['train_size'], ','))} training images",
        _epochs(runs),
        f"batch {_each(runs, lambda r: str(r.settings['batch_size']))}",
        _each(runs, optimizer_label),
        f"learning rate {_each(runs, lambda r: number(r.settings['lr']))}",
        f"weight decay {_each(runs, lambda r: number(r.settings['weight_decay']))}",
        *_others(runs),
        f"seed {seeds_text(runs)}",
        _each(runs, lambda r: r.environment["device"] or "device not known"),
        _each(runs, lambda r: r.environment["precision"] or "precision not known"),
    ]
    return ", ".join(shown)


def setting_text(runs: Sequence[Run]) -> str:
    """Preset and settings of the runs compared in a figure, without learning rate and seed."""
    images = _each(runs, lambda r: f"{r.settings['train_size']:,}")
    shown = [
        f"preset {_each(runs, lambda r: r.preset)}: {_epochs(runs)} of {images} images",
        f"width {_each(runs, _width)}",
        _each(runs, optimizer_label),
        f"batch {_each(runs, lambda r: str(r.settings['batch_size']))}",
        f"weight decay {_each(runs, lambda r: number(r.settings['weight_decay']))}",
        f"init {_each(runs, lambda r: r.settings['init'])}",
        *_others(runs, {"init"}),
    ]
    return ", ".join(shown)


# Settings that change no curve, and those that the small print has in another form.
_SHOWN = {
    "model", "lr", "optimizer", "momentum", "weight_decay", "seed", "width", "width_transfer", "batch_size",
    "train_size", "test_size", "device", "precision", "probe_every", "options", "classes", "data_digest",
    "schedule_epochs",
}  # fmt: skip


def _others(runs: Sequence[Run], shown: Collection[str] = ()) -> list[str]:
    """Every other setting, and option of a network, in which a run differs from the default."""
    own = [
        {k: v for k, v in (run.settings | run.settings["options"]).items() if k not in {*_SHOWN, *shown}}
        for run in runs
    ]
    names = dict.fromkeys(name for of in own for name, value in of.items() if value != getattr(RunConfig, name, None))
    return [" / ".join(dict.fromkeys(words(name, of[name]) for of in own if name in of)) for name in names]


def caveats(runs: Sequence[Run]) -> list[str]:
    """What about the runs a reader of their curves must know."""
    notes = []
    for run in runs:
        name = f"{run.network['label']} at {number(run.settings['lr'])}, seed {run.seed},"
        if run.diverged_at_step is not None:
            notes.append(f"{name} diverged at step {run.diverged_at_step:,} and is missing from there on")
        elif not run.complete:
            notes.append(f"{name} is not finished: {len(run.losses):,} of {run.steps_planned:,} steps")
    return first_of(notes)


def _width(run: Run) -> str:
    if run.settings["width"] is None:
        return "fixed"
    return f"{run.settings['width']:g}{'' if run.settings['width_transfer'] else ' without width transfer'}"


def seeds_of(runs: Sequence[Run]) -> tuple[int, ...]:
    """The seeds of a command for what is missing beside these runs: theirs, but no more than a verdict takes."""
    return tuple(sorted({run.seed for run in runs})[:MOST_SEEDS]) or (0,)


def seeds_text(runs: Sequence[Run]) -> str:
    return seeds_in_words({run.seed for run in runs} or {0})


def loss_unit(runs: Iterable[Run]) -> str:
    """The unit of the runs' losses, empty if the loss of one has none."""
    units = {LOSSES[run.settings["loss"]].unit for run in runs}
    return units.pop() if len(units) == 1 else ""


def loss_label(text: str, runs: Iterable[Run]) -> str:
    """The label of losses, with their unit if they have one: `training loss (nats)`."""
    unit = loss_unit(runs)
    return f"{text} ({unit})" if unit else text


def loss_floor(lowest: float, highest: float) -> float:
    """Where a linear loss axis begins: at 0, or near losses that lie in a strip far above it, or below."""
    if lowest < 0:
        return lowest - 0.05 * (highest - lowest)
    return 0.95 * lowest if lowest > highest / 2 else 0.0


def set_limits(axes: Axes, low: float, high: float) -> None:
    """The limits of a y-axis; with a little room if all values are the same."""
    room = 0 if low < high else 0.05 * max(abs(low), 1e-3)
    axes.set_ylim(low - room, high + room)


def off_axis(highest: float) -> str:
    """That the largest loss cannot be seen."""
    return f"the largest loss, {highest:{',.0f' if highest >= 100 else '.3g'}}, lies above the axis"


def batchnorm(runs: Iterable[Run], how: str) -> str:
    """How BatchNorm was used, behind a comma; empty if none of the networks has any.

    Of a network of this project the label says whether it does; of another one nothing in a run folder does.
    """
    if any("BatchNorm" in network_label(run) for run in runs):
        return f", BatchNorm {how}"
    known = {experiment.script for experiment in EXPERIMENTS}
    return "" if all(run.network["script"] in known for run in runs) else f", BatchNorm, if there is any, {how}"


def wrapped(figure, text: str, size: float, share: float = 0.96) -> str:
    """A text in lines of at most that share of a figure's width, in letters of `size` points."""
    font, room = FontProperties(size=size), share * 72 * figure.get_figwidth()

    def fits(line: str) -> bool:
        return text_to_path.get_text_width_height_descent(line, font, False)[0] <= room  # at any resolution

    def lines(line: str) -> list[str]:
        letters = max(1, len(line))
        while not all(map(fits, parts := textwrap.wrap(line, letters))) and letters > 1:
            letters -= 1 + letters // 50
        return parts

    return "\n".join(part for line in text.split("\n") for part in lines(escape.terminal(line)))


def heading(figure, text: str, size: float = 11) -> None:
    """Writes a figure's title, inside the page."""
    figure.suptitle(escape.figure(wrapped(figure, text, size)), fontsize=size)


def legend_label(axes: Axes, text: str, size: float = 9) -> str:
    """An entry of a `legend_above`, in lines that fit; a legend leaves out an empty one."""
    handle = 4 * size / 72 / axes.figure.get_figwidth()  # with the room around it
    return escape.figure(wrapped(axes.figure, text, size, _share(axes) - handle)) or " "


def legend_above(axes: Axes, *entries: Iterable, size: float = 9, **style) -> None:
    """A legend above a panel, where no curve can run into it; entries: handles and labels, if not those of the panel.

    It has as many columns as fit over the panel: the layout would keep the place right of a narrower one free for it.
    """
    style |= {"borderaxespad": 0.2, "columnspacing": 1.0, "handlelength": 1.6, "fontsize": size}
    for columns in range(3, 0, -1):
        legend = axes.legend(*entries, loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, **style)
        if _extent(legend).width <= _share(axes) * axes.figure.bbox.width:
            break


def _share(axes: Axes) -> float:
    """What a panel has of the figure's width, its labels aside."""
    return PANEL / axes.get_gridspec().ncols


def height_of(parts: Iterable) -> float:
    """Of texts and legends, one below the other, in inches."""
    return sum(_extent(part).height / part.figure.dpi for part in parts)


def _extent(part):
    return part.get_window_extent(part.figure.canvas.get_renderer())


def small_print(figure, text: str) -> None:
    """Writes the preset and the settings under the axes, inside the page, when title and legends are there.

    If all of these take the panels' place, the figure becomes taller.
    """
    figure.supxlabel(escape.figure(wrapped(figure, text, 7.5)), fontsize=7.5, color="0.35", x=0.01, ha="left")
    height = figure.get_figheight()
    figure.set_figheight(max(height, PANELS * height + height_of([*figure.texts, *figure.findobj(Legend)])))


def shade(axes: Axes, x: np.ndarray, rows: np.ndarray, colour: str) -> None:
    """Fills between the 5% and the 95% quantile of many seeds at each x. rows: (seeds, len(x))."""
    low, high = np.nanquantile(rows, (0.05, 0.95), axis=0)
    axes.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)


_DATED = {"png": "Software", "svg": "Date", "pdf": "CreationDate"}  # what would differ between two equal figures


def save(figure, stem: str | Path, kinds: Sequence[str] = KINDS) -> list[Path]:
    """Writes `<stem>.<kind>` for each kind (png, svg, pdf) and closes the figure. Returns the paths."""
    stem = Path(stem)
    stem.parent.mkdir(parents=True, exist_ok=True)
    paths = []
    for kind in kinds:
        metadata = {_DATED[kind]: None}
        paths.append(stem.with_name(f"{stem.name}.{kind}"))
        write_whole(paths[-1], functools.partial(figure.savefig, format=kind, metadata=metadata))
    plt.close(figure)
    return paths

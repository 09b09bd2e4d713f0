"""A list of commands as tasks, one per command and seed, and what follows from how one ended.

The same in every place that runs them. A task is one lockstep group, which needs one device.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from cifar_lab.experiments import Experiment, at_preset, experiments, folder_of
from cifar_lab.program import BUSY, OUT_OF_MEMORY, STOP_SIGNALS
from cifar_lab.project import command
from cifar_lab.run_folder.schema import NEWEST, RunFileError, read_summary, trained_to
from cifar_lab.settings import run_folder, training_root

# The surfaces that are drawn side by side at the end of a preset: runs, points per side, images.
SURFACE_RUNS = ("vgg_a_lr0.001", "vgg_a_bn_lr0.001")
SURFACES = {"quick": ("11", "512"), "laptop": ("25", "512"), "report": ("25", "2000")}


@dataclass(frozen=True)
class Task:
    """One command for one seed."""

    command: str  # as a user types it
    preset: str
    seed: int
    epochs: int  # of its runs, or of those that it needs
    folders: tuple[Path, ...] = ()  # of the runs that it trains
    needs: tuple[Path, ...] = ()  # of runs whose checkpoints it reads

    @property
    def name(self) -> str:
        """A name for files about it, which no other task of a results folder has."""
        of, *rest = self.folders or self.needs
        kind = "" if self.folders else "surface-"
        return f"{kind}{of.parent.name}-{of.name}" + (f"-and-{len(rest)}" if rest else "")


def task_of(experiment: Experiment, preset: str, seed: int, results: str | Path) -> Task:
    """An experiment's command for one seed."""
    folders = tuple(
        run_folder(training_root(results), preset, at_preset(config, preset, seed))
        for config in experiment.runs.values()
    )
    line = experiment.command(preset, (seed,), results)
    return Task(line, preset, seed, experiment.epochs_at(preset), folders)


def tasks(preset: str, seeds: Sequence[int], results: str | Path) -> list[Task]:
    """Everything that the preset's report needs: seed after seed, then the surfaces of the first."""
    trained = [task_of(e, preset, seed, results) for seed in seeds for e in experiments(preset)]
    return [*trained, surface(preset, seeds[0], results)] if preset in SURFACES else trained


def surface(preset: str, seed: int, results: str | Path) -> Task:
    """The command that computes the preset's surfaces."""
    points, images = SURFACES[preset]
    needs = tuple(folder_of(run, training_root(results), preset, seed) for run in SURFACE_RUNS)
    line = command("landscape.py", "surface", *needs, "--points", points, "--images", images)
    epochs = next(e.epochs_at(preset) for e in experiments(preset) if SURFACE_RUNS[0] in e.names)
    return Task(line, preset, seed, epochs, needs=needs)


def complete(task: Task) -> bool:
    """Whether nothing is left to train. What measures a trained network is never complete: it says so itself."""
    return bool(task.folders) and not unfinished(task)


def unfinished(task: Task) -> list[Path]:
    """The folders of the runs that are left to train."""
    return [folder for folder in task.folders if not _trained(folder, task.epochs)]


def _trained(folder: Path, epochs: int) -> bool:
    """Whether a run folder's run has ended; of one that cannot be read, the script will say why."""
    try:
        return trained_to(read_summary(folder / "summary.json"), epochs)
    except RunFileError:
        return False


def without_weights(task: Task) -> Path | None:
    """A run that the task needs and that is complete without a checkpoint: its logs were copied from elsewhere."""
    return next((f for f in task.needs if (f / "summary.json").exists() and not (f / NEWEST).exists()), None)


def startable(left: Collection[Task]) -> list[Task]:
    """Those that need no run which another one of them still trains."""
    trained = {folder for task in left for folder in task.folders}
    return [task for task in left if trained.isdisjoint(task.needs)]


# --- How a command ended ---------------------------------------------------------------------------------------------

DONE, AGAIN, FEWER, NEVER = "done", "again", "again with fewer beside it", "never again"
ATTEMPTS = 3  # of a task that ends otherwise than it should; waiting for one that is busy is none
KILLED = 128 + 9  # by the kernel, for want of memory, or with its machine
_FOLLOWS = {
    0: DONE, BUSY: AGAIN, OUT_OF_MEMORY: FEWER, KILLED: FEWER,
    **{128 + number: AGAIN for number in STOP_SIGNALS[1:]},  # preempted; Ctrl-C is a person's wish
}  # fmt: skip


def follows(status: int) -> str:
    """What follows from a command's exit status; a negative one is the signal that ended a process, as `subprocess`
    has it. `FEWER` stands for `AGAIN` where nothing else runs beside a task."""
    return _FOLLOWS.get(exit_status(status), NEVER)


def saved(status: int) -> bool:
    """Whether a command that was asked to save and stop, and ended with an exit status, has lost nothing."""
    return status == BUSY or status - 128 in STOP_SIGNALS


def exit_status(status: int) -> int:
    """The status as a shell has it."""
    return 128 - status if status < 0 else status

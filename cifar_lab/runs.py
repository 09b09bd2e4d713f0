"""Run folders as a reader sees them: found, read whole, and told apart; also while a run still writes into them."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from cifar_lab.config import RunConfig, run_name
from cifar_lab.experiments import config_of, experiments
from cifar_lab.run_files import (
    EPOCH_COLUMNS,
    PROBE_COLUMNS,
    PROBE_COLUMNS_NOT_FINITE,
    STEP_COLUMNS,
    RunFileError,
    check_epochs,
    check_probes,
    read_config,
    read_summary,
    read_table,
)


@dataclass(frozen=True, eq=False)
class Run:
    """One run folder's content. S steps and E epochs are logged so far."""

    folder: Path
    preset: str
    settings: dict[str, Any]  # every field of RunConfig
    epochs_planned: int
    environment: dict[str, Any]
    epochs: dict[str, np.ndarray]  # the columns of epochs.csv, (E,) float64 each
    losses: np.ndarray  # (S,) float64: the training loss at steps 1 to S
    probes: dict[str, np.ndarray] | None  # the columns of probes.csv, all of one length
    summary: dict[str, Any] | None  # None while the run is not complete

    @cached_property
    def config(self) -> RunConfig:
        return RunConfig(**self.settings)

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def model(self) -> str:
        return self.settings["model"]

    @property
    def seed(self) -> int:
        return self.settings["seed"]

    @property
    def complete(self) -> bool:
        return self.summary is not None

    @property
    def diverged_at_step(self) -> int | None:
        """The step of the first loss that is not finite; None while the run is not complete."""
        return self.summary["diverged_at_step"] if self.summary else None

    @property
    def epochs_done(self) -> int:
        return len(self.epochs["epoch"])

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.settings["train_size"] // self.settings["batch_size"])

    @property
    def steps_planned(self) -> int:
        return self.epochs_planned * self.steps_per_epoch

    @property
    def final_accuracy(self) -> float | None:
        return final_accuracy(self.epochs["test_accuracy"])


def final_epochs(epochs: int) -> int:
    """How many epochs "final" averages over: the last tenth of a run, at least the last three."""
    return min(epochs, max(3, epochs // 10))


def final_accuracy(test_accuracy: Sequence[float] | np.ndarray) -> float | None:
    """Mean over the last tenth of the epochs, at least the last three, in the unit of `test_accuracy` (E,)."""
    return float(np.mean(test_accuracy[-final_epochs(len(test_accuracy)) :])) if len(test_accuracy) else None


def find_run_folders(root: str | Path, preset: str | None = None) -> list[Path]:
    """Folders `<root>/<preset>/<model>/<name>` that hold a config.json, sorted.

    A name that starts with a dot is skipped: so are runs that were set aside.
    """
    found = [path.parent for path in Path(root).glob("*/*/*/config.json")]
    parts = {folder: folder.relative_to(root).parts for folder in found}
    return sorted(f for f in found if preset in (None, parts[f][0]) and not any(p.startswith(".") for p in parts[f]))


def results_folder(given: Path) -> Path:
    """The results folder that a path names. Raises RunFileError where it is none, and says what would be."""
    if not os.path.isdir(given):  # pathlib raises where a name is too long
        raise RunFileError(given, "there is no such folder")
    if find_run_folders(given):
        return given
    for depth, what in ((2, "a preset's folder"), (1, "a model's folder"), (0, "a run's folder")):
        if any(given.glob("*/" * depth + "config.json")):
            above = given.absolute().parents[2 - depth]
            raise RunFileError(given, f"this is {what}; the results folder is {above}")
    raise RunFileError(given, "no run folders; python MyVGG.py and python MyFramework.py make them")


def read_runs(root: str | Path, preset: str) -> tuple[list[Run], list[RunFileError]]:
    """The preset's runs, and what is wrong with those that cannot be read."""
    runs, errors = [], []
    for folder in find_run_folders(root, preset):
        try:
            run = read_run(folder)
            _check_place(run)
        except RunFileError as error:
            errors.append(error)
        else:
            runs.append(run)
    return runs, errors


def report_runs(runs: Sequence[Run], preset: str) -> dict[str, dict[int, Run]]:
    """Those of the report's runs that are among `runs`: by their name in `experiments.RUNS`, then by seed."""
    by_config = {run.config: run for run in runs if run.preset == preset}
    seeds = sorted({run.seed for run in runs})
    found: dict[str, dict[int, Run]] = {}
    for name in (name for experiment in experiments(preset) for name in experiment.runs):
        configs = {seed: config_of(name, preset, seed) for seed in seeds}
        found[name] = {seed: by_config[config] for seed, config in configs.items() if config in by_config}
    return {name: by_seed for name, by_seed in found.items() if by_seed}


def read_run(folder: str | Path) -> Run:
    """Everything in a run folder but the checkpoint. Raises RunFileError."""
    folder = Path(folder)
    config = read_config(folder)
    # The summary comes first: where it exists, the logs that it sums up are whole.
    summary = read_summary(folder / "summary.json")
    complete = summary is not None
    epochs = read_table(folder / "epochs.csv", EPOCH_COLUMNS, complete)
    steps = read_table(folder / "steps.csv", STEP_COLUMNS, complete)
    probes = None
    if (folder / "probes.csv").exists():
        probes = read_table(folder / "probes.csv", PROBE_COLUMNS, complete, PROBE_COLUMNS_NOT_FINITE)
        probes = check_probes(folder / "probes.csv", probes, complete)
    for name, rows, key in ((("epochs.csv", epochs["epoch"], "epochs")), ("steps.csv", steps["step"], "steps")):
        if summary and len(rows) < summary[key]:
            raise RunFileError(folder / name, f"{len(rows)} whole rows; summary.json says {summary[key]}")
    check_epochs(folder / "epochs.csv", epochs)
    return Run(
        folder=folder, preset=config["preset"], settings=config["settings"], epochs_planned=config["epochs"],
        environment=config["environment"], epochs=epochs, losses=steps["loss"], probes=probes, summary=summary,
    )  # fmt: skip


def _check_place(run: Run) -> None:
    """A run in another run's folder would be taken for it."""
    path, expected = run.folder / "config.json", Path(run.preset, run.model, run_name(run.config, run.preset))
    if Path(*run.folder.parts[-3:]) != expected:
        raise RunFileError(path, f"these settings belong to the folder {expected}")

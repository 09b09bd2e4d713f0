"""Run folders as a reader sees them: found, read whole, and told apart; also while a run still writes into them."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from cifar_lab.experiments import folder_of, known_experiments
from cifar_lab.project import command
from cifar_lab.run_folder.schema import RunFileError, read_config, read_summary
from cifar_lab.run_folder.tables import (
    EPOCH_COLUMNS,
    LARGEST_TABLE,
    PREDICTIONS,
    PROBE_COLUMNS,
    PROBE_COLUMNS_NOT_FINITE,
    STEP_COLUMNS,
    VALIDATED_COLUMNS,
    check_epochs,
    check_probes,
    read_predictions,
    read_table,
)
from cifar_lab.settings import PUBLISHED, RunConfig, above, run_folder, training_root


@dataclass(frozen=True, eq=False)
class Run:
    """One run folder's content. S steps and E epochs are logged so far."""

    folder: Path
    preset: str
    settings: dict[str, Any]  # every field of RunConfig
    network: dict[str, Any]  # script, label, colour (or None), fingerprint (or None)
    epochs_planned: int
    environment: dict[str, Any]  # of the latest start
    earlier_environments: list[dict[str, Any]]  # of those before, if they were others
    epochs: dict[str, np.ndarray]  # the columns of epochs.csv, (E,) float64 each
    losses: np.ndarray  # (S,) float64: the training loss at steps 1 to S
    probes: dict[str, np.ndarray] | None  # the columns of probes.csv, all of one length
    summary: dict[str, Any] | None  # None while the run is not complete
    right: np.ndarray | None = None  # (test images,) bool, of the last epoch's network; older runs have none
    published: bool = False  # came with the repository

    @cached_property
    def config(self) -> RunConfig:
        return RunConfig(**self.settings)

    @property
    def name(self) -> str:
        return self.folder.name

    @cached_property
    def place(self) -> Path:
        """`<preset>/<model>/<name>`: where a run with these settings belongs below a results folder."""
        return run_folder("", self.preset, self.config, self.environment["usual_precision"])

    @cached_property
    def place_of_seed_0(self) -> Path:
        """The same of the run that differs in nothing but its seed, which is 0."""
        return run_folder("", self.preset, replace(self.config, seed=0), self.environment["usual_precision"])

    @property
    def model(self) -> str:
        return self.settings["model"]

    @property
    def settings_name(self) -> str:
        """The folder's name without the seed: equal for runs that differ in nothing else."""
        return self.name.replace(f"-seed{self.seed}", "", 1) + (" (published)" if self.published else "")

    @property
    def state(self) -> str:
        """What a reader must know of a run that is not whole; empty if it is."""
        if self.diverged_at_step is not None:
            return f"diverged at step {self.diverged_at_step:,}"
        return "" if self.complete else f"in progress: {self.epochs_done} of {self.epochs_planned} epochs"

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
        return self.config.steps_per_epoch

    @property
    def steps_planned(self) -> int:
        return self.epochs_planned * self.steps_per_epoch

    @property
    def trained_images(self) -> int:
        """How many images it is trained on."""
        return self.settings["train_size"] - self.settings["validation_size"]

    @property
    def held_out(self) -> str:
        """What its epochs are evaluated on: test, or validation images."""
        return "validation" if self.settings["validation_size"] else "test"

    def column(self, name: str) -> np.ndarray:
        """A column of epochs.csv by its usual name; with validation images, theirs for that of the test images."""
        return self.epochs[name.replace("test", self.held_out)]

    @property
    def final_accuracy(self) -> float | None:
        return final_accuracy(self.column("test_accuracy"))


def final_epochs(epochs: int) -> int:
    """How many epochs "final" averages over: the last tenth of a run, at least the last three."""
    return min(epochs, max(3, epochs // 10))


def final_accuracy(accuracy: Sequence[float] | np.ndarray) -> float | None:
    """Mean over the last tenth of the epochs, at least the last three, in the unit of `accuracy` (E,)."""
    return float(np.mean(accuracy[-final_epochs(len(accuracy)) :])) if len(accuracy) else None


def find_run_folders(root: str | Path, preset: str | None = None) -> list[Path]:
    """Folders `<root>/<preset>/<model>/<name>` that hold a config.json, sorted.

    A name that starts with a dot is skipped: so are runs that were set aside.
    """
    found = [path.parent for path in Path(root).glob("*/*/*/config.json")]
    parts = {folder: folder.relative_to(root).parts for folder in found}
    return sorted(f for f in found if preset in (None, parts[f][0]) and not any(p.startswith(".") for p in parts[f]))


def presets_in(root: Path, preset: str | None = None) -> list[str]:
    """The presets of which a results folder has runs, the user's or published ones; `preset` alone if it is given."""
    found = {folder.parents[1].name for base in (root, root / PUBLISHED) for folder in find_run_folders(base, preset)}
    return sorted(found)


def results_folder(given: Path) -> Path:
    """The results folder that a path names. Raises RunFileError if it is none, and says what would be."""
    if not os.path.isdir(given):  # pathlib raises if a name is too long
        raise RunFileError(given, "there is no such folder")
    if presets_in(given):
        return given
    for depth, what in ((2, "a preset's folder"), (1, "a model's folder"), (0, "a run's folder")):
        if any(given.glob("*/" * depth + "config.json")):
            above = given.absolute().parents[2 - depth]
            raise RunFileError(given, f"this is {what}; the results folder is {above}")
    create = " or ".join(command(script, results=given) for script in ("MyVGG.py", "MyFramework.py"))
    raise RunFileError(given, f"no run folders; to create them, run {create}")


def read_given(folders: Sequence[str | Path]) -> list[Run]:
    """The runs in these folders, each once; published ones are told from others if both are there.

    Raises RunFileError, also if one of them is no run folder.
    """
    found = {Path(os.path.realpath(folder)): Path(folder) for folder in folders}
    for folder in found.values():
        if not os.path.exists(folder / "config.json"):
            raise RunFileError(folder, "there is no such run folder: it would hold a config.json")
    runs = [replace(read_run(folder), published=above(at, 3).name == PUBLISHED) for at, folder in found.items()]
    return runs if any(not run.published for run in runs) else [replace(run, published=False) for run in runs]


def figures_folder(run: Run) -> Path:
    """Where figures go that begin with this run: beside its preset's others, never among the published ones."""
    folder = Path(os.path.realpath(run.folder))
    return training_root(above(folder, 3)) / above(folder, 2).name / "figures"


def read_runs(root: str | Path, preset: str) -> tuple[list[Run], list[RunFileError]]:
    """The preset's runs, the user's and then the published ones, and what is wrong with those that cannot be read."""
    runs, errors = [], []
    for base, published in ((Path(root), False), (Path(root, PUBLISHED), True)):
        for folder in find_run_folders(base, preset):
            try:
                run = replace(read_run(folder), published=published)
                _check_place(run)
            except RunFileError as error:
                errors.append(error)
            else:
                runs.append(run)
    return runs, errors


def own_runs(root: str | Path, preset: str) -> list[Run]:
    """The preset's runs that did not come with the repository, without those that cannot be read."""
    return [run for run in read_runs(root, preset)[0] if not run.published]


def report_runs(runs: Sequence[Run], preset: str) -> dict[str, dict[int, Run]]:
    """Those of the report's runs that are among `runs`: by their name in `experiments.RUNS`, then by seed."""
    found = by_settings(runs, preset)
    names = [name for experiment in known_experiments(preset) for name in experiment.names]
    places = {name: folder_of(name, "", preset) for name in names}
    return {name: found[place] for name, place in places.items() if place in found}


def by_settings(runs: Sequence[Run], preset: str) -> dict[Path, dict[int, Run]]:
    """The preset's runs by where the one with seed 0 belongs (`folder_of`, without a results folder), then by seed.

    A folder's name is worked out once per run, and not once for each pair of a seed and a name that is looked up.
    """
    found: dict[Path, dict[int, Run]] = {}
    for run in sorted(runs, key=lambda run: run.seed):
        if run.preset == preset:
            found.setdefault(run.place_of_seed_0, {})[run.seed] = run
    return found


def read_run(folder: str | Path) -> Run:
    """Everything in a run folder but the checkpoint. Raises RunFileError."""
    folder = Path(folder)
    config = read_config(folder)
    # The summary comes first: where it exists, the logs that it sums up are whole.
    summary = read_summary(folder / "summary.json")
    complete = summary is not None
    # A probe has at most ten rows a step, of at most 200 bytes.
    steps_planned = config["epochs"] * RunConfig(**config["settings"]).steps_per_epoch
    largest = min(LARGEST_TABLE, 2_000 * steps_planned + (1 << 20))
    validated = bool(config["settings"]["validation_size"])
    columns = VALIDATED_COLUMNS if validated else EPOCH_COLUMNS
    epochs = read_table(folder / "epochs.csv", columns, complete, largest=largest)
    steps = read_table(folder / "steps.csv", STEP_COLUMNS, complete, largest=largest)
    probes = None
    if (folder / "probes.csv").exists():
        probes = read_table(folder / "probes.csv", PROBE_COLUMNS, complete, PROBE_COLUMNS_NOT_FINITE, largest)
        probes = check_probes(folder / "probes.csv", probes, complete)
    try:
        _check_lengths(folder, config, summary, len(epochs["epoch"]), len(steps["step"]))
    except RunFileError:
        if (read_config(folder), read_summary(folder / "summary.json")) != (config, summary):
            return read_run(folder)  # the run has been continued meanwhile
        raise
    check_epochs(folder / "epochs.csv", epochs, RunConfig(**config["settings"]))
    if summary:
        _check_accuracies(folder, summary, epochs["validation_accuracy" if validated else "test_accuracy"])
    right = None
    if summary and summary["diverged_at_step"] is None and len(epochs["epoch"]) and (folder / PREDICTIONS).exists():
        accuracy = summary.get("test_accuracy") if validated else float(epochs["test_accuracy"][-1])
        source = "summary.json" if validated else "epochs.csv"
        if accuracy is not None:
            right = read_predictions(folder / PREDICTIONS, config["settings"]["test_size"], accuracy, source)
    return Run(
        folder=folder, preset=config["preset"], settings=config["settings"], network=config["network"],
        epochs_planned=config["epochs"], environment=config["environment"],
        earlier_environments=config["earlier_environments"], epochs=epochs, losses=steps["loss"], probes=probes,
        summary=summary, right=right,
    )  # fmt: skip


def _check_lengths(folder: Path, config: dict, summary: dict | None, epochs: int, steps: int) -> None:
    """Raises RunFileError if the logs have more rows than the run has epochs and steps, or others than it sums up."""
    per_epoch = RunConfig(**config["settings"]).steps_per_epoch
    for name, rows, key, planned in (
        ("epochs.csv", epochs, "epochs", config["epochs"]), ("steps.csv", steps, "steps", config["epochs"] * per_epoch),
    ):  # fmt: skip
        if summary and rows != summary[key]:
            raise RunFileError(folder / name, f"{rows} whole rows; summary.json says {summary[key]}")
        if rows > planned:
            raise RunFileError(folder / name, f"{rows} rows; config.json has {planned} {key}")
    if not summary:
        return
    diverged = summary["diverged_at_step"]
    if diverged not in (None, steps + 1) or (diverged and epochs == config["epochs"]):
        has = f"steps.csv has {steps} rows, epochs.csv {epochs}"
        raise RunFileError(folder / "summary.json", f"diverged at step {diverged}; {has}")


def _check_accuracies(folder: Path, summary: dict, accuracies: np.ndarray) -> None:
    """Raises RunFileError if the summary has others than the epochs."""
    own = {"final_accuracy": final_accuracy(accuracies)}
    own |= {"last_accuracy": accuracies[-1], "best": accuracies.max()} if len(accuracies) else {}
    for name, found in summary.items():
        logged = own.get("best" if name.startswith("best_") else name)
        if None not in (found, logged) and abs(found - logged) > 0.001:
            raise RunFileError(folder / "summary.json", f"{name} is {found:g}; in epochs.csv it is {logged:g}")


def measured_files(
    runs: Sequence[Run], pattern: str, read: Callable[[Path], Any], errors: list[RunFileError]
) -> Iterator[tuple[Run, Path, Any]]:
    """The files of a measure that runs have, with what `read` makes of each; those that it cannot read go to errors."""
    for run in sorted(runs, key=lambda run: run.model):
        for file in sorted(run.folder.glob(pattern)):
            try:
                yield run, file, read(file)
            except RunFileError as error:
                errors.append(error)


def _check_place(run: Run) -> None:
    """A run in another run's folder would be taken for it."""
    if Path(*run.folder.parts[-3:]) != run.place:
        raise RunFileError(run.folder / "config.json", f"these settings belong to the folder {run.place}")

"""All runs as one CSV: a row per run, a column for each setting, option and result."""

from collections.abc import Sequence
from typing import Any

from cifar_lab.escape import csv_cell, csv_text
from cifar_lab.run_folder.reader import Run


def to_csv(runs: Sequence[Run]) -> str:
    """A row per run. A cell is empty if the run has no such setting, option or result (yet).

    Columns: where the run is; settings, options of the networks by their own names; epochs and state; what is in
    summary.json; script, label and fingerprint of the network; what config.json says of the machine.
    """
    rows = [_row(run) for run in runs]
    names = dict.fromkeys(name for row in rows for name in row)
    return csv_text([map(csv_cell, names), *([csv_cell(row.get(name)) for name in names] for row in rows)])


def _row(run: Run) -> dict[str, Any]:
    settings = {name: value for name, value in run.settings.items() if name != "options"}
    return {
        "run": run.place.as_posix(),
        "published": run.published,
        "preset": run.preset,
        **settings,
        **run.settings["options"],
        "epochs_planned": run.epochs_planned,
        "epochs_done": run.epochs_done,
        "state": run.state or "complete",
        **(run.summary or {}),
        **{name: run.network[name] for name in ("script", "label", "fingerprint")},
        **{f"machine_{name}": run.environment[name] for name in ("device", "platform", "torch", "python", "commit")},
    }

"""Writes a run folder: settings, logs, checkpoints, summary. `cifar_lab.run_folder.reader` reads it."""

import contextlib
import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path

import numpy as np
import torch

from cifar_lab.project import ROOT
from cifar_lab.run_folder import checkpoint, files, tensorboard
from cifar_lab.run_folder.ownership import FolderError, Hold
from cifar_lab.run_folder.reader import read_run
from cifar_lab.run_folder.schema import SCHEMA, RunFileError, a_line, check_config, read_config
from cifar_lab.run_folder.tables import (
    EPOCH_COLUMNS,
    LARGEST_TABLE,
    PREDICTIONS,
    PROBE_COLUMNS,
    STEP_COLUMNS,
    VALIDATED_COLUMNS,
    predictions_text,
)
from cifar_lab.settings import RunConfig, differing, run_folder

HEADERS = {"epochs.csv": EPOCH_COLUMNS, "steps.csv": STEP_COLUMNS, "probes.csv": PROBE_COLUMNS}
FILES = ("config.json", *HEADERS, PREDICTIONS, "summary.json", checkpoint.NEWEST)


def commit_of(checkout: Path) -> str | None:
    """The commit of a checkout, marked if it is changed; None if there is none: an unpacked archive has not that of a
    repository around it."""
    describe = ["git", "-C", checkout, "describe", "--always", "--dirty", "--abbrev=12"]
    # Within a hook of git, these would name the hook's repository.
    env = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        if (checkout / ".git").exists():
            ended = subprocess.run(
                describe, capture_output=True, text=True, errors="replace", timeout=10, check=True, env=env
            )
            return ended.stdout.strip()
    return None


def environment(device: str, precision: str, data_sha256: dict[str, str]) -> dict:
    """What does not identify a run but belongs beside its numbers."""
    lines = {
        "commit": os.environ.get("GIT_COMMIT") or commit_of(ROOT),  # for a copy without its history
        "device": device,
        "precision": precision,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(terse=True),
    }
    return {name: text and a_line(text) for name, text in lines.items()} | {"data_sha256": data_sha256}


class Recorder:
    """One run's folder."""

    def __init__(
        self, results: str | Path, preset: str, config: RunConfig, network: dict, usual_precision: str | None = None
    ) -> None:
        """network: what config.json says of it: script, label, colour, options, fingerprint. usual_precision: the one
        that the folder's name leaves out."""
        self.folder = folder = run_folder(results, preset, config, usual_precision)
        self.threads: int | None = None  # that an existing run began with
        self.config = config
        self.preset = preset
        self.events: tensorboard.Events | None = None  # of --log tensorboard
        self._network = network
        self.hold = Hold(folder)
        self.held_out = "validation" if config.validation_size else "test"  # what epochs are evaluated on
        self._headers = HEADERS | ({"epochs.csv": VALIDATED_COLUMNS} if config.validation_size else {})
        self._logs = [name for name in HEADERS if name != "probes.csv" or config.probe_every]

    # --- Before training -----------------------------------------------------------------------------------------

    def existing(self, data_sha256: dict[str, str]) -> dict | None:
        """The folder's config.json, None if there is no run yet. Writes nothing.

        Raises FolderError if its settings are not the ones asked for, or its files cannot be read.
        """
        if not self.folder.exists():
            return None
        if not (self.folder / "config.json").exists():
            if any(not path.name.startswith(".") for path in self.folder.iterdir()):
                raise FolderError(f"{self.folder}: holds files but no config.json; --fresh moves it aside")
            return None
        try:
            found = read_config(self.folder)
            read_run(self.folder)  # what cannot be read now could not be read after the last epoch either
        except RunFileError as error:
            raise FolderError(f"{error}; --fresh moves the folder aside") from None
        old, new = found["settings"], asdict(self.config)
        old["fingerprint"], new["fingerprint"] = found["network"]["fingerprint"], self._network["fingerprint"]
        differ = differing(old, new)
        same_data = old["data_digest"] == new["data_digest"]
        if same_data and found["environment"].get("data_sha256", data_sha256) != data_sha256:
            differ.append("the data's checksums")
        if differ:
            raise FolderError(
                f"{self.folder}: holds a run with other settings ({', '.join(differ)}); --fresh moves it aside"
            )
        self.threads = found["environment"]["threads"]
        return found

    def summary(self) -> dict | None:
        """The folder's summary.json, None if the run has not ended. Raises FolderError."""
        if not (self.folder / "summary.json").exists():
            return None
        try:
            return read_run(self.folder).summary
        except RunFileError as error:
            raise FolderError(f"{error}; --fresh moves the folder aside") from None

    def set_aside(self) -> Path | None:
        """Moves an existing folder out of the sight of plots, under a name that says when. Deletes nothing."""
        if not self.folder.exists():
            return None
        stamp = datetime.now().strftime("%Y%m%d-%H%M%S-%f")
        aside = self.folder.with_name(f".{self.folder.name}.before-{stamp}")
        files.rename(self.folder, aside.name, self.hold.check)
        return aside

    def start(self, epochs: int, described: dict, width_factors: Sequence[dict] = (), command: str = "") -> None:
        """Makes the folder of a new run, or brings config.json of an old one up to date.

        command: that it is trained by. width_factors: `width.recorded`; left out of config.json if there are none.
        Raises OSError, and FolderError if what config.json would hold could not be read again.
        """
        config = self.folder / "config.json"
        earlier: list[dict] = []
        if config.exists():
            old = read_config(self.folder)
            earlier = old["earlier_environments"]
            if old["environment"] != described:
                earlier = [*earlier, old["environment"]]
        content = {
            "schema": SCHEMA,
            "preset": self.preset,
            "settings": asdict(self.config),
            "network": self._network,
            **({"width_factors": list(width_factors)} if width_factors else {}),
            "epochs": epochs,
            "command": command,
            "environment": described,
        }
        if earlier:
            content["earlier_environments"] = earlier
        try:
            check_config(config, content)
        except RunFileError as error:
            raise FolderError(f"{error}, and would not be read again") from None
        self.hold.check()
        self.folder.mkdir(parents=True, exist_ok=True)
        for name in FILES:
            files.remove_unfinished(self.folder / name, self.hold.check)
        for left in self.folder.glob(f".{checkpoint.KEPT}.*.tmp"):
            files.remove(left, self.hold.check)
        files.write_text(config, json.dumps(content, indent=1) + "\n", self.hold.check)
        for name in self._logs:
            if not (self.folder / name).exists():
                files.write_text(self.folder / name, ",".join(self._headers[name]) + "\n", self.hold.check)

    def kept(self, epochs: int, steps: int, probed_up_to: int) -> dict[str, list[bytes]]:
        """The rows of each log up to a checkpoint. Raises FolderError if one holds less than the checkpoint."""
        kept = {name: self._rows(name, wanted) for name, wanted in (("epochs.csv", epochs), ("steps.csv", steps))}
        if "probes.csv" in self._logs:
            kept["probes.csv"] = self._probes(probed_up_to)
        return kept

    def truncate(self, kept: Mapping[str, list[bytes]]) -> None:
        """Removes all rows but those `kept` from the logs, and the summary, which is derived from them.

        Every log becomes a new file: what a process that was given up still writes goes into the one that it has open.
        """
        files.remove(self.folder / "summary.json", self.hold.check)
        if len(self._whole_rows("epochs.csv")) > len(kept["epochs.csv"]):
            self._drop_predictions()
        for name, rows in kept.items():
            path = self.folder / name
            if path.exists():
                files.write_whole(path, lambda file, rows=rows: file.writelines(rows), may=self.hold.check)

    def _whole_rows(self, name: str) -> list[bytes]:
        """The rows of a log, the header first, without half a last one."""
        path = self.folder / name
        rows = files.read_regular(path, LARGEST_TABLE).splitlines(keepends=True) if path.exists() else []
        return [row for row in rows if row.endswith(b"\n")]

    def _rows(self, name: str, wanted: int) -> list[bytes]:
        """The header and the first `wanted` rows of a log."""
        rows = self._whole_rows(name)
        if max(len(rows) - 1, 0) < wanted:
            raise FolderError(
                f"{self.folder / name}: has {max(len(rows) - 1, 0)} rows where the checkpoint has {wanted}; "
                "--fresh starts again"
            )
        return rows[: 1 + wanted]

    def _probes(self, up_to: int) -> list[bytes]:
        """The header and the rows of probes.csv up to a step."""
        rows = self._whole_rows("probes.csv")
        try:
            steps = [int(row.split(b",", 1)[0]) for row in rows[1:]]
        except ValueError:
            raise FolderError(f"{self.folder / 'probes.csv'}: a row has no step; --fresh starts again") from None
        kept = rows[:1] + [row for row, step in zip(rows[1:], steps, strict=True) if step <= up_to]
        last = up_to // self.config.probe_every * self.config.probe_every
        if last and last not in steps:
            raise FolderError(f"{self.folder / 'probes.csv'}: has no step {last}, which the checkpoint has")
        return kept

    # --- During training -----------------------------------------------------------------------------------------

    def _append(self, name: str, rows: list[str]) -> None:
        files.append(self.folder / name, "".join(row + "\n" for row in rows), self.hold.check)
        if self.events and name in tensorboard.LOGS:
            self.events.add(name, rows)

    def append_steps(self, first: int, losses: np.ndarray) -> None:
        """losses: (n,) float32 of steps first, first + 1, ..."""
        self._append("steps.csv", [f"{first + i},{x!s}" for i, x in enumerate(losses)])

    def append_epoch(self, row: list) -> None:
        """One row of epochs.csv, in its columns' order."""
        self._drop_predictions()
        self._append("epochs.csv", [",".join(map(str, row))])

    def append_probes(self, rows: list[tuple]) -> None:
        """Rows of probes.csv."""
        self._append("probes.csv", [",".join(map(str, row)) for row in rows])

    def sync_logs(self) -> None:
        """Waits until the logs are on the disk: a checkpoint must never be ahead of them."""
        self.hold.check()
        for name in self._logs:
            files.sync(self.folder / name)

    def _drop_predictions(self) -> None:
        """Removes predictions, which are of the last epoch in epochs.csv, before another one becomes the last."""
        files.remove(self.folder / PREDICTIONS, self.hold.check)

    def write_predictions(self, labels: np.ndarray, predictions: np.ndarray) -> None:
        """labels, predictions: (N,) integers, of the test images in the data set's order."""
        files.write_text(self.folder / PREDICTIONS, predictions_text(labels, predictions), self.hold.check)

    def finish(self, summary: dict) -> None:
        """Writes summary.json, which marks the run as complete."""
        files.write_text(self.folder / "summary.json", json.dumps(summary, indent=1) + "\n", self.hold.check)
        if self.events:
            self.events.close()

"""Writes a run folder: settings, logs, checkpoints, summary. `cifar_lab.runs` reads it."""

import json
import os
import platform
import socket
import subprocess
import sys
from dataclasses import asdict
from datetime import datetime
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock, Timeout

from cifar_lab import files
from cifar_lab.config import RunConfig
from cifar_lab.runs import EPOCH_COLUMNS, PROBE_COLUMNS, SCHEMA, STEP_COLUMNS, RunFileError, read_config

HEADERS = {"epochs.csv": EPOCH_COLUMNS, "steps.csv": STEP_COLUMNS, "probes.csv": PROBE_COLUMNS}


class FolderError(Exception):
    """A run folder that must not be written to; the text names it and says why."""


class Busy(FolderError):
    """Another process writes to the run folder."""


def environment(device: str, precision: str, data_sha256: dict[str, str]) -> dict:
    """What does not identify a run but belongs beside its numbers."""
    root = Path(__file__).resolve().parent.parent
    try:
        commit = subprocess.run(
            ["git", "-C", root, "describe", "--always", "--dirty", "--abbrev=12"],
            capture_output=True, text=True, timeout=10, check=True,
        ).stdout.strip()  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        commit = None
    return {
        "commit": commit,
        "device": device,
        "precision": precision,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(terse=True),
        "data_sha256": data_sha256,
    }


class Recorder:
    """One run's folder, held by this process from `open` to `close`."""

    def __init__(self, folder: Path, config: RunConfig, preset: str) -> None:
        self.folder = folder
        self.config = config
        self.preset = preset
        self._lock = FileLock(folder.with_name(f".{folder.name}.lock"), timeout=0)
        self._owner = folder.with_name(f".{folder.name}.owner.json")
        self._logs = [name for name in HEADERS if name != "probes.csv" or config.probe_every]

    # --- Before training -----------------------------------------------------------------------------------------

    def existing(self, data_sha256: dict[str, str]) -> dict | None:
        """The folder's config.json, None where there is no run yet. Writes nothing.

        Raises FolderError where its settings are not the ones asked for, or its config.json cannot be read.
        """
        if not self.folder.exists():
            return None
        if not (self.folder / "config.json").exists():
            if any(self.folder.iterdir()):
                raise FolderError(f"{self.folder}: holds files but no config.json; --fresh moves it aside")
            return None
        try:
            found = read_config(self.folder)
        except RunFileError as error:
            raise FolderError(f"{error}; --fresh moves the folder aside") from None
        old, new = found["settings"], asdict(self.config)
        differ = [f"{k} {old.get(k)} -> {new.get(k)}" for k in {**old, **new} if old.get(k) != new.get(k)]
        if found["environment"].get("data_sha256", data_sha256) != data_sha256:
            differ.append("the data's checksums")
        if differ:
            raise FolderError(
                f"{self.folder}: holds a run with other settings ({', '.join(differ)}); --fresh moves it aside"
            )
        return found

    def summary(self) -> dict | None:
        """The folder's summary.json, None where the run has not ended. Raises FolderError."""
        path = self.folder / "summary.json"
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (ValueError, RecursionError) as error:
            raise FolderError(f"{path}: not JSON ({error}); --fresh moves the folder aside") from None

    def acquire(self) -> None:
        """Holds the folder for this process. Raises Busy, naming who holds it, and OSError."""
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire()
        except Timeout:
            try:
                owner = json.loads(self._owner.read_text(encoding="utf-8"))
                who = f"process {owner['pid']} on {owner['host']}"
            except (OSError, ValueError, KeyError, TypeError):
                who = "another process"
            raise Busy(f"{self.folder}: {who} is training this run") from None
        files.write_text(self._owner, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))

    def release(self) -> None:
        """Lets other processes write to the folder again."""
        if self._lock.is_locked:
            self._owner.unlink(missing_ok=True)
            self._lock.release()

    def set_aside(self) -> Path | None:
        """Moves an existing folder out of the sight of plots, under a name that says when. Deletes nothing."""
        if not self.folder.exists():
            return None
        stamp = datetime.now().strftime("%Y%m%d-%H%M%S-%f")
        aside = self.folder.with_name(f".{self.folder.name}.before-{stamp}")
        os.replace(self.folder, aside)
        return aside

    def start(self, epochs: int, described: dict) -> None:
        """Makes the folder of a new run, or brings config.json of an old one up to date. Raises OSError."""
        self.folder.mkdir(parents=True, exist_ok=True)
        config = self.folder / "config.json"
        earlier: list[dict] = []
        if config.exists():
            old = json.loads(config.read_text(encoding="utf-8"))
            earlier = old.get("earlier_environments", [])
            if old["environment"] != described:
                earlier = [*earlier, old["environment"]]
        content = {
            "schema": SCHEMA,
            "preset": self.preset,
            "settings": asdict(self.config),
            "epochs": epochs,
            "command": " ".join(["python", os.path.basename(sys.argv[0]), *sys.argv[1:]]),
            "environment": described,
        }
        if earlier:
            content["earlier_environments"] = earlier
        files.write_text(config, json.dumps(content, indent=1) + "\n")
        for name in self._logs:
            if not (self.folder / name).exists():
                files.write_text(self.folder / name, ",".join(HEADERS[name]) + "\n")

    def cut_back(self, epochs: int, steps: int, probed_up_to: int) -> None:
        """Drops what the logs hold beyond a checkpoint. Raises FolderError where they hold less than it."""
        for name, wanted in (("epochs.csv", epochs), ("steps.csv", steps)):
            path = self.folder / name
            lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
            whole = [line for line in lines if line.endswith(b"\n")]
            if len(whole) < 1 + wanted:
                have = max(len(whole) - 1, 0)
                raise FolderError(f"{path}: has {have} rows where the checkpoint has {wanted}; --fresh starts again")
            if len(lines) > 1 + wanted:
                files.write_whole(path, lambda file, kept=whole[: 1 + wanted]: file.writelines(kept))
        path = self.folder / "probes.csv"
        if self.config.probe_every and path.exists():
            header, *rows = [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
            kept = [row for row in rows if int(row.split(b",", 1)[0]) <= probed_up_to]
            files.write_whole(path, lambda file: file.writelines([header, *kept]))

    # --- During training -----------------------------------------------------------------------------------------

    def append_steps(self, first: int, losses: np.ndarray) -> None:
        """losses: (n,) float32 of steps first, first + 1, ..."""
        files.append(self.folder / "steps.csv", "".join(f"{first + i},{x!s}\n" for i, x in enumerate(losses)))

    def append_epoch(self, row: list) -> None:
        """One row of epochs.csv, in its columns' order."""
        files.append(self.folder / "epochs.csv", ",".join(map(str, row)) + "\n")

    def append_probes(self, rows: list[tuple]) -> None:
        """Rows of probes.csv."""
        files.append(self.folder / "probes.csv", "".join(",".join(map(str, row)) + "\n" for row in rows))

    def sync_logs(self) -> None:
        """Waits until the logs are on the disk: a checkpoint must never be ahead of them."""
        for name in self._logs:
            files.sync(self.folder / name)

    def reopen(self) -> None:
        """Takes back the end of a run that is to go on. Its summary is derived from the logs and is written again."""
        (self.folder / "summary.json").unlink(missing_ok=True)

    def finish(self, summary: dict) -> None:
        """Writes summary.json, which marks the run as complete."""
        files.write_text(self.folder / "summary.json", json.dumps(summary, indent=1) + "\n")

"""Checkpoints: what a run needs to continue exactly, in a file that is whole or not used.

A checkpoint holds tensors and plain values and is loaded with `weights_only=True`: nothing in it is executed. The one
before it is kept beside it, and used if the newest is damaged.
"""

import io
import os
import shlex
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cifar_lab.networks import describe, find_network
from cifar_lab.run_folder.files import write_whole
from cifar_lab.run_folder.schema import completed, read_config
from cifar_lab.settings import RunConfig, differing, training_root

NEWEST = "checkpoint.pt"
PREVIOUS = "checkpoint.previous.pt"
UNUSABLE = "checkpoint.unusable.pt"
# What every checkpoint holds, with its type.
CONTENT = {
    "config": dict,
    "fingerprint": str,  # of the network, `networks.describe`
    "model": dict,
    "optimizer": dict,
    "epochs": int,  # whole epochs behind it
    "step": int,  # steps of the next epoch behind it
    "losses": torch.Tensor,  # (step,) float32, of that epoch
    "correct": torch.Tensor,  # (step,) int64
    "epoch_seconds": float,  # of that epoch
    "train_seconds": float,  # of the whole epochs
    "test_seconds": float,
}


class CheckpointError(Exception):
    """A checkpoint that cannot be used; the text names the file and says why."""


def save(folder: Path, state: dict) -> None:
    """Writes a run's newest checkpoint and keeps the one before. Raises OSError."""
    content = io.BytesIO()
    torch.save(state, content)  # straight into a file, it would report a full disk as an error in its own archive
    write_whole(folder / NEWEST, lambda file: file.write(content.getbuffer()), keep=folder / PREVIOUS)


def read(path: Path) -> dict:
    """The content of one checkpoint, on the CPU. Raises CheckpointError."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()  # compares the checksum of each part
        if damaged:
            raise CheckpointError(f"{path}: damaged ({damaged} does not match its checksum)")
        with warnings.catch_warnings(action="ignore"):
            state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: there is no checkpoint") from None
    except CheckpointError:
        raise
    except Exception as error:  # a damaged file can raise anything
        first = str(error).strip().splitlines()
        raise CheckpointError(
            f"{path}: not a whole checkpoint ({first[0][:160] if first else type(error).__name__})"
        ) from None
    if not isinstance(state, dict):
        raise CheckpointError(f"{path}: not a checkpoint of this project")
    for key, kind in CONTENT.items():
        if not isinstance(state.get(key), kind):
            raise CheckpointError(f"{path}: not a checkpoint of this project (no {key})")
    return state


def check_settings(path: Path, state: dict, config: RunConfig) -> None:
    """Raises CheckpointError if a checkpoint is of a run with other settings."""
    if differ := differing(completed(state["config"]), asdict(config)):
        raise CheckpointError(f"{path}: of a run with other settings ({', '.join(differ)})")


def check_network(path: Path, state: dict, config: RunConfig, fingerprint: str) -> None:
    """Raises CheckpointError if a checkpoint is of another network of that name."""
    if state["fingerprint"] != fingerprint:
        raise CheckpointError(
            f"{path}: of another network (fingerprint {state['fingerprint'][:16]}; "
            f"that of {config.model} is now {fingerprint})"
        )


def check_architecture(path: Path, model: nn.Module, weights: dict) -> None:
    """Raises CheckpointError if the weights are those of another network."""
    own = model.state_dict()
    for name in [*own, *weights]:
        if name not in weights or name not in own:
            raise CheckpointError(f"{path}: of another architecture ({name} is in only one of them)")
        if getattr(weights[name], "shape", None) != own[name].shape:
            raise CheckpointError(f"{path}: of another architecture (the shape of {name} differs)")


def newest(folder: Path, use: Callable[[Path, dict], Any]) -> tuple[Any, list[str]]:
    """What `use` returns for the newest checkpoint of a folder that can be used, None if there is none.

    use: is given a checkpoint's path and content; raises CheckpointError if it is whole and yet not to be used.
    Returns also what is wrong with a newer one that was passed over. Raises CheckpointError if there are checkpoints
    and none can be used.
    """
    passed_over = []
    for name in (NEWEST, PREVIOUS):
        path = folder / name
        if not path.exists():
            continue
        try:
            return use(path, read(path)), [f"{reason}: {name} is used" for reason in passed_over]
        except CheckpointError as error:
            passed_over.append(str(error))
    if passed_over:
        raise CheckpointError("; ".join(passed_over))
    return None, []


def set_aside(folder: Path) -> None:
    """Renames a newest checkpoint that cannot be used, so that the next one does not take the previous one's place."""
    os.replace(folder / NEWEST, folder / UNUSABLE)


def load_model(
    folder: str | Path, script: str | Path | None = None, warn: Callable[[str], None] = print
) -> tuple[nn.Module, dict]:
    """A run's network with the weights of its newest checkpoint, in eval mode on the CPU, and the checkpoint.

    script: the file that defines the network, if it is not a script in the project's root. warn: is told of a newer
    checkpoint that cannot be used. Raises CheckpointError, also for a folder without a checkpoint, and RunFileError.
    """
    folder = Path(folder)
    content = read_config(folder)
    config = RunConfig(**content["settings"])

    def use(path: Path, state: dict) -> tuple[nn.Module, dict]:
        check_settings(path, state, config)
        try:
            model = find_network(config.model, content["network"]["script"], script).build(config)
            fingerprint = describe(model).fingerprint
        except Exception as error:  # a user's network can raise anything
            raise CheckpointError(f"{path}: its settings give no network ({error})") from None
        check_network(path, state, config, fingerprint)
        check_architecture(path, model, state["model"])
        model.load_state_dict(state["model"])
        return model.eval(), state

    try:
        found, passed_over = newest(folder, use)
        if found is None:
            raise CheckpointError(f"{folder / NEWEST}: there is no checkpoint")
    except CheckpointError as error:
        create = "" if (folder / NEWEST).exists() else f"; to create it, run: {training_command(folder, content)}"
        raise CheckpointError(f"{error}{create}") from None
    for reason in passed_over:
        warn(reason)
    return found


def training_command(folder: str | Path, config: dict[str, Any]) -> str:
    """The command that trains a run again into the folder that it is in, from its config.json."""
    try:
        words = shlex.split(str(config.get("command", "")))
    except ValueError:  # a quote that does not end
        words = []
    if not words:
        return "training the run again with --fresh"
    kept, skip = [], False
    for word in words:
        name, equals, _ = word.partition("=")
        if not skip and name not in ("--results", "--data-dir", "--fresh"):
            kept.append(word)
        skip = not skip and name in ("--results", "--data-dir") and not equals  # its value follows
    results = training_root(Path(folder).absolute().parents[2])
    where = [] if results == Path("results").absolute() else ["--results", str(results)]
    return shlex.join([*kept, *where, "--fresh"])

"""Checkpoints: what a run needs to continue exactly, in a file that is whole or not used.

A checkpoint holds tensors and plain values and is loaded with `weights_only=True`: nothing in it is executed. The one
before it is kept beside it, and used where the newest is damaged.
"""

import io
import os
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cifar_lab.config import RunConfig
from cifar_lab.files import write_whole

NEWEST = "checkpoint.pt"
PREVIOUS = "checkpoint.previous.pt"
UNUSABLE = "checkpoint.unusable.pt"
# What every checkpoint holds, with its type.
CONTENT = {
    "config": dict,
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


def differing(state: dict, config: RunConfig) -> list[str]:
    """The settings in which a checkpoint differs from a run, as `name old -> new`."""
    new = asdict(config)
    return [f"{k} {state['config'].get(k)} -> {v}" for k, v in new.items() if state["config"].get(k) != v]


def check_architecture(path: Path, model: nn.Module, weights: dict) -> None:
    """Raises CheckpointError where the weights are those of another network."""
    own = model.state_dict()
    for name in [*own, *weights]:
        if name not in weights or name not in own:
            raise CheckpointError(f"{path}: of another architecture ({name} is in only one of them)")
        if getattr(weights[name], "shape", None) != own[name].shape:
            raise CheckpointError(f"{path}: of another architecture (the shape of {name} differs)")


def newest(folder: Path, use: Callable[[Path, dict], Any]) -> tuple[Any, list[str]]:
    """What `use` makes of the newest checkpoint of a folder that can be used, None where there is none.

    use: is given a checkpoint's path and content; raises CheckpointError where it is whole and yet not to be used.
    Returns also what is wrong with a newer one that was passed over. Raises CheckpointError where there are checkpoints
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
    folder: str | Path,
    build: Callable[[RunConfig], nn.Module],
    models: tuple[str, ...] = (),
    warn: Callable[[str], None] = print,
) -> tuple[nn.Module, dict]:
    """A run's network with the weights of its newest checkpoint, in eval mode on the CPU, and the checkpoint.

    build: makes the network of a configuration. models: those that `build` knows, where it does not know all. warn: is
    told of a newer checkpoint that cannot be used. Raises CheckpointError, also for a folder without a checkpoint.
    """

    def use(path: Path, state: dict) -> tuple[nn.Module, dict]:
        name = state["config"].get("model")
        if models and name not in models:
            raise CheckpointError(f"{path}: of the network {name}, not one of {', '.join(models)}")
        if set(state["config"]) != {f.name for f in fields(RunConfig)}:
            raise CheckpointError(f"{path}: its settings are not those of this version")
        try:
            model = build(RunConfig(**state["config"]))
        except (TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"{path}: its settings give no network ({error})") from None
        check_architecture(path, model, state["model"])
        model.load_state_dict(state["model"])
        return model.eval(), state

    found, passed_over = newest(Path(folder), use)
    for reason in passed_over:
        warn(reason)
    if found is None:
        raise CheckpointError(f"{Path(folder) / NEWEST}: there is no checkpoint")
    return found

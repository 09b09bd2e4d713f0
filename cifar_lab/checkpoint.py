"""Checkpoints: what a run needs to continue exactly, in a file that is whole or not used.

A checkpoint holds tensors and plain values and is loaded with `weights_only=True`: nothing in it is executed. The one
before it is kept beside it, and used where the newest is damaged.
"""

import warnings
import zipfile
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path

import torch
from torch import nn

from cifar_lab.config import RunConfig
from cifar_lab.files import write_whole

NEWEST = "checkpoint.pt"
PREVIOUS = "checkpoint.previous.pt"
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
}


class CheckpointError(Exception):
    """A checkpoint that cannot be used; the text names the file and says why."""


def save(folder: Path, state: dict) -> None:
    """Writes a run's newest checkpoint and keeps the one before. Raises OSError."""
    write_whole(folder / NEWEST, lambda file: torch.save(state, file), keep=folder / PREVIOUS)


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


def newest(folder: Path, usable: Callable[[Path, dict], None], warn: Callable[[str], None]) -> dict | None:
    """The newest checkpoint of a folder that can be used, None where there is none.

    usable: raises CheckpointError on a checkpoint that is whole and yet not to be used. warn: is told of each one that
    is passed over. Raises CheckpointError where there are checkpoints and none can be used.
    """
    passed_over = []
    for name in (NEWEST, PREVIOUS):
        path = folder / name
        if not path.exists():
            continue
        try:
            state = read(path)
            usable(path, state)
        except CheckpointError as error:
            passed_over.append(str(error))
            continue
        for reason in passed_over:
            warn(f"{reason}: continuing from {name}")
        return state
    if passed_over:
        raise CheckpointError(f"{'; '.join(passed_over)}; --fresh starts again and keeps the old folder")
    return None


def load_model(
    folder: str | Path, build: Callable[[RunConfig], nn.Module], models: tuple[str, ...] = ()
) -> tuple[nn.Module, dict]:
    """A run's network with the weights of its newest checkpoint, in eval mode on the CPU, and the checkpoint.

    build: makes the network of a configuration. models: those that `build` knows, where it does not know all.
    Raises CheckpointError, also for a folder without a checkpoint.
    """
    path = Path(folder) / NEWEST
    state = read(path)
    if models and state["config"].get("model") not in models:
        raise CheckpointError(f"{path}: of the network {state['config'].get('model')}, not one of {', '.join(models)}")
    known = {f.name for f in fields(RunConfig)}
    if set(state["config"]) != known:
        raise CheckpointError(f"{path}: its settings are not those of this version")
    try:
        model = build(RunConfig(**state["config"]))
    except (TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path}: its settings give no network ({error})") from None
    check_architecture(path, model, state["model"])
    model.load_state_dict(state["model"])
    return model.eval(), state

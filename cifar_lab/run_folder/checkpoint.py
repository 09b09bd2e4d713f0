"""Checkpoints: what a run needs to continue exactly, in a file that is whole or not used.

A checkpoint holds tensors and plain values and is loaded with `weights_only=True`: nothing in it is executed. The one
before it is kept beside it, and used if the newest is damaged.
"""

import io
import re
import shlex
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cifar_lab import escape
from cifar_lab.networks import describe, find_network
from cifar_lab.program import is_out_of_memory
from cifar_lab.project import RESULTS, command
from cifar_lab.run_folder.files import May, NotRegular, always, read_regular, rename, write_whole
from cifar_lab.run_folder.schema import NEWEST, PREVIOUS, completed, read_config, read_summary
from cifar_lab.run_folder.validation import Form
from cifar_lab.settings import RunConfig, above, training_root

UNUSABLE = "checkpoint.unusable.pt"
KEPT = "checkpoint.step*.pt"  # with --keep-every; in place of the star the number of steps behind it
LARGEST = 1 << 34  # bytes; of a run whose network is known: `Form.largest`


class CheckpointError(Exception):
    """A checkpoint that cannot be used; the text names the file and says why."""

    def __init__(self, text: str) -> None:
        super().__init__(escape.terminal(text))  # some of it is what a library says of a damaged file


def save(folder: Path, state: dict, may: May = always) -> None:
    """Writes a run's newest checkpoint and keeps the one before. Raises OSError, and what `may` raises."""
    _write(folder / NEWEST, state, may, keep=folder / PREVIOUS)


def keep(folder: Path, step: int, state: dict, may: May = always) -> None:
    """Writes a checkpoint that no later one replaces. Raises as `save` does."""
    _write(folder / KEPT.replace("*", str(step)), state, may)


def _write(path: Path, state: dict, may: May, keep: Path | None = None) -> None:
    content = io.BytesIO()
    torch.save(state, content)  # straight into a file, it would report a full disk as an error in its own archive
    write_whole(path, lambda file: file.write(content.getbuffer()), keep=keep, may=may)


def kept(folder: Path) -> dict[int, Path]:
    """The checkpoints that --keep-every left, by the number of steps behind them, ascending."""
    before, after = KEPT.split("*")
    numbered = {path.name.removeprefix(before).removesuffix(after): path for path in folder.glob(KEPT)}
    written = re.compile("0|[1-9][0-9]{0,15}")
    return dict(sorted((int(number), path) for number, path in numbered.items() if written.fullmatch(number)))


def read(path: Path, largest: int = LARGEST) -> Any:
    """The content of one checkpoint of at most so many bytes, on the CPU; not validated.

    Raises CheckpointError, and OSError if a sound one may lie there that cannot be read just now.
    """
    try:
        content = read_regular(path, largest)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: there is no checkpoint") from None
    except NotRegular as error:
        raise CheckpointError(f"{path}: {error.strerror}") from None
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            if sum(part.file_size for part in archive.infolist()) > largest:
                raise CheckpointError(f"{path}: its parts are larger than {largest:,} bytes")
            damaged = archive.testzip()  # compares the checksum of each part
        if damaged:
            raise CheckpointError(f"{path}: damaged ({damaged} does not match its checksum)")
        with warnings.catch_warnings(action="ignore"):
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except Exception as error:  # a damaged file can raise anything
        if is_out_of_memory(error):
            raise
        first = str(error).strip().splitlines()
        raise CheckpointError(
            f"{path}: not a whole checkpoint ({first[0][:160] if first else type(error).__name__})"
        ) from None


def check(path: Path, state: Any, form: Form) -> None:
    """Raises CheckpointError, naming the first difference, if a checkpoint is not of this form."""
    try:
        why = form.difference(state)
    except Exception as error:  # a value of a kind that nobody has thought of
        if is_out_of_memory(error):
            raise
        why = f"cannot be compared with what the run would hold ({type(error).__name__})"
    if why:
        raise CheckpointError(f"{path}: {''.join(c if c.isprintable() else ' ' for c in why)[:500]}")


def newest(folder: Path, form: Form) -> tuple[dict | None, list[str]]:
    """The content of the newest checkpoint of a folder that is of this form, None if there is none.

    Returns also what is wrong with a newer one that was passed over. Raises CheckpointError if there are checkpoints
    and none can be used.
    """
    passed_over = []
    for path in _present(folder):
        try:
            state = read(path, form.largest)
            check(path, state, form)
            return state, [f"{reason}: {path.name} is used" for reason in passed_over]
        except CheckpointError as error:
            passed_over.append(str(error))
    if passed_over:
        raise CheckpointError("; ".join(passed_over))
    return None, []


def _present(folder: Path) -> list[Path]:
    """The checkpoints that a folder has, the newest first."""
    return [folder / name for name in (NEWEST, PREVIOUS) if (folder / name).exists()]


def set_aside(folder: Path, may: May) -> None:
    """Renames a newest checkpoint that cannot be used, so that the next one does not take the previous one's place."""
    rename(folder / NEWEST, UNUSABLE, may)


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

    try:
        if not _present(folder):
            raise CheckpointError(f"{folder / NEWEST}: there is no checkpoint")
        try:
            model = find_network(config.model, content["network"]["script"], script).build(config)
            description = describe(model, config.classes)
        except Exception as error:  # a user's network can raise anything
            if is_out_of_memory(error):
                raise
            raise CheckpointError(f"{folder}: its settings give no network ({error})") from None
        # Its weights alone are used, whatever the optimizer's state.
        state, passed_over = newest(folder, Form(config, description, model, optimizer=False))
        _check_position(folder, content, state, of_newest=not passed_over and (folder / NEWEST).exists())
    except CheckpointError as error:
        create = "" if (folder / NEWEST).exists() else f"; to create it, run: {training_command(folder, content)}"
        raise CheckpointError(f"{error}{create}") from None
    for reason in passed_over:
        warn(reason)
    model.load_state_dict(evaluated(state))
    return model.eval(), state


def evaluated(state: dict) -> dict[str, torch.Tensor]:
    """The weights and buffers that a checkpoint's run is evaluated with: averaged, and with statistics estimated again,
    if it has those."""
    return state["model"] | state.get("average", {}) | state.get("statistics", {})


def _check_position(folder: Path, config: dict[str, Any], state: dict, of_newest: bool) -> None:
    """Raises CheckpointError if a checkpoint is not where its run can be or, the newest, not where that has ended."""
    position = f"{folder / NEWEST}: after epoch {state['epochs']}, step {state['step']} of the next"
    if state["epochs"] > config["epochs"]:
        raise CheckpointError(f"{position}; config.json has {config['epochs']} epochs")
    summary = read_summary(folder / "summary.json")
    ended = summary is not None and summary["diverged_at_step"] is None
    if of_newest and ended and (state["epochs"], state["step"]) != (summary["epochs"], 0):
        raise CheckpointError(f"{position}; summary.json has {summary['epochs']} epochs")


def kept_weights(folder: Path, model: nn.Module, state: dict, before: int) -> dict[int, dict]:
    """The weights of the kept checkpoints up to before a step, by number of steps.

    model, state: the run's network and its newest checkpoint. Raises CheckpointError if one cannot be used.
    """
    # The fingerprint of a network depends on its memory format, which may be another by now.
    config = RunConfig(**completed(state["config"]))
    description = replace(describe(model, config.classes), fingerprint=state["fingerprint"])
    form = Form(config, description, model, optimizer=False)
    found = {}
    for step, path in kept(folder).items():
        if step < before:
            content = read(path, form.largest)
            check(path, content, form)
            if (behind := content["epochs"] * config.steps_per_epoch + content["step"]) != step:
                raise CheckpointError(f"{path}: holds the weights after step {behind}")
            found[step] = evaluated(content)
    return found


def training_command(folder: str | Path, config: dict[str, Any]) -> str:
    """The command that trains a run again into the folder that it is in, from its config.json."""
    try:
        words = shlex.split(str(config.get("command", "")))
    except ValueError:  # a quote that does not end
        words = []
    if words[:1] != ["python"] or not re.fullmatch(r"[\w-]+\.py", "".join(words[1:2])):  # not what a run writes
        return "training the run again with --fresh"
    kept, skip = [], False
    for word in words:
        name, equals, _ = word.partition("=")
        if not skip and name not in ("--results", "--data-dir", "--fresh"):
            kept.append(word)
        skip = not skip and name in ("--results", "--data-dir") and not equals  # its value follows
    results = training_root(above(Path(folder).absolute(), 3))
    where = [] if results == Path(RESULTS).absolute() else ["--results", results]
    return command(*kept[1:], *where, "--fresh")

"""What stands around a training script: reading its command line, opening its run folders, ending it cleanly."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import fields
from pathlib import Path

import torch
from torch import nn

from cifar_lab import data as cifar10
from cifar_lab import settings as flags
from cifar_lab.checkpoint import NEWEST, CheckpointError, load_model
from cifar_lab.config import RunConfig, number, run_folder
from cifar_lab.console import Console, Stopped, StopSignals
from cifar_lab.device import DeviceError, choose
from cifar_lab.loader import Loader
from cifar_lab.lockstep import Lockstep
from cifar_lab.recorder import Busy, FolderError, Recorder, environment
from cifar_lab.run_files import RunFileError, read_config, training_command
from cifar_lab.training_run import TrainingRun

Build = Callable[[RunConfig], nn.Module]


def parse(cls: type, argv: list[str], name: str, doc: str, presets: dict[str, dict]):
    """The settings of a script's command line; its docstring is the description."""
    return flags.parse(cls, argv, prog=name, description=doc, presets=presets)


def run_config(settings: flags.Settings, **own) -> RunConfig:
    """A run's settings: `own` first, the flags of the same name for the rest."""
    shared = {f.name: getattr(settings, f.name) for f in fields(RunConfig) if hasattr(settings, f.name)}
    if own["optimizer"] != "sgd":
        shared["momentum"] = 0.0
    return RunConfig(**shared | own)


def _labels(configs: list[RunConfig]) -> list[str]:
    """What tells the runs of a group apart."""
    if len(configs) == 1:
        return [""]
    if len({c.optimizer for c in configs}) > 1:
        return [c.optimizer for c in configs]
    return [f"lr {number(c.lr)}" for c in configs]


def _load_data(settings: flags.Settings) -> cifar10.Cifar10:
    data = cifar10.load(settings.data_dir)
    for flag, asked, there in (
        ("--train-size", settings.train_size, len(data.train_images)),
        ("--test-size", settings.test_size, len(data.test_images)),
    ):
        if asked > there:
            raise cifar10.DataError(f"{flag} {asked}: the data set has {there} images")
    return data


def _check_results(results: Path) -> None:
    """Raises FolderError where the results folder cannot be one."""
    try:
        there = next(p for p in (results, *results.absolute().parents) if p.exists())
    except OSError as error:
        raise FolderError(f"--results {results}: {error.strerror}") from None
    if not there.is_dir():
        raise FolderError(f"--results {results}: {there} is not a folder")
    if not os.access(there, os.W_OK):
        raise FolderError(f"--results {results}: {there} cannot be written to")


def groups(settings: flags.Settings, build: Build) -> Iterator[Lockstep]:
    """The lockstep groups that a command line asks for, one a seed, each ready to be trained from where it stands.

    Runs that are complete are left out, with a line that says so. Nothing is created before everything is checked.
    """
    device = choose(settings)
    results = Path(settings.results)
    _check_results(results)
    configs = {seed: settings.runs(seed) for seed in settings.seed}
    recorders = {
        seed: [Recorder(run_folder(results, settings.preset, config), config, settings.preset) for config in group]
        for seed, group in configs.items()
    }
    data = _load_data(settings)
    if not settings.fresh:
        for recorder in (r for group in recorders.values() for r in group):
            recorder.existing(data.sha256)
    console = Console()
    if device.note:
        console.say(device.note)
    described = environment(device.describe(), device.precision, data.sha256)
    with StopSignals() as stop:
        for place, seed in enumerate(settings.seed):
            with ExitStack() as held:
                loader = Loader(
                    data, device, seed=seed, batch_size=settings.batch_size, train_size=settings.train_size,
                    test_size=settings.test_size, augmented=settings.augment,
                )  # fmt: skip
                for recorder in recorders[seed]:
                    recorder.acquire()
                    held.callback(recorder.release)
                runs = []
                for recorder, label in zip(recorders[seed], _labels(configs[seed]), strict=True):
                    if _is_complete(recorder, settings, console):
                        continue
                    run = TrainingRun(recorder.config, label, recorder, loader, build)
                    if run.resume(console.say):
                        console.say(f"{recorder.folder}: continues after epoch {run.epochs}, step {run.step}")
                    recorder.start(settings.epochs, described)
                    runs.append(run)
                if runs:
                    console.say(
                        f"{runs[0].config.model}: {len(runs)} run{'s' * (len(runs) > 1)} of {settings.epochs} epochs, "
                        f"{loader.steps} steps each, seed {seed}, {device.describe()}, {device.precision}"
                    )
                    names = ", ".join(run.recorder.folder.name for run in runs)
                    console.say(f"into {runs[0].recorder.folder.parent}: {names}")
                    held.callback(console.close)
                    yield Lockstep(
                        runs, loader, console, stop, epochs=settings.epochs,
                        checkpoint_seconds=settings.checkpoint_seconds, later_groups=len(settings.seed) - 1 - place,
                    )  # fmt: skip


def _is_complete(recorder: Recorder, settings: flags.Settings, console: Console) -> bool:
    """Whether there is nothing to train; with --fresh never, and what is there is moved aside."""
    if settings.fresh:
        if aside := recorder.set_aside():
            console.say(f"{recorder.folder}: what was there is now {aside.name}")
    elif summary := recorder.summary():
        diverged = summary["diverged_at_step"]
        if diverged is not None or summary["epochs"] >= settings.epochs:
            how = f"diverged at step {diverged}" if diverged is not None else f"{summary['epochs']} epochs"
            console.say(f"{recorder.folder}: complete ({how}); --fresh would train it again")
            return True
    return False


def evaluate_folder(settings: flags.Settings, build: Build, models: tuple[str, ...]) -> None:
    """Test loss and accuracy of a run's newest checkpoint, overall and per class; the confusion matrix as a figure."""
    folder = Path(settings.evaluate)
    try:
        described = read_config(folder)
    except RunFileError as error:
        raise CheckpointError(f"{error}; --evaluate takes the folder of a run") from None
    try:
        model, state = load_model(folder, build, models)
    except CheckpointError as error:
        makes_it = "" if (folder / NEWEST).exists() else f"; what makes it: {training_command(folder, described)}"
        raise CheckpointError(f"{error}{makes_it}") from None
    device = choose(settings)
    data = _load_data(settings)
    config = RunConfig(**state["config"])
    loader = Loader(data, device, seed=0, batch_size=2, train_size=2, test_size=config.test_size, augmented=False)
    model = device.place(model)
    classes = len(cifar10.CLASSES)
    confusion = torch.zeros(classes, classes, dtype=torch.int64)
    loss = 0.0
    with torch.inference_mode():
        for images, labels in loader.test_batches():
            logits = device.forward(model, images)
            loss += float(nn.functional.cross_entropy(logits, labels, reduction="sum"))
            pairs = labels * classes + logits.argmax(1)
            confusion += torch.bincount(pairs, minlength=classes**2).view(classes, classes).cpu()
    total = int(confusion.sum())
    place = f"epoch {state['epochs']}" + (f", step {state['step']} of the next" if state["step"] else "")
    print(f"{folder}: after {place}, {total} test images, {device.precision}")
    print(f"test loss {loss / total:.4f}, test accuracy {100 * int(confusion.trace()) / total:.2f}%")
    for name, row, right in zip(cifar10.CLASSES, confusion, confusion.diagonal(), strict=True):
        print(f"  {name:<10} {100 * int(right) / max(int(row.sum()), 1):6.2f}%  of {int(row.sum())}")
    from cifar_lab.figures import draw_confusion  # matplotlib takes a second to import

    for path in draw_confusion(
        confusion.numpy(), cifar10.CLASSES, folder / "confusion", title=f"{config.model}, {folder.name}"
    ):
        print(path)


def run(main: Callable[[list[str]], None], argv: list[str]) -> None:
    """Runs a script to its exit status: 0, or one line on standard error and 2 (bad input), 1 (disk, memory, a second
    writer), 130 or 143 (stopped by a signal)."""
    name = os.path.basename(sys.argv[0])
    try:
        main(argv)
    except (cifar10.DataError, DeviceError, CheckpointError) as error:
        flags.fail(f"{name}: {error}")
    except FolderError as error:
        flags.fail(f"{name}: {error}", 1 if isinstance(error, Busy) else 2)
    except RunFileError as error:
        flags.fail(f"{name}: {error}; the checkpoints are kept", 1)
    except Stopped as stopped:
        how = "stopped at once; the same command goes on from the last checkpoint"
        if stopped.saved:
            how = "stopped, everything trained so far is saved; the same command goes on"
        flags.fail(f"{name}: {how}", stopped.status)
    except KeyboardInterrupt:
        flags.fail(f"{name}: interrupted", 130)
    except torch.OutOfMemoryError as error:
        flags.fail(f"{name}: the device is out of memory, a smaller --batch-size helps ({error})", 1)
    except OSError as error:
        flags.fail(
            f"{name}: {error.filename or 'writing'}: {error.strerror or error}; the same command goes on later", 1
        )

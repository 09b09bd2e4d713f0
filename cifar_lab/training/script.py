"""What stands around a training script: reading its command line, opening its run folders, ending it cleanly."""

import ast
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import nn

from cifar_lab import program
from cifar_lab.data import cache
from cifar_lab.data.datasets import Source
from cifar_lab.networks import Description, NetworkError, build, describe, networks_of, statistics_of
from cifar_lab.optimizers import OPTIMIZERS
from cifar_lab.program import fail
from cifar_lab.project import ROOT
from cifar_lab.run_folder import tensorboard
from cifar_lab.run_folder.checkpoint import CheckpointError
from cifar_lab.run_folder.ownership import Busy, FolderError
from cifar_lab.run_folder.schema import RunFileError, read_config, trained_to
from cifar_lab.run_folder.writer import Recorder, environment
from cifar_lab.settings import PUBLISHED, SIZE, RunConfig, Settings, counted, number, parse, run_folder
from cifar_lab.training import export, trained
from cifar_lab.training.console import Console, Stopped, StopSignals
from cifar_lab.training.device import Device, DeviceError, choose
from cifar_lab.training.group import Lockstep
from cifar_lab.training.loader import Loader
from cifar_lab.training.plan import GROWTH, held_out, image_size, seed_of
from cifar_lab.training.run import TrainingRun, check_continuation
from cifar_lab.training.threads import share
from cifar_lab.width import matrices


def settings_of(cls: type[Settings], file: str | Path, argv: list[str]) -> Settings:
    """The settings of a script's command line. file: the script; its docstring is the description of `--help`."""
    script = Path(file)
    description = ast.get_docstring(ast.parse(script.read_text(encoding="utf-8"))) or ""
    return parse(cls, argv, prog=script.name, description=description, networks=networks_of(script))


def groups(cls: type[Settings], file: str | Path, argv: list[str]) -> Iterator[Lockstep]:
    """The lockstep groups that a script's command line asks for, one per seed (with `--seed-per-rate` one per seed and
    learning rate), each ready to be trained from its position.

    cls: the script's flags; file: the script itself. Complete runs are left out, with a line that says so. Nothing is
    created before everything is checked. With `--evaluate` there is no group: see `training.trained`.
    """
    settings = settings_of(cls, file, argv)
    if settings.log:
        tensorboard.check()
    if settings.evaluate:
        trained.use(settings)
        return
    source = cache.find(settings.dataset, settings.data_dir)
    settings = with_data(settings, source)
    device = choose(settings, begun_in(settings))
    _check_results(Path(settings.results))
    description = description_of(settings)
    for config in settings.runs(settings.seed[0]):
        folder = run_folder(settings.results, settings.preset, config)
        if Path(os.path.realpath(folder)).is_relative_to(os.path.realpath(ROOT / "results" / PUBLISHED)):
            raise FolderError(f"{folder}: the runs there came with the repository; training writes elsewhere")
    data = load_data(settings, source, description.classes)
    settings = replace(settings, data_digest=data.digest)
    every = [recorder for seed in settings.seed for recorder in recorders(settings, description, seed, device)]
    by_seed: dict[int, list[Recorder]] = {}  # runs of one group see the same batches
    for recorder in every:
        by_seed.setdefault(seed_of(recorder.config), []).append(recorder)
    if not settings.fresh:
        for recorder in every:
            if recorder.existing(data.sha256) and not trained_to(recorder.summary(), settings.epochs):
                check_continuation(description, recorder, settings.epochs)
    console = Console()
    if device.note:
        console.say(device.note)
    with StopSignals() as stop:
        for i, opened in enumerate(by_seed.values()):
            later = len(by_seed) - 1 - i
            with open_group(settings, description, opened, device, data, console, stop, later) as group:
                if group.runs:
                    first, workers = group.runs[0], group.side_by_side.workers
                    at_a_time = f", {workers} runs at a time" if workers > 1 else ""
                    on = f" on {data.name}, {data.counts}" if settings.dataset != cache.CIFAR10 else ""
                    console.say(
                        f"{first.config.model}{on}: {counted(len(group.runs), 'run')} of "
                        f"{counted(settings.epochs, 'epoch')}, {counted(group.loader.steps, 'step')} each, "
                        f"seed {first.config.seed}, {device.describe()}{at_a_time}, {device.precision}"
                    )
                    names = ", ".join(run.recorder.folder.name for run in group.runs)
                    console.say(f"into {first.recorder.folder.parent}: {names}")
                    yield group
            if stop.received is not None:  # noted after the last step
                raise Stopped(stop.received)


def description_of(settings: Settings) -> Description:
    """What identifies the network that a command line asks for."""
    with torch.random.fork_rng(devices=[]):
        try:
            config = settings.runs(0)[0]
            model = build(config)
            description = describe(model, settings.classes)
            if complaint := _unsuited(settings, model):
                raise NetworkError(complaint)
            return description
        except NetworkError:
            raise
        except Exception as error:  # a user's builder can raise anything
            if program.is_out_of_memory(error):
                raise
            raise NetworkError(f"cannot be built: {error or type(error).__name__}") from None


def _unsuited(settings: Settings, model: nn.Module) -> str:
    """Which setting the network cannot have; empty if there is none."""
    asked = [name for name in settings.optimizer if OPTIMIZERS[name].matrices]
    if asked and not matrices(model):
        return f"--optimizer {asked[0]}: {settings.network} has no matrices but those of its output layer"
    if settings.bn_images and not statistics_of(model):
        return f"--bn-images {settings.bn_images}: {settings.network} has no BatchNorm with statistics"
    for size in range(settings.first_size, SIZE, GROWTH):
        images = torch.zeros(2, 3, size, size)
        try:
            model.train()(images)
        except RuntimeError as error:
            if program.is_out_of_memory(error):
                raise
            return (
                f"--first-size {settings.first_size}: {settings.network} cannot be run on images of {size} pixels "
                f"({' '.join(str(error).split())[:200]})"
            )
    return ""


def recorders(settings: Settings, description: Description, seed: int, device: Device) -> list[Recorder]:
    """The run folders of one lockstep group. Nothing is written."""
    network = settings.networks[settings.network]
    options = {name: f.default for name, f in network.options.items()} | dict(settings.options)
    about = {
        "script": network.script.name, "label": network.label, "colour": network.colour, "options": options,
        "fingerprint": description.fingerprint,
    }  # fmt: skip
    opened = []
    for config in settings.runs(seed):
        # A complete run is left as it is, in whichever precision auto trained it.
        precision = device.precision if settings.precision != "auto" else _trained_in(settings, config, complete=True)
        config = replace(config, device=device.torch.type, precision=precision or device.precision)
        opened.append(Recorder(settings.results, settings.preset, config, about, device.usual))
    return opened


def begun_in(settings: Settings) -> str | None:
    """The precision in which the unfinished runs of a command line began; None if they are new, or began in several."""
    configs = [config for seed in settings.seed for config in settings.runs(seed)]
    precisions = {_trained_in(settings, config, complete=False) for config in configs} - {None}
    return precisions.pop() if len(precisions) == 1 else None


def _trained_in(settings: Settings, config: RunConfig, *, complete: bool) -> str | None:
    """The precision of the run that is in a folder, if there is one and it is complete, or is not."""
    if settings.fresh:
        return None
    folder = run_folder(settings.results, settings.preset, config)
    try:
        found = read_config(folder)
    except RunFileError:  # said later, with what to do
        return None
    ended = (folder / "summary.json").exists() and found["epochs"] >= settings.epochs
    return found["settings"]["precision"] if ended == complete else None


@contextmanager
def open_group(
    settings: Settings, description: Description, opened: list[Recorder], device: Device, data: cache.DataSet,
    console: Console, stop: StopSignals, later_groups: int = 0,
) -> Iterator[Lockstep]:  # fmt: skip
    """A lockstep group whose folders this process holds, each run continued from its checkpoint; without complete ones.

    later_groups: that follow, for the estimate of the time. Raises what resuming raises.
    """
    loader = Loader(
        data, device, seed=seed_of(opened[0].config), batch_size=settings.batch_size, train_size=settings.train_size,
        test_size=settings.test_size, validation_size=settings.validation_size, augment=settings.augment,
        cutout=settings.cutout, mixup=settings.mixup, size_at=partial(image_size, opened[0].config),
    )  # fmt: skip
    described = environment(device.describe(), device.precision, data.sha256) | {
        "usual_precision": device.usual, "channels_last": device.channels_last, "cuda_graph": device.cuda_graph,
        "deterministic": settings.deterministic,
    }  # fmt: skip
    with ExitStack() as held:
        for recorder in opened:
            recorder.hold.acquire()
            held.callback(recorder.hold.release)
            if not settings.fresh:
                recorder.existing(data.sha256)  # once more: another process may have begun the run meanwhile
        labels = zip(opened, _labels([r.config for r in opened]), strict=True)
        todo = [(recorder, label) for recorder, label in labels if not _is_complete(recorder, settings, console)]
        usual = share(device.threads, len(todo)) if todo and device.torch.type == "cpu" else device.threads
        runs = []
        for recorder, label in todo:
            threads = recorder.threads or usual
            if threads != usual:
                console.say(f"{recorder.folder}: continues with the {counted(threads, 'thread')} that it began with")
            run = TrainingRun(description, label, recorder, loader, threads)
            if run.resume(console.say):
                console.say(f"{recorder.folder}: continues after epoch {run.position.epochs}, step {run.position.step}")
            planned = max(settings.epochs, run.position.epochs)  # a run is not cut short by fewer
            recorder.start(planned, described | {"threads": threads}, run.width_factors, settings.command)
            if settings.log:
                recorder.hold.check()
                recorder.events = tensorboard.Events(recorder.folder / tensorboard.FOLDER, recorder.folder)
            runs.append(run)
        group = Lockstep(
            runs, loader, console, stop, epochs=settings.epochs, checkpoint_seconds=settings.checkpoint_seconds,
            probe_every=settings.probe_every, keep_every=settings.keep_every, later_groups=later_groups,
        )  # fmt: skip
        held.callback(console.close)
        held.callback(group.close)
        yield group


def _labels(configs: list[RunConfig]) -> list[str]:
    """What tells the runs of a group apart."""
    words = [([c.optimizer], [f"lr {number(c.lr)}"]) for c in configs]
    several = [len({str(w[i]) for w in words}) > 1 for i in range(2)]
    return [" ".join((w[0] if several[0] else []) + (w[1] if several[1] else [])) for w in words]


def with_data(settings: Settings, source: Source) -> Settings:
    """The settings of a command line with what follows from its data set. Raises DataError if they do not fit it."""
    try:
        settings = settings.of_data(source.name, len(source.classes), source.sizes)
    except ValueError as error:
        raise cache.DataError(error) from None
    if complaint := settings.complaint():
        raise cache.DataError(complaint)
    return settings


def load_data(settings: Settings, source: Source, classes: int) -> cache.DataSet:
    """The data set of a command line, for a network with so many classes. Raises DataError."""
    data = cache.load(settings.data_dir, source=source)
    for flag, asked, there in (
        ("--train-size", settings.train_size, len(data.train_images)),
        ("--test-size", settings.test_size, len(data.test_images)),
    ):
        if asked > there:
            raise cache.DataError(f"{flag} {asked}: the data set has {there} images")
    for labels in (data.train_labels[: settings.train_size], data.test_labels[: settings.test_size]):
        cache.check_labels(labels, classes)
    try:
        held_out(0, data.train_labels[: settings.train_size], settings.validation_size)
    except ValueError as error:
        raise cache.DataError(f"--validation-size {settings.validation_size}: {error}") from None
    return data


def _check_results(results: Path) -> None:
    """Raises FolderError if the results folder cannot be one."""
    try:
        there = next(p for p in (results, *results.absolute().parents) if p.exists())
    except OSError as error:
        raise FolderError(f"--results {results}: {error.strerror}") from None
    if not there.is_dir():
        raise FolderError(f"--results {results}: {there} is not a folder")
    if not os.access(there, os.W_OK):
        raise FolderError(f"--results {results}: {there} cannot be written to")


def _is_complete(recorder: Recorder, settings: Settings, console: Console) -> bool:
    """Whether there is nothing to train; with --fresh never, and what is there is moved aside."""
    if settings.fresh:
        if aside := recorder.set_aside():
            console.say(f"{recorder.folder}: what was there is now {aside.name}")
    elif summary := recorder.summary():
        diverged = summary["diverged_at_step"]
        if trained_to(summary, settings.epochs):
            how = f"diverged at step {diverged}" if diverged is not None else counted(summary["epochs"], "epoch")
            console.say(f"{recorder.folder}: complete ({how}); --fresh would train it again")
            return True
    return False


def run(main: Callable[[list[str]], None], argv: list[str]) -> None:
    """Runs a script to its exit status: 0, or one line on standard error and a status of `program`, or 128 and the
    number of the signal that stopped it."""
    program.run(partial(_run, main), argv)


def _run(main: Callable[[list[str]], int | None], argv: list[str]) -> int | None:
    name = program.name()
    try:
        return main(argv)
    except (cache.DataError, DeviceError, CheckpointError, NetworkError, tensorboard.Missing, export.Missing) as error:
        fail(f"{name}: {error}")
    except FolderError as error:
        fail(f"{name}: {error}", program.BUSY if isinstance(error, Busy) else program.BAD_INPUT)
    except RunFileError as error:
        fail(f"{name}: {error}; the checkpoints are kept", program.OTHER)
    except Stopped as stopped:
        how = "stopped at once; the same command continues from the last checkpoint"
        if stopped.saved:
            how = "stopped, everything trained so far is saved; the same command continues"
        fail(f"{name}: {how}", stopped.status)
    except Exception as error:
        if not (line := program.complaint(error)):
            raise
        helps = "a smaller --batch-size or --width needs less"
        more = helps if program.is_out_of_memory(error) else "the same command continues later"
        fail(f"{name}: {line}; {more}", program.status_of(error))

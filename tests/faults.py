"""Faults that are put into a training: a call that writes fails, the process dies there, the disk is full."""

import builtins
import contextlib
import ctypes
import errno
import io
import itertools
import os
import shutil
import signal
import stat
import struct
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from unittest import mock

import numpy as np
import trainings
from torch import nn

import MyVGG
from cifar_lab.run_folder import checkpoint, files
from cifar_lab.run_folder.reader import find_run_folders, read_run

DIED = 9  # the exit status of a process that a fault has ended


def signal_at_forward_pass(number: int, which: int = signal.SIGTERM, gap: float | None = None) -> None:
    """Sends this process a signal in a forward pass, of training or of evaluation, counted from 1.

    gap: seconds after which it comes again.
    """
    passes = itertools.count(1)

    class Interrupted(nn.Module):
        def forward(self, x):
            # The passes on the meta device, which describe the network, are not counted.
            if x.device.type != "meta" and next(passes) == number:
                print("signalled", flush=True)
                signal.raise_signal(which)
                if gap is not None:
                    time.sleep(gap)
                    signal.raise_signal(which)
            return x

    trainings.with_network(lambda *, width=1.0: trainings.small_network().append(Interrupted()))


def gradient_not_finite(at: int, stop_in: int | None = None) -> None:
    """Has a probe, counted from 1, meet a gradient that is not finite; sends this process SIGTERM in another one."""
    probe = MyVGG.probe
    numbers = itertools.count(1)

    def failing(*arguments):
        number = next(numbers)
        if number == stop_in:
            signal.raise_signal(signal.SIGTERM)
        result = probe(*arguments)
        return replace(result, grad_norm=result.grad_norm * np.nan) if number == at else result

    trainings.with_small_network()
    MyVGG.probe = failing


def limit_file_size(size: int) -> None:
    """Lets every write beyond `size` bytes of a file fail in this process, as on a full disk."""
    import resource

    trainings.with_small_network()
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def with_no_privileges() -> None:
    """Takes from root what lets it write into a read-only folder."""
    trainings.with_small_network()
    if os.geteuid() == 0:
        # capset(2) with the version of Linux 2.6.26: all three sets, of two words each, are empty.
        header = struct.pack("Ii", 0x20080522, 0)
        if ctypes.CDLL(None).capset(header, bytes(24)) != 0:
            raise OSError("capset failed")


def without_locks() -> None:
    """Has a file system that cannot lock, nor flush a folder, as some network drives."""
    import fcntl

    def refuse(handle: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    fsync = os.fsync

    def flush(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        fsync(handle)

    trainings.with_small_network()
    fcntl.flock, os.fsync = refuse, flush


def paused_without_locks(at: int) -> None:
    """The same, and a stop in a forward pass."""
    without_locks()
    signal_at_forward_pass(at, signal.SIGSTOP)


def reading_fails(name: str, number: int) -> None:
    """Has the system refuse to open files of that name, with this error."""
    opened = os.open

    def refuse(path, *more, **named) -> int:
        if os.path.basename(path) == name:
            raise OSError(number, os.strerror(number))
        return opened(path, *more, **named)

    trainings.with_small_network()
    os.open = refuse


# --- The Nth call ----------------------------------------------------------------------------------------------------


@dataclass
class Faults:
    """Counts the calls through which `cifar_lab.run_folder.files` writes, and has one of them go wrong.

    at: its number, from 0; None: none of them. dies: the process ends there instead of getting an error. meanwhile:
    happens there instead, while the process is paused, which then goes on.
    """

    at: int | None = None
    dies: bool = False
    meanwhile: Callable[[], object] | None = None
    calls: list[str] = field(default_factory=list)

    def meet(self, call: str, number: int, path: str, before: Callable[[], object] = lambda: None) -> None:
        """Is told of each call; in the one that goes wrong, `before` is what happens of it."""
        self.calls.append(call)
        if len(self.calls) - 1 != self.at:
            return
        if self.meanwhile:
            self.meanwhile()
            return
        before()
        if self.dies:
            os._exit(DIED)
        raise OSError(number, os.strerror(number), path)

    @contextlib.contextmanager
    def __call__(self):
        """Puts itself between `cifar_lab.run_folder.files` and the system."""
        fsync, replace, mkdir, unlink = os.fsync, os.replace, os.mkdir, os.unlink

        class File(io.FileIO):
            def write(own, data) -> int:
                half = memoryview(data)[: len(data) // 2]
                self.meet("write", errno.ENOSPC, own.name, lambda: super(File, own).write(half))
                return super().write(data)

        def open_file(path, mode="r", buffering=-1, **more):
            if mode == "rb" or "b" not in mode:
                return builtins.open(path, mode, buffering, **more)
            self.meet("open", errno.EMFILE, str(path))
            raw = File(path, mode.replace("b", ""), **more)
            return raw if not buffering else io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)

        def fsync_file(handle):
            self.meet("fsync", errno.EIO, "")
            fsync(handle)

        def rename(source, target, **more):
            self.meet("rename", errno.EACCES, str(target))
            replace(source, target, **more)

        def remove(path, **more):
            if "dir_fd" in more:  # a file of a run folder, and none of another module
                self.meet("unlink", errno.EACCES, str(path))
            unlink(path, **more)

        def make_folder(path, *more, **named):
            if not os.path.isdir(path):
                self.meet("mkdir", errno.ENOSPC, str(path))
            mkdir(path, *more, **named)

        with (
            mock.patch.object(files, "open", open_file, create=True),
            mock.patch.object(os, "fsync", fsync_file),
            mock.patch.object(os, "replace", rename),
            mock.patch.object(os, "mkdir", make_folder),
            mock.patch.object(os, "unlink", remove),
        ):
            yield self


_FOR_GOOD = contextlib.ExitStack()  # of this process; a context that nobody holds would end at once


def _stand_still() -> None:
    print("paused", flush=True)
    os.kill(os.getpid(), signal.SIGSTOP)


def stop_at_call(number: int) -> None:
    """Has this process stand still (SIGSTOP) before one of the calls through which it writes, counted from 0."""
    trainings.with_small_network()
    _FOR_GOOD.enter_context(Faults(number, meanwhile=_stand_still)())


def train_forked(argv: list[str], faults: Faults) -> int:
    """The exit status of the same in a process of its own, which may die."""
    process = os.fork()
    if not process:
        with faults():
            os._exit(trainings.train_here(argv).status)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def calls_of(argv: list[str], results: Path, prepared: Path | None = None) -> list[str]:
    """The calls that an uninterrupted training makes, by name; it trains into `results`, a copy of `prepared`."""
    faults = Faults()
    if prepared:
        shutil.copytree(prepared, results, dirs_exist_ok=True)
    with faults():
        ended = trainings.train_here([*argv, "--results", str(results)])
    assert (ended.status, ended.err) == (0, ""), ended
    return faults.calls


def trial(argv: list[str], reference: dict, at: int, dies: bool, prepared: Path | None = None) -> list[str]:
    """What is wrong after a training in which one call went wrong, and after it was continued; nothing, it should be.

    prepared: a results folder to start from.
    """
    wrong = []
    with trainings.folder_in_memory() as results:
        if prepared:
            shutil.copytree(prepared, results, dirs_exist_ok=True)
        argv = [*argv, "--results", str(results)]
        faults = Faults(at, dies)
        if dies:
            if (status := train_forked(argv, faults)) != DIED:
                wrong.append(f"status {status}")
        else:
            with faults():
                ended = trainings.train_here(argv)
            if ended.status != 74 or ended.err.count("\n") != 1 or "Traceback" in ended.err:
                wrong.append(f"status {ended.status}: {ended.err}")
            wrong += [f"{name} is left" for name in trainings.unfinished_files(results)]
        for folder in find_run_folders(results):
            read_run(folder)
            if (folder / checkpoint.NEWEST).exists() or (folder / checkpoint.PREVIOUS).exists():
                checkpoint.load_model(folder)
        ended = trainings.train_here(argv)
        if ended.status != 0 or ended.err:
            wrong.append(f"continued: status {ended.status}: {ended.err}")
        else:
            differ = trainings.differences(trainings.content(results), reference)
            wrong += [f"continued: {name} differs" for name in differ]
            wrong += [f"continued: {name} is left" for name in trainings.unfinished_files(results)]
    return wrong


def paused_trial(argv: list[str], reference: dict, prepared: Path, at: int, stolen: bool) -> list[str]:
    """What is wrong after a training that was paused at one call, from a results folder as it is `prepared`.

    Meanwhile its results were removed, and another process has trained the run from its start, of which every bit has
    to be left alone; or, if `stolen`, another machine has taken the run over on a file system without locks.
    """
    with trainings.folder_in_memory() as results:
        shutil.copytree(prepared, results, dirs_exist_ok=True)
        argv = [*argv, "--results", str(results)]
        wrong = []
        left: dict = {}

        def train_anew() -> None:
            shutil.rmtree(results / "report")
            if status := train_forked(argv, Faults()):
                wrong.append(f"the other one: status {status}")

        def take_over() -> None:
            for owner in results.rglob(".*.owner.json"):
                owner.write_text('{"pid": 1, "host": "elsewhere", "token": "another"}', encoding="utf-8")
                left.update(trainings.snapshot(results))  # before that the run is still free

        with Faults(at, meanwhile=take_over if stolen else train_anew)():
            ended = trainings.train_here(argv)
        if ended.status not in (0, 74, 75) or ended.err.count("\n") > 1 or "Traceback" in ended.err:
            wrong.append(f"status {ended.status}: {ended.err}")
        if not stolen:
            wrong += [f"{name} differs" for name in trainings.differences(trainings.content(results), reference)]
        elif left and (left != trainings.snapshot(results) or "process 1 on elsewhere" not in ended.err):
            wrong.append(f"not left alone: {ended}")
        return [*wrong, *(f"{name} is left" for name in trainings.unfinished_files(results))]


def guarded(of: Callable[..., list[str]], *arguments) -> list[str]:
    """What one of these trials finds; an exception is one more thing that is wrong."""
    try:
        return of(*arguments)
    except Exception:
        return [traceback.format_exc()]

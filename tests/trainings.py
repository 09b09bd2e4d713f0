"""Small trainings in processes of their own, forked from one that has PyTorch imported, and what they leave behind."""

import csv
import functools
import io
import multiprocessing
import os
import sys
import tempfile
import time
import traceback
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from importlib import import_module
from multiprocessing.pool import Pool
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import nn

import MyFramework  # noqa: F401  (imported before the fork)
import MyVGG
from cifar_lab.networks import NETWORKS, StepDropout
from cifar_lab.run_folder import checkpoint
from cifar_lab.run_folder.reader import find_run_folders, read_run
from cifar_lab.training import device, group, script

PATIENCE = 120  # seconds after which a training that has not ended is a failure
TIME_COLUMNS = ("train_seconds", "images_per_second")
TIME_KEYS = ("train_seconds", "test_seconds", "images_per_second", "tflops", "matmul_tflops", "share_of_matmul_rate")


def flags(data: Path, *more: str | Path, train_size: int = 130, test_size: int = 100) -> list[str]:
    """The flags of a training on 8 channels, 3 steps an epoch, with a checkpoint after every step."""
    shared = {
        "--device": "cpu", "--width": "0.03", "--batch-size": "50", "--train-size": train_size,
        "--test-size": test_size, "--checkpoint-seconds": "0", "--data-dir": data,
    }  # fmt: skip
    return [str(word) for pair in (*shared.items(), more) for word in pair]


@contextmanager
def folder_in_memory() -> Iterator[Path]:
    """A temporary folder, in memory where the system has that: a killed process, unlike a power cut, loses nothing that
    it has handed to the system, so that a slow fsync proves nothing here."""
    memory = Path("/dev/shm")
    where = memory if memory.is_dir() and os.access(memory, os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=where, ignore_cleanup_errors=True) as folder:
        yield Path(folder)


# Executed by Python as it starts, where PYTHONPATH has it: each epoch of a script takes a while on any processor, so
# that there is a time in which a training is under way.
SLOW = """
import sys, time
def wait(event, arguments):
    if event == "open" and str(arguments[0]).endswith("epochs.csv") and arguments[1] == "r+":
        time.sleep(0.6)
if any(word.endswith("MyVGG.py") for word in sys.orig_argv):
    sys.addaudithook(wait)
"""


def slowed(folder: Path) -> dict[str, str]:
    """An environment in which MyVGG.py is slow; the folder is for what it needs."""
    (folder / "sitecustomize.py").write_text(SLOW, encoding="utf-8")
    return {"PYTHONPATH": str(folder)}


# --- Processes -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ended:
    """How a script ended: its exit status (minus the signal that killed it), and what it wrote."""

    status: int
    out: str
    err: str


class Training:
    """A script in a process of its own, with the exit status and the output that a shell would see."""

    def __init__(self, argv: list[str], script: str = "MyVGG.py", prepare: Callable[[], Any] | None = None) -> None:
        """prepare: called in the process before the script; a function that pickles."""
        self._output = tempfile.TemporaryDirectory()
        self._process = server().Process(target=_train, args=(script, argv, self._output.name, prepare))
        self._process.start()
        weakref.finalize(self, self._process.kill)  # also where a test fails

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.is_alive()

    def signal(self, number: int) -> None:
        """Sends a signal, where the process has not ended."""
        if self.running:
            os.kill(self.pid, number)

    def output(self, stream: str) -> str:
        """What it has written so far, to `out` or `err`."""
        path = Path(self._output.name, stream)
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""

    def reaches(self, condition: Callable[[], Any]) -> bool:
        """Waits until a condition holds; False where the process ends before."""
        end = time.monotonic() + PATIENCE
        while not condition():
            if not self.running or time.monotonic() > end:
                return False
            time.sleep(0.002)
        return True

    def wait(self, patience: float = PATIENCE) -> Ended:
        """Waits for its end."""
        self._process.join(patience)
        if self.running:
            self._process.kill()
            self._process.join()
            raise AssertionError(f"still running after {patience:g} s: {self.output('out')[-500:]}")
        ended = Ended(self._process.exitcode, self.output("out"), self.output("err"))
        self._output.cleanup()
        return ended


@functools.cache
def server() -> multiprocessing.context.BaseContext:
    """Makes processes by forking one that has imported this module and has never trained: a few milliseconds each."""
    from multiprocessing import forkserver  # not on Windows

    context = multiprocessing.get_context("forkserver")
    # Building an optimizer imports torch._dynamo, which takes a second.
    context.set_forkserver_preload([__name__, "torch._dynamo"])
    # Until Python 3.13 the server imports with the default path. Without a GPU, backward() starts no threads, and a
    # process that has called it can still be forked.
    with environment(PYTHONPATH=os.pathsep.join(sys.path), CUDA_VISIBLE_DEVICES=""):
        forkserver.ensure_running()
    return context


@contextmanager
def environment(**values: str) -> Iterator[None]:
    """Sets environment variables for a while."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            del os.environ[name]
            if value is not None:
                os.environ[name] = value


def _train(name: str, argv: list[str], output: str, prepare: Callable[[], Any] | None) -> None:
    for number, stream in ((1, "out"), (2, "err")):
        os.dup2(os.open(Path(output, stream), os.O_WRONLY | os.O_CREAT), number)
    sys.argv = [name, *argv]
    ready()
    if prepare is not None:
        prepare()
    script.run(import_module(Path(name).stem).main, argv)


def ready() -> None:
    """Leaves out of a training what takes time and does not matter here."""
    torch.set_num_threads(1)
    group.matmul_rate = lambda device: 1e12
    device.has_bf16 = lambda: False  # numbers and names do not depend on the processor


def with_small_network() -> None:
    """Puts a network into MyVGG.py that trains in milliseconds and has all that a checkpoint must hold."""
    with_network(small_network)


def with_network(builder: Callable[..., nn.Module]) -> None:
    """Puts another network in the place of both of MyVGG.py."""
    for name in ("vgg_a", "vgg_a_bn"):
        NETWORKS[name] = replace(NETWORKS[name], builder=builder)


def small_network(*, width: float = 1.0) -> nn.Module:
    """Weights, running statistics and dropout."""
    return nn.Sequential(
        nn.AdaptiveAvgPool2d(4), nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), StepDropout(0.5),
        nn.Linear(128, 10),
    )  # fmt: skip


def train_here(argv: list[str]) -> Ended:
    """MyVGG.py in this process."""
    out, err = io.StringIO(), io.StringIO()
    status = 0
    with redirect_stdout(out), redirect_stderr(err), mock.patch.object(sys, "argv", ["MyVGG.py"]):
        try:
            script.run(MyVGG.main, argv)
        except SystemExit as ended:
            status = ended.code
        except Exception:
            traceback.print_exc()
            status = 1
    return Ended(status, out.getvalue(), err.getvalue())


@contextmanager
def worker_pool() -> Iterator[Pool]:
    """Two processes that train with the small network."""
    with server().Pool(2, _prepare_worker) as pool:
        yield pool


def _prepare_worker() -> None:
    ready()
    with_small_network()


class Command:
    """A command that trains small networks in a few steps, and what it leaves where nothing interrupts it."""

    def __init__(self, data: Path, workers: Pool, *more: str) -> None:
        self.argv = flags(data, *more, train_size=80, test_size=50)
        self._workers = workers
        with folder_in_memory() as results:
            ended = self.run(results)
            assert (ended.status, ended.err) == (0, "")
            self.reference = content(results)

    def into(self, results: Path, *more: str) -> list[str]:
        """The command line that writes into a results folder."""
        return [*self.argv, "--results", str(results), *more]

    def run(self, results: Path, *more: str) -> Ended:
        """Runs the command to its end."""
        return self._workers.apply(train_here, (self.into(results, *more),))

    def goes_on(self, results: Path, *more: str) -> str:
        """Runs the command to an end that is as it should be; returns what the console says."""
        ended = self.run(results, *more)
        assert (ended.status, ended.err) == (0, "")
        assert differences(content(results), self.reference) == []
        assert unfinished_files(results) == []
        return ended.out


# --- What is left ----------------------------------------------------------------------------------------------------


def content(results: Path) -> dict[str, Any]:
    """What must not depend on interruptions, of every run below a results folder, bit for bit: all but the time."""
    found: dict[str, Any] = {}
    for folder in find_run_folders(results):
        run = read_run(folder)
        with open(folder / "epochs.csv", encoding="utf-8", newline="") as file:
            rows = [{k: v for k, v in row.items() if k not in TIME_COLUMNS} for row in csv.DictReader(file)]
        summary = {k: v for k, v in (run.summary or {}).items() if k not in TIME_KEYS}
        of_run = {"settings": run.settings, "planned": run.epochs_planned, "epochs.csv": rows, "summary.json": summary}
        for name in ("steps.csv", "probes.csv", "predictions.txt"):
            if (folder / name).exists():
                of_run[name] = (folder / name).read_bytes()
        if (folder / checkpoint.NEWEST).exists():
            state = checkpoint.read(folder / checkpoint.NEWEST)
            of_run |= flat({k: v for k, v in state.items() if not k.endswith("_seconds")}, checkpoint.NEWEST)
        of_run["files"] = sorted(p.name for p in folder.iterdir() if not p.name.startswith("checkpoint."))
        found |= {f"{folder.relative_to(results)}: {key}": value for key, value in of_run.items()}
    return found


def flat(value: Any, name: str) -> dict[str, Any]:
    """Nested dictionaries, lists and tensors as one dictionary of plain values and bytes."""
    if isinstance(value, dict):
        return {k: v for key, inner in value.items() for k, v in flat(inner, f"{name} {key}").items()}
    if isinstance(value, list | tuple):
        return {k: v for i, inner in enumerate(value) for k, v in flat(inner, f"{name} {i}").items()}
    if isinstance(value, torch.Tensor):
        return {name: (str(value.dtype), tuple(value.shape), value.contiguous().numpy().tobytes())}
    return {name: value}


def differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """The names under which two `content`s differ."""
    return [key for key in {**one, **other} if one.get(key) != other.get(key)]


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, byte for byte, but for locks."""
    files = (p for p in sorted(folder.rglob("*")) if p.is_file() and p.suffix != ".lock")
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


def unfinished_files(results: Path) -> list[str]:
    """Temporary files that should have been cleaned up."""
    return sorted(str(p.relative_to(results)) for p in results.rglob("*.tmp"))

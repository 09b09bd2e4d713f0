"""Small trainings in processes of their own, forked from one that has PyTorch imported, and what they leave behind."""

import csv
import functools
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import torch

import MyFramework
import MyVGG
from cifar_lab import checkpoint, lockstep, script
from cifar_lab.runs import find_run_folders, read_run

SMALL = ["--device", "cpu", "--width", "0.03", "--batch-size", "50", "--train-size", "230", "--test-size", "100"]
TIME_COLUMNS = ("train_seconds", "images_per_second")
TIME_KEYS = ("train_seconds", "images_per_second", "tflops", "matmul_tflops", "share_of_matmul_rate")
PATIENCE = 120  # seconds after which a training that has not ended is a failure


@dataclass(frozen=True)
class Ended:
    """How a process ended: its exit status (minus the number of the signal that killed it), and what it wrote."""

    status: int
    out: str
    err: str


class Training:
    """A script in a process of its own, with the exit status and the output that a shell would see."""

    def __init__(self, argv: list[str], script: str = "MyVGG.py", prepare: Callable[[], Any] | None = None) -> None:
        """prepare: called in the process before the script; a function that pickles."""
        self._output = tempfile.TemporaryDirectory()
        self.process = _server().Process(target=_train, args=(script, argv, self._output.name, prepare))
        self.process.start()

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def running(self) -> bool:
        return self.process.is_alive()

    def send(self, number: int) -> None:
        """Sends a signal, where the process has not ended."""
        if self.process.is_alive():
            os.kill(self.process.pid, number)

    def wait(self) -> Ended:
        """Waits for the end."""
        self.process.join(PATIENCE)
        if self.process.is_alive():
            self.process.kill()
            raise AssertionError(f"still running after {PATIENCE} s: {self.output('out')[-500:]}")
        ended = Ended(self.process.exitcode, self.output("out"), self.output("err"))
        self._output.cleanup()
        return ended

    def output(self, name: str) -> str:
        """What it has written so far to `out` or `err`."""
        path = Path(self._output.name, name)
        return path.read_text(encoding="utf-8") if path.exists() else ""


@functools.cache
def _server() -> multiprocessing.context.ForkServerContext:
    """A process that has imported this module, and forks one that is ready to train in a few milliseconds."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)  # until Python 3.13 it imports with the default path
    try:
        forkserver.ensure_running()
    finally:
        os.environ.pop("PYTHONPATH")
        if before is not None:
            os.environ["PYTHONPATH"] = before
    return context


def _train(name: str, argv: list[str], output: str, prepare: Callable[[], Any] | None) -> None:
    for number, stream in ((1, "out"), (2, "err")):
        os.dup2(os.open(Path(output, stream), os.O_WRONLY | os.O_CREAT), number)
    sys.argv = [name, *argv]
    torch.set_num_threads(1)
    lockstep.matmul_rate = lambda device: 1e12  # to measure it takes longer than to train
    if prepare is not None:
        prepare()
    script.run(import_module(Path(name).stem).main, argv)

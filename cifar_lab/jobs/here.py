"""Runs tasks on this machine: one after the other in this process, or several at a time in processes of their own.

A process has its share of the cores, one GPU if there are any, and a file for its output. It is in a session of its
own, so that a signal of the terminal reaches it once, through this program.
"""

import itertools
import os
import re
import runpy
import shlex
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from cifar_lab.experiments import preset_width
from cifar_lab.jobs import machine
from cifar_lab.jobs.task import (
    AGAIN,
    ATTEMPTS,
    DONE,
    FEWER,
    Task,
    complete,
    exit_status,
    follows,
    saved,
    startable,
    unfinished,
)
from cifar_lab.program import BUSY, fail, handling
from cifar_lab.project import ROOT
from cifar_lab.run_folder.ownership import is_held
from cifar_lab.training.console import Console, duration
from cifar_lab.training.threads import allowed_cores

POLL = 0.1  # seconds between two looks at the processes
WAIT = 10.0  # seconds before a task that is busy is tried again
TAIL = 4096  # bytes of a log in which its last lines are looked for
PINNING = ("OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY", "KMP_AFFINITY")  # would put all commands on one core


def run(tasks: Sequence[Task], options: Namespace) -> int:
    """Runs tasks to their end; returns the exit status of the first that fails, else 0, or 128 and a signal's number.

    After a failure no other is begun, and those that run go on to their end. options: those of `cifar_lab.reproduce`.
    """
    # No more than commands in the whole list, finished ones too: the threads of a run, on which its last bits depend,
    # are then those of a list that was not interrupted.
    most = getattr(options, "listed", len(tasks))
    jobs = options.jobs or min(most, machine.jobs_by_default(preset_width(options.preset), options.per_gpu or 1))
    if jobs > 1:
        return SideBySide(tasks, jobs, options.per_gpu).run()
    for number, task in enumerate(tasks, start=1):
        print(f"[{number}/{len(tasks)}] {task.command}", flush=True)
        if status := in_this_process(task.command):
            return status
    return 0


def in_this_process(line: str) -> int:
    """Runs one command as a shell would, but in this process, which has loaded PyTorch. Returns its exit status."""
    _, script, *arguments = shlex.split(line)
    before, sys.argv = sys.argv, [script, *arguments]
    try:
        runpy.run_path(str(ROOT / script), run_name="__main__")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    finally:
        sys.argv = before
    return 0


class _Running:
    """A task's process."""

    def __init__(self, task: Task, slot: int, gpu: str | None, threads: int) -> None:
        """slot: which one of those that run at a time, from 0."""
        self.task, self.slot, self.threads = task, slot, threads
        self.since = time.monotonic()
        self.log = log_of(task)
        environment = {name: value for name, value in os.environ.items() if name not in PINNING}
        environment["OMP_NUM_THREADS"] = str(threads)
        if gpu is not None:
            environment["CUDA_VISIBLE_DEVICES"] = gpu
        try:
            self.log.parent.mkdir(parents=True, exist_ok=True)
            with open(self.log, "ab") as output:
                self._from = output.tell()
                self.process = subprocess.Popen(
                    [sys.executable, *shlex.split(task.command)[1:]], stdin=subprocess.DEVNULL, stdout=output,
                    stderr=subprocess.STDOUT, env=environment, start_new_session=True,
                )  # fmt: skip
        except (FileExistsError, NotADirectoryError, PermissionError) as error:
            fail(f"--results: {error.filename}: {error.strerror}")

    @property
    def tail(self) -> str:
        """The end of what it has written; empty if the file was removed meanwhile."""
        try:
            with open(self.log, "rb") as file:
                file.seek(max(self._from, file.seek(0, os.SEEK_END) - TAIL))
                return file.read().decode("utf-8", errors="replace")
        except FileNotFoundError:
            return ""

    @property
    def epochs_done(self) -> int:
        found = re.findall(r"^epoch (\d+)/", self.tail, re.M)
        return int(found[-1]) if found else 0


def log_of(task: Task) -> Path:
    """The file for a task's output: in a preset's folder, among those of its networks."""
    return (task.folders or task.needs)[0].parents[1] / "logs" / f"{task.name}.log"


class SideBySide:
    """Several tasks at a time."""

    def __init__(self, tasks: Sequence[Task], jobs: int, per_gpu: int | None = None) -> None:
        """jobs: processes at a time. per_gpu: on each GPU at most; None: as many as there are jobs for it."""
        self._cores, gpus = allowed_cores(), machine.gpus()
        each = per_gpu or -(-jobs // max(1, len(gpus)))
        self._slots: list[str | None] = (gpus * each)[:jobs] if gpus else [None] * jobs
        self._least = max(1, self._cores // len(self._slots))
        self._limit = len(self._slots)  # fewer after one has run out of memory
        self._number = {task: f"[{number}/{len(tasks)}]" for number, task in enumerate(tasks, start=1)}
        self._waiting = list(tasks)
        self._not_before: dict[Task, float] = {}
        self._said: set[Task] = set()  # whose command was printed
        self._busy: set[Task] = set()  # of which that was said
        self._attempts = dict.fromkeys(tasks, 0)
        self._short: set[Task] = set()  # of memory, once
        self._running: list[_Running] = []
        self._bars: dict[_Running, tqdm] = {}
        self._console = Console()
        self._failed = 0  # the first exit status of a task that is not tried again
        self._stopped = 0  # the first signal

    def run(self) -> int:
        """Runs them; returns as `run` above."""
        try:
            with handling(self._note):
                drawn = 0.0
                while self._running or (self._waiting and not self._failed and not self._stopped):
                    self._start()
                    time.sleep(POLL)
                    for one in [one for one in self._running if one.process.poll() is not None]:
                        self._end(one)
                    if time.monotonic() - drawn > 1:
                        drawn = time.monotonic()
                        for one, bar in self._bars.items():
                            bar.update(one.epochs_done - bar.n)
        finally:
            for one in self._running:  # where the disk is full, for example: what runs saves and ends
                one.process.terminate()
            for one in self._running:
                one.process.wait()
        return self._failed or (128 + self._stopped if self._stopped else 0)

    def _note(self, number: int, frame: object) -> None:
        """A signal goes on to every process; a second one too, which ends them at once."""
        self._stopped = self._stopped or number
        for one in self._running:
            if one.process.poll() is None:
                one.process.send_signal(number)

    def _start(self) -> None:
        """Starts what may start now. A long list is not looked through while nothing could."""
        free = [slot for slot in range(len(self._slots)) if slot not in {one.slot for one in self._running}]
        room = min(len(free), self._limit - len(self._running))
        if self._failed or self._stopped or room <= 0:
            return
        now, running = time.monotonic(), {one.task for one in self._running}
        left = startable([*self._waiting, *running])
        ready = [task for task in left if task not in running and self._not_before.get(task, 0) <= now]
        ready = list(itertools.islice((task for task in ready if not self._is_busy(task)), room))
        runs = [len(unfinished(task)) or self._cores for task in ready]
        for i, task in enumerate(ready):
            self._waiting.remove(task)
            if complete(task):  # another program has trained it meanwhile
                self._say(task, "complete")
                continue
            cores = self._cores - sum(one.threads for one in self._running)
            threads = machine.threads_of(runs[i], cores, self._least, runs[i + 1 :])
            if task not in self._said:
                self._say(task, task.command)
            self._said.add(task)
            self._attempts[task] += 1
            one = _Running(task, free[i], self._slots[free[i]], threads)
            self._running.append(one)
            if self._stopped:  # while it was started
                one.process.send_signal(self._stopped)
            if self._console.terminal:
                self._bars[one] = tqdm(
                    total=task.epochs, desc=task.name, unit="epoch", position=free[i], leave=False, dynamic_ncols=True
                )

    def _is_busy(self, task: Task) -> bool:
        """Whether another process still trains a run of a task that has ended for that. Starting it costs seconds."""
        if busy := task in self._busy and any(map(is_held, task.folders)):
            self._not_before[task] = time.monotonic() + WAIT
        return busy

    def _end(self, one: _Running) -> None:
        """Does what follows from how a task has ended."""
        self._running.remove(one)
        if bar := self._bars.pop(one, None):
            bar.close()
        task, status = one.task, exit_status(one.process.returncode)
        what, took = follows(status), duration(time.monotonic() - one.since)
        if what == DONE:
            self._say(task, f"done in {took}")
            return
        last = (one.tail.strip().splitlines() or ["no output"])[-1]
        why = f"status {status} after {took}: {last} ({one.log})"
        if self._stopped:
            self._failed = self._failed or (0 if saved(status) else status)
            self._say(task, last)
        elif status == BUSY:
            self._attempts[task] -= 1
            self._not_before[task] = time.monotonic() + WAIT
            self._waiting.append(task)
            if task not in self._busy:
                self._say(task, f"waits: {why}")
            self._busy.add(task)
        elif what == FEWER and task not in self._short:
            self._short.add(task)
            self._limit = max(1, (len(self._running) + 1) // 2)
            self._waiting.append(task)
            self._say(task, f"again, with at most {self._limit - 1} beside it: {why}")
        elif what == AGAIN and self._attempts[task] < ATTEMPTS:
            self._waiting.append(task)
            self._say(task, f"again: {why}")
        else:
            self._failed = self._failed or status
            self._say(task, why)

    def _say(self, task: Task, text: str) -> None:
        self._console.say(f"{self._number[task]} {text}")

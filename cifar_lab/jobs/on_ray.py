"""Runs tasks on a Ray cluster: each attempt at one is a Ray task (`ray_worker.attempt`), which needs nothing of the
machine that it gets but Python with the project's packages, and Ray.

Ray says where and when; what follows from how an attempt ended is decided here, as in every place. A lost machine costs
a task no attempt: it goes on elsewhere from its last checkpoint.
"""

import hashlib
import logging
import os
import re
import secrets
import shlex
import signal
import socket
import sys
import time
from argparse import Namespace
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count, pairwise
from pathlib import Path, PurePath

import ray
from ray.exceptions import (
    NodeDiedError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    RayTaskError,
    RuntimeEnvSetupError,
    TaskCancelledError,
)
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from tqdm import tqdm

from cifar_lab.data import cache
from cifar_lab.jobs.here import log_of
from cifar_lab.jobs.ray_worker import MARK, Desk, Site, Work, attempt
from cifar_lab.jobs.task import AGAIN, ATTEMPTS, DONE, FEWER, KILLED, NEVER, Task, follows, saved, startable
from cifar_lab.program import BUSY, DISK, OTHER, OUT_OF_MEMORY, fail
from cifar_lab.program import name as program_name
from cifar_lab.project import ROOT
from cifar_lab.run_folder import files
from cifar_lab.run_folder.writer import commit_of
from cifar_lab.settings import training_root
from cifar_lab.training.console import Console, Stopped, StopSignals

NOT_SENT = ["/results", "/data", "/.git", "/.venv", "__pycache__"]  # of the project's folder
POLL_SECONDS = 0.5
BUSY_SECONDS = 10.0  # until a run that another process trains is tried again
MACHINE = "its machine was lost"
LOST = None  # in the place of an exit status: the machine was lost


def run(tasks: Sequence[Task], options: Namespace) -> int:
    """Runs tasks to their end; returns the first exit status of one that failed for good, else 0.

    options: those of `cifar_lab.reproduce`. A task that fails does not end the others, but those that need its runs.
    """
    results = training_root(options.results).absolute()
    try:
        data = cache.load()
    except cache.DataError as error:
        fail(f"{program_name()}: {error}")
    _connect(options.address)
    try:
        results.mkdir(parents=True, exist_ok=True)
        with StopSignals() as stop, _marked(results) as mark:
            arrays = {key: getattr(data, key) for key in cache.KEYS}
            declared = data.name if data.name != cache.DATA_SETS[cache.CIFAR10].label else None
            digest = hashlib.sha256(repr((sorted(data.sha256.items()), declared)).encode()).hexdigest()[:16]
            site = Site(results, mark, digest, [ray.put((arrays, declared))])
            return _Cluster(site, stop, options).run(tasks)
    except Stopped as stopped:
        return stopped.status
    except RayActorError:
        fail("the process that writes to the results folder was killed; the same command goes on", OTHER)
    finally:
        ray.shutdown()


@contextmanager
def _marked(results: Path) -> Iterator[str]:
    """Puts a file with a random name into the results folder for a while, and gives its name."""
    mark = MARK.format(secrets.token_hex(16))
    files.write_text(results / mark, "by it an attempt on another machine sees that it has this folder\n")
    try:
        yield mark
    finally:
        files.remove(results / mark)


def _connect(address: str | None) -> None:
    """Connects to a cluster, or starts one of this machine. Ends the program if there is none at the address."""
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    host, _, port = address.rpartition(":")
    if "://" in host:
        fail(f"--address {address}: the program has to be started on a machine of the cluster")
    environment = {"working_dir": str(ROOT), "excludes": NOT_SENT}
    if commit := os.environ.get("GIT_COMMIT") or commit_of(ROOT):
        environment["env_vars"] = {"GIT_COMMIT": commit}
    before = signal.getsignal(signal.SIGTERM)
    try:
        if host:  # Ray itself would try for minutes
            socket.create_connection((host, int(port)), 5).close()
        ray.init(address, runtime_env=environment, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, ValueError) as error:
        fail(f"--address {address}: no Ray cluster there ({error})")
    except (RuntimeError, RayError) as error:  # other versions there, or a project folder that is too large to be sent
        fail(f"--address {address}: {' '.join(str(error).split())}")
    except SystemExit as end:  # Ray has handlers of its own for SIGTERM, with statuses of their own
        sys.exit(end.code if end.code > 128 else 128 + signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)


def _work(task: Task, results: Path) -> Work:
    """What a task is on another machine. results: the folder, absolute."""

    def below(path: str | Path) -> PurePath:
        return PurePath(Path(path).absolute().relative_to(results))

    _, script, *flags = shlex.split(task.command)
    arguments: list[str | PurePath] = [
        below(word) if before == "--results" or Path(word) in task.needs else word
        for before, word in pairwise([script, *flags])
    ]
    if task.folders and "--results" not in flags:
        arguments += ["--results", PurePath()]
    folders, needs = (tuple(map(below, each)) for each in (task.folders, task.needs))
    return Work(task.name, (Path(script).name, *arguments), folders, needs, below(log_of(task)))


class _Cluster:
    """Attempts at tasks, on the cluster that this process is connected to."""

    def __init__(self, site: Site, stop: StopSignals, options: Namespace) -> None:
        self._site, self._stop = site, stop
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self._desk = ray.remote(Desk).options(num_cpus=0, scheduling_strategy=here).remote(site.results)
        self._attempt = ray.remote(max_calls=1, max_retries=0)(attempt)
        self._numbers = count(1)
        self._cpus = options.cpus or 1
        self._gpus = options.gpus if options.gpus is not None else min(1, ray.cluster_resources().get("GPU", 0))
        self._todo: dict[Task, float] = {}  # with the time before which it is not tried
        self._running: dict[ray.ObjectRef, Task] = {}
        self._cores_of: dict[Task, int] = {}  # that its latest attempt has asked for
        self._refs: dict[str, ray.ObjectRef] = {}  # of those that run, by name
        self._nodes: dict[str, str] = {}  # of those that have begun, by name
        self._attempts: Counter[Task] = Counter()
        self._alone: set[Task] = set()  # that ran out of memory beside others
        self._busy: set[Task] = set()  # of which that was said
        self._failed: dict[Task, int] = {}
        self._console = Console()
        self._tasks: dict[str, Task] = {}  # by name
        self._number: dict[Task, str] = {}
        self._said: dict[Task, str] = {}  # the last line of each
        self._bars: dict[Task, tqdm] = {}

    def run(self, tasks: Sequence[Task]) -> int:
        """Runs tasks to their end; returns an exit status."""
        self._tasks = {task.name: task for task in tasks}
        self._number = {task: f"[{number}/{len(tasks)}]" for number, task in enumerate(tasks, start=1)}
        self._todo = dict.fromkeys(tasks, 0.0)
        if max(self._cores(), default=0) < self._cpus:
            self._console.say(f"waits for a machine with {self._cpus} cores and {self._gpus:g} GPUs: there is none")
        stopping, changed = False, True
        while True:
            if self._stop.received is None:
                if changed or any(0 < at <= time.monotonic() for at in self._todo.values()):
                    self._start()
            elif not stopping:
                self._save_and_stop()
                stopping = True
            if not self._running and (stopping or not self._startable()):
                break
            ended = self._wait()
            said, self._nodes = ray.get(self._desk.news.remote())
            self._show(said)
            self._cancel_what_cannot_begin()
            how = {ref: _ended(ref) for ref in ended} | dict.fromkeys(self._lost() - {*ended}, (LOST, MACHINE))
            for ref, (status, why) in how.items():
                self._follow(self._running.pop(ref), status, why)
            changed = bool(how)
        for task in self._todo if not stopping else ():
            self._say(task, "left out: a run that it needs has failed")
        return next(iter(self._failed.values()), 128 + self._stop.received if stopping else 0)

    def _cores(self) -> list[int]:
        """Of each machine of the cluster that has the GPUs of a command."""
        found = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        return [int(has.get("CPU", 0)) for has in found if has.get("GPU", 0) >= self._gpus]

    def _largest(self) -> int:
        """The cores of the largest of them, or of a command if none has as many."""
        return max([self._cpus, *self._cores()])

    def _startable(self) -> list[Task]:
        unfinished = [*self._todo, *self._running.values(), *self._failed]
        return [task for task in startable(unfinished) if task in self._todo]

    def _start(self) -> None:
        """Has attempts at all tasks that can be tried now wait for a free device."""
        now = time.monotonic()
        numbers = {task: next(self._numbers) for task in self._startable() if self._todo[task] <= now}
        if numbers:  # the desk knows of an attempt before it begins
            ray.get(self._desk.expect.remote({task.name: number for task, number in numbers.items()}))
        for task, number in numbers.items():
            room = {"num_cpus": self._cpus, "num_gpus": self._gpus}
            if task in self._alone:  # what the largest machine has
                room["num_cpus"] = self._largest()
            work = _work(task, self._site.results)
            ref = self._attempt.options(**room).remote(self._desk, work, number, self._site, self._cpus)
            self._running[ref], self._refs[task.name], self._cores_of[task] = task, ref, room["num_cpus"]
            del self._todo[task]

    def _wait(self) -> list[ray.ObjectRef]:
        """The attempts that end within half a second."""
        if not self._running:
            time.sleep(POLL_SECONDS)
            return []
        return ray.wait([*self._running], num_returns=len(self._running), timeout=POLL_SECONDS)[0]

    def _save_and_stop(self) -> None:
        """Has attempts that have begun save and stop, and no other begin."""
        ray.get(self._desk.stop.remote())
        for ref, task in self._running.items():
            if task.name not in self._nodes:
                ray.cancel(ref)

    def _cancel_what_cannot_begin(self) -> None:
        """Cancels attempts that wait for more cores than any machine has: the largest has left since."""
        for ref, task in self._running.items():
            more = self._cores_of[task] > self._cpus and task.name not in self._nodes  # only then is the cluster asked
            if more and self._cores_of[task] > self._largest():
                ray.cancel(ref)

    def _lost(self) -> set[ray.ObjectRef]:
        """The attempts on nodes that Ray has given up. It still waits for them where their process is out of reach."""
        alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
        lost = {self._refs[name] for name, node in self._nodes.items() if node not in alive}
        return lost & self._running.keys()

    def _follow(self, task: Task, status: int | None, why: str) -> None:
        """Does what follows from how an attempt ended. why: it has no status of its own."""
        if bar := self._bars.pop(task, None):
            bar.close()
        what = AGAIN if status is LOST else follows(status)
        self._attempts[task] += status not in (LOST, BUSY)
        last = why or f"status {status}: {self._said.get(task, 'no output')} ({log_of(task)})"
        if what == DONE:
            self._say(task, "done")
        elif self._stop.received is not None:
            if status is not LOST and not saved(status):
                self._failed[task] = status
            self._say(task, self._said.get(task, "has not begun"))
        elif status == BUSY:
            self._todo[task] = time.monotonic() + BUSY_SECONDS
            if task not in self._busy:
                self._say(task, f"waits: {last}")
            self._busy.add(task)
        elif what == NEVER or self._attempts[task] == ATTEMPTS or (what == FEWER and task in self._alone):
            self._failed[task] = status
            self._say(task, last)
        else:
            self._todo[task] = 0.0
            if what == FEWER:
                self._alone.add(task)
            self._say(task, f"again: {last}")

    def _show(self, said: Sequence[tuple[str, str]]) -> None:
        """Shows what attempts have said, each with the name of its task: what has begun, and epochs as bars."""
        for name in dict.fromkeys([*self._nodes, *(name for name, _ in said)]):
            if (task := self._tasks[name]) not in self._said:
                self._say(task, task.command)
                self._said[task] = "no output"
            if self._console.terminal and name in self._nodes and task not in self._bars:
                free = min({*range(len(self._bars) + 1)} - {-bar.pos for bar in self._bars.values()})
                self._bars[task] = tqdm(
                    total=task.epochs, desc=name, unit="epoch", position=free, leave=False, dynamic_ncols=True
                )
        for name, line in said:
            task = self._tasks[name]
            self._said[task] = line
            if (epoch := re.match(r"epoch (\d+)/", line)) and task in self._bars:
                self._bars[task].update(int(epoch[1]) - self._bars[task].n)

    def _say(self, task: Task, text: str) -> None:
        self._console.say(f"{self._number[task]} {text}")


def _ended(ref: ray.ObjectRef) -> tuple[int | None, str]:
    """An attempt's exit status, and why it has none of its own."""
    try:
        return ray.get(ref), ""
    except NodeDiedError:
        return LOST, MACHINE
    except TaskCancelledError:  # had not begun
        return LOST, "the machine that it waited for was lost"
    except OutOfMemoryError:
        return OUT_OF_MEMORY, "out of memory"
    except (RayTaskError, RuntimeEnvSetupError) as error:
        return (DISK if isinstance(error, OSError) else OTHER), str(error).strip().splitlines()[-1]
    except RayError:
        return KILLED, "its process was killed"

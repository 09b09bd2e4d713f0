"""What runs on the machines of a Ray cluster: an attempt at a task, and the desk that all attempts report to.

The desk is an actor beside the results folder. An attempt runs the task's command as a process of its own, which gets
signals, writes checkpoints and has an exit status as anywhere else, and tells the desk about once a second what the
process says. If it cannot see the results folder, it has the run folders on its own disk, begins with what the desk has
of them, and sends each file that has changed. Each answer of the desk says whether to go on; to an attempt that was
replaced, because its machine was given up, it says no, and takes nothing from it.
"""

import ctypes
import getpass
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePath
from typing import Any

import ray
from filelock import FileLock

from cifar_lab.data.cache import write_cache
from cifar_lab.jobs.task import exit_status
from cifar_lab.program import BUSY
from cifar_lab.project import ROOT
from cifar_lab.run_folder import files
from cifar_lab.run_folder.ownership import Busy, Hold
from cifar_lab.run_folder.schema import NEWEST, PREVIOUS
from cifar_lab.run_folder.tables import PREDICTIONS

GO_ON, SAVE, LEAVE = "go on", "save and stop", "leave it to the attempt that replaced this one"
SECONDS = 1.0  # between two reports
AT_THE_END = (PREDICTIONS, "summary.json")  # a finished run arrives whole
MARK = ".ray-driver-{}"  # a file's name
LARGEST = 1 << 34  # bytes of a file
PR_SET_PDEATHSIG = 1  # <sys/prctl.h>
Contents = dict[PurePath, bytes | None]  # files below the results folder, in the order of writing; None: removed


@dataclass(frozen=True)
class Work:
    """A task as an attempt needs it."""

    name: str
    arguments: tuple[str | PurePath, ...]  # script and flags; a PurePath lies below the results folder
    folders: tuple[PurePath, ...]  # below the results folder, of the runs that it trains
    needs: tuple[PurePath, ...]  # and of those that it measures
    log: PurePath  # below the results folder, for what it says


@dataclass(frozen=True)
class Site:
    """What all attempts share."""

    results: Path  # absolute, on the driver's machine
    mark: str  # the name of a file in it that no other folder has
    digest: str  # of the data set
    data: Sequence[ray.ObjectRef]  # one: its arrays, and the name that is declared for it; fetched only where needed


# --- Beside the results folder ---------------------------------------------------------------------------------------


class Desk:
    """Takes reports, writes the files in them, and says to each attempt whether it goes on."""

    def __init__(self, results: Path) -> None:
        self._results = results
        self._attempts: dict[str, int] = {}  # by task, the one that counts
        self._holds: dict[str, dict[PurePath, Hold]] = {}  # by task, of its run folders
        self._nodes: dict[str, str] = {}  # by task that has begun, where
        self._said: list[tuple[str, str]] = []
        self._stopping = False

    def expect(self, attempts: Mapping[str, int]) -> None:
        """From here on, these attempts are the ones that count, by task."""
        self._attempts |= attempts
        for name in attempts:
            self._forget(name)

    def stop(self) -> None:
        """Has every attempt save and stop."""
        self._stopping = True

    def news(self) -> tuple[list[tuple[str, str]], dict[str, str]]:
        """The lines since the last call, each with its task; and on which node each task that has begun is."""
        said, self._said = self._said, []
        return said, self._nodes

    def contents(self, work: Work, attempt: int) -> Contents | None:
        """What there is of a task's run folders, which from here on only this desk writes, until the attempt has ended.

        None if another process writes to them, or the attempt was replaced.
        """
        if self._attempts.get(work.name) != attempt:
            return None
        with ExitStack() as held:
            holds = {folder: Hold(self._results / folder) for folder in work.folders}
            for hold in holds.values():
                try:
                    hold.acquire()
                except Busy:
                    return None
                held.callback(hold.release)
            self._holds[work.name] = holds
            held.pop_all()
        return {path: files.read_regular(self._results / path, LARGEST) for path in _listed(self._results, work)}

    def report(self, work: Work, attempt: int, node: str, said: Sequence[str], changed: Contents, ended: bool) -> str:
        """Takes what an attempt says and the files that it sends; returns what it is to do.

        It is to leave its runs, and nothing is taken, if it was replaced, or a process on this machine has taken over.
        """
        if self._attempts.get(work.name) != attempt:
            return LEAVE
        holds = self._holds.get(work.name, {})
        try:
            for path, content in changed.items():
                may = holds[path.parent].check if path.parent in holds else files.always
                _write(self._results / path, content, may)
        except Busy:
            self._forget(work.name)
            del self._attempts[work.name]
            return LEAVE
        self._nodes[work.name] = node
        self._said += [(work.name, line) for line in said]
        log = self._results / work.log
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "a", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in said)
        if ended:
            self._forget(work.name)
        return SAVE if self._stopping else GO_ON

    def _forget(self, name: str) -> None:
        """Ends what is known of a task's attempt: it has ended, or counts no more."""
        self._nodes.pop(name, None)
        for hold in self._holds.pop(name, {}).values():
            hold.release()


def _write(path: Path, content: bytes | None, may: files.May) -> None:
    if content is None:
        return files.remove(path, may)
    path.parent.mkdir(parents=True, exist_ok=True)
    keep = path.with_name(PREVIOUS) if path.name == NEWEST else None
    files.write_whole(path, lambda file: file.write(content), keep=keep, may=may)


def _listed(results: Path, work: Work) -> list[PurePath]:
    """The files of a task's run folders, in the order in which they must be written: logs before the checkpoint that
    counts on them, what says that the run has ended last."""
    names = [
        path.relative_to(results) for folder in work.folders + work.needs for path in (results / folder).glob("[!.]*")
    ]
    return sorted((n for n in names if (results / n).is_file()), key=_rank)


def _rank(path: PurePath) -> tuple[int, PurePath]:
    last = ("config.json", "", NEWEST, *AT_THE_END)
    return last.index(path.name if path.name in last else ""), path


class Copy:
    """An attempt's own run folders."""

    def __init__(self, results: Path, work: Work, contents: Contents) -> None:
        """contents: what is there already."""
        self._results, self._work = results, work
        for folder in work.folders + work.needs:
            (results / folder).mkdir(parents=True)
        for path, content in contents.items():
            (results / path).write_bytes(content)
        self._seen = self._states()

    def changed(self, ended: bool) -> Contents:
        """What has changed since the last call. ended: nothing writes to them any more."""
        states = {p: s for p, s in self._states().items() if ended or p.name not in AT_THE_END}
        new = [path for path, state in states.items() if self._seen.get(path) != state]  # logs last
        gone = [path for path in self._seen if not (self._results / path).exists()]
        gone = [path for path in gone if path.name != NEWEST]  # is absent for a moment when it is replaced
        contents: Contents = {}
        for path in new:
            with suppress(FileNotFoundError):  # renamed meanwhile: seen the next time
                contents[path] = (self._results / path).read_bytes()
        for path in gone:
            del self._seen[path]
        self._seen |= {path: states[path] for path in contents}
        return dict.fromkeys(gone) | dict(reversed(contents.items()))

    def _states(self) -> dict[PurePath, tuple[int, ...]]:
        """By which a file is seen to have changed, of each but the previous checkpoint, which the desk makes itself.

        Logs after the checkpoint, in which order they are read too: then they have all that it counts on.
        """
        states = {}
        for path in reversed(_listed(self._results, self._work)):
            with suppress(FileNotFoundError):
                state = (self._results / path).stat()
                states[path] = state.st_ino, state.st_size, state.st_mtime_ns
        return {path: state for path, state in states.items() if path.name != PREVIOUS}


# --- Where there is a free device ------------------------------------------------------------------------------------


def attempt(desk: ray.actor.ActorHandle, work: Work, number: int, site: Site, threads: int) -> int:
    """Runs a task's command; returns its exit status as a shell has it. number: of the attempt.

    An attempt that is replaced kills it. One that loses the desk, as the driver has ended, has it save and stop.
    """
    with ExitStack() as stack:
        shared = _is_there(site)
        folder = ROOT if shared else Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cifar_lab-")))
        # Relative, as config.json records the command.
        results = site.results if shared else Path("results")
        copy = None
        if not shared:
            contents = _get(desk.contents.remote(work, number))
            if contents is None:
                return BUSY
            copy = Copy(folder / results, work, contents)
        script, *flags = (str(results / a) if isinstance(a, PurePath) else a for a in work.arguments)
        child = subprocess.Popen(
            [sys.executable, ROOT / script, *flags], cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, start_new_session=True, preexec_fn=partial(_die_with, os.getpid(), _prctl()),
            env=os.environ | {"CIFAR10_DIR": str(data_folder(site)), "OMP_NUM_THREADS": str(threads)},
        )  # fmt: skip
        stack.callback(_end, child)
        said: list[str] = []
        listener = threading.Thread(target=_listen, args=(child, said), daemon=True)
        listener.start()
        asked = left = False
        node = ray.get_runtime_context().get_node_id()
        while True:
            if ended := _has_ended(child):
                listener.join()
            now = said[:]
            del said[: len(now)]
            changed = copy.changed(ended) if copy else {}
            order = _get(desk.report.remote(work, number, node, now, changed, ended))
            left |= order == LEAVE
            if ended:
                return BUSY if left else exit_status(child.returncode)
            if left:
                child.kill()
            elif order == SAVE and not asked:
                child.terminate()
                asked = True


def _get(ref: ray.ObjectRef) -> Any:
    """The value of a reference. For as long as `ray.get` waits, Ray gives the cores of the attempt to another one."""
    return ref.future().result()


def _is_there(site: Site) -> bool:
    """Whether this machine sees the results folder."""
    return os.path.exists(site.results / site.mark)


def data_folder(site: Site) -> Path:
    """A data directory on this machine, which the first attempt here writes."""
    folder = Path(tempfile.gettempdir(), f"cifar_lab-{getpass.getuser()}-{site.digest}")
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            unfinished = folder.with_suffix(".unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)
            write_cache(unfinished, *_get(site.data[0]))
            unfinished.rename(folder)
    return folder


def _prctl() -> Callable | None:
    """Loaded here, as little may be done between fork and exec."""
    return ctypes.CDLL(None).prctl if sys.platform == "linux" else None


def _die_with(parent: int, prctl: Callable | None) -> None:
    """Has a new process get SIGTERM when the attempt's own process ends, be it by SIGKILL."""
    if prctl is not None:
        prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            os._exit(1)


def _listen(child: subprocess.Popen, said: list[str]) -> None:
    for line in child.stdout:
        said.append(line.decode(errors="replace").rstrip("\n"))


def _has_ended(child: subprocess.Popen) -> bool:
    """Whether it has, after some time."""
    with suppress(subprocess.TimeoutExpired):
        child.wait(SECONDS)
    return child.returncode is not None


def _end(child: subprocess.Popen) -> None:
    """Has it save and stop, and waits for that."""
    if child.returncode is None:
        child.terminate()
        child.wait()

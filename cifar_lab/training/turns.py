"""Trainings of one user on one machine take turns on its cores.

A parallel operation ends when the last of its threads does. If two programs have two threads each on two cores, a
thread that is woken waits in the scheduler's queue for milliseconds, at each of some hundred operations of a step, and
both train a hundredth as fast as one alone; wide networks side by side, with a thread each, lose half of their speed.
Numbers: bench/README.md. So trainings that have more threads together than there are cores compute one at a time, for a
fifth of a second or some steps each. A training of one thread waits for nobody and takes no turns.

Each training holds a lock on a file that says how many threads it has, in a folder of the user's among the temporary
files; the system lets go of the locks of a process that has ended.
"""

import contextlib
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from cifar_lab.training.threads import allowed_cores

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None

SLICE, STEPS = 0.2, 5  # seconds of a turn, and steps after its first one, whichever takes longer
PATIENCE, APART = 10.0, 60.0  # seconds of waiting, after which a training goes on without turns for so many seconds:
# whoever has the turn may have been stopped
POLL = 0.002  # seconds


class Turns:
    """The turns of one training. Without locks on files (other systems, other owners) there are none."""

    def __init__(self, threads: int, folder: Path | None = None) -> None:
        """threads: that compute at the same time, of the whole training."""
        self._open: list[int] = []
        self._own: Path | None = None
        self._has_turn = False
        self._until = 0.0
        self._steps = STEPS
        if threads < 2 or fcntl is None:
            return
        self._cores = allowed_cores()
        self._folder = folder or Path(tempfile.gettempdir()) / f"cifar_lab-{os.getuid()}"
        with contextlib.suppress(OSError):
            self._folder.mkdir(mode=0o700, exist_ok=True)
            if self._folder.stat().st_uid != os.getuid():
                return
            self._turn, self._next = (self._file(name) for name in ("turn", "next"))
            new = self._folder / f"{time.monotonic_ns()}-{os.getpid()}-{threads}"
            fcntl.flock(self._file(new.name), fcntl.LOCK_EX)
            self._own = new.rename(new.with_suffix(".threads"))  # seen only when it is locked

    def _file(self, name: str) -> int:
        self._open.append(os.open(self._folder / name, os.O_RDWR | os.O_CREAT, 0o600))
        return self._open[-1]

    def take(self, finish: Callable[[], None]) -> None:
        """Waits for a turn if this one is over and others want theirs; called before each step.

        finish: ends what computes for this training.
        """
        self._steps += 1
        if self._own is None or self._steps <= STEPS or time.monotonic() < self._until:
            return
        self._steps, patient = 0, True
        if self._has_turn:
            finish()  # outside of what follows, so that its errors reach the caller
        with contextlib.suppress(OSError):
            if self._has_turn:
                fcntl.flock(self._turn, fcntl.LOCK_UN)
                self._has_turn = False
            if self._crowded():
                # Who waits for the turn holds `next`, so that the one that had it comes after the one that waits.
                end = time.monotonic() + PATIENCE
                if _lock(self._next, end):
                    self._has_turn = _lock(self._turn, end)
                    fcntl.flock(self._next, fcntl.LOCK_UN)
                patient = self._has_turn
        self._until = time.monotonic() + (SLICE if patient else APART)

    def _crowded(self) -> bool:
        """Whether the trainings have more threads than there are cores."""
        threads = 0
        for path in self._folder.glob("*.threads"):
            if path != self._own and _is_free(path):
                path.unlink(missing_ok=True)  # its process has ended
            else:
                threads += int(path.stem.rsplit("-", 1)[1])
        return threads > self._cores

    def close(self) -> None:
        """Ends the part that this training takes."""
        if self._own is not None:
            self._own.unlink(missing_ok=True)
            self._own = None
        while self._open:
            os.close(self._open.pop())


def _lock(file: int, end: float) -> bool:
    """Locks an open file, unless that takes until `end`."""
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > end:
                return False
            time.sleep(POLL)


def _is_free(path: Path) -> bool:
    """Whether no process holds the file's lock."""
    try:
        file = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False
    finally:
        os.close(file)

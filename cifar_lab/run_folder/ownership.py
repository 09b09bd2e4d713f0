"""Who writes to a run folder: one process at a time, which is told from others by a random word.

A lock keeps others out; but it ends with the folder that it is in, on some file systems at the machine, and others have
none. So the holder's name lies beside the folder, and is read again before each change: a process that was given up,
and whose run another one has taken over, notices and writes nothing more.
"""

import contextlib
import errno
import json
import os
import secrets
import socket
from pathlib import Path

from filelock import Timeout

from cifar_lab.run_folder import files


class FolderError(Exception):
    """A run folder that must not be written to; the text names it and says why."""


class Busy(FolderError):
    """Another process writes to the run folder."""


def _is_alive(pid: object) -> bool:
    """Whether a process of this machine has that number."""
    if not isinstance(pid, int) or not 0 < pid < 2**31:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it is another user's
        return True
    return True


def _system() -> str:
    """What a process number belongs to: a system since its start, a container in it. Names of machines repeat."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def _named(owner: dict) -> str:
    """A process that holds a folder, in words; empty if it does not say."""
    if not isinstance(owner.get("pid"), int) or not isinstance(owner.get("host"), str):
        return ""
    return f"process {owner['pid']} on {owner['host'][:100]}"


def is_held(folder: Path) -> bool:
    """Whether another process has locked a run folder, as far as that can be seen: a file system may have no locks."""
    lock = files.lock_of(folder)
    try:
        files.lock(lock)
    except Timeout:
        return True
    except OSError:
        return False
    lock.release()
    return False


class Hold:
    """A run folder as this process's own, from `acquire` to `release`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = files.lock_of(folder)
        self._owner_file = folder.with_name(f".{folder.name}.owner.json")
        # Told from others by a word of its own: a number of a process comes back, and a machine's name changes.
        self._own = {
            "pid": os.getpid(), "host": socket.gethostname(), "system": _system(), "token": secrets.token_hex(16),
        }  # fmt: skip
        self._acquired = False

    def acquire(self) -> None:
        """Holds the folder for this process. Raises Busy, naming who holds it, and OSError."""
        self._folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            alone = files.lock(self._lock)
        except Timeout:
            alone = None
        owner = self._owner()
        if alone is False:  # no locks: what a living process of this machine says of itself has to do
            alone = owner.get("system") != self._own["system"] or not _is_alive(owner.get("pid"))
        if not alone:
            raise Busy(f"{self._folder}: {_named(owner) or 'another process'} is training this run")
        try:
            files.remove_unfinished(self._owner_file)
            files.write_text(self._owner_file, json.dumps(self._own))
            self._acquired = True
        except BaseException:
            self._lock.release()
            raise

    def release(self) -> None:
        """Lets other processes write to the folder again."""
        if not self._acquired:
            return
        self._acquired = False
        try:
            with contextlib.suppress(Busy, FileNotFoundError):
                files.remove(self._owner_file, self.check)
        finally:
            self._lock.release()

    def _owner(self) -> dict:
        """Who holds the folder, as that process says; empty if that cannot be said."""
        try:
            owner = json.loads(files.read_regular(self._owner_file, 4096))
        except (OSError, ValueError, RecursionError):
            owner = None
        return owner if isinstance(owner, dict) else {}

    def check(self) -> None:
        """Raises Busy if another process has taken over the run, FileNotFoundError if the results folder was removed;
        asked before each change.

        The lock alone does not keep others out if it was removed with the folder that it is in, or if a file system has
        no locks, or they end at the host.
        """
        if not self._owner_file.exists():
            if self._folder.exists():
                raise Busy(f"{self._folder}: another process has taken over this run, and ended")
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self._owner_file))
        owner = self._owner()
        if owner and owner.get("token") != self._own["token"]:
            by = _named(owner) or "another process"
            raise Busy(f"{self._folder}: {by} is training this run too; this process leaves it to that one")

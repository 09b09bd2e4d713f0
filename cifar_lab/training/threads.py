"""CPU cores: how many there are for this process, and runs side by side on them.

The bits of a run depend on the number of threads that compute it, because sums are split among them. The number is
chosen when a run begins, recorded in config.json, and kept when the run is continued, wherever that is; which runs
train beside it, and on how many cores, changes nothing.
"""

import math
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch

PYTORCHS = torch.get_num_threads()  # its own choice: physical cores, or OMP_NUM_THREADS
MOST = 16  # threads by default: a batch of a hundred images has no work for more
AHEAD = 2  # steps that a run may have waiting


CGROUPS, OWN_CGROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def cgroup_folders(controller: str, cgroups: Path = CGROUPS, own: Path = OWN_CGROUPS) -> set[Path]:
    """Where the limits of this process's cgroups, and of those around them, may stand for a controller."""
    folders = {cgroups, cgroups / controller}
    try:
        for line in own.read_text(encoding="utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers or controller in controllers.split(","):  # version 2 has one hierarchy for all
                inside = cgroups / controllers / path.lstrip("/")
                folders |= {inside, *inside.parents}
    except (OSError, ValueError):
        pass
    return folders


def allowed_cores(cgroups: Path = CGROUPS, own: Path = OWN_CGROUPS) -> int:
    """Cores that this process may keep busy, at least 1: by its affinity and by the limits of its cgroups."""
    cores = float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    for folder in cgroup_folders("cpu", cgroups, own):
        for quota in (_quota(folder / "cpu.max"), _quota(folder / "cpu.cfs_quota_us", folder / "cpu.cfs_period_us")):
            cores = min(cores, quota)
    return max(1, math.ceil(cores))


def _quota(*files: Path) -> float:
    """The cores that a cgroup's files (version 2: one, version 1: two) allow; infinite if they set no limit."""
    try:
        quota, period = " ".join(file.read_text(encoding="ascii") for file in files).split()
        return int(quota) / int(period) if int(quota) > 0 else math.inf
    except (OSError, ValueError, ZeroDivisionError):
        return math.inf


def default_threads() -> int:
    """Threads for a command that names no number: as many as PyTorch takes by itself, if they are allowed."""
    return min(PYTORCHS, allowed_cores(), MOST)


def share(threads: int, runs: int) -> int:
    """Threads of each of several runs that share a number of threads."""
    return max(1, threads // runs)


def use(threads: int) -> None:
    """Has the calling thread compute with so many threads from here on."""
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)  # of the calling thread only


class SideBySide:
    """Computes for several runs at the same time, on the CPU: for each run in the order in which it was asked.

    What is given to `start` is computed by the time `wait` returns; with a single worker, at once and in the calling
    thread. PyTorch lets go of the interpreter lock in its operations.
    """

    def __init__(self, threads: int, each: list[int]) -> None:
        """threads: in all. each: of every run; as many runs are computed at a time as fit into all."""
        self.workers = max(1, min(len(each), threads // max(each, default=1)))
        self._pool = ThreadPoolExecutor(self.workers, thread_name_prefix="run") if self.workers > 1 else None
        self._begun: dict[object, list[Future]] = {}

    def start(self, run, compute: Callable[[], object]) -> None:
        """Has a run compute something after what it was given before; waits while that is more than `AHEAD` things."""
        if self._pool is None:
            use(run.threads)
            compute()
            return
        begun = self._begun.setdefault(run, [])
        while len(begun) >= AHEAD:
            begun.pop(0).result()
        before = begun[-1] if begun else None

        def in_order() -> None:
            if before is not None:
                before.result()
            use(run.threads)
            compute()

        begun.append(self._pool.submit(in_order))

    def wait(self) -> None:
        """Waits until everything is computed. Raises what a computation has raised."""
        for begun in self._begun.values():
            while begun:
                begun.pop(0).result()

    def close(self) -> None:
        """Leaves what has not begun; waits for what has."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

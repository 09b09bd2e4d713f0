"""What this machine has for several commands at a time, and what each of them gets of it."""

import math
import os
from collections.abc import Sequence
from pathlib import Path

import torch

from cifar_lab.training.threads import CGROUPS, OWN_CGROUPS, allowed_cores, cgroup_folders

GIB = 1 << 30
# Of a command, in bytes: PyTorch and the data, and at width 1 what four networks in lockstep add; measured.
PROGRAM, AT_WIDTH_1 = 1.0 * GIB, 1.5 * GIB


def gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    numbers = range(torch.cuda.device_count())
    return named.split(",")[: len(numbers)] if named else list(map(str, numbers))


def available_memory(meminfo: Path = Path("/proc/meminfo"), cgroups: Path = CGROUPS, own: Path = OWN_CGROUPS) -> float:
    """Bytes that processes may still take: of the machine's memory and by the limits of its cgroups; infinite if
    nothing says."""
    available = math.inf
    for line in _lines(meminfo):
        if line.startswith("MemAvailable:"):
            available = 1024 * int(line.split()[1])
    for folder in cgroup_folders("memory", cgroups, own):
        for limit, used in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
            try:
                left = int("".join(_lines(folder / limit))) - int("".join(_lines(folder / used)))
            except ValueError:  # no such files, or "max"
                continue
            # Pages of files count as used, and are given up when memory is short.
            stat = dict(line.split() for line in _lines(folder / "memory.stat"))
            available = min(available, left + int(stat.get("inactive_file", 0)))
    return available


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="ascii").splitlines()
    except OSError:
        return []


def jobs_by_default(width: float, per_gpu: int = 1) -> int:
    """How many commands at a time train the most images per second, of networks of a width.

    On GPUs one on each, or as many as asked for. On a CPU one per core, of a thread each, which was measured to be
    fastest at every width (README.md); fewer if memory is short.
    """
    if found := gpus():
        return len(found) * per_gpu
    if torch.backends.mps.is_available():
        return 1
    return max(1, min(allowed_cores(), int(min(available_memory() / (PROGRAM + width * AT_WIDTH_1), 1e6))))


def threads_of(runs: int, free: int, least: int, others: Sequence[int]) -> int:
    """Threads of a command of so many runs that starts when so many cores are free.

    least: threads of every command. others: the runs of those that start at the same time. A group gets more, a thread
    for each run at most, where cores would be idle: that changes no bit of what its runs compute.
    """
    fair = free * runs // (runs + sum(others))
    return max(least, min(runs, fair, free - least * len(others)))

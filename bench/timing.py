"""What the benchmarks measure with: steady-state steps, peak memory, medians with their spread."""

import contextlib
import ctypes
import gc
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class Timing:
    """Training steps that were timed together."""

    steps: int
    images: int  # trained on, counted once for each network
    seconds: float


def walk(
    steps: Iterator[int], synchronize: Callable[[], None], *, least: int, seconds: float, together: int = 1
) -> Timing:
    """Takes steps for at least a number of steps and at least a time, and times them.

    steps: each `next` takes one step and gives the number of images it trained on. together: steps between two looks
    at the clock, for which the host waits for the device.
    """
    synchronize()
    taken = images = 0
    start = time.perf_counter()
    while taken < least or time.perf_counter() - start < seconds:
        for _ in range(together):
            images += next(steps)
        taken += together
        synchronize()
    return Timing(taken, images, time.perf_counter() - start)


def resident_bytes(field: str = "VmRSS", process: int | str = "self") -> int:
    """A field of /proc/<process>/status: VmRSS, its resident set now, or VmHWM, its peak. Linux only."""
    status = Path(f"/proc/{process}/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith(f"{field}:"))


def start_peak(device: torch.device) -> None:
    """Peak memory counts from here on. Memory that nothing uses any more is given back first."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    elif sys.platform == "linux":
        with contextlib.suppress(AttributeError):  # of glibc; other C libraries keep what they have
            ctypes.CDLL(None).malloc_trim(0)
        with contextlib.suppress(OSError):  # if this is forbidden, the peak is that of the whole process so far
            Path("/proc/self/clear_refs").write_text("5")  # proc(5): sets VmHWM back to VmRSS


def peak_bytes(device: torch.device) -> int | None:
    """Peak memory since `start_peak`: tensors on a CUDA device; elsewhere the resident set of this process, with
    interpreter, PyTorch and data set in it, and without the worker processes of a data loader. None if not on Linux."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    return resident_bytes("VmHWM") if sys.platform == "linux" else None


def spread(values: Sequence[float]) -> dict | None:
    """Median, least and largest of some values and their number; None if there are none."""
    values = [v for v in values if v is not None]
    if not values:
        return None
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "n": len(values)}

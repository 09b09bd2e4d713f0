"""What the benchmarks' programs share: command line, data and device, and parts that are processes of their own."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from argparse import Namespace
from collections import deque
from collections.abc import Callable
from contextlib import suppress

import numpy as np

from bench.output import RESULTS
from cifar_lab.data.cache import DataError, DataSet, load
from cifar_lab.program import fail
from cifar_lab.settings import DEVICES, PRECISIONS, Parser, Settings, choice, device_name, folder, path
from cifar_lab.training.device import Device, DeviceError, choose

KEPT_LINES = 60  # of a part's output
GRACE = 30.0  # seconds in which a program that takes too long may end by itself

# --- Command line, data and device -----------------------------------------------------------------------------------


def parser(module: str, description: str) -> Parser:
    """A parser with the flags that all of the programs have."""
    p = Parser(f"python -m {module}", description)
    p.set_defaults(prog=p.prog)
    add = p.add_argument
    add("--device", type=device_name, default="auto", help=", ".join(DEVICES))
    add("--precision", type=choice(*PRECISIONS), default="auto", help=", ".join(PRECISIONS))
    add("--data-dir", type=path, help="folder of CIFAR-10 (default: $CIFAR10_DIR, else data/)")
    add("--made-up-data", action="store_true", help="random images of the same number and size instead")
    add("--output", type=folder, default=RESULTS, help="folder of the result files (bench/results)")
    return p


def where(args: Namespace) -> list[str]:
    """Device and precision, as flags of another program or of a training script."""
    return ["--device", args.device, "--precision", args.precision]


def shared_flags(args: Namespace) -> list[str]:
    """The flags that all of the programs have, as they were given, for another program."""
    data_dir = ["--data-dir", args.data_dir] if args.data_dir else []
    made_up = ["--made-up-data"] if args.made_up_data else []
    return [*where(args), "--output", str(args.output), *data_dir, *made_up]


def data_and_device(
    args: Namespace, settings: Settings | None = None, *, required: bool = True
) -> tuple[DataSet, Device]:
    """The data and the device that the flags ask for; what is not to be had ends the program with one line, status 2.

    settings: of a training script, if it decides more than the kind of device. required: otherwise nothing is
    downloaded, and random images stand in for data that are not here, as `made_up_data` then says.
    """
    try:
        device = choose(settings or Settings(device=args.device, precision=args.precision))
        args.precision = device.precision  # measured once, for all processes of a program
        if not args.made_up_data:
            return load(args.data_dir, download=required), device
    except DeviceError as error:
        fail(f"{args.prog}: {error}")
    except DataError as error:
        if required:
            fail(f"{args.prog}: {error}")
        print(f"{args.prog}: random images stand in for CIFAR-10, a step costs the same: {error}", flush=True)
        args.made_up_data = True
    return random_images(), device


def random_images(train: int = 50_000, test: int = 10_000) -> DataSet:
    """Random images as many and as large as CIFAR-10's: what a step costs does not depend on the pixels."""
    rng = np.random.default_rng(0)

    def split(n: int) -> tuple[np.ndarray, np.ndarray]:
        return rng.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8), rng.integers(0, 10, n, dtype=np.uint8)

    return DataSet(*split(train), *split(test), sha256={}, name="random images")


# --- Processes -------------------------------------------------------------------------------------------------------


def run(words: list[str], limit: float, each: Callable[[str], None] = lambda line: None) -> dict:
    """Runs `python <words>` and calls `each` with every line of its output and errors.

    After `limit` seconds it is ended, with the processes that it has started. Returns its exit status, its time in
    seconds, whether that was so, and its last lines.
    """
    start = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
        start_new_session=True, env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )  # fmt: skip

    def kill() -> None:
        process.terminate()  # it ends what it has started in sessions of their own, which no signal of ours reaches
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)
        if os.name == "posix":
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()

    killer = threading.Timer(limit, kill)
    killer.start()
    last_lines: deque[str] = deque(maxlen=KEPT_LINES)
    try:
        for line in process.stdout:
            each(line)
            last_lines.append(line.rstrip())
        status = process.wait()
    finally:
        killer.cancel()
        if process.poll() is None:
            kill()
    seconds = time.monotonic() - start
    return {"status": status, "seconds": seconds, "killed": seconds >= limit, "last_lines": list(last_lines)}


def run_worker(module: str, argv: list[str], limit: float, each: Callable[[dict], None]) -> str:
    """Runs a program of this folder as a worker, and calls `each` with every JSON object that it writes, one per line.

    argv: its flags, of which a later one replaces an earlier one. Returns why it failed; empty if it did not.
    """

    def read(line: str) -> None:
        if line.startswith("{") and line.endswith("}\n"):
            each(json.loads(line))

    ended = run(["-m", module, *argv], limit, read)
    if ended["killed"]:
        return f"not done after {limit:.0f} s"
    said = [line for line in ended["last_lines"] if not line.startswith("{")]
    return f"exit status {ended['status']}: {' / '.join(said[-6:])}" if ended["status"] else ""

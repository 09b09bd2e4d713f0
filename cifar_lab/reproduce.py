"""Runs a preset's list of commands, one after the other, then draws its figures.

    python -m cifar_lab.reproduce quick --seed 0 1 2
    python -m cifar_lab.reproduce report --seconds 1500     # stops cleanly in time; the same command goes on
    python -m cifar_lab.reproduce report --list

A run that is complete is left out, one that was interrupted continues: the list can be stopped and started again at
will, also on another machine to which the results folder was moved.
"""

import argparse
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

from cifar_lab.config import PAPER_PRESETS, PRESETS
from cifar_lab.experiments import experiments, folder_of

ROOT = Path(__file__).resolve().parent.parent
# The surfaces that are drawn side by side at the end of a preset: runs, points a side, images.
SURFACE_RUNS = ("vgg_a_lr0.001", "vgg_a_bn_lr0.001")
SURFACES = {"quick": ("11", "512"), "laptop": ("25", "512"), "report": ("25", "2000")}


def commands(preset: str, seeds: tuple[int, ...], results: str) -> list[str]:
    """Everything that the preset's report needs, as a user would type it."""
    where = "" if results == "results" else f" --results {shlex.quote(results)}"
    training = [e.command(preset, seeds) + where for e in experiments(preset)]
    if preset not in SURFACES:
        return training
    points, images = SURFACES[preset]
    folders = " ".join(shlex.quote(str(folder_of(run, results, preset, seeds[0]))) for run in SURFACE_RUNS)
    return [*training, f"python landscape.py surface {folders} --points {points} --images {images}"]


def run(command: str, deadline: float) -> int:
    """Runs one command to its end, or stops it cleanly at the deadline. Returns its exit status."""
    words = shlex.split(command)
    process = subprocess.Popen([sys.executable, str(ROOT / words[1]), *words[2:]])
    # Ctrl-C reaches the command itself; SIGTERM and the deadline are passed on. It saves what it has trained.
    before = signal.signal(signal.SIGINT, signal.SIG_IGN), signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    try:
        while True:
            try:
                return process.wait(timeout=None if deadline == float("inf") else max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.terminate()
                deadline = float("inf")
    finally:
        signal.signal(signal.SIGINT, before[0])
        signal.signal(signal.SIGTERM, before[1])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("preset", choices=[*PRESETS, *PAPER_PRESETS])
    parser.add_argument("--seed", type=int, nargs="+", default=[0], help="seeds of every run (0)")
    parser.add_argument("--results", default="results", help="folder that run folders are written to (results)")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop cleanly after this long (never)")
    parser.add_argument("--list", action="store_true", help="print the commands instead of running them")
    args = parser.parse_args()
    deadline = time.monotonic() + args.seconds
    listed = commands(args.preset, tuple(args.seed), args.results)
    if args.list:
        print(*listed, sep="\n")
        return 0
    start = time.monotonic()
    for number, command in enumerate(listed, start=1):
        if time.monotonic() >= deadline:
            break
        print(f"[{number}/{len(listed)}] {command}", flush=True)
        if status := run(command, deadline):
            if time.monotonic() < deadline or status != 128 + signal.SIGTERM:
                return status
            break
    else:
        print(f"all {len(listed)} commands done in {(time.monotonic() - start) / 60:.1f} min", flush=True)
    return run(f"python plot_results.py {shlex.quote(args.results)}", float("inf"))


if __name__ == "__main__":
    sys.exit(main())

"""Runs a preset's list of commands, one after the other, then draws its figures.

    python -m cifar_lab.reproduce quick --seed 0 1 2
    python -m cifar_lab.reproduce report --seconds 1500     # stops cleanly in time; the same command goes on
    python -m cifar_lab.reproduce report --list

A run that is complete is left out, one that was interrupted continues: the list can be stopped and started again at
will, also on another machine to which the results folder was moved.
"""

import argparse
import runpy
import shlex
import signal
import sys
import threading
import time
from pathlib import Path

from cifar_lab.config import PAPER_PRESETS, PRESETS
from cifar_lab.experiments import experiments, folder_of

ROOT = Path(__file__).resolve().parent.parent
# The surfaces that are drawn side by side at the end of a preset: runs, points a side, images.
SURFACE_RUNS = ("vgg_a_lr0.001", "vgg_a_bn_lr0.001")
STOPPED = 128 + signal.SIGTERM
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


def run(command: str) -> int:
    """Runs one command as a shell would, but in this process, which has loaded PyTorch. Returns its exit status."""
    _, script, *arguments = shlex.split(command)
    before, sys.argv = sys.argv, [script, *arguments]
    try:
        runpy.run_path(str(ROOT / script), run_name="__main__")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    finally:
        sys.argv = before
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("preset", choices=[*PRESETS, *PAPER_PRESETS])
    parser.add_argument("--seed", type=int, nargs="+", default=[0], help="seeds of every run (0)")
    parser.add_argument("--results", default="results", help="folder that run folders are written to (results)")
    parser.add_argument("--seconds", type=float, help="stop cleanly after this long (never)")
    parser.add_argument("--list", action="store_true", help="print the commands instead of running them")
    args = parser.parse_args()
    listed = commands(args.preset, tuple(args.seed), args.results)
    if args.list:
        print(*listed, sep="\n")
        return 0
    sys.path.insert(0, str(ROOT))
    # A script in training takes SIGTERM as the wish to save and stop; between two of them it ends the list.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(STOPPED))
    alarm = threading.Timer(args.seconds or 0, signal.raise_signal, [signal.SIGTERM])
    alarm.daemon = True
    if args.seconds:
        alarm.start()
    start = time.monotonic()
    status = 0
    try:
        for number, command in enumerate(listed, start=1):
            print(f"[{number}/{len(listed)}] {command}", flush=True)
            if status := run(command):
                break
    except SystemExit:
        status = STOPPED
    alarm.cancel()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if status not in (0, STOPPED):
        return status
    minutes = (time.monotonic() - start) / 60
    print(f"{'all commands done' if status == 0 else 'stopped'} after {minutes:.1f} min", flush=True)
    return run(f"python plot_results.py {shlex.quote(args.results)}") or status * (args.seconds is None)


if __name__ == "__main__":
    sys.exit(main())

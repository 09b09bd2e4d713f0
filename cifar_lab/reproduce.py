"""Runs a preset's list of commands, one after the other, then draws its figures.

    python -m cifar_lab.reproduce quick --seed 0 1 2
    python -m cifar_lab.reproduce report --seconds 1500     # stops cleanly in time; the same command continues
    python -m cifar_lab.reproduce report --list

A run that is complete is left out, one that was interrupted continues: the list can be stopped and started again at
will, also on another machine to which the results folder was moved. A command that fails ends the list, and what is
there by then is drawn all the same.
"""

import runpy
import shlex
import signal
import sys
import threading
import time
from pathlib import Path

from cifar_lab.experiments import experiments, folder_of
from cifar_lab.project import RESULTS, ROOT
from cifar_lab.run_folder.checkpoint import NEWEST
from cifar_lab.settings import ALL_PRESETS, LARGEST_SEED, Parser, choice, integer, path, real

# The surfaces that are drawn side by side at the end of a preset: runs, points per side, images.
SURFACE_RUNS = ("vgg_a_lr0.001", "vgg_a_bn_lr0.001")
INTERRUPTED, STOPPED = 128 + signal.SIGINT, 128 + signal.SIGTERM
SURFACES = {"quick": ("11", "512"), "laptop": ("25", "512"), "report": ("25", "2000")}


def commands(preset: str, seeds: tuple[int, ...], results: str) -> list[str]:
    """Everything that the preset's report needs, as a user would type it."""
    training = [e.command(preset, seeds, results) for e in experiments(preset)]
    if preset not in SURFACES:
        return training
    points, images = SURFACES[preset]
    folders = " ".join(shlex.quote(str(folder)) for folder in surface_folders(preset, seeds, results))
    return [*training, f"python landscape.py surface {folders} --points {points} --images {images}"]


def surface_folders(preset: str, seeds: tuple[int, ...], results: str) -> list[Path]:
    """The runs around which the preset's surfaces are computed."""
    return [folder_of(run, results, preset, seeds[0]) for run in SURFACE_RUNS]


def without_weights(preset: str, seeds: tuple[int, ...], results: str) -> list[Path]:
    """Those of them that are complete and have no checkpoint: logs that were copied from elsewhere."""
    return [
        folder
        for folder in surface_folders(preset, seeds, results)
        if (folder / "summary.json").exists() and not (folder / NEWEST).exists()
    ]


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


def main(argv: list[str]) -> int:
    parser = Parser("python -m cifar_lab.reproduce", __doc__)
    add = parser.add_argument
    add("preset", type=choice(*ALL_PRESETS), help=", ".join(ALL_PRESETS))
    add("--seed", type=integer(0, LARGEST_SEED), nargs="+", default=[0], help="seeds of every run (0)")
    add("--results", type=path, default=RESULTS, help="folder that run folders are written to (results)")
    add("--seconds", type=real(0, 1e9, above=True), help="stop cleanly after this long (never)")
    add("--list", action="store_true", help="print the commands instead of running them")
    args = parser.parse_args(argv)
    chosen = args.preset, tuple(args.seed), args.results
    listed = commands(*chosen)
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
            if " surface " in command and (missing := without_weights(*chosen)):
                print(f"left out: {missing[0]} is complete, but its checkpoint is not here", flush=True)
            elif status := run(command):
                break
    except SystemExit:
        status = STOPPED
    alarm.cancel()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if status == INTERRUPTED:
        return status
    minutes = (time.monotonic() - start) / 60
    how = {0: "all commands done", STOPPED: "stopped"}.get(status, f"ended with status {status}")
    print(f"{how} after {minutes:.1f} min", flush=True)
    plotted = run(f"python plot_results.py {shlex.quote(args.results)} --preset {args.preset}")
    in_time = status == STOPPED and args.seconds is not None  # as asked for
    return plotted if in_time else status or plotted


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Runs a preset's list of commands, one for each seed, then draws its figures.

    python -m cifar_lab.reproduce quick --seed 0 1 2         # as many commands at a time as are fastest, or --jobs N
    python -m cifar_lab.reproduce report --seconds 1500      # stops cleanly in time; the same command continues
    python -m cifar_lab.reproduce report --list
    python -m cifar_lab.reproduce quick --until-decided      # a seed at a time, only what open claims need
    python -m cifar_lab.reproduce quick --switches residual  # what else the effect of a claim may come from
    python -m cifar_lab.reproduce report --on slurm --slurm="--gres=gpu:1 --time=240"  # a job for each command and seed

A run that is complete is left out, one that was interrupted continues: the list can be stopped and started again at
will, also on another machine to which the results folder was moved. A command that fails ends the list, and what is
there by then is drawn all the same.
"""

import importlib
import itertools
import signal
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from types import ModuleType

from cifar_lab.experiments import experiments_of
from cifar_lab.jobs import machine
from cifar_lab.jobs.here import in_this_process
from cifar_lab.jobs.task import Task, complete, startable, task_of, tasks, without_weights
from cifar_lab.measures.statistics import FEWEST_SEEDS, MOST_SEEDS
from cifar_lab.program import BAD_INPUT, STOP_SIGNALS, fail, handling
from cifar_lab.program import run as run_program
from cifar_lab.project import RESULTS, ROOT, command
from cifar_lab.report.claims import CLAIMS, Claim
from cifar_lab.report.screening import Design, On
from cifar_lab.report.verdicts import Verdict, open_claims
from cifar_lab.run_folder.reader import own_runs
from cifar_lab.settings import ALL_PRESETS, LARGEST_SEED, PRESETS, Parser, choice, integer, path, real

INTERRUPTED, STOPPED, *LATER = (128 + number for number in STOP_SIGNALS)  # exit statuses of a stopped script
# What --seconds sends. It never counts as the second signal, at which a program stops without saving.
ALARM = getattr(signal, "SIGUSR1", signal.SIGTERM)
# By what --on has: the module whose `run(tasks, options)` runs tasks there and returns an exit status; imported only
# where it is used, as it may need packages that are not installed.
PLACES = {"here": "cifar_lab.jobs.here", "ray": "cifar_lab.jobs.on_ray", "slurm": "cifar_lab.jobs.on_slurm"}
Stage = tuple[str, list[Task]]  # what is said before, and tasks


def left(tasks: Iterable[Task]) -> list[Task]:
    """Those that are not complete, and for which everything is there."""
    todo = [task for task in tasks if not complete(task)]
    for task in todo:
        if missing := without_weights(task):
            print(f"left out: {missing} is complete, but its checkpoint is not here", flush=True)
    return [task for task in todo if not without_weights(task)]


def run_all(stages: Iterable[Stage], run: Callable[[Sequence[Task], int], int]) -> int:
    """Runs the tasks of each stage; returns the first exit status that is not 0, else 0.

    run: is given those that are left, and the number of all that the stage has.
    """
    for said, listed in stages:
        if said:
            print(said, flush=True)
        if (todo := left(listed)) and (status := run(todo, len(listed))):
            return status
    return 0


def until_decided(preset: str, seeds: Sequence[int], results: str) -> Iterator[Stage]:
    """A seed at a time, of which the commands that open claims need, without those of surfaces.

    Ends when no claim is open, or with the last seed. Seeds that are trained are passed over.
    """
    for seed in seeds:
        left = open_claims(results, preset)
        names = {name for verdict in left for name in verdict.claim.runs}
        listed = [task_of(e, preset, seed, results) for e in experiments_of(names, preset)]
        if listed := [task for task in listed if not complete(task)]:
            yield f"seed {seed}, for the open claims: {_outcomes(left)}", listed
    if left := open_claims(results, preset):
        yield f"{len(seeds)} seeds are trained; open claims: {_outcomes(left)}", []
    else:
        yield f"no claim is open: more seeds decide nothing more at the preset {preset}", []


def _outcomes(verdicts: Sequence[Verdict]) -> str:
    return "; ".join(f"{verdict.claim.id}: {verdict.outcome}" for verdict in verdicts)


def screening_design(claim: Claim, preset: str, seeds: Sequence[int], results: str) -> Iterator[Stage]:
    """The rows of a claim's design over the switches, then each switch alone that the design says flips the sign."""
    design = Design(claim, own_runs(results, preset), preset)
    names = ", ".join(switch.name for switch in design.switches)
    if listed := _tasks(design, design.rows, seeds, results):
        yield f"{claim.id}: a 12-run design over {len(design.switches)} switches ({names})", listed
    design = Design(claim, own_runs(results, preset), preset)
    screening = design.screen()
    if screening is None:
        yield f"{claim.id}: no effects, as in no seed every row has a finite value", []
        return
    flips = [effect.switch for effect in screening.effects if effect.flips]
    if listed := _tasks(design, [(switch,) for switch in flips], screening.seeds, results):
        yield f"{claim.id}: what flips the sign, alone: {', '.join(switch.name for switch in flips)}", listed
    yield f"{claim.id}: the design is complete", []


def _tasks(design: Design, rows: Collection[On], seeds: Sequence[int], results: str) -> list[Task]:
    """Those that train what rows of a design lack; a command that several rows share is one."""
    lacking = design.lacking(rows, seeds)
    return list(dict.fromkeys(task_of(experiment, design.preset, seed, results) for experiment, seed in lacking))


def _place(on: str) -> ModuleType:
    """The module that runs tasks there. Ends the program if a package that it needs is not installed."""
    try:
        return importlib.import_module(PLACES[on])
    except ModuleNotFoundError as error:
        if error.name != on:
            raise
        fail(f"--on {on} needs the package {on}: python -m pip install -r requirements-{on}.txt")


def main(argv: list[str]) -> int:
    parser = Parser("python -m cifar_lab.reproduce", __doc__)
    add = parser.add_argument
    ids = [claim.id for claim in CLAIMS]
    add("preset", type=choice(*ALL_PRESETS), help=", ".join(ALL_PRESETS))
    add("--seed", type=integer(0, LARGEST_SEED), nargs="+", default=[0], help="seeds of every run (0)")
    add(
        "--until-decided", action="store_true", help="train only what claims need, a seed at a time, until none is open"
    )
    add("--max-seeds", type=integer(FEWEST_SEEDS, MOST_SEEDS), help=f"of --until-decided, at most ({MOST_SEEDS})")
    add("--switches", type=choice(*ids), metavar="CLAIM", help=f"train a screening design of a claim: {', '.join(ids)}")
    add("--results", type=path, default=RESULTS, help="folder that run folders are written to (results)")
    add("--on", type=choice(*PLACES), default="here", help=f"where it runs: {', '.join(PLACES)} (here)")
    add("--jobs", type=integer(1, 1024), help="commands at a time (here: what is fastest; slurm: what it lets run)")
    add("--per-gpu", type=integer(1, 64), metavar="N", help="commands at a time on each GPU of this machine (1)")
    add("--address", help="of --on ray: the cluster's (RAY_ADDRESS, else one of this machine is started)")
    add("--cpus", type=integer(1, 1024), help="of --on ray: cores of a command (1)")
    add("--gpus", type=real(0, 16), help="of --on ray: GPUs of a command, 0.5 for two on one (1, if there are any)")
    add("--slurm", default="", metavar="OPTIONS", help='options of sbatch: --slurm="--time=240 --gres=gpu:1"')
    add("--dry-run", action="store_true", help="of --on slurm: print the scripts instead of submitting them")
    add("--seconds", type=real(0, 1e9, above=True), help="stop cleanly after this long (never)")
    add("--list", action="store_true", help="print the commands that could be run now instead of running them")
    args = parser.parse_args(argv)
    if (args.until_decided or args.switches) and args.preset not in PRESETS:
        parser.error(f"{args.preset} has no claims")
    if args.until_decided and args.switches:
        parser.error("--switches: not with --until-decided")
    if args.max_seeds and not args.until_decided:
        parser.error("--max-seeds: only with --until-decided")
    if len(set(args.seed)) < len(args.seed):
        parser.error("--seed: a value is given twice")
    most = args.max_seeds or MOST_SEEDS
    if args.until_decided and len(args.seed) > most:
        parser.error(f"--seed: {len(args.seed)} seeds, which is more than --max-seeds {most}")
    if args.on == "slurm" and (args.until_decided or args.switches or args.seconds):
        parser.error("--until-decided, --switches, --seconds: not with --on slurm, which waits for nothing")
    if args.on != "slurm" and (args.slurm or args.dry_run):
        parser.error("--slurm, --dry-run: only with --on slurm")
    if args.on != "ray" and (args.address or args.cpus or args.gpus is not None):
        parser.error("--address, --cpus, --gpus: only with --on ray")
    if args.gpus and args.gpus > 1 and args.gpus % 1:
        parser.error(f"--gpus {args.gpus:g}: above 1 only whole numbers")
    if not str(args.results).isprintable():
        parser.error(f"--results {args.results!r}: commands with it cannot be typed")
    if args.on == "ray" and args.jobs:
        parser.error("--jobs: not with --on ray, which runs as many as there is room for")
    if args.on != "here" and args.per_gpu:
        parser.error(f"--per-gpu: not with --on {args.on}")
    if args.per_gpu and not machine.gpus():
        parser.error("--per-gpu: this machine has no GPU that PyTorch can use")
    if not args.slurm.isprintable():
        parser.error("--slurm: not one line")
    chosen = args.preset, tuple(args.seed), args.results
    stages: Iterator[Stage] = iter([("", tasks(*chosen))])
    if args.until_decided:
        further = (seed for seed in itertools.count() if seed not in args.seed)
        seeds = [*args.seed, *itertools.islice(further, most - len(args.seed))]
        stages = until_decided(args.preset, seeds, args.results)
    elif args.switches:
        stages = screening_design(CLAIMS[ids.index(args.switches)], *chosen)
    if args.list:
        said, listed = next(stages)
        todo = [task for task in listed if not complete(task) and not without_weights(task)]
        listed = [task.command for task in startable(todo)]
        print(*(listed or [said or "everything is trained"]), sep="\n")
        return 0
    place = _place(args.on)
    if args.on == "slurm":
        return place.run(left(next(stages)[1]), args)
    sys.path.insert(0, str(ROOT))
    rung = threading.Event()

    def ring() -> None:
        rung.set()
        signal.raise_signal(ALARM)

    alarm = threading.Timer(args.seconds or 0, ring)
    alarm.daemon = True
    if args.seconds:
        alarm.start()
    start = time.monotonic()

    def run(todo: Sequence[Task], listed: int) -> int:
        args.listed = listed
        return place.run(todo, args)

    # A script in training takes them as the wish to save and stop; between two of them they end the list.
    with handling(lambda number, _: sys.exit(128 + number), STOP_SIGNALS[1:]):
        try:
            status = run_all(stages, run)
        except SystemExit as end:
            if end.code == BAD_INPUT:  # said already, and nothing has run
                raise
            status = end.code
    alarm.cancel()
    in_time = rung.is_set() and status == 128 + ALARM  # as asked for
    if status == INTERRUPTED:
        return status
    minutes = (time.monotonic() - start) / 60
    how = f"ended with status {status}" if status else "all commands done"
    how = "stopped" if status in (STOPPED, *LATER) else how
    print(f"{how} after {minutes:.1f} min", flush=True)
    plotted = in_this_process(command("plot_results.py", Path(args.results), "--preset", args.preset))
    return plotted if in_time else status or plotted


if __name__ == "__main__":
    run_program(main, sys.argv[1:])

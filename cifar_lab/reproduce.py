"""Runs a preset's list of commands, one after the other, then draws its figures.

    python -m cifar_lab.reproduce quick --seed 0 1 2
    python -m cifar_lab.reproduce report --seconds 1500      # stops cleanly in time; the same command continues
    python -m cifar_lab.reproduce report --list
    python -m cifar_lab.reproduce quick --until-decided      # a seed at a time, only what open claims need
    python -m cifar_lab.reproduce quick --switches residual  # what else the effect of a claim may come from

A run that is complete is left out, one that was interrupted continues: the list can be stopped and started again at
will, also on another machine to which the results folder was moved. A command that fails ends the list, and what is
there by then is drawn all the same.
"""

import itertools
import runpy
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from cifar_lab.experiments import experiments, experiments_of, folder_of
from cifar_lab.measures.statistics import FEWEST_SEEDS, MOST_SEEDS
from cifar_lab.program import STOP_SIGNALS, handling
from cifar_lab.program import run as run_program
from cifar_lab.project import RESULTS, ROOT, command
from cifar_lab.report.claims import CLAIMS, Claim
from cifar_lab.report.screening import Design
from cifar_lab.report.verdicts import Verdict, open_claims
from cifar_lab.run_folder.checkpoint import NEWEST
from cifar_lab.run_folder.reader import own_runs
from cifar_lab.run_folder.schema import RunFileError, read_summary, trained_to
from cifar_lab.settings import ALL_PRESETS, LARGEST_SEED, PAPER_PRESETS, Parser, choice, integer, path, real

# The surfaces that are drawn side by side at the end of a preset: runs, points per side, images.
SURFACE_RUNS = ("vgg_a_lr0.001", "vgg_a_bn_lr0.001")
INTERRUPTED, STOPPED, *LATER = (128 + number for number in STOP_SIGNALS)  # exit statuses of a stopped script
SURFACES = {"quick": ("11", "512"), "laptop": ("25", "512"), "report": ("25", "2000")}
Stage = tuple[str, list[str]]  # what is said before, and commands


def commands(preset: str, seeds: tuple[int, ...], results: str) -> list[str]:
    """Everything that the preset's report needs, as a user would type it."""
    training = [e.command(preset, seeds, results) for e in experiments(preset)]
    if preset not in SURFACES:
        return training
    points, images = SURFACES[preset]
    folders = surface_folders(preset, seeds, results)
    return [*training, command("landscape.py", "surface", *folders, "--points", points, "--images", images)]


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


def run_all(stages: Iterable[Stage], without: Callable[[], list[Path]]) -> int:
    """Runs the commands of each stage; returns the exit status of the first that fails, else 0.

    without: the runs that have no weights for a surface.
    """
    for said, listed in stages:
        if said:
            print(said, flush=True)
        for number, line in enumerate(listed, start=1):
            print(f"[{number}/{len(listed)}] {line}", flush=True)
            if " surface " in line and (missing := without()):
                print(f"left out: {missing[0]} is complete, but its checkpoint is not here", flush=True)
            elif status := run(line):
                return status
    return 0


def run(line: str) -> int:
    """Runs one command as a shell would, but in this process, which has loaded PyTorch. Returns its exit status."""
    _, script, *arguments = shlex.split(line)
    before, sys.argv = sys.argv, [script, *arguments]
    try:
        runpy.run_path(str(ROOT / script), run_name="__main__")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    finally:
        sys.argv = before
    return 0


def until_decided(preset: str, seeds: Sequence[int], results: str) -> Iterator[Stage]:
    """A seed at a time, of which the commands that open claims need, without those of surfaces.

    Ends when no claim is open, or with the last seed. Seeds that are trained are passed over.
    """
    for seed in seeds:
        left = open_claims(results, preset)
        names = {name for verdict in left for name in verdict.claim.runs}
        listed = [
            e.command(preset, (seed,), results)
            for e in experiments_of(names, preset)
            if not all(_trained(folder_of(name, results, preset, seed), e.epochs_at(preset)) for name in e.names)
        ]
        if listed:
            yield f"seed {seed}, for the open claims: {_outcomes(left)}", listed
    if left := open_claims(results, preset):
        yield f"{len(seeds)} seeds are trained; open claims: {_outcomes(left)}", []
    else:
        yield f"no claim is open: more seeds decide nothing more at the preset {preset}", []


def _outcomes(verdicts: Sequence[Verdict]) -> str:
    return "; ".join(f"{verdict.claim.id}: {verdict.outcome}" for verdict in verdicts)


def _trained(folder: Path, epochs: int) -> bool:
    """Whether nothing is left to train in a run folder; of one that cannot be read, the script will say why."""
    try:
        return trained_to(read_summary(folder / "summary.json"), epochs)
    except RunFileError:
        return False


def screening_design(claim: Claim, preset: str, seeds: Sequence[int], results: str) -> Iterator[Stage]:
    """The rows of a claim's design over the switches, then each switch alone that the design says flips the sign."""
    design = Design(claim, own_runs(results, preset), preset)
    names = ", ".join(switch.name for switch in design.switches)
    if listed := design.commands(design.rows, seeds, results):
        yield f"{claim.id}: a 12-run design over {len(design.switches)} switches ({names})", listed
    design = Design(claim, own_runs(results, preset), preset)
    screening = design.screen()
    if screening is None:
        yield f"{claim.id}: no effects, as in no seed every row has a finite value", []
        return
    flips = [effect.switch for effect in screening.effects if effect.flips]
    if listed := design.commands([(switch,) for switch in flips], screening.seeds, results):
        yield f"{claim.id}: what flips the sign, alone: {', '.join(switch.name for switch in flips)}", listed
    yield f"{claim.id}: the design is complete", []


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
    add("--seconds", type=real(0, 1e9, above=True), help="stop cleanly after this long (never)")
    add("--list", action="store_true", help="print the commands that would be run next instead of running them")
    args = parser.parse_args(argv)
    if (args.until_decided or args.switches) and args.preset in PAPER_PRESETS:
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
    chosen = args.preset, tuple(args.seed), args.results
    stages: Iterator[Stage] = iter([("", commands(*chosen))])
    if args.until_decided:
        further = (seed for seed in itertools.count() if seed not in args.seed)
        seeds = [*args.seed, *itertools.islice(further, most - len(args.seed))]
        stages = until_decided(args.preset, seeds, args.results)
    elif args.switches:
        stages = screening_design(CLAIMS[ids.index(args.switches)], *chosen)
    if args.list:
        said, listed = next(stages)
        print(*(listed or [said]), sep="\n")
        return 0
    sys.path.insert(0, str(ROOT))
    alarm = threading.Timer(args.seconds or 0, signal.raise_signal, [signal.SIGTERM])
    alarm.daemon = True
    if args.seconds:
        alarm.start()
    start = time.monotonic()
    # A script in training takes them as the wish to save and stop; between two of them they end the list.
    with handling(lambda number, _: sys.exit(128 + number), STOP_SIGNALS[1:]):
        try:
            status = run_all(stages, lambda: without_weights(*chosen))
        except SystemExit as end:
            status = end.code
    alarm.cancel()
    if status == INTERRUPTED:
        return status
    minutes = (time.monotonic() - start) / 60
    how = f"ended with status {status}" if status else "all commands done"
    how = "stopped" if status in (STOPPED, *LATER) else how
    print(f"{how} after {minutes:.1f} min", flush=True)
    plotted = run(command("plot_results.py", Path(args.results), "--preset", args.preset))
    in_time = status == STOPPED and args.seconds is not None  # as asked for
    return plotted if in_time else status or plotted


if __name__ == "__main__":
    run_program(main, sys.argv[1:])

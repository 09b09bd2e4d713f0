"""How many commands at a time train the most images per second on this machine's cores.

    python -m bench.at_a_time                                     # every width, one network and four in lockstep
    python -m bench.at_a_time --widths 0.125 --modes alone --jobs 4 8 16

Measured in turn, in each round: one command with one thread, with nothing beside it; one with all cores as its threads;
and several at a time that share the cores, as `python -m cifar_lab.reproduce --jobs` has them. Results are written to
bench/results/<device>-at-a-time.md and .json after every measurement.
"""

import signal
import sys
from itertools import product

from bench import ours, output, program, timing
from bench.commands import IMAGES, MODES, Command, beside_one_another
from cifar_lab import escape
from cifar_lab.networks import ROOT
from cifar_lab.program import run
from cifar_lab.settings import choice, integer, real
from cifar_lab.training.threads import allowed_cores

ONE_CORE = (1, 1)  # commands at a time, and threads of each


def summary(records: list[dict], cores: int) -> list[dict]:
    """A row per width, mode and number of commands: the machine's images/s; to all cores as fast as one alone."""
    rows = []
    for key in dict.fromkeys((r["width"], r["mode"], r["jobs"], r["threads"]) for r in records):
        width, mode, *_ = key
        own = [r for r in records if (r["width"], r["mode"], r["jobs"], r["threads"]) == key]
        alone = {
            r["round"]: cores * sum(r["rates"]) for r in records
            if (r["width"], r["mode"], r["jobs"], r["threads"]) == (width, mode, *ONE_CORE)
        }  # fmt: skip
        rows.append({
            "width": width, "mode": mode, "jobs": key[2], "threads": key[3],
            "images_per_second": timing.spread([sum(r["rates"]) for r in own]),
            "to_the_cores_alone": timing.spread([sum(r["rates"]) / alone[r["round"]] for r in own]),
            "peak_bytes": max(r["peak_bytes"] for r in own),
        })  # fmt: skip
    return rows


def markdown(about: dict, rows: list[dict]) -> str:
    """The table, with what it was measured on."""
    columns = ("width", "runs", "commands at a time", "threads each", "images/s", "to the cores alone", "peak MiB each")
    table = [
        (
            f"{r['width']:g}", r["mode"], str(r["jobs"]), str(r["threads"]),
            output.shown(r["images_per_second"], ",.0f"), output.shown(r["to_the_cores_alone"], ".2f"),
            f"{r['peak_bytes'] / 2**20:.0f}",
        )
        for r in rows
    ]  # fmt: skip
    return (
        f"# Commands at a time\n\n{output.header(about)} Written by `{about['command']}`.\n\n{about['model']}. Images "
        f"per second of the whole machine, counted once for each network; median over rounds, with the least and the "
        f"largest. `to the cores alone`: to {about['cores']} times what one core trains with nothing beside it, in the "
        f"same round.\n\n{output.markdown_table(columns, table)}"
    )


def main(argv: list[str]) -> int:
    cores = allowed_cores()
    p = program.parser("bench.at_a_time", __doc__)
    p.add_argument("--model", type=choice(*ours.MODELS), default="vgg_a_bn", help=", ".join(ours.MODELS))
    p.add_argument("--widths", type=float, nargs="+", choices=tuple(IMAGES), default=[0.125, 0.25, 1.0])
    p.add_argument("--modes", type=choice(*MODES), nargs="+", default=list(MODES), help=", ".join(MODES))
    p.add_argument("--jobs", type=integer(1, 1024), nargs="+", default=[cores], help=f"commands at a time ({cores})")
    p.add_argument("--rounds", type=integer(1, 100), default=3)
    p.add_argument("--piece", type=real(0, 1000), default=5.0, help="seconds of each measurement (5)")
    args = p.parse_args(argv)
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # so that its commands end with it
    data, device = program.data_and_device(args)
    about = output.described(device, data.name) | {
        "command": escape.shell(["python", "-m", "bench.at_a_time", *argv]), "cores": cores, "model": args.model,
    }  # fmt: skip
    several = [(jobs, max(1, cores // jobs)) for jobs in args.jobs]
    records: list[dict] = []
    for number, width, mode, (jobs, threads) in product(
        range(args.rounds), args.widths, args.modes, dict.fromkeys([ONE_CORE, (1, cores), *several])
    ):
        chosen = MODES[mode]
        words = [*ours.command(args.model, chosen, "--width", width), "--precision", args.precision]
        env = {"OMP_NUM_THREADS": str(threads)}
        rates, _, peak = beside_one_another(
            jobs, lambda words=words, env=env, width=width: Command(ROOT, env, words, IMAGES[width], args.data_dir),
            chosen.stop - chosen.start, args.piece,
        )  # fmt: skip
        records.append({
            "round": number, "width": width, "mode": mode, "jobs": jobs, "threads": threads, "rates": rates,
            "peak_bytes": peak,
        })  # fmt: skip
        print(f"round {number + 1}  width {width:<6g} {mode:<6} {jobs} x {threads} threads  {sum(rates):,.0f} images/s",
              flush=True)  # fmt: skip
        rows = summary(records, cores)
        name = f"{output.slug(device)}-at-a-time"
        output.write(args.output, name, {"about": about, "table": rows, "measurements": records}, markdown(about, rows))
    print(args.output / f"{name}.md")
    return 0


if __name__ == "__main__":
    run(main, sys.argv[1:])

"""A preset's list of commands, one after the other and several at a time, as `make quick JOBS=1` and `make quick`.

    python -m bench.lists                                  # quick, three seeds: half an hour on two CPU cores
    python -m bench.lists quick --seeds 0 --jobs 1 2 4

Seed by seed, each list is run from an empty results folder to its figures with one command at a time, then with as many
as `cifar_lab.reproduce` takes by itself, or with the numbers of --jobs. Images are counted once for each network that
was trained on them, and seconds from the start of the program to its end: with PyTorch's imports, tests, surfaces and
figures. Results are written to bench/results/<device>-lists-<preset>.md and .json after each list.
"""

import sys
import tempfile

from bench import output, program, timing
from cifar_lab import escape
from cifar_lab.data.cache import load
from cifar_lab.program import fail, run
from cifar_lab.run_folder.reader import own_runs
from cifar_lab.settings import ALL_PRESETS, LARGEST_SEED, Parser, Settings, choice, folder, integer
from cifar_lab.training.device import choose
from cifar_lab.training.threads import allowed_cores

LIMIT = 86_400.0  # seconds for a list
BY_ITSELF = 0  # in the place of a number of commands: as many as the program takes


def measured(preset: str, seed: int, jobs: int) -> dict:
    """One list. Ends the program if a command of it fails."""
    with tempfile.TemporaryDirectory(prefix="cifar_lab-") as results:
        words = ["-m", "cifar_lab.reproduce", preset, "--seed", str(seed), "--results", results]
        ended = program.run([*words, *(["--jobs", str(jobs)] if jobs else [])], LIMIT)
        if ended["status"]:
            fail(f"bench.lists: {' '.join(words)}: {' / '.join(ended['last_lines'][-3:])}", 1)
        runs = own_runs(results, preset)
        images = sum(run.summary["epochs"] * run.settings["train_size"] for run in runs)
        accuracies = {str(run.place): run.summary["last_accuracy"] for run in runs}
    return {"seed": seed, "jobs": jobs, "seconds": ended["seconds"], "images": images, "accuracies": accuracies}


def markdown(about: dict, records: list[dict]) -> str:
    """The table, with what it was measured on."""
    rows = []
    for jobs in dict.fromkeys(record["jobs"] for record in records):
        own = [record for record in records if record["jobs"] == jobs]
        rates = [record["images"] / record["seconds"] for record in own]
        rows.append([
            str(jobs) if jobs else "by default", output.shown(timing.spread([r["seconds"] / 60 for r in own]), ".1f"),
            output.shown(timing.spread(rates), ",.0f"), str(len(own)),
        ])  # fmt: skip
    return (
        f"# A list of commands: {about['preset']}\n\n{output.header(about)} {about['cores']} cores. Written by "
        f"`{about['command']}`.\n\nMinutes from the start of the program to its end, and images per second of the "
        f"whole machine, counted once for each network; median over seeds, with the least and the largest.\n\n"
        + output.markdown_table(["commands at a time", "minutes", "images/s", "seeds"], rows)
    )


def main(argv: list[str]) -> int:
    p = Parser("python -m bench.lists", __doc__)
    p.add_argument("preset", nargs="?", type=choice(*ALL_PRESETS), default="quick", help=", ".join(ALL_PRESETS))
    p.add_argument("--seeds", type=integer(0, LARGEST_SEED), nargs="+", default=[0, 1, 2], help="(0 1 2)")
    p.add_argument("--jobs", type=integer(1, 1024), nargs="+", default=[1, BY_ITSELF], help="commands at a time")
    p.add_argument("--output", type=folder, default=output.RESULTS, help="folder of the result files (bench/results)")
    args = p.parse_args(argv)
    device = choose(Settings())
    about = output.described(device, load().name) | {
        "command": escape.shell(["python", "-m", "bench.lists", *argv]), "cores": allowed_cores(),
        "preset": args.preset,
    }  # fmt: skip
    name = f"{output.slug(device)}-lists-{args.preset}"
    records: list[dict] = []
    for seed in args.seeds:
        for jobs in args.jobs:
            records.append(measured(args.preset, seed, jobs))
            print(f"seed {seed}  jobs {jobs or 'by default'}  {records[-1]['seconds'] / 60:.1f} min", flush=True)
            output.write(args.output, name, {"about": about, "lists": records}, markdown(about, records))
    print(args.output / f"{name}.md")
    return 0


if __name__ == "__main__":
    run(main, sys.argv[1:])

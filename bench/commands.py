"""Whole commands of this checkout and of others in turn: how fast they train, alone and beside other programs.

    python -m bench.commands --against ../before                   # every network and width; 12 min on 2 cores
    python -m bench.commands --against ../before --models vgg_a --widths 0.25 --rounds 5
    python -m bench.commands --beside training busy --widths 0.125 0.25 1 --modes four
    python -m bench.commands --beside busy --env GOMP_SPINCOUNT=300000 --env OMP_WAIT_POLICY=PASSIVE

A command is stopped after some seconds of steady state, and its speed is read from its own epochs.csv, so that any
checkout that writes run folders can be compared. In each round all variants take turns. Results are written to
bench/results/<device>-commands.md and .json after every round.
"""

import csv
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

from bench import ours, output, program, timing
from cifar_lab import escape, openmp
from cifar_lab.networks import ROOT
from cifar_lab.program import run
from cifar_lab.run_folder.writer import commit_of
from cifar_lab.settings import choice, folder, integer, real
from cifar_lab.training.device import measure_matmul_rate
from cifar_lab.training.script import description_of

MODES = {"alone": ours.ALONE, "four": ours.FOUR}
BESIDE = ("nothing", "training", "busy")
BUSY = 2  # single-threaded processes
BUSILY = "import os; parent = os.getppid()\nwhile os.getppid() == parent: pass"
IMAGES = {0.125: 10_000, 0.25: 5_000, 0.5: 2_000, 1.0: 600}  # of an epoch, about a second
PATIENCE = 60.0  # seconds for an epoch; a command that needs more is as fast as if it ended one just then


class Command:
    """A training command in a process of its own, in a checkout, writing into a folder of its own."""

    def __init__(self, checkout: Path, env: dict[str, str], words: list[str], images: int, data: str | None) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._images = images
        more = [
            "--train-size", images, "--test-size", 2, "--epochs", 1_000_000, "--device", "cpu",
            "--checkpoint-seconds", 1e9, "--results", self._folder.name, *(["--data-dir", data] if data else []),
        ]  # fmt: skip
        self._process = subprocess.Popen(
            [sys.executable, *words, *map(str, more)], cwd=checkout, env=_plain_environment() | env,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )  # fmt: skip

    def seconds(self) -> list[float]:
        """Training time of each epoch so far, of the whole group."""
        logs = sorted(Path(self._folder.name).rglob("epochs.csv"))
        columns = []
        for log in logs:
            with open(log, encoding="utf-8", newline="") as file:
                columns.append([float(row["train_seconds"]) for row in csv.DictReader(file) if row["train_seconds"]])
        return [sum(each) for each in zip(*columns, strict=False)]

    def precision(self) -> str:
        """What it trains in: without a flag each command decides for itself."""
        config = next(Path(self._folder.name).rglob("config.json"))
        return json.loads(config.read_text(encoding="utf-8"))["environment"]["precision"]

    def reach(self, epochs: int) -> None:
        """Waits until some epochs are logged, but not too long. Raises RuntimeError if the command has ended."""
        end = time.monotonic() + PATIENCE
        while len(self.seconds()) < epochs and time.monotonic() < end:
            if self._process.poll() is not None:
                raise RuntimeError(f"the command has ended: {self._process.stderr.read().decode().strip()}")
            time.sleep(0.05)

    def rate(self, first: int, runs: int) -> float:
        """Images per second from an epoch on, counted once for each run."""
        epochs = self.seconds()[first:] or [PATIENCE]
        return runs * self._images * len(epochs) / sum(epochs)

    def stop(self) -> int:
        """Ends it; returns the most memory that it had, in bytes (Linux)."""
        peak = 0
        if self._process.poll() is None and sys.platform == "linux":
            peak = timing.resident_bytes("VmHWM", self._process.pid)
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        self._folder.cleanup()
        return peak


def _plain_environment() -> dict[str, str]:
    """This program's environment without what importing `cifar_lab` has put there."""
    return {name: value for name, value in os.environ.items() if name not in openmp.SPIN_VARIABLES}


def measure(args: Namespace, checkout: Path, env: dict[str, str], model: str, width: float, mode: str, beside: str):
    """Images/s of a command beside something, of each of two beside another; its precision, its peak in bytes."""
    chosen = MODES[mode]
    words = ours.command(model, chosen, "--width", width, "--batch-size", 100, *args.flags)
    runs, images = chosen.stop - chosen.start, IMAGES[width]
    others = [subprocess.Popen([sys.executable, "-c", BUSILY]) for _ in range(BUSY * (beside == "busy"))]
    at_a_time = 2 if beside == "training" else 1
    try:
        return beside_one_another(
            at_a_time, lambda: Command(checkout, env, words, images, args.data_dir), runs, args.piece
        )
    finally:
        for other in others:
            other.kill()
            other.wait()


def beside_one_another(
    at_a_time: int, start: Callable[[], Command], runs: int, piece: float
) -> tuple[list[float], str, int]:
    """Images/s of each of several commands at a time, over so many seconds; the first one's precision, peak in bytes.

    runs: of each command.
    """
    commands: list[Command] = []
    try:
        for _ in range(at_a_time):
            commands.append(start())
        for command in commands:
            command.reach(1)
        first = [len(command.seconds()) for command in commands]
        time.sleep(piece)
        for command, before in zip(commands, first, strict=True):
            command.reach(before + 1)
        rates = [command.rate(before, runs) for command, before in zip(commands, first, strict=True)]
        return rates, commands[0].precision(), commands[0].stop()
    finally:
        for command in commands:
            command.stop()


def flops(model: str, width: float) -> float:
    """FLOPs of a training image."""
    _, settings = ours.parse(ours.command(model, ours.ALONE, "--width", width))
    return description_of(settings).flops


def variants(args: Namespace) -> dict[str, tuple[Path, dict[str, str]]]:
    """What takes turns: this checkout, others, and this one with other environment variables; by name."""
    chosen = {"this": (ROOT, {})} | {path.name: (path.resolve(), {}) for path in args.against}
    return chosen | {text: (ROOT, dict([text.split("=", 1)])) for text in args.env}


def summary(records: list[dict]) -> list[dict]:
    """A row per model, width, mode, neighbour and variant: the median, and the median of the ratios within rounds."""
    keys = list(dict.fromkeys((r["model"], r["width"], r["mode"], r["beside"], r["variant"]) for r in records))
    find = {(r["model"], r["width"], r["mode"], r["beside"], r["variant"], r["round"]): r for r in records}
    rounds = sorted({r["round"] for r in records})
    rows = []
    for *what, variant in keys:
        model, width, mode, beside = what
        own = [find.get((*what, variant, i)) for i in rounds]
        first = [find.get((*what, records[0]["variant"], i)) for i in rounds]
        alone = [find.get((model, width, mode, "nothing", variant, i)) for i in rounds]

        def ratios(over: list, under: list) -> dict | None:
            pairs = zip(over, under, strict=True)
            return timing.spread([min(a["rates"]) / max(b["rates"]) for a, b in pairs if a and b])

        rows.append({
            "model": model, "width": width, "mode": mode, "beside": beside, "variant": variant,
            "precision": " ".join(sorted({r["precision"] for r in own if r})),
            "images_per_second": timing.spread([min(r["rates"]) for r in own if r]),
            "this_to_it": ratios(first, own), "to_alone": ratios(own, alone),
            "share_of_matmul_rate": timing.spread([
                sum(r["rates"]) * r["flops_per_training_image"] / r["matmul_flops_per_second"] for r in own if r
            ]),
            "peak_bytes": max((r["peak_bytes"] for r in own if r), default=None),
        })  # fmt: skip
    return rows


def markdown(about: dict, rows: list[dict]) -> str:
    """The table, with what it was measured on."""
    columns = (
        "network", "width", "runs", "beside", "variant", "precision", "images/s", "this / it",
        "to alone", "matmul %", "peak MiB",
    )  # fmt: skip
    table = [
        (
            r["model"], f"{r['width']:g}", r["mode"], r["beside"], r["variant"], r["precision"],
            output.shown(r["images_per_second"], ",.0f"), output.shown(r["this_to_it"], ".2f"),
            output.shown(r["to_alone"], ".2f"), output.shown(r["share_of_matmul_rate"], ".0f", 100),
            f"{r['peak_bytes'] / 2**20:.0f}",
        )
        for r in rows
    ]  # fmt: skip
    return (
        f"# Whole commands in turn\n\n{output.header(about)} Variants: {about['variants']}. Written by "
        f"`{about['command']}`.\n\nImages per second, counted once for each network of a group, and of the slower one "
        "if two commands train at a time; median over rounds, with the least and the largest. `to alone`: to the same "
        f"variant with nothing beside it. `matmul %`: FLOPs of convolutions and linear layers per second, of all "
        f"commands together, as a share of what large matrix products reach in {about['precision']}.\n\n"
        f"{output.markdown_table(columns, table)}"
    )


def _without_folder(word: str) -> str:
    """A word of the command; of a path only its last part, which says enough elsewhere."""
    return f"../{Path(word).name}" if Path(word).is_absolute() else word


def main(argv: list[str]) -> int:
    p = program.parser("bench.commands", __doc__)
    p.add_argument("--models", nargs="+", default=list(ours.MODELS), type=choice(*ours.MODELS))
    p.add_argument("--widths", nargs="+", default=[0.125, 0.25, 1.0], type=float, choices=tuple(IMAGES))
    p.add_argument("--modes", nargs="+", default=list(MODES), type=choice(*MODES))
    p.add_argument("--beside", nargs="+", default=["nothing"], type=choice(*BESIDE), help=", ".join(BESIDE))
    p.add_argument("--against", nargs="+", type=folder, default=[], help="other checkouts")
    p.add_argument("--env", action="append", default=[], metavar="NAME=VALUE", help="this checkout with it set")
    p.add_argument("--flags", nargs="+", default=[], help="more flags of the commands, without their dashes")
    p.add_argument("--rounds", type=integer(1, 100), default=3)
    p.add_argument("--piece", type=real(0, 1000), default=3.0, help="seconds of each measurement (3)")
    p.add_argument("--name", default="commands", help="of the result files")
    args = p.parse_args(argv)
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # so that its commands end with it
    args.flags = [word for flag in args.flags for word in f"--{flag}".split("=")]
    data, device = program.data_and_device(args)
    named = variants(args)
    commits = {name: commit_of(checkout) for name, (checkout, _) in named.items()}
    about = output.described(device, data.name) | {
        "command": escape.shell(["python", "-m", "bench.commands", *map(_without_folder, argv)]),
        "variants": ", ".join(f"{name} at {commit}" for name, commit in commits.items()),
    }
    records: list[dict] = []
    for number in range(args.rounds):
        rate = measure_matmul_rate(device)
        for model in args.models:
            for width in args.widths:
                for mode in args.modes:
                    for beside in args.beside:
                        for name, (checkout, env) in named.items():
                            rates, precision, peak = measure(args, checkout, env, model, width, mode, beside)
                            records.append({
                                "round": number, "model": model, "width": width, "mode": mode, "beside": beside,
                                "variant": name, "rates": rates, "precision": precision, "peak_bytes": peak,
                                "flops_per_training_image": flops(model, width), "matmul_flops_per_second": rate,
                            })  # fmt: skip
                            shown = ", ".join(f"{rate:,.0f}" for rate in rates)
                            case = f"{model:<14} width {width:<6g} {mode:<6} beside {beside:<9} {name:<28}"
                            print(f"round {number + 1}  {case} {shown} images/s", flush=True)
        rows = summary(records)
        slug = f"{output.slug(device)}-{args.name}"
        output.write(args.output, slug, {"about": about, "table": rows, "measurements": records}, markdown(about, rows))
    print(args.output / f"{slug}.md")
    return 0


if __name__ == "__main__":
    run(main, sys.argv[1:])

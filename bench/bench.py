"""The project's engine against the classic training loop: speed, where a step's time goes, memory.

    python -m bench.bench                                       # what `make bench` runs: everything, 13 min on 2 cores
    python -m bench.bench --models vgg_a --widths 0.25 --rounds 3
    python -m bench.bench --device cuda                         # about 3 min

In each round the classic loop, the engine with one network, the engine with each of the three other networks alone,
and the engine with all four in lockstep take turns, each built from scratch and timed after a warm-up. Results are
written to bench/results/<device>.md and .json after every round.
"""

import json
import os
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator

from bench import classic, ours, output, program, table, timing
from cifar_lab.data.cache import DataSet
from cifar_lab.program import run
from cifar_lab.settings import choice, integer, real
from cifar_lab.training.device import Device, measure_matmul_rate
from cifar_lab.training.threads import use

WIDTHS = (0.125, 0.25, 1.0)  # the narrow ones first: what they leave of the time goes to the wide one
BATCH = 100
GPU_WARM_UP = 50  # steps
WORKERS = min(8, os.cpu_count() or 1)  # of the classic loop's loader

# --- One process: some widths of one model ---------------------------------------------------------------------------


class Bench:
    """Measures one model. `piece` is the time in seconds that each measurement lasts, after its warm-up."""

    def __init__(self, args: Namespace, data: DataSet, device: Device) -> None:
        self.model = args.models[0]
        self.data, self.device = data, device
        self.images, self.piece = args.images, args.piece
        self.classic_batch_seconds: float | None = None

    def _parse(self, width: float, chosen: slice):
        return ours.parse(ours.command(
            self.model, chosen, "--width", width, "--device", self.device.torch.type,
            "--precision", self.device.precision, "--batch-size", BATCH, "--train-size", self.images, "--test-size", 2,
        ))  # fmt: skip

    def _loader(self):
        images, labels = self.data.train_images[: self.images], self.data.train_labels[: self.images]
        return classic.loader(images, labels, BATCH, WORKERS)

    def classic(self, width: float) -> dict:
        """The classic loop; on a CPU the faster of one thread, which narrow networks prefer, and all of them."""
        counts = [self.device.threads] if self.device.torch.type == "cuda" else sorted({1, self.device.threads})
        tried = [self._classic(width, threads, 1 / len(counts)) for threads in counts]
        return max(tried, key=lambda measured: measured["images_per_second"])

    def _classic(self, width: float, threads: int, share: float) -> dict:
        """The classic loop with the first of the four runs' settings. share: of the usual time of a measurement."""
        use(threads)
        # Steps until the workers, which start with two batches each, prepare one for each that is taken.
        warm_up = {"least": 2 * WORKERS + 1, "seconds": 0.15 * self.piece}
        if self.classic_batch_seconds is None:
            alone = self._endless(self._loader())
            timing.walk(alone, lambda: None, **warm_up)
            took = timing.walk(alone, lambda: None, least=2, seconds=min(1.5, self.piece))
            self.classic_batch_seconds = took.seconds / took.steps
            alone.close()
        _, settings = self._parse(width, ours.ALONE)
        classic.default_precision()
        timing.start_peak(self.device.torch)
        model, optimizer = classic.network(settings.runs(0)[0], self.device.torch)
        steps = classic.train(model, optimizer, self._loader(), self.device.torch)
        timing.walk(steps, self.device.synchronize, **warm_up)
        took = timing.walk(steps, self.device.synchronize, least=2, seconds=share * self.piece)
        peak = timing.peak_bytes(self.device.torch)
        steps.close()
        return self._measured("classic", took, peak, self.classic_batch_seconds) | {"threads": threads}

    @staticmethod
    def _endless(batches) -> Iterator[int]:
        while True:
            for _, labels in batches:
                yield len(labels)

    def ours(self, width: float, mode: str, chosen: slice, share: float = 1.0) -> dict:
        """The engine with some of the four runs. share: of the usual time of a measurement."""
        module, settings = self._parse(width, chosen)
        gpu = self.device.torch.type != "cpu"
        console = ours.Quiet()
        timing.start_peak(self.device.torch)
        with ours.lockstep(settings, self.data, console) as group:
            synchronize = group.synchronize
            steps = ours.train(group, module, warm_up=GPU_WARM_UP if gpu else None)
            together = group.loader.steps if gpu else 1  # whole epochs: what is prepared once per epoch counts
            if gpu:
                timing.walk(steps, synchronize, least=1, seconds=0, together=min(GPU_WARM_UP, together))
            else:
                timing.walk(steps, synchronize, least=3, seconds=0.15 * self.piece)  # memory grows in the first ones
            took = timing.walk(steps, synchronize, least=2, seconds=share * self.piece, together=together)
            peak = timing.peak_bytes(self.device.torch)
            steps.close()
            batch_seconds = ours.batch_seconds(group.loader, group.device.cuda_graph)
            return self._measured(mode, took, peak, batch_seconds) | {
                "runs": [run.label for run in group.runs] if len(group.runs) > 1 else [chosen.start],
                "flops_per_training_image": group.runs[0].description.flops,
                "cuda_graph": group.device.cuda_graph,
                "said": [line for line in console.said if "graph" in line],
            }

    def _measured(self, mode: str, took: timing.Timing, peak: int | None, batch_seconds: float) -> dict:
        return {
            "mode": mode, "images_per_second": took.images / took.seconds, "step_seconds": took.seconds / took.steps,
            "steps": took.steps, "batch_seconds": batch_seconds, "peak_bytes": peak,
        }  # fmt: skip

    def round(self, width: float, number: int) -> Iterator[dict]:
        """Every measurement of a round (from 0); one that fails is recorded with its reason, the others go on."""
        use(self.device.threads)
        rate = measure_matmul_rate(self.device)
        # On a GPU a measurement costs little beside its set-up: the three others alone are measured only once.
        others = range(1, ours.FOUR.stop) if number == 0 or self.device.torch.type != "cuda" else ()
        todo = [
            lambda: self.classic(width),
            lambda: self.ours(width, "alone", ours.ALONE),
            *(lambda i=i: self.ours(width, "another alone", slice(i, i + 1), 0.5) for i in others),
            lambda: self.ours(width, "lockstep", ours.FOUR),
        ]
        for measure in todo:
            try:
                yield measure() | {"matmul_flops_per_second": rate}
            except Exception as error:  # of any kind: a benchmark of four networks may run out of memory, for example
                yield {"mode": "failed", "error": f"{type(error).__name__}: {error}"}


def work(args: Namespace, bench: Bench) -> None:
    """Rounds of the asked-for widths of one model, as one JSON object per line on standard output."""
    start = time.monotonic()
    for place, width in enumerate(args.widths):
        began = time.monotonic()
        allotted = (args.seconds - (began - start)) / (len(args.widths) - place)
        latest = 0.0
        for number in range(args.rounds):
            at = time.monotonic()
            if number and at - began + latest > allotted:
                break
            for measured in bench.round(width, number):
                print(json.dumps({"model": bench.model, "width": width, "round": number} | measured), flush=True)
            latest = time.monotonic() - at


# --- All of it -------------------------------------------------------------------------------------------------------


def measure(args: Namespace, argv: list[str], device: Device, each: Callable[[dict], None]) -> None:
    """Runs the processes one after the other; a process that fails is one record.

    On a GPU there is one per model; elsewhere one per model and width, so that peak memory is its own.
    """
    start = time.monotonic()
    todo = [(model, [width]) for width in args.widths for model in args.models]
    if device.torch.type == "cuda":
        todo = [(model, args.widths) for model in args.models]
    for place, (model, widths) in enumerate(todo):
        cases = sum(len(w) for _, w in todo[place:])
        allotted = max(1.0, (args.seconds - (time.monotonic() - start)) * len(widths) / cases)
        own = ["--worker", "--models", model, "--widths", *map(str, widths), "--seconds", str(allotted)]
        own += ["--precision", device.precision]
        if error := program.run_worker("bench.bench", [*argv, *own], 3 * allotted + 120, each):
            each({"model": model, "width": widths[0], "round": 0, "mode": "failed", "error": error})


def main(argv: list[str]) -> int:
    parser = program.parser("bench.bench", __doc__)
    add = parser.add_argument
    add("--models", nargs="+", type=choice(*ours.MODELS), default=list(ours.MODELS), help=" ".join(ours.MODELS))
    add("--widths", nargs="+", type=real(0, 8, above=True), default=list(WIDTHS), help="(0.125 0.25 1)")
    add("--rounds", type=integer(1, 100), default=3, help="at most so many rounds (3)")
    add("--images", type=integer(2, 50_000), default=50_000, help="training images (50000)")
    add("--piece", type=real(0, 600), help="seconds that each measurement lasts (2; on CUDA 0.5)")
    add("--seconds", type=real(0, 1e6), help="rounds are left out beyond this time for the table (660; on CUDA 170)")
    add("--no-scaling", action="store_true", help="only the table, without bench.scaling")
    add("--worker", action="store_true", help="one model, in this process, JSON on standard output")
    args = parser.parse_args(argv)
    data, device = program.data_and_device(args)
    piece, seconds = (0.5, 170.0) if device.torch.type == "cuda" else (2.0, 660.0)
    args.piece = piece if args.piece is None else args.piece
    args.seconds = seconds if args.seconds is None else args.seconds
    if args.worker:
        work(args, Bench(args, data, device))
        return 0
    about = output.described(device, data.name) | {
        "images": args.images, "batch_size": BATCH, "workers": WORKERS, "piece_seconds": args.piece,
    }  # fmt: skip
    records: list[dict] = []

    def keep(record: dict) -> None:
        records.append(record)
        what = f"{record['images_per_second']:,.0f} images/s" if "error" not in record else record["error"]
        print(f"{record['model']:<14} width {record['width']:<6g} round {record['round'] + 1}  "
              f"{record['mode']:<14} {what}", flush=True)  # fmt: skip
        rows = table.summary(records)
        content = {"about": about, "table": rows, "measurements": records}
        output.write(args.output, output.slug(device), content, table.markdown(about, rows, records))

    measure(args, argv, device, keep)
    print(args.output / f"{output.slug(device)}.md", flush=True)
    status = int(any(record["mode"] == "failed" for record in records))
    if args.no_scaling:
        return status
    scaling = [sys.executable, "-m", "bench.scaling", *program.shared_flags(args)]
    return subprocess.run(scaling).returncode or status


if __name__ == "__main__":
    run(main, sys.argv[1:])

"""The project's engine against the classic training loop: speed, where a step's time goes, memory.

    python -m bench.bench                                       # what `make bench` runs: everything, 15 min on 2 cores
    python -m bench.bench --models vgg_a --widths 0.25 --rounds 3
    python -m bench.bench --device cuda                         # about 3 min

In each round the classic loop, the engine with one network, the engine with each of the three other networks alone,
and the engine with all four in lockstep take turns, each built anew and timed after a warm-up. Results are written to
bench/results/<device>.md and .json after every round.
"""

import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator
from json import dumps, loads
from pathlib import Path

import torch

from bench import classic, ours, output, table, timing
from cifar_lab.data import Cifar10, DataError
from cifar_lab.device import Device, DeviceError, matmul_rate
from cifar_lab.settings import choice, fail, integer, real

FOUR = 4  # networks of a lockstep group
WIDTHS = (0.125, 0.25, 1.0)  # the narrow ones first: what they leave of the time goes to the wide one
BATCH = 100
GPU_WARM_UP = 50  # steps

# --- One process: some widths of one model ---------------------------------------------------------------------------


class Bench:
    """Measures one model. `piece` is the time in seconds that each measurement lasts, after its warm-up."""

    def __init__(self, model: str, args, data: Cifar10) -> None:
        self.model = model
        self.data = data
        self.images = args.images
        self.piece = args.piece
        self.workers = min(8, os.cpu_count() or 1)
        self.shared = ["--device", args.device, "--batch-size", str(BATCH), "--train-size", str(args.images),
                       "--test-size", "2", *ours.NO_CHECKPOINTS]  # fmt: skip
        self.device = ours.choose_device(args.device)
        self.classic_batch_seconds: float | None = None

    def _settings(self, width: float, chosen: slice):
        module, flags = ours.command_line(self.model, chosen)
        flags = [*flags, "--width", str(width), *self.shared]
        return module, ours.parse(module, flags), flags

    def _loader(self):
        return classic.loader(
            self.data.train_images[: self.images], self.data.train_labels[: self.images], BATCH, self.workers
        )

    def classic(self, width: float) -> dict:
        """The classic loop, with the first of the four runs' settings."""
        # Steps until the workers, which start with two batches each, prepare one for each that is taken.
        warm_up = {"least": 2 * self.workers + 1, "seconds": 0.15 * self.piece}
        if self.classic_batch_seconds is None:
            alone = self._endless(self._loader())
            timing.walk(alone, lambda: None, **warm_up)
            took = timing.walk(alone, lambda: None, least=2, seconds=min(1.5, self.piece))
            self.classic_batch_seconds = took.seconds / took.steps
            alone.close()
        module, settings, _ = self._settings(width, slice(0, 1))
        config = settings.runs(0)[0]
        classic.default_precision()
        timing.start_peak(self.device.torch)
        model, optimizer = classic.network(config, module.build(config), self.device.torch)
        steps = classic.train(model, optimizer, self._loader(), self.device.torch)
        timing.walk(steps, self.device.synchronize, **warm_up)
        took = timing.walk(steps, self.device.synchronize, least=2, seconds=self.piece)
        peak = timing.peak_bytes(self.device.torch)
        steps.close()
        return self._measured("classic", took, peak, self.classic_batch_seconds)

    @staticmethod
    def _endless(batches) -> Iterator[int]:
        while True:
            for _, labels in batches:
                yield len(labels)

    def ours(self, width: float, mode: str, chosen: slice, share: float = 1.0) -> dict:
        """The engine with some of the four runs. share: of the usual time of a measurement."""
        module, _, flags = self._settings(width, chosen)
        gpu = self.device.torch.type != "cpu"
        console = ours.Quiet()
        with tempfile.TemporaryDirectory() as results:
            timing.start_peak(self.device.torch)
            group = ours.lockstep(module, flags, self.data, Path(results), console)
            synchronize = group.device.synchronize
            steps = ours.train(group, module, warm_up=GPU_WARM_UP if gpu else None)
            if gpu:  # whole epochs are timed: what is prepared once an epoch counts
                timing.walk(steps, synchronize, least=1, seconds=0, together=min(GPU_WARM_UP, group.loader.steps))
                together = group.loader.steps
            else:
                timing.walk(steps, synchronize, least=3, seconds=0.15 * self.piece)  # memory grows in the first ones
                together = 1
            took = timing.walk(steps, synchronize, least=2, seconds=share * self.piece, together=together)
            peak = timing.peak_bytes(self.device.torch)
            steps.close()
            batch_seconds = ours.batch_seconds(group.loader, group.device.cuda_graph)
            return self._measured(mode, took, peak, batch_seconds) | {
                "runs": [run.label for run in group.runs] if len(group.runs) > 1 else [chosen.start],
                "flops_per_training_image": group.runs[0].flops,
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
        rate = matmul_rate.__wrapped__(self.device)  # the function without its cache: once a round
        # On a GPU a measurement costs little beside its set-up: the three others alone are measured only once.
        others = range(1, FOUR) if number == 0 or self.device.torch.type != "cuda" else ()
        todo = [
            lambda: self.classic(width),
            lambda: self.ours(width, "alone", slice(0, 1)),
            *(lambda i=i: self.ours(width, "another alone", slice(i, i + 1), 0.5) for i in others),
            lambda: self.ours(width, "lockstep", slice(0, FOUR)),
        ]
        for measure in todo:
            try:
                yield measure() | {"matmul_flops_per_second": rate}
            except Exception as error:  # of any kind: a benchmark of four networks may run out of memory, for example
                yield {"mode": "failed", "error": f"{type(error).__name__}: {error}"}


def work(args) -> None:
    """Rounds of the asked-for widths of one model, as one JSON object a line on standard output."""
    start = time.monotonic()
    bench = Bench(args.models[0], args, ours.load(args.data_dir, args.made_up_data))
    for place, width in enumerate(args.widths):
        began = time.monotonic()
        allotted = (args.seconds - (began - start)) / (len(args.widths) - place)
        latest = 0.0
        for number in range(args.rounds):
            at = time.monotonic()
            if number and at - began + latest > allotted:
                break
            for measured in bench.round(width, number):
                print(dumps({"model": bench.model, "width": width, "round": number} | measured), flush=True)
            latest = time.monotonic() - at


# --- All of it -------------------------------------------------------------------------------------------------------


def processes(args, device: Device) -> list[tuple[str, list[float]]]:
    """Model and widths of each process: one a model on a GPU; one a case elsewhere, so that peak memory is its own."""
    if device.torch.type == "cuda":
        return [(model, args.widths) for model in args.models]
    return [(model, [width]) for width in args.widths for model in args.models]


def measurements(args, device: Device) -> Iterator[dict]:
    """Starts the processes one after the other and yields what they measure; a process that fails is one record."""
    start = time.monotonic()
    todo = processes(args, device)
    for place, (model, widths) in enumerate(todo):
        cases = sum(len(w) for _, w in todo[place:])
        allotted = max(1.0, (args.seconds - (time.monotonic() - start)) * len(widths) / cases)
        command = [
            sys.executable, "-m", "bench.bench", "--worker", "--models", model, "--widths", *map(str, widths),
            "--seconds", str(allotted), "--rounds", str(args.rounds), "--piece", str(args.piece),
            "--images", str(args.images), "--device", device.torch.type,
            *(["--data-dir", args.data_dir] if args.data_dir else []),
            *(["--made-up-data"] if args.made_up_data else []),
        ]  # fmt: skip
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        limit = threading.Timer(3 * allotted + 120, process.kill)
        limit.start()
        said: deque[str] = deque(maxlen=10)
        for line in process.stdout:
            if line.startswith("{"):
                yield loads(line)
            else:
                said.append(line.rstrip())
        limit.cancel()
        if process.wait():
            yield {"model": model, "width": widths[0], "round": 0, "mode": "failed",
                   "error": f"exit status {process.returncode}: {' / '.join(said)}"}  # fmt: skip


def arguments(argv: list[str] | None = None):
    parser = output.Parser(__doc__)
    add = parser.add_argument
    add("--models", nargs="+", type=choice(*ours.MODELS), default=list(ours.MODELS), help=" ".join(ours.MODELS))
    add("--widths", nargs="+", type=real(0, 8, above=True), default=list(WIDTHS), help="(0.125 0.25 1)")
    add("--rounds", type=integer(1, 100), default=3, help="at most so many rounds (3)")
    add("--images", type=integer(2, 50_000), default=50_000, help="training images (50000)")
    add("--piece", type=real(0, 600), help="seconds that each measurement lasts (2; on CUDA 0.5)")
    add("--seconds", type=real(0, 1e6), help="rounds are left out beyond this time for the table (780; on CUDA 170)")
    add("--no-scaling", action="store_true", help="only the table, without bench.scaling")
    add("--worker", action="store_true", help="one model, in this process, JSON on standard output")
    args = parser.parse_args(argv)
    cuda = args.device == "cuda" or (args.device == "auto" and torch.cuda.is_available())
    args.piece = args.piece if args.piece is not None else 0.5 if cuda else 2.0
    args.seconds = args.seconds if args.seconds is not None else 170.0 if cuda else 780.0
    return args


def main(argv: list[str] | None = None) -> int:
    args = arguments(argv)
    try:
        if args.worker:
            work(args)
            return 0
        data = ours.load(args.data_dir, args.made_up_data).name
        device = ours.choose_device(args.device)
    except (DataError, DeviceError) as error:
        fail(f"bench: {error}")
    about = output.described(device, data) | {
        "images": args.images, "batch_size": BATCH, "workers": min(8, os.cpu_count() or 1), "piece_seconds": args.piece,
    }  # fmt: skip
    records: list[dict] = []
    for record in measurements(args, device):
        records.append(record)
        what = f"{record['images_per_second']:,.0f} images/s" if "error" not in record else record["error"]
        print(f"{record['model']:<14} width {record['width']:<6g} round {record['round'] + 1}  "
              f"{record['mode']:<14} {what}", flush=True)  # fmt: skip
        rows = table.summary(records)
        content = {"about": about, "table": rows, "measurements": records}
        output.write(args.output, output.slug(device), content, table.markdown(about, rows, records))
    print(args.output / f"{output.slug(device)}.md", flush=True)
    status = int(any(record["mode"] == "failed" for record in records))
    if args.no_scaling:
        return status
    shared = ["--device", args.device, "--output", str(args.output), *(["--made-up-data"] if args.made_up_data else []),
              *(["--data-dir", args.data_dir] if args.data_dir else [])]  # fmt: skip
    return subprocess.run([sys.executable, "-m", "bench.scaling", *shared]).returncode or status


if __name__ == "__main__":
    sys.exit(main())

"""How cost grows: epoch time with the number of images, memory over epochs, plotting time with the logs' length, and
the time until a script starts to train.

    python -m bench.scaling
    python -m bench.scaling --parts epochs memory --width 0.25

Each part is a process of its own. Results are written to bench/results/<device>-scaling.md and .json after each part.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

import MyVGG
from bench import ours, output, timing
from cifar_lab.data import DataError
from cifar_lab.device import DeviceError
from cifar_lab.experiments import EXPERIMENTS
from cifar_lab.runs import find_run_folders, read_run
from cifar_lab.settings import choice, fail, integer, real

PARTS = ("epochs", "memory", "plots", "start")
SHARES = (1 / 8, 1 / 4, 1 / 2, 1)
ROOT = Path(__file__).resolve().parent.parent


def _flags(args, images: int, epochs: int) -> list[str]:
    return [
        "--bn", "--lrs", "1e-3", "--width", str(args.width), "--device", args.device, "--train-size", str(images),
        "--test-size", "100", "--epochs", str(epochs), *ours.NO_CHECKPOINTS,
    ]  # fmt: skip


def epoch_times(args) -> dict:
    """Training time of an epoch, without evaluation, as epochs.csv has it, for parts of the training images."""
    data = ours.load(args.data_dir, args.made_up_data)
    rows = []
    for share in (SHARES[0], *SHARES):  # the first one twice: it warms up and is not counted
        images = int(args.images * share)
        with tempfile.TemporaryDirectory() as results:
            MyVGG.train(ours.lockstep(MyVGG, _flags(args, images, args.epochs), data, Path(results), ours.Quiet()), 0)
            (folder,) = find_run_folders(results)
            seconds = timing.spread(list(read_run(folder).epochs["train_seconds"]))
        rows.append({"images": images, "seconds": seconds, "microseconds_an_image": 1e6 * seconds["median"] / images})
    return {"rows": rows[1:]}


def memory(args) -> dict:
    """Memory in use at the end of each epoch: resident set, and on CUDA what tensors take."""
    data = ours.load(args.data_dir, args.made_up_data)
    images = max(200, args.images // 25)
    rows = []
    with tempfile.TemporaryDirectory() as results:
        # One epoch more than is walked through: what ends a run is no part of this.
        group = ours.lockstep(MyVGG, _flags(args, images, args.memory_epochs + 1), data, Path(results), ours.Quiet())
        update = group.accelerate(MyVGG.training_step)
        for epoch in group.epochs():
            for batch in group.batches(epoch):
                update(batch)
            group.evaluate(epoch)
            row = {"epoch": epoch}
            if sys.platform == "linux":
                row["resident_bytes"] = timing.resident_bytes()
            if group.device.torch.type == "cuda":
                row["cuda_bytes"] = torch.cuda.memory_allocated()
            rows.append(row)
            if epoch == args.memory_epochs:
                break
    return {"images": images, "rows": rows}


def plots(args) -> dict:
    """Time of plot_results.py, the interpreter's start included, on made-up logs of every run of the report."""
    from tests.made_up import write_run

    rows = []
    for epochs in args.plot_epochs:
        with tempfile.TemporaryDirectory() as results:
            for experiment in EXPERIMENTS:
                for run in experiment.runs:
                    write_run(results, run, "report", epochs=min(epochs, experiment.epochs))
            steps = sum(len((f / "steps.csv").read_bytes().splitlines()) - 1 for f in find_run_folders(results))
            start = time.perf_counter()
            done = subprocess.run(
                [sys.executable, str(ROOT / "plot_results.py"), results], capture_output=True, text=True
            )
            seconds = time.perf_counter() - start
        if done.returncode:
            raise RuntimeError(f"plot_results.py: exit status {done.returncode}: {done.stderr.strip()[-500:]}")
        rows.append({"epochs": epochs, "steps": steps, "seconds": seconds})
    return {"rows": rows}


def start(args) -> dict:
    """Time of a process that imports a training script and loads and verifies the data, three times."""
    code = "import MyVGG, sys; from cifar_lab.data import load; len(sys.argv) > 1 and load(sys.argv[1] or None)"
    argument = [] if args.made_up_data else [args.data_dir or ""]
    seconds = []
    for _ in range(3):
        at = time.perf_counter()
        subprocess.run([sys.executable, "-c", code, *argument], cwd=ROOT, check=True, capture_output=True)
        seconds.append(time.perf_counter() - at)
    return {"data": not args.made_up_data, "seconds": timing.spread(seconds)}


# --- All of it -------------------------------------------------------------------------------------------------------


def markdown(about: dict, measured: dict[str, dict]) -> str:
    text = [f"# How cost grows\n\n{output.header(about)}\n"]
    table = output.markdown_table
    width = f"VGG-A + BatchNorm at width {about['width']:g}"
    for part, m in measured.items():
        if "error" in m:
            text.append(f"\n## {part}\n\nFailed: {m['error']}\n")
        elif part == "epochs":
            largest = m["rows"][-1]["microseconds_an_image"]
            text.append("\n## Epoch time against the number of images\n\n")
            text.append(f"{width}, one network, without evaluation.\n\n")
            text.append(table(
                ["images", "s an epoch", "µs an image", "relative to the last row"],
                [[f"{r['images']:,}", output.shown(r["seconds"], ".3g"), f"{r['microseconds_an_image']:.1f}",
                  f"{r['microseconds_an_image'] / largest:.2f}"] for r in m["rows"]],
            ))  # fmt: skip
        elif part == "memory":
            text.append(f"\n## Memory over epochs\n\n{width}, {m['images']:,} images, at the end of each epoch.\n\n")
            columns = [c for c in ("resident_bytes", "cuda_bytes") if c in m["rows"][0]]
            names = {"resident_bytes": "resident set, MiB", "cuda_bytes": "tensors on the GPU, MiB"}
            text.append(table(
                ["epoch", *(names[c] for c in columns)],
                [[str(r["epoch"]), *(f"{r[c] / 2**20:,.1f}" for c in columns)] for r in m["rows"]],
            ))  # fmt: skip
        elif part == "plots":
            text.append("\n## Plotting time against the length of the logs\n\n`plot_results.py` on made-up logs of all "
                        "17 runs of the report.\n\n")  # fmt: skip
            text.append(table(
                ["epochs a run, at most", "logged steps, all runs", "s"],
                [[str(r["epochs"]), f"{r['steps']:,}", f"{r['seconds']:.1f}"] for r in m["rows"]],
            ))  # fmt: skip
        else:
            what = "imports and the data, loaded and verified" if m["data"] else "imports alone"
            text.append(f"\n## Warm start\n\nUntil a script can begin to train ({what}): "
                        f"{output.shown(m['seconds'], '.1f')} s.\n")  # fmt: skip
    return "".join(text)


def main(argv: list[str] | None = None) -> int:
    parser = output.Parser(__doc__)
    add = parser.add_argument
    add("--parts", nargs="+", type=choice(*PARTS), default=list(PARTS), help=" ".join(PARTS))
    add("--width", type=real(0, 8, above=True), default=0.125, help="of the network (0.125)")
    add("--images", type=integer(16, 50_000), default=50_000, help="all training images (50000)")
    add("--epochs", type=integer(1, 100), help="epochs of each number of images (1; on CUDA 5)")
    add("--memory-epochs", type=integer(2, 1000), default=10, help="epochs over which memory is watched (10)")
    add("--plot-epochs", nargs="+", type=integer(1, 300), default=[25, 50, 100, 200, 300], help="(25 50 100 200 300)")
    add("--worker", action="store_true", help="one part, in this process, JSON on standard output")
    args = parser.parse_args(argv)
    try:
        device = ours.choose_device(args.device)
        data = "" if args.worker else ours.load(args.data_dir, args.made_up_data).name
    except (DataError, DeviceError) as error:
        fail(f"scaling: {error}")
    args.epochs = args.epochs or (5 if device.torch.type == "cuda" else 1)
    if args.worker:
        measure = {"epochs": epoch_times, "memory": memory, "plots": plots, "start": start}[args.parts[0]]
        print(json.dumps(measure(args)), flush=True)
        return 0
    about = output.described(device, data) | {"width": args.width}
    measured: dict[str, dict] = {}
    for part in args.parts:
        command = [
            sys.executable, "-m", "bench.scaling", "--worker", "--parts", part, "--width", str(args.width),
            "--images", str(args.images), "--epochs", str(args.epochs), "--memory-epochs", str(args.memory_epochs),
            "--plot-epochs", *map(str, args.plot_epochs), "--device", device.torch.type,
            *(["--data-dir", args.data_dir] if args.data_dir else []),
            *(["--made-up-data"] if args.made_up_data else []),
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            measured[part] = {"error": f"exit status {done.returncode}: {' / '.join(done.stderr.splitlines()[-6:])}"}
        else:
            measured[part] = json.loads(done.stdout.splitlines()[-1])
        output.write(args.output, f"{output.slug(device)}-scaling", {"about": about, **measured},
                     markdown(about, measured))  # fmt: skip
        print(f"{part}: {measured[part].get('error', 'done')}", flush=True)
    print(args.output / f"{output.slug(device)}-scaling.md", flush=True)
    return int(any("error" in m for m in measured.values()))


if __name__ == "__main__":
    sys.exit(main())

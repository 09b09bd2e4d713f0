"""How cost grows: epoch time with the number of images, memory over epochs, plotting time with the logs' length,
listing and plotting time with the number of seeds, and the time until a script starts to train.

    python -m bench.scaling
    python -m bench.scaling --parts epochs memory --width 0.25

Each part is a process of its own. Results are written to bench/results/<device>-scaling.md and .json after each part.
"""

import json
import shlex
import shutil
import sys
import tempfile
from argparse import Namespace
from pathlib import Path

import numpy as np
import torch

import MyVGG
from bench import ours, output, program, timing
from cifar_lab.experiments import EXPERIMENTS, Experiment, experiments_of
from cifar_lab.program import run
from cifar_lab.run_folder.reader import find_run_folders, read_run
from cifar_lab.settings import Settings, choice, integer, real
from cifar_lab.training.device import Device
from cifar_lab.training.script import description_of, recorders

SHARES = (1 / 8, 1 / 4, 1 / 2, 1)
LIMIT = 3600.0  # seconds for a part
OF_SEEDS = ("vgg_a_lr0.001", "vgg_a_bn_lr0.001", "inception_res")  # in `experiments.RUNS`, one of each of 3 commands


def _settings(args: Namespace, images: int, epochs: int) -> Settings:
    return ours.parse(ours.command(
        "vgg_a_bn", ours.ALONE, "--width", args.width, *program.where(args), "--train-size", images,
        "--test-size", 100, "--epochs", epochs,
    ))[1]  # fmt: skip


def epoch_times(args: Namespace) -> dict:
    """Training time of an epoch, without evaluation, as epochs.csv has it, for parts of the training images."""
    data, _ = program.data_and_device(args)
    rows = []
    for share in (SHARES[0], *SHARES):  # the first one twice: it warms up and is not counted
        images = int(args.images * share)
        with ours.lockstep(_settings(args, images, args.epochs), data) as group:
            MyVGG.train(group)
            logged = read_run(group.runs[0].recorder.folder).epochs["train_seconds"]
        seconds = timing.spread(logged.tolist())
        rows.append({"images": images, "seconds": seconds, "microseconds_an_image": 1e6 * seconds["median"] / images})
    return {"rows": rows[1:]}


def memory(args: Namespace) -> dict:
    """Memory in use at the end of each epoch: resident set, and on CUDA what tensors take."""
    data, device = program.data_and_device(args)
    images = max(200, args.images // 25)
    rows = []
    # One epoch more than is trained: what ends a run is no part of this.
    with ours.lockstep(_settings(args, images, args.memory_epochs + 1), data) as group:
        for epoch, _ in enumerate(ours.train_epochs(group, MyVGG, args.memory_epochs), start=1):
            row = {"epoch": epoch}
            if sys.platform == "linux":
                row["resident_bytes"] = timing.resident_bytes()
            if device.torch.type == "cuda":
                row["cuda_bytes"] = torch.cuda.memory_allocated()
            rows.append(row)
    return {"images": images, "rows": rows}


def _ended(words: list[str]) -> dict:
    """How a command ended, as `program.run` has it. Raises RuntimeError if it failed."""
    ended = program.run(words, LIMIT)
    if ended["status"]:
        raise RuntimeError(f"{words[0]}: exit status {ended['status']}: {' / '.join(ended['last_lines'][-6:])}")
    return ended


def _seconds(words: list[str]) -> float:
    """The time of a command, the interpreter's start included."""
    return _ended(words)["seconds"]


def plots(args: Namespace) -> dict:
    """Time of plot_results.py on made-up logs of every run of the report."""
    rows = []
    for epochs in args.plot_epochs:
        with tempfile.TemporaryDirectory() as results:
            steps = sum(write_logs(e, results, min(epochs, e.epochs)) for e in EXPERIMENTS)
            rows.append({"epochs": epochs, "steps": steps, "seconds": _seconds(["plot_results.py", results])})
    return {"rows": rows}


def seeds(args: Namespace) -> dict:
    """Time and memory of listing what is left of a preset, and of plot_results.py, on made-up runs of many seeds."""
    rows, preset = [], "quick"
    for count in args.seed_counts:
        with tempfile.TemporaryDirectory() as results:
            for experiment in experiments_of(OF_SEEDS, preset):
                write_logs(experiment, results, experiment.epochs_at(preset), preset)
            for folder in find_run_folders(results, preset):
                for seed in range(1, count):
                    copy_for_seed(folder, seed)
            every = map(str, range(count))
            listing = ["-m", "cifar_lab.reproduce", preset, "--list", "--results", results, "--seed", *every]
            row = {"seeds": count, "runs": len(OF_SEEDS) * count}
            for name, words in (("list", listing), ("plot", ["plot_results.py", results])):
                row[f"{name}_seconds"], row[f"{name}_bytes"] = _measured(words)
            rows.append(row)
    return {"rows": rows}


def _measured(words: list[str]) -> tuple[float, int]:
    """Seconds and peak resident set, in bytes, of a command, the interpreter's start included."""
    code = (
        "import resource, subprocess, sys; status = subprocess.call([sys.executable, *sys.argv[1:]]); "
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss); sys.exit(status)"
    )
    ended = _ended(["-c", code, *words])
    return ended["seconds"], int(ended["last_lines"][-1]) * (1 if sys.platform == "darwin" else 1024)


def copy_for_seed(folder: Path, seed: int) -> None:
    """Copies the folder of a run with seed 0 for another seed; a recorder would wait for the disk at each file."""
    other = folder.with_name(folder.name.replace("-seed0", f"-seed{seed}"))
    shutil.copytree(folder, other)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["settings"]["seed"] = seed
    (other / "config.json").write_text(json.dumps(config), encoding="utf-8")


def write_logs(experiment: Experiment, results: str, epochs: int, preset: str = "report") -> int:
    """Writes run folders of an experiment's runs, as training leaves them, with falling losses; returns their steps."""
    _, settings = ours.parse(shlex.split(experiment.command(preset, results=results))[1:])
    opened = recorders(settings, description_of(settings), 0, Device(torch.device("cpu"), "fp32", "fp32", 1))
    steps = epochs * (settings.train_size // settings.batch_size)
    noise = np.random.default_rng(0)
    for recorder in opened:
        curve = 2 * np.exp(-np.arange(steps) / steps) + noise.uniform(0, 0.2, steps)
        recorder.hold.acquire()
        recorder.start(epochs, {})
        recorder.append_steps(1, curve)
        for epoch, loss in enumerate(curve[:: steps // epochs], start=1):
            recorder.append_epoch([epoch, recorder.config.lr, loss, 50, loss, 50, 1.5, 3000])
        recorder.finish({"epochs": epochs, "steps": steps, "parameters": 1, "train_seconds": 1.5 * epochs})
        recorder.hold.release()
    return steps * len(opened)


def start(args: Namespace) -> dict:
    """Time of a process that imports a training script and loads and verifies the data, three times."""
    code = "import MyVGG, sys; from cifar_lab.data.cache import load; len(sys.argv) > 1 and load(sys.argv[1] or None)"
    argument = [] if args.made_up_data else [args.data_dir or ""]
    seconds = [_seconds(["-c", code, *argument]) for _ in range(3)]
    return {"data": not args.made_up_data, "seconds": timing.spread(seconds)}


PARTS = {"epochs": epoch_times, "memory": memory, "plots": plots, "seeds": seeds, "start": start}

# --- All of it -------------------------------------------------------------------------------------------------------

NAMES = {"resident_bytes": "resident set, MiB", "cuda_bytes": "tensors on the GPU, MiB"}


def markdown(about: dict, measured: dict[str, dict]) -> str:
    """The result file that people read."""
    width = f"VGG-A + BatchNorm at width {about['width']:g}"
    text = [f"# How cost grows\n\n{output.header(about)}\n"]
    for part, m in measured.items():
        if "error" in m:
            text.append(f"\n## {part}\n\nFailed: {m['error']}\n")
        elif part == "epochs":
            largest = m["rows"][-1]["microseconds_an_image"]
            rows = [[f"{r['images']:,}", output.shown(r["seconds"], ".3g"), f"{r['microseconds_an_image']:.1f}",
                     f"{r['microseconds_an_image'] / largest:.2f}"] for r in m["rows"]]  # fmt: skip
            columns = ["images", "s per epoch", "µs per image", "relative to the last row"]
            text.append("\n## Epoch time against the number of images\n\n")
            text.append(f"{width}, one network, without evaluation.\n\n{output.markdown_table(columns, rows)}")
        elif part == "memory":
            columns = [c for c in NAMES if c in m["rows"][0]]
            rows = [[str(r["epoch"]), *(f"{r[c] / 2**20:,.1f}" for c in columns)] for r in m["rows"]]
            text.append(f"\n## Memory over epochs\n\n{width}, {m['images']:,} images, at the end of each epoch.\n\n")
            text.append(output.markdown_table(["epoch", *(NAMES[c] for c in columns)], rows))
        elif part == "plots":
            rows = [[str(r["epochs"]), f"{r['steps']:,}", f"{r['seconds']:.1f}"] for r in m["rows"]]
            text.append("\n## Plotting time against the length of the logs\n\n`plot_results.py` on made-up logs of all "
                        "17 runs of the report.\n\n")  # fmt: skip
            text.append(output.markdown_table(["epochs per run, at most", "logged steps, all runs", "s"], rows))
        elif part == "seeds":
            rows = [
                [f"{r['seeds']:,}", f"{r['runs']:,}",
                 *(f"{r[f'{name}_{what}'] / unit:{form}}" for name in ("list", "plot")
                   for what, unit, form in (("seconds", 1, ".1f"), ("bytes", 2**20, ",.0f")))]
                for r in m["rows"]
            ]  # fmt: skip
            text.append("\n## Listing and plotting against the number of seeds\n\n`python -m cifar_lab.reproduce quick "
                        "--list` for all seeds, and `plot_results.py`, on made-up finished runs of three commands, one "
                        "of each for a seed.\n\n")  # fmt: skip
            columns = ["seeds", "runs", "list, s", "list, peak MiB", "plot, s", "plot, peak MiB"]
            text.append(output.markdown_table(columns, rows))
        else:
            what = "imports and the data, loaded and verified" if m["data"] else "imports alone"
            time = output.shown(m["seconds"], ".1f")
            text.append(f"\n## Warm start\n\nUntil a script can begin to train ({what}): {time} s.\n")
    return "".join(text)


def main(argv: list[str]) -> int:
    parser = program.parser("bench.scaling", __doc__)
    add = parser.add_argument
    add("--parts", nargs="+", type=choice(*PARTS), default=list(PARTS), help=" ".join(PARTS))
    add("--width", type=real(0, 8, above=True), default=0.125, help="of the network (0.125)")
    add("--images", type=integer(16, 50_000), default=50_000, help="all training images (50000)")
    add("--epochs", type=integer(1, 100), help="epochs of each number of images (1; on CUDA 5)")
    add("--memory-epochs", type=integer(2, 1000), default=10, help="epochs over which memory is watched (10)")
    add("--plot-epochs", nargs="+", type=integer(1, 300), default=[25, 50, 100, 200, 300], help="(25 50 100 200 300)")
    add("--seed-counts", nargs="+", type=integer(1, 100_000), default=[20, 200, 2_000], help="(20 200 2000)")
    add("--worker", action="store_true", help="one part, in this process, JSON on standard output")
    args = parser.parse_args(argv)
    if args.worker:
        print(json.dumps(PARTS[args.parts[0]](args)), flush=True)
        return 0
    data, device = program.data_and_device(args)
    epochs = args.epochs or (5 if device.torch.type == "cuda" else 1)
    about = output.described(device, data.name) | {"width": args.width}
    name = f"{output.slug(device)}-scaling"
    measured: dict[str, dict] = {}
    for part in args.parts:
        measured[part] = {}
        own = ["--worker", "--parts", part, "--epochs", str(epochs), *program.where(args)]
        if error := program.run_worker("bench.scaling", [*argv, *own], LIMIT, measured[part].update):
            measured[part] = {"error": error}
        output.write(args.output, name, {"about": about, **measured}, markdown(about, measured))
        print(f"{part}: {measured[part].get('error', 'done')}", flush=True)
    print(args.output / f"{name}.md", flush=True)
    return int(any("error" in m for m in measured.values()))


if __name__ == "__main__":
    run(main, sys.argv[1:])

"""A few epochs of each kind of run in the report's list, and from them the time that the whole list takes.

    python -m bench.report_slice --device cuda                  # about 2 min
    python -m bench.report_slice --flags="--width 0.125 --train-size 2000 --test-size 100"

Every kind (script, network, number of networks in lockstep) is trained in a process of its own with the report's
settings, on all images, evaluated after each epoch and logged as in the real run. The first epoch, which captures the
CUDA graph, counts as starting up. Results are written to bench/results/<device>-report.md and .json after each kind.
"""

import json
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import MyFramework
import MyVGG
from bench import ours, output, timing
from cifar_lab.data import DataError
from cifar_lab.device import DeviceError, matmul_rate
from cifar_lab.experiments import EXPERIMENTS, RUNS, Experiment
from cifar_lab.settings import fail, integer, real

SCRIPTS = {"MyVGG.py": MyVGG, "MyFramework.py": MyFramework}


def kind(experiment: Experiment) -> tuple[str, int]:
    """Network and number of networks: what an epoch costs depends on nothing else in the list."""
    return RUNS[experiment.runs[0]].model, len(experiment.runs)


def kinds() -> dict[tuple[str, int], Experiment]:
    """The first experiment of each kind."""
    first: dict[tuple[str, int], Experiment] = {}
    for experiment in EXPERIMENTS:
        first.setdefault(kind(experiment), experiment)
    return first


def work(args) -> None:
    """Trains one kind in this process; one JSON object on standard output."""
    start = time.perf_counter()
    data = ours.load(args.data_dir, args.made_up_data)
    experiment = list(kinds().values())[args.worker]
    module = SCRIPTS[experiment.script]
    # One epoch more than is trained: what ends a run happens once, not once an epoch.
    flags = [*shlex.split(experiment.flags), *shlex.split(args.flags),
             "--epochs", str(args.epochs + 1), "--device", args.device]  # fmt: skip
    console = ours.Quiet()
    with tempfile.TemporaryDirectory() as results:
        group = ours.lockstep(module, flags, data, Path(results), console)
        timing.start_peak(group.device.torch)
        images = len(group.loader.images)
        update = group.accelerate(module.training_step)
        epochs = []
        began = start
        for epoch in group.epochs():
            at = time.perf_counter()
            for batch in group.batches(epoch):
                update(batch)
            group.device.synchronize()
            trained = time.perf_counter()
            group.evaluate(epoch)
            ended = time.perf_counter()
            epochs.append({"seconds": ended - began, "train_seconds": trained - at, "test_seconds": ended - trained})
            began = ended
            if epoch == args.epochs:
                break
        rate = matmul_rate(group.device)
        flops = sum(run.flops for run in group.runs)
    steady = epochs[1:] or epochs
    train_seconds = timing.spread([e["train_seconds"] for e in steady])
    print(json.dumps({
        "model": kind(experiment)[0], "networks": len(group.runs), "flags": experiment.flags, "epochs": epochs,
        "train_seconds": train_seconds, "epoch_seconds": timing.spread([e["seconds"] for e in steady]),
        "test_seconds": timing.spread([e["test_seconds"] for e in steady]),
        "images_per_second": images * len(group.runs) / train_seconds["median"],
        "share_of_matmul_rate": images * flops / train_seconds["median"] / rate,
        "matmul_flops_per_second": rate, "peak_bytes": timing.peak_bytes(group.device.torch),
        "cuda_graph": group.device.cuda_graph, "said": console.said,
    }), flush=True)  # fmt: skip


def estimate(measured: dict[tuple[str, int], dict]) -> dict | None:
    """Seconds that the whole list takes, from the kinds measured; None while one of them is missing."""
    if any("error" in measured.get(k, {"error": ""}) for k in kinds()):
        return None
    parts = []
    for experiment in EXPERIMENTS:
        of_kind = measured[kind(experiment)]
        seconds = of_kind["start_seconds"] + (experiment.epochs - 1) * of_kind["epoch_seconds"]["median"]
        parts.append({"command": experiment.command(), "runs": len(experiment.runs), "seconds": seconds})
    return {
        "seconds": sum(p["seconds"] for p in parts),
        "runs": sum(p["runs"] for p in parts),
        "epochs": sum(e.epochs * len(e.runs) for e in EXPERIMENTS),
        "commands": parts,
    }


def markdown(about: dict, measured: dict[tuple[str, int], dict], total: dict | None) -> str:
    rows = []
    for (model, networks), m in measured.items():
        if "error" in m:
            continue
        rows.append([
            model, str(networks), output.shown(m["train_seconds"], ".3f"), output.shown(m["test_seconds"], ".3f"),
            output.shown(m["epoch_seconds"], ".3f"), f"{m['start_seconds']:.1f}",
            f"{m['images_per_second']:,.0f}", f"{100 * m['share_of_matmul_rate']:.1f}",
            f"{(m['peak_bytes'] or 0) / 2**20:,.0f}", "yes" if m["cuda_graph"] else "no",
        ])  # fmt: skip
    text = [
        f"# The report's runs, {about['epochs']} epochs of each kind\n\n{output.header(about)}\n\n",
        f"Extra flags: `{about['flags']}`.\n\n" if about["flags"] else "",
        output.markdown_table(
            ["model", "networks in lockstep", "training, s an epoch", "test and logs, s an epoch", "whole epoch, s",
             "start-up and first epoch, s", "images/s, all networks", "% of matmul rate", "peak MiB", "CUDA graph"],
            rows,
        ),
    ]  # fmt: skip
    text += [f"\n{model}, {n}: failed: {m['error']}\n" for (model, n), m in measured.items() if "error" in m]
    if total:
        text.append(
            f"\nExtrapolated, `make report` ({total['runs']} runs, {total['epochs']:,} epochs): "
            f"{total['seconds'] / 60:.1f} min, without checkpoints and figures.\n\n"
        )
        text.append(output.markdown_table(
            ["command", "runs", "minutes"],
            [[f"`{p['command']}`", str(p["runs"]), f"{p['seconds'] / 60:.1f}"] for p in total["commands"]],
        ))  # fmt: skip
    return "".join(text)


def main(argv: list[str] | None = None) -> int:
    parser = output.Parser(__doc__)
    add = parser.add_argument
    add("--epochs", type=integer(1, 1000), default=3, help="epochs of each kind (3)")
    add("--flags", default="", help="further flags of the training scripts, in one string")
    add("--seconds", type=real(0, 1e6), default=120.0, help="no further kind is started after this time (120)")
    add("--worker", type=int, help="trains the kind of this number in this process, JSON on standard output")
    args = parser.parse_args(argv)
    if args.worker is not None:
        work(args)
        return 0
    try:
        device = ours.choose_device(args.device, *shlex.split(args.flags))
        data = ours.load(args.data_dir, args.made_up_data).name
    except (DataError, DeviceError) as error:
        fail(f"report_slice: {error}")
    about = output.described(device, data) | {"epochs": args.epochs, "flags": args.flags}
    measured: dict[tuple[str, int], dict] = {}
    start = time.monotonic()
    for number, (of_kind, experiment) in enumerate(kinds().items()):
        left = args.seconds - (time.monotonic() - start)
        if left <= 0:
            measured[of_kind] = {"error": "no time left"}
        else:
            command = [
                sys.executable, "-m", "bench.report_slice", "--worker", str(number), "--device", device.torch.type,
                "--epochs", str(args.epochs), f"--flags={args.flags}",
                *(["--data-dir", args.data_dir] if args.data_dir else []),
                *(["--made-up-data"] if args.made_up_data else []),
            ]  # fmt: skip
            measured[of_kind] = _run(command, left + 60)
        total = estimate(measured)
        content = {"about": about, "kinds": list(measured.values()), "make_report": total}
        output.write(args.output, f"{output.slug(device)}-report", content, markdown(about, measured, total))
        m = measured[of_kind]
        what = m.get("error") or f"{m['epoch_seconds']['median']:.3f} s an epoch"
        print(f"{experiment.script} {experiment.flags}: {what}", flush=True)
    if total:
        print(f"make report, extrapolated: {total['seconds'] / 60:.1f} min", flush=True)
    return int(total is None)


def _run(command: list[str], limit: float) -> dict:
    """What a worker measured, or why it did not."""
    start = time.perf_counter()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return {"error": f"not done after {limit:.0f} s"}
    if done.returncode:
        return {"error": f"exit status {done.returncode}: {' / '.join(done.stderr.splitlines()[-6:])}"}
    measured = json.loads(done.stdout.splitlines()[-1])
    later_epochs = sum(e["seconds"] for e in measured["epochs"][1:])
    # Process, data, first epoch with the graph's capture, and the end of the process.
    return measured | {"start_seconds": time.perf_counter() - start - later_epochs}


if __name__ == "__main__":
    sys.exit(main())

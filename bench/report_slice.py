"""A few epochs of each kind of run in the report's list, and from them the time that the whole list takes.

    python -m bench.report_slice --device cuda                  # about 2 min
    python -m bench.report_slice --flags="--width 0.125 --train-size 2000 --test-size 100"

Every kind (script, network, number of networks in lockstep) is trained in a process of its own with the report's
settings, on all images, evaluated after each epoch and logged as in the real run. The first epoch, which captures the
CUDA graph, counts as starting up. Results are written to bench/results/<device>-report.md and .json after each kind.
"""

import json
import shlex
import sys
import time
from argparse import Namespace

from bench import ours, output, program, timing
from cifar_lab.experiments import EXPERIMENTS, Experiment
from cifar_lab.program import run
from cifar_lab.settings import integer, real
from cifar_lab.training.device import measure_matmul_rate


def kind(experiment: Experiment) -> tuple[str, int]:
    """Network and number of networks: what an epoch costs depends on nothing else in the list."""
    return experiment.network, len(experiment.names)


def kinds() -> dict[tuple[str, int], Experiment]:
    """The first experiment of each kind."""
    first: dict[tuple[str, int], Experiment] = {}
    for experiment in EXPERIMENTS:
        first.setdefault(kind(experiment), experiment)
    return first


def work(args: Namespace) -> None:
    """Trains one kind in this process; one JSON object on standard output."""
    experiment = list(kinds().values())[args.worker]
    # One epoch more than is trained: what ends a run happens once, not once per epoch.
    own = [*program.where(args), *shlex.split(args.flags), "--epochs", str(args.epochs + 1)]
    module, settings = ours.parse([*shlex.split(experiment.command())[1:], *own])
    data, device = program.data_and_device(args, settings)
    console = ours.Quiet()
    with ours.lockstep(settings, data, console) as group:
        timing.start_peak(device.torch)
        images = len(group.loader.images)
        epochs = [
            {"seconds": train + test, "train_seconds": train, "test_seconds": test}
            for train, test in ours.train_epochs(group, module, args.epochs)
        ]
        rate = measure_matmul_rate(device)
        flops = sum(run.description.flops for run in group.runs)
    # The first epoch captures the CUDA graph.
    steady = {key: timing.spread([e[key] for e in epochs[1:] or epochs]) for key in epochs[0]}
    train_seconds = steady["train_seconds"]["median"]
    print(json.dumps({
        "model": experiment.network, "networks": len(group.runs), "command": experiment.command(), "epochs": epochs,
        "train_seconds": steady["train_seconds"], "epoch_seconds": steady["seconds"],
        "test_seconds": steady["test_seconds"], "images_per_second": images * len(group.runs) / train_seconds,
        "share_of_matmul_rate": images * flops / train_seconds / rate,
        "matmul_flops_per_second": rate, "peak_bytes": timing.peak_bytes(device.torch),
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
        parts.append({"command": experiment.command(), "runs": len(experiment.names), "seconds": seconds})
    return {
        "seconds": sum(p["seconds"] for p in parts),
        "runs": sum(p["runs"] for p in parts),
        "epochs": sum(e.epochs * len(e.names) for e in EXPERIMENTS),
        "commands": parts,
    }


def markdown(about: dict, measured: dict[tuple[str, int], dict], total: dict | None) -> str:
    rows = [[
        model, str(networks), output.shown(m["train_seconds"], ".3f"), output.shown(m["test_seconds"], ".3f"),
        output.shown(m["epoch_seconds"], ".3f"), f"{m['start_seconds']:.1f}", f"{m['images_per_second']:,.0f}",
        f"{100 * m['share_of_matmul_rate']:.1f}", f"{(m['peak_bytes'] or 0) / 2**20:,.0f}",
        "yes" if m["cuda_graph"] else "no",
    ] for (model, networks), m in measured.items() if "error" not in m]  # fmt: skip
    text = [
        f"# The report's runs, {about['epochs']} epochs of each kind\n\n{output.header(about)}\n\n",
        f"Extra flags: `{about['flags']}`.\n\n" if about["flags"] else "",
        output.markdown_table(
            ["model", "networks in lockstep", "training, s per epoch", "test and logs, s per epoch", "whole epoch, s",
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


def main(argv: list[str]) -> int:
    parser = program.parser("bench.report_slice", __doc__)
    add = parser.add_argument
    add("--epochs", type=integer(1, 1000), default=3, help="epochs of each kind (3)")
    add("--flags", default="", help="further flags of the training scripts, in one string")
    add("--seconds", type=real(0, 1e6), default=120.0, help="no further kind is started after this time (120)")
    add("--worker", type=int, help="trains the kind of this number in this process, JSON on standard output")
    args = parser.parse_args(argv)
    if args.worker is not None:
        work(args)
        return 0
    _, settings = ours.parse(["MyVGG.py", *program.where(args), *shlex.split(args.flags)])
    data, device = program.data_and_device(args, settings)
    about = output.described(device, data.name) | {"epochs": args.epochs, "flags": args.flags}
    measured: dict[tuple[str, int], dict] = {}
    start = time.monotonic()
    for number, (of_kind, experiment) in enumerate(kinds().items()):
        left = args.seconds - (time.monotonic() - start)
        words = [*argv, *program.where(args)]
        measured[of_kind] = m = measure(number, words, left + 60) if left > 0 else {"error": "no time left"}
        total = estimate(measured)
        content = {"about": about, "kinds": list(measured.values()), "make_report": total}
        output.write(args.output, f"{output.slug(device)}-report", content, markdown(about, measured, total))
        what = m.get("error") or f"{m['epoch_seconds']['median']:.3f} s per epoch"
        print(f"{experiment.command()}: {what}", flush=True)
    if total:
        print(f"make report, extrapolated: {total['seconds'] / 60:.1f} min", flush=True)
    return int(total is None)


def measure(number: int, argv: list[str], limit: float) -> dict:
    """What a worker measures for the kind of this number, or why it does not."""
    start = time.perf_counter()
    measured: dict = {}
    error = program.run_worker("bench.report_slice", [*argv, "--worker", str(number)], limit, measured.update)
    if error:
        return {"error": error}
    later_epochs = sum(e["seconds"] for e in measured["epochs"][1:])
    # Process, data, first epoch with the graph's capture, and the end of the process.
    return measured | {"start_seconds": time.perf_counter() - start - later_epochs}


if __name__ == "__main__":
    run(main, sys.argv[1:])

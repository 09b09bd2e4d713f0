"""Where a training step's time goes: PyTorch's operators by their share, over some steps of the engine.

    python -m bench.profile_step                                # the four networks at width 1, a minute on 2 CPU cores
    python -m bench.profile_step --models vgg_a --width 0.25 --device cuda

Prints a table per network and writes nothing. On CUDA the steps are launched one by one, not replayed from a graph, in
which operators have no names.
"""

import sys
from argparse import Namespace
from itertools import islice

from torch.profiler import ProfilerActivity, profile

from bench import ours, output, program
from cifar_lab.data.cache import DataSet
from cifar_lab.program import run
from cifar_lab.settings import choice, integer, real


def shares(model: str, args: Namespace, data: DataSet) -> list[tuple[str, float, float]]:
    """Operator, its share of the time of all operators (0 to 1) and its calls per step, the largest share first."""
    module, settings = ours.parse(ours.command(
        model, ours.ALONE, "--width", args.width, *program.where(args), "--train-size", len(data.train_images),
        "--no-cuda-graph",
    ))  # fmt: skip
    with ours.lockstep(settings, data) as group:
        steps = ours.train(group, module)
        for _ in islice(steps, 5):  # warm up
            pass
        cuda = group.device.torch.type == "cuda"
        with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]) as profiled:
            for _ in islice(steps, args.steps):
                pass
            group.synchronize()
        steps.close()
    times = [(e.key, e.self_device_time_total if cuda else e.self_cpu_time_total, e.count)
             for e in profiled.key_averages()]  # fmt: skip
    total = sum(time for _, time, _ in times) or 1.0
    return sorted(((key, time / total, count / args.steps) for key, time, count in times), key=lambda row: -row[1])


def main(argv: list[str]) -> int:
    parser = program.parser("bench.profile_step", __doc__)
    add = parser.add_argument
    add("--models", nargs="+", type=choice(*ours.MODELS), default=list(ours.MODELS), help=" ".join(ours.MODELS))
    add("--width", type=real(0, 8, above=True), default=1.0, help="of the networks (1)")
    add("--steps", type=integer(1, 1000), default=10, help="steps that are profiled (10)")
    add("--rows", type=integer(1, 1000), default=8, help="operators shown (8)")
    args = parser.parse_args(argv)
    data, device = program.data_and_device(args)
    print(output.header(output.described(device, data.name)))
    for model in args.models:
        rows = [[f"`{key}`", f"{100 * share:.1f}", f"{calls:g}"] for key, share, calls in shares(model, args, data)]
        print(f"\n## {model}, width {args.width:g}\n")
        print(output.markdown_table(["operator", "% of the time", "calls per step"], rows[: args.rows]), end="",
              flush=True)  # fmt: skip
    return 0


if __name__ == "__main__":
    run(main, sys.argv[1:])

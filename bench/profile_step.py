"""Where a training step's time goes: PyTorch's operators by their share, over some steps of the engine.

    python -m bench.profile_step                                # the four networks at width 1, a minute on 2 CPU cores
    python -m bench.profile_step --models vgg_a --width 0.25 --device cuda

Prints a table a network and writes nothing. On CUDA the steps are launched one by one, not replayed from a graph, in
which operators have no names.
"""

import sys
import tempfile
from itertools import islice
from pathlib import Path

from torch.profiler import ProfilerActivity, profile

from bench import ours, output
from cifar_lab.settings import choice, integer, real


def shares(model: str, args, data) -> list[tuple[str, float, float]]:
    """Operator, its share of the time of all operators (0 to 1) and its calls a step, the largest share first."""
    module, flags = ours.command_line(model, slice(0, 1))
    flags = [*flags, "--width", str(args.width), "--device", args.device, "--no-cuda-graph", *ours.NO_CHECKPOINTS]
    with tempfile.TemporaryDirectory() as results:
        group = ours.lockstep(module, flags, data, Path(results), ours.Quiet())
        steps = ours.train(group, module)
        for _ in islice(steps, 5):  # warm up
            pass
        cuda = group.device.torch.type == "cuda"
        with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]) as profiled:
            for _ in islice(steps, args.steps):
                pass
            group.device.synchronize()
        steps.close()
    times = [(e.key, e.self_device_time_total if cuda else e.self_cpu_time_total, e.count)
             for e in profiled.key_averages()]  # fmt: skip
    total = sum(time for _, time, _ in times) or 1.0
    return sorted(((key, time / total, count / args.steps) for key, time, count in times), key=lambda row: -row[1])


def main(argv: list[str] | None = None) -> int:
    parser = output.Parser(__doc__)
    add = parser.add_argument
    add("--models", nargs="+", type=choice(*ours.MODELS), default=list(ours.MODELS), help=" ".join(ours.MODELS))
    add("--width", type=real(0, 8, above=True), default=1.0, help="of the networks (1)")
    add("--steps", type=integer(1, 1000), default=10, help="steps that are profiled (10)")
    add("--rows", type=integer(1, 1000), default=8, help="operators shown (8)")
    args = parser.parse_args(argv)
    data, device = ours.data_and_device(args, "profile_step")
    print(output.header(output.described(device, data.name)))
    for model in args.models:
        rows = [[f"`{key}`", f"{100 * share:.1f}", f"{calls:g}"] for key, share, calls in shares(model, args, data)]
        print(f"\n## {model}, width {args.width:g}\n")
        print(
            output.markdown_table(["operator", "% of the time", "calls a step"], rows[: args.rows]), end="", flush=True
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())

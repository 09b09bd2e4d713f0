"""Accuracy is not traded for speed: test accuracy after the classic loop, and after the engine in fp32 and in bf16.

    python -m bench.accuracy                        # both VGGs and both Inceptions at the quick preset, 5 seeds: 15 min
    python -m bench.accuracy --sides fp32 bf16      # the engine alone
    python -m bench.accuracy --models vgg_a_bn --seeds 0 1 2

All sides train the same networks with the same settings. The classic loop shuffles and augments as torchvision does, so
that it shares a seed's number with the engine and none of its draws; fp32 and bf16 share all of them. Results are
written to bench/results/<device>-accuracy.md and .json after each seed. Nothing here is a matter of time: other
programs may run beside it.
"""

import os
import sys
from functools import partial

import numpy as np
import torch

from bench import classic, ours, output, program
from cifar_lab.data.cache import DataSet
from cifar_lab.measures.evaluation import evaluate
from cifar_lab.measures.statistics import t_quantile
from cifar_lab.program import run
from cifar_lab.run_folder.reader import final_accuracy
from cifar_lab.settings import LARGEST_SEED, PRESETS, choice, integer
from cifar_lab.training.device import choose
from cifar_lab.training.loader import Loader

PRESET = "quick"


def command(model: str, seed: int, device: str) -> list[str]:
    """The command of a model's first run at the preset."""
    return ours.command(model, ours.ALONE, "--preset", PRESET, "--seed", seed, "--device", device)


def with_classic(model: str, seed: int, data: DataSet, device: str) -> float:
    """Final test accuracy (percent) after the classic loop."""
    _, settings = ours.parse(command(model, seed, device))
    (config,) = settings.runs(seed)
    place = choose(settings)
    test = Loader(data, place, seed=seed, batch_size=2, train_size=2, test_size=config.test_size)
    classic.default_precision()
    torch.manual_seed(seed)
    network, optimizer = classic.network(config, place.torch)
    images, labels = data.train_images[: config.train_size], data.train_labels[: config.train_size]
    batches = classic.loader(images, labels, config.batch_size, min(8, os.cpu_count() or 1))
    steps = classic.train(network, optimizer, batches, place.torch)
    accuracy = []
    for _ in range(settings.epochs):
        for _ in range(len(batches)):
            next(steps)
        _, confusion, _ = evaluate(network.eval(), test.test_batches())
        network.train()
        accuracy.append(100 * int(confusion.trace()) / int(confusion.sum()))
    return final_accuracy(accuracy)


def with_ours(model: str, seed: int, data: DataSet, device: str, precision: str) -> float:
    """Final test accuracy (percent) after the engine."""
    module, settings = ours.parse([*command(model, seed, device), "--precision", precision])
    with ours.lockstep(settings, data) as group:
        module.train(group)
        return final_accuracy(group.runs[0].accuracies)


SIDES = {
    "classic": with_classic,
    "fp32": partial(with_ours, precision="fp32"),
    "bf16": partial(with_ours, precision="bf16"),
}
# Second minus first, and whether they share their draws.
COMPARED = {("classic", "fp32"): False, ("fp32", "bf16"): True}


def difference(first: list[float], second: list[float], paired: bool = False) -> tuple[float, float] | None:
    """Mean difference, second minus first, and half its 95% interval (Student): of pairs, or of two samples of n with
    their variances pooled. None with fewer than two of each.
    """
    n = min(len(first), len(second))
    if n < 2:
        return None
    one, two = np.array(first[:n]), np.array(second[:n])
    if paired:
        half = t_quantile(n - 1) * np.std(two - one, ddof=1) / np.sqrt(n)
    else:
        half = t_quantile(2 * n - 2) * np.sqrt((np.var(one, ddof=1) + np.var(two, ddof=1)) / n)
    return float(np.mean(two) - np.mean(one)), float(half)


def markdown(about: dict, finals: dict[str, dict[str, list[float]]]) -> str:
    def shown(values: list[float]) -> str:
        spread = f" ± {np.std(values, ddof=1):.2f}" if len(values) > 1 else ""
        return f"{np.mean(values):.2f}{spread} (n = {len(values)})"

    preset = ", ".join(f"{name.replace('_', ' ')} {value:,}" for name, value in PRESETS[PRESET].items())
    sides = list(next(iter(finals.values())))
    compared = [pair for pair in COMPARED if set(pair) <= set(sides)]
    rows = []
    for model, of in finals.items():
        row = [model, *(shown(of[side]) for side in sides)]
        for first, second in compared:
            between = difference(of[first], of[second], COMPARED[first, second])
            mean, half = between or (np.nan, np.nan)
            row.append(f"{mean:+.2f} [{mean - half:+.2f}, {mean + half:+.2f}]" if between else "-")
        rows.append(row)
    return (
        f"# Accuracy with the classic loop and with the engine\n\n{output.header(about)}\n\n"
        f"Preset {PRESET}: {preset}. Final test accuracy in percent (mean of the last three epochs), mean and "
        f"standard deviation over the seeds {about['seeds']}; difference in points with its 95% interval, of pairs "
        "between fp32 and bf16.\n\n"
        + output.markdown_table(["model", *sides, *(f"{two} minus {one}" for one, two in compared)], rows)
    )


def main(argv: list[str]) -> int:
    parser = program.parser("bench.accuracy", __doc__)
    add = parser.add_argument
    add("--models", nargs="+", type=choice(*ours.MODELS), default=list(ours.MODELS), help=" ".join(ours.MODELS))
    add("--sides", nargs="+", type=choice(*SIDES), default=list(SIDES), help=" ".join(SIDES))
    add("--seeds", nargs="+", type=integer(0, LARGEST_SEED), default=[0, 1, 2, 3, 4], help="(0 1 2 3 4)")
    args = parser.parse_args(argv)
    data, device = program.data_and_device(args)
    about = output.described(device, data.name) | {"seeds": " ".join(map(str, args.seeds))}
    finals = {model: {side: [] for side in args.sides} for model in args.models}
    for seed in args.seeds:
        for model in args.models:
            for side in args.sides:
                finals[model][side].append(SIDES[side](model, seed, data, device.torch.type))
                print(f"{model:<14} seed {seed:<4} {side:<8} {finals[model][side][-1]:6.2f}%", flush=True)
        name = f"{output.slug(device)}-accuracy"
        output.write(args.output, name, {"about": about, "final_accuracy": finals}, markdown(about, finals))
    print(args.output / f"{name}.md", flush=True)
    return 0


if __name__ == "__main__":
    run(main, sys.argv[1:])

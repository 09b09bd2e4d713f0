"""Accuracy is not traded for speed: test accuracy after the classic loop and after the engine, over several seeds.

    python -m bench.accuracy                        # both VGGs and both Inceptions at the quick preset, 5 seeds: 10 min
    python -m bench.accuracy --models vgg_a_bn --seeds 0 1 2

Both sides train the same networks with the same settings; the classic loop shuffles and augments as torchvision does,
so the two share a seed's number and none of its draws. Results are written to bench/results/<device>-accuracy.md and
.json after each seed. Nothing here is a matter of time: other programs may run beside it.
"""

import os
import sys

import numpy as np
import torch

from bench import classic, ours, output, program
from cifar_lab.data.cache import Cifar10
from cifar_lab.measures.evaluation import evaluate
from cifar_lab.measures.statistics import t_quantile
from cifar_lab.run_folder.reader import final_accuracy
from cifar_lab.settings import LARGEST_SEED, PRESETS, choice, integer
from cifar_lab.training.device import choose
from cifar_lab.training.loader import Loader

PRESET = "quick"


def command(model: str, seed: int, device: str) -> list[str]:
    """The command of a model's first run at the preset."""
    return ours.command(model, ours.ALONE, "--preset", PRESET, "--seed", seed, "--device", device)


def with_classic(model: str, seed: int, data: Cifar10, device: str) -> float:
    """Final test accuracy (percent) after the classic loop."""
    _, settings = ours.parse(command(model, seed, device))
    (config,) = settings.runs(seed)
    place = choose(settings)
    test = Loader(data, place, seed=seed, batch_size=2, train_size=2, test_size=config.test_size, augmented=False)
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
        _, confusion = evaluate(network.eval(), test.test_batches())
        network.train()
        accuracy.append(100 * int(confusion.trace()) / int(confusion.sum()))
    return final_accuracy(accuracy)


def with_ours(model: str, seed: int, data: Cifar10, device: str) -> float:
    """Final test accuracy (percent) after the engine."""
    module, settings = ours.parse(command(model, seed, device))
    with ours.lockstep(settings, data) as group:
        module.train(group)
        return final_accuracy(group.runs[0].test_accuracy)


def difference(classic_: list[float], ours_: list[float]) -> tuple[float, float] | None:
    """Mean difference, ours minus classic, and half its 95% interval: two samples of n, variances pooled (Student).

    None with fewer than two of each.
    """
    n = min(len(classic_), len(ours_))
    if n < 2:
        return None
    pooled = (np.var(classic_[:n], ddof=1) + np.var(ours_[:n], ddof=1)) / 2
    half = t_quantile(2 * n - 2) * np.sqrt(2 * pooled / n)
    return float(np.mean(ours_[:n]) - np.mean(classic_[:n])), float(half)


def markdown(about: dict, finals: dict[str, dict[str, list[float]]]) -> str:
    def shown(values: list[float]) -> str:
        spread = f" ± {np.std(values, ddof=1):.2f}" if len(values) > 1 else ""
        return f"{np.mean(values):.2f}{spread} (n = {len(values)})"

    preset = ", ".join(f"{name.replace('_', ' ')} {value:,}" for name, value in PRESETS[PRESET].items())
    rows = []
    for model, sides in finals.items():
        between = "-"
        if compared := difference(sides["classic"], sides["ours"]):
            mean, half = compared
            between = f"{mean:+.2f} [{mean - half:+.2f}, {mean + half:+.2f}]"
        rows.append([model, shown(sides["classic"]), shown(sides["ours"]), between])
    return (
        f"# Accuracy with the classic loop and with the engine\n\n{output.header(about)}\n\n"
        f"Preset {PRESET}: {preset}. Final test accuracy in percent (mean of the last three epochs), mean and "
        f"standard deviation over the seeds {about['seeds']}; difference in points with its 95% interval.\n\n"
        + output.markdown_table(["model", "classic", "ours", "ours minus classic"], rows)
    )


def main(argv: list[str]) -> int:
    parser = program.parser("bench.accuracy", __doc__)
    add = parser.add_argument
    add("--models", nargs="+", type=choice(*ours.MODELS), default=list(ours.MODELS), help=" ".join(ours.MODELS))
    add("--seeds", nargs="+", type=integer(0, LARGEST_SEED), default=[0, 1, 2, 3, 4], help="(0 1 2 3 4)")
    args = parser.parse_args(argv)
    data, device = program.data_and_device(args)
    about = output.described(device, data.name) | {"seeds": " ".join(map(str, args.seeds))}
    finals = {model: {"classic": [], "ours": []} for model in args.models}
    for seed in args.seeds:
        for model in args.models:
            for side, train in (("classic", with_classic), ("ours", with_ours)):
                finals[model][side].append(train(model, seed, data, device.torch.type))
                print(f"{model:<14} seed {seed:<4} {side:<8} {finals[model][side][-1]:6.2f}%", flush=True)
        name = f"{output.slug(device)}-accuracy"
        output.write(args.output, name, {"about": about, "final_accuracy": finals}, markdown(about, finals))
    print(args.output / f"{name}.md", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

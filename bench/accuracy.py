"""Accuracy is not traded for speed: test accuracy after the classic loop and after the engine, over several seeds.

    python -m bench.accuracy                        # both VGGs and both Inceptions at the quick preset, 5 seeds: 10 min
    python -m bench.accuracy --models vgg_a_bn --seeds 0 1 2

Both sides train the same networks with the same settings; the classic loop shuffles and augments as torchvision does,
so the two share a seed's number and none of its draws. Results are written to bench/results/<device>-accuracy.md and
.json after each seed. Nothing here is a matter of time: other programs may run beside it.
"""

import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from bench import classic, ours, output
from cifar_lab.augment import normalize, to_unit
from cifar_lab.config import PRESETS
from cifar_lab.data import Cifar10
from cifar_lab.runs import final_accuracy, find_run_folders, read_run
from cifar_lab.settings import LARGEST_SEED, Settings, choice, integer
from verdicts import t_quantile

PRESET = "quick"


def settings_of(model: str, seed: int, device: str) -> tuple[object, list[str], Settings]:
    """The script of a model, and the flags and settings of its first run at the preset."""
    module, flags = ours.command_line(model, slice(0, 1))
    flags = [*flags, "--preset", PRESET, "--seed", str(seed), "--device", device, *ours.NO_CHECKPOINTS]
    return module, flags, ours.parse(module, flags)


def with_classic(model: str, seed: int, data: Cifar10, device: str) -> float:
    """Final test accuracy (percent) after the classic loop."""
    module, _, settings = settings_of(model, seed, device)
    (config,) = settings.runs(seed)
    place = ours.choose_device(device).torch
    classic.default_precision()
    torch.manual_seed(seed)
    network, optimizer = classic.network(config, module.build(config), place)
    images, labels = data.train_images[: config.train_size], data.train_labels[: config.train_size]
    batches = classic.loader(images, labels, config.batch_size, min(8, os.cpu_count() or 1))
    test_images = normalize(to_unit(torch.from_numpy(data.test_images[: config.test_size]))).to(place)
    test_labels = torch.from_numpy(data.test_labels[: config.test_size]).to(place)
    steps = classic.train(network, optimizer, batches, place)
    accuracy = []
    for _ in range(settings.epochs):
        for _ in range(len(batches)):
            next(steps)
        network.eval()
        with torch.inference_mode():
            right = sum(
                int((network(x).argmax(1) == y).sum())
                for x, y in zip(test_images.split(500), test_labels.split(500), strict=True)
            )
        network.train()
        accuracy.append(100 * right / len(test_labels))
    return final_accuracy(accuracy)


def with_ours(model: str, seed: int, data: Cifar10, device: str) -> float:
    """Final test accuracy (percent) after the engine."""
    module, flags, _ = settings_of(model, seed, device)
    with tempfile.TemporaryDirectory() as results:
        group = ours.lockstep(module, flags, data, Path(results), ours.Quiet())
        module.train(group, *([0] if model.startswith("vgg") else []))
        (folder,) = find_run_folders(results)
        return read_run(folder).final_accuracy


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
        compared = difference(sides["classic"], sides["ours"])
        between = "-" if compared is None else (
            f"{compared[0]:+.2f} [{compared[0] - compared[1]:+.2f}, {compared[0] + compared[1]:+.2f}]"
        )  # fmt: skip
        rows.append([model, shown(sides["classic"]), shown(sides["ours"]), between])
    return (
        f"# Accuracy with the classic loop and with the engine\n\n{output.header(about)}\n\n"
        f"Preset {PRESET}: {preset}. Final test accuracy in percent (mean of the last three epochs), mean and "
        f"standard deviation over the seeds {about['seeds']}; difference in points with its 95% interval.\n\n"
        + output.markdown_table(["model", "classic", "ours", "ours minus classic"], rows)
    )


def main(argv: list[str] | None = None) -> int:
    parser = output.Parser(__doc__)
    add = parser.add_argument
    add("--models", nargs="+", type=choice(*ours.MODELS), default=list(ours.MODELS), help=" ".join(ours.MODELS))
    add("--seeds", nargs="+", type=integer(0, LARGEST_SEED), default=[0, 1, 2, 3, 4], help="(0 1 2 3 4)")
    args = parser.parse_args(argv)
    data, device = ours.data_and_device(args, "accuracy")
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
    sys.exit(main())

"""The coordinate check: how much each layer's preactivations change in the first steps, at several widths.

    python -m bench.coordinates                         # four networks, four widths, 3 seeds: 3 min on one CPU core
    python -m bench.coordinates --models vgg_a --seeds 0 --optimizer sgd --lr 1e-2

With the learning rates that a width needs, each layer changes by the same relative amount at every width (Yang et al.
2021, "Tensor Programs V", appendix D.1). A few steps are taken on the first images of the data set, without
augmentation; the change is ||z' - z|| / ||z|| of a layer's preactivations z on a batch that no step used, in train mode
and without dropout. "Spread" is the largest over the smallest mean (over the seeds) of the widths. Results are written
to bench/results/<device>-coordinates.md, .json, .png and .svg. Nothing here is a matter of time.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench import ours, output, program
from cifar_lab.figures.style import plt, save, small_print
from cifar_lab.networks import NETWORKS, StepDropout, build
from cifar_lab.optimizers import OPTIMIZERS, build_optimizer
from cifar_lab.program import run
from cifar_lab.settings import LARGEST_SEED, RunConfig, choice, integer, number, real
from cifar_lab.training.device import Device
from cifar_lab.width import parameter_groups, scale_output

WIDTHS = (0.125, 0.25, 0.5, 1.0)
COLOURS = ("#56B4E9", "#009E73", "#E69F00", "#000000")  # of the widths
BATCH = 100
Changes = dict[str, list[float]]  # by layer, one per width


@contextmanager
def preactivations(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Holds what each convolution and linear layer gave in the latest pass, by its name."""
    seen: dict[str, Tensor] = {}
    layers = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    hooks = [m.register_forward_hook(lambda _, __, out, n=n: seen.__setitem__(n, out.detach())) for n, m in layers]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def relative_changes(config: RunConfig, images: Tensor, labels: Tensor, device: Device) -> dict[str, float]:
    """The change of each layer's preactivations on the first batch over a step on each of the others.

    images: (steps + 1, B, 3, 32, 32) in [-1, 1]; labels: (steps + 1, B) int64.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = build(config)
    scale_output(config, model)
    model = device.place(model).train()
    for module in model.modules():
        if isinstance(module, StepDropout):
            module.p = 0.0
    optimizer = build_optimizer(config, parameter_groups(config, model), device.torch)
    (fixed, *batches), (_, *truths) = (device.place(x) for x in images), labels.to(device.torch)
    with preactivations(model) as seen:
        with torch.no_grad():
            model(fixed)
        before = dict(seen)
        for batch, truth in zip(batches, truths, strict=True):
            optimizer.zero_grad(set_to_none=True)
            F.cross_entropy(model(batch), truth).backward()
            optimizer.step()
        with torch.no_grad():
            model(fixed)
        return {name: float((seen[name] - z).norm() / z.norm()) for name, z in before.items()}


def changes(config: RunConfig, seeds: list[int], images: Tensor, labels: Tensor, device: Device) -> dict[str, Changes]:
    """The mean change over the seeds at each of WIDTHS, with one rate for all of them and with the transfer.

    Of the layers that all widths have, in the network's order. Width 1 is measured once, for both.
    """

    def mean(width: float, transfer: bool) -> dict[str, float]:
        each = [replace(config, width=width, width_transfer=transfer, seed=seed) for seed in seeds]
        found = [relative_changes(one, images, labels, device) for one in each]
        return {name: float(np.mean([f[name] for f in found])) for name in found[0]}

    full = mean(1.0, True)
    measured = {}
    for side, transfer in (("one rate", False), ("width transfer", True)):
        by_width = [*(mean(width, transfer) for width in WIDTHS[:-1]), full]
        measured[side] = {name: [of[name] for of in by_width] for name in full if all(name in of for of in by_width)}
    return measured


def spread(row: list[float]) -> float:
    return max(row) / min(row)


def draw(measured: dict[str, dict[str, Changes]], text: str):
    """A row of panels per network: without the transfer, and with it; a line per width over the layers."""
    figure, panels = plt.subplots(len(measured), 2, figsize=(9.6, 3.0 * len(measured)), sharey="row", squeeze=False)
    for (model, sides), row in zip(measured.items(), panels, strict=True):
        for (side, of), axes in zip(sides.items(), row, strict=True):
            for i, (width, colour) in enumerate(zip(WIDTHS, COLOURS, strict=False)):
                layers = range(1, len(of) + 1)
                axes.plot(
                    layers, [r[i] for r in of.values()], "o-", color=colour, markersize=3, label=f"width {width:g}"
                )
            axes.set(yscale="log", title=f"{NETWORKS[model].label}, {side}", xlabel="convolution or linear layer")
        row[0].set_ylabel("relative change of preactivations")
    panels[0][0].legend(fontsize=8)
    small_print(figure, text)
    return figure


def markdown(about: dict, measured: dict[str, dict[str, Changes]]) -> str:
    text = [f"# Coordinate check\n\n{output.header(about)}\n\n{about['what']}.\n"]
    for model, sides in measured.items():
        without, with_transfer = sides.values()
        spreads = [[spread(row) for row in side.values()] for side in sides.values()]
        inside = [sum(s <= 1.6 for s in of) for of in spreads]
        rows = [
            [name, *(f"{x:.3f}" for x in without[name]), f"{a:.2f}",
             *(f"{x:.3f}" for x in with_transfer[name][:-1]), f"{b:.2f}"]
            for name, a, b in zip(without, *spreads, strict=True)
        ]  # fmt: skip
        widths = [f"width {w:g}" for w in WIDTHS]
        text.append(
            f"\n## {NETWORKS[model].label}\n\nWithin a factor of 1.6: {inside[0]} of {len(rows)} layers without the "
            f"transfer, {inside[1]} with it.\n\n"
        )
        text.append(output.markdown_table(["layer", *widths, "spread", *(f"with, {w}" for w in widths[:-1]),
                                           "spread"], rows))  # fmt: skip
    return "".join(text)


def main(argv: list[str]) -> int:
    parser = program.parser("bench.coordinates", __doc__)
    add = parser.add_argument
    add("--models", nargs="+", type=choice(*ours.MODELS), default=list(ours.MODELS), help=" ".join(ours.MODELS))
    add("--seeds", nargs="+", type=integer(0, LARGEST_SEED), default=[0, 1, 2], help="(0 1 2)")
    add("--steps", type=integer(1, 100), default=5, help="(5)")
    add("--optimizer", type=choice(*OPTIMIZERS), default="adam", help=f"{' '.join(OPTIMIZERS)} (adam)")
    add("--lr", type=real(0, 1e6, above=True), default=1e-4, help="learning rate at width 1 (1e-4)")
    args = parser.parse_args(argv)
    data, device = program.data_and_device(args)
    device = replace(device, precision="fp32")  # bf16 rounds by as much as the first layers change
    n = (args.steps + 1) * BATCH
    images = (torch.from_numpy(data.train_images[:n]).permute(0, 3, 1, 2) / 127.5 - 1).unflatten(0, (-1, BATCH))
    labels = torch.from_numpy(data.train_labels[:n]).long().unflatten(0, (-1, BATCH))
    what = (
        f"{args.steps} steps of {OPTIMIZERS[args.optimizer].label} at learning rate {number(args.lr)}, "
        f"batch {BATCH}, mean over the seeds {' '.join(map(str, args.seeds))}"
    )
    about = output.described(device, data.name) | {"what": what}
    name = f"{output.slug(device)}-coordinates"
    measured: dict[str, dict[str, Changes]] = {}
    for model in args.models:
        config = RunConfig(model, args.optimizer, args.lr)
        measured[model] = changes(config, args.seeds, images, labels, device)
        output.write(
            args.output, name, {"about": about, "widths": WIDTHS, "changes": measured}, markdown(about, measured)
        )
        worst = [max(map(spread, side.values())) for side in measured[model].values()]
        print(f"{model:<14} largest spread {worst[0]:.2f} with one rate, {worst[1]:.2f} with the transfer", flush=True)
    save(draw(measured, f"{what}; {device.describe()}"), args.output / name)
    print(args.output / f"{name}.md", flush=True)
    return 0


if __name__ == "__main__":
    run(main, sys.argv[1:])

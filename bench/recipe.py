"""Today's recipe against the report's: accuracy over seconds of training, and what each of its ingredients is worth.

    python -m bench.recipe                                   # everything, five seeds: two days on two CPU cores
    python -m bench.recipe --parts curves --seeds 0 1 2
    python -m bench.recipe --parts ablation --results runs/  # only draws what is complete in runs/, and trains the rest

- curves: VGG-A with BatchNorm at the width and for the epochs of `--preset modern`, with the report's recipe, with
  today's, and with today's in the loop of tutorials (torchvision's transforms on one PIL image at a time, fp32, eager).
- ablation: all that a first look took into the recipe, without each of its ingredients, and with others, on validation
  images. The preset has what gains in it, and batches of 256, which are faster on a CPU.
- lengths: the preset at widths and lengths that take about as long on two CPU cores, on validation images.
- budgets: the best of these on test images, trained on all images.
- lengths-candidate, budgets-candidate: the same with label smoothing and an average of the weights.

All but budgets hold out 5,000 training images, on which every epoch is evaluated, and test at the end. Seconds are
those of training, without evaluations; on a CPU nothing else may run beside. Results are written to
bench/results/<device>-recipe-<part>.md and .json, the curves' figure beside them.
"""

import shlex
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch.optim.lr_scheduler import OneCycleLR

from bench import classic, ours, output, program
from cifar_lab.data.cache import DataSet
from cifar_lab.figures.style import plt
from cifar_lab.measures.evaluation import evaluate, predictor
from cifar_lab.measures.statistics import t_quantile
from cifar_lab.program import fail, run
from cifar_lab.project import ROOT
from cifar_lab.run_folder.reader import Run, read_run
from cifar_lab.run_folder.schema import read_summary, trained_to
from cifar_lab.settings import LARGEST_SEED, MODERN_PRESETS, choice, folder, integer, run_folder
from cifar_lab.training.device import Device
from cifar_lab.training.loader import Loader

MODERN = "MyVGG.py --preset modern"
VALIDATION = "--validation-size 5000"
OF_PRESET = MODERN_PRESETS["modern"]
REPORT = f"MyVGG.py --bn --lrs 1e-3 --width {OF_PRESET['width']} --epochs {OF_PRESET['epochs']}"  # its figure 9
TRIED = "--loss label_smoothing --ema 0.99"  # beside what the preset has
CANDIDATE = f"--width 0.375 --epochs 8 {TRIED}"  # what the ablation starts from
CURVES = {"the report's recipe": REPORT, "today's recipe": MODERN}
TUTORIAL = "today's recipe, tutorial loop"
# What is changed, and the flags that change it.
LEFT_OUT = {
    "BatchNorm": "--no-bn",
    "Muon (Nesterov SGD at its own best rate and decay)": "--optimizer nesterov --momentum 0.9 --lrs 0.2 "
    "--weight-decay 5e-4",
    "flips and crops": "--augment none",
    "one-cycle schedule (constant rate)": "--schedule constant",
    "average of the weights": "--ema 0",
    "PyTorch's initialization (He's)": "--init he",
    "flip at test time": "--no-test-time-flip",
    "label smoothing": "--loss cross_entropy",
    "weight decay": "--weight-decay 0",
    "batches of 256 (128)": "--batch-size 128",
}
ADDED = {
    "cutout of 8 pixels": "--cutout 8",
    "mixup 0.2": "--mixup 0.2",
    "BatchNorm's statistics estimated again": "--bn-images 10000",
    "the report's augmentation": "--augment report",
    "no decay of biases and norms": "--no-bias-decay",
}
LENGTHS = {  # by minutes of two cores, the best first
    5: ("--width 0.25 --epochs 16", "--width 0.375 --epochs 8"),
    15: ("--width 0.375 --epochs 26", "--width 0.5 --epochs 15", "--width 0.625 --epochs 9"),
    30: ("--width 0.5 --epochs 31", "--width 0.625 --epochs 19", "--width 0.75 --epochs 12"),
}
# At 5 minutes the preset itself, which is two epochs shorter: its tests take part of them.
BUDGETS = {5: ""} | {minutes: LENGTHS[minutes][0] for minutes in (15, 30)}
PARTS = ("curves", "ablation", "lengths", "budgets", "lengths-candidate", "budgets-candidate")

# --- Runs of the scripts ---------------------------------------------------------------------------------------------


def trained(words: str, seed: int, results: Path, flags: list[str] | None, device: Device) -> Run | None:
    """The run of a command, trained if it is not complete in the results folder; without flags None if it is not.

    flags: for training, on the device. Ends the program if that fails, or if the run has more epochs.
    """
    command = [*shlex.split(words), "--seed", str(seed), "--results", str(results), *(flags or ())]
    _, settings = ours.parse(command)
    (config,) = settings.runs(seed)
    if settings.precision != "auto":
        config = replace(config, device=device.torch.type, precision=settings.precision)
    place = run_folder(results, settings.preset, config, device.usual)
    summary = read_summary(place / "summary.json")
    if not trained_to(summary, settings.epochs) or summary["epochs"] > settings.epochs:
        if flags is None:
            return None
        ended = program.run([str(ROOT / command[0]), *command[1:]], limit=1e6)
        if ended["status"] or (summary and summary["epochs"] > settings.epochs):
            fail(f"bench.recipe: {' '.join(command)}: {' / '.join(ended['last_lines'][-3:])}", 1)
    complete = read_run(place)
    if complete.place != Path(*place.parts[-3:]):
        fail(f"bench.recipe: {place}: its settings belong to the folder {complete.place}")
    return complete


def accuracy_over_time(run: Run) -> list[tuple[float, float]]:
    """Seconds of training and validation accuracy (percent) after each epoch."""
    return list(zip(np.cumsum(run.column("train_seconds")).tolist(), run.column("test_accuracy").tolist(), strict=True))


def test_accuracy(run: Run) -> float:
    """At the end, in percent."""
    validated = run.settings["validation_size"] > 0
    return _finite(run.summary["test_accuracy" if validated else "last_accuracy"])


def _finite(accuracy: float | None) -> float:
    """An accuracy; 0 of a run that diverged before it had one."""
    return 0.0 if accuracy is None else float(accuracy)


# --- The tutorial loop -----------------------------------------------------------------------------------------------


def tutorial(seed: int, data: DataSet, device: Device) -> tuple[list[tuple[float, float]], float]:
    """The preset in the classic loop: seconds and validation accuracy after each epoch, and test accuracy at the end.

    It draws the same images for validation as the engine, and shares with it nothing else that is random. Raises
    ValueError if the preset has what this loop has not.
    """
    _, settings = ours.parse([*shlex.split(f"{MODERN} {VALIDATION}"), "--seed", str(seed)])
    (config,) = settings.runs(seed)
    if (config.loss, config.schedule, config.augment, config.ema) != ("cross_entropy", "one-cycle", "flip-crop", 0):
        raise ValueError(f"the tutorial loop has not the recipe of {MODERN}")
    place = replace(device, precision="fp32", channels_last=False)
    held = Loader(
        data, place, seed=seed, batch_size=2, train_size=config.train_size, test_size=config.test_size,
        validation_size=config.validation_size,
    )  # fmt: skip
    classic.default_precision()
    torch.manual_seed(seed)
    model, optimizer = classic.network(config, place.torch)
    batches = classic.loader(
        held.images.cpu().numpy(), held.labels.cpu().numpy(), config.batch_size, place.threads, classic.FLIP_CROP
    )
    schedule = OneCycleLR(
        optimizer, [group["lr"] for group in optimizer.param_groups], epochs=settings.epochs,
        steps_per_epoch=len(batches), cycle_momentum=False,
    )  # fmt: skip
    steps = classic.train(model, optimizer, batches, place.torch)
    forward = predictor(model, config.test_time_flip)
    seconds, curve = 0.0, []
    for _ in range(settings.epochs):
        model.train()
        start = time.perf_counter()
        for _ in range(len(batches)):
            next(steps)
            schedule.step()
        place.synchronize()
        seconds += time.perf_counter() - start
        model.eval()
        _, confusion, _ = evaluate(forward, held.held_out_batches())
        curve.append((seconds, 100 * int(confusion.trace()) / int(confusion.sum())))
    _, confusion, _ = evaluate(forward, held.test_batches())
    return curve, 100 * int(confusion.trace()) / int(confusion.sum())


# --- Parts -----------------------------------------------------------------------------------------------------------


def spread(values: list[float]) -> str:
    """Mean and half its 95% interval (Student): `88.21 ± 0.30 (n = 5)`; a dash if there are none."""
    n = len(values)
    half = t_quantile(n - 1) * np.std(values, ddof=1) / n**0.5 if n > 1 else np.nan
    return (f"{np.mean(values):.2f}" + (f" ± {half:.2f}" if n > 1 else "") + f" (n = {n})") if n else "-"


def compared(found: dict[str, dict]) -> dict[str, tuple[float, float]]:
    """What each row gains on validation images over the row `nothing`, and half its 95% interval, in points.

    A seed holds out images of its own, so differences are of equal seeds. Their standard deviation is pooled over the
    rows that train at all (above 50%), so that those of few seeds have an interval that says something.
    """
    values = {name: dict(zip(of["seeds"], of["validation"], strict=True)) for name, of in found.items()}
    base = values.pop("nothing", {})
    gains = {name: np.array([of[seed] - base[seed] for seed in of.keys() & base.keys()]) for name, of in values.items()}
    pooled = [of for name, of in gains.items() if len(of) > 1 and np.mean(list(values[name].values())) > 50]
    freedom = sum(len(of) - 1 for of in pooled)
    if not freedom:
        return {}
    half = t_quantile(freedom) * (sum(((of - of.mean()) ** 2).sum() for of in pooled) / freedom) ** 0.5
    return {name: (float(of.mean()), float(half / len(of) ** 0.5)) for name, of in gains.items() if len(of)}


def curves(seeds: list[int], results: Path, flags: list[str] | None, data: DataSet, device: Device) -> Iterator[dict]:
    """Seed by seed, so that whatever else a machine does meets all of them."""
    found: dict[str, dict[str, list]] = {name: {"curves": [], "test": []} for name in (*CURVES, TUTORIAL)}
    for seed in seeds:
        for name, words in CURVES.items():
            of = trained(f"{words} {VALIDATION}", seed, results, flags, device)
            found[name]["curves"].append(accuracy_over_time(of))
            found[name]["test"].append(test_accuracy(of))
        curve, test = tutorial(seed, data, device)
        found[TUTORIAL]["curves"].append(curve)
        found[TUTORIAL]["test"].append(test)
        yield found


def commands(part: str) -> dict[str, str]:
    """What a part trains, by the name of its row."""
    also = TRIED if part.endswith("-candidate") else ""
    if part == "ablation":
        variants = {"nothing": ""}
        variants |= {f"without {name}": of for name, of in LEFT_OUT.items()}
        variants |= {f"with {name}": of for name, of in ADDED.items()}
        found = {name: f"{MODERN} {CANDIDATE} {VALIDATION} {of}" for name, of in variants.items()}
    elif part.startswith("lengths"):
        every = [(minutes, more) for minutes, of in LENGTHS.items() for more in of]
        found = {f"{minutes} minutes: {more}": f"{MODERN} {also} {VALIDATION} {more}" for minutes, more in every}
    else:
        found = {f"{minutes} minutes": f"{MODERN} {also} {of}" for minutes, of in BUDGETS.items()}
    return {name: " ".join(command.split()) for name, command in found.items()}


def accuracies(
    part: str, seeds: list[int], results: Path, flags: list[str] | None, data: DataSet, device: Device
) -> Iterator[dict]:
    """Final accuracies on validation and test images and seconds of a part's commands, seed by seed; without those of
    which no run is complete."""
    found: dict[str, dict] = {}
    about = output.described(device, data.name)
    for seed in seeds:
        for name, command in commands(part).items():
            of = trained(command, seed, results, flags, device)
            if of is None:
                continue
            row = found.setdefault(name, {
                "command": f"python {command}", "seeds": [], "validation": [], "test": [], "seconds": [],
                "environment": [],
            })  # fmt: skip
            row["seeds"].append(seed)
            if of.settings["validation_size"]:
                row["validation"].append(_finite(of.summary["last_accuracy"]))
            row["test"].append(test_accuracy(of))
            row["seconds"].append([of.summary["train_seconds"], of.summary["test_seconds"]])
            where = {key: value for key, value in of.environment.items() if key in about}
            if where not in row["environment"]:
                row["environment"].append(where)
        yield found


def markdown(part: str, about: dict, found: dict) -> str:
    """A part's results as a table."""
    head = f"# Today's recipe: {part}\n\n{output.header(about)}\n\n"
    if part == "curves":
        columns = ["", "test accuracy at the end (%)", "seconds of training"]
        rows = [
            [name, spread(of["test"]), f"{np.mean([c[-1][0] for c in of['curves']]):.0f}"] for name, of in found.items()
        ]
        return f"{head}`python {MODERN}`: {said(OF_PRESET)}.\n\n{output.markdown_table(columns, rows)}"
    kind = "test" if part.startswith("budgets") else "validation"
    note = f"Accuracy on {kind} images after the last epoch, in percent"
    columns = ["", "command", "seeds", "each", "mean"]
    base = found.get("nothing", {}).get("command", "-")
    rows = [
        [name, f"`{of['command'].replace(f'{base} ', '... ')}`", " ".join(map(str, of["seeds"])),
         ", ".join(f"{value:.2f}" for value in of[kind]), f"{np.mean(of[kind]):.2f}"]
        for name, of in found.items()
    ]  # fmt: skip
    if part == "ablation":
        note += "; the gain over the first row in points, on equal seeds, with its 95% interval"
        columns += ["gain"]
        gains = compared(found)
        for row in rows:
            mean, half = gains.get(row[0], (0.0, 0.0))
            row += [f"{mean:+.2f} [{mean - half:+.2f}, {mean + half:+.2f}]" if row[0] in gains else "-"]
    else:
        columns[4:] = ["mean, 95% interval", "seconds of training", "of tests"]
        for row, of in zip(rows, found.values(), strict=True):
            row[4:] = [spread(of[kind]), *(f"{mean:.0f}" for mean in np.mean(of["seconds"], 0))]
    return f"{head}{note}.\n\n{output.markdown_table(columns, rows)}"


def said(preset: dict) -> str:
    """A preset's settings in words."""
    return ", ".join(f"{name.replace('_', ' ')} {value[0] if isinstance(value, tuple) else value}"
                     for name, value in preset.items())  # fmt: skip


def draw(found: dict, about: dict, file: Path) -> None:
    """Accuracy over seconds: a line per side, the mean over seeds with its 95% interval."""
    figure, axes = plt.subplots(figsize=(7.5, 4.6))
    for (name, of), colour in zip(found.items(), ("#D55E00", "#0072B2", "#999999"), strict=True):
        each = np.array(of["curves"])  # (seeds, epochs, 2)
        seconds, mean = each[:, :, 0].mean(0), each[:, :, 1].mean(0)
        axes.plot(seconds, mean, color=colour, marker="o", markersize=3.5, label=name)
        if len(each) > 1:
            half = t_quantile(len(each) - 1) * each[:, :, 1].std(0, ddof=1) / len(each) ** 0.5
            axes.fill_between(seconds, mean - half, mean + half, color=colour, alpha=0.2, linewidth=0)
    axes.set(xlabel="seconds of training", ylabel="validation accuracy (%)", xlim=(0, None))
    axes.set_title(f"VGG-A + BatchNorm, width {OF_PRESET['width']:g}, {OF_PRESET['epochs']} epochs of 45,000 images")
    axes.legend(loc="lower right")
    axes.grid(alpha=0.3)
    n = len(next(iter(found.values()))["test"])
    seeds = f"mean of {n} seeds, with its 95% interval" if n > 1 else "1 seed"
    figure.text(0.01, 0.01, f"{about['device']}; {seeds}", fontsize=8)
    figure.tight_layout(rect=(0, 0.03, 1, 1))
    for suffix in (".png", ".svg"):
        figure.savefig(file.with_suffix(suffix), dpi=150)
    plt.close(figure)


def main(argv: list[str]) -> int:
    parser = program.parser("bench.recipe", __doc__)
    add = parser.add_argument
    add("--parts", nargs="+", type=choice(*PARTS), default=list(PARTS), help=" ".join(PARTS))
    add("--seeds", nargs="+", type=integer(0, LARGEST_SEED), default=[0, 1, 2, 3, 4], help="(0 1 2 3 4)")
    add("--results", type=folder, default=ROOT / "results", help="folder of the runs (results)")
    add("--draw", action="store_true", help="train nothing: tables, without curves, from what is complete")
    args = parser.parse_args(argv)
    if args.draw and "curves" in args.parts:
        parser.error("--draw: not with --parts curves")
    # As asked for, before the benchmark itself chooses: the scripts choose alike, and name folders by what was asked.
    flags = None if args.draw else [*program.where(args), *(["--data-dir", args.data_dir] if args.data_dir else [])]
    data, device = program.data_and_device(args)
    about = output.described(device, data.name) | {"seeds": " ".join(map(str, args.seeds))}
    for part in args.parts:
        where = args.seeds, args.results, flags, data, device
        for found in curves(*where) if part == "curves" else accuracies(part, *where):
            if not found:
                continue
            for key, here in output.described(device, data.name).items():  # of the runs, wherever they were trained
                of_runs = {e[key] for of in found.values() for e in of.get("environment", []) if key in e}
                about[key] = "; ".join(sorted(map(str, of_runs))) or here
            name = f"{output.slug_of(about['device'])}-recipe-{part}"
            output.write(args.output, name, {"about": about, part: found}, markdown(part, about, found))
            if part == "curves":
                draw(found, about, args.output / name)
        if not found:
            fail(f"bench.recipe: --draw: no run of {part} is complete in {args.results}")
        print(args.output / f"{name}.md", flush=True)
    return 0


if __name__ == "__main__":
    run(main, sys.argv[1:])

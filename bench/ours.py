"""The project's own engine, set up as the scripts set it up, for the benchmarks to walk through step by step."""

import itertools
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import torch

import MyFramework
import MyVGG
from cifar_lab import data as cifar10
from cifar_lab import script
from cifar_lab.config import PAPER_PRESETS, PRESETS, number, run_folder
from cifar_lab.console import Console, StopSignals
from cifar_lab.device import Device, DeviceError, choose
from cifar_lab.experiments import LEARNING_RATES
from cifar_lab.loader import Loader
from cifar_lab.lockstep import Lockstep
from cifar_lab.recorder import Recorder, environment
from cifar_lab.settings import OPTIMIZERS, Settings, fail
from cifar_lab.training_run import TrainingRun

MODELS = ("vgg_a", "vgg_a_bn", "inception", "inception_res")
SETTINGS = {MyVGG: MyVGG.VGGSettings, MyFramework: MyFramework.InceptionSettings}
NO_CHECKPOINTS = ["--checkpoint-seconds", "1e9"]  # writing them is not training time


class Quiet(Console):
    """Keeps what the engine says instead of printing it."""

    def __init__(self) -> None:
        super().__init__()
        self.terminal = False
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    def end_epoch(self, epoch: int, line: str) -> None:
        pass


def command_line(model: str, chosen: slice) -> tuple[ModuleType, list[str]]:
    """The script and the flags that train some of a model's four runs: learning rates of VGG, optimizers of the
    Inceptions."""
    if model.startswith("vgg"):
        bn = ["--bn"] if model == "vgg_a_bn" else []
        return MyVGG, [*bn, "--lrs", *map(str, LEARNING_RATES[chosen])]
    return MyFramework, ["--model", model, "--optimizer", *OPTIMIZERS[chosen]]


def parse(module: ModuleType, flags: list[str]) -> Settings:
    """The settings of a script's command line."""
    presets = PRESETS | (PAPER_PRESETS if module is MyVGG else {})
    return script.parse(SETTINGS[module], flags, f"{module.__name__}.py", module.__doc__, presets)


def choose_device(name: str, *flags: str) -> Device:
    """The device of that name (auto, cpu, cuda, mps) as the scripts set it up. Raises DeviceError."""
    return choose(parse(MyVGG, ["--device", name, *flags]))


def lockstep(module: ModuleType, flags: list[str], data: cifar10.Cifar10, results: Path, console: Quiet) -> Lockstep:
    """The lockstep group of a command line, its run folders new ones below `results`."""
    settings = parse(module, flags)
    device = choose(settings)
    size = min(settings.train_size, len(data.train_images)), min(settings.test_size, len(data.test_images))
    loader = Loader(
        data, device, seed=settings.seed[0], batch_size=settings.batch_size, train_size=size[0], test_size=size[1],
        augmented=settings.augment,
    )  # fmt: skip
    configs = settings.runs(settings.seed[0])
    described = environment(device.describe(), device.precision, data.sha256)
    runs = []
    for config in configs:
        recorder = Recorder(run_folder(results, settings.preset, config), config, settings.preset)
        recorder.start(settings.epochs, described)
        label = "" if len(configs) == 1 else f"{config.optimizer} {number(config.lr)}"
        runs.append(TrainingRun(config, label, recorder, loader, module.build))
    return Lockstep(
        runs, loader, console, StopSignals(), epochs=settings.epochs, checkpoint_seconds=settings.checkpoint_seconds
    )


def train(group: Lockstep, module: ModuleType, warm_up: int | None = None) -> Iterator[int]:
    """Trains epoch after epoch without evaluation; yields the number of images, over all networks, after each step.

    warm_up: steps after which the first epoch is broken off. Raises RuntimeError where a run diverges: what is timed
    from then on would not be the whole group.
    """
    update = group.accelerate(module.training_step)
    networks = len(group.runs)
    for epoch in itertools.count(1):
        for batch in itertools.islice(group.batches(epoch), warm_up if epoch == 1 else None):
            if len(batch.runs) < networks:
                raise RuntimeError("a network diverged")
            update(batch)
            yield batch.size * networks
        for run in group.runs:
            run.epochs, run.step = epoch, 0


def batch_seconds(loader: Loader, use_graph: bool) -> float:
    """Time to prepare a batch with nothing else running. On a GPU its share of what is prepared once an epoch counts.

    use_graph: replayed from a CUDA graph, as training replays it.
    """
    gpu = loader.device.torch.type != "cpu"
    size = min(loader.batch_size, len(loader.images))
    steps = len(loader.images) // size

    def prepare() -> None:
        loader.batch(size)
        loader.advance()

    loader.start_epoch(1)
    step = prepare
    if use_graph:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            prepare()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            prepare()
        step = graph.replay
    if not gpu:
        steps = min(steps, 50)
    for epoch in (2, 3) if gpu else (1,):  # the last one counts
        time.sleep(0.1)  # another thread draws the next plan, which in training is hidden
        loader.device.synchronize()
        start = time.perf_counter()
        if gpu:
            loader.start_epoch(epoch)
        for _ in range(steps):
            step()
        loader.device.synchronize()
        seconds = time.perf_counter() - start
    return seconds / steps


# --- Data and device -------------------------------------------------------------------------------------------------


def data_and_device(args, program: str) -> tuple[cifar10.Cifar10, Device]:
    """What a program's flags ask for; where it is not to be had, one line and exit status 2."""
    try:
        return load(args.data_dir, args.made_up_data), choose_device(args.device)
    except (cifar10.DataError, DeviceError) as error:
        fail(f"{program}: {error}")


def load(data_dir: str | None, made_up: bool, download: bool = True) -> cifar10.Cifar10:
    """CIFAR-10, or random images of the same number and size: what a step costs does not depend on the pixels.

    Raises DataError.
    """
    if not made_up:
        return cifar10.load(data_dir, download)
    rng = np.random.default_rng(0)

    def split(n: int) -> tuple[np.ndarray, np.ndarray]:
        return rng.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8), rng.integers(0, 10, n, dtype=np.uint8)

    train, test = split(50_000), split(10_000)
    return cifar10.Cifar10(*train, *test, sha256={}, name="random images")

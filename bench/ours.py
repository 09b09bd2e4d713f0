"""The project's own engine, set up as the scripts set it up, for the benchmarks to walk through step by step."""

import itertools
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import ModuleType

import torch

import MyFramework
import MyVGG
from cifar_lab.data.cache import DataSet
from cifar_lab.experiments import LEARNING_RATES
from cifar_lab.optimizers import OPTIMIZERS
from cifar_lab.settings import Settings
from cifar_lab.training.console import Console, StopSignals
from cifar_lab.training.device import choose
from cifar_lab.training.group import Lockstep
from cifar_lab.training.loader import Loader
from cifar_lab.training.script import description_of, open_group, recorders, settings_of

SCRIPTS = {"MyVGG.py": (MyVGG, MyVGG.VGGSettings), "MyFramework.py": (MyFramework, MyFramework.InceptionSettings)}
# The command of each network, and the flag and the values that make four runs of it.
MODELS = {
    "vgg_a": ("MyVGG.py", "--lrs", LEARNING_RATES),
    "vgg_a_bn": ("MyVGG.py --bn", "--lrs", LEARNING_RATES),
    "inception": ("MyFramework.py --model inception", "--optimizer", tuple(OPTIMIZERS)),
    "inception_res": ("MyFramework.py --model inception_res", "--optimizer", tuple(OPTIMIZERS)),
}
ALONE, FOUR = slice(0, 1), slice(0, 4)


class Quiet(Console):
    """Keeps what the engine says instead of printing it."""

    def __init__(self) -> None:
        super().__init__()
        self.terminal = False
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    def end_epoch(self, epoch: int, target: int, results: list[tuple[str, dict]]) -> None:
        pass


def command(model: str, chosen: slice, *flags: str | float) -> list[str]:
    """The command that trains some of a model's four runs: learning rates of VGG, optimizers of the Inceptions."""
    words, flag, values = MODELS[model]
    return [*words.split(), flag, *map(str, values[chosen]), *map(str, flags)]


def parse(words: Sequence[str]) -> tuple[ModuleType, Settings]:
    """The script that a command names first, and the settings that it asks for."""
    module, cls = SCRIPTS[words[0]]
    return module, settings_of(cls, module.__file__, words[1:])


@contextmanager
def lockstep(settings: Settings, data: DataSet, console: Quiet | None = None) -> Iterator[Lockstep]:
    """The lockstep group of the settings' first seed. Its run folders are temporary, and it writes no checkpoints."""
    with tempfile.TemporaryDirectory() as results:
        settings = replace(settings, results=results, checkpoint_seconds=1e9)
        device = choose(settings)
        description = description_of(settings)
        opened = recorders(settings, description, settings.seed[0], device)
        with open_group(settings, description, opened, device, data, console or Quiet(), StopSignals()) as group:
            yield group


def train(group: Lockstep, module: ModuleType, warm_up: int | None = None) -> Iterator[int]:
    """Trains epoch after epoch without evaluation; yields the number of images, over all networks, after each step.

    warm_up: steps after which the first epoch is broken off. Raises RuntimeError if a run diverges: what is timed from
    then on would not be the whole group.
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
            run.position.end_epoch()


def train_epochs(group: Lockstep, module: ModuleType, epochs: int) -> Iterator[tuple[float, float]]:
    """Trains as the scripts do, evaluation and logs included; yields the seconds of training and of the rest.

    epochs: fewer than the group has to train: what ends a run happens once, not once per epoch.
    """
    update = group.accelerate(module.training_step)
    for epoch in itertools.islice(group.epochs(), epochs):
        start = time.perf_counter()
        for batch in group.batches(epoch):
            update(batch)
        group.synchronize()
        trained = time.perf_counter()
        group.evaluate(epoch)
        yield trained - start, time.perf_counter() - trained


def batch_seconds(loader: Loader, use_graph: bool) -> float:
    """Time to prepare a batch with nothing else running. On a GPU its share of what is prepared once per epoch counts.

    use_graph: replayed from a CUDA graph, as training replays it.
    """
    gpu = loader.device.torch.type != "cpu"
    size = loader.size(0)
    steps = len(loader.images) // size if gpu else min(len(loader.images) // size, 50)

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

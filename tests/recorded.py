"""Trainings in this process in which the training step only takes down what it is given, and nothing is learned."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn

import MyFramework
import MyVGG
from cifar_lab.data import cache
from cifar_lab.data.cache import write_cache
from cifar_lab.networks import NETWORKS as REGISTERED
from cifar_lab.networks import Network
from cifar_lab.settings import RunConfig

TRAIN, TEST = 130, 20  # images of `write_numbered`
# Three steps an epoch, the last one of 30 images; 8 or 16 channels in every layer.
FLAGS = "--device cpu --width 0.03 --train-size 130 --test-size 20 --batch-size 50 --epochs 2"


_builders = {name: network.build for name, network in REGISTERED.items()}  # as registered, whatever is patched later


def build(config: RunConfig) -> nn.Module:
    """The network of the product."""
    return _builders[config.model](config)


def write_numbered(folder: Path, *, alike: bool = False, classes: int = TRAIN) -> Path:
    """Makes `folder` a data directory in which the label of a training image is its number in the data set.

    alike: all images are the same one, so that batches differ in their augmentation alone. classes: labels begin anew
    after so many.
    """
    pixels = np.random.default_rng(0).integers(0, 256, (TRAIN + TEST, 32, 32, 3), dtype=np.uint8)
    if alike:
        pixels[:] = pixels[0]
    arrays = {
        "train_images": pixels[:TRAIN],
        "train_labels": np.arange(TRAIN, dtype=np.uint8) % classes,
        "test_images": pixels[TRAIN:],
        "test_labels": np.arange(TEST, dtype=np.uint8) % 10,
    }
    write_cache(folder, arrays, name="numbered images")
    return folder


def small(config: RunConfig) -> nn.Module:
    """In place of a script's own network, where only what surrounds it matters."""
    return nn.Sequential(nn.AvgPool2d(16), nn.Flatten(), nn.Linear(12, 10))


def look(run, images, labels) -> tuple[Tensor, Tensor]:
    """A training step that only sees its batch: a loss of 1, nothing correct."""
    run.forward(images)
    return torch.ones(()), torch.zeros((), dtype=torch.int64)


def train(
    script: ModuleType,
    data: Path,
    words: str = "",
    build: Callable[[RunConfig], nn.Module] | None = None,
    step: Callable = look,
    results: Path | None = None,
) -> None:
    """Runs a script with another network, or another training step, than its own."""
    with (
        TemporaryDirectory() as aside,
        mock.patch.object(Network, "build", (lambda self, config: build(config)) if build else Network.build),
        mock.patch.object(script, "training_step", step),
        mock.patch.object(cache, "check_labels"),  # a label may be the number of an image
    ):
        script.main([*FLAGS.split(), "--data-dir", str(data), "--results", str(results or aside), *words.split()])


@dataclass(frozen=True)
class Step:
    """What one training step of one run is given."""

    config: RunConfig
    images: Tensor
    labels: Tensor
    weights: dict[str, Tensor]


def steps(
    script: ModuleType, data: Path, words: str = "", build: Callable[[RunConfig], nn.Module] | None = None
) -> list[Step]:
    """Every step that a command line takes, run after run within a step."""
    taken = []

    def take_down(run, images, labels):
        weights = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
        taken.append(Step(run.config, images.clone(), labels.clone(), weights))
        return look(run, images, labels)

    train(script, data, words, build, take_down)
    return taken


class Built(Exception):
    """Carries a network out of a script that is not to go further."""


def network(script: ModuleType, data: Path, words: str = "") -> nn.Module:
    """The first network that a command line makes, as it is before training."""
    described = []

    def stop(config):
        if not described:  # the first one is built to be described
            described.append(config)
            return build(config)
        raise Built(build(config))

    try:
        train(script, data, words, stop)
    except Built as built:
        return built.args[0]
    raise AssertionError("no network was made")


NETWORKS = {
    "vgg_a": (MyVGG, ""),
    "vgg_a_bn": (MyVGG, "--bn"),
    "inception": (MyFramework, "--model inception"),
    "inception_res": (MyFramework, "--model inception_res"),
}  # the networks of the report, each with its script and flags

"""What a trained network takes pictures for.

from cifar_lab.training.predict import predict
for found in predict("results/quick/vgg_a_bn/adam-lr1e-3-wd1e-4-seed0", ["cat.png", "holiday/"]):
    print(found.picture, found.best[0])
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from cifar_lab import escape
from cifar_lab.data import pictures
from cifar_lab.data.sources import DataError
from cifar_lab.measures.evaluation import predictor
from cifar_lab.run_folder.checkpoint import load_model
from cifar_lab.run_folder.inputs import Inputs
from cifar_lab.run_folder.schema import completed
from cifar_lab.settings import Settings
from cifar_lab.training.augment import network_input
from cifar_lab.training.device import Device, choose
from cifar_lab.training.loader import inputs_of

BEST = 3  # classes that are named
BATCH = 500  # pictures that are decoded before they are classified


@dataclass(frozen=True)
class Prediction:
    """The classes that a network finds the most probable in a picture, or why it has none."""

    picture: Path
    best: tuple[tuple[str, float], ...] = ()  # class and probability, the most probable first
    error: str = ""  # names the picture; empty if there is none

    def __str__(self) -> str:
        return self.error or f"{self.picture}: {', '.join(f'{name} {100 * p:.1f}%' for name, p in self.best)}"


def predict(
    run: str | Path, given: Sequence[str | Path], *, script: str | Path | None = None, device: Device | None = None,
) -> Iterator[Prediction]:  # fmt: skip
    """One prediction for each picture that is given, in their order; a folder stands for all pictures below it.

    run: the folder of a trained run. script: the file that defines its network, if it is not in the project's root.
    device: where and how to compute (what `auto` gives, in fp32). A picture that cannot be decoded has an error.
    Raises DataError if one is not there, CheckpointError and RunFileError if there is no trained network, DeviceError.
    """
    paths = pictures.find(given)
    return classify(paths, *load_model(run, script), device or choose(Settings(precision="fp32")))


def classify(
    paths: Sequence[Path], network: nn.Module, state: Mapping[str, Any], device: Device
) -> Iterator[Prediction]:  # fmt: skip
    """One prediction for each picture. network, state: of a run, as `load_model` gives them."""
    inputs = inputs_of(state)
    forward = predictor(partial(device.forward, device.place(network)), completed(state["config"])["test_time_flip"])
    for group in (paths[at : at + BATCH] for at in range(0, len(paths), BATCH)):
        images, errors = [], []
        for path in group:
            try:
                images.append(pictures.pixels(path))
                errors.append("")
            except DataError as error:
                errors.append(str(error))
        if images:
            with torch.inference_mode():
                batch = network_input(torch.from_numpy(np.stack(images)), inputs.normalization)
                logits = forward(device.place(batch))
                best = logits.softmax(1).topk(min(BEST, logits.shape[1]))
            rows = iter(zip(best.indices.tolist(), best.values.tolist(), strict=True))
        for path, error in zip(group, errors, strict=True):
            yield Prediction(path, error=error) if error else Prediction(path, _named(inputs, *next(rows)))


def _named(inputs: Inputs, indices: list[int], probabilities: list[float]) -> tuple[tuple[str, float], ...]:
    # A network can have more outputs than there are classes.
    names = [inputs.classes[i] if i < len(inputs.classes) else str(i) for i in indices]
    return tuple(zip(names, probabilities, strict=True))


def to_csv(predictions: Iterable[Prediction]) -> str:
    """A row for each picture that could be decoded: its path, and each class with its probability."""
    rows = [["picture", *(f"{what}_{i}" for i in range(1, BEST + 1) for what in ("class", "probability"))]]
    for found in predictions:
        if not found.error:
            cells = [str(found.picture), *(cell for name, p in found.best for cell in (name, f"{p:.6f}"))]
            rows.append([escape.csv_cell(cell) for cell in cells])
    return escape.csv_text(rows)

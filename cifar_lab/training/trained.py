"""What the training scripts do with a trained run: evaluate it and look inside, export it, classify pictures."""

import hashlib
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cifar_lab import escape
from cifar_lab.data import pictures
from cifar_lab.data.cache import check_labels, of_run
from cifar_lab.data.sources import DataError
from cifar_lab.losses import LOSSES
from cifar_lab.measures.calibration import calibration
from cifar_lab.measures.evaluation import evaluate, predictor
from cifar_lab.networks import describe
from cifar_lab.project import command
from cifar_lab.run_folder.checkpoint import CheckpointError, load_model
from cifar_lab.run_folder.files import write_text
from cifar_lab.run_folder.inputs import Inputs
from cifar_lab.run_folder.schema import RunFileError, read_config
from cifar_lab.settings import RunConfig, Settings, counted
from cifar_lab.training import export
from cifar_lab.training.device import Device, choose
from cifar_lab.training.loader import in_order, inputs_of
from cifar_lab.training.predict import Prediction, classify, to_csv

MISTAKES = 24  # that are shown
COLUMNS = ("image", "true_class", "predicted_class", "probability", "probability_of_true_class")


def use(settings: Settings) -> None:
    """Does with the run of --evaluate what the command line asks for.

    Ends the program with status 1, after everything else, if pictures could not be decoded. Raises DataError,
    CheckpointError, DeviceError, Missing and OSError.
    """
    folder = Path(settings.evaluate)
    try:
        content = read_config(folder)
    except RunFileError as error:
        raise CheckpointError(f"{error}; --evaluate takes the folder of a run") from None
    config = RunConfig(**content["settings"])
    if config.model not in settings.networks:
        raise CheckpointError(
            f"{folder}: of the network {config.model}, not one of {', '.join(settings.networks)}; "
            f"{command(content['network']['script'], '--evaluate', folder)} has it"
        )
    if settings.export:
        export.check(Path(settings.export))
    paths = pictures.find(settings.predict or ())
    network, state = load_model(folder, settings.networks[config.model].script)
    try:
        inputs = inputs_of(state)
    except DataError as error:
        raise DataError(f"{folder}: {error}") from None
    failed = False
    if settings.export:
        print(f"{settings.export}: {export.export(Path(settings.export), network, state) / 1e6:.1f} MB")
    if settings.predict or not settings.export:
        device = choose(settings, config.precision if config.device == "cpu" else None)
        if settings.predict:
            failed = _predict(settings, classify(paths, network, state, device))
        else:
            failed = _evaluate(settings, content, device, network, state, inputs)
    if failed:
        sys.exit(1)


def _predict(settings: Settings, predictions: Iterator[Prediction]) -> bool:
    """Prints predictions as they come, and writes them if a file is asked for; whether a picture has none."""
    found = []
    for prediction in predictions:
        print(escape.terminal(prediction), file=sys.stderr if prediction.error else sys.stdout)
        found.append(prediction)
    if settings.save:
        write_text(Path(settings.save), to_csv(found))
        print(f"{settings.save}: {counted(sum(not of.error for of in found), 'picture')}")
    return any(of.error for of in found)


@dataclass(frozen=True, eq=False)
class _Labeled:
    """Images with their true classes."""

    what: str  # in words
    images: np.ndarray  # (N, 32, 32, 3) uint8
    labels: np.ndarray  # (N,) integers
    names: Sequence[Any]  # of each image: its number in the data set, or its path
    failed: bool = False  # whether there are more, which cannot be decoded


def _test_images(settings: Settings, content: Mapping[str, Any], inputs: Inputs, outputs: int) -> _Labeled:
    """Those of the run, or the first of them. inputs: what its checkpoint says of them. outputs: of its network."""
    size = content["settings"]["test_size"]
    size = min(size, settings.test_size if "test_size" in settings.given else size)
    try:
        data = of_run(content, settings.data_dir, settings.dataset if "dataset" in settings.given else None)
        for labels in (data.train_labels, data.test_labels):  # either would say that the data are not the run's
            check_labels(labels, outputs)
        if (data.classes, data.normalization) != (inputs.classes, inputs.normalization):
            raise DataError(f"the checkpoint's classes, mean and deviation are not those of {data.name}")
    except DataError as error:
        raise DataError(f"{settings.evaluate}: {error}") from None
    return _Labeled("test images", data.test_images[:size], data.test_labels[:size], range(size))


def _other_images(folder: str, classes: Sequence[str]) -> _Labeled:
    """Those of a folder with a subfolder for each class, or some of them."""
    images, labels, names, failed = [], [], [], False
    for path, label in pictures.labeled(folder, classes):
        try:
            images.append(pictures.pixels(path))
        except DataError as error:
            print(escape.terminal(error), file=sys.stderr)
            failed = True
        else:
            labels.append(label)
            names.append(path)
    if not images:
        raise DataError(f"{folder}: no picture there can be decoded")
    return _Labeled(f"pictures of {folder}", np.stack(images), np.array(labels), names, failed)


@dataclass(frozen=True, eq=False)
class _Found:
    """What a network takes N images for."""

    loss: float  # mean over the images
    confusion: np.ndarray  # (C, C): row true class, column predicted class
    predictions: np.ndarray  # (N,)
    confidence: np.ndarray  # (N,), probability of what is predicted
    of_truth: np.ndarray  # (N,), probability of the true class
    classes: Sequence[str]  # (C,)

    @property
    def accuracy(self) -> float:
        """In percent."""
        return 100 * float(self.confusion.trace()) / len(self.predictions)


def _evaluate(
    settings: Settings, content: Mapping[str, Any], device: Device, model: nn.Module, state: dict[str, Any],
    inputs: Inputs,
) -> bool:  # fmt: skip
    """Loss and accuracy, overall and per class; figures and predictions.csv. Returns whether images were left out."""
    folder = Path(settings.evaluate)
    if settings.data:
        given = _other_images(settings.data, inputs.classes)
    else:
        given = _test_images(settings, content, inputs, describe(model, len(inputs.classes)).classes)
    found = _look(given, inputs, device, model, content["settings"])
    position = f"epoch {state['epochs']}" + (f", step {state['step']} of the next" if state["step"] else "")
    print(f"{folder}: after {position}, {len(given.images)} {given.what}, {device.precision}")
    name = "test" if not settings.data else "their"
    print(f"{name} loss {found.loss:.4f}, {name} accuracy {found.accuracy:.2f}%")
    longest = max(map(len, found.classes))
    for name, row, right in zip(found.classes, found.confusion, found.confusion.diagonal(), strict=True):
        count = int(row.sum())
        share = f"{100 * int(right) / count:.2f}%" if count else "-"
        print(f"  {name:<{longest}} {share:>7}  of {count}")
    into = folder / _of_data(Path(os.path.realpath(settings.data))) if settings.data else folder
    into.mkdir(exist_ok=True)
    files = _draw(given, found, model, into, f"{content['settings']['model']}, {folder.name}")
    rows = zip(given.names, given.labels, found.predictions, found.confidence, found.of_truth, strict=True)
    write_text(into / "predictions.csv", _to_csv(rows, found.classes))
    print(*files, into / "predictions.csv", sep="\n")
    return given.failed


def _of_data(data: Path) -> str:
    """The folder for what is found about other images: two folders of one name have one each."""
    digest = hashlib.sha256(os.fsencode(data)).hexdigest()[:8]
    return f"evaluation-{escape.file_name(data.name, escape.LONGEST_NAME // 2)}-{digest}"


def _look(
    given: _Labeled, inputs: Inputs, device: Device, model: nn.Module, settings: Mapping[str, Any]
) -> _Found:  # fmt: skip
    """Computes what the network takes the images for, in its precision on the device. settings: of the run."""
    every: list[Tensor] = []
    predicted = predictor(partial(device.forward, device.place(model)), settings["test_time_flip"])

    def forward(images: Tensor) -> Tensor:
        every.append(predicted(images))
        return every[-1]

    images, labels = torch.from_numpy(given.images), torch.from_numpy(given.labels).long()
    batches = in_order(images, labels, device, inputs.normalization)
    loss, confusion, predictions = evaluate(forward, batches, LOSSES[settings["loss"]].function)
    probabilities = torch.cat(every).double().softmax(1).cpu().numpy()
    predictions, rows = predictions.cpu().numpy(), np.arange(len(given.images))
    return _Found(
        float(loss) / len(rows),
        confusion.cpu().numpy(),
        predictions,
        probabilities[rows, predictions],
        probabilities[rows, given.labels],
        # A network can have more outputs than there are classes.
        [*inputs.classes, *map(str, range(len(inputs.classes), len(confusion)))],
    )


def _draw(given: _Labeled, found: _Found, model: nn.Module, into: Path, title: str) -> list[Path]:
    """Confusion matrix, most confident mistakes, reliability and first filters; returns the files."""
    from cifar_lab.figures import inspection  # matplotlib takes a second to import
    from cifar_lab.figures.confusion import draw_confusion

    right = found.predictions == given.labels
    measured = calibration(found.confidence, right)
    print(f"expected calibration error {100 * measured.expected_error:.2f}% in {len(measured.count)} bins")
    wrong = np.flatnonzero(~right)
    worst = wrong[np.argsort(-found.confidence[wrong], kind="stable")][:MISTAKES]
    words = [
        f"{found.classes[given.labels[i]]}, taken for\n{found.classes[found.predictions[i]]}, "
        f"{100 * found.confidence[i]:.0f}%"
        for i in worst
    ]
    files = draw_confusion(found.confusion, found.classes, into / "confusion", title=title, what=given.what)
    files += inspection.draw_mistakes(given.images[worst], words, into / "mistakes", title=title)
    files += inspection.draw_reliability(measured, into / "reliability", title=title)
    first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    if first is not None and first.weight.shape[1] == 3:
        files += inspection.draw_filters(first.weight.detach().float().cpu().numpy(), into / "filters", title=title)
    return files


def _to_csv(rows: Iterable[tuple], classes: Sequence[str]) -> str:
    cells = (
        (
            escape.csv_cell(str(name)),
            escape.csv_cell(classes[true]),
            escape.csv_cell(classes[taken]),
            f"{p:.6f}",
            f"{q:.6f}",
        )
        for name, true, taken, p, q in rows
    )
    return escape.csv_text([COLUMNS, *cells])

"""What the training scripts do with a trained run: evaluate it and look inside, export it, classify pictures."""

import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
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
from cifar_lab.measures.evaluation import evaluate
from cifar_lab.networks import describe
from cifar_lab.project import command
from cifar_lab.run_folder.checkpoint import CheckpointError, load_model
from cifar_lab.run_folder.files import write_text
from cifar_lab.run_folder.schema import RunFileError, read_config
from cifar_lab.settings import RunConfig, Settings
from cifar_lab.training import export
from cifar_lab.training.augment import normalize, to_unit
from cifar_lab.training.console import counted
from cifar_lab.training.device import Device, choose
from cifar_lab.training.loader import inputs_of
from cifar_lab.training.predict import Prediction, predict, to_csv

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
    for file in map(Path, filter(None, (settings.export, settings.save))):
        if not os.path.isdir(file.parent):
            raise DataError(f"{file}: there is no folder {file.parent}")
    script, failed = settings.networks[config.model].script, False
    if settings.export:
        file = Path(settings.export)
        export.check(file)
        print(f"{file}: {export.export(file, *load_model(folder, script)) / 1e6:.1f} MB")
    if settings.predict or not settings.export:
        device = choose(settings, config.precision if config.device == "cpu" else None)
        if settings.predict:
            failed = _predict(settings, predict(folder, settings.predict, script=script, device=device))
        else:
            failed = _evaluate(settings, content, device, *load_model(folder, script))
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


def _test_images(settings: Settings, content: Mapping[str, Any], outputs: int) -> _Labeled:
    """Those of the run, or the first of them. outputs: of its network."""
    size = content["settings"]["test_size"]
    size = min(size, settings.test_size if "test_size" in settings.given else size)
    try:
        data = of_run(content, settings.data_dir, settings.dataset if "dataset" in settings.given else None)
        for labels in (data.train_labels, data.test_labels):  # either would say that the data are not the run's
            check_labels(labels, outputs)
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


def _evaluate(
    settings: Settings, content: Mapping[str, Any], device: Device, model: nn.Module, state: dict[str, Any]
) -> bool:
    """Loss and accuracy, overall and per class; figures and predictions.csv. Returns whether images were left out."""
    folder, inputs = Path(settings.evaluate), inputs_of(state)
    if settings.data:
        given = _other_images(settings.data, inputs.classes)
    else:
        given = _test_images(settings, content, describe(model, len(inputs.classes)).classes)
    model = device.place(model)
    every: list[Tensor] = []

    def forward(images: Tensor) -> Tensor:
        logits = device.forward(model, images)
        every.append(logits)
        return logits

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        size = device.evaluation_batch
        for at in range(0, len(given.images), size):
            images, labels = (
                torch.from_numpy(array[at : at + size]).to(device.torch) for array in (given.images, given.labels)
            )
            yield device.place(normalize(to_unit(images), inputs.normalization)), labels.long()

    criterion = LOSSES[content["settings"]["loss"]].function
    loss, confusion, predictions = evaluate(forward, batches(), criterion)
    confusion, predictions = confusion.cpu().numpy(), predictions.cpu().numpy()
    probabilities = torch.cat(every).double().softmax(1).cpu().numpy()
    total = int(confusion.sum())
    position = f"epoch {state['epochs']}" + (f", step {state['step']} of the next" if state["step"] else "")
    print(f"{folder}: after {position}, {total} {given.what}, {device.precision}")
    name = "test" if not settings.data else "their"
    print(f"{name} loss {float(loss) / total:.4f}, {name} accuracy {100 * int(confusion.trace()) / total:.2f}%")
    # A network can have more outputs than there are classes.
    classes = [*inputs.classes, *map(str, range(len(inputs.classes), len(confusion)))]
    longest = max(map(len, classes))
    for name, row, right in zip(classes, confusion, confusion.diagonal(), strict=True):
        print(f"  {name:<{longest}} {100 * int(right) / max(int(row.sum()), 1):6.2f}%  of {int(row.sum())}")
    into = folder / f"evaluation-{Path(settings.data).resolve().name}" if settings.data else folder
    into.mkdir(exist_ok=True)
    confidence = probabilities[np.arange(total), predictions]
    of_truth = probabilities[np.arange(total), given.labels]
    measured = calibration(confidence, predictions == given.labels)
    print(f"expected calibration error {100 * measured.expected_error:.2f}% in {len(measured.count)} bins")
    from cifar_lab.figures import inspection  # matplotlib takes a second to import
    from cifar_lab.figures.confusion import draw_confusion

    title = f"{content['settings']['model']}, {folder.name}"
    wrong = np.flatnonzero(predictions != given.labels)
    worst = wrong[np.argsort(-confidence[wrong], kind="stable")][:MISTAKES]
    words = [
        f"{classes[given.labels[i]]}, taken for\n{classes[predictions[i]]}, {100 * confidence[i]:.0f}%" for i in worst
    ]
    paths = draw_confusion(confusion, classes, into / "confusion", title=title, what=given.what)
    paths += inspection.draw_mistakes(given.images[worst], words, into / "mistakes", title=title)
    paths += inspection.draw_reliability(measured, into / "reliability", title=title)
    first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    if first is not None and first.weight.shape[1] == 3:
        weights = first.weight.detach().float().cpu().numpy()
        paths += inspection.draw_filters(weights, into / "filters", title=title)
    rows = zip(given.names, given.labels, predictions, confidence, of_truth, strict=True)
    write_text(into / "predictions.csv", _to_csv(rows, classes))
    print(*paths, into / "predictions.csv", sep="\n")
    return given.failed


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

"""Loss, confusion matrix and predictions of a network over a set of images: the one evaluation loop."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from cifar_lab.losses import cross_entropy

Batches = list[tuple[Tensor, Tensor]]


@torch.inference_mode()
def evaluate(
    forward: Callable[[Tensor], Tensor], batches: Iterable[tuple[Tensor, Tensor]], criterion: Callable = cross_entropy
) -> tuple[Tensor, Tensor, Tensor]:
    """Runs a network over batches, at least one: images (B, 3, 32, 32), labels (B,); the last may be smaller.

    forward: gives logits (B, classes); whoever calls has put the network into the mode that it wants. criterion: one of
    `losses.LOSSES`. Returns, on the device, its sum over all images (scalar float32), the confusion matrix (classes,
    classes) int64, a row per true class and a column per prediction, and the predictions (images,) int64, in order.
    """
    loss = confusion = None
    predictions = []
    for images, labels in batches:
        logits = forward(images)
        classes = logits.shape[1]
        if confusion is None:
            loss = torch.zeros((), device=images.device)
            confusion = torch.zeros(classes**2, dtype=torch.int64, device=images.device)
        loss += criterion(logits, labels, reduction="sum")
        predictions.append(logits.argmax(1))
        confusion.index_add_(0, labels * classes + predictions[-1], torch.ones_like(labels))
    return loss, confusion.view(classes, classes), torch.cat(predictions)


def predictor(forward: Callable[[Tensor], Tensor], flip: bool) -> Callable[[Tensor], Tensor]:
    """What counts as a network's logits: its own or, with `flip`, the mean of those of each image and of its mirror
    image."""
    return (lambda images: (forward(images) + forward(images.flip(3))) / 2) if flip else forward


def in_batches(images: Tensor, labels: Tensor, largest: int) -> Batches:
    """Images (N, 3, 32, 32) and labels (N,) in equal batches, or nearly so, of at most `largest`."""
    batches = -(-len(images) // largest)
    return list(zip(images.tensor_split(batches), labels.tensor_split(batches), strict=True))


def mean_loss(forward: Callable[[Tensor], Tensor], batches: Batches, criterion: Callable = cross_entropy) -> float:
    """The mean loss over all images; the host waits for the device."""
    return float(evaluate(forward, batches, criterion)[0]) / sum(len(labels) for _, labels in batches)


def set_mode(model: nn.Module, mode: str) -> None:
    """Eval mode or, if `mode` is train, eval mode but for BatchNorm, which uses the statistics of each batch."""
    model.eval()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.train(mode == "train")

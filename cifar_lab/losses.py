"""The losses, by name. Adding one is adding an entry to `LOSSES`.

A loss is a function of logits (B, classes) and labels (B,) and gives the mean over the images, or with
`reduction="sum"` their sum: a scalar on the device of the logits.
"""

from collections.abc import Callable
from dataclasses import dataclass

SMOOTHING = 0.1  # share of the target that is spread over all classes
FOCUS = 2  # exponent of the focal loss, its authors' choice


def cross_entropy(logits, labels, reduction: str = "mean"):
    """In nats."""
    from torch.nn import functional as F  # here and below: plotting reads labels, and does not wait for torch

    return F.cross_entropy(logits, labels, reduction=reduction)


def label_smoothing(logits, labels, reduction: str = "mean"):
    """Cross-entropy against targets of 1 - 0.1 + 0.1 / classes and 0.1 / classes (Szegedy et al. 2016, section 7)."""
    from torch.nn import functional as F

    return F.cross_entropy(logits, labels, reduction=reduction, label_smoothing=SMOOTHING)


def mean_squared_error(logits, labels, reduction: str = "mean"):
    """Of the logits, without softmax, against one-hot targets; the mean over the classes (Hui & Belkin 2021)."""
    import torch

    # Not `one_hot`, which on a CPU reads the labels: a graph could not capture it.
    targets = torch.zeros_like(logits).scatter_(1, labels.unsqueeze(1), 1.0)
    return getattr((logits - targets).square().mean(1), reduction)()


def hinge(logits, labels, reduction: str = "mean"):
    """max(0, 1 - logit of the label + logit), summed over the other classes and divided by the number of classes
    (Weston & Watkins 1999, as PyTorch scales it)."""
    from torch.nn import functional as F

    return F.multi_margin_loss(logits, labels, reduction=reduction)


def focal(logits, labels, reduction: str = "mean"):
    """Cross-entropy times (1 - p)^2, with p the probability of the label (Lin et al. 2017, without class weights)."""
    from torch.nn import functional as F

    each = F.cross_entropy(logits, labels, reduction="none")
    return getattr((1 - (-each).exp()) ** FOCUS * each, reduction)()


@dataclass(frozen=True)
class Loss:
    """A loss and what it is called."""

    label: str  # in figures
    function: Callable
    unit: str = "nats"  # of its values; empty if they have none


LOSSES: dict[str, Loss] = {
    "cross_entropy": Loss("cross-entropy", cross_entropy),
    "label_smoothing": Loss("label smoothing", label_smoothing),
    "mse": Loss("mean squared error", mean_squared_error, unit=""),
    "hinge": Loss("hinge", hinge, unit=""),
    "focal": Loss("focal loss", focal),
}

"""Batches: the data set lives on the device as bytes, and is gathered, augmented and normalized there.

On a CPU that happens batch by batch, in cache. On a GPU an epoch's images are augmented ahead, thousands at once: the
75 kernels of the augmentation take as long for a hundred images as for thousands, and a step is left with a gather.
"""

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cifar_lab.data.cache import CIFAR10, DataSet
from cifar_lab.data.datasets import DATA_SETS, Normalization
from cifar_lab.data.sources import DataError
from cifar_lab.run_folder.inputs import Inputs
from cifar_lab.training.augment import augment, network_input
from cifar_lab.training.device import Device
from cifar_lab.training.plan import SIZE, epoch_plan, held_out, mixing

Batches = Iterator[tuple[Tensor, Tensor]]  # images (B, 3, 32, 32) in [-1, 1], labels (B,)

EVALUATED = 500  # images of a batch of `first_images`: the same on every device, as BatchNorm's statistics are of it
AHEAD = 5_000  # images augmented at once on a GPU; the epoch's 50,000 take 0.6 GB in fp32


def inputs_of(state: Mapping[str, Any]) -> Inputs:
    """What a checkpoint says that its network takes.

    Raises DataError if that is not what is known of the data set, or if it says nothing, unless it is of CIFAR-10.
    """
    name = state["config"].get("dataset", CIFAR10)
    source = DATA_SETS.get(name)
    if "inputs" not in state:
        if name != CIFAR10:
            raise DataError(f"the checkpoint does not say what the classes of {name} are; --fresh trains the run again")
        return Inputs(source.classes)
    found = Inputs.of_plain(state["inputs"])
    if source and found.classes != source.classes:
        raise DataError(f"the checkpoint's classes are not those of {source.label}")
    if source and source.normalization not in (None, found.normalization):
        raise DataError(f"the checkpoint's mean and deviation are not those of {source.label}")
    return found


def in_order(images: Tensor, labels: Tensor, device: Device, by: Normalization) -> Batches:
    """Bytes (N, 32, 32, 3) and their labels (N,), batch by batch: only normalized, on the device."""
    size = device.evaluation_batch
    for some, of_some in zip(images.split(size), labels.split(size), strict=True):
        yield device.place(network_input(some.to(device.torch), by)), of_some.to(device.torch)


class Loader:
    """The batches of one seed, and the test images.

    `index` (the step within the epoch) and `step` (over the whole run) are counters on the device, from 0: a replayed
    CUDA graph reads and advances them without the host.
    """

    def __init__(
        self,
        data: DataSet,
        device: Device,
        *,
        seed: int,
        batch_size: int,
        train_size: int,
        test_size: int,
        validation_size: int = 0,
        augment: str = "none",
        cutout: int = 0,
        mixup: float = 0.0,
        size_at: Callable[[int], int] = lambda epoch: SIZE,
    ) -> None:
        """validation_size: of the training images, held out and not in the batches. cutout, mixup: see `plan`. size_at:
        side of the training images in an epoch, from 1."""

        def resident(array, chosen):
            return torch.from_numpy(array[chosen]).to(device.torch)

        trained: slice | np.ndarray = slice(train_size)  # of the data set's training images
        if validation_size:
            validation = held_out(seed, data.train_labels[:train_size], validation_size)
            trained = np.delete(np.arange(train_size), validation)
        self.device = device
        mean, deviation = data.normalization
        self.inputs = Inputs(data.classes, mean=mean, deviation=deviation)
        self.seed = seed
        self.batch_size = batch_size
        self.augment = augment
        self._cutout = cutout
        self._mixup = mixup
        self._size_at = size_at
        self.image_size = SIZE  # of the epoch under way
        self._normalization = data.normalization
        self.images = resident(data.train_images, trained)  # (N, 32, 32, 3) uint8
        self.labels = resident(data.train_labels, trained).long()  # (N,)
        self.test_images = resident(data.test_images, slice(test_size))
        self.test_labels = resident(data.test_labels, slice(test_size)).long()
        self.validates = bool(validation_size)
        # What each epoch is evaluated on: the images held out, without them the test images.
        self.held_out_images, self.held_out_labels = self.test_images, self.test_labels
        if validation_size:
            self.held_out_images = resident(data.train_images, validation)
            self.held_out_labels = resident(data.train_labels, validation).long()
        self.index = torch.zeros((), dtype=torch.int64, device=device.torch)
        self.step = torch.zeros((), dtype=torch.int64, device=device.torch)
        n = len(self.images)
        self._order = torch.zeros(n, dtype=torch.int64, device=device.torch)
        self._table = torch.zeros(n, 12, device=device.torch)  # rows of EpochPlan.table
        self.mix = torch.ones(self.steps, device=device.torch)  # of each batch of the epoch: `plan.mixing`
        self._offsets = torch.arange(batch_size, device=device.torch)
        gpu = device.torch.type != "cpu"
        self._ahead = torch.zeros(n, SIZE, SIZE, 3, device=device.torch) if gpu else None  # in the epoch's order
        # The next epoch's plan is drawn while this one trains: numpy lets go of the interpreter lock.
        self._planner = ThreadPoolExecutor(max_workers=1, thread_name_prefix="epoch-plan")
        self._next_plan: tuple[int, Future] | None = None

    @property
    def steps(self) -> int:
        """Steps per epoch, the partial last batch included."""
        return -(-len(self.images) // self.batch_size)

    def size(self, step: int) -> int:
        """Images in the batch of a step within the epoch, from 0."""
        return min(self.batch_size, len(self.images) - step * self.batch_size)

    def _plan(self, epoch: int) -> tuple[Tensor, Tensor, Tensor]:
        plan = epoch_plan(self.seed, epoch, len(self.images), augment=self.augment)
        mix = mixing(self.seed, epoch, self.steps, self._mixup)
        return torch.from_numpy(plan.order), torch.from_numpy(plan.table()), torch.from_numpy(mix)

    def start_epoch(self, epoch: int, step: int = 0) -> None:
        """Puts an epoch's plan and the counters on the device, to continue at a step within the epoch."""
        planned = self._next_plan
        order, table, mix = planned[1].result() if planned and planned[0] == epoch else self._plan(epoch)
        self._next_plan = epoch + 1, self._planner.submit(self._plan, epoch + 1)
        self._order.copy_(order)
        self._table.copy_(table)
        self.mix.copy_(mix)
        self.image_size = self._size_at(epoch)
        if self._ahead is not None:
            for rows in torch.arange(step * self.batch_size, len(order), device=self.device.torch).split(AHEAD):
                self._ahead[rows] = self._augmented(rows).permute(0, 2, 3, 1)
        self.index.fill_(step)
        self.step.fill_((epoch - 1) * self.steps + step)

    def _augmented(self, rows: Tensor) -> Tensor:
        """The images (B, 3, 32, 32) at the indices `rows` (B,) of the epoch's order."""
        images = self.images.index_select(0, self._order.index_select(0, rows))
        return augment(images, self._table.index_select(0, rows), self._normalization, self.augment, self._cutout)

    def batch(self, size: int) -> tuple[Tensor, Tensor]:
        """The batch at `index`: images (size, 3, S, S), normalized, with S of the epoch, and labels (size,).

        With mixup each image is a weighted mean with the one as far from the batch's other end, whose label `labels`
        does not hold. Reads nothing from the host.
        """
        rows = self._offsets[:size] + self.index * self.batch_size
        labels = self.labels.index_select(0, self._order.index_select(0, rows))
        ahead = self._ahead
        images = self._augmented(rows) if ahead is None else ahead.index_select(0, rows).permute(0, 3, 1, 2)
        if self.image_size < SIZE:
            images = F.interpolate(images, (self.image_size, self.image_size), mode="bilinear", antialias=True)
        if self._mixup:
            images = torch.lerp(images.flip(0), images, self.mix.take(self.index))
        return self.device.place(images), labels

    def advance(self) -> None:
        """Moves the counters on by a step."""
        self.index += 1
        self.step += 1

    def first_images(self, count: int) -> Iterator[Tensor]:
        """The first images of the epoch under way in batches of nearly one size: augmented, each by itself, at their
        full size."""
        for rows in torch.arange(count, device=self.device.torch).tensor_split(-(-count // EVALUATED)):
            yield self.device.place(self._augmented(rows))

    def test_batches(self) -> Batches:
        """The test images in order, only normalized, with their labels."""
        return in_order(self.test_images, self.test_labels, self.device, self._normalization)

    def held_out_batches(self) -> Batches:
        """The same of the images that an epoch is evaluated on."""
        return in_order(self.held_out_images, self.held_out_labels, self.device, self._normalization)

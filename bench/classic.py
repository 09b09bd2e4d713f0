"""The classic training loop, which the benchmarks compare with: what tutorials write.

torchvision's transforms on one PIL image at a time in the worker processes of a DataLoader, fp32, NCHW, eager,
optimizers as PyTorch makes them by default, and `loss.item()`, for which the host waits, at every step.
"""

from collections.abc import Iterator

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from cifar_lab.networks import NETWORKS, StepDropout
from cifar_lab.optimizers import OPTIMIZERS as ENTRIES
from cifar_lab.optimizers import build_optimizer
from cifar_lab.settings import RunConfig
from cifar_lab.width import parameter_groups, scale_output

OPTIMIZERS = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "rmsprop": torch.optim.RMSprop,
    "sgd": torch.optim.SGD,
}


REPORT = [
    transforms.RandomResizedCrop(32, scale=(0.8, 1.0)),
    transforms.RandomHorizontalFlip(),
    transforms.ColorJitter(0.2, 0.2, 0.2, 0.1),
    transforms.RandomRotation(10),
]
FLIP_CROP = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()]


class Images(Dataset):
    """As torchvision.datasets.CIFAR10: arrays in memory, images (N, 32, 32, 3) uint8, each made a PIL image."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, augmentation: list) -> None:
        self.images, self.labels = images, labels
        to_tensor = [transforms.ToTensor(), transforms.Normalize((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))]
        self.transform = transforms.Compose([*augmentation, *to_tensor])

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), int(self.labels[index])


def loader(
    images: np.ndarray, labels: np.ndarray, batch_size: int, workers: int, augmentation: list = REPORT
) -> DataLoader:  # fmt: skip
    data = Images(images, labels, augmentation)
    return DataLoader(data, batch_size=batch_size, shuffle=True, num_workers=workers)


def default_precision() -> None:
    """Sets PyTorch's process-wide precision to its own defaults: fp32 products, convolutions with TF32 on CUDA."""
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = False


def network(config: RunConfig, device: torch.device) -> tuple[nn.Module, torch.optim.Optimizer]:
    """The network of a run with PyTorch's own dropout, and its optimizer."""
    model = NETWORKS[config.model].build(config)
    scale_output(config, model)
    for name, module in list(model.named_children()):
        if isinstance(module, StepDropout):
            setattr(model, name, nn.Dropout(module.p))
    model = model.to(device).train()
    groups = parameter_groups(config, model)
    if config.optimizer not in OPTIMIZERS:
        return model, build_optimizer(config, groups, torch.device("cpu"))
    options = ENTRIES[config.optimizer].options
    return model, OPTIMIZERS[config.optimizer](groups, lr=config.lr, weight_decay=config.weight_decay, **options)


def train(
    model: nn.Module, optimizer: torch.optim.Optimizer, batches: DataLoader, device: torch.device
) -> Iterator[int]:
    """Trains epoch after epoch; yields the number of images after each step."""
    criterion = nn.CrossEntropyLoss()
    while True:
        running_loss = 0.0
        for images, labels in batches:
            images, labels = images.to(device), labels.to(device)
            optimizer.zero_grad()
            loss = criterion(model(images), labels)
            loss.backward()
            optimizer.step()
            running_loss += loss.item()
            yield len(labels)

"""What the training scripts share and that is not the method: data, batches, device, run folders.

Import it first: `cifar_lab.interrupt` says why, and, before PyTorch, `cifar_lab.openmp`.
"""

from cifar_lab import interrupt  # noqa: F401  first

# isort: split
from cifar_lab import openmp, program, start  # noqa: F401

start.check()

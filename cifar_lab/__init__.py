"""What the training scripts share and that is not the method: data, batches, device, run folders.

Import it before PyTorch: `cifar_lab.openmp` says why.
"""

from cifar_lab import openmp, start  # noqa: F401

start.check()

"""What the training scripts share and that is not the method: data, batches, device, run folders.

Import it before PyTorch: `cifar_lab.openmp` says why.
"""

from cifar_lab import start

start.check()

# isort: split
from cifar_lab import openmp  # noqa: F401, E402

"""Benchmarks: the project's engine against the classic training loop, side by side. README.md says how to read them."""

import cifar_lab  # noqa: F401  before PyTorch, see there

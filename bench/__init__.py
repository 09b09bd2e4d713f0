"""Benchmarks: the project's engine against the classic training loop, side by side. README.md says how to read them."""

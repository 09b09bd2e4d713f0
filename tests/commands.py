"""Runs a training script's command line in this process and reads the files that it leaves, without the project's own
readers."""

import csv
import json
from pathlib import Path

import numpy as np
import torch

import MyFramework
import MyVGG

SCRIPTS = {"MyVGG.py": MyVGG.main, "MyFramework.py": MyFramework.main}

torch.set_num_threads(1)  # the networks of the tests are so small that a second thread would only wait for the first


def run(command: str, data: Path, results: Path, **sizes: float) -> dict[tuple, Path]:
    """Trains on the CPU; the run folders by model, optimizer, learning rate and seed. sizes: flags and their values."""
    script, *words = command.split()
    words += [f"--{name.replace('_', '-')}={value}" for name, value in sizes.items()]
    SCRIPTS[script]([*words, "--device=cpu", f"--results={results}", f"--data-dir={data}"])
    folders = {}
    for path in results.glob("*/*/*/config.json"):
        s = json.loads(path.read_text(encoding="utf-8"))["settings"]
        folders[s["model"], s["optimizer"], s["lr"], s["seed"]] = path.parent
    return folders


def table(path: Path) -> dict[str, np.ndarray]:
    """The columns of a CSV file of numbers."""
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return {name: np.array([float(row[name]) for row in rows]) for name in rows[0]}


def count(accuracy: float, images: int) -> int:
    """How many images an accuracy in percent stands for: a whole number, up to the rounding to three decimals."""
    exact = accuracy * images / 100
    assert abs(exact - round(exact)) <= 0.0006 * images / 100, f"{accuracy}% of {images} images is {exact}"
    return round(exact)

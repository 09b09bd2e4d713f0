"""Made-up run folders, in the format that training writes, for tests of everything that reads them."""

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from cifar_lab.experiments import config_of
from cifar_lab.run_folder.reader import final_accuracy
from cifar_lab.run_folder.tables import (
    EPOCH_COLUMNS,
    PROBE_COLUMNS,
    VALIDATED_COLUMNS,
)
from cifar_lab.schedules import factor_at
from cifar_lab.settings import RunConfig, run_folder

NETWORKS = {  # name: script, label, colour
    "vgg_a": ("MyVGG.py", "VGG-A", "#D55E00"),
    "vgg_a_bn": ("MyVGG.py", "VGG-A + BatchNorm", "#0072B2"),
    "inception": ("MyFramework.py", "Inception v1", "#000000"),
    "inception_res": ("MyFramework.py", "residual Inception", "#009E73"),
}


def write_run(
    results: str | Path,
    run: str | RunConfig,
    preset: str = "quick",
    *,
    seed: int = 0,
    epochs: int = 5,  # planned; an epoch has the steps that the settings say (100 at the quick preset)
    test_accuracy: Sequence[float] | None = None,  # one a finished epoch; decides how many epochs are finished
    train_loss: Sequence[float] | None = None,
    losses: Sequence[float] | None = None,  # one a step, whole epochs but for a diverged run
    probes: Sequence[Sequence[float]] | None = None,  # rows of probes.csv
    diverged_at_step: int | None = None,
    complete: bool = True,
    device: str = "cpu: made up (2 threads)",
    commit: str | None = "abc1234",
    columns: Mapping[str, Sequence[float]] | None = None,  # of epochs.csv, in place of what follows from the above
    summary: Mapping[str, object] | None = None,  # likewise of summary.json
    environment: Mapping[str, object] | None = None,  # likewise of config.json
) -> Path:
    """Writes the folder of a run that never was and returns it.

    `run` is a name of `experiments.RUNS` or a RunConfig (whose own seed counts). Curves that are not given fall and
    rise smoothly, with a little noise of their own. A diverged run's logs end before `diverged_at_step`.
    """
    config = run if isinstance(run, RunConfig) else config_of(run, preset, seed)
    folder = run_folder(results, preset, config)
    folder.mkdir(parents=True)
    steps_per_epoch = config.steps_per_epoch
    rng = np.random.default_rng(zlib.crc32(f"{config.model}/{folder.name}".encode()))
    done = epochs if test_accuracy is None else len(test_accuracy)
    if diverged_at_step is not None:
        done = min(done, (diverged_at_step - 1) // steps_per_epoch)
    if test_accuracy is None:
        test_accuracy = 85 - 60 * np.exp(-np.arange(1, done + 1) / epochs * 5) + rng.normal(0, 0.5, done)
    if train_loss is None:
        train_loss = 0.3 + 2 * np.exp(-np.arange(1, done + 1) / epochs * 5)
    if losses is None:
        steps = done * steps_per_epoch if diverged_at_step is None else diverged_at_step - 1
        losses = 0.3 + 2 * np.exp(-np.arange(steps) / (epochs * steps_per_epoch) * 5) + rng.uniform(0, 0.2, steps)
    script, label, colour = NETWORKS.get(config.model, ("MyOwn.py", f"network {config.model}", None))
    network = {
        "script": script, "label": label, "colour": colour, "options": dict(config.options), "fingerprint": "0" * 16,
    }  # fmt: skip
    environment = {
        "commit": commit, "device": device, "precision": "fp32", "torch": "2.14.1", "python": "3.11.7",
        "platform": "Linux", "data_sha256": {"train_images": "0" * 64}, **(environment or {}),
    }  # fmt: skip
    write_json(folder / "config.json", {
        "schema": 2, "preset": preset, "settings": asdict(config), "network": network, "epochs": epochs,
        "command": "python MyVGG.py", "environment": environment,
    })  # fmt: skip
    accuracy, loss = [float(x) for x in test_accuracy[:done]], [float(x) for x in train_loss[:done]]
    rates = [config.lr * factor_at(config, steps_per_epoch, (e + 1) * steps_per_epoch - 1) for e in range(done)]
    rows = [(e + 1, rates[e], loss[e], accuracy[e] / 2, loss[e] + 0.1, accuracy[e], 1.5, 3000.5) for e in range(done)]
    for name, values in (columns or {}).items():
        place = EPOCH_COLUMNS.index(name)
        rows = [(*row[:place], value, *row[place + 1 :]) for row, value in zip(rows, values, strict=True)]
    write_csv(folder / "epochs.csv", VALIDATED_COLUMNS if config.validation_size else EPOCH_COLUMNS, rows)
    write_csv(folder / "steps.csv", ("step", "loss"), [(i + 1, float(x)) for i, x in enumerate(losses)])
    if probes is not None:
        write_csv(folder / "probes.csv", PROBE_COLUMNS, probes)
    if complete:
        write_json(folder / "summary.json", {
            "epochs": done, "steps": len(losses), "final_accuracy": final_accuracy(accuracy),
            "last_accuracy": accuracy[-1] if done else None,
            "best_accuracy_selected_on_test": max(accuracy) if done else None, "diverged_at_step": diverged_at_step,
            "train_seconds": 1.5 * done, "parameters": 123_456, "flops_per_training_image": 1.2e9, "tflops": 0.0123,
            "matmul_tflops": None, "share_of_matmul_rate": None, "images_per_second": 3000.5, **(summary or {}),
        })  # fmt: skip
    return folder


def write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def write_csv(path: Path, columns: Sequence[str], rows: Sequence[Sequence[float]]) -> None:
    lines = [",".join(columns), *(",".join(map(str, row)) for row in rows)]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")

"""The benchmarks' result files: environment, tables, numbers with their range."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

from cifar_lab.run_folder.files import write_text
from cifar_lab.run_folder.writer import environment
from cifar_lab.training.device import Device

RESULTS = Path(__file__).resolve().parent / "results"


def described(device: Device, data: str) -> dict:
    """Commit, device, precision, versions, and the data set's name."""
    about = environment(device.describe(), device.precision, {})
    del about["data_sha256"]
    return about | {"data": data}


def slug(device: Device) -> str:
    """The device as a file name."""
    return slug_of(device.describe())


def slug_of(described: str) -> str:
    """The same, of its description."""
    return re.sub(r"[^a-z0-9]+", "-", described.lower().removeprefix("cuda: ")).strip("-")


def header(about: dict) -> str:
    """The environment in one paragraph of Markdown."""
    return (
        f"{about['device']}; precision {about['precision']}; PyTorch {about['torch']}, Python {about['python']}, "
        f"{about['platform']}; commit {about['commit']}; {about['data']}."
    )


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def write(folder: Path, name: str, content: dict, markdown: str) -> None:
    """Writes `<name>.json` and `<name>.md`, each as a whole."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / f"{name}.json", json.dumps(content, indent=1) + "\n")
    write_text(folder / f"{name}.md", markdown)


def shown(value: dict | None, form: str, scale: float = 1.0) -> str:
    """A median with its range: `2.31 (2.28 to 2.40)`; a dash if nothing was measured."""
    if value is None:
        return "-"
    median, low, high = (format(scale * value[key], form) for key in ("median", "min", "max"))
    return median if value["n"] == 1 or low == high else f"{median} ({low} to {high})"

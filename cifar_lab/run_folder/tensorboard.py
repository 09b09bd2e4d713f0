"""A run's logs as TensorBoard event files: a copy of the CSV files, for another viewer."""

from collections.abc import Sequence
from pathlib import Path

from cifar_lab.run_folder.files import read_regular
from cifar_lab.run_folder.tables import LARGEST_TABLE

LOGS = ("epochs.csv", "steps.csv")
FOLDER = "tensorboard"  # in the folder of a run that is trained with --log tensorboard


class Missing(Exception):
    """The package is not installed; the text says how to install it."""


def check() -> None:
    """Raises Missing if event files cannot be written."""
    try:
        from torch.utils.tensorboard import SummaryWriter  # noqa: F401
    except ImportError as error:
        install = "python -m pip install -r requirements-tensorboard.txt"
        raise Missing(f"tensorboard is not installed ({error}); to install it, run: {install}") from None


class Events:
    """The event files of one run: `epoch/<column>` against the epoch, `step/loss` against the step."""

    def __init__(self, folder: Path, logs: Path) -> None:
        """folder: of the event files; those that are there are replaced. logs: the run folder, copied as it is now."""
        from torch.utils.tensorboard import SummaryWriter

        for old in folder.glob("events.out.tfevents.*"):
            old.unlink()
        self._writer = SummaryWriter(str(folder))
        self._columns = {}
        for name in LOGS:
            text = read_regular(logs / name, LARGEST_TABLE).decode()
            whole, _, _ = text.rpartition("\n")  # without half a last row
            header, *rows = whole.splitlines()
            self._columns[name] = header.split(",")
            self.add(name, rows)

    def add(self, name: str, rows: Sequence[str]) -> None:
        """Appends rows of the CSV file of that name."""
        first, *columns = self._columns[name]
        for row in rows:
            at, *values = row.split(",")
            for column, value in zip(columns, values, strict=True):
                self._writer.add_scalar(f"{first}/{column}", float(value), int(at))
        self._writer.flush()

    def close(self) -> None:
        """Closes the files."""
        self._writer.close()

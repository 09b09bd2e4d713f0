"""Where the project lies."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent  # the scripts lie there


def _folder(name: str) -> str:
    """A folder of the project, relative if the program was started in it."""
    return name if Path.cwd() == ROOT else str(ROOT / name)


RESULTS, DATA = _folder("results"), _folder("data")

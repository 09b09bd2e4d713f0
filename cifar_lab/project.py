"""Where the project lies, and what its commands are as a user types them."""

import os
from pathlib import Path

from cifar_lab import escape

ROOT = Path(__file__).resolve().parent.parent  # the scripts lie there


def _started_there() -> bool:
    """Whether the program was started in the project's folder."""
    try:
        return Path.cwd() == ROOT
    except OSError:  # the folder was removed meanwhile
        return False


def _folder(name: str) -> str:
    """A folder of the project, relative if the program was started in it."""
    return name if _started_there() else str(ROOT / name)


RESULTS, DATA = _folder("results"), _folder("data")


def command(program: str, *words: object, results: str | Path = RESULTS) -> str:
    """A command line that can be typed where this program was started.

    program: a script, or a module for `python -m`. words: what follows it. results: the results folder, which is named
    if it is not the default one.
    """
    if Path(results) != Path(RESULTS):
        words = (*words, "--results", Path(results))
    if program.endswith(".py"):
        start = ["python", program if _started_there() else str(ROOT / program)]
    else:
        start = [*([] if _started_there() else ["env", f"PYTHONPATH={ROOT}"]), "python", "-m", program]
    return escape.shell([*start, *map(_word, words)])


def _word(word: object) -> str:
    """A path that begins like a flag, or like a home folder, is to be read as the path that it is."""
    text = str(word)
    return os.path.join(os.curdir, text) if isinstance(word, Path) and text.startswith(("-", "~")) else text

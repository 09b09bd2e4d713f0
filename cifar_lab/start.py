"""What a program finds out before it loads PyTorch: whether it is a program, and whether its packages are installed."""

import sys
from importlib.util import find_spec

from cifar_lab.project import ROOT

PACKAGES = ("torch", "numpy", "matplotlib", "tqdm", "filelock", "PIL")
LOOKING = sys.argv[:1] == ["-m"]  # Python is looking for the module that it was asked to run


def check() -> None:
    """Ends a program with one line on standard error, status 2, if it cannot run; raises ImportError elsewhere."""
    complaint = _missing() or _no_program()
    if complaint and (LOOKING or hasattr(sys.modules["__main__"], "__file__")):
        print(complaint, file=sys.stderr)
        sys.exit(2)
    if complaint:
        raise ImportError(complaint)


def _missing() -> str:
    absent = [name for name in PACKAGES if find_spec(name) is None]
    if not absent:
        return ""
    how = "`source .venv/bin/activate` after make, else `pip install -r requirements.txt`"
    return f"not installed: {', '.join(absent)}; {how}"


def _no_program() -> str:
    """A module that was started with `python -m` and does nothing then."""
    if not LOOKING:
        return ""
    module = sys.orig_argv[sys.orig_argv.index("-m") + 1]
    file = ROOT.joinpath(*module.split(".")).with_suffix(".py")
    if not file.is_file() or '__name__ == "__main__"' in file.read_text(encoding="utf-8"):
        return ""
    return f"{module} is no program; README.md and bench/README.md list those that are"

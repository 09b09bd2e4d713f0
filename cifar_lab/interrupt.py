"""Ctrl-C from a program's first line on: while modules are imported it ends the program in one line.

Imported before all else, and imports nothing that takes a millisecond: until then Ctrl-C gives a traceback.
"""

import _signal  # `signal` takes milliseconds to import
import os
import sys

_ROOT = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))


def _module() -> str | None:
    """The module that Python was asked to run with -m; None for a file."""
    return sys.orig_argv[sys.orig_argv.index("-m") + 1] if "-m" in sys.orig_argv[:-1] else None


def _is_program() -> bool:
    """Whether a script of the project, or one of its modules, is being started: not a notebook, not the tests."""
    if sys.argv[:1] == ["-m"]:  # Python is looking for the module
        path = os.path.join(_ROOT, *_module().split("."))
        return os.path.isfile(f"{path}.py") or os.path.isfile(os.path.join(path, "__main__.py"))
    file = getattr(sys.modules["__main__"], "__file__", None)
    return file is not None and os.path.dirname(os.path.realpath(file)) == _ROOT


def name() -> str:
    """What the program is called in its messages: `MyVGG.py`, or `python -m cifar_lab.data`."""
    file = sys.argv[0] if sys.argv else ""
    own = os.path.isfile(file) and os.path.relpath(os.path.realpath(file), _ROOT)
    by_name = _module() and (file == "-m" or (own and os.sep in own and not own.startswith(os.pardir)))
    return f"python -m {_module()}" if by_name else os.path.basename(file)


def end_at_once(number: int, frame: object) -> None:
    """Ctrl-C while modules are imported: nothing is to be cleaned up, and some of them swallow exceptions."""
    try:  # noqa: SIM105  contextlib takes time to import
        os.write(2, f"{name()}: interrupted\n".encode())
    except OSError:  # nobody is left to read it
        pass
    os._exit(128 + number)


IS_PROGRAM = _is_program()
if IS_PROGRAM and _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:  # else Ctrl-C is ignored here
    _signal.signal(_signal.SIGINT, end_at_once)

"""The figures. They are the same whatever a user has set for matplotlib: no matplotlibrc is read, nor MPLBACKEND."""

import contextlib
import os
import warnings
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def _without_a_users_settings() -> Iterator[None]:
    """Where matplotlib finds none while it is imported: it would end with an error if they were wrong."""
    before = {name: os.environ.pop(name, None) for name in ("MPLBACKEND", "MATPLOTLIBRC")}
    os.environ["MATPLOTLIBRC"] = os.devnull
    try:
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(OSError):  # the current folder was removed: there is no file in it either
                stack.enter_context(contextlib.chdir(Path(__file__).parent))
            yield
    finally:
        del os.environ["MATPLOTLIBRC"]
        os.environ.update({name: value for name, value in before.items() if value is not None})


with _without_a_users_settings(), warnings.catch_warnings(action="ignore"):
    import matplotlib

    # A notebook may have imported it before, with other settings.
    defaults = {name: value for name, value in matplotlib.rcParamsDefault.items() if not name.startswith("backend")}
    matplotlib.rcParams.update(defaults)
    matplotlib.use("Agg")

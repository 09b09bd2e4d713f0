"""How a program begins and ends: its signals and streams, one line for whatever ends it early."""

import contextlib
import errno
import io
import os
import select
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import NoReturn

from cifar_lab import escape
from cifar_lab.interrupt import IS_PROGRAM, end_at_once, name

# What asks a program to save and stop: Ctrl-C; a batch system, or `kill`; a terminal that closes; a batch system ahead
# of its time limit (Slurm's --signal=USR1@60, SGE's -notify, a limit on processor time).
STOP_SIGNALS = tuple(
    getattr(signal, word)
    for word in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU")
    if hasattr(signal, word)
)

# Exit statuses besides 0 and, for a signal, 128 and its number; those above 2 as sysexits.h has them.
OTHER, BAD_INPUT, OUT_OF_MEMORY, DISK, BUSY = 1, 2, 71, 74, 75


@contextlib.contextmanager
def handling(handler: Callable, numbers: Sequence[int] = STOP_SIGNALS) -> Iterator[None]:
    """Has the handler called for these signals. Outside of the main thread, which alone gets signals, nothing changes.

    What the program was started to ignore (`nohup` and SIGHUP) stays ignored, but for SIGINT, which shells have
    background commands ignore, and which only `kill` can then send.
    """
    if threading.current_thread() is not threading.main_thread():
        numbers = ()
    before = {number: signal.getsignal(number) for number in numbers}
    before = {
        number: old
        for number, old in before.items()
        if old is not None and (old is not signal.SIG_IGN or number == signal.SIGINT)
    }
    for number in before:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def fail(message: object, status: int = BAD_INPUT) -> NoReturn:
    """Ends the program with one line on standard error."""
    print(escape.terminal(str(message).replace("\n", " ")), file=sys.stderr)
    sys.exit(status)


# --- What ends a program early ---------------------------------------------------------------------------------------

# How libraries say so: PyTorch's allocators, C++, the loader of shared libraries, threads that get no stack.
_OUT_OF_MEMORY = (
    "out of memory", "can't allocate memory", "cannot allocate memory", "bad_alloc", "not enough memory",
    "failed to map segment", "can't start new thread",
)  # fmt: skip


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory was short, whichever library says so: then no file and no network is to blame."""
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
        return True
    text = str(error).lower()
    said = any(words in text for words in _OUT_OF_MEMORY) and "not permitted" not in text  # a disk of no programs
    return isinstance(error, RuntimeError | ImportError) and said


def complaint(error: BaseException) -> str:
    """Why a program ended, in a line, if that is the machine's fault; empty if it is the program's own."""
    if is_out_of_memory(error):
        first = next(iter(str(error).strip().splitlines()), "")
        return f"out of memory{first and f' ({first:.200})'}"
    if isinstance(error, OSError):
        return f"{error.filename or 'writing'}: {error.strerror or error}"
    return ""


def status_of(error: BaseException) -> int:
    """The exit status of what `complaint` has a line for."""
    return OUT_OF_MEMORY if is_out_of_memory(error) else DISK


def run(main: Callable[[list[str]], int | None], argv: list[str]) -> None:
    """Runs a program to its exit status: that which `main` returns or exits with; or one line on standard error and
    130 (Ctrl-C), or what `status_of` has. A fault of the program's own shows where it is, with status 1.

    Returns if the status is 0 and this is not the end of the process: a program may run others in itself.
    """
    global _running
    if _running or not IS_PROGRAM:
        return _run(main, argv)
    _running = True
    status: object = 0
    try:
        if signal.getsignal(signal.SIGINT) is end_at_once:
            signal.signal(signal.SIGINT, _interrupt)
        _run(main, argv)
    except SystemExit as end:
        status = end.code or 0
    except KeyboardInterrupt:
        status = 130
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # from here on there is nothing to interrupt
    sys.stdout.flush()
    lost = getattr(getattr(sys.stdout.buffer, "raw", sys.stdout.buffer), "failed", None)
    if lost and not status:
        fail(f"{name()}: standard output: {lost.strerror}", DISK)
    sys.exit(status)


def _run(main: Callable[[list[str]], int | None], argv: list[str]) -> None:
    global _interrupted
    status = None
    try:
        status = main(argv)
    except (SystemExit, KeyboardInterrupt, Exception) as error:
        if not _interrupted and not isinstance(error, KeyboardInterrupt):
            if line := complaint(error):
                fail(f"{name()}: {line}", status_of(error))
            raise
        _interrupted = True  # whatever an interrupted library has made of it
    if _interrupted:
        _interrupted = False
        fail(f"{name()}: interrupted", 130)
    if status:
        sys.exit(status)


_running = _interrupted = False


def _interrupt(number: int, frame: object) -> None:
    global _interrupted
    _interrupted = True
    raise KeyboardInterrupt


# --- Standard streams ------------------------------------------------------------------------------------------------


class _Raw(io.FileIO):
    """Standard output or error, whose reader may be gone (a terminal or a pipe that was closed): nothing ends for it.

    failed: why something that a reader might still want could not be written, as on a full disk.
    """

    failed: OSError | None = None

    def write(self, data) -> int:
        left = whole = memoryview(data).cast("B")
        while left:
            try:
                written = super().write(left)
            except OSError as error:
                if error.errno not in (errno.EPIPE, errno.EIO, errno.ENXIO, errno.EBADF):
                    self.failed = error
                break
            if written is None:  # another program has made it non-blocking
                select.select([], [self], [])
            left = left[written or 0 :]
        return len(whole)


def _renew_streams() -> None:
    """Standard streams that are always there, take every character, and fail nobody.

    A file that is opened later must not get the number of a closed one: what libraries print would be written into it.
    """
    if os.name != "posix":  # a console of Windows is no file
        for stream in filter(None, (sys.stdout, sys.stderr)):
            stream.reconfigure(errors="backslashreplace")
        return
    while (file := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(file, True)
    os.close(file)
    for number, word in ((1, "stdout"), (2, "stderr")):
        old = getattr(sys, word)
        if old is not getattr(sys, f"__{word}__"):  # somebody's own, as in an editor's console
            continue
        if old is not None:
            with contextlib.suppress(OSError):
                old.flush()
        raw = _Raw(number, "w", closefd=False)
        through = bool(old and old.write_through)
        new = io.TextIOWrapper(
            raw if through else io.BufferedWriter(raw), encoding=old.encoding if old else "utf-8",
            errors="backslashreplace", line_buffering=bool(old and old.line_buffering), write_through=through,
        )  # fmt: skip
        setattr(sys, word, new)


def _last_words(kind: type[BaseException], error: BaseException, trace: object) -> None:
    """One line for what ends a program before its `run`, or beside it."""
    line = "interrupted" if kind is KeyboardInterrupt else complaint(error)
    if line:
        print(f"{name()}: {escape.terminal(line)}", file=sys.stderr)
    else:
        traceback.print_exception(kind, error, trace)


def _unraisable(hook: object) -> None:
    """Ctrl-C where Python drops exceptions, in a finalizer or a callback."""
    if hook.exc_type is KeyboardInterrupt:
        end_at_once(signal.SIGINT, None)
    sys.__unraisablehook__(hook)


if IS_PROGRAM:
    _renew_streams()
    sys.excepthook, sys.unraisablehook = _last_words, _unraisable

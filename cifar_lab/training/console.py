"""What a person sees: bars on a terminal, one plain line per epoch elsewhere."""

import shutil
import signal
import sys
import textwrap
import time
from contextlib import ExitStack

from tqdm import tqdm

from cifar_lab import escape
from cifar_lab.program import handling
from cifar_lab.run_folder.reader import final_epochs


def duration(seconds: float) -> str:
    """Seconds in words: 45 s, 12 min, 3 h 20 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


def _held_out(results: list[tuple[str, dict]]) -> str:
    return "validation" if "validation_accuracy" in results[0][1] else "test"


def epoch_text(epoch: int, target: int, results: list[tuple[str, dict]]) -> str:
    """An epoch in a line. results: label of each run and what `TrainingRun.end_epoch` returned."""
    name = _held_out(results)
    parts = [
        f"{label + ': ' if label else ''}loss {r['train_loss']:.3f}, accuracy {r['train_accuracy']:.1f}%, "
        f"{name} accuracy {r[f'{name}_accuracy']:.2f}%"
        for label, r in results
    ]
    return "; ".join([f"epoch {epoch}/{target}", *parts])


def short_epoch_text(epoch: int, target: int, results: list[tuple[str, dict]], columns: int) -> str:
    """The accuracy of several runs after an epoch: a line, if the columns suffice. results: as above."""
    name = _held_out(results)
    accuracies = ", ".join(
        f"{label.removeprefix('lr ')} {r[f'{name}_accuracy']:.2f}".replace(" ", "\xa0") for label, r in results
    )
    lines = textwrap.wrap(f"epoch {epoch}/{target}: {name} accuracy {accuracies}%", max(20, columns - 2))
    return "\n  ".join(lines).replace("\xa0", " ")  # a space within a pair is not where a line ends


def result_text(summary: dict) -> str:
    """The end of a run in a line. summary: the content of summary.json."""
    words = [f"{duration(summary['train_seconds'])} of training and {duration(summary['test_seconds'])} of tests"]
    if summary["final_accuracy"] is not None:
        n = final_epochs(summary["epochs"])
        over = f"mean of the last {n} epochs" if n > 1 else "of one epoch"
        name = "validation" if "best_accuracy_selected_on_validation" in summary else "test"
        words.append(f"final {name} accuracy {summary['final_accuracy']:.2f}% ({over})")
    if "test_accuracy" in summary:
        words.append(f"test accuracy {summary['test_accuracy']:.2f}%")
    if summary["images_per_second"]:
        words.append(f"{summary['images_per_second']:.0f} images/s")
    if summary["tflops"]:
        words.append(f"{summary['tflops']:.3g} TFLOP/s")
        words.append(f"{100 * summary['share_of_matmul_rate']:.0f}% of the matrix-product rate")
    if "probes_stopped_at_step" in summary:
        words.append(f"probes stopped at step {summary['probes_stopped_at_step']}, where the gradient is not finite")
    return ", ".join(words)


class Console:
    """Progress of a lockstep group: a bar over epochs and one over the batches of the epoch."""

    def __init__(self) -> None:
        self.terminal = sys.stderr is not None and sys.stderr.isatty()
        self._epochs: tqdm | None = None
        self._batches: tqdm | None = None

    def say(self, text: str) -> None:
        """One line, above the bars if there are any."""
        text = "\n".join(map(escape.terminal, text.split("\n")))
        if self.terminal:
            tqdm.write(text)
        else:
            print(text, flush=True)

    def start_epochs(self, done: int, total: int) -> None:
        if self.terminal:
            self._epochs = tqdm(total=total, initial=done, unit="epoch", desc="epochs", position=0, dynamic_ncols=True)

    def start_batches(self, epoch: int, done: int, total: int) -> None:
        if self.terminal:
            self._batches = tqdm(
                total=total,
                initial=done,
                unit="batch",
                desc=f"epoch {epoch}",
                position=1,
                leave=False,
                dynamic_ncols=True,
            )

    def batches_at(self, step: int, status: str = "") -> None:
        """Moves the inner bar to a step; tqdm limits how often it is drawn."""
        if self._batches is not None:
            if status:
                self._batches.set_postfix_str(status, refresh=False)
            self._batches.update(step - self._batches.n)

    def end_batches(self) -> None:
        if self._batches is not None:
            self._batches.close()
            self._batches = None

    def end_epoch(self, epoch: int, target: int, results: list[tuple[str, dict]]) -> None:
        """The epoch's results as a line; of several runs on a terminal only what fits there."""
        text = epoch_text(epoch, target, results)
        if self.terminal and len(results) > 1:
            text = short_epoch_text(epoch, target, results, shutil.get_terminal_size().columns)
        self.say(text)
        if self._epochs is not None:
            self._epochs.update(epoch - self._epochs.n)

    def close(self) -> None:
        self.end_batches()
        if self._epochs is not None:
            self._epochs.close()
            self._epochs = None


class Stopped(Exception):
    """A signal asked the program to stop. saved: with everything that was trained, not only up to a checkpoint."""

    def __init__(self, number: int, saved: bool = True) -> None:
        super().__init__(number)
        self.status = 128 + number
        self.saved = saved


IMPATIENT = (signal.SIGINT, signal.SIGTERM)
AS_ONE = 0.5  # seconds in which two of them are one: `timeout` sends SIGTERM to its command, then to its process group


class StopSignals(ExitStack):
    """Notes the signals that ask to stop while it is entered, so that a step can be finished.

    A second Ctrl-C or SIGTERM stops at once, if it comes `AS_ONE` seconds later. The others often come in pairs (a
    terminal that closes sends SIGHUP twice), or announce a SIGTERM.
    """

    def __init__(self) -> None:
        super().__init__()
        self.received: int | None = None
        self._since = 0.0

    def _note(self, number: int, frame) -> None:
        if self.received is None:
            self.received, self._since = number, time.monotonic()
        elif {self.received, number} <= set(IMPATIENT) and time.monotonic() - self._since >= AS_ONE:
            raise Stopped(number, saved=False)

    def __enter__(self) -> "StopSignals":
        self.enter_context(handling(self._note))
        return self


class Stopwatch:
    """Seconds since the last lap; one whose time is not asked for leaves it out of training time."""

    def __init__(self) -> None:
        self._last = time.perf_counter()

    def lap(self) -> float:
        now = time.perf_counter()
        passed, self._last = now - self._last, now
        return passed

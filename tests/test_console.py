"""What a person sees: bars and an estimate on a terminal, one line and no traceback on Ctrl-C."""

import itertools
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from cifar_lab.training import group
from cifar_lab.training.console import duration, short_epoch_text

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs a POSIX terminal")

ROOT = Path(__file__).resolve().parent.parent
PATIENCE = 120  # seconds


class Terminal:
    """A script that runs in a terminal of its own."""

    def __init__(self, *words: str) -> None:
        import fcntl  # there are none on Windows
        import pty
        import struct
        import termios

        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 200, 0, 0))
        self.process = subprocess.Popen(
            [sys.executable, *words], cwd=ROOT, stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )  # fmt: skip
        os.close(slave)
        self.screen = ""

    def read_until(self, *patterns: str) -> None:
        """Reads the screen until each of the patterns has been on it, or the script has ended."""
        end = time.monotonic() + PATIENCE
        missing = list(patterns)
        while missing := [pattern for pattern in missing if not re.search(pattern, self.screen)]:
            assert time.monotonic() < end, self.screen[-2000:]
            try:
                new = os.read(self._master, 65536)
            except OSError:  # the other side is closed
                new = b""
            if not new:
                return
            self.screen += new.decode("utf-8", "replace")

    def press_ctrl_c(self) -> int:
        """Returns the exit status."""
        os.write(self._master, b"\x03")
        self.read_until("this is never on the screen")
        return self.process.wait(PATIENCE)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._master)


@pytest.fixture
def terminal():
    opened = []

    def start(*words: str) -> Terminal:
        opened.append(Terminal(*words))
        return opened[-1]

    yield start
    for one in opened:
        one.close()


# However fast the machine, within an epoch the bar moves.
LOOKS_AT_EVERY_STEP = """
import sys
import MyVGG
from cifar_lab.training import group, script
group.READ_SECONDS = 0
sys.argv[0] = "MyVGG.py"
script.run(MyVGG.main, sys.argv[1:])
"""


def test_bars_estimate_and_ctrl_c_on_a_terminal(terminal, tmp_path, synthetic_data):
    seen = terminal(
        "-c", LOOKS_AT_EVERY_STEP, "--bn", "--width", "0.25", "--batch-size", "50", "--train-size", "2000",
        "--test-size", "50", "--epochs", "1000000", "--device", "cpu", "--data-dir", str(synthetic_data),
        "--results", str(tmp_path),
    )  # fmt: skip
    seen.read_until(
        r"vgg_a_bn: 1 run of 1,000,000 epochs, 40 steps each, seed 0",
        r"about [\d,]+ h \d\d min to go, from the first 20 steps",
        r"--preset quick \(minutes\) or --preset laptop \(overnight\)",
        r"epoch 1: +\d+%\|.*\| \d+/40 .*loss \d\.\d+, accuracy [\d.]+%, \d+ images/s",
        r"epoch [1-9]\d*/1000000; loss \d\.\d+, accuracy [\d.]+%, test accuracy [\d.]+%",
        r"epochs: +0%\|.*\| [1-9]\d*/1000000 ",
    )
    assert seen.press_ctrl_c() == 130
    assert "Traceback" not in seen.screen
    last = seen.screen.rstrip().splitlines()[-1]
    assert last.endswith("MyVGG.py: stopped, everything trained so far is saved; the same command continues")


def test_four_runs_fit_into_a_line_of_80_columns():
    accuracies = {"1e-3": 85.72, "1e-4": 82.33, "5e-4": 86.11, "5e-5": 80.071}
    results = [(f"lr {lr}", {"test_accuracy": value}) for lr, value in accuracies.items()]
    line = "epoch 200/200: test accuracy 1e-3 85.72, 1e-4 82.33, 5e-4 86.11, 5e-5 80.07%"
    assert short_epoch_text(200, 200, results, 80) == line and len(line) < 80
    assert short_epoch_text(200, 200, results, 50) == line.replace(", 1e-4", ",\n  1e-4")


@pytest.mark.parametrize("seconds, steps", [(0.1, 20), (1.0, 7), (8.0, 2)])
def test_the_estimate_comes_within_ten_seconds(seconds, steps, monkeypatch):
    """With steps that take so long; the first may be slower and does not count."""
    clock = itertools.count(100.0, seconds)
    now = [0.0]
    monkeypatch.setattr(group.time, "monotonic", lambda: now[0])
    said = []
    lockstep = SimpleNamespace(
        _taken=0, _first_step=0.0, _estimated=False, _target=3, _later_groups=1, synchronize=lambda: None,
        loader=SimpleNamespace(steps=50, images=[0] * 500, held_out_labels=[0] * 150),
        device=SimpleNamespace(torch=SimpleNamespace(type="cpu")), _console=SimpleNamespace(say=said.append),
    )  # fmt: skip
    for index in range(40):
        now[0] = next(clock)
        group.Lockstep._estimate_after(lockstep, 1, index)
    # 300 steps in both groups; the evaluations after them a tenth of that.
    left = duration(seconds * (300 - (steps - 1)) * 1.1)
    assert said == [f"about {left} to go, from the first {steps} steps"]

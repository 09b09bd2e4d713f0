"""How the threads of OpenMP wait for one another, which is decided when PyTorch is loaded."""

import os
import sys

# GNU's OpenMP lets a thread that waits turn 300,000 times in place before it sleeps. If another program has the core of
# the one that it waits for, the turns are lost: beside busy programs a training becomes many times slower
# (bench/README.md). 20,000 bridge the gaps within a training step, and cost nothing alone. Trainings beside each other
# need more than that: `training/turns.py`.
SPIN_VARIABLES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")  # either one set by the user holds
SET_BY_USER = any(name in os.environ for name in SPIN_VARIABLES)
TOO_LATE = "torch" in sys.modules and sys.platform == "linux" and not SET_BY_USER
if not SET_BY_USER:
    os.environ["GOMP_SPINCOUNT"] = "20000"

_COMPLAINTS = [
    "PyTorch was imported before cifar_lab: beside another busy program training may become many times slower; "
    "import cifar_lab first, or set GOMP_SPINCOUNT=20000"
] if TOO_LATE else []  # fmt: skip


def complaint() -> str:
    """What a user can do if this module was imported too late; empty if it was not, and from the second time on."""
    return _COMPLAINTS.pop() if _COMPLAINTS else ""

"""Runs tasks on this machine."""

import runpy
import shlex
import sys
from argparse import Namespace
from collections.abc import Sequence

from cifar_lab.jobs.task import Task
from cifar_lab.project import ROOT


def run(tasks: Sequence[Task], options: Namespace) -> int:
    """Runs tasks to their end; returns the exit status of the first that fails, which ends the list, else 0.

    options: those of `cifar_lab.reproduce`.
    """
    for number, task in enumerate(tasks, start=1):
        print(f"[{number}/{len(tasks)}] {task.command}", flush=True)
        if status := in_this_process(task.command):
            return status
    return 0


def in_this_process(line: str) -> int:
    """Runs one command as a shell would, but in this process, which has loaded PyTorch. Returns its exit status."""
    _, script, *arguments = shlex.split(line)
    before, sys.argv = sys.argv, [script, *arguments]
    try:
        runpy.run_path(str(ROOT / script), run_name="__main__")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    finally:
        sys.argv = before
    return 0

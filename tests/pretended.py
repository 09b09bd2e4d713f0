"""Trainings that only write the logs that they would leave, for tests of what trains several commands."""

import shlex
from collections.abc import Callable
from pathlib import Path

from made_up import write_run

import MyFramework
import MyVGG
from cifar_lab import reproduce
from cifar_lab.settings import RunConfig, run_folder
from cifar_lab.training import script

SCRIPTS = {
    "MyVGG.py": (MyVGG.VGGSettings, MyVGG.__file__),
    "MyFramework.py": (MyFramework.InceptionSettings, MyFramework.__file__),
}


class Trainer:
    """In place of `here.in_this_process`. Other commands than trainings are only noted."""

    def __init__(self) -> None:
        self.commands: list[str] = []
        self.accuracy: Callable[[RunConfig], float] = lambda config: 50.0  # percent, in every epoch
        self.stop_at: int | None = None  # this command, from 1, ends as if stopped

    def run(self, command: str) -> int:
        self.commands.append(command)
        _, name, *words = shlex.split(command)
        if name not in SCRIPTS:
            return 0
        if len(self.commands) == self.stop_at:
            return reproduce.STOPPED
        settings = script.settings_of(*SCRIPTS[name], words)
        for config in (config for seed in settings.seed for config in settings.runs(seed)):
            if not Path(run_folder(settings.results, settings.preset, config)).exists():
                accuracy = [self.accuracy(config)] * settings.epochs
                write_run(settings.results, config, settings.preset, epochs=settings.epochs, test_accuracy=accuracy)
        return 0

"""The README's commands parse against the real parsers, and its links lead somewhere."""

import re
import shlex
from pathlib import Path

import pytest

import landscape
import MyFramework
import MyVGG
import plot_results
from cifar_lab.experiments import EXPERIMENTS, MODERN_EXPERIMENTS, PAPER_EXPERIMENTS, config_of
from cifar_lab.jobs.task import tasks
from cifar_lab.settings import PAPER_PRESETS, Settings
from cifar_lab.training import script

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
SETTINGS = {"MyVGG.py": MyVGG.VGGSettings, "MyFramework.py": MyFramework.InceptionSettings}


def parsed(command: str) -> Settings:
    """The settings of a training command; exits where the parser refuses it."""
    _, name, *words = shlex.split(command, comments=True)
    return script.settings_of(SETTINGS[name], ROOT / name, words)


def readme_commands() -> list[str]:
    lines = re.findall(r"^(python \w+\.py.*)$", README, re.M) + re.findall(r"`(python \w+\.py[^`]*)`", README)
    return sorted({" ".join(shlex.split(line, comments=True)) for line in lines})


def test_the_users_commands_are_there():
    for command in (
        "python MyFramework.py --model inception_res --optimizer adamw",
        "python MyVGG.py --bn --lrs 1e-3 1e-4 5e-4 5e-5",
        "python plot_results.py results/",
    ):
        assert command in readme_commands()


@pytest.mark.parametrize("command", readme_commands())
def test_a_command_of_the_readme_parses(command):
    _, name, *words = command.split()
    if name in SETTINGS:
        parsed(command)
    elif name == "plot_results.py":
        plot_results.parser().parse_args(words)
    elif name == "landscape.py" and words and words[0] in landscape.COMMANDS:
        parser_of, _ = landscape.COMMANDS[words[0]]
        parser_of().parse_args(words[1:] or ["run"])
    elif name != "MyResNet.py":  # tests/test_own_network.py
        assert name == "landscape.py"
        landscape.parser().parse_args(words)


def test_make_targets_of_the_readme_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"`?make ([a-z-]+)", README)):
        if target != "sure":
            assert re.search(rf"^[^\t#\n]*\b{target}\b[^\n]*:", makefile, re.M), target


def test_links_of_the_readme_lead_somewhere():
    for link in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / link).exists(), link


@pytest.mark.parametrize("preset", ["report", "laptop", "quick", "paper", "paper-quick", "modern"])
def test_the_list_of_commands_trains_the_runs_that_the_table_names(preset):
    listed = PAPER_EXPERIMENTS if preset in PAPER_PRESETS else EXPERIMENTS
    listed = MODERN_EXPERIMENTS if preset == "modern" else listed
    for experiment in listed:
        settings = parsed(experiment.command(preset, (3,)))
        assert settings.runs(3) == [config_of(run, preset, 3) for run in experiment.names]
        assert settings.epochs == (experiment.epochs if preset == "report" else settings.epochs)
    assert len(tasks(preset, (0,), "results")) >= len(listed)


def test_the_users_commands_are_the_reports_figures():
    (figure_7,) = parsed("python MyFramework.py --model inception_res --optimizer adamw").runs(0)
    assert figure_7 == config_of("inception_res_adamw", "report")
    settings = parsed("python MyVGG.py --bn --lrs 1e-3 1e-4 5e-4 5e-5")
    assert settings.epochs == 200
    assert settings.runs(0) == [config_of(run, "report") for run in EXPERIMENTS[1].names]

"""The list of commands: what is left out, what happens when one fails, and what is drawn in the end."""

import sys

import pytest
from made_up import write_run

from cifar_lab import reproduce
from cifar_lab.jobs import here, machine, task
from cifar_lab.report.claims import CLAIMS
from cifar_lab.report.verdicts import judge_all
from cifar_lab.run_folder.reader import find_run_folders, own_runs


class Ran(list):
    """The commands that were run; `status` is the exit status of those that hold a word."""

    def __init__(self) -> None:
        self.status: dict[str, int] = {}

    def run(self, command: str) -> int:
        self.append(command)
        return next((status for word, status in self.status.items() if word in command), 0)


@pytest.fixture
def ran(monkeypatch):
    ran = Ran()
    for module in (here, reproduce):
        monkeypatch.setattr(module, "in_this_process", ran.run)
    monkeypatch.setattr(machine, "jobs_by_default", lambda *_: 1)
    return ran


def test_everything_is_trained_then_drawn(ran, tmp_path, capsys):
    words = ["quick", "--seed", "0", "1", "--results", str(tmp_path)]
    assert reproduce.main([*words, "--list"]) == 0 and ran == []
    listed = capsys.readouterr().out.splitlines()
    assert len(listed) == 18  # test_settings.py has them in full
    assert reproduce.main(words) == 0
    assert ran[:-2] == listed
    assert ran[-2].startswith("python landscape.py surface ")  # the list has it when the runs are there
    assert ran[-1] == f"python plot_results.py {tmp_path} --preset quick"
    assert "all commands done" in capsys.readouterr().out


@pytest.mark.parametrize("status", [1, 2])
def test_what_is_there_is_drawn_when_a_command_fails(ran, tmp_path, status):
    ran.status["--model inception "] = status
    assert reproduce.main(["quick", "--results", str(tmp_path)]) == status
    assert len(ran) == 4 and "--model inception " in ran[2] and ran[3].startswith("python plot_results.py")


def test_ctrl_c_ends_it_all(ran, tmp_path):
    ran.status["MyVGG.py --bn"] = reproduce.INTERRUPTED
    assert reproduce.main(["quick", "--results", str(tmp_path)]) == reproduce.INTERRUPTED
    assert len(ran) == 2


@pytest.mark.parametrize("seconds", [["--seconds", "1000"], []])
def test_stopped_from_outside_is_not_stopped_in_time(ran, tmp_path, seconds):
    ran.status["--residual-scale"] = reproduce.STOPPED
    assert reproduce.main(["report", "--results", str(tmp_path), *seconds]) == reproduce.STOPPED
    assert ran[-1].startswith("python plot_results.py")


def test_surfaces_of_runs_that_came_without_weights_are_left_out(ran, tmp_path, capsys):
    for name in task.SURFACE_RUNS:
        folder = write_run(tmp_path, name, "report")
        (folder / "checkpoint.pt").touch()
    assert reproduce.main(["report", "--results", str(tmp_path)]) == 0
    assert " surface " in ran[-2]
    (folder / "checkpoint.pt").unlink()
    assert reproduce.main(["report", "--results", str(tmp_path)]) == 0
    assert " surface " not in ran[-2]
    assert f"left out: {folder} is complete, but its checkpoint is not here" in capsys.readouterr().out
    assert reproduce.main(["report", "--list", "--results", str(tmp_path)]) == 0
    assert " surface " not in capsys.readouterr().out


# --- Until decided ----------------------------------------------------------------------------------------------------

INCEPTIONS = [
    "python MyFramework.py --model inception --optimizer adam --weight-decay 0 --preset quick",
    "python MyFramework.py --model inception_res --optimizer adam --weight-decay 0 --preset quick",
]
VGGS = ["python MyVGG.py --lrs 1e-3 --preset quick", "python MyVGG.py --bn --lrs 1e-3 --preset quick"]


@pytest.fixture
def claims(monkeypatch):
    """As if the report had two claims: the family in which both have to be decided."""
    two = [claim for claim in CLAIMS if claim.id in ("residual", "bn-accuracy")]

    def open_claims(results, preset):
        return [verdict for verdict in judge_all(own_runs(results, preset), preset, results, two) if verdict.open]

    monkeypatch.setattr(reproduce, "open_claims", open_claims)


def differing(residual, bn):
    """Accuracies of which the networks' differences at each seed are these."""
    better = {"inception_res": residual, "vgg_a_bn": bn}
    return lambda config: 50.0 + better.get(config.model, [0] * 20)[config.seed]


CLEAR = [5.0, 5.1, 4.9, 5.2, 4.8, 5.1, 4.9, 5.2, 4.8, 5.0]
UNCLEAR = [1.0, -1.1, 0.9, -0.8, 1.2, -1.0, 0.9, -1.1, 1.0, -0.9]


def seeds_trained(trainer) -> dict[str, str]:
    """By the command without its seed and folder, the seeds that it was run with."""
    found: dict[str, str] = {}
    for command in trainer.commands:
        words, _, rest = command.partition(" --seed ")
        words, _, _ = words.partition(" --results ")
        found[words] = f"{found.get(words, '')} {rest.partition(' ')[0] or '0'}".strip()
    return found


def test_three_seeds_are_enough_for_clear_effects(trainer, claims, tmp_path, capsys):
    """Their mean is 5 and its standard error 0.06: p = 1e-4, less than the level of 0.0055 for the smaller of two."""
    trainer.accuracy = differing(CLEAR, CLEAR)
    assert reproduce.main(["quick", "--until-decided", "--results", str(tmp_path)]) == 0
    plot = trainer.commands.pop()
    assert plot == f"python plot_results.py {tmp_path} --preset quick"
    assert seeds_trained(trainer) == dict.fromkeys(VGGS + INCEPTIONS, "0 1 2")
    assert len(find_run_folders(tmp_path)) == 12
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "seed 0, for the open claims: residual: not run; bn-accuracy: not run"
    assert "seed 2, for the open claims: residual: too few seeds (n = 2, sign as claimed); bn-accuracy" in said[10]
    assert said[-2] == "no claim is open: more seeds decide nothing more at the preset quick"


def test_only_what_an_open_claim_needs_is_trained_further(trainer, claims, tmp_path, capsys):
    trainer.accuracy = differing(UNCLEAR, CLEAR)
    words = ["quick", "--until-decided", "--max-seeds", "5", "--results", str(tmp_path)]
    assert reproduce.main(words) == 0
    trainer.commands.pop()
    assert seeds_trained(trainer) == dict.fromkeys(VGGS, "0 1 2") | dict.fromkeys(INCEPTIONS, "0 1 2 3 4")
    said = capsys.readouterr().out.splitlines()
    assert "seed 3, for the open claims: residual: undecided" in said
    assert said[-2] == "5 seeds are trained; open claims: residual: undecided"
    trainer.commands = []
    assert reproduce.main(words) == 0 and len(trainer.commands) == 1  # the figures
    assert reproduce.main([*words, "--max-seeds", "10"]) == 0  # from there on
    assert seeds_trained(trainer)[INCEPTIONS[0]] == "5 6 7 8 9"
    assert capsys.readouterr().out.splitlines()[-2].startswith("no claim is open")  # ten seeds are the most


def test_a_list_that_was_stopped_continues(trainer, claims, tmp_path, capsys):
    """At the third command of the second seed."""
    trainer.accuracy = differing(CLEAR, CLEAR)
    trainer.stop_at = 7
    words = ["quick", "--until-decided", "--seed", "4", "2", "--results", str(tmp_path)]
    assert reproduce.main([*words, "--seconds", "1000"]) == reproduce.STOPPED
    assert len(trainer.commands) == 8 and trainer.commands[-1].startswith("python plot_results.py")
    trainer.stop_at, trainer.commands = None, []
    capsys.readouterr()
    assert reproduce.main([*words, "--list"]) == 0 and not trainer.commands
    assert capsys.readouterr().out.splitlines() == [f"{c} --seed 2 --results {tmp_path}" for c in INCEPTIONS]
    assert reproduce.main(words) == 0
    trainer.commands.pop()
    assert seeds_trained(trainer) == dict.fromkeys(VGGS, "0") | dict.fromkeys(INCEPTIONS, "2 0")
    capsys.readouterr()
    assert reproduce.main([*words, "--list"]) == 0
    assert capsys.readouterr().out.startswith("no claim is open")


def test_a_preset_trains_what_its_claims_need(trainer, tmp_path, capsys):
    """At the quick preset four can be decided: the optimizers and the short runs are for none of them."""
    assert reproduce.main(["quick", "--until-decided", "--list", "--results", str(tmp_path / "none")]) == 0
    assert [command.split(" --preset")[0] for command in capsys.readouterr().out.splitlines()] == [
        "python MyVGG.py --lrs 1e-3 1e-4 5e-4 5e-5",
        "python MyVGG.py --bn --lrs 1e-3 1e-4 5e-4 5e-5",
        "python MyFramework.py --model inception --optimizer adam --weight-decay 0",
        "python MyFramework.py --model inception_res --optimizer adam --weight-decay 0",
        "python MyFramework.py --model inception_res --residual-scale 1.0 --weight-decay 0",
    ]


def test_a_package_that_is_not_installed_is_one_line(ran, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    for name in ("on_ray", "ray_worker"):
        monkeypatch.delitem(sys.modules, f"cifar_lab.jobs.{name}", raising=False)
    with pytest.raises(SystemExit) as ended:
        reproduce.main(["quick", "--on", "ray", "--results", str(tmp_path / "results")])
    assert ended.value.code == 2 and not [*tmp_path.iterdir()] and not ran
    said = "--on ray needs the package ray: python -m pip install -r requirements-ray.txt\n"
    assert capsys.readouterr().err == said and (reproduce.ROOT / "requirements-ray.txt").exists()


@pytest.mark.parametrize(
    "words",
    [
        [], ["huge"], ["quick", "--seed", "-1"], ["quick", "--seconds", "soon"], ["quick", "--seed", "1", "1"],
        ["paper", "--until-decided"], ["paper-quick", "--switches", "level"], ["quick", "--max-seeds", "5"],
        ["quick", "--until-decided", "--max-seeds", "11"], ["quick", "--until-decided", "--max-seeds", "2"],
        ["quick", "--until-decided", "--max-seeds", "3", "--seed", "0", "1", "2", "3"], ["quick", "--switches", "none"],
        ["quick", "--until-decided", "--switches", "level"],
        ["quick", "--cpus", "2"], ["quick", "--per-gpu", "2"],
        ["quick", "--on", "ray", "--gpus", "1.5"], ["quick", "--results", "a\tb"],
        ["quick", "--on", "ray", "--jobs", "2"], ["quick", "--on", "slurm", "--gpus", "0"],
    ],
)  # fmt: skip
def test_bad_input_is_one_line(ran, words, capsys):
    with pytest.raises(SystemExit) as ended:
        reproduce.main(words)
    assert ended.value.code == 2 and capsys.readouterr().err.count("\n") == 1 and not ran

"""The list of commands: what is left out, what happens when one fails, and what is drawn in the end."""

import pytest
from made_up import write_run

from cifar_lab import reproduce


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
    monkeypatch.setattr(reproduce, "run", ran.run)
    return ran


def test_everything_is_trained_then_drawn(ran, tmp_path, capsys):
    words = ["quick", "--seed", "0", "1", "--results", str(tmp_path)]
    assert reproduce.main([*words, "--list"]) == 0 and ran == []
    listed = capsys.readouterr().out.splitlines()
    assert len(listed) == 10  # test_settings.py has them in full
    assert reproduce.main(words) == 0
    assert ran[:-1] == listed
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


@pytest.mark.parametrize("seconds, status", [(["--seconds", "1000"], 0), ([], reproduce.STOPPED)])
def test_stopped_in_time_is_no_failure(ran, tmp_path, seconds, status):
    ran.status["--residual-scale"] = reproduce.STOPPED
    assert reproduce.main(["report", "--results", str(tmp_path), *seconds]) == status
    assert ran[-1].startswith("python plot_results.py")


def test_surfaces_of_runs_that_came_without_weights_are_left_out(ran, tmp_path, capsys):
    for name in reproduce.SURFACE_RUNS:
        folder = write_run(tmp_path, name, "report")
        (folder / "checkpoint.pt").touch()
    assert reproduce.main(["report", "--results", str(tmp_path)]) == 0
    assert " surface " in ran[-2]
    (folder / "checkpoint.pt").unlink()
    assert reproduce.main(["report", "--results", str(tmp_path)]) == 0
    assert " surface " not in ran[-2]
    assert f"left out: {folder} is complete, but its checkpoint is not here" in capsys.readouterr().out


@pytest.mark.parametrize("words", [[], ["huge"], ["quick", "--seed", "-1"], ["quick", "--seconds", "soon"]])
def test_bad_input_is_one_line(ran, words, capsys):
    with pytest.raises(SystemExit) as ended:
        reproduce.main(words)
    assert ended.value.code == 2 and capsys.readouterr().err.count("\n") == 1 and not ran

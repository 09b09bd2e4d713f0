"""Tasks as jobs of Slurm: what is submitted, what a batch script does with each exit status, and a real cluster."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from argparse import Namespace
from dataclasses import replace

import pytest
import slurm_cluster
from commands import table
from made_up import write_run
from trainings import TIME_COLUMNS

from cifar_lab import reproduce
from cifar_lab.jobs import on_slurm
from cifar_lab.jobs.task import Task, tasks
from cifar_lab.project import ROOT

bash = pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")


def write_program(file, text):
    file.write_text(f"#!/usr/bin/env bash\n{text}\n")
    file.chmod(0o755)


def printed(capsys, *words):
    """The scripts that --dry-run prints."""
    assert reproduce.main([*map(str, words), "--on", "slurm", "--dry-run"]) == 0
    return re.split(r"(?m)^(?=#!)", capsys.readouterr().out)[1:]


def test_an_element_for_each_command_and_seed_then_one_job_that_draws(tmp_path, capsys):
    options = ["--jobs", 4, "--slurm", "--partition=gpu --gres=gpu:1"]
    array, draw = printed(capsys, "quick", "--seed", 0, 1, 2, "--results", tmp_path, *options)
    assert not list(tmp_path.iterdir())
    for script in (array, draw):
        for directive in ("--requeue", "--signal=TERM@120", "--open-mode=append", "--partition=gpu --gres=gpu:1"):
            assert f"#SBATCH {directive}\n" in script
    assert "#SBATCH --array=0-26%4\n" in array and "--array" not in draw
    listed = re.findall(r"^'(python .*)'$", array, re.MULTILINE)
    assert listed == [task.command for task in tasks("quick", (0, 1, 2), tmp_path) if task.folders]
    surface, plot = re.findall(r"^'(python .*)'$", draw, re.MULTILINE)
    assert surface.startswith("python landscape.py surface ")
    assert plot == f"python plot_results.py {tmp_path} --preset quick"


def test_what_is_complete_is_left_out(tmp_path, capsys):
    for name in ("inception", "inception_res"):
        write_run(tmp_path, name, seed=3, epochs=9)
    array, _ = printed(capsys, "quick", "--seed", 3, "--results", tmp_path)
    assert "#SBATCH --array=0-6\n" in array and "--model inception " not in array


@bash
def test_an_array_is_no_larger_than_the_cluster_allows(tmp_path, monkeypatch, capsys):
    write_program(tmp_path / "scontrol", 'echo "MaxArraySize            = 4"')
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    array, _ = printed(capsys, "quick", "--results", tmp_path / "results")
    assert "#SBATCH --array=0-3\n" in array and "i += 4)" in array and array.count("\n'python ") == 9


@pytest.mark.parametrize(
    "words, said",
    [
        (["--dry-run"], "--dry-run"), (["--slurm=--time=5"], "--slurm"), (["--on", "slurm"], "there is no sbatch here"),
        (["--on", "slurm", "--until-decided"], "--until-decided"), (["--on", "slurm", "--slurm", "a\nb"], "one line"),
        (["--on", "slurm", "--switches", "level"], "--switches"), (["--on", "slurm", "--seconds", "5"], "--seconds"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(words, said, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit) as ended:
        reproduce.main(["quick", "--results", str(tmp_path / "results"), *words])
    error = capsys.readouterr().err
    assert ended.value.code == 2 and error.count("\n") == 1 and said in error
    assert not (tmp_path / "results").exists()


@bash
def test_nothing_is_submitted_if_slurm_refuses(tmp_path, monkeypatch, capsys):
    write_program(tmp_path / "sbatch", 'echo "sbatch: error: invalid partition specified: none" >&2; exit 1')
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with pytest.raises(SystemExit) as ended:
        reproduce.main(["quick", "--on", "slurm", "--results", str(tmp_path / "results")])
    assert ended.value.code == 2 and not (tmp_path / "results").exists()
    assert capsys.readouterr().err == "sbatch: error: invalid partition specified: none\n"


# By the exit status of a command: whether its element goes back into the queue, at the first start and at the third.
STATUSES = {
    0: (False, False), 1: (False, False), 2: (False, False), 74: (False, False), 130: (False, False),
    75: (True, True), 143: (True, True), 138: (True, True), 137: (True, False), 71: (True, False),
}  # fmt: skip


@bash
@pytest.mark.parametrize("status", STATUSES)
def test_an_element_goes_back_into_the_queue_if_it_was_stopped(status, tmp_path):
    """`srun` and `scontrol` note how they are called. With two elements for three commands the first one has two."""
    write_program(tmp_path / "srun", f'echo "$@" >> {tmp_path}/ran; exit {status}')
    write_program(tmp_path / "scontrol", f'echo "$@" >> {tmp_path}/requeued')
    options = Namespace(slurm="", jobs=5)
    commands = ["python MyVGG.py --lrs 1e-3", "python MyVGG.py --seed 1", "python 'a $b.py' --bn"]
    log = tmp_path / 'a $b "c" %A_%a.log'
    script = on_slurm._script("quick", commands, log, options, elements=2)
    for start, again in enumerate(STATUSES[status]):
        for name in ("ran", "requeued"):
            (tmp_path / name).unlink(missing_ok=True)
        environment = {
            "PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "0",
            "SLURM_RESTART_COUNT": str(2 * start),
        }  # fmt: skip
        ended = subprocess.run(["bash"], input=script, env=environment, text=True, capture_output=True, check=False)
        assert ended.returncode == status
        ran = (tmp_path / "ran").read_text().splitlines()
        expected = [f"--open-mode=append --output={log} {sys.executable} {words}" for words in (
            "MyVGG.py --lrs 1e-3", "a $b.py --bn",
        )]  # fmt: skip
        assert ran == expected[: 1 if again else 2]
        assert (tmp_path / "requeued").exists() == again
        assert not again or (tmp_path / "requeued").read_text() == "requeue 7\n"


# --- A real cluster ---------------------------------------------------------------------------------------------------

SMALL = "--width 0.03 --batch-size 50 --train-size 130 --test-size 100 --device cpu"
LONG = 40  # epochs of those that are stopped
ALL_IN_ONE = """
import sys
from cifar_lab.jobs.here import in_this_process
sys.exit(max(map(in_this_process, sys.argv[1:])))
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    if reason := slurm_cluster.lacking():
        pytest.skip(reason)
    with slurm_cluster.cluster(tmp_path_factory.mktemp("slurm")) as environment:
        yield environment


def until(condition, seconds=180):
    """Waits for something to be true, and gives it."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "waited for too long"
        time.sleep(0.1)
    return value


def small(task: Task, epochs: int, data) -> Task:
    """The same with small networks and few images."""
    more = f"{SMALL} --epochs {epochs} --data-dir {data}"
    return replace(task, command=f"{task.command} {more}")


def test_elements_that_are_stopped_in_three_ways_end_as_if_undisturbed(
    cluster, synthetic_data, tmp_path, monkeypatch, capsys
):
    """The quick list. The first element is requeued by hand, the second is stopped two minutes before its time limit,
    the third is preempted by another job."""
    results, undisturbed = tmp_path / "results", tmp_path / "undisturbed"
    listed = [task for task in tasks("quick", (0,), results) if task.folders]
    listed = [small(task, LONG if i < 3 else 3, synthetic_data) for i, task in enumerate(listed)]
    for name, value in cluster.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.chdir(ROOT)
    options = Namespace(preset="quick", results=results, jobs=2, slurm="--time=30", dry_run=False)
    assert on_slurm.run(listed, options) == 0
    array, draw = re.findall(r"^job (\d+)", capsys.readouterr().out, re.MULTILINE)

    def element(number):
        return slurm_cluster.job(cluster, f"{array}_{number}")

    def epochs(number):
        logs = list(results.glob(f"quick/{('vgg_a', 'vgg_a_bn', 'inception')[number]}/*/epochs.csv"))
        return min((len(log.read_text().splitlines()) - 1 for log in logs), default=0)

    stops = (
        ("scontrol", "requeue", f"{array}_0"),
        ("scontrol", "update", f"JobId={array}_1", "TimeLimit=1"),
        ("sbatch", "--partition=urgent", "--exclusive", "--output=/dev/null", "--wrap=true"),
    )
    for number, stop in enumerate(stops):
        until(lambda number=number: epochs(number) >= 2)
        shown = slurm_cluster.said(cluster, "scontrol", "listpids", f"{element(number)['JobId']}.0")
        for line in shown.splitlines()[1:]:  # it would end before Slurm looks at time limits; Slurm's signal wakes it
            os.kill(int(line.split()[0]), signal.SIGSTOP)
        assert epochs(number) < LONG
        slurm_cluster.said(cluster, *stop)
    for number in range(len(stops)):
        until(lambda number=number: element(number)["JobState"] == "PENDING")
        assert 2 <= epochs(number) < LONG

    def drawn():
        for number in range(len(listed)):
            if element(number)["Reason"] == "BeginTime":  # Slurm would wait for two minutes
                start = ("StartTime=now", "TimeLimit=30")
                slurm_cluster.said(cluster, "scontrol", "update", f"JobId={array}_{number}", *start)
        return slurm_cluster.job(cluster, draw)["JobState"] in ("COMPLETED", "FAILED")

    until(drawn)
    states = [element(number) for number in range(len(listed))]
    assert {state["JobState"] for state in states} == {"COMPLETED"}
    assert [state["Restarts"] for state in states][:3] == ["1", "1", "1"]
    log = (results / "quick" / "logs" / f"slurm-{draw}.log").read_text()
    assert slurm_cluster.job(cluster, draw)["JobState"] == "COMPLETED", log
    assert (results / "quick" / "report.md").exists()

    commands = [task.command.replace(str(results), str(undisturbed)) for task in listed]
    subprocess.run([sys.executable, "-c", ALL_IN_ONE, *commands], check=True)
    folders = [config.parent.relative_to(undisturbed) for config in undisturbed.glob("quick/*/*/config.json")]
    assert len(folders) == 17
    for folder in folders:
        assert (results / folder / "steps.csv").read_bytes() == (undisturbed / folder / "steps.csv").read_bytes()
        (epochs_here, epochs_there) = (table(root / folder / "epochs.csv") for root in (results, undisturbed))
        for name in epochs_here.keys() - set(TIME_COLUMNS):
            assert epochs_here[name].tolist() == epochs_there[name].tolist()

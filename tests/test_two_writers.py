"""One run, one writer: a second process ends at once and says who the first is; different runs go on side by side, and
readers beside them."""

import json
import os
import shutil
import signal
import socket
from functools import partial

import faults
import pytest
from trainings import (
    Command,
    Training,
    content,
    differences,
    flags,
    folder_in_memory,
    snapshot,
    with_small_network,
)

import plot_results
from cifar_lab.run_folder.ownership import _system
from cifar_lab.run_folder.reader import find_run_folders, read_runs

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs POSIX processes and signals")


@pytest.fixture(scope="module")
def command(synthetic_data, workers):
    return Command(synthetic_data, workers, "--bn", "--lrs", "1e-2", "1e-3", "--epochs", "20")


def paused(argv) -> Training:
    """A training that stands still in its middle, and holds its folders."""
    training = Training(argv, prepare=partial(faults.signal_at_forward_pass, 21, signal.SIGSTOP))
    assert training.reaches(lambda: "signalled" in training.output("out")), training.output("err")
    return training


def test_the_second_names_the_first(command, results):
    first = paused(command.into(results))
    before = snapshot(results)
    for more in ([], ["--lrs", "1e-3"], ["--lrs", "1e-1", "1e-3"], ["--fresh"]):
        second = command.run(results, *more)
        folder = find_run_folders(results)["1e-3" in more]
        assert second.status == 75
        assert second.err == (
            f"MyVGG.py: {folder}: process {first.pid} on {socket.gethostname()} is training this run\n"
        )
        assert snapshot(results) == before
    first.signal(signal.SIGCONT)
    assert first.wait().status == 0
    assert differences(content(results), command.reference) == []


def test_the_lock_of_a_killed_process_does_not_block(command, results):
    first = paused(command.into(results))
    first.signal(signal.SIGKILL)
    first.wait()
    assert list(results.rglob(".*.lock")) and list(results.rglob(".*.owner.json"))
    command.goes_on(results)
    assert not list(results.rglob(".*.owner.json"))


def test_started_in_the_same_moment(command):
    for _ in range(5):
        with folder_in_memory() as results:
            both = [Training(command.into(results), prepare=with_small_network) for _ in range(2)]
            ended = [training.wait() for training in both]
            won = [end for end in ended if end.status == 0]
            assert won and all(end.err == "" for end in won)
            for end in ended:
                if end.status != 0:
                    assert end.status == 75
                    assert "is training this run\n" in end.err and end.err.count("\n") == 1
            assert differences(content(results), command.reference) == []


def test_different_runs_side_by_side(synthetic_data, workers):
    differing = (["--lrs", "1e-2"], ["--lrs", "1e-3"], ["--lrs", "1e-2", "--seed", "1"], ["--lrs", "1e-2", "--bn"])
    commands = [Command(synthetic_data, workers, *more, "--epochs", "5") for more in differing]
    with folder_in_memory() as results:
        trainings = [Training(command.into(results), prepare=with_small_network) for command in commands]
        ended = [training.wait() for training in trainings]
        assert [(end.status, end.err) for end in ended] == [(0, "")] * len(commands)
        together = {key: value for command in commands for key, value in command.reference.items()}
        assert len(find_run_folders(results)) == len(commands)
        assert differences(content(results), together) == []


def test_readers_beside_a_writer(synthetic_data, results, capsys):
    words = ["--bn", "--lrs", "1e-2", "1e-3", "--probe-every", "1", "--epochs", "60", "--results", results]
    writer = Training(flags(synthetic_data, *words, train_size=80, test_size=50), prepare=with_small_network)
    assert writer.reaches(lambda: len(find_run_folders(results)) == 2)
    steps = [0]
    while writer.running:
        runs, errors = read_runs(results, "report")
        assert errors == []
        steps.append(sum(len(run.losses) for run in runs))
        if len(steps) == 10:  # while it stands still, as it might in the middle of a write
            writer.signal(signal.SIGSTOP)
            assert (plot_results.main([str(results)]), capsys.readouterr().err) == (0, "")
            assert "in progress" in (results / "report" / "report.md").read_text(encoding="utf-8")
            writer.signal(signal.SIGCONT)
    assert writer.wait().status == 0
    assert steps == sorted(steps) and len(set(steps)) > 10  # logs were seen to grow, never to shrink


def test_a_run_that_was_removed_and_begun_anew_belongs_to_the_second(command, results):
    first = paused(command.into(results))
    shutil.rmtree(results / "report")
    second = paused(command.into(results))
    before = snapshot(results)
    first.signal(signal.SIGCONT)
    ended = first.wait()
    assert (ended.status, ended.err.count("\n")) == (75, 1)
    assert f"process {second.pid} on {socket.gethostname()} is training this run too" in ended.err
    assert snapshot(results) == before
    second.signal(signal.SIGCONT)
    assert second.wait().status == 0
    assert differences(content(results), command.reference) == []


@pytest.fixture(scope="module")
def begun(synthetic_data, workers):
    """A command, and results that it would continue: one epoch, a step behind its checkpoint in the log."""
    command = Command(synthetic_data, workers, "--lrs", "1e-2", "--epochs", "2")
    with folder_in_memory() as prepared:
        assert command.run(prepared, "--epochs", "1").status == 0
        (folder,) = find_run_folders(prepared)
        (folder / "summary.json").unlink()
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        (folder / "config.json").write_text(json.dumps(config | {"epochs": 2}), encoding="utf-8")
        with open(folder / "steps.csv", "a", encoding="utf-8") as log:
            log.write("3,2.5\n")
        yield command, prepared


@pytest.mark.parametrize("stolen", [False, True])
def test_paused_at_every_call_that_changes_a_file(stolen, begun, workers):
    """A call that follows the question whose run it is acts on the folder of then; what opens a file asks after it."""
    command, prepared = begun
    with folder_in_memory() as results:
        calls = workers.apply(faults.calls_of, (command.argv, results, prepared))
    kinds = {"open"} if stolen else {"open", "rename", "unlink", "mkdir"}
    numbers = [number for number, call in enumerate(calls) if call in kinds]
    assert len(numbers) > 10
    trials = [(faults.paused_trial, command.argv, command.reference, prepared, number, stolen) for number in numbers]
    found = workers.starmap(faults.guarded, trials, chunksize=1)
    assert {number: wrong for number, wrong in zip(numbers, found, strict=True) if wrong} == {}


def test_without_locks_a_living_process_is_left_alone(command, results):
    """flock gives ENOLCK, as on a network drive."""
    first = Training(command.into(results), prepare=partial(faults.paused_without_locks, 21))
    assert first.reaches(lambda: "signalled" in first.output("out")), first.output("err")
    before = snapshot(results)
    second = Training(command.into(results), prepare=faults.without_locks).wait()
    assert (second.status, second.err.count("\n")) == (75, 1)
    assert f"process {first.pid} on {socket.gethostname()} is training this run" in second.err
    assert snapshot(results) == before
    first.signal(signal.SIGKILL)
    first.wait()
    third = Training(command.into(results), prepare=faults.without_locks).wait()
    assert (third.status, third.err) == (0, "")
    assert differences(content(results), command.reference) == []


def test_an_owner_that_cannot_be_read(command, results):
    first = paused(command.into(results))
    for owner in results.rglob(".*.owner.json"):
        owner.write_text(json.dumps(["what"]), encoding="utf-8")
    second = command.run(results)
    assert second.status == 75
    assert second.err.endswith(": another process is training this run\n")
    first.signal(signal.SIGCONT)
    assert first.wait().status == 0


# --- A machine that was given up -------------------------------------------------------------------------------------


@pytest.mark.parametrize("second_goes_on", [False, True])
def test_a_process_that_was_given_up_stops_at_its_next_write(command, results, second_goes_on):
    """Its machine was out of reach, a server has ended its locks, and another one has continued the run."""
    first = paused(command.into(results))
    for lock in results.rglob(".*.lock"):
        lock.unlink()
    second = paused(command.into(results))
    if not second_goes_on:
        second.signal(signal.SIGCONT)
        assert second.wait().status == 0
    before = snapshot(results)
    first.signal(signal.SIGCONT)
    ended = first.wait()
    assert (ended.status, ended.err.count("\n")) == (75, 1)
    assert snapshot(results) == before
    second.signal(signal.SIGCONT)
    assert not second_goes_on or second.wait().status == 0
    assert differences(content(results), command.reference) == []


@pytest.mark.parametrize("system, status", [("another", 0), (_system(), 75)], ids=["another", "this one"])
def test_without_locks_an_owner_is_no_name_of_a_machine(command, results, system, status):
    """Containers have the same names and process numbers: what runs in another one is not the owner."""
    first = paused(command.into(results))
    first.signal(signal.SIGKILL)
    first.wait()
    for file in results.rglob(".*.owner.json"):
        owner = {"pid": os.getpid(), "host": socket.gethostname(), "system": system, "token": "another"}
        file.write_text(json.dumps(owner), encoding="utf-8")
    ended = Training(command.into(results), prepare=faults.without_locks).wait()
    assert (ended.status, ended.err.count("\n")) == (status, int(status != 0))


def test_what_a_replaced_process_has_open_is_no_log_any_more(begun):
    """Also a log that holds no row too many becomes a new file when a run is continued."""
    command, prepared = begun
    with folder_in_memory() as results:
        shutil.copytree(prepared, results, dirs_exist_ok=True)
        (folder,) = find_run_folders(results)
        zombies = [open(folder / name, "r+b") for name in ("epochs.csv", "steps.csv")]  # noqa: SIM115
        assert command.run(results).status == 0
        for file in zombies:
            file.seek(0, os.SEEK_END)
            file.write(b"9,9\n")
            file.close()
        assert differences(content(results), command.reference) == []

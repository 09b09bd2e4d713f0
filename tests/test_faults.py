"""Every write of a training fails once, or the process dies there; the disk is full, the folder gone, a checkpoint
damaged: what was there stays readable, and the same command continues to the same bits."""

import os
import pickle
import random
import shutil
import subprocess
from functools import partial
from pathlib import Path
from unittest import mock

import faults
import pytest
import torch
from trainings import (
    Command,
    Training,
    content,
    differences,
    flat,
    folder_in_memory,
    snapshot,
    unfinished_files,
    with_small_network,
)

from cifar_lab.networks import NETWORKS
from cifar_lab.run_folder import checkpoint
from cifar_lab.run_folder.reader import find_run_folders, read_run

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs POSIX processes and signals")

LOCKSTEP = ["--bn", "--lrs", "1e-2", "1e-3"]


@pytest.fixture(scope="module")
def command(synthetic_data, workers):
    """2 epochs of 2 steps."""
    return Command(synthetic_data, workers, *LOCKSTEP, "--epochs", "2")


@pytest.fixture(scope="module")
def long_command(synthetic_data, workers):
    """Long enough to be interfered with."""
    return Command(synthetic_data, workers, *LOCKSTEP, "--epochs", "20")


# --- The Nth call ----------------------------------------------------------------------------------------------------


def wrong_after(trials, workers) -> list[str]:
    """What `faults.trial` finds wrong in any of them."""
    found = workers.starmap(faults.guarded_trial, trials, chunksize=1)
    return [f"call {trial[2]}: {text}" for trial, texts in zip(trials, found, strict=True) for text in texts]


@pytest.mark.parametrize("dies", [False, True])
def test_every_call_that_writes(dies, command, workers):
    with folder_in_memory() as folder:
        calls = workers.apply(faults.calls_of, (command.argv, folder))
    assert set(calls) == {"open", "write", "fsync", "rename", "mkdir"}
    # A process that dies at fsync leaves what one leaves that dies at the call after it.
    numbers = [number for number, call in enumerate(calls) if not (dies and call == "fsync")]
    assert wrong_after([(command.argv, command.reference, number, dies) for number in numbers], workers) == []


# --- Disk and folders ------------------------------------------------------------------------------------------------


def refused(training, path, reason) -> None:
    """It ends with status 1 and one line."""
    ended = training.wait()
    assert (ended.status, ended.err) == (1, f"MyVGG.py: {path}: {reason}; the same command continues later\n")


@pytest.mark.parametrize("size, file", [(600, "config.json"), (2_000, "checkpoint.pt")])
def test_a_file_cannot_grow(size, file, command, results):
    training = Training(command.into(results), prepare=partial(faults.limit_file_size, size))
    folder = results / "report" / "vgg_a_bn" / "adam-lr1e-2-wd1e-4-seed0-width0.03-batch50-train80-test50"
    refused(training, folder / file, "File too large")
    for found in find_run_folders(results):
        read_run(found)
    assert unfinished_files(results) == []
    command.goes_on(results)


def test_a_full_disk(command, results):
    def mount(*options):
        return subprocess.run(["mount", "-t", "tmpfs", "-o", *options, results], capture_output=True).returncode

    if shutil.which("mount") is None or mount("size=64k", "tmpfs") != 0:
        pytest.skip("a file system can be mounted only by root")
    try:
        ended = Training(command.into(results), prepare=with_small_network).wait()
        assert ended.status == 1
        assert ended.err.endswith(": No space left on device; the same command continues later\n")
        assert ended.err.count("\n") == 1
        assert len(find_run_folders(results)) == 2
        for folder in find_run_folders(results):
            read_run(folder)
        assert mount("remount,size=4m", "tmpfs") == 0
        command.goes_on(results)
    finally:
        subprocess.run(["umount", results], check=True)


def begun(argv, results, prepare=with_small_network) -> tuple[Training, Path]:
    """A training that has written its first checkpoints, and the folder of its first run."""
    training = Training(argv, prepare=prepare)
    assert training.reaches(lambda: len(list(results.rglob("checkpoint.pt"))) == 2), training.output("err")
    return training, find_run_folders(results)[0]


def test_the_folder_becomes_read_only(long_command, results):
    training, folder = begun(long_command.into(results), results, faults.with_no_privileges)
    folder.chmod(0o555)
    refused(training, folder / "checkpoint.pt", "Permission denied")
    folder.chmod(0o755)
    read_run(folder)
    long_command.goes_on(results)


def test_the_folder_is_removed(long_command, results):
    training, folder = begun(long_command.into(results), results)
    elsewhere = results / "elsewhere"
    folder.rename(elsewhere)
    ended = training.wait()
    assert ended.status == 1
    assert ended.err.startswith(f"MyVGG.py: {folder}{os.sep}")
    assert ended.err.endswith(": No such file or directory; the same command continues later\n")
    assert ended.err.count("\n") == 1
    assert not folder.exists()
    read_run(elsewhere)
    with mock.patch.dict(NETWORKS):
        with_small_network()
        checkpoint.load_model(elsewhere)
    shutil.copytree(results, results / "kept")
    shutil.rmtree(elsewhere)
    long_command.goes_on(results)  # one run from its start, the other from where it was
    shutil.copytree(results / "kept" / "elsewhere", results / "kept" / folder.relative_to(results))
    long_command.goes_on(results / "kept")


# --- Checkpoints -----------------------------------------------------------------------------------------------------


class Executes:
    """Makes a folder where it is unpickled."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def rewrite(path, **changes) -> None:
    torch.save(torch.load(path, weights_only=True) | changes, path)


def flip(path, position) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 0xFF
    path.write_bytes(data)


def other_network(path) -> None:
    state = torch.load(path, weights_only=True)
    state["model"]["1.weight"] = torch.zeros(16, 3, 1, 1)
    torch.save(state, path)


def other_settings(path) -> None:
    rewrite(path, config=torch.load(path, weights_only=True)["config"] | {"weight_decay": 0.5})


DAMAGE = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-300]),
    "empty": lambda path: path.write_bytes(b""),
    "flipped byte": lambda path: flip(path, path.stat().st_size // 2),
    "other network": other_network,
    "other settings": other_settings,
    "other optimizer": lambda path: rewrite(path, optimizer={"state": {}, "param_groups": []}),
    "other position": lambda path: rewrite(path, step=1),
    "other content": lambda path: torch.save([1, 2], path),
    "executes": lambda path: rewrite(path, model=Executes(path.with_name("executed"))),
    "executes, as an older format": lambda path: torch.save(
        {"model": Executes(path.with_name("executed"))}, path, _use_new_zipfile_serialization=False
    ),
    "executes, as a bare pickle": lambda path: path.write_bytes(pickle.dumps(Executes(path.with_name("executed")))),
}


@pytest.fixture(scope="module")
def half(command):
    """Results of a training stopped in its second epoch: two checkpoints of each run."""
    with folder_in_memory() as folder:
        ended = Training(command.into(folder), prepare=partial(faults.signal_at_forward_pass, 9)).wait()
        assert ended.status == 143
        yield folder


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_checkpoint(kind, command, half, results):
    shutil.copytree(half, results, dirs_exist_ok=True)
    folder = find_run_folders(results)[1]
    newest = folder / checkpoint.NEWEST
    DAMAGE[kind](newest)
    damaged = newest.read_bytes()
    said = command.goes_on(results)
    line = next(line for line in said.splitlines() if str(newest) in line)
    assert line.endswith(": checkpoint.previous.pt is used")
    assert not (folder / "executed").exists()
    assert (folder / checkpoint.UNUSABLE).read_bytes() == damaged


@pytest.mark.parametrize("kind", ["truncated", "other network", "executes"])
def test_both_checkpoints_damaged(kind, command, half, results):
    shutil.copytree(half, results, dirs_exist_ok=True)
    folder = find_run_folders(results)[0]
    for name in (checkpoint.NEWEST, checkpoint.PREVIOUS):
        DAMAGE[kind](folder / name)
    before = snapshot(results)
    ended = command.run(results)
    assert ended.status == 2
    assert ended.err.count("\n") == 1
    assert all(str(folder / name) in ended.err for name in (checkpoint.NEWEST, checkpoint.PREVIOUS))
    assert "--fresh" in ended.err
    assert snapshot(results) == before
    ended = command.run(results, "--fresh")
    assert (ended.status, ended.err) == (0, "")
    assert differences(content(results), command.reference) == []


def test_both_checkpoints_of_a_finished_run_damaged(command, results):
    command.goes_on(results)
    for name in (checkpoint.NEWEST, checkpoint.PREVIOUS):
        DAMAGE["truncated"](find_run_folders(results)[0] / name)
    before = snapshot(results)
    ended = command.run(results, "--epochs", "3")
    assert (ended.status, ended.err.count("\n")) == (2, 1)
    assert snapshot(results) == before


def test_dies_while_a_damaged_checkpoint_is_replaced(command, half, workers):
    with folder_in_memory() as prepared, folder_in_memory() as uninterrupted:
        shutil.copytree(half, prepared, dirs_exist_ok=True)
        for folder in find_run_folders(prepared):
            DAMAGE["truncated"](folder / checkpoint.NEWEST)
        shutil.copytree(prepared, uninterrupted, dirs_exist_ok=True)
        calls = workers.apply(faults.calls_of, (command.argv, uninterrupted))
        numbers = [number for number, call in enumerate(calls) if call == "rename"]
        trials = [(command.argv, command.reference, number, True, prepared) for number in numbers]
        assert wrong_after(trials, workers) == []


def test_any_byte_of_a_checkpoint(half, tmp_path):
    original = find_run_folders(half)[0] / checkpoint.NEWEST
    data = original.read_bytes()
    expected = flat(checkpoint.read(original), "")
    path = tmp_path / "checkpoint.pt"
    draw = random.Random(0)
    refused = []
    for _ in range(150):
        changed = bytearray(data)
        changed[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        path.write_bytes(changed)
        try:
            state = checkpoint.read(path)
        except checkpoint.CheckpointError as error:
            refused.append(str(error))
        else:
            assert flat(state, "") == expected  # a byte that means nothing
    assert len(refused) > 50
    assert all(text.startswith(f"{path}: ") and "\n" not in text for text in refused)
    for _ in range(30):
        path.write_bytes(data[: draw.randrange(len(data))])
        with pytest.raises(checkpoint.CheckpointError):
            checkpoint.read(path)


def test_logs_shorter_than_the_checkpoint(command, half, results):
    shutil.copytree(half, results, dirs_exist_ok=True)
    log = find_run_folders(results)[0] / "steps.csv"
    log.write_text("step,loss\n1,2.5\n", encoding="utf-8")
    before = snapshot(results)
    ended = command.run(results)
    assert ended.status == 2
    assert ended.err == f"MyVGG.py: {log}: has 1 rows where the checkpoint has 2; --fresh starts again\n"
    assert snapshot(results) == before


def test_a_log_that_was_altered(command, half, results):
    shutil.copytree(half, results, dirs_exist_ok=True)
    log = find_run_folders(results)[0] / "steps.csv"
    log.write_text(log.read_text(encoding="utf-8").replace("\n2,", "\n3,"), encoding="utf-8")
    ended = command.run(results)
    assert ended.status == 1
    assert ended.err.startswith(f"MyVGG.py: {log}:3: ") and ended.err.count("\n") == 1

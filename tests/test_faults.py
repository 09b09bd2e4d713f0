"""Every write of a training fails once, or the process dies there; the disk is full, the folder gone, a checkpoint
damaged: what was there stays readable, and the same command continues to the same bits."""

import errno
import os
import pickle
import random
import re
import shutil
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from unittest import mock

import faults
import pytest
import torch
from PIL import Image
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

import MyVGG
from cifar_lab.networks import NETWORKS, build, describe
from cifar_lab.run_folder import checkpoint, validation
from cifar_lab.run_folder.reader import find_run_folders, read_run
from cifar_lab.training import script

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
    found = workers.starmap(partial(faults.guarded, faults.trial), trials, chunksize=1)
    return [f"call {trial[2]}: {text}" for trial, texts in zip(trials, found, strict=True) for text in texts]


@pytest.mark.parametrize("dies", [False, True])
def test_every_call_that_writes(dies, command, workers):
    with folder_in_memory() as folder:
        calls = workers.apply(faults.calls_of, (command.argv, folder))
    assert set(calls) == {"open", "write", "fsync", "rename", "mkdir", "unlink"}
    # A process that dies at fsync leaves what one leaves that dies at the call after it.
    numbers = [number for number, call in enumerate(calls) if not (dies and call == "fsync")]
    assert wrong_after([(command.argv, command.reference, number, dies) for number in numbers], workers) == []


# --- Disk and folders ------------------------------------------------------------------------------------------------


def refused(training, path, reason) -> None:
    """It ends with status 74 and one line."""
    ended = training.wait()
    assert (ended.status, ended.err) == (74, f"MyVGG.py: {path}: {reason}; the same command continues later\n")


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
        assert ended.status == 74
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
    assert ended.status == 74
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


def stranger(change: Callable[[dict], object]) -> Callable[[Path], None]:
    """Rewrites a checkpoint after a change to its content; the archive is whole."""

    def damage(path: Path) -> None:
        state = torch.load(path, weights_only=True)
        change(state)
        torch.save(state, path)

    return damage


def moments(state: dict, number: int = 0) -> dict:
    """Adam's of a parameter."""
    return state["optimizer"]["state"][number]


def group(state: dict) -> dict:
    return state["optimizer"]["param_groups"][0]


def put(place: Callable[[dict], dict], key: object, value: object) -> Callable[[dict], None]:
    """A change that replaces one entry; a function of the old one gives the new one."""

    def change(state: dict) -> None:
        place(state)[key] = value(place(state)[key]) if callable(value) else value

    return change


def itself(state: dict) -> dict:
    return state


def model(state: dict) -> dict:
    return state["model"]


def setting(state: dict) -> dict:
    return state["config"]


def optimizer(state: dict) -> dict:
    return state["optimizer"]


def inputs(state: dict) -> dict:
    return state["inputs"]


def with_first(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    """The same tensor with another first element."""
    return lambda old: old.clone().index_put_((torch.tensor([0]),), torch.tensor(value, dtype=old.dtype))


# What a whole archive may hold in place of what the run had written, and what is said of it. The network has
# convolution, BatchNorm and a linear layer: parameters 0 to 5. The newest checkpoint has 4 steps behind it.
STRANGE = {
    "moment of three zeros": (put(moments, "exp_avg", torch.zeros(3)), "exp_avg is torch.float32 (3,) instead of"),
    "moment one short": (put(moments, "exp_avg_sq", lambda x: x.flatten()[:-1]), "exp_avg_sq is torch.float32 (23,)"),
    "moment of doubles": (put(moments, "exp_avg", torch.Tensor.double), "exp_avg is torch.float64"),
    "moment without dimension": (put(moments, "exp_avg", torch.tensor(0.0)), "exp_avg is torch.float32 () instead of"),
    "sparse moment": (put(moments, "exp_avg", lambda x: x.to_sparse()), "exp_avg is not a dense tensor"),
    "moment without memory": (put(moments, "exp_avg", lambda x: x.to("meta")), "exp_avg is not a dense tensor"),
    "moment as a list": (put(moments, "exp_avg", lambda x: x.tolist()), "exp_avg is not a dense tensor"),
    "moment that is not finite": (put(moments, "exp_avg", with_first(torch.nan)), "exp_avg is not finite"),
    "negative square": (put(moments, "exp_avg_sq", with_first(-1.0)), "exp_avg_sq is not within 0 and inf"),
    "no moment": (lambda s: moments(s).pop("exp_avg_sq"), "optimizer state 0 has no exp_avg_sq"),
    "moment too many": (put(moments, "max_exp_avg_sq", torch.zeros(2)), "has an unknown 'max_exp_avg_sq'"),
    "no moments of one parameter": (lambda s: s["optimizer"]["state"].pop(5), "optimizer state 5 has no exp_avg"),
    "moments of nobody": (put(lambda s: s["optimizer"]["state"], 6, {}), "not of this network's parameters"),
    "empty optimizer": (put(optimizer, "state", {}), "optimizer state 0 has no exp_avg"),
    "list for moments": (put(optimizer, "state", []), "optimizer state is not of this network's parameters"),
    "tensor for moments of one parameter": (
        put(lambda s: s["optimizer"]["state"], 1, torch.zeros(3)),
        "optimizer state 1 is not a dict",
    ),
    "nothing for moments of one parameter": (
        put(lambda s: s["optimizer"]["state"], 1, None),
        "optimizer state 1 is not a dict",
    ),
    "negative counter": (put(moments, "step", torch.tensor(-3.0)), "step is not within 1 and 4"),
    "counter that is not a number": (put(moments, "step", torch.tensor(torch.nan)), "step is not finite"),
    "counter of later": (put(moments, "step", torch.tensor(5.0)), "step is not within 1 and 4"),
    "half a step": (put(moments, "step", torch.tensor(1.5)), "step is not whole"),
    "learning rate": (put(group, "lr", 0.5), "lr differs (0.5 instead of 0.0"),
    "learning rate as a tensor": (put(group, "lr", torch.tensor(0.01)), "lr differs (Tensor instead of 0.0"),
    "betas": (put(group, "betas", (0.5, 0.999)), "betas differs ((0.5, 0.999) instead of (0.9, 0.999))"),
    "flag": (put(group, "amsgrad", True), "amsgrad differs (True instead of False)"),
    "unknown setting": (put(group, "warp", 9), "has an unknown 'warp'"),
    "order of parameters": (put(group, "params", [1, 0, 2, 3, 4, 5]), "params differs"),
    "two groups": (put(optimizer, "param_groups", lambda x: x * 2), "optimizer has not 1 parameter groups"),
    "list for a group": (put(optimizer, "param_groups", [[]]), "optimizer group 0 is not a dict"),
    "list for the optimizer": (put(itself, "optimizer", []), "optimizer is not a dict"),
    "list for the weights": (put(itself, "model", []), "model is not a dict"),
    "weight of another shape": (put(model, "6.bias", torch.zeros(11)), "6.bias is torch.float32 (11,) instead of"),
    "weight that is not finite": (put(model, "6.bias", with_first(torch.inf)), "6.bias is not finite"),
    "weight missing": (lambda s: model(s).pop("6.bias"), "model has no 6.bias"),
    "weight too many": (put(model, 7, torch.zeros(1)), "model has an unknown 7"),
    "negative variance": (put(model, "2.running_var", with_first(-1.0)), "2.running_var is not within 0 and inf"),
    "negative epochs": (put(itself, "epochs", -1), "epochs is not an integer from 0 to"),
    "epochs as a number": (put(itself, "epochs", 1.0), "epochs is not an integer from 0 to"),
    "true epochs": (put(itself, "epochs", True), "epochs is not an integer from 0 to"),
    "negative step": (put(itself, "step", -1), "step is not an integer from 0 to 2"),
    "step beyond the epoch": (put(itself, "step", 3), "step is not an integer from 0 to 2"),
    "losses too many": (put(itself, "losses", torch.zeros(3)), "losses is torch.float32 (3,) instead of"),
    "loss that is not finite": (put(itself, "losses", with_first(torch.nan)), "losses is not finite"),
    "more right than images": (put(itself, "correct", torch.tensor([51, 0])), "correct is not within 0 and 50"),
    "negative time": (put(itself, "train_seconds", -1.0), "train_seconds is not a number from 0 to"),
    "time that is not a number": (put(itself, "epoch_seconds", float("nan")), "epoch_seconds is not a number"),
    "endless time": (put(itself, "test_seconds", float("inf")), "test_seconds is not a number from 0 to"),
    "time as a tensor": (put(itself, "train_seconds", torch.tensor(1.0)), "train_seconds is not a number from 0 to"),
    "probes that stopped": (put(itself, "probes_stopped_at", 2), "probes_stopped_at is not a step that was probed"),
    "two classes": (put(inputs, "classes", ["a", "b"]), "inputs have 2 classes instead of 10"),
    "no classes": (put(inputs, "classes", []), "inputs have 0 classes instead of 10"),
    "mean beyond the images": (put(inputs, "mean", [3.0] * 3), "inputs are not classes, shape, mean and deviation"),
    "deviation of nothing": (put(inputs, "deviation", [1e-300] * 3), "inputs are not classes, shape, mean"),
    "more content": (put(itself, "extra", 1), "the checkpoint has an unknown 'extra'"),
    "no counter": (lambda s: s.pop("step"), "the checkpoint has no step"),
    "setting as a tensor": (put(setting, "lr", torch.ones(2)), "of a run with other settings (not plain values)"),
    "list for the settings": (put(itself, "config", [1]), "config is not a dict"),
    "another seed": (put(setting, "seed", 7), "of a run with other settings (seed 7 -> 0)"),
    "fingerprint as a tensor": (put(itself, "fingerprint", torch.ones(2)), "of another network (fingerprint Tensor;"),
}


@pytest.fixture(scope="module")
def form(half):
    """Of the first run of `half`, and its newest checkpoint."""
    folder = find_run_folders(half)[0]
    with mock.patch.dict(NETWORKS):
        with_small_network()
        config = read_run(folder).config
        model = build(config)
        return validation.Form(config, describe(model), model), folder / checkpoint.NEWEST


@pytest.mark.parametrize("kind", STRANGE)
def test_what_a_checkpoint_must_not_hold(kind, form, tmp_path):
    change, reason = STRANGE[kind]
    own, newest = form
    path = shutil.copy(newest, tmp_path)
    assert own.difference(checkpoint.read(path)) == ""
    stranger(change)(path)
    with pytest.raises(checkpoint.CheckpointError) as error:
        checkpoint.check(path, checkpoint.read(path), own)
    assert str(error.value).startswith(f"{path}: ") and reason in str(error.value), error.value


@pytest.fixture(scope="module")
def ended(command):
    """Results of the whole training."""
    with folder_in_memory() as folder:
        assert command.run(folder).status == 0
        yield folder


def test_what_cannot_be_compared_is_refused(form, monkeypatch):
    own, newest = form
    monkeypatch.setattr(validation.Form, "_of_position", lambda self, state: 1 / 0)
    with pytest.raises(checkpoint.CheckpointError, match=r"cannot be compared .+ \(ZeroDivisionError\)"):
        checkpoint.check(newest, checkpoint.read(newest), own)


# What a sound archive may say that a run's other files do not, and what is said of it.
CONTRADICTIONS = {
    "classes in another order": (put(inputs, "classes", lambda x: x[::-1]), "classes are not those of CIFAR-10"),
    "another mean": (put(inputs, "mean", [0.4, 0.5, 0.5]), "mean and deviation are not those of CIFAR-10"),
    "another deviation": (put(inputs, "deviation", [0.25] * 3), "mean and deviation are not those of CIFAR-10"),
    "an epoch less": (put(itself, "epochs", 1), "after epoch 1, step 0 of the next; summary.json has 2 epochs"),
    "epochs too many": (put(itself, "epochs", 10**6), "after epoch 1000000, step 0 of the next; config.json has 2 ep"),
}


@pytest.mark.parametrize("kind", CONTRADICTIONS)
@pytest.mark.parametrize("words", ["", "--predict {picture}", "--export {folder}/net.pt2"])
def test_a_trained_network_that_contradicts_its_run_is_not_used(
    kind, words, ended, synthetic_data, results, capsys, tmp_path
):  # fmt: skip
    """By whoever uses it: nothing is written."""
    shutil.copytree(ended, results, dirs_exist_ok=True)
    folder = find_run_folders(results)[0]
    Image.new("RGB", (32, 32)).save(tmp_path / "picture.png")
    stranger(CONTRADICTIONS[kind][0])(folder / checkpoint.NEWEST)
    before = snapshot(results)
    argv = ["--bn", "--evaluate", str(folder), "--data-dir", str(synthetic_data)]
    argv += words.format(picture=tmp_path / "picture.png", folder=folder).split()
    with mock.patch.dict(NETWORKS):
        with_small_network()
        with pytest.raises(SystemExit) as refused:
            script.run(MyVGG.main, argv)
    said = capsys.readouterr()
    assert refused.value.code == 2 and said.err.count("\n") == 1 and CONTRADICTIONS[kind][1] in said.err, said
    assert snapshot(results) == before


@pytest.mark.parametrize("kind", ["moment one short", "list for the optimizer", "negative step"])
def test_checkpoint_of_a_stranger(kind, command, half, results):
    """Neither of them is used, and nothing is changed."""
    shutil.copytree(half, results, dirs_exist_ok=True)
    folder = find_run_folders(results)[0]
    stranger(STRANGE[kind][0])(folder / checkpoint.NEWEST)
    shutil.copy(folder / checkpoint.NEWEST, folder / checkpoint.PREVIOUS)
    before = snapshot(results)
    ended = command.run(results)
    assert ended.status == 2 and "2 runs" not in ended.out and ended.err.count("\n") == 1, ended
    assert f"{folder / checkpoint.NEWEST}: " in ended.err and STRANGE[kind][1] in ended.err, ended.err
    assert snapshot(results) == before


@pytest.mark.parametrize("kind", ["moment of three zeros", "learning rate", "another seed"])
def test_the_checkpoint_before_a_stranger_is_used(kind, command, half, results):
    shutil.copytree(half, results, dirs_exist_ok=True)
    folder = find_run_folders(results)[0]
    stranger(STRANGE[kind][0])(folder / checkpoint.NEWEST)
    assert f"{STRANGE[kind][1]}" in command.goes_on(results)
    assert (folder / checkpoint.UNUSABLE).exists()


def hole(path: Path) -> None:
    path.touch()
    os.truncate(path, 1 << 36)


@pytest.mark.parametrize("put", [os.mkfifo, lambda path: path.symlink_to("/dev/zero"), hole])
def test_what_is_no_regular_file_in_a_checkpoints_place(put, command, half, results):
    shutil.copytree(half, results, dirs_exist_ok=True)
    folder = find_run_folders(results)[0]
    newest = folder / checkpoint.NEWEST
    newest.unlink()
    put(newest)
    with mock.patch.dict(NETWORKS):
        with_small_network()
        checkpoint.load_model(folder, warn=(warned := []).append)
    assert re.fullmatch(rf"{newest}: (not a regular file|larger than [\d,]+ bytes): .+ is used", warned[0])
    assert warned[0] in command.goes_on(results)
    assert os.path.lexists(folder / checkpoint.UNUSABLE)


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE])
def test_a_checkpoint_that_cannot_be_read_just_now_is_kept(number, command, half, results):
    """A passing error of a disk or a network drive is no damage: the older checkpoint is not used for it."""
    shutil.copytree(half, results, dirs_exist_ok=True)
    before = snapshot(results)
    argv = command.into(results)
    ended = Training(argv, prepare=partial(faults.reading_fails, checkpoint.NEWEST, number)).wait()
    newest = find_run_folders(results)[0] / checkpoint.NEWEST
    assert ended.status == 74 and "2 runs" not in ended.out
    assert ended.err == f"MyVGG.py: {newest}: {os.strerror(number)}; the same command continues later\n"
    assert snapshot(results) == before
    command.goes_on(results)


def test_an_optimizer_of_another_device(command, half, results):
    """Flags of a GPU's optimizer, overlapping memory, and what a newer PyTorch adds and an older one lacks."""
    shutil.copytree(half, results, dirs_exist_ok=True)

    def change(state: dict) -> None:
        group(state).update(capturable=True, foreach=True, fused=False)
        group(state).pop("maximize")
        for of in state["optimizer"]["state"].values():
            of["exp_avg"] = of["exp_avg"].t().contiguous().t() if of["exp_avg"].dim() == 2 else of["exp_avg"]

    for folder in find_run_folders(results):
        stranger(change)(folder / checkpoint.NEWEST)
    command.goes_on(results)


def test_moments_in_overlapping_memory(command, half, results):
    """Of zeros that share one number: each gets its own before it is written to."""
    shutil.copytree(half, results, dirs_exist_ok=True)
    shutil.copytree(half, results / "apart")

    def zeros(make: Callable[[tuple], torch.Tensor]) -> Callable[[dict], None]:
        return lambda state: [of.update(exp_avg=make(of["exp_avg"].shape)) for of in
                              state["optimizer"]["state"].values()]  # fmt: skip

    ends = []
    for where, make in ((results, torch.zeros), (results / "apart", lambda shape: torch.zeros(1).expand(shape))):
        for folder in find_run_folders(where):
            stranger(zeros(make))(folder / checkpoint.NEWEST)
        assert command.run(where).status == 0
        ends.append(content(where))
    assert differences(*ends) == []


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
    before = snapshot(results)
    ended = command.run(results)
    assert ended.status == 2 and "2 runs" not in ended.out  # before the first step of any
    assert ended.err == f"MyVGG.py: {log}:3: step is 3 where 2 follows; --fresh moves the folder aside\n"
    assert snapshot(results) == before

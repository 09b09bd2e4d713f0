"""A training that is killed or stopped anywhere, and continued, ends with the bits of one that was not."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

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
    unfinished_files,
    with_small_network,
)

from cifar_lab.run_folder.reader import find_run_folders, read_run

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs POSIX processes and signals")

ROOT = Path(__file__).resolve().parent.parent
# Two runs side by side, and three on two threads.
VGG = ("MyVGG.py", ["--bn", "--lrs", "1e-3", "1e-4", "--probe-every", "4", "--epochs", "3", "--threads", "2"])
INCEPTION = ("MyFramework.py", ["--bn", "--optimizer", "adamw", "rmsprop", "sgd", "--momentum", "0.9",
                                "--epochs", "2", "--threads", "2", "--probe-every", "4"])  # fmt: skip
# Whatever of today's recipe goes on from step to step.
MODERN = ("MyVGG.py", ["--bn", "--optimizer", "muon", "nesterov", "--momentum", "0.9", "--ema", "0.9", "--mixup", "0.3",
                       "--cutout", "8", "--bn-images", "50", "--test-time-flip", "--schedule", "one-cycle",
                       "--epochs", "3", "--threads", "2", "--probe-every", "4"])  # fmt: skip
STOPPED = "stopped, everything trained so far is saved; the same command continues"


@pytest.fixture(scope="module")
def command(synthetic_data, workers):
    """Two small networks, one with dropout and BatchNorm's statistics to lose, for 2 epochs of 2 steps."""
    return Command(synthetic_data, workers, "--bn", "--lrs", "1e-2", "1e-3", "--epochs", "2")


@dataclass
class Whole:
    """An uninterrupted training: what it left, and how long it took."""

    left: dict
    seconds: float


@pytest.fixture(scope="module")
def whole(synthetic_data):
    """Trains a command without interruption, once."""
    known = {}

    def train(script, more):
        key = (script, *more)
        if key not in known:
            Training([], prepare=sys.exit).wait()  # the first has to wait for its server
            with folder_in_memory() as folder:
                start = time.monotonic()
                ended = Training(flags(synthetic_data, *more, "--results", folder), script).wait()
                assert (ended.status, ended.err) == (0, "")
                known[key] = Whole(content(folder), time.monotonic() - start)
        return known[key]

    return train


def interrupted(argv, script, delays, number, begun=False):
    """Runs a command until it ends by itself, each time with a signal after the next of the delays; yields how each
    run before the last ended.

    begun: the delay counts from the training's first line instead of from the start of the process.
    """
    while True:
        training = Training(argv, script)
        if begun:
            training.reaches(lambda training=training: "runs of" in training.output("out"))
        time.sleep(next(delays))
        training.signal(number)
        ended = training.wait()
        if ended.status == 0:
            return
        yield ended


# --- Killed and stopped ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("script, more, kills", [(*VGG, 25), (*INCEPTION, 5), (*MODERN, 8)])
def test_killed_at_random_moments(script, more, kills, synthetic_data, whole):
    reference = whole(script, more)
    draw = random.Random(0)
    delays = iter(lambda: draw.uniform(0, reference.seconds), None)
    killed = 0
    while killed < kills:
        with folder_in_memory() as results:
            argv = flags(synthetic_data, *more, "--results", results)
            for ended in interrupted(argv, script, delays, signal.SIGKILL):
                assert (ended.status, ended.err) == (-signal.SIGKILL, "")
                killed += 1
                for folder in find_run_folders(results):
                    read_run(folder)
            assert differences(content(results), reference.left) == []
            assert unfinished_files(results) == []


@pytest.mark.parametrize("number, status, stops", [(signal.SIGTERM, 143, 25), (signal.SIGINT, 130, 6)])
def test_stopped_at_random_moments(number, status, stops, synthetic_data, whole):
    script, more = VGG
    reference = whole(script, more)
    draw = random.Random(int(number))
    delays = iter(lambda: draw.uniform(0, reference.seconds / 3), None)  # without checkpoints it is quicker
    stopped = 0
    while stopped < stops:
        with folder_in_memory() as results:
            # What is continued was saved at the signal: no checkpoint is due before.
            argv = flags(synthetic_data, *more, "--checkpoint-seconds", "1e9", "--results", results)
            for ended in interrupted(argv, script, delays, number, begun=True):
                # One in the moments between the last file and Python's end finds nothing more to save.
                if differences(content(results), reference.left):
                    assert (ended.status, ended.err) == (status, f"{script}: {STOPPED}\n")
                stopped += 1
            assert differences(content(results), reference.left) == []
            assert unfinished_files(results) == []


# The forward passes of an epoch of 2 runs, and where the runs then stand: each step is finished before it is saved.
PLACES = {1: (0, 1), 2: (0, 1), 3: (0, 2), 4: (0, 2), 5: (0, 2), 6: (1, 0)}


@pytest.mark.parametrize("epoch", [0, 1])
@pytest.mark.parametrize("number", PLACES)
def test_stopped_at_every_step_and_during_evaluation(epoch, number, command, results):
    argv = command.into(results, "--checkpoint-seconds", "1e9")
    ended = Training(argv, prepare=partial(faults.signal_at_forward_pass, 6 * epoch + number)).wait()
    assert (ended.status, ended.err) == (143, f"MyVGG.py: {STOPPED}\n")
    said = command.goes_on(results)
    epochs, step = PLACES[number]
    if epochs + epoch < 2:
        assert said.count(f": continues after epoch {epochs + epoch}, step {step}\n") == 2
    else:
        assert said.count(": complete (2 epochs)") == 2


@pytest.fixture(
    scope="module",
    params=[
        "--schedule one-cycle --warmup 0.5 --no-bias-decay",
        "--warmup 2",
        "--validation-size 20 --augment flip-crop --seed 3",
        "--optimizer nadam radam adamax adagrad adadelta --momentum 0 --schedule step",
        "--optimizer muon adamw nesterov --schedule cosine --ema 0.9 --cutout 12 --test-time-flip",
        "--mixup 0.5 --bn-images 60 --first-size 28 --ema 0.7",
    ],
)
def switched(request, synthetic_data, workers):
    """A command whose steps depend on their number over the whole run, or that tests at its end alone."""
    words = "--optimizer adam sgd rmsprop --lrs 1e-2 --momentum 0.9 --epochs 2"
    return Command(synthetic_data, workers, *words.split(), *request.param.split())


# Within each epoch, and at the end of the first: an epoch of 3 runs is 6 forward passes, and 3 of evaluation.
@pytest.mark.parametrize("number", [2, 9, 11, 14])
def test_a_schedule_goes_on_where_it_was(number, switched, results):
    argv = switched.into(results, "--checkpoint-seconds", "1e9")
    ended = Training(argv, prepare=partial(faults.signal_at_forward_pass, number)).wait()
    assert (ended.status, ended.err) == (143, f"MyVGG.py: {STOPPED}\n")
    assert ": continues after epoch " in switched.goes_on(results)


@pytest.mark.parametrize("number", [16, 17, 18])
def test_a_signal_in_the_test_at_the_end_is_no_loss(number, synthetic_data, workers, results):
    """After 2 epochs of 3 steps and validation, of 2 runs, the two test passes are the 17th and the 18th."""
    words = "--lrs 1e-2 1e-3 --epochs 2 --validation-size 20 --batch-size 20"
    command = Command(synthetic_data, workers, *words.split())
    argv = command.into(results, "--checkpoint-seconds", "1e9")
    ended = Training(argv, prepare=partial(faults.signal_at_forward_pass, number)).wait()
    assert (ended.status, ended.err) == (143, f"MyVGG.py: {STOPPED}\n")
    command.goes_on(results)


@pytest.mark.parametrize(
    "gap, said", [(0.6, "stopped at once; the same command continues from the last checkpoint"), (0.01, STOPPED)]
)
def test_a_second_signal_ends_it_at_once(command, results, gap, said):
    """In a step that is not over, unless it comes as the echo of the first: `timeout` sends SIGTERM twice."""
    argv = command.into(results, "--checkpoint-seconds", "1e9")
    ended = Training(argv, prepare=partial(faults.signal_at_forward_pass, 3, gap=gap)).wait()
    assert (ended.status, ended.err) == (143, f"MyVGG.py: {said}\n")
    command.goes_on(results)


def test_a_signal_ends_all_the_seeds(synthetic_data, results):
    argv = flags(synthetic_data, "--seed", "0", "1", "--epochs", "1", "--results", results, train_size=80, test_size=50)
    # 2 steps and an evaluation of the first seed, the second pass of the second seed.
    ended = Training(argv, prepare=partial(faults.signal_at_forward_pass, 3)).wait()
    assert ended.status == 143
    assert "seed 1" not in ended.out


def test_ctrl_c_in_a_shell(synthetic_data, tmp_path):
    argv = flags(synthetic_data, "--epochs", "1000", "--checkpoint-seconds", "60", "--results", tmp_path)
    with open(tmp_path / "out", "wb") as out:
        process = subprocess.Popen(
            [sys.executable, "MyVGG.py", *argv], cwd=ROOT, stdout=out, stderr=subprocess.PIPE, text=True
        )
    try:
        end = time.monotonic() + 120
        while "epoch 1/" not in (tmp_path / "out").read_text(encoding="utf-8"):
            assert process.poll() is None and time.monotonic() < end
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, err) == (130, f"MyVGG.py: {STOPPED}\n")
    (folder,) = find_run_folders(tmp_path)
    assert not read_run(folder).complete
    assert (folder / "checkpoint.pt").exists()


def test_probes_that_have_stopped_stay_so(synthetic_data, results):
    argv = flags(synthetic_data, "--probe-every", "1", "--epochs", "2", train_size=80, test_size=50)
    with folder_in_memory() as folder:
        at_2 = partial(faults.gradient_not_finite, at=2)
        assert Training([*argv, "--results", str(folder)], prepare=at_2).wait().status == 0
        reference = content(folder)
        (whole,) = find_run_folders(folder)
        assert set(read_run(whole).probes["step"]) == {1}
    argv += ["--results", str(results)]
    stopped = partial(faults.gradient_not_finite, at=2, stop_in=3)
    assert Training(argv, prepare=stopped).wait().status == 143
    assert Training(argv, prepare=with_small_network).wait().status == 0
    assert differences(content(results), reference) == []


# --- Extended, caught up, complete, refused --------------------------------------------------------------------------


def test_more_epochs_extend_a_finished_run(command, results):
    ended = command.run(results, "--epochs", "1")
    assert (ended.status, ended.err) == (0, "")
    assert [read_run(folder).summary["epochs"] for folder in find_run_folders(results)] == [1, 1]
    assert command.goes_on(results).count(": continues after epoch 1, step 0\n") == 2


def test_a_finished_run_without_checkpoints_is_not_extended(command, results):
    command.goes_on(results)
    for path in results.rglob("checkpoint*.pt"):
        path.unlink()
    before = snapshot(results)
    ended = command.run(results, "--epochs", "3")
    assert ended.status == 2
    assert ended.err.count("\n") == 1 and "checkpoint" in ended.err and "--fresh" in ended.err
    assert snapshot(results) == before
    assert command.run(results).out.count(": complete (2 epochs)") == 2


def test_laggards_catch_up(synthetic_data, workers, results):
    rates = ("1e-1", "1e-2", "1e-3", "1e-4")
    group = Command(synthetic_data, workers, "--bn", "--lrs", *rates, "--epochs", "3")
    alone = [Command(synthetic_data, workers, "--bn", "--lrs", rate, "--epochs", "3") for rate in rates]
    assert differences({k: v for one in alone for k, v in one.reference.items()}, group.reference) == []
    # Untrained; stopped within the first epoch; with one epoch of its own; complete.
    assert Training(alone[1].into(results), prepare=partial(faults.signal_at_forward_pass, 1)).wait().status == 143
    assert alone[2].run(results, "--epochs", "1").status == 0
    assert alone[3].run(results).status == 0
    said = group.goes_on(results)
    assert "continues after epoch 0, step 1" in said
    assert "continues after epoch 1, step 0" in said
    assert "complete (3 epochs)" in said
    assert "vgg_a_bn: 3 runs of 3 epochs" in said


def test_a_complete_run_is_not_trained_again(command, results):
    command.goes_on(results)
    before = snapshot(results)
    for epochs in ("2", "1"):
        ended = command.run(results, "--epochs", epochs)
        assert (ended.status, ended.err) == (0, "")
        assert ended.out.count(": complete (2 epochs); --fresh would train it again") == 2
        assert snapshot(results) == before


def test_a_diverged_run_keeps_its_log_and_the_others_go_on(synthetic_data, results):
    argv = flags(synthetic_data, "--optimizer", "sgd", "--epochs", "2", "--results", results)
    ended = Training([*argv, "--lrs", "1e-2", "1e6"]).wait()
    assert (ended.status, ended.err) == (0, "")
    good, bad = sorted((read_run(folder) for folder in find_run_folders(results)), key=lambda run: run.settings["lr"])
    assert good.diverged_at_step is None and 1 < bad.diverged_at_step == len(bad.losses) + 1
    assert f"lr 1e+6: diverged: the training loss at step {bad.diverged_at_step} is not finite\n" in ended.out
    before = snapshot(results)
    for epochs in ("2", "3"):
        ended = Training([*argv, "--lrs", "1e6", "--epochs", epochs]).wait()
        assert (ended.status, ended.err) == (0, "")
        assert f": complete (diverged at step {bad.diverged_at_step})" in ended.out
        assert snapshot(results) == before
    with folder_in_memory() as apart:
        assert Training([*argv, "--lrs", "1e-2", "--results", str(apart)]).wait().status == 0
        alone = content(apart)
    assert differences(alone, {k: v for k, v in content(results).items() if "lr1e-2" in k}) == []


def test_fresh_moves_the_old_folder_aside(command, results):
    command.goes_on(results)
    (folder, other) = find_run_folders(results)
    marked = folder / "notes.txt"
    marked.write_text("mine", encoding="utf-8")
    before = snapshot(folder)
    said = command.goes_on(results, "--fresh")
    (aside,) = folder.parent.glob(f".{folder.name}.before-*")
    assert f"{folder}: what was there is now {aside.name}" in said
    assert snapshot(aside) == before
    assert find_run_folders(results) == [folder, other]
    command.goes_on(results, "--fresh")
    assert len(list(folder.parent.glob(f".{folder.name}.before-*"))) == 2


@pytest.mark.parametrize("setting, old", [("weight_decay", 0.5), ("augment", "none"), ("batch_size", 64)])
def test_a_folder_with_other_settings_is_refused(setting, old, command, results):
    command.goes_on(results)
    folder = find_run_folders(results)[1]
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    new = config["settings"][setting]
    config["settings"][setting] = old
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    before = snapshot(results)
    ended = command.run(results)
    assert ended.status == 2
    assert ended.err == (
        f"MyVGG.py: {folder}: holds a run with other settings ({setting} {old} -> {new}); --fresh moves it aside\n"
    )
    assert snapshot(results) == before


@pytest.mark.parametrize(
    "file, text", [("config.json", "{"), ("summary.json", "[]"), ("summary.json", '{"epochs": "2"}')]
)
def test_a_malformed_file_is_refused(file, text, command, results):
    command.goes_on(results)
    path = find_run_folders(results)[0] / file
    path.write_text(text, encoding="utf-8")
    before = snapshot(results)
    ended = command.run(results)
    assert ended.status == 2
    assert ended.err.startswith(f"MyVGG.py: {path}:") and ended.err.count("\n") == 1
    assert snapshot(results) == before


def test_a_folder_that_is_no_run_is_refused(command, results):
    folder = results / Path(next(iter(command.reference)).split(":")[0])
    folder.mkdir(parents=True)
    (folder / "thesis.txt").write_text("mine", encoding="utf-8")
    ended = command.run(results)
    assert ended.status == 2
    assert ended.err == f"MyVGG.py: {folder}: holds files but no config.json; --fresh moves it aside\n"
    assert snapshot(results) == {str(folder.relative_to(results) / "thesis.txt"): b"mine"}
    command.goes_on(results, "--fresh")


def test_what_a_killed_process_leaves_is_cleaned_up(command, results):
    shutil.rmtree(results)
    training = Training(command.into(results), prepare=with_small_network)
    training.reaches(lambda: list(results.rglob("config.json")))
    training.signal(signal.SIGKILL)
    training.wait()
    (folder, *_) = find_run_folders(results)
    for name in ("config.json", "steps.csv", "checkpoint.pt"):
        (folder / f".{name}.12345.tmp").write_bytes(b"half")
    (folder / ".other.csv.12345.tmp").write_bytes(b"not of a training")
    assert command.run(results).status == 0
    assert unfinished_files(results) == [str(folder.relative_to(results) / ".other.csv.12345.tmp")]

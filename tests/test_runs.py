"""Reading run folders: exact on what a run writes, one clear line on everything else."""

import json
import os
import re
import shutil
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up import write_csv, write_json, write_run

from cifar_lab.experiments import config_of
from cifar_lab.project import ROOT
from cifar_lab.run_folder import reader
from cifar_lab.run_folder.checkpoint import training_command
from cifar_lab.run_folder.reader import Run, final_accuracy, find_run_folders, read_run, read_runs, report_runs
from cifar_lab.run_folder.schema import RunFileError, read_config
from cifar_lab.run_folder.tables import EPOCH_COLUMNS, PROBE_COLUMNS, predictions_text
from cifar_lab.schedules import SCHEDULES, factors
from cifar_lab.settings import RunConfig

PROBES = [(step, eta, 2.0, 1.0, 0.5, 0.9, 0.5 / eta) for step in (10, 20, 30) for eta in (0.05, 0.1)]
STEPS = 100  # of an epoch at the quick preset
FILES = ("config.json", "epochs.csv", "steps.csv", "probes.csv", "predictions.txt", "summary.json")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_run(tmp_path, "inception", test_accuracy=[20, 30, 35.5, 40, 41], probes=PROBES)


def edit(path: Path, **changes):
    """Changes entries of a JSON file; None removes one."""
    content = json.loads(path.read_text()) | changes
    write_json(path, {k: v for k, v in content.items() if v is not None})


# --- What a run writes ------------------------------------------------------------------------------------------------


def test_a_complete_run(folder: Path):
    run = read_run(folder)
    assert (run.folder, run.preset, run.model, run.seed, run.name) == (
        folder, "quick", "inception", 0, "adam-lr1e-4-wd0-seed0",
    )  # fmt: skip
    assert run.config == config_of("inception", "quick")
    assert run.complete and run.diverged_at_step is None
    assert (run.epochs_planned, run.epochs_done, run.steps_per_epoch, run.steps_planned) == (5, 5, STEPS, 5 * STEPS)
    assert tuple(run.epochs) == EPOCH_COLUMNS
    assert run.epochs["test_accuracy"].tolist() == [20, 30, 35.5, 40, 41]
    assert run.final_accuracy == pytest.approx((35.5 + 40 + 41) / 3)
    assert run.losses.shape == (5 * STEPS,)
    assert tuple(run.probes) == PROBE_COLUMNS
    assert run.probes["eta"].tolist() == [0.05, 0.1] * 3


def test_losses_are_read_to_the_last_bit(tmp_path: Path):
    losses = np.random.default_rng(0).lognormal(0, 20, 5 * STEPS)
    assert read_run(write_run(tmp_path, "inception", losses=losses)).losses.tolist() == losses.tolist()


def test_a_run_in_progress(tmp_path: Path):
    run = read_run(write_run(tmp_path, "inception", test_accuracy=[20, 30], complete=False))
    assert not run.complete and run.diverged_at_step is None and run.probes is None
    assert (run.epochs_done, len(run.losses)) == (2, 2 * STEPS)


def test_a_run_that_has_only_begun(folder: Path):
    for name in ("epochs.csv", "steps.csv", "probes.csv", "summary.json"):
        (folder / name).unlink()
    run = read_run(folder)
    assert run.epochs_done == len(run.losses) == 0
    assert run.final_accuracy is None and run.probes is None


def test_a_diverged_run(tmp_path: Path):
    run = read_run(write_run(tmp_path, "inception", diverged_at_step=2 * STEPS + 20))
    assert run.complete
    assert (run.diverged_at_step, run.epochs_done, len(run.losses)) == (2 * STEPS + 20, 2, 2 * STEPS + 19)


def test_a_run_that_diverged_in_its_first_epoch(tmp_path: Path):
    run = read_run(write_run(tmp_path, "inception", diverged_at_step=1))
    assert (run.diverged_at_step, run.epochs_done, len(run.losses)) == (1, 0, 0)


def test_the_command_that_trains_a_run_anew(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = {"command": "python MyVGG.py --lrs 1e-3 --results '/dev/shm/a b' --fresh --data-dir d"}
    script = f"python {ROOT / 'MyVGG.py'}"  # to be typed in another folder than the project's
    for root, where in (("results", ""), ("mine", f"--results {tmp_path / 'mine'} ")):
        folder = write_run(tmp_path / root, "vgg_a_lr0.001")
        assert training_command(folder, config) == f"{script} --lrs 1e-3 {where}--fresh"
    with_equals = {"command": "python MyVGG.py --results=there --lrs 1e-3"}
    assert training_command(folder, with_equals) == f"{script} --lrs 1e-3 {where}--fresh"
    monkeypatch.chdir("/")  # a folder called results that is not the default one here
    assert training_command(folder, config).count("--results") == 1
    for text in ("", "python 'MyVGG.py", "python -c x", "python ../x.py", "rm -rf MyVGG.py"):  # not what a run writes
        assert training_command(folder, {"command": text}) == "training the run again with --fresh"


@pytest.mark.parametrize("half", ["501", "501,", "501,0.5", "501,garbage", "\xff"])
def test_half_a_last_row_is_ignored(folder: Path, half: str):
    with (folder / "steps.csv").open("ab") as file:
        file.write(half.encode("latin1"))
    assert len(read_run(folder).losses) == 5 * STEPS


@pytest.mark.parametrize("written", [0, 1, 6, 10])
def test_half_a_header_is_an_empty_log(folder: Path, written: int):
    (folder / "summary.json").unlink()
    (folder / "steps.csv").write_bytes(b"step,loss\n"[:written])
    assert len(read_run(folder).losses) == 0


def test_windows_line_ends(folder: Path):
    before = read_run(folder)
    for name in ("epochs.csv", "steps.csv"):
        (folder / name).write_bytes((folder / name).read_bytes().replace(b"\n", b"\r\n"))
    after = read_run(folder)
    assert after.losses.tolist() == before.losses.tolist()
    assert after.epochs["train_loss"].tolist() == before.epochs["train_loss"].tolist()


def test_predictions_text():
    """A dot where the network is right, x for a class beyond the ten, 100 in a line."""
    labels = np.full(101, 3)
    assert predictions_text(labels, np.array([3, 0, 9, 10, 57, *[3] * 96])) == ".09xx" + 95 * "." + "\n.\n"


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("." * 100 + "\n" + "." * 19 + "x\n", None),
        ("." * 100 + "\r\n" + "." * 19 + "0\r\n", None),
        ("." * 100 + "\n" + "." * 20 + "\n", ": 100.000% right; epochs.csv says 99.167"),
        ("." * 100 + "\n", ": 100 images instead of 120"),
        ("." * 119 + "1\n", ":1: not 100 of the characters 0 to 9, x and ."),
        ("." * 100 + "\n" + "." * 18 + "X.\n", ":2: not 20 of the characters 0 to 9, x and ."),
        ("." * 100 + "\n" + "." * 19 + "1", ": the last line is not whole"),
        ("." * 100 + "\n" + "." * 19 + "1\n\n", ":3: not 0 of the characters 0 to 9, x and ."),
        ("", ": 0 images instead of 120"),
    ],
)
def test_predictions(tmp_path, content, complaint):
    config = RunConfig("vgg_a", test_size=120)
    folder = write_run(tmp_path, config, epochs=2, test_accuracy=[50, 99.167])
    assert read_run(folder).right is None  # older runs have none
    (folder / "predictions.txt").write_bytes(content.encode())
    if complaint is None:
        assert read_run(folder).right.tolist() == [True] * 119 + [False]
        return
    with pytest.raises(RunFileError) as error:
        read_run(folder)
    assert str(error.value) == f"{folder / 'predictions.txt'}{complaint}"
    (folder / "summary.json").unlink()
    assert read_run(folder).right is None  # those of an earlier end, while the run goes on


def test_probes_may_overflow_but_their_steps_may_not(folder: Path):
    write_csv(
        folder / "probes.csv", PROBE_COLUMNS, [(10, 0.1, float("inf"), 1.0, float("nan"), float("nan"), float("inf"))]
    )
    assert np.isinf(read_run(folder).probes["loss"][0])
    write_csv(folder / "probes.csv", PROBE_COLUMNS, [(10, float("nan"), 1.0, 1.0, 1.0, 1.0, 1.0)])
    with pytest.raises(RunFileError, match=r"probes\.csv:2: eta is not a finite number: 'nan'"):
        read_run(folder)


def test_the_last_probe_of_a_run_in_progress_may_be_half_written(folder: Path):
    write_csv(folder / "probes.csv", PROBE_COLUMNS, PROBES[:-1])
    with pytest.raises(RunFileError, match=r"probes\.csv:6: a step without its 2 rows"):
        read_run(folder)
    (folder / "summary.json").unlink()
    assert read_run(folder).probes["step"].tolist() == [10, 10, 20, 20]


@pytest.mark.parametrize(
    ("epochs", "averaged"), [(1, 1), (2, 2), (3, 3), (5, 3), (20, 3), (39, 3), (40, 4), (200, 20), (300, 30)]
)
def test_final_is_the_last_tenth_at_least_three(epochs: int, averaged: int):
    accuracy = np.arange(1.0, epochs + 1)
    assert final_accuracy(accuracy) == pytest.approx(accuracy[-averaged:].mean())


def test_reading_is_fast(tmp_path: Path):
    losses = np.random.default_rng(0).random(150_000)
    folder = write_run(tmp_path, "inception", losses=losses, epochs=1_500)
    start = time.perf_counter()
    assert read_run(folder).losses.tolist() == losses.tolist()
    assert time.perf_counter() - start < 1  # about 0.05 s: 17 such runs take a second


# --- Which folders ----------------------------------------------------------------------------------------------------


def test_folders_are_found_sorted_and_without_hidden_ones(tmp_path: Path):
    made = (("inception", "quick"), ("vgg_a_lr0.001", "quick"), ("inception", "laptop"))
    expected = sorted(write_run(tmp_path, run, preset) for run, preset in made)
    shutil.copytree(expected[0], expected[0].with_name(".adam.before-20260101"))
    (tmp_path / "quick" / "figures").mkdir()
    assert find_run_folders(tmp_path) == expected
    assert find_run_folders(tmp_path, "quick") == [f for f in expected if "quick" in f.parts]
    assert find_run_folders(tmp_path / "nowhere") == []


def test_one_bad_run_does_not_hide_the_others(tmp_path: Path):
    good, bad = write_run(tmp_path, "inception"), write_run(tmp_path, "inception_res")
    (bad / "steps.csv").write_text("step,loss\n1,2.3\n2,abc\n")
    runs, errors = read_runs(tmp_path, "quick")
    assert [run.folder for run in runs] == [good]
    assert [str(e) for e in errors] == [f"{bad / 'steps.csv'}:3: loss is not a finite number: 'abc'"]


def test_a_run_in_another_runs_folder_is_refused(tmp_path: Path):
    folder = write_run(tmp_path, "inception")
    copy = folder.with_name("adam-lr1e-4-wd0-seed1")
    shutil.copytree(folder, copy)
    runs, errors = read_runs(tmp_path, "quick")
    assert [run.folder for run in runs] == [folder]
    assert str(errors[0]).startswith(f"{copy / 'config.json'}: these settings belong to the folder ")
    assert str(errors[0]).endswith(str(Path("quick", "inception", "adam-lr1e-4-wd0-seed0")))


def test_the_reports_runs_are_told_from_others(tmp_path: Path):
    for seed in (0, 2):
        write_run(tmp_path, "inception_res", seed=seed)
    write_run(tmp_path, "inception_res_unscaled")
    write_run(tmp_path, replace(config_of("inception_res", "quick"), width=0.5))
    runs, errors = read_runs(tmp_path, "quick")
    found = report_runs(runs, "quick")
    assert len(runs) == 4 and not errors
    assert {name: list(by_seed) for name, by_seed in found.items()} == {
        "inception_res": [0, 2],
        "inception_res_unscaled": [0],
    }
    assert all(isinstance(run, Run) for by_seed in found.values() for run in by_seed.values())


# --- What is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("", ":1: the header is not step,loss"),
        ("step;loss\n1;2\n", ":1: the header is not step,loss"),
        ("loss,step\n1,2\n", ":1: the header is not step,loss"),
        ("step,loss\n1,2\n\n2,2\n", ":3: 1 columns instead of 2"),
        ("step,loss\n\n", ":2: 1 columns instead of 2"),
        ("step,loss\n1,2,3\n", ":2: 3 columns instead of 2"),
        ("step,loss\n1,2\n2\n", ":3: 1 columns instead of 2"),
        ("step,loss\n1,2\n3,2\n", ":3: step is 3 where 2 follows"),
        ("step,loss\n0,2\n", ":2: step is 0 where 1 follows"),
        ("step,loss\n1.5,2\n", ":2: step is 1.5 where 1 follows"),
        ("step,loss\n1,nan\n", ":2: loss is not a finite number: 'nan'"),
        ("step,loss\n1,-inf\n", ":2: loss is not a finite number: '-inf'"),
        ("step,loss\n1,1e999\n", ":2: loss is not a finite number: '1e999'"),
        ("step,loss\n1,\n", ":2: loss is not a finite number: ''"),
        ("step,loss\n1, 2\n", ":2: loss is not a finite number: ' 2'"),
        ("step,loss\n1,1_0\n", ":2: loss is not a finite number: '1_0'"),
        ("step,loss\n1,0x10\n", ":2: loss is not a finite number: '0x10'"),
        ('step,loss\n1,"2"\n', """:2: loss is not a finite number: '"2"'"""),
        ("step,loss\n# 1,2\n", ":2: step is not a finite number: '# 1'"),
        ("step,loss\n1,2\n2,2-\n", ":3: loss is not a finite number: '2-'"),
        ("step,loss\n1,\0\n", r":2: loss is not a finite number: '\x00'"),
        ("step,loss\n1,2\r\r\n", r":2: loss is not a finite number: '2\r'"),
        ("step,loss\n1,é\n", r":2: loss is not a finite number: '\xc3\xa9'"),
        ("step,loss\n1,2\n", ": 1 whole rows; summary.json says 500"),
    ],
)
def test_a_malformed_log_is_named_with_its_line(folder: Path, content: str, complaint: str):
    (folder / "steps.csv").write_bytes(content.encode())
    with pytest.raises(RunFileError) as error:
        read_run(folder)
    assert str(error.value) == f"{folder / 'steps.csv'}{complaint}"


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ("1,1e-4,2.3,10,2.2,101,1,1", "test_accuracy is 101, not a percentage"),
        ("1,1e-4,2.3,-1,2.2,10,1,1", "train_accuracy is -1, not a percentage"),
        ("1,1e-4,nan,10,2.2,10,1,1", "train_loss is not a finite number: 'nan'"),
    ],
)
def test_an_impossible_epoch_is_named_with_its_line(folder, row, complaint):
    (folder / "summary.json").unlink()
    (folder / "epochs.csv").write_text(",".join(EPOCH_COLUMNS) + f"\n{row}\n")
    with pytest.raises(RunFileError) as error:
        read_run(folder)
    assert str(error.value) == f"{folder / 'epochs.csv'}:2: {complaint}"


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        ([(2, 1), (2, 2), (1, 1), (1, 2)], ":4: step does not grow, or eta is not above 0"),
        ([(1, 0), (1, 2)], ":2: step does not grow, or eta is not above 0"),
        ([(0.5, 1)], ":2: step does not grow, or eta is not above 0"),
        ([(1, 1), (1, 2), (2, 1), (3, 1), (3, 2)], ":4: a step without its 2 rows"),
        ([(1, 1), (2, 1), (2, 2)], ":3: a step without its 1 rows"),
    ],
)
def test_probes_out_of_order_are_named_with_their_line(folder, rows, complaint):
    write_csv(folder / "probes.csv", PROBE_COLUMNS, [(step, eta, 1, 1, 1, 1, 1) for step, eta in rows])
    with pytest.raises(RunFileError) as error:
        read_run(folder)
    assert str(error.value) == f"{folder / 'probes.csv'}{complaint}"


def test_a_log_that_is_missing_from_a_complete_run(folder):
    (folder / "epochs.csv").unlink()
    with pytest.raises(RunFileError, match=r"epochs\.csv: No such file or directory"):
        read_run(folder)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", ":1: not JSON: Expecting value"),
        (b'{"schema": 2,\n', ":2: not JSON: Expecting property name enclosed in double quotes"),
        (b"[]", ": not a JSON object"),
        (b"null", ": not a JSON object"),
        (b"\xff\xfe", ": not UTF-8 text"),
        (b'{"schema": NaN}', ": not JSON: NaN is not a JSON number"),
        (b'{"schema": -Infinity}', ": not JSON: -Infinity is not a JSON number"),
        (b'{"schema": 2, "schema": 2}', ": not JSON: a key is given twice"),
        (b"[" * 200_000, ": nested too deeply"),
        (b'{"a":' * 200_000, ": nested too deeply"),
        (b'{"schema": 1}', ": schema is not 2, the one this version reads"),
        (b'{"schema": true}', ": schema is not 2, the one this version reads"),
        (b"{}", ": schema is not 2, the one this version reads"),
    ],
)
def test_a_config_that_is_no_config(folder, content, complaint):
    (folder / "config.json").write_bytes(content)
    with pytest.raises(RunFileError) as error:
        read_config(folder)
    assert str(error.value) == f"{folder / 'config.json'}{complaint}"


def test_an_integer_too_long_for_python(folder):
    (folder / "config.json").write_bytes(b'{"schema": ' + b"1" * 10_000 + b"}")
    with pytest.raises(RunFileError, match=r"config\.json: not JSON: Exceeds the limit"):
        read_config(folder)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"preset": "mine"}, "preset is not one of report, laptop, quick, paper, paper-quick, modern"),
        ({"preset": 1}, "preset is not a line of text"),
        ({"preset": "\ud800"}, "preset is not a line of text"),
        ({"epochs": 0}, "epochs is not an integer from 1 to 9007199254740992"),
        ({"epochs": 5.0}, "epochs is not an integer from 1 to 9007199254740992"),
        ({"epochs": True}, "epochs is not an integer from 1 to 9007199254740992"),
        ({"epochs": 10**400}, "epochs is not an integer from 1 to 9007199254740992"),
        ({"settings": None}, "settings is not a JSON object"),
        ({"settings": {"model": "inception", "lrs": 1}}, "unknown setting 'lrs'"),
        ({"settings": {}}, "setting 'model' is missing"),
        ({"settings": {"model": "a\nb"}}, "model is not a word of letters, digits and _.+-"),
        ({"settings": {"model": "../a"}}, "model is not a word of letters, digits and _.+-"),
        ({"settings": {"model": "..", "optimizer": "adam"}}, "model is not a word of letters, digits and _.+-"),
        ({"network": {"script": "a.py", "label": "x" * 101}}, "label is not a line of at most 100 characters"),
        ({"environment": {"device": "x" * 301}}, "device is not a line of at most 300 characters"),
        ({"settings": {"model": "inception", "lr": "1"}}, "lr is not a finite number"),
        ({"settings": {"model": "inception", "lr": True}}, "lr is not a finite number"),
        ({"settings": {"model": "inception", "lr": 10**400}}, "lr is not a finite number"),
        ({"settings": {"model": "inception", "augment": 1}}, "augment is not a line of text"),
        (
            {"settings": {"model": "inception", "loss": "l3"}},
            "loss is not one of cross_entropy, label_smoothing, mse, hinge, focal",
        ),
        ({"settings": {"model": "inception", "bias_decay": 1}}, "bias_decay is not true or false"),
        ({"settings": {"model": "inception", "seed": -1}}, "seed is not an integer from 0 to 9007199254740992"),
        (
            {"settings": {"model": "inception", "batch_size": 0}},
            "batch_size is not an integer from 1 to 9007199254740992",
        ),
        ({"settings": {"model": "inception", "lr": -1}}, "lr is not a number above 0 to 1e+06"),
        ({"settings": {"model": "inception", "lr": 1e308}}, "lr is not a number above 0 to 1e+06"),
        ({"settings": {"model": "inception", "weight_decay": -1e300}}, "weight_decay is not a number from 0 to 10"),
        ({"settings": {"model": "inception", "momentum": 7}}, "momentum is not a number from 0 to 1"),
        ({"settings": {"model": "inception", "seed": 2**32}}, "seed is not an integer from 0 to 4294967295"),
        ({"settings": {"model": "inception", "batch_size": 1}}, "batch_size is not an integer from 2 to 100000"),
        ({"environment": []}, "environment is not a JSON object"),
        ({"environment": {"device": 3}}, "device is not a line of text"),
        ({"environment": {"device": "a\nb"}}, "device is not a line of text"),
    ],
)
def test_a_config_with_a_wrong_entry(folder, changes, complaint):
    edit(folder / "config.json", **changes)
    with pytest.raises(RunFileError) as error:
        read_run(folder)
    assert str(error.value) == f"{folder / 'config.json'}: {complaint}"


@pytest.mark.parametrize(
    ("name", "value", "complaint"),
    [
        ("train_seconds", -1, "train_seconds is -1, negative"), ("train_loss", -3, "train_loss is -3, negative"),
        ("images_per_second", -0.5, "images_per_second is -0.5, negative"),
        ("test_loss", -1e-9, "test_loss is -1e-09, negative"),
        ("learning_rate", 77, "learning_rate is 77, not that of the settings"),
        ("train_accuracy", 100.5, "train_accuracy is 100.5, not a percentage"),
    ],
)  # fmt: skip
def test_epochs_that_no_run_writes(name, value, complaint, tmp_path):
    usual = {"learning_rate": 1e-4}.get(name, 1.0)
    folder = write_run(tmp_path, "inception", columns={name: [usual] * 2 + [value] + [usual] * 2})
    with pytest.raises(RunFileError) as error:
        read_run(folder)
    assert str(error.value) == f"{folder / 'epochs.csv'}:4: {complaint}"


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_rates_of_a_schedule_are_compared_with_it(schedule, tmp_path):
    config = replace(config_of("inception", "quick"), schedule=schedule, schedule_epochs=5, warmup=1.5)
    if schedule == "constant":
        config = replace(config, schedule_epochs=0)
    folder = write_run(tmp_path, config)
    last = 150 if schedule == "constant" else 500
    expected = [1e-4 * factors(config, STEPS)[min(STEPS * epoch, last) - 1] for epoch in range(1, 6)]
    assert read_run(folder).column("learning_rate") == pytest.approx(expected)
    edit(folder / "config.json", settings=asdict(replace(config, warmup=4.5)))
    with pytest.raises(RunFileError, match=r"learning_rate is .+, not that of the settings"):
        read_run(folder)


def test_settings_that_a_config_lacks_have_their_default(folder):
    edit(folder / "config.json", settings={"model": "vgg_a", "lr": 1}, environment={})
    config = read_config(folder)
    assert RunConfig(**config["settings"]) == RunConfig("vgg_a", lr=1.0)
    assert config["environment"]["device"] is None


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"epochs": "5"}, "epochs is not an integer from 0 to 9007199254740992"),
        ({"steps": None}, "steps is not an integer from 0 to 9007199254740992"),
        ({"parameters": 0}, "parameters is not an integer from 1 to 9007199254740992"),
        ({"diverged_at_step": 0}, "diverged_at_step is not an integer from 1 to 9007199254740992"),
        ({"train_seconds": -1}, "train_seconds is not a number from 0 to inf"),
        ({"train_seconds": None}, "train_seconds is not a number from 0 to inf"),
        ({"final_accuracy": 101}, "final_accuracy is not a number from 0 to 100"),
        ({"final_accuracy": "high"}, "final_accuracy is not a number from 0 to 100"),
        ({"final_accuracy": 99.9}, "final_accuracy is 99.9; in epochs.csv it is 38.8333"),
        ({"last_accuracy": 40}, "last_accuracy is 40; in epochs.csv it is 41"),
        ({"best_accuracy_selected_on_test": 40}, "best_accuracy_selected_on_test is 40; in epochs.csv it is 41"),
        ({"test_loss": -1}, "test_loss is not a number from 0 to inf"),
        ({"probes_stopped_at_step": [1]}, "probes_stopped_at_step is not an integer from 1 to 9007199254740992"),
        ({"lr": 5}, "unknown key 'lr'"),
        ({"=cmd|calc": 5}, "unknown key '=cmd|calc'"),
        ({"\ud800": 5}, "unknown key '\\ud800'"),
    ],
)
def test_a_summary_with_a_wrong_entry(folder, changes, complaint):
    edit(folder / "summary.json", **changes)
    with pytest.raises(RunFileError) as error:
        read_run(folder)
    assert str(error.value) == f"{folder / 'summary.json'}: {complaint}"


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"epochs": 4}, "epochs.csv: 5 whole rows; summary.json says 4"),
        ({"epochs": 6}, "epochs.csv: 5 whole rows; summary.json says 6"),
        ({"steps": 499}, "steps.csv: 500 whole rows; summary.json says 499"),
        ({"diverged_at_step": 7}, "summary.json: diverged at step 7; steps.csv has 500 rows, epochs.csv 5"),
        ({"diverged_at_step": 501}, "summary.json: diverged at step 501; steps.csv has 500 rows, epochs.csv 5"),
    ],
)
def test_a_summary_of_other_logs(folder, changes, complaint):
    edit(folder / "summary.json", **changes)
    with pytest.raises(RunFileError) as error:
        read_run(folder)
    assert str(error.value) == f"{folder}/{complaint}"


@pytest.mark.parametrize("complete", [True, False])
def test_more_rows_than_planned(folder, complete):
    if not complete:
        (folder / "summary.json").unlink()
    edit(folder / "config.json", epochs=4)
    with pytest.raises(RunFileError, match=r"/epochs\.csv: 5 rows; config\.json has 4 epochs$"):
        read_run(folder)
    edit(folder / "config.json", epochs=5)
    if not complete:
        with (folder / "steps.csv").open("a") as log:
            log.write("501,1.5\n")
        with pytest.raises(RunFileError, match=r"/steps\.csv: 501 rows; config\.json has 500 steps$"):
            read_run(folder)


def test_a_run_that_is_continued_while_it_is_read(folder, monkeypatch):
    """More epochs are planned, the summary is gone, and the log has grown, all before the log is read."""
    read = reader.read_table

    def grown(path, *arguments, **named):
        if (folder / "summary.json").exists():
            edit(folder / "config.json", epochs=6)
            (folder / "summary.json").unlink()
            with (folder / "steps.csv").open("a") as log:
                log.write("501,1.5\n")
        return read(path, *arguments, **named)

    monkeypatch.setattr(reader, "read_table", grown)
    run = read_run(folder)
    assert not run.complete and len(run.losses) == 501


def test_a_folder_in_a_files_place(folder):
    (folder / "steps.csv").unlink()
    (folder / "steps.csv").mkdir()
    with pytest.raises(RunFileError, match=r"steps\.csv: Is a directory"):
        read_run(folder)


def fifo(path: Path) -> None:
    os.mkfifo(path)


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def hole(path: Path) -> None:
    path.touch()
    os.truncate(path, 1 << 36)


IN_PLACE = {fifo: "not a regular file", endless: "not a regular file", hole: "larger than"}


@pytest.mark.skipif(os.name != "posix", reason="FIFOs, devices and holes as POSIX has them")
@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("put", IN_PLACE)
def test_what_is_no_regular_file_is_named_and_not_waited_for(folder, put, name):
    (folder / name).unlink(missing_ok=True)
    put(folder / name)
    with pytest.raises(RunFileError) as error:
        read_run(folder)
    assert str(error.value).startswith(f"{folder / name}: {IN_PLACE[put]}")


# --- Arbitrary bytes --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    """A small run's folder, and the content of its files."""
    tiny = RunConfig("inception", train_size=4, batch_size=2, test_size=2)
    folder = write_run(tmp_path_factory.mktemp("results"), tiny, epochs=2, test_accuracy=[0, 50], probes=PROBES[:2])
    (folder / "predictions.txt").write_text(".7\n")
    return folder, {name: (folder / name).read_bytes() for name in FILES}


def read_with(pristine, name, content):
    """The run with one file's content replaced, or None where it is refused, cleanly."""
    folder, contents = pristine
    (folder / name).write_bytes(content)
    try:
        return read_run(folder)
    except RunFileError as error:
        text = str(error)
        # Settings and summary may contradict the logs, and all of them the predictions, which are then named.
        assert re.match(rf"{re.escape(str(folder))}/(\w+\.\w+)(:\d+)?: \S", text)
        assert Path(text.split(":")[0]).name in (
            {"epochs.csv": {name, "predictions.txt"}, "steps.csv": {name}}.get(name, FILES)
        )
        assert "\n" not in text and text.isprintable()
        return None
    finally:
        (folder / name).write_bytes(contents[name])


@pytest.mark.parametrize("name", FILES)
@given(content=st.binary(max_size=200))
def test_arbitrary_bytes_are_refused_cleanly(pristine, name, content):
    assert read_with(pristine, name, content) is None


@pytest.mark.parametrize("name", FILES)
@given(data=st.data())
def test_altered_files_are_refused_cleanly_or_read(pristine, name, data):
    content = pristine[1][name]
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(content)))
        end = data.draw(st.integers(start, min(len(content), start + 8)))
        new = data.draw(
            st.binary(max_size=4) | st.sampled_from([b"\n", b",", b"nan", b"-", b"1e9", b"{", b'"', b"null"])
        )
        content = content[:start] + new + content[end:]
    run = read_with(pristine, name, content)
    if run is not None:
        assert np.isfinite(run.losses).all()
        assert run.epochs["epoch"].tolist() == list(range(1, run.epochs_done + 1))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@pytest.mark.parametrize("name", ["config.json", "summary.json"])
@given(data=st.data())
def test_altered_entries_are_refused_cleanly_or_read(pristine, name, data):
    content = json.loads(pristine[1][name])
    inner = data.draw(st.sampled_from([content, *(v for v in content.values() if isinstance(v, dict))]))
    inner[data.draw(st.sampled_from(sorted(inner)))] = data.draw(JSON)
    read_with(pristine, name, json.dumps(content).encode())


@given(text=st.text(alphabet="0123456789.eE+-,infa\n", max_size=40))
@settings(max_examples=300)
def test_numbers_are_read_as_python_reads_them(pristine, text):
    """The fast reader accepts nothing that a row-by-row one would not, and gives the same values."""
    (pristine[0] / "summary.json").rename(pristine[0] / "kept.json")
    try:
        run = read_with(pristine, "steps.csv", f"step,loss\n1,0.5\n{text}\n".encode())
    finally:
        (pristine[0] / "kept.json").rename(pristine[0] / "summary.json")
    number = r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?"
    rows = ["1,0.5", *text.split("\n")]
    if not all(re.fullmatch(f"{number},{number}", row) for row in rows):
        assert run is None
        return
    table = np.array([[float(cell) for cell in row.split(",")] for row in rows])
    sound = np.isfinite(table).all() and (table[:, 0] == np.arange(1, len(rows) + 1)).all()
    assert (run is not None) == sound
    if run is not None:
        assert run.losses.tolist() == table[:, 1].tolist()

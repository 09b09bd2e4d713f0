"""The scripts from end to end on a small data set in which the classes can be learned."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import MyFramework
import MyVGG
from cifar_lab.run_folder.reader import find_run_folders, read_run
from cifar_lab.training import script as cli

ROOT = Path(__file__).resolve().parent.parent
SMALL = "--width 0.125 --train-size 950 --test-size 200 --batch-size 100 --epochs 3 --init he"


def script(results, data_dir, command: str, status: int = 0) -> subprocess.CompletedProcess:
    """Runs a script as a user does."""
    name, *words = command.split()
    words = [*words, "--results", str(results), "--data-dir", str(data_dir)]
    done = subprocess.run(
        [sys.executable, ROOT / name, *words], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == status, done.stderr
    return done


def logs(results) -> dict[str, tuple]:
    """What a training writes but for the time that it takes, by run folder."""
    found = {}
    for folder in find_run_folders(results):
        run = read_run(folder)
        kept = {k: v.tolist() for k, v in run.epochs.items() if k not in ("train_seconds", "images_per_second")}
        weights = torch.load(folder / "checkpoint.pt", weights_only=True)["model"]
        found[f"{run.model}/{run.name}"] = (
            kept,
            run.losses.tolist(),
            {k: v.numpy().tobytes() for k, v in weights.items()},
        )
    return found


@pytest.fixture(scope="module")
def together(tmp_path_factory, synthetic_data):
    results = tmp_path_factory.mktemp("together")
    done = script(results, synthetic_data, f"MyFramework.py {SMALL} --lr 1e-3 --optimizer adam adamw rmsprop sgd")
    return results, done


def test_what_a_script_writes(together):
    results, done = together
    folders = find_run_folders(results)
    assert len(folders) == 4
    for folder in folders:
        assert {"config.json", "epochs.csv", "steps.csv", "summary.json", "checkpoint.pt"} <= {
            p.name for p in folder.iterdir()
        }
        run = read_run(folder)
        assert len(run.losses) == 3 * 10  # the partial last batch of 50 images is trained on
        assert run.epochs_done == 3
        assert run.summary["parameters"] > 0
        assert run.summary["flops_per_training_image"] > 1e6
        assert 0 < run.summary["train_seconds"] < 300 and 0 < run.summary["test_seconds"] < 300
        config = json.loads((folder / "config.json").read_text())
        assert config["settings"]["train_size"] == 950
        assert config["environment"]["data_sha256"]
        # The running training loss is the mean over images, the last batch with half the weight.
        sizes = np.array([100] * 9 + [50])
        assert run.epochs["train_loss"][0] == pytest.approx(run.losses[:10] @ sizes / 950, abs=1e-5)
    assert "\r" not in done.stdout + done.stderr
    assert sum(line.startswith("epoch ") for line in done.stdout.splitlines()) == 3


NETWORKS = {
    "vgg_a": (MyVGG, ["--lrs", "1e-4", "1e-3"]),
    "vgg_a_bn": (MyVGG, ["--bn", "--lrs", "1e-4", "1e-3"]),
    "inception": (MyFramework, ["--model", "inception", "--optimizer", "adam", "rmsprop"]),
    "inception_res": (MyFramework, ["--model", "inception_res", "--optimizer", "adam", "rmsprop"]),
}
LOSS_TOLERANCE = 0.02  # nats, as in test_cuda.py: another order of summation, amplified by Adam from step to step


@pytest.mark.parametrize("network", NETWORKS)
def test_the_fast_path_on_a_cpu_agrees_with_the_plain_one(network, tmp_path, synthetic_data):
    """Channels-last and two runs in lockstep against NCHW and one run alone, both in fp32, over 30 steps."""
    module, flags = NETWORKS[network]
    curves = {}
    for path, words in (("fast", flags), ("plain", [*flags[:-1], "--no-channels-last"])):
        where = ["--device", "cpu", "--results", str(tmp_path / path), "--data-dir", str(synthetic_data)]
        where += ["--no-width-transfer"]  # whose larger rates amplify more
        module.main([*SMALL.split(), *words, *where])
        curves[path] = {folder.name: read_run(folder).losses for folder in find_run_folders(tmp_path / path)}
    assert len(curves["fast"]) == 2
    ((name, plain),) = curves["plain"].items()
    assert len(plain) == 30
    assert np.ptp(plain) > 5 * LOSS_TOLERANCE  # from batch to batch: another batch, or another image, would be seen
    assert np.abs(curves["fast"][name] - plain).max() <= LOSS_TOLERANCE


def test_figures_of_what_was_trained(together):
    results, _ = together
    for name in ("plot_results.py", "landscape.py"):
        done = subprocess.run([sys.executable, ROOT / name, results], capture_output=True, text=True, timeout=120)
        assert (done.returncode, done.stderr) == (0, "")
    report = (results / "report" / "report.md").read_text(encoding="utf-8")
    for folder in find_run_folders(results):  # none has the report's settings
        assert f"| inception_res/{folder.name} | 3 | " in report
    assert "the report's own figures and claims: `python -m cifar_lab.reproduce report" in report


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_lockstep_gives_each_run_what_it_has_alone_dropout_included(optimizer, together, tmp_path, synthetic_data):
    script(tmp_path, synthetic_data, f"MyFramework.py {SMALL} --lr 1e-3 --optimizer {optimizer}")
    (name, alone), *rest = logs(tmp_path).items()
    assert not rest
    assert logs(together[0])[name] == alone


def test_the_same_seed_repeats_and_another_differs(together, tmp_path, synthetic_data):
    script(tmp_path, synthetic_data, f"MyFramework.py {SMALL} --lr 1e-3 --seed 0 7")
    found = logs(tmp_path)
    same = next(v for k, v in found.items() if "seed0" in k)
    other = next(v for k, v in found.items() if "seed7" in k)
    assert same == next(v for k, v in logs(together[0]).items() if "/adam-" in k)
    assert same[1][0] != other[1][0]


def test_vgg_learns_and_can_be_evaluated(tmp_path, synthetic_data):
    script(tmp_path, synthetic_data, f"MyVGG.py {SMALL} --bn --lrs 1e-3 5e-3 --epochs 4".replace("--epochs 3 ", ""))
    for folder in find_run_folders(tmp_path):
        run = read_run(folder)
        assert run.epochs["train_loss"][-1] < 1.5  # chance level is ln 10 = 2.30
        assert run.epochs["test_accuracy"][-1] > 30
    folder = find_run_folders(tmp_path)[0]
    done = script(tmp_path, synthetic_data, f"MyVGG.py --evaluate {folder} --test-size 200 --train-size 950")
    accuracy = read_run(folder).summary["last_accuracy"]
    assert f"test accuracy {accuracy:.2f}%" in done.stdout
    assert done.stdout.count("%  of ") == 10
    assert {"confusion.png", "confusion.svg"} <= {p.name for p in folder.iterdir()}
    wrong = script(tmp_path, synthetic_data, f"MyFramework.py --evaluate {folder} --test-size 200", status=2)
    assert "vgg_a_bn" in wrong.stderr
    assert wrong.stderr.count("\n") == 1
    for checkpoint in folder.glob("checkpoint*.pt"):
        checkpoint.unlink()
    without = script(tmp_path, synthetic_data, f"MyVGG.py --evaluate {folder} --test-size 200", status=2)
    assert "there is no checkpoint; to create it, run: python MyVGG.py" in without.stderr
    assert without.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "flags, named",
    [
        ("--lrs 0", "--lrs"), ("--lrs nan", "--lrs"), ("--epochs 0", "--epochs"), ("--width 0", "--width"),
        ("--batch-size 1", "--batch-size"), ("--train-size 60000", "--train-size"),
        ("--train-size 3000", "--train-size"),
        ("--optimizer lion", "--optimizer"), ("--preset huge", "--preset"), ("--momentum 0.9", "--momentum"),
        ("--lrs 1e-3 1e-3", "--lrs"), ("--evaluate nowhere", "nowhere"),
        *([] if torch.cuda.is_available() else [("--device cuda", "--device")]),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_leaves_nothing(flags, named, tmp_path, synthetic_data, capsys, monkeypatch):
    results = tmp_path / "results"
    words = ["--test-size", "100", "--results", str(results), "--data-dir", str(synthetic_data), *flags.split()]
    if "--train-size" not in flags:
        words += ["--train-size", "200"]
    with pytest.raises(SystemExit) as end:
        cli.run(MyVGG.main, words)
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert named in error
    assert not results.exists()

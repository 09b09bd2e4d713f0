"""What a training writes: numbers worked out by hand, as text; whose time it is; in which order files are made."""

import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import recorded
import torch
import trainings
from torch import nn

import MyVGG
from cifar_lab.data.cache import write_cache
from cifar_lab.run_folder.reader import read_run
from cifar_lab.training.device import Device

torch.set_num_threads(1)

# --- The numbers ------------------------------------------------------------------------------------------------------

# 700 test images, each of one gray value: the evaluation takes 500 and 200 at a time, and is right in the second alone.
GRAYS = np.concatenate([np.arange(500) % 100, 150 + np.arange(200) % 100])
LABELS = np.array([3] * 650 + [5] * 50)


class Gray(nn.Module):
    """Says class 3 of what is brighter than gray: its logit is twice the mean, in [-1, 1], the others are 0."""

    def __init__(self, config=None) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor([[2.0]]))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        mean = images.mean((1, 2, 3))[:, None]
        zeros = torch.zeros(len(images), 6, device=images.device)
        return torch.cat([zeros[:, :3], mean * self.factor, zeros], 1)


def expected_test_loss() -> float:
    logit = 2 * (2 * GRAYS / 255 - 1)
    total = np.log(9 + np.exp(logit))
    return float(np.mean(total - np.where(LABELS == 3, logit, 0)))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("grays")
    rng = np.random.default_rng(0)
    write_cache(folder, {
        "train_images": rng.integers(0, 256, (130, 32, 32, 3), dtype=np.uint8),
        "train_labels": rng.integers(0, 10, 130, dtype=np.uint8),
        "test_images": np.broadcast_to(GRAYS[:, None, None, None], (700, 32, 32, 3)).astype(np.uint8),
        "test_labels": LABELS.astype(np.uint8),
    }, name="grays")  # fmt: skip
    return folder


def small_network(config):
    return trainings.small_network()


STEPS = [(0.1, 11), (2.5, 22), (1 / 3, 30), (7e-5, 50), (1.25, 50), (123.5, 29)]  # loss, images that are right


def replay(run, images, labels):
    """A training step with the next of the losses above; nothing is learned."""
    loss, correct = STEPS[run.position.total]
    return torch.tensor(loss), torch.tensor(correct)


@pytest.fixture(scope="module")
def folder(data, tmp_path_factory) -> Path:
    results = tmp_path_factory.mktemp("results")
    recorded.train(MyVGG, data, "--lrs 1.5e-4 --test-size 700", Gray, replay, results)
    (folder,) = results.glob("report/vgg_a/[!.]*")
    return folder


def test_epochs_csv(folder):
    """Losses and accuracies are means over images: the last training batch has 30, the last of the evaluation 200."""
    header, *rows = (folder / "epochs.csv").read_text().splitlines()
    assert header == (
        "epoch,learning_rate,train_loss,train_accuracy,test_loss,test_accuracy,train_seconds,images_per_second"
    )
    # (0.1 * 50 + 2.5 * 50 + 1/3 * 30) / 130 and (7e-5 * 50 + 1.25 * 50 + 123.5 * 30) / 130; 63 and 129 of 130;
    # 150 of 700. Another batch of evaluation may move the sixth decimal of the test loss.
    expected = ["1,0.00015,1.076923,48.462,", "2,0.00015,28.980796,99.231,"]
    for row, start in zip(rows, expected, strict=True):
        found = re.fullmatch(rf"{re.escape(start)}(\d\.\d{{6}}),21\.429,\d+\.\d{{4}},\d+\.\d", row)
        assert found and float(found[1]) == pytest.approx(expected_test_loss(), abs=2e-6)


def test_steps_csv(folder):
    """The shortest text that gives each float32 back; steps go on over the epochs."""
    assert (folder / "steps.csv").read_text() == ("step,loss\n1,0.1\n2,2.5\n3,0.33333334\n4,7e-05\n5,1.25\n6,123.5\n")


def test_predictions_txt(folder):
    """Of 700 images, 650 are cats and 50 dogs; a gray image is taken for a cat if it is light, else for an airplane."""
    lines = (folder / "predictions.txt").read_text().splitlines()
    assert [len(line) for line in lines] == [100] * 7
    found = "".join(lines)
    for gray, label, character in zip(GRAYS, LABELS, found, strict=True):
        predicted = 3 if 2 * gray / 255 - 1 > 0 else 0
        assert character == ("." if predicted == label else str(predicted))
    assert found.count(".") == 150  # as epochs.csv says


def test_summary_json(folder):
    summary = json.loads((folder / "summary.json").read_text())
    assert list(summary) == [
        "epochs", "steps", "final_accuracy", "last_accuracy", "best_accuracy_selected_on_test", "diverged_at_step",
        "train_seconds", "test_seconds", "images_per_second", "parameters", "flops_per_training_image", "tflops",
        "matmul_tflops", "share_of_matmul_rate",
    ]  # fmt: skip
    assert (summary["epochs"], summary["steps"], summary["parameters"], summary["diverged_at_step"]) == (2, 6, 1, None)
    for key in ("final_accuracy", "last_accuracy", "best_accuracy_selected_on_test"):
        assert summary[key] == pytest.approx(21.429)
    assert summary["images_per_second"] == pytest.approx(260 / summary["train_seconds"])
    assert summary["tflops"] == summary["images_per_second"] * summary["flops_per_training_image"] / 1e12
    assert summary["share_of_matmul_rate"] == pytest.approx(summary["tflops"] / summary["matmul_tflops"])


def test_a_commit_or_a_device_of_any_name_can_be_read_again(data, tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_COMMIT", "v1\n\x1b[31mred\udcff")
    monkeypatch.setattr(Device, "describe", lambda self: "cpu: two\r\nlines\x00 " + 10_000 * "x")
    recorded.train(MyVGG, data, "--test-size 700", Gray, replay, tmp_path)
    (config,) = tmp_path.rglob("config.json")
    run = read_run(config.parent)
    assert run.complete and run.environment["commit"] == "v1 [31mred"
    assert run.environment["device"].startswith("cpu: two lines xxx") and len(run.environment["device"]) == 300


def test_evaluate_says_the_same_of_the_checkpoint(folder, data, capsys):
    recorded.train(MyVGG, data, f"--test-size 700 --evaluate {folder}", Gray)
    out = capsys.readouterr().out
    assert "after epoch 2, 700 test images" in out
    assert f"test loss {expected_test_loss():.4f}, test accuracy 21.43%\n" in out
    classes = re.findall(r"^  (\w+) +(\S+)  of (\d+)$", out, re.MULTILINE)
    assert classes[3] == ("cat", "23.08%", "650") and classes[5] == ("dog", "0.00%", "50")
    assert classes[0][:2] == ("airplane", "-")
    assert [count for _, _, count in classes] == ["0", "0", "0", "650", "0", "50", "0", "0", "0", "0"]


def test_probes_csv(tmp_path, synthetic_data):
    words = "--probe-every 2 --lrs 0.02 --epochs 1"
    recorded.train(MyVGG, synthetic_data, words, small_network, results=tmp_path)
    (log,) = tmp_path.rglob("probes.csv")
    header, *rows = log.read_text().splitlines()
    assert header == "step,eta,loss,grad_norm,grad_change,grad_cosine,beta"
    cells = [row.split(",") for row in rows]
    assert [(step, round(float(eta), 9)) for step, eta, *_ in cells] == [
        ("2", eta) for eta in (0.0002, 0.002, 0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07, 0.08)
    ]
    assert all(repr(float(cell)) == cell for row in cells for cell in row[1:])


# --- Whose time it is -------------------------------------------------------------------------------------------------


def test_the_time_of_a_lockstep_group_is_shared_by_its_runs(data, tmp_path):
    """On a clock that a training step moves on by 100 s and a forward pass of the evaluation by 1,000 s."""
    passed = 0.0
    clock = time.perf_counter

    class Slow(Gray):
        def forward(self, images):
            nonlocal passed
            passed += 0 if self.training else 1_000
            return super().forward(images)

    def step(run, images, labels):
        nonlocal passed
        passed += 100
        return replay(run, images, labels)

    def moved_on() -> float:
        return clock() + passed

    with mock.patch("time.perf_counter", moved_on):
        recorded.train(MyVGG, data, "--lrs 0.1 0.2 0.3 --test-size 700", Slow, step, tmp_path)
    summaries = [json.loads(path.read_text()) for path in tmp_path.rglob("summary.json")]
    assert len(summaries) == 3
    for (
        summary
    ) in summaries:  # two epochs of three steps, each shared by three runs that take them; two batches of tests
        assert summary["train_seconds"] == pytest.approx(2 * 3 * 100, abs=60)  # what the training really takes, besides
        assert summary["test_seconds"] == pytest.approx(2 * 2 * 1_000, abs=60)
    for log in tmp_path.rglob("epochs.csv"):
        for row in log.read_text().splitlines()[1:]:
            seconds, speed = map(float, row.split(",")[-2:])
            assert seconds == pytest.approx(3 * 100, abs=30) and speed == pytest.approx(130 / seconds, abs=0.05)


# --- In which order files reach the disk ------------------------------------------------------------------------------


class Disk:
    """Takes down which files of a run folder are flushed to the disk and renamed, and how long the logs are then."""

    def __init__(self, results: Path) -> None:
        self.results = results
        self.calls: list[tuple] = []
        self.synced: dict[str, int] = {}  # length of a file when it was last flushed
        self._fsync, self._replace = os.fsync, os.replace

    def folder(self) -> Path | None:
        return next(iter(self.results.glob("report/vgg_a/[!.]*")), None)

    def fsync(self, handle: int) -> None:
        self._fsync(handle)
        folder, own = self.folder(), os.fstat(handle)
        for path in [folder, *folder.iterdir()] if folder else []:
            if os.path.samestat(own, path.stat()):
                self.calls.append(("sync", "." if path == folder else path.name))
                self.synced[path.name] = own.st_size

    def replace(self, name, new_name, **through) -> None:
        """through: handles of the folder that both names are in."""
        old, new = name, new_name
        own = self.folder()
        if own and through and os.path.samestat(os.fstat(through["dst_dir_fd"]), own.stat()):
            old, new = own / name, own / new_name
        if own and Path(new).parent == own:
            unsynced = [p.name for p in Path(new).parent.glob("*.csv") if p.stat().st_size != self.synced.get(p.name)]
            whole = self.synced.get(Path(old).name) == os.stat(old).st_size
            self.synced[Path(new).name] = self.synced.pop(Path(old).name, -1)
            self.calls.append(("replace", Path(old).name, Path(new).name, whole, unsynced))
        self._replace(name, new_name, **through)


@contextmanager
def watched(results: Path) -> Iterator[Disk]:
    disk = Disk(results)
    with mock.patch("os.fsync", disk.fsync), mock.patch("os.replace", disk.replace):
        yield disk


@pytest.fixture(scope="module")
def disk(tmp_path_factory, synthetic_data):
    with watched(tmp_path_factory.mktemp("results")) as disk:
        words = "--probe-every 2 --checkpoint-seconds 0 --batch-size 50"
        recorded.train(MyVGG, synthetic_data, words, small_network, MyVGG.training_step, disk.results)
    return disk


def test_files_are_flushed_before_they_are_renamed_and_their_folder_after(disk):
    renamed = [(i, call) for i, call in enumerate(disk.calls) if call[0] == "replace" and call[1].endswith(".tmp")]
    assert {call[2] for _, call in renamed} == {
        "config.json", "epochs.csv", "steps.csv", "probes.csv", "predictions.txt", "checkpoint.pt", "summary.json",
    }  # fmt: skip
    for i, (_, temporary, name, whole, _) in renamed:
        assert whole and ("sync", temporary) in disk.calls[max(i - 2, 0) : i], name
        assert disk.calls[i + 1] == ("sync", "."), name


def test_a_checkpoint_is_never_ahead_of_the_logs(disk):
    checkpoints = [call for call in disk.calls if call[0] == "replace" and call[2] == "checkpoint.pt"]
    assert len(checkpoints) == 6 + 2  # after every step, and every epoch
    assert all(unsynced == [] for *_, unsynced in checkpoints)


def test_the_checkpoint_before_is_kept_until_the_new_one_is_in_its_place(disk):
    renames = [call[1:3] for call in disk.calls if call[0] == "replace" and "checkpoint" in call[2]]
    first, *later = renames
    assert first[1] == "checkpoint.pt"
    for (old, kept), (temporary, new) in zip(later[::2], later[1::2], strict=True):
        assert (old, kept, new) == ("checkpoint.pt", "checkpoint.previous.pt", "checkpoint.pt")
        assert temporary.endswith(".tmp")


def test_the_summary_comes_last_and_the_settings_first(disk):
    renames = [call for call in disk.calls if call[0] == "replace"]
    assert renames[0][2] == "config.json"
    assert renames[-1][2] == "summary.json" and renames[-1][-1] == []
    assert [call[2] for call in renames].count("summary.json") == 1


def test_settings_and_headers_are_there_before_the_first_step(data, tmp_path):
    seen = []

    def step(run, images, labels):
        (folder,) = tmp_path.glob("report/vgg_a/[!.]*")
        seen.append({path.name: path.read_text() for path in folder.iterdir()})
        return replay(run, images, labels)

    recorded.train(MyVGG, data, "--epochs 1 --test-size 700", Gray, step, tmp_path)
    assert set(seen[0]) == {"config.json", "epochs.csv", "steps.csv"}
    assert json.loads(seen[0]["config.json"])["settings"]["train_size"] == 130
    assert seen[0]["steps.csv"] == "step,loss\n" and seen[0]["epochs.csv"].startswith("epoch,learning_rate,")
    for before, after in pairwise(seen):
        assert before == after


def test_a_run_that_diverges_ends_before_that_step(data, tmp_path):
    def diverges(run, images, labels):
        loss, correct = replay(run, images, labels)
        return (loss * float("nan") if (run.position.epochs, run.position.step) == (1, 1) else loss), correct

    with watched(tmp_path) as disk:
        recorded.train(MyVGG, data, "--test-size 700", Gray, diverges, tmp_path)
    (log,) = tmp_path.rglob("steps.csv")
    assert log.read_text() == "step,loss\n1,0.1\n2,2.5\n3,0.33333334\n4,7e-05\n"
    summary = json.loads(log.with_name("summary.json").read_text())
    assert (summary["epochs"], summary["steps"], summary["diverged_at_step"]) == (1, 4, 5)
    assert disk.calls[-2][2] == "summary.json" and disk.calls[-2][-1] == []  # the logs are on the disk before it

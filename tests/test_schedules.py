"""Each learning-rate schedule against PyTorch's scheduler and numbers by hand, and what a run makes of it."""

import csv

import pytest
import recorded
import torch
from torch import nn
from torch.optim import lr_scheduler as pytorch

import MyFramework
import MyVGG
from cifar_lab.schedules import SCHEDULES, factors
from cifar_lab.settings import RunConfig

STEPS, WARMUP, PER_EPOCH = 40, 8, 4


def config(name: str, warmup: int = 0) -> RunConfig:
    epochs = 0 if name == "constant" else STEPS // PER_EPOCH
    return RunConfig("vgg_a", schedule=name, warmup=warmup / PER_EPOCH, schedule_epochs=epochs)


def scheduled(make) -> list[float]:
    """The factors of a scheduler of PyTorch's at each step."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = make(optimizer)
    found = []
    for _ in range(STEPS):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


PYTORCH = {
    "step": lambda o: pytorch.MultiStepLR(o, [STEPS // 2, 3 * STEPS // 4], gamma=0.1),
    "cosine": lambda o: pytorch.CosineAnnealingLR(o, T_max=STEPS),
    "one-cycle": lambda o: pytorch.OneCycleLR(o, max_lr=1.0, total_steps=STEPS, pct_start=0.3),
}
WARM = {
    "step": lambda o: pytorch.MultiStepLR(o, [STEPS // 2, 3 * STEPS // 4], gamma=0.1),
    "cosine": lambda o: pytorch.SequentialLR(
        o, [pytorch.ConstantLR(o, 1), pytorch.CosineAnnealingLR(o, T_max=STEPS - WARMUP)], [WARMUP]
    ),
    "one-cycle": lambda o: pytorch.OneCycleLR(o, max_lr=1.0, total_steps=STEPS, pct_start=WARMUP / STEPS),
}


@pytest.mark.filterwarnings("ignore")  # of SequentialLR, about how it is called by itself
@pytest.mark.parametrize("name", PYTORCH)
def test_a_schedule_is_pytorchs(name):
    assert factors(config(name), PER_EPOCH) == pytest.approx(scheduled(PYTORCH[name]), rel=1e-12, abs=1e-12)
    expected = scheduled(WARM[name])
    if name != "one-cycle":
        expected = [x * min(1, (t + 1) / WARMUP) for t, x in enumerate(expected)]
    assert factors(config(name, WARMUP), PER_EPOCH) == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_schedules_by_hand():
    """Two epochs of four steps."""
    eight = {name: RunConfig("vgg_a", schedule=name, schedule_epochs=2) for name in SCHEDULES if name != "constant"}
    assert factors(eight["step"], 4) == pytest.approx([1, 1, 1, 1, 0.1, 0.1, 0.01, 0.01])
    half = 0.5**0.5 / 2
    assert factors(eight["cosine"], 4)[::2] == pytest.approx([1, 0.5 + half, 0.5, 0.5 - half])
    cycle = factors(RunConfig("vgg_a", schedule="one-cycle", schedule_epochs=2, warmup=0.75), 4)
    assert (cycle[0], cycle[1], cycle[2]) == pytest.approx((0.04, 0.52, 1)) and cycle[7] == pytest.approx(4e-6)
    assert cycle[2] == max(cycle)


def test_without_a_schedule_there_are_no_factors_and_with_a_warm_up_those_until_its_end():
    assert factors(config("constant"), PER_EPOCH) == []
    assert factors(config("constant", WARMUP), PER_EPOCH) == pytest.approx(
        [1 / 8, 2 / 8, 3 / 8, 0.5, 5 / 8, 0.75, 7 / 8, 1]
    )
    assert factors(RunConfig("vgg_a", warmup=0.4), 5) == pytest.approx([0.5, 1])  # 2 steps


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("epochs, warmup", [(1, 0), (1, 1), (2, 1)])
def test_the_shortest_runs_have_a_schedule(name, epochs, warmup):
    found = factors(RunConfig("vgg_a", schedule=name, schedule_epochs=epochs, warmup=warmup), 1)
    steps = epochs if SCHEDULES[name].planned else warmup
    assert len(found) == steps and all(0 <= x <= 1 for x in found)


@pytest.mark.parametrize("script", [MyVGG, MyFramework])
@pytest.mark.parametrize("words, expected", [
    ("--schedule cosine", [1, 0.9330127, 0.75, 0.5, 0.25, 0.0669873]),
    ("--schedule step --warmup 1", [1 / 3, 2 / 3, 1, 0.1, 0.1, 0.01]),
    ("--schedule one-cycle --warmup 1", [0.04, 0.52, 1, 0.75, 0.250003, 4e-6]),
    ("--warmup 1", [1 / 3, 2 / 3, 1, 1, 1, 1]),
    ("--schedule constant", [1] * 6),
])  # fmt: skip
def test_every_step_has_its_rate_and_every_epoch_that_of_its_last_step(script, words, expected, tmp_path):
    """Two epochs of three steps; of both runs of a group, also of the group of parameters with a smaller rate."""
    seen: dict = {}

    def look(run, images, labels):
        seen.setdefault(run.config.lr, []).append([float(group["lr"]) for group in run.optimizer.param_groups])
        return recorded.look(run, images, labels)

    def wide(config):
        return nn.Sequential(nn.AvgPool2d(16), nn.Flatten(), nn.Linear(12, int(16 * config.width)), nn.Linear(
            int(16 * config.width), 10))  # fmt: skip

    data = recorded.write_numbered(tmp_path / "data")
    recorded.train(script, data, f"{words} --width 0.5 --lrs 0.2 0.02", wide, look, results=tmp_path / "results")
    for lr in (0.2, 0.02):
        rates = sorted(zip(*seen[lr], strict=True))
        # Those of the output layer's weights are twice as large: its fan-in is half of what it is at width 1.
        for factor, of_group in zip((1, 1, 2), rates, strict=True):
            assert of_group == pytest.approx([factor * lr * x for x in expected], rel=2e-6)
    folders = sorted((tmp_path / "results").rglob("epochs.csv"), key=lambda path: "lr2e-1" not in path.parent.name)
    for lr, path in zip((0.2, 0.02), folders, strict=True):
        with path.open(newline="") as file:
            logged = [float(row["learning_rate"]) for row in csv.DictReader(file)]
        assert logged == pytest.approx([lr * expected[2], lr * expected[5]], rel=2e-6)
        assert ("cosine-epochs2" in path.parent.name) == ("cosine" in words)


def test_a_longer_run_with_a_schedule_is_another_run(tmp_path):
    data = recorded.write_numbered(tmp_path / "data", classes=10)
    for epochs in ("1", "2"):
        for words in ("--schedule cosine", "--warmup 1"):
            words = f"{words} --epochs {epochs}"
            recorded.train(MyVGG, data, words, recorded.small, MyVGG.training_step, tmp_path / "results")
    names = sorted(path.parent.name for path in (tmp_path / "results").rglob("config.json"))
    assert [name.partition("seed0-")[2].partition("-width")[0] for name in names] == [
        "cosine-epochs1", "cosine-epochs2", "warmup1",
    ]  # fmt: skip


@pytest.mark.parametrize("script", [MyVGG, MyFramework])
def test_a_warm_up_longer_than_the_run_is_refused(script, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        script.main(["--epochs=3", "--warmup=3.5", f"--results={tmp_path / 'results'}"])
    said = capsys.readouterr()
    assert (stop.value.code, said.out, said.err.count("\n")) == (2, "", 1)
    assert "--warmup 3.5: it is longer than the run (--epochs 3)" in said.err and not list(tmp_path.iterdir())

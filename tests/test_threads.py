"""CPU cores: how many are used, runs side by side on them, and what that leaves unchanged."""

import os
import subprocess
import sys
import threading
from pathlib import Path
from unittest import mock

import pytest
import torch
import torch.nn.utils.prune
from commands import run, table
from torch import nn
from trainings import Training, content, differences, flags, folder_in_memory

from cifar_lab.networks import Branches
from cifar_lab.run_folder.reader import read_run
from cifar_lab.training import device, threads
from cifar_lab.training.device import bf16_pays, has_bf16
from cifar_lab.training.threads import MOST, SideBySide, allowed_cores, default_threads, share

ROOT = Path(__file__).resolve().parent.parent
FOUR = "MyVGG.py --lrs 1e-3 1e-4 5e-4 5e-5"

# --- How many cores --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "files, own, cores",
    [
        ({}, "0::/", 64),
        ({"cpu.max": "max 100000"}, "0::/", 64),
        ({"cpu.max": "400000 100000"}, "0::/", 4),
        ({"cpu.max": "150000 100000"}, "0::/", 2),  # one core and a half
        ({"cpu.max": "5000 100000"}, "0::/", 1),
        ({"a/b/cpu.max": "max 100000", "a/cpu.max": "300000 100000", "other/cpu.max": "100000 100000"}, "0::/a/b", 3),
        ({"a/cpu.max": "800000 100000", "a/b/cpu.max": "200000 100000"}, "0::/a/b", 2),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, "4:cpu:/", 64),
        ({"cpu/cpu.cfs_quota_us": "500000", "cpu/cpu.cfs_period_us": "100000"}, "4:cpu:/", 5),
        ({"cpu,cpuacct/x/cpu.cfs_quota_us": "200000", "cpu,cpuacct/x/cpu.cfs_period_us": "100000"},
         "5:memory:/y\n4:cpu,cpuacct:/x", 2),
        ({"cpu.max": "nonsense"}, "0::/", 64),
        ({"cpu.max": "100000 0"}, "0::/", 64),
        ({"cpu.max": "100000 100000"}, "no line of this kind", 1),
    ],
)  # fmt: skip
def test_the_limits_of_cgroups_count(files, own, cores, tmp_path):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    (tmp_path / "own").write_text(own + "\n")
    with mock.patch("os.sched_getaffinity", return_value=range(64), create=True):
        assert allowed_cores(tmp_path, tmp_path / "own") == cores
        assert allowed_cores(tmp_path / "absent", tmp_path / "absent") == 64


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="Linux only")
def test_the_affinity_counts():
    ask = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); import cifar_lab.training.threads as t;"
    assert python(f"{ask} print(t.allowed_cores(), t.default_threads())") == "1 1"


def test_many_cores_are_not_all_taken():
    with mock.patch("os.sched_getaffinity", return_value=range(64), create=True):
        with mock.patch.object(threads, "PYTORCHS", 64):
            assert default_threads() == MOST == 16
            assert share(default_threads(), 4) == 4  # four commands of four networks keep 64 cores busy
        with mock.patch.object(threads, "PYTORCHS", 3):
            assert default_threads() == 3


@pytest.mark.parametrize(
    "cores, runs, each, workers", [(2, 4, 1, 2), (2, 1, 2, 1), (1, 4, 1, 1), (8, 3, 2, 3), (5, 2, 2, 2), (3, 8, 1, 3)]
)
def test_cores_are_shared_out(cores, runs, each, workers):
    assert share(cores, runs) == each
    assert SideBySide(cores, [each] * runs).workers == workers


def test_runs_on_more_threads_are_fewer_at_a_time():
    assert SideBySide(4, [2, 1, 1]).workers == 2
    assert SideBySide(2, [2, 1, 1]).workers == 1
    assert SideBySide(2, [4]).workers == 1


# --- Side by side ----------------------------------------------------------------------------------------------------


class Run:
    """What is needed of a run."""

    def __init__(self, threads: int) -> None:
        self.threads = threads


def test_two_runs_are_computed_at_the_same_time_and_each_in_order():
    runs, done = [Run(1), Run(1), Run(1)], []
    group = SideBySide(2, [1, 1, 1])
    meeting = threading.Barrier(2)
    for one in runs[:2]:
        group.start(one, lambda: meeting.wait(timeout=30))  # neither ends without the other
    for step in range(20):
        for i, one in enumerate(runs):
            group.start(one, lambda i=i, step=step: done.append((i, step, torch.get_num_threads())))
    group.wait()
    assert [[step for i, step, _ in done if i == number] for number in range(3)] == [list(range(20))] * 3
    assert {threads for *_, threads in done} == {1}
    group.close()


def test_a_run_is_at_most_two_steps_behind():
    one, other, go, done = Run(1), Run(1), threading.Event(), []
    group = SideBySide(2, [1, 1])
    group.start(one, lambda: go.wait(timeout=30))
    group.start(one, lambda: done.append(1))
    third = threading.Thread(target=group.start, args=(one, lambda: done.append(2)))
    third.start()
    third.join(timeout=0.2)
    assert third.is_alive()
    go.set()
    third.join(timeout=30)
    group.start(other, lambda: None)
    group.wait()
    assert done == [1, 2]
    group.close()


@pytest.mark.parametrize("cores", [1, 2])
def test_an_error_reaches_whoever_waits(cores):
    group = SideBySide(cores, [1, 1])

    def compute() -> None:
        group.start(Run(1), mock.Mock(side_effect=RuntimeError("no such layer")))
        group.wait()

    with pytest.raises(RuntimeError, match="no such layer"):
        compute()
    group.close()


def threads_of(folder: Path) -> int:
    return read_run(folder).environment["threads"]


@pytest.mark.parametrize("command", [FOUR, "MyFramework.py --optimizer adam adamw rmsprop"])
def test_side_by_side_has_the_bits_of_each_alone_on_its_threads(command, synthetic_data, tmp_path):
    """Dropout, partial last batches and partial evaluation batches included."""
    sizes = {"width": 0.03, "batch_size": 50, "train_size": 130, "test_size": 60, "epochs": 2}
    words, flag, *values = command.partition(" --lrs" if "--lrs" in command else " --optimizer")
    values = values[0].split()
    together = run(command, synthetic_data, tmp_path / "together", threads=2, **sizes)
    assert len(together) == len(values)
    for value in values:
        run(f"{words}{flag} {value}", synthetic_data, tmp_path / "alone", threads=1, **sizes)
    assert {threads_of(folder) for folder in together.values()} == {1}
    assert differences(content(tmp_path / "together"), content(tmp_path / "alone")) == []


def test_the_number_of_threads_is_kept(synthetic_data):
    """Convolutions on two threads add up in another order than on one; so many images that both are at work."""
    size = {"train_size": 150, "test_size": 60}
    more = ("--lrs", "1e-3", "--width", "0.25", "--batch-size", "50", "--epochs", "2")

    def train(results: Path, threads: int, *other: str) -> str:
        argv = flags(synthetic_data, *more, "--threads", str(threads), "--results", results, *other, **size)
        ended = Training(argv).wait()
        assert (ended.status, ended.err) == (0, "")
        return ended.out

    with folder_in_memory() as whole, folder_in_memory() as continued, folder_in_memory() as one:
        train(whole, 2)
        train(one, 1)
        train(continued, 2, "--epochs", "1")
        assert "continues with the 2 threads that it began with" in train(continued, 1)
        folder = next(continued.glob("*/*/*/config.json")).parent
        assert threads_of(folder) == 2
        assert differences(content(continued), content(whole)) == []
        assert differences(content(one), content(whole)) != []


# --- Precision -------------------------------------------------------------------------------------------------------


def test_bf16_needs_hardware_and_a_faster_convolution(monkeypatch):
    monkeypatch.setattr(device, "has_bf16", has_bf16)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": False, "amx_bf16": False, "avx2": True})
    assert not has_bf16()
    bf16_pays.cache_clear()
    assert not bf16_pays(0.01)
    for name in ("avx512_bf16", "amx_bf16", "bf16"):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda name=name: {name: True})
        assert has_bf16()
    # A gain of a third, of a fifteenth, none.
    for slow, fast, pays in ((torch.float32, 0.02, True), (torch.float32, 0.028, False), (torch.bfloat16, 0.02, False)):
        clock = Clock(slow, fast)
        monkeypatch.setattr(device.time, "perf_counter", clock)
        monkeypatch.setattr(device.F, "conv2d", clock.convolution)
        bf16_pays.cache_clear()
        assert bf16_pays() is pays
    bf16_pays.cache_clear()


class Clock:
    """A clock that only convolutions move."""

    def __init__(self, slow: torch.dtype, fast: float) -> None:
        self.now, self.slow, self.fast, self.conv2d = 0.0, slow, fast, nn.functional.conv2d

    def __call__(self) -> float:
        return self.now

    def convolution(self, images, weights, **more):
        assert images.dtype == weights.dtype
        self.now += 0.03 if images.dtype == self.slow else self.fast
        return self.conv2d(images, weights, **more)


@pytest.mark.parametrize("here, elsewhere", [("bf16", "fp32"), ("fp32", "bf16")])
def test_auto_is_recorded_and_kept(here, elsewhere, synthetic_data, tmp_path, monkeypatch, capsys):
    sizes = {"width": 0.03, "batch_size": 50, "train_size": 100, "test_size": 50}
    monkeypatch.setattr(device, "bf16_pays", lambda: here == "bf16")
    (folder,) = run("MyVGG.py", synthetic_data, tmp_path, epochs=1, **sizes).values()
    assert f", {here}\n" in capsys.readouterr().out
    assert read_run(folder).settings["precision"] == here
    assert folder.name == "adam-lr1e-3-wd1e-4-seed0-width0.03-batch50-train100-test50"
    monkeypatch.setattr(device, "bf16_pays", lambda: here != "bf16")
    run("MyVGG.py", synthetic_data, tmp_path, epochs=2, **sizes)
    assert f", {here}\n" in capsys.readouterr().out
    assert len(table(folder / "epochs.csv")["epoch"]) == 2
    # A complete run stays what it is beside a new one; the network that is evaluated computes as it was trained.
    run("MyVGG.py --lrs 1e-3 1e-4", synthetic_data, tmp_path, epochs=2, **sizes)
    assert f", {elsewhere}\n" in capsys.readouterr().out
    run(f"MyVGG.py --evaluate {folder}", synthetic_data, tmp_path)
    assert f"50 test images, {here}\n" in capsys.readouterr().out


@pytest.mark.parametrize("hardware, named", [(True, ("fp32",)), (False, ("bf16",))])
def test_a_precision_that_is_not_the_processors_is_named(hardware, named, synthetic_data, tmp_path, monkeypatch):
    """Whatever a measurement says; it is not taken."""
    monkeypatch.setattr(device, "has_bf16", lambda: hardware)
    monkeypatch.setattr(device, "bf16_pays", mock.Mock(side_effect=AssertionError))
    sizes = {"width": 0.03, "batch_size": 50, "train_size": 100, "test_size": 50, "epochs": 1}
    name = "adam-lr1e-3-wd1e-4-seed0-width0.03-batch50-train100-test50"
    for precision in ("fp32", "bf16"):
        (folder,) = run(f"MyVGG.py --precision {precision}", synthetic_data, tmp_path / precision, **sizes).values()
        assert folder.name == (f"{name}-{precision}" if precision in named else name)


# --- Merged convolutions ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bn", [False, True])
def test_first_1x1_convolutions_in_one_are_what_they_are_apart(bn):
    torch.manual_seed(0)
    layers = [nn.BatchNorm2d(4)] if bn else []
    branches = Branches([
        nn.Sequential(nn.Conv2d(6, 4, 1)),
        nn.Sequential(nn.Conv2d(6, 4, 1), *layers, nn.ReLU(inplace=True), nn.Conv2d(4, 5, 3, padding=1)),
        nn.Sequential(nn.MaxPool2d(3, 1, padding=1), nn.Conv2d(6, 2, 1)),
        nn.Sequential(nn.Conv2d(6, 3, 1, stride=2)),  # another output size: not together with the others
        nn.Sequential(nn.Conv2d(6, 3, 3, padding=1)),
    ])  # fmt: skip
    other = nn.Sequential(nn.Conv2d(6, 7, 1))
    branches.extend([Gated(nn.Conv2d(6, 6, 1)), nn.Sequential(nn.Conv2d(6, 2, 1)), nn.Sequential(nn.Conv2d(6, 2, 1))])
    seen_by_hooks = []
    branches[6][0].register_forward_hook(lambda *call: seen_by_hooks.append(call))
    nn.utils.prune.l1_unstructured(branches[7][0], "weight", 0.5)
    x = torch.randn(3, 6, 8, 8)
    with mock.patch.object(nn.functional, "conv2d", side_effect=nn.functional.conv2d) as conv2d:
        given = [x.clone().requires_grad_() for _ in range(2)]
        together = branches(given[0], other)
        seen = [tuple(call.args[1].shape) for call in conv2d.call_args_list]
    apart = [branch(given[1]) for branch in [*branches, other]]
    assert (15, 6, 1, 1) in seen  # 4 + 4 + 7 channels
    assert len(seen_by_hooks) == 2
    weights = [*branches.parameters(), *other.parameters()]
    gradients = [
        torch.autograd.grad(sum((y.sin() * (i + 1)).sum() for i, y in enumerate(outputs)), [source, *weights])
        for outputs, source in ((together, given[0]), (apart, given[1]))
    ]
    for one, two in [*zip(together, apart, strict=True), *zip(*gradients, strict=True)]:
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-5)


class Gated(nn.Sequential):
    """Computes something else than its layers one after the other."""

    def forward(self, x):
        return x * super().forward(x)


# --- Beside other programs -------------------------------------------------------------------------------------------


def python(code: str, **more: str) -> str:
    environment = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")} | more
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.strip()


SPIN = "import os; print(os.environ.get('GOMP_SPINCOUNT'), os.environ.get('OMP_WAIT_POLICY'))"
# What is loaded at the moment when PyTorch is.
WATCH = """
import os, sys
class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print(os.environ.get("GOMP_SPINCOUNT"))
            sys.meta_path.remove(self)
sys.meta_path.insert(0, Watch())
"""


# The imports of its script.
README = (
    "exec(next(s for s in open('README.md').read().split('```python\\n') if '\\n@network' in s).split('@network')[0])"
)


@pytest.mark.parametrize(
    "entry", [README, "import MyVGG", "import MyFramework", "import landscape; import cifar_lab.training.script",
              "import cifar_lab.reproduce, cifar_lab.networks", "import bench.bench",
              "sys.path.append('tests'); import conftest"],
)  # fmt: skip
def test_every_entry_says_how_threads_wait_before_torch_is_loaded(entry):
    assert python(WATCH + entry).splitlines()[0] == "20000"


def test_what_the_user_sets_holds():
    assert python("import cifar_lab;" + SPIN, GOMP_SPINCOUNT="7") == "7 None"
    assert python("import cifar_lab;" + SPIN, OMP_WAIT_POLICY="ACTIVE") == "None ACTIVE"


@pytest.mark.parametrize("first, said", [("torch", True), ("cifar_lab", False)])
def test_torch_loaded_first_is_said_once(first, said, synthetic_data, tmp_path):
    argv = flags(synthetic_data, "--epochs", "1", "--results", tmp_path)
    out = python(f"import {first}, MyVGG; MyVGG.main({argv!r})")
    assert out.count("PyTorch was imported before cifar_lab") == said

"""The CUDA path without a GPU: capture, replay and lockstep on a stand-in for `torch.cuda` (`cuda_stand_in.py`).

A training with CUDA graphs leaves what an eager one leaves, bit for bit, and nothing that a graph is bound to moves.
Every kind of fault that these tests are there for is planted once, and is seen.
"""

import inspect
import io
import itertools
import signal
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from cuda_stand_in import StandIn
from synthetic import write_synthetic
from torch import Tensor, nn
from trainings import content, differences

import MyFramework
import MyVGG
from cifar_lab.networks import NETWORKS, Branches, Network, StepDropout
from cifar_lab.run_folder.reader import find_run_folders, read_run
from cifar_lab.settings import Settings
from cifar_lab.training import capture, group, loader, run, script

# An epoch is 4 whole batches and one of 7 images; 23 test images.
SHARED = {
    "--device": "cuda", "--precision": "fp32", "--batch-size": "10", "--train-size": "47",
    "--test-size": "23", "--epochs": "2", "--checkpoint-seconds": "1000",
}  # fmt: skip
ALONE = ("--optimizer", "adam")
GROUP = ("--optimizer", "adam", "sgd", "--momentum", "0.9", "--lrs", "1e-2")
LEARNING_RATES = ("--lrs", "1e-2", "3e-3")
SCHEDULE = (*GROUP, "--schedule", "one-cycle", "--warmup", "1")
NADAM = ("--optimizer", "nadam")
AVERAGE = (*ALONE, "--ema", "0.9")
GROWING = (*ALONE, "--first-size", "24")


class Small(nn.Module):
    """Trains in milliseconds and has what a capture must keep: branches, running statistics, and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.branches = Branches([
            nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)),
            nn.Sequential(nn.MaxPool2d(3, 1, padding=1), nn.Conv2d(3, 2, 1), nn.ReLU(inplace=True)),
        ])  # fmt: skip
        self.head = nn.Sequential(nn.Flatten(), StepDropout(0.5), nn.Linear(96, 10))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(torch.cat(self.branches(nn.functional.adaptive_avg_pool2d(images, 4)), dim=1))


FALLBACK = "no CUDA graph, training continues without one: "
NARROW = ["--width", "0.03"]
SCRIPTS = {  # of each network: settings, script, `train`, and flags
    "small": (Settings, __file__, MyVGG.train, []),
    "vgg_a": (MyVGG.VGGSettings, MyVGG.__file__, MyVGG.train, NARROW),
    "vgg_a_bn": (MyVGG.VGGSettings, MyVGG.__file__, MyVGG.train, [*NARROW, "--bn"]),
} | {
    name: (MyFramework.InceptionSettings, MyFramework.__file__, MyFramework.train, [*NARROW, "--model", name])
    for name in ("inception", "inception_res")
}


# --- A training, and what is wrong with it ---------------------------------------------------------------------------


@dataclass
class Trained:
    """What a training leaves, says, and does wrong."""

    results: Path
    status: int = 0
    out: str = ""
    err: str = ""
    complaints: list[str] = field(default_factory=list)  # their first word is the kind
    replays: list[int] = field(default_factory=list)  # of each graph
    streams: list[int] = field(default_factory=list)
    counters: list[tuple[int, ...]] = field(default_factory=list)  # before each replay
    rates: list[tuple[float, ...]] = field(default_factory=list)  # the learning rates before each replay
    events: list[tuple[str, int]] = field(default_factory=list)


def live(runs: list, batches: loader.Loader) -> dict[str, Tensor]:
    """Every tensor that a step reads or writes and that outlives it, by a name."""
    found = {"index": batches.index, "step": batches.step}
    for one in runs:
        modules = {f"{at}.{name}": tensor for at, module in one.model.named_modules()
                   for name, tensor in [*module._parameters.items(), *module._buffers.items()]}  # fmt: skip
        state = {
            f"{i} {name}": value
            for i, parameter in enumerate(one.model.parameters())
            for name, value in one.optimizer.state[parameter].items()
        }
        own = modules | state | {"losses": one.losses, "correct": one.correct}
        own |= {f"averaged {name}": tensor for name, tensor in one.averaged.items()}
        own |= {f"learning rate {i}": group["lr"] for i, group in enumerate(one.optimizer.param_groups)}
        found |= {f"{one.label} {name}": x for name, x in own.items() if isinstance(x, Tensor)}
    return found


class Watch:
    """Looks on as a group of runs is captured and replayed."""

    def __init__(self, cuda: StandIn) -> None:
        self.complaints: list[str] = []
        self._addresses: dict[str, int] = {}
        self._captured: list = []
        self._capture = group.capture
        self.counters: list[tuple[int, ...]] = []
        self.rates: list[tuple[float, ...]] = []
        cuda.before_replay = self.replayed

    def capture(self, step: Callable, advance: Callable, runs: list, counters: list[Tensor]) -> Any:
        before = {name: tensor.clone() for name, tensor in live(runs, self.group.loader).items()}
        graph = self._capture(step, advance, runs, counters)
        self._captured = runs
        after = live(runs, self.group.loader)
        for name, tensor in after.items():
            # The first step makes the optimizers' state; the largest batch a constant of dropout's.
            start = torch.ones_like if name.endswith(" mu_product") else torch.zeros_like
            then = before.get(name, start(tensor))
            if then.shape == tensor.shape and not torch.equal(tensor, then):
                self.complaints.append(f"state: {name} is not what it was before the capture")
            if tensor.untyped_storage().data_ptr() not in graph.addresses:
                self.complaints.append(f"address: {name} is not what the graph uses")
        self._addresses = {name: tensor.data_ptr() for name, tensor in after.items()}
        return graph

    def replayed(self, graph: Any) -> None:
        """Also notes the counters (step within the epoch and over the run, step of each dropout) and the rates."""
        self.compare()
        dropouts = [m for one in self._captured for m in one.model.modules() if isinstance(m, StepDropout)]
        batches = self.group.loader
        self.counters.append((int(batches.index), int(batches.step), *(int(dropout.step) for dropout in dropouts)))
        groups = [group for one in self._captured for group in one.optimizer.param_groups]
        self.rates.append(tuple(float(group["lr"]) for group in groups))

    def compare(self) -> None:
        """Whether everything lies where it lay at the capture."""
        if self._captured:
            now = {name: tensor.data_ptr() for name, tensor in live(self._captured, self.group.loader).items()}
            self.complaints += [f"address: {name} has moved" for name in differences(self._addresses, now)]


Prepare = Callable[[StandIn], Any]


class Trainer:
    """Trains on the stand-in, in this process."""

    def __init__(self, data: Path, folder: Path) -> None:
        self.data = data
        self.folder = folder
        self._eager: dict[tuple, dict] = {}

    def __call__(
        self, *flags: str, network: str = "small", results: Path | None = None, prepare: Prepare = lambda cuda: None
    ) -> Trained:
        """prepare: is given the stand-in before the training starts."""
        settings, file, train, chosen = SCRIPTS[network]
        ended = Trained(results or self.folder / f"results{len(list(self.folder.iterdir()))}")
        words = [*(word for pair in SHARED.items() for word in pair), *chosen, *flags]
        words += ["--data-dir", str(self.data), "--results", str(ended.results)]
        out, err = io.StringIO(), io.StringIO()
        with StandIn() as cuda, redirect_stdout(out), redirect_stderr(err):
            watch = Watch(cuda)
            prepare(cuda)

            def main(argv: list[str]) -> None:
                for watch.group in script.groups(settings, file, argv):
                    train(watch.group)
                    watch.compare()

            with mock.patch.object(group, "capture", watch.capture):
                try:
                    script.run(main, words)
                except SystemExit as end:
                    ended.status = end.code
                except Exception as error:
                    watch.complaints.append(f"error: {error!r}")
        ended.out, ended.err, ended.complaints = out.getvalue(), err.getvalue(), watch.complaints
        ended.replays, ended.events = cuda.replays, cuda.events
        ended.counters, ended.rates = watch.counters, watch.rates
        ended.streams = [graph.streams for graph in cuda.graphs]
        said = [line for line in ended.out.splitlines() if line.startswith(FALLBACK)]
        ended.complaints += [f"graph: {line.removeprefix(FALLBACK)}" for line in said]
        return ended

    def eager(self, *flags: str, network: str = "small") -> dict[str, Any]:
        """What the same command leaves without CUDA graphs. It is kept: to be asked for before a fault is planted."""
        if (network, *flags) not in self._eager:
            ended = self(*flags, "--no-cuda-graph", network=network)
            assert (ended.status, ended.err, ended.replays, ended.complaints) == (0, "", [], [])
            self._eager[network, *flags] = content(ended.results)
        return self._eager[network, *flags]

    def complaints(self, *flags: str, replays: list[int], network: str = "small", **how: Any) -> list[str]:
        """All that is wrong with a training with CUDA graphs, of which each is replayed so often."""
        eager = self.eager(*flags, network=network)
        ended = self(*flags, network=network, **how)
        found = ended.complaints
        if (ended.status, ended.err) != (0, ""):
            found.append(f"error: {ended.err}")
        if ended.replays != replays:
            found.append(f"replays: {ended.replays}")
        return found + [f"logs: {name}" for name in differences(content(ended.results), eager)]


@pytest.fixture(scope="module")
def training(tmp_path_factory) -> Iterator[Trainer]:
    data = write_synthetic(tmp_path_factory.mktemp("data"), train=60, test=30)
    small = Network("small", "small", None, lambda: Small(), {}, Path(__file__).resolve())
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with mock.patch.object(group, "matmul_rate", return_value=1e12), mock.patch.dict(NETWORKS, {"small": small}):
        yield Trainer(data, tmp_path_factory.mktemp("trained"))
    torch.set_num_threads(threads)


def plant(owner: Any, name: str, old: str, new: str) -> Any:
    """Replaces a function by one in whose source `new` stands in the place of `old`."""
    function = getattr(owner, name)
    source = textwrap.dedent(inspect.getsource(function))
    assert source.count(old) == 1, f"the source of {name} has changed: {old!r}"
    made: dict[str, Any] = {}
    exec(compile(source.replace(old, new), inspect.getfile(function), "exec"), function.__globals__, made)
    return mock.patch.object(owner, name, made[function.__name__])


# --- The stand-in holds what it promises -----------------------------------------------------------------------------


def test_a_capture_does_nothing_and_a_replay_works_on_the_same_memory():
    with StandIn() as cuda:
        x, factor = torch.ones(3, device="cuda"), 2.0
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=torch.cuda.Stream()):
            y = x * factor
            x += 1
        assert x.tolist() == [1, 1, 1]
        assert y.isnan().all()
        memory, x, factor = x, x + 10, 3.0
        graph.replay()
        assert y.tolist() == [2, 2, 2]
        assert memory.tolist() == [2, 2, 2]
        assert x.tolist() == [11, 11, 11]
        memory.fill_(5)
        graph.replay()
        assert y.tolist() == [10, 10, 10]
    assert cuda.replays == [2]


def test_a_backward_pass_is_captured_too():
    with StandIn():
        w = torch.tensor([3.0, 4.0], device="cuda", requires_grad=True)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            (w**2).sum().backward()
        assert w.grad.isnan().all()
        graph.replay()
        assert w.grad.tolist() == [6, 8]
        with torch.no_grad():
            w.copy_(torch.tensor([1.0, -1.0]))
        graph.replay()
        assert w.grad.tolist() == [2, -2]


READS = {
    "item": lambda x: x.sum().item(),
    "bool": lambda x: bool(x.sum() > 0),
    "float": lambda x: float(x[0]),
    "tolist": lambda x: x.tolist(),
    "numpy": lambda x: x.numpy(),
    "cpu": lambda x: x.cpu(),
    "to": lambda x: x.to("cpu"),
    "to device": lambda x: x.to(device=torch.device("cpu")),
    "nonzero": lambda x: x.nonzero(),
    "index by a mask": lambda x: x[x > 0],
    "equal": lambda x: torch.equal(x, x),
    "from the host": lambda x: torch.tensor(1.0, device="cuda"),
    "synchronize": lambda x: torch.cuda.synchronize(),
    "event": lambda x: torch.cuda.Event().synchronize(),
}


@pytest.mark.parametrize("name", READS)
def test_the_host_must_not_wait_in_a_capture(name):
    def captured() -> None:
        with torch.cuda.graph(torch.cuda.CUDAGraph()):
            READS[name](x)

    with StandIn() as cuda:
        x = torch.ones(3, device="cuda")
        READS[name](x)  # outside it may
        with pytest.raises(RuntimeError, match="previous error during capture") as raised:
            captured()
        assert "not permitted when stream is capturing" in str(raised.value.__context__)
        assert cuda.graphs == []


def on_two_streams(fork: bool = True, join: bool = True, late: bool = False) -> None:
    """Captures work of which the second stream's part comes after that of the first, and before the rest of it."""
    x, main, side = torch.ones(3, device="cuda"), torch.cuda.Stream(), torch.cuda.Stream()
    with torch.cuda.graph(torch.cuda.CUDAGraph(), stream=main):
        y = x + 1
        if fork:
            side.wait_stream(main)
        with torch.cuda.stream(side):
            z = y + 1
        if late:
            y *= 2
        if join:
            main.wait_stream(side)
        z *= 2


def test_the_streams_of_a_capture_are_forked_from_it_and_joined():
    with StandIn() as cuda:
        on_two_streams()
        assert len(cuda.graphs) == 1
        with pytest.raises(RuntimeError, match="unjoined work"):
            on_two_streams(join=False)
        with pytest.raises(RuntimeError, match="previous error during capture") as raised:
            on_two_streams(fork=False)
        assert "uncaptured work in another stream" in str(raised.value.__context__)
        with pytest.raises(AssertionError, match=r"use the same memory: \['mul_'"):
            on_two_streams(late=True)  # y changes while the other stream reads it
        assert len(cuda.graphs) == 1


@pytest.mark.parametrize("fork, join", [(True, True), (False, True), (True, False)])
def test_streams_that_work_outside_of_a_capture_wait_for_one_another(fork, join):
    with StandIn():
        x, side = torch.ones(3, device="cuda"), torch.cuda.Stream()
        if fork:
            side.wait_stream(torch.cuda.current_stream())
        with nullcontext() if fork and join else pytest.raises(AssertionError, match="a stream does not wait for"):
            with torch.cuda.stream(side):
                x += 1
            if join:
                torch.cuda.current_stream().wait_stream(side)
            x += 1


# --- Graphs against eager --------------------------------------------------------------------------------------------

SHORT = "--train-size 27 --test-size 13"  # 2 whole batches and one of 7 images


@pytest.mark.parametrize(
    "command",
    [
        "vgg_a --lrs 1e-3 5e-4",
        "vgg_a_bn --lrs 1e-3 --precision bf16",
        "vgg_a_bn --lrs 1e-2 --optimizer adam sgd --momentum 0.9",
        "inception --precision bf16",
        "inception --optimizer sgd rmsprop --momentum 0.9",
        "inception_res --optimizer rmsprop",
        "inception_res --optimizer adam adamw",
    ],
)
def test_graphs_leave_what_eager_steps_leave(command, training):
    """Each parameter, buffer, optimizer state and counter stays at its address, and is untouched by the capture."""
    network, *flags = command.split()
    assert training.complaints(*SHORT.split(), *flags, network=network, replays=[4]) == []


@pytest.mark.parametrize(
    "flags, replays",
    [
        ("--optimizer rmsprop adamw adam sgd --lrs 1e-2 3e-3", [8]),
        ("--optimizer adam sgd --seed 3 5", [8, 8]),  # a group of each seed
        ("--optimizer adam adamw sgd rmsprop --schedule cosine --warmup 0.5 --no-bias-decay", [8]),
        ("--optimizer nadam radam adamax adadelta adagrad --lrs 1e-2", [8]),
        ("--optimizer nadam radam adamax adadelta adagrad --schedule cosine --warmup 0.5", [8]),
        ("--optimizer adam --warmup 1 --loss mse", [8]),
        ("--optimizer adam sgd --schedule one-cycle --loss hinge", [8]),
        ("--optimizer adam sgd --schedule step --loss focal", [8]),
        ("--optimizer adam --loss label_smoothing", [8]),
        ("--optimizer muon adamw --lrs 1e-2 --schedule cosine", [8]),
        ("--optimizer adam sgd --lrs 1e-2 --ema 0.9 --cutout 12 --mixup 0.5", [8]),
        ("--optimizer adam --ema 0.99 --bn-images 20 --test-time-flip --mixup 1", [8]),
        ("--optimizer adam sgd --first-size 24 --mixup 0.2", [4, 4]),
        ("--optimizer adam sgd --batch-size 46 --no-augment", [2]),  # a last batch of one image
        ("--optimizer adam sgd --batch-size 47", [2]),  # no partial batch
        ("--optimizer adam sgd --batch-size 60", []),  # nothing but a partial batch
        ("--optimizer adam sgd --probe-every 3", [8]),
        ("--optimizer adam sgd --checkpoint-seconds 0 --no-channels-last --precision tf32", [8]),
    ],
)
def test_graphs_leave_what_eager_steps_leave_however_the_steps_lie(flags, replays, training):
    assert training.complaints(*flags.split(), replays=replays) == []


def test_replays_find_the_counters_at_their_step_after_a_partial_batch_too(training):
    found = training(*GROUP).counters
    assert found == [(0, 0, 0, 0), (1, 1, 1, 1), (2, 2, 2, 2), (3, 3, 3, 3),
                     (0, 5, 5, 5), (1, 6, 6, 6), (2, 7, 7, 7), (3, 8, 8, 8)]  # fmt: skip


def test_a_graph_has_a_stream_for_each_run_of_a_group_or_for_each_branch_of_a_run_alone(training):
    assert training(*ALONE, "--epochs", "1").streams == [1 + 2]
    assert training("--optimizer", "adam", "sgd", "rmsprop", "--epochs", "1").streams == [1 + 3]


def test_probes_between_replays_disturb_nothing(training):
    """Eager steps and replays leave the same with probes, says the test above."""
    plain, probed = (training.eager(*GROUP, *more) for more in ([], ["--probe-every", "3"]))
    for name in ("steps.csv", *(f"checkpoint.pt model {x}" for x in ("head.2.weight", "branches.0.1.running_mean"))):
        one, other = ([v for k, v in found.items() if k.endswith(f": {name}")] for found in (plain, probed))
        assert len(one) == 2
        assert one == other


def test_the_path_on_a_gpu_agrees_with_the_path_on_a_cpu(training):
    """On a GPU an epoch is augmented ahead, here in pieces that divide neither it nor a batch."""
    with mock.patch.object(loader, "AHEAD", 16):
        gpu = training(*GROUP)
    cpu = training(*GROUP, "--device", "cpu")
    assert (gpu.replays, cpu.replays) == ([8], [])
    folders = [find_run_folders(ended.results) for ended in (gpu, cpu)]
    assert len(folders[0]) == 2
    for one, other in zip(*folders, strict=True):
        one, other = read_run(one), read_run(other)
        assert len(one.losses) == 10
        assert np.ptp(one.losses) > 0.2
        # Another batch size can be another order of summation; no difference was seen.
        np.testing.assert_allclose(one.losses, other.losses, rtol=0, atol=1e-4)
        for column in ("train_loss", "test_loss"):
            np.testing.assert_allclose(one.epochs[column], other.epochs[column], rtol=0, atol=1e-4)
        for column in ("train_accuracy", "test_accuracy"):
            assert one.epochs[column].tolist() == other.epochs[column].tolist()


def before_replay(number: int, do: Callable[[], Any]) -> Prepare:
    """Does something before a replay, counted from 1."""

    def prepare(cuda: StandIn) -> None:
        look, numbers = cuda.before_replay, itertools.count(1)

        def before(graph: Any) -> None:
            look(graph)
            if next(numbers) == number:
                do()

        cuda.before_replay = before

    return prepare


def resumed(training: Trainer, results: Path, stop: int, replays: list[int], flags: Sequence[str] = GROUP) -> list[str]:
    """What is wrong with a training that a signal ends at a replay, and that the same command continues."""
    stopped = training(*flags, results=results, prepare=before_replay(stop, lambda: signal.raise_signal(signal.SIGINT)))
    assert (stopped.status, stopped.complaints, stopped.replays) == (130, [], [stop])
    return training.complaints(*flags, results=results, replays=replays)


# After 4 and after 8 steps, the next one is that of the partial batch, outside a graph.
@pytest.mark.parametrize("stop, replays", [(2, [6]), (3, [5]), (4, [4]), (7, [1]), (8, [])])
def test_a_run_resumed_in_mid_epoch_leaves_what_an_uninterrupted_one_leaves(stop, replays, training, results):
    assert resumed(training, results, stop, replays) == []


@pytest.mark.parametrize("stop, replays", [(2, [6]), (4, [4]), (7, [1])])
def test_a_schedule_is_resumed_in_mid_epoch(stop, replays, training, results):
    assert resumed(training, results, stop, replays, SCHEDULE) == []


def test_a_replay_has_the_learning_rate_of_its_step(training):
    """Cosine over 10 steps, of which 8 are replayed; before each replay the rates are those of the step before it."""
    found = training("--optimizer", "adam", "sgd", "--lrs", "1e-2", "--schedule", "cosine")
    assert (found.complaints, found.replays) == ([], [8])
    expected = [0.01] + [0.01 * (1 + np.cos(np.pi * step / 10)) / 2 for step in (0, 1, 2, 4, 5, 6, 7)]
    for of_run in zip(*found.rates, strict=True):
        np.testing.assert_allclose(of_run, expected, rtol=1e-6)


def one_ahead(training: Trainer, results: Path) -> list[str]:
    """What is wrong with two trainings of which one is ahead by an epoch and waits until the other has caught up."""
    assert training(*LEARNING_RATES[:2], "--epochs", "1", results=results).replays == [4]
    return training.complaints(*LEARNING_RATES, results=results, replays=[4, 4])


def test_runs_that_meet_are_captured_together(training, results):
    assert one_ahead(training, results) == []


# 9 whole batches an epoch; the loss is read after each step.
SGD = ("--optimizer", "sgd", "--batch-size", "5", "--checkpoint-seconds", "0")
DIVERGING = (*SGD, "--lrs", "1e-2", "1e6", "3e-3")


def test_the_others_of_a_group_go_on_without_a_run_that_diverges(training):
    """They are captured anew."""
    found = training(*DIVERGING)
    first, second = found.replays
    assert (found.complaints, first + second, first < 9) == ([], 2 * 9, True)
    assert f"lr 1e+6: diverged: the training loss at step {first} is not finite" in found.out
    left = content(found.results)
    assert len({name.partition(": ")[0] for name in left}) == 3
    without = training.eager(*SGD, "--lrs", "1e-2", "3e-3")
    assert [name for name in without if left[name] != without[name]] == []


def in_capture(do: Callable[[], Any], number: int) -> Prepare:
    """Does something before an operation of a capture, counted from 0."""
    return lambda cuda: setattr(cuda, "before_captured", lambda n: do() if n == number else None)


def out_of_memory() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")


def two_signals() -> None:
    signal.raise_signal(signal.SIGINT)
    time.sleep(0.55)
    signal.raise_signal(signal.SIGINT)


ENDS = {  # what ends a program, its exit status, and its last line
    "out of memory": (out_of_memory, 71, "out of memory (CUDA out of memory. Tried to allocate 20.00 MiB.); a smaller"),
    "two signals": (two_signals, 130, "stopped at once; the same command continues from the last checkpoint"),
}


def ended_in_capture(training: Trainer, flags: Sequence[str], end: str, operation: int) -> list[str]:
    """What is wrong with how a program ends that has to end at an operation of a capture."""
    do, status, said = ENDS[end]
    ended = training(*flags, prepare=in_capture(do, operation))
    one_line = ended.err.count("\n") == 1 and said in ended.err
    return [*ended.complaints, *([] if one_line and ended.status == status else [f"end: {ended.status}, {ended.err}"])]


# The first operation; one in a branch of the network, or of a run that others run beside; one of the backward pass.
@pytest.mark.parametrize("operation", [0, 25, 65])
@pytest.mark.parametrize("flags", [ALONE, GROUP], ids=["alone", "lockstep"])
@pytest.mark.parametrize("end", ENDS)
def test_what_ends_a_program_in_a_capture_is_not_taken_for_a_missing_graph(end, flags, operation, training):
    assert ended_in_capture(training, flags, end, operation) == []


def test_without_a_graph_training_goes_on_and_says_why(training):
    def fail() -> None:
        raise RuntimeError("no such kernel\nmore of it")

    for flags in (ALONE, GROUP, DIVERGING):  # of the last, also those that are left are not captured
        ended = training(*flags, prepare=in_capture(fail, 25))
        assert (ended.status, ended.complaints, ended.replays) == (0, ["graph: no such kernel"], [])
        assert "more of it" not in ended.out
        assert differences(content(ended.results), training.eager(*flags)) == []


def test_the_host_is_at_most_four_marks_ahead(training):
    with mock.patch.object(group, "IN_FLIGHT", 2):
        ended = training("--epochs", "1", "--batch-size", "2")  # 24 steps: a mark after each of 0, 2, ... 22
    assert (ended.complaints, ended.replays) == ([], [23])
    assert "to go, from the first 20 steps" in ended.out
    first = [("record", n) for n in range(4)]
    assert ended.events == first + [pair for n in range(4, 12) for pair in (("record", n), ("synchronize", n - 4))]


# --- Each kind of fault, planted -------------------------------------------------------------------------------------

SCENARIOS = {
    "alone": lambda training, results: training.complaints(*ALONE, replays=[8]),
    "group": lambda training, results: training.complaints(*GROUP, replays=[8]),
    "resumed": lambda training, results: resumed(training, results, 7, [1]),
    "schedule": lambda training, results: training.complaints(*SCHEDULE, replays=[8]),
    "nadam": lambda training, results: training.complaints(*NADAM, replays=[8]),
    "average": lambda training, results: training.complaints(*AVERAGE, replays=[8]),
    "growing": lambda training, results: training.complaints(*GROWING, replays=[4, 4]),
    "schedule resumed": lambda training, results: resumed(training, results, 7, [1], SCHEDULE),
    "one ahead": one_ahead,
    "out of memory": lambda training, results: ended_in_capture(training, GROUP, "out of memory", 25),
}
FAULTS = {  # scenario; function, and what is replaced in it; first word of a complaint
    # What a graph is bound to moves.
    "parameters in new memory": (
        "group", capture, "_restore", "load_state_dict(weights)",
        "load_state_dict(weights); run.model.double().float()", "address",
    ),
    "other parameters": (
        "group", capture, "_restore", "load_state_dict(weights)", "load_state_dict(weights, assign=True)", "address",
    ),
    "optimizer state in new tensors": (
        "group", capture, "_restore", "tensor.copy_(before[name]) if name in before else tensor.fill_(name in ones)",
        "run.optimizer.state[parameter][name] = before.get(name, torch.zeros_like(tensor))", "address",
    ),
    "optimizer state loaded after the capture": (
        "group", capture, "_restore", "load_state_dict(weights)",
        "load_state_dict(weights); run.optimizer.load_state_dict(optimizer)", "logs",
    ),
    "optimizer state made in the capture": ("group", group, "capture", "range(WARM_UP)", "range(0)", "logs"),
    "a counter in a new tensor each epoch": (
        "group", loader.Loader, "start_epoch", "self.index.fill_(step)", "self.index = torch.tensor(step)", "address",
    ),
    "a counter in a new tensor each step": (
        "group", loader.Loader, "advance", "self.step += 1", "self.step = self.step + 1", "address",
    ),
    "the order in a new tensor each epoch": (
        "group", loader.Loader, "start_epoch", "self._order.copy_(order)", "self._order = order", "logs",
    ),
    "losses in a new tensor each epoch": (
        "group", run.TrainingRun, "end_epoch", "self.position.end_epoch()",
        "self.position.end_epoch(); self.losses = self.losses.clone()", "address",
    ),
    "the step of dropout copied": ("group", StepDropout, "follow", "= step, seed", "= step.clone(), seed", "logs"),
    # A capture leaves traces.
    "weights not put back": ("group", capture, "_restore", "run.model.load_state_dict(weights)", "pass", "state"),
    "optimizer state not put back": (
        "group", capture, "_restore", "tensor.copy_(before[name]) if name in before else tensor.fill_(name in ones)",
        "pass", "state",
    ),
    "all optimizer state from 0": (
        "nadam", capture, "_restore", "tensor.fill_(name in ones)", "tensor.zero_()", "logs",
    ),
    "losses not put back": ("group", group, "capture", "(run.losses, ", "(", "state"),
    "counters not put back": (
        "group", group, "capture", "zip(kept, before, strict=True)", "[*zip(kept, before, strict=True)][2:]", "state",
    ),
    # What is replayed.
    "a partial batch": (
        "group", group.Lockstep, "accelerate", " and batch.size == self.loader.batch_size", "", "replays",
    ),
    "the graph of another group": (
        "one ahead", group.Lockstep, "accelerate", "*(run.label for run in batch.runs)", "", "replays",
    ),
    "a new graph each step": ("group", group.Lockstep, "accelerate", "if key not in graphs", "if True", "replays"),
    "nothing": ("group", group.Lockstep, "accelerate", "if graph is not None", "if False", "replays"),
    "the same batch": ("group", group.Lockstep, "accelerate", "self.loader.advance,", "lambda: None,", "logs"),
    "a batch beyond the epoch, to warm up": ("resumed", group, "capture", "counter.copy_(value)", "pass", "error"),
    # The learning rate.
    "a learning rate in a new tensor each step": (
        "schedule", run.TrainingRun, "set_rates", "torch.mul(factor, full, out=rate)",
        "self.optimizer.param_groups[0]['lr'] = factor * full", "address",
    ),
    "the learning rate of the capture": ("schedule", run.TrainingRun, "set_rates", "if self.rates", "if False", "logs"),
    "a learning rate that the host looks up": (
        "schedule", run.TrainingRun, "set_rates", "torch.mul(factor, full, out=rate)",
        "rate.fill_(float(factor) * full)",
        "graph",
    ),
    "the learning rate of the step within the epoch": (
        "schedule", run.TrainingRun, "set_rates", "self._step", "self._loader.index", "logs",
    ),
    "learning rates of a checkpoint in the optimizer": (
        "schedule resumed", run.TrainingRun, "_load_state", "self._hold_rates()", "pass", "logs",
    ),
    "learning rates not put back": ("schedule", group, "capture", " *run.rates,", "", "state"),
    "averages not put back": ("average", group, "capture", ", *run.averaged.values())", ")", "state"),
    "the average of the step within the epoch": (
        "average", run.TrainingRun, "__init__", "ema, self._step)", "ema, loader.index)", "logs",
    ),
    "a graph of another image size": (
        "growing", group.Lockstep, "accelerate", "self.loader.image_size, ", "0, ", "replays",
    ),
    # The host waits, or copies.
    "the loss is read": ("group", MyVGG, "training_step", "loss.backward()", "loss.item(), loss.backward()", "graph"),
    "a value decides": ("group", MyVGG, "training_step", "loss.backward()", "loss > 0 and loss.backward()", "graph"),
    "the step of dropout is read": (
        "group", StepDropout, "forward", "(self.step *", "((self.step if x.is_meta else int(self.step)) *", "graph",
    ),
    "a constant comes from the host": (
        "group", loader.Loader, "batch", "self.index *", "self.index * torch.tensor(1, device='cuda') *", "graph",
    ),
    "an optimizer that cannot be captured": (
        "group", run, "build_optimizer", 'fast["capturable"] = True', "pass", "graph",
    ),
    # Streams.
    "a run not forked": ("group", group, "capture", "self.stream.wait_stream(main)", "pass", "error"),
    "a run not joined": ("group", group, "capture", "main.wait_stream(stream)", "pass", "error"),
    "counters moved on too early": (
        "group", group, "capture", "step(Branch)\n", "step(Branch); advance()\n", "error",
    ),
    "a branch not forked": ("alone", Branches, "forward", "stream.wait_stream(main)", "pass", "graph"),
    "a branch not joined": ("alone", Branches, "forward", "main.wait_stream(stream)", "pass", "graph"),
    "a warm-up that does not wait": (
        "alone", group, "capture", "main.wait_stream(torch.cuda.current_stream())", "pass", "error",
    ),
    "state put back during the warm-up": (
        "alone", group, "capture", "torch.cuda.synchronize()\n        _restore", "_restore", "error",
    ),
    # Out of memory.
    "taken for a missing graph": (
        "out of memory", group.Lockstep, "accelerate", "except torch.OutOfMemoryError", "except KeyError", "end",
    ),
    "hidden by the end of the capture": ("out of memory", group, "capture", "failure or error", "error", "end"),
    # The epoch augmented ahead.
    "a batch too late": ("resumed", loader.Loader, "start_epoch", "arange(step *", "arange((step + 1) *", "logs"),
    "labels of other images": (
        "group", loader.Loader, "batch", " ahead.index_select(0, rows)", " ahead.index_select(0, rows.flip(0))", "logs",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_seen(fault, training, results):
    scenario, owner, name, old, new, kind = FAULTS[fault]
    for flags in (ALONE, GROUP, LEARNING_RATES, SCHEDULE, NADAM, AVERAGE, GROWING):
        training.eager(*flags)
    with plant(owner, name, old, new):
        found = SCENARIOS[scenario](training, results)
    assert kind in {complaint.partition(":")[0] for complaint in found}

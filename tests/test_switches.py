"""The settings that confounds are switched by: what each does, by hand, and that it is part of a run's identity."""

import hashlib
import json

import commands
import numpy as np
import pytest
import recorded
import torch
from torch import nn

import MyFramework
import MyVGG
from cifar_lab.networks import NETWORKS, StepDropout, build
from cifar_lab.optimizers import build_optimizer
from cifar_lab.settings import RunConfig
from cifar_lab.switches import SWITCHES
from cifar_lab.training.plan import epoch_plan, seed_of
from cifar_lab.width import parameter_groups

torch.set_num_threads(1)

CPU = torch.device("cpu")
SIZES = {"train_size": 4, "batch_size": 2, "test_size": 2, "epochs": 1, "width": 0.03}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return recorded.write_numbered(tmp_path_factory.mktemp("numbered"))


# --- Decay of biases and norms ----------------------------------------------------------------------------------------

BN_WEIGHTS = [f"features.{i}.weight" for i in (0, 4, 8, 11, 15, 18, 22, 25)] + [f"head.{i}.weight" for i in (0, 3, 6)]


@pytest.mark.parametrize(
    "optimizer, width, first, hidden, output",
    [
        ("adam", 1.0, 1, 1, 1), ("sgd", 1.0, 1, 1, 1),
        ("adam", 0.125, 8**0.5, 1, 8**-0.5), ("adamw", 0.125, 1, 1 / 8, 1 / 8),  # the factors of the width stay
    ],
)  # fmt: skip
def test_without_bias_decay_only_filters_and_matrices_decay(optimizer, width, first, hidden, output):
    config = RunConfig("vgg_a_bn", optimizer, weight_decay=0.5, bias_decay=False, width=width)
    net = build(config)
    built = build_optimizer(config, parameter_groups(config, net), CPU)
    of = {id(p): group["weight_decay"] for group in built.param_groups for p in group["params"]}
    decays = {name: of[id(p)] for name, p in net.named_parameters()}
    expected = dict.fromkeys(decays, 0.0) | dict.fromkeys(BN_WEIGHTS, 0.5 * hidden)
    expected |= {BN_WEIGHTS[0]: 0.5 * first, BN_WEIGHTS[-1]: 0.5 * output}
    assert len(decays) == 42 and decays == pytest.approx(expected)
    kept = RunConfig("vgg_a_bn", optimizer, weight_decay=0.5, width=width)
    rates = [
        {id(p): group["lr"] for group in parameter_groups(c, net) for p in group["params"]} for c in (config, kept)
    ]
    assert rates[0] == rates[1]


def test_a_step_without_gradient_only_shrinks_what_decays(data, tmp_path):
    """SGD at 0.5 with a decay of 0.1: a weight becomes 0.95 of itself."""
    seen = []

    def shrink(run, images, labels):
        with torch.no_grad():
            run.model[2].bias.fill_(3.0)
        before = run.model[2].weight.clone()
        for p in run.model.parameters():
            p.grad = torch.zeros_like(p)
        run.optimizer.step()
        seen.append((run.model[2].weight / before, run.model[2].bias.clone()))
        return recorded.look(run, images, labels)

    words = "--epochs 1 --optimizer sgd --lrs 0.5 --weight-decay 0.1"
    recorded.train(MyVGG, data, f"{words} --no-bias-decay", recorded.small, shrink, results=tmp_path)
    recorded.train(MyVGG, data, words, recorded.small, shrink)
    (without, bias), *_, (weight, decayed) = seen
    assert without.flatten().tolist() == pytest.approx([0.95] * 120, rel=1e-6)
    assert weight.flatten().tolist() == pytest.approx([0.95] * 120, rel=1e-6)
    assert bias.tolist() == [3.0] * 10 and decayed.tolist() == pytest.approx([3.0 * 0.95] * 10)
    (path,) = tmp_path.rglob("config.json")
    assert "-nobiasdecay-" in path.parent.name
    written = json.loads(path.read_text())
    assert written["settings"]["bias_decay"] is False
    assert written["width_factors"] == [
        {"rate": 1.0, "decay": 1.0, "parameters": "2.weight"}, {"rate": 1.0, "decay": 0.0, "parameters": "2.bias"},
    ]  # fmt: skip


# --- A seed for each learning rate ------------------------------------------------------------------------------------

# numpy.random.SeedSequence((seed, 4, the 64 bits of the rate)).generate_state(1)
RATE_SEEDS = {(0, 1e-2): 3823598094, (0, 1e-3): 2679765745, (1, 1e-2): 3868483327}


@pytest.mark.parametrize("seed, lr", RATE_SEEDS)
def test_the_seed_of_a_rate(seed, lr):
    bits = int(np.array([lr]).tobytes()[::-1].hex(), 16)
    assert seed_of(RunConfig("vgg_a", lr=lr, seed=seed)) == seed
    derived = seed_of(RunConfig("vgg_a_bn", "sgd", lr=lr, seed=seed, seed_per_rate=True))
    assert derived == int(np.random.SeedSequence((seed, 4, bits)).generate_state(1)[0]) == RATE_SEEDS[seed, lr]


def seen_by_rate(data, words: str) -> dict[tuple, tuple[list[int], str]]:
    """By model, optimizer and rate the labels of all steps, which are the images' numbers, and the first weights."""
    taken = {}
    for step in recorded.steps(MyVGG, data, words):
        weights = b"".join(w.numpy().tobytes() for w in step.weights.values())
        key = (step.config.model, step.config.optimizer, step.config.lr)
        labels, _ = taken.setdefault(key, ([], hashlib.sha256(weights).hexdigest()))
        labels += step.labels.tolist()
    return taken


def test_each_rate_has_initial_weights_and_batches_of_its_own(data):
    words = "--lrs 1e-2 1e-3 --optimizer adam sgd"
    own = seen_by_rate(data, f"{words} --seed-per-rate")
    for (_, _, lr), (labels, _) in own.items():
        plans = [epoch_plan(RATE_SEEDS[0, lr], epoch, recorded.TRAIN) for epoch in (1, 2)]
        assert labels == [int(i) for plan in plans for i in plan.order]
    assert len({weights for _, weights in own.values()}) == 2  # one for each rate, whatever the optimizer
    shared = seen_by_rate(data, words)
    assert len({(str(labels), weights) for labels, weights in shared.values()}) == 1 and len(shared) == len(own) == 4
    bn = seen_by_rate(data, "--bn --lrs 1e-2 --seed-per-rate")
    assert bn["vgg_a_bn", "adam", 1e-2][0] == own["vgg_a", "adam", 1e-2][0]


def test_rates_with_their_own_seeds_are_recorded_under_the_seed_that_was_asked_for(data, tmp_path):
    words = "--lrs 1e-2 1e-3 --seed 1 0 --seed-per-rate --epochs 1"
    recorded.train(MyVGG, data, words, recorded.small, results=tmp_path)
    names = sorted(path.parent.name for path in tmp_path.rglob("summary.json"))
    assert names == [
        f"adam-lr1e-{rate}-wd1e-4-seed{seed}-width0.03-seedperrate-batch50-train130-test20"
        for rate in (2, 3) for seed in (0, 1)
    ]  # fmt: skip


def test_the_mask_of_dropout_follows_the_seed_of_the_rate(data):
    seeds = {}

    def build(config):
        return nn.Sequential(nn.AvgPool2d(16), nn.Flatten(), StepDropout(0.5), nn.Linear(12, 10))

    def look(run, images, labels):
        seeds[run.config.lr] = run.model[2].seed
        return recorded.look(run, images, labels)

    recorded.train(MyVGG, data, "--lrs 1e-2 1e-3 --seed-per-rate --epochs 1", build, look)
    assert seeds == {
        lr: int(np.random.SeedSequence((RATE_SEEDS[0, lr], 3)).generate_state(1)[0]) for lr in (1e-2, 1e-3)
    }


# --- Dropout and the scaled side --------------------------------------------------------------------------------------


@pytest.mark.parametrize("words, rate", [("", 0.4), ("--dropout 0", 0.0), ("--dropout 0.25 --model inception", 0.25)])
def test_dropout_is_that_before_the_output_layer(words, rate, data):
    net = recorded.network(MyFramework, data, words)
    assert [module.p for module in net.modules() if isinstance(module, StepDropout)] == [rate]
    images = torch.rand(2, 3, 32, 32, generator=torch.manual_seed(0))
    with torch.no_grad():  # without BatchNorm nothing else tells the two modes apart
        assert torch.equal(net.train()(images), net.eval()(images)) == (rate == 0)


def test_training_without_dropout_is_that_of_a_network_without_the_layer(synthetic_data, tmp_path, monkeypatch):
    without = commands.run("MyFramework.py --model inception --dropout 0", synthetic_data, tmp_path / "a", **SIZES)
    usual = commands.run("MyFramework.py --model inception", synthetic_data, tmp_path / "b", **SIZES)
    monkeypatch.setattr(MyFramework, "StepDropout", lambda p: nn.Identity())
    never = commands.run("MyFramework.py --model inception", synthetic_data, tmp_path / "c", **SIZES)
    logs = [(*of.values(),)[0].joinpath("steps.csv").read_text() for of in (without, usual, never)]
    assert logs[0] == logs[2] != logs[1]
    assert [path.name for path in without.values()] == [
        "adam-lr1e-4-wd1e-4-seed0-width0.03-batch2-train4-test2-dropout0"
    ]


def test_networks_have_the_options_that_the_switches_set():
    for switch in SWITCHES:
        if switch.networks:
            report = ("vgg_a", "vgg_a_bn", "inception", "inception_res")
            assert switch.networks == tuple(name for name in report if switch.setting in NETWORKS[name].options)
            (default,) = {NETWORKS[name].options[switch.setting].default for name in switch.networks}
        else:
            default = getattr(RunConfig, switch.setting)
        assert default == switch.levels[0] != switch.levels[1]

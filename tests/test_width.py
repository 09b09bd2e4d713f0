"""Width transfer: the factors of each layer as literals, and what they are for, on the first images of CIFAR-10."""

import json
import os
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import commands
import numpy as np
import pytest
import torch
import trainings
from torch import nn
from torch.nn.utils import parametrizations

import MyFramework  # noqa: F401  (registers its networks)
import MyVGG
from bench import coordinates
from cifar_lab.data.cache import load
from cifar_lab.experiments import config_of
from cifar_lab.figures.style import settings_text
from cifar_lab.networks import NETWORKS, build
from cifar_lab.optimizers import OPTIMIZERS, Optimizer, build_optimizer
from cifar_lab.run_folder.reader import read_run, read_runs
from cifar_lab.run_folder.schema import RunFileError, read_config
from cifar_lab.settings import RunConfig, run_name
from cifar_lab.training import script
from cifar_lab.training.device import Device
from cifar_lab.width import factors, factors_of, parameter_groups, recorded, scale_output

ROOT = Path(__file__).resolve().parent.parent
CPU = torch.device("cpu")
torch.set_num_threads(1)


def of(model: str, optimizer: str = "adam", width: float = 0.125) -> dict[str, tuple[float, float]]:
    """Rate and decay of each parameter."""
    config = RunConfig(model, optimizer, width=width)
    return {name: (f.rate, f.decay) for name, f in factors(config, build(config)).items()}


# --- The factors ------------------------------------------------------------------------------------------------------

ROOT_8 = 8**0.5
# VGG-A at width 0.125, where every layer but the first has an eighth of its inputs: rate and decay of the first
# convolution's weights, hidden weights, the output's, and biases and BatchNorm.
VGG_FACTORS = {
    "adam": [(1, ROOT_8), (8, 1), (8, 1 / ROOT_8), (1, ROOT_8)],
    "adamw": [(1, 1), (8, 1 / 8), (8, 1 / 8), (1, 1)],
    "rmsprop": [(1, ROOT_8), (8, 1), (8, 1 / ROOT_8), (1, ROOT_8)],
    "sgd": [(1 / 8, ROOT_8), (1, 1), (8, 1 / ROOT_8), (1 / 8, ROOT_8)],
    "nesterov": [(1 / 8, ROOT_8), (1, 1), (8, 1 / ROOT_8), (1 / 8, ROOT_8)],
    **{
        name: [(1, ROOT_8), (8, 1), (8, 1 / ROOT_8), (1, ROOT_8)]
        for name in ("nadam", "radam", "adamax", "adagrad", "adadelta")
    },
    "muon": [(1, 1), (8, 1 / 8), (8, 1 / 8), (1, 1)],
}
WEIGHTS = [f"features.{i}.weight" for i in (0, 3, 6, 8, 11, 13, 16, 18)] + [f"head.{i}.weight" for i in (0, 2, 4)]
BN_WEIGHTS = [f"features.{i}.weight" for i in (0, 4, 8, 11, 15, 18, 22, 25)] + [f"head.{i}.weight" for i in (0, 3, 6)]


def test_every_optimizer_of_the_registry_has_its_factors_here():
    assert list(VGG_FACTORS) == list(OPTIMIZERS)


@pytest.mark.parametrize("optimizer", VGG_FACTORS)
@pytest.mark.parametrize("model, weights", [("vgg_a", WEIGHTS), ("vgg_a_bn", BN_WEIGHTS)])
def test_every_parameter_of_vgg(model, weights, optimizer):
    first, hidden, output, vector = VGG_FACTORS[optimizer]
    found = of(model, optimizer)
    expected = dict.fromkeys(found, vector) | dict.fromkeys(weights, hidden)
    expected |= {weights[0]: first, weights[-1]: output, weights[-1].replace("weight", "bias"): (1, 1)}  # ten classes
    assert found.keys() == expected.keys() and len(found) == (22 if model == "vgg_a" else 42)
    for name in found:
        assert found[name] == pytest.approx(expected[name]), name


# Residual Inception at width 0.125: fan-in at width 1 over fan-in, by hand. Counts are rounded to multiples of 8, at
# least 8: 16, 24, 32 and 48 channels become 8, 96 become 16, and a block's output is the sum of its branches.
INCEPTION_RATES = {
    "features.3.weight": 64 / 8,
    "features.6.branches.0.0.weight": 192 / 24,
    "features.6.branches.1.2.weight": 96 / 16,
    "features.6.branches.2.2.weight": 16 / 8,
    "features.6.shortcut.0.weight": 192 / 24,
    "features.7.branches.0.0.weight": 256 / (8 + 16 + 8 + 8),
    "features.7.branches.2.2.weight": 32 / 8,
    "features.9.branches.3.1.weight": 480 / (16 + 24 + 16 + 8),
    "features.10.branches.2.2.weight": 24 / 8,
    "features.10.shortcut.0.weight": 8,  # width 1 has no projection here: the width itself
    "features.11.branches.0.0.weight": 512 / (24 + 32 + 8 + 8),
    "features.16.branches.2.2.weight": 48 / 8,
    "output.weight": 1024 / (48 + 48 + 16 + 16),
}
INCEPTION_SIZES = {  # of vectors and the first convolution: channels over channels at width 1
    "features.0.weight": 8 / 64,
    "features.3.bias": 24 / 192,
    "features.6.branches.1.0.bias": 16 / 96,
    "features.6.branches.2.0.bias": 8 / 16,
    "features.7.shortcut.0.bias": 64 / 480,
    "features.10.shortcut.0.bias": 1 / 8,
    "output.bias": 1,
}


def test_layers_of_inception_at_the_floor_of_8_channels():
    adam, adamw, sgd = (of("inception_res", name) for name in ("adam", "adamw", "sgd"))
    for name, rate in INCEPTION_RATES.items():
        output = name == "output.weight"
        assert adam[name] == pytest.approx((rate, rate**-0.5 if output else 1)), name
        assert adamw[name] == pytest.approx((rate, 1 / rate)), name
        assert sgd[name] == pytest.approx((rate, rate**-0.5) if output else (1, 1)), name
    for name, size in INCEPTION_SIZES.items():
        assert adam[name] == pytest.approx((1, size**-0.5)), name
        assert adamw[name] == (1, 1), name
        assert sgd[name] == pytest.approx((size, size**-0.5)), name


def test_an_optimizer_that_is_not_there_yet_declares_what_decides_its_factors():
    """Neither of the four has decoupled decay without adaptive steps: rate times decay stays what it is at width 1."""
    entry = Optimizer("SGDW", "#000000", "SGD", adaptive=False, decoupled=True)
    found = {role: asdict(factors_of(entry, role, 0.25)) for role in ("input", "hidden", "output")}
    assert found == {
        "input": {"rate": 0.25, "decay": 4}, "hidden": {"rate": 1, "decay": 1}, "output": {"rate": 4, "decay": 0.25},
    }  # fmt: skip


@pytest.mark.parametrize("model", ["vgg_a_bn", "inception_res"])
def test_at_width_1_there_is_one_group_and_nothing_is_scaled(model):
    for config in (RunConfig(model), RunConfig(model, width=0.125, width_transfer=False)):
        net = build(config)
        before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
        scale_output(config, net)
        assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
        assert recorded(config, net) == []
        (group,) = parameter_groups(config, net)
        assert all(a is b for a, b in zip(group["params"], net.parameters(), strict=True))
        assert (group["lr"], group["weight_decay"]) == (1e-4, 1e-4)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_groups_reach_the_optimizer(optimizer):
    momentum = 0.9 if OPTIMIZERS[optimizer].needs_momentum else 0.0
    config = RunConfig("vgg_a", optimizer, lr=0.01, weight_decay=0.5, width=0.125, momentum=momentum)
    net = build(config)
    built = build_optimizer(config, parameter_groups(config, net), CPU)
    of_parameter = {id(p): (g["lr"], g["weight_decay"]) for g in built.param_groups for p in g["params"]}
    first, hidden, output, vector = VGG_FACTORS[optimizer]
    for name, (rate, decay) in (
        ("features.0.weight", first), ("features.6.weight", hidden), ("head.4.weight", output), ("head.0.bias", vector),
    ):  # fmt: skip
        assert of_parameter[id(net.get_parameter(name))] == pytest.approx((0.01 * rate, 0.5 * decay)), name
    assert len(of_parameter) == 22


def test_the_output_layer_is_drawn_with_a_deviation_of_1_over_fan_in():
    """Relative to width 1, where PyTorch's uniform distribution has a deviation of 1 / sqrt(3 fan-in)."""
    for width, fan_in in ((0.125, 64), (0.5, 256), (1.0, 512), (2.0, 1024)):
        config = RunConfig("vgg_a", width=width)
        torch.manual_seed(0)
        net = build(config)
        others = {name: tensor.clone() for name, tensor in net.state_dict().items() if name != "head.4.weight"}
        scale_output(config, net)
        assert net.head[4].weight.std().item() == pytest.approx(512 / fan_in / (3 * 512) ** 0.5, rel=0.06)
        assert all(torch.equal(tensor, net.state_dict()[name]) for name, tensor in others.items())


# --- A network of one's own -------------------------------------------------------------------------------------------


class Unusual(nn.Module):
    """Layers that are neither convolution nor linear; computed and shared weights; a layer that only width 2 has."""

    def __init__(self, width: float) -> None:
        super().__init__()
        n = int(4 * width)
        self.image = nn.Linear(6, n)
        self.embedding = nn.Embedding(7, n)
        self.place = nn.Parameter(torch.zeros(1, 5, n))
        self.gain = nn.Parameter(torch.ones(()))
        self.attention = nn.MultiheadAttention(n, 1)
        self.depthwise = nn.Conv1d(n, n, 3, groups=n)
        self.norm = nn.LayerNorm(n)
        self.shared = self.again = nn.Linear(n, n, bias=False)
        self.normalized = parametrizations.weight_norm(nn.Linear(n, n))
        if width == 2:
            self.extra = nn.Linear(n, 3)
        self.output = nn.Linear(n, 10)


# r = 2; with SGD: rate of inputs 2 and of hidden weights 1; output 1/2.
UNUSUAL = {
    "place": 2, "gain": 1, "image.weight": 2, "image.bias": 2, "embedding.weight": 2, "attention.in_proj_weight": 1,
    "attention.in_proj_bias": 2, "attention.out_proj.weight": 1, "attention.out_proj.bias": 2, "depthwise.weight": 2,
    "depthwise.bias": 2, "norm.weight": 2, "norm.bias": 2, "shared.weight": 1, "normalized.bias": 2,
    "normalized.parametrizations.weight.original0": 2, "normalized.parametrizations.weight.original1": 1,
    "extra.weight": 1, "extra.bias": 2, "output.weight": 1 / 2, "output.bias": 1,
}  # fmt: skip


def register(monkeypatch, builder) -> str:
    monkeypatch.setitem(NETWORKS, "own", replace(NETWORKS["vgg_a"], name="own", builder=builder))
    return "own"


def test_a_network_with_other_layers(monkeypatch):
    register(monkeypatch, lambda *, width=1.0: Unusual(width))
    config = RunConfig("own", "sgd", width=2.0, init="pytorch")
    net = build(config)
    before = net.output.weight.clone()
    scale_output(config, net)
    assert torch.equal(net.output.weight, before * 2**-0.5)
    assert {name: f.rate for name, f in factors(config, net).items()} == pytest.approx(UNUSUAL)
    adam = {name: f.rate for name, f in factors(replace(config, optimizer="adam"), net).items()}
    hidden = {name for name, rate in UNUSUAL.items() if rate == 1 and name not in ("gain", "output.bias")}
    assert adam == pytest.approx({name: 1 / 2 if name in hidden | {"output.weight"} else 1 for name in UNUSUAL})


def test_a_computed_output_weight_is_not_scaled(monkeypatch):
    def builder(*, width=1.0):
        return nn.Sequential(
            nn.Linear(3, int(8 * width)), parametrizations.spectral_norm(nn.Linear(int(8 * width), 10))
        )

    register(monkeypatch, builder)
    config = RunConfig("own", "sgd", width=0.5, init="pytorch")
    net = build(config)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    scale_output(config, net)
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert factors(config, net)["1.parametrizations.weight.original"].rate == 2


def test_without_a_linear_layer_the_last_convolution_is_the_output(monkeypatch):
    def builder(*, width=1.0):
        return nn.Sequential(
            nn.Conv2d(3, int(8 * width), 3), nn.ReLU(), nn.Conv2d(int(8 * width), 10, 30), nn.Flatten()
        )

    register(monkeypatch, builder)
    assert of("own", "sgd", width=0.25) == {
        "0.weight": (0.25, 2), "0.bias": (0.25, 2), "2.weight": (4, 0.5), "2.bias": (1, 1),
    }  # fmt: skip


def test_a_builder_that_needs_values_and_one_without_a_width(monkeypatch):
    def builder(*, width=1.0):
        assert float(torch.ones(2).sum()) == 2  # impossible on the meta device
        return MyVGG.VGG(width=width)

    register(monkeypatch, builder)
    state = torch.manual_seed(3).get_state()
    config = RunConfig("own", width=0.125)
    net = MyVGG.VGG(width=0.125)
    torch.set_rng_state(state)
    assert factors(config, net)["features.3.weight"].rate == 8
    assert torch.equal(torch.get_rng_state(), state)
    register(monkeypatch, lambda: MyVGG.VGG(width=0.125))
    assert recorded(RunConfig("own", width=None), net) == []


# --- Identity and records ---------------------------------------------------------------------------------------------


def asked(words: str) -> RunConfig:
    return script.settings_of(MyVGG.VGGSettings, MyVGG.__file__, words.split()).runs(0)[0]


@pytest.mark.parametrize(
    "words, transfer, name",
    [
        ("", True, ""), ("--no-width-transfer", True, ""), ("--width 1 --no-width-transfer", True, ""),
        ("--width 0.5", True, "-width0.5"), ("--width 0.5 --no-width-transfer", False, "-width0.5-notransfer"),
        ("--preset laptop", True, ""), ("--preset laptop --no-width-transfer", False, "-notransfer"),
    ],
)  # fmt: skip
def test_it_is_part_of_the_identity_except_at_width_1(words, transfer, name):
    config = asked(words)
    assert config.width_transfer is transfer
    preset = "laptop" if "laptop" in words else "report"
    assert run_name(config, preset) == f"adam-lr1e-3-wd1e-4-seed0{name}"


def test_runs_from_before_are_read_as_what_they_were(tmp_path):
    published = json.loads(next((ROOT / "results/published/report/vgg_a").glob("*lr1e-3*/config.json")).read_text())
    assert "width_transfer" not in published["settings"]
    for width, transfer in ((1.0, True), (None, True), (0.25, False)):
        settings = published["settings"] | {"width": width}
        (tmp_path / "config.json").write_text(json.dumps(published | {"settings": settings}))
        later = {
            "width_transfer": transfer, "bias_decay": True, "seed_per_rate": False, "activation": "relu",
            "loss": "cross_entropy", "schedule": "constant", "warmup": 0.0, "schedule_epochs": 0, "validation_size": 0,
            "ema": 0.0, "bn_images": 0, "cutout": 0, "mixup": 0.0, "first_size": 32,
            "test_time_flip": False, "augment": "report", "dataset": "cifar10", "classes": 10, "data_digest": "",
        }  # fmt: skip
        assert read_config(tmp_path)["settings"] == settings | later
    runs, errors = read_runs(ROOT / "results" / "published", "report")
    assert not errors
    expected = [config_of(f"vgg_a_lr{lr}", "report") for lr in ("0.001", "0.0001", "0.0005", "5e-05")]
    for config in expected:
        assert replace(config, device="cuda", precision="bf16") in [run.config for run in runs]


@pytest.mark.parametrize("width", ["1", "0.25"])
def test_a_run_from_before_continues_at_width_1_alone(width, tmp_path, synthetic_data, monkeypatch, capsys):
    monkeypatch.setitem(NETWORKS, "vgg_a", replace(NETWORKS["vgg_a"], builder=trainings.small_network))
    argv = [*trainings.flags(synthetic_data, "--results", tmp_path, "--width", width), "--epochs"]
    MyVGG.main([*argv, "1"])
    (path,) = tmp_path.rglob("config.json")
    content = json.loads(path.read_text())
    for later in ("width_transfer", "bias_decay", "seed_per_rate"):
        del content["settings"][later]
    path.write_text(json.dumps(content))
    for name in ("checkpoint.pt", "checkpoint.previous.pt"):
        state = torch.load(path.parent / name, weights_only=True)
        for later in ("width_transfer", "bias_decay", "seed_per_rate"):
            del state["config"][later]
        torch.save(state, path.parent / name)
    capsys.readouterr()
    if width == "1":
        MyVGG.main([*argv, "2"])
        assert "continues after epoch 1" in capsys.readouterr().out and read_run(path.parent).epochs_done == 2
    else:
        with pytest.raises(SystemExit):
            script.run(MyVGG.main, [*argv, "2"])
        assert "width_transfer False -> True" in capsys.readouterr().err


def test_the_factors_are_recorded(tmp_path, synthetic_data):
    sizes = {"train_size": 4, "batch_size": 2, "test_size": 2, "epochs": 1, "width": 0.125}
    folders = commands.run("MyVGG.py --lrs 1e-3 --optimizer adamw adam", synthetic_data, tmp_path, **sizes)
    written = {key[1]: json.loads((folder / "config.json").read_text()) for key, folder in folders.items()}
    inputs = ["features.0.weight", *(w.replace("weight", "bias") for w in WEIGHTS[:-1])]
    rest = " ".join(name for name in of("vgg_a") if name not in {*WEIGHTS, *inputs})
    assert rest == "head.4.bias"
    by_order = " ".join(name for name in of("vgg_a") if name not in WEIGHTS[1:])
    assert written["adamw"]["width_factors"] == [
        {"rate": 1.0, "decay": 1.0, "parameters": by_order},
        {"rate": 8.0, "decay": 0.125, "parameters": " ".join(WEIGHTS[1:])},
    ]
    assert [g["parameters"].count(" ") + 1 for g in written["adam"]["width_factors"]] == [11, 9, 1, 1]
    folder = folders["vgg_a", "adamw", 1e-3, 0]
    assert read_config(folder)["width_factors"] == written["adamw"]["width_factors"]
    for wrong in ({"rate": "8"}, {"rate": 8.0, "decay": -1.0, "parameters": ""}, []):
        (folder / "config.json").write_text(json.dumps(written["adamw"] | {"width_factors": [wrong]}))
        with pytest.raises(RunFileError):
            read_run(folder)


def test_figures_name_runs_without_it():
    texts = []
    for transfer in (True, False):
        settings = asdict(RunConfig("vgg_a", width=0.25, width_transfer=transfer))
        environment = dict.fromkeys(("device", "precision"), "x")
        run = SimpleNamespace(preset="laptop", settings=settings, epochs_planned=3, environment=environment, seed=0)
        texts.append(settings_text([run]))
    assert ", width 0.25, " in texts[0] and ", width 0.25 without width transfer, " in texts[1]


def test_a_run_without_it_is_another_one(tmp_path, synthetic_data):
    sizes = {"train_size": 4, "batch_size": 2, "test_size": 2, "epochs": 2, "width": 0.125}
    commands.run("MyVGG.py --lrs 1e-3", synthetic_data, tmp_path, **sizes)
    commands.run("MyVGG.py --lrs 1e-3 --no-width-transfer", synthetic_data, tmp_path, **sizes)
    names = ["", "-notransfer"]
    folders = [tmp_path / f"report/vgg_a/adam-lr1e-3-wd1e-4-seed0-width0.125{n}-batch2-train4-test2" for n in names]
    configs = [json.loads((folder / "config.json").read_text()) for folder in folders]
    assert ["width_factors" in config for config in configs] == [True, False]
    losses = [commands.table(folder / "steps.csv")["loss"] for folder in folders]
    assert not np.isclose(losses[0], losses[1]).any()


# --- What it is for ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def images() -> tuple[torch.Tensor, torch.Tensor]:
    """Six batches of 50: images (6, 50, 3, 32, 32) and labels (6, 50)."""
    data = load()
    pixels = torch.from_numpy(data.train_images[:300]).permute(0, 3, 1, 2) / 127.5 - 1
    return pixels.view(6, 50, 3, 32, 32), torch.from_numpy(data.train_labels[:300]).long().view(6, 50)


def test_each_layer_changes_by_the_same_amount_at_every_width(images):
    """Five steps of Adam at 1e-4, mean over three seeds: at width 0.125 the first layers have 8 channels.

    The logits are left out: what they were before counts for little there, and is larger in a narrow network.
    """
    sides = coordinates.changes(RunConfig("vgg_a"), [0, 1, 2], *images, Device(CPU, "fp32", "fp32", 1))
    without, with_transfer = ([max(row) / min(row) for row in of.values()] for of in sides.values())
    assert all(list(of) == [name.removesuffix(".weight") for name in WEIGHTS] for of in sides.values())
    assert max(with_transfer[:-1]) < 1.6
    assert min(without[1:-1]) > 2  # the first convolution has the same rate either way


def test_a_relative_change_by_hand(monkeypatch):
    """One layer without bias, zero but for a weight of 2: a step of SGD adds the learning rate times minus gradient."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(3072, 10, bias=False))
    nn.init.zeros_(net[1].weight)
    net[1].weight.data[0, 0] = 2.0
    register(monkeypatch, lambda: net)
    images = torch.zeros(2, 6, 3, 32, 32)
    images[:, :, 0, 0, 0] = 1.0
    labels = torch.zeros(2, 6, dtype=torch.int64)
    config = RunConfig("own", "sgd", lr=0.5, weight_decay=0.0, width=None, init="pytorch")
    (change,) = coordinates.relative_changes(config, images, labels, Device(CPU, "fp32", "fp32", 1)).values()
    e = np.exp(2.0)
    gradient = np.array([e / (e + 9) - 1] + [1 / (e + 9)] * 9)
    assert change == pytest.approx(0.5 * np.linalg.norm(gradient) / 2, rel=1e-5)


def test_the_order_of_the_learning_rates_is_that_of_width_1(tmp_path):
    """Mean loss over steps 101 to 125 of plain VGG-A, whose order at width 1 the published logs give."""

    def losses(folders) -> dict[float, float]:
        return {key[2]: commands.table(folder / "steps.csv")["loss"][100:125].mean() for key, folder in folders.items()}

    published = {
        (0, 0, float(folder.name.split("-lr")[1].split("-wd")[0])): folder
        for folder in (ROOT / "results/published/report/vgg_a").glob("adam*")
    }
    data = Path(os.environ.get("CIFAR10_DIR", ROOT / "data"))
    sizes = {"train_size": 12_500, "test_size": 10, "epochs": 1, "width": 0.125}
    scaled = losses(commands.run("MyVGG.py --lrs 1e-3 1e-4 5e-4 5e-5", data, tmp_path / "scaled", **sizes))
    unscaled = losses(commands.run("MyVGG.py --no-width-transfer --lrs 1e-3 1e-4", data, tmp_path / "not", **sizes))
    full = losses(published)
    assert sorted(full, key=full.get) == [1e-4, 5e-5, 5e-4, 1e-3]
    assert sorted(scaled, key=scaled.get) == [1e-4, 5e-5, 5e-4, 1e-3]
    assert unscaled[1e-3] < unscaled[1e-4]

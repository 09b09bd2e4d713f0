"""A run is never continued, evaluated or looked at as something else: network, device and precision identify it."""

import json
import re
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import trainings
from torch import nn

import landscape
import MyFramework
import MyVGG
from cifar_lab.data.cache import write_cache
from cifar_lab.networks import NETWORKS, ROOT, NetworkError, build, describe, find_network, network
from cifar_lab.run_folder.reader import read_run
from cifar_lab.settings import RunConfig, flag, real, run_name
from cifar_lab.training import script

SCALE = MyFramework.RESIDUAL_SCALE

# --- The fingerprint -------------------------------------------------------------------------------------------------


class Net(nn.Module):
    """Two branches of one shape; `forward` is replaced by the tests."""

    def __init__(self, kernel: int = 3) -> None:
        super().__init__()
        self.a, self.b = (nn.Conv2d(3, 4, kernel, padding=kernel // 2) for _ in range(2))
        self.act, self.bn, self.out = nn.ReLU(), nn.BatchNorm2d(4), nn.Linear(4, 10)

    def head(self, x):
        return self.out(x.mean((2, 3)))

    def forward(self, x):
        return self.head(self.act(self.bn(self.a(x)) + 0.2 * self.b(x)))


class Reversed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 1

    @staticmethod
    def backward(ctx, gradient):
        return -gradient


def with_buffer(scale: float) -> nn.Module:
    net = with_forward(lambda s, x: s.head(s.act(s.bn(s.a(x)) + s.scale * s.b(x))))
    net.register_buffer("scale", torch.tensor(scale), persistent=False)
    return net


def variant(**changes) -> nn.Module:
    net = Net()
    for name, value in changes.items():
        setattr(net, name, value)
    return net


def with_forward(forward) -> nn.Module:
    return type("Changed", (Net,), {"forward": forward})()


CHANGED = {
    "activation": variant(act=nn.LeakyReLU()),
    "slope": variant(act=nn.LeakyReLU(0.02)),
    "activation as a function": with_forward(lambda s, x: s.head(F.gelu(s.bn(s.a(x)) + 0.2 * s.b(x)))),
    "scale": with_forward(lambda s, x: s.head(s.act(s.bn(s.a(x)) + 0.3 * s.b(x)))),
    "scaled side": with_forward(lambda s, x: s.head(s.act(0.2 * s.bn(s.a(x)) + s.b(x)))),
    "branches swapped": with_forward(lambda s, x: s.head(s.act(s.bn(s.b(x)) + 0.2 * s.a(x)))),
    "order of BatchNorm": with_forward(lambda s, x: s.head(s.bn(s.act(s.a(x) + 0.2 * s.b(x))))),
    "pooling": with_forward(lambda s, x: s.out(s.act(s.bn(s.a(x)) + 0.2 * s.b(x)).amax((2, 3)))),
    "kernel": Net(5),
    "momentum of BatchNorm": variant(bn=nn.BatchNorm2d(4, momentum=0.2)),
    "eps of BatchNorm": variant(bn=nn.BatchNorm2d(4, eps=1e-3)),
    "only in eval mode": with_forward(lambda s, x: s.head(s.act(s.bn(s.a(x)) + (0.2 if s.training else 0.1) * s.b(x)))),
    "frozen weights": variant(a=nn.Conv2d(3, 4, 3, padding=1).requires_grad_(False)),
    "no gradient": with_forward(lambda s, x: s.head(s.act(s.bn(torch.no_grad()(s.a)(x)) + 0.2 * s.b(x)))),
    "backward of a function": with_forward(lambda s, x: s.head(Reversed.apply(s.act(s.bn(s.a(x)) + 0.2 * s.b(x))))),
    "constant": with_forward(lambda s, x: s.head(s.act(s.bn(s.a(x)) + torch.tensor(0.2) * s.b(x)))),
    "another constant": with_forward(lambda s, x: s.head(s.act(s.bn(s.a(x)) + torch.tensor(0.3) * s.b(x)))),
    "buffer that no checkpoint holds": with_buffer(0.2),
    "another value of that buffer": with_buffer(0.3),
    "dropout": variant(act=nn.Sequential(nn.ReLU(), nn.Dropout(0.5))),
}


def test_every_change_of_what_a_network_computes_is_another_fingerprint():
    found = {"unchanged": describe(Net()).fingerprint} | {k: describe(net).fingerprint for k, net in CHANGED.items()}
    assert len(set(found.values())) == len(found), found
    assert all(re.fullmatch("[0-9a-f]{16}", fingerprint) for fingerprint in found.values())


def test_weights_mode_and_random_state_are_no_part_of_it():
    torch.manual_seed(1)
    one = Net().eval()
    before = {name: tensor.clone() for name, tensor in one.state_dict().items()}
    torch.manual_seed(2)
    state = torch.get_rng_state()
    assert describe(one) == describe(Net())
    assert not one.training and all(torch.equal(before[name], tensor) for name, tensor in one.state_dict().items())
    torch.manual_seed(2)
    describe(one)
    assert torch.equal(torch.get_rng_state(), state)


def test_networks_widths_and_options_of_the_report_differ():
    configs = [RunConfig(name, width=width) for name in NETWORKS for width in (0.125, 0.25)]
    configs += [RunConfig("inception_res", width=0.125, options={"residual_scale": scale}) for scale in (0.1, 1.0)]
    configs += [RunConfig("inception_res", width=0.125, options={"residual_side": "shortcut"})]
    found = [describe(build(config)).fingerprint for config in configs]
    assert len(set(found)) == len(found) == 2 * len(NETWORKS) + 3
    assert describe(build(replace(configs[0], seed=7, init="xavier"))).fingerprint == found[0]


def test_networks_that_need_values_are_described_on_the_cpu():
    needy = with_forward(lambda s, x: s.head(s.act(s.a(x) * float(x.sum().item() + 1))))
    averaged = variant(bn=nn.BatchNorm2d(4, momentum=None))  # reads its counter
    assert describe(needy) == describe(needy)
    assert len({describe(net).fingerprint for net in (needy, averaged, Net())}) == 3


FAILING = {
    "not a tensor": (with_forward(lambda s, x: (s.head(s.a(x)),)), "10 for each image"),
    "a value per image": (variant(out=nn.Flatten(0)), "10 for each image"),
    "one image": (with_forward(lambda s, x: s.head(s.a(x[:1]))), "10 for each image"),
    "logits per pixel": (with_forward(lambda s, x: s.out(s.a(x).permute(0, 2, 3, 1))), "10 for each image"),
    "five classes": (variant(out=nn.Linear(4, 5)), "10 for each image"),
    "raises": (with_forward(lambda s, x: 1 / 0), "division by zero"),
    "random": (with_forward(lambda s, x: s.head(s.a(x) * next(COUNT))), "different things"),
    "no parameters": (nn.Identity(), "cannot be run"),
}
COUNT = iter(range(100))


@pytest.mark.parametrize("net, why", FAILING.values(), ids=FAILING)
def test_a_network_that_cannot_be_trained_is_one_line(net, why, monkeypatch, tmp_path, synthetic_data, capsys):
    with pytest.raises(NetworkError, match=why):
        describe(net)
    monkeypatch.setitem(NETWORKS, "vgg_a", replace(NETWORKS["vgg_a"], builder=lambda: net))
    argv = ["--results", tmp_path / "results", "--data-dir", synthetic_data, "--train-size", 20, "--test-size", 20]
    refusal(capsys, MyVGG.main, [*argv, "--init", "pytorch"])
    assert not (tmp_path / "results").exists()


# --- What is refused -------------------------------------------------------------------------------------------------


@pytest.fixture
def trained(tmp_path, synthetic_data):
    """A VGG after an epoch: its folder, and the command line without the number of epochs."""
    argv = [*trainings.flags(synthetic_data, "--results", tmp_path / "results"), "--epochs"]
    MyVGG.main([*argv, "1"])
    (config,) = (tmp_path / "results").rglob("config.json")
    return config.parent, argv


def refusal(capsys, main, words) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        script.run(main, [str(word) for word in words])
    error = capsys.readouterr().err
    assert end.value.code == 2 and error.count("\n") == 1
    return error


def test_an_edited_network_does_not_take_the_old_weights(trained, synthetic_data, capsys, monkeypatch):
    """ReLU edited to LeakyReLU: the same weights fit, and another function would be continued or drawn."""
    folder, argv = trained
    before = trainings.snapshot(folder)
    old = json.loads((folder / "config.json").read_text())["network"]["fingerprint"]
    assert torch.load(folder / "checkpoint.pt", weights_only=True)["fingerprint"] == old
    monkeypatch.setattr(MyVGG.nn, "ReLU", lambda inplace: nn.LeakyReLU(0.01, inplace))
    new = describe(build(RunConfig("vgg_a", width=0.03))).fingerprint
    data = ["--data-dir", synthetic_data]
    for main, words in (
        (MyVGG.main, [*argv, 2]),
        (MyVGG.main, ["--evaluate", folder, *data]),
        (lambda argv: landscape.main(["surface", *argv]), [folder, "--images", 20, "--points", 3, *data]),
    ):
        error = refusal(capsys, main, words)
        assert old in error and new in error and old != new, error
    assert trainings.snapshot(folder) == before


@pytest.mark.parametrize("key, value", [("device", "cuda"), ("precision", "bf16")])
def test_what_auto_resolved_to_is_part_of_the_identity(key, value, trained, capsys):
    """The folder of a run on a GPU, or in another precision, is not continued here."""
    folder, argv = trained
    config = json.loads((folder / "config.json").read_text())
    assert (config["settings"]["device"], config["settings"]["precision"]) == ("cpu", "fp32")
    own = config["settings"][key]
    config["settings"][key] = value
    (folder / "config.json").write_text(json.dumps(config))
    before = trainings.snapshot(folder)
    asked = ["--precision", "fp32"] if key == "precision" else []  # auto goes on as the run began
    assert f"{key} {value} -> {own}" in refusal(capsys, MyVGG.main, [*argv, 2, *asked])
    assert trainings.snapshot(folder) == before


def test_a_checkpoint_of_another_run_is_refused(trained, synthetic_data, capsys):
    folder, argv = trained
    MyVGG.main([*argv, "1", "--lrs", "0.02"])
    (other,) = (f.parent for f in folder.parent.glob("*/config.json") if f.parent != folder)
    for name in ("checkpoint.pt", "checkpoint.previous.pt"):
        (folder / name).write_bytes((other / name).read_bytes())
    for words in ([*argv, 2], ["--evaluate", folder, "--data-dir", synthetic_data]):
        assert "lr 0.02 -> 0.001" in refusal(capsys, MyVGG.main, words)


@pytest.mark.parametrize("part", ["train", "test"])
def test_labels_that_the_network_does_not_know_are_refused(part, trained, tmp_path, synthetic_data, capsys):
    """Also of a run that does not say what its data are; of one that does, other data are refused for that."""
    folder, _ = trained
    config = json.loads((folder / "config.json").read_text())
    del config["environment"]["data_sha256"]
    (folder / "config.json").write_text(json.dumps(config))
    with np.load(synthetic_data / "cifar10.npz") as content:
        arrays = dict(content)
    arrays[f"{part}_labels"] = arrays[f"{part}_labels"].copy()
    arrays[f"{part}_labels"][0] = 10
    write_cache(tmp_path / "other", arrays, name="eleven classes")
    data = ["--data-dir", tmp_path / "other"]
    surface = [folder, "--images", 20, "--points", 3, *data]
    before = trainings.snapshot(tmp_path)
    for main, words in (
        (MyVGG.main, [*trainings.flags(tmp_path / "other"), "--results", tmp_path / "new"]),
        (MyVGG.main, ["--evaluate", folder, *data]),
        *([(lambda argv: landscape.main(["surface", *argv]), surface)] if part == "train" else []),
    ):
        assert "a label is 10; the network has 10 classes, from 0" in refusal(capsys, main, words)
    assert trainings.snapshot(tmp_path) == before


def test_a_run_is_not_cut_short_by_fewer_epochs(tmp_path, synthetic_data, capsys):
    """Stopped in the middle of its third epoch, it is not finished with weights of that; after its second it is."""
    argv = [*trainings.flags(synthetic_data, "--results", tmp_path), "--epochs"]
    MyVGG.main([*argv, "3"])
    (folder,) = (f.parent for f in tmp_path.rglob("config.json"))
    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    state |= {"epochs": 2, "step": 1, "losses": torch.ones(1), "correct": torch.ones(1, dtype=torch.int64)}
    for moments in state["optimizer"]["state"].values():
        moments["step"].fill_(7)
    torch.save(state, folder / "checkpoint.pt")
    (folder / "summary.json").unlink()
    before = trainings.snapshot(tmp_path)
    for epochs in ("1", "2"):
        assert "was stopped in epoch 3; --epochs 3 or more continues it" in refusal(capsys, MyVGG.main, [*argv, epochs])
    assert trainings.snapshot(tmp_path) == before
    state |= {"step": 0, "losses": torch.ones(0), "correct": torch.ones(0, dtype=torch.int64)}
    for moments in state["optimizer"]["state"].values():
        moments["step"].fill_(6)
    torch.save(state, folder / "checkpoint.pt")
    MyVGG.main([*argv, "1"])
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["epochs"], summary["steps"]) == (2, 6)
    assert len(read_run(folder).losses) == 6
    assert read_run(folder).right is None  # those of the third epoch are gone
    MyVGG.main([*argv, "3"])
    assert len(read_run(folder).losses) == 9 and read_run(folder).complete
    assert read_run(folder).right.shape == (100,)


def test_predictions_go_when_a_run_goes_on(tmp_path, synthetic_data):
    """One epoch, then on to three, stopped after the second: that one has none, whatever the first one's were."""
    argv = [*trainings.flags(synthetic_data, "--results", tmp_path), "--epochs"]
    MyVGG.main([*argv, "1"])
    (folder,) = (f.parent for f in tmp_path.rglob("config.json"))
    first = (folder / "predictions.txt").read_text()
    MyVGG.main([*argv, "2"])
    at_two = (folder / "checkpoint.pt").read_bytes()
    MyVGG.main([*argv, "3"])
    assert (folder / "predictions.txt").read_text() != first
    (folder / "checkpoint.pt").write_bytes(at_two)
    (folder / "summary.json").unlink()
    MyVGG.main([*argv, "2"])
    assert read_run(folder).epochs_done == 2 and not (folder / "predictions.txt").exists()


def test_a_scripts_own_flag_is_part_of_the_identity():
    @dataclass(frozen=True, kw_only=True)
    class Own(MyVGG.VGGSettings):
        label_smoothing: float = flag(0.0, "share of the loss that is spread over all classes", real(0, 1))

    plain, smooth = (
        script.settings_of(Own, MyVGG.__file__, words).runs(0)[0] for words in ([], ["--label-smoothing", "0.5"])
    )
    assert plain == RunConfig("vgg_a", lr=1e-3)
    assert run_name(smooth, "report") == "adam-lr1e-3-wd1e-4-seed0-smoothing0.5"


# --- The registry ----------------------------------------------------------------------------------------------------


def test_what_the_registry_refuses(tmp_path):
    with pytest.raises(ValueError, match="vgg_a is defined in"):
        network("vgg_a", label="another")(lambda: nn.Identity())
    with pytest.raises(ValueError, match="lower-case letters"):
        network("../x", label="x")
    for bad in ({"label": "a\nb"}, {"label": "x" * 101}, {"label": "x", "colour": "red"}):
        with pytest.raises(ValueError, match="a label is a line of text"):
            network("x", **bad)
    many = flag((1,), "several", many=True)
    for bad in ({"seed": SCALE}, {"my_width": SCALE}, {"nHidden": SCALE}, {"channels": many}):
        with pytest.raises(ValueError, match="an option cannot be called"):
            network("x", label="x", **bad)
    with pytest.raises(ValueError, match="different last words"):
        network("x", label="x", a_scale=SCALE, b_scale=SCALE)
    outside = tmp_path / "outside.py"
    outside.write_text("raise SystemError('ran')\n")
    for name in (str(outside), "../outside.py", "cifar_lab/networks.py", "README.md", ""):
        with pytest.raises(NetworkError, match="is not a script in the project's folder; --script"):
            find_network("unknown", name)
    with pytest.raises(NetworkError, match=r"cannot be imported \(SystemError: ran\)"):
        find_network("unknown", "outside.py", outside)
    outside.write_text("import sys\nsys.exit(0)\n")
    with pytest.raises(NetworkError, match="ends the program"):
        find_network("unknown", "outside.py", outside)
    with pytest.raises(NetworkError, match="no Python file"):
        find_network("unknown", "outside", ROOT / "Makefile")
    outside.write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\nfrom torch import nn\n"
        "from cifar_lab.networks import network\n@dataclass\nclass C:\n    x: int = 1\n"
        "@network('outside_net', label='x')\ndef build():\n    return nn.Identity()\n"
    )
    assert find_network("outside_net", "outside.py", outside).script == outside
    del NETWORKS["outside_net"]
    assert find_network("vgg_a", "MyVGG.py", outside).builder is MyVGG.VGG_A  # the file is of another network
    with pytest.raises(NetworkError, match="defines no network unknown"):
        find_network("unknown", "plot_results.py")
    assert find_network("vgg_a", "MyVGG.py").builder is MyVGG.VGG_A


def test_an_option_is_a_flag_of_the_script_that_has_it_and_of_no_other(capsys):
    for module, cls in ((MyFramework, MyFramework.InceptionSettings), (MyVGG, MyVGG.VGGSettings)):
        with pytest.raises(SystemExit):
            script.settings_of(cls, module.__file__, ["--help"])
        assert ("--residual-scale" in capsys.readouterr().out) == (module is MyFramework)
    settings = script.settings_of(MyFramework.InceptionSettings, MyFramework.__file__, ["--residual-scale", "0.2"])
    assert settings.runs(0)[0].options == {}  # the default, though it was given

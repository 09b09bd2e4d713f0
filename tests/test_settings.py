"""What the report's commands train, as literals: presets, lists of commands, settings, folders, and what flags do."""

import hashlib
import json
import os
from dataclasses import asdict
from unittest import mock

import numpy as np
import pytest
import recorded
import torch
from torch import nn

import MyFramework
import MyVGG
from cifar_lab import project, reproduce
from cifar_lab.experiments import config_of, folder_of
from cifar_lab.jobs.task import tasks
from cifar_lab.settings import RunConfig, run_folder, run_name
from cifar_lab.training import script

torch.set_num_threads(1)

SCRIPTS = {"MyVGG.py": MyVGG, "MyFramework.py": MyFramework}
# Every setting of the report's recipe; a run's model, optimizer, learning rate and seed come on top.
RECIPE = {
    "weight_decay": 1e-4, "bias_decay": True, "seed_per_rate": False, "test_time_flip": False, "momentum": 0.0,
    "width": 1.0, "ema": 0.0, "bn_images": 0, "cutout": 0, "mixup": 0.0, "first_size": 32,
    "activation": "relu", "loss": "cross_entropy", "schedule": "constant", "warmup": 0.0, "schedule_epochs": 0,
    "width_transfer": True, "init": "he", "batch_size": 100,
    "train_size": 50_000, "test_size": 10_000, "validation_size": 0, "augment": "report", "device": "auto",
    "precision": "auto",
    "probe_every": 0, "options": {}, "dataset": "cifar10", "classes": 10, "data_digest": "",
}  # fmt: skip
LAPTOP = RECIPE | {"width": 0.25}
QUICK = RECIPE | {"width": 0.125, "train_size": 10_000, "test_size": 2_000}
# Santurkar et al. (2018), section 3.2.
PAPER = RECIPE | {"weight_decay": 0.0, "init": "xavier", "batch_size": 128, "augment": "none", "probe_every": 100}
PAPER_QUICK = PAPER | {
    "width": 0.25, "width_transfer": False, "train_size": 5_120, "test_size": 2_000, "probe_every": 10,
}  # fmt: skip


def asked(command: str) -> list[tuple[int, str, RunConfig]]:
    """Epochs, folder and settings of each run of a command line, as the script hands them to the training."""
    _, name, *words = command.split()
    seen = []
    with mock.patch.object(script, "groups", lambda *arguments: seen.append(script.settings_of(*arguments)) or ()):
        SCRIPTS[name].main(words)
    (settings,) = seen
    return [
        (settings.epochs, str(run_folder(settings.results, settings.preset, config)), config)
        for seed in settings.seed
        for config in settings.runs(seed)
    ]


def run(recipe: dict, model: str, optimizer: str, lr: float, **own) -> dict:
    return {"model": model, "optimizer": optimizer, "lr": lr, "seed": 0} | recipe | own


# --- Presets ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command, epochs, expected",
    [
        ("python MyVGG.py", 200, run(RECIPE, "vgg_a", "adam", 1e-3)),
        ("python MyVGG.py --preset report", 200, run(RECIPE, "vgg_a", "adam", 1e-3)),
        ("python MyVGG.py --preset laptop", 42, run(LAPTOP, "vgg_a", "adam", 1e-3)),
        ("python MyVGG.py --preset quick", 9, run(QUICK, "vgg_a", "adam", 1e-3)),
        ("python MyVGG.py --preset paper", 39, run(PAPER, "vgg_a", "sgd", 0.1)),
        ("python MyVGG.py --preset paper-quick", 10, run(PAPER_QUICK, "vgg_a", "sgd", 0.1)),
        ("python MyFramework.py", 300, run(RECIPE, "inception_res", "adam", 1e-4)),
        ("python MyFramework.py --preset report", 300, run(RECIPE, "inception_res", "adam", 1e-4)),
        ("python MyFramework.py --preset laptop", 42, run(LAPTOP, "inception_res", "adam", 1e-4)),
        ("python MyFramework.py --preset quick", 9, run(QUICK, "inception_res", "adam", 1e-4)),
    ],
)
def test_the_settings_of_a_preset(command, epochs, expected):
    ((got_epochs, _, config),) = asked(command)
    assert (got_epochs, asdict(config)) == (epochs, expected)


@pytest.mark.parametrize(
    "words, epochs, own",
    [
        ("--bn --lrs 0.3 --optimizer adam --epochs 7", 7, {"model": "vgg_a_bn", "lr": 0.3, "optimizer": "adam"}),
        ("--init he --batch-size 64 --probe-every 0", 39, {"init": "he", "batch_size": 64, "probe_every": 0}),
        ("--width 2 --weight-decay 1e-3 --momentum 0.5", 39, {"width": 2.0, "weight_decay": 1e-3, "momentum": 0.5}),
        ("--train-size 9 --test-size 8 --precision tf32", 39, {"train_size": 9, "test_size": 8, "precision": "tf32"}),
    ],
)
def test_a_flag_replaces_what_a_preset_says(words, epochs, own):
    ((got_epochs, _, config),) = asked(f"python MyVGG.py --preset paper {words}")
    assert (got_epochs, asdict(config)) == (epochs, run(PAPER, "vgg_a", "sgd", 0.1) | own)


def test_momentum_is_recorded_for_sgd_alone():
    trained = asked("python MyFramework.py --optimizer rmsprop sgd adam --momentum 0.9")
    assert [(config.optimizer, config.momentum) for _, _, config in trained] == [
        ("rmsprop", 0.0), ("sgd", 0.9), ("adam", 0.0),
    ]  # fmt: skip


# --- Lists of commands ------------------------------------------------------------------------------------------------

TRAININGS = """\
python MyVGG.py --lrs 1e-3 1e-4 5e-4 5e-5 {}
python MyVGG.py --bn --lrs 1e-3 1e-4 5e-4 5e-5 {}
python MyFramework.py --model inception --optimizer adam --weight-decay 0 {}
python MyFramework.py --model inception_res --optimizer adam --weight-decay 0 {}
python MyFramework.py --model inception_res --optimizer adam adamw rmsprop {}
python MyFramework.py --model inception_res --residual-scale 1.0 --weight-decay 0 {}
python MyFramework.py --model inception_res --lr 1e-3 {}
python MyFramework.py --model inception_res --lr 1e-2 {}
python MyFramework.py --model inception_res --optimizer sgd --momentum 0.9 --lr 1e-2 {}
"""
EPOCHS = (200, 200, 200, 200, 300, 200, 20, 20, 20)  # of the report, 2,900 in all runs but for the last four
SURFACE = (
    "python landscape.py surface results/{0}/vgg_a/adam-lr1e-3-wd1e-4-seed0 "
    "results/{0}/vgg_a_bn/adam-lr1e-3-wd1e-4-seed0 --points {1} --images {2}\n"
)


def trainings(*flags: str) -> str:
    return TRAININGS.format(*(flags if len(flags) > 1 else flags * 9))


# The last three commands are a tenth as long, and at least the three epochs that a final accuracy needs.
LAPTOP_FLAGS, QUICK_FLAGS = (
    (f"--preset {preset}",) * 6 + (f"--preset {preset} --epochs {short}",) * 3
    for preset, short in (("laptop", 4), ("quick", 3))
)
LISTS = {
    "report": trainings(*(f"--epochs {n}" for n in EPOCHS)) + SURFACE.format("report", 25, 2000),
    "laptop": trainings(*LAPTOP_FLAGS) + SURFACE.format("laptop", 25, 512),
    "quick": trainings(*QUICK_FLAGS) + SURFACE.format("quick", 11, 512),
    "paper": "python MyVGG.py --preset paper\npython MyVGG.py --bn --preset paper\n",
    "paper-quick": "python MyVGG.py --preset paper-quick\npython MyVGG.py --bn --preset paper-quick\n",
}


@pytest.mark.parametrize("preset", LISTS)
def test_the_commands_of_a_preset(preset):
    assert "".join(f"{task.command}\n" for task in tasks(preset, (0,), project.RESULTS)) == LISTS[preset]


def test_the_commands_of_several_seeds_into_another_folder(capsys):
    """The surfaces need networks that are not trained yet."""
    assert reproduce.main(["quick", "--list", "--seed", "3", "1", "--results", "a b"]) == 0
    into = {seed: [f"{flags} --seed {seed} --results 'a b'" for flags in QUICK_FLAGS] for seed in (3, 1)}
    assert capsys.readouterr().out == trainings(*into[3]) + trainings(*into[1])
    assert tasks("quick", (3, 1), "a b")[-1].command == (
        "python landscape.py surface 'a b/quick/vgg_a/adam-lr1e-3-wd1e-4-seed3' "
        "'a b/quick/vgg_a_bn/adam-lr1e-3-wd1e-4-seed3' --points 11 --images 512"
    )


# --- The runs of the lists --------------------------------------------------------------------------------------------

# By command (its place in TRAININGS): name, folder below results/report, and settings, of each run that it trains.
RUNS = {
    0: [
        ("vgg_a_lr0.001", "vgg_a/adam-lr1e-3-wd1e-4-seed0", run(RECIPE, "vgg_a", "adam", 1e-3)),
        ("vgg_a_lr0.0001", "vgg_a/adam-lr1e-4-wd1e-4-seed0", run(RECIPE, "vgg_a", "adam", 1e-4)),
        ("vgg_a_lr0.0005", "vgg_a/adam-lr5e-4-wd1e-4-seed0", run(RECIPE, "vgg_a", "adam", 5e-4)),
        ("vgg_a_lr5e-05", "vgg_a/adam-lr5e-5-wd1e-4-seed0", run(RECIPE, "vgg_a", "adam", 5e-5)),
    ],
    1: [
        ("vgg_a_bn_lr0.001", "vgg_a_bn/adam-lr1e-3-wd1e-4-seed0", run(RECIPE, "vgg_a_bn", "adam", 1e-3)),
        ("vgg_a_bn_lr0.0001", "vgg_a_bn/adam-lr1e-4-wd1e-4-seed0", run(RECIPE, "vgg_a_bn", "adam", 1e-4)),
        ("vgg_a_bn_lr0.0005", "vgg_a_bn/adam-lr5e-4-wd1e-4-seed0", run(RECIPE, "vgg_a_bn", "adam", 5e-4)),
        ("vgg_a_bn_lr5e-05", "vgg_a_bn/adam-lr5e-5-wd1e-4-seed0", run(RECIPE, "vgg_a_bn", "adam", 5e-5)),
    ],
    2: [("inception", "inception/adam-lr1e-4-wd0-seed0", run(RECIPE, "inception", "adam", 1e-4, weight_decay=0.0))],
    3: [
        (
            "inception_res", "inception_res/adam-lr1e-4-wd0-seed0",
            run(RECIPE, "inception_res", "adam", 1e-4, weight_decay=0.0),
        ),
    ],
    4: [
        (
            "inception_res_adam", "inception_res/adam-lr1e-4-wd1e-4-seed0",
            run(RECIPE, "inception_res", "adam", 1e-4),
        ),
        (
            "inception_res_adamw", "inception_res/adamw-lr1e-4-wd1e-4-seed0",
            run(RECIPE, "inception_res", "adamw", 1e-4),
        ),
        (
            "inception_res_rmsprop", "inception_res/rmsprop-lr1e-4-wd1e-4-seed0",
            run(RECIPE, "inception_res", "rmsprop", 1e-4),
        ),
    ],
    5: [
        (
            "inception_res_unscaled", "inception_res/adam-lr1e-4-wd0-seed0-scale1",
            run(RECIPE, "inception_res", "adam", 1e-4, weight_decay=0.0, options={"residual_scale": 1.0}),
        ),
    ],
    6: [
        (
            "large_lr_adam_1e-3", "inception_res/adam-lr1e-3-wd1e-4-seed0",
            run(RECIPE, "inception_res", "adam", 1e-3),
        ),
    ],
    7: [
        (
            "large_lr_adam_1e-2", "inception_res/adam-lr1e-2-wd1e-4-seed0",
            run(RECIPE, "inception_res", "adam", 1e-2),
        ),
    ],
    8: [
        (
            "large_lr_sgd_momentum", "inception_res/sgd-lr1e-2-wd1e-4-seed0-momentum0.9",
            run(RECIPE, "inception_res", "sgd", 1e-2, momentum=0.9),
        ),
    ],
}  # fmt: skip


@pytest.mark.parametrize("place", RUNS)
@pytest.mark.parametrize(
    "preset, epochs, of_preset",
    [
        ("report", EPOCHS, {}),
        ("laptop", (42,) * 6 + (4,) * 3, {"width": 0.25}),
        ("quick", (9,) * 6 + (3,) * 3, {"width": 0.125, "train_size": 10_000, "test_size": 2_000}),
    ],
)
def test_what_a_command_of_the_list_trains(place, preset, epochs, of_preset):
    command = LISTS[preset].splitlines()[place]
    for seed in (0, 2):
        trained = asked(command if not seed else f"{command} --seed {seed}")
        assert len(trained) == len(RUNS[place])
        for (got_epochs, folder, config), (name, below, settings) in zip(trained, RUNS[place], strict=True):
            expected = settings | of_preset | {"seed": seed}
            assert (got_epochs, asdict(config)) == (epochs[place], expected), name
            assert folder == f"results/{preset}/{below.replace('seed0', f'seed{seed}')}"
            # What figures and verdicts look for under that name is the same run.
            assert asdict(config_of(name, preset, seed)) == expected
            assert str(folder_of(name, "results", preset, seed)) == folder


@pytest.mark.parametrize(
    "preset, epochs, recipe", [("paper", 39, PAPER), ("paper-quick", 10, PAPER_QUICK)], ids=["paper", "paper-quick"]
)
def test_what_the_paper_presets_train(preset, epochs, recipe):
    for command, model in zip(LISTS[preset].splitlines(), ("vgg_a", "vgg_a_bn"), strict=True):
        expected = run(recipe, model, "sgd", 0.1)
        ((got_epochs, folder, config),) = asked(command)
        assert (got_epochs, asdict(config)) == (epochs, expected)
        assert folder == f"results/{preset}/{model}/sgd-lr1e-1-wd0-seed0"
        assert asdict(config_of(f"paper_{model}", preset)) == expected


@pytest.mark.parametrize(
    "words, folder",
    [
        ("--activation gelu --loss label_smoothing", "adam-lr1e-3-wd1e-4-seed0-gelu-label_smoothing"),
        ("--activation relu --loss cross_entropy", "adam-lr1e-3-wd1e-4-seed0"),
        ("--schedule cosine --warmup 2.5", "adam-lr1e-3-wd1e-4-seed0-cosine-warmup2.5-epochs200"),
        ("--schedule constant --warmup 0", "adam-lr1e-3-wd1e-4-seed0"),
        ("--augment none", "adam-lr1e-3-wd1e-4-seed0-noaugment"),
        ("--augment flip-crop --validation-size 5000", "adam-lr1e-3-wd1e-4-seed0-validation5000-flip-crop"),
        ("--augment report --validation-size 0", "adam-lr1e-3-wd1e-4-seed0"),
        ("--no-augment", "adam-lr1e-3-wd1e-4-seed0-noaugment"),
        ("--no-bias-decay --seed-per-rate", "adam-lr1e-3-wd1e-4-seed0-nobiasdecay-seedperrate"),
        ("--init pytorch --width 0.5", "adam-lr1e-3-wd1e-4-seed0-width0.5-initpytorch"),
        ("--no-width-transfer --width 0.5", "adam-lr1e-3-wd1e-4-seed0-width0.5-notransfer"),
        ("--batch-size 64 --train-size 500 --test-size 70", "adam-lr1e-3-wd1e-4-seed0-batch64-train500-test70"),
        ("--precision bf16 --probe-every 20 --seed 12", "adam-lr1e-3-wd1e-4-seed12-bf16-probe20"),
        ("--optimizer sgd --momentum 0.9 --lrs 0.15 --weight-decay 0", "sgd-lr1.5e-1-wd0-seed0-momentum0.9"),
        ("--deterministic --no-channels-last --device cpu --epochs 3", "adam-lr1e-3-wd1e-4-seed0"),
    ],
)
def test_a_folder_is_named_after_what_changes_numbers(words, folder):
    assert [path for _, path, _ in asked(f"python MyVGG.py {words}")] == [f"results/report/vgg_a/{folder}"]


# --- What each flag does ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return recorded.write_numbered(tmp_path_factory.mktemp("numbered"))


def wide(config) -> nn.Module:
    """With a class for every number of an image: probes take the loss themselves."""
    return nn.Sequential(nn.AvgPool2d(16), nn.Flatten(), nn.Linear(12, recorded.TRAIN))


def first_convolution(script, data, words: str) -> nn.Conv2d:
    return next(m for m in recorded.network(script, data, words).modules() if isinstance(m, nn.Conv2d))


@pytest.mark.parametrize(
    "words, scale",
    [("", 0.2), ("--residual-scale 1.0", 1.0), ("--residual-scale 0.1", 0.1), ("--residual-side shortcut", 1.0)],
)
def test_the_residual_scale_is_that_of_every_block(words, scale, data):
    """Where the input is 0, and with it the shortcut, and the branches give 10, a block gives 10 times its scale."""
    model = recorded.network(MyFramework, data, f"--model inception_res {words}")
    blocks = [m for m in model.modules() if isinstance(m, MyFramework.Block)]
    assert len(blocks) == 9
    for block in blocks:
        channels = block.branches[0][0].in_channels
        for branch in block.branches:
            nn.init.zeros_(branch[-1].weight)
            nn.init.constant_(branch[-1].bias, 10)
        out = block(torch.zeros(2, channels, 3, 3))
        assert out.unique().tolist() == pytest.approx([10 * scale])


def test_inception_has_no_residual(data):
    names = recorded.network(MyFramework, data, "--model inception").state_dict()
    assert not any("shortcut" in name for name in names)
    assert any("shortcut" in name for name in recorded.network(MyFramework, data, "--model inception_res").state_dict())


@pytest.mark.parametrize(
    "script, words, norms",
    [(MyVGG, "", 0), (MyVGG, "--bn", 10), (MyFramework, "--model inception", 0),
     (MyFramework, "--model inception --bn", 56), (MyFramework, "--model inception_res --bn", 62)],
)  # fmt: skip
def test_bn_puts_a_batch_norm_behind_every_convolution_and_hidden_layer(script, words, norms, data):
    modules = list(recorded.network(script, data, f"{words} --width 1").modules())
    assert sum(isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d) for m in modules) == norms


@pytest.mark.parametrize("script", [MyVGG, MyFramework])
@pytest.mark.parametrize("width, channels", [("1", 64), ("0.5", 32), ("0.2", 16)])
def test_width_scales_channels(script, width, channels, data):
    assert first_convolution(script, data, f"--width {width}").out_channels == channels


@pytest.mark.parametrize("script", [MyVGG, MyFramework])
@pytest.mark.parametrize("words, variance", [("", 2 / 27), ("--init he", 2 / 27), ("--init pytorch", 1 / 81),
                                             ("--init xavier", 2 / (9 * 67))])  # fmt: skip
def test_init_draws_the_weights(script, words, variance, data):
    weight = first_convolution(script, data, f"--width 1 {words}").weight
    assert weight.var().item() == pytest.approx(variance, rel=0.1)  # three standard deviations


@pytest.mark.parametrize("script", [MyVGG, MyFramework])
@pytest.mark.parametrize(
    "words, sizes", [("", [50, 50, 30]), ("--batch-size 40", [40, 40, 40, 10]), ("--train-size 70", [50, 20])]
)
def test_batch_size_and_train_size_make_the_batches(script, words, sizes, data):
    seen = recorded.steps(script, data, f"--epochs 1 {words}", recorded.small)
    assert [len(s.labels) for s in seen] == sizes
    assert sorted(int(x) for s in seen for x in s.labels) == list(range(sum(sizes)))  # the first of the data set


@pytest.mark.parametrize("script", [MyVGG, MyFramework])
def test_no_augment_trains_on_the_images_as_they_are(script, data):
    with np.load(data / "cifar10.npz") as arrays:
        pixels = torch.from_numpy(arrays["train_images"]).permute(0, 3, 1, 2)
    for words, same in (("--no-augment", True), ("--augment none", True), ("--augment flip-crop", False), ("", False)):
        step = recorded.steps(script, data, words, recorded.small)[0]
        assert torch.allclose(step.images, pixels[step.labels] / 127.5 - 1, atol=1e-6) == same


def passes(data, words: str) -> list[tuple[int, bool, torch.dtype]]:
    """Images, mode (training or not) and precision of every forward pass of a training."""
    seen = []

    def take_down(model, images, out):
        if not out.is_meta:
            seen.append((len(out), model.training, out.dtype))

    def build(config):
        model = recorded.small(config)
        model.register_forward_hook(take_down)
        return model

    recorded.train(MyVGG, data, words, build)
    return seen


@pytest.mark.parametrize("words, size", [("", 20), ("--test-size 13", 13)])
def test_test_size_is_that_of_the_evaluation_which_ends_an_epoch(words, size, data):
    epoch = [(50, True), (50, True), (30, True), (size, False)]
    assert [seen[:2] for seen in passes(data, words)] == epoch * 2


@pytest.mark.parametrize(
    "words, dtype",
    [("", torch.float32), ("--precision fp32", torch.float32), ("--precision bf16", torch.bfloat16)],
)
def test_precision_is_that_of_the_forward_pass(words, dtype, data):
    assert {seen[2] for seen in passes(data, f"--epochs 1 {words}")} == {dtype}


@pytest.mark.parametrize("words, wanted", [("--deterministic", True), ("", False)])
def test_deterministic_asks_pytorch_for_it(words, wanted, data, monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    benchmark = torch.backends.cudnn.benchmark
    try:
        recorded.network(MyVGG, data, words)
        assert torch.are_deterministic_algorithms_enabled() == wanted
        assert torch.backends.cudnn.benchmark != wanted
        assert ("CUBLAS_WORKSPACE_CONFIG" in os.environ) == wanted
    finally:
        torch.use_deterministic_algorithms(False)
        torch.backends.cudnn.benchmark = benchmark


@pytest.mark.parametrize(
    "script, words, expected",
    [
        (MyVGG, "--lrs 0.2 0.3 --weight-decay 0.5", {("Adam", 0.2, 0.5), ("Adam", 0.3, 0.5)}),
        (MyVGG, "--optimizer sgd --momentum 0.9", {("SGD", 1e-3, 1e-4, 0.9)}),
        (MyVGG, "--optimizer rmsprop", {("RMSprop", 1e-3, 1e-4, 0.99)}),
        (MyFramework, "--lr 0.2 --weight-decay 0 --optimizer adamw adam", {("AdamW", 0.2, 0.0), ("Adam", 0.2, 0.0)}),
        (
            MyFramework, "--optimizer rmsprop sgd --momentum 0.7",
            {("RMSprop", 1e-4, 1e-4, 0.99), ("SGD", 1e-4, 1e-4, 0.7)},
        ),
    ],
)  # fmt: skip
def test_optimizer_learning_rate_weight_decay_and_momentum_reach_the_optimizer(script, words, expected, data):
    seen = set()

    def look(run, images, labels):
        (group,) = run.optimizer.param_groups
        own = {"rmsprop": "alpha", "sgd": "momentum"}.get(run.config.optimizer)
        seen.add((type(run.optimizer).__name__, group["lr"], group["weight_decay"], *([group[own]] if own else [])))
        return recorded.look(run, images, labels)

    recorded.train(script, data, f"--epochs 1 {words}", recorded.small, look)
    assert seen == expected


@pytest.mark.parametrize("words, probed", [("--probe-every 2", [2, 4, 6]), ("--probe-every 5", [5]), ("", [])])
def test_probe_every_says_at_which_steps_there_are_probes(words, probed, data, tmp_path):
    recorded.train(MyVGG, data, words, wide, results=tmp_path)
    rows = [line.split(",") for path in tmp_path.rglob("probes.csv") for line in path.read_text().splitlines()[1:]]
    assert [int(row[0]) for row in rows] == [step for step in probed for _ in range(10)]  # 10 step sizes


def test_a_switch_of_a_preset_can_be_undone_and_its_name_says_so():
    ((_, _, config),) = asked("python MyVGG.py --preset modern --no-test-time-flip --no-bn")
    assert (config.model, config.test_time_flip) == ("vgg_a", False)
    assert run_name(config, "modern") == "muon-lr8e-3-wd1e-1-seed0-notestflip"
    ((_, _, config),) = asked("python MyVGG.py --preset paper-quick --width-transfer")
    assert run_name(config, "paper-quick") == "sgd-lr1e-1-wd0-seed0-transfer"
    ((_, _, plain),) = asked("python MyVGG.py --test-time-flip --no-bias-decay")
    assert run_name(plain, "report") == "adam-lr1e-3-wd1e-4-seed0-nobiasdecay-testflip"


def test_an_optimizer_without_momentum_leaves_out_that_of_the_preset():
    ((_, _, config),) = asked("python MyVGG.py --preset modern --optimizer muon")
    assert (config.optimizer, config.momentum) == ("muon", 0.0)


def test_config_json_holds_what_was_asked_for(data, tmp_path):
    words = "--epochs 1 --lrs 0.25 --optimizer sgd --momentum 0.5 --init xavier --no-augment --precision fp32 --seed 3"
    recorded.train(MyVGG, data, words, recorded.small, results=tmp_path)
    (folder,) = tmp_path.glob("report/vgg_a/[!.]*")
    assert folder.name == (
        "sgd-lr2.5e-1-wd1e-4-seed3-momentum0.5-width0.03-initxavier-batch50-train130-test20-noaugment"
    )
    config = json.loads((folder / "config.json").read_text())
    assert config["settings"] == {
        "model": "vgg_a", "optimizer": "sgd", "lr": 0.25, "weight_decay": 1e-4, "bias_decay": True, "seed": 3,
        "seed_per_rate": False, "momentum": 0.5, "activation": "relu", "loss": "cross_entropy",
        "schedule": "constant", "warmup": 0.0, "schedule_epochs": 0, "test_time_flip": False,
        "ema": 0.0, "bn_images": 0, "cutout": 0, "mixup": 0.0, "first_size": 32,
        "width": 0.03, "width_transfer": True, "init": "xavier", "batch_size": 50, "train_size": 130, "test_size": 20,
        "validation_size": 0, "augment": "none", "device": "cpu", "precision": "fp32", "probe_every": 0, "options": {},
        "dataset": "cifar10", "classes": 10, "data_digest": "",
    }  # fmt: skip
    assert (config["schema"], config["preset"], config["epochs"]) == (2, "report", 1)
    assert (config["environment"]["torch"], config["environment"]["precision"]) == (torch.__version__, "fp32")
    with np.load(data / "cifar10.npz") as arrays:
        assert config["environment"]["data_sha256"] == {
            name: hashlib.sha256(array.tobytes()).hexdigest() for name, array in arrays.items()
        }

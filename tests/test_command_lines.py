"""Any command line gives valid settings or one line on standard error and status 2; any two runs have two folders."""

import argparse
import contextlib
import io
import os
import re
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, assume, event, given, settings
from hypothesis import strategies as st

import landscape
import MyFramework
import MyVGG
import plot_results
from cifar_lab.activations import ACTIVATIONS
from cifar_lab.losses import LOSSES
from cifar_lab.networks import build
from cifar_lab.optimizers import OPTIMIZERS, build_optimizer
from cifar_lab.schedules import SCHEDULES
from cifar_lab.settings import (
    ALL_PRESETS,
    AUGMENTS,
    INITS,
    LARGEST_DECAY,
    LARGEST_SEED,
    PRECISIONS,
    PRESETS,
    SHORT,
    SIZE,
    RunConfig,
    Settings,
    output,
    preset_defaults,
    run_folder,
    run_name,
)
from cifar_lab.training import script

SCRIPTS = {
    "MyVGG.py": (MyVGG, MyVGG.VGGSettings),
    "MyFramework.py": (MyFramework, MyFramework.InceptionSettings),
}

CHOICES = {
    "activation": ACTIVATIONS,
    "loss": LOSSES,
    "schedule": SCHEDULES,
    "init": INITS,
    "precision": PRECISIONS,
}  # by setting
CHOSEN = [*OPTIMIZERS, *(word for words in CHOICES.values() for word in words)]

# --- Words of a command line -----------------------------------------------------------------------------------------

texts = st.text(st.characters(exclude_characters="\0"), max_size=300)  # what an argument can hold
numbers = st.one_of(
    st.integers(-(10**12), 10**12).map(str),
    st.floats().map(str),
    st.sampled_from(
        ["0", "-0", "-0.0", "1", "1e-3", "0.001", "1e-400", "1e400", "inf", "nan", "1_000", "0x10", "٣", "\udce9"]
    ),
    st.integers(4000, 6000).map(lambda digits: "9" * digits),
)
named = st.sampled_from([*ALL_PRESETS, *CHOSEN, *MyFramework.MODELS, "cpu", "cuda", "ADAM", ""])
values = st.one_of(numbers, numbers, named, named, texts)


def flag_names(cls: type) -> list[str]:
    names = [field.name.replace("_", "-") for field in fields(cls) if field.metadata] + ["residual-scale"]
    return [f"--{prefix}{name}" for name in names for prefix in ("", "no-")]


def sensible(field) -> st.SearchStrategy[list[str]]:
    """A flag with a value that it may well take."""
    name, kind = f"--{field.name.replace('_', '-')}", type(field.default)
    if kind is bool:
        return st.just([f"--no-{name[2:]}" if field.default else name])
    by_kind = {
        int: st.integers(1, 2000).map(str),
        float: st.floats(1e-6, 1).map(str),
        str: st.sampled_from([*CHOSEN, *PRESETS, "cpu", str(field.default)]),
        tuple: st.sampled_from([*OPTIMIZERS, "1e-3", "0", "3"]),
    }
    value = by_kind.get(kind, texts)
    repeated = st.lists(value, min_size=1, max_size=3) if kind is tuple else st.tuples(value)
    return repeated.map(lambda words: [name, *words])


def command_lines(cls: type) -> st.SearchStrategy[list[str]]:
    """Sensible flags, with anything at all between them."""
    anything = st.one_of(
        values.map(lambda word: [word]),
        st.tuples(st.sampled_from(flag_names(cls)), values).map(list),
        st.tuples(st.sampled_from(flag_names(cls)), values).map(lambda pair: ["=".join(pair)]),
    )
    good = st.one_of([sensible(field) for field in fields(cls) if field.metadata])
    groups = st.one_of(st.lists(good, max_size=4), st.lists(st.one_of(good, anything), max_size=5))
    return groups.map(lambda found: [word for group in found for word in group])


def parsed(parse, argv: list[str]):
    """What a parser returns, None where it refuses the words as it should or only shows its help."""
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            return parse(argv)
    except SystemExit as ended:
        status = ended.code
    if status == 0:  # --help
        assert out.getvalue().startswith("usage: ") and not err.getvalue()
    else:
        assert status == 2
        assert err.getvalue().endswith("\n") and len(err.getvalue().splitlines()) == 1
        assert len(err.getvalue()) > 10 and not out.getvalue()
    return None


anything_goes = settings(max_examples=150, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))


# --- The scripts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCRIPTS)
@given(data=st.data())
@anything_goes
def test_training_scripts(name, data):
    module, cls = SCRIPTS[name]
    argv = data.draw(command_lines(cls))
    asked = parsed(lambda words: script.settings_of(cls, module.__file__, words), argv)
    event("refused" if asked is None else "accepted")
    if asked is None:
        return
    assert asked.preset in (ALL_PRESETS if module is MyVGG else Settings.presets)
    assert asked.epochs >= 1 and asked.batch_size >= 2 and 0 < asked.width <= 8
    assert 2 <= asked.train_size <= 50_000 and 1 <= asked.test_size <= 10_000
    assert 0 <= asked.checkpoint_seconds < float("inf")
    configs = [config for seed in asked.seed for config in asked.runs(seed)]
    assert configs
    folders = {run_folder("results", asked.preset, config) for config in configs}
    assert len(folders) == len(configs)
    for config in configs:
        assert 0 < config.lr < float("inf") and 0 <= config.weight_decay <= 10 and 0 <= config.seed <= LARGEST_SEED
        assert config.optimizer in OPTIMIZERS and (OPTIMIZERS[config.optimizer].momentum or not config.momentum)
    with torch.device("meta"):  # shapes only
        network = build(configs[0])
        build_optimizer(configs[0], network.parameters(), torch.device("meta"))
        last_batch = asked.train_size % asked.batch_size or asked.batch_size
        assert network.train()(torch.empty(min(last_batch, 4), 3, 32, 32)).shape == (min(last_batch, 4), 10)


@pytest.mark.parametrize(
    "name, words",
    [
        ("MyVGG.py", "--epochs 0"), ("MyVGG.py", "--lrs"), ("MyVGG.py", "--lrs 0"), ("MyVGG.py", "--lrs 1e-3 0.001"),
        ("MyVGG.py", "--lrs nan"), ("MyVGG.py", "--optimizer adagard"), ("MyVGG.py", "--momentum 0.9"),
        ("MyVGG.py", "--epoch 3"), ("MyVGG.py", "--preset tiny"), ("MyVGG.py", "extra"), ("MyVGG.py", "--bn=yes"),
        ("MyVGG.py", "--bn --train-size 101"), ("MyVGG.py", "--seed 1 1"), ("MyVGG.py", "--seed -1"),
        ("MyVGG.py", "--checkpoint-seconds inf"), ("MyFramework.py", "--model vgg"), ("MyFramework.py", "--width 9"),
        ("MyFramework.py", "--preset paper"), ("MyFramework.py", "--residual-scale 1 --model inception"),
        ("MyFramework.py", "--optimizer adam adam"), ("MyFramework.py", "--lr 1000001"),
        ("MyFramework.py", "--batch-size 1"), ("MyFramework.py", "--optimizer nesterov adam"),
    ],
)  # fmt: skip
def test_refused_words_are_named(name, words, capsys):
    module, cls = SCRIPTS[name]
    with pytest.raises(SystemExit) as ended:
        script.settings_of(cls, module.__file__, words.split())
    said = capsys.readouterr()
    assert ended.value.code == 2 and not said.out
    assert said.err.startswith(f"{name}: ") and said.err.count("\n") == 1
    assert re.split("[ =]", words)[0] in said.err


def test_minus_zero_is_zero():
    zero, minus = (
        script.settings_of(MyFramework.InceptionSettings, MyFramework.__file__, ["--residual-scale", text]).runs(0)[0]
        for text in ("0", "-0.0")
    )
    assert run_name(zero, "report") == run_name(minus, "report")


@pytest.mark.parametrize("main", [plot_results.main, landscape.main])
@given(argv=st.lists(st.one_of(values, st.sampled_from(["--help", "--results", "--", "-x"])), max_size=4))
@anything_goes
def test_figures_from_an_empty_folder(main, argv, tmp_path_factory):
    assume(argv[:1] != ["surface"])
    with contextlib.chdir(tmp_path_factory.getbasetemp()):
        assert parsed(main, argv) is None


@given(
    argv=st.lists(
        st.one_of(
            st.tuples(
                st.sampled_from(["--dims", "--points", "--range", "--images", "--seed", "--mode", "--x"]), values
            ),
            st.tuples(values),
            st.sampled_from([("--points", "11"), ("--dims", "1"), ("nowhere",)]),
        ),
        max_size=5,
    ).map(lambda found: [word for group in found for word in group])
)
@anything_goes
def test_surface(argv):
    options = parsed(landscape.surface_parser().parse_args, argv)
    if options is not None:
        assert options.folders and options.dims in ("1", "2") and options.points % 2 == 1
        assert 0 < options.range <= 1e3 and (options.images is None or options.images >= 2)


# --- Folder names ----------------------------------------------------------------------------------------------------

positive = st.floats(5e-324, 1e6)
run_configs = st.builds(
    RunConfig,
    model=st.sampled_from(["inception", "inception_res", "vgg_a", "inception_bn", "inception_res_bn", "vgg_a_bn"]),
    optimizer=st.sampled_from(list(OPTIMIZERS)),
    lr=positive,
    weight_decay=st.floats(0, 10),
    bias_decay=st.booleans(),
    test_time_flip=st.booleans(),
    ema=st.floats(0, LARGEST_DECAY),
    bn_images=st.integers(0, 50_000),
    cutout=st.integers(0, SIZE),
    mixup=st.floats(0, 100),
    first_size=st.integers(8, SIZE),
    seed_per_rate=st.booleans(),
    seed=st.integers(0, LARGEST_SEED),
    momentum=st.floats(0, 1),
    options=st.one_of(st.just({}), st.floats(0, 100).map(lambda scale: {"residual_scale": scale})),
    width=st.floats(0, 8, exclude_min=True),
    init=st.sampled_from(INITS),
    batch_size=st.integers(2, 100_000),
    activation=st.sampled_from(list(ACTIVATIONS)),
    loss=st.sampled_from(list(LOSSES)),
    schedule=st.sampled_from(list(SCHEDULES)),
    warmup=st.floats(0, 1e6),
    schedule_epochs=st.integers(0, 10**6),
    train_size=st.integers(2, 50_000),
    test_size=st.integers(1, 10_000),
    validation_size=st.integers(0, 50_000),
    augment=st.sampled_from(list(AUGMENTS)),
    precision=st.sampled_from(PRECISIONS),
    probe_every=st.integers(0, 10**9),
    dataset=st.sampled_from(["cifar10", "fashion-mnist", "1_b.c"]),
)
NUMBER = r"\d+(?:\.\d+)?(?:e[+-]?\d+)?"
PATTERNS = {float: NUMBER, int: r"\d+", bool: "", str: r"fashion-mnist|1_b\.c"}


def pattern_of(key: str) -> str:
    """What the value of a setting is in a name."""
    if key == "augment":
        return "noaugment|flip-crop|report"
    return "|".join(CHOICES[key]) if key in CHOICES else PATTERNS[type(getattr(RunConfig, key))]


def words_of(key: str, short: str) -> str:
    """What stands before it: of a boolean the word for either value."""
    if not isinstance(getattr(RunConfig, key), bool):
        return short
    return f"{short}|{short[2:] if short.startswith('no') else f'no{short}'}"


NAME = re.compile(
    rf"(?P<optimizer>{'|'.join(OPTIMIZERS)})-lr(?P<lr>{NUMBER})-wd(?P<weight_decay>{NUMBER})-seed(?P<seed>\d+)"
    + "".join(rf"(?:-(?:{words_of(key, short)})(?P<{key}>{pattern_of(key)}))?" for key, short in SHORT.items())
    + rf"(?:-scale(?P<residual_scale>{NUMBER}))?"
)


def config_of_name(name: str, model: str, preset: str) -> RunConfig:
    """The settings that a folder's name says."""
    config = RunConfig(model, **preset_defaults(preset))
    for key, text in NAME.fullmatch(name).groupdict().items():
        if text is not None and key == "residual_scale":
            config = replace(config, options={key: float(text)})
        elif text is not None:
            kind = type(getattr(RunConfig, key))
            value = not getattr(config, key) if kind is bool else kind(text)
            config = replace(config, **{key: "none" if value == "noaugment" else value})
    return config


@given(run_configs, st.sampled_from(list(ALL_PRESETS)))
@anything_goes
def test_the_name_says_all_the_settings(config, preset):
    name = run_name(config, preset)
    assert len(name) >= 224 or config_of_name(name, config.model, preset) == config
    # For file systems that fold case; with room for what stands around it in other names, so that a digest may end it.
    assert name == name.casefold() and len(name) <= 224


@given(run_configs, st.data(), st.sampled_from(list(ALL_PRESETS)))
@anything_goes
def test_two_runs_have_two_folders(config, data, preset):
    other = data.draw(run_configs)
    changed = data.draw(st.sets(st.sampled_from([f.name for f in fields(RunConfig)]), min_size=1, max_size=2))
    other = replace(config, **{name: getattr(other, name) for name in changed})
    same = run_folder("results", preset, config) == run_folder("results", preset, other)
    assert same == (config == other)


# --- Files to write --------------------------------------------------------------------------------------------------


def test_a_file_to_write_is_absent_or_a_regular_one(tmp_path):
    of_csv = output(".csv")
    (tmp_path / "old.csv").write_text("old")
    (tmp_path / "link.csv").symlink_to("old.csv")
    (tmp_path / "dangling.csv").symlink_to("new.csv")
    assert of_csv(f"{tmp_path}/new.csv") == f"{tmp_path}/new.csv"
    assert of_csv(f"{tmp_path}/old.csv") == of_csv(f"{tmp_path}/link.csv") == f"{tmp_path}/old.csv"
    assert of_csv(f"{tmp_path}/dangling.csv") == f"{tmp_path}/new.csv"


@pytest.mark.skipif(os.name != "posix", reason="needs FIFOs")
@pytest.mark.parametrize(
    "name, why",
    [
        ("picture.png", "does not end in .csv"), ("nowhere/a.csv", "there is no folder"), ("fifo.csv", "not a regular"),
        ("folder.csv", "not a regular file"), ("device.csv", "not a regular file"), ("x" * 201 + ".csv", "200 bytes"),
        ("loop.csv", "not a regular file"), *((f"run/{name}", "is a run's own file") for name in (
            "epochs.csv", "steps.csv", "probes.csv", "sharpness-40iterations.csv", "surface-2d.csv")),
    ],
)  # fmt: skip
def test_what_a_command_must_not_replace(name, why, tmp_path):
    os.mkfifo(tmp_path / "fifo.csv")
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "device.csv").symlink_to("/dev/null")
    (tmp_path / "loop.csv").symlink_to("loop.csv")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").touch()
    with pytest.raises(argparse.ArgumentTypeError, match=why):
        output(".csv")(f"{tmp_path}/{name}")


@pytest.mark.parametrize(
    "own", ["config.json", "summary.json", "predictions.txt", "checkpoint.pt", "checkpoint.step9.pt"]
)
def test_no_file_of_a_run_is_replaced_whatever_its_kind(own, tmp_path):
    (tmp_path / "config.json").touch()
    with pytest.raises(argparse.ArgumentTypeError, match="is a run's own file"):
        output(Path(own).suffix)(f"{tmp_path}/{own}")


@pytest.mark.parametrize(
    "main, argv",
    [
        (plot_results.main, ["{run}", "--table", "{run}/epochs.csv"]),
        (plot_results.main, ["{run}", "--save", "{run}"]),
        (landscape.main, ["band", "{run}", "{run}", "--save", "{run}/nowhere/a.png"]),
        (MyVGG.main, ["--evaluate", "{run}", "--predict", "{run}", "--save", "{run}/epochs.csv"]),
        (MyVGG.main, ["--evaluate", "{run}", "--export", "{run}/checkpoint.pt"]),
    ],
)
def test_every_command_asks_before_it_computes(main, argv, tmp_path, capsys):
    (tmp_path / "config.json").touch()
    with pytest.raises(SystemExit) as ended:
        main([word.format(run=tmp_path) for word in argv])
    said = capsys.readouterr()
    assert ended.value.code == 2 and said.err.count("\n") == 1 and argv[-2] in said.err
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]

"""The screening design over the switches: its columns, planted effects that it finds, tables, figure and commands.

A row's settings, and where its made-up runs lie, come from the literals here, not from the product's design.
"""

import csv
import math
import shutil
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from made_up import write_run
from matplotlib.colors import to_hex
from test_figures import plotted, texts

import plot_results
from cifar_lab import reproduce
from cifar_lab.measures.screening import main_effects, plackett_burman
from cifar_lab.project import ROOT
from cifar_lab.report.claims import CLAIMS
from cifar_lab.run_folder.reader import find_run_folders
from cifar_lab.settings import RunConfig, run_folder
from cifar_lab.switches import SWITCHES, switches_of

# Plackett & Burman (1946): the first row for N = 12; the others are its cyclic shifts, and a row of minus.
FIRST = "++-+++---+-"
DESIGN = [[1 if x == "+" else -1 for x in FIRST[-shift:] + FIRST[:-shift]] for shift in range(11)] + [[-1] * 11]


def on_in(row: int) -> list[int]:
    """The columns that are on in a row."""
    return [column for column, x in enumerate(DESIGN[row]) if x > 0]


# --- The design and its effects ---------------------------------------------------------------------------------------


def test_the_columns_are_balanced_and_orthogonal():
    design = plackett_burman()
    assert design.tolist() == DESIGN
    assert (design.sum(axis=0) == 0).all()
    assert (design.T @ design == 12 * np.eye(11)).all()
    assert (design[-1] == -1).all()


@pytest.mark.parametrize("columns", [(0, 1, 2, 3, 5), (0, 1, 2, 3, 4, 5), (0, 1, 2, 3, 5, 6, 7)])
def test_effects_are_those_of_a_least_squares_fit(columns):
    """t(0.975) of 6, 5 and 4 degrees of freedom: Abramowitz & Stegun (1964), table 26.10."""
    values = np.random.default_rng(3).normal(0, 1, 12) + 2 * np.array(DESIGN)[:, columns[1]]
    matrix = np.column_stack([np.ones(12), np.array(DESIGN)[:, columns]])
    fit, residual, *_ = np.linalg.lstsq(matrix, values, rcond=None)
    degrees = 12 - matrix.shape[1]
    covariance = residual[0] / degrees * np.linalg.inv(matrix.T @ matrix)
    found = main_effects(values, columns)
    assert found.effects == pytest.approx(2 * fit[1:]) and found.degrees == degrees
    t = {6: 2.4469, 5: 2.5706, 4: 2.7764}[degrees]
    assert found.half == pytest.approx(2 * t * math.sqrt(covariance[1, 1]), rel=5e-5)


def test_without_scatter_there_is_no_interval():
    values = 0.1 + 0.7 * np.array(DESIGN)[:, 2]
    found = main_effects(values, (2, 4))
    assert found.effects == pytest.approx([1.4, 0]) and found.half is None
    assert main_effects(np.zeros(12), (2,)).half is None


def test_five_columns_or_fewer_could_be_added():
    """Three columns at least estimate the error; adding a switch leaves the rows of the others as they are."""
    assert len(SWITCHES) <= 8
    for claim in CLAIMS:
        assert switches_of(claim.runs)


INCEPTION_SWITCHES = ("init", "weight_decay", "bias_decay", "augment", "precision", "dropout")
VGG_SWITCHES = ("init", "weight_decay", "bias_decay", "augment")
APPLY = {
    "level": INCEPTION_SWITCHES,
    **dict.fromkeys(
        ("residual", "scaling", "overfitting", "optimizers", "large-lr"), (*INCEPTION_SWITCHES, "residual_side")
    ),
    "l2": tuple(s for s in (*INCEPTION_SWITCHES, "residual_side") if s != "weight_decay"),  # what it compares
    "bn-accuracy": (*VGG_SWITCHES, "precision"),
    **dict.fromkeys(
        ("bn-fluctuation", "bn-speed", "bn-band", "bn-spikes"), (*VGG_SWITCHES, "seed_per_rate", "precision")
    ),
}


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.id)
def test_the_switches_that_apply(claim):
    assert tuple(switch.setting for switch in switches_of(claim.runs)) == APPLY[claim.id]


# --- Made-up runs -----------------------------------------------------------------------------------------------------

CHANGES = {
    0: {"init": "pytorch"}, 1: {"weight_decay": 1e-4}, 2: {"bias_decay": False}, 3: {"augment": "none"},
    5: {"precision": "fp32"}, 6: {"dropout": 0.0}, 7: {"residual_side": "shortcut"},
}  # fmt: skip
QUICK = {"width": 0.125, "train_size": 10_000, "test_size": 2_000}
INCEPTION = RunConfig("inception", weight_decay=0.0, **QUICK)
RESIDUAL = RunConfig("inception_res", weight_decay=0.0, **QUICK)


def changed(config: RunConfig, columns, changes=CHANGES) -> RunConfig:
    """A run with the switches of these columns at their other level; what its network does not have stays."""
    for change in (changes[column] for column in columns if column in changes):
        ((name, value),) = change.items()
        if name == "residual_side" and config.model == "inception":
            continue
        option = name in ("dropout", "residual_side")
        config = replace(config, **({"options": {**config.options, name: value}} if option else change))
    return config


def write_pair(results, difference, columns=(), seed=0, **options):
    """The two runs of the claim `residual`: the plain one ends at 50%."""
    for config, final in ((INCEPTION, 50.0), (RESIDUAL, 50.0 + difference)):
        config = replace(changed(config, columns), seed=seed, **options)
        write_run(results, config, epochs=9, test_accuracy=[20, 30, 35, 40, 45, 46] + [final] * 3)


def write_design(results, effect, seeds=(0,), rows=range(12), **options):
    """effect: of a row's list of -1 and 1."""
    for seed, row in product(seeds, rows):
        write_pair(results, effect(DESIGN[row]), on_in(row), seed, **options)


def table(results, claim) -> dict[str, dict[str, str]]:
    with open(results / "quick" / f"switches-{claim}.csv", encoding="utf-8", newline="") as file:
        return {row["switch"].split(":")[0]: row for row in csv.DictReader(file)}


RESIDUAL_NAMES = [
    "initialization: he to pytorch", "weight decay: 0 to 1e-4", "decay of biases and norms: yes to no",
    "augmentation: report to none", "precision: auto to fp32", "dropout: 0.4 to 0",
    "scaled side: branch to shortcut",
]  # fmt: skip


@pytest.mark.parametrize("column", [0, 1, 2, 3, 5, 6, 7])
def test_a_planted_effect_is_found_and_no_other(column, tmp_path):
    """3 points of one switch; 0.2 of a column without one, of four: half an interval of 2.7764 x sqrt(0.2^2 / 4)."""
    write_design(tmp_path, lambda x: 4.6 + 1.5 * x[column] + 0.1 * x[9])
    drawn = plotted(tmp_path)
    rows = table(tmp_path, "residual")
    place = [0, 1, 2, 3, 5, 6, 7].index(column)
    assert [row["switch"] for row in rows.values()] == RESIDUAL_NAMES
    for i, row in enumerate(rows.values()):
        numbers = [float(row[key]) for key in ("effect", "low", "high", "at the preset's level", "at the other level")]
        expected = [3.0, 2.72236, 3.27764, 3.1, 6.1] if i == place else [0, -0.27764, 0.27764, 4.6, 4.6]
        assert numbers == pytest.approx(expected, abs=1e-4)
        assert (row["claim"], row["unit"], row["sign"]) == ("residual", "points", "same")
        assert float(row["with the preset's settings"]) == pytest.approx(3.0)
        assert float(row["changes side at"]) == pytest.approx(-3.0)
        assert (row["seeds"], row["degrees of freedom"], row["notes"]) == ("0", "4", "")
    section = next(part for part in drawn.report.split("\n## ") if part.startswith("Switches of `residual`"))
    assert f"| {RESIDUAL_NAMES[place]} | +3 [+2.72, +3.28] | +3.1 | +6.1 | same |" in section
    assert section.count("[-0.278, +0.278]") == 6
    assert f"  {RESIDUAL_NAMES[place]:<60} +3 [+2.72, +3.28]" in drawn.said


def test_the_figure(tmp_path):
    write_design(tmp_path, lambda x: 0.5 - 1.5 * x[6] + 0.4 * x[0] + 0.1 * x[9])
    drawn = plotted(tmp_path)
    figure = drawn.figures["switches-residual"]
    (axes,) = figure.axes
    labels = [label.get_text() for label in axes.get_yticklabels()]
    flips = "dropout: 0.4 to 0\n(flips, not trained alone yet)"
    assert labels[-2:] == ["initialization: he to pytorch", flips]
    assert {label.split("\n")[0] for label in labels} == set(RESIDUAL_NAMES)
    shown = {}
    for line in axes.lines:
        x, y = (np.asarray(data, dtype=float) for data in line.get_data())
        if len(set(y)) == 1:
            shown.setdefault(int(y[0]), []).append((x.tolist(), to_hex(line.get_color())))
    half = 0.27764
    assert len(shown) == 7
    for y, effect in ((6, -3.0), (5, 0.8), *((y, 0.0) for y in range(5))):
        (ends, colour), (point, colour_of_point) = shown[y]
        assert ends == pytest.approx([effect - half, effect + half], abs=1e-4) and point == pytest.approx([effect])
        assert colour == colour_of_point == ("#882255" if y == 6 else "#595959")
    vertical = [line.get_xdata()[0] for line in axes.lines if line.get_xdata()[0] == line.get_xdata()[-1]][:2]
    assert vertical == pytest.approx([0, -(0.5 + 1.5 - 0.4 - 0.1)])  # where the preset's value would reach 0
    words = texts(figure)
    assert "effect on the difference of the final test accuracies (points)" in words
    assert 'residual: effects of the switches on "residual + scaling improves it, 85 to 87%"' in words
    (note,) = (text for text in words if text.startswith("preset quick"))
    assert "seed 0: main effects of a 12-run design, 95% intervals (4 degrees of freedom)" in note
    assert "with the preset's settings +1.5" in note
    assert "## Switches of `residual`" in drawn.report
    assert "![Effects of the switches on the claim residual" in drawn.report


def test_a_side_that_is_far_away_leaves_room_for_the_intervals(tmp_path):
    """The final accuracy of 50% would have to rise by 33 points to be near 85%."""
    write_design(tmp_path, lambda x: 0.5 * x[0] + 0.1 * x[9])
    for row in range(12):
        config = changed(INCEPTION, on_in(row))
        rewritten = run_folder(tmp_path, "quick", config)
        shutil.rmtree(rewritten)
        write_run(tmp_path, config, epochs=9, test_accuracy=[50 + 0.5 * DESIGN[row][0] + 0.1 * DESIGN[row][9]] * 9)
    (axes,) = plotted(tmp_path).figures["switches-level"].axes
    assert -2 < axes.get_xlim()[0] < 0 < axes.get_xlim()[1] < 2


BAND_CHANGES = {
    0: {"init": "pytorch"}, 1: {"weight_decay": 0.0}, 2: {"bias_decay": False}, 3: {"augment": "none"},
    4: {"seed_per_rate": True}, 5: {"precision": "fp32"},
}  # fmt: skip


def write_bands(results, row, width):
    """A plain band 1 nat wide, and one of BatchNorm that is `width` times as wide."""
    for model, wide in (("vgg_a", 1.0), ("vgg_a_bn", width)):
        for i, lr in enumerate((1e-3, 1e-4, 5e-4, 5e-5)):
            config = changed(RunConfig(model, lr=lr, **QUICK), on_in(row), BAND_CHANGES)
            write_run(results, config, epochs=9, losses=np.full(900, 1 + wide * i / 3))


def test_a_ratio_is_screened_in_logarithms(tmp_path):
    """With a seed for each rate the band is e^-0.8 times as wide; of five columns without a switch one has 0.1."""
    for row, x in enumerate(DESIGN):
        write_bands(tmp_path, row, math.exp(0.3 - 0.4 * x[4] + 0.05 * x[8]))
    drawn = plotted(tmp_path)
    rows = table(tmp_path, "bn-band")
    assert list(rows) == ["initialization", "weight decay", "decay of biases and norms", "augmentation",
                          "a seed for each learning rate", "precision"]  # fmt: skip
    half = 2.5706 * math.sqrt(0.1**2 / 5)
    for name, row in rows.items():
        effect = -0.8 if name == "a seed for each learning rate" else 0
        assert [float(row[key]) for key in ("effect", "low", "high")] == pytest.approx(
            [effect, effect - half, effect + half], abs=1e-5
        )
        assert row["unit"] == "log" and row["notes"].startswith("the preset quick cannot decide this claim: the band")
    assert rows["a seed for each learning rate"]["sign"] == "flips, not trained alone yet"  # 0.7 and -0.1
    assert "| weight decay: 1e-4 to 0 |" in drawn.report
    # What shares all runs is screened too, what does not reach its level or needs a scatter of accuracies is not.
    assert {path.stem for path in (tmp_path / "quick").glob("switches-*")} >= {"switches-bn-band", "switches-bn-spikes"}


def test_effects_are_means_over_the_seeds_that_have_every_row(tmp_path):
    write_design(tmp_path, lambda x: 4 + x[3] + 0.1 * x[9], seeds=(0,))
    write_design(tmp_path, lambda x: 6 + 2 * x[3] - 0.3 * x[9], seeds=(2,))
    write_design(tmp_path, lambda x: 30, seeds=(1,), rows=range(11))
    plotted(tmp_path)
    row = table(tmp_path, "residual")["augmentation"]
    assert row["seeds"] == "0 2"
    half = 2.7764 * math.sqrt(0.2**2 / 4)
    assert [float(row[key]) for key in ("effect", "low", "high")] == pytest.approx([3, 3 - half, 3 + half], abs=1e-4)
    assert float(row["with the preset's settings"]) == pytest.approx((2.9 + 4.3) / 2)


def test_a_precision_that_is_the_usual_one_has_no_second_level(tmp_path):
    """On a machine whose usual precision is fp32 both levels are one run, and five columns have no switch."""
    del CHANGES[5]
    try:
        for row in range(12):
            write_pair(tmp_path, 4 + 1.5 * DESIGN[row][3] + 0.1 * DESIGN[row][9], on_in(row), device="cpu",
                       precision="fp32")  # fmt: skip
    finally:
        CHANGES[5] = {"precision": "fp32"}
    plotted(tmp_path)
    rows = table(tmp_path, "residual")
    assert "precision" not in rows and len(rows) == 6
    assert rows["augmentation"]["degrees of freedom"] == "5"
    assert rows["augmentation"]["notes"] == "precision: fp32 at both levels, so that its column has no factor"


def test_a_row_without_a_value_leaves_its_seed_out(tmp_path):
    write_design(tmp_path, lambda x: 4 + x[3] + 0.1 * x[9], seeds=(0,))
    write_design(tmp_path, lambda x: 4 + x[3] + 0.1 * x[9], seeds=(1,), rows=range(11))
    write_run(tmp_path, replace(INCEPTION, seed=1), epochs=9)
    write_run(tmp_path, replace(RESIDUAL, seed=1), epochs=9, diverged_at_step=350)
    plotted(tmp_path)
    row = table(tmp_path, "residual")["dropout"]
    assert (row["seeds"], row["notes"]) == ("0", "left out, as a row has no finite value: seed 1")


def test_rows_of_another_length_are_noted(tmp_path):
    write_design(tmp_path, lambda x: 4 + x[3], rows=range(11))
    for config in (INCEPTION, RESIDUAL):
        write_run(tmp_path, config, epochs=10)
    plotted(tmp_path)
    assert table(tmp_path, "residual")["dropout"]["notes"] == (
        "inception has 10 epochs instead of 9 in a row; inception_res has 10 epochs instead of 9 in a row"
    )


def test_a_design_that_is_not_complete_is_missing(tmp_path):
    write_design(tmp_path, lambda x: 4, rows=(0, 4, 11))
    drawn = plotted(tmp_path)
    assert not list((tmp_path / "quick").glob("switches-*"))
    assert f"switches of residual: python -m cifar_lab.reproduce quick --switches residual --results {tmp_path}" in (
        drawn.said
    )


@pytest.mark.parametrize("text", ["", "claim,effect\nresidual,1\n", "\0", "claim,effect,effect\n1,2\n"])
def test_a_table_that_is_none_is_said(text, tmp_path, capsys):
    write_run(tmp_path, "inception", epochs=9)
    (tmp_path / "quick" / "switches-residual.csv").write_text(text)
    assert plot_results.main([str(tmp_path)]) == 1
    assert "switches-residual.csv: not a table of switches" in capsys.readouterr().err


# --- Flips ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("alone", "sign"), [(-0.7, "flips, confirmed: -0.7 alone"), (0.2, "flips, not confirmed: +0.2 alone")]
)  # fmt: skip
def test_a_flip_is_confirmed_by_the_switch_alone(alone, sign, tmp_path):
    write_design(tmp_path, lambda x: 0.5 - 1.5 * x[6] + 0.1 * x[9])
    write_pair(tmp_path, alone, (6,))
    plotted(tmp_path)
    rows = table(tmp_path, "residual")
    assert {name: row["sign"] for name, row in rows.items()} == {
        name.split(":")[0]: sign if name.startswith("dropout") else "same" for name in RESIDUAL_NAMES
    }


@pytest.mark.parametrize(
    ("effect", "flips"),
    [
        # The two levels, 0.1 and -1.1, lie on two sides.
        (lambda x: -0.5 - 0.6 * x[6] + 0.02 * x[9], {"dropout"}),
        # Both levels of dropout, -0.7 and -1.7, lie on one side; but the preset's value is 0.66, and dropout moves it
        # by -1 +- 0.11.
        (lambda x: -1.2 - 0.5 * x[6] - 1.4 * x[0] + 0.04 * x[9], {"initialization", "dropout"}),
        # From 0.3 by -1 +- 1.1: not the whole interval lies on the other side.
        (lambda x: -1.2 - 0.5 * x[6] - 1.4 * x[0] + 0.4 * x[9], {"initialization"}),
        (lambda x: 5 - 0.5 * x[6] - 1.4 * x[0] + 0.04 * x[9], set()),
    ],
)
def test_what_flips(effect, flips, tmp_path):
    write_design(tmp_path, effect)
    plotted(tmp_path)
    rows = table(tmp_path, "residual")
    assert {name for name, row in rows.items() if row["sign"] != "same"} == flips


# --- Commands ---------------------------------------------------------------------------------------------------------

ROW_2 = (  # the second row, "-++-+++---+": weight decay, decay of biases, precision, dropout
    "python MyFramework.py --model inception --optimizer adam --weight-decay 1e-4 --no-bias-decay --precision fp32 "
    "--dropout 0 --preset quick",
    "python MyFramework.py --model inception_res --optimizer adam --weight-decay 1e-4 --no-bias-decay --precision fp32 "
    "--dropout 0 --preset quick",
)
ROW_12 = (
    "python MyFramework.py --model inception --optimizer adam --weight-decay 0 --preset quick",
    "python MyFramework.py --model inception_res --optimizer adam --weight-decay 0 --preset quick",
)


def listed(capsys, *words: str) -> list[str]:
    """The commands, as they are typed in the project's folder."""
    assert reproduce.main([*words, "--list"]) == 0
    return capsys.readouterr().out.replace(f"{ROOT}/", "").splitlines()


def test_the_commands_of_the_rows(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    commands = listed(capsys, "quick", "--switches", "residual")
    assert len(commands) == 24 and tuple(commands[2:4]) == ROW_2 and tuple(commands[22:]) == ROW_12
    vgg = listed(capsys, "report", "--switches", "bn-accuracy", "--seed", "0", "3")
    assert len(vgg) == 48  # only the learning rate that the claim needs
    assert [command.partition(" --lrs 1e-3 ")[2] for command in vgg[:4:2]] == [
        f"--init pytorch --weight-decay 0 --augment none --precision fp32 --epochs 200{seed}"
        for seed in ("", " --seed 3")
    ]
    band = listed(capsys, "quick", "--switches", "bn-band")
    assert band[3] == (
        "python MyVGG.py --bn --lrs 1e-3 1e-4 5e-4 5e-5 --weight-decay 0 --no-bias-decay --seed-per-rate "
        "--precision fp32 --preset quick"
    )


def test_what_is_trained_is_left_out(tmp_path, capsys):
    write_design(tmp_path, lambda x: 4, seeds=(0, 1), rows=range(11))
    write_design(tmp_path, lambda x: 4, seeds=(1,), rows=(11,))
    write_run(tmp_path, replace(INCEPTION, seed=0), epochs=9)
    write_run(tmp_path, replace(RESIDUAL, seed=0), epochs=9, test_accuracy=[30, 40], complete=False)
    into = f" --results {tmp_path}"
    words = ("quick", "--switches", "residual", "--results", str(tmp_path))
    assert listed(capsys, *words, "--seed", "0", "1") == [ROW_12[1] + into]
    assert len(listed(capsys, *words, "--seed", "2")) == 24


def test_every_row_then_the_flips_are_trained_and_all_of_it_drawn(trainer, tmp_path, capsys):
    """Dropout flips the sign in the design and alone; stopped after seven commands, the same command continues."""
    trainer.accuracy = lambda c: 50 + (c.model == "inception_res") * (-1 if c.options.get("dropout") == 0 else 2)
    words = ["quick", "--switches", "residual", "--results", str(tmp_path)]
    trainer.stop_at = 7
    assert reproduce.main(words) == reproduce.STOPPED
    assert len(trainer.commands) == 8 and trainer.commands[-1].startswith("python plot_results.py")
    trainer.stop_at, trainer.commands = None, []
    capsys.readouterr()
    assert reproduce.main(words) == 0
    assert len(trainer.commands) == 18 + 2 + 1  # the seventh command, the fourth row's plain network, had not ended
    assert [command.split(" --preset")[0] for command in trainer.commands[-3:-1]] == [
        f"python MyFramework.py --model {model} --optimizer adam --weight-decay 0 --dropout 0"
        for model in ("inception", "inception_res")
    ]
    said = capsys.readouterr().out
    assert "residual: a 12-run design over 7 switches (initialization, weight decay, " in said
    assert "residual: what flips the sign, alone: dropout" in said
    assert len(find_run_folders(tmp_path)) == 2 * 12 + 2
    trainer.commands = []
    assert reproduce.main(words) == 0 and len(trainer.commands) == 1
    assert listed(capsys, *words)[-1] == "residual: the design is complete"
    plotted(tmp_path)
    row = table(tmp_path, "residual")["dropout"]
    assert (row["effect"], row["low"], row["sign"]) == ("-3", "", "flips, confirmed: -1 alone")

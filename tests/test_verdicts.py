"""How a verdict comes about: Student's t, the outcome of a measure, values that are not finite, notes and tables.

The claims by direction, with their effects, are in test_claims.py.
"""

import csv
import io
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made_up import write_run

from cifar_lab.experiments import BN_BAND, EXPERIMENTS, PLAIN_BAND, RUNS
from cifar_lab.measures.statistics import fluctuation, t_quantile
from cifar_lab.report import verdicts
from cifar_lab.report.claims import ABOVE_0, BELOW_0, CLAIMS, Measure
from cifar_lab.report.verdicts import Estimate, judge_all
from cifar_lab.run_folder.reader import read_runs

README = Path(__file__).resolve().parent.parent / "README.md"
STEPS = 250  # of a run at the quick preset


def judged(results, claim, preset="quick"):
    """The verdict on one claim from a results folder."""
    runs, errors = read_runs(results, preset)
    assert not errors
    return next(verdict for verdict in judge_all(runs, preset) if verdict.claim.id == claim)


def level(accuracy):
    """Five epochs of one test accuracy."""
    return [accuracy] * 5


def write_bands(results, plain, bn, seed=0):
    """The eight runs of the landscape; plain, bn: the losses (250,) of each learning rate."""
    for names, curves in ((PLAIN_BAND, plain), (BN_BAND, bn)):
        for name, losses in zip(names, curves, strict=True):
            write_run(results, name, seed=seed, losses=losses)


def flat_band(low, high):
    """Four losses, constant, evenly spaced from `low` to `high`."""
    return [np.full(STEPS, level) for level in np.linspace(low, high, 4)]


# --- Student's t ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("degrees", [*range(1, 31), 31, 50, 200, 10_000])
def test_t_quantiles(degrees):
    """The density's integral from 0 to the quantile is 0.475."""
    t = np.linspace(0, t_quantile(degrees), 200_001)
    log_norm = math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2) - 0.5 * math.log(degrees * math.pi)
    density = np.exp(log_norm - (degrees + 1) / 2 * np.log1p(t**2 / degrees))
    assert np.trapezoid(density, t) == pytest.approx(0.475, abs=3e-6)  # 4 decimals are tabulated


def test_interval_by_hand():
    estimate = Estimate(Measure("", "", ".2f", ABOVE_0), np.array([1.0, 2.0, 3.0]))
    assert estimate.mean == 2
    assert estimate.interval == pytest.approx((2 - 4.3027 / math.sqrt(3), 2 + 4.3027 / math.sqrt(3)))
    assert Estimate(estimate.measure, np.array([1.0])).interval is None


@pytest.mark.parametrize(
    ("values", "side", "outcome"),
    [
        ([1, 1.1, 1.2], ABOVE_0, "supported"),
        ([1, 1.1, 1.2], BELOW_0, "reversed"),
        ([-1, 1.1, 1.2], ABOVE_0, "undecided"),
        ([85, 85.1, 85.2], (83, 87), "supported"),
        ([82, 82.1, 82.2], (83, 87), "reversed"),
        ([88, 88.1, 88.2], (83, 87), "reversed"),
        ([82, 85, 88], (83, 87), "undecided"),
        ([0, 0, 0], ABOVE_0, "undecided"),
        ([0, 0, 0], BELOW_0, "undecided"),
        ([math.inf, math.inf, 3], ABOVE_0, "supported"),
        ([-math.inf, -math.inf, -math.inf], ABOVE_0, "reversed"),
        ([-math.inf, 1, 1], ABOVE_0, "undecided"),
        ([math.nan, 1, 1], ABOVE_0, "undecided"),
        ([], ABOVE_0, "undecided"),
        ([2.0], ABOVE_0, "supported"),
        ([2.0, -1.0], ABOVE_0, "supported"),
        ([-2.0, 1.0], ABOVE_0, "reversed"),
    ],
)
def test_outcome_of_a_measure(values, side, outcome):
    assert Estimate(Measure("", "", ".2f", side), np.array(values, dtype=float)).outcome == outcome


# --- Each kind of verdict, on whole run folders -----------------------------------------------------------------------


def test_a_run_in_progress_decides_nothing(tmp_path):
    write_run(tmp_path, "inception")
    write_run(tmp_path, "inception_res", test_accuracy=[20, 30], complete=False)
    verdict = judged(tmp_path, "residual")
    assert verdict.outcome == "not run"
    assert verdict.notes == ("in progress: inception_res, seed 0, 2 of 5 epochs",)
    command = "python MyFramework.py --model inception_res --optimizer adam --weight-decay 0 --preset quick"
    assert verdict.commands == (f"{command} --results {tmp_path}",)


def test_a_shorter_run_is_noted(tmp_path):
    write_run(tmp_path, "inception", epochs=3)
    write_run(tmp_path, "inception_res")
    assert judged(tmp_path, "residual").notes == ("inception has 3 epochs instead of 5",)


# --- The effects ------------------------------------------------------------------------------------------------------


def test_fluctuation_ignores_a_trend():
    trend = np.arange(200) * 0.3
    noise = np.random.default_rng(0).normal(0, 0.7, 200)
    assert fluctuation(trend, 200) == pytest.approx(0)
    assert fluctuation(trend + noise, 200) == pytest.approx(0.7, rel=0.2)


def test_fluctuation_by_hand():
    # Epochs 3 to 5 of 5: differences 2 and -1, whose standard deviation is 3 / sqrt(2).
    assert fluctuation(np.array([99.0, 1.0, 10.0, 12.0, 11.0]), 5) == pytest.approx(1.5)
    # Of the first four epochs the last half has one difference.
    assert math.isnan(fluctuation(np.array([99.0, 1.0, 10.0, 12.0, 11.0]), 4))


@pytest.mark.parametrize(
    ("unscaled", "scaled", "outcome", "words"),
    [
        ((90, 90, 90), (None, None, None), "supported", "only scale 1.0 diverged"),
        ((None, None, None), (90, 90, 90), "reversed", "only scale 0.2 diverged"),
        ((90, 90, 90), (90, 90, 90), "undecided", "both diverged"),
        ((90, None), (None, None), "undecided (2 seeds)", "only scale 1.0 diverged, +0.00 per 1,000 steps"),
        ((90,), (None,), "agrees (1 seed)", "only scale 1.0 diverged"),
    ],
)
def test_scaling_counts_a_diverged_run_as_unstable(tmp_path, unscaled, scaled, outcome, words):
    for seed, steps in enumerate(zip(unscaled, scaled, strict=True)):
        for name, step in zip(("inception_res_unscaled", "inception_res"), steps, strict=True):
            losses = np.full(STEPS if step is None else step - 1, 0.5)
            write_run(tmp_path, name, seed=seed, losses=losses, diverged_at_step=step)
    verdict = judged(tmp_path, "scaling")
    assert verdict.outcome == outcome
    assert str(verdict.estimates[0]) == words


def falling(step):
    """A band whose middle falls from 2 to 0.5 after `step`; None: never."""
    curve = np.where(np.arange(STEPS) < (STEPS if step is None else step), 2.0, 0.5)
    return [curve + x for x in (-0.1, 0, 0.05, 0.1)]


@pytest.mark.parametrize(
    ("bn", "plain", "outcome", "words"),
    [
        ([30, 31, 30], [60, 60, 60], "supported", None),
        ([60, 60, 60], [30, 31, 30], "reversed", None),
        ([30, 60, 30], [60, 30, 30], "undecided", None),
        ([30], [60], "agrees (1 seed)", "-30 steps"),
        ([30, 30, 30], [None, None, None], "supported", "reached with BatchNorm only"),
        ([None, None, None], [30, 30, 30], "reversed", "reached without BatchNorm only"),
        ([30, 30, None], [None, None, 30], "undecided", None),
        ([30, 30, 30], [None, 60, None], "supported", None),
        ([None], [None], "undecided (1 seed)", "reached by neither"),
    ],
)
def test_speed_takes_not_reached_as_a_value(tmp_path, bn, plain, outcome, words):
    for seed, (a, b) in enumerate(zip(bn, plain, strict=True)):
        write_bands(tmp_path, falling(b), falling(a), seed)
    verdict = judged(tmp_path, "bn-speed")
    assert verdict.outcome == outcome
    assert words in (None, str(verdict.estimates[0]))
    for estimate, steps in zip(verdict.estimates[1:], (bn, plain), strict=True):
        assert ("not reached" in str(estimate)) == (None in steps)


def test_a_diverged_run_is_missing_from_the_band(tmp_path):
    for results, length in (("whole", STEPS), ("late", 200), ("early", 50)):
        *others, last = flat_band(1, 2)
        for name, losses in zip(PLAIN_BAND + BN_BAND, [*others, last[:length], *flat_band(1, 1.5)], strict=True):
            diverged = len(losses) + 1 if len(losses) < STEPS else None
            write_run(tmp_path / results, name, losses=losses, diverged_at_step=diverged)
    widths = {name: judged(tmp_path / name, "bn-band").estimates[3].mean for name in ("whole", "late", "early")}
    assert widths["whole"] == widths["late"] == pytest.approx(1)  # the band is the first half of the run: 125 steps
    assert widths["early"] == pytest.approx((50 * 1 + 75 * 2 / 3) / 125)


# --- The tables -------------------------------------------------------------------------------------------------------

RUNS_OF = {claim.id: claim.runs for claim in CLAIMS}


def test_every_claim_stands_with_the_runs_that_train_it():
    assert len(RUNS_OF) == len(CLAIMS) == 12
    assert {run for runs in RUNS_OF.values() for run in runs} <= set(RUNS)
    assert {run for runs in RUNS_OF.values() for run in runs} == {name for e in EXPERIMENTS for name in e.names}


def test_every_claim_has_a_measure_that_decides():
    for claim in CLAIMS:
        assert any(measure.side for measure in claim.measures)
        for measure in claim.measures:
            assert format(1.5, measure.form)


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """Verdicts on two seeds of every run of the report but the plain Inception's."""
    results = tmp_path_factory.mktemp("results")
    for name in dict.fromkeys(run for experiment in EXPERIMENTS for run in experiment.names):
        for seed in (0, 1):
            if name != "inception":
                write_run(results, name, seed=seed)
    return judge_all(read_runs(results, "quick")[0], "quick")


def test_the_csv_has_a_row_a_measure(quick):
    rows = list(csv.DictReader(io.StringIO(verdicts.to_csv({"": quick}))))
    assert list(rows[0]) == [
        "claim", "the report says", "supported when", "verdict", "measure", "unit", "decides", "mean", "low", "high",
        "seeds", "values", "notes", "runs",
    ]  # fmt: skip
    assert len(rows) == sum(max(1, len(v.estimates)) for v in quick)
    assert {row["claim"]: row["verdict"] for row in rows} == {v.claim.id: v.outcome for v in quick}
    row = next(row for row in rows if row["claim"] == "bn-accuracy")
    values = [float(x) for x in row["values"].split()]
    assert float(row["mean"]) == pytest.approx(np.mean(values), rel=1e-5)
    assert float(row["low"]) < float(row["mean"]) < float(row["high"])
    assert row["seeds"] == "0 1" and row["decides"] == "yes"
    missing = next(row for row in rows if row["claim"] == "level")
    command = "python MyFramework.py --model inception --optimizer adam --weight-decay 0 --preset quick --seed 0 1"
    assert missing["notes"].startswith(f"run: {command} --results ")
    assert missing["mean"] == ""


def test_markdown_and_text_have_a_row_a_claim(quick):
    ids = [
        "level", "residual", "scaling", "overfitting", "optimizers", "l2", "large-lr", "bn-accuracy", "bn-fluctuation",
        "bn-speed", "bn-band", "bn-spikes",
    ]  # fmt: skip
    markdown = verdicts.to_markdown(quick).splitlines()
    assert [re.match(r"\| `([\w-]+)` \|", line)[1] for line in markdown[2:]] == ids
    assert {line.count(" | ") for line in markdown if "---" not in line} == {5}
    text = verdicts.to_text(quick).splitlines()
    assert [line.split()[0] for line in text] == ids
    assert all("not run" not in line or "python My" in line for line in text)


def claims_of_readme():
    """(id, statement) of each row of the table under the heading "The claims"."""
    section = re.search(r"^#+ The claims\n(.*?)(?=^#|\Z)", README.read_text(encoding="utf-8"), re.M | re.S)
    assert section, 'README.md has no heading "The claims"'
    return re.findall(r"^\| *`([\w-]+)` *\| *(.*?) *\|", section[1], re.M)


@pytest.mark.skipif(not README.exists(), reason="no README.md")
def test_the_readme_lists_the_claims():
    assert claims_of_readme() == [(claim.id, claim.statement) for claim in CLAIMS]


def test_a_claim_more_is_an_entry_more(tmp_path):
    write_run(tmp_path, "inception", test_accuracy=level(50))
    extra = replace(CLAIMS[0], id="half", measures=(replace(CLAIMS[0].measures[0], side=(49, 51)),), decided_at=None)
    found = verdicts.report_runs(read_runs(tmp_path, "quick")[0], "quick")
    assert verdicts.judge(extra, found, "quick").outcome == "agrees (1 seed)"

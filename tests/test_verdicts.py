"""Effects and verdicts on made-up logs: every outcome, and the definitions that the effects rest on."""

import csv
import io
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made_up import write_run

import verdicts
from cifar_lab.experiments import BN_BAND, EXPERIMENTS, PLAIN_BAND, RUNS, command_for
from cifar_lab.runs import read_runs
from verdicts import ABOVE_0, BELOW_0, CLAIMS, Estimate, Measure, fluctuation, judge_all, t_quantile

README = Path(verdicts.__file__).with_name("README.md")
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


@pytest.mark.parametrize(
    ("differences", "outcome"),
    [
        ([1.0, 1.2, 1.1], "supported"),
        ([-1.0, -1.2, -1.1], "reversed"),
        ([1.0, -1.0, 0.1], "undecided"),
        ([1.0], "agrees (1 seed)"),
        ([-1.0], "disagrees (1 seed)"),
        ([0.0], "undecided (1 seed)"),
        ([3.0, -1.0], "agrees (2 seeds)"),
    ],
)
def test_a_difference_of_finals_is_paired_by_seed(tmp_path, differences, outcome):
    for seed, difference in enumerate(differences):
        write_run(tmp_path, "inception", seed=seed, test_accuracy=level(50 + 10 * seed))
        write_run(tmp_path, "inception_res", seed=seed, test_accuracy=level(50 + 10 * seed + difference))
    verdict = judged(tmp_path, "residual")
    assert verdict.outcome == outcome
    assert verdict.seeds == tuple(range(len(differences)))
    assert verdict.estimates[0].values == pytest.approx(differences)


def test_not_run_names_the_command(tmp_path):
    for seed in (1, 2):
        write_run(tmp_path, "inception", seed=seed)
    verdict = judged(tmp_path, "residual")
    assert verdict.outcome == "not run"
    assert verdict.commands == (command_for("inception_res", "quick", (1, 2), tmp_path),)
    assert judged(tmp_path, "bn-band").commands == (
        command_for(BN_BAND[0], "quick", (1, 2), tmp_path),
        command_for(PLAIN_BAND[0], "quick", (1, 2), tmp_path),
    )


def test_a_run_in_progress_decides_nothing(tmp_path):
    write_run(tmp_path, "inception")
    write_run(tmp_path, "inception_res", test_accuracy=[20, 30], complete=False)
    verdict = judged(tmp_path, "residual")
    assert verdict.outcome == "not run"
    assert verdict.notes == ("in progress: inception_res, seed 0, 2 of 5 epochs",)
    assert verdict.commands == (command_for("inception_res", "quick", results=tmp_path),)


def test_a_seed_without_its_pair_is_left_out(tmp_path):
    for seed in (0, 1):
        write_run(tmp_path, "inception", seed=seed)
    write_run(tmp_path, "inception_res", seed=1)
    verdict = judged(tmp_path, "residual")
    assert verdict.seeds == (1,)
    assert verdict.outcome.endswith("(1 seed)")
    assert verdict.notes == ("left out, as not every run has it: seed 0",)


@pytest.mark.parametrize("claim", ["residual", "overfitting", "l2", "optimizers", "bn-accuracy", "bn-fluctuation"])
def test_an_accuracy_of_a_diverged_run_does_not_exist(tmp_path, claim):
    runs = next(c.runs for c in CLAIMS if c.id == claim)
    for seed in range(3):
        for name in runs:
            write_run(tmp_path, name, seed=seed, diverged_at_step=120 if (seed, name) == (1, runs[0]) else None)
    verdict = judged(tmp_path, claim)
    assert verdict.outcome == "diverged"
    assert verdict.seeds == (0, 2)
    assert verdict.notes == (f"diverged: {runs[0]}, seed 1, at step 120",)
    assert len(verdict.estimates[0].values) == 2


def test_a_shorter_run_is_noted(tmp_path):
    write_run(tmp_path, "inception", epochs=3)
    write_run(tmp_path, "inception_res")
    assert judged(tmp_path, "residual").notes == ("inception has 3 epochs instead of 5",)


@pytest.mark.parametrize(
    ("finals", "outcome"),
    [
        ([85, 85.5, 86], "supported"),
        ([80, 80.5, 81], "reversed"),
        ([80, 85, 90], "undecided"),
        ([82.9], "disagrees (1 seed)"),
    ],
)
def test_level_is_decided_at_the_report_preset_alone(tmp_path, finals, outcome):
    for seed, final in enumerate(finals):
        for preset in ("report", "quick"):
            write_run(tmp_path, "inception", preset, seed=seed, epochs=200, test_accuracy=[final] * 200, losses=[])
    assert judged(tmp_path, "level", "report").outcome == outcome
    verdict = judged(tmp_path, "level", "quick")
    assert verdict.outcome == "report preset only"
    assert verdict.estimates[0].mean == pytest.approx(np.mean(finals))


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


def test_fluctuation_over_the_epochs_that_both_runs_share(tmp_path):
    """300 epochs against 200: the longer run's last hundred do not count."""
    rng = np.random.default_rng(0)
    long, short = 80 + rng.normal(0, 0.5, 300), 80 + rng.normal(0, 1.0, 200)
    long[200:] = rng.uniform(0, 100, 100)
    write_run(tmp_path, "inception_res_adam", "report", epochs=300, test_accuracy=long, losses=[])
    write_run(tmp_path, "inception_res", "report", epochs=200, test_accuracy=short, losses=[])
    verdict = judged(tmp_path, "l2", "report")
    expected = [np.diff(curve[100:200]).std(ddof=1) / math.sqrt(2) for curve in (long, short)]
    assert [e.mean for e in verdict.estimates] == pytest.approx([expected[0] - expected[1], *expected])
    assert verdict.outcome == "agrees (1 seed)" and not verdict.notes


@pytest.mark.parametrize(
    ("accuracy_end", "loss_end", "outcome"),
    [(80.5, 0.5, "supported"), (82, 0.5, "reversed"), (80.5, 0.9, "reversed"), (80.5, 0.8, "undecided")],
)
def test_overfitting(tmp_path, accuracy_end, loss_end, outcome):
    for seed, shift in enumerate((-0.01, 0, 0.01)):
        accuracy, loss = np.full(200, 80.0), np.full(200, 1.0)
        accuracy[180:], loss[180:] = accuracy_end + shift, loss_end + shift
        accuracy[:40], loss[:40] = 10, 2.3  # the first quarter's end is epochs 41 to 60
        options = {"seed": seed, "epochs": 200, "losses": []}
        write_run(tmp_path, "inception_res", "report", test_accuracy=accuracy, train_loss=loss, **options)
    verdict = judged(tmp_path, "overfitting", "report")
    assert [e.mean for e in verdict.estimates] == pytest.approx([accuracy_end - 80, 100 * (1 - loss_end)])
    assert verdict.outcome == outcome


def test_optimizers_differ_by_largest_minus_smallest(tmp_path):
    for name, final in zip(RUNS_OF["optimizers"], (50, 50.4, 49.9), strict=True):
        write_run(tmp_path, name, test_accuracy=level(final))
    verdict = judged(tmp_path, "optimizers")
    assert verdict.estimates[0].mean == pytest.approx(0.5)
    assert verdict.outcome == "agrees (1 seed)"


@pytest.mark.parametrize(
    ("seeds", "failures", "outcome"),
    [
        (3, 3, "supported"),
        (3, 2, "reversed"),
        (3, 0, "reversed"),
        (1, 3, "agrees (1 seed)"),
        (1, 2, "disagrees (1 seed)"),
    ],
)
def test_large_lr_counts_settings_that_diverge_or_stay_at_chance(tmp_path, seeds, failures, outcome):
    for seed in range(seeds):
        for i, name in enumerate(RUNS_OF["large-lr"]):
            fails = i < failures
            diverged = 30 if fails and i == 0 else None
            write_run(tmp_path, name, seed=seed, test_accuracy=level(10 if fails else 60), diverged_at_step=diverged)
    verdict = judged(tmp_path, "large-lr")
    assert verdict.estimates[0].mean == failures
    assert verdict.outcome == outcome


def spiky(spikes, factor, base=0.1):
    """A flat loss with `spikes` steps at `factor` times its level."""
    losses = np.full(STEPS, base)
    losses[10 : 10 + 5 * spikes : 5] *= factor
    return losses


def test_scaling_counts_spikes_of_the_loss(tmp_path):
    for seed in range(3):
        write_run(tmp_path, "inception_res", seed=seed, losses=spiky(1, 3))
        write_run(tmp_path, "inception_res_unscaled", seed=seed, losses=spiky(5 + seed, 3))
    verdict = judged(tmp_path, "scaling")
    by_name = {e.measure.name: e.mean for e in verdict.estimates}
    assert by_name == pytest.approx({
        "relative spikes (above 2 x median), scale 1.0 minus 0.2": 20,  # (4 + 5 + 6) / 3 more in 250 steps
        "absolute spikes (above median + 0.5), scale 1.0 minus 0.2": 0,
        "relative spikes (above 1 x median), scale 1.0 minus 0.2": 20,
        "relative spikes (above 4 x median), scale 1.0 minus 0.2": 0,
        "absolute spikes (above median + 0.25), scale 1.0 minus 0.2": 0,
        "absolute spikes (above median + 1), scale 1.0 minus 0.2": 0,
    })  # fmt: skip
    assert verdict.outcome == "supported"


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


def test_the_band_is_narrower(tmp_path):
    for seed in range(3):
        write_bands(tmp_path, flat_band(1, 2), flat_band(1, 1.5 + seed / 100), seed)
    verdict = judged(tmp_path, "bn-band")
    assert [e.mean for e in verdict.estimates] == pytest.approx([0.51, 100, 0.51, 1])
    assert verdict.outcome == "supported"


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


@pytest.mark.parametrize(
    ("plain", "bn", "outcome"),
    [
        (spiky(4, 8), spiky(1, 8), "supported"),
        (spiky(1, 8), spiky(4, 8), "reversed"),
        # Plain: loss 2 with spikes to 3.5, absolute alone; BN: loss 0.1 with spikes to 0.4, relative alone.
        (spiky(4, 1.75, 2.0), spiky(3, 4), "depends on the definition"),
        (spiky(4, 3), spiky(1, 3), "undecided"),  # relative alone: no spike of either is above the median + 0.5
    ],
)
def test_spikes_by_both_definitions(tmp_path, plain, bn, outcome):
    for seed in range(3):
        write_bands(tmp_path, [plain] * 4, [bn] * 4, seed)
    assert judged(tmp_path, "bn-spikes").outcome == outcome


def test_spikes_by_the_sign_alone(tmp_path):
    write_bands(tmp_path, [spiky(4, 1.75, 2.0)] * 4, [spiky(3, 4)] * 4)
    assert judged(tmp_path, "bn-spikes").outcome == "depends on the definition (1 seed)"


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
    """`EXPERIMENTS` says which claims a command serves; each must be among those that need its runs."""
    assert len(RUNS_OF) == len(CLAIMS) == 12
    assert {run for runs in RUNS_OF.values() for run in runs} <= set(RUNS)
    for experiment in EXPERIMENTS:
        needed = {claim for claim, runs in RUNS_OF.items() if set(runs) & set(experiment.runs)}
        assert set(experiment.claims) == needed


def test_every_claim_has_a_measure_that_decides():
    for claim in CLAIMS:
        assert any(measure.side for measure in claim.measures)
        for measure in claim.measures:
            assert format(1.5, measure.form)


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """Verdicts on two seeds of every run of the report but the plain Inception's."""
    results = tmp_path_factory.mktemp("results")
    for name in dict.fromkeys(run for experiment in EXPERIMENTS for run in experiment.runs):
        for seed in (0, 1):
            if name != "inception":
                write_run(results, name, seed=seed)
    return judge_all(read_runs(results, "quick")[0], "quick")


def test_the_csv_has_a_row_a_measure(quick):
    rows = list(csv.DictReader(io.StringIO(verdicts.to_csv(quick))))
    assert list(rows[0]) == list(verdicts.CSV_COLUMNS)
    assert len(rows) == sum(max(1, len(v.estimates)) for v in quick)
    assert {row["claim"]: row["verdict"] for row in rows} == {v.claim.id: v.outcome for v in quick}
    row = next(row for row in rows if row["claim"] == "bn-accuracy")
    values = [float(x) for x in row["values"].split()]
    assert float(row["mean"]) == pytest.approx(np.mean(values), rel=1e-5)
    assert float(row["low"]) < float(row["mean"]) < float(row["high"])
    assert row["seeds"] == "0 1" and row["decides"] == "yes"
    missing = next(row for row in rows if row["claim"] == "level")
    assert missing["notes"].startswith(f"run: {command_for('inception', 'quick', (0, 1))} --results ")
    assert missing["mean"] == ""


def test_markdown_and_text_have_a_row_a_claim(quick):
    markdown = verdicts.to_markdown(quick).splitlines()
    assert [re.match(r"\| `([\w-]+)` \|", line)[1] for line in markdown[2:]] == [claim.id for claim in CLAIMS]
    assert {line.count(" | ") for line in markdown if "---" not in line} == {5}
    text = verdicts.to_text(quick).splitlines()
    assert [line.split()[0] for line in text] == [claim.id for claim in CLAIMS]
    assert all("not run" not in line or "python My" in line for line in text)


def claims_of_readme():
    """(id, statement) of each row of the table under the heading "The claims"."""
    section = re.search(r"^#+ The claims\n(.*?)(?=^#|\Z)", README.read_text(encoding="utf-8"), re.M | re.S)
    assert section, 'README.md has no heading "The claims"'
    return re.findall(r"^\| *`([\w-]+)` *\| *(.*?) *\|", section[1], re.M)


@pytest.mark.skipif(not README.exists(), reason="no README.md")
def test_the_readme_lists_the_claims():
    assert claims_of_readme() == verdicts.claims()


def test_a_claim_more_is_an_entry_more(tmp_path):
    write_run(tmp_path, "inception", test_accuracy=level(50))
    extra = replace(CLAIMS[0], id="half", measures=(replace(CLAIMS[0].measures[0], side=(49, 51)),), decided_at=None)
    found = verdicts.report_runs(read_runs(tmp_path, "quick")[0], "quick")
    assert verdicts.judge(extra, found, "quick").outcome == "agrees (1 seed)"

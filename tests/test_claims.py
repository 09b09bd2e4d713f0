"""Each of the report's twelve claims supported, reversed and undecided, from made-up run folders to verdicts.csv.

The expected effects come from the curves that were written, through `naive`. Nine seeds have every run of a claim. Seed
0 lacks the last one and seed 3 the first, so that runs paired by their place would be paired wrongly; of seed 6 a run
is in progress. All of these differ strongly from the others, and so do runs of other settings.

The runs are short; but for the tests of the regimes, claims are judged as if theirs were reached, each alone.
"""

import csv
import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import naive
import numpy as np
import pytest
from made_up import write_run

from cifar_lab.report import verdict_tables, verdicts
from cifar_lab.report.claims import CLAIMS
from cifar_lab.run_folder.reader import read_run, read_runs
from cifar_lab.settings import RunConfig, preset_defaults

# --- The runs, as the report describes them ---------------------------------------------------------------------------

RATES = (1e-3, 1e-4, 5e-4, 5e-5)
INCEPTION = RunConfig("inception", "adam", 1e-4, 0.0)
RESIDUAL = RunConfig("inception_res", "adam", 1e-4, 0.0)
UNSCALED = RunConfig("inception_res", "adam", 1e-4, 0.0, options={"residual_scale": 1.0})
ADAM, ADAMW, RMSPROP = (RunConfig("inception_res", name, 1e-4, 1e-4) for name in ("adam", "adamw", "rmsprop"))
LARGE_RATES = (
    RunConfig("inception_res", "adam", 1e-3, 1e-4),
    RunConfig("inception_res", "adam", 1e-2, 1e-4),
    RunConfig("inception_res", "sgd", 1e-2, 1e-4, momentum=0.9),
)
PLAIN = tuple(RunConfig("vgg_a", "adam", rate, 1e-4) for rate in RATES)
BN = tuple(RunConfig("vgg_a_bn", "adam", rate, 1e-4) for rate in RATES)

CLAIM_RUNS = {
    "level": (INCEPTION,),
    "residual": (RESIDUAL, INCEPTION),
    "scaling": (UNSCALED, RESIDUAL),
    "overfitting": (RESIDUAL,),
    "optimizers": (ADAM, ADAMW, RMSPROP),
    "l2": (ADAM, RESIDUAL),
    "large-lr": LARGE_RATES,
    "bn-accuracy": (BN[0], PLAIN[0]),
    "bn-fluctuation": BN + PLAIN,
    "bn-speed": BN + PLAIN,
    "bn-band": BN + PLAIN,
    "bn-spikes": BN + PLAIN,
}
OTHER_SETTINGS = (
    replace(INCEPTION, weight_decay=1e-4), replace(INCEPTION, lr=1e-3), replace(INCEPTION, optimizer="adamw"),
    replace(INCEPTION, width=0.5), replace(RESIDUAL, options={"residual_scale": 0.3}),
    replace(ADAM, options={"residual_scale": 1.0}),
    replace(ADAMW, weight_decay=0.0), replace(RMSPROP, weight_decay=1e-3), replace(LARGE_RATES[2], momentum=0.0),
    replace(PLAIN[0], weight_decay=0.0), replace(BN[0], weight_decay=0.0), replace(PLAIN[3], lr=1e-5),
    replace(BN[0], lr=1e-2), replace(BN[0], augment="none"), replace(PLAIN[0], init="xavier"),
)  # fmt: skip


@dataclass(frozen=True)
class Curves:
    """What one run logged."""

    accuracy: Sequence[float]  # of the test images, per epoch
    train_loss: Sequence[float] | None = None  # per epoch
    losses: Sequence[float] = ()  # per step
    test_loss: Sequence[float] | None = None  # per epoch
    diverged_at_step: int | None = None

    def write(self, results: Path, config: RunConfig, **options) -> None:
        losses = self.losses
        if self.diverged_at_step is not None:  # every step up to there
            losses = np.resize(losses if len(losses) else 1.0, self.diverged_at_step - 1)
        options |= {"test_accuracy": self.accuracy, "train_loss": self.train_loss, "losses": losses}
        planned = len(self.accuracy)
        done = planned if self.diverged_at_step is None else min(planned, (self.diverged_at_step - 1) // EPOCH)
        options |= {} if self.test_loss is None else {"columns": {"test_loss": self.test_loss[:done]}}
        write_run(results, config, "report", epochs=planned, diverged_at_step=self.diverged_at_step, **options)


# --- Curves that lead to a verdict ------------------------------------------------------------------------------------

EPOCH = 500  # steps
STEPS = 3 * EPOCH
HALF = 750  # the steps of a band: the first half of the shortest of its runs
MEDIAN_WINDOW = 299  # a fifth of STEPS, odd


def climbing(final: float, epochs: int, key: Sequence[int], scatter: float = 0.02) -> np.ndarray:
    """Accuracies that still rise, no two alike, whose last tenth has the mean `final`."""
    epoch = np.arange(epochs)
    curve = final * (1 - 0.7 * np.exp(-6 * epoch / epochs) + np.random.default_rng(key).normal(0, scatter, epochs))
    return np.clip(curve + final - naive.final(curve), 0, 100)


@dataclass(frozen=True)
class At:
    """The step at which a run diverges, in the place of its final accuracy."""

    step: int


def ending_at(lengths: Sequence[int]):
    """Runs of these numbers of epochs with the given final accuracies."""

    def curves(seed: int, finals: Sequence[float | At]) -> list[Curves]:
        return [
            Curves(climbing(70, epochs, (seed, i)), diverged_at_step=final.step)
            if isinstance(final, At)
            else Curves(climbing(final, epochs, (seed, i)))
            for i, (final, epochs) in enumerate(zip(finals, lengths, strict=True))
        ]

    return curves


def scattered(epochs: int, shared: int, scatter: float, final: float, key: Sequence[int]) -> Curves:
    """Accuracies that scatter by so many points, wildly after the epochs that the runs share, with a given end."""
    accuracy = climbing(70, epochs, key, scatter / 70)
    accuracy[shared:] = np.random.default_rng(key).uniform(40, 60, epochs - shared)
    return Curves(accuracy + final - naive.final(accuracy))


def jagged_twice(seed: int, shape: Sequence[float]) -> list[Curves]:
    """The scatters of two runs, and the difference of their final accuracies."""
    first, second, difference = shape
    return [scattered(61, 47, first, 70 + difference, (seed, 0)), scattered(47, 47, second, 70, (seed, 1))]


def jagged_bands(seed: int, scatters: Sequence[float]) -> list[Curves]:
    """BatchNorm's runs and the plain ones, which scatter by so many points and more or less at other rates."""
    factors = (1.3, 0.7, 1.0, 0.9)
    return [
        scattered(47 + 6 * (not i), 47, scatter * factor, 60 + i, (seed, i, rate))
        for i, scatter in enumerate(scatters)
        for rate, factor in enumerate(factors)
    ]


def gaining_and_falling(seed: int, change: Sequence[float]) -> list[Curves]:
    """Of 53 epochs the first quarter's end is 11 to 15; accuracy and both losses change so from there to the last five.

    change: gain (points), fall of the training loss (percent), rise of the test loss (nats).
    """
    gain, fall, rise = change
    epochs = 53
    rng = np.random.default_rng(seed)
    accuracy = climbing(70, epochs, (seed, 0))
    loss, test_loss = 2 - 1.2 * np.arange(epochs) / epochs + rng.normal(0, 0.05, (2, epochs))
    accuracy[-5:] += accuracy[10:15].mean() + gain - accuracy[-5:].mean()
    loss[-5:] *= loss[10:15].mean() * (1 - fall / 100) / loss[-5:].mean()
    test_loss[-5:] += test_loss[10:15].mean() + rise - test_loss[-5:].mean()
    return [Curves(accuracy, loss, test_loss=test_loss)]


def noisy(level: np.ndarray | float, key: Sequence[int], steps: int = STEPS) -> np.ndarray:
    """Losses within 10% of a level."""
    return level * np.random.default_rng(key).uniform(0.9, 1.1, steps)


def with_spikes(losses: np.ndarray, height: float, count: int, start: int, stop: int, key: Sequence[int]) -> np.ndarray:
    """`count` of the steps in [start, stop) raised by a factor from 80% to 125% of `height`."""
    rng = np.random.default_rng(key)
    losses[rng.choice(np.arange(start, stop), count, replace=False)] *= height * rng.uniform(0.8, 1.25, count)
    return losses


def spiking(seed: int, shape: Sequence[tuple[int, float | At]]) -> list[Curves]:
    """A falling loss each, with so many spikes anywhere in the first 1,500 steps, and a final accuracy."""
    runs = []
    for i, (count, final) in enumerate(shape):
        level = 0.3 + np.exp(-np.arange(STEPS) / 400)
        losses = with_spikes(noisy(level, (seed, i)), 3.4, count, 0, STEPS, (seed, i, 1))
        end = STEPS + i * EPOCH
        losses = np.append(losses, noisy(0.3, (seed, i, 2), end - STEPS))
        losses = with_spikes(losses, 9, (end - STEPS) // 10, STEPS, end, (seed, i, 3))
        if isinstance(final, At):
            runs.append(Curves(climbing(70, 5, (seed, i)), None, losses[: final.step - 1], None, final.step))
        else:
            runs.append(Curves(climbing(final, end // EPOCH, (seed, i)), losses=losses))
    return runs


def eight(bn: Sequence[np.ndarray], plain: Sequence[np.ndarray], seed: int) -> list[Curves]:
    """The runs of the landscape; a loss that ends within an epoch is that of a run that diverged."""
    runs = []
    for i, losses in enumerate([*bn, *plain]):
        diverged = len(losses) + 1 if len(losses) % EPOCH else None
        accuracy = climbing(60 + i, max(3, len(losses) // EPOCH), (seed, i))
        runs.append(Curves(accuracy, losses=losses, diverged_at_step=diverged))
    return runs


def bands_falling(seed: int, steps: Sequence[tuple[int, int]]) -> list[Curves]:
    """BatchNorm's band and the plain one, which fall from 2 to 0.8 and on to 0.45 at about the given steps."""
    step = np.arange(STEPS)
    bands = [
        [noisy(0.45 + sum(height / (1 + np.exp((step - at) / 20)) for height, at in zip((1.2, 0.35), of, strict=True))
               + offset, (seed, i, rate))
         for rate, offset in enumerate((-0.1, 0.25, 0.0, 0.05))]
        for i, of in enumerate(steps)
    ]  # fmt: skip
    for band in bands:
        band[1][HALF:] = 9.0  # the band is the first half of the run
    return eight(*bands, seed)


def bands_of_width(seed: int, widths: Sequence[float]) -> list[Curves]:
    """BatchNorm's band and the plain one; which rate is the largest changes, and one of seed 4's runs diverges."""
    bands = []
    for i, width in enumerate(widths):
        shares = np.tile([[0.0], [0.2], [0.65], [1.0]], STEPS)
        shares[:, 300:] = shares[[1, 0, 3, 2], 300:]
        width = width * np.linspace(1.4, 0.6, STEPS)
        width[HALF:] = 3 * (1 - i)  # beyond the band BatchNorm's is far the wider one
        bands.append([noisy(1 + share * width, (seed, i, rate)) for rate, share in enumerate(shares)])
    bands[0] = [np.append(losses, np.full(EPOCH, 9.0)) for losses in bands[0]]  # BatchNorm's are longer runs
    if seed == 4:
        bands[1][2] = bands[1][2][:560]
    return eight(*bands, seed)


def bands_with_excursions(seed: int, counts: Sequence[int]) -> list[Curves]:
    """BatchNorm's band and the plain one, which so often stay high for 25 steps; more often beyond the band."""
    bands = []
    for i, count in enumerate(counts):
        rates = [noisy(0.8 * share, (seed, i, rate)) for rate, share in enumerate((0.9, 1.0, 0.6, 0.7))]
        for n in range(count):
            start = 60 + 80 * n + 7 * (seed % 5)
            rates[(seed + i) % 2][start : start + 25] += 1.5
        rates[0][HALF + 40 :: 60] += 3  # single steps
        for n in range(5 * (1 - i)):
            rates[1][HALF + 100 * n + 50 : HALF + 100 * n + 75] += 1.5
        bands.append(rates)
    return eight(*bands, seed)


CURVES = {
    "level": ending_at((47,)),
    "residual": ending_at((53, 47)),
    "scaling": spiking,
    "overfitting": gaining_and_falling,
    "optimizers": ending_at((47, 53, 38)),
    "l2": jagged_twice,
    "large-lr": ending_at((7, 6, 11)),
    "bn-accuracy": ending_at((47, 61)),
    "bn-fluctuation": jagged_bands,
    "bn-speed": bands_falling,
    "bn-band": bands_of_width,
    "bn-spikes": bands_with_excursions,
}

# --- The expected effects ---------------------------------------------------------------------------------------------

SPIKE_RULES = (
    ("relative", 2.0), ("absolute", 0.5), ("relative", 1.0), ("relative", 4.0), ("absolute", 0.25), ("absolute", 1.0),
)  # fmt: skip


def finals(runs: Sequence[Curves]) -> list[float]:
    return [naive.final(run.accuracy) for run in runs]


def differences_of_finals(*pairs: tuple[int, int]):
    return lambda runs: [finals(runs)[a] - finals(runs)[b] for a, b in pairs]


def residual(runs: Sequence[Curves]) -> list[float]:
    """The other two compare with runs that are not there."""
    return [finals(runs)[0] - finals(runs)[1], math.nan, math.nan]


def l2(runs: Sequence[Curves]) -> list[float]:
    first, second = (naive.fluctuation(run.accuracy, 47) for run in runs)
    return [first / second, finals(runs)[0] - finals(runs)[1], first, second]


def bn_fluctuation(runs: Sequence[Curves]) -> list[float]:
    accuracies = [run.accuracy for run in runs]
    bn, plain = naive.pooled_fluctuation(accuracies[:4], 47), naive.pooled_fluctuation(accuracies[4:], 47)
    each = [naive.fluctuation(accuracy, 47) for accuracy in accuracies]
    return [bn / plain, bn, plain, *(a / b for a, b in zip(each[:4], each[4:], strict=True))]


def has_failed(run: Curves) -> float:
    return float(run.diverged_at_step is not None or naive.final(run.accuracy) < 15)


def scaling(runs: Sequence[Curves]) -> list[float]:
    """Spikes over the steps that both runs have; the window of the running median is each run's own."""
    failed = [has_failed(run) for run in runs]
    rates = [math.nan if x else 1e-4 for x in failed]
    spikes = [math.nan] * len(SPIKE_RULES)
    if all(run.diverged_at_step is None for run in runs):
        bands = [(naive.band([run.losses], STEPS), naive.window(len(run.losses))) for run in runs]
        spikes = np.subtract(*(naive.spikes(*of, *SPIKE_RULES) for of in bands)).tolist()
    return [failed[0] - failed[1], *failed, *rates, *spikes]


def both_bands(runs: Sequence[Curves]) -> list[list[list[float]]]:
    return [naive.band([run.losses for run in of], HALF) for of in (runs[:4], runs[4:])]


def ratio(a: float, b: float) -> float:
    return math.nan if math.isinf(a) and math.isinf(b) else a / b


def speed(runs: Sequence[Curves]) -> list[float]:
    steps = [naive.times_to_levels(run.losses, MEDIAN_WINDOW, (1.0, 0.5, 0.2, 0.1)) for run in runs]
    best = [(min(of[:4]), min(of[4:])) for of in zip(*steps, strict=True)]
    each = [ratio(a, b) for of in zip(*steps, strict=True) for a, b in zip(of[:4], of[4:], strict=True)]
    bn, plain = (naive.settled_step(band, MEDIAN_WINDOW) for band in both_bands(runs))
    bests = [ratio(*pair) for pair in best] + [a for a, _ in best] + [b for _, b in best]
    return [*bests, *each, bn - plain, bn, plain]


def band_widths(runs: Sequence[Curves]) -> list[float]:
    bn, plain = both_bands(runs)
    raw_ratio, share, *raw = naive.compare_widths(bn, plain)
    means = [naive.running_mean(run.losses[:HALF], MEDIAN_WINDOW) for run in runs]
    smooth_ratio, _, *smooth = naive.compare_widths(*(naive.band(of, HALF) for of in (means[:4], means[4:])))
    return [raw_ratio, smooth_ratio, share, *raw, *smooth, naive.last_wider_step(bn, plain)]


def jumps(runs: Sequence[Curves]) -> list[float]:
    counts = [naive.excursions(band, MEDIAN_WINDOW) for band in both_bands(runs)]
    spikes = np.subtract(*(naive.spikes(band, MEDIAN_WINDOW, *SPIKE_RULES) for band in both_bands(runs)))
    return [1000 * (counts[0] - counts[1]) / HALF, *counts, *spikes]


def overfitting(runs: Sequence[Curves]) -> list[float]:
    """Of 53 epochs "final" has five, and so has the mean whose peak is looked for."""
    (run,) = runs
    gain, fall = naive.gain_and_fall(run.accuracy, run.train_loss)
    rise = np.mean(run.test_loss[-5:]) - np.mean(run.test_loss[10:15])
    return [gain, fall, rise, 100 * (1 + int(naive.running_mean(run.accuracy, 5).argmax())) / 53]


EFFECTS = {
    "level": finals,
    "residual": residual,
    "scaling": scaling,
    "overfitting": overfitting,
    "optimizers": differences_of_finals((0, 1), (0, 2), (1, 2)),
    "l2": l2,
    "large-lr": lambda runs: [has_failed(run) for run in runs],
    "bn-accuracy": lambda runs: [finals(runs)[0] - finals(runs)[1], finals(runs)[0] - finals(runs)[1] - 3],
    "bn-fluctuation": bn_fluctuation,
    "bn-speed": speed,
    "bn-band": band_widths,
    "bn-spikes": jumps,
}

SPIKES = (
    "relative spikes (above 2 x median)", "absolute spikes (above median + 0.5)", "relative spikes (above 1 x median)",
    "relative spikes (above 4 x median)", "absolute spikes (above median + 0.25)", "absolute spikes (above median + 1)",
)  # fmt: skip
LEVELS = ("1.0", "0.5", "0.2", "0.1")
AT = ("1e-3", "1e-4", "5e-4", "5e-5")
# What the report says, when it is supported, and each measure: its name, its unit, whether it decides, and its scale if
# that is not linear.
TEXTS = {
    "level": (
        "Inception v1 settles at about 85%", "within 2 points of 85",
        ("final test accuracy", "%", "yes"),
    ),
    "residual": (
        "residual + scaling improves it, 85 to 87%", "above 0",
        ("difference of the final test accuracies", "points", "yes"),
        ("the same against a plain network with as many parameters", "points", "no"),
        ("the same with scale 1.0", "points", "no"),
    ),
    "scaling": (
        "without scaling, training is unstable",
        "more seeds fail (diverge or end below 15%) with scale 1.0 than with 0.2",
        ("failures, scale 1.0 minus 0.2", "per seed", "yes", "sign"),
        ("share of seeds that fail with scale 1.0", "", "no", "share"),
        ("with scale 0.2", "", "no", "share"),
        *((f"largest learning rate tried at which scale {scale} does not fail", "", "no") for scale in ("1.0", "0.2")),
        *((f"{name}, scale 1.0 minus 0.2", "per 1,000 steps", "no") for name in SPIKES),
    ),
    "overfitting": (
        "loss still falls at epoch 200 while accuracy peaks by about 50",
        "gain under 1 point while the training loss falls by more than 20% and the test loss rises",
        ("gain of test accuracy after the first quarter", "points", "yes"),
        ("fall of the training loss after the first quarter", "%", "yes"),
        ("rise of the test loss after the first quarter", "nats", "yes"),
        ("highest smoothed test accuracy, at this share of the epochs", "%", "no"),
    ),
    "optimizers": (
        "Adam, AdamW and RMSprop differ little", "every difference of two within 1 point",
        *((f"final test accuracy, {pair}", "points", "yes")
          for pair in ("Adam minus AdamW", "Adam minus RMSprop", "AdamW minus RMSprop")),
    ),
    "l2": (
        "L2 keeps accuracy and lowers its fluctuation", "ratio below 1 while the accuracy loses less than 1 point",
        ("ratio of the fluctuations, with weight decay 1e-4 / without", "", "yes", "ratio"),
        ("difference of the final test accuracies", "points", "yes"),
        ("fluctuation with weight decay 1e-4", "points", "no"),
        ("fluctuation without", "points", "no"),
    ),
    "large-lr": (
        "a larger learning rate or momentum explodes",
        "each setting fails (diverges or ends below 15%) in more than half of the seeds",
        *((f"share of seeds that fail, {setting}", "", "yes", "share")
          for setting in ("Adam at 1e-3", "Adam at 1e-2", "SGD at 1e-2 with momentum 0.9")),
    ),
    "bn-accuracy": (
        "BN lifts VGG from 85 to 88%", "above 0",
        ("difference of the final test accuracies", "points", "yes"),
        ("the same minus the report's 3 points", "points", "no"),
    ),
    "bn-fluctuation": (
        "the BN run fluctuates more", "ratio above 1",
        ("ratio of the fluctuations over the learning rates, BatchNorm / plain", "", "yes", "ratio"),
        ("fluctuation with BatchNorm", "points", "no"),
        ("fluctuation without", "points", "no"),
        *((f"ratio of the fluctuations at {rate}", "", "no", "ratio") for rate in AT),
    ),
    "bn-speed": (
        "with BN the loss falls faster", "ratio below 1 at every level that a run reaches",
        *((f"steps to a loss of {level}, fastest rates, BatchNorm / plain", "", "yes", "ratio") for level in LEVELS),
        *((f"steps to a loss of {level}, fastest rate {which}", "", "no")
          for which in ("with BatchNorm", "without") for level in LEVELS),
        *((f"steps to a loss of {level} at {rate}, BatchNorm / plain", "", "no", "ratio")
          for level in LEVELS for rate in AT),
        ("step after which the band's middle stays under 1.0, BatchNorm minus plain", "steps", "no"),
        ("that step with BatchNorm", "", "no"),
        ("that step without", "", "no"),
    ),
    "bn-band": (
        "with BN the band is narrower", "ratio below 1",
        ("ratio of the mean widths, BatchNorm / plain", "", "yes", "ratio"),
        ("the same without batch noise", "", "no", "ratio"),
        ("share of the steps at which BatchNorm's is narrower", "%", "no"),
        ("mean width with BatchNorm", "nats", "no"),
        ("mean width without", "nats", "no"),
        ("mean width with BatchNorm and without batch noise", "nats", "no"),
        ("mean width without either", "nats", "no"),
        ("step after which the ratio up to there stays below 1", "", "no"),
    ),
    "bn-spikes": (
        "with BN the loss jumps up less often",
        "fewer excursions of the upper curve (its median over 21 steps above that over 501 plus 0.3)",
        ("persistent excursions, BatchNorm minus plain", "per 1,000 steps", "yes"),
        ("excursions with BatchNorm", "", "no"),
        ("excursions without", "", "no"),
        *((f"{name}, BatchNorm minus plain", "per 1,000 steps", "no") for name in SPIKES),
    ),
}  # fmt: skip


# --- By direction -----------------------------------------------------------------------------------------------------

SEEDS = (1, 2, 4, 5, 7, 8, 9, 10, 11)  # three times each of a direction's shapes


def rows_of(text: str, claim: str) -> list[dict[str, str]]:
    return [row for row in csv.DictReader(io.StringIO(text)) if row["claim"] == claim]


def judged(results: Path, claim: str, preset: str = "report", reached: bool = True, family: Sequence[str] = ()):
    """The claim's rows of verdicts.csv, judged alone or with others, in a regime that counts as reached."""
    runs, errors = read_runs(results, preset)
    assert not errors
    chosen = [c for c in CLAIMS if c.id in {claim, *family}]
    chosen = [replace(c, regime=lambda *_: "") for c in chosen] if reached else chosen
    return rows_of(verdict_tables.to_csv({"": verdicts.judge_all(runs, preset, claims=chosen)}), claim)


def expected_numbers(values: Sequence[float], scale: str) -> tuple[float, list[float]]:
    """The mean over the seeds and the ends of its interval, none if it has none."""
    values = [x for x in values if not math.isnan(x)]
    if not values:
        return math.nan, []
    if scale == "share":
        return sum(values) / len(values), list(naive.EXACT_95[sum(values), len(values)])
    if scale == "ratio" and all(0 < x < math.inf for x in values):
        mean, *ends = naive.geometric(values)
        return mean, ends if len(set(values)) > 1 else []
    mean = sum(values) / len(values)
    if len(set(values)) == 1 or not all(map(math.isfinite, values)) or scale == "sign":
        return mean, []
    return mean, list(naive.interval(values))


SIGNED = ("minus", "difference", "gain", "rise", "fall", "the same with scale", "the same against")


def check_rows(rows: Sequence[dict[str, str]], claim: str, verdict: str, seeds: Sequence[int], runs) -> None:
    """Everything but the notes and the p-value. runs: the claim's runs, per seed."""
    statement, supported_when, *measures = TEXTS[claim]
    assert [(row["measure"], row["unit"], row["decides"]) for row in rows] == [measure[:3] for measure in measures]
    effects = [EFFECTS[claim](of_seed) for of_seed in runs]
    for row, values, measure in zip(rows, zip(*effects, strict=True), measures, strict=True):
        assert (row["the report says"], row["supported when"]) == (statement, supported_when)
        assert row["verdict"] == verdict
        assert row["seeds"] == " ".join(map(str, seeds))
        # Six digits are written: 5e-6 of a number at most. The interval's ends are differences of such numbers.
        written = [float(x) for x in row["values"].split()]
        assert written == pytest.approx(values, rel=6e-6, abs=1e-9, nan_ok=True), row["measure"]
        mean, ends = expected_numbers(values, measure[3] if len(measure) > 3 else "linear")
        assert float(row["mean"] or "nan") == pytest.approx(mean, rel=6e-6, abs=1e-9, nan_ok=True), row["measure"]
        if ends and len(measure) == 3:  # neither an amount below 0 nor a share above 100% is possible
            signed = any(word in measure[0] for word in SIGNED)
            ends = [ends[0] if signed else max(0, ends[0]), min(100, ends[1]) if measure[1] == "%" else ends[1]]
        bounds = [float(row[key]) for key in ("low", "high") if row[key]]
        assert bounds == pytest.approx(ends, rel=5e-5, abs=1e-4), row["measure"]


# For each claim what its runs have in three seeds, which the others repeat with other noise; the functions in `CURVES`
# say what the numbers are.
DIRECTIONS = [
    ("level", "supported", [(84.6,), (85.3,), (85.9,)]),
    ("level", "reversed", [(80.2,), (79.5,), (81.1,)]),
    ("level", "reversed", [(91.2,), (90.1,), (90.4,)]),
    ("level", "undecided", [(82.0,), (86.5,), (84.0,)]),
    ("residual", "supported", [(86.6, 85.1), (87.9, 86.0), (84.0, 82.7)]),
    ("residual", "reversed", [(85.1, 86.6), (86.0, 87.9), (82.7, 84.0)]),
    ("residual", "undecided", [(86.6, 85.1), (86.0, 87.9), (84.0, 82.7)]),
    ("scaling", "supported", [((29, 9.0), (9, 60)), ((33, At(1200)), (14, 55)), ((41, 14.5), (17, 61))]),
    ("scaling", "reversed", [((29, 60), (9, 9.0)), ((33, 55), (14, At(1200))), ((41, 61), (17, 14.5))]),
    ("scaling", "undecided", [((29, 9.0), (9, 60)), ((33, 15.5), (14, 55)), ((41, 61), (17, 14.5))]),
    ("overfitting", "supported", [(0.4, 31, 0.1), (-0.3, 35, 0.2), (0.2, 28, 0.15)]),
    ("overfitting", "reversed", [(3.4, 31, 0.1), (2.9, 35, 0.2), (2.2, 28, 0.15)]),
    ("overfitting", "reversed", [(0.4, 11, 0.1), (-0.3, 15, 0.2), (0.2, 9, 0.15)]),
    ("overfitting", "reversed", [(0.4, 31, -0.1), (-0.3, 35, -0.2), (0.2, 28, -0.15)]),
    ("overfitting", "undecided", [(0.4, 31, 0.1), (2.6, 35, 0.2), (0.2, 28, 0.15)]),
    ("overfitting", "undecided", [(0.4, 31, 0.1), (-0.3, 35, -0.2), (0.2, 28, 0.15)]),
    ("optimizers", "supported", [(85.9, 86.2, 86.0), (84.7, 84.9, 85.1), (86.6, 86.2, 86.5)]),
    ("optimizers", "reversed", [(85.9, 88.2, 86.0), (84.7, 86.9, 85.1), (86.6, 88.8, 86.5)]),
    ("optimizers", "undecided", [(85.9, 86.2, 86.0), (84.7, 84.9, 86.3), (86.6, 85.8, 86.5)]),
    ("l2", "supported", [(0.5, 1.9, -0.2), (0.7, 2.2, 0.3), (0.6, 1.8, 0.1)]),
    ("l2", "reversed", [(1.9, 0.5, 0.2), (2.2, 0.7, 0.3), (1.8, 0.6, 0.1)]),
    ("l2", "reversed", [(0.5, 1.9, -2.2), (0.7, 2.2, -1.9), (0.6, 1.8, -2.1)]),
    ("l2", "undecided", [(0.5, 1.9, -0.2), (0.7, 2.2, -1.9), (0.6, 1.8, 0.1)]),
    ("large-lr", "supported", [(9.8, At(2910), 14.2), (At(2801), 10.3, 11.0), (12.1, At(1777), At(3105))]),
    ("large-lr", "reversed", [(48.8, At(2910), 64.2), (55.1, 67.3, 71.0), (12.1, 57.7, 61.3)]),
    ("large-lr", "undecided", [(9.8, At(2910), 64.2), (55.1, 10.3, 14.0), (12.1, At(1777), 61.3)]),
    ("bn-accuracy", "supported", [(88.1, 85.3), (87.4, 85.0), (88.9, 86.8)]),
    ("bn-accuracy", "reversed", [(85.3, 88.1), (85.0, 87.4), (86.8, 88.9)]),
    ("bn-accuracy", "undecided", [(88.1, 85.3), (85.0, 87.4), (87.0, 86.8)]),
    ("bn-fluctuation", "supported", [(1.9, 0.5), (2.2, 0.7), (1.8, 0.6)]),
    ("bn-fluctuation", "reversed", [(0.5, 1.9), (0.7, 2.2), (0.6, 1.8)]),
    ("bn-fluctuation", "undecided", [(0.5, 1.9), (2.2, 0.7), (0.9, 0.8)]),
    ("bn-speed", "supported", [((210, 300), (430, 640)), ((185, 310), (402, 600)), ((233, 350), (391, 620))]),
    ("bn-speed", "reversed", [((430, 640), (210, 300)), ((402, 600), (185, 310)), ((391, 620), (233, 350))]),
    ("bn-speed", "undecided", [((210, 300), (430, 640)), ((402, 600), (185, 310)), ((300, 400), (310, 420))]),
    # Faster to a loss of 1.0, slower to one of 0.5.
    ("bn-speed", "depends on the definition",
     [((210, 640), (430, 500)), ((185, 600), (402, 470)), ((233, 640), (391, 480))]),
    ("bn-band", "supported", [(0.5, 0.9), (0.6, 1.0), (0.45, 0.8)]),
    ("bn-band", "reversed", [(0.9, 0.5), (1.0, 0.6), (0.8, 0.45)]),
    ("bn-band", "undecided", [(0.5, 0.9), (1.0, 0.6), (0.8, 0.7)]),
    ("bn-spikes", "supported", [(1, 4), (2, 6), (0, 4)]),
    ("bn-spikes", "reversed", [(4, 1), (6, 2), (4, 0)]),
    ("bn-spikes", "undecided", [(1, 4), (5, 2), (3, 3)]),
    ("bn-spikes", "no information", [(0, 1), (1, 1), (0, 0)]),  # nine events over all seeds
]  # fmt: skip


@pytest.mark.parametrize(("claim", "verdict", "shapes"), DIRECTIONS)
def test_each_claim_by_direction(tmp_path, claim, verdict, shapes):
    configs = CLAIM_RUNS[claim]
    of_seed = {seed: CURVES[claim](seed, shape) for seed, shape in zip(SEEDS, 3 * shapes, strict=True)}
    for seed, curves in of_seed.items():
        for run, config in zip(curves, configs, strict=True):
            run.write(tmp_path, replace(config, seed=seed))
        for i, config in enumerate(OTHER_SETTINGS if seed == SEEDS[1] else ()):
            Curves(climbing(20 + i, 8, (seed, i), 0.2)).write(tmp_path, replace(config, seed=seed))
    wild = [Curves(climbing(33, 31 + i, (i,), 0.3), losses=noisy(7.0, (i,))) for i in range(len(configs))]
    left_out = {0: configs[:-1], 3: configs[1:], 6: configs[:-1]}
    for seed, there in left_out.items():
        for run, config in zip(wild, there, strict=False):
            run.write(tmp_path, replace(config, seed=seed))
    wild[-1].write(tmp_path, replace(configs[-1], seed=6), complete=False)
    rows = judged(tmp_path, claim)
    check_rows(rows, claim, verdict, SEEDS, of_seed.values())
    for row in rows:
        notes = row["notes"].split("; ")
        assert ("left out, as not every run has it: seed 0 3 6" in notes) == (len(configs) > 1)
        assert sum(note.startswith("in progress: ") and ", seed 6, " in note for note in notes) == 1


# --- At the sides of each threshold -----------------------------------------------------------------------------------


def write_runs(results: Path, claim: str, curves: Sequence[Curves], seed: int) -> None:
    for run, config in zip(curves, CLAIM_RUNS[claim], strict=True):
        run.write(results, replace(config, seed=seed))


def zigzags(*heights: float) -> list[Curves]:
    """Accuracies of 47 epochs that differ in their scatter alone."""
    shape = np.resize([3.0, 1, 4, -1, 5, -9, 2, -6, 5, 3, -5], 47)
    return [Curves(70 + height * (shape - naive.final(shape))) for height in heights]


def flat_bands(widths: Sequence[float]) -> list[Curves]:
    bands = [[np.full(STEPS, 1 + share * width) for share in (0.2, 0, 1, 0.4)] for width in widths]
    return eight(*bands, seed=0)


def falling_at(steps: Sequence[int], low: float = 0.6) -> list[Curves]:
    """Bands whose losses fall below 1.0, and below 0.5 if `low` says so, after so many steps."""
    curves = [np.where(np.arange(STEPS) < step, 1.4, low) for step in steps]
    return eight(*[[curve + offset for offset in (0.0, 0.3, 0.2, 0.1)] for curve in curves], seed=0)


@pytest.mark.parametrize(
    ("claim", "sign", "curves"),
    [
        ("level", "as claimed", ending_at((47,))(1, (83.1,))),
        ("level", "opposite", ending_at((47,))(1, (82.9,))),
        ("level", "as claimed", ending_at((47,))(1, (86.9,))),
        ("level", "opposite", ending_at((47,))(1, (87.1,))),
        ("residual", "as claimed", ending_at((53, 47))(1, (85.05, 85))),
        ("residual", "", [Curves([10, 20, 30, 50]), Curves([90, 50, 20, 30])]),
        ("residual", "opposite", ending_at((53, 47))(1, (84.95, 85))),
        ("scaling", "as claimed", spiking(1, ((3, 14.9), (3, 15.1)))),
        ("scaling", "", spiking(1, ((9, 15.1), (3, 15.1)))),
        ("scaling", "opposite", spiking(1, ((9, 15.1), (3, 14.9)))),
        ("overfitting", "as claimed", gaining_and_falling(1, (0.99, 20.1, 0.001))),
        ("overfitting", "opposite", gaining_and_falling(1, (1.01, 20.1, 0.001))),
        ("overfitting", "opposite", gaining_and_falling(1, (0.99, 19.9, 0.001))),
        ("overfitting", "opposite", gaining_and_falling(1, (0.99, 20.1, -0.001))),
        ("optimizers", "as claimed", ending_at((47, 53, 38))(1, (85.6, 85.99, 85))),
        ("optimizers", "opposite", ending_at((47, 53, 38))(1, (85.6, 86.01, 85))),
        ("optimizers", "", [Curves([55, end, end, end]) for end in (50, 50.25, 51)]),
        ("l2", "as claimed", zigzags(0.99, 1)),
        ("l2", "", zigzags(1, 1)),
        ("l2", "opposite", zigzags(1, 0.99)),
        ("l2", "opposite", jagged_twice(1, (0.5, 1.9, -1.01))),
        ("l2", "as claimed", jagged_twice(1, (0.5, 1.9, -0.99))),
        ("large-lr", "as claimed", ending_at((7, 6, 11))(1, (14.9, At(900), 14.9))),
        ("large-lr", "opposite", ending_at((7, 6, 11))(1, (14.9, At(900), 15.1))),
        ("large-lr", "opposite", [Curves([12, 18, 15, 15, 15]), Curves([9, 8, 7]), Curves([9, 8, 7])]),
        ("bn-accuracy", "as claimed", ending_at((47, 61))(1, (85.05, 85))),
        ("bn-accuracy", "opposite", ending_at((47, 61))(1, (84.95, 85))),
        ("bn-fluctuation", "as claimed", zigzags(*[1] * 4, *[0.99] * 4)),
        ("bn-fluctuation", "", zigzags(*[1] * 8)),
        ("bn-fluctuation", "opposite", zigzags(*[0.99] * 4, *[1] * 4)),
        ("bn-speed", "as claimed", falling_at((400, 401))),
        ("bn-speed", "", falling_at((400, 400))),
        ("bn-speed", "opposite", falling_at((401, 400))),
        ("bn-speed", "opposite", falling_at((401, 400), low=0.4)),
        ("bn-band", "as claimed", flat_bands((0.99, 1))),
        ("bn-band", "", flat_bands((1, 1))),
        ("bn-band", "opposite", flat_bands((1.01, 1))),
        ("bn-spikes", "as claimed", bands_with_excursions(1, (5, 6))),
        ("bn-spikes", "", bands_with_excursions(1, (5, 5))),
        ("bn-spikes", "opposite", bands_with_excursions(1, (6, 5))),
    ],
)  # fmt: skip
def test_the_sides_of_each_threshold(tmp_path, claim, sign, curves):
    """One seed has a sign and no verdict."""
    write_runs(tmp_path, claim, curves, 2)
    verdict = f"too few seeds (n = 1, {f'sign {sign}' if sign else 'no sign'})"
    check_rows(judged(tmp_path, claim), claim, verdict, (2,), [curves])


def differing(*differences: float) -> list[tuple[float, float]]:
    return [(80 + difference, 80) for difference in differences]


@pytest.mark.parametrize(
    ("verdict", "plain", "family", "finals_of_seeds"),
    [
        # Student's t with two degrees of freedom has P(|T| > t) = 1 - t / sqrt(2 + t^2), which is 0.0119 at 9.085; for
        # differences that are 1 around their mean that is a mean of 9.085 / sqrt(3) = 5.245.
        ("supported", "supported", (), differing(4.26, 5.26, 6.26)),
        ("undecided", "supported", (), differing(4.23, 5.23, 6.23)),
        ("reversed", "reversed", (), differing(-4.26, -5.26, -6.26)),
        # The 95% interval reaches 4.3027 / sqrt(3) = 2.484 to both sides.
        ("undecided", "supported", (), differing(1.49, 2.49, 3.49)),
        ("undecided", "undecided", (), differing(1.47, 2.47, 3.47)),
        # In a family of two, also if the other is not run, the smaller p-value needs 0.00547, a mean of 7.775.
        ("undecided", "supported", ("l2",), differing(6.75, 7.75, 8.75)),
        ("supported", "supported", ("l2",), differing(6.80, 7.80, 8.80)),
        # Two seeds, or one, have a sign alone.
        ("too few seeds (n = 2, sign as claimed)", "", (), differing(9, 9.5)),
        # Three times the same difference is no estimate of the scatter: three signs of three, and p = 0.25.
        ("undecided", "undecided", (), differing(5, 5, 5)),
    ],
)
def test_the_level_that_decides(tmp_path, verdict, plain, family, finals_of_seeds):
    for seed, (a, b) in enumerate(finals_of_seeds):
        write_runs(tmp_path, "residual", [Curves([a] * 4), Curves([b] * 4)], seed)
    row = judged(tmp_path, "residual", family=family)[0]
    assert (row["verdict"], row["plain verdict"]) == (verdict, plain)
    if plain:
        assert row["level"] == ("0.00547" if family else "0.0119")
        assert (float(row["p"]) <= float(row["level"])) == (verdict != "undecided")


def test_the_next_of_a_family_needs_less(tmp_path):
    """Holm: once the smallest of two has decided, the other is compared with the level of one."""
    for seed, (a, b, c, d) in enumerate([(90, 80, 85, 80), (91, 80.9, 86, 80), (92, 82.1, 87, 80.7)]):
        write_runs(tmp_path, "residual", [Curves([a] * 4), Curves([b] * 4)], seed)
        write_runs(tmp_path, "bn-accuracy", [Curves([c] * 4), Curves([d] * 4)], seed)
    both = [judged(tmp_path, claim, family=("residual", "bn-accuracy"))[0] for claim in ("residual", "bn-accuracy")]
    assert [row["level"] for row in both] == ["0.00547", "0.0119"]
    assert [row["verdict"] for row in both] == ["supported", "supported"]


def test_of_more_than_ten_seeds_the_ten_lowest_count(tmp_path):
    for seed in range(12):
        write_runs(tmp_path, "level", [Curves([40 + (50 if seed > 9 else 0.1 * seed)] * 4)], seed)
    (row,) = judged(tmp_path, "level")
    assert row["seeds"] == "0 1 2 3 4 5 6 7 8 9" and float(row["mean"]) == pytest.approx(40.45)
    assert "not used, as verdicts are for at most 10 seeds: 10 11" in row["notes"]


# --- Regimes ----------------------------------------------------------------------------------------------------------


SHORT_BAND = "the band has 4,750 steps; at full size it changes sides until step 5,636, so it needs 10,000"


def write_flat(results: Path, claim: str, epochs: int, seeds: Sequence[int] = (0,)) -> None:
    """Runs of a claim with so many epochs planned and done, of which few steps were logged."""
    for seed in seeds:
        for i, config in enumerate(CLAIM_RUNS[claim]):
            write_run(results, replace(config, seed=seed), "report", epochs=epochs, losses=noisy(1.0, (seed, i), 50))


@pytest.mark.parametrize(
    ("claim", "epochs", "reason"),
    [
        ("optimizers", 19, "a run has 9,500 steps; a settled one has at least 10,000"),
        ("optimizers", 20, ""),
        ("l2", 41, ""),  # 20 differences in the last half
        ("l2", 40, "the fluctuation is from 19 differences of accuracies; it needs 20"),
        ("l2", 19, "a run has 9,500 steps; a settled one has at least 10,000"),
        ("bn-fluctuation", 11, ""),  # five at each of four learning rates
        ("bn-fluctuation", 10, "the fluctuation is from 16 differences of accuracies; it needs 20"),
        ("bn-band", 20, ""),
        ("bn-band", 19, SHORT_BAND),
        ("bn-speed", 19, SHORT_BAND),
        ("large-lr", 2, ""),
        ("large-lr", 1, "after 500 steps a run may be near chance and yet not have failed; it needs 1,000"),
    ],
)  # fmt: skip
def test_runs_that_do_not_reach_the_regime_decide_nothing(tmp_path, claim, epochs, reason):
    write_flat(tmp_path, claim, epochs)
    row = judged(tmp_path, claim, reached=False)[0]
    assert (row["verdict"] == "this preset cannot decide it") == bool(reason)
    assert (f"cannot be decided here: {reason}" in row["notes"]) == bool(reason)
    assert row["mean"]  # what was measured is shown all the same


@pytest.mark.parametrize("claim", ["level", "overfitting", "optimizers", "l2", "large-lr", "bn-speed", "bn-band"])
def test_the_quick_preset_cannot_decide_what_is_about_the_reports_regime(tmp_path, claim):
    write_run(tmp_path, "inception_res_unscaled")
    row = judged(tmp_path, claim, "quick", reached=False)[0]
    assert row["verdict"] == "this preset cannot decide it" and "run: " not in row["notes"]
    assert row["notes"].startswith("cannot be decided here: ")


def test_a_claim_that_cannot_be_decided_is_not_in_the_family(tmp_path):
    for seed, (a, b) in enumerate(differing(4.26, 5.26, 6.26)):
        write_runs(tmp_path, "residual", [Curves([a] * 4), Curves([b] * 4)], seed)
    write_flat(tmp_path, "bn-band", 3)
    for other, level in (("bn-band", "0.0119"), ("level", "0.00547")):
        assert judged(tmp_path, "residual", reached=False, family=[other])[0]["level"] == level


# --- What the measures are over ---------------------------------------------------------------------------------------


def test_accuracy_after_the_first_quarter_is_that_of_epochs_41_to_60(tmp_path):
    """At the report's 200 epochs; the end is epochs 181 to 200."""
    accuracy, loss = np.full(200, 80.0), np.full(200, 0.5)
    accuracy[40:60], loss[40:60] = 70, 1.0
    accuracy[:40], loss[:40] = 12, 3.0
    accuracy[60:180], loss[60:180] = 91, 0.8
    Curves(accuracy, loss).write(tmp_path, RESIDUAL)
    assert [float(row["mean"]) for row in judged(tmp_path, "overfitting")[:2]] == [10, 50]


def test_the_first_quarters_end_does_not_begin_before_the_run(tmp_path):
    """Of five epochs it is 1 and 2, and the end 3 to 5."""
    Curves([10, 20, 60, 40, 50], [3, 1, 1.5, 1, 0.5]).write(tmp_path, RESIDUAL)
    assert [float(row["mean"]) for row in judged(tmp_path, "overfitting")[:2]] == [35, 50]


def test_final_is_the_last_tenth(tmp_path):
    """Of 200 epochs the last 20, of 29 the last three."""
    Curves([50] * 180 + [84] * 10 + [86] * 10).write(tmp_path, INCEPTION)
    Curves([50] * 26 + [80, 82, 90]).write(tmp_path, RESIDUAL)
    assert [float(row["mean"]) for claim in ("level", "residual") for row in judged(tmp_path, claim)[:1]] == [85, -1]


def test_the_last_half_is_that_of_the_shared_epochs(tmp_path):
    """Of seven shared epochs 4 to 7, whose differences 2, -1, 5 have the standard deviation 3."""
    Curves([90, 10, 50, 60, 62, 61, 66, 10, 90, 30, 70]).write(tmp_path, ADAM)
    Curves([5, 70, 20, 40, 40, 40, 40]).write(tmp_path, RESIDUAL)
    values = [float(row["mean"]) for row in judged(tmp_path, "l2")[2:]]
    assert values == pytest.approx([3 / math.sqrt(2), 0], rel=6e-6)


def test_residual_is_shown_against_its_controls_where_they_are_there(tmp_path):
    """A plain network of 1.18 times the width, with as many parameters, and the residual one with scale 1.0."""
    for seed in (0, 1):
        write_runs(tmp_path, "residual", [Curves([60] * 4), Curves([50] * 4)], seed)
    Curves([53] * 4).write(tmp_path, replace(INCEPTION, width=1.18, seed=1))
    Curves([57] * 4).write(tmp_path, replace(UNSCALED, seed=0))
    rows = judged(tmp_path, "residual")
    assert [row["values"] for row in rows] == ["10 10", "nan 7", "7 nan"]
    assert [float(row["mean"]) for row in rows] == [10, 7, 7]


def test_the_largest_rate_that_does_not_fail(tmp_path):
    write_runs(tmp_path, "scaling", [Curves([60] * 4), Curves([61] * 4)], 0)
    for rate, accuracy in ((1e-3, 40), (1e-2, 15)):
        Curves([accuracy] * 4).write(tmp_path, replace(RESIDUAL, lr=rate))
        Curves([14.9 if rate == 1e-3 else 9] * 4).write(tmp_path, replace(UNSCALED, lr=rate))
    unscaled, scaled = (float(row["mean"]) for row in judged(tmp_path, "scaling")[3:5])
    assert (unscaled, scaled) == (1e-4, 1e-2)


def test_a_difference_over_test_images_is_noted_where_the_predictions_are_there(tmp_path):
    """BatchNorm's network is right on all of 200 images, the plain one on three quarters: 25 points, exactly known."""
    for config, text in ((BN[0], "." * 200), (PLAIN[0], "...3" * 50)):
        size = {"test_size": 200}
        folder = write_run(
            tmp_path, replace(config, **size), "report", epochs=3, test_accuracy=[9, 9, text.count(".") / 2]
        )
        (folder / "predictions.txt").write_text(f"{text[:100]}\n{text[100:]}\n")
    runs = [read_run(folder) for folder in sorted(tmp_path.glob("report/*/*"))]
    claim = next(c for c in CLAIMS if c.id == "bn-accuracy")
    found = {"vgg_a_lr0.001": {0: runs[0]}, "vgg_a_bn_lr0.001": {0: runs[1]}}
    (note,) = [n for n in verdicts.weigh(claim, found, "report").notes if "over test images" in n]
    mean, low, high = map(float, re.findall(r"[+-][\d.]+", note))
    assert mean == 25
    # The standard error is sqrt(0.25 x 0.75 / 200) = 3.06 points: 1.96 of them, and 0.2 for the resampling.
    assert (low, high) == pytest.approx((25 - 6.0, 25 + 6.0), abs=0.8)


# --- Seeds, divergence, what is missing -------------------------------------------------------------------------------


def test_runs_are_paired_by_the_number_of_their_seed(tmp_path):
    Curves([50, 50, 50]).write(tmp_path, replace(INCEPTION, seed=0))
    Curves([60, 60, 60]).write(tmp_path, replace(INCEPTION, seed=1))
    Curves([57, 57, 57]).write(tmp_path, replace(RESIDUAL, seed=1))
    row = judged(tmp_path, "residual")[0]
    assert (row["verdict"], row["values"], row["seeds"]) == ("too few seeds (n = 1, sign opposite)", "-3", "1")
    assert "left out, as not every run has it: seed 0" in row["notes"].split("; ")


@pytest.mark.parametrize(
    ("claim", "diverges", "shape"),
    [
        ("level", 0, (85.1,)),
        *(("residual", i, (86.6, 85.1)) for i in range(2)),
        ("overfitting", 0, (0.4, 31, 0.1)),
        *(("optimizers", i, (85.9, 86.2, 86.0)) for i in range(3)),
        *(("l2", i, (0.5, 1.9, 0.1)) for i in range(2)),
        *(("bn-accuracy", i, (88.1, 85.3)) for i in range(2)),
        *(("bn-fluctuation", i, (1.9, 0.5)) for i in (0, 7)),
    ],
)
def test_an_accuracy_of_a_diverged_run_decides_nothing(tmp_path, claim, diverges, shape):
    runs = {seed: CURVES[claim](seed, shape) for seed in (1, 2, 4)}
    for seed, curves in runs.items():
        if seed == 2:
            curves = [replace(run, diverged_at_step=2345) if i == diverges else run for i, run in enumerate(curves)]
        write_runs(tmp_path, claim, curves, seed)
    rows = judged(tmp_path, claim)
    check_rows(rows, claim, "diverged", (1, 4), [runs[1], runs[4]])
    assert all(", seed 2, at step 2,345" in row["notes"] for row in rows)


VGG = ("python MyVGG.py --bn --lrs 1e-3 1e-4 5e-4 5e-5", "python MyVGG.py --lrs 1e-3 1e-4 5e-4 5e-5")
PLAIN_INCEPTION = "python MyFramework.py --model inception --optimizer adam --weight-decay 0"
RESIDUAL_INCEPTION = "python MyFramework.py --model inception_res --optimizer adam --weight-decay 0"
OPTIMIZERS = "python MyFramework.py --model inception_res --optimizer adam adamw rmsprop"
COMMANDS = {
    "level": (PLAIN_INCEPTION,),
    "residual": (RESIDUAL_INCEPTION, PLAIN_INCEPTION),
    "scaling": (
        "python MyFramework.py --model inception_res --residual-scale 1.0 --weight-decay 0",
        RESIDUAL_INCEPTION,
    ),
    "overfitting": (RESIDUAL_INCEPTION,),
    "optimizers": (OPTIMIZERS,),
    "l2": (OPTIMIZERS, RESIDUAL_INCEPTION),
    "large-lr": (
        "python MyFramework.py --model inception_res --lr 1e-3",
        "python MyFramework.py --model inception_res --lr 1e-2",
        "python MyFramework.py --model inception_res --optimizer sgd --momentum 0.9 --lr 1e-2",
    ),
    **dict.fromkeys(("bn-accuracy", "bn-fluctuation", "bn-speed", "bn-band", "bn-spikes"), VGG),
}
REPORT_EPOCHS = {"--lrs": 200, "--weight-decay 0": 200, "adam adamw rmsprop": 300, "--lr ": 20}


@pytest.mark.parametrize("preset", ["report", "quick"])
def test_claims_without_runs_name_the_commands_that_train_them(tmp_path, preset):
    """Where nothing is there but seeds 3 and 5 of a run that no claim needs alone."""
    for seed in (3, 5):
        config = replace(BN[3], seed=seed, **preset_defaults(preset))
        write_run(tmp_path, config, preset, test_accuracy=[30, 40, 50], losses=[])
    for claim, expected in COMMANDS.items():
        row = judged(tmp_path, claim, preset)[0]
        assert (row["verdict"], row["seeds"], row["mean"], row["values"]) == ("not run", "", "", "")
        commands = []
        for command in expected:
            (epochs,) = {n for words, n in REPORT_EPOCHS.items() if words in command}
            short = " --epochs 3" if "--lr " in command else ""
            length = f"--epochs {epochs}" if preset == "report" else f"--preset quick{short}"
            commands.append(f"run: {command} {length} --seed 3 5 --results {tmp_path}")
        assert [note for note in row["notes"].split("; ") if note.startswith("run: ")] == commands

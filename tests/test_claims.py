"""Each of the report's twelve claims supported, reversed and undecided, from made-up run folders to verdicts.csv.

The expected effects come from the curves that were written, through `naive`. Seeds 1, 2 and 4 have every run of a
claim. Seed 0 lacks the last one and seed 3 the first, so that runs paired by their place would be paired wrongly; of
seed 6 a run is in progress. All of these differ strongly from the others, and so do runs of other settings.
"""

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import naive
import numpy as np
import pytest
from made_up import write_run

import plot_results
from cifar_lab.report import verdicts
from cifar_lab.run_folder.reader import read_runs
from cifar_lab.settings import RunConfig

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
    "bn-fluctuation": (BN[0], PLAIN[0]),
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
    replace(BN[0], lr=1e-2), replace(BN[0], augment=False), replace(PLAIN[0], init="xavier"),
)  # fmt: skip


@dataclass(frozen=True)
class Curves:
    """What one run logged."""

    accuracy: Sequence[float]  # of the test images, per epoch
    train_loss: Sequence[float] | None = None  # per epoch
    losses: Sequence[float] = ()  # per step
    diverged_at_step: int | None = None

    def write(self, results: Path, config: RunConfig, **options) -> None:
        options |= {"test_accuracy": self.accuracy, "train_loss": self.train_loss, "losses": self.losses}
        planned = len(self.accuracy)
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


def jagged(lengths: Sequence[int]):
    """Runs whose accuracies scatter by so many points, and wildly after the epochs that the runs share."""

    def curves(seed: int, scatters: Sequence[float]) -> list[Curves]:
        accuracies = [
            climbing(70, epochs, (seed, i), scatter / 70)
            for i, (scatter, epochs) in enumerate(zip(scatters, lengths, strict=True))
        ]
        for accuracy in accuracies:
            accuracy[min(lengths) :] = np.random.default_rng(seed).uniform(10, 90, len(accuracy) - min(lengths))
        return [Curves(accuracy) for accuracy in accuracies]

    return curves


def gaining_and_falling(seed: int, change: Sequence[float]) -> list[Curves]:
    """Of 53 epochs the first quarter's end is 11 to 15; from there to the last five accuracy and loss change so."""
    gain, fall = change
    epochs = 53
    rng = np.random.default_rng(seed)
    accuracy = climbing(70, epochs, (seed, 0))
    loss = 2 - 1.2 * np.arange(epochs) / epochs + rng.normal(0, 0.05, epochs)
    accuracy[-5:] += accuracy[10:15].mean() + gain - accuracy[-5:].mean()
    loss[-5:] *= loss[10:15].mean() * (1 - fall / 100) / loss[-5:].mean()
    return [Curves(accuracy, loss)]


def noisy(level: np.ndarray | float, key: Sequence[int], steps: int = STEPS) -> np.ndarray:
    """Losses within 10% of a level."""
    return level * np.random.default_rng(key).uniform(0.9, 1.1, steps)


def with_spikes(losses: np.ndarray, height: float, count: int, start: int, stop: int, key: Sequence[int]) -> np.ndarray:
    """`count` of the steps in [start, stop) raised by a factor from 80% to 125% of `height`."""
    rng = np.random.default_rng(key)
    losses[rng.choice(np.arange(start, stop), count, replace=False)] *= height * rng.uniform(0.8, 1.25, count)
    return losses


def spiking(seed: int, counts: Sequence[int]) -> list[Curves]:
    """A falling loss each, with so many spikes anywhere in the first 1,500 steps; the second run is longer."""
    runs = []
    for i, count in enumerate(counts):
        level = 0.3 + np.exp(-np.arange(STEPS) / 400)
        losses = with_spikes(noisy(level, (seed, i)), 3.4, count, 0, STEPS, (seed, i, 1))
        end = STEPS + i * EPOCH
        losses = np.append(losses, noisy(0.3, (seed, i, 2), end - STEPS))
        losses = with_spikes(losses, 9, (end - STEPS) // 10, STEPS, end, (seed, i, 3))
        runs.append(Curves(climbing(70, end // EPOCH, (seed, i)), losses=losses))
    return runs


def eight(bn: Sequence[np.ndarray], plain: Sequence[np.ndarray], seed: int) -> list[Curves]:
    """The runs of the landscape; a loss that ends within an epoch is that of a run that diverged."""
    runs = []
    for i, losses in enumerate([*bn, *plain]):
        diverged = len(losses) + 1 if len(losses) % EPOCH else None
        runs.append(Curves(climbing(60 + i, max(3, len(losses) // EPOCH), (seed, i)), None, losses, diverged))
    return runs


def bands_falling(seed: int, steps: Sequence[int]) -> list[Curves]:
    """BatchNorm's band and the plain one, which fall from 2 to 0.5 at about the given steps; unevenly spaced."""
    step = np.arange(STEPS)
    bands = [
        [noisy(0.5 + 1.5 / (1 + np.exp((step - at) / 20)) + offset, (seed, i, rate))
         for rate, offset in enumerate((-0.1, 0.25, 0.0, 0.05))]
        for i, at in enumerate(steps)
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


def bands_with_spikes(seed: int, shapes: Sequence[tuple[float, float, int]]) -> list[Curves]:
    """BatchNorm's band and the plain one by (level, height of the spikes, count); swapped counts in the second half."""
    bands = []
    for i, (level, height, count) in enumerate(shapes):
        rates = [noisy(level * share, (seed, i, rate)) for rate, share in enumerate((0.9, 1.0, 0.6, 0.7))]
        with_spikes(rates[(seed + i) % 2], height, count, 0, HALF, (seed, i, 9))
        with_spikes(rates[0], 4, shapes[1 - i][2] * 5, HALF, STEPS, (seed, i, 8))
        bands.append(rates)
    return eight(*bands, seed)


CURVES = {
    "level": ending_at((47,)),
    "residual": ending_at((53, 47)),
    "scaling": spiking,
    "overfitting": gaining_and_falling,
    "optimizers": ending_at((47, 53, 38)),
    "l2": jagged((61, 47)),
    "large-lr": ending_at((7, 6, 11)),
    "bn-accuracy": ending_at((47, 61)),
    "bn-fluctuation": jagged((47, 53)),
    "bn-speed": bands_falling,
    "bn-band": bands_of_width,
    "bn-spikes": bands_with_spikes,
}

# --- The expected effects ---------------------------------------------------------------------------------------------

SPIKE_RULES = (
    ("relative", 2.0), ("absolute", 0.5), ("relative", 1.0), ("relative", 4.0), ("absolute", 0.25), ("absolute", 1.0),
)  # fmt: skip


def finals(runs: Sequence[Curves]) -> list[float]:
    return [naive.final(run.accuracy) for run in runs]


def difference_of_finals(runs: Sequence[Curves]) -> list[float]:
    return [finals(runs)[0] - finals(runs)[1]]


def difference_of_fluctuations(runs: Sequence[Curves]) -> list[float]:
    shared = min(len(run.accuracy) for run in runs)
    first, second = (naive.fluctuation(run.accuracy, shared) for run in runs)
    return [first - second, first, second]


def unscaled_minus_scaled(runs: Sequence[Curves]) -> list[float]:
    """Over the steps that both runs have; the window of the running median is each run's own."""
    rates = [naive.spikes(naive.band([run.losses], STEPS), naive.window(len(run.losses)), *SPIKE_RULES) for run in runs]
    return np.subtract(*rates).tolist()


def both_bands(runs: Sequence[Curves]) -> list[list[list[float]]]:
    return [naive.band([run.losses for run in of], HALF) for of in (runs[:4], runs[4:])]


def settled_steps(runs: Sequence[Curves]) -> list[float]:
    bn, plain = (naive.settled_step(band, MEDIAN_WINDOW) for band in both_bands(runs))
    return [bn - plain, bn, plain]


def bn_minus_plain_spikes(runs: Sequence[Curves]) -> list[float]:
    return np.subtract(*(naive.spikes(band, MEDIAN_WINDOW, *SPIKE_RULES) for band in both_bands(runs))).tolist()


def failures(runs: Sequence[Curves]) -> list[float]:
    return [sum(run.diverged_at_step is not None or naive.final(run.accuracy) < 15 for run in runs)]


EFFECTS = {
    "level": finals,
    "residual": difference_of_finals,
    "scaling": unscaled_minus_scaled,
    "overfitting": lambda runs: naive.gain_and_fall(runs[0].accuracy, runs[0].train_loss),
    "optimizers": lambda runs: [max(finals(runs)) - min(finals(runs))],
    "l2": difference_of_fluctuations,
    "large-lr": failures,
    "bn-accuracy": difference_of_finals,
    "bn-fluctuation": difference_of_fluctuations,
    "bn-speed": settled_steps,
    "bn-band": lambda runs: naive.compare_widths(*both_bands(runs)),
    "bn-spikes": bn_minus_plain_spikes,
}

SPIKES = (
    "relative spikes (above 2 x median)", "absolute spikes (above median + 0.5)", "relative spikes (above 1 x median)",
    "relative spikes (above 4 x median)", "absolute spikes (above median + 0.25)", "absolute spikes (above median + 1)",
)  # fmt: skip
# What the report says, when it is supported, and each measure: its name, its unit, and whether it decides.
TEXTS = {
    "level": (
        "Inception v1 settles at about 85%", "within 2 points of 85",
        ("final test accuracy", "%", "yes"),
    ),
    "residual": (
        "residual + scaling improves it, 85 to 87%", "above 0",
        ("difference of the final test accuracies", "points", "yes"),
    ),
    "scaling": (
        "without scaling, training is unstable",
        "relative spikes above 0 (scale 1.0 minus 0.2), or only scale 1.0 diverged",
        *((f"{name}, scale 1.0 minus 0.2", "per 1,000 steps", "no" if i else "yes") for i, name in enumerate(SPIKES)),
    ),
    "overfitting": (
        "loss still falls at epoch 200 while accuracy peaks by about 50",
        "gain under 1 point while the loss falls by more than 20%",
        ("gain of test accuracy after the first quarter", "points", "yes"),
        ("fall of the training loss after the first quarter", "%", "yes"),
    ),
    "optimizers": (
        "Adam, AdamW and RMSprop differ little", "under 1 point",
        ("largest minus smallest final test accuracy", "points", "yes"),
    ),
    "l2": (
        "L2 keeps accuracy and lowers its fluctuation", "below 0",
        ("difference of the fluctuations", "points", "yes"),
        ("with weight decay 1e-4", "points", "no"),
        ("without", "points", "no"),
    ),
    "large-lr": (
        "a larger learning rate or momentum explodes", "all three",
        ("settings that diverge or end below 15%", "of 3", "yes"),
    ),
    "bn-accuracy": (
        "BN lifts VGG from 85 to 88%", "above 0",
        ("difference of the final test accuracies", "points", "yes"),
    ),
    "bn-fluctuation": (
        "the BN run fluctuates more", "above 0",
        ("difference of the fluctuations", "points", "yes"),
        ("with BatchNorm", "points", "no"),
        ("without", "points", "no"),
    ),
    "bn-speed": (
        "with BN the loss falls faster", "below 0",
        ("step after which the band's middle stays under 1.0, BatchNorm minus plain", "steps", "yes"),
        ("that step with BatchNorm", "", "no"),
        ("that step without", "", "no"),
    ),
    "bn-band": (
        "with BN the band is narrower", "ratio below 1",
        ("ratio of the mean widths, BatchNorm / plain", "", "yes"),
        ("share of the steps at which BatchNorm's is narrower", "%", "no"),
        ("mean width with BatchNorm", "nats", "no"),
        ("mean width without", "nats", "no"),
    ),
    "bn-spikes": (
        "with BN the loss jumps up less often", "below 0 by both definitions of a spike",
        *((f"{name}, BatchNorm minus plain", "per 1,000 steps", "no" if i > 1 else "yes")
          for i, name in enumerate(SPIKES)),
    ),
}  # fmt: skip


# --- By direction -----------------------------------------------------------------------------------------------------

SEEDS = (1, 2, 4)


def rows_of(text: str, claim: str) -> list[dict[str, str]]:
    return [row for row in csv.DictReader(io.StringIO(text)) if row["claim"] == claim]


def judged(results: Path, claim: str, preset: str = "report") -> list[dict[str, str]]:
    """The claim's rows of verdicts.csv, without the figures that plot_results.py draws."""
    runs, errors = read_runs(results, preset)
    assert not errors
    return rows_of(verdicts.to_csv({"": verdicts.judge_all(runs, preset)}), claim)


def check_rows(rows: Sequence[dict[str, str]], claim: str, verdict: str, seeds: Sequence[int], runs) -> None:
    """Everything but the notes. runs: the claim's runs, per seed."""
    statement, supported_when, *measures = TEXTS[claim]
    assert [(row["measure"], row["unit"], row["decides"]) for row in rows] == measures
    for row, values in zip(rows, zip(*map(EFFECTS[claim], runs), strict=True), strict=True):
        assert (row["the report says"], row["supported when"]) == (statement, supported_when)
        assert row["verdict"] == verdict
        assert row["seeds"] == " ".join(map(str, seeds))
        # Six digits are written: 5e-6 of a number at most. The interval's ends are differences of such numbers.
        assert [float(x) for x in row["values"].split()] == pytest.approx(values, rel=6e-6, abs=1e-9)
        assert float(row["mean"]) == pytest.approx(sum(values) / len(values), rel=6e-6, abs=1e-9)
        bounds = [float(row[key]) for key in ("low", "high") if row[key]]
        assert bounds == pytest.approx(naive.interval(values) if len(values) > 1 else [], rel=2e-5, abs=1e-9)


# For each claim what its runs have in seeds 1, 2 and 4; the functions in `CURVES` say what the numbers are.
DIRECTIONS = [
    ("level", "supported", [(84.6,), (85.3,), (85.9,)]),
    ("level", "reversed", [(80.2,), (79.5,), (81.1,)]),
    ("level", "reversed", [(91.2,), (90.1,), (90.4,)]),
    ("level", "undecided", [(82.0,), (86.5,), (84.0,)]),
    ("residual", "supported", [(86.6, 85.1), (87.9, 86.0), (84.0, 82.7)]),
    ("residual", "reversed", [(85.1, 86.6), (86.0, 87.9), (82.7, 84.0)]),
    ("residual", "undecided", [(86.6, 85.1), (86.0, 87.9), (84.0, 82.7)]),
    ("scaling", "supported", [(29, 9), (33, 14), (41, 17)]),
    ("scaling", "reversed", [(9, 29), (14, 33), (17, 41)]),
    ("scaling", "undecided", [(29, 9), (14, 33), (20, 17)]),
    ("overfitting", "supported", [(0.4, 31), (-0.3, 35), (0.2, 28)]),
    ("overfitting", "reversed", [(3.4, 31), (2.9, 35), (2.2, 28)]),
    ("overfitting", "reversed", [(0.4, 11), (-0.3, 15), (0.2, 9)]),
    ("overfitting", "undecided", [(0.4, 31), (2.6, 35), (0.2, 28)]),
    ("overfitting", "undecided", [(0.4, 31), (-0.3, 12), (0.2, 24)]),
    ("optimizers", "supported", [(85.9, 86.2, 86.0), (84.7, 84.9, 85.1), (86.6, 86.2, 86.5)]),
    ("optimizers", "reversed", [(85.9, 88.2, 86.0), (84.7, 84.9, 87.1), (86.6, 84.2, 86.5)]),
    ("optimizers", "undecided", [(85.9, 86.2, 86.0), (84.7, 84.9, 86.3), (86.6, 85.8, 86.5)]),
    ("l2", "supported", [(0.5, 1.9), (0.7, 2.2), (0.6, 1.8)]),
    ("l2", "reversed", [(1.9, 0.5), (2.2, 0.7), (1.8, 0.6)]),
    ("l2", "undecided", [(0.5, 1.9), (2.2, 0.7), (0.9, 0.8)]),
    ("large-lr", "supported", [(9.8, At(3210), 14.2), (At(2801), 10.3, 11.0), (12.1, At(1777), At(3105))]),
    ("large-lr", "reversed", [(48.8, At(3210), 64.2), (55.1, 67.3, 71.0), (12.1, 57.7, 61.3)]),
    ("large-lr", "reversed", [(9.8, At(3210), 64.2), (55.1, 10.3, 14.0), (12.1, At(1777), 61.3)]),
    ("large-lr", "undecided", [(9.8, At(3210), 14.2), (55.1, 10.3, 71.0), (12.1, At(1777), At(3105))]),
    ("bn-accuracy", "supported", [(88.1, 85.3), (87.4, 85.0), (88.9, 86.8)]),
    ("bn-accuracy", "reversed", [(85.3, 88.1), (85.0, 87.4), (86.8, 88.9)]),
    ("bn-accuracy", "undecided", [(88.1, 85.3), (85.0, 87.4), (87.0, 86.8)]),
    ("bn-fluctuation", "supported", [(1.9, 0.5), (2.2, 0.7), (1.8, 0.6)]),
    ("bn-fluctuation", "reversed", [(0.5, 1.9), (0.7, 2.2), (0.6, 1.8)]),
    ("bn-fluctuation", "undecided", [(0.5, 1.9), (2.2, 0.7), (0.9, 0.8)]),
    ("bn-speed", "supported", [(210, 430), (185, 402), (233, 391)]),
    ("bn-speed", "reversed", [(430, 210), (402, 185), (391, 233)]),
    ("bn-speed", "undecided", [(210, 430), (402, 185), (300, 317)]),
    ("bn-band", "supported", [(0.5, 0.9), (0.6, 1.0), (0.45, 0.8)]),
    ("bn-band", "reversed", [(0.9, 0.5), (1.0, 0.6), (0.8, 0.45)]),
    ("bn-band", "undecided", [(0.5, 0.9), (1.0, 0.6), (0.8, 0.7)]),
    ("bn-spikes", "supported",
     [((0.8, 3.1, 6), (0.9, 3, 21)), ((0.9, 3, 3), (0.7, 3.5, 14)), ((0.8, 3, 9), (1, 3, 26))]),
    ("bn-spikes", "reversed",
     [((0.9, 3, 21), (0.8, 3.1, 6)), ((0.7, 3.5, 14), (0.9, 3, 3)), ((1, 3, 26), (0.8, 3, 9))]),
    ("bn-spikes", "undecided",
     [((0.8, 3.1, 6), (0.9, 3, 21)), ((0.7, 3.5, 14), (0.9, 3, 3)), ((0.8, 3, 9), (1, 3, 9))]),
    # BatchNorm's spikes are small and high above a low median, the plain network's the other way round.
    ("bn-spikes", "depends on the definition",
     [((0.1, 3.4, 31), (2, 1.55, 29)), ((0.12, 3.2, 24), (2.2, 1.55, 33)), ((0.1, 3.3, 36), (2, 1.55, 40))]),
]  # fmt: skip


@pytest.mark.parametrize(("claim", "verdict", "shapes"), DIRECTIONS)
def test_each_claim_by_direction(tmp_path, capsys, claim, verdict, shapes):
    configs = CLAIM_RUNS[claim]
    of_seed = {seed: CURVES[claim](seed, shape) for seed, shape in zip(SEEDS, shapes, strict=True)}
    for seed, curves in of_seed.items():
        for run, config in zip(curves, configs, strict=True):
            run.write(tmp_path, replace(config, seed=seed))
        for i, config in enumerate(OTHER_SETTINGS):
            Curves(climbing(20 + i, 8, (seed, i), 0.2)).write(tmp_path, replace(config, seed=seed))
    wild = [Curves(climbing(33, 31 + i, (i,), 0.3), losses=noisy(7.0, (i,))) for i in range(len(configs))]
    left_out = {0: configs[:-1], 3: configs[1:], 6: configs[:-1]}
    for seed, there in left_out.items():
        for run, config in zip(wild, there, strict=False):
            run.write(tmp_path, replace(config, seed=seed))
    wild[-1].write(tmp_path, replace(configs[-1], seed=6), complete=False)

    if verdict == "supported":  # the others without the figures, which take most of the time
        assert plot_results.main([str(tmp_path), "--preset", "report"]) == 0
        rows = rows_of((tmp_path / "report" / "verdicts.csv").read_text(encoding="utf-8"), claim)
        said = [line.split() for line in capsys.readouterr().out.splitlines()]
        assert [words[1] for words in said if words[:1] == [claim]] == ["supported"]
    else:
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
    """Accuracies of 11 epochs that differ in their scatter alone."""
    shape = np.array([3.0, 1, 4, -1, 5, -9, 2, -6, 5, 3, -5])
    return [Curves(70 + height * shape) for height in heights]


def flat_bands(widths: Sequence[float]) -> list[Curves]:
    bands = [[np.full(STEPS, 1 + share * width) for share in (0.2, 0, 1, 0.4)] for width in widths]
    return eight(*bands, seed=0)


def falling_at(steps: Sequence[int]) -> list[Curves]:
    """Bands whose middle falls from 1.01 to 0.99 after so many steps."""
    middles = [np.where(np.arange(STEPS) < step, 1.01, 0.99) for step in steps]
    return eight(*[[middle + offset for offset in (-0.3, 0.3, 0.2, 0.1)] for middle in middles], seed=0)


def spikes_above(bn: Sequence[float], plain: Sequence[float]) -> list[Curves]:
    """Bands of which one rate has steps of these losses, above a level of 0.5."""
    bands = []
    for heights in (bn, plain):
        rates = [np.full(STEPS, level) for level in (0.25, 0.5, 0.5, 0.375)]
        rates[1][100 : 100 + 10 * len(heights) : 10] = heights
        bands.append(rates)
    return eight(*bands, seed=0)


@pytest.mark.parametrize(
    ("claim", "verdict", "curves"),
    [
        ("level", "agrees", ending_at((47,))(1, (83.1,))),
        ("level", "disagrees", ending_at((47,))(1, (82.9,))),
        ("level", "agrees", ending_at((47,))(1, (86.9,))),
        ("level", "disagrees", ending_at((47,))(1, (87.1,))),
        ("residual", "agrees", ending_at((53, 47))(1, (85.05, 85))),
        ("residual", "undecided", [Curves([10, 20, 30, 50]), Curves([90, 50, 20, 30])]),
        ("residual", "disagrees", ending_at((53, 47))(1, (84.95, 85))),
        ("scaling", "agrees", spiking(1, (12, 11))),
        ("scaling", "undecided", spiking(1, (11, 11))),
        ("scaling", "disagrees", spiking(1, (11, 12))),
        ("overfitting", "agrees", gaining_and_falling(1, (0.99, 21))),
        ("overfitting", "agrees", gaining_and_falling(1, (0.99, 20.1))),
        ("overfitting", "disagrees", gaining_and_falling(1, (1.01, 21))),
        ("overfitting", "disagrees", gaining_and_falling(1, (0.99, 19.9))),
        ("optimizers", "agrees", ending_at((47, 53, 38))(1, (85.6, 85.99, 85))),
        ("optimizers", "disagrees", ending_at((47, 53, 38))(1, (85.6, 86.01, 85))),
        ("optimizers", "undecided", [Curves([55, end, end, end]) for end in (50, 50.25, 51)]),
        ("l2", "agrees", zigzags(0.99, 1)),
        ("l2", "undecided", zigzags(1, 1)),
        ("l2", "disagrees", zigzags(1, 0.99)),
        ("large-lr", "agrees", ending_at((7, 6, 11))(1, (14.9, At(900), 14.9))),
        ("large-lr", "disagrees", ending_at((7, 6, 11))(1, (14.9, At(900), 15.1))),
        ("large-lr", "disagrees", [Curves([12, 18, 15, 15, 15]), Curves([9, 8, 7]), Curves([9, 8, 7])]),
        ("bn-accuracy", "agrees", ending_at((47, 61))(1, (85.05, 85))),
        ("bn-accuracy", "disagrees", ending_at((47, 61))(1, (84.95, 85))),
        ("bn-fluctuation", "agrees", zigzags(1, 0.99)),
        ("bn-fluctuation", "undecided", zigzags(1, 1)),
        ("bn-fluctuation", "disagrees", zigzags(0.99, 1)),
        ("bn-speed", "agrees", falling_at((400, 401))),
        ("bn-speed", "undecided", falling_at((400, 400))),
        ("bn-speed", "disagrees", falling_at((401, 400))),
        ("bn-band", "agrees", flat_bands((0.99, 1))),
        ("bn-band", "undecided", flat_bands((1, 1))),
        ("bn-band", "disagrees", flat_bands((1.01, 1))),
        # A step at 1.0 exactly is neither above twice the median 0.5 nor above the median plus 0.5.
        ("bn-spikes", "agrees", spikes_above([1, 1, 1], [1, 1.01])),
        ("bn-spikes", "undecided", spikes_above([1.01, 1, 1], [1, 1.01])),
        ("bn-spikes", "disagrees", spikes_above([1, 1.01, 1], [1, 1])),
        # About a low level no spike is above the median + 0.5: one definition alone decides nothing.
        ("bn-spikes", "undecided", bands_with_spikes(1, [(0.1, 3.4, 6), (0.1, 3.4, 21)])),
        ("bn-spikes", "undecided", bands_with_spikes(1, [(0.1, 3.4, 21), (0.1, 3.4, 6)])),
        ("bn-spikes", "depends on the definition", bands_with_spikes(1, [(0.1, 3.4, 31), (2, 1.55, 29)])),
    ],
)  # fmt: skip
def test_the_sides_of_each_threshold(tmp_path, claim, verdict, curves):
    write_runs(tmp_path, claim, curves, 2)
    check_rows(judged(tmp_path, claim), claim, f"{verdict} (1 seed)", (2,), [curves])


@pytest.mark.parametrize(
    ("claim", "verdict", "finals_of_seeds"),
    [
        # 1 around the mean: the interval reaches 4.3027 / sqrt(3) = 2.484 to both sides of it.
        ("residual", "supported", [(88.49, 85), (86.49, 85), (87.49, 85)]),
        ("residual", "undecided", [(88.47, 85), (86.47, 85), (87.47, 85)]),
        ("residual", "reversed", [(83.51, 85), (81.51, 85), (82.51, 85)]),
        ("residual", "undecided", [(83.53, 85), (81.53, 85), (82.53, 85)]),
        # Four seeds: 3.1824 x 1.1547 / 2 = 1.837.
        ("residual", "supported", [(87.85, 85), (85.85, 85), (85.85, 85), (87.85, 85)]),
        ("residual", "undecided", [(87.82, 85), (85.82, 85), (85.82, 85), (87.82, 85)]),
        # 0.8 around the mean: 1.987.
        ("level", "supported", [(85.8,), (84.2,), (85.0,)]),
        ("level", "undecided", [(85.82,), (84.18,), (85.0,)]),
        ("level", "reversed", [(81.8,), (80.2,), (81.0,)]),
        ("level", "undecided", [(81.82,), (80.22,), (81.02,)]),
        ("level", "reversed", [(89.8,), (88.2,), (89.0,)]),
        ("level", "undecided", [(89.78,), (88.18,), (88.98,)]),
        # Two seeds: the sign of the mean alone, although the interval is written.
        ("residual", "agrees (2 seeds)", [(88, 85), (84, 85)]),
        ("residual", "disagrees (2 seeds)", [(82, 85), (86, 85)]),
    ],
)
def test_the_interval_decides_from_three_seeds_on(tmp_path, claim, verdict, finals_of_seeds):
    runs = {seed: CURVES[claim](seed, shape) for seed, shape in zip((1, 2, 4, 7), finals_of_seeds, strict=False)}
    for seed, curves in runs.items():
        write_runs(tmp_path, claim, curves, seed)
    check_rows(judged(tmp_path, claim), claim, verdict, tuple(runs), runs.values())


def test_accuracy_after_the_first_quarter_is_that_of_epochs_41_to_60(tmp_path):
    """At the report's 200 epochs; the end is epochs 181 to 200."""
    accuracy, loss = np.full(200, 80.0), np.full(200, 0.5)
    accuracy[40:60], loss[40:60] = 70, 1.0
    accuracy[:40], loss[:40] = 12, 3.0
    accuracy[60:180], loss[60:180] = 91, 0.8
    Curves(accuracy, loss).write(tmp_path, RESIDUAL)
    assert [float(row["mean"]) for row in judged(tmp_path, "overfitting")] == [10, 50]


def test_the_first_quarters_end_does_not_begin_before_the_run(tmp_path):
    """Of five epochs it is 1 and 2, and the end 3 to 5."""
    Curves([10, 20, 60, 40, 50], [3, 1, 1.5, 1, 0.5]).write(tmp_path, RESIDUAL)
    assert [float(row["mean"]) for row in judged(tmp_path, "overfitting")] == [35, 50]


def test_final_is_the_last_tenth(tmp_path):
    """Of 200 epochs the last 20, of 29 the last three."""
    Curves([50] * 180 + [84] * 10 + [86] * 10).write(tmp_path, INCEPTION)
    Curves([50] * 26 + [80, 82, 90]).write(tmp_path, RESIDUAL)
    assert [float(row["mean"]) for row in judged(tmp_path, "level") + judged(tmp_path, "residual")] == [85, -1]


def test_the_last_half_is_that_of_the_shared_epochs(tmp_path):
    """Of seven shared epochs 4 to 7, whose differences 2, -1, 5 have the standard deviation 3."""
    Curves([90, 10, 50, 60, 62, 61, 66, 10, 90, 30, 70]).write(tmp_path, ADAM)
    Curves([5, 70, 20, 40, 40, 40, 40]).write(tmp_path, RESIDUAL)
    values = [float(row["mean"]) for row in judged(tmp_path, "l2")]
    assert values == pytest.approx([3 / math.sqrt(2), 3 / math.sqrt(2), 0], rel=6e-6)


# --- Seeds, divergence, what is missing -------------------------------------------------------------------------------


def test_runs_are_paired_by_the_number_of_their_seed(tmp_path):
    Curves([50, 50, 50]).write(tmp_path, replace(INCEPTION, seed=0))
    Curves([60, 60, 60]).write(tmp_path, replace(INCEPTION, seed=1))
    Curves([57, 57, 57]).write(tmp_path, replace(RESIDUAL, seed=1))
    (row,) = judged(tmp_path, "residual")
    assert (row["verdict"], row["values"], row["seeds"]) == ("disagrees (1 seed)", "-3", "1")
    assert "left out, as not every run has it: seed 0" in row["notes"].split("; ")


@pytest.mark.parametrize(
    ("claim", "diverges", "shape"),
    [
        ("level", 0, (85.1,)),
        *(("residual", i, (86.6, 85.1)) for i in range(2)),
        ("overfitting", 0, (0.4, 31)),
        *(("optimizers", i, (85.9, 86.2, 86.0)) for i in range(3)),
        *(("l2", i, (0.5, 1.9)) for i in range(2)),
        *(("bn-accuracy", i, (88.1, 85.3)) for i in range(2)),
        *(("bn-fluctuation", i, (1.9, 0.5)) for i in range(2)),
    ],
)
def test_an_accuracy_of_a_diverged_run_decides_nothing(tmp_path, claim, diverges, shape):
    runs = {seed: CURVES[claim](seed, shape) for seed in SEEDS}
    for seed, curves in runs.items():
        if seed == 2:
            curves = [replace(run, diverged_at_step=2345) if i == diverges else run for i, run in enumerate(curves)]
        write_runs(tmp_path, claim, curves, seed)
    rows = judged(tmp_path, claim)
    check_rows(rows, claim, "diverged", (1, 4), [runs[1], runs[4]])
    assert all(", seed 2, at step 2,345" in row["notes"] for row in rows)


@pytest.mark.parametrize("preset", ["quick", "laptop"])
def test_level_is_decided_at_the_report_preset_alone(tmp_path, preset):
    sizes = {"quick": {"width": 0.125, "train_size": 5000, "test_size": 2000}, "laptop": {"width": 0.25}}[preset]
    write_run(tmp_path, replace(INCEPTION, **sizes), preset, test_accuracy=[20, 84, 85, 87], losses=[])
    (row,) = judged(tmp_path, "level", preset)
    assert (row["verdict"], float(row["mean"])) == ("report preset only", pytest.approx(256 / 3, rel=6e-6))


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
    sizes = {"width": 0.125, "train_size": 5000, "test_size": 2000} if preset == "quick" else {}
    for seed in (3, 5):
        write_run(tmp_path, replace(BN[3], seed=seed, **sizes), preset, test_accuracy=[30, 40, 50], losses=[])
    for claim, expected in COMMANDS.items():
        (row,) = judged(tmp_path, claim, preset)
        assert (row["verdict"], row["seeds"], row["mean"], row["values"]) == ("not run", "", "", "")
        commands = []
        for command in expected:
            (epochs,) = {n for words, n in REPORT_EPOCHS.items() if words in command}
            length = f"--epochs {epochs}" if preset == "report" else "--preset quick"
            commands.append(f"run: {command} {length} --seed 3 5 --results {tmp_path}")
        assert [note for note in row["notes"].split("; ") if note.startswith("run: ")] == commands

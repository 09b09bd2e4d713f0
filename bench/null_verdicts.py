"""How often the verdicts are wrong where there is nothing to find, and how often they find an effect that is there.

`python -m bench.null_verdicts` makes logs of families of claims at the report preset, in which every effect is none,
or lies exactly on the threshold of its claim: then both "supported" and "reversed" are false. A family is looked at
after each of 3 to 10 seeds; it errs if any claim has a false verdict at any look. For power, the effects of the same
logs are moved to two standard deviations (of the scatter over seeds) inside the claim's side. The table goes to
bench/results/null-verdicts.md. `--levels` prints `LOOK_LEVELS` of cifar_lab/measures/statistics.py instead.
"""

import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from cifar_lab.experiments import BN_BAND, PLAIN_BAND, config_of
from cifar_lab.measures.statistics import FEWEST_SEEDS, MOST_SEEDS, clopper_pearson, student_tail
from cifar_lab.program import run
from cifar_lab.report.claims import CLAIMS, Claim
from cifar_lab.report.effects import OPTIMIZERS
from cifar_lab.report.verdicts import DEPENDS, REVERSED, SUPPORTED, Estimate, Verdict, decide, weigh_estimates
from cifar_lab.run_folder.files import write_text
from cifar_lab.run_folder.reader import Run
from cifar_lab.settings import Parser, integer

RESULT = Path(__file__).resolve().parent / "results" / "null-verdicts.md"
LOOKS = range(FEWEST_SEEDS, MOST_SEEDS + 1)
EPOCHS, STEPS = 60, 400  # that are logged
EFFECT = 2.0  # standard deviations over seeds
PILOT = 400  # seeds from which that deviation is estimated, to 3.5%
DECIDED = (SUPPORTED, REVERSED, DEPENDS)

# --- Logs without an effect -------------------------------------------------------------------------------------------

Columns = Mapping[str, np.ndarray]


def _run(name: str, accuracy: np.ndarray, losses: np.ndarray | None = None, **columns: np.ndarray) -> Run:
    """A complete run in memory, at the report preset."""
    return Run(
        folder=Path(name), preset="report", settings=asdict(config_of(name, "report")), network={}, epochs_planned=200,
        environment={}, earlier_environments=[], epochs={"epoch": np.arange(len(accuracy)) + 1.0,
        "test_accuracy": accuracy, **columns}, losses=np.empty(0) if losses is None else losses, probes=None,
        summary={"diverged_at_step": None},
    )  # fmt: skip


def _ending(rng: np.random.Generator, **means: float) -> dict[str, Run]:
    """Runs whose final accuracies scatter by half a point over the seeds, and by 0.6 from epoch to epoch."""
    return {
        name: _run(name, mean + rng.normal(0, 0.5) + rng.normal(0, 0.6, EPOCHS)) for name, mean in means.items()
    }  # fmt: skip


def _failing(rng: np.random.Generator, share: float, *names: str) -> dict[str, Run]:
    """Runs that end at 10% with this probability, else at 60."""
    return _ending(rng, **{name: 10.0 if rng.random() < share else 60.0 for name in names})


def _overfitting(rng: np.random.Generator) -> dict[str, Run]:
    """From the first quarter's end on one point more, a fifth less training loss, the same test loss."""
    late = np.arange(EPOCHS) > EPOCHS // 2
    noise = rng.normal(0, (0.3, 0.03, 0.03))[:, None] * late + rng.normal(0, ((0.3,), (0.02,), (0.02,)), (3, EPOCHS))
    columns = {"train_loss": np.where(late, 0.8, 1.0) + noise[1], "test_loss": 1.0 + noise[2]}
    return {"inception_res": _run("inception_res", 85 + late + noise[0], **columns)}


def _bands(make: Callable[[], list[np.ndarray]]) -> dict[str, Run]:
    """Both networks' runs, made in the same way."""
    return {
        name: _run(name, np.full(EPOCHS, 80.0), losses)
        for names in (BN_BAND, PLAIN_BAND)
        for name, losses in zip(names, make(), strict=True)
    }


def _falling(rng: np.random.Generator) -> list[np.ndarray]:
    speed = np.exp(rng.normal(0, 0.2))
    return [
        2.3 * np.exp(-np.arange(STEPS) * speed * rate / 100) * rng.uniform(0.9, 1.1, STEPS)
        for rate in (1.0, 0.8, 1.1, 0.9)
    ]


def _wide(rng: np.random.Generator) -> list[np.ndarray]:
    width = np.exp(rng.normal(0, 0.2))
    return [1 + width * share + rng.normal(0, 0.1, STEPS) for share in (0, 0.3, 0.6, 1)]


def _jumping(rng: np.random.Generator) -> list[np.ndarray]:
    """Three excursions on average, of 20 steps, in one of four runs."""
    runs = [0.5 + rng.normal(0, 0.02, STEPS) for _ in range(4)]
    for place in rng.choice(9, min(9, rng.poisson(3)), replace=False):
        runs[0][40 * place + 10 : 40 * place + 30] += 1
    return runs


def _scattering(rng: np.random.Generator) -> dict[str, Run]:
    runs = {}
    for names in (BN_BAND, PLAIN_BAND):
        scale = np.exp(rng.normal(0, 0.1))
        runs |= {name: _run(name, 80 + scale * rng.normal(0, 0.6, EPOCHS)) for name in names}
    return runs


NULL_RUNS: dict[str, Callable[[np.random.Generator], dict[str, Run]]] = {
    "level": lambda rng: _ending(rng, inception=83.0),
    "residual": lambda rng: _ending(rng, inception_res=85.0, inception=85.0),
    "scaling": lambda rng: _failing(rng, 0.4, "inception_res_unscaled", "inception_res"),
    "overfitting": _overfitting,
    "optimizers": lambda rng: _ending(rng, **dict(zip(OPTIMIZERS, (86.0, 86.0, 85.0), strict=True))),
    "l2": lambda rng: _ending(rng, inception_res_adam=84.0, inception_res=85.0),
    "large-lr": lambda rng: _failing(rng, 0.5, "large_lr_adam_1e-3", "large_lr_adam_1e-2", "large_lr_sgd_momentum"),
    "bn-accuracy": lambda rng: _ending(rng, **{"vgg_a_bn_lr0.001": 85.0, "vgg_a_lr0.001": 85.0}),
    "bn-fluctuation": _scattering,
    "bn-speed": lambda rng: _bands(lambda: _falling(rng)),
    "bn-band": lambda rng: _bands(lambda: _wide(rng)),
    "bn-spikes": lambda rng: _bands(lambda: _jumping(rng)),
}


def null_values(claim: Claim, seeds: int, rng: np.random.Generator) -> np.ndarray:
    """(seeds, measures): a claim's effects on the logs of so many seeds."""
    return np.array([claim.effect(NULL_RUNS[claim.id](rng)) for _ in range(seeds)], dtype=np.float64)


# --- An effect --------------------------------------------------------------------------------------------------------


def with_effect(claim: Claim, values: np.ndarray, pilot: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The effects moved into the claim's side by two standard deviations, that of a pilot's values (S, measures).

    From the nearer end of the side, if the null effect lies on it. A failure, which is 0 or 1, is one with the
    probability of a normal value to be above 0 if its mean is two standard deviations above: 0.977.
    """
    moved = values.copy()
    for i, measure in enumerate(claim.measures):
        if measure.side is None:
            continue
        if measure.scale in ("share", "sign"):
            moved[:, i] = rng.standard_normal(len(values)) + EFFECT > 0
            continue
        log = measure.scale == "ratio"
        usable = pilot[:, i][np.isfinite(pilot[:, i]) & (pilot[:, i] > 0 if log else True)]
        if not len(usable):
            continue
        scale = np.log(usable) if log else usable
        ends = [math.log(end) if log and 0 < end < math.inf else end for end in measure.side]
        for end, sign in zip(ends, (1, -1), strict=True):
            if abs(scale.mean() - end) < scale.std():
                shift = sign * EFFECT * scale.std()
                moved[:, i] = moved[:, i] * math.exp(shift) if log else moved[:, i] + shift
    return moved


def weighed(claim: Claim, values: np.ndarray) -> Verdict:
    """The claim's verdict before the others are known, from its effects (seeds, measures)."""
    estimates = tuple(Estimate(measure, column) for measure, column in zip(claim.measures, values.T, strict=True))
    return replace(weigh_estimates(claim, tuple(range(len(values))), estimates), estimates=(), notes=())


def simulate(families: int, seed: int = 0) -> dict[str, list[int]]:
    """Decisions of families of claims without an effect, with one in every claim, and with one in a claim alone.

    Returns for each scenario ("null", "all", and each claim's id) and claim, under "scenario/claim", the number of
    seeds at its first decision per family (0: none); and under "errors" the same of each null family's first claim.
    In the scenarios with an effect only "supported" is a decision.
    """
    rng = np.random.default_rng(seed)
    pilots = {claim.id: null_values(claim, PILOT, rng) for claim in CLAIMS}
    first: dict[str, list[int]] = {}
    for _ in range(families):
        null, moved = [], []
        for claim in CLAIMS:
            values = null_values(claim, MOST_SEEDS, rng)
            effect = with_effect(claim, values, pilots[claim.id], rng)
            null.append([weighed(claim, values[:n]) for n in LOOKS])
            moved.append([weighed(claim, effect[:n]) for n in LOOKS])
        scenarios = {"null": null, "all": moved}
        scenarios |= {
            claim.id: [moved[j] if i == j else null[j] for j in range(len(CLAIMS))] for i, claim in enumerate(CLAIMS)
        }
        for scenario, verdicts in scenarios.items():
            counted = DECIDED if scenario == "null" else (SUPPORTED,)
            looks = [decide(list(look)) for look in zip(*verdicts, strict=True)]
            seen = [
                next((n for n, look in zip(LOOKS, looks, strict=True) if look[i].outcome in counted), 0)
                for i in range(len(CLAIMS))
            ]
            for claim, n in zip(CLAIMS, seen, strict=True):
                first.setdefault(f"{scenario}/{claim.id}", []).append(n)
            if scenario == "null":
                first.setdefault("errors", []).append(min((n for n in seen if n), default=0))
    return first


# --- Levels, table, command line --------------------------------------------------------------------------------------


def look_levels(claims: int, sequences: int, seed: int = 0) -> np.ndarray:
    """(claims,) levels of each look at which all looks together err in 0.05 / m of null sequences, m from 1.

    A sequence is a normal value per seed and Student's two-sided test of mean 0 after each of 3 to 10 seeds; its level
    is the smallest of the p-values.
    """
    rng = np.random.default_rng(seed)
    chunk, smallest = 500_000, []
    for _ in range(0, sequences, chunk):
        x = rng.standard_normal((min(chunk, sequences), MOST_SEEDS))
        total, squares = x.cumsum(axis=1), (x**2).cumsum(axis=1)
        least = np.ones(len(x))
        for n in LOOKS:
            mean = total[:, n - 1] / n
            variance = (squares[:, n - 1] - n * mean**2) / (n - 1)
            least = np.minimum(least, 2 * student_tail(np.abs(mean) / np.sqrt(variance / n), n - 1))
        smallest.append(least)
    return np.quantile(np.concatenate(smallest), 0.05 / np.arange(1, claims + 1))


def table(first: Mapping[str, list[int]]) -> str:
    """The result as Markdown."""
    families = len(first["errors"])
    wrong = np.count_nonzero(first["errors"])
    low, high = clopper_pearson(int(wrong), families)
    lines = [
        "# Verdicts on logs without an effect",
        f"{families:,} families of {len(CLAIMS)} claims, looked at after each of {LOOKS[0]} to {LOOKS[-1]} seeds; "
        "`python -m bench.null_verdicts`.",
        f"**Families with a false verdict at any look: {wrong / families:.2%}** (95% limits {low:.2%} to {high:.2%}; "
        "promised: at most 5%).",
        "Power: decided rightly by the tenth seed, if the effect lies two standard deviations (over seeds) inside the "
        "claim's side. Seeds: the mean number at the first right decision, of those decided. Failures and censored "
        "values have only a sign, of which ten are too few while eleven other claims are undecided.",
        "| claim | false verdicts | power, effect in this claim alone | seeds | power, effect in all claims | seeds |\n"
        "|---|---:|---:|---:|---:|---:|",
    ]
    for claim in CLAIMS:
        cells = [f"`{claim.id}`", f"{np.count_nonzero(first[f'null/{claim.id}']) / families:.2%}"]
        for scenario in (claim.id, "all"):
            seeds = [n for n in first[f"{scenario}/{claim.id}"] if n]
            cells += [f"{len(seeds) / families:.1%}", f"{np.mean(seeds):.1f}" if seeds else "-"]
        lines[-1] += f"\n| {' | '.join(cells)} |"
    return "\n\n".join(lines) + "\n"


def main(argv: list[str]) -> None:
    parser = Parser("python -m bench.null_verdicts", __doc__)
    parser.add_argument("--families", type=integer(1, 1_000_000), default=700, help="families of claims (700)")
    parser.add_argument("--levels", action="store_true", help="print the level of each look for 1 to 24 claims")
    args = parser.parse_args(argv)
    if args.levels:
        print(*(f"{level:.5f}" for level in look_levels(24, 10_000_000)), sep=", ")
        return
    text = table(simulate(args.families))
    write_text(RESULT, text)
    print(text)


if __name__ == "__main__":
    run(main, sys.argv[1:])

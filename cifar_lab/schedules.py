"""The learning-rate schedules, by name. Adding one is adding an entry to `SCHEDULES`.

A schedule is a factor on the learning rate of a run for each of its steps: a function of (step from 0, steps of the
whole run, steps of the warm-up). The warm-up rises linearly to 1 (Goyal et al. 2017); with `one-cycle` it is the rise.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import cos, pi

DROP = 0.1  # of `step`, at half and at three quarters of the run
FIRST, LAST, RISE = 1 / 25, 1 / 25 / 1e4, 0.3  # of `one-cycle`: factors, and the share of the run that rises


def _warm(step: int, warmup: int) -> float:
    return min(1.0, (step + 1) / warmup) if warmup else 1.0


def _between(first: float, last: float, share: float) -> float:
    """From first to last along half a cosine."""
    return last + (first - last) * (1 + cos(pi * share)) / 2


def constant(step: int, steps: int, warmup: int) -> float:
    """1."""
    return _warm(step, warmup)


def by_step(step: int, steps: int, warmup: int) -> float:
    """A tenth from half of the run on, a hundredth from three quarters on (He et al. 2016, section 4.2)."""
    return _warm(step, warmup) * DROP ** ((2 * step >= steps) + (4 * step >= 3 * steps))


def cosine(step: int, steps: int, warmup: int) -> float:
    """Half a cosine from the end of the warm-up to the end of the run (Loshchilov & Hutter 2017, without restarts)."""
    return _warm(step, warmup) * _between(1, 0, max(0, step - warmup) / max(1, steps - warmup))


def one_cycle(step: int, steps: int, warmup: int) -> float:
    """Up from 1/25 during the warm-up (without one, 30% of the run), then down to 1/250,000, both along half a cosine
    (Smith & Topin 2018, as PyTorch's OneCycleLR)."""
    peak = (warmup or RISE * steps) - 1
    if step <= peak:
        return _between(FIRST, 1, step / max(1, peak))
    return _between(1, LAST, (step - peak) / (steps - 1 - peak))


@dataclass(frozen=True)
class Schedule:
    """A schedule and what it is called."""

    label: str  # in figures
    factor: Callable[[int, int, int], float]
    planned: bool = True  # whether it depends on the length of the run, which is then part of the run's identity


SCHEDULES: dict[str, Schedule] = {
    "constant": Schedule("constant rate", constant, planned=False),
    "step": Schedule("step schedule", by_step),
    "cosine": Schedule("cosine schedule", cosine),
    "one-cycle": Schedule("one-cycle schedule", one_cycle),
}


def factors(config, steps_per_epoch: int) -> list[float]:
    """The factor on the learning rate at each step of a run (`settings.RunConfig`); after the last it stays.

    Empty if the learning rate is the same at every step.
    """
    steps, warmup = _lengths(config, steps_per_epoch)
    return [factor_at(config, steps_per_epoch, step) for step in range(steps or warmup)]


def factor_at(config, steps_per_epoch: int, step: int) -> float:
    """The factor at one step, from 0."""
    steps, warmup = _lengths(config, steps_per_epoch)
    last = (steps or warmup) - 1
    return SCHEDULES[config.schedule].factor(min(step, last), steps, warmup) if last >= 0 else 1.0


def _lengths(config, steps_per_epoch: int) -> tuple[int, int]:
    """Steps of the schedule, 0 if it does not depend on them, and of its warm-up."""
    epochs = config.schedule_epochs if SCHEDULES[config.schedule].planned else 0
    return round(epochs * steps_per_epoch), round(config.warmup * steps_per_epoch)

"""Trainings that have more threads than there are cores compute one at a time; nobody waits for the dead or stopped."""

import os
import threading
import time

import pytest

from cifar_lab.training import turns
from cifar_lab.training.turns import Turns

pytestmark = pytest.mark.skipif(turns.fcntl is None, reason="needs POSIX locks")


@pytest.fixture
def opened(tmp_path, monkeypatch):
    """Opens a training's turns in a folder of this test, on two cores."""
    monkeypatch.setattr(turns, "allowed_cores", lambda: 2)
    monkeypatch.setattr(turns, "SLICE", 0.03)
    monkeypatch.setattr(turns, "STEPS", 3)
    every = []

    def start(threads: int) -> Turns:
        every.append(Turns(threads, tmp_path / "turns"))
        return every[-1]

    yield start
    for one in every:
        one.close()
    assert not list(tmp_path.glob("turns/*.threads"))


def worked(one: Turns, seconds: float) -> list[tuple[float, float]]:
    """When a training that does nothing but short steps was at each of them."""
    steps, end = [], time.monotonic() + seconds
    while time.monotonic() < end:
        one.take(lambda: None)
        begin = time.monotonic()
        time.sleep(0.004)
        steps.append((begin, time.monotonic()))
    one.close()
    return steps


def at_once(trainings: list[Turns], seconds: float = 1.0) -> list[list[tuple[float, float]]]:
    """The steps of trainings that run at the same time."""
    steps: list = [None] * len(trainings)
    threads = [
        threading.Thread(target=lambda i=i, one=one: steps.__setitem__(i, worked(one, seconds)))
        for i, one in enumerate(trainings)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return steps


def overlaps(a: list[tuple[float, float]], b: list[tuple[float, float]]) -> int:
    """How many steps of one training began during a step of the other's."""
    return sum(begin <= other < end for begin, end in a for other, _ in b)


@pytest.mark.parametrize("count", [2, 3])
def test_trainings_with_more_threads_than_cores_take_turns(opened, count):
    steps = at_once([opened(2) for _ in range(count)])
    # The first turn can be taken before the others are there to see.
    later = [[s for s in of if s[0] > steps[0][0][0] + 0.2] for of in steps]
    assert all(overlaps(a, b) == 0 for a in later for b in later if a is not b)
    assert min(map(len, later)) > 0.2 * max(map(len, later))  # each has its share


@pytest.mark.parametrize("threads, cores", [((2, 2), 4), ((1, 1), 1), ((1, 2), 2)])
def test_trainings_that_fit_or_have_one_thread_wait_for_nobody(opened, monkeypatch, threads, cores):
    monkeypatch.setattr(turns, "allowed_cores", lambda: cores)
    a, b = at_once([opened(n) for n in threads], 0.5)
    assert overlaps(a, b) > 5


def test_a_turn_ends_with_what_computes(opened):
    a, b = opened(2), opened(2)
    ended = []
    a.take(lambda: ended.append(1))
    assert not ended  # it had no turn before
    threading.Timer(0.1, b.close).start()
    time.sleep(0.05)
    for step in (2, 3, 4, 5):
        a.take(lambda step=step: ended.append(step))
    assert ended == [5]  # after three steps more, though the time was over before


def test_nobody_waits_for_a_training_that_was_stopped(opened, monkeypatch):
    monkeypatch.setattr(turns, "PATIENCE", 0.2)
    stopped, other = opened(2), opened(2)
    stopped.take(lambda: None)  # and never again
    begin = time.monotonic()
    other.take(lambda: None)
    assert 0.2 <= time.monotonic() - begin < 5
    begin = time.monotonic()
    for _ in range(100):
        other.take(lambda: None)
    assert time.monotonic() - begin < 0.1  # it asks no more for a while


def test_nobody_waits_for_the_dead(opened, tmp_path):
    one = opened(2)
    dead = tmp_path / "turns" / "1-1-64.threads"
    dead.touch()  # nobody holds its lock
    one.take(lambda: None)
    assert not dead.exists() and not one._has_turn


def test_without_a_folder_of_its_own_there_are_no_turns(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    for one in (Turns(2, tmp_path / "file"), Turns(1, tmp_path / "none")):
        one.take(lambda: None)
        one.close()
    uid = os.getuid()
    monkeypatch.setattr(turns.os, "getuid", lambda: uid + 1)
    Turns(2, tmp_path).close()
    assert os.listdir(tmp_path) == ["file"]

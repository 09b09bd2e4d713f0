"""Several commands at a time on this machine: what each gets of it, what follows from how one ends, and signals."""

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from argparse import Namespace
from pathlib import Path

import pytest
from filelock import FileLock
from test_console import Terminal
from trainings import slowed

import MyVGG
from cifar_lab import reproduce
from cifar_lab.jobs import here, machine, task
from cifar_lab.jobs.here import SideBySide
from cifar_lab.jobs.task import Task
from cifar_lab.run_folder import files
from cifar_lab.settings import run_folder
from cifar_lab.training import script
from cifar_lab.training.device import has_bf16  # before conftest.py replaces it
from cifar_lab.training.threads import allowed_cores

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs POSIX processes and signals")

# --- Made-up commands -------------------------------------------------------------------------------------------------

FAKE = """
import json, os, signal, sys, time
from pathlib import Path

signals = []
signal.signal(signal.SIGINT, lambda number, _: signals.append(number))

name, seconds, *statuses = sys.argv[1:]
me = Path(sys.argv[0]).with_name(f"{name}.ran")
before = me.read_text().splitlines() if me.exists() else []
told = {key: os.environ.get(key) for key in ("OMP_NUM_THREADS", "OMP_PROC_BIND", "CUDA_VISIBLE_DEVICES")}
start = time.monotonic()
print("epoch 3/9: working", flush=True)
time.sleep(float(seconds))
status = int(statuses[min(len(before), len(statuses) - 1)])
with me.open("a") as file:
    file.write(json.dumps(told | {"start": start, "end": time.monotonic(), "status": status,
                            "signals": signals}) + chr(10))
print(f"last words of {name}", flush=True)
if status < 0:
    os.kill(os.getpid(), -status)
sys.exit(status)
"""


@pytest.fixture
def fake(tmp_path):
    """Makes tasks whose command lasts some seconds and ends with the given statuses, one after the other."""
    (tmp_path / "fake.py").write_text(FAKE, encoding="utf-8")

    def make(name, *statuses, seconds=0.0, runs=1, needs=()):
        words = [tmp_path / "fake.py", name, seconds, *(statuses or [0])]
        folders = tuple(tmp_path / "quick" / "net" / f"{name}{i}" for i in range(runs))
        return Task(shlex.join(["python", *map(str, words)]), "quick", 0, 9, folders, needs)

    return make


def ran(of: Task) -> list[dict]:
    """What a made-up command has noted of each time that it ran."""
    _, file, name, *_ = shlex.split(of.command)
    path = Path(file).with_name(f"{name}.ran")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


class Counted(SideBySide):
    """Notes of each command that ends how many ran until then."""

    def __init__(self, *arguments) -> None:
        super().__init__(*arguments)
        self.ends: list[tuple[Task, int]] = []

    def _end(self, one) -> None:
        self.ends.append((one.task, len(self._running)))
        super()._end(one)


def most_at_a_time(runs: list[dict]) -> int:
    return max(sum(one["start"] <= each["start"] < one["end"] for one in runs) for each in runs)


def test_so_many_at_a_time(fake, monkeypatch):
    monkeypatch.setattr(here, "allowed_cores", lambda: 7)
    every = [fake(name, seconds=0.6) for name in "abcde"]
    counted = Counted(every, 3)
    assert counted.run() == 0 and max(count for _, count in counted.ends) == 3
    runs = [one for each in every for one in ran(each)]
    assert len(runs) == 5 and most_at_a_time(runs) <= 3
    assert {one["OMP_NUM_THREADS"] for one in runs} == {"2"}


def test_a_list_is_looked_through_only_when_something_can_start(fake, monkeypatch):
    looks = []
    monkeypatch.setattr(here, "startable", lambda left: looks.append(left) or task.startable(left))
    assert SideBySide([fake(name, seconds=0.5) for name in "abc"], 1).run() == 0
    assert len(looks) == 3


def test_what_needs_a_run_starts_when_it_is_trained(fake):
    first = fake("first", seconds=0.3)
    second = fake("second", needs=first.folders, runs=0)
    assert SideBySide([second, first], 2).run() == 0
    assert ran(first)[0]["end"] < ran(second)[0]["start"]


@pytest.mark.parametrize("status, times", [(1, 1), (2, 1), (74, 1), (143, 3), (71, 2), (-9, 2), (-15, 3)])
def test_a_failure(fake, status, times, capsys):
    """Tried again or not; then the list ends, what runs beside it goes on to its end, and the line names the log."""
    failing, beside, later = fake("failing", status), fake("beside", seconds=8), fake("later")
    expected = 128 - status if status < 0 else status
    assert SideBySide([failing, beside, later][: 2 + (times == 1)], 2).run() == expected
    assert (len(ran(failing)), len(ran(beside)), len(ran(later))) == (times, 1, 0)
    line = next(line for line in capsys.readouterr().out.splitlines()[::-1] if "failing" in line and "status" in line)
    log = re.search(r"\((\S+)\)$", line)[1]
    assert f"status {expected} after" in line and "last words of failing" in line
    assert Path(log).read_text(encoding="utf-8").count("last words of failing") == times


def test_out_of_memory_after_another_failure_is_tried_once_more(fake):
    again = fake("again", 143, 71, 0)
    assert SideBySide([again], 2).run() == 0
    assert [one["status"] for one in ran(again)] == [143, 71, 0]


def test_a_log_that_is_removed_ends_nothing(fake):
    first, other = fake("first", 143, 0, seconds=1), fake("other", seconds=3)
    watched = SideBySide([first, other], 2)
    removed = []

    def remove():
        log = here.log_of(first)
        while not log.exists():
            time.sleep(0.05)
        log.unlink()
        removed.append(log)

    threading.Thread(target=remove).start()
    assert watched.run() == 0 and removed


def test_a_list_has_no_more_processes_than_commands(fake, monkeypatch):
    """Counted over the whole list, so that the threads of a run do not depend on what is finished."""
    monkeypatch.setattr(here.machine, "jobs_by_default", lambda *_: 8)
    seen = []
    monkeypatch.setattr(here, "SideBySide", lambda tasks, jobs, per_gpu: seen.append(jobs) or SideBySide(tasks, 1))
    options = Namespace(jobs=None, per_gpu=None, preset="quick", listed=3)
    assert here.run([fake("left")], options) == 0 and seen == [3]
    options.jobs = 5
    assert here.run([fake("other")], options) == 0 and seen == [3, 5]


def test_what_could_not_save_when_it_was_stopped_is_a_failure(fake):
    full, other = fake("full", 74, seconds=3), fake("other", seconds=4)
    side_by_side = SideBySide([full, other], 2)

    def stop():
        while len(side_by_side._running) < 2:
            time.sleep(0.05)
        side_by_side._stopped = signal.SIGTERM

    threading.Thread(target=stop).start()
    assert side_by_side.run() == 74


@pytest.mark.parametrize("status", [143, 71, -9])
def test_what_goes_well_at_last_is_no_failure(fake, status):
    again = fake("again", status, 0)
    assert SideBySide([again], 2).run() == 0
    assert [one["status"] for one in ran(again)] == [status, 0]


def test_who_is_busy_is_waited_for(fake, monkeypatch, capsys):
    monkeypatch.setattr(here, "WAIT", 0.2)
    busy, other = fake("busy", 75, 75, 75, 75, 75, 71, 0), fake("other")
    assert SideBySide([busy, other], 2).run() == 0
    assert (len(ran(busy)), len(ran(other))) == (7, 1)
    said = capsys.readouterr().out
    assert (said.count("waits: status 75"), said.count(busy.command)) == (1, 1)


def test_who_is_busy_is_not_started_while_another_process_holds_its_run(fake, monkeypatch):
    monkeypatch.setattr(here, "WAIT", 0.1)
    busy = fake("busy", 75, 0)
    busy.folders[0].parent.mkdir(parents=True)
    lock = FileLock(files.lock_of(busy.folders[0]).lock_file, thread_local=False)
    lock.acquire()
    released = []

    def release_later():
        while not ran(busy):
            time.sleep(0.05)
        time.sleep(1)
        released.append(time.monotonic())
        lock.release()

    threading.Thread(target=release_later).start()
    assert SideBySide([busy], 2).run() == 0
    _, second = ran(busy)
    assert second["start"] > released[0]


def test_threads_are_not_pinned_where_every_command_would_be(fake, monkeypatch):
    monkeypatch.setenv("OMP_PROC_BIND", "true")
    task = fake("one")
    assert SideBySide([task], 2).run() == 0
    assert ran(task)[0]["OMP_PROC_BIND"] is None


def test_out_of_memory_means_fewer_beside_it(fake):
    short = fake("short", 71, 0, seconds=0.5)
    every = [short, *(fake(name, seconds=3) for name in "abcdefg")]
    counted = Counted(every, 4)
    assert counted.run() == 0
    assert counted.ends[0] == (short, 4)
    assert max(count for of, count in counted.ends[1:] if of not in every[1:4]) == 2


def test_no_command_is_left_behind(fake):
    first, second = fake("first", seconds=4), fake("second")
    here.log_of(second).mkdir(parents=True)
    with pytest.raises(OSError, match=r"net-second0\.log"):
        SideBySide([first, second], 2).run()
    time.sleep(5)
    assert ran(first) == []


# --- What each gets ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("jobs, per_gpu, most", [(2, None, {"GPU-a": 1, "7": 1}), (6, None, {"GPU-a": 3, "7": 3}),
                                                 (3, 2, {"GPU-a": 2, "7": 1})])  # fmt: skip
def test_each_has_a_gpu(fake, monkeypatch, jobs, per_gpu, most):
    monkeypatch.setattr(machine.torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a,7")
    every = [fake(f"t{i}", seconds=1.0) for i in range(2 * jobs)]
    counted = Counted(every, jobs, per_gpu)
    assert counted.run() == 0 and counted.ends[0][1] == jobs
    runs = [one for each in every for one in ran(each)]
    on = {gpu: [one for one in runs if one["CUDA_VISIBLE_DEVICES"] == gpu] for gpu in most}
    assert sum(map(len, on.values())) == len(runs)
    assert all(runs and most_at_a_time(runs) <= most[gpu] for gpu, runs in on.items())


def test_gpus_without_a_choice_of_the_users_and_jobs_by_default(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(machine.torch.cuda, "device_count", lambda: 3)
    assert machine.gpus() == ["0", "1", "2"]
    assert (machine.jobs_by_default(1.0), machine.jobs_by_default(1.0, per_gpu=4)) == (3, 12)
    monkeypatch.setattr(machine.torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(machine, "allowed_cores", lambda: 16)
    monkeypatch.setattr(machine, "available_memory", lambda: 100 * 2**30)
    assert machine.gpus() == [] and machine.jobs_by_default(0.125) == 16
    monkeypatch.setattr(machine, "available_memory", lambda: 10 * 2**30)
    assert (machine.jobs_by_default(0.125), machine.jobs_by_default(1.0)) == (8, 4)
    monkeypatch.setattr(machine, "available_memory", lambda: 0)
    assert machine.jobs_by_default(0.125) == 1


@pytest.mark.parametrize(
    "runs, free, least, others, threads",
    [
        (4, 2, 1, [4], 1), (4, 2, 1, [], 2), (1, 2, 1, [], 1), (4, 16, 1, [4, 1, 1, 3, 1, 1, 1, 1], 3),
        (4, 13, 1, [1, 1, 3, 1, 1, 1, 1], 4), (4, 3, 1, [1, 1], 1), (1, 8, 4, [1], 4), (4, 0, 1, [], 1),
    ],
)  # fmt: skip
def test_a_group_gets_the_cores_that_would_be_idle(runs, free, least, others, threads):
    assert machine.threads_of(runs, free, least, others) == threads


@pytest.mark.parametrize(
    "files, available",
    [
        ({}, 8 * 2**20), ({"memory.max": "max", "memory.current": "1"}, 8 * 2**20),
        ({"a/memory.max": "5000000", "a/memory.current": "3000000", "a/memory.stat": "anon 1\ninactive_file 500\n"},
         2_000_500),
        ({"memory/a/memory.limit_in_bytes": "700", "memory/a/memory.usage_in_bytes": "300"}, 400),
        ({"b/memory.max": "7", "b/memory.current": "3"}, 8 * 2**20),  # another process's
    ],
)  # fmt: skip
def test_available_memory(files, available, tmp_path):
    (tmp_path / "own").write_text("0::/a\n4:memory:/a\n", encoding="utf-8")
    (tmp_path / "meminfo").write_text("MemTotal: 9999 kB\nMemAvailable: 8192 kB\n", encoding="utf-8")
    for name, text in files.items():
        (tmp_path / "cgroups" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "cgroups" / name).write_text(text, encoding="utf-8")
    assert machine.available_memory(tmp_path / "meminfo", tmp_path / "cgroups", tmp_path / "own") == available


def test_what_follows_from_a_status():
    expected = {0: "done", 75: "again", 71: "again with fewer beside it", 137: "again with fewer beside it",
                129: "again", 138: "again", 140: "again", 143: "again", 152: "again"}  # fmt: skip
    found = {status: task.follows(status) for status in range(256)}
    assert {status: what for status, what in found.items() if what != "never again"} == expected
    assert (task.follows(-15), task.follows(-9), task.follows(-11)) == (found[143], found[137], "never again")


# --- Trainings --------------------------------------------------------------------------------------------------------

DRIVER = """
import sys
import cifar_lab
from cifar_lab.jobs.here import SideBySide
from cifar_lab.jobs.task import Task
from pathlib import Path
tasks = [Task(line, "quick", seed, 4, (Path(folder),)) for line, seed, folder in {tasks!r}]
sys.exit(SideBySide(tasks, 2).run())
"""


USUAL = "bf16" if has_bf16() else "fp32"  # of this machine, as the processes see it


def trainings(data: Path, results: Path) -> list[Task]:
    """Three small ones, of which none is done before the others have begun."""
    made = []
    for seed in (0, 1, 2):
        words = ["--preset", "quick", "--width", "0.0625", "--train-size", "600", "--test-size", "100", "--epochs", "8",
                 "--lrs", "1e-3", "--seed", seed, "--device", "cpu", "--precision", "fp32",
                 "--checkpoint-seconds", "1e9", "--results", results, "--data-dir", data]  # fmt: skip
        words = list(map(str, words))
        (config,) = script.settings_of(MyVGG.VGGSettings, MyVGG.__file__, words).runs(seed)
        folder = run_folder(results, "quick", config, USUAL)
        made.append(Task(shlex.join(["python", str(ROOT / "MyVGG.py"), *words]), "quick", seed, 8, (folder,)))
    return made


def logs(results: Path) -> dict[str, bytes]:
    return {path.parent.name: path.read_bytes() for path in results.rglob("steps.csv")}


@pytest.fixture(scope="module")
def alone(synthetic_data, tmp_path_factory):
    """The logs of the same commands, one after the other, each on the threads that one of two has."""
    results = tmp_path_factory.mktemp("alone")
    threads = {"OMP_NUM_THREADS": str(max(1, allowed_cores() // 2))}
    for each in trainings(synthetic_data, results):
        words = [sys.executable, *shlex.split(each.command)[1:]]
        subprocess.run(words, check=True, env=os.environ | threads, stdout=subprocess.DEVNULL)
    return logs(results)


@pytest.fixture(scope="module")
def slow(tmp_path_factory):
    return slowed(tmp_path_factory.mktemp("slow"))


@contextlib.contextmanager
def driver(tasks: list[Task], environment: dict[str, str]):
    """A program that runs tasks, two at a time."""
    listed = [(each.command, each.seed, str(each.folders[0])) for each in tasks]
    process = subprocess.Popen(
        [sys.executable, "-c", DRIVER.format(tasks=listed)], cwd=ROOT, stdout=subprocess.PIPE, text=True,
        start_new_session=True, env=os.environ | environment,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def begun(results: Path) -> bool:
    """Waits until two trainings are in their middle."""
    end = time.monotonic() + 120
    middle = re.compile(r"epoch [1-6]/8.*\n\Z")
    while sum(middle.search(log.read_text(encoding="utf-8")) is not None for log in results.rglob("*.log")) < 2:
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


@pytest.mark.parametrize("number, times", [(signal.SIGTERM, 1), (signal.SIGINT, 1), (signal.SIGTERM, 2)])
def test_a_signal_saves_everything_and_the_same_list_goes_on(number, times, synthetic_data, alone, slow, tmp_path):
    tasks = trainings(synthetic_data, tmp_path)
    with driver(tasks, slow) as stopped:
        assert begun(tmp_path)
        for _ in range(times):  # as from `timeout`
            stopped.send_signal(number)
        out, _ = stopped.communicate(timeout=60)
    assert stopped.returncode == 128 + number
    assert out.count("stopped, everything trained so far is saved; the same command continues") == 2
    left = [each for each in tasks if not task.complete(each)]
    assert len(left) >= 2
    with driver(tasks, {}) as again:
        out, _ = again.communicate(timeout=120)
    assert again.returncode == 0 and out.count(" done in ") == len(left)
    assert logs(tmp_path) == alone
    assert sum("continues after epoch" in here.log_of(each).read_text(encoding="utf-8") for each in left) == 2


def test_a_driver_that_was_killed(synthetic_data, alone, slow, tmp_path):
    """Its trainings go on; a new one waits for them."""
    tasks = trainings(synthetic_data, tmp_path)
    with driver(tasks, slow) as killed:
        assert begun(tmp_path)
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        with driver(tasks, {}) as again:
            out, _ = again.communicate(timeout=120)
    assert again.returncode == 0, out
    assert logs(tmp_path) == alone


# --- The whole program ------------------------------------------------------------------------------------------------


@pytest.fixture
def plotted(monkeypatch):
    """The commands that are run in this process: the figures."""
    lines = []
    monkeypatch.setattr(reproduce, "in_this_process", lambda line: lines.append(line) or 0)
    return lines


@pytest.mark.parametrize(
    "seconds, statuses, status, said",
    [
        ([], [0], 0, "all commands done"), ([], [2], 2, "ended with status 2"),
        (["--seconds", "1.5"], [0], 0, "stopped"),
    ],
)  # fmt: skip
def test_a_list_at_a_time_then_its_figures(fake, plotted, monkeypatch, capsys, seconds, statuses, status, said):
    listed = [fake("a", *statuses), fake("b", seconds=30 if seconds else 0)]
    monkeypatch.setattr(reproduce, "tasks", lambda *_: listed)
    assert reproduce.main(["quick", "--jobs", "2", *seconds]) == status
    assert [line.split()[:2] for line in plotted] == [["python", "plot_results.py"]]
    assert f"{said} after " in capsys.readouterr().out


def test_lines_of_a_terminal(fake):
    """A line for each command that runs, below one another; one more when each has ended."""
    listed = [fake(name, seconds=2.5) for name in ("first", "second")]
    tasks = [(each.command, each.seed, str(each.folders[0])) for each in listed]
    terminal = Terminal("-c", DRIVER.format(tasks=tasks))
    terminal.read_until("this is never on the screen")
    terminal.close()
    seen = terminal.screen
    assert terminal.process.returncode == 0 and seen.count("] done in ") == 2
    assert re.search(r"net-first0: +75%.* 3/4 ", seen)
    assert re.search(r"\n\rnet-second0: +75%.* 3/4 ", seen.replace("\r\n", "\n"))


def test_ctrl_c_in_a_terminal_reaches_a_command_once(fake):
    listed = [fake(name, seconds=4) for name in ("first", "second")]
    tasks = [(each.command, each.seed, str(each.folders[0])) for each in listed]
    terminal = Terminal("-c", DRIVER.format(tasks=tasks))
    terminal.read_until("net-first0: +75%", "net-second0: +75%")
    assert terminal.press_ctrl_c() == 130
    assert [one["signals"] for each in listed for one in ran(each)] == [[signal.SIGINT]] * 2


# --- The documented page ----------------------------------------------------------------------------------------------

PAGE = (ROOT / "cifar_lab" / "jobs" / "README.md").read_text(encoding="utf-8")


def test_a_pod_runs_its_line_of_the_list(tmp_path):
    (command,) = re.findall(r"command: \[bash, -c, '(.*)'\]", PAGE)
    (tmp_path / "list.txt").write_text(
        "echo 'not this'\necho 'this  one' \"$JOB_COMPLETION_INDEX\"\n", encoding="utf-8"
    )
    command = command.replace("/results", str(tmp_path))
    env = os.environ | {"JOB_COMPLETION_INDEX": "1"}
    ended = subprocess.run(["bash", "-c", command], env=env, capture_output=True, text=True, check=True)
    assert ended.stdout == "this  one 1\n"


def test_the_statuses_of_the_page():
    rows = dict(re.findall(r"^\| ([\d, and]+) \| .* \| (.*) \|$", PAGE, re.M))
    words = {"done": "goes on", "again": "tries it again", "never again": "ends",
             "again with fewer beside it": "tries it again once, with fewer beside it"}  # fmt: skip
    said = {int(status): what for statuses, what in rows.items() for status in re.findall(r"\d+", statuses)}
    said = {status: said[71] if what == "as 71" else what for status, what in said.items()}
    assert said == {status: words[task.follows(status)] for status in said} and len(said) == 13

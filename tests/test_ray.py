"""Tasks on a Ray cluster of several nodes on this machine: machines that are lost, drivers that are killed, attempts
that were given up and go on."""

import ctypes
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path, PurePath
from unittest import mock

import numpy as np
import pytest
from filelock import Timeout
from synthetic import write_synthetic
from trainings import slowed, snapshot

from cifar_lab import reproduce
from cifar_lab.data import cache
from cifar_lab.jobs.task import tasks
from cifar_lab.run_folder import files
from cifar_lab.run_folder.ownership import Hold

ray = pytest.importorskip("ray", reason="needs Ray: pip install -r requirements-ray.txt")
import psutil  # noqa: E402  comes with Ray
from ray.cluster_utils import Cluster  # noqa: E402
from ray.exceptions import RuntimeEnvSetupError  # noqa: E402

from cifar_lab.jobs import on_ray, ray_worker  # noqa: E402
from cifar_lab.jobs.ray_worker import GO_ON, LEAVE, SAVE, Copy, Desk, Site, Work  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
PATIENCE = 300
SMALL = ["--width", "0.0625", "--train-size", "600", "--test-size", "100", "--epochs", "12", "--batch-size", "20",
         "--checkpoint-seconds", "0.3", "--precision", "fp32", "--lrs", "1e-3"]  # fmt: skip
COMMANDS = [["MyVGG.py", *SMALL], ["MyVGG.py", "--bn", *SMALL]]
DRIVER = """
import json, sys
from argparse import Namespace
from pathlib import Path
from cifar_lab.jobs import on_ray
from cifar_lab.jobs.task import Task
results, address, listed = sys.argv[1:]
tasks = [Task(line, "report", 0, 12, (Path(results, folder),)) for line, folder in json.loads(listed)]
on_ray.BUSY_SECONDS = 1
sys.exit(on_ray.run(tasks, Namespace(results=results, address=address, cpus=None, gpus=None)))
"""


def until(condition, driver):
    """Waits until a condition holds, while the driver runs; returns what is then true of it."""
    end = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert time.monotonic() < end and driver.poll() is None
        time.sleep(0.05)
    return found


# --- The desk, and an attempt's files ---------------------------------------------------------------------------------

RUN = PurePath("report/vgg_a/run")
WORK = Work("vgg_a-run", ("MyVGG.py",), (RUN,), (), PurePath("report/logs/vgg_a-run.log"))


def test_nothing_is_taken_from_an_attempt_that_was_replaced(tmp_path):
    desk = Desk(tmp_path)
    desk.expect({WORK.name: 1})
    assert desk.contents(WORK, 1) == {}
    first = {RUN / "steps.csv": b"1", RUN / "checkpoint.pt": b"one", RUN / "predictions.txt": b"1"}
    assert desk.report(WORK, 1, "here", ["epoch 1/2"], first, False) == GO_ON
    desk.expect({WORK.name: 2})
    assert desk.contents(WORK, 2) == first
    before = snapshot(tmp_path)
    changed = {RUN / "steps.csv": b"2", RUN / "predictions.txt": None}
    assert desk.report(WORK, 1, "here", ["epoch 2/2"], changed, True) == LEAVE
    assert desk.contents(WORK, 1) is None and snapshot(tmp_path) == before
    assert desk.report(WORK, 2, "there", [], changed | {RUN / "checkpoint.pt": b"two"}, False) == GO_ON
    assert {path.name: path.read_bytes() for path in (tmp_path / RUN).iterdir()} == {
        "steps.csv": b"2", "checkpoint.pt": b"two", "checkpoint.previous.pt": b"one",
    }  # fmt: skip
    assert (tmp_path / WORK.log).read_text() == "epoch 1/2\n"
    assert desk.news() == ([(WORK.name, "epoch 1/2")], {WORK.name: "there"})
    desk.stop()
    assert desk.report(WORK, 2, "there", [], {}, False) == SAVE


def test_nobody_else_writes_to_a_run_folder_for_the_time_of_an_attempt(tmp_path):
    lock = files.lock_of(tmp_path / RUN)
    desk = Desk(tmp_path)
    desk.expect({WORK.name: 1})
    assert desk.contents(WORK, 1) == {}
    with pytest.raises(Timeout):
        files.lock(lock)
    desk.report(WORK, 1, "here", [], {}, True)
    assert files.lock(lock)
    assert desk.contents(WORK, 1) is None
    lock.release()


def test_what_an_attempt_held_is_free_for_the_next_which_may_write_there_itself(tmp_path):
    desk = Desk(tmp_path)
    desk.expect({WORK.name: 1})
    assert desk.contents(WORK, 1) == {}
    desk.expect({WORK.name: 2})
    Hold(tmp_path / RUN).acquire()


def test_an_attempt_leaves_a_run_that_a_process_beside_the_folder_has_taken_over(tmp_path):
    """Its lock was one that ends without the desk: a server of files has started again."""
    desk = Desk(tmp_path)
    desk.expect({WORK.name: 1})
    assert desk.contents(WORK, 1) == {}
    assert desk.report(WORK, 1, "there", [], {RUN / "steps.csv": b"1"}, False) == GO_ON
    Path(files.lock_of(tmp_path / RUN).lock_file).unlink()
    hold = Hold(tmp_path / RUN)
    hold.acquire()
    before = snapshot(tmp_path)
    for ended in (False, True):
        assert desk.report(WORK, 1, "there", ["epoch 1/2"], {RUN / "steps.csv": b"2"}, ended) == LEAVE
        assert snapshot(tmp_path) == before
    hold.check()


def test_a_checkpoint_is_sent_with_all_that_it_counts_on(tmp_path):
    folder = tmp_path / RUN
    copy = Copy(tmp_path, WORK, {RUN / "steps.csv": b"1", RUN / "checkpoint.pt": b"one", RUN / "summary.json": b"{}"})
    assert copy.changed(False) == {}
    (folder / "summary.json").unlink()
    (folder / "checkpoint.pt").rename(folder / "checkpoint.previous.pt")  # it is being replaced
    assert copy.changed(False) == {RUN / "summary.json": None} and copy.changed(True) == {}
    for name in ("summary.json", "predictions.txt", "checkpoint.pt", "epochs.csv", "config.json"):
        (folder / name).write_bytes(b"new")
    with mock.patch.object(Path, "read_bytes", autospec=True, side_effect=Path.read_bytes) as read:
        sent = copy.changed(False)
    assert [path.name for path in sent] == ["config.json", "epochs.csv", "checkpoint.pt"]
    assert [call.args[0].name for call in read.mock_calls] == ["checkpoint.pt", "epochs.csv", "config.json"]
    assert [path.name for path in copy.changed(True)] == ["predictions.txt", "summary.json"]
    assert copy.changed(True) == {}


def test_the_data_are_sent_once_to_a_machine(data, tmp_path, monkeypatch):
    arrays = dict(np.load(data / "cifar10.npz"))
    sent = mock.Mock(return_value=(arrays, "synthetic"))
    monkeypatch.setattr(ray_worker, "_get", sent)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    site = Site(tmp_path, "", "of-the-data", ["a reference"])
    with ThreadPoolExecutor(4) as pool:
        (folder,) = set(pool.map(ray_worker.data_folder, [site] * 4))
    assert sent.mock_calls == [mock.call("a reference")]
    found = cache.load(folder)
    assert all(np.array_equal(getattr(found, name), array) for name, array in arrays.items())


# --- The driver ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:10001", "nowhere.invalid:6379", "127.0.0.1:port"])
def test_no_cluster_at_an_address_is_one_line(address, data, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CIFAR10_DIR", str(data))
    with pytest.raises(SystemExit) as ended:
        reproduce.main(["quick", "--on", "ray", "--address", address, "--results", str(tmp_path / "results")])
    assert ended.value.code == 2 and not [*tmp_path.iterdir()]
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"--address {address}: ")


@pytest.mark.parametrize("error", [RuntimeError("Version mismatch:\n    Ray: 2.9"), RuntimeEnvSetupError("too large")])
def test_a_cluster_that_cannot_be_used_is_one_line(error, data, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CIFAR10_DIR", str(data))
    monkeypatch.setattr(on_ray.ray, "init", mock.Mock(side_effect=error))
    with pytest.raises(SystemExit) as ended:
        reproduce.main(["quick", "--on", "ray", "--results", str(tmp_path / "results")])
    assert ended.value.code == 2 and not [*tmp_path.iterdir()]
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("--address local: ") and ("Version mismatch: Ray: 2.9" in line or "too large" in line)


@pytest.mark.parametrize("asked, begun, cancelled", [(4, False, 1), (2, False, 0), (4, True, 0)])
def test_what_waits_for_a_machine_that_has_left_is_taken_back(asked, begun, cancelled, monkeypatch):
    monkeypatch.setattr(on_ray.ray, "cancel", cancel := mock.Mock())
    task = tasks("quick", [3], "results")[0]
    cluster = mock.Mock(
        _cpus=1, _largest=lambda: 2, _cores_of={task: asked}, _running={"ref": task},
        _nodes={task.name: "node"} if begun else {},
    )  # fmt: skip
    on_ray._Cluster._cancel_what_cannot_begin(cluster)
    assert cancel.mock_calls == [mock.call("ref")] * cancelled


def test_a_lost_machine_costs_a_command_no_attempt():
    """Nor does it make one that has run out of memory before a failure; a second time without memory does."""
    task = tasks("quick", [3], "results")[0]
    cluster = mock.Mock(
        _bars={}, _attempts=Counter(), _failed={}, _alone=set(), _todo={}, _busy=set(), _said={},
        _stop=mock.Mock(received=None),
    )  # fmt: skip
    for status in (71, on_ray.LOST, on_ray.LOST, 143):
        cluster._todo.clear()
        on_ray._Cluster._follow(cluster, task, status, "")
        assert list(cluster._todo) == [task] and not cluster._failed
    on_ray._Cluster._follow(cluster, task, 71, "")
    assert cluster._failed == {task: 71}


def test_what_a_stopped_command_could_not_save_is_a_failure():
    task = tasks("quick", [3], "results")[0]
    cluster = mock.Mock(_bars={}, _attempts=Counter(), _failed={}, _said={}, _stop=mock.Mock(received=15))
    for status in (143, 138, 75, on_ray.LOST):
        on_ray._Cluster._follow(cluster, task, status, "")
    assert not cluster._failed
    on_ray._Cluster._follow(cluster, task, 74, "")
    assert cluster._failed == {task: 74}


@pytest.mark.parametrize("results", ["results", "/elsewhere/results"])
def test_paths_below_the_results_folder_are_those_of_the_other_machine(results):
    _, trained, *_, surface = tasks("quick", [3], results)
    work = on_ray._work(trained, Path(results).absolute())
    folder = PurePath("quick/vgg_a_bn/adam-lr1e-3-wd1e-4-seed3")
    assert work.folders[0] == folder and work.needs == () and work.log == PurePath(f"quick/logs/{trained.name}.log")
    assert work.arguments[:2] == ("MyVGG.py", "--bn") and work.arguments[-2:] == ("--results", PurePath())
    assert work.arguments.count("--results") == 1
    work = on_ray._work(surface, Path(results).absolute())
    assert work.arguments[:2] == ("landscape.py", "surface") and folder in work.arguments[2:4]
    assert work.folders == () and work.needs == work.arguments[2:4]


# --- A cluster -------------------------------------------------------------------------------------------------------


class Nodes:
    """A head without cores, and nodes of one core that do not see what is in the folder `hidden`."""

    def __init__(self, hidden: Path) -> None:
        self._hidden = hidden
        self.isolated = True
        self._node = {"object_store_memory": 80 << 20, "num_cpus": 1}
        health = {"health_check_period_ms": 1000, "health_check_timeout_ms": 2000, "health_check_failure_threshold": 4}
        head = self._node | {"num_cpus": 0, "include_dashboard": False, "_system_config": health}
        self.cluster = Cluster(initialize_head=True, head_node_args=head, shutdown_at_exit=False)

    def add(self) -> None:
        """A thread can have a view of the file system of its own, which the processes that it starts inherit."""
        thread = threading.Thread(target=self._add)
        thread.start()
        thread.join()

    def _add(self) -> None:
        new, recursive_private = 0x20000, 0x4000 | 1 << 18  # <sched.h>, <sys/mount.h>
        libc = ctypes.CDLL(None)
        alone = libc.unshare(new) == 0 and libc.mount(b"none", b"/", None, recursive_private, None) == 0
        for folder in (self._hidden, self.cluster.head_node.get_runtime_env_dir_path()):
            self.isolated &= alone and libc.mount(b"none", bytes(Path(folder)), b"tmpfs", 0, None) == 0
        self.cluster.add_node(**self._node)

    def processes(self, node) -> list:
        (raylet,) = [p.process.pid for kind, of in node.all_processes.items() for p in of if kind == "raylet"]
        raylet = psutil.Process(raylet)
        return [raylet, *raylet.children(recursive=True)]

    def training(self, networks=("vgg_a", "vgg_a_bn")) -> list[tuple]:
        """The nodes on which commands of these networks run, their processes, and those of the commands."""
        found = []
        for node in self.cluster.worker_nodes:
            processes = self.processes(node)
            for process in processes:
                with suppress(psutil.Error):
                    words = process.cmdline()
                    of = "vgg_a_bn" if "--bn" in words else "vgg_a"
                    if of in networks and any(word.endswith("MyVGG.py") for word in words):
                        found.append((node, processes, process))
        return found

    def forget(self, node) -> None:
        self.cluster.remove_node(node, allow_graceful=False)


@pytest.fixture(scope="module")
def hidden(tmp_path_factory):
    return tmp_path_factory.mktemp("hidden")


@pytest.fixture(scope="module")
def nodes(hidden, tmp_path_factory):
    with mock.patch.dict(os.environ, slowed(tmp_path_factory.mktemp("slow"))):
        nodes = Nodes(hidden)
        try:
            nodes.add()
            nodes.add()
            if not nodes.isolated:  # they would remove one another's copies of the project
                pytest.skip("nodes with a view of the file system of their own need CAP_SYS_ADMIN")
            yield nodes
        finally:
            nodes.cluster.shutdown()


shared = pytest.mark.parametrize("folder", ["shared"], indirect=True)
not_shared = pytest.mark.parametrize("folder", ["not shared"], indirect=True)


@pytest.fixture(params=["shared", "not shared"])
def folder(request, hidden, tmp_path):
    """A results folder to be."""
    if request.param == "shared":
        return tmp_path / "results"
    return Path(hidden, request.node.originalname) / "results"


# --- What is run -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_synthetic(tmp_path_factory.mktemp("data"), 600, 100)


@pytest.fixture(scope="module")
def undisturbed(data, tmp_path_factory):
    """By run folder: the command that trains it, and steps.csv of a training that nothing interrupts."""
    results = tmp_path_factory.mktemp("undisturbed")
    each = [[*command[1:], "--results", str(results), "--data-dir", str(data)] for command in COMMANDS]
    code = f"import MyVGG\nfor argv in {each}: MyVGG.main(argv)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    folders = sorted((path.parent for path in results.glob("*/*/*/steps.csv")), key=lambda p: p.stat().st_ctime)
    return {
        str(folder.relative_to(results)): (command, (folder / "steps.csv").read_bytes())
        for folder, command in zip(folders, COMMANDS, strict=True)
    }


@pytest.fixture
def start(nodes, data, undisturbed, folder):
    """Starts the driver; its output is in a file."""
    started = []

    def start(*more: tuple[str, str]):
        listed = [(f"python {' '.join(command)}", run) for run, (command, _) in undisturbed.items()] + list(more)
        out = folder.parent / f"out-{len(started)}"
        out.parent.mkdir(exist_ok=True)
        with open(out, "wb") as file:
            driver = subprocess.Popen(
                [sys.executable, "-c", DRIVER, folder, nodes.cluster.address, json.dumps(listed)], cwd=ROOT,
                stdout=file, stderr=file, env=os.environ | {"CIFAR10_DIR": str(data)}, start_new_session=True,
            )  # fmt: skip
        driver.out = out
        started.append(driver)
        return driver

    yield start
    for driver in started:
        if driver.poll() is None:
            driver.kill()
        print(driver.out.read_text())


def in_training(folder: Path) -> set[str]:
    """The networks whose runs have epochs and a checkpoint, and are not complete."""
    return {
        path.parents[1].name
        for path in folder.glob("*/*/*/epochs.csv")
        if path.read_text().count("\n") > 2
        and (path.parent / "checkpoint.pt").exists() and not (path.parent / "summary.json").exists()
    }  # fmt: skip


def has_ended(process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return process.status() == psutil.STATUS_ZOMBIE
    return True


def logs(folder: Path) -> str:
    return "".join(path.read_text() for path in folder.glob("report/logs/*.log"))


def check(folder: Path, undisturbed, killed_last: bool = False) -> None:
    """killed_last: a process may have been killed as it wrote a file, and no start has removed that since."""
    for run, (_, steps) in undisturbed.items():
        assert (folder / run / "steps.csv").read_bytes() == steps, run
        assert json.loads((folder / run / "summary.json").read_text())["epochs"] == 12
        assert {p.name for p in (folder / run).iterdir()} >= {"predictions.txt", "checkpoint.pt", "config.json"}
    assert len([*folder.rglob("*.tmp")]) <= killed_last


# --- Tests -----------------------------------------------------------------------------------------------------------


def test_a_node_is_lost_and_another_added(nodes, folder, start, undisturbed):
    driver = start()
    (node, processes, _), *_ = until(lambda: nodes.training(in_training(folder)), driver)
    for process in processes:
        process.kill()
    nodes.forget(node)
    until(lambda: "again: its machine was lost" in driver.out.read_text(), driver)
    nodes.add()
    assert driver.wait(PATIENCE) == 0
    check(folder, undisturbed)
    assert "continues after epoch" in logs(folder)


@not_shared
def test_a_driver_is_stopped_then_killed(nodes, folder, start, undisturbed):
    wrong = "python MyVGG.py --epochs 0", "report/vgg_a/wrong"
    driver = start(wrong)
    until(lambda: in_training(folder), driver)
    driver.send_signal(signal.SIGTERM)
    assert driver.wait(PATIENCE) == 128 + signal.SIGTERM
    assert "everything trained so far is saved" in driver.out.read_text()
    assert not nodes.training()
    driver = start(wrong)
    until(lambda: "continues after epoch" in logs(folder) and in_training(folder), driver)
    driver.kill()
    driver.wait()
    driver = start(wrong)
    assert driver.wait(PATIENCE) == 2
    check(folder, undisturbed)
    assert logs(folder).count("continues after epoch") > 1
    (line,) = [line for line in driver.out.read_text().splitlines() if "status" in line]
    assert line.startswith("[3/3] status 2: MyVGG.py: --epochs: '0' is not") and line.endswith("logs/vgg_a-wrong.log)")


@shared
def test_a_node_that_was_given_up_goes_on(nodes, folder, start, undisturbed):
    """It is paused until its command is trained further elsewhere. Locks of a file system that end at the machine are
    the others' to take."""
    driver = start()
    (node, processes, training), *_ = until(lambda: nodes.training(in_training(folder)), driver)
    try:
        for process in processes:
            process.suspend()
        for lock in folder.rglob(".*.lock"):
            lock.unlink()
        until(lambda: "its machine was lost" in driver.out.read_text(), driver)
        nodes.add()
        until(lambda: "continues after epoch" in logs(folder), driver)
        for process in (training.parent(), training):  # not what would end them
            process.resume()
        until(lambda: has_ended(training), driver)
        assert driver.wait(PATIENCE) == 0
    finally:
        for process in processes:
            with suppress(psutil.Error):
                process.kill()
    nodes.forget(node)
    check(folder, undisturbed, killed_last=True)

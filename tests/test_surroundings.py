"""Where the programs run: interrupted at any moment, without streams, on consoles of few characters, in threads, in
shells, beside other repositories, with a user's own settings of matplotlib."""

import codecs
import contextlib
import errno
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up import write_run

import landscape
import MyVGG
from cifar_lab import escape, program, project
from cifar_lab.data.cache import load
from cifar_lab.run_folder.reader import read_run
from cifar_lab.run_folder.writer import Recorder, commit_of
from cifar_lab.settings import RunConfig, path, run_folder
from cifar_lab.training import script
from cifar_lab.training.console import Console, Stopped, StopSignals

ROOT = Path(__file__).resolve().parent.parent
posix = pytest.mark.skipif(os.name != "posix", reason="signals, streams and shells as POSIX has them")


def run(*words, cwd=ROOT, site="", **options):
    """A program in a process of its own. site: code that Python runs before it."""
    env = os.environ | options.pop("env", {})
    if site:
        folder = options.pop("folder")
        (folder / "sitecustomize.py").write_text(site, encoding="utf-8")
        env["PYTHONPATH"] = str(folder)
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    return subprocess.run([sys.executable, *map(str, words)], cwd=cwd, env=env, timeout=120, **options)


# --- Ctrl-C ----------------------------------------------------------------------------------------------------------

AT_IMPORT = """
import os, signal, sys
class Interrupts:
    def find_spec(name, *more):
        if name == {module!r} and {module!r} not in seen:
            seen.append(name)
            os.kill(os.getpid(), signal.SIGINT)
seen = []
sys.meta_path.insert(0, Interrupts)
"""
PROGRAMS = {
    "MyVGG.py": ["MyVGG.py"], "MyFramework.py": ["MyFramework.py"], "plot_results.py": ["plot_results.py"],
    "landscape.py": ["landscape.py"], "python -m cifar_lab.data": ["-m", "cifar_lab.data"],
    "python -m cifar_lab.reproduce": ["-m", "cifar_lab.reproduce", "quick"],
    "python -m bench.bench": ["-m", "bench.bench"], "python -m bench.null_verdicts": ["-m", "bench.null_verdicts"],
}  # fmt: skip


@posix
@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize("module", ["cifar_lab.program", "numpy"])
def test_ctrl_c_while_modules_are_imported(name, module, tmp_path):
    ended = run(*PROGRAMS[name], site=AT_IMPORT.format(module=module), folder=tmp_path)
    assert (ended.returncode, ended.stderr.decode()) == (130, f"{name}: interrupted\n")


@posix
def test_ctrl_c_that_a_library_swallows_while_a_program_runs(tmp_path):
    """landscape.py imports matplotlib when it has something to draw; whoever imports it makes another error of it."""
    write_run(tmp_path / "results", "vgg_a_lr0.001")
    swallows = "try: [os.kill(os.getpid(), signal.SIGINT), *map(str, range(1000))]\n"
    swallows += "            except KeyboardInterrupt: raise ImportError('of another module')"
    site = AT_IMPORT.format(module="matplotlib").replace("os.kill(os.getpid(), signal.SIGINT)", swallows)
    ended = run("landscape.py", tmp_path / "results", site=site, folder=tmp_path)
    assert (ended.returncode, ended.stderr.decode()) == (130, "landscape.py: interrupted\n")


@posix
def test_ctrl_c_in_a_finalizer(tmp_path):
    code = """
import os, runpy, signal, sys
sys.argv = ["landscape.py", "nowhere"]
sys.modules["__main__"].__file__ = "landscape.py"
import cifar_lab.run_folder.reader as reader
class Finalized:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)
isdir = os.path.isdir
os.path.isdir = lambda path: Finalized() and isdir(path)
runpy.run_path("landscape.py", run_name="__main__")
"""
    ended = run("-c", code)
    assert (ended.returncode, ended.stderr.decode()) == (130, "landscape.py: interrupted\n")


# --- Signals that ask to stop ----------------------------------------------------------------------------------------


@posix
@pytest.mark.parametrize("number", program.STOP_SIGNALS)
def test_every_signal_that_asks_to_stop_is_noted(number):
    before = signal.getsignal(number)
    with StopSignals() as stop:
        signal.raise_signal(number)
        assert stop.received == number
    assert signal.getsignal(number) is before


def test_which_signals_ask_to_stop():
    named = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU")
    assert tuple(getattr(signal, name) for name in named if hasattr(signal, name)) == program.STOP_SIGNALS


@posix
@pytest.mark.parametrize(
    "first, second, at_once",
    [
        ("SIGINT", "SIGINT", True), ("SIGTERM", "SIGINT", True), ("SIGHUP", "SIGHUP", False),
        ("SIGUSR1", "SIGTERM", False), ("SIGTERM", "SIGHUP", False),
    ],
)  # fmt: skip
def test_only_the_impatient_end_it_at_once(first, second, at_once):
    """Not within half a second either, in which `timeout` sends the same signal twice."""
    expected = pytest.raises(Stopped) if at_once else contextlib.nullcontext()
    with StopSignals() as stop:
        signal.raise_signal(getattr(signal, first))
        signal.raise_signal(getattr(signal, second))
        time.sleep(0.55)
        with expected as raised:
            signal.raise_signal(getattr(signal, second))
        assert stop.received == getattr(signal, first)
    assert not at_once or not raised.value.saved


@posix
def test_what_nohup_ignores_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignals() as stop:
            signal.raise_signal(signal.SIGHUP)
            assert stop.received is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_in_a_thread_signals_are_left_alone():
    entered = []

    def enter():
        with StopSignals() as stop:
            entered.append(stop.received)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert entered == [None]


# --- Standard streams ------------------------------------------------------------------------------------------------

LIST = ("-m", "cifar_lab.reproduce", "quick", "--list")


def closed_pipe():
    reading, writing = os.pipe()
    os.close(reading)
    return writing


@posix
def test_a_list_into_a_closed_pipe():
    ended = run(*LIST, stdout=closed_pipe())
    assert (ended.returncode, ended.stderr) == (0, b"")


@posix
def test_a_list_onto_a_full_disk_is_an_error():
    with open("/dev/full", "w") as full:
        ended = run(*LIST, stdout=full)
    line = f"python -m cifar_lab.reproduce: standard output: {os.strerror(errno.ENOSPC)}\n"
    assert (ended.returncode, ended.stderr.decode()) == (74, line)


@posix
@pytest.mark.parametrize("closed", ["1>&-", "2>&-", "0<&- 1>&- 2>&-"])
def test_without_standard_streams(closed):
    command = f"{shlex.join([sys.executable, *LIST])} {closed}"
    ended = subprocess.run(["sh", "-c", command], cwd=ROOT, capture_output=True, timeout=120)
    assert (ended.returncode, ended.stderr) == (0, b"")
    assert bool(ended.stdout) == ("1>&-" not in closed)


@posix
def test_a_file_does_not_get_the_number_of_a_closed_stream(tmp_path):
    site = "import atexit, os; atexit.register(lambda: open('log', 'w').write(str(os.open(os.devnull, os.O_RDONLY))))"
    command = f"{shlex.join([sys.executable, str(ROOT / 'landscape.py'), '--help'])} 0<&- 1>&- 2>&-"
    (tmp_path / "sitecustomize.py").write_text(site)
    subprocess.run(["sh", "-c", command], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(tmp_path)}, check=True)
    assert int((tmp_path / "log").read_text()) > 2


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_consoles_of_few_characters(encoding, tmp_path):
    ended = run(*LIST, "--results", tmp_path / "实验", env={"PYTHONIOENCODING": encoding})
    assert (ended.returncode, ended.stderr) == (0, b"")
    assert rb"\u5b9e\u9a8c" in ended.stdout


def test_a_console_without_a_stream(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    assert not Console().terminal


# --- What ends a program ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error, said",
    [
        (MemoryError(), "out of memory"),
        (MemoryError("Unable to allocate 9 GiB"), "out of memory (Unable to allocate 9 GiB)"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
         "out of memory ([enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.)"),
        (RuntimeError("CUDA out of memory. Tried\nmore"), "out of memory (CUDA out of memory. Tried)"),
        (RuntimeError("std::bad_alloc"), "out of memory (std::bad_alloc)"),
        (OSError(errno.ENOMEM, "Cannot allocate memory", "a.npz"), "out of memory ([Errno 12] Cannot allocate memory:"
         " 'a.npz')"),
        (ImportError("libtorch.so: failed to map segment from shared object"), "out of memory (libtorch.so: failed to"
         " map segment from shared object)"),
        (OSError(errno.ENOSPC, "No space left on device", "a.csv"), "a.csv: No space left on device"),
        (OSError(errno.EIO, "Input/output error"), "writing: Input/output error"),
        (RuntimeError("shape mismatch"), ""), (ValueError("out of memory"), ""),
    ],
)  # fmt: skip
def test_what_is_said_of_what_ends_a_program(error, said):
    assert program.complaint(error) == said


def exhausted(*_, **__):
    raise MemoryError("Unable to allocate 9 GiB")


@pytest.mark.parametrize(
    "name", ["cifar_lab.data.cache.np.load", "cifar_lab.networks.describe", "cifar_lab.training.script.build"]
)
def test_too_little_memory_is_nobodys_fault(name, tmp_path, synthetic_data, monkeypatch, capsys):
    """Neither the data's nor the network's."""
    monkeypatch.setattr(name, exhausted)
    if "describe" in name:
        monkeypatch.setattr("cifar_lab.training.script.describe", exhausted)
    with pytest.raises(SystemExit) as ended:
        script.run(MyVGG.main, ["--data-dir", str(synthetic_data), "--train-size", "100", "--test-size", "100",
                                "--device", "cpu", "--results", str(tmp_path)])  # fmt: skip
    line = "out of memory (Unable to allocate 9 GiB); a smaller --batch-size or --width needs less\n"
    assert ended.value.code == 71 and capsys.readouterr().err.endswith(f": {line}")
    assert not list(tmp_path.iterdir())


# --- Commands --------------------------------------------------------------------------------------------------------


@posix
@given(st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1), min_size=1))
@settings(max_examples=10, derandomize=True, deadline=None)
def test_a_command_is_one_line_that_a_shell_takes_apart_again(words):
    words += ["a b", "$x", "it's", "new\nline", "\x1b[31m", "\udce9", "-", "~", "*", "é"]
    line = escape.shell(["printf", r"%s\0", *words])
    assert line.isprintable()
    ended = subprocess.run(["bash", "-c", line], capture_output=True, check=True)
    assert ended.stdout == b"".join(os.fsencode(word) + b"\0" for word in words)


def test_a_command_can_be_typed_where_the_program_was_started(tmp_path, monkeypatch):
    assert project.command("MyVGG.py", "--lrs", 0.001, results="My Drive") == (
        "python MyVGG.py --lrs 0.001 --results 'My Drive'"
    )
    assert project.command("landscape.py", Path("-x"), Path("~"), "-y") == "python landscape.py ./-x './~' -y"
    assert project.command("cifar_lab.reproduce", "quick") == "python -m cifar_lab.reproduce quick"
    monkeypatch.chdir(tmp_path)
    assert project.command("MyVGG.py", "--bn") == f"python {ROOT / 'MyVGG.py'} --bn"
    assert project.command("cifar_lab.reproduce", "quick") == (
        f"env PYTHONPATH={ROOT} python -m cifar_lab.reproduce quick"
    )


def test_a_run_says_the_command_that_it_was_asked_for_with(monkeypatch):
    """A notebook's own command line is not the run's."""
    monkeypatch.setattr(sys, "argv", ["ipykernel_launcher.py", "-f", "kernel.json"])
    asked = script.settings_of(MyVGG.VGGSettings, MyVGG.__file__, ["--bn", "--results=a b"])
    assert asked.command == "python MyVGG.py --bn '--results=a b'"


def test_folders_near_the_root_have_no_results_folder(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        landscape.main(["band", "/"])
    assert ended.value.code == 2 and capsys.readouterr().err.count("\n") == 1


# --- The commit ------------------------------------------------------------------------------------------------------


def git(folder, *words, env=None):
    identity = ["-c", "user.name=n", "-c", "user.email=e@e", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", *identity, "-C", folder, *words], check=True, capture_output=True, env=env)


def test_an_unpacked_archive_has_not_the_commit_around_it(tmp_path, monkeypatch):
    inside = tmp_path / "project"
    inside.mkdir()
    git(tmp_path, "init")
    git(tmp_path, "commit", "--allow-empty", "-m", "around")
    assert commit_of(inside) is None
    assert len(commit_of(tmp_path)) == 12
    git(inside, "init")
    git(inside, "commit", "--allow-empty", "-m", "own")
    own = commit_of(inside)
    assert own != commit_of(tmp_path)
    monkeypatch.setenv("GIT_DIR", str(tmp_path / ".git"))  # as in a hook
    assert commit_of(inside) == own


# --- Paths and files -------------------------------------------------------------------------------------------------


def test_a_home_folder_is_looked_up(tmp_path, monkeypatch, synthetic_data):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))  # Windows
    assert path("~/runs") == str(tmp_path / "runs") and path("a~") == "a~"
    asked = script.settings_of(MyVGG.VGGSettings, MyVGG.__file__, ["--results=~/runs", "--data-dir=~/data"])
    assert (asked.results, asked.data_dir) == (str(tmp_path / "runs"), str(tmp_path / "data"))
    (tmp_path / "data").symlink_to(synthetic_data)
    monkeypatch.setenv("CIFAR10_DIR", "~/data")
    assert len(load().train_images) == 2_000


def test_a_run_of_many_long_settings_has_a_folder(tmp_path):
    """And a name apart from those of other settings, also where it is too long for a file system."""
    options = {f"x{i}_{'a' * 50}": "ä" * 60 for i in range(9)}
    first, other = (RunConfig("vgg_a", options=options | {"x9": word}) for word in ("b", "c"))
    folders = [run_folder(tmp_path, "quick", config) for config in (first, other)]
    assert folders[0] != folders[1]
    for folder in folders:
        assert folder.name.startswith("adam-lr1e-4-wd1e-4-seed0-")
        network = {"script": "MyOwn.py", "label": "own", "options": {}, "fingerprint": "0" * 16}
        recorder = Recorder(tmp_path, "quick", first if folder == folders[0] else other, network)
        recorder.hold.acquire()
        recorder.start(1, {})
        assert recorder.set_aside().is_dir()
        recorder.hold.release()


def test_what_a_spreadsheet_has_saved(tmp_path):
    """With a byte order mark, and other ends of lines."""
    folder = write_run(tmp_path, "vgg_a_lr0.001")
    before = read_run(folder)
    for name in ("epochs.csv", "steps.csv", "config.json", "summary.json"):
        file = folder / name
        file.write_bytes(codecs.BOM_UTF8 + file.read_bytes().replace(b"\n", b"\r\n"))
    after = read_run(folder)
    assert after.losses.tolist() == before.losses.tolist()
    assert {k: v.tolist() for k, v in after.epochs.items()} == {k: v.tolist() for k, v in before.epochs.items()}
    assert (after.settings, after.summary) == (before.settings, before.summary)


# --- matplotlib ------------------------------------------------------------------------------------------------------

SETTINGS = """
import sys
{before}
from cifar_lab.figures.style import plt
print({{name: value for name, value in plt.rcParams.items()}})
"""


@pytest.fixture(scope="module")
def plain():
    return run("-c", SETTINGS.format(before="")).stdout


@pytest.mark.parametrize("where", ["current folder", "MATPLOTLIBRC", "imported before"])
def test_figures_do_not_depend_on_a_users_settings(where, plain, tmp_path):
    undecodable = b"\xff\xfe\nlines.linewidth: 9\ntext.usetex: True\n"
    env, before, folder = {"MPLBACKEND": "nonsense", "PYTHONPATH": str(ROOT)}, "", tmp_path
    if where == "imported before":
        env["MPLBACKEND"] = "svg"
        before = "import matplotlib; matplotlib.rcParams.update({'text.usetex': True, 'savefig.bbox': 'tight'})"
    else:
        (tmp_path / "matplotlibrc").write_bytes(undecodable)
    if where == "MATPLOTLIBRC":
        folder, env["MATPLOTLIBRC"] = ROOT, str(tmp_path / "matplotlibrc")
    ended = run("-c", SETTINGS.format(before=before), cwd=folder, env=env)
    assert (ended.returncode, ended.stderr, ended.stdout) == (0, b"", plain)

"""Random damage, commands, pauses and kills, and what the programs make of them. Takes about ten minutes on two cores.

    python -m tests.fuzz [--fraction 1] [--seed 0] [--parts folders checkpoints ...] [--output bench/results]
    python -m tests.fuzz --parts folders --item 17      # one item again; what it was stays in a folder that is named

folders: run folders with damaged files, numbers that no training gives, and hostile names, drawn and saved.
checkpoints: trainings resumed from a checkpoint in which something was changed. commands: command lines of all
programs, run for real on folders that hold runs. interrupts: Ctrl-C at any moment of a program. pauses: a training that
stands still at a file operation, while another takes its folders over. kills: trainings killed at random moments, as
`tests.soak` has them.

Every item is a function of seed, part and number. What is wrong: a traceback or a warning, an end by a signal, more
than one line on standard error, 20 seconds without an end, a row of a log that is lost, or another result than that of
an undisturbed training. Writes fuzz.json and fuzz.md; exits with status 1 if something is wrong.
"""

import itertools
import multiprocessing
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [path for path in (str(ROOT), str(ROOT / "tests")) if path not in sys.path]

import faults  # noqa: E402
import soak  # noqa: E402
import torch  # noqa: E402
import trainings  # noqa: E402
from damage import change_checkpoint, change_csv, damage, surface_file  # noqa: E402
from made_up import write_run  # noqa: E402
from synthetic import write_synthetic  # noqa: E402
from trainings import (  # noqa: E402
    Ended,
    Training,
    content,
    differences,
    flags,
    folder_in_memory,
    with_small_network,
)

from bench.output import RESULTS, described, header, markdown_table, write  # noqa: E402
from cifar_lab.experiments import config_of  # noqa: E402
from cifar_lab.program import BAD_INPUT, BUSY, DISK, OTHER, OUT_OF_MEMORY, STOP_SIGNALS  # noqa: E402
from cifar_lab.run_folder import checkpoint  # noqa: E402
from cifar_lab.run_folder.reader import find_run_folders  # noqa: E402
from cifar_lab.run_folder.schema import RunFileError  # noqa: E402
from cifar_lab.settings import Parser, Settings, choice, folder, integer, real  # noqa: E402
from cifar_lab.training.console import duration  # noqa: E402
from cifar_lab.training.device import choose  # noqa: E402

LIMIT = 20.0  # seconds
STATUSES = (0, OTHER, BAD_INPUT, OUT_OF_MEMORY, DISK, BUSY, *(128 + number for number in STOP_SIGNALS))
MEMORY = 4 * 2**30  # bytes
COUNTS = {"folders": 1000, "checkpoints": 500, "commands": 300, "interrupts": 50, "pauses": 60, "kills": 60}
KILLS_OF_ONE = 6  # training, at most
KINDS = ("traceback", "hang", "lost row", "other")
Wrong = tuple[str, str]  # one of KINDS, and what it is
Prepare = Callable[[], Any] | None  # called in the process of a program, before it


@dataclass(frozen=True)
class Item:
    """What was tried, how many times it counts, and what is wrong."""

    part: str
    number: int
    tried: int
    wrong: list[Wrong]


# --- Programs ---------------------------------------------------------------------------------------------------------


def _bounded(prepare: Prepare) -> None:
    """Leaves a program so much memory that it cannot take the machine's for a file without an end."""
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    if prepare is not None:
        prepare()


def run(argv: list, script: str, prepare: Prepare = None) -> tuple[Ended, list[Wrong]]:
    """How a program ends, and what is wrong with that."""
    training = Training([str(word) for word in argv], script, partial(_bounded, prepare))
    try:
        ended = training.wait(LIMIT)
    except AssertionError:
        return Ended(-1, "", ""), [("hang", f"{script} {argv}")]
    wrong: list[Wrong] = []
    if "Traceback" in ended.err or "Traceback" in ended.out:
        wrong.append(("traceback", ended.err[-2000:]))
    elif ended.status not in STATUSES:
        wrong.append(("other", f"status {ended.status}: {ended.err[-500:]}"))
    elif "Warning" in ended.err:
        wrong.append(("other", f"a warning: {ended.err[-500:]}"))
    elif ended.status > 1 and ended.err.count("\n") != 1:
        wrong.append(("other", f"not one line: {ended.err[-500:]!r}"))
    elif bool(ended.status) != bool(ended.err):
        wrong.append(("other", f"status {ended.status} and {ended.err[-500:]!r}"))
    return ended, wrong


def rows(results: Path) -> Counter:
    """The rows of all logs below a folder, those of runs that were set aside too."""
    logs = [path for name in ("steps.csv", "epochs.csv") for path in results.rglob(name) if path.is_file()]
    return Counter(line for log in logs for line in log.read_bytes().splitlines(keepends=True) if line.endswith(b"\n"))


def lost(before: Counter, results: Path) -> list[Wrong]:
    missing = before - rows(results)
    return [("lost row", f"{missing.total()}, for example {next(iter(missing))!r}")] if missing else []


def differing(results: Path, reference: dict) -> list[Wrong]:
    """In what a results folder is not what an undisturbed training leaves."""
    try:
        names = differences(content(results), reference)
    except RunFileError as error:
        return [("lost row", str(error))]
    return [("lost row" if ".csv" in name else "other", f"{name} differs") for name in names]


# --- Folders ----------------------------------------------------------------------------------------------------------


def several_runs(results: Path, draw: random.Random) -> list[Path]:
    """Run folders of a kind that is drawn together: bands, probes, or networks with options of their own."""
    kind = draw.randrange(4)
    more: dict[str, Any] = {"epochs": 2}
    if kind <= 1:
        names = [f"{model}_lr{lr}" for model in ("vgg_a", "vgg_a_bn") for lr in ("0.001", "0.0001", "0.0005", "5e-05")]
        names = names if kind else draw.sample(names, 5)
        more["diverged_at_step"] = draw.choice((None, None, 1, 150))
        more["complete"] = bool(draw.randrange(3)) or more["diverged_at_step"] is not None
        return [write_run(results, name, seed=draw.choice((0, 0, 1)), **more) for name in names]
    if kind == 2:
        etas = [0.001, 0.01, 0.05, 0.1, 0.4]
        probes = [(s, eta, draw.choice((2.0, 1e-9)), 1.5, eta, 0.5, 0.7) for s in (100, 200, 300) for eta in etas]
        names = [("vgg_a_lr0.001", 0), ("vgg_a_bn_lr0.001", 0), ("vgg_a_lr0.001", 1), ("vgg_a_bn_lr0.001", 1)]
        configs = [replace(config_of(name, "quick", seed), probe_every=100) for name, seed in names]
        return [write_run(results, config, epochs=4, probes=probes) for config in configs]
    own = [replace(config_of("inception_res", "quick"), options={"residual_scale": s}) for s in (0.1, 0.3, 0.5, 2.0)]
    return [write_run(results, config, **more) for config in own]


def draw_folders(number: int, seed: int, prepare: Prepare = None, keep: Path | None = None) -> Item:
    """Several damaged folders beside a sound one, drawn with all that is saved."""
    draw = random.Random(f"{seed} folders {number}")
    with folder_in_memory() as work:
        results = keep or work
        sound = write_run(results, "inception", epochs=3)
        damaged = several_runs(results, draw)
        for run_folder in damaged:
            if draw.randrange(8) == 0:
                surface_file(run_folder, draw)
            damage(run_folder, draw)
        for run_folder in damaged:
            name = draw.choice(("a|b", "$x$", "a\nb", "y" * 255, "b\udcff"))
            if draw.randrange(12) == 0 and not (run_folder.parent / name).exists():
                run_folder.rename(run_folder.parent / name)
        if draw.randrange(6) == 0:
            table = [["claim", "effect", "low", "high", "sign", "switch", "measure", "unit", "seeds", "notes",
                      "the report says", "changes side at", "with the preset's settings", "degrees of freedom"],
                     ["level", "0.5", "", "", "same", "init", "m", "", "0", "", "s", "1.0", "0.1", "3"]]  # fmt: skip
            text = "\n".join(",".join(row) for row in table) + "\n"
            (results / "quick" / "switches-level.csv").write_text(change_csv(text, draw), "utf-8", "replace")
        paths = [path for path in results.rglob("*") if not path.is_symlink() and path.is_file()]
        before = {p: p.read_bytes() for p in paths if p.stat().st_size < 2**30 and os.access(p, os.R_OK)}
        script, argv = "plot_results.py", [results]
        if draw.randrange(4) == 0:
            there = [path for path in results.glob("quick/*/*") if path.name.isprintable()]
            script, argv = draw.choice((
                ("landscape.py", [results]), ("landscape.py", ["band", *draw.sample(there, 2)]),
                ("plot_results.py", [*draw.sample(there, 2), "--save", results / "any.svg"]),
                ("plot_results.py", [results, "--table", results / "runs.csv"]),
            ))  # fmt: skip
        ended, wrong = run(argv, script, prepare)
        if any(path.is_file() and path.read_bytes() != data for path, data in before.items() if sound in path.parents):
            wrong.append(("lost row", "the sound run is changed"))
        if len(argv) == 1 and script == "plot_results.py" and not wrong:
            if not (results / "quick" / "figures" / "figure_01.png").is_file():
                wrong.append(("other", f"the sound run is not drawn: {ended.err[-500:]}"))
            names = [path.name for path in (results / "quick" / "figures").iterdir()]
            wrong += [("other", f"file name {name!r}") for name in names if not re.fullmatch(r"[\w.-]{1,255}", name)]
        changed = [path for path, data in before.items() if damaged[0].parents[1] in path.parents
                   and path.suffix == ".csv" and path.parent.name != "quick" and path.read_bytes() != data]  # fmt: skip
        wrong += [("lost row", f"{path} is changed") for path in changed]
    return Item("folders", number, len(damaged), wrong)


# --- Checkpoints ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Prepared:
    """A training on small networks that was stopped in its second epoch, and what it leaves undisturbed."""

    argv: list[str]
    half: Path
    reference: dict

    @classmethod
    def make(cls, data: Path, work: Path) -> "Prepared":
        argv = flags(data, "--bn", "--lrs", "1e-2", "1e-3", "--epochs", "2", train_size=80, test_size=50)
        half, whole = work / "half", work / "whole"
        ended = Training([*argv, "--results", str(half)], prepare=partial(faults.signal_at_forward_pass, 9)).wait()
        assert ended.status == 143, ended
        ended = Training([*argv, "--results", str(whole)], prepare=with_small_network).wait()
        assert (ended.status, ended.err) == (0, ""), ended
        return cls(argv, half, content(whole))


def resume(
    number: int, seed: int, prepared: Prepared, prepare: Prepare = with_small_network, keep: Path | None = None
) -> Item:
    """A training that is resumed from a changed checkpoint, or from the one before it, which may be changed too."""
    draw = random.Random(f"{seed} checkpoints {number}")
    with folder_in_memory() as work:
        results = keep or work
        shutil.copytree(prepared.half, results, dirs_exist_ok=True)
        run_folder = draw.choice(find_run_folders(results))
        change_checkpoint(run_folder / checkpoint.NEWEST, draw)
        if draw.randrange(4) == 0:
            change_checkpoint(run_folder / checkpoint.PREVIOUS, draw)
        before = {path: path.read_bytes() for path in results.rglob("*.csv")}
        ended, wrong = run([*prepared.argv, "--results", results], "MyVGG.py", prepare)
        if ended.status == 0 and not wrong:
            wrong += differing(results, prepared.reference)
        elif ended.status > 0 and any(path.read_bytes() != data for path, data in before.items()):
            wrong.append(("lost row", f"status {ended.status}, and logs are changed: {ended.err}"))
    return Item("checkpoints", number, 1, wrong)


# --- Commands ---------------------------------------------------------------------------------------------------------

WORDS = (
    "--help", "--bn", "--no-augment", "--fresh", "--no-bias-decay", "--seed-per-rate", "--deterministic", "--list",
    "--no-channels-last", "--no-cuda-graph", "--", "-x", "extra", "--log",
)  # fmt: skip
VALUED = {  # what a flag may be given, words apart
    "--epochs": ("1", "2", "0", "-1", "1e3"),
    "--lrs": ("1e-3", "0", "1e6", "nan", "1e-3 1e-4", "1e-3 0.001"),
    "--optimizer": ("adam", "sgd", "adam adamw", "x"),
    "--momentum": ("0.9", "2"),
    "--weight-decay": ("0", "1", "-1"),
    "--seed": ("0", "1 2", "-1", "4294967296"),
    "--width": ("0.03", "0.1", "9", "0"),
    "--init": ("he", "xavier", "pytorch", "x"),
    "--batch-size": ("2", "79", "80", "100000", "1"),
    "--train-size": ("80", "2", "81", "50001"),
    "--test-size": ("1", "50", "10001"),
    "--probe-every": ("1", "2", "0"),
    "--device": ("cpu", "cuda", "mps", "cuda:9", "x"),
    "--precision": ("fp32", "bf16", "tf32", "x"),
    "--threads": ("1", "2", "0"),
    "--checkpoint-seconds": ("0", "1e9", "-1"),
    "--preset": ("quick", "report", "laptop", "paper", "x"),
    "--model": ("inception", "inception_res", "x"),
    "--residual-scale": ("0.5", "-1", "1"),
    "--dropout": ("0", "0.99", "1"),
    "--log": ("tensorboard", "x"),
    "--data-dir": ("/nowhere", "/dev/null", ""),
    "--results": ("/dev/null/x", "", "~nobody/x", "\udcff"),
    "--evaluate": ("{run}", "{results}", "/", "nowhere"),
}
BASE = {
    "--device": "cpu", "--width": "0.03", "--batch-size": "40", "--train-size": "80", "--test-size": "50",
    "--epochs": "1",
}  # fmt: skip


def any_command(draw: random.Random, data: Path, results: Path) -> tuple[str, list[str]]:
    """A command line; most of its words are what the program takes."""
    there = find_run_folders(results)
    of_runs = [str(draw.choice(there)) for _ in range(draw.choice((1, 2, 2)))] if there else []
    kind = draw.randrange(10)
    if kind == 0:
        words = [
            draw.choice((str(results), "nowhere", "/", "", *of_runs)),
            *draw.choice(([], ["--preset", "report"], ["-x"])),
        ]
        return draw.choice(("plot_results.py", "landscape.py")), words
    if kind == 1:
        more = draw.choice(
            ([], ["--against", *of_runs], ["--save", str(results / draw.choice(("a.png", "a", "b/c.svg")))])
        )
        return "landscape.py", ["band", *of_runs, *more]
    if kind == 2:
        points = ["--points", draw.choice(("3", "5", "4", "x")), "--images", draw.choice(("2", "80", "81"))]
        dims = ["--dims", draw.choice(("1", "2", "3")), "--device", "cpu", "--data-dir", str(data)]
        return "landscape.py", ["surface", *of_runs[: draw.choice((1, 2))], *points, *dims]
    if kind == 3:
        into = draw.choice(
            (["--table", str(results / "t.csv")], ["--save", str(results / "o.pdf")], ["--to", "x", "y"])
        )
        return "plot_results.py", [*draw.choice(([str(results)], of_runs or ["x"])), *into]
    given = dict(BASE)
    for flag in draw.sample(sorted(VALUED), draw.choice((0, 1, 2, 3))):
        given[flag] = draw.choice(VALUED[flag])
    words = [draw.choice(WORDS) for _ in range(draw.choice((0, 0, 1, 2)))]
    script = draw.choice(("MyVGG.py", "MyVGG.py", "MyFramework.py"))
    if script == "MyVGG.py":
        for flag in ("--model", "--residual-scale", "--dropout"):
            given.pop(flag, None) if draw.randrange(4) else None
    if int(given["--epochs"] if given["--epochs"].isdigit() else 0) > 1 and given["--width"] == "0.1":
        given["--epochs"] = "1"
    given = {"--data-dir": str(data), "--results": str(results)} | given
    for flag, value in given.items():
        value = value.format(run=of_runs[0] if of_runs else "x", results=results) if "{" in value else value
        words += [flag, *(value.split() or [""])]
    return script, words


def command(
    number: int, seed: int, data: Path, filled: Path, prepare: Prepare = None, keep: Path | None = None
) -> Item:
    """A command line on a folder that holds runs, whose rows must still be there afterwards."""
    draw = random.Random(f"{seed} commands {number}")
    with folder_in_memory() as work:
        results = keep or work
        shutil.copytree(filled, results, dirs_exist_ok=True)
        script, argv = any_command(draw, data, results)
        before = rows(results)
        _, wrong = run(argv, script, prepare)
        wrong += lost(before, results)
        wrong = [(kind, f"{script} {argv}: {text}") for kind, text in wrong]
    return Item("commands", number, 1, wrong)


# --- Interrupts, pauses, kills ----------------------------------------------------------------------------------------


def interrupt(number: int, seed: int, data: Path, filled: Path, keep: Path | None = None) -> Item:
    """A program, from its start as a user has it, that Ctrl-C ends at a random moment."""
    draw = random.Random(f"{seed} interrupts {number}")
    with folder_in_memory() as work:
        results = keep or work
        shutil.copytree(filled, results, dirs_exist_ok=True)
        run_folder = find_run_folders(results)[0]
        command_line = draw.choice((
            ["plot_results.py", results], ["landscape.py", results], ["-m", "cifar_lab.data", "--data-dir", data],
            ["-m", "cifar_lab.reproduce", "quick", "--list"], ["MyVGG.py", *flags(data), "--results", results],
            ["landscape.py", "surface", run_folder, "--images", 20, "--device", "cpu", "--data-dir", data],
            ["MyVGG.py", "--evaluate", run_folder, "--device", "cpu", "--data-dir", data],
        ))  # fmt: skip
        before = rows(results)
        process = subprocess.Popen(
            [sys.executable, *map(str, command_line)], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            text=True, errors="replace", start_new_session=True,
        )  # fmt: skip
        wrong: list[Wrong] = []
        time.sleep(draw.uniform(0, draw.choice((0.5, 5))))
        process.send_signal(signal.SIGINT)
        try:
            _, err = process.communicate(timeout=LIMIT)
        except subprocess.TimeoutExpired:
            process.kill()
            wrong.append(("hang", f"{command_line}"))
        else:
            started = "cifar_lab" in err or "site-packages" in err  # else Python was still starting
            if "Traceback" in err and started:
                wrong.append(("traceback", f"{command_line}: {err[-2000:]}"))
            elif started and (process.returncode not in (0, 130) or err.count("\n") > 1):
                wrong.append(("other", f"{command_line}: status {process.returncode}: {err[-500:]}"))
            wrong += lost(before, results)
    return Item("interrupts", number, 1, wrong)


def pause(number: int, seed: int, prepared: Prepared, prepare: Prepare = None, keep: Path | None = None) -> Item:
    """A training that stands still at a file operation; meanwhile its lock goes, another one takes the folders over and
    ends; the first goes on, and must leave what the other has written."""
    wrong: list[Wrong] = []
    with folder_in_memory() as work:
        results = keep or work
        if number % 2:
            shutil.copytree(prepared.half, results, dirs_exist_ok=True)
        argv = [*prepared.argv, "--results", str(results)]
        first = Training(argv, prepare=partial(faults.stop_at_call, number // 2))
        if not first.reaches(lambda: "paused" in first.output("out")):  # it has fewer calls
            first.wait(LIMIT)
            return Item("pauses", number, 0, [])
        for lock in results.rglob(".*.lock"):
            lock.unlink()
        second, wrong = run(argv, "MyVGG.py", prepare or with_small_network)
        if second.status == 0:
            wrong += differing(results, prepared.reference)
        first.signal(signal.SIGCONT)
        try:
            ended = first.wait(LIMIT)
        except AssertionError:
            wrong.append(("hang", "the first training"))
        else:
            if "Traceback" in ended.err:
                wrong.append(("traceback", ended.err[-2000:]))
            if second.status == 0:
                wrong += differing(results, prepared.reference)
    return Item("pauses", number, 1, wrong)


def kill(
    number: int, seed: int, data: Path, references: dict[int, tuple[dict, float]], keep: Path | None = None
) -> Item:
    """A training that is signalled at random moments and started again until it ends by itself."""
    draw = random.Random(f"{seed} kills {number}")
    which = draw.choice(list(references))
    expected, seconds = references[which]
    script, words = soak.COMMANDS[which]
    with folder_in_memory() as work:
        results = keep or work
        argv = [*flags(data), *words.split(), "--results", str(results)]
        delays = iter(lambda: draw.uniform(0, seconds), None)
        killed, wrong = soak.disturbed(argv, script, results, delays, draw, KILLS_OF_ONE)
        found = [("traceback" if "Traceback" in text else "other", text) for text in wrong]
        found += [] if wrong else differing(results, expected)
    return Item("kills", number, len(killed), found)


# --- All of it --------------------------------------------------------------------------------------------------------


def start_server() -> None:
    """Programs are forked from a process that has loaded what all of them need: some milliseconds each."""
    from multiprocessing import forkserver

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["soak", "damage", "torch._dynamo", "plot_results", "landscape"])
    with trainings.environment(PYTHONPATH=os.pathsep.join(sys.path), CUDA_VISIBLE_DEVICES=""):
        forkserver.ensure_running()
    trainings.server()


LOST = 255  # what multiprocessing says where its fork server lost a program's exit status: the item is tried again


def guarded(part: str, attempt: Callable[..., Item], number: int, **named: Path) -> Item:
    """What an item gives; what it leaves and cannot even be read is wrong too."""
    for _ in range(3):
        try:
            item = attempt(number, **named)
        except Exception:
            return Item(part, number, 1, [("other", traceback.format_exc()[-2000:])])
        if not any(text.startswith(f"status {LOST}: ") for _, text in item.wrong):
            break
    return item


class Bench:
    """What the parts need that takes seconds to make: data, results to damage, and what they would be undisturbed."""

    def __init__(self, work: Path, seed: int) -> None:
        self.seed = seed
        self._work = work
        self.data = write_synthetic(work / "data", train=130, test=100)

    def function(self, part: str) -> Callable[..., Item]:
        """What tries one item of a part: called with its number, and with a folder that is to be kept."""
        if part == "folders":
            return partial(draw_folders, seed=self.seed)
        if part in ("commands", "interrupts"):
            tries = command if part == "commands" else interrupt
            return partial(tries, seed=self.seed, data=self.data, filled=self._filled(part))
        if part == "kills":
            references = {which: soak.undisturbed(self.data, *_words(which)) for which in (0, 2)}
            return partial(kill, seed=self.seed, data=self.data, references=references)
        prepared = Prepared.make(self.data, self._work / part)
        return partial(resume if part == "checkpoints" else pause, seed=self.seed, prepared=prepared)

    def _filled(self, part: str) -> Path:
        """Results of a few trainings."""
        filled = self._work / part
        argv = flags(self.data, "--epochs", "1", "--results", filled, train_size=80, test_size=50)
        for more in (["--lrs", "1e-3", "1e-4"], ["--bn"], ["--seed", "3", "--probe-every", "1"]):
            assert Training([*argv, *more], prepare=trainings.ready).wait().status == 0
        return filled


def _words(which: int) -> tuple[str, list[str]]:
    script, words = soak.COMMANDS[which]
    return script, words.split()


def report(items: list[Item], about: dict) -> str:
    """The last result as a table."""
    lines = []
    for part in dict.fromkeys(item.part for item in items):
        of = [item for item in items if item.part == part]
        found = Counter(kind for item in of for kind, _ in item.wrong)
        lines.append([part, str(sum(item.tried for item in of)), *(str(found[kind]) for kind in KINDS)])
    text = (
        f"# Fuzzing: {sum(len(item.wrong) for item in items)} things wrong\n\n"
        f"{about['date']}, {duration(about['seconds'])}, {header(about)} Seed {about['seed']}, fraction "
        f"{about['fraction']:g} of `make fuzz`; see tests/fuzz.py.\n\n"
    )
    columns = ["part", "tried", "tracebacks", f"hangs over {LIMIT:.0f} s", "lost rows", "other"]
    return text + markdown_table(columns, lines)


def main(argv: list[str]) -> int:
    parser = Parser("python -m tests.fuzz", __doc__)
    add = parser.add_argument
    add("--seed", type=integer(0, 10**6), default=0, help="of everything (0)")
    add("--fraction", type=real(0, 100, above=True), default=1.0, help="of the items of each part (1)")
    add("--parts", nargs="+", type=choice(*COUNTS), default=list(COUNTS), help=", ".join(COUNTS))
    add("--item", type=integer(0, 10**6), help="only this one, in a folder that stays")
    add("--jobs", type=integer(1, 64), default=2, help="how many at a time (2)")
    add("--output", type=folder, default=RESULTS, help="folder of fuzz.json and fuzz.md")
    asked = parser.parse_args(argv)
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have it ignored, and its programs with it
    start = time.monotonic()
    start_server()
    items: list[Item] = []
    with tempfile.TemporaryDirectory() as work, ThreadPoolExecutor(asked.jobs) as pool:
        bench = Bench(Path(work), asked.seed)
        for part in asked.parts:
            attempt = partial(guarded, part, bench.function(part))
            if asked.item is not None:
                kept = Path(tempfile.mkdtemp(prefix=f"fuzz-{part}-{asked.item}-"))
                print(kept, *attempt(asked.item, keep=kept).wrong, sep="\n")
                continue
            tried = 0
            numbers = itertools.count()
            while tried < max(1, round(COUNTS[part] * asked.fraction)):
                for item in pool.map(attempt, itertools.islice(numbers, 4 * asked.jobs)):
                    items.append(item)
                    tried += item.tried
                    for kind, text in item.wrong:
                        print(f"{part} {item.number}: {kind}: {text}", file=sys.stderr, flush=True)
                if part == "pauses" and not any(item.tried for item in items[-4 * asked.jobs :]):
                    break  # beyond the last file operation
            print(f"{part}: {tried} tried after {duration(time.monotonic() - start)}", flush=True)
    if asked.item is not None:
        return 0
    about = described(choose(Settings(device="cpu")), "made-up images") | {
        "date": date.today().isoformat(), "seed": asked.seed, "fraction": asked.fraction,
        "seconds": round(time.monotonic() - start),
    }  # fmt: skip
    wrong = [f"{item.part} {item.number}: {kind}: {text}" for item in items for kind, text in item.wrong]
    tried = {part: sum(item.tried for item in items if item.part == part) for part in asked.parts}
    write(asked.output, "fuzz", about | {"tried": tried, "wrong": wrong}, text := report(items, about))
    print(text)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Puts faults into the code, one at a time, and counts those that the tests notice: 20 minutes on two cores.

    python -m tests.mutate [--seed 0] [--mutants 120] [--jobs 2] [--subjects plan verdicts] [--write]

cosmic-ray makes the faults; `TABLE` says where they go and which tests have to notice them. Each fault is put into a
copy of the working tree. Prints the score and the survivors; --write puts them into tests/README.md, with the
explanations that it has of the survivors. Exits with status 1 if fewer than 90% are killed.
"""

import argparse
import ast
import contextlib
import difflib
import hashlib
import itertools
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date
from functools import cache
from pathlib import Path

import cosmic_ray.commands
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator
from cosmic_ray.work_db import use_db

# Subject, modules, and the tests that have to notice a fault in them: pytest's arguments, the most specific file first.
# A row whose tests take more than 15 seconds makes the whole run longer than 20 minutes.
TABLE = (
    ("measures", "cifar_lab/measures/band.py cifar_lab/measures/probes.py cifar_lab/measures/statistics.py",
     "tests/test_landscape.py tests/test_probe.py tests/test_verdicts.py tests/test_layout.py"),
    ("measures", "cifar_lab/measures/surface.py cifar_lab/measures/evaluation.py", "tests/test_surface.py"),
    ("around a network", "cifar_lab/measures/line.py", "tests/test_line.py"),
    ("around a network", "cifar_lab/measures/path.py", "tests/test_path.py"),
    ("around a network", "cifar_lab/measures/sharpness.py", "tests/test_sharpness.py"),
    ("around a network", "cifar_lab/measures/calibration.py cifar_lab/figures/inspection.py",
     "tests/test_inspection.py"),
    ("verdicts", "cifar_lab/report/claims.py cifar_lab/report/effects.py cifar_lab/report/verdicts.py",
     "tests/test_claims.py tests/test_verdicts.py"),
    ("verdicts", "cifar_lab/measures/screening.py cifar_lab/report/screening.py cifar_lab/report/screening_tables.py"
     " cifar_lab/switches.py",
     "tests/test_screening.py tests/test_switches.py"),
    ("plan", "cifar_lab/training/plan.py",
     "tests/test_random_streams.py tests/test_augment.py tests/test_switches.py"),
    ("augmentation", "cifar_lab/training/augment.py", "tests/test_augment.py tests/test_random_streams.py"),
    ("optimizers", "cifar_lab/optimizers.py", "tests/test_optimizers.py tests/test_layout.py tests/test_figures.py"),
    ("optimizers", "cifar_lab/muon.py", "tests/test_optimizers.py"),
    ("optimizers", "cifar_lab/activations.py cifar_lab/losses.py",
     "tests/test_activations.py tests/test_losses.py tests/test_layout.py tests/test_own_figures.py"),
    ("optimizers", "cifar_lab/schedules.py", "tests/test_schedules.py tests/test_layout.py"),
    ("optimizers", "cifar_lab/width.py", "tests/test_width.py tests/test_layout.py"),
    ("networks", "MyVGG.py MyFramework.py cifar_lab/networks.py",
     "tests/test_reference.py tests/test_models.py tests/test_random_streams.py tests/test_identity.py"
     " tests/test_settings.py"),
    ("training", "cifar_lab/settings.py cifar_lab/experiments.py",
     "tests/test_settings.py tests/test_command_lines.py tests/test_reproduce.py"),
    ("training", "cifar_lab/training/loader.py cifar_lab/training/group.py cifar_lab/training/run.py"
     " cifar_lab/training/script.py cifar_lab/training/position.py",
     "tests/test_recomputed_logs.py tests/test_run_folder.py tests/test_settings.py tests/test_cuda_stand_in.py"),
    ("training", "cifar_lab/training/evaluated.py", "tests/test_recipe.py"),
    ("files", "cifar_lab/run_folder/validation.py", "tests/test_validation.py tests/test_resume.py"),
    ("files", "cifar_lab/escape.py", "tests/test_escape.py"),
    ("files", "cifar_lab/training/export.py", "tests/test_export.py"),
    ("files", "cifar_lab/training/predict.py cifar_lab/data/pictures.py",
     "tests/test_predict.py tests/test_datasets.py"),
    ("files", "cifar_lab/data/folder.py cifar_lab/data/datasets.py", "tests/test_datasets.py"),
    ("figures", "cifar_lab/report/page.py cifar_lab/figures/style.py cifar_lab/figures/curves.py",
     "tests/test_figures.py tests/test_plots.py"),
    ("figures", "cifar_lab/figures/band.py cifar_lab/figures/probes.py",
     "tests/test_figures.py tests/test_landscape.py tests/test_published.py"),
    ("figures", "cifar_lab/figures/sets.py cifar_lab/report/table.py cifar_lab/run_folder/tensorboard.py",
     "tests/test_own_figures.py tests/test_figures.py"),
    ("figures", "cifar_lab/figures/surface.py cifar_lab/figures/confusion.py",
     "tests/test_figures.py tests/test_surface.py"),
)  # fmt: skip
MODULES = {module: (subject, tests) for subject, modules, tests in TABLE for module in modules.split()}
SUBJECTS = tuple(dict.fromkeys(subject for subject, _, _ in TABLE))

# `==` for `is` and the reverse change nothing here; bits for arithmetic and the reverse only raise.
IDENTITY = ({"Eq", "Is"}, {"NotEq", "IsNot"})
BITS = {"BitOr", "BitAnd", "BitXor", "LShift", "RShift"}

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "tests" / "README.md"
START, END = "<!-- mutants: written by make mutate, but for the explanations -->\n", "<!-- end of mutants -->\n"
SURVIVOR = re.compile(r"^- `(?:[^`]*/)?([^`/]+):\d+`, `(.+?)`: (.+?)\n(  ```diff\n.+?\n  ```)\n", re.M | re.S)
PYTEST = (sys.executable, "-m", "pytest", "-x", "-q", "--no-header", "--tb=no", "-p", "no:cacheprovider")
ENVIRONMENT = os.environ | {
    "CIFAR10_DIR": str(Path(os.environ.get("CIFAR10_DIR") or ROOT / "data").resolve()),
    "CI": "1",  # Hypothesis draws the same examples every time
    "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "",
}  # fmt: skip
MEMORY = 8 << 30  # bytes of a process: a fault in a size must not take the machine down
STOPPED = threading.Event()


@dataclass(frozen=True)
class Mutant:
    file: str
    line: int
    function: str
    operator: str
    code: str  # of the whole module
    change: str  # the lines before and after

    @property
    def subject(self) -> str:
        return MODULES[self.file][0]

    @property
    def tests(self) -> str:
        return MODULES[self.file][1]


def sample(seed: int, number: int) -> list[Mutant]:
    """As many of each subject, or all that it has."""
    with tempfile.TemporaryDirectory() as work, use_db(f"{work}/session.sqlite") as session:
        cosmic_ray.commands.init(map(Path, MODULES), session, {})
        found = [item.mutations[0] for item in session.work_items]
    places: dict[str, dict[tuple, list]] = {subject: defaultdict(list) for subject in SUBJECTS}
    for spec in sorted(found, key=lambda spec: (spec.operator_name, spec.occurrence)):
        kind = spec.operator_name.split("/")[1].split("_")[0]
        places[MODULES[str(spec.module_path)][0]][spec.module_path, spec.start_pos, kind].append(spec)
    rounds = itertools.zip_longest(*(drawn(seed, places[subject]) for subject in SUBJECTS))
    return list(itertools.islice(filter(None, itertools.chain.from_iterable(rounds)), number))


def drawn(seed: int, places: dict[tuple, list]) -> Iterator[Mutant]:
    """One mutant per place and kind of operator, in an order that a change to other lines leaves as it is."""

    def order(place: tuple, *words: object) -> bytes:
        module, (line, column), kind = place
        text = source(module).split("\n")[line - 1]
        words = (seed, module.name, places[place][0].definition_name, text, column, kind, *words)
        return hashlib.sha256("\0".join(map(str, words)).encode()).digest()

    for place in sorted(places, key=order):
        numbered = enumerate(places[place])
        for _, spec in sorted(numbered, key=lambda item: order(place, item[0], item[1].operator_name)):
            name, before = spec.operator_name.split("/")[1], source(spec.module_path)
            change = set(name.split("_")[1:])
            if change in IDENTITY or len(change & BITS) == 1:
                continue
            code = mutate_code(before, get_operator(spec.operator_name)(), spec.occurrence)
            if meaning(code) in (None, meaning(before)):
                continue
            lines = list(difflib.unified_diff(before.splitlines(), code.splitlines(), n=0, lineterm=""))[3:]
            text = "\n".join(f"{line[0]} {line[1:].strip()}" for line in lines if line[0] in "+-")
            yield Mutant(str(place[0]), place[1][0], spec.definition_name or "module", name, code, text)
            break


@cache
def source(module: Path) -> str:
    return module.read_text(encoding="utf-8")


def meaning(code: str) -> str | None:
    """The syntax tree without annotations; None if it is no Python."""
    try:
        tree = ast.parse(code)
    except SyntaxError:
        return None
    for node in ast.walk(tree):
        vars(node).update(dict.fromkeys(vars(node).keys() & {"annotation", "returns"}))
    return ast.dump(tree)


def first_failure(tests: str, limit: float, mutant: Mutant | None = None) -> tuple[str, float]:
    """The test that fails in a copy of this folder, empty if none does, and the seconds until then."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as work:
        copy, output = Path(work, "copy"), Path(work, "output")
        shutil.copytree(".", copy)
        if mutant:
            (copy / mutant.file).write_text(mutant.code, encoding="utf-8")
        with open(output, "w") as file:
            process = subprocess.Popen(
                [*PYTEST, *tests.split()], cwd=copy, env=ENVIRONMENT | {"TMPDIR": work}, start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=file, stderr=file,
            )  # fmt: skip
        start = time.monotonic()
        while (status := process.poll()) is None and time.monotonic() < start + limit and not STOPPED.wait(0.05):
            pass
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)  # with all that it started
        process.wait()
        said = re.search(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", output.read_text(errors="replace"), re.M)
    failure = f"time limit of {limit:.0f} s" if status is None else said[1] if said else f"exit status {status}"
    return "" if status == 0 else failure, time.monotonic() - start


def run(mutants: list[Mutant], pool: ThreadPoolExecutor) -> list[tuple[Mutant, str]]:
    """Each mutant, and what killed it; empty if nothing did."""
    limits = {}
    needed = sorted({mutant.tests for mutant in mutants})
    for tests, failure, seconds in pool.map(lambda tests: (tests, *first_failure(tests, 600)), needed):
        if failure:
            sys.exit(f"tests.mutate: fails without a fault in the code: {failure}")
        print(f"without a fault, {seconds:.0f} s: {tests}", flush=True)
        limits[tests] = 20 + 4 * seconds
    results = []
    for mutant, failure, seconds in pool.map(lambda m: (m, *first_failure(m.tests, limits[m.tests], m)), mutants):
        results.append((mutant, failure))
        outcome = f"killed by {failure}" if failure else "SURVIVED"
        place = f"{mutant.file}:{mutant.line} {mutant.operator}"
        print(f"{len(results)}/{len(mutants)} {place}: {outcome} ({seconds:.0f} s)", flush=True)
    return results


def report(results: list[tuple[Mutant, str]], about: str) -> str:
    """Markdown: the score, and the survivors with the explanations that the README has of them."""
    explained = {(m[1], m[2], m[4]): " ".join(m[3].split()) for m in SURVIVOR.finditer(README.read_text("utf-8"))}
    score = f"**{sum(bool(failure) for _, failure in results)} of {len(results)} killed.** {about}"
    lines = [
        textwrap.fill(score, 120),
        "",
        "| subject | mutants | killed | by the time limit |",
        "|---|---:|---:|---:|",
    ]
    for subject in SUBJECTS:
        own = [failure for mutant, failure in results if mutant.subject == subject]
        timed_out = sum(failure.startswith("time limit") for failure in own)
        lines.append(f"| {subject} | {len(own)} | {sum(map(bool, own))} | {timed_out} |")
    survivors = [mutant for mutant, failure in results if not failure]
    lines += ["", "Survivors:" if survivors else "No survivors.", ""]
    for mutant in sorted(survivors, key=lambda m: (SUBJECTS.index(m.subject), m.file, m.line)):
        change = textwrap.indent(f"```diff\n{mutant.change}\n```", "  ")
        why = explained.get((Path(mutant.file).name, mutant.function, change), "not explained yet.")
        text = f"- `{mutant.file}:{mutant.line}`, `{mutant.function}`: {why}"
        lines.append(textwrap.fill(text, 120, subsequent_indent="  ", break_on_hyphens=False) + f"\n{change}\n")
    return "\n".join(lines)


def output_of(*command: str) -> str:
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutate", description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0, help="of the sample (0)")
    parser.add_argument("--mutants", type=int, default=120, help="how many, over all subjects (120)")
    parser.add_argument("--jobs", type=int, default=2, help="how many at a time (2)")
    parser.add_argument("--subjects", nargs="+", choices=SUBJECTS, default=SUBJECTS, help="only these of the sample")
    parser.add_argument("--write", action="store_true", help="the result into tests/README.md")
    asked = parser.parse_args(argv)
    named = [*MODULES, *(word.split("::")[0] for _, _, tests in TABLE for word in tests.split() if ".py" in word)]
    if missing := sorted({name for name in named if not (ROOT / name).is_file()}):
        sys.exit(f"tests.mutate: TABLE names files that do not exist: {', '.join(missing)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    start = time.monotonic()
    commit = output_of("git", "describe", "--always", "--dirty", "--abbrev=12")
    with tempfile.TemporaryDirectory() as tree, ThreadPoolExecutor(asked.jobs) as pool:
        for name in output_of("git", "ls-files", "-coz", "--exclude-standard").split("\0"):
            if (ROOT / name).is_file():
                Path(tree, name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, Path(tree, name))
        os.chdir(tree)
        try:
            results = run([m for m in sample(asked.seed, asked.mutants) if m.subject in asked.subjects], pool)
        except BaseException:
            STOPPED.set()
            pool.shutdown(cancel_futures=True)
            raise
        finally:
            os.chdir(ROOT)
    minutes = (time.monotonic() - start) / 60
    text = report(results, f"Seed {asked.seed}, commit {commit}, {date.today()}, {minutes:.0f} minutes.")
    print(f"\n{text}")
    if asked.write:
        head, tail = README.read_text(encoding="utf-8").split(START)
        README.write_text(f"{head}{START}\n{text}\n{END}{tail.split(END)[1]}", encoding="utf-8")
    return int(sum(bool(failure) for _, failure in results) < 0.9 * len(results))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Trainings that are killed at random moments, over and over, and what of them survives. Takes about ten minutes.

    python -m tests.soak [--kills 200] [--seed 0] [--output bench/results]

Each training is a command drawn from a few (BatchNorm, dropout, probes, four optimizers, a run that diverges, two
seeds), on small networks and made-up images, with a checkpoint after every step or every fifth of a second. It is
started, signalled at a moment drawn evenly from the time that it takes undisturbed, and started again, until it ends by
itself. A kill has been survived when every file could be read after it, and the training ended with the same bits as an
undisturbed one. Writes soak.json and soak.md; exits with status 1 where a kill was not survived.
"""

import random
import signal
import sys
import tempfile
import time
from collections import Counter
from datetime import date
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [path for path in (str(ROOT), str(ROOT / "tests")) if path not in sys.path]

import torch  # noqa: E402
from synthetic import write_synthetic  # noqa: E402
from trainings import Training, content, differences, flags, unfinished_files  # noqa: E402

from bench.output import RESULTS, described, header, markdown_table, write  # noqa: E402
from cifar_lab.program import STOP_SIGNALS  # noqa: E402
from cifar_lab.run_folder.reader import find_run_folders, read_run  # noqa: E402
from cifar_lab.run_folder.schema import RunFileError  # noqa: E402
from cifar_lab.settings import Parser, Settings, integer, path  # noqa: E402
from cifar_lab.training.console import duration  # noqa: E402
from cifar_lab.training.device import choose  # noqa: E402

COMMANDS = (
    ("MyVGG.py", "--bn --lrs 1e-3 1e-4 --probe-every 5 --epochs 30"),
    ("MyVGG.py", "--lrs 1e-2 1e6 --optimizer sgd --momentum 0.9 --epochs 90"),
    ("MyVGG.py", "--bn --seed 0 1 --epochs 45"),
    ("MyFramework.py", "--bn --optimizer adam adamw rmsprop sgd --momentum 0.9 --epochs 9"),
)
CHECKPOINT_SECONDS = ("0", "0.2")
# Three kills in four cannot be caught; the others ask the training to stop.
ASKING = STOP_SIGNALS[:4]  # Ctrl-C, `kill`, a terminal that closes, a batch system
SIGNALS = (signal.SIGKILL,) * 12 + ASKING if hasattr(signal, "SIGKILL") else ()
CAUGHT = (0, *(128 + number for number in ASKING))


def undisturbed(data: Path, script: str, words: list[str]) -> tuple[dict, float]:
    """What a command leaves, and the seconds that it takes."""
    Training([], prepare=sys.exit).wait()  # the first has to wait for its server
    with tempfile.TemporaryDirectory() as results:
        start = time.monotonic()
        ended = Training([*flags(data, *words), "--results", results], script).wait()
        assert (ended.status, ended.err) == (0, ""), ended
        return content(Path(results)), time.monotonic() - start


def disturbed(argv: list[str], script: str, results: Path, delays, draw: random.Random, left: int) -> tuple[list, list]:
    """Trains to the end, with at most `left` kills on the way; returns their signals, and what is wrong."""
    kills: list[str] = []
    wrong: list[str] = []
    while True:
        number = draw.choice(SIGNALS)
        training = Training(argv, script)
        if len(kills) < left:
            time.sleep(next(delays))
            training.signal(number)
        ended = training.wait()
        if ended.status == 0:
            return kills, wrong
        # A signal before the training has begun has its usual effect.
        if (ended.status not in CAUGHT and ended.status != -number) or ended.err.count("\n") > 1:
            return kills, [*wrong, f"status {ended.status}: {ended.err}"]
        kills.append(number.name)
        for folder in find_run_folders(results):
            try:
                read_run(folder)
            except RunFileError as error:
                wrong.append(str(error))


def main(argv: list[str]) -> int:
    parser = Parser("python -m tests.soak", __doc__.splitlines()[0])
    parser.add_argument("--kills", type=integer(1, 10**6), default=200, help="how many (200)")
    parser.add_argument("--seed", type=integer(0, 10**6), default=0, help="of commands, moments and signals (0)")
    parser.add_argument("--output", type=path, default=str(RESULTS), help="folder of soak.json and soak.md")
    asked = parser.parse_args(argv)
    torch.set_num_threads(1)
    draw = random.Random(asked.seed)
    start = time.monotonic()
    kills: Counter[str] = Counter()
    survived = trainings = 0
    complaints: list[str] = []
    with tempfile.TemporaryDirectory() as work:
        data = write_synthetic(Path(work) / "data", train=130, test=100)
        reference = {
            (i, seconds): undisturbed(data, script, [*words.split(), "--checkpoint-seconds", seconds])
            for i, (script, words) in enumerate(COMMANDS)
            for seconds in CHECKPOINT_SECONDS
        }
        while (left := asked.kills - kills.total()) > 0:
            which = draw.choice(list(reference))
            expected, seconds = reference[which]
            script, words = COMMANDS[which[0]]
            results = Path(work) / f"results{trainings}"
            more = [*words.split(), "--checkpoint-seconds", which[1], "--results", str(results)]
            delays = iter(lambda limit=seconds: draw.uniform(0, limit), None)
            own, wrong = disturbed([*flags(data), *more], script, results, delays, draw, left)
            if not wrong:
                wrong = [*differences(content(results), expected), *unfinished_files(results)]
            trainings += 1
            kills.update(own)
            survived += 0 if wrong else len(own)
            complaints += [f"training {trainings}, {script} {' '.join(more)}: {text}" for text in wrong]
            print(f"{kills.total()} kills in {trainings} trainings, {survived} survived", flush=True)
    print(*complaints, sep="\n", file=sys.stderr, end="\n" if complaints else "")
    total = kills.total()
    about = described(choose(Settings(device="cpu")), "made-up images")
    result = about | {
        "date": date.today().isoformat(), "seed": asked.seed, "kills": dict(kills), "survived": survived,
        "trainings": trainings, "seconds": round(time.monotonic() - start), "wrong": complaints,
    }  # fmt: skip
    rows = [[name, str(count)] for name, count in sorted(kills.items())]
    text = (
        f"# {total} random kills, {survived} survived\n\n"
        f"{result['date']}, {duration(result['seconds'])}, {header(about)} Seed {asked.seed}, {trainings} trainings; "
        "see tests/soak.py.\n\n"
    )
    write(Path(asked.output), "soak", result, text + markdown_table(["signal", "kills"], rows))
    print(f"{survived} of {total} kills survived, in {duration(result['seconds'])}")
    return int(survived < total)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Everything that needs a GPU, in one command and under 8 minutes: what `make gpu-check` runs.

    python -m bench.gpu_check
    python -m bench.gpu_check --seconds 300                     # less time: fewer rounds

The CUDA tests, a timed slice of the full report (bench.report_slice), the benchmark table (bench.bench), and the
scaling measurements (bench.scaling) if time is left. Each part is a process of its own; one that fails or runs out
of its time is recorded, and the others go on. Everything is written to bench/results/ as it comes.
"""

import sys
import time

from bench import output, program
from cifar_lab.program import run
from cifar_lab.settings import real

RESERVE = 10  # seconds kept back for ending


def parts(shared: list[str]) -> list[tuple[str, float, float, list[str]]]:
    """Name, most seconds as a share of those left, least seconds to start with, and command of each part.

    `{seconds}` in a command is the time that the part is told to keep to.
    """
    return [
        ("CUDA tests", 0.45, 20, ["-m", "pytest", "-q", "-p", "no:cacheprovider", "--durations=10",
                                  "tests/test_cuda.py"]),
        ("report slice", 0.45, 20, ["-m", "bench.report_slice", *shared, "--seconds", "{seconds}"]),
        ("benchmark table", 0.95, 20, ["-m", "bench.bench", *shared, "--seconds", "{seconds}", "--no-scaling"]),
        ("scaling", 1.0, 45, ["-m", "bench.scaling", *shared]),
    ]  # fmt: skip


def markdown(about: dict, results: dict[str, dict], name: str) -> str:
    rows = []
    for part, r in results.items():
        how = "left out, no time" if "status" not in r else "killed at its time limit" if r["killed"] else \
            "passed" if r["status"] == 0 else f"failed, exit status {r['status']}"  # fmt: skip
        rows.append([part, how, f"{r.get('seconds', 0):.0f}", (r.get("last_lines") or [""])[-1].strip("= ")])
    text = [f"# GPU check\n\n{output.header(about)}\n\n"]
    text.append(output.markdown_table(["part", "result", "seconds", "its last line"], rows))
    text.append(f"\nMeasurements: [{name}.md]({name}.md), [{name}-report.md]({name}-report.md).\n")
    for part, r in results.items():
        if r.get("status"):
            text.append(f"\n## {part}: its last lines\n\n```\n" + "\n".join(r["last_lines"]) + "\n```\n")
    return "".join(text)


def main(argv: list[str]) -> int:
    start = time.monotonic()
    parser = program.parser("bench.gpu_check", __doc__)
    parser.set_defaults(device="cuda")
    parser.add_argument("--seconds", type=real(60, 36_000), default=450.0, help="for everything together (450)")
    args = parser.parse_args(argv)
    data, device = program.data_and_device(args, required=False)
    about = output.described(device, data.name)
    name = output.slug(device)
    results: dict[str, dict] = {}
    for part, share, least, command in parts(program.shared_flags(args)):
        left = args.seconds - RESERVE - (time.monotonic() - start)
        limit = share * left
        if limit < least:
            results[part] = {}
        else:
            print(f"--- {part}, at most {limit:.0f} s", flush=True)
            # What a part is told to keep to is less than what it is killed at: it ends by itself.
            told = f"{max(1.0, 0.8 * limit - 10):.0f}"
            words = [told if word == "{seconds}" else word for word in command]
            results[part] = program.run(words, limit, lambda line: print(line, end="", flush=True))
        output.write(args.output, f"{name}-gpu-check", {"about": about, "parts": results},
                     markdown(about, results, name))  # fmt: skip
    print(args.output / f"{name}-gpu-check.md", flush=True)
    return int(any(r.get("status", 1) for r in results.values()))


if __name__ == "__main__":
    run(main, sys.argv[1:])

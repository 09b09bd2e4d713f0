"""Draws the report's figures from a results folder and writes its tables and verdicts. Trains nothing.

    python plot_results.py results/
    python plot_results.py results/ --preset quick

For each preset found there, or among the published runs in results/published/: results/<preset>/figures/ (PNG and SVG),
report.md, which shows everything, and verdicts.csv. A figure whose runs are missing is listed with the command that
trains them. Runs may still be training.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from cifar_lab.figures import kinds
from cifar_lab.project import RESULTS
from cifar_lab.report import page, verdict_tables, verdicts
from cifar_lab.run_folder import files
from cifar_lab.run_folder.reader import Run, presets_in, read_runs, report_runs, results_folder
from cifar_lab.run_folder.schema import RunFileError
from cifar_lab.settings import ALL_PRESETS, PAPER_PRESETS, Parser, choice, fail, path


def parser() -> Parser:
    """The command line's flags."""
    p = Parser("plot_results.py", __doc__)
    p.add_argument("results", nargs="?", default=RESULTS, type=path, help="the results folder (results)")
    p.add_argument(
        "--preset", type=choice(*ALL_PRESETS), help=f"only this preset: {', '.join(ALL_PRESETS)} (all there are)"
    )
    return p


def main(argv: Sequence[str]) -> int:
    """Draws everything; returns the exit status, 1 if a file could not be read or written."""
    args = parser().parse_args(argv)
    try:
        results = results_folder(Path(args.results))
    except RunFileError as error:
        fail(f"plot_results.py: {error}")
    presets = presets_in(results, args.preset)
    if not presets:
        fail(f"plot_results.py: --preset {args.preset}: {results} has no run folders of it")
    failed = False
    for preset in presets:
        runs, errors = read_runs(results, preset)
        if runs:
            try:
                errors += plot_preset(results, preset, runs, errors)
            except OSError as error:
                fail(f"plot_results.py: {error.filename or results / preset}: {error.strerror}", 1)
        for error in errors:
            print(error, file=sys.stderr)
        failed |= bool(errors)
    return int(failed)


def plot_preset(results: Path, preset: str, runs: Sequence[Run], errors: Sequence[RunFileError]) -> list[RunFileError]:
    """Draws and writes everything of a preset, and says so; returns the files besides `errors` that are unreadable."""
    folder = results / preset
    figures = kinds.draw(kinds.ALL, results, preset, runs)
    found_while_drawing = list(figures.errors)
    figures.errors[:0] = errors
    judged = {} if preset in PAPER_PRESETS else verdicts.judge_sources(runs, preset, results)
    files.write_text(folder / "report.md", page.report_text(preset, runs, figures, judged))
    print(f"{folder}: {len(runs)} runs, {len(figures.drawn)} figures in {folder / 'figures'}, {folder / 'report.md'}")
    own = [run for run in runs if not run.published]
    others = len(own) - sum(map(len, report_runs(own, preset).values()))
    if others:
        print(f"  {others} with other settings than the preset's: not in the report's figures and verdicts")
    for name, command in figures.missing:
        print(f"  missing: {name}: {command}")
    if judged:
        files.write_text(folder / "verdicts.csv", verdict_tables.to_csv(judged))
    for source, of_source in judged.items():
        print(f"verdicts at the preset {preset}{source and ' from the '}{source} (mean over the seeds, 95% interval):")
        print(verdict_tables.to_text(of_source))
    return found_while_drawing


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        fail("interrupted", 130)

"""Draws the figures of a results folder and writes its tables and verdicts. Trains nothing.

    python plot_results.py results/
    python plot_results.py results/ --preset quick
    python plot_results.py RUN_FOLDER RUN_FOLDER ... --save figure.png     any runs in one figure
    python plot_results.py results/ --table runs.csv                       a row per run, all settings and results
    python plot_results.py results/ --to tensorboard logs/                 what tensorboard --logdir logs/ shows

For each preset found there, or among the published runs in results/published/: results/<preset>/figures/ (PNG and SVG),
report.md, which shows everything, report.html, one file on which curves and bands can be zoomed, verdicts.csv, and the
effects of switches whose runs are there, switches-<claim>.csv. Every set of runs that differ in one setting has a
figure, every set that differs in nothing but the learning rate a band; those of the report's list have fixed names, and
what lacks runs is listed with the command that trains them. Runs may still be training.
"""

import cifar_lab  # noqa: F401  first, see there

# isort: split
import os
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cifar_lab.escape import shell, terminal
from cifar_lab.figures import curves, kinds, sets
from cifar_lab.figures.style import Figures
from cifar_lab.program import complaint, fail, run, status_of
from cifar_lab.project import RESULTS
from cifar_lab.report import html_page, page, screening, screening_tables, table, verdict_tables, verdicts
from cifar_lab.run_folder import files, tensorboard
from cifar_lab.run_folder.reader import (
    Run,
    figures_folder,
    presets_in,
    read_given,
    read_runs,
    report_runs,
    results_folder,
)
from cifar_lab.run_folder.schema import RunFileError
from cifar_lab.settings import ALL_PRESETS, PRESETS, PUBLISHED, Parser, choice, figure_file, output, path


def parser() -> Parser:
    """The command line's flags."""
    p = Parser("plot_results.py", __doc__)
    p.add_argument(
        "results", nargs="*", default=[RESULTS], type=path, help="the results folder (results), or run folders"
    )
    p.add_argument(
        "--preset", type=choice(*ALL_PRESETS), help=f"only this preset: {', '.join(ALL_PRESETS)} (all there are)"
    )
    p.add_argument("--save", type=figure_file, metavar="FILE", help="of run folders: the file, .png, .svg or .pdf")
    p.add_argument(
        "--table", type=output(".csv"), metavar="FILE", help="write a CSV with a row per run instead of figures"
    )
    p.add_argument(
        "--to", nargs=2, type=path, metavar=("tensorboard", "FOLDER"), help="copy the logs instead of drawing"
    )
    return p


@np.errstate(all="ignore")  # what comes of logs with zeros or huge numbers is shown as it is
def main(argv: Sequence[str]) -> int:
    """Draws everything; returns the exit status, 1 if a file could not be read or written."""
    args = parser().parse_args(argv)
    given = [Path(folder) for folder in args.results]
    try:
        if args.to:
            if args.to[0] != "tensorboard":
                fail(f"plot_results.py: --to {args.to[0]}: logs are written for tensorboard, and nothing else")
            tensorboard.check()
        if len(given) > 1 or os.path.exists(given[0] / "config.json"):
            return of_runs(read_given(given), args)
        results = results_folder(given[0])
    except (RunFileError, tensorboard.Missing) as error:
        fail(f"plot_results.py: {error}")
    if args.save:
        fail("plot_results.py: --save: a results folder has many figures; give the folders of runs")
    presets = presets_in(results, args.preset)
    if not presets:
        fail(f"plot_results.py: --preset {args.preset}: {results} has no run folders of it")
    every, unreadable = [], []
    for preset in presets:
        runs, errors = read_runs(results, preset)
        try:
            if runs and not (args.table or args.to):
                errors += plot_preset(results, preset, runs, errors)
        except OSError as error:
            fail(f"plot_results.py: {complaint(error)}", status_of(error))
        for error in errors:
            print(error, file=sys.stderr)
        every += runs
        unreadable += errors
    if args.table or args.to:
        of_runs(every, args)
    return int(bool(unreadable))


def of_runs(runs: Sequence[Run], args: Namespace) -> int:
    """Writes the table or the event files that the command line asks for, else one figure; returns the exit status."""
    try:
        if args.table:
            files.write_text(Path(args.table), table.to_csv(runs))
            print(f"{args.table}: {len(runs)} runs")
        if args.to:
            for run in runs:
                source = PUBLISHED if run.published else ""
                tensorboard.Events(Path(args.to[1], source, run.place), run.folder).close()
            see = shell(["tensorboard", "--logdir", args.to[1]])
            print(f"{args.to[1]}: {len(runs)} runs; to see them: {see}")
        if not (args.table or args.to):
            for run in runs:
                if not run.epochs_done:
                    fail(f"plot_results.py: {run.folder}: no epoch has ended yet")
            figures = Figures(file=args.save)
            curves.draw_any(figures, figures_folder(runs[0]) / sets.file_stem("overview", runs), runs)
            print(*figures.lines(), sep="\n")
    except OSError as error:
        fail(f"plot_results.py: {complaint(error)}", status_of(error))
    return 0


def plot_preset(results: Path, preset: str, runs: Sequence[Run], errors: Sequence[RunFileError]) -> list[RunFileError]:
    """Draws and writes everything of a preset, and says so; returns the files besides `errors` that are unreadable."""
    folder = results / preset
    own = [run for run in runs if not run.published]
    others = len(own) - sum(map(len, report_runs(own, preset).values()))
    screened, begun = screening.screen_all(own, preset) if others and preset in PRESETS else ([], [])
    for of_claim in screened:
        files.write_text(folder / f"switches-{of_claim.claim.id}.csv", screening_tables.to_csv(of_claim))
    figures = kinds.draw(kinds.ALL, results, preset, runs)
    figures.missing += [(f"switches of {claim.id}", screening.command(claim, preset, results)) for claim in begun]
    found_while_drawing = list(figures.errors)
    figures.errors[:0] = errors
    judged = verdicts.judge_sources(runs, preset, results) if preset in PRESETS else {}
    shown = judged
    if not kinds.begun(runs, preset):  # of claims without runs the list of what is missing has one line
        shown = {source: [v for v in of if source or v.estimates] for source, of in judged.items()}
        shown = {source: of for source, of in shown.items() if of}
    files.write_text(folder / "report.md", page.report_text(preset, runs, figures, shown, screened))
    files.write_text(folder / "report.html", html_page.report_html(preset, runs, figures, shown))
    print(f"{folder}: {len(runs)} runs, {len(figures.drawn)} figures in {folder / 'figures'}, report.md, report.html")
    if others:
        print(f"  {others} with other settings than the preset's: not in the report's figures and verdicts")
    for name, command in figures.missing:
        print(f"  missing: {terminal(name)}: {command}")
    if judged:
        files.write_text(folder / "verdicts.csv", verdict_tables.to_csv(judged))
    for source, of_source in shown.items():
        print(f"verdicts at the preset {preset}{source and ' from the '}{source} (mean over the seeds, 95% interval):")
        print(verdict_tables.to_text(of_source))
    for of_claim in screened:
        print(screening_tables.to_text(of_claim))
    return found_while_drawing


if __name__ == "__main__":
    run(main, sys.argv[1:])

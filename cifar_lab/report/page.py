"""report.md: everything that a preset's runs say, on one page."""

from collections.abc import Mapping, Sequence
from urllib.parse import quote

from cifar_lab.escape import code, markdown
from cifar_lab.figures.style import Figures, seeds_text
from cifar_lab.report import screening, screening_tables, verdict_tables, verdicts
from cifar_lab.run_folder.reader import Run, report_runs

VERDICTS_ARE_READ = """\
Measured: the mean over the seeds, paired by seed, with its 95% interval in brackets: Student's t, of the logarithms for
a ratio, exact limits for a share. A claim is decided by 3 to 10 seeds, if its p-value is at most the level that keeps
false verdicts under 5% over all claims of the preset and over looking after each seed (Holm; Pocock); "plain" is what
5% without this correction would say. With one or two seeds only the sign is told. A claim about a regime that the
preset's runs do not reach is not decided. "Final" is the mean test accuracy over the last tenth of the epochs, at least
three. Fluctuation is the standard deviation of the epoch-to-epoch differences of test accuracy over the last half of
the run, divided by the square root of 2. Spikes and bands are defined in `cifar_lab/measures`, all effects in
`cifar_lab/report/claims.py`; intervals over test images are a paired bootstrap."""
RUNS_ARE_READ = """\
Test accuracy: final is the mean over the last tenth of the epochs, at least three; last is the last epoch's. Seconds
are training time; the time of runs trained in lockstep is shared among them."""


def report_text(
    preset: str, runs: Sequence[Run], figures: Figures, judged: Mapping[str, Sequence[verdicts.Verdict]],
    screened: Sequence[screening.Screening] = (),
) -> str:  # fmt: skip
    """The content of report.md: machine, verdicts, effects of switches, figures, runs, and what is missing.

    judged: verdicts by what the runs behind them are called; "" for the user's own.
    """
    lines = (f"{name}: {value}" if name else value for name, value in provenance(runs))
    origin = "\n".join(f"- {markdown(line)}" for line in lines)
    parts = [f"# Results at the preset `{preset}`", origin]
    for source, of_source in judged.items():
        parts += [f"## Verdicts{source and ' from the '}{source}", verdict_tables.to_markdown(of_source)]
    if judged:
        parts += [VERDICTS_ARE_READ, "The same numbers and each seed's: [verdicts.csv](verdicts.csv)."]
    for of_claim in screened:
        parts += [f"## Switches of `{of_claim.claim.id}`", screening_tables.to_markdown(of_claim)]
    if screened:
        parts.append(screening_tables.ARE_READ)
    parts.append("## Figures")
    for stem, caption in figures.drawn:
        image, text = f"figures/{quote(stem.name)}", markdown(caption)
        parts.append(f"![{text}]({image}.png)\n\n{text} ([SVG]({image}.svg))")
    parts += ["## Runs", _table_of_runs(preset, runs), RUNS_ARE_READ]
    if figures.missing:
        lines = [f"- {markdown(name)}: {code(command)}" for name, command in figures.missing]
        parts += ["## Missing", "Figures without runs, with the command that trains them:", "\n".join(lines)]
    if figures.errors:
        parts += ["## Not readable", "\n".join(f"- {code(error)}" for error in figures.errors)]
    return "\n\n".join(parts) + "\n"


def provenance(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """Machine, precision, versions, commit and seeds, each with every value that occurs: (name, text)."""

    def each(key: str) -> str:
        environments = [e for run in runs for e in (*run.earlier_environments, run.environment)]
        return ", ".join(dict.fromkeys(environment.get(key) or "not known" for environment in environments))

    minutes = sum(run.summary["train_seconds"] for run in runs if run.summary) / 60
    return [
        ("machine", f"{each('device')}; {each('platform')}"),
        ("precision", f"{each('precision')}; PyTorch {each('torch')}; Python {each('python')}"),
        ("commit", each("commit")),
        ("seeds", seeds_text(runs)),
        ("", f"{len(runs)} runs, {minutes:,.1f} minutes of training"),
    ]


def _table_of_runs(preset: str, runs: Sequence[Run]) -> str:
    head, *rows = rows_of_runs(preset, runs)
    lines = [f"| {' | '.join(head)} |", "|---|" + "---:|" * 6 + "---|---|"]
    lines += [f"| {' | '.join(row)} |" for row in (map(markdown, row) for row in rows)]
    return "\n".join(lines)


def rows_of_runs(preset: str, runs: Sequence[Run]) -> list[tuple[str, ...]]:
    """The names of the columns, and a row per run: the report's in the order of its experiments, then all others."""
    sources = ([run for run in runs if run.published == published] for published in (False, True))
    ordered = [r for source in sources for by_seed in report_runs(source, preset).values() for r in by_seed.values()]
    ordered = list(dict.fromkeys([*ordered, *runs]))
    rows = [("run", "epochs", "final (%)", "last (%)", "parameters", "seconds", "images/s", "device", "")]
    for run in ordered:
        accuracy, summary = run.column("test_accuracy"), run.summary or {}
        whole = run.complete and run.diverged_at_step is None
        rows.append((
            f"{run.model}/{run.name}{' (published)' if run.published else ''}",
            str(run.epochs_done) if whole else f"{run.epochs_done} of {run.epochs_planned}",
            _shown(run.final_accuracy if whole else None, ".2f"),
            _shown(accuracy[-1] if len(accuracy) else None, ".2f"),
            _shown(summary.get("parameters"), ","),
            _shown(summary.get("train_seconds"), ",.0f"),
            _shown(summary.get("images_per_second"), ",.0f"),
            run.environment["device"] or "not known",
            "; ".join([run.state] * bool(run.state) + _validated(run)),
        ))  # fmt: skip
    return rows


def _validated(run: Run) -> list[str]:
    """What a run's accuracies are of, if not of the test images, and its test accuracy."""
    if run.held_out == "test":
        return []
    tested = (run.summary or {}).get("test_accuracy")
    return ["on validation images", *([] if tested is None else [f"test accuracy {tested:.2f}%"])]


def _shown(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)

"""The measurements of bench.bench as a table: medians and ranges over rounds, ratios taken within each round."""

from collections.abc import Callable

from bench import output
from bench.timing import spread

MODES = ("classic", "alone", "lockstep")
OTHERS = 3  # networks beside the first that are measured alone


def _ratio(above: float | None, below: float | None) -> float | None:
    return above / below if above is not None and below else None


def summary(records: list[dict]) -> list[dict]:
    """One row per model and width."""
    cases: dict[tuple[str, float], list[dict]] = {}
    for record in records:
        of_case = cases.setdefault((record["model"], record["width"]), [])
        if record["mode"] != "failed":
            of_case.append(record)
    return [{"model": model, "width": width, **_row(of_case)} for (model, width), of_case in cases.items()]


def _row(measured: list[dict]) -> dict:
    numbers = sorted({r["round"] for r in measured})
    by_mode = {(r["round"], r["mode"]): r for r in measured}
    flops = next((r["flops_per_training_image"] for r in measured if "flops_per_training_image" in r), None)
    # The best of the rounds' matrix products: one that was disturbed must not make the networks look good.
    matmul = max((r["matmul_flops_per_second"] for r in measured), default=None)
    limit = matmul / flops if matmul and flops else None  # images per second at that rate

    def value(number: int, mode: str, field: str) -> float | None:
        return by_mode.get((number, mode), {}).get(field)

    def ratios(mode: str, above: str, of: Callable[[int], float | None]) -> dict | None:
        return spread([_ratio(value(number, mode, above), of(number)) for number in numbers])

    def columns(mode: str) -> dict:
        return {
            "images_per_second": spread([value(number, mode, "images_per_second") for number in numbers]),
            "ratio_to_classic": ratios(mode, "images_per_second", lambda n: value(n, "classic", "images_per_second")),
            "share_of_matmul_rate": ratios(mode, "images_per_second", lambda n: limit),
            "data_share_of_step": ratios(mode, "batch_seconds", lambda n: value(n, mode, "step_seconds")),
            "peak_bytes": max((r["peak_bytes"] or 0 for r in measured if r["mode"] == mode), default=None),
        }

    def one_after_the_other(number: int) -> float | None:
        first = value(number, "alone", "step_seconds")
        others = [r["step_seconds"] for r in measured if (r["round"], r["mode"]) == (number, "another alone")]
        return first + sum(others) if first is not None and len(others) == OTHERS else None

    return {
        "rounds": len(numbers),
        "flops_per_training_image": flops,
        "matmul_flops_per_second": matmul,
        **{mode: columns(mode) for mode in MODES},
        "four_one_after_the_other_over_lockstep": spread(
            [_ratio(one_after_the_other(n), value(n, "lockstep", "step_seconds")) for n in numbers]
        ),
    }


def markdown(about: dict, rows: list[dict], records: list[dict]) -> str:
    """The result file that people read."""
    number, times, share = ",.0f", ".2f", ".0f"
    speed, spent = [], []
    for row in rows:
        case = [row["model"], f"{row['width']:g}"]
        classic_, alone, four = row["classic"], row["alone"], row["lockstep"]
        speed.append([
            *case, *(output.shown(m["images_per_second"], number) for m in (classic_, alone)),
            output.shown(alone["ratio_to_classic"], times), output.shown(four["images_per_second"], number),
            output.shown(four["ratio_to_classic"], times),
            output.shown(row["four_one_after_the_other_over_lockstep"], times), str(row["rounds"]),
        ])  # fmt: skip
        modes = (classic_, alone, four)
        spent.append([
            *case, *(output.shown(m["share_of_matmul_rate"], share, 100) for m in modes),
            *(output.shown(m["data_share_of_step"], ".1f", 100) for m in modes),
            *(f"{m['peak_bytes'] / 2**20:,.0f}" if m["peak_bytes"] else "-" for m in modes),
        ])  # fmt: skip
    rates = spread([row["matmul_flops_per_second"] for row in rows])
    failed = [f"- {r['model']}, width {r['width']:g}, round {r['round'] + 1}: {r['error']}\n" for r in records
              if r["mode"] == "failed"]  # fmt: skip
    said = sorted({line for r in records for line in r.get("said", ())})
    return "".join([
        f"# Benchmark\n\n{output.header(about)}\n\n",
        f"Matrix product: {output.shown(rates, '.3g', 1e-12)} TFLOP/s. Batch {about['batch_size']}, "
        f"{about['images']:,} training images, {about['workers']} loader workers in the classic loop. "
        "Medians over rounds, in brackets the range. bench/README.md explains the columns.\n\n## Speed\n\n",
        output.markdown_table(
            ["model", "width", "classic, images/s", "ours alone, images/s", "ratio", "four in lockstep, images/s",
             "ratio", "four one after the other / lockstep", "rounds"], speed,
        ),
        "\n## Where a step's time and memory go\n\nEach for the classic loop, ours alone, and four in lockstep.\n\n",
        output.markdown_table(
            ["model", "width", "matmul %: classic", "alone", "four", "data %: classic", "alone", "four",
             "peak MiB: classic", "alone", "four"], spent,
        ),
        *(["\n## Said by the engine\n\n", *(f"- {line}\n" for line in said)] if said else []),
        *(["\n## Failed\n\n", *failed] if failed else []),
    ])  # fmt: skip

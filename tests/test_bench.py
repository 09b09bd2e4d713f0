"""The benchmarks' pieces run and write their tables. Nothing here looks at how long anything takes."""

import json
from argparse import Namespace

import pytest
import torch

from bench import (
    accuracy,
    bench,
    coordinates,
    gpu_check,
    ours,
    output,
    profile_step,
    program,
    recipe,
    report_slice,
    scaling,
    table,
    timing,
)
from cifar_lab.data import cache
from cifar_lab.data.cache import DataError
from cifar_lab.experiments import EXPERIMENTS
from cifar_lab.run_folder.reader import read_runs, report_runs
from cifar_lab.settings import ALL_PRESETS, PRESETS, Settings
from cifar_lab.training import device, group

ABOUT = {"device": "cpu: made up", "precision": "fp32", "torch": "2", "python": "3", "platform": "Linux",
         "commit": None, "data": "random images"}  # fmt: skip


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """One thread, 200 random images in the place of CIFAR-10, and no measuring of matrix products."""
    data = program.random_images(train=200, test=100)
    monkeypatch.setattr(program, "load", lambda *_, **__: data)
    for module, name in ((bench, "measure_matmul_rate"), (report_slice, "measure_matmul_rate"), (group, "matmul_rate")):
        monkeypatch.setattr(module, name, lambda device: 1e12)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("model", ["vgg_a_bn", "inception_res"])
def test_a_round_of_the_table(model, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(bench, "BATCH", 20)
    flags = ["--worker", "--device", "cpu", "--models", model, "--widths", "0.03", "--images", "200"]
    assert bench.main([*flags, "--rounds", "1", "--piece", "0.01", "--seconds", "1"]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    modes = ["classic", "alone", "another alone", "another alone", "another alone", "lockstep"]
    assert [r["mode"] for r in records] == modes, records
    for record in records:
        assert record["images_per_second"] > 0 and record["batch_seconds"] > 0
    (row,) = table.summary(records)
    assert row["model"] == model and row["rounds"] == 1
    assert row["alone"]["ratio_to_classic"]["median"] == pytest.approx(
        records[1]["images_per_second"] / records[0]["images_per_second"]
    )
    alone = sum(r["step_seconds"] for r in records[1:5])
    assert row["four_one_after_the_other_over_lockstep"]["median"] == pytest.approx(alone / records[5]["step_seconds"])
    about = ABOUT | {"images": 200, "workers": 2, "batch_size": 20}
    output.write(tmp_path, "made-up", {"about": about, "table": [row]}, table.markdown(about, [row], records))
    assert f"| {model} | 0.03 |" in (tmp_path / "made-up.md").read_text()
    assert json.loads((tmp_path / "made-up.json").read_text())["table"] == [row]


def test_the_engine_trains_epoch_after_epoch():
    flags = ["--width", 0.03, "--device", "cpu", "--train-size", 50, "--batch-size", 20]
    module, settings = ours.parse(ours.command("vgg_a_bn", slice(1, 3), *flags))
    with ours.lockstep(settings, program.load()) as group:
        assert [(run.config.model, run.config.lr) for run in group.runs] == [("vgg_a_bn", 1e-4), ("vgg_a_bn", 5e-4)]
        steps = ours.train(group, module, warm_up=1)
        # Two networks, batches of 20, 20 and 10; the first epoch is broken off after a step.
        assert [next(steps) for _ in range(6)] == [40, 40, 40, 20, 40, 40]
        assert [(run.position.epochs, run.position.step) for run in group.runs] == [(2, 1), (2, 1)]


def test_a_measurement_that_fails_does_not_stop_the_others(monkeypatch, capsys):
    monkeypatch.setattr(bench.Bench, "classic", lambda *_: 1 / 0)
    monkeypatch.setattr(bench, "BATCH", 20)
    flags = ["--worker", "--device", "cpu", "--models", "vgg_a", "--widths", "0.03", "--images", "40"]
    bench.main([*flags, "--rounds", "1", "--piece", "0.01", "--seconds", "1"])
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [r["mode"] == "failed" for r in records] == [True, False, False, False, False, False]
    assert records[0]["error"] == "ZeroDivisionError: division by zero"
    text = table.markdown(ABOUT | {"images": 40, "workers": 2, "batch_size": 20}, table.summary(records), records)
    assert "## Failed" in text


def test_the_slice_of_the_report_covers_all_of_it(capsys):
    measured = {}
    for number, kind in enumerate(report_slice.kinds()):
        flags = "--width 0.03 --train-size 60 --test-size 20 --batch-size 30"
        assert report_slice.main(["--worker", str(number), "--device", "cpu", "--epochs", "2", "--flags", flags]) == 0
        measured[kind] = json.loads(capsys.readouterr().out) | {"start_seconds": 5.0}
        assert len(measured[kind]["epochs"]) == 2
        assert measured[kind]["networks"] == kind[1]
        measured[kind]["epoch_seconds"]["median"] = 0.5
    total = report_slice.estimate(measured)
    assert total["runs"] == 17
    assert total["seconds"] == pytest.approx(sum(5.0 + 0.5 * (e.epochs - 1) for e in EXPERIMENTS))
    text = report_slice.markdown(ABOUT | {"epochs": 2, "flags": ""}, measured, total)
    assert all(f"`{e.command()}`" in text for e in EXPERIMENTS)
    measured[kind] = {"error": "no time left"}
    assert report_slice.estimate(measured) is None
    assert "no time left" in report_slice.markdown(ABOUT | {"epochs": 2, "flags": ""}, measured, None)


def test_accuracy(monkeypatch, tmp_path, capsys):
    for presets in (PRESETS, Settings.presets, ALL_PRESETS):
        monkeypatch.setitem(presets, "quick", {"width": 0.03, "train_size": 200, "test_size": 50, "epochs": 2})
    flags = ["--models", "vgg_a_bn", "inception", "--seeds", "3", "4", "--device", "cpu", "--output", str(tmp_path)]
    assert accuracy.main(flags) == 0
    (written,) = tmp_path.glob("*.json")
    finals = json.loads(written.read_text())["final_accuracy"]
    assert list(finals) == ["vgg_a_bn", "inception"]
    for sides in finals.values():
        assert {side: len(values) for side, values in sides.items()} == {"classic": 2, "fp32": 2, "bf16": 2}
        assert all(0 <= value <= 100 for values in sides.values() for value in values)
    assert len(capsys.readouterr().out.splitlines()) == 2 * 2 * 3 + 1
    text = written.with_suffix(".md").read_text()
    assert "width 0.03, train size 200" in text and text.count("(n = 2)") == 6


@pytest.mark.parametrize("module", [bench, scaling, report_slice])
@pytest.mark.parametrize("pays", [True, False])
def test_all_processes_of_a_program_have_the_precision_that_its_header_names(module, pays, monkeypatch, tmp_path):
    """A measurement decides it, and would decide it for each process anew."""
    asked, headers = [], []
    monkeypatch.setattr(device, "bf16_pays", lambda: pays)
    monkeypatch.setattr(program, "run_worker", lambda name, argv, *_: asked.append(argv) or "not run")
    monkeypatch.setattr(output, "header", lambda about: headers.append(about["precision"]) or "")
    monkeypatch.setattr(program, "run", lambda words, *_: {"status": 0, "seconds": 0.0, "last_lines": []})
    module.main(["--device", "cpu", "--output", str(tmp_path), *(["--no-scaling"] if module is bench else [])])
    chosen = "bf16" if pays else "fp32"
    assert set(headers) == {chosen} and asked
    for argv in asked:
        last = len(argv) - 1 - argv[::-1].index("--precision")
        assert argv[last + 1] == chosen


def test_difference_of_accuracies_by_hand():
    # Means 3 and 7, both variances 1, n = 3: the standard error is sqrt(2 / 3), t at 4 degrees of freedom 2.776.
    mean, half = accuracy.difference([2.0, 3.0, 4.0], [6.0, 7.0, 8.0])
    assert (mean, half) == (pytest.approx(4.0), pytest.approx(2.776 * (2 / 3) ** 0.5, rel=1e-3))
    # The pairs differ by 4, 5 and 3: the standard error is 1 / sqrt(3), t at 2 degrees of freedom 4.303.
    mean, half = accuracy.difference([2.0, 3.0, 4.0], [6.0, 8.0, 7.0], paired=True)
    assert (mean, half) == (pytest.approx(4.0), pytest.approx(4.303 / 3**0.5, rel=1e-3))
    assert accuracy.difference([2.0], [6.0]) is None


def test_scaling():
    args = program.parser("bench.scaling", "").parse_args(["--device", "cpu"])
    args.images, args.width, args.epochs, args.memory_epochs = 160, 0.03, 1, 2
    measured = {"epochs": scaling.epoch_times(args), "memory": scaling.memory(args), "start": {"error": "left out"}}
    assert [row["images"] for row in measured["epochs"]["rows"]] == [20, 40, 80, 160]
    assert [row["epoch"] for row in measured["memory"]["rows"]] == [1, 2]
    text = scaling.markdown(ABOUT | {"width": 0.03}, measured)
    assert "| 160 |" in text and "left out" in text


def test_made_up_logs_are_those_of_every_run_of_the_report(tmp_path):
    steps = [scaling.write_logs(experiment, str(tmp_path), epochs=2) for experiment in EXPERIMENTS]
    assert sum(steps) == 17 * 2 * 500
    runs, errors = read_runs(tmp_path, "report")
    assert errors == [] and len(runs) == 17
    assert len(report_runs(runs, "report")) == 17
    assert all(run.complete and run.epochs_done == 2 and len(run.losses) == 1000 for run in runs)


def test_made_up_runs_of_seeds_are_listed_and_drawn():
    args = Namespace(seed_counts=[2, 3])
    measured = {"seeds": scaling.seeds(args)}
    rows = measured["seeds"]["rows"]
    assert [(row["seeds"], row["runs"]) for row in rows] == [(2, 6), (3, 9)]
    assert all(row[f"{name}_bytes"] > 2**26 and row[f"{name}_seconds"] > 0 for row in rows for name in ("list", "plot"))
    assert "| 3 | 9 |" in scaling.markdown(ABOUT | {"width": 0.03}, measured)


def test_coordinates(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(coordinates, "WIDTHS", (0.03, 1.0))
    monkeypatch.setattr(coordinates, "BATCH", 4)
    flags = ["--models", "vgg_a", "--seeds", "3", "--steps", "1", "--device", "cpu", "--output", str(tmp_path)]
    assert coordinates.main(flags) == 0
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".md", ".png", ".svg"}
    written = json.loads(next(tmp_path.glob("*.json")).read_text())["changes"]["vgg_a"]
    one, transfer = written["one rate"], written["width transfer"]
    assert len(one) == len(transfer) == 11
    assert all(a[1] == b[1] and a[0] != b[0] for a, b in zip(one.values(), transfer.values(), strict=True))
    a, b = one["head.0"], transfer["head.0"]
    row = [f"{a[0]:.3f}", f"{a[1]:.3f}", f"{max(a) / min(a):.2f}", f"{b[0]:.3f}", f"{max(b) / min(b):.2f}"]
    assert f"| head.0 | {' | '.join(row)} |" in next(tmp_path.glob("*.md")).read_text()
    assert "vgg_a          largest spread" in capsys.readouterr().out


def test_profile(capsys):
    assert profile_step.main(["--models", "vgg_a", "--width", "0.03", "--steps", "1", "--device", "cpu"]) == 0
    assert "| `aten::convolution_backward` |" in capsys.readouterr().out


def test_a_part_of_the_gpu_check_that_fails_or_hangs_is_recorded():
    lines = []
    results = {
        "good": program.run(["-c", "print('done')"], 60, lines.append),
        "bad": program.run(["-c", "raise SystemExit('no such kernel')"], 60),
        "slow": program.run(["-c", "import time; print('begun', flush=True); time.sleep(60)"], 0.5),
        "late": {},
    }
    assert results["good"]["status"] == 0 and results["good"]["last_lines"] == ["done"] and lines == ["done\n"]
    assert results["bad"]["status"] == 1 and results["bad"]["last_lines"] == ["no such kernel"]
    assert results["slow"]["killed"]
    text = gpu_check.markdown(ABOUT, results, "made-up")
    assert "| slow | killed at its time limit |" in text and "| late | left out, no time |" in text


def test_what_a_worker_writes_and_why_it_fails(tmp_path):
    (tmp_path / "lines").write_text('{"a": 1}\n[2]\n{"b": 3}\n')
    kept = []
    # A module that prints JSON, one value per line, and fails on a file that is not there.
    argv = ["--json-lines", "--compact"]
    assert program.run_worker("json.tool", [*argv, str(tmp_path / "lines")], 60, kept.append) == ""
    assert kept == [{"a": 1}, {"b": 3}]
    error = program.run_worker("json.tool", [*argv, str(tmp_path / "missing")], 60, kept.append)
    assert error.startswith("exit status ") and "missing" in error and len(kept) == 2


def test_random_images_stand_in_for_the_gpu_check(monkeypatch, capsys):
    def missing(data_dir, download):
        assert not download
        raise DataError("no CIFAR-10 here")

    monkeypatch.setattr(program, "load", missing)
    args = program.parser("bench.gpu_check", "").parse_args(["--device", "cpu"])
    data, _ = program.data_and_device(args, required=False)
    assert data.name == "random images" and args.made_up_data
    assert "no CIFAR-10 here" in capsys.readouterr().out
    assert program.shared_flags(args)[-1] == "--made-up-data"


@pytest.mark.parametrize(
    "module, flag",
    [
        (accuracy, "--seeds"),
        (bench, "--seconds"),
        (coordinates, "--steps"),
        (gpu_check, "--seconds"),
        (profile_step, "--steps"),
        (report_slice, "--seconds"),
        (scaling, "--width"),
    ],
)
def test_bad_flags_end_with_one_line(module, flag, capsys, tmp_path):
    for flags in (["--device", "abacus"], [flag, "soon"]):
        with pytest.raises(SystemExit) as ended:
            module.main([*flags, "--output", str(tmp_path / "out")])
        assert ended.value.code == 2
        assert len(capsys.readouterr().err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_steps_are_counted_and_the_device_waited_for():
    waits = []
    took = timing.walk(iter([7, 8, 9, 10, 11]), lambda: waits.append(1), least=3, seconds=0, together=2)
    assert took.steps == 4 and took.images == 7 + 8 + 9 + 10
    assert len(waits) == 3  # before the clock starts, and after every two steps


def test_spread():
    assert timing.spread([3.0, None, 1.0, 2.0]) == {"median": 2.0, "min": 1.0, "max": 3.0, "n": 3}
    assert timing.spread([]) is None
    assert output.shown(timing.spread([1.0, 2.0, 4.0]), ".1f") == "2.0 (1.0 to 4.0)"
    assert output.shown(None, ".1f") == "-"


# --- Today's recipe ---------------------------------------------------------------------------------------------------


def test_the_gains_of_ablations_by_hand():
    """On equal seeds: -2 and -3, 1 and 0 and 2, of which the deviation is ((0.5 + 2) / 3) ** 0.5 with 3 degrees of
    freedom, whose t is 3.182; BatchNorm's row does not train."""
    found = {
        "once": {"seeds": [2], "validation": [86.5]},
        "nothing": {"seeds": [0, 1, 2, 3], "validation": [88.0, 90.0, 86.0, 70.0]},
        "without it": {"seeds": [0, 1], "validation": [86.0, 87.0]},
        "with more": {"seeds": [1, 0, 2], "validation": [90.0, 89.0, 88.0]},
        "without BatchNorm": {"seeds": [0, 1], "validation": [10.0, 10.0]},
        "elsewhere": {"seeds": [7], "validation": [99.0]},
    }
    got = recipe.compared(found)
    assert got.keys() == found.keys() - {"nothing", "elsewhere"}
    half = 3.18245 * (2.5 / 3) ** 0.5
    assert got["without it"] == pytest.approx((-2.5, half / 2**0.5), rel=1e-4)
    assert got["with more"] == pytest.approx((1.0, half / 3**0.5), rel=1e-4)
    assert got["once"] == pytest.approx((0.5, half), rel=1e-4)
    assert got["without BatchNorm"][0] == -79
    assert recipe.compared({"once": found["once"], "nothing": found["nothing"]}) == {}
    assert recipe.compared({"once": found["once"], "with more": found["with more"]}) == {}
    assert recipe.spread([88.0, 89.0]) == "88.50 ± 6.35 (n = 2)" and recipe.spread([]) == "-"


def test_tables_of_the_recipe():
    about = dict.fromkeys(("device", "precision", "torch", "python", "platform", "commit", "data"), "-")
    nothing = {"command": "python MyVGG.py", "seeds": [0, 3], "validation": [88.0, 89.0], "test": [87.0, 88.0]}
    nothing["seconds"] = [[250.0, 20.0], [260.0, 24.0]]
    without = nothing | {"command": "python MyVGG.py --ema 0", "validation": [86.0, 88.0]}
    rows = recipe.markdown("ablation", about, {"nothing": nothing, "without it": without}).splitlines()
    assert "| nothing | `python MyVGG.py` | 0 3 | 88.00, 89.00 | 88.50 | - |" in rows
    # 12.706 times the root of 0.5 / 2
    assert "| without it | `... --ema 0` | 0 3 | 86.00, 88.00 | 87.00 | -1.50 [-7.85, +4.85] |" in rows
    last = recipe.markdown("lengths", about, {"5 minutes": nothing}).splitlines()[-1]
    assert last == "| 5 minutes | `python MyVGG.py` | 0 3 | 88.00, 89.00 | 88.50 ± 6.35 (n = 2) | 255 | 22 |"
    last = recipe.markdown("budgets", about, {"5 minutes": nothing}).splitlines()[-1]
    assert last == "| 5 minutes | `python MyVGG.py` | 0 3 | 87.00, 88.00 | 87.50 ± 6.35 (n = 2) | 255 | 22 |"


@pytest.mark.parametrize("part", recipe.PARTS[1:])
def test_the_commands_of_the_recipe_are_runs_of_their_own(part):
    """All rows of a part are other settings or lengths, and the first of the ablation lacks none that is left out."""
    found = recipe.commands(part)
    asked = {name: ours.parse(command.split())[1] for name, command in found.items()}
    runs = {name: (*settings.runs(0), settings.epochs) for name, settings in asked.items()}
    assert len({repr(run) for run in runs.values()}) == len(runs)
    if part == "ablation":
        for name, (config, _) in runs.items():
            assert config.validation_size == 5000 and (name == "nothing") == (config == runs["nothing"][0])


def test_recipe(monkeypatch, tmp_path, capsys, synthetic_data):
    """Curves with every side trained, then the tables: what is complete is not trained again."""
    small = "--bn --width 0.03 --train-size 120 --test-size 40 --epochs 2 --batch-size 30"
    monkeypatch.setattr(recipe, "MODERN", f"MyVGG.py {small} --schedule one-cycle --augment flip-crop --optimizer muon")
    monkeypatch.setattr(recipe, "CANDIDATE", "")
    monkeypatch.setattr(recipe, "CURVES", {"the report's recipe": f"MyVGG.py {small}", "today's": recipe.MODERN})
    monkeypatch.setattr(recipe, "VALIDATION", "--validation-size 20")
    monkeypatch.setattr(recipe, "LEFT_OUT", {"flips": "--augment none"})
    monkeypatch.setattr(recipe, "ADDED", {"no average": "--ema 0"})
    monkeypatch.setattr(program, "load", cache.load)
    flags = ["--seeds", "0", "--device", "cpu", "--output", str(tmp_path / "out"), "--data-dir", str(synthetic_data)]
    flags += ["--results", str(tmp_path / "results")]
    assert recipe.main([*flags, "--parts", "curves"]) == 0
    (written,) = tmp_path.glob("out/*-recipe-curves.json")
    found = json.loads(written.read_text())["curves"]
    assert list(found) == ["the report's recipe", "today's", recipe.TUTORIAL]
    for of in found.values():
        ((first, second),) = of["curves"]
        assert 0 < first[0] < second[0] and 0 <= first[1] <= 100 and len(of["test"]) == 1
    assert written.with_suffix(".png").stat().st_size > 10_000
    runs = {path.parent.name for path in tmp_path.rglob("summary.json")}
    assert len(runs) == 2
    assert recipe.main([*flags, "--parts", "ablation", "--draw"]) == 0
    assert {path.parent.name for path in tmp_path.rglob("summary.json")} == runs
    (written,) = tmp_path.glob("out/*-recipe-ablation.json")
    found = json.loads(written.read_text())["ablation"]
    assert list(found) == ["nothing", "with no average"]  # of the variant without flips no run is complete
    assert found["nothing"]["validation"] == found["with no average"]["validation"]
    with pytest.raises(SystemExit):
        recipe.main([*flags, "--parts", "budgets", "--draw"])
    assert "--draw: no run of budgets is complete in" in capsys.readouterr().err
    assert not list(tmp_path.glob("out/*-recipe-budgets.*"))
    (config,) = {path for path in tmp_path.rglob("config.json") if "muon" in path.parent.name}
    config.write_text(config.read_text().replace('"weight_decay": 0.0001', '"weight_decay": 0.5'))
    with pytest.raises(SystemExit):
        recipe.main([*flags, "--parts", "ablation", "--draw"])
    assert "its settings belong to the folder" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        recipe.main([*flags, "--draw"])
    assert "--draw: not with --parts curves" in capsys.readouterr().err

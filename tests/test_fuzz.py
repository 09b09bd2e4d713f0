"""What `make fuzz` notices: faults that are put into the programs; and that it finds nothing where nothing is wrong."""

import os
import time

import pytest

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs POSIX processes and signals")

if os.name == "posix":
    import fuzz
    from synthetic import write_synthetic
    from trainings import with_small_network

    from cifar_lab.run_folder import files, reader


def fails() -> None:
    """The reader of run folders has a fault."""
    reader.read_summary = lambda path: {}["epochs"]


def stands_still() -> None:
    """It never ends."""
    reader.read_summary = lambda path: time.sleep(60)


def drops_a_row() -> None:
    """Whatever is appended to a log lacks its first row."""
    append = files.append
    with_small_network()
    files.append = lambda path, text, *more: append(path, text[text.index("\n") + 1 :], *more)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    work = tmp_path_factory.mktemp("fuzz")
    return fuzz.Prepared.make(write_synthetic(work / "data", train=130, test=100), work)


def test_a_traceback_is_noticed():
    (kind, text), *_ = fuzz.draw_folders(0, seed=0, prepare=fails).wrong
    assert kind == "traceback" and "KeyError: 'epochs'" in text


def test_a_hang_is_noticed(monkeypatch):
    monkeypatch.setattr(fuzz, "LIMIT", 2.0)
    (kind, text), *_ = fuzz.draw_folders(0, seed=0, prepare=stands_still).wrong
    assert kind == "hang" and "plot_results.py" in text


def test_a_lost_row_is_noticed(prepared):
    found = [kind for number in range(4) for kind, _ in fuzz.resume(number, 0, prepared, prepare=drops_a_row).wrong]
    assert "lost row" in found


def test_without_a_fault_nothing_is_wrong(prepared):
    items = [fuzz.draw_folders(0, seed=0), *(fuzz.resume(number, 0, prepared) for number in range(4))]
    assert [item.wrong for item in items] == [[]] * len(items)


def test_the_last_result_is_a_table():
    items = [
        fuzz.Item("folders", 0, 8, []), fuzz.Item("folders", 1, 5, [("hang", "a"), ("lost row", "b")]),
        fuzz.Item("kills", 0, 3, [("traceback", "c")]),
    ]  # fmt: skip
    about = {
        "device": "cpu: a processor, 2 threads", "precision": "fp32", "torch": "2.14", "python": "3.11",
        "platform": "Linux", "commit": "abc", "data": "made-up images", "date": "2026-11-26", "seed": 3,
        "fraction": 0.5, "seconds": 61,
    }  # fmt: skip
    assert fuzz.report(items, about) == (
        "# Fuzzing: 3 things wrong\n\n2026-11-26, 61 s, cpu: a processor, 2 threads; precision fp32; PyTorch 2.14, "
        "Python 3.11, Linux; commit abc; made-up images. Seed 3, fraction 0.5 of `make fuzz`; see tests/fuzz.py.\n\n"
        "| part | tried | tracebacks | hangs over 20 s | lost rows | other |\n| --- | --- | --- | --- | --- | --- |\n"
        "| folders | 13 | 0 | 1 | 1 | 0 |\n| kills | 3 | 1 | 0 | 0 | 0 |\n"
    )


def test_a_training_is_paused_where_it_writes(prepared):
    """While another one takes its folders over; neither loses a row."""
    items = [fuzz.pause(number, 0, prepared) for number in (0, 9)]
    assert [(item.tried, item.wrong) for item in items] == [(1, [])] * 2

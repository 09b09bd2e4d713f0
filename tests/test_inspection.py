"""What --evaluate shows of a trained network: calibration, filters, mistakes, predictions.csv; other images."""

import csv
import hashlib
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from commands import count, run, table
from drawn import drawn_by, extents, texts
from matplotlib import pyplot as plt
from PIL import Image

import MyVGG
from cifar_lab.data.cache import load
from cifar_lab.figures import inspection
from cifar_lab.measures.calibration import calibration
from cifar_lab.run_folder import checkpoint
from cifar_lab.training import script

torch.set_num_threads(1)

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
TESTS = 200

# --- Calibration ------------------------------------------------------------------------------------------------------


def test_the_expected_calibration_error_by_hand():
    """Four bins of a quarter. The first holds 0.1 and 0.25 (an edge belongs to the bin below it), half of them right:
    a gap of 0.325 over 2 images; the third 0.6, wrong: 0.6 over 1; the last 0.8, 0.9 and 1.0, two right: 0.2333 over
    3; together (0.65 + 0.6 + 0.7) / 6."""
    found = calibration(
        np.array([0.9, 0.1, 0.6, 0.25, 1.0, 0.8]), np.array([True, False, False, True, True, False]), bins=4
    )
    assert found.edges.tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert found.count.tolist() == [2, 0, 1, 3]
    np.testing.assert_allclose(found.accuracy, [0.5, np.nan, 0, 2 / 3])
    np.testing.assert_allclose(found.confidence, [0.175, np.nan, 0.6, 0.9])
    assert found.expected_error == pytest.approx((0.65 + 0.6 + 0.7) / 6)


def test_who_is_right_as_often_as_it_says_has_no_error():
    right = np.arange(1000) % 10 < 7
    assert calibration(np.full(1000, 0.7), right).expected_error == pytest.approx(0)
    assert calibration(np.full(1000, 1.0), right).expected_error == pytest.approx(0.3)
    assert calibration(np.zeros(10), np.zeros(10, bool)).count[0] == 10


# --- Evaluation -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(synthetic_data, tmp_path_factory) -> Path:
    results = tmp_path_factory.mktemp("results")
    sizes = {"epochs": 2, "width": 0.05, "train_size": 1000, "test_size": TESTS, "batch_size": 50}
    (folder,) = run("MyVGG.py --bn --lrs 1e-3 --no-augment", synthetic_data, results, **sizes).values()
    return folder


def evaluated(folder, data, *more, into=""):
    words = ["--evaluate", folder, "--data-dir", data, "--device", "cpu", *more]
    return drawn_by(MyVGG.main, words, folder / into)


def rows_of(file: Path) -> list[dict[str, str]]:
    with open(file, encoding="utf-8", newline="") as opened:
        return list(csv.DictReader(opened))


@pytest.fixture(scope="module")
def probabilities(trained, synthetic_data) -> np.ndarray:
    """(TESTS, 10), by hand."""
    network, _ = checkpoint.load_model(trained)
    images = torch.from_numpy(load(synthetic_data).test_images[:TESTS]).permute(0, 3, 1, 2)
    with torch.no_grad():
        return F.softmax(network(images / 255 * 2 - 1).double(), 1).numpy()


def test_predictions_are_written_and_the_worst_are_shown(trained, synthetic_data, probabilities):
    drawn = evaluated(trained, synthetic_data)
    labels = load(synthetic_data).test_labels[:TESTS]
    taken, sure = probabilities.argmax(1), probabilities.max(1)
    rows = rows_of(trained / "predictions.csv")
    assert [row["image"] for row in rows] == [str(i) for i in range(TESTS)]
    assert [row["true_class"] for row in rows] == [CLASSES[i] for i in labels]
    assert [row["predicted_class"] for row in rows] == [CLASSES[i] for i in taken]
    np.testing.assert_allclose([float(row["probability"]) for row in rows], sure, atol=1e-5)
    truth = probabilities[np.arange(TESTS), labels]
    np.testing.assert_allclose([float(row["probability_of_true_class"]) for row in rows], truth, atol=1e-5)
    assert sum(taken == labels) == count(table(trained / "epochs.csv")["test_accuracy"][-1], TESTS)

    assert set(drawn.figures) == {"confusion", "mistakes", "reliability", "filters"}
    wrong = sorted((i for i in range(TESTS) if taken[i] != labels[i]), key=lambda i: -sure[i])[:24]
    assert len(wrong) == 24
    shown = [ax for ax in drawn.figures["mistakes"].axes if ax.images]
    for ax, i in zip(shown, wrong, strict=True):
        assert ax.get_title() == f"{CLASSES[labels[i]]}, taken for\n{CLASSES[taken[i]]}, {100 * sure[i]:.0f}%"
        np.testing.assert_array_equal(ax.images[0].get_array(), load(synthetic_data).test_images[i])

    measured = calibration(sure, taken == labels)
    bars, counts = drawn.figures["reliability"].axes
    np.testing.assert_allclose([b.get_height() for b in bars.patches], np.nan_to_num(measured.accuracy), atol=1e-6)
    assert [b.get_height() for b in counts.patches] == measured.count.tolist()
    error = f"expected calibration error {100 * measured.expected_error:.2f}%"
    assert error in drawn.said and any(error in text for text in texts(drawn.figures["reliability"]))


def test_the_filters_are_those_of_the_first_convolution(trained, synthetic_data):
    """Red, green and blue; a weight of 0 is gray, the largest of a filter is at an end of the scale."""
    weights = checkpoint.read(trained / "checkpoint.pt")["model"]["features.0.weight"].numpy()
    shown = [ax.images[0].get_array() for ax in evaluated(trained, synthetic_data).figures["filters"].axes if ax.images]
    for filtered, image in zip(weights, shown, strict=True):
        expected = 0.5 + filtered.transpose(1, 2, 0) / np.abs(filtered).max() / 2
        np.testing.assert_allclose(image, expected, atol=1e-6)


def test_no_mistakes_and_filters_of_zeros_can_be_drawn(tmp_path):
    assert inspection.draw_mistakes(np.zeros((0, 32, 32, 3), np.uint8), [], tmp_path / "mistakes", title="x")
    assert inspection.draw_filters(np.zeros((2, 3, 3, 3), np.float32), tmp_path / "filters", title="x")


NAME = "vgg_a, adam-lr1e-3-wd1e-4-seed0-leaky_relu-label_smoothing-one-cycle-warmup0.5-epochs1-width0.06-batch50-fp32"
DRAWN = {
    "mistakes": lambda n, to, title: inspection.draw_mistakes(
        np.zeros((n, 32, 32, 3), np.uint8), ["automobile, taken for\nairplane, 100%"] * n, to, title=title
    ),
    "filters": lambda n, to, title: inspection.draw_filters(np.ones((n + 1, 3, 3, 3)), to, title=title),
    "reliability": lambda n, to, title: inspection.draw_reliability(
        calibration(np.linspace(0.1, 1, n + 2), np.arange(n + 2) % 2 == 0), to, title=title
    ),
}


@pytest.mark.parametrize("title", [NAME[:32], NAME])
@pytest.mark.parametrize("count", [0, 1, 3, 24])
@pytest.mark.parametrize("kind", DRAWN)
@pytest.mark.filterwarnings("error")
def test_words_lie_inside_the_page_and_captions_below_their_pictures(kind, count, title, tmp_path, monkeypatch):
    kept = []
    monkeypatch.setattr(inspection, "save", lambda figure, _: kept.append(figure))
    DRAWN[kind](count, tmp_path, title)
    (figure,) = kept
    plt.close(figure)
    extents(figure)
    panels = [(ax.get_window_extent(), ax.title.get_window_extent()) for ax in figure.axes if ax.images]
    for picture, caption in panels if kind == "mistakes" else ():
        assert caption.y1 <= picture.y0 and picture.x0 <= caption.x0 and caption.x1 <= picture.x1
        assert picture.y0 - caption.y1 < 0.1 * picture.height
        assert not any(caption.overlaps(other) for other, _ in panels)
    if panels and count > 1:
        wide = max(picture.x1 for picture, _ in panels) - min(picture.x0 for picture, _ in panels)
        assert wide > 0.45 * figure.bbox.width if kind == "filters" else wide > 0.9 * figure.bbox.width


# --- Other images -----------------------------------------------------------------------------------------------------


@pytest.fixture
def pictures(tmp_path, synthetic_data) -> Path:
    """The test images of some classes, as PNG, in subfolders with their names."""
    data = load(synthetic_data)
    for i in range(TESTS):
        if data.test_labels[i] < 4:
            folder = tmp_path / "mine" / CLASSES[data.test_labels[i]]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(data.test_images[i]).save(folder / f"{i:03}.png")
    return tmp_path / "mine"


def test_other_images(trained, synthetic_data, pictures, probabilities):
    before = {path.name for path in trained.iterdir()}
    into = trained / f"evaluation-mine-{hashlib.sha256(bytes(pictures)).hexdigest()[:8]}"
    drawn = evaluated(trained, synthetic_data, "--data", pictures, into=into.name)
    labels = load(synthetic_data).test_labels[:TESTS]
    of_these = np.flatnonzero(labels < 4)
    right = int((probabilities.argmax(1) == labels)[of_these].sum())
    assert f"their accuracy {100 * right / len(of_these):.2f}%" in drawn.said
    assert re.search(rf"bird +{100 * np.mean(probabilities.argmax(1)[labels == 2] == 2):.2f}%", drawn.said)
    assert re.search(r"^  truck +-  of 0$", drawn.said, re.M)
    assert {path.name for path in trained.iterdir()} - before <= {into.name}
    rows = rows_of(into / "predictions.csv")
    assert len(rows) == len(of_these)
    for row in rows:
        i = int(Path(row["image"]).stem)
        assert row["true_class"] == Path(row["image"]).parent.name == CLASSES[labels[i]]
        assert float(row["probability"]) == pytest.approx(probabilities[i].max(), abs=1e-5)
    assert any("pictures of" in text for text in texts(drawn.figures["confusion"]))


def test_other_images_of_which_some_are_damaged(trained, synthetic_data, pictures, capsys):
    (pictures / "bird" / "bad.png").write_bytes(b"no picture")
    with pytest.raises(SystemExit) as ended:
        script.run(MyVGG.main, ["--evaluate", str(trained), "--device", "cpu", "--data", str(pictures)])
    said = capsys.readouterr()
    assert ended.value.code == 1 and "their accuracy" in said.out
    assert said.err == f"{pictures / 'bird' / 'bad.png'}: not a picture\n"


def test_other_images_that_will_not_do(trained, pictures, capsys, tmp_path):
    (pictures / "zebra").mkdir()
    (tmp_path / "empty").mkdir()
    for folder, complaint in (
        (pictures, "zebra is not a class of the network"), (tmp_path / "empty", "no subfolders"),
        (tmp_path / "nowhere", "no such folder"),
    ):  # fmt: skip
        with pytest.raises(SystemExit) as ended:
            script.run(MyVGG.main, ["--evaluate", str(trained), "--device", "cpu", "--data", str(folder)])
        said = capsys.readouterr()
        assert ended.value.code == 2 and not said.out and said.err.count("\n") == 1 and complaint in said.err

"""Data sets beside CIFAR-10: image folders, published ones through files in their formats, and runs on them."""

import functools
import gzip
import hashlib
import http.server
import importlib.util
import io
import itertools
import json
import os
import re
import struct
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import trainings
from commands import run, table
from PIL import Image
from test_data import python2_pickle, write_tar

import landscape
import MyFramework
import MyVGG
from cifar_lab.data import __main__ as data_program
from cifar_lab.data import cache
from cifar_lab.data import folder as folders_of_pictures
from cifar_lab.data.cache import DataError, find, load
from cifar_lab.data.datasets import DATA_SETS
from cifar_lab.figures.confusion import draw_confusion
from cifar_lab.networks import NETWORKS
from cifar_lab.run_folder.schema import RunFileError, read_config
from cifar_lab.training import script
from cifar_lab.training.augment import augment, normalize
from cifar_lab.training.device import Device
from cifar_lab.training.loader import Loader

KEYS = ("train_images", "train_labels", "test_images", "test_labels")
COLORS = {"blue": (40, 60, 200), "green": (60, 180, 50), "red": (220, 40, 60)}
PER_CLASS = 10


@pytest.fixture(autouse=True)
def _no_download(monkeypatch):
    monkeypatch.delenv("CIFAR10_DIR", raising=False)
    for name, of in DATA_SETS.items():
        monkeypatch.setitem(DATA_SETS, name, replace(of, mirrors={}, others=()))


def write_pictures(root: Path, count: int = PER_CLASS, seed: int = 0) -> Path:
    """A folder of pictures of three colors, `count` of each, in files of several formats and sizes."""
    rng = np.random.default_rng(seed)
    for name, color in COLORS.items():
        (root / name).mkdir(parents=True)
        for i in range(count):
            size = (*rng.integers(33, 60, 2), 3)
            pixels = np.clip(np.array(color) + rng.normal(0, 30, size), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i}{('.png', '.JPG', '.bmp')[i % 3]}")
    return root


@pytest.fixture
def pictures(tmp_path) -> Path:
    return write_pictures(tmp_path / "three")


def refusal(capsys, main, words) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        script.run(main, [str(word) for word in words])
    error = capsys.readouterr().err
    assert end.value.code == 2 and error.count("\n") == 1, error
    return error


# --- A folder of pictures ---------------------------------------------------------------------------------------------


def by_sum(paths: list[str]) -> list[str]:
    return sorted(paths, key=lambda path: hashlib.sha256(path.encode()).digest())


def test_a_fifth_of_each_class_is_the_test_set_and_the_order_mixes_the_classes(pictures, tmp_path):
    found = load(tmp_path / "data", source=find(str(pictures)))
    assert found.classes == ("blue", "green", "red") and found.name == "three"
    of_class = [by_sum([f"{name}/{path.name}" for path in (pictures / name).iterdir()]) for name in COLORS]
    for part, chosen in (("test", slice(0, 2)), ("train", slice(2, None))):
        expected = by_sum([path for paths in of_class for path in paths[chosen]])
        labels = getattr(found, f"{part}_labels")
        assert labels.tolist() == [list(COLORS).index(path.split("/")[0]) for path in expected]
        assert (np.diff(labels.astype(int)) != 0).any() and labels.dtype == np.uint8
        for path, image in zip(expected, getattr(found, f"{part}_images"), strict=True):
            with Image.open(pictures / path) as file:
                assert np.array_equal(image, file.resize((32, 32), Image.Resampling.BILINEAR)), path


def test_one_more_picture_moves_no_other(pictures):
    before = find(str(pictures))
    (pictures / "red" / "more.png").write_bytes((pictures / "red" / "0.png").read_bytes())
    after = find(str(pictures))
    assert after.sizes == (25, 6)
    kept = [[p for p in of if p[0].name != "more.png"] for of in (after.train, after.test)]
    moved = set(before.test) ^ set(kept[1])
    assert len(moved) <= 1  # what the new one has displaced
    assert [p for p in before.train if p not in moved] == [p for p in kept[0] if p not in moved]


@pytest.mark.parametrize("held_out", ["test", "val"])
def test_train_and_test_folders_are_taken_as_they_are(tmp_path, held_out):
    write_pictures(tmp_path / "own" / "train", 5)
    write_pictures(tmp_path / "own" / held_out, 3, seed=1)
    if held_out == "test":
        write_pictures(tmp_path / "own" / "val", 4, seed=2)  # beside a test set, a validation set is not used
    found = load(tmp_path / "data", source=find(str(tmp_path / "own")))
    assert np.bincount(found.train_labels).tolist() == [5] * 3 and np.bincount(found.test_labels).tolist() == [3] * 3
    expected = {
        tuple(np.asarray(Image.open(p).resize((32, 32), 2)).ravel()) for p in (tmp_path / "own" / held_out).glob("*/*")
    }
    assert {tuple(image.ravel()) for image in found.test_images} == expected


def test_pictures_of_every_kind(tmp_path):
    """Gray, with a palette, with transparency, of four inks, turned, large, and below another folder."""
    root = write_pictures(tmp_path / "kinds", 4)
    top = np.zeros((40, 40, 3), np.uint8)
    top[:20] = 255
    Image.fromarray(top[..., 0]).save(root / "red" / "gray.png")
    Image.fromarray(top).convert("P").save(root / "red" / "palette.png")
    Image.fromarray(np.dstack([0 * top, 255 - top[..., :1]])).save(root / "red" / "transparent.png")  # on white
    Image.fromarray(top).convert("CMYK").save(root / "red" / "inks.jpg", quality=95)
    turned = Image.Exif()
    turned[0x0112] = 3  # upside down
    Image.fromarray(top[::-1]).save(root / "red" / "turned.jpg", quality=95, exif=turned)
    (root / "red" / "deeper").mkdir()
    Image.fromarray(top).resize((2000, 2000)).save(root / "red" / "deeper" / "large.jpg")
    for name in (".hidden.png", "notes.txt", "Thumbs.db"):
        (root / "red" / name).write_text("no picture")
    (root / ".cache").mkdir()
    source = find(str(root))
    assert sum(source.sizes) == 12 + 6
    found = load(tmp_path / "data", source=source)
    white_above = np.concatenate([found.train_images, found.test_images])[:, [2, 29]].mean((2, 3))
    assert (np.abs(white_above - [255, 0]).max(1) < 6).sum() == 6


def test_pictures_are_decoded_once_and_again_when_they_change(pictures, tmp_path, monkeypatch, capsys):
    decoded = []
    pixels = folders_of_pictures._pixels
    monkeypatch.setattr(folders_of_pictures, "_pixels", lambda path: decoded.append(path) or pixels(path))
    data, first = tmp_path / "data", load(tmp_path / "data", source=find(str(pictures)))
    assert len(decoded) == 30 and [path.name for path in data.iterdir()] == ["three.npz"]
    again = load(data, source=find(str(pictures)))
    assert len(decoded) == 30 and again.digest == first.digest and again.normalization == first.normalization
    assert all(np.array_equal(getattr(first, key), getattr(again, key)) for key in KEYS)
    Image.new("RGB", (40, 40), "white").save(pictures / "red" / "0.png")
    other = load(data, source=find(str(pictures)))
    assert len(decoded) == 60 and other.digest != first.digest
    monkeypatch.chdir(pictures.parent)
    for path in pictures.glob("*/*"):
        path.unlink()
    pictures.rename("gone")
    assert load(data, source=find("three", data)).digest == other.digest  # the cache serves without the pictures
    assert find("three", data).sizes == (24, 6)


def test_class_names_are_part_of_the_data(pictures, tmp_path):
    first = load(tmp_path / "data", source=find(str(pictures)))
    (pictures / "blue").rename(pictures / "azure")
    second = load(tmp_path / "data", source=find(str(pictures)))
    assert second.classes == ("azure", "green", "red") and second.digest != first.digest


def damaged(root: Path) -> None:
    content = (root / "red" / "0.png").read_bytes()
    (root / "red" / "0.png").write_bytes(content[: len(content) // 2])


def keep(root: Path, *names: str) -> None:
    for path in root.iterdir():
        if path.name not in names:
            path.rename(root.parent / path.name)


def no_test_class(root: Path) -> None:
    write_pictures(root / "train", 2)
    write_pictures(root / "test", 2)
    for path in (root / "test" / "red").iterdir():
        path.unlink()
    (root / "test" / "red").rmdir()


BAD = {
    "no subfolders": (lambda root: keep(root), "at least two; there is none"),
    "one class": (lambda root: keep(root, "red"), "at least two; there is only one, red"),
    "train without test": (lambda root: [write_pictures(root / "train"), keep(root, "train")], "only one, train"),
    "an empty class": (lambda root: (root / "white").mkdir(), "white: no pictures"),
    "no pictures": (lambda root: [(root / "x").mkdir(), (root / "x" / "a.txt").write_text("a")], "x: no pictures"),
    "one picture": (lambda root: [p.unlink() for p in (root / "red").glob("[1-9]*")], "red: one picture"),
    "no picture": (lambda root: (root / "red" / "a.png").write_text("text"), "a.png: not a picture"),
    "half a picture": (damaged, r"0.png: cannot be decoded: .*truncated"),
    "deep colors": (lambda root: Image.new("I", (9, 9), 70_000).save(root / "red" / "a.tif"), "not 8 or 16 bits"),
    "no file": (lambda root: os.mkfifo(root / "red" / "a.png"), "red/a.png: .*not a regular file"),
    "a link to nothing": (lambda root: (root / "red" / "a.png").symlink_to("nowhere"), "FileNotFoundError"),
    "not printable": (lambda root: (root / "red").rename(root / "re\nd"), r"'re\\nd' has a name that"),
    "a class without test": (no_test_class, "the class red is in only one of train/ and test/"),
    "too many": (lambda root: [(root / str(i)).mkdir() for i in range(257)], "260 subfolders; there can be 256"),
}  # fmt: skip


@pytest.mark.skipif(os.name != "posix", reason="named pipes, links and names as POSIX has them")
@pytest.mark.parametrize("spoil, why", BAD.values(), ids=BAD)
def test_a_folder_that_is_no_data_set_is_one_line(spoil, why, pictures, tmp_path, capsys):
    spoil(pictures)
    words = ["--dataset", pictures, "--data-dir", tmp_path / "new", "--results", tmp_path / "results", "--device=cpu"]
    assert re.search(why, refusal(capsys, MyVGG.main, words))
    assert not (tmp_path / "new").exists() and not (tmp_path / "results").exists()


def test_what_cannot_be_a_data_set_by_its_name(pictures, tmp_path, capsys):
    pictures.rename(tmp_path / "CIFAR100")
    for name, why in (
        (tmp_path / "CIFAR100", "cannot be called cifar100"), ("/", "cannot be called this"),
        ("imagenet", "imagenet: neither cifar10, cifar100, svhn, fashion-mnist, nor a folder, nor"),
        (tmp_path / "x.npz", "nor a folder"), ("", "is not a path"),
    ):  # fmt: skip
        words = [f"--dataset={name}", "--data-dir", tmp_path, "--results", tmp_path / "results"]
        assert why in refusal(capsys, MyFramework.main, words)
    assert data_program.main(["--dataset", "imagenet", "--data-dir", str(tmp_path)]) == 2
    assert "nor a folder" in capsys.readouterr().err
    assert not (tmp_path / "results").exists()


# --- Published data sets ----------------------------------------------------------------------------------------------


def published_arrays(name: str, seed: int = 0) -> dict[str, np.ndarray]:
    """Twelve images, as the data set of that name gives them."""
    rng = np.random.default_rng(seed)
    arrays = {}
    for part, count in (("train", 8), ("test", 4)):
        images = rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        if name == "fashion-mnist":
            gray = np.zeros((count, 32, 32), np.uint8)
            gray[:, 2:30, 2:30] = images[:, 2:30, 2:30, 0]
            images = np.stack([gray] * 3, axis=-1)
        classes = 100 if name == "cifar100" else 10
        arrays |= {f"{part}_images": images, f"{part}_labels": rng.integers(0, classes, count, dtype=np.uint8)}
    return arrays


def idx(array: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, array.ndim]) + b"".join(struct.pack(">I", n) for n in array.shape)
    return gzip.compress(header + array.tobytes())


def mat(images: np.ndarray, labels: np.ndarray) -> bytes:
    savemat = pytest.importorskip("scipy.io").savemat
    file = io.BytesIO()
    savemat(
        file, {"X": images.transpose(1, 2, 3, 0), "y": np.where(labels == 0, 10, labels)[:, None]}, do_compression=True
    )
    return file.getvalue()


def files_of(name: str, arrays: dict[str, np.ndarray]) -> dict[str, bytes]:
    """The files of a data set in their format, by name."""
    train, test = [(arrays[f"{part}_images"], arrays[f"{part}_labels"]) for part in ("train", "test")]
    if name == "cifar100":
        return {key: python2_pickle(*of, labels_key=b"fine_labels") for key, of in (("train", train), ("test", test))}
    if name == "svhn":
        return {"train_32x32.mat": mat(*train), "test_32x32.mat": mat(*test)}
    named = zip(("train", "t10k"), (train, test), strict=True)
    return {
        f"{part}-{what}-ubyte.gz": content
        for part, (images, labels) in named
        for what, content in (("images-idx3", idx(images[:, 2:30, 2:30, 0])), ("labels-idx1", idx(labels)))
    }


ARCHIVES = {"cifar100": "cifar-100-python.tar.gz", "svhn": "", "fashion-mnist": ""}
PLACES = {"cifar100": "cifar-100-python", "svhn": ".", "fashion-mnist": "FashionMNIST/raw"}


@pytest.fixture(params=list(ARCHIVES))
def published(request, monkeypatch):
    """The name of a data set, its arrays, and its files, whose sums are in the table for this test."""
    name = request.param
    arrays = published_arrays(name)
    files = files_of(name, arrays)
    assert [*files] == [*DATA_SETS[name].parts]
    parts = {key: hashlib.md5(content).hexdigest() for key, content in files.items()}
    monkeypatch.setitem(DATA_SETS, name, replace(DATA_SETS[name], parts=parts, sizes=(8, 4)))
    return name, arrays, files


def check(found: cache.DataSet, name: str, arrays: dict[str, np.ndarray]) -> None:
    for key, array in arrays.items():
        np.testing.assert_array_equal(getattr(found, key), array)
        assert getattr(found, key).flags.writeable  # PyTorch warns of others
    assert found.name == DATA_SETS[name].label and found.classes == DATA_SETS[name].classes
    assert re.fullmatch("[0-9a-f]{16}", found.digest)


def test_a_published_data_set_is_downloaded_checked_and_cached(published, tmp_path, monkeypatch, capsys):
    name, arrays, files = published
    served = tmp_path / "served"
    served.mkdir()
    for key, content in files.items():
        (served / key).write_bytes(content)
    if ARCHIVES[name]:
        write_tar(served / ARCHIVES[name], {f"{PLACES[name]}/{key}": content for key, content in files.items()})
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=served)
    monkeypatch.setattr(http.server.SimpleHTTPRequestHandler, "log_message", lambda *args: None)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=[0.02], daemon=True).start()
        mirrors = {"nobody": "http://127.0.0.1:9/", "here": f"http://127.0.0.1:{server.server_port}/"}
        monkeypatch.setitem(DATA_SETS, name, replace(DATA_SETS[name], mirrors=mirrors))
        check(load(tmp_path / "data", source=find(name)), name, arrays)
        assert "trying nobody" in capsys.readouterr().out
        server.shutdown()
    assert os.listdir(tmp_path / "data") == [f"{name}.npz"]
    check(load(tmp_path / "data", download=False, source=find(name)), name, arrays)


def test_files_that_are_there_serve_and_altered_ones_do_not(published, tmp_path):
    name, arrays, files = published
    place = tmp_path / "data" / PLACES[name]
    place.mkdir(parents=True)
    for key, content in files.items():
        (place / key).write_bytes(content)
    check(load(tmp_path / "data", source=find(name)), name, arrays)
    (tmp_path / "data" / f"{name}.npz").unlink()
    last = place / [*files][-1]
    last.write_bytes(last.read_bytes()[:-1] + b"x")
    with pytest.raises(DataError, match=rf"\n- .*{re.escape(last.name)}: altered \(MD5 [0-9a-f]{{32}}, not ") as caught:
        load(tmp_path / "data", source=find(name))
    assert str(caught.value).splitlines()[-1].startswith("By hand: put ")
    assert not (tmp_path / "data" / f"{name}.npz").exists()


def test_svhn_without_scipy_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cache, "find_spec", lambda name: None)
    words = ["--dataset", "svhn", "--data-dir", tmp_path, "--results", tmp_path / "results"]
    assert "python -m pip install -r requirements-svhn.txt" in refusal(capsys, MyVGG.main, words)
    assert os.listdir(tmp_path) == []
    root = Path(cache.__file__).resolve().parents[2]
    assert "scipy" in (root / "requirements-svhn.txt").read_text()


def test_the_table_agrees_with_torchvision():
    if importlib.util.find_spec("torchvision") is None:
        pytest.skip("torchvision is not installed")
    from torchvision.datasets import CIFAR100, SVHN, FashionMNIST

    assert DATA_SETS["cifar100"].parts == dict(CIFAR100.train_list + CIFAR100.test_list)
    assert DATA_SETS["svhn"].parts == {SVHN.split_list[part][1]: SVHN.split_list[part][2] for part in ("train", "test")}
    assert DATA_SETS["fashion-mnist"].parts == dict(FashionMNIST.resources)
    assert [name.casefold() for name in FashionMNIST.classes] == [
        n.casefold() for n in DATA_SETS["fashion-mnist"].classes
    ]
    fine = DATA_SETS["cifar100"].classes
    assert len(fine) == 100 and list(fine) == sorted(fine)


# --- Normalization ----------------------------------------------------------------------------------------------------


def test_the_statistics_are_those_of_the_training_images(pictures, tmp_path):
    found = load(tmp_path / "data", source=find(str(pictures)))
    pixels = found.train_images.reshape(-1, 3).astype(np.float64) / 255
    np.testing.assert_allclose(found.normalization, [pixels.mean(0), pixels.std(0)], rtol=1e-12)
    shared = {"seed": 0, "batch_size": 24, "train_size": 24, "test_size": 6}
    device = Device(torch.device("cpu"), "fp32", "fp32", 1)
    loader = Loader(found, device, **shared)
    loader.start_epoch(1)
    images, _ = loader.batch(24)
    np.testing.assert_allclose(images.mean((0, 2, 3)), 0, atol=1e-5)
    np.testing.assert_allclose(images.std((0, 2, 3), correction=0), 1, atol=1e-5)
    ((tested, _),) = loader.test_batches()
    mean, deviation = (torch.tensor(values).view(3, 1, 1) for values in found.normalization)
    expected = (torch.from_numpy(found.test_images).permute(0, 3, 1, 2) / 255 - mean) / deviation
    torch.testing.assert_close(tested, expected, rtol=1e-5, atol=1e-5)
    loader = Loader(found, device, **shared, augment="report")
    loader.start_epoch(1)
    augmented, _ = loader.batch(24)
    images = torch.from_numpy(found.train_images)[loader._order]
    half = augment(images, loader._table)  # in [-1, 1]
    torch.testing.assert_close(augmented, (half / 2 + 0.5 - mean) / deviation, rtol=1e-4, atol=1e-4)


def test_cifar10_is_normalized_to_the_bits_that_it_always_was():
    values = torch.cat([torch.arange(256) / 255, torch.rand(100_000, generator=torch.Generator().manual_seed(0))])
    images = values[: len(values) // 3 * 3].view(-1, 3, 1, 1)
    assert torch.equal(normalize(images), images.mul(2).sub_(1))
    assert DATA_SETS["cifar10"].normalization == ((0.5,) * 3, (0.5,) * 3)


def test_black_channels_have_no_infinite_scale(tmp_path):
    for name in ("a", "b"):
        (tmp_path / "dark" / name).mkdir(parents=True)
        for i in range(3):
            Image.new("RGB", (32, 32), (100 * i, 0, 0)).save(tmp_path / "dark" / name / f"{i}.png")
    found = load(tmp_path, source=find(str(tmp_path / "dark")))
    assert found.normalization[1][1:] == (1 / 255,) * 2 and found.normalization[0][1:] == (0, 0)


# --- Runs -------------------------------------------------------------------------------------------------------------

TINY = "--width=0.03 --batch-size=10 --epochs=2 --checkpoint-seconds=0"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder of pictures, and runs of both scripts on it: data directory and run folders."""
    root = tmp_path_factory.mktemp("runs")
    write_pictures(root / "three")
    words = f"{TINY} --dataset={root / 'three'}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(script.Console, "say", lambda self, text: None)
        run(f"MyVGG.py {words} --bn --lrs 1e-2 1e-3 --probe-every 2", root / "data", root / "results")
        folders = run(f"MyFramework.py {words} --model inception", root / "data", root / "results")
    return root, folders


def test_classes_and_sizes_go_from_the_data_into_the_network(trained):
    root, folders = trained
    for (model, *_), folder in folders.items():
        settings = read_config(folder)["settings"]
        assert (settings["dataset"], settings["classes"]) == ("three", 3)
        assert (settings["train_size"], settings["test_size"]) == (24, 6)
        assert folder.name.endswith("-train24-test6" + "-probe2" * (model == "vgg_a_bn") + "-datathree")
        with np.load(root / "data" / "three.npz") as content:
            sums = {key: hashlib.sha256(content[key].tobytes()).hexdigest() for key in KEYS}
        text = json.dumps([["blue", "green", "red"], sums]).encode()
        assert settings["data_digest"] == hashlib.sha256(text).hexdigest()[:16]
        weights = torch.load(folder / "checkpoint.pt", weights_only=True)["model"]
        assert [*weights.values()][-1].shape == (3,)
        assert len((folder / "predictions.txt").read_text().strip()) == 6
        assert len(table(folder / "steps.csv")["loss"]) == 2 * 3


def test_three_colors_are_learned(tmp_path, pictures):
    (found,) = run(
        f"MyVGG.py --bn --width=0.03 --batch-size=8 --epochs=12 --lr=1e-3 --no-augment --dataset={pictures}",
        tmp_path / "data", tmp_path / "results",
    ).values()  # fmt: skip
    assert table(found / "epochs.csv")["test_accuracy"][-1] == 100


def test_evaluate_names_the_classes(trained, capsys):
    root, folders = trained
    for model, main in (("vgg_a_bn", MyVGG.main), ("inception", MyFramework.main)):
        folder = next(folder for key, folder in folders.items() if key[0] == model)
        main([f"--evaluate={folder}", f"--data-dir={root / 'data'}", "--device=cpu"])
        said = capsys.readouterr().out
        accuracy = table(folder / "epochs.csv")["test_accuracy"][-1]
        assert "6 test images, fp32\ntest loss " in said and f"test accuracy {accuracy:.2f}%" in said
        assert re.findall(r"^  (\S+) +\S+%  of (\d+)$", said, re.M) == [("blue", "2"), ("green", "2"), ("red", "2")]
        assert (folder / "confusion.png").is_file()


def test_measures_and_figures_of_such_runs(trained):
    root, folders = trained
    bands = [folder for key, folder in folders.items() if key[0] == "vgg_a_bn"]
    assert landscape.main([str(root / "results")]) == 0
    figures = {path.name for path in (root / "results" / "report" / "figures").glob("*.png")}
    assert any(name.startswith("landscape") for name in figures), figures
    assert any(name.startswith("probes") for name in figures), figures
    assert landscape.main(["band", *map(str, bands)]) == 0
    words = ["--points=3", "--device=cpu", f"--data-dir={root / 'data'}"]
    assert landscape.main(["surface", str(bands[0]), *words]) == 0  # all 24 images, not 512
    surface = bands[0] / "surface-2d-3x3-range1-24images-seed0-eval.csv"
    center = float(surface.read_text().splitlines()[2 + 4].split(",")[-1])
    found = load(root / "data", source=find("three", root / "data"))
    config = read_config(bands[0])["settings"]
    model = NETWORKS["vgg_a_bn"].build(script.RunConfig(**config)).eval()
    model.load_state_dict(torch.load(bands[0] / "checkpoint.pt", weights_only=True)["model"])
    mean, deviation = (torch.tensor(values).view(3, 1, 1) for values in found.normalization)
    images = (torch.from_numpy(found.train_images).permute(0, 3, 1, 2) / 255 - mean) / deviation
    with torch.no_grad():
        loss = torch.nn.functional.cross_entropy(model(images), torch.from_numpy(found.train_labels).long())
    assert center == pytest.approx(float(loss), rel=1e-4)


def test_other_data_are_refused_in_one_line(trained, tmp_path, capsys):
    """The same folder with another picture: nothing is resumed, evaluated or drawn; the pictures as they were are."""
    root, folders = trained
    write_pictures(tmp_path / "three", seed=1)  # as many others, under the same names
    folder = next(folder for key, folder in folders.items() if key[0] == "inception")
    before = trainings.snapshot(root / "results")
    words = [*TINY.split(), "--model=inception", "--device=cpu", f"--results={root / 'results'}", "--epochs=3"]
    words += [f"--data-dir={tmp_path / 'data'}"]
    digest = read_config(folder)["settings"]["data_digest"]
    error = refusal(capsys, MyFramework.main, [*words, f"--dataset={tmp_path / 'three'}"])
    assert f"holds a run with other settings (data_digest {digest} -> " in error
    evaluate = [f"--evaluate={folder}", f"--data-dir={tmp_path / 'data'}", "--device=cpu"]
    assert "not those that the run was trained on" in refusal(capsys, MyFramework.main, evaluate)
    error = refusal(capsys, MyFramework.main, [*evaluate, "--dataset=cifar10"])
    assert "the run was trained on three, not on cifar10" in error
    surface = ["surface", folder, "--points=3", "--device=cpu", f"--data-dir={tmp_path / 'data'}"]
    assert "not those that the run was trained on" in refusal(capsys, landscape.main, surface)
    (tmp_path / "data" / "three.npz").unlink()
    assert "nor a folder" in refusal(capsys, MyFramework.main, evaluate)
    assert trainings.snapshot(root / "results") == before
    MyFramework.main([*evaluate, f"--dataset={root / 'three'}"])
    assert "  green" in capsys.readouterr().out


def test_a_stand_in_with_other_sums_is_refused_for_cifar10_too(tmp_path, synthetic_data, capsys):
    argv = [*trainings.flags(synthetic_data, "--results", tmp_path / "results"), "--epochs", "1"]
    MyVGG.main(argv)
    (folder,) = (path.parent for path in tmp_path.rglob("config.json"))
    content = json.loads((folder / "config.json").read_text())
    assert (content["settings"]["dataset"], content["settings"]["data_digest"]) == ("cifar10", "")
    content["environment"]["data_sha256"]["train_images"] = "0" * 64
    (folder / "config.json").write_text(json.dumps(content))
    evaluate = [f"--evaluate={folder}", f"--data-dir={synthetic_data}", "--device=cpu"]
    assert "not those that the run was trained on" in refusal(capsys, MyVGG.main, evaluate)
    assert "(the data's checksums)" in refusal(capsys, MyVGG.main, [*argv[:-1], "2"])


def test_a_run_on_pictures_goes_on_as_if_nothing_had_stopped_it(trained, tmp_path):
    root, _ = trained
    words = f"MyFramework.py {TINY} --model=inception --dataset={root / 'three'} --epochs"
    (at_once,) = run(f"{words} 3", root / "data", tmp_path / "once").values()
    for epochs in (1, 3):
        (continued,) = run(f"{words} {epochs}", root / "data", tmp_path / "twice").values()
    assert (continued / "steps.csv").read_bytes() == (at_once / "steps.csv").read_bytes()
    states = [torch.load(folder / "checkpoint.pt", weights_only=True)["model"] for folder in (at_once, continued)]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


@pytest.mark.parametrize("key, value", [("classes", 1), ("classes", 257), ("dataset", "../three"), ("dataset", "")])
def test_settings_that_no_data_set_has_are_not_read(key, value, trained, tmp_path):
    _, folders = trained
    content = json.loads((next(iter(folders.values())) / "config.json").read_text())
    content["settings"][key] = value
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(RunFileError, match=f"{key} is not "):
        read_config(tmp_path)


@pytest.mark.parametrize(
    "words, sizes",
    [("", (60_000, 10_000)), ("--preset quick", (10_000, 2_000)), ("--train-size 60000", (60_000, 10_000)),
     ("--preset quick --test-size 9000", (10_000, 9_000)), ("--preset laptop", (60_000, 10_000))],
)  # fmt: skip
def test_as_many_images_as_the_preset_has_or_all(words, sizes):
    settings = script.settings_of(MyVGG.VGGSettings, MyVGG.__file__, words.split())
    (config,) = script.with_data(settings, find("fashion-mnist")).runs(0)
    assert (config.train_size, config.test_size) == sizes
    assert (config.dataset, config.classes) == ("fashion-mnist", 10)


def test_settings_that_do_not_fit_the_data_are_one_line(trained, tmp_path, capsys):
    root, _ = trained
    words = [
        f"--dataset={root / 'three'}",
        f"--data-dir={tmp_path / 'd'}",
        f"--results={tmp_path / 'r'}",
        "--device=cpu",
    ]
    for more, why in (
        (["--train-size=25"], "--train-size 25: the data set has 24 images"),
        (["--test-size=7"], "--test-size 7: the data set has 6 images"),
        (["--bn", "--batch-size=23"], "the last batch of 24 training images is one image"),
    ):
        assert why in refusal(capsys, MyVGG.main, [*words, *more])
    assert "--train-size 50001: the data set has 50000 images" in refusal(capsys, MyVGG.main, ["--train-size=50001"])
    assert os.listdir(tmp_path) == []


def test_a_network_of_ten_classes_takes_no_others(trained, tmp_path, capsys, monkeypatch):
    root, _ = trained
    monkeypatch.setitem(NETWORKS, "vgg_a", replace(NETWORKS["vgg_a"], builder=trainings.small_network))
    words = [
        f"--dataset={root / 'three'}",
        f"--data-dir={root / 'data'}",
        f"--results={tmp_path / 'r'}",
        "--device=cpu",
    ]
    error = refusal(capsys, MyVGG.main, words)
    assert "vgg_a has 10 classes, the data 3; a parameter `classes` of its function" in error
    assert not (tmp_path / "r").exists()


def test_a_network_with_more_outputs_than_classes_is_evaluated(trained, tmp_path, capsys, monkeypatch):
    root, _ = trained

    def five(*, width: float = 1.0, classes: int = 10):
        return torch.nn.Sequential(torch.nn.AvgPool2d(32), torch.nn.Flatten(), torch.nn.Linear(3, classes + 2))

    monkeypatch.setitem(NETWORKS, "vgg_a", replace(NETWORKS["vgg_a"], builder=five))
    (found,) = run(f"MyVGG.py {TINY} --dataset={root / 'three'}", root / "data", tmp_path).values()
    MyVGG.main([f"--evaluate={found}", f"--data-dir={root / 'data'}", "--device=cpu"])
    names = re.findall(r"^  (\S+) +\S+  of", capsys.readouterr().out, re.M)
    assert names == ["blue", "green", "red", "3", "4"]


def test_a_confusion_matrix_of_a_hundred_classes(tmp_path, monkeypatch):
    from cifar_lab.figures import confusion

    kept = []
    monkeypatch.setattr(confusion, "save", lambda figure, stem: kept.append(figure) or [])
    names = [*DATA_SETS["cifar100"].classes[:-1], "US$ and $"]
    draw_confusion(np.eye(100, dtype=int) * 100, names, tmp_path / "c", title="t")
    (figure,) = kept
    figure.canvas.draw()
    axes = figure.axes[0]
    boxes = [label.get_window_extent() for label in axes.get_yticklabels()]
    assert [label.get_text().replace("\\", "") for label in axes.get_yticklabels()] == names
    assert not any(a.overlaps(b) for a, b in itertools.pairwise(boxes))


def test_the_program_prints_the_sums_of_a_folder(pictures, tmp_path, capsys):
    assert data_program.main(["--dataset", str(pictures), "--data-dir", str(tmp_path / "data")]) == 0
    said = capsys.readouterr().out
    with np.load(tmp_path / "data" / "three.npz") as content:
        for key in KEYS:
            assert f"{hashlib.sha256(content[key].tobytes()).hexdigest()}  {key} {content[key].shape}\n" in said
    assert "24 training and 6 test images in 3 classes" in said

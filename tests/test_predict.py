"""Pictures of every kind as a network sees them, and what it takes them for."""

import csv
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from commands import run
from PIL import Image

import MyVGG
from cifar_lab.data.pictures import find, pixels
from cifar_lab.data.sources import DataError
from cifar_lab.run_folder import checkpoint
from cifar_lab.training import script
from cifar_lab.training.predict import predict

torch.set_num_threads(1)

RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)


def halves(left, right, size=64) -> np.ndarray:
    """A square picture: its left half of one color, its right half of another."""
    image = np.zeros((size, size, len(left)), np.uint8)
    image[:, : size // 2], image[:, size // 2 :] = left, right
    return image


def assert_halves(path: Path, left, right, tolerance=0, upright=True):
    """The left half of what is seen is of one color, the right one of another; but where they meet."""
    seen = pixels(path).astype(int)
    assert seen.shape == (32, 32, 3)
    seen = seen if upright else seen.transpose(1, 0, 2)
    assert np.abs(seen[:, :15] - left).max() <= tolerance and np.abs(seen[:, 17:] - right).max() <= tolerance


# --- Kinds of pictures ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [2, 32, 64, 500])
@pytest.mark.parametrize("kind, tolerance", [("png", 0), ("bmp", 0), ("webp", 8), ("jpg", 8), ("tiff", 0)])
def test_colors_in_any_size(tmp_path, kind, tolerance, size):
    file = tmp_path / f"picture.{kind}"
    Image.fromarray(halves(RED, BLUE, size)).save(file, **({"quality": 100} if kind in ("webp", "jpg") else {}))
    if size == 2:  # stretched: the outer pixels have the colors
        seen = pixels(file).astype(int)
        assert np.abs(seen[:, :8] - seen[0, 0]).max() == 0 and not np.array_equal(seen[0, 0], seen[0, -1])
    else:
        assert_halves(file, RED, BLUE, tolerance if kind in ("png", "bmp", "tiff") else 30)


def test_a_tall_picture_is_stretched(tmp_path):
    image = np.zeros((96, 10, 3), np.uint8)
    image[48:] = 200
    Image.fromarray(image).save(tmp_path / "tall.png")
    assert_halves(tmp_path / "tall.png", (0, 0, 0), (200, 200, 200), upright=False)


def test_gray_is_three_equal_channels(tmp_path):
    Image.fromarray(halves((10,), (200,))[..., 0]).save(tmp_path / "gray.png")
    assert_halves(tmp_path / "gray.png", (10,) * 3, (200,) * 3)
    Image.fromarray(halves((0,), (255,))[..., 0]).convert("1").save(tmp_path / "bits.png")
    assert_halves(tmp_path / "bits.png", (0,) * 3, WHITE)


def test_sixteen_bits_become_eight(tmp_path):
    """0x0A0A and 0xC8C8 of 0xFFFF are 10 and 200 of 255."""
    values = halves((10,), (200,))[..., 0].astype(np.uint16) * 257
    Image.fromarray(values).save(tmp_path / "deep.png")
    Image.fromarray(values).save(tmp_path / "deep.tiff")
    for name in ("deep.png", "deep.tiff"):
        assert Image.open(tmp_path / name).mode.startswith("I")
        assert_halves(tmp_path / name, (10,) * 3, (200,) * 3)


def test_sixteen_bits_with_a_transparent_value(tmp_path):
    values = halves((10,), (200,))[..., 0].astype(np.uint16) * 257
    Image.fromarray(values).save(tmp_path / "deep.png", transparency=200 * 257)
    assert_halves(tmp_path / "deep.png", (10,) * 3, WHITE)


def test_a_palette(tmp_path):
    Image.fromarray(halves(RED, BLUE)).convert("P", palette=Image.Palette.ADAPTIVE, colors=4).save(tmp_path / "p.png")
    Image.fromarray(halves(RED, BLUE)).convert("P", palette=Image.Palette.ADAPTIVE, colors=4).save(tmp_path / "p.gif")
    for name in ("p.png", "p.gif"):
        assert Image.open(tmp_path / name).mode == "P"
        assert_halves(tmp_path / name, RED, BLUE)


def test_what_is_transparent_lies_on_white(tmp_path):
    Image.fromarray(halves((*RED, 255), (*BLUE, 0))).save(tmp_path / "rgba.png")
    assert_halves(tmp_path / "rgba.png", RED, WHITE)
    Image.fromarray(halves((*RED, 255), (0, 0, 0, 51))).save(tmp_path / "thin.png")  # a fifth of black
    assert_halves(tmp_path / "thin.png", RED, (204,) * 3)
    Image.fromarray(halves((0, 255), (0, 0)), mode="LA").save(tmp_path / "la.png")
    assert_halves(tmp_path / "la.png", (0,) * 3, WHITE)
    palette = Image.fromarray(halves((0,), (1,))[..., 0], mode="P")
    palette.putpalette([*RED, *BLUE])
    palette.save(tmp_path / "p.png", transparency=1)
    assert_halves(tmp_path / "p.png", RED, WHITE)


def test_a_camera_that_was_turned(tmp_path):
    """Orientation 6: the first row of what is stored is the right side of the picture."""
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = halves(BLUE, RED).transpose(1, 0, 2)  # blue above, red below
    Image.fromarray(stored).save(tmp_path / "turned.png", exif=exif)
    assert_halves(tmp_path / "turned.png", RED, BLUE)


def test_cmyk(tmp_path):
    Image.fromarray(halves(RED, BLUE)).convert("CMYK").save(tmp_path / "print.jpg", quality=100)
    assert_halves(tmp_path / "print.jpg", RED, BLUE, 30)


def damaged(folder: Path) -> list[Path]:
    """A text, nothing, half a picture, one that claims a billion pixels, numbers of 32 bits, a folder, a FIFO."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "whole.png")
    whole = (folder / "whole.png").read_bytes()
    (folder / "whole.png").unlink()
    size = struct.pack(">II", 30_000, 30_000) + whole[24:29]
    checksum = struct.pack(">I", zlib.crc32(b"IHDR" + size))
    files = {
        "text.png": b"this is no picture\n", "empty.jpg": b"", "half.png": whole[: len(whole) // 2],
        "huge.png": whole[:16] + size + checksum + whole[33:],
    }  # fmt: skip
    for name, content in files.items():
        (folder / name).write_bytes(content)
    Image.fromarray(np.full((4, 4), 100_000, np.int32)).save(folder / "wide.tiff")
    Image.fromarray(np.full((4, 4), 200, np.int32)).save(folder / "small.tiff")
    (folder / "folder.png").mkdir()
    os.mkfifo(folder / "fifo.png")
    return [folder / name for name in (*files, "wide.tiff", "small.tiff", "folder.png", "fifo.png")]


def test_what_is_said_of_them(tmp_path):
    said = {}
    for path in damaged(tmp_path):
        with pytest.raises(DataError) as error:
            pixels(path)
        said[path.name] = str(error.value).removeprefix(f"{path}: ")
    assert said.pop("half.png").startswith("cannot be decoded: ")
    assert said == {
        "text.png": "not a picture", "empty.jpg": "not a picture", "huge.png": "more than 178 million pixels",
        **dict.fromkeys(("wide.tiff", "small.tiff"), "cannot be decoded: not 8 or 16 bits in a channel"),
        "folder.png": "Is a directory", "fifo.png": "not a regular file",
    }  # fmt: skip


def test_a_large_picture_is_no_warning(tmp_path, monkeypatch, recwarn):
    Image.fromarray(halves(RED, BLUE)).save(tmp_path / "a.png")
    height, width, _ = halves(RED, BLUE).shape
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", height * width - 1)
    assert_halves(tmp_path / "a.png", RED, BLUE)
    assert not recwarn.list


def test_damaged_pictures_are_named_in_a_line(tmp_path):
    for path in damaged(tmp_path):
        with pytest.raises(DataError) as error:
            pixels(path)
        assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)


def test_a_folder_stands_for_the_pictures_below_it(tmp_path):
    for name in ("b.PNG", "a/2.jpg", "a/1.webp", ".hidden.png", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    names = [str(path.relative_to(tmp_path)) for path in find([tmp_path / "notes.txt", tmp_path])]
    assert names == ["notes.txt", "a/1.webp", "a/2.jpg", "b.PNG"]  # a file that is named is tried, whatever its name
    (tmp_path / "none").mkdir()
    for given in (tmp_path / "none", tmp_path / "nowhere.png", tmp_path / ("x" * 300)):
        with pytest.raises(DataError, match=given.name):
            find([given])


# --- Predictions ------------------------------------------------------------------------------------------------------

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@pytest.fixture(scope="module")
def trained(synthetic_data, tmp_path_factory) -> Path:
    results = tmp_path_factory.mktemp("results")
    sizes = {"epochs": 2, "width": 0.05, "train_size": 1000, "test_size": 100, "batch_size": 50}
    (folder,) = run("MyVGG.py --bn --lrs 1e-3 --no-augment", synthetic_data, results, **sizes).values()
    return folder


@pytest.fixture
def gallery(tmp_path):
    """Three pictures of 32 x 32, stored without loss."""
    folder = tmp_path / "gallery"
    folder.mkdir()
    for i in range(3):
        noise = np.random.default_rng(i).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{i}.png")
    return folder


def expected(folder: Path, path: Path) -> list[tuple[str, float]]:
    """The three most probable classes of a picture that needs no change; no two are equally probable."""
    network, _ = checkpoint.load_model(folder)
    image = torch.from_numpy(np.asarray(Image.open(path)).copy()).permute(2, 0, 1)[None]
    with torch.no_grad():
        probabilities = F.softmax(network(image / 255 * 2 - 1), 1)[0].tolist()
    return sorted(zip(CLASSES, probabilities, strict=True), key=lambda pair: -pair[1])[:3]


def same(found, wanted) -> bool:
    return [name for name, _ in found] == [name for name, _ in wanted] and np.allclose(
        [p for _, p in found], [p for _, p in wanted], atol=1e-5
    )


def test_predict_in_python(trained, gallery):
    found = list(predict(trained, [gallery / "2.png", gallery]))
    assert [of.picture.name for of in found] == ["2.png", "0.png", "1.png", "2.png"]
    for of in found:
        assert not of.error and same(of.best, expected(trained, of.picture))


def test_command_line(trained, gallery, capsys, tmp_path):
    """The damaged ones are a line each, the others are classified, and the status says that something was wrong."""
    bad = damaged(gallery)
    table = tmp_path / "table.csv"
    words = ["--evaluate", trained, "--predict", gallery, "--save", table, "--device", "cpu"]
    with pytest.raises(SystemExit) as ended:
        script.run(MyVGG.main, list(map(str, words)))
    said = capsys.readouterr()
    assert ended.value.code == 1
    files = [str(path) for path in bad if not path.is_dir()]  # a folder is no picture, whatever it is called
    assert sorted(line.partition(": ")[0] for line in said.err.splitlines()) == sorted(files)
    *lines, last = said.out.splitlines()
    assert len(lines) == 3 and last == f"{table}: 3 pictures"
    with open(table, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    for i, (line, row) in enumerate(zip(lines, rows, strict=True)):
        wanted = expected(trained, gallery / f"{i}.png")
        assert line == f"{gallery / f'{i}.png'}: " + ", ".join(f"{name} {100 * p:.1f}%" for name, p in wanted)
        assert row["picture"] == str(gallery / f"{i}.png")
        assert same([(row[f"class_{k}"], float(row[f"probability_{k}"])) for k in (1, 2, 3)], wanted)


def test_whole_pictures_end_well(trained, gallery, capsys):
    MyVGG.main(["--evaluate", str(trained), "--predict", str(gallery / "0.png"), "--device", "cpu"])
    said = capsys.readouterr()
    assert said.out.count("\n") == 1 and not said.err


@pytest.mark.parametrize("words", [["nowhere.png"], ["nowhere.png", "gallery"]])
def test_pictures_that_are_not_there(trained, gallery, capsys, monkeypatch, words):
    monkeypatch.chdir(gallery.parent)
    with pytest.raises(SystemExit) as ended:
        script.run(MyVGG.main, ["--evaluate", str(trained), "--device", "cpu", "--predict", *words])
    said = capsys.readouterr()
    assert ended.value.code == 2 and not said.out and said.err.count("\n") == 1 and "nowhere.png" in said.err

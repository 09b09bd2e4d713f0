"""What is measured of a device and of a network's cost, and what is set up for the whole process."""

import subprocess
import sys
from pathlib import Path

import pytest

import MyFramework
import MyVGG
from cifar_lab.networks import NETWORKS, build, describe
from cifar_lab.settings import RunConfig

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize(
    "module, model, gflop",
    [(MyVGG, "vgg_a", 0.916), (MyFramework, "inception", 0.718), (MyFramework, "inception_res", 0.896)],
)
def test_flops_of_a_training_image(module, model, gflop):
    assert NETWORKS[model].script.name == f"{module.__name__}.py"
    assert describe(build(RunConfig(model))).flops == pytest.approx(gflop * 1e9, rel=1e-3)


# Allocates and frees 40 MiB time and again, as the steps of a training do, and prints how many pages that took.
CHURN = """
import resource, sys, torch
from cifar_lab.training.device import choose
from cifar_lab.settings import Settings
choose(Settings(device="cpu"))
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(50):
    torch.empty(10 * 2**20).fill_(1.0)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's way with memory")
def test_freed_memory_is_kept_for_the_next_step():
    done = subprocess.run([sys.executable, "-c", CHURN], cwd=ROOT, capture_output=True, text=True, check=True)
    pages = 40 * 2**20 // 4096  # given back and taken again each time, it would be 50 times as many
    assert int(done.stdout) < 25 * pages

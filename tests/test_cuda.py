"""The fast paths on a GPU against the plain one. Tolerances are on losses: Adam amplifies rounding in the weights."""

import numpy as np
import pytest
import torch

import MyFramework
import MyVGG
from cifar_lab.run_folder.reader import find_run_folders, read_run

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

STEPS = 40  # an epoch of 2,000 images in batches of 50
SIZES = ["--batch-size", "50", "--train-size", "2000", "--test-size", "200"]
# The rates of the flags: those that a narrow network needs amplify rounding to several percent of the loss in 40 steps.
SMALL = ["--device", "cuda", "--width", "0.25", "--no-width-transfer", *SIZES]
FP32 = ["--precision", "fp32"]
PLAIN = [*FP32, "--no-cuda-graph", "--no-channels-last"]  # fp32, NCHW, eager
NETWORKS = {
    "vgg_a": (MyVGG, ["--lrs", "1e-4"]),
    "vgg_a_bn": (MyVGG, ["--bn", "--lrs", "1e-4"]),
    "inception": (MyFramework, ["--model", "inception"]),
    "inception_res": (MyFramework, ["--model", "inception_res", "--optimizer", "adamw"]),
}


def losses(tmp_path, data_dir, module, *flags, epochs=1) -> dict[str, np.ndarray]:
    """Trains in this process; the loss of every step, by run folder name."""
    results = tmp_path / f"results{len(list(tmp_path.iterdir()))}"
    module.main([*SMALL, "--data-dir", str(data_dir), "--results", str(results), "--epochs", str(epochs), *flags])
    torch.use_deterministic_algorithms(False)
    return {folder.name.split("-fp32")[0]: read_run(folder).losses for folder in find_run_folders(results)}


@pytest.mark.parametrize("network", NETWORKS)
def test_graph_agrees_with_eager(network, tmp_path, synthetic_data):
    module, flags = NETWORKS[network]
    graph = losses(tmp_path, synthetic_data, module, *flags, *FP32)
    eager = losses(tmp_path, synthetic_data, module, *flags, *FP32, "--no-cuda-graph")
    for name, curve in eager.items():
        assert len(curve) == STEPS
        assert np.abs(graph[name] - curve).max() <= 0.02, name


@pytest.mark.parametrize(
    "module, switches",
    [
        (MyVGG, ["--bn", "--optimizer", "muon", "--lrs", "1e-3", "--ema", "0.9", "--test-time-flip"]),
        (MyVGG, ["--bn", "--lrs", "1e-4", "--cutout", "8", "--mixup", "0.2", "--bn-images", "500"]),
        (MyFramework, ["--model", "inception", "--first-size", "24"]),
    ],
    ids=["muon, average", "cutout, mixup, statistics", "size"],
)
def test_graph_agrees_with_eager_in_todays_recipe(module, switches, tmp_path, synthetic_data):
    graph = losses(tmp_path, synthetic_data, module, *switches, *FP32, epochs=2)
    eager = losses(tmp_path, synthetic_data, module, *switches, *FP32, "--no-cuda-graph", epochs=2)
    for name, curve in eager.items():
        assert np.abs(graph[name][:STEPS] - curve[:STEPS]).max() <= 0.02, name
        assert abs(graph[name][STEPS:].mean() - curve[STEPS:].mean()) <= 0.1, name


@pytest.mark.parametrize("network", NETWORKS)
def test_everything_fast_agrees_with_the_plain_path_in_fp32(network, tmp_path, synthetic_data):
    module, flags = NETWORKS[network]
    fast = losses(tmp_path, synthetic_data, module, *flags, *FP32)
    plain = losses(tmp_path, synthetic_data, module, *flags, *PLAIN)
    for name, curve in plain.items():
        assert np.abs(fast[name] - curve).max() <= 0.02, name


@pytest.mark.parametrize("network", NETWORKS)
def test_bf16_follows_fp32(network, tmp_path, synthetic_data):
    module, flags = NETWORKS[network]
    bf16 = losses(tmp_path, synthetic_data, module, *flags)
    fp32 = losses(tmp_path, synthetic_data, module, *flags, *FP32)
    for (_, fast), (name, curve) in zip(sorted(bf16.items()), sorted(fp32.items()), strict=True):
        assert np.abs(fast[:20] - curve[:20]).max() <= 0.1, name
        assert abs(fast[20:].mean() - curve[20:].mean()) <= 0.1, name


@pytest.mark.parametrize("optimizers", [["adam", "adamw", "rmsprop", "sgd"]])
def test_lockstep_agrees_with_alone(optimizers, tmp_path, synthetic_data):
    together = losses(tmp_path, synthetic_data, MyFramework, "--optimizer", *optimizers, *FP32, "--deterministic")
    for optimizer in optimizers:
        alone = losses(tmp_path, synthetic_data, MyFramework, "--optimizer", optimizer, *FP32, "--deterministic")
        for name, curve in alone.items():
            assert np.abs(together[name] - curve).max() <= 0.02, name


@pytest.mark.parametrize("network", NETWORKS)
def test_two_equal_runs_are_bit_identical_under_deterministic(network, tmp_path, synthetic_data):
    module, flags = NETWORKS[network]
    one = losses(tmp_path, synthetic_data, module, *flags, "--deterministic")
    two = losses(tmp_path, synthetic_data, module, *flags, "--deterministic")
    for name, curve in one.items():
        assert (two[name] == curve).all(), name


def test_resumed_agrees_with_uninterrupted(tmp_path, synthetic_data):
    whole = losses(tmp_path, synthetic_data, MyFramework, "--deterministic", epochs=2)
    results = tmp_path / "parts"
    for epochs in (1, 2):
        MyFramework.main(
            [
                *SMALL,
                "--data-dir",
                str(synthetic_data),
                "--results",
                str(results),
                "--epochs",
                str(epochs),
                "--deterministic",
            ]
        )
    torch.use_deterministic_algorithms(False)
    for folder in find_run_folders(results):
        assert (read_run(folder).losses == whole[folder.name]).all()


def test_a_partial_last_batch_is_trained_on_outside_the_graph(tmp_path, synthetic_data):
    flags = ["--lrs", "1e-4", *FP32, "--batch-size", "150"]
    graph = losses(tmp_path, synthetic_data, MyVGG, *flags)
    eager = losses(tmp_path, synthetic_data, MyVGG, *flags, "--no-cuda-graph")
    for name, curve in eager.items():
        assert len(curve) == 14  # 13 whole batches and one of 50 images
        assert np.abs(graph[name] - curve).max() <= 0.02, name


def test_probes_do_not_disturb_a_captured_run(tmp_path, synthetic_data):
    flags = ["--bn", "--lrs", "1e-4", *FP32, "--deterministic"]
    without = losses(tmp_path, synthetic_data, MyVGG, *flags)
    probed = losses(tmp_path, synthetic_data, MyVGG, *flags, "--probe-every", "7")
    for curve, other in zip(without.values(), probed.values(), strict=True):
        assert (curve == other).all()

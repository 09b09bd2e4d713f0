"""The random streams, each alone: their values, that they differ between seeds and epochs, and what leaves them alone.

Order, crops, flips, angles, colors, dropout masks and initial weights are pinned by literal values: whoever changes one
of them changes every run that was made before.
"""

import hashlib
from itertools import combinations

import numpy as np
import pytest
import recorded
import torch
from torch import nn

import MyFramework
import MyVGG
from cifar_lab.networks import StepDropout
from cifar_lab.training.augment import augment
from cifar_lab.training.plan import epoch_plan

torch.set_num_threads(1)

# --- The epoch plan ---------------------------------------------------------------------------------------------------

# Of six images, at (seed, epoch).
PLANS = {
    (0, 1): {
        "order": [3, 1, 5, 0, 2, 4],
        "crop": [[2, 0, 29, 32], [2, 1, 30, 31], [1, 1, 27, 31], [3, 0, 27, 32], [1, 3, 30, 27], [1, 0, 26, 32]],
        "flip": [1, 0, 1, 0, 1, 0],
        "angle": [1.338874, 1.348997, -2.826447, 9.255796, 8.047820, 5.337124],
        "color": [
            [0.800259, 1.027176, 0.839594, -0.069949], [0.896129, 1.158908, 1.109379, 0.044484],
            [1.097892, 1.043452, 1.103571, 0.075008], [1.181541, 1.099072, 1.013413, -0.014692],
            [1.076674, 0.915305, 1.148271, -0.070884], [1.180992, 0.842382, 1.083483, -0.089832],
        ],
    },
    (0, 2): {
        "order": [5, 4, 1, 3, 2, 0],
        "crop": [[0, 0, 31, 32], [0, 0, 30, 32], [2, 1, 29, 29], [1, 0, 30, 30], [4, 1, 28, 30], [0, 2, 32, 26]],
        "flip": [1, 0, 1, 1, 0, 1],
        "angle": [-8.176031, -9.978951, -0.852173, 5.837228, 0.523735, -6.691212],
        "color": [
            [1.129262, 1.057171, 0.966743, 0.095324], [0.982889, 1.144563, 1.038881, 0.058837],
            [0.856373, 0.823456, 1.001221, -0.004412], [0.835025, 0.801128, 1.142610, -0.087478],
            [1.026464, 1.056027, 1.114091, -0.075844], [1.073488, 1.027882, 1.108243, 0.038871],
        ],
    },
    (1, 1): {
        "order": [2, 1, 5, 3, 0, 4],
        "crop": [[0, 3, 32, 28], [1, 1, 31, 27], [2, 0, 26, 32], [1, 1, 31, 29], [0, 2, 32, 30], [3, 1, 27, 31]],
        "flip": [0, 1, 0, 0, 1, 0],
        "angle": [-5.565070, -3.266968, -7.309934, -5.292308, 3.939530, 4.308401],
        "color": [
            [1.065118, 0.915045, 1.012236, -0.002859], [0.851790, 0.959539, 1.107067, 0.048124],
            [0.966847, 0.822913, 1.179776, 0.036706], [0.945572, 0.947473, 0.880027, -0.068379],
            [1.119576, 0.888729, 0.908042, -0.070828], [0.993683, 0.924119, 1.003055, 0.012424],
        ],
    },
}  # fmt: skip
# SHA-256 of order, flip and crop of 50,000 images as int64: whole numbers, the same on every machine.
WHOLE_EPOCHS = {
    (0, 1): (
        "feee428c3e25af1f585a8a2b676ea1761e81d4ffe2a1804e9921e16fc11ca1da",
        "9367870f542a2515b57cb9ae678b46e5a0b6029dce61a4858278b3986a6ce911",
        "82aa88da01edb89f39d9e313abcd0981741146a8140d6e2411db9c5971b8392f",
    ),
    (0, 2): (
        "4cc394157a2e5cea6e5c75c8f5743422701a9e70e29a8ecfeaaca4b558053c50",
        "4d902ccf81223771ac935b576930a9fa7706acb1cd631612784c7b50bb81724b",
        "3b41ba0c8c5391346bf3b8a14d01754880d232160d55aeed71686cc577fbbd29",
    ),
    (1, 1): (
        "116aaaf21dc1abf6124485d214840529e1bc7a1cfbcdd18c044642d97b597c55",
        "ba34785ac6bee0e0bdb428c41b3df39b2751c8a35fa2bd256ab2bed698250368",
        "df26e90f9a84286b43cbd70c46dc975fa15142ef17ab2a2b80f73e771cfe13d6",
    ),
}


@pytest.mark.parametrize("field", ["order", "crop", "flip", "angle", "color"])
@pytest.mark.parametrize("seed, epoch", PLANS)
def test_values_of_a_plan(seed, epoch, field):
    got = getattr(epoch_plan(seed, epoch, 6), field)
    # Angles and colors are written to six decimals; the rest is whole numbers.
    assert np.abs(got - np.array(PLANS[seed, epoch][field])).max() <= (1e-6 if field in ("angle", "color") else 0)


@pytest.mark.parametrize("seed, epoch", WHOLE_EPOCHS)
def test_values_of_the_plan_of_a_whole_epoch(seed, epoch):
    plan = epoch_plan(seed, epoch, 50_000)
    digests = [hashlib.sha256(x.astype("<i8").tobytes()).hexdigest() for x in (plan.order, plan.flip, plan.crop)]
    assert tuple(digests) == WHOLE_EPOCHS[seed, epoch]


@pytest.mark.parametrize(
    "field, low, high",  # of the share of 1,000 images for which two plans agree by chance
    [("order", 0, 0.01), ("crop", 0, 0.05), ("flip", 0.44, 0.56), ("angle", 0, 0.005), ("color", 0, 0.005)],
)
def test_each_field_of_a_plan_differs_between_seeds_and_between_epochs(field, low, high):
    # (1, 2) and (2, 1), or (0, 2) and (1, 1): a seed and an epoch that were added, or swapped, would be seen.
    plans = [getattr(epoch_plan(*at, 1_000), field) for at in ((0, 1), (0, 2), (1, 1), (1, 2), (2, 1))]
    for one, other in combinations(plans, 2):
        same = one == other
        assert low <= (same.all(axis=1) if same.ndim == 2 else same).mean() <= high


def test_the_fields_of_a_plan_are_independent_of_one_another():
    n = 20_000
    plan = epoch_plan(4, 3, n)
    drawn = [plan.order, plan.crop[:, 2] * plan.crop[:, 3], plan.crop[:, 0], plan.flip, plan.angle, *plan.color.T]
    related = np.corrcoef(drawn)
    related[1, 2] = related[2, 1] = 0  # a small crop has more places to lie
    # Four standard deviations of the correlation of n independent pairs; the largest here is 0.018.
    assert np.abs(related - np.eye(len(drawn))).max() < 4 / n**0.5


def test_the_order_visits_every_image_once_and_does_not_depend_on_augmentation():
    plan = epoch_plan(5, 2, 101)
    assert sorted(plan.order) == list(range(101))
    assert (epoch_plan(5, 2, 101, augment="none").order == plan.order).all()


# --- Dropout masks ----------------------------------------------------------------------------------------------------

MASK_SEEDS = {0: 2613022947, 1: 4010755824}  # numpy.random.SeedSequence((seed, 3)).generate_state(1)
# The first elements, dropped (0) or kept (1), at (seed, step), with p = 0.4.
MASKS = {
    (0, 0): "1110001011010111011111111111101101010011",
    (0, 1): "1111111001111011110100000001110011100111",
    (1, 0): "1110001101100101110100110001100100110001",
    (1, 1): "0001100000000011011100101111001101101010",
}


def lowbias32(x: np.ndarray) -> np.ndarray:
    """Wellons (2018), on uint32, whose products are taken modulo 2^32."""
    x = x ^ (x >> np.uint32(16))
    x = x * np.uint32(0x7FEB352D)
    x = x ^ (x >> np.uint32(15))
    x = x * np.uint32(0x846CA68B)
    return x ^ (x >> np.uint32(16))


def mask(seed: int, step: int, elements: int) -> np.ndarray:
    """Which elements the dropout layer of a run keeps at a step, counted from 0 over the whole run."""
    own = lowbias32(np.arange(elements, dtype=np.uint32) + np.uint32(MASK_SEEDS[seed]))
    return lowbias32(own ^ np.uint32(step * 0x9E3779B1 % 2**32)) >= np.uint32(0.4 * 2**32)


@pytest.mark.parametrize("seed, step", MASKS)
def test_values_of_a_mask(seed, step):
    layer = StepDropout(0.4, MASK_SEEDS[seed]).train()
    layer.step += step
    out = layer(torch.ones(4, 10))
    bits = "".join(str(int(x != 0)) for x in out.flatten())
    assert bits == MASKS[seed, step]
    assert out[out != 0].unique().tolist() == pytest.approx([1 / 0.6])
    assert "".join(str(int(x)) for x in mask(seed, step, 40)) == bits


def masks(data, words: str = "") -> list[torch.Tensor]:
    """What the dropout layer of an Inception keeps of ones, at every training step of a command line."""
    seen = []

    def watched(config):
        model = recorded.build(config)
        model.dropout.register_forward_pre_hook(lambda layer, inputs: (torch.ones_like(inputs[0]),))
        model.dropout.register_forward_hook(
            lambda layer, inputs, out: seen.append(out != 0) if layer.training and not out.is_meta else None
        )
        return model

    recorded.steps(MyFramework, data, f"--model inception {words}", watched)
    return seen


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return recorded.write_numbered(tmp_path_factory.mktemp("numbered"))


@pytest.fixture(scope="module")
def alike(tmp_path_factory):
    return recorded.write_numbered(tmp_path_factory.mktemp("alike"), alike=True)


@pytest.mark.parametrize("seed", MASK_SEEDS)
def test_masks_of_a_training_are_those_of_its_seed_and_of_steps_that_go_on_over_the_epochs(seed, data):
    seen = masks(data, f"--seed {seed}")
    assert [len(m) for m in seen] == [50, 50, 30] * 2
    for step, got in enumerate(seen):
        assert (got.flatten().numpy() == mask(seed, step, got.numel())).all(), step
        assert 0.45 < (got.flatten().numpy() == mask(1 - seed, step, got.numel())).mean() < 0.59
    for one, other in combinations(seen, 2):
        assert 0.45 < (one[:30] == other[:30]).float().mean() < 0.59  # 0.52 of 960 by chance


@pytest.mark.parametrize("words", ["--epochs 3 --test-size 7", "--no-augment --lr 1 --init xavier --bn"])
def test_masks_do_not_depend_on(words, data):
    seen = masks(data, words)
    assert len(seen) == (9 if "--epochs 3" in words else 6)
    for step, got in enumerate(seen):
        assert (got.flatten().numpy() == mask(0, step, got.numel())).all(), step


def test_runs_in_lockstep_have_the_same_masks(data):
    seen = masks(data, "--optimizer sgd adam")
    assert len(seen) == 2 * 6
    for number, got in enumerate(seen):
        assert (got.flatten().numpy() == mask(0, number // 2, got.numel())).all(), number


# --- Batches of a training --------------------------------------------------------------------------------------------


def batches(data, words: str = "") -> tuple[np.ndarray, torch.Tensor]:
    """The numbers of the images that the last run of a command line visits in its first two epochs, and the images."""
    taken = recorded.steps(MyVGG, data, words, recorded.small)
    own = [s for s in taken if s.config.seed == taken[-1].config.seed and s.config.lr == taken[-1].config.lr]
    labels = torch.cat([s.labels for s in own]).numpy()
    return labels[: 2 * recorded.TRAIN], torch.cat([s.images for s in own])[: 2 * recorded.TRAIN]


@pytest.fixture(scope="module")
def usual(data):
    return batches(data)


def test_batches_are_the_augmented_images_of_the_plan(data, usual):
    with np.load(data / "cifar10.npz") as arrays:
        pixels = torch.from_numpy(arrays["train_images"])
    plans = [epoch_plan(0, epoch, recorded.TRAIN) for epoch in (1, 2)]
    order = np.concatenate([plan.order for plan in plans])
    assert usual[0].tolist() == order.tolist()
    expected = augment(pixels[order], torch.from_numpy(np.concatenate([plan.table() for plan in plans])))
    assert (usual[1] - expected).abs().max() <= 1e-6  # 0 here; other batches may be summed in another order


def test_without_augmentation_batches_are_the_images_as_they_are(data, usual):
    order, images = batches(data, "--no-augment")
    with np.load(data / "cifar10.npz") as arrays:
        expected = arrays["train_images"][order].astype(np.float64) / 255 * 2 - 1
    assert order.tolist() == usual[0].tolist()
    assert np.abs(images.numpy() - expected.transpose(0, 3, 1, 2)).max() <= 1e-6
    assert (images - usual[1]).abs().mean() > 0.1


@pytest.mark.parametrize(
    "words",
    [
        "--epochs 3", "--batch-size 40", "--test-size 7", "--bn", "--optimizer sgd", "--weight-decay 0", "--width 0.5",
        "--init xavier", "--lrs 1e-2 1e-3", "--lrs 1e-4", "--seed 1 0", "--probe-every 0", "--no-bias-decay",
    ],
)  # fmt: skip
def test_batches_do_not_depend_on(words, data, usual):
    order, images = batches(data, words)
    assert order.tolist() == usual[0].tolist()
    assert (images - usual[1]).abs().max() <= 1e-6


def test_the_order_of_a_training_differs_between_seeds_and_epochs(data, usual):
    other, _ = batches(data, "--seed 1 --no-augment")
    epochs = [*usual[0].reshape(2, -1), *other.reshape(2, -1)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(recorded.TRAIN))
    for one, another in combinations(epochs, 2):
        assert (one == another).mean() < 0.05


def test_the_augmentation_of_a_training_differs_between_seeds_epochs_and_images(alike):
    """All images are the same one, so that the order cannot make the difference."""
    seen = [*batches(alike)[1].split(recorded.TRAIN), *batches(alike, "--seed 1")[1].split(recorded.TRAIN)]
    for one, other in combinations(seen, 2):
        # Two augmentations of noise differ by 0.4; by 0.1 where only the colors do.
        assert (one - other).abs().mean(dim=(1, 2, 3)).min() > 0.02
        assert (one[1:] - other[:-1]).abs().mean(dim=(1, 2, 3)).min() > 0.02
    assert (seen[0][1:] - seen[0][:-1]).abs().mean(dim=(1, 2, 3)).min() > 0.02


# --- Initial weights --------------------------------------------------------------------------------------------------

# At seed 0, by network, initialization and width: the first weight of the first layer, the last of the middle one, the
# last of the output layer, and the output layer's last bias. With BatchNorm VGG-A draws the same.
WEIGHTS = [
    ("vgg_a", "he", "0.125", 0.660100, -0.034946, -0.078091, -0.031495),
    ("vgg_a", "he", "0.25", 0.068863, 0.052580, -0.088364, -0.076011),
    ("vgg_a", "he", "1", -0.173709, 0.021196, -0.042701, -0.029119),
    ("vgg_a", "pytorch", "0.125", -0.148790, 0.011392, -0.078091, -0.031495),
    ("vgg_a", "pytorch", "0.25", -0.148790, 0.001757, -0.088364, -0.076011),
    ("vgg_a", "pytorch", "1", -0.148790, 0.013330, -0.042701, -0.029119),
    ("vgg_a", "xavier", "0.125", 0.238069, 0.052396, -0.210420, 0),
    ("vgg_a", "xavier", "0.25", -0.161532, -0.028560, 0.061943, 0),
    ("vgg_a", "xavier", "1", 0.019541, -0.008628, -0.019793, 0),
    ("inception", "he", "0.125", -0.406844, 0.035275, -0.022782, 0.037869),
    ("inception", "he", "0.25", -0.339037, 0.016467, 0.046294, -0.038756),
    ("inception", "he", "1", -0.219717, -0.032882, -0.031229, -0.023138),
    ("inception", "pytorch", "0.125", -0.148790, -0.055376, -0.022782, 0.037869),
    ("inception", "pytorch", "0.25", -0.148790, -0.017833, 0.046294, -0.038756),
    ("inception", "pytorch", "1", -0.148790, -0.011628, -0.031229, -0.023138),
    ("inception", "xavier", "0.125", 0.186456, 0.052705, 0.073135, 0),
    ("inception", "xavier", "0.25", 0.182616, -0.011366, 0.148405, 0),
    ("inception", "xavier", "1", 0.008706, 0.014639, -0.064137, 0),
    ("inception_res", "he", "0.125", 0.238187, -0.037466, 0.078917, -0.077128),
    ("inception_res", "he", "0.25", -0.283393, -0.159607, -0.026671, 0.004520),
    ("inception_res", "he", "1", -0.174621, -0.023257, 0.016130, 0.006470),
    ("inception_res", "pytorch", "0.125", -0.148790, 0.031801, 0.078917, -0.077128),
    ("inception_res", "pytorch", "0.25", -0.148790, -0.037935, -0.026671, 0.004520),
    ("inception_res", "pytorch", "1", -0.148790, -0.005364, 0.016130, 0.006470),
    ("inception_res", "xavier", "0.125", -0.078058, 0.109835, 0.068920, 0),
    ("inception_res", "xavier", "0.25", -0.027565, 0.058237, -0.068498, 0),
    ("inception_res", "xavier", "1", -0.037464, 0.007628, 0.047556, 0),
]


def layers(model: nn.Module) -> list[nn.Module]:
    return [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]


@pytest.mark.parametrize("name, init, width, first, middle, last, bias", WEIGHTS)
def test_values_of_initial_weights(name, init, width, first, middle, last, bias, data):
    for variant in (name, "vgg_a_bn") if name == "vgg_a" else (name,):
        script, words = recorded.NETWORKS[variant]
        drawn = layers(recorded.network(script, data, f"{words} --init {init} --width {width}"))
        got = [
            drawn[0].weight.flatten()[0], drawn[len(drawn) // 2].weight.flatten()[-1], drawn[-1].weight.flatten()[-1],
            drawn[-1].bias[-1],
        ]  # fmt: skip
        # Half of the last decimal, and what another vector width may make of the logarithm in a normal draw.
        assert [x.item() for x in got] == pytest.approx([first, middle, last, bias], abs=2e-6)


def initial(name: str, data, words: str = "") -> dict[str, torch.Tensor]:
    """The weights of a network before training."""
    script, own = recorded.NETWORKS[name]
    return recorded.network(script, data, f"{own} {words}").state_dict()


@pytest.mark.parametrize("name", recorded.NETWORKS)
def test_every_initial_weight_differs_between_seeds(name, data):
    drawn = [initial(name, data, f"--seed {seed}") for seed in (0, 1, 2)]
    for one, other in combinations(drawn, 2):
        assert {key for key in one if one[key].ndim > 1 and (one[key] == other[key]).any()} == set()


@pytest.mark.parametrize(
    "words",
    ["--epochs 2", "--batch-size 40", "--test-size 7", "--train-size 100", "--no-augment", "--weight-decay 0",
     "--optimizer sgd", "--optimizer sgd --momentum 0.9", "--no-channels-last"],
)  # fmt: skip
@pytest.mark.parametrize("name", ["vgg_a", "inception_res"])
def test_initial_weights_do_not_depend_on(words, name, data):
    one, other = initial(name, data), initial(name, data, words)
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize(
    "name, words", [("vgg_a_bn", "--lrs 1e-2 1e-3 5e-5"), ("inception", "--optimizer sgd adam rmsprop")]
)
def test_runs_in_lockstep_start_from_the_weights_of_a_run_alone(name, words, data):
    script, own = recorded.NETWORKS[name]
    alone = initial(name, data)
    together = recorded.steps(script, data, f"{own} --no-width-transfer --epochs 1 {words}")[:3]
    assert len({(s.config.lr, s.config.optimizer) for s in together}) == 3
    for step in together:
        assert all(torch.equal(step.weights[key], alone[key]) for key in alone)

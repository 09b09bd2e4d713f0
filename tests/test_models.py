"""The networks: against hand-written ones and torchvision's, parameter counts, widths, initialization, dropout."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.vgg import cfgs, make_layers

import MyFramework
import MyVGG
from cifar_lab.networks import StepDropout, build, initialize, scaled
from cifar_lab.settings import RunConfig

torch.set_num_threads(1)


# The report's table: 1x1, 3x3 reduce, 3x3, 5x5 reduce, 5x5, pool projection.
BLOCKS = {
    "3a": (64, 96, 128, 16, 32, 32), "3b": (128, 128, 192, 32, 96, 64), "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64), "4c": (128, 128, 256, 24, 64, 64), "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128), "5a": (256, 160, 320, 32, 128, 128), "5b": (384, 192, 384, 48, 128, 128),
}  # fmt: skip


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def conv(channels: int, out: int, kernel: int) -> int:
    return channels * out * kernel**2 + out


def inception_by_hand(width: float = 1.0) -> tuple[int, int]:
    """Parameters of the plain network, and what the projections of the residual one add."""

    def s(c: int) -> int:
        return max(8, math.floor(c * width / 8 + 0.5) * 8)

    total = conv(3, s(64), 3) + conv(s(64), s(192), 3)
    projections = 0
    channels = s(192)
    for table in BLOCKS.values():
        c1, r3, c3, r5, c5, pool = map(s, table)
        total += conv(channels, c1, 1) + conv(channels, r3, 1) + conv(r3, c3, 3)
        total += conv(channels, r5, 1) + conv(r5, c5, 5) + conv(channels, pool, 1)
        out = c1 + c3 + c5 + pool
        projections += conv(channels, out, 1) if channels != out else 0
        channels = out
    return total + channels * 10 + 10, projections


def test_parameter_counts_of_the_report():
    assert inception_by_hand() == (5_971_962, 7_954_986 - 5_971_962)
    assert parameters(MyFramework.Inception()) == 5_971_962
    assert parameters(MyFramework.Inception(residual_scale=0.2)) == 7_954_986
    assert parameters(MyVGG.VGG_A()) == 9_750_922
    assert parameters(MyVGG.VGG_BatchNorm()) == 9_758_474


@pytest.mark.parametrize("width", [0.25, 0.125])
def test_parameter_counts_at_other_widths(width):
    plain, projections = inception_by_hand(width)
    assert parameters(MyFramework.Inception(width=width)) == plain
    assert parameters(MyFramework.Inception(width=width, residual_scale=0.2)) == plain + projections


@pytest.mark.parametrize(
    "channels, width, expected",
    [
        (64, 1, 64), (16, 0.25, 8), (192, 0.125, 24), (20, 0.5, 8), (24, 0.5, 16), (3, 2, 8), (96, 0.25, 24),
        (208, 0.125, 24), (112, 0.125, 16), (288, 0.125, 40), (512, 0.03, 16), (64, 1.5, 96), (64, 8, 512),
    ],
)  # fmt: skip
def test_width_scales_to_multiples_of_8(channels, width, expected):
    assert scaled(channels, width) == expected


# --- Against hand-written networks, in float64 ------------------------------------------------------------------------

TOLERANCE = 1e-12  # of the largest value: rounding over up to 22 layers; the largest difference seen is 1.1e-13


class Layers:
    """The convolutions and BatchNorms of a network in its order, applied by hand; every one is to be used."""

    def __init__(self, model: nn.Module) -> None:
        self.convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
        self.norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]

    def convolution(self, x: Tensor, out: int, kernel: int, *, relu: bool = True) -> Tensor:
        """The next convolution, its BatchNorm over the batch if there is one, and ReLU."""
        layer = self.convolutions.pop(0)
        assert layer.weight.shape == (out, x.shape[1], kernel, kernel)
        x = F.conv2d(x, layer.weight, layer.bias, stride=1, padding=kernel // 2)
        if self.norms:
            norm = self.norms.pop(0)
            mean, variance = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), unbiased=False, keepdim=True)
            x = (x - mean) / (variance + 1e-5).sqrt() * norm.weight.view(-1, 1, 1) + norm.bias.view(-1, 1, 1)
        return x.clamp(min=0) if relu else x

    def block(
        self, x: Tensor, table: tuple[int, ...], residual_scale: float | None, side: str = "branch"
    ) -> Tensor:  # fmt: skip
        """An Inception block: GoogLeNet's without `residual_scale`, else that of Inception-v4's figure 20."""
        c1, reduce3, c3, reduce5, c5, pool = table
        last = residual_scale is None  # whether the last convolution of a branch has a ReLU
        one = self.convolution(x, c1, 1, relu=last)
        three = self.convolution(self.convolution(x, reduce3, 1), c3, 3, relu=last)
        five = self.convolution(self.convolution(x, reduce5, 1), c5, 5, relu=last)
        pooled = self.convolution(F.max_pool2d(x, 3, stride=1, padding=1), pool, 1, relu=last)
        branches = torch.cat([one, three, five, pooled], 1)
        if residual_scale is None:
            return branches
        same = x.shape[1] == branches.shape[1]
        shortcut = x if same else self.convolution(x, branches.shape[1], 1, relu=False)
        if side == "shortcut":
            return (residual_scale * shortcut + branches).clamp(min=0)
        return (shortcut + residual_scale * branches).clamp(min=0)

    def inception(self, x: Tensor, width: float, residual_scale: float | None) -> Tensor:
        """(B, 3, 32, 32) to the features before dropout, (B, channels)."""

        def s(c: int) -> int:
            return max(8, math.floor(c * width / 8 + 0.5) * 8)

        x = F.max_pool2d(self.convolution(x, s(64), 3), 3, stride=2, padding=1)
        x = F.max_pool2d(self.convolution(x, s(192), 3), 3, stride=2, padding=1)
        for name, table in BLOCKS.items():
            x = self.block(x, tuple(map(s, table)), residual_scale)
            if name == "3b":
                x = F.max_pool2d(x, 3, stride=2, padding=1)
            if name == "4e":
                x = F.max_pool2d(x, 2, stride=2)
        return x.mean((2, 3))

    def all_used(self) -> bool:
        return not self.convolutions and not self.norms


def uneven(model: nn.Module) -> nn.Module:
    """In float64, with biases, and BatchNorm's scales and shifts, that are neither 0 nor 1."""
    torch.manual_seed(2)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.normal_(module.weight, 0.7, 0.5)
            nn.init.normal_(module.bias, 0.3, 0.5)
        elif isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.normal_(module.bias, 0.1, 0.5)
    return model.double().train()


def assert_same(got: Tensor, expected: Tensor) -> None:
    assert got.shape == expected.shape
    assert (got - expected).abs().max() <= TOLERANCE * expected.abs().max()


@pytest.mark.parametrize("bn", [False, True])
@pytest.mark.parametrize("side", ["branch", "shortcut"])
@pytest.mark.parametrize("residual_scale", [None, 0.2, 1.0])
@pytest.mark.parametrize("channels", [7, 15])  # 15 go in and come out: the shortcut is the identity
def test_a_block_is_the_one_written_by_hand(channels, residual_scale, side, bn):
    table = (1, 2, 3, 4, 5, 6)
    block = uneven(MyFramework.Block(channels, table, residual_scale=residual_scale, bn=bn, residual_side=side))
    x = torch.randn(3, channels, 5, 4, dtype=torch.float64)
    layers = Layers(block)
    assert_same(block(x), layers.block(x, table, residual_scale, side))
    assert layers.all_used()


INCEPTIONS = {
    "inception": (RunConfig("inception", width=0.125), None),
    "inception_bn": (RunConfig("inception_bn", width=0.125), None),
    "inception_res": (RunConfig("inception_res", width=0.125), 0.2),
    "inception_res_bn": (RunConfig("inception_res_bn", width=0.125), 0.2),
    "inception_res, scale 1": (RunConfig("inception_res", width=0.25, options={"residual_scale": 1.0}), 1.0),
}


@pytest.mark.parametrize("name", INCEPTIONS)
def test_inception_is_the_one_written_by_hand(name):
    config, residual_scale = INCEPTIONS[name]
    model = uneven(build(config))
    before_and_after = []
    model.dropout.register_forward_hook(lambda layer, inputs, out: before_and_after.extend([inputs[0], out]))
    images = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    layers = Layers(model)
    features = layers.inception(images, config.width, residual_scale)
    assert layers.all_used()
    logits = model(images)
    assert_same(before_and_after[0], features)
    dropped = before_and_after[1]
    kept = dropped != 0
    assert 0.4 < kept[features != 0].double().mean() < 0.8
    assert_same(dropped, features * kept / 0.6)
    assert_same(logits, dropped @ model.output.weight.T + model.output.bias)
    if not config.model.endswith("_bn"):
        assert_same(model.eval()(images), features @ model.output.weight.T + model.output.bias)


def test_inception_drops_two_features_in_five():
    out = MyFramework.Inception(width=0.125).train().dropout(torch.ones(500, 1_000))
    assert (out == 0).float().mean().item() == pytest.approx(0.4, abs=0.002)  # 3 standard deviations
    assert out[out != 0].unique().tolist() == pytest.approx([1 / 0.6])


@pytest.mark.parametrize("model", ["vgg_a", "vgg_a_bn"])
def test_vgg_agrees_with_torchvision_in_training(model):
    bn = model.endswith("_bn")
    ours = uneven(build(RunConfig(model)))
    theirs = make_layers(cfgs["A"], batch_norm=bn).double().train()
    kinds = nn.Conv2d | nn.BatchNorm2d
    own, reference = ([m for m in net if isinstance(m, kinds)] for net in (ours.features, theirs))
    for one, other in zip(own, reference, strict=True):
        other.load_state_dict(one.state_dict())
    images = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    x = theirs(images).flatten(1)
    linear = [m for m in ours.head if isinstance(m, nn.Linear)]
    norms = [m for m in ours.head if isinstance(m, nn.BatchNorm1d)]
    assert [(m.in_features, m.out_features) for m in linear] == [(512, 512), (512, 512), (512, 10)]
    assert len(norms) == 2 * bn
    for i, layer in enumerate(linear):
        x = x @ layer.weight.T + layer.bias
        if i == 2:
            break
        if bn:
            x = (x - x.mean(0)) / (x.var(0, unbiased=False) + 1e-5).sqrt() * norms[i].weight + norms[i].bias
        x = x.clamp(min=0)
    assert_same(ours(images), x)


VGG_CHANNELS = {
    1.0: (64, 128, 256, 256, 512, 512, 512, 512),
    0.25: (16, 32, 64, 64, 128, 128, 128, 128),
    0.125: (8, 16, 32, 32, 64, 64, 64, 64),
}


@pytest.mark.parametrize("width", VGG_CHANNELS)
@pytest.mark.parametrize("model", ["vgg_a", "vgg_a_bn"])
def test_layers_of_vgg(model, width):
    net = build(RunConfig(model, width=width))
    channels = VGG_CHANNELS[width]
    pairs = list(zip((3, *channels), channels, strict=False))
    convolutions = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
    assert [(m.in_channels, m.out_channels) for m in convolutions] == pairs
    assert {(m.kernel_size, m.stride, m.padding) for m in convolutions} == {((3, 3), (1, 1), (1, 1))}
    n = channels[-1]
    expected = sum(conv(a, b, 3) for a, b in pairs) + 2 * (n * n + n) + n * 10 + 10
    assert parameters(net) == expected + (2 * (sum(channels) + 2 * n) if model == "vgg_a_bn" else 0)


# --- Shapes and names -------------------------------------------------------------------------------------------------


def test_output_sizes_of_the_inception_table():
    sizes = []
    model = MyFramework.Inception()
    for module in model.features:
        if isinstance(module, MyFramework.Block):
            module.register_forward_hook(lambda m, i, out: sizes.append(tuple(out.shape[1:])))
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 10)
    channels = (256, 480, 512, 512, 512, 528, 832, 832, 1024)
    pixels = (8, 8, 4, 4, 4, 4, 4, 2, 2)
    assert sizes == [(c, p, p) for c, p in zip(channels, pixels, strict=True)]


@pytest.mark.parametrize("module, model", [(MyVGG, "vgg_a_bn"), (MyFramework, "inception_res_bn")])
def test_every_batch_norm_has_the_usual_settings(module, model):
    norms = [m for m in build(RunConfig(model)).modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    assert {(m.eps, m.momentum, m.affine, m.track_running_stats) for m in norms} == {(1e-5, 0.1, True, True)}


def test_batch_norm_does_not_change_what_is_drawn():
    torch.manual_seed(1)
    plain = MyVGG.VGG_A(width=0.25)
    torch.manual_seed(1)
    normalized = MyVGG.VGG_BatchNorm(width=0.25)
    pairs = zip(
        *([m.weight for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear)] for net in (plain, normalized)),
        strict=True,
    )
    assert all(torch.equal(a, b) for a, b in pairs)


# --- Initialization, dropout ------------------------------------------------------------------------------------------


def test_dropout_has_seed_0_until_it_is_given_another():
    ones = torch.ones(50)
    assert torch.equal(StepDropout(0.4)(ones), StepDropout(0.4, 0)(ones))
    assert not torch.equal(StepDropout(0.4)(ones), StepDropout(0.4, 1)(ones))


def test_the_channel_tables_are_those_of_the_papers():
    """Counts are rounded to multiples of 8: networks of slightly other tables can look the same."""
    assert (MyFramework.STEM, MyFramework.DROPOUT_RATE) == ((64, 192), 0.4)
    assert MyFramework.BLOCKS == (
        (64, 96, 128, 16, 32, 32), (128, 128, 192, 32, 96, 64), (3, 1), (192, 96, 208, 16, 48, 64),
        (160, 112, 224, 24, 64, 64), (128, 128, 256, 24, 64, 64), (112, 144, 288, 32, 64, 64),
        (256, 160, 320, 32, 128, 128), (2, 0), (256, 160, 320, 32, 128, 128), (384, 192, 384, 48, 128, 128),
    )  # fmt: skip
    assert MyVGG.COLUMN_A == (64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M") and MyVGG.HIDDEN == 512


def drawn(make, init: str) -> nn.Module:
    """A network at width 1 with weights of an initialization."""
    model = make()
    initialize(model, init)
    return model


@pytest.mark.parametrize("init", ["he", "xavier", "pytorch"])
def test_initialization_has_the_variance_of_its_paper(init):
    torch.manual_seed(0)
    model = drawn(MyVGG.VGG_A, init)
    hidden = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)][:-1]
    for layer in hidden:
        fan_in, fan_out = layer.weight[0].numel(), layer.weight[:, 0].numel()
        expected = {"he": 2 / fan_in, "xavier": 2 / (fan_in + fan_out), "pytorch": 1 / (3 * fan_in)}[init]
        # 1,728 weights in the first layer: the standard deviation of their variance is 3.4%, of the others' below 0.6%.
        assert layer.weight.var().item() == pytest.approx(expected, rel=0.1 if layer is hidden[0] else 0.015)
        furthest = (layer.weight.abs().max() / expected**0.5).item()  # uniform: the square root of 3
        assert furthest > 3 if init == "he" else 1.7 < furthest <= 3**0.5 + 1e-6
        assert (layer.bias == 0).all() if init != "pytorch" else (layer.bias != 0).all()


@pytest.mark.parametrize(
    "make, fan_in", [(MyVGG.VGG_A, 512), (MyVGG.VGG_BatchNorm, 512), (MyFramework.Inception, 1024)]
)
def test_he_leaves_the_output_layer_as_pytorch_drew_it(make, fan_in):
    torch.manual_seed(0)
    output = [m for m in drawn(make, "he").modules() if isinstance(m, nn.Linear)][-1]
    assert output.weight.shape == (10, fan_in)
    # 5,120 weights or more: the standard deviation of a uniform variance is 1.3%.
    assert output.weight.var().item() == pytest.approx(1 / (3 * fan_in), rel=0.05)
    assert (output.bias != 0).all() and output.bias.abs().max() <= fan_in**-0.5


def test_xavier_draws_the_output_layer_too():
    torch.manual_seed(0)
    output = drawn(MyVGG.VGG_A, "xavier").head[-1]
    assert output.weight.var().item() == pytest.approx(2 / (512 + 10), rel=0.05)
    assert (output.bias == 0).all()


def test_activations_keep_their_scale_under_he():
    images = torch.randn(64, 3, 32, 32)
    torch.manual_seed(0)
    he = drawn(MyVGG.VGG_A, "he")(images).std()
    torch.manual_seed(0)
    default = drawn(MyVGG.VGG_A, "pytorch")(images).std()
    assert he > 20 * default


def test_dropout_is_a_function_of_seed_and_step():
    x = torch.ones(1_000, 100)
    layer = StepDropout(0.4, seed=1).train()
    first = layer(x)
    assert torch.equal(layer(x), first)
    assert first.eq(0).float().mean().item() == pytest.approx(0.4, abs=0.01)
    assert first.max().item() == pytest.approx(1 / 0.6)
    layer.step += 1
    second = layer(x)
    both = (first.eq(0) & second.eq(0)).float().mean().item()
    assert both == pytest.approx(0.16, abs=0.01)  # independent from step to step
    neighbours = (first[:, 1:].eq(0) & first[:, :-1].eq(0)).float().mean().item()
    assert neighbours == pytest.approx(0.16, abs=0.01)
    other = StepDropout(0.4, seed=2).train()
    assert (other(x).eq(0) & first.eq(0)).float().mean().item() == pytest.approx(0.16, abs=0.01)
    assert torch.equal(layer.eval()(x), x)


@pytest.mark.parametrize(
    "module, model",
    [(MyVGG, "vgg_a"), (MyVGG, "vgg_a_bn"), (MyFramework, "inception"), (MyFramework, "inception_res_bn")],
)
def test_build_gives_the_network_that_the_name_says(module, model):
    net = build(RunConfig(model, width=0.125))
    assert net(torch.randn(2, 3, 32, 32)).shape == (2, 10)
    assert any(isinstance(m, nn.BatchNorm2d) for m in net.modules()) == model.endswith("_bn")

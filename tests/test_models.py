"""The networks: parameter counts worked out by hand, shapes, widths, initialization, and torchvision as a reference."""

import math

import pytest
import torch
import torchvision
from torch import nn

import MyFramework
import MyVGG
from cifar_lab.config import RunConfig
from cifar_lab.layers import StepDropout, scaled


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
    for table in (
        (64, 96, 128, 16, 32, 32), (128, 128, 192, 32, 96, 64), (192, 96, 208, 16, 48, 64), (160, 112, 224, 24, 64, 64),
        (128, 128, 256, 24, 64, 64), (112, 144, 288, 32, 64, 64), (256, 160, 320, 32, 128, 128),
        (256, 160, 320, 32, 128, 128), (384, 192, 384, 48, 128, 128),
    ):  # fmt: skip
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
    "channels, width, expected", [(64, 1, 64), (16, 0.25, 8), (192, 0.125, 24), (20, 0.5, 8), (24, 0.5, 16), (3, 2, 8)]
)
def test_width_scales_to_multiples_of_8(channels, width, expected):
    assert scaled(channels, width) == expected


def test_vgg_agrees_with_torchvision_given_the_same_weights():
    torch.manual_seed(0)
    ours = MyVGG.VGG_A().eval()
    reference = nn.Sequential(torchvision.models.vgg11().features, nn.Flatten(), ours.head).eval()
    theirs = [m for m in reference[0] if isinstance(m, nn.Conv2d)]
    mine = [m for m in ours.features if isinstance(m, nn.Conv2d)]
    for a, b in zip(mine, theirs, strict=True):
        b.load_state_dict(a.state_dict())
    images = torch.randn(4, 3, 32, 32)
    with torch.inference_mode():
        assert torch.allclose(ours(images), reference(images), atol=1e-5)


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


def test_residual_block_is_the_scaled_sum_of_its_paths():
    torch.manual_seed(0)
    block = MyFramework.Block(16, (8, 8, 8, 8, 8, 8), residual_scale=0.2, bn=False)
    assert not any(isinstance(branch[-1], nn.ReLU) for branch in block.branches)
    x = torch.randn(2, 16, 4, 4)
    expected = torch.relu(block.shortcut(x) + 0.2 * torch.cat([b(x) for b in block.branches], 1))
    assert torch.allclose(block(x), expected, atol=1e-6)
    same = MyFramework.Block(32, (8, 8, 8, 8, 8, 8), residual_scale=0.2, bn=False)
    assert isinstance(same.shortcut, nn.Identity)


def test_batch_norm_follows_every_convolution():
    for model in (MyFramework.Inception(bn=True, residual_scale=0.2), MyVGG.VGG_BatchNorm()):
        kinds = [
            type(m) for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear | nn.BatchNorm2d | nn.BatchNorm1d)
        ]
        for i, kind in enumerate(kinds):
            if kind is nn.Conv2d:
                assert kinds[i + 1] is nn.BatchNorm2d
    assert [type(m) for m in MyVGG.VGG_BatchNorm().head] == [nn.Linear, nn.BatchNorm1d, nn.ReLU] * 2 + [nn.Linear]


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


@pytest.mark.parametrize("init", ["he", "xavier", "pytorch"])
def test_initialization_has_the_variance_of_its_paper(init):
    torch.manual_seed(0)
    model = MyVGG.VGG_A(init=init)
    for layer in [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)][1:-1]:
        fan_in = layer.weight[0].numel()
        fan_out = layer.weight[:, 0].numel()
        expected = {"he": 2 / fan_in, "xavier": 2 / (fan_in + fan_out), "pytorch": 1 / (3 * fan_in)}[init]
        assert layer.weight.var().item() == pytest.approx(expected, rel=0.05)
        assert (layer.bias == 0).all() == (init != "pytorch")


def test_activations_keep_their_scale_under_he():
    images = torch.randn(64, 3, 32, 32)
    torch.manual_seed(0)
    he = MyVGG.VGG_A(init="he")(images).std()
    torch.manual_seed(0)
    default = MyVGG.VGG_A(init="pytorch")(images).std()
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
    net = module.build(RunConfig(model, width=0.125))
    assert net(torch.randn(2, 3, 32, 32)).shape == (2, 10)
    assert any(isinstance(m, nn.BatchNorm2d) for m in net.modules()) == model.endswith("_bn")

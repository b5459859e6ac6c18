"""The networks have the published sizes, run on any image size they should, and refuse impossible depths."""

import re

import pytest
import torch
import torch.nn.functional as F

import hessprune as hp
from hessprune.errors import ArgumentError
from hessprune.lab.models import available_models, build_model
from hessprune.lab.models.densenet import DenseNet
from hessprune.lab.models.mobilenet import InvertedResidual, MobileNetTiny, SqueezeExcite
from hessprune.lab.models.preresnet import PreResNet
from hessprune.lab.models.resnet import ResNet, Subsample
from hessprune.lab.models.vgg import VGG
from hessprune.lab.models.vit import VisionTransformer
from hessprune.lab.models.wide_resnet import WideResNet

# Millions of parameters as printed in the papers, to the printed digit.
PUBLISHED = [
    ("resnet20", 10, 0.27, 2),  # He et al. (2016), table 6
    ("resnet32", 10, 0.46, 2),
    ("resnet44", 10, 0.66, 2),
    ("resnet56", 10, 0.85, 2),
    ("resnet110", 10, 1.7, 1),
    ("resnet32-b", 10, 0.466906, 6),  # EHAP
    ("resnet56-b", 10, 0.855770, 6),
    ("wrn28-8", 10, 23.36, 2),
    ("wrn28-10", 10, 36.5, 1),  # Zagoruyko and Komodakis (2016), table 4
    ("vgg19-bn", 10, 20.04, 2),  # Liu et al. (2017), table 1
    ("vgg19-bn", 100, 20.08, 2),
    ("densenet40", 10, 1.02, 2),
    ("densenet40", 100, 1.06, 2),
]


def count(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(("name", "num_classes", "millions", "digits"), PUBLISHED)
def test_parameter_count_is_the_published_one(name, num_classes, millions, digits):
    assert round(count(build_model(name, num_classes=num_classes)) / 1e6, digits) == millions


@pytest.mark.parametrize(
    ("name", "expected"), [("resnet20", 269_722), ("resnet20-b", 272_474), ("vgg16-bn", 14_724_042)]
)
def test_parameter_count_in_full(name, expected):
    assert count(build_model(name, num_classes=10)) == expected


def test_preresnet29_counts_by_hand():
    """Nine bottlenecks of 1×1, 3×3, 1×1 at one width: 11 c² weights, two of them entered from half the width."""
    widths = (64, 128, 256)
    convolutions = sum(3 * 11 * c * c for c in widths) - sum(c * c // 2 for c in widths[1:])
    shortcuts = sum(c * c // 2 for c in widths[1:])
    normalisations = sum(2 * 9 * c for c in widths) - sum(c for c in widths[1:]) + 2 * 256
    expected = 3 * 64 * 9 + convolutions + shortcuts + normalisations + 257 * 10
    assert count(build_model("preresnet29", num_classes=10)) == expected == 2_851_018


def test_wide_resnet_without_biases_is_the_original():
    assert count(WideResNet(28, num_classes=10, widen=8, bias=False)) == 23_354_842


@pytest.mark.parametrize("name", sorted(set(available_models()) - {"wrn28-8", "wrn28-10"}))
def test_one_channel_and_odd_sizes_run(name):
    model = build_model(name, num_classes=7, in_channels=1).eval()
    with torch.no_grad():
        assert model(torch.rand(2, 1, 33, 35)).shape == (2, 7)


def test_wide_resnet_runs():
    model = WideResNet(10, num_classes=7, widen=2).eval()
    assert model(torch.rand(2, 3, 16, 16)).shape == (2, 7)


@pytest.mark.parametrize("name", ["digits-resnet", "mobilenet-tiny"])
def test_small_models_take_the_digits(name):
    model = build_model(name, num_classes=10, in_channels=1).train()
    output = model(torch.rand(4, 1, 8, 8))
    output.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert count(model) < 100_000


def test_compact_transformer_has_heads_and_neurons_to_prune():
    model, x = VisionTransformer(10, depth=2), torch.rand(1, 3, 8, 8)
    units = [(group.kind, group.num_units) for group in hp.find_groups(model, x) if group.name.startswith("blocks")]
    assert units == [("heads", 6), ("neurons", 384)] * 2
    smaller = hp.prune(model, x, [x], budget=hp.Budget(macs=0.5), method="magnitude", compensate=False).model
    assert smaller(torch.rand(2, 3, 12, 12)).shape == (2, 10)


def test_option_a_shortcut_subsamples_and_pads_zeros_on_both_sides():
    shortcut = ResNet(8, num_classes=2, width=4).layer2[0].shortcut
    x = torch.rand(1, 4, 5, 5)
    expected = torch.zeros(1, 8, 3, 3)
    expected[:, 2:6] = x[:, :, ::2, ::2]
    torch.testing.assert_close(shortcut(x), expected, rtol=0, atol=0)
    assert repr(shortcut[0]) == "Subsample(stride=2)"
    assert isinstance(shortcut[0], Subsample)


def test_dense_layer_keeps_its_input_first():
    model = DenseNet(22, num_classes=2, growth=4).eval()
    x = torch.rand(1, 16, 4, 4)
    out = model.dense1[0](x)
    assert out.shape == (1, 20, 4, 4)
    assert torch.equal(out[:, :16], x)


@torch.no_grad()
def randomise(module: torch.nn.Module) -> torch.nn.Module:
    """Give BatchNorm statistics and scales that matter, and switch to evaluation."""
    for tensor in [*module.parameters(), *module.buffers()]:
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape) + 0.1)
    return module.eval()


def test_wide_block_projects_the_activation_and_carries_the_input():
    first, second = randomise(WideResNet(16, num_classes=2, widen=1).layer2)
    x = torch.randn(2, 16, 6, 6)
    active = F.relu(first.bn1(x))
    torch.testing.assert_close(first(x), first.conv2(F.relu(first.bn2(first.conv1(active)))) + first.shortcut(active))
    x = torch.randn(2, 32, 6, 6)
    torch.testing.assert_close(second(x), second.conv2(F.relu(second.bn2(second.conv1(F.relu(second.bn1(x)))))) + x)


@pytest.mark.parametrize("stage", ["layer1", "layer2"])
def test_preactivation_bottleneck_adds_its_raw_input(stage):
    block = randomise(getattr(PreResNet(11, num_classes=2, width=4), stage))[0]
    x = torch.randn(2, 4, 6, 6)
    branch = block.conv1(F.relu(block.bn1(x)))
    branch = block.conv3(F.relu(block.bn3(block.conv2(F.relu(block.bn2(branch))))))
    torch.testing.assert_close(block(x), branch + (x if stage == "layer1" else block.downsample(x)))


def test_squeeze_excite_scales_each_channel_by_its_gate():
    gate = SqueezeExcite(4, 2)
    x = torch.rand(3, 4, 5, 5)
    closed, opened = torch.full((4,), -3.0), torch.full((4,), 3.0)
    torch.nn.init.zeros_(gate.fc2.weight)
    for bias, factor in ((closed, 0), (opened, 1), (torch.zeros(4), 0.5)):
        gate.fc2.bias.data = bias
        torch.testing.assert_close(gate(x), factor * x)


def test_inverted_residual_adds_only_where_the_shape_stays():
    kept, changed = InvertedResidual(4, 4, 1, expansion=2), InvertedResidual(4, 4, 2, expansion=2)
    x = torch.rand(1, 4, 6, 6)
    for block in (kept, changed):
        torch.nn.init.zeros_(block.eval().project.weight)
    torch.testing.assert_close(kept(x), x)
    torch.testing.assert_close(changed(x), torch.zeros(1, 4, 3, 3))


def test_width_scales_channels():
    assert VGG(11, num_classes=2, width=0.25).classifier.in_features == 128
    assert ResNet(8, num_classes=2, width=8).linear.in_features == 32
    assert PreResNet(11, num_classes=2, width=8).fc.in_features == 32
    assert MobileNetTiny(2, width=0.5).classifier.in_features == 80


@pytest.mark.parametrize(
    ("family", "rule"),
    [(ResNet, "6n + 2"), (PreResNet, "9n + 2"), (WideResNet, "6n + 4"), (DenseNet, "3n + 4"), (VGG, "'11', '13'")],
)
@pytest.mark.parametrize("depth", [21, 2, -4])
def test_impossible_depth_is_refused(family, rule, depth):
    with pytest.raises(ArgumentError, match=re.escape(rule)):
        family(depth, num_classes=2)


def test_unknown_shortcut_option_is_refused():
    with pytest.raises(ArgumentError, match="`option` must be one of 'A', 'B'"):
        ResNet(20, num_classes=2, option="C")

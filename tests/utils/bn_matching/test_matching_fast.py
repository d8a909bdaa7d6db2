"""BN-statistic matching in one pass against the plain hooks."""

import copy
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from models.checkpoints import load_network
from models.registry import build_network
from tests.plain import PlainMatchedTeacher
from utils.bn_matching.matching import MatchedTeacher, matched_gradient, one_pass_statistics
from utils.bn_matching.probes import BatchNormInput, channel_statistics
from utils.data.table import get_dataset
from utils.run.randomness import generator_for

CIFAR = get_dataset("cifar100")
GOLDEN = Path(__file__).parents[2] / "golden"
FAMILIES = ["ResNet18", "Densenet121", "MobileNetV2", "ShuffleNetV2", "ConvNetBN_W32", "WRN-16-2", "ConvNetW128"]


def matched_teacher(network, first_multiplier):
    return MatchedTeacher(network, BatchNormInput, first_multiplier, size=32)


def frozen(network):
    """The network as a teacher: random running statistics, eval mode, no gradients of weights, in float64."""
    generator = generator_for("statistics")
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
    return network.eval().requires_grad_(False)


def loss_and_gradient(teacher, images):
    images = images.clone().requires_grad_(True)
    logits, bn_loss = teacher(images)
    loss = F.cross_entropy(logits, torch.arange(len(images)) % logits.shape[1]) + 0.1 * bn_loss
    loss.backward()
    return loss.detach(), bn_loss.detach(), images.grad


@pytest.mark.parametrize("name", FAMILIES)
def test_loss_and_gradient_are_those_of_the_plain_hooks(name, relative):
    torch.manual_seed(0)
    network = frozen(build_network(name, CIFAR))
    images = torch.randn(6, 3, 32, 32, generator=generator_for("images"))
    expected = loss_and_gradient(PlainMatchedTeacher(copy.deepcopy(network), 10.0), images)
    got = loss_and_gradient(matched_teacher(copy.deepcopy(network), 10.0), images)
    assert relative(got[0], expected[0]) < 1e-5
    assert got[1] == expected[1] == 0 if name == "ConvNetW128" else relative(got[1], expected[1]) < 1e-5
    assert relative(got[2], expected[2]) < 1e-5


def test_the_trained_teacher_agrees_too(golden, relative):
    images = golden("recover_step")["input"]

    def teacher():
        return load_network("ShuffleNetV2", get_dataset("fashion_mnist"), GOLDEN / "teacher_a.safetensors")

    expected = loss_and_gradient(PlainMatchedTeacher(teacher(), 10.0), images)
    for memory_format in (torch.contiguous_format, torch.channels_last):
        fast = matched_teacher(teacher(), 10.0).to(memory_format=memory_format)
        got = loss_and_gradient(fast, images.contiguous(memory_format=memory_format))
        assert all(relative(a, b) < 1e-5 for a, b in zip(got, expected, strict=True))


def test_layers_that_do_more_than_normalise_are_matched_too(relative):
    torch.manual_seed(0)
    network = frozen(timm.create_model("efficientnet_lite0", num_classes=10))  # BatchNormAct2d: a subclass
    images = torch.randn(4, 3, 64, 64, generator=generator_for("images"))
    expected = loss_and_gradient(PlainMatchedTeacher(copy.deepcopy(network), 10.0), images)
    got = loss_and_gradient(matched_teacher(copy.deepcopy(network), 10.0), images)
    assert all(relative(a, b) < 1e-5 for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize("name", ["repvgg_a0", "hrnet_w18_small", "xception41", "legacy_xception"])
def test_layers_that_run_in_another_order_than_they_are_registered_in(name, relative):
    torch.manual_seed(0)
    network = frozen(timm.create_model(name, num_classes=10))
    images = torch.randn(2, 3, 64, 64, generator=generator_for("images"))
    expected = loss_and_gradient(PlainMatchedTeacher(copy.deepcopy(network), 10.0), images)
    got = loss_and_gradient(matched_teacher(copy.deepcopy(network), 10.0), images)
    assert all(relative(a, b) < 1e-5 for a, b in zip(got, expected, strict=True))


def test_running_statistics_never_move():
    network = frozen(build_network("ConvNetBN_W32", CIFAR))
    before = {name: value.clone() for name, value in network.named_buffers()}
    teacher = matched_teacher(network, 10.0)
    loss_and_gradient(teacher, torch.randn(5, 3, 32, 32))
    after = {name.replace(".layer.", "."): value for name, value in teacher.teacher.named_buffers()}
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_what_matches_exactly_has_no_gradient():
    layer = nn.BatchNorm2d(3).eval().requires_grad_(False)
    images = torch.randn(4, 3, 5, 5)
    statistics = channel_statistics(images)
    layer.running_mean, layer.running_var = statistics.mean, statistics.var
    teacher = matched_teacher(nn.Sequential(layer), 1.0)
    images.requires_grad_(True)
    _, bn_loss = teacher(images)
    bn_loss.backward()
    assert bn_loss < 1e-5
    assert images.grad.isfinite().all()


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_one_pass_gives_the_statistics_of_two(memory_format, relative):
    activations = torch.randn(7, 12, 9, 9, generator=generator_for("activations")) * 3 + 1
    activations = activations.contiguous(memory_format=memory_format)
    expected, got = channel_statistics(activations), one_pass_statistics(activations)
    assert relative(got.mean, expected.mean) < 1e-5
    assert relative(got.var, expected.var) < 1e-5
    half = one_pass_statistics(activations.bfloat16())
    assert half.var.dtype == torch.float32


def test_the_joined_gradient_is_the_formula():
    grad, activations = torch.randn(300, 4, 32, 32), torch.randn(300, 4, 32, 32)  # several chunks
    scale, slope, offset = torch.randn(3, 4)
    expected = grad * scale.view(-1, 1, 1) + activations * slope.view(-1, 1, 1) + offset.view(-1, 1, 1)
    assert torch.allclose(matched_gradient(grad, activations, scale, slope, offset), expected, atol=1e-6)

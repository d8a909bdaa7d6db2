"""Groups of a batch, and teachers that normalise with them."""

import copy
from pathlib import Path

import pytest
import timm
import torch

from models.checkpoints import load_network
from models.registry import build_network
from tests.plain import PlainGroupedNetwork
from utils.data.table import get_dataset
from utils.fkd import groups as grouping
from utils.fkd.groups import GroupedNetwork, epoch_groups, group_sizes, has_slow_gradient, normalise_groups
from utils.fkd.losses import label_weights
from utils.run.errors import UserError
from utils.run.randomness import generator_for

GOLDEN = Path(__file__).parents[2] / "golden"
FASHION = get_dataset("fashion_mnist")


@pytest.mark.parametrize(
    ("batch", "parts", "sizes"),
    [(16, 2, [8, 8]), (10, 2, [5, 5]), (5, 2, [2, 3]), (1, 2, [1]), (2, 2, [1, 1]), (7, 1, [7]), (7, 3, [2, 2, 3])],
)
def test_a_batch_is_cut_evenly_the_smaller_group_first(batch, parts, sizes):
    assert group_sizes(batch, parts) == sizes


def test_the_last_batch_of_an_epoch_is_what_is_left():
    assert epoch_groups(37, 16) == [[8, 8], [8, 8], [2, 3]]


def teachers(*names):
    return [load_network("ShuffleNetV2", FASHION, GOLDEN / f"{name}.safetensors") for name in names]


@torch.no_grad()
def test_logits_agree_with_the_published_ones(golden, relative):
    expected = golden("relabel_batch")
    weights = label_weights((), 2).tolist()
    networks = [GroupedNetwork(teacher) for teacher in teachers("teacher_a", "teacher_b")]
    logits = [network(expected["mixed"], group_sizes(16)) for network in networks]
    assert relative(logits[0], expected["logits_teacher_a"]) < 1e-4
    both = weights[0] * logits[0] + weights[1] * logits[1]
    assert relative(both, expected["logits_teacher_ab"]) < 1e-4
    (plain,) = teachers("teacher_a")
    assert relative(plain(expected["mixed"]), expected["logits_teacher_a_eval"]) < 1e-4


@torch.no_grad()
def test_dropout_stays_off_and_nothing_is_kept(golden):
    images = golden("relabel_batch")["mixed"]
    (teacher,) = teachers("teacher_a")
    teacher.linear = torch.nn.Sequential(torch.nn.Dropout(0.5), teacher.linear).eval()
    network = GroupedNetwork(teacher)
    before = copy.deepcopy(network.state_dict())
    assert torch.equal(network(images, [8, 8]), network(images, [8, 8]))
    after = network.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


FAMILIES = ["ResNet18", "Densenet121", "MobileNetV2", "ShuffleNetV2", "ConvNetBN_W32", "WRN-16-2", "ConvNetW128"]
GROUPS = [[8, 8], [5, 5], [4, 4, 4, 4, 1, 2], [3]]


@torch.no_grad()
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("groups", GROUPS, ids=str)
def test_a_teacher_answers_as_group_by_group(name, groups, relative):
    torch.manual_seed(0)
    network = build_network(name, FASHION).eval()
    images = torch.randn(sum(groups), 3, 32, 32, generator=generator_for("images"))
    expected = PlainGroupedNetwork(copy.deepcopy(network))(images, groups)
    assert relative(GroupedNetwork(network)(images, groups), expected) < 1e-5


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("groups", [[2, 2], [2, 3, 1]], ids=str)
def test_a_student_learns_as_group_by_group(name, groups, relative):
    """Logits, gradients and running statistics, in float64: the same mathematics."""
    torch.manual_seed(0)
    plain = build_network(name, FASHION).double()
    grouped = GroupedNetwork(copy.deepcopy(plain))
    images = torch.randn(sum(groups), 3, 32, 32, generator=generator_for("images"), dtype=torch.float64)
    expected = PlainGroupedNetwork(plain)(images, groups)
    got = grouped(images, groups)
    assert relative(got, expected) < 1e-5
    for logits in (got, expected):
        torch.nn.functional.cross_entropy(logits, torch.arange(len(logits)) % 10).backward()
    for (its_name, a), b in zip(grouped.network.named_parameters(), plain.parameters(), strict=True):
        if b.grad.abs().max() > 1e-9:  # a bias before BatchNorm has a gradient of rounding alone
            assert relative(a.grad, b.grad) < 1e-5, its_name
    assert list(grouped.network.state_dict()) == list(plain.state_dict())
    assert_same_statistics(grouped.network, plain)


def assert_same_statistics(network, expected):
    for (name, a), b in zip(network.state_dict().items(), expected.state_dict().values(), strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-6), name


@pytest.mark.parametrize("groups", GROUPS, ids=str)
def test_a_student_in_float32_answers_and_remembers_as_group_by_group(groups, relative):
    torch.manual_seed(0)
    plain = build_network("ShuffleNetV2", FASHION)
    grouped = GroupedNetwork(copy.deepcopy(plain))
    images = torch.randn(sum(groups), 3, 32, 32, generator=generator_for("images"))
    assert relative(grouped(images, groups), PlainGroupedNetwork(plain)(images, groups)) < 1e-5
    assert_same_statistics(grouped.network, plain)


ALL_AT_ONCE, IN_TURN = 2**30, 0  # limits of a group's bytes that leave only one of the ways


@pytest.fixture(params=[ALL_AT_ONCE, IN_TURN])
def one_way(request, monkeypatch):
    monkeypatch.setattr(grouping, "SMALL_GROUP", request.param)
    monkeypatch.setattr(grouping, "WORTH_SUMS", request.param)


@pytest.mark.usefixtures("one_way")
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("groups", GROUPS, ids=str)
def test_groups_are_normalised_as_plain_batch_norm_does(memory_format, dtype, groups, relative):
    """The kernels of the CPU (float32) and the reduction of the other devices (here in float64)."""
    generator = generator_for("activations")
    activations = torch.randn(sum(groups), 6, 7, 7, generator=generator, dtype=dtype) * 2 + 1
    activations = activations.contiguous(memory_format=memory_format)
    weight, bias = torch.randn(2, 6, generator=generator, dtype=dtype)
    for affine in ((weight, bias), (None, None)):
        parts = activations.split(groups)
        expected = [torch.nn.functional.batch_norm(part, None, None, *affine, training=True) for part in parts]
        assert relative(normalise_groups(activations, groups, *affine, 1e-5), torch.cat(expected)) < 1e-5


@pytest.mark.usefixtures("one_way")
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("groups", [[8, 8], [2, 3]], ids=str)
def test_a_layer_in_training_is_the_sequence_of_groups(memory_format, affine, groups, relative):
    """Output, running statistics, and the gradients of input, weight and bias, in float32."""
    plain = torch.nn.BatchNorm2d(6, affine=affine)
    if affine:
        torch.nn.init.normal_(plain.weight)
    grouped = GroupedNetwork(torch.nn.Sequential(copy.deepcopy(plain)))
    draw = torch.randn(2, sum(groups), 6, 9, 9, generator=generator_for("layer"))
    values, direction = (part.contiguous(memory_format=memory_format) for part in draw)
    leaves = [values.clone().requires_grad_(True) for _ in range(2)]
    expected = PlainGroupedNetwork(plain)(leaves[0], groups)
    got = grouped(leaves[1], tuple(groups))
    assert relative(got, expected) < 1e-5
    for output in (expected, got):
        output.backward(direction)
    assert relative(leaves[1].grad, leaves[0].grad) < 1e-5
    for a, b in zip(grouped.parameters(), plain.parameters(), strict=True):
        assert relative(a.grad, b.grad) < 1e-5
    assert_same_statistics(grouped.network[0], plain)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("groups", GROUPS, ids=str)
def test_what_a_compiler_gets_is_the_same_mathematics(affine, groups, relative):
    """Output, gradient, and each group's mean and unbiased variance, in float64."""
    generator = generator_for("compiler")
    draw = torch.randn(2, sum(groups), 6, 7, 7, generator=generator, dtype=torch.float64) * 2 + 1
    weight, bias = torch.randn(2, 6, generator=generator, dtype=torch.float64) if affine else (None, None)
    leaves = [draw[0].clone().requires_grad_(True) for _ in range(2)]
    parts = leaves[0].split(groups)
    expected = torch.cat([torch.nn.functional.batch_norm(part, None, None, weight, bias, True) for part in parts])
    got, means, variances = grouping.normalise_for_a_compiler(leaves[1], groups, weight, bias, 1e-5)
    assert relative(got, expected) < 1e-10
    for output in (expected, got):
        output.backward(draw[1])
    assert relative(leaves[1].grad, leaves[0].grad) < 1e-8
    for part, mean, variance in zip(parts, means, variances, strict=True):
        assert relative(mean, part.detach().mean(dim=(0, 2, 3))) < 1e-10
        assert relative(variance, part.detach().var(dim=(0, 2, 3))) < 1e-10


def test_running_statistics_move_with_one_group_after_the_other():
    layer = torch.nn.BatchNorm2d(2, momentum=0.5)
    grouped = grouping.GroupedBatchNorm2d(layer, None)
    grouped.move_running_statistics([torch.tensor([2.0, 4.0])] * 2, [torch.tensor([1.0, 5.0])] * 2)
    assert grouped.running_mean.tolist() == [1.5, 3.0]
    assert grouped.running_var.tolist() == [1.0, 4.0]


def test_groups_of_one_size_are_one_run():
    runs = list(grouping.runs_of_groups(torch.arange(11), [3, 3, 2, 2, 1]))
    assert [(part.tolist(), size, groups) for part, size, groups in runs] == [
        ([0, 1, 2, 3, 4, 5], 3, 2),
        ([6, 7, 8, 9], 2, 2),
        ([10], 1, 1),
    ]


def test_a_network_that_forgot_normalises_with_what_it_sees():
    network = torch.nn.Sequential(torch.nn.BatchNorm2d(3), torch.nn.Dropout(0.5)).eval()
    assert grouping.forget_running_statistics(network) is network
    images = torch.randn(4, 3, 5, 5, generator=generator_for("images")) * 3 + 2
    answer = network(images)
    assert answer.mean().abs() < 1e-5 and (answer.std() - 1).abs() < 0.01
    assert torch.equal(network(images), answer)


def test_where_a_gradient_is_put_together():
    """Where channels fill no whole vectors and a group is not small, on a CPU in float32."""
    large, small = torch.empty(16, 24, 32, 32), torch.empty(16, 24, 8, 8)
    assert has_slow_gradient(large, 8)
    assert not has_slow_gradient(small, 8)
    assert not has_slow_gradient(large[:, :16], 8)
    assert not has_slow_gradient(large.double(), 8)


@torch.no_grad()
def test_a_network_with_other_layers_that_see_the_batch_goes_group_by_group(relative):
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.BatchNorm1d(12), torch.nn.Linear(12, 4)).eval()
    images = torch.randn(10, 3, 2, 2)
    expected = PlainGroupedNetwork(copy.deepcopy(network))(images, [5, 5])
    grouped = GroupedNetwork(network)
    assert not grouped.at_once
    assert torch.equal(grouped(images, [5, 5]), expected)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", ["resnet18", "efficientnet_lite0"])  # plain BatchNorm2d, and a subclass of it
def test_one_image_on_a_map_of_one_pixel_is_refused(name, training):
    network = timm.create_model(name, num_classes=10).train(training)
    grouped, images = GroupedNetwork(network), torch.randn(3, 3, 32, 32)
    with pytest.raises(UserError, match="a group of one image has no BatchNorm statistics on a map of one pixel"):
        grouped(images, (1, 2))


@torch.no_grad()
def test_a_student_is_tested_with_its_running_statistics():
    torch.manual_seed(0)
    plain = build_network("ConvNetBN_W32", FASHION)
    grouped = GroupedNetwork(copy.deepcopy(plain))
    images = torch.randn(4, 3, 32, 32)
    assert torch.equal(grouped.eval().network(images), plain.eval()(images))

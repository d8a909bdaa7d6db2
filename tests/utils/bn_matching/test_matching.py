"""BN-statistic matching on numbers worked out by hand. The recorded values are in tests/recover/test_optimise.py."""

import math

import pytest
import torch
from torch import nn

from utils.bn_matching.matching import MatchedTeacher
from utils.bn_matching.probes import BatchNormInput, channel_statistics
from utils.run.errors import UserError


def matched_teacher(teacher, first_multiplier, probe=BatchNormInput):
    return MatchedTeacher(teacher, probe, first_multiplier, size=8)


def test_statistics_are_by_channel_over_batch_and_space():
    activations = torch.tensor([[[[0.0, 2.0]], [[1.0, 1.0]]], [[[4.0, 6.0]], [[1.0, 5.0]]]])  # 2 x 2 x 1 x 2
    mean, var = channel_statistics(activations)
    assert mean.tolist() == [3.0, 2.0]
    assert var.tolist() == [5.0, 3.0]  # biased: divided by 4


def test_half_precision_is_summed_in_float32():
    activations = torch.full((4, 1, 64, 64), 100.0, dtype=torch.float16)
    mean, var = channel_statistics(activations)
    assert mean.dtype == var.dtype == torch.float32
    assert (mean.item(), var.item()) == (100.0, 0.0)  # 100 * 16384 is far beyond float16


def small_teacher():
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3), nn.BatchNorm2d(2), nn.Flatten()
    )
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.uniform_(module.weight, 0.5, 2.0)
            nn.init.uniform_(module.bias)
    return network.eval().requires_grad_(False)


IMAGES = torch.linspace(-2, 2, 5 * 3 * 8 * 8).sin().view(5, 3, 8, 8)


def plain_answer(network, images, first_multiplier):
    """Logits and R_bn, layer by layer."""
    loss, multiplier = 0.0, first_multiplier
    for layer in network:
        if isinstance(layer, nn.BatchNorm2d):
            mean, var = images.mean(dim=(0, 2, 3)), images.var(dim=(0, 2, 3), correction=0)
            distance = (layer.running_mean - mean).norm() + (layer.running_var - var).norm()
            loss, multiplier = loss + multiplier * distance, 1.0
        images = layer(images)
    return images, loss


@pytest.mark.parametrize("first_multiplier", [10.0, 1.0])
def test_a_teacher_answers_with_its_logits_and_r_bn(first_multiplier):
    logits, loss = plain_answer(small_teacher(), IMAGES, first_multiplier)
    matched = matched_teacher(small_teacher(), first_multiplier)
    for _ in range(2):  # nothing of one batch is left for the next
        answer = matched(IMAGES)
        assert torch.allclose(answer[0], logits, atol=1e-5)
        assert answer[1].item() == pytest.approx(loss.item(), rel=1e-5)


def test_its_gradient_is_the_plain_ones():
    ours, plain = IMAGES.clone().requires_grad_(True), IMAGES.clone().requires_grad_(True)
    logits, loss = matched_teacher(small_teacher(), 10.0)(ours)
    (logits.sum() + 0.01 * loss).backward()
    logits, loss = plain_answer(small_teacher(), plain, 10.0)
    (logits.sum() + 0.01 * loss).backward()
    assert torch.allclose(ours.grad, plain.grad, rtol=1e-4, atol=1e-6)


def test_running_statistics_and_weights_never_move():
    teacher = small_teacher()
    layers = [module for module in teacher.modules() if isinstance(module, nn.BatchNorm2d)]
    before = [tensor.clone() for layer in layers for tensor in layer.state_dict().values()]
    matched = matched_teacher(teacher, 10.0)
    images = IMAGES.clone().requires_grad_(True)
    logits, loss = matched(images)
    (logits.sum() + loss).backward()
    after = [tensor for layer in layers for tensor in layer.state_dict().values()]
    assert all(torch.equal(old, new) for old, new in zip(before, after, strict=True))
    assert not any(parameter.requires_grad for parameter in matched.parameters())
    assert not any(module.training for module in teacher.modules() if isinstance(module, nn.BatchNorm2d))


def test_a_teacher_without_batchnorm_has_none():
    """As AlexNet, a teacher of the published runs."""
    teacher = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(10))
    teacher(IMAGES)
    images = IMAGES.clone().requires_grad_(True)
    logits, loss = matched_teacher(teacher.eval().requires_grad_(False), 10.0)(images)
    assert torch.equal(logits, teacher(IMAGES)) and loss.item() == 0
    (logits.logsumexp(dim=1).sum() + 0.01 * loss).backward()
    assert images.grad.abs().max() > 0


def test_only_statistics_of_images_are_matched():
    """A BatchNorm1d behind the pooling has no space to match over."""
    teacher = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(4)).eval()
    assert matched_teacher(teacher, 10.0)(IMAGES)[1].item() == 0


def test_a_perfect_batch_has_a_finite_gradient():
    """The norm's own derivative is undefined where the statistics agree."""
    layer = nn.BatchNorm2d(3).eval().requires_grad_(False)
    layer.running_mean.copy_(IMAGES.mean(dim=(0, 2, 3)))
    layer.running_var.copy_(IMAGES.var(dim=(0, 2, 3), correction=0))
    images = IMAGES.clone().requires_grad_(True)
    logits, loss = matched_teacher(nn.Sequential(layer), 1.0)(images)
    (0 * logits.sum() + loss).backward()
    assert math.isfinite(loss.item()) and loss.item() < 1e-4
    assert images.grad.isfinite().all()


def with_statistics(*layers):
    """BatchNorm layers, each with other running statistics."""
    for number, layer in enumerate(layers, start=1):
        layer.running_mean.fill_(0.3 * number)
        layer.running_var.fill_(0.5 + number)
    return layers


class OtherOrder(nn.Module):
    """Runs its layers in another order than it registers them in, one of them never and, if asked, one twice."""

    def __init__(self, twice=False):
        super().__init__()
        self.never, self.second, self.first = with_statistics(*(nn.BatchNorm2d(3) for _ in range(3)))
        self.twice = twice

    def forward(self, images):
        images = self.first(images) if not self.twice else self.first(self.first(images))
        return self.second(images.square()).mean((2, 3))


def test_each_layer_has_its_own_targets_whatever_the_order_of_registration():
    network = OtherOrder().eval().requires_grad_(False)

    def distance(layer, images):
        mean, var = images.mean(dim=(0, 2, 3)), images.var(dim=(0, 2, 3), correction=0)
        return (layer.running_mean - mean).norm() + (layer.running_var - var).norm()

    between = network.first(IMAGES).square()
    expected = 10 * distance(network.first, IMAGES) + distance(network.second, between)
    assert matched_teacher(network, 10.0)(IMAGES)[1].item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_layer_that_runs_twice_is_refused():
    network = OtherOrder(twice=True).eval().requires_grad_(False)
    with pytest.raises(UserError, match="the layer first, whose input is matched, runs twice"):
        matched_teacher(network, 10.0)


def test_a_layer_that_begins_to_run_twice_or_never_is_refused():
    network = OtherOrder().eval().requires_grad_(False)
    matched = matched_teacher(network, 10.0)
    network.twice = True
    with pytest.raises(UserError, match="ran twice in one forward"):
        matched(IMAGES)
    network.twice = False
    network.second, kept = nn.Identity(), network.second
    with pytest.raises(UserError, match="did not run"):
        matched(IMAGES)
    network.second = kept
    matched(IMAGES)  # nothing of a forward that failed is left


class ConvolutionMean:
    """A probe of another kind: the mean alone, of the input of convolutions, against ones."""

    def watches(self, layer):
        return isinstance(layer, nn.Conv2d)

    def measure(self, layer, activations):
        return (activations.mean(dim=(0, 2, 3)),)

    def target(self, name, layer):
        return (torch.ones(layer.in_channels),)


def test_another_probe_measures_other_layers():
    network = small_teacher()
    inside = network[2](network[1](network[0](IMAGES)))
    expected = 3 * (IMAGES.mean(dim=(0, 2, 3)) - 1).norm() + (inside.mean(dim=(0, 2, 3)) - 1).norm()
    logits = network(IMAGES)
    matched = matched_teacher(network, 3.0, ConvolutionMean)
    answer = matched(IMAGES.clone().requires_grad_(True))
    assert torch.equal(answer[0], logits)
    assert answer[1].item() == pytest.approx(expected.item(), rel=1e-5)
    answer[1].backward()


def test_sums_by_segment_are_those_by_index():
    """What CUDA takes, in a fixed order, in place of what a CPU takes."""
    sizes = torch.tensor([3, 1, 64, 7])
    values = torch.randn(75, generator=torch.Generator().manual_seed(0)).square().requires_grad_(True)
    owners = torch.repeat_interleave(torch.arange(4), sizes)
    sums = torch.segment_reduce(values, "sum", lengths=sizes, unsafe=True)
    assert torch.allclose(sums, torch.zeros(4).index_add(0, owners, values), rtol=1e-6)
    sums.sqrt().sum().backward()
    assert torch.allclose(values.grad, (0.5 / sums.detach().sqrt())[owners], rtol=1e-6)


def test_a_constant_channel_has_finite_statistics_and_gradient():
    """As float16 makes them: its variance is 0, not the inverse of an inverse."""
    images = IMAGES.clone()
    images[:, 1] = 0.25
    images.requires_grad_(True)
    layer = nn.BatchNorm2d(3).eval().requires_grad_(False)
    loss = matched_teacher(nn.Sequential(layer), 1.0)(images)[1]
    loss.backward()
    assert loss.isfinite() and images.grad.isfinite().all()

"""BN-statistic matching on numbers worked out by hand. The recorded values are in tests/recover/test_optimise.py."""

import math

import pytest
import torch
from torch import nn

from utils.bn_matching import MatchedTeacher, Statistics, bn_matching_loss, bn_matching_terms, channel_statistics


def statistics(mean, var):
    return Statistics(torch.tensor(mean), torch.tensor(var))


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


SEEN = [statistics([1.0, 2.0], [1.0, 1.0]), statistics([0.0], [4.0])]
RUNNING = [statistics([4.0, 6.0], [1.0, 1.0]), statistics([0.5], [1.0])]


def test_a_term_is_the_distance_of_the_means_plus_that_of_the_variances():
    assert bn_matching_terms(SEEN, RUNNING).tolist() == [5.0, 3.5]  # 3, 4 -> 5; 0.5 + 3
    assert bn_matching_terms(RUNNING, RUNNING).tolist() == [0.0, 0.0]


@pytest.mark.parametrize(("multiplier", "expected"), [(10.0, 53.5), (1.0, 8.5), (0.0, 3.5)])
def test_the_first_layer_weighs_more(multiplier, expected):
    assert bn_matching_loss(SEEN, RUNNING, multiplier).item() == pytest.approx(expected)


def test_as_many_statistics_as_layers():
    with pytest.raises(ValueError, match=r"shorter|longer"):
        bn_matching_terms(SEEN, RUNNING[:1])


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
    matched = MatchedTeacher(small_teacher(), first_multiplier)
    for _ in range(2):  # nothing of one batch is left for the next
        answer = matched(IMAGES)
        assert torch.allclose(answer[0], logits, atol=1e-5)
        assert answer[1].item() == pytest.approx(loss.item(), rel=1e-5)


def test_its_gradient_is_the_plain_ones():
    ours, plain = IMAGES.clone().requires_grad_(True), IMAGES.clone().requires_grad_(True)
    logits, loss = MatchedTeacher(small_teacher(), 10.0)(ours)
    (logits.sum() + 0.01 * loss).backward()
    logits, loss = plain_answer(small_teacher(), plain, 10.0)
    (logits.sum() + 0.01 * loss).backward()
    assert torch.allclose(ours.grad, plain.grad, rtol=1e-4, atol=1e-6)


def test_running_statistics_and_weights_never_move():
    teacher = small_teacher()
    layers = [module for module in teacher.modules() if isinstance(module, nn.BatchNorm2d)]
    before = [tensor.clone() for layer in layers for tensor in layer.state_dict().values()]
    matched = MatchedTeacher(teacher, 10.0)
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
    logits, loss = MatchedTeacher(teacher.eval().requires_grad_(False), 10.0)(images)
    assert torch.equal(logits, teacher(IMAGES)) and loss.item() == 0
    (logits.logsumexp(dim=1).sum() + 0.01 * loss).backward()
    assert images.grad.abs().max() > 0


def test_only_statistics_of_images_are_matched():
    """A BatchNorm1d behind the pooling has no space to match over."""
    teacher = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(4)).eval()
    assert MatchedTeacher(teacher, 10.0)(IMAGES)[1].item() == 0


def test_a_perfect_batch_has_a_finite_gradient():
    """The norm's own derivative is undefined where the statistics agree."""
    layer = nn.BatchNorm2d(3).eval().requires_grad_(False)
    layer.running_mean.copy_(IMAGES.mean(dim=(0, 2, 3)))
    layer.running_var.copy_(IMAGES.var(dim=(0, 2, 3), correction=0))
    images = IMAGES.clone().requires_grad_(True)
    logits, loss = MatchedTeacher(nn.Sequential(layer), 1.0)(images)
    (0 * logits.sum() + loss).backward()
    assert math.isfinite(loss.item()) and loss.item() < 1e-4
    assert images.grad.isfinite().all()

"""Statistics of single images and of groups of them, next to plain sums over the images themselves."""

import pytest
import torch

from models.checkpoints import load_network
from tests.conftest import GOLDEN
from utils.bn_matching.matching import MatchedTeacher, running_order
from utils.bn_matching.probes import BatchNormInput, ImageInput
from utils.bn_matching.single import Moments, SingleImages, group_targets, moments
from utils.data.table import get_dataset
from utils.run.randomness import generator_for

FASHION = get_dataset("fashion_mnist")
IMAGES = torch.randn(6, 3, 32, 32, generator=generator_for("single images"))


def teacher():
    return load_network("ShuffleNetV2", FASHION, GOLDEN / "teacher_a.safetensors")


def inputs_of(network, images):
    """What enters each BatchNorm, in running order."""
    found = []
    names = running_order(network, BatchNormInput(), 32)
    hooks = [
        network.get_submodule(name).register_forward_pre_hook(lambda _, inputs: found.append(inputs[0].double()))
        for name in names
    ]
    with torch.no_grad():
        network(images)
    for hook in hooks:
        hook.remove()
    return names, found


def test_moments_of_an_image_are_over_its_positions():
    activations = torch.tensor([[[[1.0, 3.0]], [[0.0, 0.0]]], [[[2.0, 2.0]], [[-1.0, 1.0]]]])
    seen = moments(activations)
    assert seen.mean.tolist() == [[2, 0], [2, 0]] and seen.square.tolist() == [[5, 0], [4, 1]]
    assert seen.var.tolist() == [[1, 0], [0, 1]]


def test_difficulty_is_the_distance_to_the_running_statistics(relative):
    network = teacher()
    asked = SingleImages(network, 32)
    found = asked.difficulty(asked.moments(IMAGES))
    names, inputs = inputs_of(network, IMAGES)
    expected = torch.zeros(6, dtype=torch.float64)
    for name, activations in zip(names, inputs, strict=True):
        layer = network.get_submodule(name)
        for image in range(6):
            values = activations[image].flatten(1)
            mean, var = values.mean(dim=1), values.var(dim=1, correction=0)
            of_var = ((var + 1e-6) / (layer.running_var.double() + 1e-6)).log()
            distance = (mean - layer.running_mean.double()).square().sum().sqrt() + of_var.square().sum().sqrt()
            expected[image] += distance / len(mean) ** 0.5 / len(names)
    assert relative(found, expected) < 1e-4


def sums_of(seen, groups, count):
    return Moments(*(torch.zeros(count, each.shape[1]).index_add_(0, groups, each) for each in seen))


def test_targets_of_a_group_are_what_a_batch_of_its_images_gives(relative):
    """So that these images themselves are at no distance."""
    groups = torch.tensor([0, 0, 0, 0, 1, 1])
    seen = SingleImages(teacher(), 32).moments(IMAGES)
    targets = group_targets(sums_of(seen, groups, 2), torch.tensor([4, 2]), prior=0.0)
    matched = MatchedTeacher(teacher(), BatchNormInput, 10.0, 32)
    for group, members in enumerate((slice(0, 4), slice(4, 6))):
        _, found = matched.statistics(IMAGES[members])
        assert relative(targets[group], found) < 1e-4
    matched.targets.copy_(targets[0])
    assert matched(IMAGES[:4])[1] < 1e-2 < 10 < matched(IMAGES[4:])[1]


def test_a_prior_draws_small_groups_to_the_whole(relative):
    groups, counts = torch.tensor([0, 0, 0, 0, 1, 1]), torch.tensor([4, 2])
    seen = SingleImages(teacher(), 32).moments(IMAGES)
    sums = sums_of(seen, groups, 2)
    alone, steadied, drowned = (group_targets(sums, counts, prior) for prior in (0.0, 2.0, 1e9))
    assert relative(drowned[0], drowned[1]) < 1e-4
    length = alone.shape[1] // 2
    expected = (2 * alone[1, :length] + 2 * seen.mean.mean(dim=0)) / 4
    torch.testing.assert_close(steadied[1, :length], expected, atol=1e-5, rtol=1e-5)


def test_a_probe_of_single_images_has_those_of_each(relative):
    network = teacher()
    _, inputs = inputs_of(network, IMAGES)
    matched = MatchedTeacher(network, lambda: ImageInput(6), 10.0, 32)
    _, found = matched.statistics(IMAGES)
    means = [activations.mean(dim=(2, 3)).flatten() for activations in inputs]
    variances = [activations.var(dim=(2, 3), correction=0).flatten() for activations in inputs]
    assert relative(found, torch.cat([*means, *variances])) < 1e-4
    assert len(matched.targets) == len(found)
    first = network.get_submodule(running_order(teacher(), BatchNormInput(), 32)[0])
    assert torch.equal(matched.targets[: 6 * len(first.running_mean)], first.running_mean.repeat(6))


@pytest.mark.parametrize("probe", [BatchNormInput, lambda: ImageInput(6)])
def test_a_mean_scale_divides_by_layers_and_lengths(probe):
    plain = MatchedTeacher(teacher(), probe, 10.0, 32)
    scaled = MatchedTeacher(teacher(), probe, 10.0, 32, scale="mean")
    layers = len(plain.seen)
    _, found = plain.statistics(IMAGES)
    expected, start = 0.0, 0
    for place, length in enumerate(plain.sizes.tolist()):
        part = slice(start, start + length)
        norm = (found[part] - plain.targets[part]).double().norm()
        expected += (10 if place in (0, layers) else 1) * norm / layers / length**0.5
        start += length
    assert scaled(IMAGES)[1].item() == pytest.approx(expected.item(), rel=1e-4)


def test_the_map_is_what_enters_the_middle_layer(relative):
    network = teacher()
    names, inputs = inputs_of(network, IMAGES)
    matched = MatchedTeacher(teacher(), BatchNormInput, 10.0, 32, with_map=True)
    logits, distance, found = matched(IMAGES)
    assert relative(found, inputs[len(names) // 2]) < 1e-4
    plain = MatchedTeacher(network, BatchNormInput, 10.0, 32)(IMAGES)
    assert torch.equal(logits, plain[0]) and torch.equal(distance, plain[1])

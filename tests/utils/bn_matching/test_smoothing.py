"""Smoothed statistics against a plain loop with a hook on each layer and a buffer for each vector."""

import copy

import pytest
import torch
from torch import nn

from utils.bn_matching.matching import MatchedTeacher
from utils.bn_matching.probes import ConvInput, patch_statistics
from utils.bn_matching.smoothing import SmoothedTeacher
from utils.run.randomness import generator_for

SIZE, FIRST = 8, 10.0
NAMES = (("0", 3), ("3", 4))  # the convolutions of `network`, and how many channels they take


def network():
    torch.manual_seed(0)
    layers = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3, stride=2), nn.Flatten(), nn.Linear(20, 7)
    )
    layers[1].running_mean.uniform_(-1, 1)
    layers[1].running_var.uniform_(0.5, 2)
    return layers.eval().requires_grad_(False)


def random_like(vectors):
    return [torch.rand(len(vector), generator=generator_for("targets", place)) for place, vector in enumerate(vectors)]


def plain_patches(activations, side):
    """One patch at a time."""
    rows, columns = (-(-length // side) * side for length in activations.shape[2:])
    resized = nn.functional.interpolate(activations, (rows, columns), mode="bilinear", align_corners=False)
    means, variances = [], []
    for top in range(0, rows, side):
        for left in range(0, columns, side):
            patch = resized[:, :, top : top + side, left : left + side]
            means.append(patch.mean())
            variances.append(((patch - patch.mean()) ** 2).mean())
    return torch.stack(means), torch.stack(variances)


def plain_vectors(layer, activations):
    means, variances = [], []
    for channel in range(activations.shape[1]):
        values = activations[:, channel]
        means.append(values.mean())
        variances.append(((values - values.mean()) ** 2).mean())
    vectors = [torch.stack(means), torch.stack(variances)]
    return [*vectors, *plain_patches(activations, 4)] if isinstance(layer, nn.Conv2d) else vectors


@pytest.mark.parametrize(("height", "width"), [(8, 8), (6, 9), (1, 1), (3, 4)])
def test_patches_are_those_of_a_loop(height, width):
    activations = torch.randn(3, 2, height, width, generator=generator_for("activations"))
    for found, expected in zip(patch_statistics(activations, 4), plain_patches(activations, 4), strict=True):
        torch.testing.assert_close(found, expected)


class Plain:
    """G-VBSM's and EDC's distance, by the book: a dict of buffers, one norm after another."""

    def __init__(self, layers, targets, classes, momentum, drop, share):
        self.layers, self.targets, self.classes = layers, targets, classes
        self.momentum, self.drop, self.share = momentum, drop, share
        self.buffers = {}

    def __call__(self, images, generator):
        inputs, total = [], 0.0
        hooks = [
            layer.register_forward_pre_hook(lambda _, values: inputs.append(values[0]))
            for layer in self.layers
            if isinstance(layer, nn.Conv2d | nn.BatchNorm2d)
        ]
        logits = self.layers(images)
        for hook in hooks:
            hook.remove()
        watched = [layer for layer in self.layers if isinstance(layer, nn.Conv2d | nn.BatchNorm2d)]
        chances = torch.rand(len(watched), generator=generator) if self.drop else torch.ones(len(watched))
        for number, (layer, seen) in enumerate(zip(watched, inputs, strict=True)):
            if isinstance(layer, nn.Conv2d) and chances[number] < self.drop:
                continue
            for place, vector in enumerate(plain_vectors(layer, seen)):
                old = self.buffers.get((number, place), torch.zeros_like(vector))
                new = self.momentum * old + (1 - self.momentum) * vector.detach()
                self.buffers[number, place] = new
                value = new + (vector - vector.detach())
                norm = (value - self.targets[number][place]).norm()
                if self.share:
                    to_class = (value - self.classes[number][place]).norm()
                    norm = (1 - self.share) * norm + self.share * to_class
                total = total + (FIRST if number == 0 else 1.0) * norm
        return logits, total


@pytest.mark.parametrize(
    ("momentum", "drop", "share"), [(0.8, 0.0, 0.0), (0.4, 0.5, 0.0), (0.8, 0.0, 0.5), (0, 0.3, 0.25)]
)
def test_an_iteration_after_another_is_the_plain_one(momentum, drop, share):
    layers = network()
    watched = [layer for layer in layers if isinstance(layer, nn.Conv2d | nn.BatchNorm2d)]
    shapes = [plain_vectors(watched[0], torch.zeros(1, 3, 8, 8)), plain_vectors(watched[1], torch.zeros(1, 4, 6, 6))]
    shapes.append(plain_vectors(watched[2], torch.zeros(1, 4, 6, 6)))
    targets = [random_like(vectors) for vectors in shapes]
    targets[1] = [watched[1].running_mean, watched[1].running_var]
    by_class = [[[vector * (label + 1) for vector in random_like(vectors)] for vectors in shapes] for label in range(3)]
    labels = torch.tensor([0, 0, 2, 1])
    classes = [
        [sum(by_class[label][slot][place] for label in labels.tolist()) / 4 for place in range(len(vectors))]
        for slot, vectors in enumerate(shapes)
    ]
    joined = torch.stack([join(vectors_of_class) for vectors_of_class in by_class])

    plain = Plain(copy.deepcopy(layers), targets, classes, momentum, drop, share)
    probe = ConvInput(SIZE, {"0": targets[0], "3": targets[2]})
    matched = MatchedTeacher(layers, lambda: probe, FIRST, SIZE)
    smoothed = SmoothedTeacher(matched, momentum, drop, share, joined if share else None)
    for batch in range(2):  # each begins anew
        plain.buffers.clear()
        smoothed.begin(labels, generator_for("batch", batch))
        generator = generator_for("batch", batch)
        for iteration in range(4):
            images = torch.randn(4, 3, 8, 8, generator=generator_for("images", batch, iteration))
            ours, theirs = images.clone().requires_grad_(True), images.clone().requires_grad_(True)
            logits, found = smoothed(ours)
            expected_logits, expected = plain(theirs, generator)
            torch.testing.assert_close(logits, expected_logits)
            torch.testing.assert_close(found, expected)
            found.backward()
            expected.backward()
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6)


def test_asked_without_a_gradient_it_carries_nothing_over():
    layers = network()
    real = {name: random_like([torch.zeros(length) for length in (n, n, 4, 4)]) for name, n in NAMES}
    smoothed = SmoothedTeacher(MatchedTeacher(layers, lambda: ConvInput(SIZE, real), 1.0, SIZE), 0.8, 0.5, 0.0, None)
    images = torch.randn(3, 2, 3, 8, 8, generator=generator_for("images"))
    answers = []
    for others in (False, True):
        smoothed.begin(torch.zeros(2, dtype=torch.int64), generator_for("x"))
        for batch in images:
            answers.append(smoothed(batch.requires_grad_(True))[1].detach())
            if others:
                mean = smoothed.mean.clone()
                with torch.no_grad():
                    torch.testing.assert_close(smoothed(10 * batch)[0], layers(10 * batch))
                assert torch.equal(smoothed.mean, mean)
    assert torch.equal(torch.stack(answers[:3]), torch.stack(answers[3:]))


def join(vectors):
    """First vectors of all layers, then the second ones, and so on."""
    return torch.cat([slot[place] for place in range(4) for slot in vectors if place < len(slot)])


def test_the_gradient_is_that_of_the_iterations_own_statistics():
    """Straight through: not a fifth of it, which a mean over 0.8 of the past would leave."""
    real = {name: random_like([torch.zeros(length) for length in (n, n, 4, 4)]) for name, n in NAMES}
    matched = MatchedTeacher(network(), lambda: ConvInput(SIZE, real), 1.0, SIZE)
    smoothed = SmoothedTeacher(matched, 0.8, 0.0, 0.0, None)
    smoothed.begin(torch.zeros(2, dtype=torch.int64), generator_for("x"))
    images = torch.randn(2, 3, 8, 8, requires_grad=True)
    _, found = matched.statistics(images)
    mean = 0.2 * found.detach()
    cotangent = torch.autograd.functional.jacobian(
        lambda v: matched.distance(v, matched.targets, matched.weights), mean
    )
    (expected,) = torch.autograd.grad((found * cotangent).sum(), images)
    smoothed(images)[1].backward()
    torch.testing.assert_close(images.grad, expected)

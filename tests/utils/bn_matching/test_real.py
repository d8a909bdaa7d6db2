"""Sums over real images, batch by batch, against plain means."""

import torch
from torch import nn

from tests.utils.bn_matching.test_smoothing import join, network, plain_vectors
from utils.bn_matching.probes import ConvInput
from utils.bn_matching.real import RealObserver
from utils.run.randomness import generator_for

CLASSES = 3
IMAGES = torch.randn(11, 3, 8, 8, generator=generator_for("real"))
LABELS = torch.tensor([0, 1, 2, 0, 0, 1, 2, 2, 0, 1, 0])
BATCHES = list(zip(IMAGES.split(4), LABELS.split(4), strict=True))


def inputs_of(layers, images):
    """What goes into each convolution and BatchNorm."""
    found = []
    for layer in layers:
        if isinstance(layer, nn.Conv2d | nn.BatchNorm2d):
            found.append((layer, images))
        images = layer(images)
    return found


def test_the_whole_is_the_mean_of_batches_by_their_size():
    layers = network()
    observer = RealObserver(layers, ConvInput(8), 8, 0)
    observer.add(BATCHES)
    found = observer.whole()
    assert list(found) == ["0", "1", "3"]
    for slot, name in enumerate(found):
        of_batches = [plain_vectors(*inputs_of(layers, images)[slot]) for images, _ in BATCHES]
        for place, vector in enumerate(found[name]):
            expected = sum(
                len(images) * vectors[place] for (images, _), vectors in zip(BATCHES, of_batches, strict=True)
            )
            torch.testing.assert_close(vector, expected / len(IMAGES))
    assert not any(layer._forward_pre_hooks for layer in layers)


def test_a_class_is_the_mean_of_its_images_each_alone():
    layers = network()
    observer = RealObserver(layers, ConvInput(8), 8, CLASSES)
    observer.add(BATCHES)
    for label in range(CLASSES):
        single = [
            join([plain_vectors(*pair) for pair in inputs_of(layers, image[None])]) for image in IMAGES[label == LABELS]
        ]
        torch.testing.assert_close(observer.by_class()[label], torch.stack(single).mean(dim=0))


def test_a_pass_goes_on_where_it_was_stopped():
    whole, first, second = (RealObserver(network(), ConvInput(8), 8, CLASSES) for _ in range(3))
    whole.add(BATCHES)
    first.add(BATCHES[:1])
    second.restore(first.state())
    second.add(BATCHES[1:])
    assert torch.equal(second.by_class(), whole.by_class())
    for name, vectors in whole.whole().items():
        assert all(torch.equal(a, b) for a, b in zip(second.whole()[name], vectors, strict=True))

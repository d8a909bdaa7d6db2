"""Accuracy on labelled images."""

import torch
from torch import nn

from models.testing import TEST_BATCH, LabelledImages, accuracy
from utils.data.images import normalise
from utils.data.table import get_dataset

FASHION = get_dataset("fashion_mnist")


class ByBrightness(nn.Module):
    """Ten logits that rank the classes by how near their number is to an image's brightness, 10 a class."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, images):
        level = (images.mean(dim=(1, 2, 3)) + 1) / 2 * 25.5
        return -(level[:, None] - torch.arange(10)).abs() * self.scale


def test_top1_and_top5_over_several_batches():
    labels = torch.arange(10).repeat(30)  # 300 images, more than one batch
    shown = labels.clone()
    shown[:30] += 1  # off by one: nearest to the next class, the right one still among five
    shown[30:45] = (shown[30:45] + 5) % 10  # far off
    images = (10 * shown).to(torch.uint8)[:, None, None, None].expand(-1, 3, 32, 32)
    assert len(images) > TEST_BATCH
    network = ByBrightness().eval()
    ranked = network(normalise(images, FASHION)).argsort(dim=1, descending=True)
    right = ranked == labels[:, None]
    expected = 100 * right[:, 0].sum().item() / 300, 100 * right[:, :5].any(dim=1).sum().item() / 300
    assert expected[0] < expected[1] < 100
    assert accuracy(network, LabelledImages(images, labels), FASHION) == expected


def test_fewer_than_five_classes_are_all_among_the_first_five():
    class Constant(ByBrightness):
        def forward(self, images):
            return torch.tensor([3.0, 2.0, 1.0]).expand(len(images), 3) * self.scale

    images = torch.zeros(4, 3, 32, 32, dtype=torch.uint8)
    test_set = LabelledImages(images, torch.tensor([0, 1, 2, 0]))
    assert accuracy(Constant(), test_set, FASHION) == (50, 100)

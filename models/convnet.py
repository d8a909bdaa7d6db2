"""Three plain convolutions, each with normalisation, ReLU and 2x2 average pooling (Gidaris and Komodakis, 2018).

ConvNetW128 is the published one: every channel normalised on its own, a classifier on the flattened map. ConvNetBN is
this project's: BatchNorm, whose statistics recover can match, and global average pooling.
"""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from models.registry import register


def channel_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(channels, channels)


@register("ConvNetW128", sizes=(32,), width=128, norm=channel_norm, grid=4)
@register("ConvNetW128", sizes=(64,), width=128, norm=channel_norm, grid=8)
@register("ConvNetBN", width=128, norm=nn.BatchNorm2d, grid=1)
@register("ConvNetBN_W64", width=64, norm=nn.BatchNorm2d, grid=1)
@register("ConvNetBN_W32", width=32, norm=nn.BatchNorm2d, grid=1)
class ConvNet(nn.Module):
    """`width` channels throughout; `norm` makes the layer for that many; the classifier sees grid x grid positions.

    A map of other sides (an eighth of the image's) is average-pooled to the grid, so that a network made for one
    image size takes the other sizes of a recover run too.
    """

    def __init__(self, width: int, norm: Callable[[int], nn.Module], grid: int, num_classes: int) -> None:
        super().__init__()
        layers = []
        for inputs in (3, width, width):
            layers += [nn.Conv2d(inputs, width, 3, padding=1), norm(width), nn.ReLU(inplace=True), nn.AvgPool2d(2)]
        self.features = nn.Sequential(*layers)
        self.grid = grid
        self.classifier = nn.Linear(width * grid * grid, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.features(images)
        if x.shape[2:] != (self.grid, self.grid):
            x = F.adaptive_avg_pool2d(x, self.grid)
        return self.classifier(x.flatten(1))

"""Layers that the small-image networks share. Convolutions have no bias: a BatchNorm follows or precedes them."""

from torch import Tensor, nn


def conv1x1(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 1, stride, bias=False)


def conv3x3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)


def depthwise3x3(channels: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels, channels, 3, stride, padding=1, groups=channels, bias=False)


def projection(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """The shortcut of a residual block whose shape changes: 1x1 convolution and BatchNorm."""
    return nn.Sequential(conv1x1(inputs, outputs, stride), nn.BatchNorm2d(outputs))


def pool_globally(features: Tensor) -> Tensor:
    """The mean over space: N x C x H x W to N x C."""
    return features.mean((2, 3))

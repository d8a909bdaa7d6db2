"""MobileNetV2 for 32 and 64 pixels (Sandler et al., 2018; arXiv 1801.04381), with ReLU instead of ReLU6."""

import torch.nn.functional as F
from torch import Tensor, nn

from models.layers import conv1x1, conv3x3, depthwise3x3, pool_globally, projection
from models.registry import register

# expansion, channels, blocks, stride of the first block
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class InvertedResidual(nn.Module):
    """1x1 to `expansion` times the channels, depthwise 3x3, 1x1; a shortcut wherever the stride is 1."""

    def __init__(self, inputs: int, outputs: int, expansion: int, stride: int) -> None:
        super().__init__()
        hidden = expansion * inputs
        self.conv1 = conv1x1(inputs, hidden)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.conv2 = depthwise3x3(hidden, stride)
        self.bn2 = nn.BatchNorm2d(hidden)
        self.conv3 = conv1x1(hidden, outputs)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.has_shortcut = stride == 1
        if self.has_shortcut:
            self.shortcut = nn.Identity() if inputs == outputs else projection(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = F.relu(self.bn2(self.conv2(out)), inplace=True)
        out = self.bn3(self.conv3(out))
        if self.has_shortcut:
            out += self.shortcut(x)
        return out


@register("MobileNetV2")
class MobileNetV2(nn.Module):
    """Width 1; the published checkpoints call its stem conv1 and its head conv2."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(3, 32)
        self.bn1 = nn.BatchNorm2d(32)
        blocks, inputs = [], 32
        for expansion, outputs, depth, first_stride in STAGES:
            for stride in (first_stride, *[1] * (depth - 1)):
                blocks.append(InvertedResidual(inputs, outputs, expansion, stride))
                inputs = outputs
        self.layers = nn.Sequential(*blocks)
        self.conv2 = conv1x1(inputs, 1280)
        self.bn2 = nn.BatchNorm2d(1280)
        self.linear = nn.Linear(1280, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(images)), inplace=True)
        x = F.relu(self.bn2(self.conv2(self.layers(x))), inplace=True)
        return self.linear(pool_globally(x))

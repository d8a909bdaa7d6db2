"""ShuffleNetV2 for 32 and 64 pixels: 3x3 stride-1 stem, no pooling (Ma et al., 2018; arXiv 1807.11164)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers import conv1x1, conv3x3, depthwise3x3, pool_globally
from models.registry import register


def shuffle(left: Tensor, right: Tensor) -> Tensor:
    """Concatenation of two halves and channel shuffle with 2 groups: left 0, right 0, left 1, right 1, ..."""
    return torch.stack((left, right), dim=2).flatten(1, 2)


class BasicBlock(nn.Module):
    """Passes the first half of the channels on and transforms the second."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv1 = conv1x1(half, half)
        self.bn1 = nn.BatchNorm2d(half)
        self.conv2 = depthwise3x3(half)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = conv1x1(half, half)
        self.bn3 = nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, dim=1)
        right = F.relu(self.bn1(self.conv1(right)), inplace=True)
        right = self.bn2(self.conv2(right))
        right = F.relu(self.bn3(self.conv3(right)), inplace=True)
        return shuffle(left, right)


class DownBlock(nn.Module):
    """Halves the sides: both branches see all the channels, and each makes half of the outputs."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        half = outputs // 2
        self.conv1 = depthwise3x3(inputs, stride=2)  # the left branch
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv2 = conv1x1(inputs, half)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = conv1x1(inputs, half)  # the right one
        self.bn3 = nn.BatchNorm2d(half)
        self.conv4 = depthwise3x3(half, stride=2)
        self.bn4 = nn.BatchNorm2d(half)
        self.conv5 = conv1x1(half, half)
        self.bn5 = nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> Tensor:
        left = self.bn1(self.conv1(x))
        left = F.relu(self.bn2(self.conv2(left)), inplace=True)
        right = F.relu(self.bn3(self.conv3(x)), inplace=True)
        right = self.bn4(self.conv4(right))
        right = F.relu(self.bn5(self.conv5(right)), inplace=True)
        return shuffle(left, right)


@register("ShuffleNetV2", widths=(48, 96, 192), head=1024)  # the published checkpoints' name for width 0.5
@register("ShuffleNetV2_x1_0", widths=(116, 232, 464), head=1024)
@register("ShuffleNetV2_x1_5", widths=(176, 352, 704), head=1024)
@register("ShuffleNetV2_x2_0", widths=(224, 488, 976), head=2048)
class ShuffleNetV2(nn.Module):
    """Three stages of `widths` channels, each a down block and 3, 7, 3 basic blocks; then 1x1 to `head` channels."""

    def __init__(self, widths: tuple[int, int, int], head: int, num_classes: int) -> None:
        super().__init__()

        def stage(inputs: int, outputs: int, depth: int) -> nn.Sequential:
            return nn.Sequential(DownBlock(inputs, outputs), *(BasicBlock(outputs) for _ in range(depth)))

        self.conv1 = conv3x3(3, 24)
        self.bn1 = nn.BatchNorm2d(24)
        self.layer1 = stage(24, widths[0], depth=3)
        self.layer2 = stage(widths[0], widths[1], depth=7)
        self.layer3 = stage(widths[1], widths[2], depth=3)
        self.conv2 = conv1x1(widths[2], head)
        self.bn2 = nn.BatchNorm2d(head)
        self.linear = nn.Linear(head, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(images)), inplace=True)
        x = self.layer3(self.layer2(self.layer1(x)))
        x = F.relu(self.bn2(self.conv2(x)), inplace=True)
        return self.linear(pool_globally(x))

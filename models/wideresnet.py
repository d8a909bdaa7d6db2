"""Wide ResNets WRN-d-k for 32 and 64 pixels (Zagoruyko and Komodakis, 2016; arXiv 1605.07146), without dropout.

Pre-activation blocks. Nothing published fixes the names of the state dict here.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from models.layers import conv1x1, conv3x3, pool_globally
from models.registry import register


class WideBlock(nn.Module):
    """BN-ReLU-3x3 with the stride, BN-ReLU-3x3; where the shape changes, a 1x1 of the activated input is added."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = conv3x3(inputs, outputs, stride)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = conv3x3(outputs, outputs)
        self.shortcut = None if stride == 1 and inputs == outputs else conv1x1(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.bn1(x), inplace=True)
        out = F.relu(self.bn2(self.conv1(active)), inplace=True)
        out = self.conv2(out)
        out += x if self.shortcut is None else self.shortcut(active)
        return out


@register("WRN-16-2", depth=16, width=2)
@register("WRN-16-4", depth=16, width=4)
@register("WRN-28-2", depth=28, width=2)
@register("WRN-28-10", depth=28, width=10)
@register("WRN-40-2", depth=40, width=2)
class WideResNet(nn.Module):
    """Three stages of 16, 32 and 64 times `width` channels; `depth` counts convolutions and is 6 n + 4."""

    def __init__(self, depth: int, width: int, num_classes: int) -> None:
        super().__init__()
        blocks = (depth - 4) // 6

        def stage(inputs: int, outputs: int, stride: int) -> nn.Sequential:
            rest = [WideBlock(outputs, outputs, 1) for _ in range(blocks - 1)]
            return nn.Sequential(WideBlock(inputs, outputs, stride), *rest)

        self.conv1 = conv3x3(3, 16)
        self.layer1 = stage(16, 16 * width, stride=1)
        self.layer2 = stage(16 * width, 32 * width, stride=2)
        self.layer3 = stage(32 * width, 64 * width, stride=2)
        self.bn = nn.BatchNorm2d(64 * width)
        self.linear = nn.Linear(64 * width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.layer3(self.layer2(self.layer1(self.conv1(images))))
        return self.linear(pool_globally(F.relu(self.bn(x), inplace=True)))

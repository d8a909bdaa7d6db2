"""ResNets for 32 and 64 pixels: 3x3 stride-1 stem, no pooling behind it (He et al., 2016; arXiv 1512.03385)."""

import torch.nn.functional as F
from torch import Tensor, nn

from models.layers import conv1x1, conv3x3, pool_globally, projection
from models.registry import register

# In-place operations here and in the other networks only ever meet the output of a BatchNorm or of a sum, which
# autograd does not need, and never a BatchNorm's input, which recover reads.


class BasicBlock(nn.Module):
    """Two 3x3 convolutions, the stride on the first."""

    expansion = 1

    def __init__(self, inputs: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(inputs, channels, stride)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = conv3x3(channels, channels)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = _shortcut(inputs, channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = self.bn2(self.conv2(out))
        out += self.shortcut(x)
        return F.relu(out, inplace=True)


class Bottleneck(nn.Module):
    """1x1, 3x3 with the stride, 1x1 to four times the channels."""

    expansion = 4

    def __init__(self, inputs: int, channels: int, stride: int) -> None:
        super().__init__()
        outputs = self.expansion * channels
        self.conv1 = conv1x1(inputs, channels)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = conv3x3(channels, channels, stride)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = conv1x1(channels, outputs)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.shortcut = _shortcut(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = F.relu(self.bn2(self.conv2(out)), inplace=True)
        out = self.bn3(self.conv3(out))
        out += self.shortcut(x)
        return F.relu(out, inplace=True)


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Module:
    return nn.Identity() if stride == 1 and inputs == outputs else projection(inputs, outputs, stride)


@register("ResNet18", block=BasicBlock, depths=(2, 2, 2, 2))
@register("ResNet34", block=BasicBlock, depths=(3, 4, 6, 3))
@register("ResNet50", block=Bottleneck, depths=(3, 4, 6, 3))
@register("ResNet101", block=Bottleneck, depths=(3, 4, 23, 3))
@register("ResNet152", block=Bottleneck, depths=(3, 8, 36, 3))
class ResNet(nn.Module):
    """Four stages of 64, 128, 256 and 512 channels, with `depths` blocks each."""

    def __init__(self, block: type[BasicBlock | Bottleneck], depths: tuple[int, ...], num_classes: int) -> None:
        super().__init__()

        def stage(inputs: int, channels: int, depth: int, stride: int) -> nn.Sequential:
            outputs = block.expansion * channels
            rest = [block(outputs, channels, 1) for _ in range(depth - 1)]
            return nn.Sequential(block(inputs, channels, stride), *rest)

        self.conv1 = conv3x3(3, 64)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = stage(64, 64, depths[0], stride=1)
        self.layer2 = stage(64 * block.expansion, 128, depths[1], stride=2)
        self.layer3 = stage(128 * block.expansion, 256, depths[2], stride=2)
        self.layer4 = stage(256 * block.expansion, 512, depths[3], stride=2)
        self.linear = nn.Linear(512 * block.expansion, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(images)), inplace=True)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.linear(pool_globally(x))

"""DenseNets for 32 and 64 pixels: 3x3 stride-1 stem, compression 0.5 (Huang et al., 2017; arXiv 1608.06993)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers import conv1x1, conv3x3, pool_globally
from models.registry import register


class DenseLayer(nn.Module):
    """Makes `growth` new features and puts them before the old ones (torchvision's DenseNet: behind them)."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = conv1x1(inputs, 4 * growth)
        self.bn2 = nn.BatchNorm2d(4 * growth)
        self.conv2 = conv3x3(4 * growth, growth)

    def forward(self, x: Tensor) -> Tensor:
        new = self.conv1(F.relu(self.bn1(x), inplace=True))
        new = self.conv2(F.relu(self.bn2(new), inplace=True))
        return torch.cat((new, x), dim=1)


class Transition(nn.Module):
    """Halves the channels and the sides."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(inputs)
        self.conv = conv1x1(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(self.conv(F.relu(self.bn(x), inplace=True)), 2)


@register("Densenet121", growth=32, depths=(6, 12, 24, 16))
@register("Densenet161", growth=48, depths=(6, 12, 36, 24))
@register("Densenet169", growth=32, depths=(6, 12, 32, 32))
@register("Densenet201", growth=32, depths=(6, 12, 48, 32))
class DenseNet(nn.Module):
    """Four dense blocks of `depths` layers with transitions between them; every layer adds `growth` channels."""

    def __init__(self, growth: int, depths: tuple[int, ...], num_classes: int) -> None:
        super().__init__()
        channels = 2 * growth
        self.conv1 = conv3x3(3, channels)
        # Named by number, and the transitions between the blocks: so the published state dicts have them.
        for number, depth in enumerate(depths, start=1):
            if number > 1:
                self.add_module(f"trans{number - 1}", Transition(channels, channels // 2))
                channels //= 2
            layers = (DenseLayer(channels + growth * i, growth) for i in range(depth))
            self.add_module(f"dense{number}", nn.Sequential(*layers))
            channels += growth * depth
        self.bn = nn.BatchNorm2d(channels)
        self.linear = nn.Linear(channels, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.trans1(self.dense1(self.conv1(images)))
        x = self.trans2(self.dense2(x))
        x = self.trans3(self.dense3(x))
        x = F.relu(self.bn(self.dense4(x)), inplace=True)
        return self.linear(pool_globally(x))

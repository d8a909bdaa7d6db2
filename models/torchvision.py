"""torchvision's networks for 224 pixels, and its IMAGENET1K_V1 weights for them."""

import re
from pathlib import Path
from urllib.parse import urlparse

import torch
from torch import Tensor, nn

from models.registry import IMAGENET_SIZES, register
from utils.run.errors import UserError
from utils.run.files import is_the_systems

# torchvision is imported where it is used: runs at 32 and 64 pixels start a second earlier without it.

# our name: torchvision's
ARCHITECTURES = {
    "ResNet18": "resnet18",
    "ResNet34": "resnet34",
    "ResNet50": "resnet50",
    "ResNet101": "resnet101",
    "ResNet152": "resnet152",
    "WRN-50-2": "wide_resnet50_2",
    "Densenet121": "densenet121",
    "Densenet161": "densenet161",
    "Densenet169": "densenet169",
    "Densenet201": "densenet201",
    "MobileNetV2": "mobilenet_v2",
    "MobileNetV3_Large": "mobilenet_v3_large",
    "ShuffleNetV2": "shufflenet_v2_x1_0",
    "ShuffleNetV2_x0_5": "shufflenet_v2_x0_5",
    "ShuffleNetV2_x1_0": "shufflenet_v2_x1_0",
    "ShuffleNetV2_x1_5": "shufflenet_v2_x1_5",
    "ShuffleNetV2_x2_0": "shufflenet_v2_x2_0",
    "EfficientNet": "efficientnet_b0",
    "AlexNet": "alexnet",
    "VGG16_BN": "vgg16_bn",
    "RegNet_Y_400MF": "regnet_y_400mf",
    "ConvNeXt_Tiny": "convnext_tiny",
    "Swin_T": "swin_t",
    "Swin_V2_T": "swin_v2_t",
    "ViT_B_16": "vit_b_16",
}


def torchvision_network(architecture: str, num_classes: int) -> nn.Module:
    from torchvision.models import get_model

    return get_model(architecture, weights=None, num_classes=num_classes)


for _name, _architecture in ARCHITECTURES.items():
    register(_name, sizes=IMAGENET_SIZES, architecture=_architecture)(torchvision_network)


def pretrained_state(name: str) -> tuple[dict[str, Tensor], Path]:
    """The IMAGENET1K_V1 state dict of a network, and the file in torch's cache folder that holds it.

    torchvision downloads the file on first use and verifies its checksum; it is loaded with weights only. Raises
    UserError for a network without such weights, for a download that fails and for a damaged file.
    """
    from torchvision.models import get_model_weights

    if name not in ARCHITECTURES:
        raise UserError(f"torchvision has no ImageNet weights for {name}; it has them for: {' '.join(ARCHITECTURES)}")
    weights = get_model_weights(ARCHITECTURES[name]).IMAGENET1K_V1
    file = Path(torch.hub.get_dir(), "checkpoints", Path(urlparse(weights.url).path).name)
    try:
        state = weights.get_state_dict(progress=True, check_hash=True, weights_only=True, map_location="cpu")
    except Exception as error:  # whatever the network, the disk or the unpickler raised
        if file.is_file():
            if is_the_systems(error):
                raise
            kind = type(error).__name__
            raise UserError(f"{file} is damaged ({kind}): remove it, and it is downloaded again") from error
        raise UserError(
            f"could not download {weights.url} ({error}): put the file into the cache folder {file.parent} by hand, "
            f"or name another cache folder in the variable TORCH_HOME"
        ) from error
    return modern_names(state), file


def modern_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """`state` with the names that today's DenseNet has: old files say `denselayer1.norm.1.weight` for `norm1.weight`.

    The state dicts of other networks come back as they are.
    """
    return {re.sub(r"(\.denselayer\d+\.(?:norm|conv))\.([12]\.)", r"\1\2", name): t for name, t in state.items()}

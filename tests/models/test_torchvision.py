"""torchvision's networks and names. That its weights load from a filled cache is in test_checkpoints.py."""

import pytest
import torch
from torchvision.models import get_model_weights

from models.registry import network_names
from models.torchvision import ARCHITECTURES, modern_names, pretrained_state, torchvision_network
from utils.run.errors import UserError


def test_every_name_stands_for_a_network_of_224_pixels_with_weights():
    assert set(network_names(224)) == set(ARCHITECTURES)
    for architecture in ARCHITECTURES.values():
        assert get_model_weights(architecture).IMAGENET1K_V1.url.startswith("https://download.pytorch.org/models/")


def test_networks_are_random_and_have_the_classes_asked_for():
    torch.manual_seed(0)
    network = torchvision_network("shufflenet_v2_x0_5", num_classes=7)
    torch.manual_seed(1)
    other = torchvision_network("shufflenet_v2_x0_5", num_classes=7)
    assert network.fc.weight.shape == (7, 1024) and not torch.equal(network.fc.weight, other.fc.weight)


def test_old_names_of_dense_layers_become_todays():
    old = {
        "features.denseblock2.denselayer13.norm.1.weight": torch.zeros(1),
        "features.denseblock2.denselayer13.conv.2.weight": torch.ones(1),
        "features.norm5.weight": torch.ones(2),
        "layer1.0.conv.1.weight": torch.ones(3),
    }
    new = modern_names(old)
    assert list(new) == [
        "features.denseblock2.denselayer13.norm1.weight",
        "features.denseblock2.denselayer13.conv2.weight",
        "features.norm5.weight",
        "layer1.0.conv.1.weight",
    ]
    assert all(kept is tensor for kept, tensor in zip(new.values(), old.values(), strict=True))
    assert modern_names(new).keys() == new.keys()


def test_a_network_without_weights_lists_those_with():
    with pytest.raises(UserError, match="torchvision has no ImageNet weights for ConvNetBN; it has them for: ResNet18"):
        pretrained_state("ConvNetBN")

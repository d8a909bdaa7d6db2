"""Names that lead to networks, and what a wrong one gets."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from models.registry import (
    architecture_of,
    build_network,
    check_network,
    epochs_of,
    kept_after,
    network_names,
    register,
)
from utils.data.table import get_dataset
from utils.run.errors import UserError

CIFAR, NETTE = get_dataset("cifar10"), get_dataset("imagenet-nette")
AT_ALL_SIZES = (
    *("ResNet18", "ResNet34", "ResNet50", "ResNet101", "ResNet152"),
    *("Densenet121", "Densenet161", "Densenet169", "Densenet201"),
    *("MobileNetV2", "ShuffleNetV2", "ShuffleNetV2_x1_0", "ShuffleNetV2_x1_5", "ShuffleNetV2_x2_0"),
)


def test_names_stand_where_the_interfaces_say():
    small = {"ConvNetW128", "ConvNetBN", "ConvNetBN_W32", "ConvNetBN_W64", "WRN-16-2", *AT_ALL_SIZES}
    assert small <= set(network_names(32)) and set(network_names(32)) == set(network_names(64))
    assert {"EfficientNet", "AlexNet", *AT_ALL_SIZES} <= set(network_names(224))
    assert set(network_names()) == set(network_names(32)) | set(network_names(224))
    assert network_names(48) == ()


def test_at_224_the_networks_are_torchvisions():
    with torch.device("meta"):
        networks = {name: build_network(name, NETTE) for name in ("ShuffleNetV2", "EfficientNet", "AlexNet")}
        assert all(network(torch.empty(2, 3, 224, 224)).shape == (2, 10) for network in networks.values())
    assert (
        networks["ShuffleNetV2"].conv5[0].out_channels == 1024 and "fc.weight" in networks["ShuffleNetV2"].state_dict()
    )
    assert networks["ShuffleNetV2"].stage2[0].branch2[0].out_channels == 58  # x1_0
    assert networks["EfficientNet"].classifier[1].in_features == 1280  # b0


def test_the_same_seed_builds_the_same_student():
    states = []
    for _ in range(2):
        torch.manual_seed(3)
        states.append(build_network("ConvNetBN_W32", CIFAR).state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize(("name", "dataset"), [("ResNet19", CIFAR), ("AlexNet", CIFAR), ("ConvNetBN", NETTE)])
def test_unknown_names_list_the_ones_there_are(name, dataset):
    with pytest.raises(UserError, match=rf"unknown network '{name}' for the {dataset.size}-pixel.*ResNet18.*timm:"):
        build_network(name, dataset)


def test_a_teacher_may_be_named_with_its_epochs():
    torch.manual_seed(0)
    plain = build_network("ConvNetBN_W32", CIFAR).state_dict()
    torch.manual_seed(0)
    named = build_network("ConvNetBN_W32@12", CIFAR).state_dict()
    assert all(torch.equal(plain[name], named[name]) for name in plain)
    assert (epochs_of("ConvNetBN_W32@12"), epochs_of("ConvNetBN_W32")) == (12, None)
    assert architecture_of("timm:resnet18@3") == architecture_of("timm:resnet18@1of3") == "timm:resnet18"
    assert (epochs_of("ConvNetBN_W32@3of12"), kept_after("ConvNetBN_W32@3of12")) == (12, 3)
    assert kept_after("ConvNetBN_W32@12") is None and kept_after("ConvNetBN_W32") is None
    with pytest.raises(UserError, match="unknown network 'ResNet19'"):
        check_network("ResNet19@3", CIFAR)


@pytest.mark.parametrize(
    "name",
    [
        "ResNet18@",
        "ResNet18@x",
        "ResNet18@0",
        "ResNet18@1.5",
        "ResNet18@3@4",
        "ResNet18@100000",
        "ResNet18@of3",
        "ResNet18@3of",
    ],
)
def test_behind_at_stands_a_number_of_epochs(name):
    with pytest.raises(UserError, match=f"{name}: behind @ stands a number of epochs, from 1 to 99,999"):
        check_network(name, CIFAR)


@pytest.mark.parametrize("name", ["ResNet18@0of3", "ResNet18@3of3", "ResNet18@4of3"])
def test_a_teacher_is_kept_before_the_last_epoch(name):
    with pytest.raises(UserError, match=f"{name}: of 3 epochs, 1 to 2 may stand there; after the last it is @3"):
        check_network(name, CIFAR)


def test_a_dataset_of_another_size_has_no_networks_yet():
    with pytest.raises(UserError, match="48-pixel"):
        check_network("ResNet18", replace(CIFAR, size=48))


def test_a_name_is_registered_once_a_size():
    @register("TestOnly", sizes=(8,), width=3)
    class Tiny(nn.Module):
        def __init__(self, width: int, num_classes: int) -> None:
            super().__init__()
            self.linear = nn.Linear(width, num_classes)

    assert build_network("TestOnly", replace(CIFAR, size=8)).linear.weight.shape == (10, 3)
    with pytest.raises(ValueError, match="twice"):
        register("TestOnly", sizes=(8,))(Tiny)

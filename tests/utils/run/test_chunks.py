"""How many images go through a network at once."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from models.registry import build_network
from utils.data.table import get_dataset
from utils.run import chunks


def test_the_widest_output_is_the_largest_of_any_layer():
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.MaxPool2d(2), nn.Conv2d(8, 16, 1))
    assert chunks.widest_output(network, 10) == 4 * 8 * 10 * 10
    assert chunks.images_at_once(network, 10) == 2**25 // 3200


def test_a_network_is_left_as_it_was():
    network = build_network("ShuffleNetV2", get_dataset("cifar10"))
    network.eval()
    network.train()
    network.bn1.eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    chunks.widest_output(network, 32)
    assert network.training
    assert not network.bn1.training
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert not any(module._forward_hooks for module in network.modules())


def test_a_network_too_wide_for_the_device_takes_one_image(monkeypatch):
    monkeypatch.setattr(chunks, "CPU_BYTES", 1)
    assert chunks.images_at_once(nn.Conv2d(3, 4, 1), 8) == 1


@pytest.mark.parametrize(("gibibytes", "size"), [(79, 2**31), (23.6, 2**30), (11, 2**29)])
def test_a_gpu_takes_by_its_class(monkeypatch, gibibytes, size):
    memory = SimpleNamespace(total_memory=int(gibibytes * 2**30))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: memory)
    assert chunks.bytes_at_once(torch.device("cuda", 0)) == size


def test_mps_has_a_class_of_its_own():
    assert chunks.bytes_at_once(torch.device("mps")) == 2**28

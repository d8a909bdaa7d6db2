"""Networks of timm at the sizes of the datasets, and its own weights from a filled cache folder."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from models.registry import build_network
from models.timm import _Renormalised, build_pretrained
from utils.data.images import channel_tensors
from utils.data.table import get_dataset
from utils.run.errors import UserError

CIFAR, IMAGENET = get_dataset("cifar10"), get_dataset("imagenet1k")

ONLINE = """
import timm
from pathlib import Path
from models.checkpoints import load_teacher, save_state
from models.registry import build_network
from utils.data.table import get_dataset
from utils.run.errors import UserError

name, cache, imagenet = "test_vit.r160_in1k", Path({cache!r}), get_dataset("imagenet1k")
try:
    load_teacher(f"timm:{{name}}", imagenet, Path("no pool"), source="online")
except UserError as error:
    assert str(error).startswith(f"could not load timm's weights for {{name}} (") and str(cache) in str(error), error
else:
    raise AssertionError("loaded weights from nowhere")

network = timm.create_model(name)
folder = cache / "models--timm--test_vit.r160_in1k"
save_state(folder / "snapshots" / "0" / "model.safetensors", network)
(folder / "refs").mkdir()
(folder / "refs" / "main").write_text("0")
first, second = (load_teacher(f"timm:{{name}}", imagenet, Path("no pool"), source="online") for _ in range(2))
assert first.sha256 == second.sha256 and len(first.sha256) == 64
head = dict(first.module.named_parameters())["network.head.weight"]
assert head.equal(network.head.weight) and not head.requires_grad and not first.module.training
"""


@pytest.mark.parametrize("name", ["timm:resnet10t", "timm:vit_tiny_patch16_224", "timm:resnet18.a1_in1k"])
def test_networks_take_the_size_of_the_dataset(name):
    network = build_network(name, CIFAR)
    assert network.training
    assert network.eval()(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm:resnet18x", "timm has no network 'resnet18x'; near it: .*resnet18"),
        ("timm:hf-hub:someone/something", "timm has no network 'hf-hub:someone/something'"),
        ("timm:resnet18.nothing", "timm has no weights 'nothing' of resnet18; it has: .*resnet18.a1_in1k"),
        ("timm:inception_v4", "timm:inception_v4 cannot be used with the 32-pixel images of cifar10"),
    ],
)
def test_names_and_sizes_that_cannot_be_used(name, message):
    with pytest.raises(UserError, match=message):
        build_network(name, CIFAR)


def test_weights_come_from_the_cache(tmp_path):
    root = Path(__file__).parents[2]
    env = {"HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(root)}
    subprocess.run([sys.executable, "-c", ONLINE.format(cache=str(tmp_path))], env=os.environ | env, check=True)


def test_weights_of_other_classes_are_refused():
    with pytest.raises(UserError, match="are of 21843 classes, but imagenet1k has 1000"):
        build_pretrained("vit_tiny_patch16_224.augreg_in21k", IMAGENET)


def test_networks_without_weights_are_refused():
    name = next(name for name in timm.list_models() if not timm.list_pretrained(f"{name}.*"))
    with pytest.raises(UserError, match=f"timm has no pretrained weights for {name}"):
        build_pretrained(name, IMAGENET)


def test_renormalised_images_are_as_the_network_was_trained():
    pixels = torch.rand(2, 3, 4, 4)
    mean, std = channel_tensors(IMAGENET)
    wrapped = _Renormalised(nn.Identity(), IMAGENET, (0.5, 0.4, 0.3), (0.5, 0.6, 0.7))
    expected = (pixels - torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1)) / torch.tensor([0.5, 0.6, 0.7]).view(3, 1, 1)
    assert torch.allclose(wrapped((pixels - mean) / std), expected, atol=1e-6)

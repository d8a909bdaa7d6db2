"""Logits of small-image networks whose weights follow a formula: python logits_by_formula.py FILE NAME...

Its own process, because the order of summation (threads, instruction set) is settled when torch is loaded.
"""

import sys
from dataclasses import replace
from pathlib import Path

import safetensors.torch
import torch
from torch import nn

from models.registry import build_network
from utils.data.table import get_dataset


def fill_by_formula(network: nn.Module) -> None:
    """A sine wave a tensor, its phase counted over the state dict, scaled by the kind of tensor."""
    count = 0
    for name, tensor in network.state_dict().items():
        if name.endswith("num_batches_tracked"):
            continue
        count += 1
        wave = torch.sin(0.7 * count + 1.3 * torch.arange(tensor.numel(), dtype=torch.float64))
        if name.endswith("running_var"):
            values = 1 + 0.5 * wave
        elif name.endswith("running_mean") or (tensor.dim() == 1 and not name.endswith("weight")):
            values = 0.1 * wave
        elif tensor.dim() == 1:
            values = 1 + 0.2 * wave
        else:
            values = wave * (2 / tensor[0].numel()) ** 0.5
        tensor.copy_(values.view_as(tensor))


def images_by_formula(count: int, size: int) -> torch.Tensor:
    k = torch.arange(count * 3 * size * size, dtype=torch.float64)
    return torch.sin(0.01 * k + 0.5 * torch.sin(0.37 * k)).float().view(count, 3, size, size)


def main(file: str, *names: str) -> None:
    logits = {}
    for name in names:
        for dataset in (get_dataset("cifar100"), replace(get_dataset("tiny_imagenet"), num_classes=100)):
            with torch.device("meta"):
                network = build_network(name, dataset)
            network.to_empty(device="cpu")
            fill_by_formula(network)
            with torch.no_grad():
                key = f"{name}.{dataset.size}"
                logits[f"{key}.eval"] = network.eval()(images_by_formula(2, dataset.size))
                if any(isinstance(module, nn.BatchNorm2d) for module in network.modules()):
                    logits[f"{key}.batch_statistics"] = network.train()(images_by_formula(4, dataset.size))
    safetensors.torch.save_file(logits, Path(file))


if __name__ == "__main__":
    main(*sys.argv[1:])

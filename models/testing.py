"""How good a network is on the real validation images: for teachers and students alike."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from utils.data.images import normalise
from utils.data.table import Dataset
from utils.run.device import memory_format
from utils.run.errors import UserError

TEST_BATCH = 256


class LabelledImages(NamedTuple):
    """Real images (uint8, N x 3 x S x S, on any device) and their labels (N)."""

    images: Tensor
    labels: Tensor


@torch.no_grad()
def accuracy(network: nn.Module, test_set: LabelledImages, dataset: Dataset) -> tuple[float, float]:
    """Top-1 and top-5 accuracy of a network in eval mode, in percent. UserError where its logits are not finite."""
    device, finite = next(network.parameters()).device, True
    layout = memory_format(device) if device.type == "cuda" else torch.contiguous_format
    right1 = right5 = torch.zeros((), dtype=torch.int64, device=device)
    for images, labels in zip(*(part.split(TEST_BATCH) for part in test_set), strict=True):
        logits = network(normalise(images.to(device), dataset).contiguous(memory_format=layout))
        finite = finite & logits.isfinite().all()
        ranked = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels.to(device)[:, None]
        right1, right5 = right1 + ranked[:, 0].sum(), right5 + ranked.sum()
    if not finite:
        raise UserError("the network gives logits that are not finite: train it again, or put another checkpoint there")
    total = len(test_set.labels)
    return 100 * right1.item() / total, 100 * right5.item() / total

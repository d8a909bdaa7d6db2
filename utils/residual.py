"""Data residual matching (FADRM, NeurIPS 2025): between two stages the real patch is mixed back into the image."""

import math

import torch.nn.functional as F
from torch import Tensor


def resize(images: Tensor, size: int) -> Tensor:
    """The method's resize (N x C x S x S to `size`): bilinear, half-pixel centres, no antialias."""
    if images.shape[-1] == size:
        return images
    return F.interpolate(images, size=(size, size), mode="bilinear", align_corners=False, antialias=False)


def merge_residual(images: Tensor, patches: Tensor, alpha: float, size: int) -> Tensor:
    """`alpha * images + (1 - alpha) * patches`, both resized to `size` first.

    images: B x 3 x s x s, the batch being optimised; patches: B x 3 x S x S, the real patches; both normalised.
    """
    return alpha * resize(images, size) + (1 - alpha) * resize(patches, size)


def cosine_rate(base: float, iteration: int, iterations: int) -> float:
    """Learning rate at `iteration` of `iterations`, counted over all stages: `base` falling to zero on a cosine."""
    return 0.5 * base * (1 + math.cos(math.pi * iteration / iterations))

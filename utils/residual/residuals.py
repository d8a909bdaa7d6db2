"""Data residual matching (FADRM, NeurIPS 2025): between two stages something real is mixed back into the image.

A residual is a function of the images, the number of the stage that begins and its size; its builder takes the
settings, the batch's patches (B x 3 x S x S, normalised; None where a run has none), and where its `of_real_images` is
true what finds other anchors for images of the batch (B x 3 x s x s to B x 3 x S x S).
"""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from utils.recipes.settings import RecoverSettings
from utils.seams import RESIDUALS

Residual = Callable[[Tensor, int, int], Tensor]
Retrieve = Callable[[Tensor], Tensor]


@RESIDUALS.add("none")
def none(settings: RecoverSettings, patches: Tensor | None) -> Residual:
    """Images go on as they are, at the next stage's size."""
    return lambda images, stage, size: resize(images, size)


@RESIDUALS.add("mix")
def mix(settings: RecoverSettings, patches: Tensor | None) -> Residual:
    """`alpha * image + (1 - alpha) * patch`, both at the next stage's size first (FADRM)."""
    if patches is None or settings.alpha == 1:
        return none(settings, patches)
    return lambda images, stage, size: merge_residual(images, patches, settings.alpha, size)


@RESIDUALS.add("retrieved")
def retrieved(settings: RecoverSettings, patches: Tensor | None, retrieve: Retrieve) -> Residual:
    """As mix, with the training image that each image has become most like in place of its patch (RETA)."""
    return lambda images, stage, size: merge_residual(images, retrieve(images), settings.alpha, size)


retrieved.of_real_images = True


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

"""The augmentation of recover: one random crop, flip and circular roll for a whole batch.

What is random is drawn first, as integers, for a whole stage at once; what is done with it is arithmetic on the batch.
"""

import torch
from torch import Tensor

from utils.data.crops import sample_crops, sample_flips
from utils.fkd.views import bilinear_taps

AREA = (0.08, 1.0)


def sample_batch_augmentations(
    count: int,
    size: int,
    crop_and_flip: bool,
    jitter: int,
    generator: torch.Generator,
    area: tuple[float | Tensor, float] = AREA,
) -> Tensor:
    """Draws for `count` iterations, each one for a whole batch. area: least (of all, or count) and largest share that a
    crop covers.

    Returns int64, count x 7: top, left, height, width of the crop, flip, roll down, roll right (both 0..jitter).
    Without `crop_and_flip` the crop is the whole image and the flip 0.
    """
    if crop_and_flip:
        crops = sample_crops(size, size, count, area, generator)
        flips = sample_flips(count, generator)
    else:
        crops = torch.tensor([0, 0, size, size]).expand(count, 4)
        flips = torch.zeros(count, dtype=torch.bool)
    rolls = torch.randint(0, jitter + 1, (count, 2), generator=generator)
    return torch.cat((crops, flips[:, None].long(), rolls), dim=1)


def augmentation_matrices(draws: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Crop, resize, flip and roll as one linear map on each axis: `view = rows @ image @ columns.T`.

    draws: K x 7 of `sample_batch_augmentations`. Returns two float32 tensors, K x size x size. Two small products
    of fixed shape stand for four operations of varying shape, and their gradient needs no scattered additions (which
    are slow and, on CUDA, in no fixed order).
    """
    top, left, height, width, flip, down, right = draws.unbind(dim=1)

    def matrix(lower: Tensor, upper: Tensor, weight: Tensor) -> Tensor:
        rows = torch.zeros(len(draws), size, size, device=draws.device)
        rows.scatter_add_(2, lower[..., None], (1 - weight)[..., None])
        return rows.scatter_add_(2, upper[..., None], weight[..., None])

    rows = matrix(*bilinear_taps(top, height, torch.zeros_like(flip).bool(), size, shift=down))
    columns = matrix(*bilinear_taps(left, width, flip.bool(), size, shift=right))
    return rows, columns


def augment_batch(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """One view of a whole batch (B x C x S x S) from the two matrices of one draw (S x S each)."""
    return rows @ images @ columns.T

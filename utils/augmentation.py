"""Views: random resized crop, flip, circular roll, CutMix and MixUp, as functions of tensors.

What is random is drawn first, as integers, for a whole stage or epoch at once; what is done with it is arithmetic on
whole batches. So a stored draw can be replayed exactly, on any device.
"""

import math

import torch
from torch import Tensor

ASPECT_RANGE = (3 / 4, 4 / 3)
CROP_TRIES = 10


def sample_crops(count: int, size: int, min_scale: float, max_scale: float, generator: torch.Generator) -> Tensor:
    """Crops of a square image as torchvision's RandomResizedCrop draws them, all at once.

    count: crops to draw; size: side of the image in pixels; min_scale, max_scale: share of its area.
    Returns int64, count x 4: top, left, height, width in pixels. A crop is the first of ten tries that fits;
    where none does it is the whole image, torchvision's fallback for a square one.
    """
    uniform = torch.rand(2, count, CROP_TRIES, generator=generator, dtype=torch.float64)
    position = torch.rand(2, count, generator=generator, dtype=torch.float64)
    area = size * size * (min_scale + (max_scale - min_scale) * uniform[0])
    low, high = (math.log(bound) for bound in ASPECT_RANGE)
    aspect = torch.exp(low + (high - low) * uniform[1])
    widths, heights = (area * aspect).sqrt().round(), (area / aspect).sqrt().round()
    fits = (widths >= 1) & (widths <= size) & (heights >= 1) & (heights <= size)
    first_fit = fits.int().argmax(dim=1, keepdim=True)
    height, width = (
        torch.where(fits.any(dim=1), sides.gather(1, first_fit).squeeze(1), float(size)) for sides in (heights, widths)
    )
    top, left = (position[0] * (size - height + 1)).floor(), (position[1] * (size - width + 1)).floor()
    return torch.stack((top, left, height, width), dim=1).long()


def sample_flips(count: int, generator: torch.Generator) -> Tensor:
    """count booleans, true with probability 1/2."""
    return torch.rand(count, generator=generator) < 0.5


def sample_beta(count: int, alpha: float, generator: torch.Generator) -> Tensor:
    """count float64 draws from Beta(alpha, alpha), after Johnk (1964).

    torch.distributions takes no generator, so that its draws would depend on what was drawn before.
    """
    result = torch.empty(count, dtype=torch.float64)
    open_places = torch.arange(count)
    while len(open_places):
        pair = torch.rand(2, len(open_places), generator=generator, dtype=torch.float64).pow(1 / alpha)
        total = pair.sum(dim=0)
        accepted = (total > 0) & (total <= 1)
        result[open_places[accepted]] = (pair[0] / total)[accepted]
        open_places = open_places[~accepted]
    return result


def sample_boxes(lam: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """CutMix boxes (Yun et al. 2019) for the shares `lam` (float64, count), in whole pixels of a square image.

    Returns int64, count x 4: rows from, columns from, rows to, columns to. The side is int(size * sqrt(1 - lam)); the
    edges lie side // 2 from a uniform centre and are clipped to the image, so an odd side loses a pixel.
    """
    half = (size * (1 - lam).sqrt()).floor().long().div(2, rounding_mode="floor")
    centre = torch.randint(0, size, (2, len(lam)), generator=generator)
    return torch.stack([*(centre - half).clamp(0, size), *(centre + half).clamp(0, size)], dim=1)


def _bilinear_taps(
    start: Tensor, length: Tensor, reverse: Tensor, size: int, shift: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Where each of `size` output places of one axis reads its input, for N crops at once.

    start, length (N, int64): the crop on this axis; reverse (N, bool): mirrored; shift (N, int64): rolled by so much
    afterwards. Returns lower and upper input place (N x size, int64) and the upper one's weight (N x size, float32).
    Pixel centres are at halves; places outside the crop repeat its edge.
    """
    place = torch.arange(size, device=start.device).expand(len(start), size)
    if shift is not None:
        place = (place - shift[:, None]) % size
    place = torch.where(reverse[:, None], size - 1 - place, place)
    length = length[:, None]
    centre = (place.float() + 0.5) * (length.float() / size) - 0.5
    centre = centre.clamp(min=0).minimum(length - 1.0)
    lower = centre.floor()
    weight = centre - lower
    lower = lower.long()
    upper = (lower + 1).minimum(length - 1)
    return lower + start[:, None], upper + start[:, None], weight


def pick(images: Tensor, which: Tensor, device: torch.device) -> Tensor:
    """`images[which]` on the device. Images that stay in the host's memory reach a GPU by way of pinned memory, so that
    nothing waits for them."""
    if images.device == device:
        return images[which.long()]
    picked = torch.empty(len(which), *images.shape[1:], dtype=images.dtype, pin_memory=device.type == "cuda")
    torch.index_select(images, 0, which.long(), out=picked)
    return picked.to(device, non_blocking=True)


def apply_views(images: Tensor, which: Tensor, crops: Tensor, flips: Tensor) -> Tensor:
    """Views of images: each crop brought back to the full size (bilinear on the crop alone), then flipped or not.

    images: M x C x S x S, uint8 or float; which (N): the image of each view, where the images are; crops (N x 4): top,
    left, height, width; flips (N, bool), both on the device where views are made, if that is another. Returns float32,
    N x C x S x S, in the images' own range.
    A crop is never larger than the image, so no antialiasing is called for: PIL's crop and resize gives the same.
    """
    size = images.shape[-1]
    crops = crops.long()
    never = torch.zeros_like(flips, dtype=torch.bool)
    top, bottom, down = _bilinear_taps(crops[:, 0], crops[:, 2], never, size)
    left, right, across = _bilinear_taps(crops[:, 1], crops[:, 3], flips.bool(), size)
    picked = pick(images, which, crops.device)

    def rows(places: Tensor) -> Tensor:
        return picked.gather(2, places[:, None, :, None].expand_as(picked)).float()

    lines = torch.lerp(rows(top), rows(bottom), down[:, None, :, None])

    def columns(places: Tensor) -> Tensor:
        return lines.gather(3, places[:, None, None, :].expand_as(lines))

    return torch.lerp(columns(left), columns(right), across[:, None, None, :])


def cutmix(views: Tensor, partner: Tensor, boxes: Tensor) -> Tensor:
    """Paste each view's box from its partner.

    views: N x C x S x S; partner (N): row of the partner; boxes: N x 4, rows from, columns from, rows to, columns to.
    """
    place = torch.arange(views.shape[-1], device=views.device)
    boxes = boxes.long()
    in_rows = (place >= boxes[:, 0, None]) & (place < boxes[:, 2, None])
    in_columns = (place >= boxes[:, 1, None]) & (place < boxes[:, 3, None])
    inside = in_rows[:, None, :, None] & in_columns[:, None, None, :]
    return torch.where(inside, views[partner.long()], views)


def mixup(views: Tensor, partner: Tensor, lam: Tensor) -> Tensor:
    """lam * view + (1 - lam) * partner (Zhang et al. 2018). views: N x C x S x S; partner, lam: N."""
    share = lam.to(views.dtype)[:, None, None, None]
    return share * views + (1 - share) * views[partner.long()]


def sample_batch_augmentations(count: int, size: int, crop_and_flip: bool, jitter: int, generator: torch.Generator):
    """Draws for `count` iterations of recover, each one for a whole batch (method: recover, iteration, step 3).

    Returns int64, count x 7: top, left, height, width of the crop, flip, roll down, roll right (both 0..jitter).
    Without `crop_and_flip` the crop is the whole image and the flip 0.
    """
    if crop_and_flip:
        crops = sample_crops(count, size, 0.08, 1.0, generator)
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

    rows = matrix(*_bilinear_taps(top, height, torch.zeros_like(flip).bool(), size, shift=down))
    columns = matrix(*_bilinear_taps(left, width, flip.bool(), size, shift=right))
    return rows, columns


def augment_batch(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """One view of a whole batch (B x C x S x S) from the two matrices of one draw (S x S each)."""
    return rows @ images @ columns.T

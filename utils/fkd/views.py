"""Views: random resized crop, flip, tile shuffle, CutMix and MixUp, as functions of tensors.

What is random is drawn first, as integers, for a whole epoch at once; what is done with it is arithmetic on whole
batches. So a stored draw can be replayed exactly, on any device.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from utils.data.crops import sample_crops, sample_flips
from utils.data.images import normalise
from utils.data.table import Dataset
from utils.run.randomness import generator_for


@dataclass(frozen=True)
class ViewSettings:
    """All that the views of an epoch depend on.

    images: distilled images; size: their side; min_scale, max_scale: share of the area a crop may take;
    mix: "cutmix", "mixup" or None; mix_alpha: of the Beta distribution; fkd_seed: of the order; seed: of the views;
    tiles: rows and columns of tiles that change places (1: none).
    """

    images: int
    size: int
    batch_size: int
    epochs: int
    min_scale: float
    max_scale: float
    mix: str | None
    mix_alpha: float
    fkd_seed: int
    seed: int
    tiles: int = 1

    @property
    def batches(self) -> int:
        return -(-self.images // self.batch_size)

    def as_record(self) -> dict[str, object]:
        """The settings by name; tiles only where there are some, which older stores know nothing of."""
        return {name: value for name, value in asdict(self).items() if name != "tiles" or value > 1}


class Epoch(NamedTuple):
    """What is drawn for one epoch of N images in B batches, on the CPU, in the types of the store.

    order (N, int32): the image at each place; crop (N x 4, int16): top, left, height, width; flip (N, uint8);
    mix_partner (N, int32): the partner's place within its batch; mix_box (B x 4, int16): rows from, columns from,
    rows to, columns to; mix_lam (B, float32); tile_order (N x 2 x tiles, uint8; None where there are no tiles): which
    column, and which row, of tiles comes to each place.
    """

    order: Tensor
    crop: Tensor
    flip: Tensor
    mix_partner: Tensor
    mix_box: Tensor
    mix_lam: Tensor
    tile_order: Tensor | None = None

    def tensors(self) -> dict[str, Tensor]:
        """Those that are there, by name."""
        return {name: tensor for name, tensor in self._asdict().items() if tensor is not None}

    def to(self, images: Tensor, device: torch.device) -> "Epoch":
        """The same on the device, where views are made; the order where the images are that it picks."""
        moved = {name: tensor.to(device) for name, tensor in self.tensors().items()}
        return Epoch(**moved)._replace(order=self.order.to(images.device))


def draw_epoch(settings: ViewSettings, epoch: int) -> Epoch:
    """Everything random of one epoch. It depends on the settings and the epoch alone."""
    count, batches = settings.images, settings.batches
    order = torch.randperm(count, generator=generator_for("order", settings.fkd_seed, epoch))
    generator = generator_for("views", settings.seed, epoch)
    area = (settings.min_scale, settings.max_scale)
    crop = sample_crops(settings.size, settings.size, count, area, generator)
    flip = sample_flips(count, generator)
    lengths = [min(settings.batch_size, count - first) for first in range(0, count, settings.batch_size)]
    partner = torch.cat([torch.arange(length) for length in lengths])
    box = torch.zeros(batches, 4, dtype=torch.int64)
    lam = torch.ones(batches, dtype=torch.float64)
    if settings.mix is not None:
        partner = torch.cat([torch.randperm(length, generator=generator) for length in lengths])
        lam = sample_beta(batches, settings.mix_alpha, generator)
    if settings.mix == "cutmix":
        box = sample_boxes(lam, settings.size, generator)
    tile_order = None
    if settings.tiles > 1:
        keys = torch.rand(count, 2, settings.tiles, generator=generator_for("tiles", settings.seed, epoch))
        tile_order = keys.argsort(dim=2).byte()
    return Epoch(order.int(), crop.short(), flip.byte(), partner.int(), box.short(), lam.float(), tile_order)


def uncropped(epoch: Epoch, size: int) -> Epoch:
    """The same images in the same order, each whole and as it is; of an epoch without mixing and tiles."""
    whole = torch.tensor((0, 0, size, size), dtype=epoch.crop.dtype)
    return epoch._replace(crop=whole.expand_as(epoch.crop), flip=torch.zeros_like(epoch.flip))


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


def render_views(
    images: Tensor, epoch: Epoch, first: int, last: int, settings: ViewSettings, dataset: Dataset
) -> Tensor:
    """The mixed views of batches first .. last - 1 of an epoch, ready for a network.

    images: all distilled images, uint8, N x 3 x S x S; epoch: `to` them. Returns float32, normalised, on the device
    of the draws.
    """
    places = slice(first * settings.batch_size, min(last * settings.batch_size, settings.images))
    order, crop, flip, partner = (tensor[places] for tensor in epoch[:4])
    tile_order = None if epoch.tile_order is None else epoch.tile_order[places]
    views = normalise(apply_views(images, order, crop, flip, tile_order), dataset)
    if settings.mix is None:
        return views
    row = torch.arange(len(order), device=crop.device)
    batch = row // settings.batch_size
    partner_row = batch * settings.batch_size + partner
    if settings.mix == "cutmix":
        return cutmix(views, partner_row, epoch.mix_box[first:last][batch])
    return mixup(views, partner_row, epoch.mix_lam[first:last][batch])


def chunks_of_batches(settings: ViewSettings, views_at_once: int) -> Iterator[tuple[int, int]]:
    """Cut an epoch's batches into chunks of about `views_at_once` views: pairs (first, last) of batches."""
    step = max(1, views_at_once // settings.batch_size)
    for first in range(0, settings.batches, step):
        yield first, min(first + step, settings.batches)


def bilinear_taps(
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


def gather_images(images: Tensor, which: Tensor, device: torch.device) -> Tensor:
    """`images[which]` on the device. Images that stay in the host's memory reach a GPU by way of pinned memory, so that
    nothing waits for them."""
    if images.device == device:
        return images[which.long()]
    picked = torch.empty(len(which), *images.shape[1:], dtype=images.dtype, pin_memory=device.type == "cuda")
    torch.index_select(images, 0, which.long(), out=picked)
    return picked.to(device, non_blocking=device.type == "cuda")


def apply_views(
    images: Tensor, which: Tensor, crops: Tensor, flips: Tensor, tile_order: Tensor | None = None
) -> Tensor:
    """Views of images: tiles change places, then each crop is brought back to the full size (bilinear on the crop
    alone) and flipped or not.

    images: M x C x S x S, uint8 or float; which (N): the image of each view, where the images are; crops (N x 4): top,
    left, height, width; flips (N, bool); tile_order: as in `Epoch`; these on the device where views are made, if that
    is another. Returns float32, N x C x S x S, in the images' own range. A crop is never larger than the image, so no
    antialiasing is called for: PIL's crop and resize gives the same.
    """
    size = images.shape[-1]
    crops = crops.long()
    never = torch.zeros_like(flips, dtype=torch.bool)
    top, bottom, down = bilinear_taps(crops[:, 0], crops[:, 2], never, size)
    left, right, across = bilinear_taps(crops[:, 1], crops[:, 3], flips.bool(), size)
    if tile_order is not None:
        columns_from, rows_from = (tile_places(order, size) for order in tile_order.unbind(dim=1))
        top, bottom = (rows_from.gather(1, places) for places in (top, bottom))
        left, right = (columns_from.gather(1, places) for places in (left, right))
    picked = gather_images(images, which, crops.device)

    def rows(places: Tensor) -> Tensor:
        return picked.gather(2, places[:, None, :, None].expand_as(picked)).float()

    lines = torch.lerp(rows(top), rows(bottom), down[:, None, :, None])

    def columns(places: Tensor) -> Tensor:
        return lines.gather(3, places[:, None, None, :].expand_as(lines))

    return torch.lerp(columns(left), columns(right), across[:, None, None, :])


def tile_places(order: Tensor, size: int) -> Tensor:
    """Where each of `size` places of an axis comes from when its tiles change places: N x size, int64.

    order: N x tiles, the tile that comes to each place.
    """
    side = size // order.shape[1]
    place = torch.arange(size, device=order.device)
    return order.long()[:, place // side] * side + place % side


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

"""Random resized crops and flips, drawn as torchvision draws them, and real images cropped by them."""

import math

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from utils.run.randomness import generator_for

ASPECTS, SQUARE = (3 / 4, 4 / 3), (1.0, 1.0)  # least and largest width / height
CROP_TRIES = 10


def sample_crops(
    height: int,
    width: int,
    count: int,
    area: tuple[float | Tensor, float],
    generator: torch.Generator,
    aspects: tuple[float, float] = ASPECTS,
) -> Tensor:
    """Crops of an image as torchvision's RandomResizedCrop draws them, all at once.

    height, width: of the image, in pixels; area: least (of all crops, or of each: count) and largest share of it, drawn
    uniformly; aspects: least and largest width / height, drawn log-uniformly. Returns int64, count x 4: top, left,
    height, width in pixels.
    A crop is the first of ten tries that fits inside; where none does it is torchvision's fallback: the largest crop
    about the centre whose aspect is allowed.
    """
    uniform = torch.rand(2, count, CROP_TRIES, generator=generator, dtype=torch.float64)
    position = torch.rand(2, count, generator=generator, dtype=torch.float64)
    least = area[0][:, None] if isinstance(area[0], Tensor) else area[0]
    areas = height * width * (least + (area[1] - least) * uniform[0])
    low, high = (math.log(bound) for bound in aspects)
    ratios = torch.exp(low + (high - low) * uniform[1])
    widths, heights = (areas * ratios).sqrt().round().long(), (areas / ratios).sqrt().round().long()
    fits = (widths >= 1) & (widths <= width) & (heights >= 1) & (heights <= height)
    first_fit = fits.int().argmax(dim=1, keepdim=True)
    sides = torch.cat((heights.gather(1, first_fit), widths.gather(1, first_fit)), dim=1)
    space = torch.tensor((height, width)) - sides + 1
    corners = (position.T * space).long()
    largest = torch.tensor((min(height, round(width / aspects[0])), min(width, round(height * aspects[1]))))
    centred = (torch.tensor((height, width)) - largest) // 2
    found = fits.any(dim=1, keepdim=True)
    return torch.cat((torch.where(found, corners, centred), torch.where(found, sides, largest)), dim=1)


def sample_flips(count: int, generator: torch.Generator) -> Tensor:
    """count booleans, true with probability 1/2."""
    return torch.rand(count, generator=generator) < 0.5


def crop_and_resize(image: Image.Image, boxes: Tensor, size: int) -> Tensor:
    """Crops of one image, each brought to size x size pixels (PIL's bilinear, antialiased where it shrinks).

    boxes: N x 4, int64: top, left, height, width. Returns uint8, N x 3 x size x size. The crop is cut out first, so
    that no pixel outside it bleeds in.
    """
    crops = [
        np.asarray(image.crop((left, top, left + width, top + height)).resize((size, size), Image.Resampling.BILINEAR))
        for top, left, height, width in boxes.tolist()
    ]
    return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).contiguous()


def draw(available: int, count: int, *what: int | str) -> list[int]:
    """At most `count` different indices below `available`, in the order drawn for the thing that `what` names.

    A smaller count gives the first ones of a larger one.
    """
    return torch.randperm(available, generator=generator_for(*what))[:count].tolist()

"""Real training images: which ones of a class a seed draws, and random crops of images of any size."""

import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from utils.datasets import Dataset, class_folders, images_in
from utils.randomness import generator_for

CROP_TRIES = 10


def images_by_class(train_dir: Path, dataset: Dataset) -> list[list[Path]]:
    """The image files of each class, in the order of `list_images`. train_dir: the dataset's own folder."""
    return [images_in(folder) for folder in class_folders(train_dir, dataset)]


def draw(available: int, count: int, *what: int | str) -> list[int]:
    """At most `count` different indices below `available`, in the order drawn for the thing that `what` names.

    A smaller count gives the first ones of a larger one.
    """
    return torch.randperm(available, generator=generator_for(*what))[:count].tolist()


def sample_boxes_of(
    height: int,
    width: int,
    count: int,
    area: tuple[float, float],
    aspect: tuple[float, float],
    generator: torch.Generator,
) -> Tensor:
    """Crops of one image as torchvision's RandomResizedCrop draws them, of an image that need not be square.

    height, width: of the image, in pixels; area: least and largest share of it, drawn uniformly; aspect: least and
    largest width / height, drawn log-uniformly. Returns int64, count x 4: top, left, height, width in pixels.
    A crop is the first of ten tries that fits inside; where none does it is torchvision's fallback: the largest crop
    about the centre whose aspect is allowed.
    """
    uniform = torch.rand(2, count, CROP_TRIES, generator=generator, dtype=torch.float64)
    position = torch.rand(2, count, generator=generator, dtype=torch.float64)
    areas = height * width * (area[0] + (area[1] - area[0]) * uniform[0])
    low, high = (math.log(bound) for bound in aspect)
    ratios = torch.exp(low + (high - low) * uniform[1])
    widths, heights = (areas * ratios).sqrt().round().long(), (areas / ratios).sqrt().round().long()
    fits = (widths >= 1) & (widths <= width) & (heights >= 1) & (heights <= height)
    first_fit = fits.int().argmax(dim=1, keepdim=True)
    sides = torch.cat((heights.gather(1, first_fit), widths.gather(1, first_fit)), dim=1)
    space = torch.tensor((height, width)) - sides + 1
    corners = (position.T * space).long()
    largest = torch.tensor((min(height, round(width / aspect[0])), min(width, round(height * aspect[1]))))
    centred = (torch.tensor((height, width)) - largest) // 2
    found = fits.any(dim=1, keepdim=True)
    return torch.cat((torch.where(found, corners, centred), torch.where(found, sides, largest)), dim=1)


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

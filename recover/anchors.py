"""Anchors that are chosen anew at each merge: the real image that an image has become most like (RETA's DRC).

After RETA (arXiv 2602.24144), of which no code is public. What it leaves open, as read here: features are those of the
first teacher for whole images, unaugmented; roughness is in units of its mean over the class; image index g draws from
the training images whose place in their class is g modulo IPC, so that two images of a class never share an anchor and
none depends on what was made before.
"""

import copy
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from models.checkpoints import Teacher
from recover.batches import Batch
from recover.passes import TrainingImages, all_features, batches_of, kept
from utils.data.images import load_test_images, normalise
from utils.patches.features import features_of
from utils.recipes.settings import RecoverSettings
from utils.residual.residuals import resize
from utils.run.errors import UserError

ROUGHNESS_SHARE = 0.1  # of an anchor's cost: lambda
SIGMA, RADIUS = 1.0, 3  # pixels, of the smoothing before gradients are taken


class Bank:
    """The training images as anchors: their features and roughness, and the first teacher, which looks at what images
    have become. UserError for a class with fewer training images than are distilled."""

    def __init__(self, settings: RecoverSettings, teacher: Teacher, images: TrainingImages) -> None:
        self.ipc, self.images = settings.images_per_class, images
        self.members = [(images.labels == label).nonzero()[:, 0] for label in range(images.dataset.num_classes)]
        smallest = min(range(len(self.members)), key=lambda label: len(self.members[label]))
        if len(self.members[smallest]) < self.ipc:
            raise UserError(
                f"class {smallest} in {settings.train_dir} has {len(self.members[smallest])} images: --residual "
                f"retrieved wants one or more for each of {self.ipc} images a class"
            )
        self.network = copy.deepcopy(teacher.module)  # matching changes the teacher's own layers
        self.features = kept(settings, teacher, images, "features", all_features)["features"]
        self.roughness = kept(settings, teacher, images, "roughness", roughness_of)["roughness"]

    def retrieve(self, batch: Batch, images: Tensor) -> Tensor:
        """An anchor for each image of a batch (B x 3 x s x s, normalised): B x 3 x S x S, normalised."""
        seen = features_of(self.network, resize(images.detach(), self.images.dataset.size))
        places = []
        for (label, index), feature in zip(batch.members, seen, strict=True):
            share = self.members[label][index % self.ipc :: self.ipc]
            relative = self.roughness[self.members[label]].mean().clamp_min(1e-12)
            cost = anchor_cost(feature, self.features[share].float(), self.roughness[share] / relative)
            places.append(int(share[cost.argmin()]))
        pixels = load_test_images([self.images.paths[place] for place in places], self.images.dataset, progress=None)
        return normalise(pixels.to(images.device), self.images.dataset)


def anchor_cost(feature: Tensor, candidates: Tensor, roughness: Tensor) -> Tensor:
    """What each candidate costs as anchor of an image: (1 - lambda) ||q - z||^2 + lambda c.

    feature: D, candidates: n x D, both of length 1; roughness: n, 1 on average.
    """
    distance = (candidates - feature).square().sum(dim=1)
    return (1 - ROUGHNESS_SHARE) * distance + ROUGHNESS_SHARE * roughness


def roughness_of(teacher: Teacher, images: TrainingImages) -> Mapping[str, Tensor]:
    """The roughness of each training image (N)."""
    device, found = next(teacher.module.parameters()).device, []
    for _, part in batches_of(images, device, "roughness"):
        found.append(roughness(part).cpu())
    return {"roughness": torch.cat(found)}


def roughness(images: Tensor) -> Tensor:
    """The variance over pixels of the squared gradient of images (N x 3 x S x S, the mean over channels), smoothed by a
    Gaussian first: N."""
    place = torch.arange(-RADIUS, RADIUS + 1, device=images.device, dtype=torch.float32)
    bell = (-place.square() / (2 * SIGMA**2)).exp()
    kernel = (bell / bell.sum()).expand(3, 1, 1, -1)
    padded = F.pad(images, (RADIUS,) * 4, mode="replicate")
    smooth = F.conv2d(F.conv2d(padded, kernel, groups=3), kernel.transpose(2, 3), groups=3)
    down, across = smooth.diff(dim=2)[..., :, :-1], smooth.diff(dim=3)[..., :-1, :]
    return (down.square() + across.square()).mean(dim=1).flatten(1).var(dim=1, correction=0)

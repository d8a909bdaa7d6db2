"""What image indices have of their own: the real images that each stands for, whose statistics it is matched to.

A grouping gives every training image the image index that it counts for; the target of index g is what the teacher
sees of all images, of all classes, that count for g.
"""

import hashlib
from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from models.checkpoints import Teacher
from recover.batches import Batch
from recover.passes import AT_ONCE, TrainingImages, all_features, batches_of, kept
from utils.bn_matching.single import Moments, SingleImages, group_targets
from utils.data.images import normalise
from utils.patches.features import features_of
from utils.patches.patches import load_patches
from utils.recipes.settings import RecoverSettings
from utils.seams import GROUPINGS


def difficulty_of(teacher: Teacher, images: TrainingImages) -> Mapping[str, Tensor]:
    """How far the statistics of each training image are from the teacher's (N)."""
    asked, device = SingleImages(teacher.module, images.dataset.size), next(teacher.module.parameters()).device
    found = torch.empty(len(images.paths))
    for places, part in batches_of(images, device, f"{teacher.name}: difficulty"):
        found[places] = asked.difficulty(asked.moments(part)).cpu()
    return {"difficulty": found}


def sums_of(teacher: Teacher, images: TrainingImages, groups: Tensor, count: int) -> Mapping[str, Tensor]:
    """The sums of the images' moments in each group: count x L each."""
    asked, device = SingleImages(teacher.module, images.dataset.size), next(teacher.module.parameters()).device
    mean, square = (torch.zeros(count, sum(asked.channels), dtype=torch.float64) for _ in range(2))
    for places, part in batches_of(images, device, f"{teacher.name}: groups"):
        seen = asked.moments(part)
        mean.index_add_(0, groups[places], seen.mean.double().cpu())
        square.index_add_(0, groups[places], seen.square.double().cpu())
    return {"mean": mean, "square": square}


@GROUPINGS.add("all")
def all_alike(settings: RecoverSettings, teachers: Sequence[Teacher], images: TrainingImages) -> Tensor:
    """One group: image indices do not differ."""
    return torch.zeros(len(images.paths), dtype=torch.int64)


@GROUPINGS.add("difficulty")
def by_difficulty(settings: RecoverSettings, teachers: Sequence[Teacher], images: TrainingImages) -> Tensor:
    """Each class cut in groups of nearly one size, from what is nearest to the teachers' statistics to what is
    farthest (PSM); several teachers agree on the mean of their ranks."""
    ipc = settings.images_per_class
    groups = torch.empty(len(images.paths), dtype=torch.int64)
    scores = [kept(settings, each, images, "difficulty", difficulty_of)["difficulty"] for each in teachers]
    for label in images.labels.unique():
        members = (images.labels == label).nonzero()[:, 0]
        ranks = sum(ranks_of(of_teacher[members]) for of_teacher in scores)
        groups[members] = ranks_of(ranks) * ipc // len(members)
    return groups


def ranks_of(scores: Tensor) -> Tensor:
    """The place of each in ascending order (int64); ties go to the earlier one."""
    return scores.argsort(stable=True).argsort()


@GROUPINGS.add("likeness")
def by_likeness(settings: RecoverSettings, teachers: Sequence[Teacher], images: TrainingImages) -> Tensor:
    """Each image counts for the patch of its class that it is most like, by the cosine of the first teacher's
    features."""
    ipc, first = settings.images_per_class, teachers[0]
    features = kept(settings, first, images, "features", all_features)["features"]
    device = next(first.module.parameters()).device
    groups = torch.empty(len(images.paths), dtype=torch.int64)
    for label in images.labels.unique().tolist():
        members = (images.labels == label).nonzero()[:, 0]
        patches = load_patches(
            settings.patch_dir, settings.selector, [(label, index) for index in range(ipc)], images.dataset
        )
        parts = (normalise(part.to(device), images.dataset) for part in patches.split(AT_ONCE))
        found = [features_of(first.module, part) for part in parts]
        groups[members] = (features[members].float() @ torch.cat(found).T).argmax(dim=1)
    return groups


class Aims(NamedTuple):
    """What each teacher matches, by its name: a row of targets for each group of real images (G x 2L), or with
    `by_class` for those of each class (C * G x 2L); channels: of the teacher's layers; sha256: of the groups."""

    targets: Mapping[str, Tensor]
    channels: Mapping[str, Sequence[int]]
    by_class: bool
    groups: int
    sha256: str

    def of(self, name: str, batch: Batch) -> Tensor:
        """The targets of a teacher for a batch, joined as `MatchedTeacher` joins them."""
        if not self.by_class:
            return self.targets[name][batch.members[0][1] % self.groups]
        rows = [label * self.groups + index % self.groups for label, index in batch.members]
        means, variances = self.targets[name][rows].chunk(2, dim=1)
        layers = (part for each in (means, variances) for part in each.split(self.channels[name], dim=1))
        return torch.cat([part.flatten() for part in layers])


def aims_of(settings: RecoverSettings, teachers: Sequence[Teacher], images: TrainingImages) -> Aims:
    """The teachers' statistics of each of the groups that --group-by makes, class by class where the probe is of single
    images."""
    groups = GROUPINGS[settings.group_by](settings, teachers, images)
    count = 1 if settings.group_by == "all" else settings.images_per_class
    cells, cell_of = count, groups
    if settings.probes_single_images:
        cells, cell_of = count * images.dataset.num_classes, images.labels * count + groups
    counts, digest = torch.bincount(cell_of, minlength=cells), hashlib.sha256(cell_of.numpy()).hexdigest()
    targets, channels = {}, {}
    for teacher in teachers:
        make = partial(sums_of, groups=cell_of, count=cells)
        sums = kept(settings, teacher, images, "groups", make, of=digest, count=cells)
        pooled = group_targets(Moments(sums["mean"], sums["square"]), counts, settings.group_prior)
        targets[teacher.name] = pooled.float()
        channels[teacher.name] = SingleImages(teacher.module, images.dataset.size).channels
    return Aims(targets, channels, settings.probes_single_images, count, digest)

"""The plain version of each hot path: what the fast one is tested against and measured against.

Written for the eye: one hook a layer, one forward a group, one PIL call a view, one loop a batch. No stage uses it.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from utils.data.images import normalise
from utils.data.table import Dataset
from utils.fkd.groups import forget_running_statistics, group_sizes
from utils.fkd.views import Epoch, ViewSettings


def device_of(network: nn.Module) -> torch.device:
    return next(network.parameters()).device


class PlainMatchedTeacher(nn.Module):
    """`MatchedTeacher` with a hook on each layer, which compares what it sees with its own layer's running statistics;
    the first is whichever runs first."""

    def __init__(self, teacher: nn.Module, first_multiplier: float) -> None:
        super().__init__()
        self.teacher, self.first_multiplier = teacher, first_multiplier
        self.terms: list[Tensor] = []
        for module in teacher.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.register_forward_pre_hook(self.compare)

    def compare(self, layer: nn.BatchNorm2d, inputs: tuple[Tensor, ...]) -> None:
        by_channel = inputs[0].float().permute(1, 0, 2, 3).contiguous().flatten(1)
        mean, var = by_channel.mean(dim=1), by_channel.var(dim=1, correction=0)
        self.terms.append((layer.running_var - var).norm() + (layer.running_mean - mean).norm())

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        self.terms.clear()
        logits = self.teacher(images).float()
        weights = [self.first_multiplier] + [1.0] * len(self.terms)
        return logits, sum((w * term for w, term in zip(weights, self.terms, strict=False)), torch.zeros(()))


class PlainGroupedNetwork(nn.Module):
    """`GroupedNetwork` with one forward a group."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network if network.training else forget_running_statistics(network)

    def forward(self, images: Tensor, groups: Sequence[int]) -> Tensor:
        return torch.cat([self.network(group) for group in images.split(list(groups))])


def plain_augmentation(images: Tensor, draw: Tensor) -> Tensor:
    """`augment_batch` as slice, resize with antialias, flip and roll. draw: 7 integers."""
    top, left, height, width, flip, down, right = draw.tolist()
    size = images.shape[-1]
    view = images[..., top : top + height, left : left + width]
    view = F.interpolate(view, size=(size, size), mode="bilinear", antialias=True, align_corners=False)
    view = view.flip(-1) if flip else view
    return view.roll((down, right), dims=(-2, -1))


def plain_recover_step(
    images: Tensor, labels: Tensor, teacher: nn.Module, draw: Tensor, r_bn: float, optimiser: torch.optim.Optimizer
) -> tuple[float, float]:
    """One iteration of `recover_batch` but for the clamp. images: the leaf that is optimised."""
    logits, bn_loss = teacher(plain_augmentation(images, draw))
    ce_loss = F.cross_entropy(logits, labels)
    optimiser.zero_grad()
    (ce_loss + r_bn * bn_loss).backward()
    optimiser.step()
    return ce_loss.item(), bn_loss.item()


def plain_view(image: Tensor, crop: Tensor, flip: bool) -> Tensor:
    """One view of `apply_views` as PIL makes it, rounded to 8 bits. image: uint8, 3 x S x S."""
    top, left, height, width = map(int, crop)
    size = image.shape[-1]
    view = Image.fromarray(image.permute(1, 2, 0).numpy()).crop((left, top, left + width, top + height))
    view = view.resize((size, size), Image.Resampling.BILINEAR)
    if flip:
        view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return torch.from_numpy(np.array(view)).permute(2, 0, 1)


def plain_batch_views(images: Tensor, epoch: Epoch, batch: int, settings: ViewSettings, dataset: Dataset) -> Tensor:
    """`render_views` for one batch: an image at a time, then CutMix by slices."""
    places = range(batch * settings.batch_size, min((batch + 1) * settings.batch_size, settings.images))
    views = [plain_view(images[epoch.order[i]], epoch.crop[i], bool(epoch.flip[i])) for i in places]
    views = normalise(torch.stack(views), dataset)
    if settings.mix == "cutmix":
        top, left, bottom, right = epoch.mix_box[batch].tolist()
        partners = views[epoch.mix_partner[places.start : places.stop].long()]
        views[..., top:bottom, left:right] = partners[..., top:bottom, left:right]
    return views


@torch.no_grad()
def plain_label_epoch(
    images: Tensor, epoch: Epoch, teacher: nn.Module, settings: ViewSettings, dataset: Dataset
) -> Tensor:
    """`label_epoch` for one teacher: batch by batch, half by half. teacher: one with no statistics."""
    logits = []
    for batch in range(settings.batches):
        views = plain_batch_views(images, epoch, batch, settings, dataset).to(device_of(teacher))
        logits += [teacher(half) for half in views.split(group_sizes(len(views)))]
    return torch.cat(logits)


def plain_train_epoch(
    student: nn.Module,
    optimiser: torch.optim.Optimizer,
    epoch: Epoch,
    soft_labels: Tensor,
    images: Tensor,
    settings: ViewSettings,
    dataset: Dataset,
    temperature: float,
) -> list[float]:
    """`train_epoch`: a forward and backward a micro-batch, one step a batch. The losses."""
    losses = []
    for batch in range(settings.batches):
        views = plain_batch_views(images, epoch, batch, settings, dataset).to(device_of(student))
        labels = soft_labels[batch * settings.batch_size :][: len(views)].float().to(views.device)
        sizes = group_sizes(len(views))
        optimiser.zero_grad()
        loss = 0.0
        for half, half_labels in zip(views.split(sizes), labels.split(sizes), strict=True):
            teacher, own = (half_labels / temperature).softmax(1), (student(half) / temperature).log_softmax(1)
            divergence = F.kl_div(own, teacher, reduction="sum") / len(views)
            divergence.backward()
            loss += divergence.item()
        optimiser.step()
        losses.append(loss)
    return losses

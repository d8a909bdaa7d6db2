"""The soft labels of one epoch: every view through every teacher, many batches at once."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from tqdm import tqdm

from utils.data.images import normalise
from utils.data.table import Dataset
from utils.fkd.groups import epoch_groups
from utils.fkd.views import Epoch, ViewSettings, chunks_of_batches, render_views
from utils.run.device import memory_format

MeanLogits = Callable[[Tensor, Sequence[int]], Tensor]


def mean_logits(teachers: Sequence[nn.Module], weights: Sequence[float], grouped: bool) -> MeanLogits:
    """The weighted mean of the teachers' logits as one function of views (N x 3 x S x S) and their groups.

    grouped: whether the teachers normalise group by group, or with running statistics.
    """

    def answer(views: Tensor, groups: Sequence[int]) -> Tensor:
        logits = (teacher(views, groups) if grouped else teacher(views) for teacher in teachers)
        return sum(weight * its_logits.float() for weight, its_logits in zip(weights, logits, strict=True))

    return answer


def mean_of_norms(teachers: Sequence[nn.Module]) -> MeanLogits:
    """The mean of the teachers' logits, each scaled to the mean of all their norms over the views (G-VBSM)."""

    def answer(views: Tensor, groups: Sequence[int]) -> Tensor:
        logits = torch.stack([teacher(views).float() for teacher in teachers])
        norms = logits.flatten(1).norm(dim=1)
        return (logits * (norms.mean() / norms).view(-1, 1, 1)).mean(dim=0)

    return answer


def of_classes(committee: MeanLogits, classes: Sequence[int]) -> MeanLogits:
    """The committee's logits for these classes alone, in this order."""
    return lambda views, groups: committee(views, groups)[:, list(classes)]


def label_images(
    images: Tensor, committee: MeanLogits, at_once: int, dataset: Dataset, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """The committee's logits for the images as they are (uint8, N x 3 x S x S): N x C of `dtype`, in the host's
    memory."""
    found = []
    for part in images.split(at_once):
        views = normalise(part.to(device), dataset).contiguous(memory_format=memory_format(device))
        found.append(committee(views, (len(part),)).to(dtype).cpu())
    return torch.cat(found)


def label_epoch(
    images: Tensor,
    epoch: Epoch,
    committee: MeanLogits,
    settings: ViewSettings,
    at_once: int,
    dataset: Dataset,
    device: torch.device,
    dtype: torch.dtype,
    progress: tqdm,
) -> Tensor:
    """The committee's logits for every view of an epoch: N x C of `dtype`, in the host's memory.

    images: uint8, N x 3 x S x S, on the device or in the host's memory. About `at_once` views go through a teacher
    together, whole batches of them; each half of a batch is a group.
    """
    epoch = epoch.to(images, device)
    groups = epoch_groups(settings.images, settings.batch_size)
    on_cuda = device.type == "cuda"
    logits = torch.empty(settings.images, dataset.num_classes, dtype=dtype, pin_memory=on_cuda)
    for first, last in chunks_of_batches(settings, at_once):
        views = render_views(images, epoch, first, last, settings, dataset)
        views = views.contiguous(memory_format=memory_format(device))
        sizes = tuple(size for batch in groups[first:last] for size in batch)
        found = committee(views, sizes).to(dtype)
        logits[first * settings.batch_size :][: len(views)].copy_(found, non_blocking=on_cuda)
        progress.update(len(views))
    if on_cuda:
        torch.cuda.synchronize(device)  # the epoch's one wait
    return logits

"""How a network learns from labelled images: its start, its optimiser, one epoch in one process or many."""

from collections.abc import Iterable

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from models.registry import architecture_of, build_network
from models.teacher_data import Part
from utils.data.images import normalise
from utils.data.table import Dataset
from utils.recipes.settings import PretrainSettings
from utils.run.errors import UserError
from utils.run.randomness import seed_for
from utils.run.team import NCCL_PATIENCE, PATIENCE, Team

LOG_EVERY = 20  # iterations: to read the loss is to wait for the device


def fresh_network(name: str, dataset: Dataset, seed: int, device: torch.device) -> nn.Module:
    """A network on the device, its random initialisation following from the seed and its architecture alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for(seed, "pretrain", dataset.name, architecture_of(name)))
        network = build_network(name, dataset)
    # Convolutions on a CPU are faster with the channels last, by a fifth for ShuffleNetV2, by a third for MobileNetV2.
    return network.to(device, memory_format=torch.preserve_format if device.type == "mps" else torch.channels_last)


def make_optimiser(network: nn.Module, settings: PretrainSettings) -> torch.optim.Optimizer:
    """Adam or SGD as the settings say, weight decay being L2 on every parameter."""
    decay = {"weight_decay": settings.weight_decay}
    if settings.optimizer == "adam":
        return torch.optim.Adam(network.parameters(), settings.lr, **decay)
    return torch.optim.SGD(network.parameters(), settings.lr, settings.momentum, **decay)


def shared(network: nn.Module, team: Team, device: torch.device) -> nn.Module:
    """The network as the processes of a team train it together: a backward pass leaves all the mean of their gradients.

    They begin with the main process's weights. BatchNorm normalises in each process on its own; the running
    statistics that count are the main process's.
    """
    if team.count == 1:
        return network
    on_cuda = device.type == "cuda"
    backend, patience, ids = ("nccl", NCCL_PATIENCE, [device.index]) if on_cuda else ("gloo", PATIENCE, None)
    group = dist.new_group(range(team.count), patience, backend, use_local_synchronization=True)
    return DistributedDataParallel(network, ids, process_group=group, broadcast_buffers=False)


def train_epoch(
    network: nn.Module,
    optimiser: torch.optim.Optimizer,
    batches: Iterable[Part],
    dataset: Dataset,
    epoch: int,
    progress: tqdm,
) -> float:
    """One pass over batches, by cross-entropy; returns their mean loss. network: as `shared` gives it where batches are
    parts of larger ones, and the loss is then of these.

    epoch: counted from 0, for messages. Raises UserError where the loss becomes NaN or infinite.
    """
    network.train()
    losses: list[Tensor] = []  # on the device, looked at now and then
    for images, labels, weight in batches:
        loss = weight * F.cross_entropy(network(normalise(images, dataset)), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.detach())
        progress.update()
        if len(losses) % LOG_EVERY == 0:
            _report(losses, epoch, progress)
    return _report(losses, epoch, progress)


def _report(losses: list[Tensor], epoch: int, progress: tqdm) -> float:
    values = torch.stack(losses)
    finite = values.isfinite()
    if not finite.all():
        first = finite.int().argmin().item()
        raise UserError(f"the loss became {values[first]:.0f} at epoch {epoch}, iteration {first}: lower --lr")
    mean = values.mean().item()
    progress.set_postfix(epoch=epoch, loss=f"{mean:.3f}", refresh=False)
    return mean

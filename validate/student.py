"""One student: trained from scratch on stored views and soft labels, tested on real images, resumable."""

import json
import time
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from models.registry import build_network
from utils.batch_statistics import GroupedNetwork, group_sizes
from utils.datasets import Dataset, normalise
from utils.device import images_at_once, memory_format
from utils.distillation import distillation_loss, epoch_rate, parameter_groups, top_accuracy
from utils.errors import UserError
from utils.files import write_whole
from utils.fkd import LabelStore, chunks_of_batches, read_epoch, render_views
from utils.randomness import seed_for
from utils.training_state import load_training, save_training

TEST_BATCH = 256


def build_student(name: str, dataset: Dataset, seed: int) -> nn.Module:
    """A student whose initial weights follow from `seed` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for("student", seed))
        return build_network(name, dataset)


def build_optimiser(student: nn.Module, settings: Namespace) -> tuple[torch.optim.Optimizer, float]:
    """The optimiser and its base learning rate."""
    if settings.sgd:
        rate, options = settings.sgd_lr, {"momentum": settings.momentum, "weight_decay": settings.weight_decay}
        return torch.optim.SGD(student.parameters(), lr=rate, **options), rate
    groups = parameter_groups(student, settings.adamw_weight_decay)
    return torch.optim.AdamW(groups, lr=settings.adamw_lr), settings.adamw_lr


def is_tested(epoch: int, settings: Namespace) -> bool:
    """Whether the student is tested after this epoch: each --test-every epochs and the last; --simple: late ones."""
    if epoch == settings.epochs - 1:
        return True
    late_enough = not settings.simple or epoch >= 0.8 * settings.epochs
    return late_enough and (epoch + 1) % settings.test_every == 0


def test_batches(images: Tensor, labels: Tensor, dataset: Dataset, device: torch.device) -> Iterator:
    """The real validation images (uint8, N x 3 x S x S) in normalised batches on the device."""
    for part, part_labels in zip(images.split(TEST_BATCH), labels.split(TEST_BATCH), strict=True):
        yield normalise(part.to(device), dataset), part_labels.to(device)


def train_student(
    settings: Namespace,
    seed: int,
    folder: Path,
    store: LabelStore,
    images: Tensor,
    test_set: tuple[Tensor, Tensor],
    dataset: Dataset,
) -> list[dict]:
    """Train one student and return its metrics, a dict an epoch; the same go to `metrics.jsonl` in `folder`.

    images: the distilled images, uint8, N x 3 x S x S, on the device. Goes on from `checkpoint.pt` in `folder` if it
    is there: everything random of an epoch follows from seed and epoch, so the result is that of one run.
    Raises UserError, with epoch and batch, where the loss is not finite.
    """
    device = images.device
    student = GroupedNetwork(build_student(settings.model, dataset, seed)).to(
        device, memory_format=memory_format(device)
    )
    optimiser, base_rate = build_optimiser(student.network, settings)
    checkpoint = folder / "checkpoint.pt"
    belongs_to = {"student": settings.model, "seed": seed, "labels": store.sha256, "epochs": settings.epochs}
    state = load_training(checkpoint, belongs_to) or {"metrics": []}
    metrics = state["metrics"]
    if metrics:
        student.network.load_state_dict(state["student"])
        optimiser.load_state_dict(state["optimiser"])
    write_metrics(folder, metrics)
    progress = tqdm(total=settings.epochs * len(images), desc=f"validate seed {seed}", unit="view", unit_scale=True)
    with progress, (folder / "metrics.jsonl").open("a") as log:
        progress.update(len(metrics) * len(images))
        for epoch in range(len(metrics), settings.epochs):
            started = time.monotonic()
            rate = epoch_rate(base_rate, epoch, settings.epochs, settings.eta, cosine=settings.cos)
            for group in optimiser.param_groups:
                group["lr"] = rate
            torch.manual_seed(seed_for("student-noise", seed, epoch))  # dropout and the like
            loss = train_epoch(student, optimiser, settings, epoch, store, images, dataset, progress)
            line = {"epoch": epoch, "lr": rate, "loss": loss}
            if is_tested(epoch, settings):
                student.eval()
                line["top1"], line["top5"] = top_accuracy(student.network, test_batches(*test_set, dataset, device))
                progress.set_postfix(top1=f"{line['top1']:.1f} %")
            line["seconds"] = round(time.monotonic() - started, 3)
            metrics.append(line)
            log.write(json.dumps(line) + "\n")
            log.flush()
            if "top1" in line:
                tensors = {"student": student.network.state_dict(), "optimiser": optimiser.state_dict()}
                save_training(checkpoint, belongs_to, {"metrics": metrics, **tensors})
    return metrics


def train_epoch(
    student: GroupedNetwork,
    optimiser: torch.optim.Optimizer,
    settings: Namespace,
    number: int,
    store: LabelStore,
    images: Tensor,
    dataset: Dataset,
    progress: tqdm,
) -> float:
    """One epoch in the stored order, one optimiser step a batch; its mean loss an image.

    Each batch is cut in micro-batches as relabel cut it, each normalised on its own: the student's BatchNorm sees the
    images that the teachers' saw. All go forward and backward together, which adds their gradients up.
    """
    student.train()
    epoch, soft_labels = read_epoch(store.folder, number)
    soft_labels = soft_labels.to(images.device)
    losses = []
    for first, last in chunks_of_batches(store.settings, images_at_once(dataset.size, images.device)):
        views = render_views(images, epoch, first, last, store.settings, dataset)
        place = first * settings.batch_size
        labels = soft_labels[place : place + len(views)]
        views = views.contiguous(memory_format=memory_format(images.device))
        for batch, its_labels in zip(views.split(settings.batch_size), labels.split(settings.batch_size), strict=True):
            logits = student(batch, group_sizes(len(batch), settings.gradient_accumulation_steps))
            loss = distillation_loss(logits, its_labels, settings.temperature, len(batch))
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            losses.append(loss.detach())
            progress.update(len(batch))
    losses = torch.stack(losses).cpu()  # the epoch's one wait for the device
    if not losses.isfinite().all():
        batch = int((~losses.isfinite()).nonzero()[0])
        raise UserError(f"epoch {number}, batch {batch}: the loss is not finite; lower the learning rate")
    return losses.sum().item() / store.settings.batches


def write_metrics(folder: Path, metrics: list[dict]) -> None:
    """Make `metrics.jsonl` tell of these epochs and no others."""
    text = "".join(json.dumps(line) + "\n" for line in metrics)
    write_whole(folder / "metrics.jsonl", lambda part: part.write_text(text))

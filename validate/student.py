"""One student: trained from scratch on stored views and soft labels, tested on real images, resumable."""

import json
import time
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

from models.registry import build_network
from utils.background import one_ahead
from utils.batch_statistics import GroupedNetwork, group_sizes
from utils.chunks import images_at_once
from utils.datasets import Dataset, normalise
from utils.device import memory_format
from utils.distillation import distillation_loss, epoch_rate, parameter_groups, top_accuracy
from utils.distilled import at_hand
from utils.errors import UserError
from utils.files import write_whole
from utils.fkd import Epoch, LabelStore, ViewSettings, chunks_of_batches, read_epoch, render_views
from utils.precision import amp_type, autocast, compiled, gradient_scaler
from utils.randomness import seed_for
from utils.training_state import load_training, save_training

TEST_BATCH = 256
CHECKPOINT = "checkpoint.pt"


class Run(NamedTuple):
    """One student with one seed at one IPC: what is trained, and shared out.

    images: the distilled ones, uint8, N x 3 x S x S, in the host's memory; store: their labels; place: where the result
    goes; made_with: what a result file says of how it came about.
    """

    settings: Namespace
    seed: int
    images: Tensor
    store: LabelStore
    place: Path
    made_with: dict[str, object]

    @property
    def is_done(self) -> bool:
        return (self.place / "result.json").exists()

    @property
    def pixels(self) -> int:
        """How many go through the student by its settings, a backward pass counted as two more."""
        return 3 * self.settings.epochs * self.images[:, 0].numel()


class Learner(NamedTuple):
    """A student and what it is trained with.

    forward: the student, compiled where that is asked for; at_once: how many views are made for it together.
    """

    student: GroupedNetwork
    forward: nn.Module
    optimiser: torch.optim.Optimizer
    base_rate: float
    scaler: torch.amp.GradScaler
    at_once: int
    device: torch.device


def build_student(name: str, dataset: Dataset, seed: int) -> nn.Module:
    """A student whose initial weights follow from `seed` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for("student", seed))
        return build_network(name, dataset)


def build_optimiser(student: nn.Module, settings: Namespace) -> tuple[torch.optim.Optimizer, float]:
    """The optimiser, one kernel for its whole step where there is one, and its base learning rate."""
    fused = next(student.parameters()).device.type in ("cpu", "cuda")
    if settings.sgd:
        options = {"momentum": settings.momentum, "weight_decay": settings.weight_decay, "fused": fused}
        return torch.optim.SGD(student.parameters(), lr=settings.sgd_lr, **options), settings.sgd_lr
    groups = parameter_groups(student, settings.adamw_weight_decay)
    return torch.optim.AdamW(groups, lr=settings.adamw_lr, fused=fused), settings.adamw_lr


def prepare_student(settings: Namespace, seed: int, dataset: Dataset, device: torch.device, pixels: int = 0) -> Learner:
    """A student at its start, on the device. pixels: how many it will see, as `compiled` wants to know."""
    network = build_student(settings.model, dataset, seed).to(device, memory_format=memory_format(device))
    at_once = images_at_once(network, dataset.size)
    student = GroupedNetwork(network)
    scaler = gradient_scaler(device, amp_type(settings.amp, device, auto_on_cuda="off"))
    forward = compiled(student, settings.compile, device, pixels)
    return Learner(student, forward, *build_optimiser(network, settings), scaler, at_once, device)


def what_is_trained(run: Run) -> dict[str, object]:
    """What a checkpoint belongs to."""
    settings = run.settings
    return {"student": settings.model, "seed": run.seed, "labels": run.store.sha256, "epochs": settings.epochs}


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
    run: Run, test_set: tuple[Tensor, Tensor], dataset: Dataset, device: torch.device, quiet: bool = False
) -> list[dict]:
    """Train one student and return its metrics, a dict an epoch; the same go to `metrics.jsonl` at the run's place.

    test_set: the real images (uint8) and labels; quiet: no progress bar. Goes on from `checkpoint.pt` at the place if
    it is there: everything random of an epoch follows from seed and epoch, so the result is that of one run.
    Raises UserError, with epoch and batch, where the loss is not finite.
    """
    settings, seed, store, folder = run.settings, run.seed, run.store, run.place
    images = at_hand(run.images, device)
    learner = prepare_student(settings, seed, dataset, device, run.pixels)
    student, optimiser, scaler = learner.student, learner.optimiser, learner.scaler
    checkpoint, belongs_to = folder / CHECKPOINT, what_is_trained(run)
    state = load_training(checkpoint, belongs_to) or {"metrics": []}
    metrics = state["metrics"]
    if metrics:
        student.network.load_state_dict(state["student"])
        optimiser.load_state_dict(state["optimiser"])
        scaler.load_state_dict(state["scaler"])
    write_metrics(folder, metrics)
    name = f"{folder.parent.name} seed {seed}"
    progress = tqdm(total=settings.epochs * len(images), desc=name, unit="view", unit_scale=True)
    progress.disable = quiet
    with progress, (folder / "metrics.jsonl").open("a") as log:
        progress.update(len(metrics) * len(images))
        coming = range(len(metrics), settings.epochs)
        for epoch, stored in one_ahead(lambda number: (number, read_epoch(store.folder, number)), coming):
            started = time.monotonic()
            rate = epoch_rate(learner.base_rate, epoch, settings.epochs, settings.eta, cosine=settings.cos)
            for group in optimiser.param_groups:
                group["lr"] = rate
            torch.manual_seed(seed_for("student-noise", seed, epoch))  # dropout and the like
            student.train()
            losses = train_epoch(learner, settings, stored, store.settings, images, dataset, progress)
            loss = mean_loss(losses, epoch)
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
                state = {"student": student.network.state_dict(), "optimiser": optimiser.state_dict()}
                state |= {"scaler": scaler.state_dict(), "metrics": metrics}
                save_training(checkpoint, belongs_to, state)
    return metrics


def train_epoch(
    learner: Learner,
    settings: Namespace,
    stored: tuple[Epoch, Tensor],
    views_of: ViewSettings,
    images: Tensor,
    dataset: Dataset,
    progress: tqdm,
) -> Tensor:
    """One epoch in the stored order, one optimiser step a batch; the loss of each batch, on the device.

    learner: its student in training mode; stored: what the store has of the epoch; images: the distilled ones, uint8,
    N x 3 x S x S, on the device or in the host's memory. Each batch is cut in micro-batches as relabel cut it, each
    normalised on its own: the student's BatchNorm sees the images that the teachers' saw. All go forward and backward
    together, which adds their gradients up.
    """
    device, optimiser, scaler = learner.device, learner.optimiser, learner.scaler
    dtype = amp_type(settings.amp, device, auto_on_cuda="off")
    epoch, soft_labels = stored[0].beside(images, device), stored[1].to(device)
    losses = []
    for first, last in chunks_of_batches(views_of, learner.at_once):
        views = render_views(images, epoch, first, last, views_of, dataset)
        views = views.contiguous(memory_format=memory_format(device))
        labels = soft_labels[first * settings.batch_size :][: len(views)]
        for batch, its_labels in zip(views.split(settings.batch_size), labels.split(settings.batch_size), strict=True):
            with autocast(device, dtype):
                logits = learner.forward(batch, tuple(group_sizes(len(batch), settings.gradient_accumulation_steps)))
            loss = distillation_loss(logits, its_labels, settings.temperature, len(batch))
            optimiser.zero_grad(set_to_none=True)
            scaler.scale(loss).backward()
            scaler.step(optimiser)
            scaler.update()
            losses.append(loss.detach())
            progress.update(len(batch))
    return torch.stack(losses)


def mean_loss(losses: Tensor, epoch: int) -> float:
    """The mean of an epoch's losses: its one wait for the device. UserError for one that is not finite."""
    finite = losses.isfinite().cpu()
    if not finite.all():
        batch = int((~finite).nonzero()[0])
        raise UserError(f"epoch {epoch}, batch {batch}: the loss is not finite; lower the learning rate")
    return losses.mean().item()


def write_metrics(folder: Path, metrics: list[dict]) -> None:
    """Make `metrics.jsonl` tell of these epochs and no others."""
    text = "".join(json.dumps(line) + "\n" for line in metrics)
    write_whole(folder / "metrics.jsonl", lambda part: part.write_text(text))

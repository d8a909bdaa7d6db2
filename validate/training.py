"""One student: trained from scratch on stored views and soft labels, tested on real images, resumable."""

import json
import time
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from models.registry import build_network
from models.testing import LabelledImages, accuracy
from utils.data.distilled import on_device_if_fits
from utils.data.table import Dataset
from utils.fkd.dsa import Draws, augment_batches, draw_augmentation
from utils.fkd.groups import GroupedNetwork, group_sizes
from utils.fkd.losses import StudentLoss, Target
from utils.fkd.store import LabelStore
from utils.fkd.views import Epoch, ViewSettings, chunks_of_batches, render_views, uncropped
from utils.recipes.settings import ValidateSettings
from utils.run.background import one_ahead
from utils.run.chunks import images_at_once
from utils.run.device import memory_format
from utils.run.errors import UserError
from utils.run.files import write_json_lines
from utils.run.precision import NO_WORK, Work, amp_type, autocast, compiled, fused, gradient_scaler, is_compiled
from utils.run.randomness import seed_for
from utils.run.records import check_record
from utils.run.training_state import load_training, save_training
from utils.seams import LOSSES, REPLAYS, SCHEDULES

CHECKPOINT = "checkpoint.safetensors"
SAVE_EVERY = 60.0  # seconds between two checkpoints
PATIENCE = 20  # losses in a row that are not finite, which a gradient scaler survives


class Run(NamedTuple):
    """One student with one seed at one IPC: what is trained, and shared out.

    images: the distilled ones, uint8, N x 3 x S x S, and classes: theirs (N), in the host's memory; store: their
    labels; place: where the result goes; made_with: what a result file says of how it came about; weights: of the
    images in the loss (float32, N; None: all alike).
    """

    settings: ValidateSettings
    seed: int
    images: Tensor
    classes: Tensor
    store: LabelStore
    place: Path
    made_with: dict[str, object]
    weights: Tensor | None = None

    @property
    def is_done(self) -> bool:
        return (self.place / "result.json").exists()

    @property
    def work(self) -> Work:
        """What the student has to do."""
        epochs = self.settings.epochs
        return Work(3 * epochs * self.images[:, 0].numel(), epochs * self.store.settings.batches)


class Learner(NamedTuple):
    """A student and what it is trained with.

    forward: the student, compiled where that is asked for; at_once: how many views are made for it together; averaged:
    a running mean of its weights from their start on, beside BatchNorm statistics that are its own (EDC).
    """

    student: GroupedNetwork
    forward: nn.Module
    loss: StudentLoss
    optimiser: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    dtype: torch.dtype | None
    at_once: int
    device: torch.device
    averaged: AveragedModel | None = None


def build_student(name: str, dataset: Dataset, seed: int) -> nn.Module:
    """A student whose initial weights follow from `seed` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for("student", seed))
        return build_network(name, dataset)


def parameter_groups(network: nn.Module, weight_decay: float) -> list[dict]:
    """Weight decay for parameters named `...weight...` of more than one dimension; none for the rest."""
    decayed, rest = [], []
    for name, parameter in network.named_parameters():
        (decayed if "weight" in name and parameter.dim() > 1 else rest).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]


def build_optimiser(student: nn.Module, settings: ValidateSettings) -> torch.optim.Optimizer:
    """The optimiser, one kernel for its whole step where there is one."""
    kind = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}[settings.optimizer]
    options = {"lr": settings.lr, "fused": fused(kind, next(student.parameters()).device)}
    if settings.optimizer == "sgd":
        decayed = [{"params": list(student.parameters()), "weight_decay": settings.weight_decay}]
        if settings.labels == "own":  # as G-VBSM and EDC have it; the published parser's SGD decays all
            decayed = parameter_groups(student, settings.weight_decay)
        return kind(decayed, momentum=settings.momentum, **options)
    return kind(parameter_groups(student, settings.adamw_weight_decay), **options)


def prepare_student(
    settings: ValidateSettings, seed: int, dataset: Dataset, device: torch.device, work: Work = NO_WORK
) -> Learner:
    """A student at its start, on the device. work: what it has to do, as `compiled` wants to know."""
    network = build_student(settings.model, dataset, seed).to(device, memory_format=memory_format(device))
    at_once = images_at_once(network, dataset.size)
    student = GroupedNetwork(network)
    dtype = amp_type(settings.amp, device, auto_on_cuda="off")
    forward = compiled(student, settings.compile, device, work, small_batches=True)
    optimiser, loss = build_optimiser(network, settings), LOSSES[settings.loss](settings)
    averaged = None
    if settings.ema:
        averaged = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(settings.ema))
        averaged.update_parameters(network)  # the first one copies
    return Learner(student, forward, loss, optimiser, gradient_scaler(device, dtype), dtype, at_once, device, averaged)


def is_tested(epoch: int, settings: ValidateSettings) -> bool:
    """Whether the student is tested after this epoch: each --test-every epochs and the last; --simple: late ones."""
    if epoch == settings.epochs - 1:
        return True
    late_enough = not settings.simple or epoch >= 0.8 * settings.epochs
    return late_enough and (epoch + 1) % settings.test_every == 0


def train_student(
    run: Run, test_set: LabelledImages, dataset: Dataset, device: torch.device, quiet: bool = False
) -> tuple[list[dict], str]:
    """Train one student; returns its metrics, a dict an epoch, and whether it was compiled. The metrics also go to
    `metrics.jsonl` at the run's place.

    quiet: no progress bar. Goes on from `checkpoint.safetensors` at the place if it is there: everything random of an
    epoch follows from seed and epoch, so the result is that of one run. Raises UserError, with epoch and batch, where
    the loss is not finite.
    """
    settings, seed, store, folder = run.settings, run.seed, run.store, run.place
    images = on_device_if_fits(run.images, device)
    learner = prepare_student(settings, seed, dataset, device, run.work)
    network, optimiser, scaler = learner.student.network, learner.optimiser, learner.scaler
    checkpoint = folder / CHECKPOINT
    state = load_training(checkpoint, run.made_with) or {"metrics": []}
    metrics = state["metrics"]
    if metrics:
        network.load_state_dict(state["student"])
        optimiser.load_state_dict(state["optimiser"])
        scaler.load_state_dict(state["scaler"])
        if learner.averaged:
            learner.averaged.load_state_dict(state["averaged"])
        if hasattr(learner.loss, "go_on"):
            learner.loss.go_on(metrics[-1])
    name = f"{folder.parent.name} seed {seed}"
    progress = tqdm(total=settings.epochs * len(images), desc=name, unit="view", unit_scale=True, disable=quiet)
    replay = REPLAYS[settings.replay](store, settings, seed, run.classes)
    saved = time.monotonic()
    with progress:
        progress.update(len(metrics) * len(images))
        coming = range(len(metrics), settings.epochs)
        for epoch, played in one_ahead(lambda number: (number, replay(number)), coming):
            started = time.monotonic()
            rate = SCHEDULES[settings.schedule](settings.lr, epoch, settings.epochs, settings.eta)
            for group in optimiser.param_groups:
                group["lr"] = rate
            torch.manual_seed(seed_for("student-noise", seed, epoch))  # dropout and the like
            learner.student.train()
            shown, draws = played.draws, None
            augmentation = "views" if played.is_fresh else settings.augmentation
            if augmentation != "views":
                shown = uncropped(shown, dataset.size)
            if augmentation == "dsa":
                draws = draw_augmentation(len(images), settings.batch_size, seed, epoch, device)
            stored = (shown, played.logits)
            others = (images, run.classes, dataset, progress, draws, run.weights, played.temperature)
            losses = train_epoch(learner, settings, epoch, stored, played.views, *others)
            patience = PATIENCE if scaler.is_enabled() else 1
            line = {"epoch": epoch, "lr": rate, "loss": mean_loss(losses, epoch, patience)}
            if hasattr(learner.loss, "end_epoch"):
                line |= learner.loss.end_epoch()
            if is_tested(epoch, settings):
                learner.student.eval()
                tested = learner.averaged.module.eval() if learner.averaged else network
                line["top1"], line["top5"] = accuracy(tested, test_set, dataset)
                progress.set_postfix(top1=f"{line['top1']:.1f} %")
            line["seconds"] = round(time.monotonic() - started, 3)
            if epoch == coming[0]:  # the first that is made now: only now is the place this run's
                check_record(folder / "settings.json", run.made_with, "results", write=True)
                write_metrics(folder, metrics)
            metrics.append(line)
            with (folder / "metrics.jsonl").open("a") as log:
                log.write(json.dumps(line) + "\n")
            if "top1" in line or time.monotonic() - saved > SAVE_EVERY:
                state = {"student": network.state_dict(), "optimiser": optimiser.state_dict()}
                state |= {"scaler": scaler.state_dict(), "metrics": metrics}
                if learner.averaged:
                    state["averaged"] = learner.averaged.state_dict()
                save_training(checkpoint, run.made_with, state)
                saved = time.monotonic()
    return metrics, is_compiled([learner.forward])


def train_epoch(
    learner: Learner,
    settings: ValidateSettings,
    number: int,
    stored: tuple[Epoch, Tensor],
    views_of: ViewSettings,
    images: Tensor,
    classes: Tensor,
    dataset: Dataset,
    progress: tqdm,
    draws: Draws | None = None,
    weights: Tensor | None = None,
    temperature: float | None = None,
) -> Tensor:
    """One epoch in the stored order, one optimiser step a batch; the loss of each batch, on the device.

    learner: its student in training mode; number: the epoch's; stored: its draws and soft labels; images: the distilled
    ones, uint8, N x 3 x S x S, on the device or in the host's memory; classes: theirs (N), in the host's memory; draws:
    what augments the views further, if anything does; weights: of the images in the loss (N), a view, mixed or
    not, having that of its own image; temperature: of soft labels and student, where it is not the loss's. Each batch
    is cut in micro-batches as relabel cut it, each normalised on its own: the student's BatchNorm sees the images that
    the teachers' saw. All go forward and backward together, which adds their gradients up.
    """
    device, optimiser, scaler = learner.device, learner.optimiser, learner.scaler
    hard_labels = classes[stored[0].order.long()].to(device)
    view_weights = None if weights is None else weights[stored[0].order.long()].to(device)
    epoch, soft_labels = stored[0].to(images, device), stored[1].to(device)
    losses = []
    for first, last in chunks_of_batches(views_of, learner.at_once):
        views = render_views(images, epoch, first, last, views_of, dataset)
        if draws is not None:
            views = augment_batches(views, draws, first, settings.batch_size)
        views = views.contiguous(memory_format=memory_format(device))
        places = slice(first * settings.batch_size, first * settings.batch_size + len(views))
        parts = [part.split(settings.batch_size) for part in (views, soft_labels[places], hard_labels[places])]
        weighed = [None] * len(parts[0]) if weights is None else view_weights[places].split(settings.batch_size)
        for batch, soft, hard, its_weights in zip(*parts, weighed, strict=True):
            with autocast(device, learner.dtype):
                logits = learner.forward(batch, tuple(group_sizes(len(batch), settings.accumulation)))
            loss = learner.loss(logits, Target(soft, hard, number, len(batch), its_weights, temperature))
            scaler.scale(loss).backward()
            scaler.step(optimiser)
            scaler.update()
            if learner.averaged:
                learner.averaged.update_parameters(learner.student.network)
            optimiser.zero_grad(set_to_none=True)  # at once: memory, and what CUDA graphs may replay over
            losses.append(loss.detach())
            progress.update(len(batch))
    return torch.stack(losses)


def mean_loss(losses: Tensor, epoch: int, patience: int = 1) -> float:
    """The mean of an epoch's losses: its one wait for the device.

    UserError where so many in a row are not finite (a gradient scaler survives a few, by leaving out their steps).
    """
    finite = losses.isfinite().cpu()
    in_a_row = (~finite).unfold(0, min(patience, len(finite)), 1).all(dim=1)
    if in_a_row.any():
        batch = int(in_a_row.nonzero()[0])
        raise UserError(f"epoch {epoch}, batch {batch}: the loss is not finite; lower the learning rate")
    return losses.cpu()[finite].mean().item()


def write_metrics(folder: Path, metrics: list[dict]) -> None:
    """Rewrite `metrics.jsonl` with these epochs."""
    write_json_lines(folder / "metrics.jsonl", metrics)

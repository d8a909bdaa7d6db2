"""What a relabel run will make and take, from one chunk of views through its teachers."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from relabel.labelling import label_epoch
from utils.datasets import Dataset
from utils.distributed import Team
from utils.dry_run import DryRun, measure
from utils.fkd import ViewSettings, draw_epoch
from utils.forecast import Output, relabel_held, slowest_share


def forecast_relabel(
    images: Tensor,
    committee: Callable[[Tensor, Sequence[int]], Tensor],
    views: ViewSettings,
    at_once: int,
    absent: Collection[int],
    folder: Path,
    output: Output,
    logits_type: str,
    dataset: Dataset,
    device: torch.device,
    team: Team,
) -> DryRun:
    """The dry run of relabel. absent: the epochs that are to be made; the rest as in relabel. Writes nothing."""
    team.wait()  # processes on one machine slow each other down, here as later
    chunk = replace(views, images=min(views.images, max(1, at_once // views.batch_size) * views.batch_size))
    drawn = draw_epoch(chunk, 0)
    dtype, hidden = getattr(torch, logits_type), tqdm(disable=True)

    def label() -> Tensor:
        return label_epoch(images, drawn, committee, chunk, at_once, dataset, device, dtype, hidden)

    _, timing = measure(label, device)
    an_epoch = timing.each * views.images / chunk.images
    costs = [an_epoch if epoch in absent else 0.0 for epoch in range(views.epochs)]
    return DryRun(
        "relabel",
        {"epochs": len(absent), "views": len(absent) * views.images},
        folder,
        output,
        relabel_held(views.images, dataset.num_classes, logits_type),
        (timing.setup if absent else 0.0) + slowest_share(costs, team.count),
    )

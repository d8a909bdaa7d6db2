"""relabel: for every epoch, an augmented view of each distilled image and the teachers' logits for it.

    bash relabel/scripts/cifar100/relabel_fadrm+_ipc10.sh
    python -m relabel.relabel --dataset-name cifar100 --recipe fadrm+ --ipc 10 --syn-data-path syn/mine \\
        --fkd-path labels/mine --model-pool-dir pretrained_models/cifar100_pretrained_models

One epoch at a time, each a whole file; an epoch whose file is there is skipped, so an interrupted run goes on where it
was. The manifest is written last: a store that has one is complete.
"""

import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from models.checkpoints import load_teacher
from relabel import flags
from utils.batch_statistics import GroupedNetwork, epoch_groups
from utils.cli import print_settings
from utils.datasets import Dataset, get_dataset, images_digest
from utils.device import choose_device, images_at_once, memory_format
from utils.distillation import committee_weights
from utils.distilled import read_distilled
from utils.errors import UserError, run_entry
from utils.fkd import (
    MANIFEST,
    Epoch,
    ViewSettings,
    chunks_of_batches,
    draw_epoch,
    epoch_path,
    is_whole,
    manifest_record,
    render_views,
    write_epoch,
    write_manifest,
)
from utils.records import check_record
from utils.report import report_run


def main(argv: Sequence[str] | None = None) -> None:
    settings = flags.parse(argv)
    print_settings("relabel", settings)
    dataset = get_dataset(settings.dataset_name)
    device = choose_device(settings.device)
    images, labels, ipc = read_distilled(settings.syn_data_path, dataset)
    views = flags.view_settings(settings, len(images), dataset)
    source = "online" if settings.online else "offline"
    if settings.ipc not in (None, ipc):
        raise UserError(f"--ipc {settings.ipc}: {settings.syn_data_path} has {ipc} images a class")
    teachers = [load_teacher(name, dataset, settings.model_pool_dir, source) for name in flags.teacher_names(settings)]
    weights = committee_weights(settings.model_weight, len(teachers))

    folder = store_folder(settings.fkd_path, settings.batch_size, ipc)
    logits_type = "float16" if settings.use_fp16 else "float32"
    record = manifest_record(
        dataset,
        views,
        ipc=ipc,
        batch_statistics=settings.eval_mode == "F",
        logits_type=logits_type,
        teachers=[
            {"name": teacher.name, "sha256": teacher.sha256, "weight": weight}
            for teacher, weight in zip(teachers, weights.tolist(), strict=True)
        ],
        images_sha256=images_digest(images, labels),
    )
    check_record(folder / "settings.json", record, "soft labels")

    layout = memory_format(device)
    networks = [teacher.module.to(device, memory_format=layout) for teacher in teachers]
    if settings.eval_mode == "F":
        networks = [GroupedNetwork(network) for network in networks]
    images = images.to(device)
    started = time.monotonic()
    missing = [
        e for e in range(views.epochs) if not is_whole(epoch_path(folder, e), views, dataset.num_classes, logits_type)
    ]
    with tqdm(total=views.epochs * views.images, desc="relabel", unit="view", unit_scale=True) as progress:
        progress.update((views.epochs - len(missing)) * views.images)
        for number in missing:
            epoch = draw_epoch(views, number)
            logits = label_epoch(images, epoch, networks, weights, views, dataset, progress).to(
                getattr(torch, logits_type)
            )
            if not logits.isfinite().all():
                raise UserError(f"epoch {number}: a soft label is not finite in {logits_type}; check the teachers")
            write_epoch(folder, number, epoch, logits)
    if missing or not (folder / MANIFEST).is_file():
        write_manifest(folder, record, views.epochs)
    report_run("relabel", folder / "report.json", device, started, len(missing), "epochs", {"label store": str(folder)})


@torch.no_grad()
def label_epoch(
    images: Tensor,
    epoch: Epoch,
    teachers: Sequence[nn.Module],
    weights: Tensor,
    settings: ViewSettings,
    dataset: Dataset,
    progress: tqdm,
) -> Tensor:
    """The weighted mean of the teachers' logits for every view of an epoch: float32, N x C, on the CPU.

    images: uint8, N x 3 x S x S. Each half of a batch is a group of its own, whose statistics a teacher without
    running statistics normalises with.
    """
    groups = epoch_groups(settings.images, settings.batch_size)
    parts = []
    for first, last in chunks_of_batches(settings, images_at_once(settings.size, images.device)):
        views = render_views(images, epoch, first, last, settings, dataset)
        views = views.contiguous(memory_format=memory_format(images.device))
        of_chunk = [size for batch in groups[first:last] for size in batch]
        answers = (
            weight * (teacher(views, of_chunk) if isinstance(teacher, GroupedNetwork) else teacher(views)).float()
            for teacher, weight in zip(teachers, weights.tolist(), strict=True)
        )
        parts.append(sum(answers))
        progress.update(len(views))
    return torch.cat(parts).cpu()


def store_folder(prefix: Path, batch_size: int, ipc: int) -> Path:
    """`<fkd-path>_bs<bs>_ipc<N>`."""
    return prefix.with_name(f"{prefix.name}_bs{batch_size}_ipc{ipc}")


if __name__ == "__main__":
    run_entry(main)

"""relabel: for every epoch, an augmented view of each distilled image and the teachers' logits for it.

    bash relabel/scripts/cifar100/relabel_fadrm+_ipc10.sh
    torchrun --standalone --nproc-per-node 4 -m relabel.relabel --dataset-name cifar100 --recipe fadrm+ --ipc 10 \\
        --syn-data-path syn/mine --fkd-path labels/mine --model-pool-dir pretrained_models

One epoch at a time, each a whole file; an epoch whose file is there is skipped, so an interrupted run goes on where it
was. The manifest is written last: a store that has one is complete. Several processes share the epochs out.
"""

import time
from argparse import Namespace
from collections.abc import Sequence

import torch
from tqdm import tqdm

from models.checkpoints import load_teacher
from relabel import flags
from relabel.forecast import forecast_relabel
from relabel.labelling import committee_of, label_epoch
from utils.background import BackgroundWriter, one_ahead
from utils.batch_statistics import GroupedNetwork
from utils.chunks import images_at_once
from utils.cli import print_settings
from utils.datasets import get_dataset, images_digest
from utils.device import choose_device, memory_format
from utils.distillation import committee_weights
from utils.distilled import at_hand, read_distilled
from utils.distributed import Team, teamwork
from utils.dry_run import tell
from utils.errors import UserError, run_entry
from utils.fkd import (
    draw_epoch,
    epoch_path,
    has_manifest,
    is_whole,
    manifest_record,
    store_folder,
    write_epoch,
    write_manifest,
)
from utils.forecast import relabel_output, require_space
from utils.precision import amp_type, autocast, compiled
from utils.records import check_record
from utils.report import report_run


def main(argv: Sequence[str] | None = None) -> None:
    with teamwork() as team:
        relabel(flags.parse(argv), team)


def relabel(settings: Namespace, team: Team) -> None:
    print_settings("relabel", settings)
    dataset = get_dataset(settings.dataset_name)
    device = choose_device(settings.device, team.local_rank)
    dtype = amp_type(settings.amp, device, auto_on_cuda="off")
    images, labels, ipc = read_distilled(settings.syn_data_path, dataset)
    if settings.ipc not in (None, ipc):
        raise UserError(f"--ipc {settings.ipc}: {settings.syn_data_path} has {ipc} images a class")
    views = flags.view_settings(settings, len(images), dataset)
    source = "online" if settings.online else "offline"
    teachers = [load_teacher(name, dataset, settings.model_pool_dir, source) for name in flags.teacher_names(settings)]
    weights = committee_weights(settings.model_weight, len(teachers)).tolist()

    folder = store_folder(settings.fkd_path, settings.batch_size, ipc)
    logits_type = "float16" if settings.use_fp16 else "float32"
    stored = getattr(torch, logits_type)
    record = manifest_record(
        dataset,
        views,
        ipc=ipc,
        batch_statistics=settings.eval_mode == "F",
        precision=str(dtype or torch.float32).removeprefix("torch."),
        logits_type=logits_type,
        teachers=[
            {"name": teacher.name, "sha256": teacher.sha256, "weight": weight}
            for teacher, weight in zip(teachers, weights, strict=True)
        ],
        images_sha256=images_digest(images, labels),
    )
    absent = [
        e for e in range(views.epochs) if not is_whole(epoch_path(folder, e), views, dataset.num_classes, logits_type)
    ]
    output = relabel_output(len(absent), views, dataset, logits_type)
    require_space(folder, output)
    check_record(folder / "settings.json", record, "soft labels", write=not settings.dry_run)

    networks = [teacher.module.to(device, memory_format=memory_format(device)) for teacher in teachers]
    at_once = min(images_at_once(network, dataset.size) for network in networks)
    if settings.eval_mode == "F":
        networks = [GroupedNetwork(network) for network in networks]
    pixels = views.epochs * len(images) * dataset.size**2
    networks = [compiled(network, settings.compile, device, pixels) for network in networks]
    committee = committee_of(networks, weights, grouped=settings.eval_mode == "F")
    images = at_hand(images, device)
    if settings.dry_run:
        with torch.no_grad(), autocast(device, dtype):
            found = forecast_relabel(
                images, committee, views, at_once, absent, folder, output, logits_type, dataset, device, team
            )
        tell(found, device, team)
        return
    started = time.monotonic()
    missing = [epoch for epoch in team.share(range(views.epochs)) if epoch in absent]
    progress = tqdm(total=len(missing) * views.images, desc="relabel", unit="view", unit_scale=True)
    progress.disable = not team.leads or not missing
    with progress, BackgroundWriter() as writer, torch.no_grad(), autocast(device, dtype):
        drawn = one_ahead(lambda number: (number, draw_epoch(views, number)), missing)
        for number, epoch in drawn:
            logits = label_epoch(images, epoch, committee, views, at_once, dataset, device, stored, progress)
            if not logits.isfinite().all():
                raise UserError(f"epoch {number}: a soft label is not finite in {logits_type}; check the teachers")
            writer.submit(write_epoch, folder, number, epoch, logits)
    made = team.total(len(missing))
    if team.leads:
        if made or not has_manifest(folder):
            write_manifest(folder, record, views.epochs)
        files = {"label store": str(folder)}
        report_run("relabel", folder / "report.json", device, started, made, "epochs", files, team.count)


if __name__ == "__main__":
    run_entry(main)

"""relabel: for every epoch, an augmented view of each distilled image and the teachers' logits for it.

    bash relabel/scripts/cifar100/relabel_fadrm+_ipc10.sh
    torchrun --standalone --nproc-per-node 4 -m relabel.relabel --dataset-name cifar100 --recipe fadrm+ --ipc 10 \\
        --syn-data-path syn/mine --fkd-path labels/mine --model-pool-dir pretrained_models

One epoch at a time, each a whole file; an epoch whose file is there is skipped, so an interrupted run goes on where it
was. The manifest is written last: a store that has one is complete. Several processes share the epochs out.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from models.checkpoints import Teacher, load_teacher
from models.teachers import recorded_accuracies
from relabel.labelling import label_epoch, label_images, mean_logits, mean_of_norms, of_classes
from utils import recipes
from utils.data.distilled import on_device_if_fits, read_distilled
from utils.data.images import images_digest
from utils.data.table import Dataset
from utils.fkd.codec import Packing
from utils.fkd.groups import GroupedNetwork
from utils.fkd.losses import label_weights
from utils.fkd.store import (
    MANIFEST,
    epoch_path,
    epochs_output,
    is_right,
    is_whole,
    manifest_record,
    store_folder,
    write_epoch,
    write_manifest,
)
from utils.fkd.views import ViewSettings, draw_epoch
from utils.recipes.settings import RelabelSettings
from utils.run.background import BackgroundWriter, one_ahead
from utils.run.chunks import images_at_once
from utils.run.device import choose_device, memory_format
from utils.run.errors import UserError, run_entry
from utils.run.precision import Work, amp_type, autocast, compiled, is_compiled
from utils.run.records import check_record
from utils.run.report import report_run, start_run
from utils.run.settings import show
from utils.run.space import print_dry_run, require_space
from utils.run.team import Team, teamwork


def main(argv: Sequence[str] | None = None) -> None:
    with teamwork() as team:
        for settings in recipes.parse_each("relabel", argv, "--draw", "--labels --protocol"):
            relabel(settings, team)


def relabel(settings: RelabelSettings, team: Team) -> None:
    show("relabel", settings)
    distilled = read_distilled(settings.syn_data_path, settings.dataset, team.workers)
    ipc = distilled[2]
    if settings.ipc not in (None, ipc):
        raise UserError(f"--ipc {settings.ipc}: {settings.syn_data_path} has {ipc} images a class")
    label(distilled, store_folder(settings.fkd_path, settings.batch_size, ipc), settings, team)


def label(
    distilled: tuple[Tensor, Tensor, int],
    folder: Path,
    settings: RelabelSettings,
    team: Team,
    classes: Sequence[int] | None = None,
) -> None:
    """Make a label store of images; what the folder has of it already stays.

    distilled: as of read_distilled; classes: where the images are of these alone, which then are the store's, in this
    order: it has their logits of the teachers'. UserError where the folder has labels of other settings.
    """
    dataset = settings.dataset if classes is None else replace(settings.dataset, num_classes=len(classes))
    device = choose_device(settings.device, team.local_rank)
    dtype = amp_type(settings.amp, device, auto_on_cuda="off")
    images, labels, ipc = distilled
    views = view_settings(settings, len(images), dataset)
    pool, source = settings.model_pool_dir, settings.source
    teachers = [load_teacher(name, settings.dataset, pool, source) for name in settings.teachers]
    weights = label_weights(scores_of(settings), len(teachers)).tolist()
    logits_type = "float16" if settings.use_fp16 else "float32"
    packing = packing_of(settings)
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
        **({"labels": "fixed"} if settings.is_fixed else {}),
        **({"weighting": "norm"} if settings.weighting == "norm" else {}),
        **({} if classes is None else {"classes": list(classes)}),
        **packing.as_record(),
    )
    check_record(folder / "settings.json", record, "soft labels")
    of_store = (views, dataset.num_classes, logits_type, packing)
    absent = [n for n in range(views.epochs) if not is_whole(epoch_path(folder, n), *of_store)]
    team.wait()  # until all have looked
    is_closed = (folder / MANIFEST).is_file() and not settings.verify
    present = [] if is_closed else team.share([n for n in range(views.epochs) if n not in absent])
    # A store without a manifest is about to be signed, so that what it has so far is read and checked.
    missing = [*team.share(absent), *(n for n in present if not is_right(epoch_path(folder, n), n, *of_store))]
    output = epochs_output(max(len(absent), len(missing)), *of_store)
    require_space(folder, output)
    if settings.dry_run:
        print_dry_run("relabel", {"epochs": output.files, "views": output.files * views.images}, folder, output)
        return

    at_once = min(images_at_once(teacher.module.to(device), dataset.size) for teacher in teachers)
    if settings.weighting == "norm":  # of the logits of a batch
        at_once = settings.batch_size
    networks = networks_of(teachers, settings, views, at_once, device)
    by_norm = settings.weighting == "norm"
    committee = mean_of_norms(networks) if by_norm else mean_logits(networks, weights, settings.eval_mode == "F")
    if classes is not None:
        committee = of_classes(committee, classes)
    whole = None  # the labels of whole images, where these are asked for
    images = on_device_if_fits(images, device)
    started = start_run(device)
    quiet = not team.is_main or not missing
    progress = tqdm(total=len(missing) * views.images, desc="relabel", unit="view", unit_scale=True, disable=quiet)
    with progress, BackgroundWriter() as writer, torch.no_grad(), autocast(device, dtype):
        for number, epoch in one_ahead(lambda number: (number, draw_epoch(views, number)), missing):
            stored = getattr(torch, logits_type)
            if settings.is_fixed:
                whole = label_images(images, committee, at_once, dataset, device, stored) if whole is None else whole
                logits = whole[epoch.order.long()]
                progress.update(len(logits))
            else:
                logits = label_epoch(images, epoch, committee, views, at_once, dataset, device, stored, progress)
            if not logits.isfinite().all():
                raise UserError(f"epoch {number}: a soft label is not finite in {logits_type}; check the teachers")
            check_record(folder / "settings.json", record, "soft labels", write=True)
            writer.submit(write_epoch, folder, number, epoch, logits, packing)
    made = team.total(len(missing))
    if team.is_main:
        if made or not is_closed:
            write_manifest(folder, record, views.epochs)
        files = {"label store": str(folder)}
        note = is_compiled(networks)
        report_run("relabel", folder / "report.json", device, started, made, "epochs", files, team.count, compiled=note)


def view_settings(settings: RelabelSettings, images: int, dataset: Dataset) -> ViewSettings:
    """The part of the settings that the views depend on."""
    return ViewSettings(
        images=images,
        size=dataset.size,
        batch_size=settings.batch_size,
        epochs=settings.epochs_kept,
        min_scale=settings.min_scale,
        max_scale=settings.max_scale,
        mix=settings.mix,
        mix_alpha={"cutmix": settings.cutmix, "mixup": settings.mixup, None: 1.0}[settings.mix],
        fkd_seed=settings.fkd_seed + settings.draw,
        seed=settings.seed + settings.draw,
        tiles=settings.tiles,
    )


def packing_of(settings: RelabelSettings) -> Packing:
    """How the store keeps its epochs."""
    return Packing(settings.codec, settings.top_k or 0, settings.store_draws)


def scores_of(settings: RelabelSettings) -> Sequence[float]:
    """A score for each teacher, where these weigh its logits: those given, else its recorded accuracy."""
    if settings.weighting != "prior" or settings.model_weight:
        return settings.model_weight
    return recorded_accuracies(settings.model_pool_dir, settings.teachers)


def networks_of(
    teachers: Sequence[Teacher], settings: RelabelSettings, views: ViewSettings, at_once: int, device: torch.device
) -> list[nn.Module]:
    """The teachers as they label: on the device, normalising by groups unless --eval-mode is T, compiled if asked
    for."""
    networks = [teacher.module.to(device, memory_format=memory_format(device)) for teacher in teachers]
    if settings.eval_mode == "F":
        networks = [GroupedNetwork(network) for network in networks]
    epochs = 1 if settings.is_fixed else views.epochs  # how often an image is labelled
    work = Work(epochs * views.images * views.size**2, epochs * -(-views.images // at_once))
    return [compiled(network, settings.compile, device, work) for network in networks]


if __name__ == "__main__":
    run_entry(main)

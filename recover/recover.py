"""recover: real patches become distilled images.

    bash recover/scripts/cifar100/recover_fadrm+_ipc10.sh
    torchrun --standalone --nproc-per-node 4 -m recover.recover --dataset-name cifar100 --recipe fadrm+ --ipc 10 \\
        --syn-data-path syn --exp-name mine --patch-dir patches/cifar100 --model-pool-dir pretrained_models

One class batch of one image index at a time: patches, optimisation against frozen teachers, PNG files. A class batch
whose files are there and were made with the same settings is skipped, so an interrupted run goes on where it was.
Several processes share the class batches out.
"""

import time
from argparse import Namespace
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from tqdm import tqdm

from models.checkpoints import load_network, load_teacher
from recover import flags
from recover.class_batches import (
    batch_digest,
    draw_contact_sheet,
    plan_work,
    read_patches,
    starting_images,
    valid_range_of,
    what_shapes_images,
)
from recover.forecast import forecast_recover, missing_work, output_of
from recover.optimise import Step, recover_batch
from utils.background import BackgroundWriter
from utils.bn_matching import MatchedTeacher
from utils.cli import print_settings
from utils.datasets import Dataset, get_dataset, to_pixels
from utils.device import choose_device, memory_format
from utils.distilled import distilled_path, is_made_with, record_path, write_distilled
from utils.distributed import Team, teamwork
from utils.dry_run import tell
from utils.errors import UserError, run_entry
from utils.forecast import require_space
from utils.precision import amp_type, compiled
from utils.randomness import generator_for
from utils.records import check_record
from utils.report import report_run

VERIFY_EVERY = 100  # iterations


def main(argv: Sequence[str] | None = None) -> None:
    with teamwork() as team:
        recover(flags.parse(argv), team)


def recover(settings: Namespace, team: Team) -> None:
    print_settings("recover", settings)
    dataset = get_dataset(settings.dataset_name)
    device = choose_device(settings.device, team.local_rank)
    dtype = amp_type(settings.amp, device, auto_on_cuda="fp16")
    plan = flags.plan_of(settings)
    work = plan_work(settings, dataset)
    pool, source = settings.model_pool_dir, settings.pretrained_model_type
    loaded = {name: load_teacher(name, dataset, pool, source) for name in dict.fromkeys(settings.teacher_model_list)}
    verifier = load_verifier(settings, dataset, device)
    folder = settings.syn_data_path / settings.exp_name
    made_with = what_shapes_images(settings, [loaded[name] for name in settings.teacher_model_list], dtype)
    missing = missing_work(work, folder, dataset)
    output = output_of(missing, settings, dataset)
    require_space(folder, output)
    check_record(record_path(folder), made_with, "distilled images", write=not settings.dry_run)

    matched = {}
    pixels_of_each = plan.pixels(min(settings.batch_size, dataset.num_classes)) // len(loaded)
    for name, teacher in loaded.items():
        network = teacher.module.to(device, memory_format=memory_format(device))
        matching = MatchedTeacher(network, settings.first_bn_multiplier)
        matched[name] = compiled(matching, settings.compile, device, pixels_of_each)
    if settings.dry_run:
        tell(forecast_recover(settings, matched, work, missing, output, dataset, device, dtype, team), device, team)
        return
    teachers = [matched[name] for name in settings.teacher_model_list]
    valid_range = valid_range_of(dataset, device)
    started, made = time.monotonic(), 0
    mine = team.share(work)
    progress = tqdm(total=len(mine) * plan.iterations, desc="recover", unit="it", disable=not team.leads)
    with progress, BackgroundWriter() as writer:
        for ipc_id, classes in mine:
            patches = read_patches(settings, classes, ipc_id, dataset)
            digest = batch_digest(made_with, patches)
            paths = [distilled_path(folder, dataset.num_classes, index, ipc_id) for index in classes]
            if all(is_made_with(path, digest, dataset.size) for path in paths):
                progress.update(plan.iterations)
                continue
            generator = generator_for(settings.seed, "recover", dataset.name, ipc_id, classes.start)
            start, patches = starting_images(settings, patches, len(classes), dataset, generator, device)
            labels = torch.tensor(list(classes), device=device)

            def watch(step: Step, ipc_id: int = ipc_id, labels: Tensor = labels) -> None:
                progress.update()
                if verifier is not None and step.iteration % VERIFY_EVERY == VERIFY_EVERY - 1:
                    right = (verifier(step.images).argmax(dim=1) == labels).float().mean().item()
                    progress.write(f"image {ipc_id}, iteration {step.iteration + 1}: verifier accuracy {right:.1%}")

            try:
                images = recover_batch(start, patches, labels, teachers, plan, valid_range, generator, dtype, watch)
            except UserError as error:
                raise UserError(f"image {ipc_id}, classes {classes.start} to {classes.stop - 1}: {error}") from None
            if settings.store_initialised_images:
                initial = folder.with_name(f"{folder.name}_initialised")
                initial_paths = [distilled_path(initial, dataset.num_classes, index, ipc_id) for index in classes]
                writer.submit(write_distilled, initial_paths, to_pixels(start, dataset).cpu(), digest)
            writer.submit(write_distilled, paths, to_pixels(images, dataset).cpu(), digest)
            made += len(paths)
    made = team.total(made)
    if team.leads:
        picture = draw_contact_sheet(settings, folder, dataset, work)
        files = {"contact sheet": str(picture)}
        report_run("recover", folder / "report.json", device, started, made, "images", files, team.count)


def load_verifier(settings: Namespace, dataset: Dataset, device: torch.device) -> nn.Module | None:
    """The network that looks on, if one is asked for."""
    if not settings.verifier:
        return None
    if settings.verifier_weight_path is not None:
        return load_network(settings.verifier_arch, dataset, settings.verifier_weight_path).to(device)
    source = settings.pretrained_model_type
    return load_teacher(settings.verifier_arch, dataset, settings.model_pool_dir, source).module.to(device)


if __name__ == "__main__":
    run_entry(main)

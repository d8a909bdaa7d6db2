"""Choose real images and lay them out like distilled ones, to relabel and train on likewise.

    python -m recover.choose_images --dataset-name cifar100 --ipc 10                      # random ones
    python -m recover.choose_images --dataset-name cifar100 --ipc 10 --selector medium

What a student learns from them under the same protocol is what distillation has to beat. Several processes (torchrun)
share the classes out.
"""

import hashlib
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from models.checkpoints import Teacher, load_teacher
from models.scores import read_scores
from utils import recipes
from utils.data.digests import LISTING, digest_of_folder, listing_digest
from utils.data.distilled import distilled_path, images_output, is_made_with, record_path, write_distilled
from utils.data.embedded import ensure_embedded
from utils.data.images import images_by_class, load_test_images
from utils.data.table import Dataset
from utils.patches.selectors import Candidates, Observed, observe
from utils.recipes.settings import ImageSettings, require_pool
from utils.run.device import choose_device
from utils.run.errors import UserError, run_entry
from utils.run.randomness import generator_for
from utils.run.records import check_record
from utils.run.report import report_run, start_run
from utils.run.settings import show
from utils.run.space import print_dry_run, require_space
from utils.run.team import Team, teamwork
from utils.seams import SELECTORS

CHUNK = 1024  # images in memory at a time: 150 MB at 224 pixels


def main(argv: Sequence[str] | None = None) -> None:
    with teamwork() as team:
        for settings in recipes.parse_each("choose", argv, "--draw"):
            choose_images(settings, team)


def choose_images(settings: ImageSettings, team: Team) -> None:
    show("choose", settings)
    dataset = settings.dataset
    device = choose_device(settings.device, team.local_rank)
    if not settings.dry_run:
        ensure_embedded(dataset, train=settings.train_dir)
    images = images_by_class(settings.train_dir, dataset)
    smallest = min(range(dataset.num_classes), key=lambda index: len(images[index]))
    if len(images[smallest]) < settings.ipc:
        raise UserError(
            f"class {smallest} in {settings.train_dir} has {len(images[smallest])} images: "
            f"--ipc {settings.ipc} asks for more, lower it"
        )
    folder, observer = settings.syn_data_path / settings.exp_name, None
    seed = settings.seed + settings.draw
    record = {"method": settings.selector, "dataset_name": dataset.name, "ipc": settings.ipc, "seed": seed}
    record |= {"train_images": sum(map(len, images)), LISTING: listing_digest(settings.train_dir, images)}
    if settings.selector != "random":
        observer = load_teacher(settings.observer, dataset, settings.model_pool_dir, settings.source)
        observer.module.to(device)
        record |= {"observer": observer.name, "observer_sha256": observer.sha256}
    check_record(record_path(folder), record, "images", younger=[LISTING])
    started = start_run(device)
    pending = []  # a real image, the place that it goes to, and a digest of what it is
    scores = cache(partial(scores_by_class, settings, images))
    for class_index, paths in team.share(list(enumerate(images))):
        look = partial(observe_images, paths, observer, class_index, dataset, settings)
        history = partial(lambda class_index: scores()[class_index], class_index)
        candidates = Candidates(class_index, len(paths), 1, settings.observer, look, history)
        generator = generator_for(seed, settings.selector, dataset.name, class_index)
        chosen = SELECTORS[settings.selector](candidates, settings.ipc, generator)[:, 0].tolist()
        for ipc_id, image_index in enumerate(chosen):
            source = paths[image_index]
            target = distilled_path(folder, dataset.num_classes, class_index, ipc_id)
            digest = hashlib.sha256(f"real image {source.parent.name}/{source.name}".encode()).hexdigest()
            if not is_made_with(target, digest, dataset.size):
                pending.append((source, target, digest))

    output = images_output(len(pending), dataset)
    require_space(folder, output)
    if settings.dry_run:
        print_dry_run("choose", {"images": output.files}, folder, output)
        return
    with tqdm(total=len(pending), desc=f"{settings.selector} images", unit="image", disable=not pending) as progress:
        for start in range(0, len(pending), CHUNK):
            chunk = pending[start : start + CHUNK]
            sources = [source for source, _, _ in chunk]
            pixels = load_test_images(sources, dataset, workers=settings.workers, progress=None)
            check_record(record_path(folder), record, "images", write=True, younger=[LISTING])
            for (_, target, digest), image in zip(chunk, pixels, strict=True):
                write_distilled([target], image[None], digest)
                progress.update()
    made = team.total(len(pending))
    if team.is_main:
        files = {"images": str(folder)}
        report_run("choose", folder / "report.json", device, started, made, "images", files, team.count)


def scores_by_class(settings: ImageSettings, images: Sequence[Sequence[Path]]) -> Sequence[Tensor]:
    """The scores of each class's images after each epoch of the observer's training, as pretrain --keep-scores keeps
    them: epochs x images each."""
    require_pool("offline", settings.model_pool_dir)
    digest = digest_of_folder(settings.train_dir, settings.dataset, keep=not settings.dry_run)
    scores = read_scores(settings.model_pool_dir, settings.observer, digest)
    return scores.split([len(paths) for paths in images], dim=1)


def observe_images(
    paths: Sequence[Path], observer: Teacher, class_index: int, dataset: Dataset, settings: ImageSettings
) -> Observed:
    """What the observer makes of the images of a class, seen as a network is tested on them."""
    parts = []
    for start in range(0, len(paths), CHUNK):
        pixels = load_test_images(paths[start : start + CHUNK], dataset, workers=settings.workers, progress=None)
        parts.append(observe(observer.module, pixels, class_index, dataset, batch_size=250))
    losses, features = zip(*parts, strict=True)
    return Observed(torch.cat(losses), None if features[0] is None else torch.cat(features))


if __name__ == "__main__":
    run_entry(main)

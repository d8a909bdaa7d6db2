"""Weigh distilled images by how many real ones each stands for, for `validate --image-weights` (DDOQ, ICLR 2026).

    python -m recover.weigh_images --dataset-name cifar100 --recipe fadrm --ipc 10

Every training image goes to the distilled image of its class that an observer finds most alike, by the cosine of its
features; a weight is the share of the class that came to an image, times IPC: 1 on average, 0 where none came. Writes
`weights.json` beside the class folders. Several processes (torchrun) share the classes out.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from models.checkpoints import load_teacher
from recover.choose_images import observe_images
from utils import recipes
from utils.data.digests import LISTING, listing_digest
from utils.data.distilled import WEIGHTS, read_distilled, weights_path
from utils.data.embedded import ensure_embedded
from utils.data.images import images_by_class, images_digest
from utils.patches.features import require_features
from utils.patches.selectors import observe
from utils.recipes.settings import WeighSettings
from utils.run.device import choose_device
from utils.run.errors import UserError, run_entry
from utils.run.files import read_json, write_json
from utils.run.records import check_shape, differences
from utils.run.settings import show
from utils.run.space import Output, print_dry_run, require_space
from utils.run.team import Team, teamwork


def main(argv: Sequence[str] | None = None) -> None:
    with teamwork() as team:
        for settings in recipes.parse_each("weigh", argv, "--draw"):
            weigh_images(settings, team)


def weigh_images(settings: WeighSettings, team: Team) -> None:
    show("weigh", settings)
    dataset, folder = settings.dataset, settings.syn_data_path
    device = choose_device(settings.device, team.local_rank)
    if not settings.dry_run:
        ensure_embedded(dataset, train=settings.train_dir)
    by_class = images_by_class(settings.train_dir, dataset)
    images, labels, ipc = read_distilled(folder, dataset, settings.workers)
    if settings.ipc not in (None, ipc):
        raise UserError(f"--ipc {settings.ipc}: {folder} has {ipc} images a class")
    observer = load_teacher(settings.observer, dataset, settings.model_pool_dir, settings.source)
    observer.module.to(device)
    record = {"images_sha256": images_digest(images, labels), "observer": observer.name}
    record |= {"observer_sha256": observer.sha256, "train_images": sum(map(len, by_class))}
    record |= {LISTING: listing_digest(settings.train_dir, by_class)}
    path = weights_path(folder)
    is_done = is_weighed(path, record)
    output = Output(0, 0) if is_done else Output(1, 1024 + 32 * len(images))
    require_space(folder, output)
    if settings.dry_run:
        print_dry_run("weigh", {"images": 0 if is_done else len(images)}, folder, output)
        return
    if is_done:
        print("weigh: everything was there already, with the same settings", flush=True)
        return
    found = {}
    for class_index, paths in tqdm(team.share(list(enumerate(by_class))), desc="weighing", unit="class"):
        real = observe_images(paths, observer, class_index, dataset, settings)
        distilled = observe(observer.module, images[labels == class_index], class_index, dataset, batch_size=250)
        features = [require_features(each.features, f"the observer {observer.name}") for each in (real, distilled)]
        found[class_index] = cluster_weights(*features).tolist()
    found = {class_index: its for part in team.gather(found) for class_index, its in part.items()}
    if team.is_main:
        weights = [weight for class_index in sorted(found) for weight in found[class_index]]
        write_json(path, {**record, "weights": weights})
        unused = weights.count(0)
        print(f"weigh: {len(weights)} images, weights up to {max(weights):.2f}, {unused} of 0: {path}", flush=True)


def is_weighed(path: Path, record: Mapping[str, object]) -> bool:
    """Whether weights are there that were made with what `record` says; UserError where they are damaged or others."""
    if not path.exists():
        return False
    content = read_json(path)
    check_shape(path, content, WEIGHTS, "remove it; the same command makes it again")
    if found := differences({name: its for name, its in content.items() if name != "weights"}, record):
        raise UserError(f"{path} has weights made with other settings: {found}; give the same settings, or remove it")
    return True


def cluster_weights(real: Tensor, distilled: Tensor) -> Tensor:
    """For each of IPC distilled images of a class (IPC x D features of length 1), how many of its R real ones (R x D)
    are most alike to it, over R / IPC: float32, IPC, mean 1. Ties go to the earlier image."""
    nearest = (real @ distilled.T).argmax(dim=1)
    return torch.bincount(nearest, minlength=len(distilled)) * (len(distilled) / len(real))


if __name__ == "__main__":
    run_entry(main)

"""The random baseline: real images drawn by seed, laid out like distilled ones, to relabel and train on likewise.

    python -m recover.random_images --dataset-name cifar100 --train-dir data/train/cifar100 --ipc 10 \\
        --syn-data-path outputs/generated_data/syn_data/cifar100 --exp-name random_ipc10

What a student learns from them under the same protocol is what distillation has to beat. Several processes (torchrun)
share the classes out.
"""

import hashlib
import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from utils.cli import StageParser, print_settings
from utils.datasets import DATASETS, get_dataset, load_test_images
from utils.device import choose_device
from utils.distilled import distilled_path, is_made_with, record_path, write_distilled
from utils.distributed import Team, teamwork
from utils.errors import UserError, run_entry
from utils.real_images import draw, images_by_class
from utils.records import check_record
from utils.report import report_run

CHUNK = 1024  # images in memory at a time: 150 MB at 224 pixels


def make_parser() -> StageParser:
    parser = StageParser("recover.random_images", "Draw real images by seed and lay them out like distilled ones.")
    add = parser.add_argument
    add("--dataset-name", required=True, help=f"one of {' '.join(DATASETS)}")
    add("--train-dir", type=Path, required=True, help="the dataset's own folder of class folders")
    add("--ipc", type=int, required=True, help="images per class")
    add("--syn-data-path", type=Path, required=True, help="folder that holds --exp-name")
    add("--exp-name", required=True, help="folder of this run's images")
    add("--workers", type=int, default=0, help="processes that decode (0: this one)")
    parser.add_common_flags()
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    with teamwork() as team:
        draw_random_images(make_parser().parse_args(argv), team)


def draw_random_images(settings: Namespace, team: Team) -> None:
    dataset = get_dataset(settings.dataset_name)
    if settings.ipc < 1:
        raise UserError(f"--ipc {settings.ipc}: must be 1 or more")
    print_settings("random_images", settings)
    device = choose_device(settings.device, team.local_rank)

    images = images_by_class(settings.train_dir, dataset)
    smallest = min(range(dataset.num_classes), key=lambda index: len(images[index]))
    if len(images[smallest]) < settings.ipc:
        raise UserError(
            f"class {smallest} in {settings.train_dir} has {len(images[smallest])} images: "
            f"--ipc {settings.ipc} asks for more, lower it"
        )

    folder = settings.syn_data_path / settings.exp_name
    record = {"method": "random", "dataset_name": dataset.name, "ipc": settings.ipc, "seed": settings.seed}
    check_record(record_path(folder), record | {"train_images": sum(map(len, images))}, "images")

    started = time.monotonic()
    pending = []  # a real image, the place that it goes to, and a digest of what it is
    for class_index, paths in team.share(list(enumerate(images))):
        drawn = draw(len(paths), settings.ipc, settings.seed, "random", dataset.name, class_index)
        for ipc_id, image_index in enumerate(drawn):
            source = paths[image_index]
            target = distilled_path(folder, dataset.num_classes, class_index, ipc_id)
            digest = hashlib.sha256(f"real image {source.parent.name}/{source.name}".encode()).hexdigest()
            if not is_made_with(target, digest, dataset.size):
                pending.append((source, target, digest))

    with tqdm(total=len(pending), desc="random images", unit="image", disable=not pending) as progress:
        for start in range(0, len(pending), CHUNK):
            chunk = pending[start : start + CHUNK]
            sources = [source for source, _, _ in chunk]
            pixels = load_test_images(sources, dataset, workers=settings.workers, progress=None)
            for (_, target, digest), image in zip(chunk, pixels, strict=True):
                write_distilled([target], image[None], digest)
                progress.update()
    made = team.total(len(pending))
    if team.leads:
        files = {"images": str(folder)}
        report_run("random_images", folder / "report.json", device, started, made, "images", files, team.count)


if __name__ == "__main__":
    run_entry(main)

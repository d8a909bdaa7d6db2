"""RDED: realistic, diverse and efficient distillation (Sun, Shi, Yu and Lin, CVPR 2024, arXiv 2312.03526).

Nothing is optimised. Of 300 images of each class the best of five crops is kept, as the observer's loss has it; the
crops of lowest loss are the distilled images, at 224 pixels four of them as tiles of one. In the views of relabel the
columns and the rows of these tiles change places.

    bash run.sh imagenet-nette rded 10 ResNet18

FADRM's table 2 has, for ResNet18 at IPC 1, 10, 50: cifar100 17.1, 56.9, 66.8 %; tiny_imagenet 11.8, 41.9, 58.2;
imagenet-nette 35.8, 61.4, 80.4; imagewoof 20.8, 38.5, 68.5; imagenet1k 6.6, 42.0, 56.5. Here: crops, ranking, tiles by
IPC and tile shuffles, under FADRM's protocol of labels and students. Different from RDED's code: images and crops
follow from the seed; observers take images normalised by their dataset's mean and std (RDED: ImageNet's for all); files
are JPEG of quality 95, then PNG (RDED: JPEG of 75). Left out: labels made while the student trains, its second forward
in training mode, batches by IPC.
"""

from pathlib import Path

from utils.data.table import Dataset
from utils.recipes.base import Recipe, base

METHOD = "rded"
OWN_PATCHES = Path("{patch_dir}/{dataset}/rded_ipc{ipc}")  # tiles differ by IPC


def recipe(dataset: Dataset, ipc: int) -> Recipe:
    teacher = "ConvNetBN_W64" if dataset.name == "fashion_mnist" else "ResNet18"
    tiles = 2 if dataset.size == 224 else 1
    return (
        base(dataset, ipc)
        .set(teachers=(teacher,), sizes=(), budgets=(), alpha=1.0, selector="easy", tiles=tiles, patch_dir=OWN_PATCHES)
        .set_in(
            "patches", factor=tiles, tile_stride=ipc, patches_per_class=ipc, area_min=0.08, num_crops=5, max_images=300
        )
    )

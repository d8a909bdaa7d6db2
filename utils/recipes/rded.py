"""RDED: realistic, diverse and efficient distillation (Sun, Shi, Yu and Lin, CVPR 2024, arXiv 2312.03526).

Nothing is optimised. Of 300 images of each class the best of five crops is kept, as the observer's loss has it; the
crops of lowest loss are the distilled images, at 224 pixels four of them as tiles of one. In the views of relabel the
columns and the rows of these tiles change places.

    bash run.sh imagenet-nette rded 10 ResNet18

FADRM's table 2 has, for ResNet18 at IPC 1, 10, 50: cifar100 17.1, 56.9, 66.8 %; tiny_imagenet 11.8, 41.9, 58.2;
imagenet-nette 35.8, 61.4, 80.4; imagewoof 20.8, 38.5, 68.5; imagenet1k 6.6, 42.0, 56.5. Here: crops, ranking, tiles by
IPC and tile shuffles, under FADRM's protocol of labels and students or, with --protocol own, its own. Different from
RDED's code: images and crops follow from the seed; observers take images normalised by their dataset's mean and std
(RDED: ImageNet's for all); files are JPEG of quality 95, then PNG (RDED: JPEG of 75). Left out: labels made while the
student trains, and the second forward in training mode, for a log, by which a student's running statistics there are
updated twice a step.
"""

from pathlib import Path

from utils.data.table import Dataset
from utils.recipes.base import Recipe, base

METHOD = "rded"
OWN_PATCHES = Path("{patch_dir}/{dataset}/rded_ipc{ipc}")  # tiles differ by IPC


# Learning rates of students; all others have 0.001.
RATES = {"EfficientNet": 0.002, "MobileNetV2": 0.0025, "AlexNet": 0.0001}


def own_protocol(recipe: Recipe, dataset: Dataset, ipc: int) -> Recipe:
    """Labels and students as in its code: teachers in eval mode, batches by IPC, crops of at least 1 / factor of the
    area: the whole image where it has no tiles.

    Labels are a store of as many epochs in float16, where its code makes them while the student trains. Its batches are
    of IPC 1, 10 and 50; an IPC between takes the next one's, a higher one that of 50. As in all protocols here, the
    result is the last epoch's (its own: the best tested), and images of 64 pixels are tested whole (its own: cropped).
    """
    batch = 10 if ipc == 1 else 50 if ipc <= 10 else 100
    if dataset.num_classes >= 100:
        batch = 100 if dataset.size == 64 else 2 * batch
    epochs, batch = 300, min(batch, dataset.num_classes * ipc)
    if dataset.name == "fashion_mnist":
        epochs, batch = recipe.validate.epochs, recipe.validate.batch_size
    recipe = recipe.set(epochs=epochs, batch_size=batch, min_scale=1 / recipe.patches.factor, labels="own")
    rate = RATES.get(recipe.validate.model, 0.001)
    return recipe.set_in("relabel", eval_mode="T").set_in("validate", adamw_lr=rate, eta=2.0, accumulation=1)


def recipe(dataset: Dataset, ipc: int) -> Recipe:
    teacher = "ConvNetBN_W64" if dataset.name == "fashion_mnist" else "ResNet18"
    tiles = 2 if dataset.size == 224 else 1
    return (
        base(dataset, ipc)
        .set(teachers=(teacher,), sizes=(), budgets=(), alpha=1.0, selector="easy", tiles=tiles, patch_dir=OWN_PATCHES)
        .set_in(
            "patches",
            factor=tiles,
            tile_stride=ipc,
            patches_per_class=ipc,
            crop_area=(0.08, 1.0),
            num_crops=5,
            max_images=300,
        )
    )

"""EDC: elucidating the design space of dataset condensation (Shao et al., NeurIPS 2024, arXiv 2404.13733).

Real patches, RDED's, are optimised for few iterations as G-VBSM optimises noise; statistics are matched half to those
of all real images and half to those of the batch's classes.

    bash run.sh imagenet1k edc 10 ResNet18

FADRM's table 2 has, for ResNet18 at IPC 1, 10, 50: cifar100 39.7, 63.7, 68.6 %; tiny_imagenet 39.2, 51.2, 57.2;
imagenet1k 12.8, 48.6, 58.0. Here: the engine, RDED's patches, statistics by class beside those of all, under FADRM's
protocol of labels and students or, with --protocol own, its own. Different from its code: the statistics of patches by
class are matched to their own (its files have mean and variance swapped); a class has as many starting patches as
images, each used once (its own are drawn with replacement from those of IPC 50); teachers are those of the dataset's
pool, as for g-vbsm, in both stages (on imagenet1k its own have AlexNet too, and label without EfficientNet); statistics
are those of a whole batch (its own: of a GPU's share). The paper's flatness term is an option, as its released scripts
leave it off: `bash run.sh imagenet1k edc:terms=cross_entropy,r_bn,flatness 10`.
"""

from dataclasses import replace

from utils.data.table import Dataset
from utils.recipes import g_vbsm, rded
from utils.recipes.base import Recipe, iterations

METHOD = "edc"


def own_protocol(recipe: Recipe, dataset: Dataset, ipc: int) -> Recipe:
    """Labels and students as in its code: weak crops, small batches, slow rates, an average of the weights tested.

    cifar10's rate falls as the others' do (its own: halved at 800, 900, 950), imagenet1k's on the cosine that its
    script asks for (its code runs a straight line to the same half); labels are a store of as many epochs, where its
    code makes them while the student trains; without RandAugment.
    """
    epochs, batch, sgd, schedule = {
        "cifar100": (1000, 50, True, "edc"),
        "cifar10": (1000, 10, False, "cosine"),
        "tiny_imagenet": (300, 100, True, "cosine"),
        "imagenet1k": (300, 100, False, "cosine"),
        "fashion_mnist": (recipe.validate.epochs, recipe.validate.batch_size, False, "cosine"),
    }.get(dataset.name, (1000, 50, False, "edc"))
    recipe = recipe.set(epochs=epochs, batch_size=min(batch, dataset.num_classes * ipc), labels="own")
    recipe = recipe.set(min_scale=0.08 if dataset.name == "cifar10" else 0.5).set_in("relabel", eval_mode="T")
    recipe = recipe.set_in("validate", loss="mse_ce", gamma=0.025, ema=0.99, accumulation=1, schedule=schedule, eta=2.0)
    if sgd:
        rates = {"sgd_lr": 0.1, "momentum": 0.875, "weight_decay": 5e-4}
        return recipe.set_in("validate", optimizer="sgd", **rates)
    return recipe.set_in("validate", adamw_lr=0.001)


def recipe(dataset: Dataset, ipc: int) -> Recipe:
    patches = rded.recipe(dataset, ipc).patches
    large = dataset.size == 224
    published = {"cifar10": 75, "imagenet1k": 1000}.get(dataset.name, 50 if large else 2000)
    settings = g_vbsm.shared(dataset, ipc).set(
        selector="easy",
        patch_dir=rded.OWN_PATCHES,
        budgets=(iterations(dataset, published),),
        r_bn=0.1 if dataset.name == "imagenet1k" else 0.01,
        class_share=0.5,
        jitter=0,
        crop_area_min=0.08 if dataset.name == "cifar10" else 0.5,
    )
    if large and dataset.num_classes == 10:
        settings = settings.set(smoothing=0.0, classes_a_batch=100)
    return replace(settings, patches=patches)

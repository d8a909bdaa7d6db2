"""EDC: elucidating the design space of dataset condensation (Shao et al., NeurIPS 2024, arXiv 2404.13733).

Real patches, RDED's, are optimised for few iterations as G-VBSM optimises noise; statistics are matched half to those
of all real images and half to those of the batch's classes.

    bash run.sh imagenet1k edc 10 ResNet18

FADRM's table 2 has, for ResNet18 at IPC 1, 10, 50: cifar100 39.7, 63.7, 68.6 %; tiny_imagenet 39.2, 51.2, 57.2;
imagenet1k 12.8, 48.6, 58.0. Here: the engine, RDED's patches, statistics by class beside those of all, under FADRM's
protocol of labels and students. Different from its code: the statistics of patches by class are matched to their own
(its files have mean and variance swapped); a class has as many starting patches as images, each used once (its own are
drawn with replacement from those of IPC 50); teachers are those of the dataset's pool, as for g-vbsm, without AlexNet.
Left out: the flatness term, which none of its released scripts turns on.
"""

from dataclasses import replace

from utils.data.table import Dataset
from utils.recipes import g_vbsm, rded
from utils.recipes.base import Recipe, iterations

METHOD = "edc"


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
    return replace(settings, patches=patches)

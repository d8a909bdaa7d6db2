"""SRe2L++: SRe2L (Yin et al., NeurIPS 2023) from real patches with batch-specific labels, the baseline of CV-DD.

FADRM without what makes it FADRM: one size, nothing merged back (alpha 1), full precision, 4000 iterations.

    bash run.sh cifar100 sre2l++ 10 ResNet18

CV-DD's ResNet18 at IPC 1, 10, 50, students trained for 300 epochs: cifar10 24.4, 42.5, 63.0 %; cifar100 13.5, 52.1,
64.0; tiny_imagenet 9.3, 46.5, 53.5; imagenet-nette 29.7, 62.4, 80.3; imagenet1k 8.6, 43.1, 57.6. Here: the whole
method, under FADRM's protocol of labels and students or, with --protocol own, CV-DD's. Left out: CV-DD saves JPEG files
and truncates to 8 bits; these are PNG, rounded. It distils IPC 50 and takes IPC 1 and 10 from it, which is what a run
at IPC 1 or 10 gives here too, since an image depends on its index alone.
"""

from utils.data.table import Dataset
from utils.recipes import cv_dd
from utils.recipes.base import Recipe, base, iterations

METHOD = "sre2l++"
own_protocol = cv_dd.own_protocol


def recipe(dataset: Dataset, ipc: int) -> Recipe:
    teacher = "ConvNetBN_W64" if dataset.name == "fashion_mnist" else "ResNet18"
    settings = base(dataset, ipc).set(teachers=(teacher,), budgets=(iterations(dataset, 4000),), alpha=1.0)
    return settings.set_in("recover", amp="off")

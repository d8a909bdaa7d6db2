"""FADRM: data residual matching with one teacher (Cui et al., NeurIPS 2025, arXiv 2506.24125).

Real patches are optimised against ResNet18 in stages of alternating size; between two stages the patch is mixed back
in.

    bash run.sh cifar100 fadrm 10 ResNet18

The paper's ResNet18 at IPC 1, 10, 50 (table 2; imagenet1k of the camera-ready): cifar100 31.8, 67.4, 71.0 %;
tiny_imagenet 28.6, 48.9, 56.4; imagenet-nette 36.2, 64.8, 83.6; imagewoof 21.0, 44.5, 72.3; imagenet1k 9.0, 48.4, 60.1.
The published scripts are of IPC 50; here IPC 1 and 10 take their settings.
"""

from utils.data.table import Dataset
from utils.recipes.base import Recipe, base, iterations

METHOD = "fadrm"


def shared(dataset: Dataset, ipc: int) -> Recipe:
    """What FADRM and FADRM+ have in common."""
    sizes = (200, 224, 200, 224) if dataset.size == 224 else (dataset.size,) * 4
    return base(dataset, ipc).set(sizes=sizes, budgets=(iterations(dataset, 500),) * 4, alpha=0.5)


def recipe(dataset: Dataset, ipc: int) -> Recipe:
    settings = shared(dataset, ipc)
    if dataset.name == "fashion_mnist":
        return settings.set(teachers=("ConvNetBN_W64",))
    settings = settings.set(teachers=("ResNet18",))
    if dataset.name == "tiny_imagenet":
        return settings.set(sizes=(64, 64), budgets=(500, 500), lr=0.01, eval_mode="T")
    if dataset.name == "imagenet-nette":
        return settings.set(lr=0.05)
    return settings

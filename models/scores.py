"""How far a network was from each training image's class after every epoch of its training: what CAD-Prune goes by.

<pool>/<Name>.scores.safetensors    EL2N scores, epochs x images (float16), the images by class and name
"""

from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from models.teacher_data import DecodedImages, ResidentImages
from utils.data.images import normalise
from utils.data.table import Dataset
from utils.recipes import file_name
from utils.run.errors import UserError
from utils.run.files import read_bytes, reading, safetensors_header, write_safetensors


def scores_path(pool: Path, name: str) -> Path:
    return pool / f"{file_name(name)}.scores.safetensors"


@torch.no_grad()
def el2n(network: nn.Module, images: ResidentImages | DecodedImages, dataset: Dataset) -> Tensor:
    """||softmax - class||_2 for every training image as it is (Paul et al. 2021): float16, N, on the CPU. Leaves the
    network in eval mode."""
    network.eval()
    found = []
    for pixels, labels in images.as_they_are():
        errors = network(normalise(pixels, dataset)).float().softmax(dim=1)
        errors[torch.arange(len(labels), device=errors.device), labels] -= 1
        found.append(errors.norm(dim=1).half().cpu())
    return torch.cat(found)


def write_scores(pool: Path, name: str, scores: Tensor, images_sha256: str) -> None:
    """scores: epochs x images; images_sha256: of the training images that they are of."""
    write_safetensors(scores_path(pool, name), {"el2n": scores}, {"train_images_sha256": images_sha256})


def read_scores(pool: Path, name: str, images_sha256: str) -> Tensor:
    """Float32, epochs x images. UserError where there are none, or of other images."""
    path = scores_path(pool, name)
    if not path.exists():
        raise UserError(
            f"{path} is missing: train {name} with models.pretrain --keep-scores; where it is trained already, into "
            "another --model-pool-dir, which is then named here"
        )
    header = safetensors_header(path)
    if header is None or header[1].get("train_images_sha256") != images_sha256:
        raise UserError(f"{path} is of other training images, or damaged: train {name} with --keep-scores again")
    with reading(path, f"train {name} with --keep-scores again"):
        return safetensors.torch.load(read_bytes(path))["el2n"].float()

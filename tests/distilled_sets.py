"""A finished distilled set of fashion_mnist at the places of config.sh: ten images, labels of two epochs, results."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from models.checkpoints import save_state
from models.registry import build_network
from relabel import relabel
from utils.data.distilled import distilled_path, write_distilled
from utils.data.table import get_dataset
from validate import validate

FASHION = get_dataset("fashion_mnist")
WORDS = ("t-shirt-or-top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle-boot")
NAMES = [f"{label}_{word}" for label, word in enumerate(WORDS)]  # of the class folders
STUDENT = "ConvNetBN_W32"
CELL = f"--dataset-name fashion_mnist --recipe fadrm --ipc 1 --epochs 1 --device cpu --model {STUDENT}".split()


def config_at(patch: pytest.MonkeyPatch, root: Path) -> None:
    """Set the variables of config.sh to folders of `root`, and lay out a validation image of each class."""
    for variable, folder in {"Main_Data_Path": "", "train_dir": "train", "val_dir": "val"}.items():
        patch.setenv(variable, str(root / folder))
    for label, name in enumerate(NAMES):
        (root / "val" / "fashion_mnist" / name).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), (25 * label,) * 3).save(root / "val" / "fashion_mnist" / name / "0.png")


def pixels(count: int) -> torch.Tensor:
    """Noise of every value: uint8, count x 3 x 32 x 32."""
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (count, 3, 32, 32), dtype=np.uint8))


def make_set(root: Path) -> None:
    """Make images, labels and a result of recipe fadrm at IPC 1; `config_at` was there before."""
    images = root / "generated_data" / "syn_data" / "fashion_mnist" / "fadrm_ipc1"
    write_distilled([distilled_path(images, 10, label, 0) for label in range(10)], pixels(10), "digest")
    (images / "settings.json").write_text(json.dumps({"dataset_name": "fashion_mnist", "alpha": 0.5}))
    report = {"made": 10, "seconds": 3.0, "device": "cpu", "versions": {"torch": "2.9"}, "peak_memory_gib": 0.1}
    (images / "report.json").write_text(json.dumps({**report, "files": {"contact sheet": f"{root}/contact.png"}}))
    pool = root / "pretrained_models" / "fashion_mnist_pretrained_models"
    pool.mkdir(parents=True)
    torch.manual_seed(0)
    save_state(pool / "ConvNetBN_W64.safetensors", build_network("ConvNetBN_W64", FASHION))
    for labels in ("views", "fixed"):
        relabel.main([*CELL[:-2], "--labels", labels])
    validate.main([*CELL, "--workers", "0"])


def images_of(root: Path, name: str = "fadrm_ipc1") -> Path:
    return root / "generated_data" / "syn_data" / "fashion_mnist" / name


def labels_of(root: Path, name: str = "fadrm_bs10_ipc1") -> Path:
    return root / "generated_data" / "new_labels" / "fashion_mnist" / name


def result_of(root: Path, seed: int = 0) -> dict:
    folder = root / "generated_data" / "validate_output" / "fashion_mnist" / f"fadrm_ipc1_{STUDENT}"
    return json.loads((folder / f"seed{seed}" / "result.json").read_text())

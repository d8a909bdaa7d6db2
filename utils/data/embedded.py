"""fashion_mnist: the images that ship with the project (a subset, see embedded/NOTICE), laid out on first use."""

import os
from pathlib import Path

import numpy as np

from utils.data.layout import is_absent, lay_out
from utils.data.table import Dataset

NAME = "fashion_mnist"
FILE = Path(__file__).parent / "embedded" / "fashion_mnist_mini.npz"
PADDING = 2  # pixels of zeros on each side: 28 become 32


def ensure_embedded(dataset: Dataset, **folders: Path) -> None:
    """Lay out the embedded images where they are the dataset and its folder in config.sh is absent. folders: train,
    val."""
    for split, root in folders.items():
        place = os.environ.get(f"{split}_dir")
        if dataset.name == NAME and place and root == Path(place) / NAME and is_absent(root):
            with np.load(FILE) as arrays:
                images = np.pad(arrays[f"{split}_images"], ((0, 0), (PADDING, PADDING), (PADDING, PADDING)))
                lay_out(images, arrays[f"{split}_labels"].tolist(), arrays["classes"].tolist(), root)

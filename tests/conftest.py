"""Fixtures that tests of several folders share."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import safetensors.torch
import torch
from PIL import Image

from utils.errors import run_entry

GOLDEN = Path(__file__).parent / "golden"


def relative_difference(got: torch.Tensor, expected: torch.Tensor) -> float:
    """max |a - b| / max |b|, the measure of every golden agreement."""
    return ((got.double() - expected.double()).abs().max() / expected.double().abs().max()).item()


@pytest.fixture(scope="session")
def golden():
    """Load a golden file by name: a dict of tensors."""

    def load(name: str) -> dict[str, torch.Tensor]:
        return safetensors.torch.load_file(GOLDEN / f"{name}.safetensors")

    return load


@pytest.fixture(scope="session")
def relative():
    return relative_difference


class World(NamedTuple):
    """A small world of real files: two teachers, patches and validation images of fashion_mnist (10 classes, 32 px)."""

    root: Path
    pool: Path
    patches: Path
    val: Path

    def recover(self, *extra: str, name: str = "images") -> list[str]:
        """Arguments of a short recover run: two image indices, two class batches, two stages of 3 iterations."""
        words = "--dataset-name fashion_mnist --initialisation-method Patches --teacher-model-list ShuffleNetV2"
        words += " --input-size-lis 24 32 --optimization-budgets 3 3 --alpha 0.5 --batch-size 5 --ipc-end 2"
        places = ["--syn-data-path", f"{self.root}/syn", "--exp-name", name]
        places += ["--patch-dir", str(self.patches), "--model-pool-dir", str(self.pool)]
        return [*words.split(), "--device", "cpu", "--apply-data-augmentation", *places, *extra]

    def relabel(self, *extra: str, images: str = "images", labels: str = "labels") -> list[str]:
        """Arguments of a short relabel run: 20 images, three epochs, batches of 8 (the last one of 4)."""
        words = "--dataset-name fashion_mnist --teacher-model-name ShuffleNetV2 --epochs 3 -b 8 --mix-type cutmix"
        places = ["--syn-data-path", f"{self.root}/syn/{images}", "--fkd-path", f"{self.root}/fkd/{labels}"]
        return [*words.split(), "--use-fp16", "--device", "cpu", *places, "--model-pool-dir", str(self.pool), *extra]

    def validate(self, *extra: str, images: str = "images", labels: str = "labels", name: str = "run") -> list[str]:
        """Arguments of a short validate run: three epochs, each of them tested."""
        words = (
            "--dataset-name fashion_mnist --model ConvNetBN_W32 --epochs 3 --batch-size 8 -T 20 --test-every 1 --cos"
        )
        words += " --gradient-accumulation-steps 2 --adamw-lr 0.001 --eta 1 --workers 0 --device cpu"
        places = [
            "--original-data-path",
            f"{self.root}/syn/{images}",
            "--fkd-path",
            f"{self.root}/fkd/{labels}_bs8_ipc2",
        ]
        places += ["--val-dir", str(self.val), "--output-dir", f"{self.root}/results", "--exp-name", name]
        return [*words.split(), *places, *extra]


def save_image(path: Path, pixels: torch.Tensor) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(path)


@pytest.fixture
def world(tmp_path, golden) -> World:
    pool, patches, val = tmp_path / "pool", tmp_path / "patches", tmp_path / "val"
    pool.mkdir()
    shutil.copy(GOLDEN / "teacher_a.safetensors", pool / "ShuffleNetV2.safetensors")
    pictures = golden("recover_single")["patches"]
    for index, picture in enumerate(pictures):
        for ipc_id in range(2):
            patch = picture.flip(-1) if ipc_id else picture
            save_image(patches / "medium" / f"{index:05d}" / f"class{index:05d}_id{ipc_id:05d}.png", patch)
            save_image(val / f"{index}_class" / f"{ipc_id}.png", patch)
    return World(tmp_path, pool, patches, val)


@pytest.fixture
def refusal(capsys) -> Callable[..., str]:
    """Run an entry point that must refuse: exit status 2, one line on stderr and no traceback. Returns the line."""

    def run(main: Callable[[list[str]], None], arguments: list[str]) -> str:
        with pytest.raises(SystemExit) as stopped:
            run_entry(lambda: main(arguments))
        assert stopped.value.code == 2
        error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert len(error) == 1
        return error[0]

    return run


def files_below(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by its path in it, reports with times and devices aside."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "report.json"
    }


@pytest.fixture(scope="session")
def contents() -> Callable[[Path], dict[str, bytes]]:
    return files_below

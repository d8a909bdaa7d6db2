"""Fixtures that tests of several folders share."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
import safetensors.torch
import torch
from PIL import Image

from utils.run.errors import run_entry

GOLDEN = Path(__file__).parent / "golden"
ROOT = Path(__file__).parents[1]


def relative_difference(got: torch.Tensor, expected: torch.Tensor) -> float:
    """max |a - b| / max |b|, the measure of every golden agreement."""
    return ((got.double() - expected.double()).abs().max() / expected.double().abs().max()).item()


@pytest.fixture(scope="session", autouse=True)
def one_process() -> Iterator[None]:
    """The launcher starts one process for a test that says nothing else, on a machine of several GPUs too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FADRM_PROCESSES", "1")
        yield


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

    def validate(
        self, *extra: str, images: str = "images", labels: str = "labels", ipc: int | str = 2, name: str = "run"
    ) -> list[str]:
        """Arguments of a short validate run: three epochs, each of them tested."""
        words = (
            "--dataset-name fashion_mnist --model ConvNetBN_W32 --epochs 3 --batch-size 8 -T 20 --test-every 1 --cos"
        )
        words += " --gradient-accumulation-steps 2 --adamw-lr 0.001 --eta 1 --workers 0 --device cpu"
        places = [
            "--original-data-path",
            f"{self.root}/syn/{images}",
            "--fkd-path",
            f"{self.root}/fkd/{labels}_bs8_ipc{ipc}",
        ]
        places += ["--val-dir", str(self.val), "--output-dir", f"{self.root}/results", "--exp-name", name]
        return [*words.split(), *places, *extra]


def save_image(path: Path, pixels: torch.Tensor) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(path)


def make_world(root: Path) -> World:
    pool, patches, val = root / "pool", root / "patches", root / "val"
    pool.mkdir()
    shutil.copy(GOLDEN / "teacher_a.safetensors", pool / "ShuffleNetV2.safetensors")
    pictures = safetensors.torch.load_file(GOLDEN / "recover_single.safetensors")["patches"]
    for index, picture in enumerate(pictures):
        for ipc_id in range(2):
            patch = picture.flip(-1) if ipc_id else picture
            save_image(patches / "medium" / f"{index:05d}" / f"class{index:05d}_id{ipc_id:05d}.png", patch)
            save_image(val / f"{index}_class" / f"{ipc_id}.png", patch)
    return World(root, pool, patches, val)


@pytest.fixture
def world(tmp_path) -> World:
    return make_world(tmp_path)


@pytest.fixture(scope="module")
def lasting_world(tmp_path_factory) -> World:
    """A world for all tests of a module, which leave it as it is."""
    return make_world(tmp_path_factory.mktemp("world"))


def screen(text: str) -> list[str]:
    """The lines that a terminal shows of `text` in the end: a carriage return goes back to the start of its line."""
    lines = []
    for line in text.split("\n"):
        shown = ""
        for part in line.split("\r"):
            shown = part + shown[len(part) :]
        lines.append(shown.rstrip())
    return [line for line in lines if line]


@pytest.fixture
def refusal(capsys) -> Callable[..., str]:
    """Run an entry point that must refuse: exit status 2, no traceback, one line on stderr beside the progress bars.

    Returns that line, which is the last on the screen and none of a bar's.
    """

    def run(main: Callable[[list[str]], None], arguments: list[str]) -> str:
        with pytest.raises(SystemExit) as stopped:
            run_entry(lambda: main(arguments))
        assert stopped.value.code == 2
        errors = capsys.readouterr().err
        lines = screen(errors)
        assert [line for line in lines if line.startswith("error: ")] == lines[-1:]
        assert errors.endswith(f"{lines[-1]}\n") and "Traceback" not in errors
        return lines[-1]

    return run


class Usage(NamedTuple):
    """What shutil.disk_usage answers."""

    total: int
    used: int
    free: int


@pytest.fixture
def small_disk(monkeypatch) -> Callable[[int], None]:
    """Let every disk seem to have so many bytes free."""
    return lambda free: monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(free, 0, free))


def files_below(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by its path in it; reports with times and devices, and hidden files, aside."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "report.json" and not path.name.startswith(".")
    }


@pytest.fixture(scope="session")
def contents() -> Callable[[Path], dict[str, bytes]]:
    return files_below


class Ended(NamedTuple):
    """A process that ended: its exit status and what it wrote."""

    status: int
    output: str
    errors: str


class Processes:
    """Processes of their own: Python from the root of the project, with as many threads as this one."""

    @staticmethod
    def start(*words: str, before: Sequence[str] = (), **environment: str) -> subprocess.Popen[bytes]:
        """Start `python WORDS`; before: a command that runs it; environment: variables to change."""
        known = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(torch.get_num_threads())}
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen([*before, sys.executable, *words], env=known | environment, cwd=ROOT, **pipes)

    @staticmethod
    def wait(process: subprocess.Popen[bytes]) -> Ended:
        output, errors = process.communicate(timeout=120)
        return Ended(process.returncode, output.decode(), errors.decode())

    screen = staticmethod(screen)

    @classmethod
    def run(cls, *words: str, before: Sequence[str] = (), **environment: str) -> Ended:
        return cls.wait(cls.start(*words, before=before, **environment))


@pytest.fixture(scope="session")
def processes() -> type[Processes]:
    return Processes

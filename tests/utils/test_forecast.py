"""Counts, files and bytes, known before anything is made."""

import io
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from models.registry import build_network
from utils import fkd, forecast
from utils.datasets import get_dataset
from utils.distributed import Team
from utils.errors import UserError
from utils.training_state import save_training

FASHION, IMAGENET = get_dataset("fashion_mnist"), get_dataset("imagenet1k")
VIEWS = fkd.ViewSettings(37, 32, 8, 3, 0.08, 1.0, "cutmix", 1.0, 42, 42)


@pytest.mark.parametrize("kind", ["float16", "float32"])
@pytest.mark.parametrize(("images", "batch", "classes"), [(37, 8, 10), (1, 1, 2), (100, 100, 1000), (1001, 10, 7)])
def test_an_epoch_has_the_bytes_that_are_forecast(tmp_path, kind, images, batch, classes):
    views = replace(VIEWS, images=images, batch_size=batch)
    logits = torch.zeros(images, classes, dtype=getattr(torch, kind))
    fkd.write_epoch(tmp_path, 0, fkd.draw_epoch(views, 0), logits)
    assert forecast.epoch_bytes(views, classes, kind) == fkd.epoch_path(tmp_path, 0).stat().st_size


def test_a_label_store_costs_less_than_2c_and_24_bytes_an_image_and_epoch():
    for classes, ipc in ((10, 10), (1000, 50), (10450, 50)):
        views = replace(VIEWS, images=classes * ipc, batch_size=16)
        assert forecast.epoch_bytes(views, classes, "float16") / views.images < 2 * classes + 24


@pytest.mark.parametrize("size", [32, 64, 224])
def test_a_png_is_never_larger_than_its_bound(size):
    noise = torch.randint(0, 256, (size, size, 3), dtype=torch.uint8).numpy()
    info = PngInfo()
    info.add_text("made with", "f" * 64)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, format="PNG", pnginfo=info)
    assert 0.85 < file.tell() / forecast.png_bytes(size) <= 1


@pytest.mark.parametrize("moments", [1, 2])
@pytest.mark.parametrize("name", ["ConvNetBN_W32", "ShuffleNetV2", "ResNet18"])
def test_a_checkpoint_is_no_larger_than_its_bound(tmp_path, name, moments):
    network = build_network(name, FASHION)
    adam, sgd = torch.optim.AdamW(network.parameters()), torch.optim.SGD(network.parameters(), 0.1, momentum=0.5)
    optimiser = adam if moments == 2 else sgd
    network(torch.zeros(2, 3, 32, 32)).sum().backward()
    optimiser.step()
    save_training(tmp_path / "c", {}, {"student": network.state_dict(), "optimiser": optimiser.state_dict()})
    bound = forecast.checkpoint_bytes(name, FASHION, moments)
    assert bound / 2 < (tmp_path / "c").stat().st_size <= bound


def test_files_take_whole_blocks():
    assert [forecast.blocks(size) for size in (0, 1, 4096, 4097)] == [0, 4096, 4096, 8192]
    assert forecast.recover_output(100, 10, FASHION).disk > 110 * 4096


def test_what_has_nothing_to_make_needs_nothing():
    nothing = (0, 0, 0)
    assert forecast.recover_output(0, 0, FASHION) == nothing
    assert forecast.relabel_output(0, VIEWS, FASHION, "float16") == nothing
    assert forecast.validate_output([], [], 0) == nothing


def test_processes_have_checkpoints_at_the_same_time():
    one, two, ten = (
        forecast.validate_output([4096, 40960, 1], [10, 10, 10], 2, processes).disk for processes in (1, 2, 10)
    )
    assert two - one == 2 * 4096  # the largest first
    assert ten - one == 4 * 4096  # three students keep three processes busy


def test_iterations_of_each_teacher_at_each_size():
    # teachers take turns over the whole run: a b a | b a b | a b
    found = forecast.iterations_by((24, 32, 24), (3, 3, 2), ("a", "b"))
    assert found == {(24, "a"): 3, (24, "b"): 2, (32, "a"): 1, (32, "b"): 2}
    assert forecast.iterations_by((32,), (4,), ("a", "a")) == {(32, "a"): 4}


@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_the_slowest_share_is_one_of_a_teams(count):
    costs = [5.0, 0.0, 1.0, 7.0, 2.0]
    assert forecast.slowest_share(costs, count) == max(sum(Team(rank, count, 0).share(costs)) for rank in range(count))


def test_free_bytes_of_folders_that_are_not_there_yet(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    free = shutil.disk_usage(tmp_path).free
    for folder in (tmp_path / "a/b/c", Path("a/b"), Path("a")):
        assert forecast.free_bytes(folder) == pytest.approx(free, rel=0.1)


def test_what_does_not_fit_is_refused_with_folder_needed_and_free_bytes(tmp_path, small_disk):
    small_disk(1234)
    forecast.require_space(tmp_path, forecast.Output(1, 1, 1234))
    with pytest.raises(UserError, match=r"no space for .*/new: it needs up to 1,235 bytes, its disk has 1,234 free"):
        forecast.require_space(tmp_path / "new", forecast.Output(1, 1, 1235))


def test_bytes_in_words():
    shown = [forecast.in_bytes(size) for size in (0, 999, 1000, 999_499, 999_500, 30_345_678_901, 3.28e12)]
    assert shown == ["0 bytes", "999 bytes", "1 kB", "999 kB", "1 MB", "30.3 GB", "3.28 TB"]


def test_the_stages_of_a_recipe():
    recover, relabel, validate = forecast.by_recipe(IMAGENET, "fadrm+", 50).values()
    assert recover.work == {"images": 50_000, "class batches": 500, "iterations": 1_000_000}
    assert recover.output.files == 50_003
    assert recover.output.size == pytest.approx(50_000 * 3 * 224**2, rel=0.02)
    assert relabel.work == {"epochs": 300, "views": 15_000_000, "forwards": 60_000_000}
    assert relabel.output.files == 303
    assert 2000 < relabel.output.size / 15_000_000 < 2024
    assert validate.work == {"views": 15_000_000, "steps": 937_500, "test images": 1_500_000}
    assert validate.held.host > 50_000 * 3 * 224**2 * 2  # distilled and real images


def test_another_number_of_classes_by_the_recipe_of_a_dataset(capsys):
    forecast.main(["--num-classes", "10450", "--size", "224", "--ipc", "50"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == ("recipe of imagenet1k, fadrm+, IPC 50; 10,450 classes, 224 pixels, 522,500 validation images")
    assert lines[1] == "recover: 522,500 images, 5,250 class batches, 10,500,000 iterations"
    assert "303, 3.28 TB" in lines[5]
    assert len(lines) == 10


def test_a_dataset_and_student_of_ones_own_choice(capsys):
    forecast.main(
        ["--dataset", "cifar100", "--method", "fadrm", "--ipc", "10", "--model", "ResNet50", "--val-images", "7"]
    )
    assert "100 classes, 32 pixels, 7 validation images" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--dataset mnist --ipc 1", "unknown dataset 'mnist'"),
        ("--method magic --ipc 1", "magic"),
        ("--ipc 0", "IPC 0"),
        ("--ipc 1 --num-classes 0", "from 1 up"),
        ("--ipc 1 --model Resnet", "unknown network"),
        ("", "--ipc"),
    ],
)
def test_what_cannot_be_is_refused(refusal, capsys, words, message):
    assert message in refusal(forecast.main, words.split())
    assert capsys.readouterr().out == ""

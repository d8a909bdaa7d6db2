"""Training teachers: what is left beside a checkpoint, going on after a kill, downloaded checkpoints, bad input."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from models import pretrain
from models.checkpoints import load_teacher
from models.registry import build_network
from models.teacher_data import Part
from models.teacher_training import make_optimiser, train_epoch
from utils import recipes
from utils.datasets import get_dataset
from utils.errors import UserError
from utils.files import sha256_of

ROOT = Path(__file__).parents[2]
FASHION = get_dataset("fashion_mnist")
NAME = "ConvNetBN_W32"


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Training and validation folders of ten easy classes: one grey value each, brighter or darker by image."""
    folder = tmp_path_factory.mktemp("images")
    for split, count in (("train", 7), ("val", 2)):
        for class_index in range(10):
            (folder / split / f"{class_index}").mkdir(parents=True)
            for index in range(count):
                value = 25 * class_index + 2 * index
                Image.new("RGB", (32, 32), (value,) * 3).save(folder / split / f"{class_index}" / f"{index}.png")
    return folder


@pytest.fixture
def command(images, tmp_path):
    words = (
        f"--dataset-name fashion_mnist --model {NAME} --train-dir {images}/train --val-dir {images}/val --workers 0 "
    )
    words += f"--model-pool-dir {tmp_path}/pool --epochs 2 --batch-size 23 --device cpu"
    return words.split()


def record_of(folder, name=NAME):
    return json.loads((folder / f"{name}.json").read_text())


def test_a_teacher_and_its_record(command, tmp_path, capsys):
    printed = run(command, capsys)
    pool = tmp_path / "pool"
    record = record_of(pool)
    assert record["source"] == "trained" and record["dataset"] == "fashion_mnist" and record["epochs"] == 2
    assert record["sha256"] == sha256_of(pool / f"{NAME}.safetensors")
    assert record["settings"]["batch_size"] == 23 and record["settings"]["optimizer"] == "adam"
    assert 0 <= record["top1"] <= record["top5"] <= 100 and record["seconds"] > 0
    assert f"{NAME} (trained): top-1 {record['top1']:.2f} %" in printed
    assert "--batch-size 23" in printed and "--weight-decay" in printed  # the settings that were resolved
    assert load_teacher(NAME, FASHION, pool, "offline").sha256 == record["sha256"]
    assert sorted(path.name for path in pool.iterdir()) == [f"{NAME}.json", f"{NAME}.safetensors", "report.json"]


def run(command, capsys):
    capsys.readouterr()
    pretrain.main(command)
    return capsys.readouterr().out


def test_it_learns(command, tmp_path):
    pretrain.main([*command, "--epochs", "25", "--lr", "0.01", "--test-every", "10"])
    record = record_of(tmp_path / "pool")
    assert record["top1"] >= 40  # of ten classes
    assert [test["epoch"] for test in record["tests"]] == [10, 20, 25]


def test_the_seed_decides(command, tmp_path):
    for folder, seed in (("a", "0"), ("b", "0"), ("c", "1")):
        pretrain.main([*command, "--seed", seed, "--epochs", "1", "--model-pool-dir", str(tmp_path / folder)])
    first, same, other = (sha256_of(tmp_path / folder / f"{NAME}.safetensors") for folder in "abc")
    assert first == same != other


def test_several_models_one_after_another_with_sgd(command, tmp_path):
    names = ["--model", NAME, "ConvNetBN_W64", "--optimizer", "sgd", "--epochs", "1"]
    pretrain.main([*command, *names])
    assert record_of(tmp_path / "pool")["model"] == NAME
    assert record_of(tmp_path / "pool", "ConvNetBN_W64")["settings"]["momentum"] == 0.9


def test_a_killed_training_goes_on_to_the_same_file(command, tmp_path):
    command = [*command, "--epochs", "40"]
    pretrain.main([*command, "--model-pool-dir", str(tmp_path / "whole")])
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    process = subprocess.Popen([sys.executable, "-m", "models.pretrain", *command], cwd=ROOT, env=environment)
    unfinished = tmp_path / "pool" / f"{NAME}.training.pt"
    while not unfinished.exists():
        assert process.poll() is None, "the training ended before it could be killed"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert 1 <= torch.load(unfinished, weights_only=True)["state"]["epoch"] < 40
    pretrain.main(command)
    whole, resumed = (tmp_path / folder / f"{NAME}.safetensors" for folder in ("whole", "pool"))
    assert whole.read_bytes() == resumed.read_bytes()
    assert not unfinished.exists()
    assert record_of(tmp_path / "whole")["tests"] == record_of(tmp_path / "pool")["tests"]


def test_stopped_between_checkpoint_and_record(command, tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(pretrain.teacher_records, "write_record", stop)
        pretrain.main(command)
    pretrain.main(command)
    assert record_of(tmp_path / "pool")["source"] == "trained"


def test_a_trained_teacher_is_not_trained_again(command, tmp_path, capsys):
    pretrain.main(command)
    kept = (tmp_path / "pool" / f"{NAME}.safetensors").stat().st_mtime_ns
    elsewhere = ["--train-dir", "nowhere", "--val-dir", "nowhere"]  # images are not needed
    assert "everything was there already" in run([*command, *elsewhere], capsys)
    assert (tmp_path / "pool" / f"{NAME}.safetensors").stat().st_mtime_ns == kept
    with pytest.raises(UserError, match=r"trained with other settings: lr \([\d.]+ there, 0.5 here\)"):
        pretrain.main([*command, "--lr", "0.5"])


def test_a_downloaded_checkpoint_is_kept_and_tested(command, tmp_path, capsys):
    pool = tmp_path / "pool"
    pool.mkdir()
    torch.save(build_network(NAME, FASHION).state_dict(), pool / f"{NAME}.pth")
    before = sha256_of(pool / f"{NAME}.pth")
    assert f"{NAME} (downloaded): top-1" in run([*command, "--train-dir", "nowhere"], capsys)
    record = record_of(pool)
    assert record["source"] == "downloaded" and record["checkpoint"] == f"{NAME}.pth" and record["sha256"] == before
    assert "everything was there already" in run([*command, "--val-dir", "nowhere", "--lr", "0.7"], capsys)

    torch.save(build_network(NAME, FASHION).state_dict(), pool / f"{NAME}.pth")  # another one in its place
    pretrain.main(command)
    assert record_of(pool)["sha256"] == sha256_of(pool / f"{NAME}.pth") != before


def test_a_download_beside_an_unfinished_training_is_refused(command, tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(pretrain, "network_accuracy", stop)
        pretrain.main([*command, "--test-every", "2", "--epochs", "3"])
    assert (tmp_path / "pool" / f"{NAME}.training.pt").exists()
    with pytest.raises(UserError, match=r"begun with other settings: epochs \(3 there, 2 here\)"):
        pretrain.main(command)
    torch.save(build_network(NAME, FASHION).state_dict(), tmp_path / "pool" / f"{NAME}.pth")
    with pytest.raises(UserError, match="beside a training that has not ended"):
        pretrain.main([*command, "--epochs", "3"])


def test_a_loss_that_is_not_finite_stops_at_its_iteration(command, images):
    with pytest.raises(UserError, match=r"the loss became (nan|inf) at epoch \d, iteration \d+: lower --lr"):
        pretrain.main([*command, "--optimizer", "sgd", "--lr", "1e30"])


def test_the_first_iteration_that_is_not_finite_is_named():
    network = build_network(NAME, FASHION)
    settings = {"optimizer": "sgd", "lr": 1e-3, "momentum": 0.9, "weight_decay": 0}
    labels = torch.zeros(4, dtype=torch.int64)
    pixels = torch.zeros(4, 3, 32, 32, dtype=torch.uint8)

    def batches():
        for iteration in range(6):
            if iteration == 3:
                torch.nn.init.constant_(next(network.parameters()), float("nan"))
            yield Part(pixels, labels, 1.0)

    with (
        pretrain.tqdm(disable=True) as progress,
        pytest.raises(UserError, match="the loss became nan at epoch 7, iteration 3"),
    ):
        train_epoch(network, make_optimiser(network, settings), batches(), FASHION, 7, progress)


def test_a_full_disk_leaves_no_checkpoint(command, tmp_path, monkeypatch):
    def full(self, _):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError) as caught:
        pretrain.main(command)
    assert caught.value.filename.endswith(f"{NAME}.training.pt")
    assert list((tmp_path / "pool").iterdir()) == []


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--dataset-name nothing", "unknown dataset 'nothing'"),
        ("--dataset-name imagenet1k --model ResNet18", "nothing to train"),
        ("--model NoNet", "unknown network 'NoNet'"),
        ("--epochs 0", "--epochs 0: at least one"),
        ("--batch-size 1", "--batch-size 1: BatchNorm needs at least 2"),
        ("--lr 0", "--lr 0.0: it must be above 0"),
        ("--optimizer lion", "invalid choice: 'lion'"),
        ("--train-dir nowhere", "nowhere is not there"),
        ("--val-dir nowhere", "nowhere is not there"),
        ("--dataset-name cifar100 --model ResNet18", "10 class folders, cifar100 has 100"),
    ],
)
def test_bad_input(command, tmp_path, flags, message):
    with pytest.raises(UserError) as caught:
        pretrain.main([*command, *flags.split()])
    assert message in str(caught.value)
    assert not (tmp_path / "pool").exists()


def test_recipes_are_the_defaults(command):
    folders = command[command.index("--train-dir") : command.index("--epochs")]
    given = pretrain.parse(["--dataset-name", "tiny_imagenet", *folders])
    assert given.model == recipes.all_teachers("tiny_imagenet")
    settings = pretrain.settings_of(given, "ResNet18")
    assert (settings["epochs"], settings["batch_size"], settings["optimizer"]) == (50, 128, "sgd")


def test_images_of_224_pixels(images, tmp_path):
    """The set's own images may have any size; one epoch of one small network over ten of them."""
    for split in ("train", "val"):
        for class_index in range(10):
            (tmp_path / split / f"{class_index}").mkdir(parents=True)
            Image.new("RGB", (90, 70), (20 * class_index,) * 3).save(tmp_path / split / f"{class_index}" / "0.jpg")
    words = f"--dataset-name imagewoof --model ShuffleNetV2_x0_5 --train-dir {tmp_path}/train --val-dir {tmp_path}/val "
    words += f"--model-pool-dir {tmp_path}/pool --epochs 1 --workers 0 --device cpu"
    pretrain.main(words.split())
    assert record_of(tmp_path / "pool", "ShuffleNetV2_x0_5")["settings"]["batch_size"] == 64
    assert load_file(tmp_path / "pool" / "ShuffleNetV2_x0_5.safetensors")["fc.weight"].shape[0] == 10

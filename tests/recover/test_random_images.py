"""The random baseline: real images in the layout of distilled ones."""

import json

import pytest
import torch
from PIL import Image

from recover.random_images import main
from utils.datasets import get_dataset
from utils.distilled import read_distilled
from utils.errors import UserError


@pytest.fixture(scope="module")
def train_dir(tmp_path_factory):
    """Ten classes of five images; each has one grey value of its own, 10 * class + index."""
    folder = tmp_path_factory.mktemp("train")
    for class_index in range(10):
        (folder / f"{class_index}").mkdir()
        for index in range(5):
            Image.new("RGB", (32, 32), (10 * class_index + index,) * 3).save(folder / f"{class_index}" / f"{index}.png")
    return folder


@pytest.fixture
def command(train_dir, tmp_path):
    words = f"--dataset-name fashion_mnist --train-dir {train_dir} --ipc 3 --syn-data-path {tmp_path} --exp-name random"
    return [*words.split(), "--device", "cpu"]


def test_different_real_images_of_each_class(command, tmp_path):
    main(command)
    assert (tmp_path / "random" / "new009" / "class009_id002.png").is_file()
    pixels, labels, ipc = read_distilled(tmp_path / "random", get_dataset("fashion_mnist"))
    assert ipc == 3 and labels.tolist() == sorted(list(range(10)) * 3)
    values = pixels[:, 0, 0, 0].long()
    assert torch.equal(values // 10, labels)
    assert len(set(values.tolist())) == 30


def test_the_seed_and_the_class_choose(command, tmp_path):
    main(command)
    main([*command, "--exp-name", "again"])
    main([*command, "--exp-name", "fewer", "--ipc", "2"])
    main([*command, "--exp-name", "other", "--seed", "1"])
    whole, again, fewer, other = (
        {path.name: path.read_bytes() for path in (tmp_path / name).glob("*/*.png")}
        for name in ("random", "again", "fewer", "other")
    )
    assert whole == again and fewer.items() <= whole.items() and whole != other


def test_complete_images_stay_and_lost_or_damaged_ones_come_back(command, tmp_path, capsys):
    main(command)
    images = sorted((tmp_path / "random").glob("*/*.png"))
    before = [path.read_bytes() for path in images]
    kept = images[0].stat().st_mtime_ns
    images[3].unlink()
    images[4].write_bytes(before[4][:50])
    main(command)
    assert [path.read_bytes() for path in images] == before and images[0].stat().st_mtime_ns == kept
    capsys.readouterr()
    main(command)
    assert "everything was there already" in capsys.readouterr().out


def test_large_images_are_brought_to_size_as_test_images_are(tmp_path):
    for class_index in range(10):
        (tmp_path / "train" / f"{class_index}").mkdir(parents=True)
        Image.new("RGB", (300, 260), (class_index,) * 3).save(tmp_path / "train" / f"{class_index}" / "0.png")
    words = f"--dataset-name imagewoof --train-dir {tmp_path}/train --ipc 1 --syn-data-path {tmp_path} --exp-name r"
    main([*words.split(), "--device", "cpu"])
    with Image.open(tmp_path / "r" / "new007" / "class007_id000.png") as image:
        assert image.size == (224, 224) and image.getpixel((5, 5)) == (7, 7, 7)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--ipc 6", "class 0 in .* has 5 images: --ipc 6 asks for more"),
        ("--ipc 0", "--ipc 0: must be 1 or more"),
        ("--dataset-name cifar100", "10 class folders, cifar100 has 100"),
        ("--dataset-name nothing", "unknown dataset 'nothing'"),
    ],
)
def test_bad_input(command, tmp_path, flags, message):
    with pytest.raises(UserError, match=message):
        main([*command, *flags.split()])
    assert not (tmp_path / "random").exists()


def test_other_settings_into_the_same_folder_are_refused(command, tmp_path):
    main(command)
    with pytest.raises(UserError, match=r"holds images made with other settings: ipc \(3 there, 2 here\)"):
        main([*command, "--ipc", "2"])
    assert json.loads((tmp_path / "random" / "settings.json").read_text())["method"] == "random"

"""Making patches: what lies where afterwards, what is made again, what is refused."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from models.checkpoints import load_teacher, save_state
from models.registry import build_network
from recover.make_patches import main
from utils import recipes
from utils.datasets import decode, get_dataset
from utils.errors import UserError
from utils.patches import choose_crops, crop_losses, load_patches, patch_path
from utils.randomness import generator_for

FASHION = get_dataset("fashion_mnist")
OBSERVER = "ConvNetBN_W32"
IMAGES = 6  # a class


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A folder of training images (each its own random pattern) and a pool with an observer."""
    folder = tmp_path_factory.mktemp("inputs")
    generator = generator_for("images")
    for class_index in range(10):
        (folder / "train" / f"{class_index}").mkdir(parents=True)
        for index in range(IMAGES):
            coarse = torch.randint(0, 256, (8, 8, 3), dtype=torch.uint8, generator=generator).numpy()
            Image.fromarray(coarse).resize((32, 32)).save(folder / "train" / f"{class_index}" / f"{index}.png")
    torch.manual_seed(0)
    save_state(folder / "pool" / f"{OBSERVER}.safetensors", build_network(OBSERVER, FASHION))
    return folder


@pytest.fixture
def command(inputs, tmp_path):
    """The flags of a small run into an empty folder."""
    words = f"--dataset-name fashion_mnist --train-dir {inputs}/train --patch-dir {tmp_path}/patches --device cpu "
    words += f"--model-pool-dir {inputs}/pool --observer {OBSERVER} --patches-per-class 3 --num-crops 2 --batch-size 5"
    return words.split()


def contents(folder):
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "report.json")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_patches_of_every_class_in_the_published_layout(command, tmp_path):
    main(command)
    folder = tmp_path / "patches" / "medium"
    assert len(list(folder.glob("*/*.jpg"))) == 30
    for ipc_id in range(3):
        assert load_patches(tmp_path / "patches", "medium", range(10), ipc_id, FASHION).shape == (10, 3, 32, 32)
    with Image.open(patch_path(folder, 9, 2)) as image:
        assert image.format == "JPEG" and image.layer[0][1:3] == image.layer[1][1:3]  # no chroma subsampling
    record = json.loads((folder / "patches.json").read_text())
    assert record["observer"] == OBSERVER and record["num_crops"] == 2 and len(record["observer_sha256"]) == 64


def test_whole_image_patches_are_the_images_the_observer_ranks(command, inputs, tmp_path):
    whole = ["--area-min", "1", "--num-crops", "1", "--patches-per-class", str(IMAGES), "--end-index", "1"]
    observer = load_teacher(OBSERVER, FASHION, inputs / "pool", "offline").module
    images = [decode(path) for path in sorted((inputs / "train" / "0").iterdir())]
    pixels = torch.stack([torch.from_numpy(np.array(image)) for image in images]).permute(0, 3, 1, 2)
    losses = crop_losses(observer, pixels, 0, FASHION, batch_size=100)
    for difficulty in ("easy", "medium", "hard"):
        main([*command, *whole, "--patch-diff", difficulty])
        order = choose_crops(losses[:, None], difficulty, IMAGES)[:, 0]
        for ipc_id, image_index in enumerate(order.tolist()):
            patch = load_patches(tmp_path / "patches", difficulty, [0], ipc_id, FASHION)[0]
            assert (patch.int() - pixels[image_index].int()).float().abs().mean() < 3  # JPEG


def test_parts_more_and_fewer_of_them_are_the_same_patches(command, tmp_path):
    main([*command, "--workers", "1", "--patch-dir", str(tmp_path / "whole")])
    main([*command, "--start-index", "5", "--end-index", "7"])
    main([*command, "--patches-per-class", "1"])
    parts = tmp_path / "patches" / "medium"
    assert len(list(parts.glob("*/*.jpg"))) == 8 + 2 * 3
    main([*command])
    assert contents(parts) == contents(tmp_path / "whole" / "medium")
    main([*command, "--seed", "1", "--patch-dir", str(tmp_path / "other")])
    assert contents(parts) != contents(tmp_path / "other" / "medium")


def test_tiles(command, tmp_path):
    main([*command, "--factor", "2", "--end-index", "2"])
    assert load_patches(tmp_path / "patches", "medium", range(2), 2, FASHION).shape == (2, 3, 32, 32)


def test_a_complete_run_is_not_made_again_and_a_lost_patch_is(command, tmp_path, capsys):
    main(command)
    folder = tmp_path / "patches" / "medium"
    before = contents(folder)
    kept = patch_path(folder, 0, 0).stat().st_mtime_ns
    patch_path(folder, 4, 1).unlink()
    main(command)
    assert contents(folder) == before
    assert patch_path(folder, 0, 0).stat().st_mtime_ns == kept
    capsys.readouterr()
    main(command)
    assert "everything was there already" in capsys.readouterr().out


def test_other_settings_into_the_same_folder_are_refused(command):
    main([*command, "--end-index", "1"])
    with pytest.raises(UserError, match=r"made with other settings: num_crops \(2 there, 1 here\)"):
        main([*command, "--num-crops", "1"])


def test_downloaded_patches_are_kept(command, tmp_path, capsys):
    folder = tmp_path / "patches" / "medium"
    for class_index in range(10):
        path = patch_path(folder, class_index, 0)
        path.parent.mkdir(parents=True)
        Image.new("RGB", (32, 32)).save(path)
    main([*command, "--patches-per-class", "1", "--observer", "ResNet18"])  # no checkpoint of it is needed
    assert "patches from elsewhere" in capsys.readouterr().out
    assert not (folder / "patches.json").exists()
    with pytest.raises(UserError, match="did not make, but not 00000/class00000_id00001"):
        main(command)


def test_an_image_that_does_not_decode_is_named_and_no_class_is_half_written(command, inputs, tmp_path):
    damaged = tmp_path / "train"
    for class_index in range(10):
        (damaged / f"{class_index}").mkdir(parents=True)
        for index in range(IMAGES):
            source = inputs / "train" / f"{class_index}" / f"{index}.png"
            (damaged / f"{class_index}" / f"{index}.png").write_bytes(source.read_bytes())
    broken = damaged / "3" / "4.png"
    broken.write_bytes(broken.read_bytes()[:80])
    with pytest.raises(UserError, match=r"3/4\.png does not decode"):
        main([*command, "--train-dir", str(damaged)])
    assert sorted(path.name for path in (tmp_path / "patches" / "medium").glob("*0*")) == ["00000", "00001", "00002"]
    assert not list((tmp_path / "patches" / "medium").glob(".*"))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            "--patches-per-class 13",
            "class 0 of fashion_mnist gives 6 images x 2 crops, 13 are needed: raise --num",
        ),
        ("--max-images 1", "gives 1 images x 2 crops, 3 are needed"),
        ("--factor 3", "--factor 3 does not divide the 32 pixels"),
        ("--num-crops 0", "--num-crops 0: must be 1 or more"),
        ("--area-min 0", "must be 0 < min <= max <= 1"),
        ("--area-min 0.5 --area-max 0.4", "must be 0 < min <= max <= 1"),
        ("--start-index 4 --end-index 4", "no range of the 10 classes"),
        ("--end-index 11", "no range of the 10 classes"),
        ("--observer ResNet18", "no checkpoint of ResNet18"),
        ("--observer NoNet", "unknown network 'NoNet'"),
        ("--patch-diff harder", "invalid choice"),
        ("--dataset-name no_such", "unknown dataset 'no_such'"),
        ("--train-dir nowhere", "nowhere is not there"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(command, tmp_path, flags, message):
    with pytest.raises(UserError) as caught:
        main([*command, *flags.split()])
    assert message in str(caught.value)
    assert not (tmp_path / "patches").exists()


def test_a_pool_is_needed_offline(command):
    at = command.index("--model-pool-dir")
    with pytest.raises(UserError, match="--model-pool-dir is missing"):
        main(command[:at] + command[at + 2 :])


def test_an_observer_without_finite_losses_is_named(command, tmp_path):
    network = build_network(OBSERVER, FASHION)
    torch.nn.init.constant_(next(network.parameters()), float("nan"))
    save_state(tmp_path / "pool" / f"{OBSERVER}.safetensors", network)
    with pytest.raises(UserError, match="no finite loss for class 0"):
        main([*command, "--model-pool-dir", str(tmp_path / "pool")])


def test_the_recipe_gives_the_settings(command, tmp_path):
    at = command.index("--num-crops")
    main([*command[:at], *command[at + 2 :], "--recipe", "fadrm+", "--ipc", "10", "--end-index", "1"])
    recipe = recipes.settings("patches", "fashion_mnist", "fadrm+", 10)
    record = json.loads((tmp_path / "patches" / recipe["patch_diff"] / "patches.json").read_text())
    for name in ("num_crops", "area_min", "area_max", "max_images", "factor"):
        assert record[name] == recipe[name]

"""Making patches: what lies where afterwards, what is made again, what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from models.checkpoints import load_teacher, save_state
from models.registry import build_network
from recover import make_patches
from recover.make_patches import main, require_images
from utils import recipes
from utils.data.images import decode
from utils.data.table import get_dataset
from utils.patches.patches import load_patches, patch_path
from utils.patches.selectors import Candidates, observe
from utils.recipes.settings import PatchSettings
from utils.run.errors import UserError
from utils.run.files import sha256_of
from utils.run.randomness import generator_for
from utils.run.settings import identity_of
from utils.seams import SELECTORS

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


def test_patches_of_every_class_in_the_published_layout(command, inputs, tmp_path):
    main(command)
    folder = tmp_path / "patches" / "medium"
    assert len(list(folder.glob("*/*.jpg"))) == 30
    members = [(class_index, ipc_id) for ipc_id in range(3) for class_index in range(10)]
    assert load_patches(tmp_path / "patches", "medium", members, FASHION).shape == (30, 3, 32, 32)
    with Image.open(patch_path(folder, 9, 2)) as image:
        assert image.format == "JPEG" and image.layer[0][1:3] == image.layer[1][1:3]  # no chroma subsampling
    record = json.loads((folder / "patches.json").read_text())
    assert record == {
        "dataset_name": "fashion_mnist",
        "patch_diff": "medium",
        "factor": 1,
        "num_crops": 2,
        "max_images": 300,
        "area_min": 0.08,
        "area_max": 1.0,
        "seed": 0,
        "observer": OBSERVER,
        "observer_sha256": sha256_of(inputs / "pool" / f"{OBSERVER}.safetensors"),
        "train_images": 10 * IMAGES,
        "train_images_listing_sha256": record["train_images_listing_sha256"],
    }


def test_patches_of_other_images_are_refused_and_those_of_before_listings_go_on(command, inputs, tmp_path):
    main(command)
    record = tmp_path / "patches" / "medium" / "patches.json"
    classes = [inputs / "train" / name for name in ("0", "1")]
    classes[0].rename(inputs / "train" / "x")
    classes[1].rename(classes[0])
    (inputs / "train" / "x").rename(classes[1])
    with pytest.raises(UserError, match=r"medium holds patches made with other settings: train_images_listing_sha256"):
        main(command)
    content = json.loads(record.read_text())
    del content["train_images_listing_sha256"]
    record.write_text(json.dumps(content))
    main(command)


def test_where_images_start_from_noise_there_are_no_patches(inputs, tmp_path, capsys):
    words = ["--dataset-name", "fashion_mnist", "--recipe", "g-vbsm", "--ipc", "2", "--device", "cpu", "--patch-dir"]
    main([*words, str(tmp_path / "patches"), "--train-dir", str(inputs / "train"), "--model-pool-dir", str(tmp_path)])
    assert "g-vbsm starts from noise: nothing to make" in capsys.readouterr().out
    assert not (tmp_path / "patches").exists()


def test_whole_image_patches_are_the_images_the_observer_ranks(command, inputs, tmp_path):
    whole = ["--crop-area", "1", "1", "--num-crops", "1", "--patches-per-class", str(IMAGES), "--end-index", "1"]
    observer = load_teacher(OBSERVER, FASHION, inputs / "pool", "offline").module
    images = [decode(path) for path in sorted((inputs / "train" / "0").iterdir())]
    pixels = torch.stack([torch.from_numpy(np.array(image)) for image in images]).permute(0, 3, 1, 2)
    observed = observe(observer, pixels, 0, FASHION, batch_size=100)
    for difficulty in ("easy", "medium", "hard"):
        main([*command, *whole, "--patch-diff", difficulty])
        candidates = Candidates(0, IMAGES, 1, "observer", lambda: observed)
        order = SELECTORS[difficulty](candidates, IMAGES, generator_for("unused"))[:, 0]
        members = [(0, ipc_id) for ipc_id in range(IMAGES)]
        patches = load_patches(tmp_path / "patches", difficulty, members, FASHION)
        assert (patches.int() - pixels[order].int()).float().abs().mean(dim=(1, 2, 3)).max() < 3  # JPEG


def test_random_patches_are_the_first_crops_of_images_drawn_by_seed(command, inputs, tmp_path):
    whole = ["--crop-area", "1", "1", "--patch-diff", "random", "--patches-per-class", str(IMAGES), "--end-index", "1"]
    main([*command, *whole])
    images = [decode(path) for path in sorted((inputs / "train" / "0").iterdir())]
    pixels = torch.stack([torch.from_numpy(np.array(image)) for image in images]).permute(0, 3, 1, 2)
    patches = load_patches(tmp_path / "patches", "random", [(0, ipc_id) for ipc_id in range(IMAGES)], FASHION)
    errors = (patches[:, None].int() - pixels[None].int()).float().abs().mean(dim=(2, 3, 4))
    assert errors.min(dim=1).values.max() < 3 and sorted(errors.argmin(dim=1).tolist()) == list(range(IMAGES))


def test_more_random_patches_than_images_are_all_made_or_refused_at_the_start(command, tmp_path):
    """There are two crops of each of six images."""
    try:
        main([*command, "--patch-diff", "random", "--patches-per-class", "7", "--end-index", "1"])
    except UserError as error:
        assert "class 0 of fashion_mnist gives 6 images" in str(error)
        assert not (tmp_path / "patches").exists()
    else:
        assert len(list((tmp_path / "patches" / "random" / "00000").iterdir())) == 7


def test_parts_more_and_fewer_of_them_are_the_same_patches(command, tmp_path, contents):
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
    assert load_patches(tmp_path / "patches", "medium", [(0, 2), (1, 2)], FASHION).shape == (2, 3, 32, 32)


def test_tiles_by_stride_are_other_ones_and_recorded(command, tmp_path):
    tiles = [*command, "--factor", "2", "--end-index", "1"]
    main(tiles)
    folder = tmp_path / "patches" / "medium"
    assert "tile_stride" not in json.loads((folder / "patches.json").read_text())
    with pytest.raises(UserError, match=r"made with other settings: tile_stride \(none there, 3 here\)"):
        main([*tiles, "--tile-stride", "3"])
    main([*tiles, "--tile-stride", "3", "--patch-dir", str(tmp_path / "spread")])
    assert json.loads((tmp_path / "spread" / "medium" / "patches.json").read_text())["tile_stride"] == 3
    near, far = (load_patches(tmp_path / name, "medium", [(0, 0)], FASHION)[0] for name in ("patches", "spread"))
    first = (slice(None), slice(0, 8), slice(0, 8))  # away from the edge, over which JPEG looks
    assert (near[first].int() - far[first].int()).abs().float().mean() < 3
    assert (near.int() - far.int()).abs().float().mean() > 10
    with pytest.raises(UserError, match="--patches-per-class 3: no multiple of --tile-stride"):
        main([*tiles, "--tile-stride", "2"])


def test_a_complete_run_is_not_made_again_and_a_lost_patch_is(command, tmp_path, contents, capsys):
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


def test_a_run_that_made_nothing_claims_nothing(command, inputs, tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(make_patches, "class_patches", stop)
        main(command)
    assert not (tmp_path / "patches").exists()
    main([*command, "--num-crops", "1", "--end-index", "1"])


def test_other_settings_into_the_same_folder_are_refused(command):
    main([*command, "--end-index", "1"])
    with pytest.raises(UserError, match=r"made with other settings: num_crops \(2 there, 1 here\)"):
        main([*command, "--num-crops", "1"])
    with pytest.raises(UserError, match=r"made with other settings: area_min \(0.08 there, 0.5 here\)"):
        main([*command, "--crop-area", "0.5", "1"])


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
            "class 0 of fashion_mnist gives 6 images x 2 crops, 13 are needed: raise --num-crops or --max-images, or",
        ),
        ("--max-images 1", "gives 1 images x 2 crops, 3 are needed"),
        ("--factor 3", "--factor 3 does not divide the 32 pixels"),
        ("--num-crops 0", "--num-crops 0: it must be from 1 to 10,000"),
        ("--crop-area 0 1", "--crop-area 0.0: it must be from 0.0001 to 1"),
        ("--crop-area 0.08 1.1", "--crop-area 1.1: it must be from 0.0001 to 1"),
        ("--crop-area 0.5 0.4", "--crop-area 0.5 0.4: two shares, the smaller one first"),
        ("--crop-area 0.5", "--crop-area 0.5: two shares, the smaller one first"),
        ("--start-index 4 --end-index 4", "--start-index 4 --end-index 4: an empty range, or beyond the 10 classes of"),
        ("--end-index 11", "--start-index 0 --end-index 11: an empty range, or beyond the 10 classes of"),
        ("--observer ResNet18", "no checkpoint of ResNet18"),
        ("--observer NoNet", "unknown network 'NoNet'"),
        ("--patch-diff harder", "--patch-diff harder: there are random easy medium hard"),
        ("--dataset-name no_such", "unknown dataset 'no_such'"),
        ("--train-dir nowhere", "nowhere is missing: for real images set train_dir and val_dir in config.sh"),
        ("--recipe fadrm+", "--recipe needs --dataset-name and --ipc beside it"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(command, tmp_path, flags, message):
    with pytest.raises(UserError) as caught:
        main([*command, *flags.split()])
    assert message in str(caught.value)
    assert not (tmp_path / "patches").exists()


def test_a_pool_is_needed_offline(command):
    at = command.index("--model-pool-dir")
    with pytest.raises(UserError, match="teachers are read from a folder: name --model-pool-dir, or take them online"):
        main(command[:at] + command[at + 2 :])


def test_an_observer_without_finite_losses_is_named(command, tmp_path):
    network = build_network(OBSERVER, FASHION)
    torch.nn.init.constant_(next(network.parameters()), float("nan"))
    save_state(tmp_path / "pool" / f"{OBSERVER}.safetensors", network)
    with pytest.raises(UserError, match=f"the observer {OBSERVER} gives no finite loss for class 0"):
        main([*command, "--model-pool-dir", str(tmp_path / "pool")])
    assert not (tmp_path / "patches").exists()


def test_the_recipe_gives_the_settings(command, tmp_path):
    at = command.index("--num-crops")
    main([*command[:at], *command[at + 2 :], "--recipe", "fadrm+", "--ipc", "10", "--end-index", "1"])
    recipe = recipes.recipe_of(FASHION, "fadrm+", 10).patches
    record = json.loads((tmp_path / "patches" / recipe.selector / "patches.json").read_text())
    expected = identity_of(recipe) | {"observer": OBSERVER}  # a flag wins
    assert {name: record[name] for name in expected} == expected
    assert expected["num_crops"] == 1 and expected["max_images"] == 600


def test_a_recipe_puts_patches_into_the_folders_of_config(command, inputs, tmp_path, monkeypatch):
    monkeypatch.setenv("patch_dir", str(tmp_path / "p"))
    at = command.index("--patch-dir")
    flags = ["--recipe", "rded", "--ipc", "3", "--end-index", "1"]
    main([*command[:at], *command[at + 2 :], *flags])
    assert len(list((tmp_path / "p" / "fashion_mnist" / "rded_ipc3" / "easy" / "00000").glob("*.jpg"))) == 3


def test_images_that_a_class_needs():
    settings = PatchSettings(
        dataset_name="fashion_mnist", patches_per_class=3, factor=2, num_crops=3, max_images=4, end_index=10
    )
    enough, few = [Path("x")] * 4, [Path("x")] * 3
    require_images([enough, [Path("x")] * 100, few], range(2), settings, FASHION)
    with pytest.raises(UserError, match="class 2 of fashion_mnist gives 3 images x 3 crops, 12 are needed"):
        require_images([enough, enough, few], range(3), settings, FASHION)


# The dry run


def test_a_dry_run_tells_what_is_left_and_writes_nothing(command, tmp_path, contents, capsys):
    main([*command, "--dry-run"])
    said = capsys.readouterr().out
    assert "patches, dry run: nothing is written. Still to be made:\n  classes       10\n  patches       30\n" in said
    assert f"  files         30, at most 146 kB, in {tmp_path}/patches/medium\n" in said
    assert not (tmp_path / "patches").exists()
    main([*command, "--end-index", "4"])
    before = contents(tmp_path / "patches")
    main([*command, "--dry-run"])
    assert "  classes       6\n  patches       18\n" in capsys.readouterr().out
    assert contents(tmp_path / "patches") == before
    main(command)
    capsys.readouterr()
    main([*command, "--dry-run"])
    assert "  classes       0\n  patches       0\n  files         0, at most 0 bytes" in capsys.readouterr().out


def test_files_and_bytes_are_those_of_the_run(command, tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(make_patches, "print_dry_run", lambda stage, work, folder, output: told.append(output))
    main([*command, "--dry-run"])
    main(command)
    written = [path.stat().st_size for path in (tmp_path / "patches").rglob("*.jpg")]
    assert told[0].files == len(written)
    assert sum(written) <= told[0].size < told[0].disk


@pytest.mark.parametrize("extra", [(), ("--dry-run",)])
def test_a_disk_that_is_too_small_is_refused_at_the_start(command, tmp_path, refusal, small_disk, extra):
    small_disk(50_000)
    line = refusal(main, [*command, *extra])
    needed = 30 * (3 * 32**2 * 5 // 4 + 1024 + 4096) + 2**21
    assert line == (
        f"error: no space for {tmp_path}/patches/medium: it needs up to {needed:,} bytes, its disk has 50,000 free; "
        "free some, or name a folder on another disk"
    )
    assert not (tmp_path / "patches").exists()

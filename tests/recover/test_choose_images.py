"""Chosen real images in the layout of distilled ones: random ones, the baseline, and those that an observer ranks."""

import json

import pytest
import torch
from PIL import Image

from models.checkpoints import load_teacher, save_state
from models.registry import build_network
from models.scores import write_scores
from recover import choose_images
from recover.choose_images import main, observe_images
from utils import recipes
from utils.data.digests import digest_of_folder
from utils.data.distilled import images_output, read_distilled
from utils.data.images import load_images
from utils.data.table import get_dataset
from utils.patches.selectors import Candidates, cad, observe
from utils.run.errors import UserError
from utils.run.files import sha256_of
from utils.run.randomness import generator_for
from utils.seams import SELECTORS

FASHION = get_dataset("fashion_mnist")
OBSERVER = "ConvNetBN_W32"


@pytest.fixture(scope="module")
def train_dir(tmp_path_factory):
    """Ten classes of five images; each has one grey value of its own, 10 * class + index."""
    folder = tmp_path_factory.mktemp("train")
    for class_index in range(10):
        (folder / f"{class_index}").mkdir()
        for index in range(5):
            Image.new("RGB", (32, 32), (10 * class_index + index,) * 3).save(folder / f"{class_index}" / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    """A pool with an observer."""
    folder = tmp_path_factory.mktemp("pool")
    torch.manual_seed(0)
    save_state(folder / f"{OBSERVER}.safetensors", build_network(OBSERVER, FASHION))
    return folder


@pytest.fixture(autouse=True)
def config(tmp_path, monkeypatch):
    """Main_Data_Path as config.sh sets it."""
    monkeypatch.setenv("Main_Data_Path", str(tmp_path / "all"))


@pytest.fixture
def command(train_dir, tmp_path):
    words = f"--dataset-name fashion_mnist --train-dir {train_dir} --ipc 3 --syn-data-path {tmp_path} --exp-name random"
    return [*words.split(), "--device", "cpu"]


@pytest.fixture
def ranked(command, pool):
    """The flags of images that an observer ranks."""
    return [*command, "--exp-name", "ranked", "--observer", OBSERVER, "--model-pool-dir", str(pool)]


def values_of(folder):
    """The grey value of each image, by class and then by index."""
    return read_distilled(folder, FASHION)[0][:, 0, 0, 0].tolist()


def test_different_real_images_of_each_class(command, tmp_path):
    main(command)
    assert (tmp_path / "random" / "new009" / "class009_id002.png").is_file()
    pixels, labels, ipc = read_distilled(tmp_path / "random", FASHION)
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


def test_random_images_are_those_of_every_earlier_version(command, tmp_path):
    """Who has them from before gets the same ones."""
    main(command)
    expected = []
    for class_index in range(10):
        generator = generator_for(0, "random", "fashion_mnist", class_index)
        expected += [10 * class_index + index for index in torch.randperm(5, generator=generator)[:3].tolist()]
    assert values_of(tmp_path / "random") == expected


@pytest.mark.parametrize("selector", ["easy", "medium", "hard", "herding", "k-centre", "coverage", "balanced"])
def test_a_selector_ranks_whole_images_by_the_observers_loss(ranked, train_dir, pool, tmp_path, selector):
    main([*ranked, "--selector", selector])
    observer = load_teacher(OBSERVER, FASHION, pool)
    expected = []
    for class_index in range(10):
        images = load_images([train_dir / f"{class_index}" / f"{index}.png" for index in range(5)], FASHION)
        observed = observe(observer.module, images, class_index, FASHION, batch_size=5)
        chosen = SELECTORS[selector](
            Candidates(0, 5, 1, "observer", lambda observed=observed: observed), 3, generator_for("unused")
        )
        expected += (10 * class_index + chosen[:, 0]).tolist()
    assert values_of(tmp_path / "ranked") == expected
    record = json.loads((tmp_path / "ranked" / "settings.json").read_text())
    assert record == {
        "method": selector,
        "dataset_name": "fashion_mnist",
        "ipc": 3,
        "seed": 0,
        "train_images": 50,
        "train_images_listing_sha256": record["train_images_listing_sha256"],
        "observer": OBSERVER,
        "observer_sha256": sha256_of(pool / f"{OBSERVER}.safetensors"),
    }


def test_cad_prune_goes_by_the_scores_that_pretrain_keeps(ranked, train_dir, pool, tmp_path):
    with pytest.raises(UserError, match=f"{OBSERVER}.scores.safetensors is missing: train {OBSERVER} with"):
        main([*ranked, "--selector", "cad-prune"])
    scores = torch.rand(9, 50, generator=generator_for("scores")).half()
    write_scores(pool, OBSERVER, scores, digest_of_folder(train_dir, FASHION))
    main([*ranked, "--selector", "cad-prune"])
    difficult = cad(scores.float()).view(10, 5).argsort(dim=1, descending=True)[:, :3]
    assert values_of(tmp_path / "ranked") == (10 * torch.arange(10)[:, None] + difficult).flatten().tolist()


def test_images_are_observed_chunk_by_chunk(ranked, train_dir, pool, monkeypatch):
    settings = recipes.parse("choose", [*ranked, "--selector", "easy"])
    paths = [train_dir / "4" / f"{index}.png" for index in range(5)]
    observer = load_teacher(OBSERVER, FASHION, pool)
    whole = observe_images(paths, observer, 4, FASHION, settings)
    assert whole.losses.dtype == torch.float32 and whole.losses.shape == (5,) and len(whole.features) == 5
    monkeypatch.setattr(choose_images, "CHUNK", 2)
    torch.testing.assert_close(observe_images(paths, observer, 4, FASHION, settings), whole)


def test_random_images_need_no_observer_and_a_selector_does(command, tmp_path):
    main(command)
    assert set(json.loads((tmp_path / "random" / "settings.json").read_text())) == {
        *("method", "dataset_name", "ipc", "seed", "train_images", "train_images_listing_sha256")
    }
    easy = [*command, "--exp-name", "easy", "--selector", "easy", "--model-pool-dir", str(tmp_path / "none")]
    with pytest.raises(UserError, match=r"no checkpoint of ConvNetBN_W64 for fashion_mnist"):  # the recipe's observer
        main(easy)
    pool = tmp_path / "all" / "pretrained_models" / "fashion_mnist_pretrained_models"
    with pytest.raises(UserError, match=f"looked for {pool}/ConvNetBN_W64.safetensors"):  # that of config.sh
        main(easy[:-2])
    assert not (tmp_path / "easy").exists()


def test_random_images_need_nothing_of_config_where_every_folder_is_named(command, tmp_path, monkeypatch):
    for variable in ("Main_Data_Path", "train_dir", "val_dir", "patch_dir"):
        monkeypatch.delenv(variable, raising=False)
    main(command)
    assert len(values_of(tmp_path / "random")) == 30


def test_an_observer_without_finite_losses_is_named(ranked, tmp_path):
    network = build_network(OBSERVER, FASHION)
    torch.nn.init.constant_(next(network.parameters()), float("nan"))
    save_state(tmp_path / "broken" / f"{OBSERVER}.safetensors", network)
    with pytest.raises(UserError, match=f"the observer {OBSERVER} gives no finite loss for class 0"):
        main([*ranked, "--selector", "easy", "--model-pool-dir", str(tmp_path / "broken")])


def test_without_names_images_go_into_the_folders_of_config(train_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("Main_Data_Path", str(tmp_path))
    main(["--dataset-name", "fashion_mnist", "--train-dir", str(train_dir), "--ipc", "2", "--device", "cpu"])
    folder = tmp_path / "generated_data" / "syn_data" / "fashion_mnist" / "random_ipc2"
    assert len(list(folder.glob("*/*.png"))) == 20
    monkeypatch.delenv("Main_Data_Path")
    with pytest.raises(UserError, match=r"Main_Data_Path is not set: give it in config.sh"):
        main(["--dataset-name", "fashion_mnist", "--train-dir", str(train_dir), "--ipc", "2"])


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
        ("--ipc 0", "--ipc 0: it must be from 1 to 1,000,000"),
        ("--selector harder", "--selector harder: there are random easy medium hard"),
        ("--train-dir nowhere", "nowhere is missing: for real images set train_dir and val_dir in config.sh"),
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


def test_a_run_that_made_nothing_claims_nothing(command, tmp_path, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(choose_images, "load_test_images", stop)
        main(command)
    assert not (tmp_path / "random").exists()
    main([*command, "--ipc", "2"])


# The dry run


def test_a_dry_run_writes_nothing(command, tmp_path, capsys):
    main([*command, "--dry-run"])
    said = capsys.readouterr().out
    assert "choose, dry run: nothing is written. Still to be made:\n  images        30\n  files         30, at " in said
    assert not (tmp_path / "random").exists()


def test_a_dry_run_tells_what_is_left(command, tmp_path, capsys):
    main(command)
    (tmp_path / "random" / "new003" / "class003_id001.png").unlink()
    capsys.readouterr()
    main([*command, "--dry-run"])
    assert "  images        1\n  files         1, at most " in capsys.readouterr().out


def test_images_that_are_there_need_no_space(command, small_disk):
    main(command)
    small_disk(0)
    main(command)


@pytest.mark.parametrize("extra", [(), ("--dry-run",)])
def test_a_disk_that_is_too_small_is_refused_at_the_start(command, tmp_path, refusal, small_disk, extra):
    small_disk(50_000)
    line = refusal(main, [*command, *extra])
    needed = images_output(30, FASHION).disk
    assert line == (
        f"error: no space for {tmp_path}/random: it needs up to {needed:,} bytes, its disk has 50,000 free; "
        "free some, or name a folder on another disk"
    )
    assert not (tmp_path / "random").exists()

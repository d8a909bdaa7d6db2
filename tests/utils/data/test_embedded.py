"""The images that ship with the project, laid out on first use."""

from collections import Counter

import numpy as np
import pytest

from utils.data.embedded import FILE, NAME, PADDING, ensure_embedded
from utils.data.images import list_images, load_images
from utils.data.table import get_dataset

FASHION = get_dataset(NAME)


def entries_of(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def embedded(tmp_path_factory):
    """Folders of config.sh with the embedded images in them."""
    root = tmp_path_factory.mktemp("embedded")
    with pytest.MonkeyPatch.context() as patch:
        for split in ("train", "val"):
            patch.setenv(f"{split}_dir", str(root / split))
        ensure_embedded(FASHION, **places(root))
        yield root


@pytest.fixture
def config(tmp_path, monkeypatch):
    """Empty folders of config.sh."""
    for split in ("train", "val"):
        monkeypatch.setenv(f"{split}_dir", str(tmp_path / split))
    return tmp_path


def places(root):
    return {"train": root / "train" / NAME, "val": root / "val" / NAME}


@pytest.mark.parametrize(("split", "each"), [("train", 600), ("val", 100)])
def test_embedded_images_are_the_shipped_ones(embedded, split, each):
    with np.load(FILE) as arrays:
        root = places(embedded)[split]
        assert entries_of(root)[0] == "0_t-shirt-or-top"
        assert entries_of(root)[9] == "9_ankle-boot"
        paths, labels = list_images(root, FASHION)
        assert set(Counter(labels.tolist()).values()) == {each}
        images = load_images(paths, FASHION).numpy()
        order = [int(path.stem) for path in paths]
        assert np.array_equal(labels.numpy(), arrays[f"{split}_labels"][order])
        inner = slice(PADDING, -PADDING)
        assert np.array_equal(images[:, 1, inner, inner], arrays[f"{split}_images"][order])
        assert not images[:, :, :PADDING].any()
        assert not images[..., -PADDING:].any()
        assert np.array_equal(images[:, 0], images[:, 2])


def test_embedded_is_laid_out_once(embedded):
    before = places(embedded)["train"].stat().st_mtime_ns
    ensure_embedded(FASHION, **places(embedded))
    assert places(embedded)["train"].stat().st_mtime_ns == before


def test_only_what_is_asked_for(config):
    ensure_embedded(FASHION, val=places(config)["val"])
    assert entries_of(config) == ["val"]


def test_this_dataset_alone(config):
    ensure_embedded(get_dataset("cifar10"), train=config / "train" / "cifar10", val=config / "val" / "cifar10")
    ensure_embedded(get_dataset("cifar10"), **places(config))
    assert entries_of(config) == []


def test_nothing_is_laid_out_elsewhere_than_in_config(config, monkeypatch):
    ensure_embedded(FASHION, train=config / "trian" / NAME, val=places(config)["train"])
    monkeypatch.delenv("train_dir")
    monkeypatch.setenv("val_dir", "")
    ensure_embedded(FASHION, **places(config))
    assert entries_of(config) == []


def test_what_is_there_stays_as_it_is(config):
    place = places(config)["train"]
    place.mkdir(parents=True)
    (place / "own").touch()
    ensure_embedded(FASHION, train=place)
    assert entries_of(place) == ["own"]


def test_notice_ships():
    assert "Copyright (c) 2017 Zalando SE" in (FILE.parent / "NOTICE").read_text()

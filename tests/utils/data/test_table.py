"""The table of datasets, and the user's own beside it."""

import json
import re
from dataclasses import asdict

import pytest

from utils.data.table import (
    DATASETS,
    SIZES,
    Dataset,
    description_path,
    descriptions,
    get_dataset,
    read_description,
    write_description,
)
from utils.run.errors import UserError

FLOWERS = Dataset("flowers", 3, 64, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), 4, 12, 6)


@pytest.fixture
def root(tmp_path, monkeypatch):
    """The folder of everything, as config.sh sets it."""
    monkeypatch.setenv("Main_Data_Path", str(tmp_path))
    return tmp_path


def test_table():
    rows = {
        "cifar10": (10, 32, 4, 50_000, 10_000),
        "cifar100": (100, 32, 4, 50_000, 10_000),
        "tiny_imagenet": (200, 64, 4, 100_000, 10_000),
        "imagenet-nette": (10, 224, 32, 9_469, 3_925),
        "imagewoof": (10, 224, 32, 9_025, 3_929),
        "imagenet1k": (1000, 224, 32, 1_281_167, 50_000),
        "fashion_mnist": (10, 32, 4, 6_000, 1_000),
    }
    table = {d.name: (d.num_classes, d.size, d.jitter, d.train_images, d.val_images) for d in DATASETS.values()}
    assert table == rows
    assert {dataset.size for dataset in DATASETS.values()} == set(SIZES)
    assert get_dataset("cifar100").mean == (0.5071, 0.4867, 0.4408)
    assert get_dataset("cifar100").std == (0.2675, 0.2565, 0.2761)
    assert get_dataset("fashion_mnist").std == (0.5, 0.5, 0.5)


def test_unknown_dataset_lists_those_there_are(root):
    with pytest.raises(UserError, match=r"'mnist'.*cifar10.*fashion_mnist; your own class folders become one with"):
        get_dataset("mnist")
    write_description(FLOWERS)
    with pytest.raises(UserError, match=r"unknown dataset 'mnist'; there are: cifar10 .* fashion_mnist flowers; your"):
        get_dataset("mnist")


def test_a_described_dataset_is_there_by_its_name(root):
    assert descriptions() == []
    assert write_description(FLOWERS) == description_path("flowers") == root / "datasets" / "flowers.json"
    assert json.loads(description_path("flowers").read_text()) == json.loads(json.dumps(asdict(FLOWERS)))
    assert descriptions() == [description_path("flowers")]
    assert read_description(description_path("flowers")) == get_dataset("flowers") == FLOWERS


def test_without_config_there_are_those_of_the_table_alone(root, monkeypatch):
    write_description(FLOWERS)
    monkeypatch.delenv("Main_Data_Path")
    assert descriptions() == [] and get_dataset("cifar10").num_classes == 10
    with pytest.raises(UserError, match="unknown dataset 'flowers'"):
        get_dataset("flowers")
    with pytest.raises(UserError, match=r"Main_Data_Path is not set: `source config.sh` first, or set it"):
        description_path("flowers")


@pytest.mark.parametrize(
    "changes",
    [
        {"size": 48},
        {"num_classes": 0},
        {"num_classes": "3"},
        {"mean": "grey"},
        {"mean": None},
        {"std": ["a", "b", "c"]},
        {"name": "other"},
        {"unknown": 1},
        # what only a look at every value tells
        {"mean": [0.5]},
        {"std": [0.0, 0.0, 0.0]},
        {"num_classes": 2.5},
        {"jitter": "4"},
        {"train_images": None},
    ],
)
def test_a_description_that_is_none_is_named(root, changes):
    path = write_description(FLOWERS)
    path.write_text(json.dumps(asdict(FLOWERS) | changes))
    with pytest.raises(UserError) as error:
        get_dataset("flowers")
    assert re.fullmatch(
        f"{re.escape(str(path))} (describes no dataset|is damaged \\(.*\\)): "
        "remove it and run `python -m utils.data.prepare flowers` with your folders again",
        str(error.value),
    )


@pytest.mark.parametrize("lost", ["name", "std", "val_images"])
def test_a_description_that_lacks_something_is_named(root, lost):
    path = write_description(FLOWERS)
    path.write_text(json.dumps({key: value for key, value in asdict(FLOWERS).items() if key != lost}))
    with pytest.raises(UserError, match=rf"flowers\.json is damaged \(no {lost}\): remove it"):
        get_dataset("flowers")


def test_a_description_that_is_cut_off_is_damaged(root):
    path = write_description(FLOWERS)
    path.write_text(path.read_text()[:40])
    with pytest.raises(UserError, match=r"flowers\.json is damaged"):
        get_dataset("flowers")

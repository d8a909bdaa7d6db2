"""The records beside checkpoints: what they are of, whether a teacher is to be trained, and what is refused."""

import json

import pytest
import torch

from models import teachers
from models.checkpoints import save_state
from models.registry import build_network
from utils.data.table import get_dataset
from utils.run.errors import UserError
from utils.run.files import sha256_of

FASHION = get_dataset("fashion_mnist")
NAME = "ConvNetBN_W32"


@pytest.fixture
def pool(tmp_path):
    """A pool with one checkpoint, without a record."""
    save_state(teachers.weights_path(tmp_path, NAME), build_network(NAME, FASHION))
    return tmp_path


def record(pool, source="trained", **content):
    return teachers.write_record(pool, NAME, "fashion_mnist", source, {"top1": 51.5, "top5": 90, **content})


def test_places(tmp_path):
    assert teachers.weights_path(tmp_path, NAME) == tmp_path / f"{NAME}.safetensors"
    assert teachers.record_path(tmp_path, NAME) == tmp_path / f"{NAME}.json"
    assert teachers.training_path(tmp_path, NAME) == tmp_path / f"{NAME}.training.safetensors"
    assert teachers.weights_path(tmp_path, "timm:resnet18.a1") == tmp_path / "timm_resnet18.a1.safetensors"
    assert teachers.record_path(tmp_path, "timm:resnet18.a1") == tmp_path / "timm_resnet18.a1.json"


def test_a_record_comes_back_and_says_what_it_is_of(pool):
    written = record(pool, epochs=3)
    assert teachers.read_record(pool, NAME) == written == json.loads((pool / f"{NAME}.json").read_text())
    assert written["sha256"] == sha256_of(pool / f"{NAME}.safetensors")
    told = {key: written[key] for key in ("dataset", "model", "source", "checkpoint", "top1", "top5", "epochs")}
    assert told == {
        "dataset": "fashion_mnist",
        "model": NAME,
        "source": "trained",
        "checkpoint": f"{NAME}.safetensors",
        "top1": 51.5,
        "top5": 90,
        "epochs": 3,
    }
    assert written["versions"]["torch"] == torch.__version__


def test_a_record_of_another_file_is_none(pool):
    assert teachers.read_record(pool, NAME) is None
    record(pool)
    save_state(teachers.weights_path(pool, NAME), build_network(NAME, FASHION))
    assert teachers.read_record(pool, NAME) is None
    teachers.weights_path(pool, NAME).unlink()
    assert teachers.read_record(pool, NAME) is None


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"sha256": 3}, "sha256 is no str"),
        ({"source": "stolen"}, "source is unknown"),
        ({"top1": "51"}, "top1 is no number"),
        ({"top5": float("nan")}, "top5 is no number"),
        ({"checkpoint": None}, "checkpoint is no str"),
    ],
)
def test_a_damaged_record_is_named(pool, changes, problem):
    path = teachers.record_path(pool, NAME)
    path.write_text(json.dumps(record(pool) | changes))
    with pytest.raises(UserError) as error:
        teachers.read_record(pool, NAME)
    remedy = "remove it; models.pretrain tests the teacher and writes it again"
    assert str(error.value) == f"{path} is damaged ({problem}): {remedy}"


def test_what_is_to_be_trained(pool, tmp_path):
    assert teachers.is_to_be_trained(tmp_path / "empty", NAME)
    assert not teachers.is_to_be_trained(pool, NAME)  # downloaded: to be tested
    teachers.training_path(pool, NAME).touch()
    assert teachers.is_to_be_trained(pool, NAME)  # what a training has just left, without its record
    record(pool)
    assert not teachers.is_to_be_trained(pool, NAME)


def test_recorded_accuracies_are_told(pool, capsys):
    with pytest.raises(UserError, match=f"{pool} has no record of {NAME} with its accuracy: models.pretrain tests it"):
        teachers.recorded_accuracies(pool, [NAME])
    record(pool)
    other = "ConvNetBN_W64"
    save_state(teachers.weights_path(pool, other), build_network(other, FASHION))
    teachers.write_record(pool, other, "fashion_mnist", "downloaded", {"top1": 60, "top5": 95.0})
    assert teachers.recorded_accuracies(pool, [other, NAME]) == (60, 51.5)
    said = f"taking the teachers' recorded accuracies, {other} 60.00 %, {NAME} 51.50 %"
    assert capsys.readouterr().out == f"note: no priors are given or published: {said}\n"


def test_a_teacher_that_is_named_twice_has_its_accuracy_twice(pool):
    record(pool)
    assert teachers.recorded_accuracies(pool, [NAME, NAME]) == (51.5, 51.5)


def test_other_settings_than_those_asked_for_are_refused(pool):
    asked = {"lr": 0.1, "epochs": 3, "train_images_sha256": "a"}
    made = record(pool, settings=asked)
    teachers.check_trained_with(pool, made, asked)
    with pytest.raises(UserError) as error:
        teachers.check_trained_with(pool, made, asked | {"lr": 0.2})
    assert str(error.value) == (
        f"{pool / NAME}.safetensors was trained with other settings: lr (0.1 there, 0.2 here); "
        "give the same ones, take another --model-pool-dir, or move it away"
    )
    with pytest.raises(UserError, match=r'train_images_sha256 \("a" there, "b" here\)'):
        teachers.check_trained_with(pool, made, asked | {"train_images_sha256": "b"})


def test_nothing_is_asked_of_a_download_nor_what_an_older_record_does_not_tell(pool):
    asked = {"lr": 0.1, "train_images_sha256": "a"}
    teachers.check_trained_with(pool, record(pool, "downloaded"), asked)
    older = record(pool, settings={"lr": 0.1})
    teachers.check_trained_with(pool, older, asked)
    with pytest.raises(UserError, match="lr"):
        teachers.check_trained_with(pool, older, asked | {"lr": 0.2})

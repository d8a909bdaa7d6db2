"""Checkpoints to go on from."""

import os

import pytest
import safetensors.torch
import torch

from utils.run.errors import UserError
from utils.run.training_state import load_training, save_training


class Malicious:
    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def test_a_state_comes_back_bit_for_bit(tmp_path):
    path = tmp_path / "x.training.safetensors"
    assert load_training(path, {"lr": 0.1}) is None
    network = torch.nn.Linear(3, 2)
    optimiser = torch.optim.Adam(network.parameters())
    network(torch.ones(1, 3)).sum().backward()
    optimiser.step()
    save_training(path, {"lr": 0.1}, {"epoch": 3, "tests": [1.5], "optimiser": optimiser.state_dict()})
    state = load_training(path, {"lr": 0.1})
    assert state["epoch"] == 3 and state["tests"] == [1.5]
    expected = optimiser.state_dict()["state"][0]["exp_avg"]
    assert torch.equal(state["optimiser"]["state"][0]["exp_avg"], expected)
    assert [file.name for file in tmp_path.iterdir()] == ["x.training.safetensors"]


def test_other_settings_are_refused(tmp_path):
    path = tmp_path / "x.training.safetensors"
    save_training(path, {"lr": 0.1}, {})
    with pytest.raises(UserError, match=r"begun with other settings: lr \(0.1 there, 0.2 here\)"):
        load_training(path, {"lr": 0.2})
    assert load_training(path) == {}  # of whatever settings


def test_every_value_keeps_its_type_and_place(tmp_path):
    path = tmp_path / "x.training.safetensors"
    tensors = {
        "half": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
        "count": torch.tensor(7),
        "mask": torch.tensor([True, False]),
        "none": torch.zeros(0, 3),
        "view": torch.arange(12.0).view(3, 4)[:, 1:3],
        "layout": torch.arange(24.0).view(1, 2, 3, 4).contiguous(memory_format=torch.channels_last),
    }
    state = {"tensors": tensors, "groups": [{"params": [0, 1], "lr": 0.1, "fused": None}], 3: {"nested": {5: "five"}}}
    save_training(path, {}, state | {"pair": (1, 2.5), "same": tensors["half"]})
    found = load_training(path, {})
    assert found["groups"] == state["groups"] and found[3] == {"nested": {5: "five"}} and found["pair"] == [1, 2.5]
    for name, tensor in (*tensors.items(), ("same", tensors["half"])):
        read = found["same"] if name == "same" else found["tensors"][name]
        assert (read.dtype, read.shape, read.stride()) == (tensor.dtype, tensor.shape, tensor.stride()), name
        assert torch.equal(read, tensor), name


def test_a_checkpoint_of_an_earlier_version_is_named(tmp_path):
    (tmp_path / "x.training.pt").touch()
    with pytest.raises(
        UserError, match=r"x\.training\.pt is of an earlier version of this project: remove it to train"
    ):
        load_training(tmp_path / "x.training.safetensors", {})


def truncated(path, folder):
    path.write_bytes(path.read_bytes()[:-200])


def empty(path, folder):
    path.write_bytes(b"")


def with_one_bit_changed(path, folder):
    content = bytearray(path.read_bytes())
    content[-3] ^= 1  # of the weights
    path.write_bytes(content)


def with_another_number(path, folder):
    content = path.read_bytes()
    assert content.count(b"0.125") == 1
    path.write_bytes(content.replace(b"0.125", b"0.126"))


def without_a_word(path, folder):
    safetensors.torch.save_file({"weights": torch.zeros(100)}, path)


def foreign(path, folder):
    torch.save([1, 2], path)


def malicious(path, folder):
    torch.save({"settings": Malicious(folder / "ran"), "state": {}}, path)


@pytest.mark.parametrize(
    "damage", [truncated, empty, with_one_bit_changed, with_another_number, without_a_word, foreign, malicious]
)
def test_damaged_files_are_named_and_nothing_runs(tmp_path, damage):
    path = tmp_path / "x.training.safetensors"
    save_training(path, {"lr": 0.1}, {"weights": torch.ones(100), "seconds": 0.125})
    assert load_training(path, {"lr": 0.1})["seconds"] == 0.125
    damage(path, tmp_path)
    with pytest.raises(UserError, match=r"x\.training\.safetensors is damaged: remove it to train from the start"):
        load_training(path, {"lr": 0.1})
    assert not (tmp_path / "ran").exists()

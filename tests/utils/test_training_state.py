"""Checkpoints to go on from."""

import os

import pytest
import torch

from utils.errors import UserError
from utils.training_state import load_training, save_training


class Malicious:
    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def test_a_state_comes_back_bit_for_bit(tmp_path):
    path = tmp_path / "x.training.pt"
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
    assert [file.name for file in tmp_path.iterdir()] == ["x.training.pt"]


def test_other_settings_are_refused(tmp_path):
    path = tmp_path / "x.training.pt"
    save_training(path, {"lr": 0.1}, {})
    with pytest.raises(UserError, match=r"begun with other settings: lr \(0.1 there, 0.2 here\)"):
        load_training(path, {"lr": 0.2})


@pytest.mark.parametrize("damage", ["truncated", "empty", "foreign", "malicious"])
def test_damaged_files_are_named_and_nothing_runs(tmp_path, damage):
    path = tmp_path / "x.training.pt"
    save_training(path, {"lr": 0.1}, {"weights": torch.zeros(100)})
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-200])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "foreign":
        torch.save([1, 2], path)
    else:
        torch.save({"settings": Malicious(tmp_path / "ran"), "state": {}}, path)
    with pytest.raises(UserError, match=r"x\.training\.pt is damaged"):
        load_training(path, {"lr": 0.1})
    assert not (tmp_path / "ran").exists()

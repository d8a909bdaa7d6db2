"""The benchmark runs every version of every stage and writes what it prints."""

import json

import pytest
import torch

from tests import benchmark
from utils.data.table import get_dataset


def test_a_small_benchmark_has_all_figures(tmp_path, capsys):
    output = tmp_path / "figures.json"
    words = "--networks ConvNetBN_W32 --classes 4 --repeats 1 --no-memory --device cpu --output"
    benchmark.main([*words.split(), str(output)])
    rows = json.loads(output.read_text())["rows"]
    assert [row["stage"] for row in rows] == ["recover", "relabel", "validate"]
    for row in rows:
        assert {"shipped", "plain", "bare"} <= row["seconds"].keys()
        assert all(seconds > 0 for seconds in row["seconds"].values())
        assert row["shipped_to_bare"] == pytest.approx(row["seconds"]["shipped"] / row["bare"])
        assert row["plain_to_shipped"] == pytest.approx(row["seconds"]["plain"] / row["seconds"]["shipped"])
    assert "geometric mean" in capsys.readouterr().out


def test_peak_memory_is_that_of_a_fresh_process(tmp_path):
    setting = benchmark.Setting(
        "recover", "ConvNetBN_W32", get_dataset("cifar100"), torch.device("cpu"), "off", 64, str(tmp_path)
    )
    assert 0.005 < benchmark.peak_in_fresh_process(setting, "bare") < 1


def test_the_cost_of_an_image_adds_its_stages_up():
    cost = benchmark.cost_of_an_image("fadrm", torch.device("cpu"), "off", classes=2)
    assert cost["seconds"] > 0
    assert cost["peak_memory_gib"] > 0

"""From a script's few words to the arguments of a stage's entry, and its log."""

import sys
import types
from pathlib import Path

import pytest
import torch

from utils import launch, recipes
from utils.errors import UserError
from utils.launch import Request
from validate import flags

FOLDERS = {"Main_Data_Path": "/main", "train_dir": "/train", "val_dir": "/val", "patch_dir": "/patches"}


@pytest.mark.parametrize(
    ("words", "request_", "extra"),
    [
        ("recover cifar100 fadrm+ 10", Request("recover", "cifar100", "fadrm+", (10,)), []),
        ("recover cifar100 fadrm 10 -- --lr 1", Request("recover", "cifar100", "fadrm", (10,)), ["--lr", "1"]),
        ("relabel cifar100 fadrm 7 -- x --", Request("relabel", "cifar100", "fadrm", (7,)), ["x", "--"]),
        ("validate cifar10 fadrm 10 ResNet50", Request("validate", "cifar10", "fadrm", (10,), ("ResNet50",)), []),
        ("validate cifar10 fadrm 10", Request("validate", "cifar10", "fadrm", (10,), ("ResNet18",)), []),
        ("validate cifar10 fadrm 10 A -- 50", Request("validate", "cifar10", "fadrm", (50,), ("A",)), []),
        ("validate cifar10 fadrm 10 A -- 50 B", Request("validate", "cifar10", "fadrm", (50,), ("B",)), []),
        (
            "validate cifar10 fadrm 10 A -- 50 B --seed 0 1",
            Request("validate", "cifar10", "fadrm", (50,), ("B",)),
            ["--seed", "0", "1"],
        ),
        (
            "validate cifar10 fadrm 10 A -- --seed 0 1",
            Request("validate", "cifar10", "fadrm", (10,), ("A",)),
            ["--seed", "0", "1"],
        ),
        (
            "validate cifar10 fadrm 10 A -- 50 B C --seed 0",
            Request("validate", "cifar10", "fadrm", (50,), ("B", "C")),
            ["--seed", "0"],
        ),
        ("validate cifar10 fadrm 10 A -- 1 50", Request("validate", "cifar10", "fadrm", (1, 50), ("A",)), []),
        ("validate cifar10 fadrm 10 A -- B", Request("validate", "cifar10", "fadrm", (10,), ("B",)), []),
        ("validate cifar10 fadrm 1 10 B C", Request("validate", "cifar10", "fadrm", (1, 10), ("B", "C")), []),
        (
            "pretrain cifar100 -- --seed 1",
            Request("pretrain", "cifar100", models=("ResNet18", "Densenet121", "ShuffleNetV2", "MobileNetV2")),
            ["--seed", "1"],
        ),
        ("pretrain cifar100 -- A B --seed 1", Request("pretrain", "cifar100", models=("A", "B")), ["--seed", "1"]),
    ],
)
def test_parse(words, request_, extra):
    assert launch.parse(words.split()) == (request_, extra)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "usage: python -m utils.launch STAGE"),
        ("recover", "usage"),
        ("distil cifar100 fadrm 1", "usage.*stages: recover relabel validate pretrain patches"),
        ("recover mnist fadrm 1", "dataset 'mnist'"),
        ("pretrain mnist", "dataset 'mnist'"),
        ("recover cifar100 dm 1", "method 'dm'"),
        ("recover cifar100", "needs a method and its IPC"),
        ("recover cifar100 fadrm", "needs a method and its IPC"),
        ("validate cifar100 fadrm A", "a number"),
        ("recover cifar100 fadrm 1 10", "a number"),
        ("recover cifar100 fadrm 1 ResNet18", "a number"),
        ("recover cifar100 fadrm 0", "at least 1"),
    ],
)
def test_words_that_are_no_request(words, message):
    with pytest.raises(UserError, match=message):
        launch.parse(words.split())


def test_entry_words():
    words = launch.entry_words(Request("validate", "cifar100", "fadrm+", (10,), ("ResNet50",)), FOLDERS)
    assert words == [
        *("--dataset-name", "cifar100", "--recipe", "fadrm+", "--ipc", "10", "--model", "ResNet50"),
        *("--original-data-path", "/main/generated_data/syn_data/cifar100/fadrm+_ipc{ipc}"),
        *("--fkd-path", "/main/generated_data/new_labels/cifar100/fadrm+_bs{batch_size}_ipc{ipc}"),
        *("--val-dir", "/val/cifar100", "--output-dir", "/main/generated_data/validate_output"),
        *("--exp-name", "fadrm+_ipc{ipc}_{model}"),
    ]


def test_a_script_of_several_runs_finds_the_folders_of_each():
    request = Request("validate", "cifar10", "fadrm+", (1, 10), ("ResNet50", "timm:vit"))
    cells = flags.parse_cells(launch.entry_words(request, FOLDERS))
    assert [(cell.ipc, cell.model) for cell in cells] == [(i, m) for i in request.ipcs for m in request.models]
    for cell in cells:
        expected = recipes.locations("validate", "cifar10", "fadrm+", cell.ipc, cell.model, *FOLDERS.values())
        assert expected == {name: str(getattr(cell, name)) for name in expected}
    assert [cell.batch_size for cell in cells] == [10, 10, 16, 16]  # the recipe of each


def test_entry_words_of_pretrain_name_all_teachers_at_once():
    assert launch.entry_words(Request("pretrain", "cifar100", models=("A", "B")), FOLDERS) == [
        *("--dataset-name", "cifar100", "--model", "A", "B", "--train-dir", "/train/cifar100"),
        *("--val-dir", "/val/cifar100", "--model-pool-dir", "/main/pretrained_models/cifar100_pretrained_models"),
    ]


@pytest.mark.parametrize("environment", [{}, {"patch_dir": ""}])
def test_folders_that_are_not_set(environment):
    given = {"Main_Data_Path": "/main", **environment}
    with pytest.raises(UserError, match=r"^patch_dir is not set: give it in config\.sh"):
        launch.entry_words(Request("recover", "cifar100", "fadrm", (1,)), given)
    assert launch.entry_words(Request("relabel", "cifar100", "fadrm", (1,)), given)  # it needs no patches


@pytest.mark.parametrize(
    ("request_", "name"),
    [
        (Request("recover", "cifar100", "fadrm+", (10,)), "recover_cifar100_fadrm+_ipc10.log"),
        (Request("validate", "cifar100", "fadrm", (1,), ("timm:vit",)), "validate_cifar100_fadrm_ipc1_timm_vit.log"),
        (Request("validate", "cifar100", "fadrm", (1, 10), ("A",)), "validate_cifar100_fadrm_ipc1_ipc10_A.log"),
        (Request("pretrain", "cifar100", models=("A", "B")), "pretrain_cifar100.log"),
    ],
)
def test_log_path(request_, name):
    assert str(launch.log_path(request_, FOLDERS)) == f"/main/logs/{name}"


@pytest.fixture
def entry(monkeypatch, tmp_path):
    """A stand-in for recover's entry, which remembers its arguments and prints on both streams."""

    def main(words):
        module.words = words
        print("progress")
        print("warning", file=sys.stderr)

    module = types.ModuleType("stand_in")
    module.main = main
    monkeypatch.setitem(sys.modules, "stand_in", module)
    monkeypatch.setitem(recipes.ENTRIES, "recover", "stand_in")
    for name in FOLDERS:
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setattr(sys, "stdout", sys.stdout)  # so that they are put back
    monkeypatch.setattr(sys, "stderr", sys.stderr)
    return module


def test_further_arguments_come_last(entry, tmp_path, capsys):
    launch.main(["recover", "cifar100", "fadrm", "1", "--", "--lr", "0.5"])
    assert entry.words[:6] == ["--dataset-name", "cifar100", "--recipe", "fadrm", "--ipc", "1"]
    assert entry.words[-2:] == ["--lr", "0.5"]
    assert capsys.readouterr() == ("progress\n", "warning\n")
    title, *rest = (tmp_path / "logs" / "recover_cifar100_fadrm_ipc1.log").read_text().strip().splitlines()
    assert "python -m stand_in --dataset-name cifar100 --recipe fadrm --ipc 1" in title
    assert rest == ["progress", "warning"]


@pytest.fixture
def machine(monkeypatch):
    """A machine with so many GPUs."""

    def with_gpus(count):
        monkeypatch.setattr(Path, "glob", lambda folder, pattern: iter(range(count)))
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)

    return with_gpus


@pytest.mark.parametrize(
    ("gpus", "environment", "flags", "count"),
    [
        (0, {}, "", 1),
        (4, {}, "--seed 1", 4),
        (4, {}, "--device cuda", 4),
        (4, {}, "--device cuda --device cpu", 1),
        (4, {"FADRM_PROCESSES": "1"}, "", 1),
        (0, {"FADRM_PROCESSES": "3"}, "--device cpu", 3),
        (4, {"RANK": "1", "FADRM_PROCESSES": "3"}, "", 1),  # torchrun has started them
    ],
)
def test_how_many_processes(machine, gpus, environment, flags, count):
    machine(gpus)
    assert launch.how_many_processes(flags.split(), environment) == count


@pytest.mark.parametrize("given", ["0", "two", "-1"])
def test_a_number_of_processes_that_is_none(given):
    with pytest.raises(UserError, match=f"FADRM_PROCESSES={given}: it is a number"):
        launch.how_many_processes([], {"FADRM_PROCESSES": given})


def test_a_dry_run_leaves_no_log(entry, tmp_path, capsys):
    launch.main(["recover", "fashion_mnist", "fadrm", "1", "--", "--dry-run"])
    assert entry.words[-1] == "--dry-run"
    assert capsys.readouterr().out == "progress\n"
    assert not list(tmp_path.iterdir())


def test_a_python_without_what_is_needed(entry, monkeypatch):
    monkeypatch.setitem(recipes.ENTRIES, "recover", "no_such_module")
    with pytest.raises(UserError, match=r"has no no_such_module: activate .*bash utils/setup\.sh"):
        launch.main(["recover", "cifar100", "fadrm", "1"])


def test_imagenet1k_has_no_teachers_to_train(capsys):
    launch.main(["pretrain", "imagenet1k", "--", "--seed", "1"])
    assert "IMAGENET1K_V1 weights are used online; nothing to train" in capsys.readouterr().out

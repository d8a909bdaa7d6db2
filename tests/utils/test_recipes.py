"""The table of recipes, cell by cell, against the published settings typed in here."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from recover import flags as recover_flags
from relabel import flags as relabel_flags
from utils import recipes
from utils.datasets import DATASETS
from utils.errors import UserError
from validate import flags as validate_flags

PUBLISHED = ("cifar100", "tiny_imagenet", "imagenet-nette", "imagewoof", "imagenet1k")
SMALL, LARGE = ("cifar100", "cifar10"), ("imagenet-nette", "imagewoof", "imagenet1k")
IPCS = (1, 10, 50)

# dataset: sizes, classes a recover batch, relabel and validate batch, epochs
SHARED = {
    "cifar100": ([32, 32, 32, 32], 100, 16, 1000),
    "cifar10": ([32, 32, 32, 32], 10, 16, 1000),
    "tiny_imagenet": ([64, 64, 64, 64], 100, 16, 300),
    "imagenet-nette": ([200, 224, 200, 224], 10, 10, 300),
    "imagewoof": ([200, 224, 200, 224], 10, 10, 300),
    "imagenet1k": ([200, 224, 200, 224], 100, 16, 300),
}
COMMITTEE = ["ResNet18", "Densenet121", "ShuffleNetV2", "MobileNetV2"]
TINY_COMMITTEE = ["ResNet18", "ShuffleNetV2", "Densenet121", "MobileNetV2"]
# dataset: teachers of FADRM+ at IPC 1, 10, 50
FADRM_PLUS = {
    "cifar100": (COMMITTEE, COMMITTEE, COMMITTEE),
    "cifar10": (COMMITTEE, COMMITTEE, COMMITTEE),
    "tiny_imagenet": (["ResNet18", "ShuffleNetV2", "MobileNetV2"], TINY_COMMITTEE, TINY_COMMITTEE),
    "imagenet-nette": (COMMITTEE, COMMITTEE, COMMITTEE),
    "imagewoof": (["ResNet18", "ShuffleNetV2", "MobileNetV2", "Densenet121"], COMMITTEE, COMMITTEE),
    "imagenet1k": (["ResNet18", "MobileNetV2", "ShuffleNetV2", "AlexNet"], COMMITTEE, COMMITTEE),
}
# dataset student: lr / eta at IPC 1, 10, 50
RATES = """
cifar100 ResNet18 0.0005/2 0.001/2 0.001/1
cifar100 ResNet50 0.001/1 0.001/2 0.001/1
cifar100 ResNet101 0.0005/1 0.0005/1 0.0005/1
tiny_imagenet ResNet18 0.001/2 0.001/2 0.001/1
tiny_imagenet ResNet50 0.0005/2 0.0005/2 0.0005/1
tiny_imagenet ResNet101 0.0005/2 0.0005/2 0.0005/1
imagewoof ResNet18 0.0005/2 0.0005/1 0.001/2
imagewoof ResNet50 0.0005/2 0.005/1 0.0005/1
imagewoof ResNet101 0.001/1 0.0005/2 0.0005/1
imagenet-nette ResNet18 0.0005/2 0.0005/1 0.0005/2
imagenet-nette ResNet50 0.0005/2 0.0005/1 0.0005/1
imagenet-nette ResNet101 0.0005/2 0.0005/2 0.001/2
imagenet1k ResNet18 0.001/2 0.001/2 0.001/1
imagenet1k ResNet50 0.0005/2 0.001/2 0.001/1
imagenet1k ResNet101 0.0035/2 0.001/2 0.0005/1
"""


def every_published_cell():
    return [(dataset, method, ipc) for dataset in SHARED for method in ("fadrm", "fadrm+") for ipc in IPCS]


def epochs_of(dataset, ipc):
    return 1000 if (dataset, ipc) == ("tiny_imagenet", 1) else SHARED[dataset][3]


def batch_of(dataset, ipc):
    return 10 if (dataset, ipc) == ("cifar10", 1) else SHARED[dataset][2]


def teachers_of(dataset, method, ipc):
    return FADRM_PLUS[dataset][IPCS.index(ipc)] if method == "fadrm+" else ["ResNet18"]


@pytest.mark.parametrize(("dataset", "method", "ipc"), every_published_cell())
def test_recover(dataset, method, ipc):
    sizes, budgets, lr = SHARED[dataset][0], [500, 500, 500, 500], 0.25
    if (dataset, method) == ("tiny_imagenet", "fadrm"):
        sizes, budgets, lr = [64, 64], [500, 500], 0.01
    if (dataset, method) == ("imagenet-nette", "fadrm"):
        lr = 0.05
    first = 1 if (dataset, method, ipc) == ("imagenet1k", "fadrm+", 1) else 0
    assert recipes.settings("recover", dataset, method, ipc) == {
        "teacher_model_list": teachers_of(dataset, method, ipc),
        "pretrained_model_type": "online" if dataset == "imagenet1k" else "offline",
        "initialisation_method": "Patches",
        "patch_diff": "medium",
        "ipc_start": first,
        "ipc_end": first + ipc,
        "batch_size": SHARED[dataset][1],
        "input_size_lis": sizes,
        "optimization_budgets": budgets,
        "alpha": 0.5,
        "lr": lr,
        "r_bn": 0.01,
        "first_bn_multiplier": 10,
        "apply_data_augmentation": True,
    }


@pytest.mark.parametrize(("dataset", "method", "ipc"), every_published_cell())
def test_relabel(dataset, method, ipc):
    several = method == "fadrm+"
    assert recipes.settings("relabel", dataset, method, ipc) == {
        "teacher_model_name": None if several else "ResNet18",
        "multi_model": several,
        "model_choice": teachers_of(dataset, method, ipc) if several else None,
        "model_weight": None,
        "online": dataset == "imagenet1k",
        "eval_mode": "T" if (dataset, method) == ("tiny_imagenet", "fadrm") else "F",
        "epochs": epochs_of(dataset, ipc),
        "batch_size": batch_of(dataset, ipc),
        "fkd_seed": 42,
        "min_scale_crops": 0.08,
        "max_scale_crops": 1,
        "mix_type": "cutmix",
        "cutmix": 1,
        "use_fp16": True,
    }


@pytest.mark.parametrize(("dataset", "method", "ipc"), every_published_cell())
def test_validate(dataset, method, ipc):
    lr, eta, _ = recipes.student_rate(dataset, "ResNet50", ipc)
    assert recipes.settings("validate", dataset, method, ipc, model="ResNet50") == {
        "model": "ResNet50",
        "epochs": epochs_of(dataset, ipc),
        "batch_size": batch_of(dataset, ipc),
        "gradient_accumulation_steps": 2,
        "temperature": 20,
        "mix_type": "cutmix",
        "min_scale": 0.08,
        "cos": True,
        "adamw_lr": lr,
        "eta": eta,
        "adamw_weight_decay": 0.01,
    }


@pytest.mark.parametrize("row", RATES.strip().splitlines())
def test_student_rates(row):
    dataset, student, *cells = row.split()
    for ipc, cell in zip(IPCS, cells, strict=True):
        lr, eta = cell.split("/")
        assert recipes.student_rate(dataset, student, ipc) == (float(lr), int(eta), False)


def test_no_rate_beyond_the_published_ones():
    assert len(recipes.STUDENT_RATES) - len(recipes.FASHION_MNIST_RATES) == len(RATES.strip().splitlines())


@pytest.mark.parametrize(
    ("dataset", "student", "ipc", "expected"),
    [
        ("cifar10", "ResNet18", 1, (0.0005, 2)),
        ("cifar10", "ResNet18", 10, (0.0005, 2)),
        ("cifar10", "ResNet18", 50, (0.001, 1)),
        ("cifar100", "MobileNetV2", 10, (0.0005, 2)),
        ("cifar100", "ResNet18", 11, (0.001, 1)),
        ("cifar100", "ResNet18", 2, (0.0005, 2)),
    ],
)
def test_default_rates_say_that_they_are(dataset, student, ipc, expected):
    assert recipes.student_rate(dataset, student, ipc) == (*expected, True)


@pytest.mark.parametrize(
    ("dataset", "expected"),
    [
        ("cifar100", ("adam", 0.001, 512, 200)),
        ("cifar10", ("adam", 0.001, 512, 200)),
        ("tiny_imagenet", ("sgd", 0.01, 128, 50)),
        ("imagenet-nette", ("sgd", 0.01, 64, 300)),
        ("imagewoof", ("sgd", 0.01, 64, 300)),
    ],
)
def test_teacher_training(dataset, expected):
    optimizer, lr, batch_size, epochs = expected
    assert recipes.settings("pretrain", dataset, None, None, model="Densenet121") == {
        "model": "Densenet121",
        "optimizer": optimizer,
        "lr": lr,
        "batch_size": batch_size,
        "epochs": epochs,
        "momentum": 0.9,
        "weight_decay": 1e-4,
    }


def test_the_teachers_of_imagenet1k_are_not_trained():
    with pytest.raises(UserError, match=r"torchvision's.*nothing to train"):
        recipes.settings("pretrain", "imagenet1k", None, None)


def test_whole_data_accuracy():
    expected = (78.9, 68.9, 93.8, 88.2, 72.3)
    assert dict(zip(PUBLISHED, expected, strict=True)) == recipes.WHOLE_DATA_TOP1


@pytest.mark.parametrize("dataset", SHARED)
def test_patches(dataset):
    assert recipes.settings("patches", dataset, "fadrm+", 1) == {
        "observer": "ResNet18",
        "pretrained_model_type": "online" if dataset == "imagenet1k" else "offline",
        "patch_diff": "medium",
        "patches_per_class": 50,
        "max_images": 300,
        "num_crops": 5,
        "area_min": 0.08,
        "area_max": 1,
        "factor": 1,
    }


def test_more_images_than_patches_ask_for_more_patches():
    assert recipes.settings("patches", "cifar100", "fadrm", 60)["patches_per_class"] == 60


@pytest.mark.parametrize(
    ("dataset", "expected"),
    [
        ("cifar100", COMMITTEE),
        ("tiny_imagenet", TINY_COMMITTEE),
        ("imagenet1k", ["ResNet18", "MobileNetV2", "ShuffleNetV2", "AlexNet", "Densenet121"]),
    ],
)
def test_all_teachers(dataset, expected):
    assert sorted(recipes.all_teachers(dataset)) == sorted(expected)


@pytest.mark.parametrize("dataset", recipes.DATASETS)
@pytest.mark.parametrize("method", recipes.METHODS)
@pytest.mark.parametrize("ipc", [1, 2, 10, 20, 50, 100])
def test_stages_agree_with_each_other(dataset, method, ipc):
    recover, relabel, validate = (
        recipes.settings(stage, dataset, method, ipc) for stage in ("recover", "relabel", "validate")
    )
    labelling = relabel["model_choice"] if relabel["multi_model"] else [relabel["teacher_model_name"]]
    assert recover["teacher_model_list"] == labelling == recipes.teachers(dataset, method, ipc)
    assert (relabel["epochs"], relabel["batch_size"]) == (validate["epochs"], validate["batch_size"])
    assert recover["ipc_end"] - recover["ipc_start"] == ipc
    assert recover["input_size_lis"][-1] == DATASETS[dataset].size
    assert len(recover["input_size_lis"]) == len(recover["optimization_budgets"])
    assert DATASETS[dataset].num_classes % recover["batch_size"] == 0
    assert set(recover["teacher_model_list"]) <= set(recipes.all_teachers(dataset))


def test_the_table_covers_the_datasets():
    assert set(recipes.DATASETS) == set(DATASETS)
    assert recipes.METHODS == ("fadrm", "fadrm+")


@pytest.mark.parametrize("stage", ["recover", "relabel", "validate", "patches"])
@pytest.mark.parametrize(
    ("dataset", "method", "ipc", "message"),
    [
        ("cifar1000", "fadrm", 10, "dataset 'cifar1000'; there are: .*cifar100"),
        ("cifar100", "fadrm++", 10, r"method 'fadrm\+\+'; there are: fadrm fadrm\+"),
        ("cifar100", "fadrm", 0, "IPC 0: .*at least 1"),
    ],
)
def test_unknown_recipes(stage, dataset, method, ipc, message):
    with pytest.raises(UserError, match=message):
        recipes.settings(stage, dataset, method, ipc)
    with pytest.raises(UserError, match=message):
        recipes.locations(stage, dataset, method, ipc)


def test_a_new_method_is_one_line(monkeypatch):
    new = recipes.line("cifar100", "crops_only", teachers=("ResNet18",), budgets=(), sizes=(32,), alpha=1.0)
    monkeypatch.setattr(recipes, "LINES", (*recipes.LINES, new))
    monkeypatch.setattr(recipes, "METHODS", (*recipes.METHODS, "crops_only"))
    assert recipes.settings("recover", "cifar100", "crops_only", 10)["optimization_budgets"] == []
    assert recipes.settings("recover", "cifar100", "fadrm", 10)["alpha"] == 0.5


def test_locations():
    where = {"root": "/r", "train_dir": "/t", "val_dir": "/v", "patch_dir": "/p"}
    pool = "/r/pretrained_models/cifar10_pretrained_models"
    images, labels = "/r/generated_data/syn_data/cifar10", "/r/generated_data/new_labels/cifar10"
    assert {
        stage: recipes.locations(stage, "cifar10", "fadrm+", 1, "ResNet50", **where) for stage in recipes.ENTRIES
    } == {
        "recover": {
            "syn_data_path": images,
            "exp_name": "fadrm+_ipc1",
            "patch_dir": "/p/cifar10",
            "model_pool_dir": pool,
        },
        "relabel": {"syn_data_path": f"{images}/fadrm+_ipc1", "fkd_path": f"{labels}/fadrm+", "model_pool_dir": pool},
        "validate": {
            "original_data_path": f"{images}/fadrm+_ipc1",
            "fkd_path": f"{labels}/fadrm+_bs10_ipc1",
            "val_dir": "/v/cifar10",
            "output_dir": "/r/generated_data/validate_output",
            "exp_name": "fadrm+_ipc1_ResNet50",
        },
        "pretrain": {"train_dir": "/t/cifar10", "val_dir": "/v/cifar10", "model_pool_dir": pool},
        "patches": {"train_dir": "/t/cifar10", "patch_dir": "/p/cifar10", "model_pool_dir": pool},
    }


def test_timm_students_have_plain_file_names():
    assert recipes.locations("validate", "cifar10", "fadrm", 1, "timm:vit")["exp_name"] == "fadrm_ipc1_timm_vit"


def test_flags():
    values = {"use_fp16": True, "cos": False, "model_weight": None, "lr": 0.25, "sizes": [32, 64]}
    assert recipes.flags(values) == [["--use-fp16"], ["--lr", "0.25"], ["--sizes", "32", "64"]]


def printed_commands(script, tmp_path):
    """The words of each `python` command that a shell runs in `script`."""
    stub = tmp_path / "python"
    stub.write_text('#!/usr/bin/env bash\nprintf "%q " "$@"\necho\n')
    stub.chmod(0o755)
    (tmp_path / "config.sh").write_text('Main_Data_Path="/my data" patch_dir=/patches val_dir=/val\n')
    run = f'export PATH="{tmp_path}:$PATH"; cd "{tmp_path}" && {{ {script}\n}}'
    done = subprocess.run(["bash", "-euc", run], capture_output=True, text=True, check=True)
    return [shlex.split(line) for line in done.stdout.splitlines()]


def test_printed_commands_are_shell_with_every_flag(capsys, tmp_path):
    recipes.main(["imagenet1k", "fadrm+", "1", "ResNet50"])
    script = capsys.readouterr().out
    recover, relabel, validate = printed_commands(script, tmp_path)
    for stage, words in (("recover", recover), ("relabel", relabel), ("validate", validate)):
        assert words[:2] == ["-m", recipes.ENTRIES[stage]]
        for name, value in recipes.settings(stage, "imagenet1k", "fadrm+", 1, "ResNet50").items():
            flag = f"--{name.replace('_', '-')}"
            assert (flag in words) == (value is not None and value is not False)
            if flag in words and value is not True:
                values = [str(item) for item in (value if isinstance(value, list) else [value])]
                place = words.index(flag) + 1
                assert words[place : place + len(values)] == values
    assert relabel[relabel.index("--fkd-path") + 1] == "/my data/generated_data/new_labels/imagenet1k/fadrm+"
    assert recover[recover.index("--patch-dir") + 1] == "/patches/imagenet1k"
    assert validate[validate.index("--method") + 1] == "fadrm+"
    assert "72.3 %" in script
    assert "default" not in script


@pytest.mark.parametrize("dataset", recipes.DATASETS)
@pytest.mark.parametrize("method", recipes.METHODS)
@pytest.mark.parametrize(
    ("stage", "parse"),
    [("recover", recover_flags.parse), ("relabel", relabel_flags.parse), ("validate", validate_flags.parse)],
)
def test_spelled_out_flags_mean_what_the_recipe_means(dataset, method, stage, parse):
    """The entries take both ways of giving a recipe, and resolve them to the same settings."""
    cell = (stage, dataset, method, 1, "ResNet18")
    named = {"dataset_name": dataset, "recipe": method, "ipc": 1, "model": "ResNet18" if stage == "validate" else None}
    spelled = {"dataset_name": dataset, "ipc": 1, **recipes.settings(*cell)}
    by_name, by_flag = (
        vars(parse([word for words in recipes.flags(given | recipes.locations(*cell)) for word in words]))
        for given in (named, spelled)
    )
    for settings in (by_name, by_flag):
        settings.pop("recipe")
        settings.pop("method", None)  # without --recipe it is --method that names it
    assert by_name == by_flag


def test_printed_commands_say_which_rates_are_defaults(capsys):
    recipes.main(["cifar10", "fadrm", "50"])
    assert "No rate is published for ResNet18 here" in capsys.readouterr().out


@pytest.mark.parametrize("words", ["", "cifar10 fadrm", "cifar10 fadrm ten", "cifar10 fadrm 1 ResNet18 more"])
def test_usage(words):
    with pytest.raises(UserError, match=r"usage: python -m utils\.recipes DATASET METHOD IPC"):
        recipes.main(words.split())


def test_recipes_do_not_import_torch():
    code = "import sys, utils.launch, utils.recipes; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=Path(recipes.__file__).parents[1], check=True)

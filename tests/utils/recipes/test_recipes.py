"""The recipes, cell by cell, against the published settings typed in here."""

import shlex
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

import recover.recover  # what enters the names that recover's settings choose from
from utils import recipes
from utils.data.table import DATASETS, get_dataset
from utils.recipes import __main__ as printing
from utils.recipes import rates, teachers
from utils.run.errors import UserError

ROOT = Path(__file__).parents[3]
PUBLISHED = ("cifar100", "tiny_imagenet", "imagenet-nette", "imagewoof", "imagenet1k")
IPCS = (1, 10, 50)
METHODS = ("fadrm", "fadrm+", "fadrm++", "rded", "sre2l++", "cv-dd", "g-vbsm", "edc")

# dataset: sizes, classes a recover batch, relabel and validate batch, epochs
SHARED = {
    "cifar100": ((32, 32, 32, 32), 100, 16, 1000),
    "cifar10": ((32, 32, 32, 32), 10, 16, 1000),
    "tiny_imagenet": ((64, 64, 64, 64), 100, 16, 300),
    "imagenet-nette": ((200, 224, 200, 224), 10, 10, 300),
    "imagewoof": ((200, 224, 200, 224), 10, 10, 300),
    "imagenet1k": ((200, 224, 200, 224), 100, 16, 300),
}
COMMITTEE = ("ResNet18", "Densenet121", "ShuffleNetV2", "MobileNetV2")
TINY_COMMITTEE = ("ResNet18", "ShuffleNetV2", "Densenet121", "MobileNetV2")
# dataset: teachers of FADRM+ at IPC 1, 10, 50
FADRM_PLUS = {
    "cifar100": (COMMITTEE, COMMITTEE, COMMITTEE),
    "cifar10": (COMMITTEE, COMMITTEE, COMMITTEE),
    "tiny_imagenet": (("ResNet18", "ShuffleNetV2", "MobileNetV2"), TINY_COMMITTEE, TINY_COMMITTEE),
    "imagenet-nette": (COMMITTEE, COMMITTEE, COMMITTEE),
    "imagewoof": (("ResNet18", "ShuffleNetV2", "MobileNetV2", "Densenet121"), COMMITTEE, COMMITTEE),
    "imagenet1k": (("ResNet18", "MobileNetV2", "ShuffleNetV2", "AlexNet"), COMMITTEE, COMMITTEE),
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
imagewoof ResNet50 0.0005/2 0.0005/1 0.0005/1
imagewoof ResNet101 0.001/1 0.0005/2 0.0005/1
imagenet-nette ResNet18 0.0005/2 0.0005/1 0.0005/2
imagenet-nette ResNet50 0.0005/2 0.0005/1 0.0005/1
imagenet-nette ResNet101 0.0005/2 0.0005/2 0.001/2
imagenet1k ResNet18 0.001/2 0.001/2 0.001/1
imagenet1k ResNet50 0.0005/2 0.001/2 0.001/1
imagenet1k ResNet101 0.0005/2 0.001/2 0.0005/1
"""


def every_published_cell():
    return [(dataset, method, ipc) for dataset in SHARED for method in ("fadrm", "fadrm+") for ipc in IPCS]


def chosen(stage, dataset, method, ipc, **others):
    """What a recipe sets in a stage, by name, and the defaults that it leaves as they are aside."""
    return recipes.settings_of(recipes.stage_of(stage, get_dataset(dataset), method, ipc, **others))


def epochs_of(dataset, ipc):
    return 1000 if (dataset, ipc) == ("tiny_imagenet", 1) else SHARED[dataset][3]


def batch_of(dataset, ipc):
    return 10 if (dataset, ipc) == ("cifar10", 1) else SHARED[dataset][2]


def teachers_of(dataset, method, ipc):
    return FADRM_PLUS[dataset][IPCS.index(ipc)] if method == "fadrm+" else ("ResNet18",)


def without_defaults(settings, **defaults):
    return {name: value for name, value in settings.items() if defaults.get(name) != value}


@pytest.mark.parametrize(("dataset", "method", "ipc"), every_published_cell())
def test_recover(dataset, method, ipc):
    sizes, budgets, lr = SHARED[dataset][0], (500, 500, 500, 500), 0.25
    if (dataset, method) == ("tiny_imagenet", "fadrm"):
        sizes, budgets, lr = (64, 64), (500, 500), 0.01
    if (dataset, method) == ("imagenet-nette", "fadrm"):
        lr = 0.05
    first = 1 if (dataset, method, ipc) == ("imagenet1k", "fadrm+", 1) else 0
    expected = {
        "teachers": teachers_of(dataset, method, ipc),
        "source": "online" if dataset == "imagenet1k" else "offline",
        "start": "Patches",
        "ipc_start": first,
        "ipc_end": first + ipc,
        "classes_a_batch": SHARED[dataset][1],
        "sizes": sizes,
        "budgets": budgets,
        "alpha": 0.5,
        "lr": lr,
        "r_bn": 0.01,
        "augment": True,
    }
    defaults = {"teachers": ("ResNet18",), "source": "offline", "ipc_start": 0, "classes_a_batch": 100}
    assert chosen("recover", dataset, method, ipc) == without_defaults(expected, **defaults)
    full = recipes.stage_of("recover", get_dataset(dataset), method, ipc)
    assert (full.selector, full.first_bn_multiplier, full.committee) == ("medium", 10, "in_turn")
    assert (full.terms, full.residual, full.probe, full.amp) == (("cross_entropy", "r_bn"), "mix", "bn_input", "auto")


@pytest.mark.parametrize(("dataset", "method", "ipc"), every_published_cell())
def test_relabel(dataset, method, ipc):
    expected = {
        "teachers": teachers_of(dataset, method, ipc),
        "source": "online" if dataset == "imagenet1k" else "offline",
        "eval_mode": "T" if (dataset, method) == ("tiny_imagenet", "fadrm") else "F",
        "epochs": epochs_of(dataset, ipc),
        "batch_size": batch_of(dataset, ipc),
        "mix": "cutmix",
        "use_fp16": True,
    }
    assert chosen("relabel", dataset, method, ipc) == without_defaults(
        expected, source="offline", eval_mode="F", epochs=300
    )
    full = recipes.stage_of("relabel", get_dataset(dataset), method, ipc)
    assert (full.fkd_seed, full.min_scale, full.max_scale, full.cutmix) == (42, 0.08, 1, 1)
    assert (full.weighting, full.model_weight, full.tiles) == ("equal", (), 1)


@pytest.mark.parametrize(("dataset", "method", "ipc"), every_published_cell())
def test_validate(dataset, method, ipc):
    lr, eta, _ = recipes.student_rate(get_dataset(dataset), method, "ResNet50", ipc)
    expected = {
        "model": "ResNet50",
        "epochs": epochs_of(dataset, ipc),
        "batch_size": batch_of(dataset, ipc),
        "accumulation": 2,
        "temperature": 20,
        "mix": "cutmix",
        "schedule": "cosine",
        "adamw_lr": lr,
        "eta": eta,
    }
    assert chosen("validate", dataset, method, ipc, student="ResNet50") == without_defaults(
        expected, epochs=300, batch_size=16
    )
    full = recipes.stage_of("validate", get_dataset(dataset), method, ipc)
    assert (full.min_scale, full.adamw_weight_decay, full.loss, full.optimizer) == (0.08, 0.01, "kl", "adamw")


@pytest.mark.parametrize("row", RATES.strip().splitlines())
@pytest.mark.parametrize("method", METHODS)
def test_student_rates(row, method):
    dataset, student, *cells = row.split()
    for ipc, cell in zip(IPCS, cells, strict=True):
        lr, eta = map(float, cell.split("/"))
        assert recipes.student_rate(get_dataset(dataset), method, student, ipc) == (lr, eta, False)


def test_no_rate_beyond_the_published_ones():
    own = [key for key in rates.STUDENT_RATES if key[0] == "fashion_mnist"]
    assert len(rates.STUDENT_RATES) - len(own) == len(RATES.strip().splitlines())


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
@pytest.mark.parametrize("method", [None, "fadrm"])
def test_default_rates_say_that_they_are(dataset, student, ipc, expected, method):
    assert recipes.student_rate(get_dataset(dataset), method, student, ipc) == (*expected, True)


def test_a_method_may_have_rates_of_its_own(monkeypatch):
    from dataclasses import replace

    def own(dataset, ipc):
        return replace(recipes.METHODS["fadrm"](dataset, ipc), rates={"ResNet18": (0.5, 3)})

    monkeypatch.setitem(recipes.METHODS, "own", own)
    cifar = get_dataset("cifar100")
    assert recipes.student_rate(cifar, "own", "ResNet18", 10) == (0.5, 3, False)
    assert recipes.student_rate(cifar, "fadrm", "ResNet18", 10) == (0.001, 2, False)
    assert recipes.stage_of("validate", cifar, "own", 10).adamw_lr == 0.5


@pytest.mark.parametrize(
    ("dataset", "expected"),
    [
        ("cifar100", ("sgd", 0.1, 128, 50)),
        ("cifar10", ("sgd", 0.1, 128, 50)),
        ("tiny_imagenet", ("sgd", 0.1, 64, 150)),
        ("imagenet-nette", ("sgd", 0.01, 128, 300)),
        ("imagewoof", ("sgd", 0.1, 128, 50)),
    ],
)
def test_teacher_training(dataset, expected):
    settings = teachers.teacher_training(get_dataset(dataset))
    assert (settings.optimizer, settings.lr, settings.batch_size, settings.epochs) == expected
    assert (settings.momentum, settings.weight_decay) == (0.9, 1e-4)


def test_whole_data_accuracy():
    expected = (78.9, 68.9, 93.8, 88.2, 72.3)
    assert dict(zip(PUBLISHED, expected, strict=True)) == teachers.WHOLE_DATA_TOP1


@pytest.mark.parametrize("dataset", SHARED)
def test_patches(dataset):
    settings = recipes.stage_of("patches", get_dataset(dataset), "fadrm+", 1)
    assert settings.source == ("online" if dataset == "imagenet1k" else "offline")
    found = (settings.observer, settings.selector, settings.patches_per_class, settings.max_images, settings.num_crops)
    assert found == ("ResNet18", "medium", 50, 300, 5)
    assert (settings.crop_area, settings.factor, settings.tile_stride) == ((0.08, 1), 1, 1)
    assert settings.crops_at_once == 250  # whatever a student's batches are


def test_more_images_than_patches_ask_for_more_patches():
    assert recipes.stage_of("patches", get_dataset("cifar100"), "fadrm", 60).patches_per_class == 60


@pytest.mark.parametrize(
    ("dataset", "method", "expected"),
    [
        ("cifar100", "fadrm+", COMMITTEE),
        ("cifar100", "fadrm", ("ResNet18",)),
        ("cifar100", "cv-dd", (*COMMITTEE, "ResNet50")),
        ("imagenet1k", "fadrm+", ("ResNet18", "MobileNetV2", "ShuffleNetV2", "AlexNet", "Densenet121")),
    ],
)
def test_all_teachers_of_a_method(dataset, method, expected):
    assert sorted(recipes.teachers_of(get_dataset(dataset), method)) == sorted(expected)


@pytest.mark.parametrize("dataset", DATASETS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("ipc", [1, 2, 10, 20, 50, 100])
def test_stages_agree_with_each_other(dataset, method, ipc):
    recipe = recipes.recipe_of(get_dataset(dataset), method, ipc)
    recover, relabel, validate, patches = recipe.recover, recipe.relabel, recipe.validate, recipe.patches
    assert set(recover.teachers) <= set(relabel.teachers)
    assert (relabel.epochs, relabel.batch_size) == (validate.epochs, validate.batch_size)
    assert relabel.min_scale == validate.min_scale and relabel.mix == validate.mix
    assert recover.ipc_end - recover.ipc_start == ipc
    assert (recover.selector, recover.patch_dir) == (patches.selector, patches.patch_dir)
    assert patches.patches_per_class >= recover.ipc_end
    assert len(recover.sizes) == len(recover.budgets)
    assert recover.sizes == () or recover.sizes[-1] == DATASETS[dataset].size
    assert recover.layout == "class_major" or DATASETS[dataset].num_classes % recover.classes_a_batch == 0
    assert relabel.tiles == (1 if method == "edc" else patches.factor)


def test_the_methods_there_are():
    assert sorted(recipes.METHODS) == sorted(METHODS)


def test_a_recipe_sets_names_that_stages_have():
    recipe = recipes.recipe_of(get_dataset("cifar100"), "fadrm", 10)
    assert recipe.set(teachers=("A",)).recover.teachers == recipe.set(teachers=("A",)).relabel.teachers == ("A",)
    assert recipe.set_in("recover", teachers=("A",)).relabel.teachers == ("ResNet18",)
    with pytest.raises(ValueError, match="no stage has the settings \\['alhpa'\\]"):
        recipe.set(alhpa=0.5)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--dataset-name cifar1000 --recipe fadrm --ipc 10", "unknown dataset 'cifar1000'; there are: .*cifar100"),
        ("--dataset-name cifar100 --recipe fadrm* --ipc 10", r"method 'fadrm\*'; there are: .*fadrm fadrm\+"),
        ("--dataset-name cifar100 --recipe fadrm --ipc 0", "IPC 0: .*at least 1"),
        ("--dataset-name cifar100 --recipe fadrm", "--recipe needs --dataset-name and --ipc"),
    ],
)
@pytest.mark.parametrize("stage", ["recover", "relabel", "validate", "patches"])
def test_unknown_recipes(stage, words, message):
    with pytest.raises(UserError, match=message):
        recipes.parse(stage, words.split())


CONFIG = {"Main_Data_Path": "/r", "train_dir": "/t", "val_dir": "/v", "patch_dir": "/p"}


@pytest.fixture
def config(monkeypatch):
    for name, folder in CONFIG.items():
        monkeypatch.setenv(name, folder)


def test_places():
    """Where everything lies in the folders of config.sh."""

    def places(stage, **others):
        settings = recipes.in_places(stage, get_dataset("cifar10"), "fadrm+", 1, CONFIG, **others)
        values = {field.name: getattr(settings, field.name) for field in fields(settings) if field.metadata["place"]}
        return {name: str(value) for name, value in values.items()}

    pool = "/r/pretrained_models/cifar10_pretrained_models"
    images, labels = "/r/generated_data/syn_data/cifar10", "/r/generated_data/new_labels/cifar10"
    assert places("recover") == {
        "train_dir": "/t/cifar10",
        "syn_data_path": images,
        "exp_name": "fadrm+_ipc1",
        "patch_dir": "/p/cifar10",
        "model_pool_dir": pool,
    }
    assert places("relabel") == {
        "syn_data_path": f"{images}/fadrm+_ipc1",
        "fkd_path": f"{labels}/fadrm+",
        "model_pool_dir": pool,
    }
    assert places("validate", student="ResNet50") == {
        "original_data_path": f"{images}/fadrm+_ipc1",
        "fkd_path": f"{labels}/fadrm+_bs10_ipc1",
        "val_dir": "/v/cifar10",
        "output_dir": "/r/generated_data/validate_output",
        "exp_name": "fadrm+_ipc1_ResNet50",
    }
    assert places("patches") == {"train_dir": "/t/cifar10", "patch_dir": "/p/cifar10", "model_pool_dir": pool}
    assert places("validate", student="timm:vit")["exp_name"] == "fadrm+_ipc1_timm_vit"
    baseline = places("relabel", images="random")
    assert baseline["syn_data_path"] == f"{images}/random_ipc1"
    assert baseline["fkd_path"] == f"{labels}/random_by_fadrm+"
    baseline = places("validate", images="random")
    assert baseline["exp_name"] == "random_by_fadrm+_ipc1_ResNet18"
    assert baseline["fkd_path"] == f"{labels}/random_by_fadrm+_bs10_ipc1"


def test_flags_win_over_places_and_may_have_what_a_run_has_in_their_names(config):
    words = "--dataset-name cifar10 --recipe fadrm --ipc 10 --syn-data-path /mine/{dataset} --exp-name x{ipc}"
    settings = recipes.parse("recover", words.split())
    assert (str(settings.syn_data_path), settings.exp_name) == ("/mine/cifar10", "x10")


@pytest.mark.parametrize("missing", CONFIG)
def test_a_folder_that_config_sh_does_not_name_is_named(config, monkeypatch, missing):
    monkeypatch.delenv(missing)
    stage = {"train_dir": "pretrain", "val_dir": "validate", "patch_dir": "patches"}.get(missing, "recover")
    words = ["--dataset-name", "cifar10", "--recipe", "fadrm", *([] if stage == "pretrain" else ["--ipc", "1"])]
    with pytest.raises(UserError, match=f"^{missing} is not set: give it in config.sh"):
        recipes.parse(stage, words)


def printed_commands(script, tmp_path):
    """The words of each `python` command that a shell runs in `script`."""
    stub = tmp_path / "python"
    stub.write_text('#!/usr/bin/env bash\nprintf "%q " "$@"\necho\n')
    stub.chmod(0o755)
    (tmp_path / "config.sh").write_text('Main_Data_Path="/my data" patch_dir=/patches val_dir=/val\n')
    run = f'export PATH="{tmp_path}:$PATH"; cd "{tmp_path}" && {{ {script}\n}}'
    done = subprocess.run(["bash", "-euc", run], capture_output=True, text=True, check=True)
    return [shlex.split(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("dataset", DATASETS)
@pytest.mark.parametrize("method", METHODS)
def test_printed_commands_are_shell_that_means_what_the_recipe_means(dataset, method, tmp_path, monkeypatch):
    """The entries take both ways of giving a recipe, and resolve them to the same settings."""
    for name in ("Main_Data_Path", "patch_dir", "val_dir", "train_dir"):
        monkeypatch.setenv(name, {"Main_Data_Path": "/my data", "patch_dir": "/patches"}.get(name, "/val"))
    commands = printed_commands(printing.commands(dataset, method, 1, "ResNet50"), tmp_path)
    for stage, words in zip(("recover", "relabel", "validate"), commands, strict=True):
        assert words[:2] == ["-m", recipes.STAGES[stage].module]
        named = ["--dataset-name", dataset, "--recipe", method, "--ipc", "1"]
        named += ["--model", "ResNet50"] if stage == "validate" else []
        by_name, by_flag = recipes.parse(stage, named), recipes.parse(stage, words[2:])
        for field in fields(by_name):
            if field.name != "recipe":
                assert getattr(by_name, field.name) == getattr(by_flag, field.name), field.name


def test_printed_commands_say_what_the_paper_has_and_which_rates_are_defaults():
    assert "72.3 %" in printing.commands("imagenet1k", "fadrm+", 1)
    assert "No rate is published" not in printing.commands("imagenet1k", "fadrm+", 1)
    assert "No rate is published for ResNet18 here" in printing.commands("cifar10", "fadrm", 50)


@pytest.mark.parametrize("words", ["cifar10 fadrm", "cifar10 fadrm ten", "cifar10 fadrm 1 ResNet18 more", "--help"])
def test_usage(words):
    with pytest.raises(UserError, match=r"usage: python -m utils\.recipes \[DATASET METHOD IPC \[STUDENT\]\]"):
        printing.main(words.split())


def test_without_words_the_methods_are_listed(capsys):
    printing.main([])
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[: len(METHODS)]] == sorted(METHODS)


def test_recipes_do_not_import_torch():
    code = "import sys, utils.recipes.__main__; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


assert recover.recover  # imported for the names it enters

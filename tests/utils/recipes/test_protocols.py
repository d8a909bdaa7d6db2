"""Protocols: how labels and students change with --labels and --protocol, and where what they make lies."""

import json
from dataclasses import replace

import pytest
import torch

from relabel import relabel
from tests.utils.recipes.test_methods import folders, through_all_stages  # noqa: F401 (a fixture)
from utils import recipes
from utils.data.table import get_dataset
from utils.recipes.settings import ValidateSettings
from utils.run.errors import UserError
from validate import validate
from validate.report import cell_of, report_cell
from validate.training import build_optimiser

CIFAR, FASHION = get_dataset("cifar100"), get_dataset("fashion_mnist")


def stages(labels, method="fadrm+", dataset=CIFAR, ipc=10):
    return [recipes.stage_of(stage, dataset, method, ipc, labels=labels) for stage in ("relabel", "validate")]


def test_views_are_the_recipe_itself():
    recipe = recipes.recipe_of(CIFAR, "fadrm+", 10)
    assert stages("views")[0] == recipe.relabel


def test_fixed_and_hard_have_one_store_and_students_of_their_own():
    fixed, student = stages("fixed")
    hard, other = stages("hard")
    assert (fixed.mix, fixed.eval_mode, fixed.batch_size, fixed.epochs) == (None, "T", 256, 1000)
    assert {name for name, value in vars(fixed).items() if value != getattr(hard, name)} == {"labels"}
    found = (student.loss, student.temperature, student.adamw_lr, student.eta, student.schedule, student.accumulation)
    assert found == ("kl_squared", 20, 0.001, 1, "cosine", 1)
    found = (other.loss, other.optimizer, other.sgd_lr, other.momentum, other.weight_decay, other.schedule)
    assert found == ("cross_entropy", "sgd", 0.01, 0.9, 5e-4, "step")
    assert (student.augmentation, other.augmentation) == ("dsa", "dsa")
    assert stages("fixed", ipc=1)[0].batch_size == 100  # no more than there are images
    rates = [stages(labels, "fadrm", FASHION)[1] for labels in ("fixed", "hard")]
    assert (rates[0].adamw_lr, rates[1].sgd_lr) == (0.02, 0.05)  # its own, as its batch and epochs are


@pytest.mark.parametrize(
    ("dataset", "method", "others"), [("cifar100", "fadrm+", {}), ("imagenet1k", "rded", {"tiles": 1})]
)
def test_plain_is_views_but_for_what_is_seen_and_its_labels(dataset, method, others):
    plain, views = (stages(labels, method, get_dataset(dataset)) for labels in ("plain", "views"))
    changed = [
        {name: value for name, value in vars(one).items() if value != getattr(other, name)}
        for one, other in zip(plain, views, strict=True)
    ]
    assert changed[0] == {"labels": "plain", "mix": None, "eval_mode": "T", **others}
    assert changed[1] == {"labels": "plain", "mix": None, "augmentation": "none"}


def test_as_many_images_are_shown_under_each():
    epochs = {labels: stages(labels)[1].epochs for labels in ("views", "fixed", "hard", "plain")}
    assert set(epochs.values()) == {1000}


@pytest.mark.parametrize(
    ("dataset", "method", "expected"),
    [
        ("cifar100", "g-vbsm", (1000, 64, "mse_ce", 0.15, "sgd", "cosine", 1.0, 0.0, 0.08)),
        ("cifar10", "g-vbsm", (1000, 100, "mse_ce", 0.15, "adamw", "cosine", 1.0, 0.0, 0.08)),
        ("tiny_imagenet", "g-vbsm", (100, 100, "mse_ce", 0.1, "sgd", "cosine", 1.0, 0.0, 0.08)),
        ("imagenet1k", "g-vbsm", (300, 1024, "mse_ce", 0.1, "adamw", "cosine", 1.0, 0.0, 0.08)),
        ("cifar100", "edc", (1000, 50, "mse_ce", 0.025, "sgd", "edc", 2.0, 0.99, 0.5)),
        ("imagenet1k", "edc", (300, 100, "mse_ce", 0.025, "adamw", "cosine", 2.0, 0.99, 0.5)),
        ("cifar10", "edc", (1000, 10, "mse_ce", 0.025, "adamw", "cosine", 2.0, 0.99, 0.08)),
    ],
)
def test_protocols_of_their_own(dataset, method, expected):
    labels, student = stages("own", method, get_dataset(dataset))
    names = ("epochs", "batch_size", "loss", "gamma", "optimizer", "schedule", "eta", "ema", "min_scale")
    assert tuple(getattr(student, name) for name in names) == expected
    assert (labels.epochs, labels.batch_size, labels.min_scale) == (
        student.epochs,
        student.batch_size,
        student.min_scale,
    )
    assert labels.eval_mode == "T" and labels.mix == "cutmix"
    assert labels.weighting == ("norm" if (dataset, method) == ("imagenet1k", "g-vbsm") else "equal")


@pytest.mark.parametrize(
    ("dataset", "ipc", "student", "expected"),
    [
        ("cifar10", 1, "ResNet18", (300, 10, 1.0, 0.001)),
        ("cifar10", 10, "MobileNetV2", (300, 50, 1.0, 0.0025)),
        ("cifar10", 50, "ResNet101", (300, 100, 1.0, 0.001)),
        ("cifar100", 10, "ResNet18", (300, 100, 1.0, 0.001)),
        ("cifar100", 50, "ResNet18", (300, 200, 1.0, 0.001)),
        ("tiny_imagenet", 1, "ResNet18", (300, 100, 1.0, 0.001)),
        ("tiny_imagenet", 50, "ResNet18", (300, 100, 1.0, 0.001)),
        ("imagewoof", 10, "AlexNet", (300, 50, 0.5, 0.0001)),
        ("imagenet1k", 1, "EfficientNet", (300, 20, 0.5, 0.002)),
        ("imagenet1k", 50, "ResNet50", (300, 200, 0.5, 0.001)),
        ("fashion_mnist", 10, "ConvNetBN_W32", (150, 10, 1.0, 0.001)),
    ],
)
def test_the_protocol_of_rded(dataset, ipc, student, expected):
    dataset = get_dataset(dataset)
    labels = recipes.stage_of("relabel", dataset, "rded", ipc, labels="own")
    its = recipes.stage_of("validate", dataset, "rded", ipc, student, "own")
    assert (its.epochs, its.batch_size, its.min_scale, its.adamw_lr) == expected
    assert (labels.epochs, labels.batch_size, labels.min_scale) == expected[:3]
    assert (labels.eval_mode, labels.mix, labels.tiles) == ("T", "cutmix", 2 if dataset.size == 224 else 1)
    found = (its.loss, its.temperature, its.optimizer, its.adamw_weight_decay, its.schedule, its.eta, its.accumulation)
    assert found == ("kl", 20, "adamw", 0.01, "cosine", 2, 1)


@pytest.mark.parametrize("method", ["cv-dd", "sre2l++"])
@pytest.mark.parametrize(
    ("dataset", "ipc", "student", "expected"),
    [
        ("cifar10", 1, "ResNet50", (300, 10, 0.001, 1)),
        ("cifar10", 50, "ResNet101", (300, 16, 0.0005, 1)),
        ("cifar100", 10, "ResNet18", (300, 16, 0.001, 2)),
        ("cifar100", 50, "ResNet50", (300, 16, 0.001, 1)),
        ("tiny_imagenet", 1, "ResNet101", (300, 16, 0.0005, 2)),
        ("tiny_imagenet", 10, "ResNet18", (300, 16, 0.001, 1)),
        ("imagenet-nette", 1, "ResNet50", (300, 10, 0.0005, 2)),
        ("imagenet-nette", 10, "ResNet50", (300, 10, 0.001, 1)),
        ("imagenet1k", 50, "ResNet101", (300, 16, 0.0005, 2)),
        ("imagenet1k", 10, "MobileNetV2", (300, 16, 0.0005, 2)),  # FADRM's, as theirs has none
        ("fashion_mnist", 10, "ConvNetBN_W32", (150, 10, 0.02, 1)),
    ],
)
def test_the_protocol_of_cv_dd_is_fadrms_but_for_epochs_and_rates(method, dataset, ipc, student, expected):
    dataset = get_dataset(dataset)
    views, its = (recipes.stage_of("validate", dataset, method, ipc, student, name) for name in ("views", "own"))
    assert (its.epochs, its.batch_size, its.adamw_lr, its.eta) == expected
    assert replace(its, labels="views", epochs=views.epochs, adamw_lr=views.adamw_lr, eta=views.eta) == views
    views, its = (recipes.stage_of("relabel", dataset, method, ipc, labels=name) for name in ("views", "own"))
    assert its.epochs == expected[0] and replace(its, labels="views", epochs=views.epochs) == views


def test_rates_of_a_protocol_are_no_default(capsys):
    """Where they happen to be that of FADRM's."""
    for labels, is_said in (("views", True), ("own", False)):
        settings = recipes.stage_of("validate", get_dataset("cifar10"), "cv-dd", 50, labels=labels)
        settings = validate.with_rates(replace(settings, dataset_name="cifar10", recipe="cv-dd", ipc=50))
        assert (settings.adamw_lr, settings.eta) == (0.001, 1)
        assert ("taking the default" in capsys.readouterr().out) is is_said


def test_a_method_without_one_says_so():
    with pytest.raises(UserError, match="fadrm has no protocol of its own here: leave --protocol own out"):
        stages("own", "fadrm")


def test_places_are_apart():
    root = {"Main_Data_Path": "/r", "val_dir": "/v", "train_dir": "/t", "patch_dir": "/p"}
    found = {}
    for labels in ("views", "fixed", "hard", "plain", "own"):
        settings = recipes.in_places("validate", CIFAR, "edc", 10, root, labels=labels, draw=2)
        found[labels] = (settings.fkd_path.name, settings.exp_name)
    assert found == {
        "views": ("edc_draw2_bs16_ipc10", "edc_ipc10_ResNet18_draw2"),
        "fixed": ("edc_fixed_draw2_bs256_ipc10", "edc_ipc10_ResNet18_fixed_draw2"),
        "hard": ("edc_fixed_draw2_bs256_ipc10", "edc_ipc10_ResNet18_hard_draw2"),
        "plain": ("edc_fixed_draw2_bs16_ipc10", "edc_ipc10_ResNet18_plain_draw2"),
        "own": ("edc_own_draw2_bs50_ipc10", "edc_ipc10_ResNet18_own_draw2"),
    }


@pytest.mark.parametrize(("method", "flags"), [("edc", ("--optimization-budgets", "2")), ("rded", ())])
def test_all_protocols_of_a_cell_in_one_report(folders, capsys, method, flags):  # noqa: F811
    through_all_stages(method, *flags)
    words = ["--dataset-name", "fashion_mnist", "--recipe", method, "--ipc", "2", "--device", "cpu"]
    words += ["--labels", "fixed", "hard", "plain", "own", "--epochs", "2"]
    relabel.main(words)
    validate.main([*words, "--seed", "0", "--workers", "0"])
    content = json.loads(report_cell(cell_of("fashion_mnist", method, "2")).read_text())
    assert list(content["accuracy"]) == [method, *(f"{method}, {name}" for name in ("fixed", "hard", "plain", "own"))]
    assert {"relabel", "relabel, fixed", "relabel, own"} <= content["steps"].keys()
    assert f"{method}, own: validate" in content["steps"]
    assert "ConvNetBN_W32_own" in capsys.readouterr().out


@pytest.mark.parametrize("labels", ["fixed", "hard", "plain", "own"])
def test_a_protocol_is_a_recipes(world, refusal, labels):
    words = world.validate("--protocol", labels)
    assert f"--labels {labels} stands for settings of a recipe: name --recipe" in refusal(validate.main, words)


def test_stored_views_have_labels_of_their_own(world, refusal):
    message = "--augment dsa: labels of views are for the stored views alone; take one of --labels fixed hard plain"
    assert message in refusal(validate.main, world.validate("--augment", "dsa"))


def test_results_without_dsa_are_others(folders):  # noqa: F811
    through_all_stages("fadrm", "--optimization-budgets", "2", "2", "2", "2")
    words = ["--dataset-name", "fashion_mnist", "--recipe", "fadrm", "--ipc", "2", "--device", "cpu", "--epochs", "2"]
    words += ["--labels", "hard"]
    relabel.main(words)
    words += ["--workers", "0", "--seed"]
    validate.main([*words, "0", "--augment", "views"])
    (path,) = folders.rglob("*_hard/seed0/result.json")
    assert "augment" not in json.loads(path.read_text())["settings"]  # as in results from before there was the setting
    with pytest.raises(UserError, match=r"other settings: settings\.augment \(none there, \"dsa\" here\);"):
        validate.main([*words, "1"])


def test_norms_are_of_running_statistics(world, refusal):
    words = world.relabel("--weighting", "norm")
    assert "--weighting norm is of teachers with running statistics" in refusal(relabel.main, words)


def test_weight_decay_of_sgd_spares_vectors_in_own_protocols_alone():
    student = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    for labels, decays in (("own", [5e-4, 0.0]), ("hard", [5e-4])):
        settings = ValidateSettings(optimizer="sgd", weight_decay=5e-4, labels=labels)
        assert [group["weight_decay"] for group in build_optimiser(student, settings).param_groups] == decays


def test_labels_of_another_protocol_are_refused(folders):  # noqa: F811
    through_all_stages("fadrm", "--optimization-budgets", "2", "2", "2", "2")
    words = ["--dataset-name", "fashion_mnist", "--recipe", "fadrm", "--ipc", "2", "--device", "cpu", "--epochs", "2"]
    labels = str(folders / "generated_data/new_labels/fashion_mnist/fadrm_bs10_ipc2")
    with pytest.raises(UserError, match="are for labels views, this run has fixed"):
        validate.main([*words, "--labels", "hard", "--fkd-path", labels, "--seed", "0"])
    with pytest.raises(UserError, match="--labels fixed: images are labelled whole, one by one: no --mix-type"):
        relabel.main([*words, "--labels", "fixed", "--mix-type", "cutmix"])

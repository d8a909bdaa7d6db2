"""Variants: what a changed setting changes, and which folders it has for itself."""

from pathlib import Path

import pytest

from utils import recipes
from utils.data.table import get_dataset
from utils.recipes.variants import changes_of, name_in
from utils.run.errors import UserError

CIFAR = get_dataset("cifar100")
PLACES = {"Main_Data_Path": "root", "train_dir": "train", "val_dir": "val", "patch_dir": "patches"}

TEACHERS = {"teachers": ("timm:resnet18", "ResNet18@3")}


def placed(stage, method, **others):
    return recipes.in_places(stage, CIFAR, method, 10, PLACES, **others)


@pytest.mark.parametrize(
    ("words", "changed"),
    [
        ("alpha=0.6", {"recover": {"alpha": 0.6}}),
        ("sizes=32,32:budgets=3,4", {"recover": {"sizes": (32, 32), "budgets": (3, 4)}}),
        ("augment=off", {"recover": {"augment": False}}),
        ("terms=cross_entropy,r_bn=0.1", {"recover": {"terms": ("cross_entropy", "r_bn=0.1")}}),
        ("amp=bf16", {stage: {"amp": "bf16"} for stage in ("recover", "relabel", "validate")}),
        ("recover.amp=off", {"recover": {"amp": "off"}}),
        ("teachers=timm:resnet18,ResNet18@3", dict.fromkeys(("recover", "relabel"), TEACHERS)),
        ("selector=hard", {"patches": {"selector": "hard"}, "recover": {"selector": "hard"}}),
        ("temperature=4:schedule=step", {"validate": {"temperature": 4.0, "schedule": "step"}}),
        ("stored_epochs=2:store_draws=off", {"relabel": {"stored_epochs": 2, "store_draws": False}}),
        ("codec=top_k:top_k=5", {"relabel": {"codec": "top_k", "top_k": 5}}),
        ("replay=mixed:fresh_share=0.9", {"validate": {"replay": "mixed", "fresh_share": 0.9}}),
        ("epochs=7", {"relabel": {"epochs": 7}, "validate": {"epochs": 7}}),
    ],
)  # fmt: skip
def test_a_variant_changes_what_it_names_and_nothing_else(words, changed):
    plain, variant = (recipes.recipe_of(CIFAR, method, 10) for method in ("fadrm+", f"fadrm+:{words}"))
    for stage in ("patches", "recover", "relabel", "validate"):
        before, after = (vars(getattr(recipe, stage)) for recipe in (plain, variant))
        assert {name: after[name] for name in after if after[name] != before[name]} == changed.get(stage, {})


def test_it_wins_over_the_protocol_and_the_rates():
    def of(method, labels):
        return recipes.stage_of("validate", CIFAR, method, 10, "ResNet50", labels)

    assert of("fadrm", "hard").sgd_lr == 0.01 and of("fadrm:sgd_lr=0.5", "hard").sgd_lr == 0.5
    assert of("fadrm:adamw_lr=0.3", "views").adamw_lr == 0.3
    assert of("edc:gamma=0.7", "own").gamma == 0.7 and of("edc", "own").gamma == 0.025


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("alhpa=1", "alhpa=1: no stage has such a setting for variants; there are selector factor"),
        ("relabel.alpha=1", "relabel.alpha=1: no stage has such a setting for variants; there are teachers"),
        ("train.alpha=1", "no stage has such a setting for variants; stages: patches recover relabel validate"),
        ("syn_data_path=x", "no stage has such a setting"),
        ("ipc=3", "no stage has such a setting"),
        ("alpha=much", "alpha=much: 'much' is not a number"),
        ("budgets=3,x", "budgets=3,x: '3,x' is not a whole number, or some of these"),
        ("augment=yes", "augment=yes: 'yes' is not on or off"),
    ],
)
def test_what_cannot_be_changed(words, message):
    with pytest.raises(UserError) as refused:
        recipes.recipe_of(CIFAR, f"fadrm:{words}", 10)
    assert message in str(refused.value)


def test_an_unknown_method_and_a_value_out_of_range():
    with pytest.raises(UserError, match=r"no recipe for the method 'fadrn:alpha=1'; there are: .*fadrm"):
        recipes.recipe_of(CIFAR, "fadrn:alpha=1", 10)
    words = "--dataset-name cifar100 --recipe fadrm:alpha=3 --ipc 1 --syn-data-path s --model-pool-dir p --patch-dir q"
    with pytest.raises(UserError, match="--alpha 3"):
        recipes.parse("recover", words.split())


def test_folders_tell_apart_what_differs_and_share_what_does_not():
    method = "fadrm:alpha=0.6:relabel.eval_mode=T:temperature=4"
    images, labels, results = (placed(stage, method) for stage in ("recover", "relabel", "validate"))
    assert images.exp_name == "fadrm_alpha=0.6_ipc10" and images.patch_dir == Path("patches/cifar100")
    assert labels.syn_data_path == images.syn_data_path / images.exp_name
    assert labels.fkd_path.name == "fadrm_alpha=0.6_relabel.eval_mode=T"
    assert results.fkd_path.name == f"{labels.fkd_path.name}_bs16_ipc10"
    assert results.exp_name == "fadrm_alpha=0.6_relabel.eval_mode=T_temperature=4_ipc10_ResNet18"
    assert placed("recover", "fadrm:temperature=4").exp_name == placed("recover", "fadrm").exp_name


def test_real_images_have_the_labels_of_all_variants_that_label_alike():
    plain, alpha, mode = (
        placed("validate", f"fadrm{words}", images="random") for words in ("", ":alpha=0.6", ":relabel.eval_mode=T")
    )
    assert plain.fkd_path == alpha.fkd_path and plain.exp_name == alpha.exp_name == "random_by_fadrm_ipc10_ResNet18"
    assert mode.fkd_path != plain.fkd_path and mode.original_data_path == plain.original_data_path


@pytest.mark.parametrize(
    ("method", "folder"),
    [
        ("fadrm", "patches/cifar100"),
        ("fadrm:selector=hard", "patches/cifar100"),
        ("fadrm:factor=2:num_crops=3", "patches/cifar100/factor=2_num_crops=3"),
        ("fadrm:crop_area=1,1", "patches/cifar100/crop_area=1,1"),
        ("rded:num_crops=3", "patches/cifar100/rded_ipc10_num_crops=3"),
    ],
)
def test_other_patches_lie_elsewhere(method, folder):
    assert placed("patches", method).patch_dir == placed("recover", method).patch_dir == Path(folder)


def test_names_of_files_have_no_colon():
    method = "fadrm+:teachers=timm:resnet18,ResNet18"
    assert name_in(method, ("recover",)) == "fadrm+_teachers=timm_resnet18,ResNet18"
    name, (change,) = changes_of(method)
    assert name == "fadrm+" and change.value == ("timm:resnet18", "ResNet18")


def test_label_stores_are_named_by_what_is_stored_and_results_by_what_is_shown_too():
    """Two replays of one store share it, and all share the images."""
    few = "fadrm+:stored_epochs=2:store_draws=off"
    for replay in ("pool", "mixed"):
        its = placed("validate", f"{few}:replay={replay}", student="ResNet18")
        assert its.fkd_path.name == "fadrm+_stored_epochs=2_store_draws=off_bs16_ipc10"
        assert its.exp_name == f"fadrm+_stored_epochs=2_store_draws=off_replay={replay}_ipc10_ResNet18"
        assert its.original_data_path == placed("validate", "fadrm+").original_data_path
    assert placed("validate", "fadrm+:replay=pool").fkd_path == placed("validate", "fadrm+").fkd_path

"""Every method through all three stages, what makes each that method, and one that is made up here."""

import json
import math
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from PIL import Image

from models.checkpoints import load_network, save_state
from models.registry import build_network
from models.teachers import write_record
from recover import choose_images, make_patches, recover
from recover.augmentation import sample_batch_augmentations
from recover.batches import Batch, valid_range_of
from recover.optimise import Plan, Stage, recover_batch
from recover.terms import build_terms
from relabel import relabel
from tests.plain import PlainMatchedTeacher, plain_augmentation
from utils import recipes
from utils.bn_matching.matching import MatchedTeacher
from utils.bn_matching.probes import BatchNormInput
from utils.data.distilled import distilled_path, read_distilled
from utils.data.images import normalise
from utils.data.table import get_dataset
from utils.recipes import fadrm
from utils.recipes.settings import RecoverSettings
from utils.residual.residuals import none
from utils.run.randomness import generator_for
from utils.seams import COMMITTEES, LAYOUTS, RESIDUALS, TERMS
from validate import validate

FASHION, CIFAR = get_dataset("fashion_mnist"), get_dataset("cifar100")
METHODS = ("fadrm", "fadrm+", "fadrm++", "rded", "sre2l++", "cv-dd", "g-vbsm", "edc")


@pytest.fixture
def folders(world, monkeypatch):
    """The folders of config.sh in a world whose two teachers have records, and whose training images are its own."""
    root = world.root / "main"
    pool = root / "pretrained_models" / "fashion_mnist_pretrained_models"
    pool.mkdir(parents=True)
    for seed, (name, top1) in enumerate((("ConvNetBN_W64", 80.0), ("ConvNetBN_W32", 70.0))):
        torch.manual_seed(seed)
        save_state(pool / f"{name}.safetensors", build_network(name, FASHION))
        write_record(pool, name, "fashion_mnist", "trained", {"top1": top1, "top5": 99.0})
    for name in ("train", "val"):
        shutil.copytree(world.val, root / name / "fashion_mnist")
        monkeypatch.setenv(f"{name}_dir", str(root / name))
    monkeypatch.setenv("Main_Data_Path", str(root))
    monkeypatch.setenv("patch_dir", str(root / "patches"))
    return root


def through_all_stages(method, *recover_flags):
    """A short run at IPC 2 by the recipe, as the scripts call the stages; the record of its images and its result."""
    words = ["--dataset-name", "fashion_mnist", "--recipe", method, "--ipc", "2", "--device", "cpu"]
    make_patches.main([*words, "--patches-per-class", "2", "--max-images", "2"])
    recover.main([*words, *recover_flags])
    relabel.main([*words, "--epochs", "2"])
    validate.main([*words, "--epochs", "2", "--seed", "0", "--workers", "0"])
    images, result, store = (
        recipes.in_places(stage, FASHION, method, 2, os.environ) for stage in ("recover", "validate", "relabel")
    )
    folder = images.syn_data_path / images.exp_name
    (result,) = (result.output_dir / "fashion_mnist" / result.exp_name).glob("seed0/result.json")
    return folder, json.loads(result.read_text()), store.fkd_path.with_name(f"{store.fkd_path.name}_bs10_ipc2")


SHORT = {
    "fadrm": ("--optimization-budgets", "2", "2", "2", "2"),
    "fadrm+": ("--optimization-budgets", "2", "2", "2", "2"),
    "fadrm++": ("--optimization-budgets", "2", "2", "2", "2"),
    "rded": (),
    "sre2l++": ("--optimization-budgets", "4"),
    "cv-dd": ("--optimization-budgets", "4"),
    "g-vbsm": ("--optimization-budgets", "4"),
    "edc": ("--optimization-budgets", "4"),
}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs_all_three_stages(folders, method, capsys):
    folder, result, store = through_all_stages(method, *SHORT[method])
    assert folder.name == f"{method}_ipc2"
    assert len(list(folder.glob("new*/*.png"))) == 20
    assert result["method"] == method and 0 <= result["top1"] <= 100
    record, manifest = (json.loads(path.read_text()) for path in (folder / "settings.json", store / "manifest.json"))
    weights = [teacher["weight"] for teacher in manifest["teachers"]]
    output = capsys.readouterr().out
    if method == "cv-dd":
        assert record["committee"] == "pairs" and record["priors"] == [80.0, 70.0]
        assert weights == pytest.approx([1 / (1 + math.exp(-1)), 1 - 1 / (1 + math.exp(-1))])  # softmax(prior / 10)
        assert "taking the teachers' recorded accuracies, ConvNetBN_W64 80.00 %, ConvNetBN_W32 70.00 %" in output
    else:
        assert "committee" not in record and weights == [1 / len(weights)] * len(weights)
    assert record["precision"] == "float32"
    assert ("train_images_sha256" in record) is (method in ("g-vbsm", "edc"))


# g-vbsm and edc: tests/utils/bn_matching/test_smoothing.py, test_real.py, tests/recover/test_terms.py


def test_what_g_vbsm_and_edc_are_made_of():
    vbsm, edc = (recipes.recipe_of(CIFAR, name, 10).recover for name in ("g-vbsm", "edc"))
    assert (vbsm.start, vbsm.probe, vbsm.layout, vbsm.committee) == ("Gaussian", "conv_input", "class_major", "in_turn")
    assert vbsm.teachers == ("ResNet18", "ConvNetW128", "MobileNetV2", "WRN-16-2", "ShuffleNetV2")
    assert (vbsm.budgets, vbsm.lr, vbsm.smoothing, vbsm.drop_layers, vbsm.jitter) == ((4000,), 0.05, 0.8, 0.4, 32)
    assert vbsm.terms == ("cross_entropy", "r_bn", "gram_spectrum") and vbsm.r_bn == 0.01
    large = recipes.recipe_of(get_dataset("imagenet1k"), "g-vbsm", 10).recover
    assert (large.lr, large.smoothing, large.drop_layers, large.classes_a_batch) == (0.1, 0.4, 0.0, 80)
    assert (edc.start, edc.budgets, edc.class_share, edc.crop_area_min) == ("Patches", (2000,), 0.5, 0.5)
    assert edc.terms == ("cross_entropy", "r_bn") and edc.drop_layers == edc.jitter == 0
    patches = [recipes.recipe_of(CIFAR, name, 10).patches for name in ("rded", "edc")]
    assert patches[0] == patches[1] and edc.patch_dir == patches[0].patch_dir


# fadrm++


def test_fadrm_plus_plus_is_fadrm_plus_without_cross_entropy_from_images_that_cover_their_class():
    for name, ipc in (("cifar100", 10), ("imagewoof", 50), ("fashion_mnist", 1)):
        plus, ours = (recipes.recipe_of(get_dataset(name), method, ipc) for method in ("fadrm+", "fadrm++"))
        own = {"terms": ("r_bn",), "r_bn": 1.0}
        if ipc > 1:
            own |= {"selector": "coverage", "patch_dir": ours.patches.patch_dir, "max_images": 10**6}
            assert str(ours.patches.patch_dir).endswith("/fadrm++")
            own |= {"crop_area": (1.0, 1.0), "num_crops": 1} if get_dataset(name).size <= 64 else {}
        assert ours == plus.set(**own)
    first = recipes.recipe_of(get_dataset("imagenet1k"), "fadrm++", 1).recover
    assert "AlexNet" not in first.teachers and (first.ipc_start, first.ipc_end) == (0, 1)


def test_fadrm_plus_plus_starts_from_what_coverage_chooses(folders):
    """Of two training images a class both: the one that stands for more comes first."""
    folder, _, _ = through_all_stages("fadrm++", "--optimization-budgets", "1", "1", "1", "1", "--lr", "1e-6")
    chosen = folders / "generated_data" / "syn_data" / "fashion_mnist"
    choose_images.main(["--dataset-name", "fashion_mnist", "--ipc", "2", "--selector", "coverage", "--device", "cpu"])
    images, labels, _ = read_distilled(folder, FASHION)
    real, its_labels, _ = read_distilled(chosen / "coverage_ipc2", FASHION)
    assert torch.equal(labels, its_labels)
    assert (images.float() - real.float()).abs().mean() < 2  # what JPEG does to a patch


# rded


def test_rded_leaves_the_crops_of_lowest_loss(folders):
    """Against a loop over images and crops: the best of five crops of each, the lowest losses first."""
    folder, _, _ = through_all_stages("rded")
    observer = load_network(
        "ConvNetBN_W64",
        FASHION,
        folders / "pretrained_models/fashion_mnist_pretrained_models/ConvNetBN_W64.safetensors",
    )
    for label, class_folder in enumerate(sorted((folders / "train" / "fashion_mnist").iterdir())):
        best = []
        for index, path in enumerate(sorted(class_folder.iterdir())):
            generator = generator_for(0, "patches", "fashion_mnist", label, index)
            crops = []
            for top, left, height, width in square_crops(32, 5, generator):
                assert height == width
                crop = Image.open(path).crop((left, top, left + width, top + height))
                crops.append(crop.resize((32, 32), Image.Resampling.BILINEAR))
            pixels = torch.stack([pixels_of(crop) for crop in crops])
            losses = [F.cross_entropy(observer(normalise(p[None], FASHION)), torch.tensor([label])) for p in pixels]
            winner = min(range(5), key=lambda place: losses[place].item())
            best.append((losses[winner].item(), pixels[winner]))
        best.sort(key=lambda pair: pair[0])
        for ipc_id, (_, pixels) in enumerate(best):
            image = pixels_of(Image.open(distilled_path(folder, 10, label, ipc_id)))
            assert (image.int() - pixels.int()).abs().float().mean() < 4  # JPEG lies between


def square_crops(size, count, generator):
    """RandomResizedCrop with aspect 1 on a square image: area uniform in 0.08 to 1, place uniform; every try fits."""
    uniform = torch.rand(2, count, 10, generator=generator, dtype=torch.float64)
    position = torch.rand(2, count, generator=generator, dtype=torch.float64)
    for number in range(count):
        side = round(math.sqrt(size * size * (0.08 + 0.92 * uniform[0, number, 0].item())))
        top, left = (int(position[axis, number].item() * (size - side + 1)) for axis in (0, 1))
        yield top, left, side, side


def pixels_of(image):
    return (
        torch.frombuffer(bytearray(image.convert("RGB").tobytes()), dtype=torch.uint8).view(32, 32, 3).permute(2, 0, 1)
    )


def test_rded_tiles_and_shuffles_at_224_pixels():
    for name in ("imagenet-nette", "imagenet1k"):
        recipe = recipes.recipe_of(get_dataset(name), "rded", 10)
        assert (recipe.patches.factor, recipe.patches.tile_stride, recipe.patches.patches_per_class) == (2, 10, 10)
        assert (recipe.relabel.tiles, recipe.recover.sizes, recipe.recover.budgets) == (2, (), ())
    assert recipes.recipe_of(CIFAR, "rded", 10).relabel.tiles == 1
    settings = recipes.in_places(
        "patches", CIFAR, "rded", 10, {"patch_dir": "/p", "train_dir": "t", "Main_Data_Path": "m"}
    )
    assert str(settings.patch_dir) == "/p/cifar100/rded_ipc10"


def test_tile_shuffles_are_stored_and_replayed(folders):
    words = ["--dataset-name", "fashion_mnist", "--recipe", "rded", "--ipc", "2", "--device", "cpu"]
    make_patches.main([*words, "--patches-per-class", "2", "--max-images", "2"])
    recover.main(words)
    relabel.main([*words, "--epochs", "2", "--tiles", "2"])
    validate.main([*words, "--epochs", "2", "--seed", "0", "--workers", "0"])
    store = recipes.in_places("relabel", FASHION, "rded", 2, os.environ).fkd_path.with_name("rded_bs10_ipc2")
    assert json.loads((store / "manifest.json").read_text())["format_version"] == 2
    tensors = safetensors.torch.load_file(store / "epoch_00001.safetensors")
    assert tensors["tile_order"].shape == (20, 2, 2) and set(tensors["tile_order"].sum(dim=2).flatten().tolist()) == {1}


# sre2l++


def test_sre2l_is_fadrm_without_residual_sizes_and_mixed_precision():
    ours, base = recipes.recipe_of(CIFAR, "sre2l++", 50), recipes.recipe_of(CIFAR, "fadrm", 50)
    expected = replace(base.recover, alpha=1.0, sizes=(32,), budgets=(4000,), amp="off")
    assert ours.recover == expected
    assert (ours.relabel, ours.validate, ours.patches) == (base.relabel, base.validate, base.patches)
    assert recipes.recipe_of(FASHION, "sre2l++", 10).recover.budgets == (400,)
    for name in ("tiny_imagenet", "imagenet-nette"):  # FADRM's own exceptions are not SRe2L++'s
        recipe = recipes.recipe_of(get_dataset(name), "sre2l++", 10)
        assert (recipe.recover.lr, recipe.recover.budgets, recipe.relabel.eval_mode) == (0.25, (4000,), "F")
        assert recipe.recover.sizes == (get_dataset(name).size,)


# cv-dd


def test_the_published_pairs_and_priors_of_cv_dd():
    recipe = recipes.recipe_of(CIFAR, "cv-dd", 10)
    assert recipe.recover.teachers == recipe.relabel.teachers
    assert recipe.recover.priors == recipe.relabel.model_weight == (64.0, 60.6, 51.6, 59.4, 56.4)
    assert (recipe.recover.committee, recipe.recover.budgets, recipe.recover.amp) == ("pairs", (4000,), "off")
    for name, pair in {
        "cifar10": ("MobileNetV2", "Densenet121"),
        "cifar100": ("ShuffleNetV2", "MobileNetV2"),
        "imagenet-nette": ("MobileNetV2", "Densenet121"),
        "tiny_imagenet": ("ResNet18", "MobileNetV2"),
        "imagenet1k": ("ResNet18", "ShuffleNetV2"),
    }.items():
        settings = recipes.recipe_of(get_dataset(name), "cv-dd", 1).recover
        asked = COMMITTEES["pairs"](replace(settings, ipc=1))(Batch(((0, 0),), (0, 0)), 0)
        assert tuple(settings.teachers[place] for place, _ in asked) == pair


def test_an_iteration_of_a_pair_is_the_plain_one(golden, relative):
    """Adam on the pixels by both teachers' cross-entropy and R_bn, weighed by softmax(prior / 5), by plain hooks."""
    patches = normalise(golden("recover_single")["patches"], FASHION)
    settings = RecoverSettings(r_bn=0.01, lr=0.1)
    networks = []
    for seed in range(2):
        torch.manual_seed(seed)
        networks.append(build_network("ConvNetBN_W32", FASHION).eval().requires_grad_(False))
    weights = (1 / (1 + math.exp(-2)), 1 - 1 / (1 + math.exp(-2)))  # priors ten points apart
    chosen = COMMITTEES["pairs"](replace(settings, teachers=("A", "B"), priors=(80.0, 70.0), ipc=10))
    assert [weight for _, weight in chosen(Batch(((0, 3),), (3, 0)), 0)] == pytest.approx(weights)

    plain = [PlainMatchedTeacher(network, 10.0) for network in networks]
    images, (low, high) = patches.clone().requires_grad_(True), valid_range_of(FASHION, torch.device("cpu"))
    optimiser = torch.optim.Adam([images], lr=0.1, betas=(0.5, 0.9), eps=1e-8)
    for iteration, draw in enumerate(sample_batch_augmentations(3, 32, True, 4, generator_for("pair"))):
        optimiser.param_groups[0]["lr"] = 0.5 * 0.1 * (1 + math.cos(math.pi * iteration / 3))
        view, loss = plain_augmentation(images, draw), 0.0
        for teacher, weight in zip(plain, weights, strict=True):
            logits, distance = teacher(view)
            loss = loss + weight * (F.cross_entropy(logits, torch.arange(10)) + 0.01 * distance)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        images.data.clamp_(low, high)

    ours = [MatchedTeacher(network, BatchNormInput, 10.0, size=32) for network in networks]
    plan = Plan([Stage(32, 3)], 0.1, build_terms(settings), 4, crop_and_flip=True)
    got = recover_batch(
        patches,
        torch.arange(10),
        plan,
        lambda iteration: list(zip(ours, weights, strict=True)),
        none(settings, None),
        (low, high),
        generator_for("pair"),
    )
    assert (got - images.detach()).abs().mean() < 1e-3 < (patches - images.detach()).abs().mean()


# a method that is made up here


@pytest.fixture
def made_up(monkeypatch):
    """Another term, another residual, another layout, and a recipe of them: nothing of the project is touched."""

    @TERMS.add("total_variation")
    def total_variation(settings):
        return lambda seen: seen.view.diff(dim=-1).abs().mean() + seen.view.diff(dim=-2).abs().mean()

    @RESIDUALS.add("darker")
    def darker(settings, patches):
        return lambda images, stage, size: 0.5 * images

    @LAYOUTS.add("class_by_class")
    def class_by_class(num_classes, indices, size):
        return [Batch(tuple((label, index) for index in indices), ("class", label)) for label in range(num_classes)]

    def recipe(dataset, ipc):
        settings = fadrm.recipe(dataset, ipc).set(budgets=(3, 3), sizes=(32, 32), layout="class_by_class")
        return settings.set(terms=("cross_entropy", "total_variation=2"), residual="darker", committee="all")

    monkeypatch.setitem(recipes.METHODS, "made-up", recipe)
    yield
    for table, name in ((TERMS, "total_variation"), (RESIDUALS, "darker"), (LAYOUTS, "class_by_class")):
        table.remove(name)


def test_a_method_made_up_in_a_test_runs_all_stages(folders, made_up):
    folder, result, _ = through_all_stages("made-up")
    record = json.loads((folder / "settings.json").read_text())
    assert record["terms"] == ["cross_entropy", "total_variation=2"]
    assert (record["residual"], record["layout"], record["ipc"]) == ("darker", "class_by_class", 2)
    assert result["method"] == "made-up"
    # its layout: a class's images are one batch, so that one missing image brings both back
    victim, other = (distilled_path(folder, 10, 4, ipc_id) for ipc_id in range(2))
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.glob("new*/*.png")}
    victim.unlink()
    recover.main(["--dataset-name", "fashion_mnist", "--recipe", "made-up", "--ipc", "2", "--device", "cpu"])
    after = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.glob("new*/*.png")}
    assert {path for path in before if after[path][1] != before[path][1]} == {victim, other}
    assert all(after[path][0] == before[path][0] for path in before)


def test_the_readmes_method_is_one(folders, monkeypatch):
    """The file that the README shows, as if it lay in utils/recipes/."""
    text = (Path(__file__).parents[3] / "README.md").read_text()
    module = {}
    exec(re.search(r"\*\*A method\*\*.*?```python\n(.*?)```", text, re.DOTALL)[1], module)
    try:
        monkeypatch.setitem(recipes.METHODS, module["METHOD"], module["recipe"])
        folder, result, _ = through_all_stages("smooth", "--optimization-budgets", "2", "2", "2", "2")
    finally:
        TERMS.remove("total_variation")
    assert json.loads((folder / "settings.json").read_text())["terms"][2] == "total_variation=0.1"
    assert result["method"] == "smooth"

"""Groups of real images by image index, and what teachers match for them."""

import json
import re

import pytest
import torch

from models.checkpoints import load_teacher
from recover import passes, recover
from recover.batches import Batch
from recover.by_index import aims_of, by_difficulty, by_likeness, ranks_of
from recover.passes import training_images
from tests.test_many_processes import Turns
from utils import recipes
from utils.bn_matching.matching import MatchedTeacher
from utils.bn_matching.probes import BatchNormInput, ImageInput
from utils.bn_matching.single import SingleImages
from utils.data.images import load_images, normalise
from utils.data.table import get_dataset
from utils.patches.features import features_of
from utils.recipes.settings import RecoverSettings

FASHION = get_dataset("fashion_mnist")


@pytest.fixture
def settings(lasting_world):
    """Two images a class; the training images are two a class, which are the patches."""
    return RecoverSettings(
        dataset_name="fashion_mnist",
        ipc=2,
        ipc_end=2,
        train_dir=lasting_world.val,
        patch_dir=lasting_world.patches,
        model_pool_dir=lasting_world.pool,
        start="Patches",
        group_prior=1e-9,
    )


@pytest.fixture
def teacher(settings):
    return load_teacher("ShuffleNetV2", FASHION, settings.model_pool_dir, "offline")


@pytest.fixture
def images(settings):
    return training_images(settings, "0" * 64)


def pixels_of(images):
    return normalise(load_images(images.paths, FASHION), FASHION)


def test_ranks_are_places_in_ascending_order():
    assert ranks_of(torch.tensor([3.0, 1.0, 2.0, 1.0])).tolist() == [3, 0, 2, 1]


def test_an_image_counts_for_the_patch_that_it_is_like(settings, teacher, images):
    """Here the patches are the images themselves, in their order."""
    found = by_likeness(settings, [teacher], images)
    assert found.tolist() == [0, 1] * 10


def test_the_easier_half_of_a_class_comes_first(settings, teacher, images):
    asked = SingleImages(teacher.module, 32)
    scores = asked.difficulty(asked.moments(pixels_of(images)))
    expected = [int(score > scores[place ^ 1]) for place, score in enumerate(scores)]
    assert by_difficulty(settings, [teacher], images).tolist() == expected
    assert 0 < sum(expected[::2]) < 10  # not simply the order of the files


def test_the_images_of_a_group_are_at_no_distance_from_its_targets(settings, teacher, images):
    settings = RecoverSettings(**{**vars(settings), "group_by": "likeness"})
    aims = aims_of(settings, [teacher], images)
    batch = Batch(tuple((label, 1) for label in range(10)), (1, 0))
    matched = MatchedTeacher(teacher.module, BatchNormInput, 10.0, 32)
    far = matched(pixels_of(images)[1::2])[1]
    matched.targets.copy_(aims.of("ShuffleNetV2", batch))
    assert matched(pixels_of(images)[1::2])[1] < 1e-2 * far
    assert matched(pixels_of(images)[0::2])[1] > 0.1 * far


@pytest.mark.parametrize("group_by", ["all", "likeness"])
def test_single_images_are_compared_with_those_of_their_class_and_group(settings, teacher, images, group_by, relative):
    settings = RecoverSettings(**{**vars(settings), "group_by": group_by, "probe": "image_input"})
    aims = aims_of(settings, [teacher], images)
    batch = Batch(tuple((label, 1) for label in range(5, 10)), (1, 5))
    matched = MatchedTeacher(teacher.module, lambda: ImageInput(5), 10.0, 32)
    targets = aims.of("ShuffleNetV2", batch)
    assert targets.shape == matched.targets.shape
    own = matched.statistics(pixels_of(images)[11::2])[1]
    if group_by == "likeness":  # a group is the one image
        assert relative(targets, own) < 1e-4
    else:  # means are those of both images of a class
        other = matched.statistics(pixels_of(images)[10::2])[1]
        length = len(own) // 2
        assert relative(targets[:length], (own + other)[:length] / 2) < 1e-4


def test_a_pass_over_the_images_is_made_once(settings, teacher, images, monkeypatch):
    first = by_likeness(settings, [teacher], images)
    monkeypatch.setattr(passes, "batches_of", None)
    assert torch.equal(by_likeness(settings, [teacher], images), first)


def test_sums_of_other_numbers_of_groups_do_not_take_each_others_place(settings, teacher, images):
    """Of two images a class, three groups of which one is empty have the members of two groups."""
    few = RecoverSettings(**{**vars(settings), "group_by": "difficulty"})
    many = RecoverSettings(**{**vars(few), "ipc": 3})
    assert torch.equal(by_difficulty(few, [teacher], images), by_difficulty(many, [teacher], images))
    assert [len(aims_of(its, [teacher], images).targets["ShuffleNetV2"]) for its in (few, many)] == [2, 3]


def test_features_are_of_length_one():
    assert features_of(torch.nn.Conv2d(3, 4, 1), torch.zeros(1, 3, 2, 2)) is None
    linear = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(2, 2))
    found = features_of(linear, torch.tensor([3.0, 4.0]).view(1, 2, 1, 1))
    torch.testing.assert_close(found, torch.tensor([[0.6, 0.8]]))


WAYS = [
    "--group-by difficulty",
    "--group-by likeness",
    "--group-by likeness --probe image_input",
    "--residual retrieved",
    "--late-starts 2",
    "--narrowing",
    "--scale mean --r-bn 1",
    "--terms cross_entropy r_bn paired=1",
]


@pytest.mark.parametrize("way", WAYS)
def test_each_way_changes_images_and_goes_on_after_a_stop(world, contents, way):
    """All at once, and one image index at a time, the second of them from a pool without kept passes."""
    flags = (*way.split(), "--ipc", "2", "--train-dir", str(world.val))
    recover.main(world.recover("--ipc", "2", name="plain"))
    recover.main(world.recover(*flags, name="whole"))
    recover.main(world.recover(*flags, "--ipc-end", "1", name="parts"))
    for path in world.pool.glob("statistics/*"):
        path.unlink()
    recover.main(world.recover(*flags, name="parts"))
    plain, whole, parts = (contents(world.root / "syn" / name) for name in ("plain", "whole", "parts"))
    assert whole == parts
    changed = [name for name in whole if name.endswith("id001.png") and whole[name] != plain[name]]
    assert len(changed) == 10
    record = json.loads((world.root / "syn" / "whole" / "settings.json").read_text())
    assert ("train_images_sha256" in record) == ("group" in way or "retrieved" in way)


def test_several_processes_make_the_images_of_one(world, contents):
    """The first one looks at the training images, the others read what it kept."""
    way = "--group-by likeness --probe image_input --residual retrieved --ipc 2"
    flags = (*way.split(), "--train-dir", str(world.val))
    words = world.recover(*flags, name="two")
    recover.main(world.recover(*flags, name="one"))
    for path in world.pool.glob("statistics/*"):
        path.unlink()
    Turns(2).run(lambda team: recover.recover(recipes.parse("recover", words), team))
    one, two = (contents(world.root / "syn" / name) for name in ("one", "two"))
    assert one == two


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--group-by likeness --smoothing 0.5", "--group-by and --probe image_input are of BatchNorms' inputs"),
        ("--group-by difficulty --layout class_major", "go by image index: take --layout one_per_class"),
        ("--late-starts 3", "--late-starts 3: there are 2 stages to begin with"),
        ("--group-by likeness --ipc-start 1 --ipc-end 3", "--ipc-end 3 goes beyond 2 images a class: name --ipc"),
        ("--late-starts 2 --store-stages", "--store-stages and --measure-every are for all alike"),
        ("--late-starts 2 --measure-every 2", "--late-starts 2 leaves some images fewer stages than others"),
        ("--probe image_input --batch-size 4", "--batch-size 4 does not divide the 10 classes of fashion_mnist"),
        ("--terms paired --smoothing 0.5", "--terms paired is for teachers whose statistics are not smoothed"),
        ("--group-by nearest", "nearest"),
        ("--residual retrieved --ipc 3 --ipc-end 2", "class 0 in .* has 2 images: --residual retrieved wants"),
    ],
)
def test_what_cannot_be_together(world, refusal, words, message):
    line = refusal(recover.main, world.recover("--train-dir", str(world.val), *words.split()))
    assert re.search(message, line), line
    assert not (world.pool / "statistics").exists()  # before the first pass over the images


def test_crops_that_narrow_have_to_be_taken(world, refusal):
    flags = [word for word in world.recover("--narrowing") if word != "--apply-data-augmentation"]
    assert "--narrowing is of the crops of --apply-data-augmentation" in refusal(recover.main, flags)


@pytest.mark.parametrize("words", ["--group-by likeness", "--terms r_bn paired"])
def test_patches_have_to_be_somewhere(world, refusal, words):
    """From noise, where --alpha 1 merges none, no run asks for patches but these."""
    flags = world.recover("--train-dir", str(world.val), *words.split(), "--alpha", "1")
    flags = [*flags[: flags.index("--patch-dir")], *flags[flags.index("--patch-dir") + 2 :]]
    line = refusal(recover.main, [*flags, "--initialisation-method", "Gaussian"])
    assert re.search("--(group-by likeness|terms paired) .* patches: name --patch-dir, and start from Patches", line)


def test_real_images_have_to_be_somewhere(world, refusal):
    assert "--group-by difficulty looks at real images: name --train-dir" in refusal(
        recover.main, world.recover("--group-by", "difficulty")
    )

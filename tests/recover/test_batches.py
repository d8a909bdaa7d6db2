"""Which images make a batch, and what shapes it."""

from pathlib import Path

import pytest
import torch

from models.checkpoints import Teacher
from recover.batches import Batch, batch_digest, class_major, one_per_class, plan_batches, what_shapes_images
from utils.data.table import get_dataset
from utils.recipes.settings import RecoverSettings

FASHION = get_dataset("fashion_mnist")


def members_of(batches):
    return [
        (batch.key, [label for label, _ in batch.members], {index for _, index in batch.members}) for batch in batches
    ]


def test_one_per_class_counts_from_class_zero():
    assert members_of(one_per_class(10, range(3, 5), 4)) == [
        ((3, 0), [0, 1, 2, 3], {3}),
        ((3, 4), [4, 5, 6, 7], {3}),
        ((3, 8), [8, 9], {3}),
        ((4, 0), [0, 1, 2, 3], {4}),
        ((4, 4), [4, 5, 6, 7], {4}),
        ((4, 8), [8, 9], {4}),
    ]


def test_class_major_keeps_a_classs_images_together():
    two = class_major(5, range(2), 4)
    assert [batch.members for batch in two] == [
        ((0, 0), (0, 1), (1, 0), (1, 1)),
        ((2, 0), (2, 1), (3, 0), (3, 1)),
        ((4, 0), (4, 1)),
    ]
    cut = class_major(2, range(10, 15), 3)
    assert [[index for _, index in batch.members] for batch in cut] == [[10, 11, 12], [13, 14]] * 2
    assert [set(batch.labels) for batch in cut] == [{0}, {0}, {1}, {1}]
    assert len({batch.key for batch in (*two, *cut)}) == 7


@pytest.mark.parametrize(("start", "end", "first"), [(0, 10, [0, 4, 8]), (5, 6, [4]), (3, 5, [0, 4])])
def test_a_range_of_classes_takes_whole_batches(start, end, first):
    settings = RecoverSettings(classes_a_batch=4, ipc_end=1, start_index=start, end_index=end)
    assert [batch.labels[0] for batch in plan_batches(settings, FASHION)] == first


def test_a_range_of_images_is_of_the_identity_where_batches_depend_on_it():
    ranges = [{"ipc_start": 0, "ipc_end": 10}, {"ipc_start": 0, "ipc_end": 5}]
    whole, part = (record_of(layout="class_major", **each) for each in ranges)
    assert (whole["images"], part["images"]) == ([0, 10], [0, 5])
    whole, part = (record_of(**each) for each in ranges)
    assert whole == part and "images" not in whole


def test_a_batch_knows_its_files_and_says_what_it_is():
    batch = Batch(((3, 7), (4, 7)), (7, 3))
    assert batch.labels == [3, 4]
    assert batch.paths(Path("x"), FASHION)[1] == Path("x/new004/class004_id007.png")
    assert str(batch) == "image 7, classes 3 to 4"
    assert str(Batch(((2, 0), (2, 1)), ())) == "image 0 to 1, classes 2"


def record_of(**changes):
    settings = RecoverSettings(dataset_name="fashion_mnist", ipc=10, **changes)
    return what_shapes_images(settings, [Teacher("A", None, "12")], None)


def test_the_record_keeps_its_published_names_and_leaves_out_what_is_younger_and_at_its_default():
    """Images that people have go on to be used."""
    assert record_of(sizes=(32,), budgets=(5,), jitter=4) == {
        "dataset_name": "fashion_mnist",
        "initialisation_method": "Gaussian",
        "patch_diff": "medium",
        "input_size_lis": [32],
        "optimization_budgets": [5],
        "alpha": 1.0,
        "lr": 0.1,
        "r_bn": 0.05,
        "first_bn_multiplier": 10.0,
        "jitter": 4,
        "apply_data_augmentation": False,
        "batch_size": 100,
        "seed": 0,
        "residual_patches": False,
        "precision": "float32",
        "teachers": [{"name": "A", "sha256": "12"}],
    }


def test_what_makes_another_image_makes_another_record():
    plain, pairs = record_of(), record_of(committee="pairs", priors=(1.0,), weighting="prior")
    new = {name: pairs[name] for name in pairs.keys() - plain.keys()}
    assert new == {"committee": "pairs", "priors": [1.0], "weighting": "prior", "ipc": 10}
    assert record_of(terms=("cross_entropy",))["terms"] == ["cross_entropy"]


def test_a_digest_is_of_record_and_patches():
    patches = torch.zeros(1, 3, 2, 2, dtype=torch.uint8)
    digests = {batch_digest({"a": 1}, None), batch_digest({"a": 2}, None), batch_digest({"a": 1}, patches)}
    assert len(digests | {batch_digest({"a": 1}, patches + 1)}) == 4

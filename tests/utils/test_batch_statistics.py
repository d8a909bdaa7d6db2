"""Groups of a batch, and teachers that normalise with them."""

import copy
from pathlib import Path

import pytest
import torch

from models.checkpoints import load_network
from utils.batch_statistics import epoch_groups, forget_running_statistics, forward_in_groups, group_sizes
from utils.datasets import get_dataset
from utils.distillation import committee_weights

GOLDEN = Path(__file__).parents[1] / "golden"
FASHION = get_dataset("fashion_mnist")


@pytest.mark.parametrize(
    ("batch", "parts", "sizes"),
    [(16, 2, [8, 8]), (10, 2, [5, 5]), (5, 2, [2, 3]), (1, 2, [1]), (2, 2, [1, 1]), (7, 1, [7]), (7, 3, [2, 2, 3])],
)
def test_a_batch_is_cut_evenly_the_smaller_group_first(batch, parts, sizes):
    assert group_sizes(batch, parts) == sizes


def test_the_last_batch_of_an_epoch_is_what_is_left():
    assert epoch_groups(37, 16) == [[8, 8], [8, 8], [2, 3]]


def teachers(*names):
    return [load_network("ShuffleNetV2", FASHION, GOLDEN / f"{name}.safetensors") for name in names]


@torch.no_grad()
def test_logits_agree_with_the_published_ones(golden, relative):
    expected = golden("relabel_batch")
    weights = committee_weights(None, 2).tolist()
    first, second = (forget_running_statistics(teacher) for teacher in teachers("teacher_a", "teacher_b"))
    logits = [forward_in_groups(teacher, expected["mixed"], group_sizes(16)) for teacher in (first, second)]
    assert relative(logits[0], expected["logits_teacher_a"]) < 1e-4
    both = weights[0] * logits[0] + weights[1] * logits[1]
    assert relative(both, expected["logits_teacher_ab"]) < 1e-4
    (plain,) = teachers("teacher_a")
    assert relative(forward_in_groups(plain, expected["mixed"], [16]), expected["logits_teacher_a_eval"]) < 1e-4


@torch.no_grad()
def test_dropout_stays_off_and_nothing_is_kept(golden):
    images = golden("relabel_batch")["mixed"]
    (teacher,) = teachers("teacher_a")
    teacher.linear = torch.nn.Sequential(torch.nn.Dropout(0.5), teacher.linear).eval()
    forget_running_statistics(teacher)
    before = copy.deepcopy(teacher.state_dict())
    assert torch.equal(forward_in_groups(teacher, images, [8, 8]), forward_in_groups(teacher, images, [8, 8]))
    after = teacher.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)

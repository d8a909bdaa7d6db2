"""The labels of one epoch: a committee of teachers, and views in chunks of batches."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from models.checkpoints import load_network
from relabel.labelling import label_epoch, label_images, mean_logits, mean_of_norms
from tests.views import VIEWS
from utils.data.images import normalise
from utils.data.table import get_dataset
from utils.fkd.groups import GroupedNetwork, forget_running_statistics
from utils.fkd.views import draw_epoch, render_views
from utils.run.randomness import generator_for

GOLDEN = Path(__file__).parents[1] / "golden"
FASHION = get_dataset("fashion_mnist")
SETTINGS = replace(VIEWS, images=21, epochs=1)


def test_logits_of_a_committee_are_a_weighted_mean():
    views, groups = torch.randn(6, 3, 4, 4), (3, 3)
    teachers = [lambda views, groups: views.sum(dim=(2, 3)).half(), lambda views, groups: torch.full((6, 3), 2.0)]
    got = mean_logits(teachers, [0.75, 0.25], grouped=True)(views, groups)
    assert got.dtype == torch.float32
    assert torch.equal(got, 0.75 * views.sum(dim=(2, 3)).half().float() + 0.5)
    alone = mean_logits([lambda views: views.sum(dim=(2, 3))], [1.0], grouped=False)(views, groups)
    assert torch.equal(alone, views.sum(dim=(2, 3)))


def test_groups_reach_a_grouped_teacher():
    seen = []

    def teacher(views, groups):
        seen.append(groups)
        return views

    mean_logits([teacher, teacher], [0.5, 0.5], grouped=True)(torch.zeros(4, 10), (2, 2))
    assert seen == [(2, 2), (2, 2)]


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("at_once", [1, 8, 20, 1000])
def test_an_epoch_is_labelled_as_half_by_half_however_many_go_at_once(at_once, dtype, relative):
    images = torch.randint(0, 256, (21, 3, 32, 32), generator=generator_for("images"), dtype=torch.uint8)
    epoch, bar = draw_epoch(SETTINGS, 0), Bar()
    plain, fast = (load_network("ShuffleNetV2", FASHION, GOLDEN / "teacher_a.safetensors") for _ in range(2))
    committee = mean_logits([GroupedNetwork(fast)], [1.0], grouped=True)
    got = label_epoch(images, epoch, committee, SETTINGS, at_once, FASHION, torch.device("cpu"), dtype, bar)
    assert (got.dtype, tuple(got.shape), bar.views) == (dtype, (21, 10), 21)
    plain = forget_running_statistics(plain)
    views = render_views(images, epoch, 0, 3, SETTINGS, FASHION)
    expected = torch.cat([plain(half) for half in views.split([4, 4, 4, 4, 2, 3])])
    assert relative(got, expected) < (1e-5 if dtype == torch.float32 else 1e-3)


def test_norms_are_brought_to_their_mean():
    views = torch.randn(5, 3)
    teachers = [lambda views: 2 * views, lambda views: (views + 1).half()]
    got = mean_of_norms(teachers)(views, ())
    logits = [2 * views, (views + 1).half().float()]
    norms = [each.square().sum().sqrt() for each in logits]
    expected = sum(each / norm * sum(norms) / 2 for each, norm in zip(logits, norms, strict=True)) / 2
    torch.testing.assert_close(got, expected)


@torch.no_grad()
def test_images_are_labelled_as_they_are():
    images = torch.randint(0, 256, (7, 3, 32, 32), generator=generator_for("images"), dtype=torch.uint8)
    teacher = load_network("ShuffleNetV2", FASHION, GOLDEN / "teacher_a.safetensors")
    committee = mean_logits([teacher], [1.0], grouped=False)
    got = label_images(images, committee, 3, FASHION, torch.device("cpu"), torch.float16)
    assert got.dtype == torch.float16
    torch.testing.assert_close(got.float(), teacher(normalise(images, FASHION)), rtol=2e-3, atol=2e-3)


class Bar:
    """Counts as a progress bar does."""

    views = 0

    def update(self, views):
        self.views += views

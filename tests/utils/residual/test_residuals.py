"""Data residual matching on numbers that can be worked out by hand."""

import torch

from utils.recipes.settings import RecoverSettings
from utils.residual.residuals import merge_residual, mix, none, resize, retrieved


def ramp(size):
    """1 x 3 x size x size, rising by one from column to column."""
    return torch.arange(size, dtype=torch.float32).expand(1, 3, size, size).clone()


def test_merging_keeps_alpha_of_the_image():
    images, patches = torch.full((2, 3, 4, 4), 2.0), torch.full((2, 3, 4, 4), -1.0)
    assert torch.equal(merge_residual(images, patches, 0.25, 4), torch.full((2, 3, 4, 4), 0.25 * 2 - 0.75))
    assert torch.equal(merge_residual(images, patches, 1.0, 4), images)
    assert torch.equal(merge_residual(images, patches, 0.0, 4), patches)


def test_both_are_brought_to_the_size_of_the_next_stage():
    merged = merge_residual(ramp(4), torch.zeros(1, 3, 8, 8), 0.5, 8)
    # half-pixel centres: the first column lies outside the first centre, then steps of a half
    expected = torch.tensor([0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3.0]) / 2
    assert torch.allclose(merged[0, 0, 0], expected)
    assert torch.allclose(
        merge_residual(torch.zeros(1, 3, 4, 4), ramp(8), 0.5, 4)[0, 2, 3] * 2, ramp(8)[0, 0, 0, ::2] + 0.5
    )


def test_resize_does_not_average_over_what_it_skips():
    """No antialias: of eight columns brought to two, only those beside a new centre count."""
    assert resize(ramp(8), 2)[0, 0, 0].tolist() == [1.5, 5.5]
    spike = torch.zeros(1, 3, 8, 8)
    spike[..., 3] = 1.0
    assert resize(spike, 2).abs().max() == 0


def test_an_image_of_the_size_is_itself():
    image = ramp(5)
    assert resize(image, 5) is image


def test_gradients_reach_the_image_but_no_patch_changes():
    images, patches = ramp(4).requires_grad_(True), ramp(4)
    merge_residual(images, patches, 0.3, 4).sum().backward()
    assert torch.allclose(images.grad, torch.full_like(images, 0.3))
    assert torch.equal(patches, ramp(4))


def test_mix_is_the_merge_and_none_is_the_resize_alone():
    images, patches = ramp(4), torch.ones(1, 3, 8, 8)
    assert torch.equal(mix(RecoverSettings(alpha=0.3), patches)(images, 1, 8), merge_residual(images, patches, 0.3, 8))
    for residual in (
        none(RecoverSettings(alpha=0.3), patches),
        mix(RecoverSettings(alpha=1.0), patches),
        mix(RecoverSettings(alpha=0.3), None),
    ):
        assert torch.equal(residual(images, 1, 8), resize(images, 8))


def test_a_retrieved_anchor_takes_the_place_of_the_patch():
    images, patches, anchors = torch.zeros(1, 3, 4, 4), torch.full((1, 3, 4, 4), 9.0), torch.full((1, 3, 8, 8), 4.0)
    asked = []

    def retrieve(seen):
        asked.append(seen)
        return anchors

    residual = retrieved(RecoverSettings(alpha=0.75), patches, retrieve)
    assert torch.equal(residual(images, 1, 8), torch.ones(1, 3, 8, 8))
    assert asked[0] is images

"""Codecs: the largest logits alone, and that a loss reads them as a distribution over these."""

import pytest
import torch

from utils.fkd.codec import Packing
from utils.fkd.losses import distillation_loss


def codec_of(classes, kept=3):
    return Packing("top_k", kept).codec_for(classes, "float16")


def decoded(logits, kept):
    codec = codec_of(logits.shape[1], kept)
    return codec.decode(codec.encode(logits.half()))


@pytest.mark.parametrize(("classes", "kind"), [(2, "U8"), (256, "U8"), (257, "I16"), (32768, "I16"), (32769, "I32")])
def test_classes_have_the_smallest_type_that_has_them_all(classes, kind):
    codec = codec_of(classes, 2)
    logits = torch.zeros(1, classes).half()
    logits[0, -2:] = torch.tensor([1.0, 2.0])
    tensors = codec.encode(logits)
    assert codec.expected(1) == {"top_logits": ("F16", [1, 2]), "top_classes": (kind, [1, 2])}
    assert sorted(tensors["top_classes"].long().flatten().tolist()) == [classes - 2, classes - 1]
    assert codec.problem(tensors) is None
    assert codec.decode(tensors)[0, -2:].tolist() == [1.0, 2.0]


def test_more_than_there_are_is_all_of_them():
    logits = torch.randn(5, 4).half()
    assert torch.equal(decoded(logits, 100), logits.float())


@pytest.mark.parametrize("temperature", [20.0, 2.0, 1.0, 0.01, 1e6])
@pytest.mark.parametrize("kept", [1, 3, 10])
def test_the_loss_is_over_the_largest_logits_alone(temperature, kept):
    """Against the divergence by its definition over the k classes, in double precision; and its gradient is finite."""
    generator = torch.Generator().manual_seed(0)
    teacher = (5 * torch.randn(6, 10, generator=generator)).half()
    student = torch.randn(6, 10, generator=generator).requires_grad_(True)
    found = distillation_loss(student, decoded(teacher, kept), temperature, 6)
    found.backward()
    expected = 0.0
    for ours, theirs in zip(student.detach().double(), teacher.double(), strict=True):
        places = theirs.sort(descending=True).indices[:kept]
        weights = ((theirs[places] - theirs.max()) / temperature).exp()
        share = weights / weights.sum()
        log_ours = ours / temperature - torch.logsumexp(ours / temperature, dim=0)
        expected += sum((p * (p.log() - q) for p, q in zip(share, log_ours[places], strict=True) if p > 0), 0.0) / 6
    assert found.item() == pytest.approx(float(expected), rel=2e-4, abs=1e-6)
    assert (student.grad.isfinite().all() and student.grad.abs().max() > 0) or temperature == 1e6


def test_what_is_left_out_has_no_probability_at_all():
    for temperature in (1e-12, 1.0, 20.0, 1e6):
        soft = torch.softmax(decoded(torch.randn(4, 10), 2) / temperature, dim=1)
        assert (soft > 0).sum(dim=1).max() <= 2 and soft.sum(dim=1).tolist() == pytest.approx([1.0] * 4)


@pytest.mark.parametrize("classes", [2, 7, 10])
def test_four_bits_are_the_nearest_of_sixteen_even_steps(classes):
    codec = Packing("four_bits").codec_for(classes, "float16")
    logits = (9 * torch.randn(6, classes, generator=torch.Generator().manual_seed(0))).half()
    logits[3] = 2.5  # all alike
    tensors = codec.encode(logits)
    assert tensors["steps"].shape == (6, (classes + 1) // 2) and tensors["steps"].dtype == torch.uint8
    found = codec.decode(tensors)
    for view, its in zip(logits.double().tolist(), found.tolist(), strict=True):
        low, high = min(view), max(view)
        levels = [low + (high - low) * step / 15 for step in range(16)]
        nearest = [min(levels, key=lambda level, value=value: abs(level - value)) for value in view]
        assert its == pytest.approx(nearest, abs=(high - low) / 100 + 1e-6)
    assert codec.problem(tensors) is None
    tensors["range"] = tensors["range"].flip(1)
    assert codec.problem(tensors) == "the range of a soft label is reversed"


def test_a_store_of_four_bits_has_what_it_should(tmp_path):
    codec = Packing("four_bits").codec_for(10, "float16")
    tensors = codec.encode(torch.randn(3, 10).half())
    kinds = {torch.uint8: "U8", torch.float16: "F16"}
    assert codec.expected(3) == {name: (kinds[each.dtype], list(each.shape)) for name, each in tensors.items()}

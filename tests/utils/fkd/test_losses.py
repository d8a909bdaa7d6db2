"""Student loss against the published values, and the weights of teachers."""

import math

import pytest
import torch

from utils import recipes
from utils.fkd.losses import Target, best_temperature, distillation_loss, kl, label_weights, temperature_at
from utils.seams import LOSSES


def test_the_loss_agrees_with_the_published_one(golden, relative):
    expected = golden("student_loss")
    logits = expected["student_logits"].clone().requires_grad_(True)
    parts = zip(logits.split(8), expected["soft_label_logits"].split(8), strict=True)
    loss = sum(distillation_loss(part, labels, 20.0, 16) for part, labels in parts)
    loss.backward()
    assert relative(loss.detach(), expected["loss"]) < 1e-5
    assert relative(logits.grad, expected["grad"]) < 1e-5


def test_the_loss_named_kl_is_that_at_the_temperature_of_the_settings(world):
    settings = recipes.parse("validate", world.validate("-T", "7"))
    assert LOSSES["kl"] is kl
    student, teacher = torch.randn(2, 6, 10)
    target = Target(teacher.half(), torch.arange(6), epoch=3, batch=8)
    assert torch.equal(kl(settings)(student, target), distillation_loss(student, teacher.half(), 7.0, 8))


def test_losses_of_other_protocols_are_the_plain_ones(world):
    settings = recipes.parse("validate", world.validate("-T", "7", "--gamma", "0.25"))
    student, teacher = torch.randn(2, 6, 10)
    target = Target(teacher, torch.arange(6), epoch=3, batch=8)
    found = {name: LOSSES[name](settings)(student, target).item() for name in LOSSES}
    assert found["kl_squared"] == pytest.approx(49 * found["kl"])
    chosen = -torch.log_softmax(student, dim=1)[range(6), range(6)].sum().item() / 8
    assert found["cross_entropy"] == pytest.approx(chosen)
    squares = sum((a - b) ** 2 for a, b in zip(student.flatten().tolist(), teacher.flatten().tolist(), strict=True))
    assert found["mse_ce"] == pytest.approx(squares / 10 / 8 + 0.25 * chosen, rel=1e-5)


@pytest.mark.parametrize("name", list(LOSSES))
def test_each_row_counts_by_its_weight(world, name):
    loss = LOSSES[name](recipes.parse("validate", world.validate()))
    student, teacher, hard = torch.randn(5, 10, requires_grad=True), torch.randn(5, 10), torch.arange(5)
    weights = torch.tensor([0.0, 0.5, 1.0, 2.5, 1.0])
    target = Target(teacher, hard, epoch=0, batch=8)
    rows = [loss(student[k : k + 1], target._replace(soft=teacher[k : k + 1], hard=hard[k : k + 1])) for k in range(5)]
    weighed = loss(student, target._replace(weights=weights))
    torch.testing.assert_close(weighed, sum(w * row for w, row in zip(weights.tolist(), rows, strict=True)))
    torch.testing.assert_close(loss(student, target._replace(weights=torch.ones(5))), loss(student, target))
    (gradient,) = torch.autograd.grad(weighed, student)
    assert not gradient[0].any() and gradient[1].any()


def test_cosine_by_hand(world):
    """One image of class 1, teacher (3, 0, 4): at length 1 (0.6, 0, 0.8); the one-hot (0.05, 0.9, 0.05) is 0.9027735
    long. With gamma 0.5 the target is (0.6276924, 0.4984639, 0.8276924), 1.1521887 long."""
    settings = recipes.parse("validate", world.validate("--gamma", "0.5"))
    target = Target(torch.tensor([[3.0, 0, 4]]).half(), torch.tensor([1]), epoch=0, batch=4)
    for student, inner in (([0.0, 7, 0], 0.4984639), ([5.0, 0, 0], 0.6276924), ([0.0, 0, -1], -0.8276924)):
        found = LOSSES["cosine"](settings)(torch.tensor([student]), target).item()
        assert found == pytest.approx((1 - inner / 1.1521887) / 4, rel=1e-5)


def test_cosine_is_of_all_rows_and_of_directions_alone(world):
    loss = LOSSES["cosine"](recipes.parse("validate", world.validate()))
    student, teacher, hard = torch.randn(6, 10), torch.randn(6, 10), torch.arange(6)
    found, expected = loss(student, Target(teacher, hard, epoch=0, batch=8)), 0.0
    for mine, theirs, its_class in zip(student.tolist(), teacher.tolist(), hard.tolist(), strict=True):
        one_hot = [0.9 if place == its_class else 0.1 / 9 for place in range(10)]
        aim = [a / math.hypot(*theirs) + 0.1 * b / math.hypot(*one_hot) for a, b in zip(theirs, one_hot, strict=True)]
        inner = sum(a * b for a, b in zip(mine, aim, strict=True))
        expected += (1 - inner / math.hypot(*mine) / math.hypot(*aim)) / 8
    assert found.item() == pytest.approx(expected, rel=1e-4)
    torch.testing.assert_close(loss(7 * student, Target(3 * teacher, hard, epoch=0, batch=8)), found)


def test_labels_with_a_temperature_of_their_own_are_read_at_that(world):
    settings = recipes.parse("validate", world.validate("-T", "7"))
    student, teacher = torch.randn(2, 6, 10)
    target = Target(teacher, torch.arange(6), epoch=3, batch=8, temperature=2.0)
    plain = distillation_loss(student, teacher, 2.0, 8).item()
    assert LOSSES["kl"](settings)(student, target).item() == plain
    assert LOSSES["kl_squared"](settings)(student, target).item() == pytest.approx(4 * plain)
    assert LOSSES["lpqld"](settings)(student, target).item() == plain


def test_lpqlds_temperature_falls_as_published(world):
    """20, 14, 9.8, ... from the epochs 1, 30, 60, ... of 300 on, and 2 from 210; a training of 20 has it alike."""
    settings = recipes.parse("validate", world.validate("-T", "20", "--loss", "lpqld", "--epochs", "300"))
    expected = {
        1: 20,
        29: 20,
        30: 14,
        60: 9.8,
        90: 6.86,
        120: 4.802,
        150: 3.3614,
        180: 2.35298,
        209: 2.35298,
        210: 2,
        300: 2,
    }
    assert [temperature_at(settings, e - 1) for e in expected] == pytest.approx([*expected.values()])
    short = recipes.parse("validate", world.validate("-T", "20", "--loss", "lpqld", "--epochs", "20"))
    assert [temperature_at(short, e) for e in range(4)] == pytest.approx([20, 14, 14, 9.8])
    assert temperature_at(recipes.parse("validate", world.validate("-T", "20")), 200) == 20


def test_lpqlds_student_has_a_temperature_of_its_own(world):
    settings = recipes.parse("validate", world.validate("-T", "20", "--loss", "lpqld", "--epochs", "300"))
    loss = LOSSES["lpqld"](settings)
    teacher = 20 * torch.randn(8, 10, generator=torch.Generator().manual_seed(0))
    target = Target(teacher, torch.arange(8), epoch=0, batch=8)
    student = 0.37 * teacher / 20
    soft, log_own = torch.softmax(teacher / 20, dim=1), torch.log_softmax(student, dim=1)
    assert loss(student, target).item() == pytest.approx((soft * (soft.log() - log_own)).sum().item() / 8, rel=1e-4)
    assert loss.end_epoch() == {"student_temperature": 0.37}  # at which it says just the same
    assert loss(student, target).item() == pytest.approx(0.0, abs=1e-6)
    again = LOSSES["lpqld"](settings)
    again.go_on({"student_temperature": 0.37})
    assert again(student, target).item() == loss(student, target).item()
    loss(student, target._replace(temperature=1.0))
    assert loss.end_epoch() == {"student_temperature": 0.37}


@pytest.mark.parametrize(("scale", "expected"), [(0.001, 0.01), (0.5, 0.5), (3.0, 1.0)])
def test_the_students_temperature_stays_in_its_range(scale, expected):
    teacher = 4 * torch.randn(8, 10, generator=torch.Generator().manual_seed(0))
    assert best_temperature(scale * teacher / 4, teacher, 4.0) == expected


def test_the_loss_is_zero_where_the_student_says_the_same():
    logits = torch.randn(4, 10)
    assert distillation_loss(logits, logits + 3, 2.0, 4).item() == pytest.approx(0.0, abs=1e-6)


def test_weights_of_teachers_are_a_softmax_of_scores_over_ten():
    assert label_weights((), 4).tolist() == [0.25] * 4
    weights = label_weights([63.0, 65.3, 68.5, 67.6, 67.4], 5)  # CV-DD's cifar10 priors
    assert weights.tolist() == pytest.approx([0.140, 0.177, 0.243, 0.222, 0.218], abs=5e-4)
    assert weights.dtype == torch.float32

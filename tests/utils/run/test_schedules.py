"""Learning rates over a run, against the published ones and by hand."""

import pytest
import torch

from utils.run.schedules import cosine, linear
from utils.seams import SCHEDULES


@pytest.mark.parametrize("eta", [1, 2])
@pytest.mark.parametrize("epochs", [300, 1000])
def test_the_rate_agrees_with_the_published_one(golden, relative, eta, epochs):
    rates = [cosine(0.001, epoch, epochs, eta) for epoch in range(epochs)]
    expected = golden("lr_schedule")[f"lr_eta{eta}_epochs{epochs}"]
    assert relative(torch.tensor(rates, dtype=torch.float64), expected) < 1e-9


def test_a_straight_line_falls_to_zero():
    assert [linear(1.0, epoch, 4, 2.0) for epoch in range(4)] == [1.0, 0.75, 0.5, 0.25]


def test_a_cosine_ends_at_zero_or_at_half_the_rate():
    assert cosine(0.2, 0, 10) == cosine(0.2, 0, 10, 2) == 0.2
    assert cosine(0.2, 10, 10) == pytest.approx(0.0, abs=1e-12)
    assert cosine(0.2, 10, 10, 2) == pytest.approx(0.1)


def test_schedules_go_by_name():
    assert (SCHEDULES["linear"], SCHEDULES["cosine"]) == (linear, cosine)
    assert {"linear", "cosine"} <= set(SCHEDULES)


def test_steps_fall_to_a_tenth_from_the_middle_on():
    assert [SCHEDULES["step"](0.1, step, 4) for step in range(4)] == pytest.approx([0.1, 0.1, 0.01, 0.01])
    assert [SCHEDULES["step"](0.1, step, 3) for step in range(3)] == pytest.approx([0.1, 0.1, 0.01])


def test_edcs_rate_is_a_slow_cosine_that_jumps_and_goes_straight_to_zero():
    rates = [SCHEDULES["edc"](1.0, step, 600, 2.0) for step in (0, 300, 500, 501, 599)]
    assert rates[:3] == pytest.approx([1.0, 0.5 * (1 + 0.5**0.5), 0.6294], abs=1e-4)
    assert rates[3:] == pytest.approx([0.6294 * 99 / 600, 0.6294 / 600], abs=1e-4)

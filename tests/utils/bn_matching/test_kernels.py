"""Mean and variance by the CPU's kernel: as exact as float64 says, whatever the shape."""

import pytest
import torch

from utils.bn_matching import kernels
from utils.bn_matching.kernels import gradient_sums, has_cpu_kernels, largest_divisor, statistics_of_rows, weighted_sum
from utils.run.randomness import generator_for


@pytest.mark.parametrize(
    "shape",
    [
        (7, 5000),  # wider than the sums that are kept at once
        (102_400, 24),  # rows joined, in one part
        (102_400, 512),  # in many parts of one length
        (2049, 600),  # in parts of two lengths
    ],
    ids=str,
)
def test_statistics_are_exact_to_some_millionths(shape, relative):
    values = torch.randn(shape, generator=generator_for("rows")).relu_() * 3 + 1
    wide = values.double()
    mean, var = statistics_of_rows(values)
    assert relative(mean, wide.mean(dim=0)) < 4e-6
    assert relative(var, wide.var(dim=0, correction=0)) < 4e-6


def test_one_row_is_its_own_mean():
    mean, var = statistics_of_rows(torch.tensor([[1.0, 2.0, 3.0]]))
    assert (mean.tolist(), var.tolist()) == ([1.0, 2.0, 3.0], [0.0] * 3)


def test_values_that_are_not_contiguous_are_taken_too(relative):
    values = torch.randn(6, 1000, generator=generator_for("rows"))
    mean, var = statistics_of_rows(values.T)
    assert relative(mean, values.mean(dim=1)) < 1e-5
    assert relative(var, values.var(dim=1, correction=0)) < 1e-5


@pytest.mark.parametrize("shape", [(8, 24, 32, 32), (3, 58, 7, 5), (2, 1200, 2, 2)], ids=str)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_sums_and_products_of_a_gradient(shape, memory_format, relative):
    generator = generator_for("gradient")
    values, gradient = torch.randn(2, *shape, generator=generator) + 3
    values, gradient = (each.contiguous(memory_format=memory_format) for each in (values, gradient))
    mean, inverse_std, weight = torch.randn(3, shape[1], generator=generator)
    products, sums = gradient_sums(gradient, values, mean, inverse_std)
    wide, by_channel = gradient.double(), (-1, 1, 1)
    normalised = (values.double() - mean.view(by_channel)) * inverse_std.view(by_channel)
    assert relative(products, (wide * normalised).sum(dim=(0, 2, 3))) < 4e-6
    assert relative(sums, wide.sum(dim=(0, 2, 3))) < 4e-6
    found = weighted_sum(gradient, weight, values, mean, inverse_std, out=torch.empty_like(values))
    weight, mean, inverse_std = (each.view(by_channel) for each in (weight, mean, inverse_std))
    assert relative(found, wide * weight + values * mean + inverse_std) < 1e-6


@pytest.mark.parametrize("factor", [1.0, 1.01, torch.nan])
def test_a_kernel_is_trusted_after_it_agreed(monkeypatch, capsys, factor):
    monkeypatch.setattr(kernels, "_trusted", {})
    plain, asked = [torch.arange(5.0), torch.ones(5)], []
    found = [vector * factor for vector in plain]
    for _ in range(2):
        assert kernels.agrees("name", found, lambda: asked.append(1) or plain) is (factor == 1)
    assert len(asked) == 1  # the first time
    note = "note: the kernel name does not give what its plain version gives: taking that\n"
    assert capsys.readouterr().out == ("" if factor == 1 else note)
    halves = [vector.half() for vector in plain]
    assert kernels.agrees("name", halves, lambda: halves)  # another type is compared anew


def test_the_largest_divisor():
    assert [largest_divisor(12, most) for most in (0, 1, 5, 6, 100)] == [1, 1, 4, 6, 12]
    assert largest_divisor(13, 12) == 1


def test_kernels_of_the_cpu_take_float32_alone():
    assert has_cpu_kernels(torch.zeros(1))
    assert not has_cpu_kernels(torch.zeros(1, dtype=torch.float64))
    assert not has_cpu_kernels(torch.zeros(1, device="meta"))

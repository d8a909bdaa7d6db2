"""The sums and products of BatchNorm on a CPU, by PyTorch's own kernels, handed what these are fast and exact at.

Over values that lie in rows the kernels add up in float32, one by one, and lose digits over many of them; and where the
channels of a row are no whole number of vectors they take several times as long. So several rows count as one of as
many more columns, and what is found in the parts is joined (variances: Chan et al. 1979).
"""

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

VALUES_IN_A_SUM = 2**10  # that float32 adds up one by one and stays within some 1e-6
SUMS_AT_ONCE = 2**11  # that stay in a core's fastest cache
VECTOR = 16  # float32 values
CHUNK_BYTES = 2**20  # of activations that a CPU core works on while they are in its cache


def has_cpu_kernels(activations: Tensor) -> bool:
    """Whether to use the CPU kernels: float32 on a CPU, and not where a compiler makes its own."""
    return activations.device.type == "cpu" and activations.dtype == torch.float32 and not torch.compiler.is_compiling()


_trusted: dict[tuple[object, ...], bool] = {}  # kernels that were compared, by name, type and device


def agrees(kernel: str, found: Sequence[Tensor], plain: Callable[[], Sequence[Tensor]]) -> bool:
    """Whether what a kernel found the first time, on this device and in this type, was what its plain version finds.

    Says so where it was not.
    """
    key = (kernel, found[0].dtype, found[0].device)
    if key not in _trusted:
        pairs = zip(found, plain(), strict=True)
        _trusted[key] = all(torch.allclose(a, b, rtol=1e-3, atol=1e-3 * float(b.abs().max())) for a, b in pairs)
        if not _trusted[key]:
            print(f"note: the kernel {kernel} does not give what its plain version gives: taking that", flush=True)
    return _trusted[key]


def statistics_of_rows(values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each column of n x C float32 values: C each. What is not contiguous is copied."""
    count, columns = values.shape
    together = largest_divisor(count, SUMS_AT_ONCE // columns)
    rows = values.reshape(count // together, together * columns, 1, 1)
    parts = rows.chunk(-(-len(rows) // VALUES_IN_A_SUM))
    found = [torch.batch_norm_update_stats(part, None, None, 0.0) for part in parts]
    if len(found) == together == 1:
        return found[0]
    means, variances = (torch.cat(vectors).view(-1, columns) for vectors in zip(*found, strict=True))
    if len(parts[-1]) == len(parts[0]):
        mean = means.mean(dim=0)
        return mean, torch.addcmul(variances, means - mean, means - mean).mean(dim=0)
    shares = torch.tensor([len(part) / count for part in parts]).repeat_interleave(together)[:, None]
    mean = (shares * means).sum(dim=0)
    return mean, (shares * torch.addcmul(variances, means - mean, means - mean)).sum(dim=0)


def gradient_sums(gradient: Tensor, activations: Tensor, mean: Tensor, inverse_std: Tensor) -> tuple[Tensor, Tensor]:
    """The sums over N x C x H x W, by channel, of gradient * (activations - mean) * inverse_std and of the gradient."""
    channels = activations.shape[1]
    values, grads = (each.permute(0, 2, 3, 1).reshape(-1, channels) for each in (activations, gradient))
    together = largest_divisor(len(values), SUMS_AT_ONCE // 2 // channels)
    values, grads = (each.view(-1, together * channels, 1, 1) for each in (values, grads))
    mean, inverse_std = (each.expand(together, channels).reshape(-1) for each in (mean, inverse_std))
    _, products, sums = torch.ops.aten.native_batch_norm_backward(
        grads, values, inverse_std, None, None, mean, inverse_std, True, 0.0, (False, True, True)
    )
    return products.view(together, channels).sum(dim=0), sums.view(together, channels).sum(dim=0)


def weighted_sum(first: Tensor, weight: Tensor, second: Tensor, slope: Tensor, offset: Tensor, out: Tensor) -> Tensor:
    """`first * weight + second * slope + offset` into `out`, all N x C x H x W, the vectors by channel.

    A few images at a time, so that the second product finds what the first has written in the cache.
    """
    weight, slope, offset = (vector.view(1, -1, 1, 1) for vector in (weight, slope, offset))
    images = max(1, torch.get_num_threads() * CHUNK_BYTES // (4 * second[0].numel()))
    for part, its_first, its_second in zip(out.split(images), first.split(images), second.split(images), strict=True):
        torch.addcmul(offset, its_second, slope, out=part).addcmul_(its_first, weight)
    return out


@functools.cache
def largest_divisor(number: int, most: int) -> int:
    """The largest divisor of `number` that is at most `most`, and 1 if `most` is less."""
    return next((divisor for divisor in range(min(number, most), 1, -1) if number % divisor == 0), 1)

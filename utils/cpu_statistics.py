"""Mean and variance on a CPU by PyTorch's own one-pass kernel, told to add up few values at a time.

Over values that lie in rows the kernel adds up in float32, one by one, and loses digits over many of them. So several
rows count as one of as many more columns, and some of these are handed over at a time; what is found in the parts is
joined (Chan et al. 1979). Wide rows are also what the kernel is fast at.
"""

import functools

import torch
from torch import Tensor

VALUES_IN_A_SUM = 2**10  # that float32 adds up one by one and stays within some 1e-6
SUMS_AT_ONCE = 2**11  # that stay in a core's fastest cache


def has_cpu_kernels(activations: Tensor) -> bool:
    """Whether the kernels of the CPU are the way to go: not for other devices or types, and not where a compiler makes
    its own."""
    return activations.device.type == "cpu" and activations.dtype == torch.float32 and not torch.compiler.is_compiling()


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


@functools.cache
def largest_divisor(number: int, most: int) -> int:
    """The largest divisor of `number` that is at most `most`, and 1 if `most` is less."""
    return next((divisor for divisor in range(min(number, most), 1, -1) if number % divisor == 0), 1)

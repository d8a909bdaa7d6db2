"""Learning rates over a run, for images, students and teachers alike."""

import math

from utils.seams import SCHEDULES


@SCHEDULES.add("linear")
def linear(base: float, step: int, steps: int, eta: float = 1) -> float:
    """`base` falling to zero on a straight line."""
    return base * (1 - step / steps)


@SCHEDULES.add("step")
def step_at_half(base: float, step: int, steps: int, eta: float = 1) -> float:
    """`base`, and a tenth of it from the middle on."""
    return base if 2 * step < steps else 0.1 * base


@SCHEDULES.add("edc")
def edc(base: float, step: int, steps: int, eta: float = 1) -> float:
    """EDC's: the cosine for five sixths of the way, then straight to zero, with the jump to a sixth that its formula
    has."""
    if 6 * step <= 5 * steps:
        return cosine(base, step, steps, eta)
    return cosine(base, 5, 6, eta) * (1 - step / steps)


@SCHEDULES.add("cosine")
def cosine(base: float, step: int, steps: int, eta: float = 1) -> float:
    """`base` falling on a cosine, to zero with eta 1 and to half of `base` with eta 2 (EDC's smoothed schedule)."""
    return 0.5 * base * (1 + math.cos(math.pi * step / steps / eta))

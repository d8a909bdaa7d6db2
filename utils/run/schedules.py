"""Learning rates over a run, for images, students and teachers alike."""

import math

from utils.seams import SCHEDULES


@SCHEDULES.add("linear")
def linear(base: float, step: int, steps: int, eta: float = 1) -> float:
    """`base` falling to zero on a straight line."""
    return base * (1 - step / steps)


@SCHEDULES.add("cosine")
def cosine(base: float, step: int, steps: int, eta: float = 1) -> float:
    """`base` falling on a cosine, to zero with eta 1 and to half of `base` with eta 2 (EDC's smoothed schedule)."""
    return 0.5 * base * (1 + math.cos(math.pi * step / steps / eta))

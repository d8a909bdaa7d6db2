"""What repeated runs come to."""

import statistics
from collections.abc import Mapping, Sequence


def spread_of(values: Sequence[float]) -> dict[str, float | None]:
    """Mean and standard deviation; no deviation for one value."""
    return {"mean": statistics.fmean(values), "std": statistics.stdev(values) if len(values) > 1 else None}


def shown(value: Mapping[str, float | None]) -> str:
    """As people read it."""
    return f"{value['mean']:.2f}" if value["std"] is None else f"{value['mean']:.2f} ± {value['std']:.2f}"

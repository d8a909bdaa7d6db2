"""Charts as SVG: curves over the epochs, and points over a logarithmic axis."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from validate.page.markup import Markup, element, fill, joined

WIDTH, HEIGHT = 360, 240  # of the drawing, in its own units, which are pixels on a phone
LEFT, RIGHT, TOP, BOTTOM = 34, 350, 20, 204  # where the axes end
COLOURS = 8  # in page.css; more lines take them again, dashed
MOST_POINTS = 100  # of a curve


class Point(NamedTuple):
    x: float
    y: float
    colour: int | None  # None: grey
    radius: float
    title: str


class Line(NamedTuple):
    """A curve. number: of its colour, None: grey."""

    name: str
    number: int | None
    points: Sequence[tuple[int, float]]


class Axis(NamedTuple):
    """An axis: its place for a value, and the values that are marked, with what stands there."""

    place: Callable[[float], float]
    ticks: Sequence[tuple[float, str]]


def linear(values: Iterable[float], start: float, end: float) -> Axis:
    """An axis from `start` to `end` with round numbers at its ticks, a little longer than the values ask for."""
    values = list(values)
    low, high = min(values), max(values)
    if low == high:
        low, high = low - 1, high + 1
    rough = (high - low) / 4
    unit = 10 ** math.floor(math.log10(rough))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= rough)
    first, last = math.floor(low / step), math.ceil(high / step)
    low, high = first * step, last * step
    digits = max(0, -math.floor(math.log10(step)))
    ticks = [(k * step, f"{k * step:.{digits}f}") for k in range(first, last + 1)]
    return Axis(lambda value: start + (value - low) / (high - low) * (end - start), ticks)


def logarithmic(values: Iterable[float], start: float, end: float) -> Axis:
    """An axis of powers of ten; values: above 0. Where it spans less than two, times of these are marked, too."""
    logs = [math.log10(value) for value in values]
    margin = 0.05 * (max(logs) - min(logs)) or 0.5
    low, high = min(logs) - margin, max(logs) + margin
    factors = (1, 1.5, 2, 3, 5, 7) if high - low < 1 else (1, 2, 5) if high - low < 2 else (1,)
    marked = [factor * 10.0**k for k in range(math.floor(low), math.ceil(high) + 1) for factor in factors]
    ticks = [(value, f"{value:,.10g}") for value in marked if low <= math.log10(value) <= high]
    return Axis(lambda value: start + (math.log10(value) - low) / (high - low) * (end - start), ticks)


def curves(title: str, lines: Iterable[Line]) -> Markup:
    """Top-1 over the epochs, with a legend."""
    lines = [line._replace(points=thinned(line.points)) for line in lines]
    x = linear([0, *(epoch for line in lines for epoch, _ in line.points)], LEFT, RIGHT)
    y = linear([top1 for line in lines for _, top1 in line.points], BOTTOM, TOP)
    drawn = []
    for name, number, points in lines:
        places = [(f"{x.place(epoch):.1f}", f"{y.place(top1):.1f}") for epoch, top1 in points]
        on_it, style = element("title", name), style_of(number)
        if len(points) == 1:
            drawn.append(circle(*places[0], 3, style, on_it))
        else:
            drawn.append(element("polyline", on_it, points=" ".join(map(",".join, places)), class_=style))
    return chart(title, "epoch", x, y, drawn, dict.fromkeys((line.number, line.name) for line in lines))


def thinned(points: Sequence[tuple[int, float]]) -> Sequence[tuple[int, float]]:
    """A curve of at most so many points, the last among them."""
    step = -(-len(points) // MOST_POINTS)
    return points[::-1][::step][::-1]


def scatter(title: str, xlabel: str, points: Sequence[Point], legend: Iterable[tuple[int | None, str]]) -> Markup:
    """Top-1 over a cost, on a logarithmic axis; what each point is stands on it."""
    x = logarithmic([point.x for point in points], LEFT, RIGHT)
    y = linear([point.y for point in points], BOTTOM, TOP)
    drawn = [
        circle(f"{x.place(p.x):.1f}", f"{y.place(p.y):.1f}", p.radius, style_of(p.colour), element("title", p.title))
        for p in sorted(points, key=lambda point: -point.radius)
    ]
    return chart(title, xlabel, x, y, drawn, legend)


def circle(cx: str, cy: str, radius: float, style: str, title: Markup) -> Markup:
    return element("circle", title, cx=cx, cy=cy, r=radius, class_=style)


def style_of(number: int | None) -> str:
    if number is None:
        return "grey"
    return f"c{number % COLOURS}" + (" dashed" if number >= COLOURS else "")


def chart(
    title: str, xlabel: str, x: Axis, y: Axis, drawn: Iterable[Markup], legend: Iterable[tuple[int | None, str]]
) -> Markup:
    """What was drawn, with its axes, their ticks and a legend below."""
    marks = []
    for value, text in x.ticks:
        at = f"{x.place(value):.1f}"
        marks.append(element("line", "", x1=at, x2=at, y1=TOP, y2=BOTTOM))
        marks.append(element("text", text, x=at, y=BOTTOM + 14, text_anchor="middle"))
    for value, text in y.ticks:
        at = y.place(value)
        marks.append(element("line", "", x1=LEFT, x2=RIGHT, y1=f"{at:.1f}", y2=f"{at:.1f}"))
        marks.append(element("text", text, x=LEFT - 4, y=f"{at + 4:.1f}", text_anchor="end"))
    return fill(
        "chart.html",
        title=title,
        xlabel=xlabel,
        width=WIDTH,
        height=HEIGHT,
        middle=(LEFT + RIGHT) / 2,
        foot=HEIGHT - 6,
        marks=joined(marks),
        drawn=joined(drawn),
        legend=joined(element("li", name, class_=style_of(number)) for number, name in legend),
    )

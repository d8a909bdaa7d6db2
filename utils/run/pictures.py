"""Pictures for people: contact sheets and curves, as PNG files."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from utils.run.files import write_png, write_whole

TILE, GAP, MARGIN, FONT_SIZE = 64, 4, 24, 15


def contact_sheet(path: Path, panels: Mapping[str, Sequence[Sequence[Image.Image]]], row_names: Sequence[str]) -> None:
    """Draw panels of images side by side: `panels[title][row][column]`, rows named at the left."""
    from torchvision.utils import make_grid  # it takes a second to import

    font = ImageFont.load_default(size=FONT_SIZE)
    names_width = MARGIN + max(int(font.getlength(name)) for name in row_names)
    grids = {}
    for title, rows in panels.items():
        tiles = torch.from_numpy(np.stack([np.asarray(_tile(image)) for row in rows for image in row]))
        grid = make_grid(tiles.permute(0, 3, 1, 2), nrow=len(rows[0]), padding=GAP, pad_value=255)
        grids[title] = Image.fromarray(grid.permute(1, 2, 0).numpy())
    top = MARGIN + FONT_SIZE
    width = names_width + sum(grid.width + MARGIN for grid in grids.values())
    sheet = Image.new("RGB", (width, top + grids[title].height + MARGIN), "white")
    pen, left = ImageDraw.Draw(sheet), names_width
    for row, name in enumerate(row_names):
        pen.text((GAP, top + GAP + row * (TILE + GAP) + TILE // 2), name, fill="black", font=font, anchor="lm")
    for title, grid in grids.items():
        pen.text((left + grid.width // 2, MARGIN // 2 + GAP), title, fill="black", font=font, anchor="mm")
        sheet.paste(grid, (left, top))
        left += grid.width + MARGIN
    write_png(path, sheet)


def _tile(image: Image.Image) -> Image.Image:
    enlarging = image.width < TILE
    return image.resize((TILE, TILE), Image.Resampling.NEAREST if enlarging else Image.Resampling.LANCZOS)


def accuracy_curves(
    path: Path, curves: Mapping[str, Sequence[tuple[int, float]]], title: str, over: str = "epoch"
) -> Path:
    """Draw accuracy in percent over epochs, or whatever `over` says, one line a name. Returns `path`."""
    return draw_curves(path, {"top-1 accuracy, %": curves}, over, title)


def draw_curves(
    path: Path,
    panels: Mapping[str, Mapping[str, Sequence[tuple[int, float]]]],
    xlabel: str,
    title: str,
    marks: Mapping[str, Sequence[int]] | None = None,
) -> Path:
    """Draw panels of curves, two side by side where there are several: `panels[what][name]` is a line of points.

    A name has its colour in all panels; marks: where dotted lines stand upright in it. Returns `path`.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # they take a third of a second to import
    from matplotlib.figure import Figure

    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(6 * columns, 4 * rows), layout="constrained")
    FigureCanvasAgg(figure)  # no display, no global state
    grid = figure.subplots(rows, columns, squeeze=False).flat
    names = list(dict.fromkeys(name for curves in panels.values() for name in curves))
    handles = {}
    for axes, (what, curves) in zip(grid, panels.items(), strict=False):
        for name, points in curves.items():
            colour = f"C{names.index(name)}"
            (handles[name],) = axes.plot(*zip(*points, strict=True), color=colour, marker="o", markersize=3, label=name)
            for place in (marks or {}).get(name, ()):
                axes.axvline(place, color=colour, linestyle=":", linewidth=1)
        axes.set(xlabel=xlabel, ylabel=what)
        axes.grid(alpha=0.3)
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    if len(panels) == 1:
        grid[0].set_title(title)
        grid[0].legend(loc="best")
    else:
        figure.suptitle(title)
        figure.legend(handles=handles.values(), loc="outside lower center", ncols=2)
    write_whole(path, lambda part: figure.savefig(part, format="png", dpi=120))
    return path

"""Pictures for people: contact sheets and curves, as PNG files."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from utils.files import write_png, write_whole

TILE, GAP, MARGIN, FONT_SIZE = 64, 4, 24, 15


def contact_sheet(path: Path, panels: Mapping[str, Sequence[Sequence[Image.Image]]], row_names: Sequence[str]) -> Path:
    """Draw panels of images side by side: `panels[title][row][column]`, rows named at the left. Returns `path`."""
    font = ImageFont.load_default(size=FONT_SIZE)
    step = TILE + GAP
    label_width = MARGIN + max(int(font.getlength(name)) for name in row_names)
    widths = [len(rows[0]) * step for rows in panels.values()]
    width = label_width + sum(widths) + MARGIN * len(widths)
    sheet = Image.new("RGB", (width, 2 * MARGIN + FONT_SIZE + len(row_names) * step), "white")
    pen = ImageDraw.Draw(sheet)
    top = MARGIN + FONT_SIZE
    for row, name in enumerate(row_names):
        pen.text((GAP, top + row * step + TILE // 2), name, fill="black", font=font, anchor="lm")
    left = label_width
    for (title, rows), panel_width in zip(panels.items(), widths, strict=True):
        pen.text((left + panel_width // 2, MARGIN // 2 + GAP), title, fill="black", font=font, anchor="mm")
        for row, images in enumerate(rows):
            for column, image in enumerate(images):
                enlarging = image.width < TILE
                tile = image.resize((TILE, TILE), Image.Resampling.NEAREST if enlarging else Image.Resampling.LANCZOS)
                sheet.paste(tile, (left + column * step, top + row * step))
        left += panel_width + MARGIN
    write_png(path, sheet)
    return path


def accuracy_curves(path: Path, curves: Mapping[str, Sequence[tuple[int, float]]], title: str) -> Path:
    """Draw accuracy in percent over epochs, one line a name. Returns `path`."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    FigureCanvasAgg(figure)  # no display, no global state
    axes = figure.subplots()
    for name, points in curves.items():
        epochs, accuracies = zip(*points, strict=True)
        axes.plot(epochs, accuracies, marker="o", markersize=3, label=name)
    axes.set(title=title, xlabel="epoch", ylabel="top-1 accuracy, %")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    write_whole(path, lambda part: figure.savefig(part, format="png", dpi=120))
    return path

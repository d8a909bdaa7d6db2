"""Pictures for people."""

import sys

import numpy as np
import pytest
from PIL import Image

from utils.run.pictures import GAP, TILE, accuracy_curves, contact_sheet, draw_curves

COLOURS = ("red", "lime", "blue", "yellow", "magenta", "cyan")


def solid(colour, size=32):
    return Image.new("RGB", (size, size), colour)


def left_edges(pixels, colour):
    """Where a colour's region begins, and its size: top, left, height, width."""
    rows, columns = np.nonzero((pixels == np.asarray(solid(colour).getpixel((0, 0)))).all(axis=2))
    return rows.min(), columns.min(), np.ptp(rows) + 1, np.ptp(columns) + 1


@pytest.mark.parametrize("size", [32, 224])
def test_a_contact_sheet_shows_every_image_in_its_place(tmp_path, size):
    images = [solid(colour, size) for colour in COLOURS]
    panels = {"patches": [images[:2], images[2:4]], "distilled": [images[4:5], images[5:6]]}
    path = tmp_path / "new" / "sheet.png"
    contact_sheet(path, panels, ["class 0", "class 1"])
    pixels = np.asarray(Image.open(path).convert("RGB"))
    places = [left_edges(pixels, colour) for colour in COLOURS]
    assert all((height, width) == (TILE, TILE) for _, _, height, width in places)
    tops, lefts = [place[0] for place in places], [place[1] for place in places]
    assert tops[0] == tops[1] == tops[4] and tops[2] == tops[3] == tops[5] == tops[0] + TILE + GAP
    assert lefts[0] == lefts[2] and lefts[1] == lefts[3] == lefts[0] + TILE + GAP
    assert lefts[4] == lefts[5] > lefts[1] + TILE + GAP
    assert (pixels[: tops[0]] < 128).any() and (pixels[:, : lefts[0]] < 128).any()  # titles above, names at the left
    assert [file.name for file in path.parent.iterdir()] == ["sheet.png"]


def test_small_images_are_enlarged_without_blur(tmp_path):
    image = Image.new("RGB", (2, 2))
    for place, colour in enumerate(COLOURS[:4]):
        image.putpixel((place % 2, place // 2), solid(colour).getpixel((0, 0)))
    contact_sheet(tmp_path / "a.png", {"one": [[image]]}, ["0"])
    pixels = np.asarray(Image.open(tmp_path / "a.png"))
    assert left_edges(pixels, "red")[2:] == left_edges(pixels, "yellow")[2:] == (TILE // 2, TILE // 2)


def test_accuracy_curves(tmp_path):
    curves = {"fadrm": [(10, 20.0), (20, 60.0)], "random": [(10, 30.0), (20, 40.0)]}
    path = accuracy_curves(tmp_path / "curve.png", curves, "a title")
    with Image.open(path) as image:
        assert image.format == "PNG" and image.width > 400 and image.height > 300
        colours = {colour for _, colour in image.convert("RGB").getcolors(2**20)}
    assert {(31, 119, 180), (255, 127, 14)} <= colours  # matplotlib's first two: a line for each name
    assert accuracy_curves(tmp_path / "again.png", curves, "a title").read_bytes() == path.read_bytes()
    assert accuracy_curves(tmp_path / "o.png", curves, "a title", over="classes").read_bytes() != path.read_bytes()
    single = accuracy_curves(tmp_path / "single.png", {"seed 0": [(1, 10.0)]}, "one test only")
    assert single.stat().st_size > 1000


def test_no_window_system_is_asked_for():
    assert "matplotlib.pyplot" not in sys.modules


def test_panels_of_curves(tmp_path):
    panels = {"one": {"a": [(0, 1.0), (5, 2.0)]}, "two": {"b": [(0, 1.0)]}, "three": {"b": [(1, 1.0), (2, 3.0)]}}
    sizes, counts = [], []
    for marks in (None, {"a": [2]}, {"b": [1]}):
        with Image.open(draw_curves(tmp_path / "curves.png", panels, "step", "a title", marks=marks)) as image:
            sizes.append(image.size)
            pixels = np.asarray(image.convert("RGB")).astype(int)
        excess = pixels[..., 2] - pixels[..., 0]  # blue over red: the first name is blue, the second orange
        counts.append(((excess > 50).sum(), (excess < -50).sum()))
    (blue, orange), with_blue, with_orange = counts
    assert with_blue[0] > blue > 0 and with_blue[1] == orange
    assert with_orange[1] > orange > 0 and with_orange[0] == blue
    with Image.open(draw_curves(tmp_path / "single.png", {"one": panels["one"]}, "step", "a title")) as image:
        assert sizes == [(2 * image.width, 2 * image.height)] * 3

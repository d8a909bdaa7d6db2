"""The page in Chromium, at the width of a phone and of a desk: it sorts, scrolls, slides, and asks for nothing else."""

import re
from pathlib import Path

import pytest
from PIL import Image

from tests.validate.test_page import make_world, of
from tests.validate.test_report import config, result  # noqa: F401 (a fixture)
from validate.page import report_page
from validate.report import cell_of

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)
WIDTHS = (390, 1400)

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = pytest.mark.skipif(not CHROMIUM.exists(), reason=f"there is no {CHROMIUM}")


@pytest.fixture
def browser(tmp_path):
    with playwright.sync_playwright() as driver:
        context = driver.chromium.launch_persistent_context(
            tmp_path / "profile", executable_path=CHROMIUM, args=FLAGS.split()
        )
        yield context
        context.close()


class Opened:
    """The page of a small world, opened; `said` are messages of its console, `asked` the files that it asked for."""

    def __init__(self, browser, width, scheme="light"):
        make_world()
        of(cell_of("cifar100", "fadrm", "10"), result(0, (40.0, 66.0)), result(1, (40.0, 68.0)))
        self.file = report_page()
        self.said, self.asked = [], []
        self.page = browser.pages[0]
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.set_viewport_size({"width": width, "height": 900})
        self.page.emulate_media(color_scheme=scheme)
        self.page.goto(self.file.as_uri())

    def column(self, heading):
        """What stands in a column of the table beside the paper, and its head's aria-sort."""
        table = self.page.locator("#results-table table")
        heads = [text.strip() for text in table.locator("thead th").all_inner_texts()]
        place = next(place for place, text in enumerate(heads) if text.startswith(heading))
        cells = table.locator(f"tbody tr > :nth-child({place + 1})").all_inner_texts()
        return cells, table.locator("thead th").nth(place).get_attribute("aria-sort")


def first_numbers(cells):
    return [float(re.match(r"-?[\d.]+", text)[0]) for text in cells if text.strip()]


def test_tables_sort_by_a_click_and_by_the_keyboard(browser):
    opened = Opened(browser, 1400)
    button = opened.page.locator("#results-table thead button", has_text="top-1")
    assert opened.column("top-1")[1] is None
    button.click()
    cells, direction = opened.column("top-1")
    assert first_numbers(cells) == [67.0, 42.5, 30.0, 25.0] and direction == "descending"
    assert all(not text.strip() for text in cells[4:])  # what was not run is below
    button.focus()
    opened.page.keyboard.press("Enter")
    cells, direction = opened.column("top-1")
    assert first_numbers(cells) == [25.0, 30.0, 42.5, 67.0] and direction == "ascending"
    assert not cells[-1].strip()
    opened.page.locator("#results-table thead button", has_text="method").click()
    assert opened.column("top-1")[1] is None and opened.column("method")[1] == "ascending"
    assert opened.column("method")[0] == sorted(opened.column("method")[0])
    assert opened.said == []


def test_a_search_leaves_the_lines_that_have_its_words(browser):
    opened = Opened(browser, 1400)
    opened.page.locator("#results input[type=search]").fill("RANDOM fadrm")
    shown = opened.page.locator("#results-table tbody tr:visible")
    assert shown.count() == 1 and "random, labels of fadrm" in shown.inner_text()
    opened.page.locator("#results input[type=search]").fill("")
    assert shown.count() > 40


def test_the_slider_moves_the_images_through_their_stages(browser):
    opened = Opened(browser, 1400)
    slider, strip = opened.page.locator("input[type=range]"), opened.page.locator(".strip:not(.first)").first
    slider.scroll_into_view_if_needed()

    def top():
        """The frame that is on top of what is seen of the sheet."""
        tops = "its.getBoundingClientRect().top - its.querySelector('img').getBoundingClientRect().top"
        return round(strip.evaluate(f"(its) => ({tops}) / its.getBoundingClientRect().height"), 2)

    assert (top(), opened.page.locator("output").text_content()) == (3, "image")
    slider.focus()
    for place, name in ((2, "stage 10"), (1, "stage 2"), (0, "start")):
        opened.page.keyboard.press("ArrowLeft")
        assert (top(), opened.page.locator("output").text_content()) == (place, name)
        assert slider.get_attribute("aria-valuetext") == name
    assert opened.said == []


def test_pictures_come_when_they_are_scrolled_to_and_nothing_comes_from_outside(browser):
    opened = Opened(browser, 390)
    home = opened.file.parent.as_uri()
    assert not any(url.endswith(".jpg") for url in opened.asked)  # far below
    opened.page.locator("#images").scroll_into_view_if_needed()
    opened.page.mouse.wheel(0, 600)
    loaded = "[...document.querySelectorAll('details[open] img')].every((its) => its.naturalWidth)"
    opened.page.wait_for_function(loaded)
    pictures = {url for url in opened.asked if url.endswith(".jpg")}
    assert pictures == {f"{home}/pictures/cifar100_fadrm_ipc2_new00{k}.jpg" for k in (0, 1)}
    assert all(url.startswith((f"{home}/", "data:")) for url in opened.asked)
    assert opened.said == []


def test_the_keyboard_reaches_everything(browser):
    opened = Opened(browser, 1400)
    for details in opened.page.locator("details").all():
        details.evaluate("(its) => { its.open = true; }")
    reachable = "a[href], button, input, summary, [tabindex='0']"
    wanted = opened.page.evaluate(
        f'[...document.querySelectorAll("{reachable}")].filter((its) => its.checkVisibility()).length'
    )
    seen, outlines = [], set()
    for _ in range(wanted + 5):
        opened.page.keyboard.press("Tab")
        place = opened.page.evaluate(
            "[...document.querySelectorAll('*')].indexOf(document.activeElement) * (document.activeElement.matches("
            f'"{reachable}") ? 1 : -1)'
        )
        if place in seen:
            break
        if place > 0:
            seen.append(place)
            outlines.add(opened.page.evaluate("getComputedStyle(document.activeElement).outlineStyle"))
    assert len(seen) == wanted > 50
    assert outlines == {"solid"}  # a focus that can be seen
    assert seen == sorted(seen)  # in the order of the page


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_is_wider_than_the_screen(browser, width, scheme, tmp_path):
    opened = Opened(browser, width, scheme)
    opened.page.add_style_tag(content="* { content-visibility: visible !important; }")  # a screenshot has all of it
    opened.page.evaluate("document.querySelectorAll('img').forEach((its) => { its.loading = 'eager'; })")
    assert opened.page.evaluate("document.documentElement.scrollWidth") == width
    picture = tmp_path / f"page_{width}_{scheme}.png"
    opened.page.screenshot(path=picture, full_page=True)
    with Image.open(picture) as image:
        assert image.width == width and (image.convert("L").getpixel((2, 2)) > 128) is (scheme == "light")
    sizes = opened.page.evaluate(
        "[...document.querySelectorAll('p, td, th, li, summary, figcaption, dd, text')]"
        ".map((its) => parseFloat(getComputedStyle(its).fontSize))"
    )
    assert min(sizes) >= 11
    assert opened.said == []

"""HTML from the templates that lie in this folder: `string.Template`, with every value escaped unless it is markup."""

from collections.abc import Iterable, Sequence
from functools import cache
from html import escape
from pathlib import Path
from string import Template


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


@cache
def template(name: str) -> Template:
    return Template(Path(__file__).with_name(name).read_text(encoding="utf-8"))


def fill(template_name: str, **values: object) -> Markup:
    """The template of that file with its $names replaced; what is no markup is escaped."""
    return Markup(template(template_name).substitute({key: safe(value) for key, value in values.items()}))


def safe(value: object) -> str:
    return value if isinstance(value, Markup) else escape(str(value))


def joined(parts: Iterable[str]) -> Markup:
    return Markup("".join(map(safe, parts)))


def element(tag: str, content: object, **attributes: object) -> Markup:
    """`<tag attribute="...">content</tag>`; class_ is class, and text_anchor text-anchor."""
    given = "".join(f' {key.rstrip("_").replace("_", "-")}="{escape(str(value))}"' for key, value in attributes.items())
    return Markup(f"<{tag}{given}>{safe(content)}</{tag}>")


def table(label: str, heads: Sequence[str], body: Iterable[Sequence[object]]) -> Markup:
    """A table that its reader can sort: a button in each head, and in a box that scrolls sideways by itself."""
    buttons = joined(element("th", element("button", head, type="button"), scope="col") for head in heads)
    rows = joined(
        element("tr", joined([element("th", first, scope="row"), *(element("td", cell) for cell in cells)]))
        for first, *cells in body
    )
    return fill("table.html", label=label, heads=buttons, rows=rows)

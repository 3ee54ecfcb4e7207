"""Building HTML and SVG so that text can never become markup: every plain string is escaped on its way in."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files
from string import Template

VOID = frozenset({"img"})


class Html(str):
    """A string that is markup already."""


def safe(text: str) -> Html:
    """`text` as markup: unchanged when it is `Html`, escaped when it is anything else."""
    return text if isinstance(text, Html) else Html(escape(text, quote=True))


def join(parts: Iterable[str], separator: str = "") -> Html:
    """The parts one after the other, each made safe."""
    return Html(safe(separator).join(safe(part) for part in parts))


def tag(name: str, /, *children: str, **attributes: str | float | None) -> Html:
    """One element. In attribute names `_` means `-` and a last `_` is dropped (`class_`); None leaves one out."""
    pairs = [(key.rstrip("_").replace("_", "-"), value) for key, value in attributes.items() if value is not None]
    opening = "".join(f' {key}="{escape(str(value), quote=True)}"' for key, value in pairs)
    if name in VOID:
        return Html(f"<{name}{opening}>")
    return Html(f"<{name}{opening}>{join(children)}</{name}>")


def table(caption: str, heads: Sequence[str], rows: Iterable[Sequence[str]], class_: str | None = None) -> Html:
    """A captioned table in its own scrolling box; the first cell of each row names the row."""
    head = tag("tr", *(tag("th", text, scope="col") for text in heads))
    body = (tag("tr", tag("th", row[0], scope="row"), *(tag("td", cell) for cell in row[1:])) for row in rows)
    content = (tag("caption", caption), tag("thead", head), tag("tbody", *(Html(f"{row}\n") for row in body)))
    return tag(
        "div", tag("table", *content, class_=class_), class_="scroll", role="region", aria_label=caption, tabindex=0
    )


def page(title: str, sections: Iterable[str]) -> str:
    """A whole page with the style of all of them: one file, without scripts and without the network."""
    package = files("edgekd.report")
    return Template(package.joinpath("report.html").read_text("utf-8")).substitute(
        title=safe(title),
        style=package.joinpath("report.css").read_text("utf-8"),
        content=join(sections, "\n"),
    )

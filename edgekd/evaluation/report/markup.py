"""Building HTML and SVG so that text can never become markup: every plain string is escaped on its way in."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files
from string import Template

VOID = frozenset({"img", "input"})


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


def section(title: str, why: str, *content: str, id_: str | None = None) -> Html:
    """A part of a page, with a sentence on what it says."""
    return tag("section", tag("h2", title), tag("p", why, class_="why") if why else "", *content, id_=id_)


def details(summary: str, *content: str) -> Html:
    """What is shown when it is asked for."""
    return tag("details", tag("summary", summary), *content)


def table(caption: str, heads: Sequence[str], rows: Iterable[Sequence[str]], class_: str | None = None) -> Html:
    """A captioned table in its own scrolling box; the first cell of each row names the row."""
    head = tag("tr", *(tag("th", text, scope="col") for text in heads))
    body = (tag("tr", tag("th", row[0], scope="row"), *(tag("td", cell) for cell in row[1:])) for row in rows)
    content = (tag("caption", caption), tag("thead", head), tag("tbody", *(Html(f"{row}\n") for row in body)))
    return tag(
        "div", tag("table", *content, class_=class_), class_="scroll", role="region", aria_label=caption, tabindex=0
    )


def page(title: str, sections: Iterable[str], styles: Sequence[str] = (), script: str | None = None) -> str:
    """A whole page with the style of all of them: one file, without the network.

    styles, script: names of more files of this package. The page forbids the browser every script but that one.
    """
    package = files("edgekd.evaluation.report")
    source = package.joinpath(script).read_text("utf-8") if script else ""
    digest = base64.b64encode(hashlib.sha256(source.encode("utf-8")).digest()).decode("ascii")
    return Template(package.joinpath("report.html").read_text("utf-8")).substitute(
        title=safe(title),
        style="".join(package.joinpath(name).read_text("utf-8") for name in ("report.css", *styles)),
        content=join(sections, "\n"),
        allowed=f"; script-src 'sha256-{digest}'" if script else "",
        script=f"<script>{source}</script>\n" if script else "",
    )

"""Render templates to self-contained HTML pages, with all text escaped."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from edgekd.evaluation.report import charts, pictures, text
from edgekd.hardware.budget import Basis

_FOLDER = Path(__file__).parent
MEANING: dict[Basis, str] = {
    "measured": "read from the finished files, scored on labelled images, or timed on the target itself",
    "stand-in": "timed on another machine in place of the target; compare before with after, "
    "and expect other times on the target",
    "predicted": "calculated for the target; nothing was run there",
}
_NUMBERS = (
    "accuracy change difference digits duration fixed general integer microseconds milliseconds percent rate"
    " scientific signed size times"
).split()
"""Functions of `text` that are filters of the templates."""


def render_page(template: str, **values: Any) -> str:
    """Return a page: the same values give the same bytes."""
    return environment().get_template(template).render(values)


@cache
def environment() -> Environment:
    """Return the templates, with filters for numbers and pictures."""
    templates = Environment(
        loader=FileSystemLoader(_FOLDER / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.tests["known"] = text.known
    templates.filters |= {name: getattr(text, name) for name in _NUMBERS}
    templates.filters |= {
        "bars": charts.bars,
        "breakable": _breakable,
        "data_uri": pictures.data_uri,
        "jpeg_uri": pictures.jpeg_uri,
        "module": _module,
        "sha256": _sha256,
    }
    templates.globals |= {
        "Axis": charts.Axis,
        "latency_axis": charts.latency_axis,
        "linear_axis": charts.linear_axis,
        "log_axis": charts.log_axis,
        "MEANING": MEANING,
        "pictures": pictures,
        "source": _source,
        "zip": zip,
    }
    return templates


def style_sheet() -> str:
    """Return the styles of all pages."""
    return _source("report.css") + _source("analysis.css")


def _source(name: str) -> Markup:
    """Return a style sheet or script of this package."""
    return Markup((_FOLDER / name).read_text("utf-8"))


def _sha256(source: str) -> str:
    """Return the digest by which a Content-Security-Policy allows a script."""
    return base64.b64encode(hashlib.sha256(source.encode("utf-8")).digest()).decode("ascii")


def _breakable(path: str) -> Markup:
    """Return a layer's name, which a narrow column may break after a slash."""
    return Markup("/<wbr>").join(path.split("/"))


def _module(tensor: str) -> str:
    """Return the name of the layer that writes a tensor, without the suffixes that exporters add."""
    return tensor.strip("/").removesuffix("_output_0").removesuffix("/Conv").removesuffix("/conv")

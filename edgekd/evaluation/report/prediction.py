"""The result of `edgekd predict` as one self-contained HTML page, with the layers under the roof of the target."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgekd.evaluation.report.page import render_page
from edgekd.hardware.predict.roofline import Roofline


def render(result: Mapping[str, Any], roof: Roofline) -> str:
    """Return the page."""
    return render_page("prediction.html", result=result, roof=roof)

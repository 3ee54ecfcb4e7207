"""The result of `edgekd predict` as one self-contained HTML page, with the layers under the roof of the target."""

from __future__ import annotations

from edgekd.evaluation.report.page import render_page
from edgekd.hardware.predict.result import PredictResult


def render(result: PredictResult) -> str:
    """Return the page."""
    return render_page("prediction.html", result=result, roof=result.roof)

"""Find what a target cannot run, or runs inefficiently, from the graph alone, before an engine is built."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgekd.core.errors import SpecError, did_you_mean
from edgekd.graph.view import Graph, OperatorClass, load_view
from edgekd.hardware.compatibility_dla import DLA_RULES, missing_dla_generation, operators_beyond_dla
from edgekd.hardware.compatibility_half import HALF_RULES
from edgekd.hardware.compatibility_rules import LEVELS, RULES, Finding, missing_precision
from edgekd.hardware.target import PRECISIONS, Target

if TYPE_CHECKING:
    import onnx


def check_graph(model: onnx.ModelProto | Path, target: Target, *, dla: bool = False) -> list[Finding]:
    """Return the findings for a graph on `target`, worst first; empty if there are none.

    Only shapes and types of weights are read; external data is not loaded. Findings about the DLA are notes, unless
    the graph is to run on it (`dla`). Raises SpecError if the file cannot be read as ONNX.
    """
    graph = load_view(model) if isinstance(model, Path) else Graph(model, nested=True)
    findings = [finding for rule in (*RULES, *HALF_RULES) for finding in rule(graph, target)]
    if target.dla:
        of_dla = [finding for rule in DLA_RULES for finding in rule(graph, target)]
        if dla:
            findings += [*of_dla, *operators_beyond_dla(graph, target)]
        else:
            findings += [replace(finding, level="note") for finding in of_dla]
    return sorted(findings, key=lambda finding: LEVELS.index(finding.level))


def check_request(
    target: Target, *, precision: str | None = None, products: str | None = None, dla: bool = False
) -> list[Finding]:
    """Return the findings for requests: convolutions in `precision`, matrix products in `products`, use of the DLA.

    Raises SpecError for an unknown precision.
    """
    findings: list[Finding] = []
    requested: dict[OperatorClass, str | None] = {"conv": precision, "gemm": products}
    for kind, name in requested.items():
        if name is not None and name not in PRECISIONS:
            fix = did_you_mean(name, PRECISIONS)
            raise SpecError(f"unknown precision {name!r}", expected="one of " + ", ".join(PRECISIONS), fix=fix)
        if name is not None and name not in getattr(target.precisions, kind).value:
            findings.append(Finding("impossible", "request", *missing_precision(name, kind, target)))
    if dla and not target.dla:
        what = f"{target.title} has no DLA that its software can use"
        findings.append(Finding("impossible", "request", what, "run on the GPU: drop the request for the DLA"))
    return [*findings, *(missing_dla_generation(target) if dla else ())]

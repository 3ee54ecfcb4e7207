"""Stage `check`: what is impossible or slow on the target."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgekd.builds.stage_store import Stage, StageKind, StageResult
from edgekd.builds.stages.base import GRAPH, GraphStage, StageContext
from edgekd.core.errors import SpecError
from edgekd.hardware.compatibility import check_graph
from edgekd.hardware.compatibility_rules import Finding
from edgekd.hardware.target import Target, to_dict


@dataclass(frozen=True)
class CheckResult(StageResult):
    """The findings, worst first."""

    findings: tuple[Finding, ...]


CHECK = StageKind("check", 1, CheckResult)


def run(context: StageContext, graph: GraphStage, target: Target, precision: str) -> Stage[CheckResult]:
    """Check a graph for a target. Raises SpecError if the target cannot run it."""

    def work(folder: Path) -> CheckResult:
        return CheckResult(tuple(check_graph(graph.path / GRAPH, target)))

    stage = context.run(CHECK, {"graph": graph.sha256, "target": to_dict(target)}, work, label=precision)
    for finding in stage.result.findings:
        if finding.level == "impossible":
            raise SpecError(f"{target.name}: {finding.what} ({finding.where})", fix=finding.change)
    return stage

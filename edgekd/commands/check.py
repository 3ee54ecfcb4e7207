"""`edgekd check`: compare a model with the limits of a target, from the graph alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from edgekd.commands.arguments import target_of
from edgekd.commands.options import Head, Model, TargetName, Trust
from edgekd.commands.parameter import Option
from edgekd.core.documents import INTERNAL, Result
from edgekd.deploy.artifact import graph_of
from edgekd.hardware.compatibility import check_graph, check_request
from edgekd.hardware.compatibility_rules import Finding


@dataclass(frozen=True)
class Checked(Result):
    """Compatibility of a model with a target.

    Args:
        target: Name of the target.
        possible: False if a finding is `impossible`.
        findings: Findings, worst first; empty if no obstacle is known.
    """

    target: str
    possible: bool
    findings: tuple[Finding, ...]
    title: str = field(metadata=INTERNAL)

    @property
    def exit_status(self) -> int:
        """1 if the model is impossible on the target, else 0."""
        return 0 if self.possible else 1


def check_model(
    model: Model,
    *,
    target: TargetName = "xavier",
    dla: Annotated[bool, Option("Check the graph for the DLA.")] = False,
    head: Head = None,
    trust_checkpoint: Trust = False,
) -> Checked:
    """Find what is impossible or slow for a model on a target, and what to change, from the graph alone.

    A `.pt` is exported first. Raises SpecError. The command: `edgekd check`. The rules are in
    `edgekd.hardware.compatibility`, each with its source.
    """
    chosen = target_of(target)
    with graph_of(Path(model), head, trust_checkpoint, chosen) as graph:
        findings = (*check_request(chosen, dla=dla), *check_graph(graph, chosen, dla=dla))
    possible = not any(finding.level == "impossible" for finding in findings)
    return Checked(chosen.name, possible, findings, f"{Path(model).name} on {chosen.title}")

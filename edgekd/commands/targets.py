"""`edgekd targets`: the shipped targets, or every number of one with its source."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from edgekd.commands.parameter import Argument
from edgekd.commands.results import UntypedResult
from edgekd.hardware.target import Fact, Target, explain, load_target, target_names, to_dict


@dataclass(frozen=True)
class Targets(UntypedResult):
    """The targets to list, or one with its facts."""

    targets: tuple[Target, ...]
    facts: tuple[Fact, ...] | None = None


def targets(
    name: Annotated[str | None, Argument("Target to explain; all are listed without.")] = None,
) -> Targets:
    """List the targets, or explain one. Raises SpecError. The command: `edgekd targets`."""
    if name is not None:
        target = load_target(name)
        return Targets(to_dict(target), (target,), tuple(explain(target)))
    found = tuple(load_target(each) for each in target_names())
    return Targets([to_dict(target) for target in found], found)

"""`edgekd targets`: the shipped targets, or all facts of one with their sources."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from edgekd.commands.parameter import Argument
from edgekd.core.documents import to_plain
from edgekd.hardware.target import Fact, Target, explain, load_target, target_names


@dataclass(frozen=True)
class Targets:
    """The targets to list, or one with its facts."""

    targets: tuple[Target, ...]
    facts: tuple[Fact, ...] | None = None

    @property
    def document(self) -> Any:
        """The documented list of targets, or the target to explain: docs/reference/json.md."""
        return to_plain(self.targets if self.facts is None else self.targets[0])


def targets(
    name: Annotated[str | None, Argument("Target to explain. Default: list all.")] = None,
) -> Targets:
    """List the targets, or explain one. Raises SpecError. The command: `edgekd targets`."""
    if name is not None:
        target = load_target(name)
        return Targets((target,), tuple(explain(target)))
    return Targets(tuple(load_target(each) for each in target_names()))

"""The diagram of a bundle's states on a camera: each of its arrows is what the agent does."""

from __future__ import annotations

import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest
from cameras import Agent, identity_of

from edgekd.agent import status as status_command
from edgekd.agent.cli import COMMANDS

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.fixture
def diagrams(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module that draws the diagram."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(DOCS))
    import diagrams

    yield diagrams
    for name in {"diagrams", "drawing", "generated"} - before:
        sys.modules.pop(name, None)


def state_of(identity: str, status: Any) -> str:
    """Return the state of a bundle, by the name that the diagram has for it."""
    active, candidate, previous = ((status[name] or {}) for name in ("active", "candidate", "previous"))
    if active.get("identity") == identity:
        return "on trial" if status["trial"] else "committed"
    if candidate.get("identity") == identity:
        engine = candidate["engine"]
        return "unpacked" if engine is None else "tested" if engine["self_test"] else "built"
    if previous.get("identity") == identity:
        return "previous"
    return "rejected" if status["rejected"] == identity else "file"


@dataclass(frozen=True)
class Walk:
    """An agent, whose changes of a bundle's state are recorded as (before, command, after)."""

    agent: Agent
    bundles: tuple[Path, ...]
    seen: set[tuple[str, str, str]]

    def __call__(self, command: str, *arguments: object) -> None:
        before = self.states()
        assert self.agent(command, *arguments).code == 0
        self.seen.update((old, command, new) for old, new in zip(before, self.states(), strict=True))

    def states(self) -> list[str]:
        """Return the state of each bundle."""
        status = self.agent("status").result
        return [state_of(identity_of(bundle), status) for bundle in self.bundles]


def test_every_arrow_of_the_diagram_is_what_the_agent_does(
    agent: Agent, bundle: Path, newer: Path, diagrams: Any
) -> None:
    walk = Walk(agent, (bundle, newer), set())
    for call in (("unpack", bundle), ("build",), ("selftest",), ("activate",)):
        walk(*call)
    walk("install", newer, "--tries", 1)
    walk("commit")
    walk("rollback")
    walk("unpack", newer)
    walk("install", newer, "--tries", 1)
    walk("boot")
    walk("boot")
    walk("unpack", newer)
    walk("install", newer)
    walk("rollback")
    drawn = {(each.before, each.command, each.after) for each in diagrams.TRANSITIONS}
    assert drawn - walk.seen == set()


def test_the_diagram_names_commands_and_fields_of_the_agent(diagrams: Any) -> None:
    shown = {name for state in diagrams.STATES for name in state.shown.split(", ") if state.name != "file"}
    kinds = (status_command.StatusResult, status_command.SlotStatus, status_command.TestedEngine)
    known = {entry.name for kind in kinds for entry in fields(kind)}
    assert shown <= known
    assert {each.command for each in diagrams.TRANSITIONS} <= set(COMMANDS)
    names = {state.name for state in diagrams.STATES}
    assert {each.before for each in diagrams.TRANSITIONS} | {each.after for each in diagrams.TRANSITIONS} == names

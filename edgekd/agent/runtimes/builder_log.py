"""The log of TensorRT's builder from WARNING up, and the error of a failed build in it. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from edgekd.agent.runtimes.types import BuildFailedError, UnimplementedLayerError

MAX_LINES = 200
"""Messages kept of each severity: a builder warns of every layer, and the error comes last."""
MAX_LENGTH = 1000  # characters of a message that is recorded; the longest name hundreds of layers fused into one
WARNING = "W"
ERROR = "E"
_NO_KERNEL = re.compile(r"[Cc]ould not find any implementation for node (?P<node>.+?)(?:\.?\)?\s*$|\. In )")
_NO_WORKSPACE = "insufficient workspace"


@dataclass
class BuilderLog:
    """Distinct messages of a builder, in order, as severity and text."""

    messages: list[tuple[str, str]] = field(default_factory=list)

    def add(self, severity: str, text: str) -> None:
        """Keep a message, unless it is there already or there are too many of its severity."""
        message = severity, " ".join(text.split())
        if message not in self.messages and sum(each[0] == severity for each in self.messages) < MAX_LINES:
            self.messages.append(message)

    @property
    def lines(self) -> list[str]:
        """Lines for a record: `W message` or `E message`, at most MAX_LENGTH characters each."""
        return [f"{severity} {text}"[:MAX_LENGTH] for severity, text in self.messages]

    @property
    def errors(self) -> list[str]:
        """Texts of the errors."""
        return [text for severity, text in self.messages if severity == ERROR]

    @property
    def cause(self) -> str:
        """First error, of which the others are consequences; empty where there is none."""
        return next(iter(self.errors), "")


def unimplemented_node(errors: Iterable[str]) -> str | None:
    """Return the builder's name of the layer that it has no kernel for; None for other errors.

    The wording is that of TensorRT 8.2 to 11: "Could not find any implementation for node NAME." The name of fused
    layers has those of all, as in `/model.0/conv/Conv + PWN(/model.0/act/Sigmoid, /model.0/act/Mul)`. A lack of
    workspace is another error.
    """
    matches = (_NO_KERNEL.search(text) for text in errors if _NO_WORKSPACE not in text)
    return next((match["node"] for match in matches if match), None)


def build_failure(builder: str, log: BuilderLog) -> BuildFailedError:
    """Return the error for a build that gave no engine: an UnimplementedLayerError where a kernel is missing."""
    node = unimplemented_node(log.errors)
    if node is None:
        fix = "free memory: the builder has too little workspace"
        if not any(_NO_WORKSPACE in text for text in log.errors):
            fix = "see its message, and how much memory is free"
        return BuildFailedError(f"{builder} cannot build an engine", log=log.lines, found=log.cause, fix=fix)
    line = next(line for line in log.errors if unimplemented_node([line]))
    fix = "the layer can be built in float"
    return UnimplementedLayerError(
        f"{builder} has no kernel for a layer", node=node, log=log.lines, found=line, fix=fix
    )

"""The log of TensorRT's builder from WARNING up: what it did otherwise than asked, and which kernels it lacks. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from edgekd.agent.runtimes.types import BuildFailedError, UnimplementedLayerError

MAX_LINES = 200
"""A builder repeats itself; the first of so many different messages say what matters."""
MAX_LENGTH = 1000  # characters of a message; the longest name hundreds of layers that were fused into one
WARNING = "W"
ERROR = "E"
_NO_KERNEL = re.compile(r"[Cc]ould not find any implementation for node (?P<node>.+?)(?: due to|\.?\)?\s*$|\. In )")


@dataclass
class BuilderLog:
    """Messages of a builder: each once, in order. lines: `W message` or `E message`."""

    lines: list[str] = field(default_factory=list)

    def add(self, severity: str, message: str) -> None:
        """Keep a message, unless it is there already or there are too many."""
        line = f"{severity} {' '.join(message.split())}"[:MAX_LENGTH]
        if line not in self.lines and len(self.lines) < MAX_LINES:
            self.lines.append(line)

    @property
    def errors(self) -> list[str]:
        """The messages of errors."""
        return [line[2:] for line in self.lines if line.startswith(ERROR)]

    @property
    def cause(self) -> str:
        """The first error: those that follow come from it. Empty where there is none."""
        return next(iter(self.errors), "")


def unimplemented_node(errors: Iterable[str]) -> str | None:
    """Return the builder's name of the layer that it has no kernel for; None where the errors say nothing of it.

    The wording is that of TensorRT 8.2 to 11: "Could not find any implementation for node NAME." The name of fused
    layers is that of all, as in `/model.0/conv/Conv + PWN(/model.0/act/Sigmoid, /model.0/act/Mul)`.
    """
    found = next(filter(None, map(_NO_KERNEL.search, errors)), None)
    return found["node"] if found else None


def build_failure(builder: str, log: BuilderLog) -> BuildFailedError:
    """Return the error for a build that gave no engine: an UnimplementedLayerError where a kernel is missing."""
    node = unimplemented_node(log.errors)
    if node is None:
        fix = "see what it says, and how much memory is free"
        return BuildFailedError(f"{builder} cannot build an engine", log=log.lines, found=log.cause, fix=fix)
    found = next(line for line in log.errors if unimplemented_node([line]))
    fix = "the layer can be built in float"
    return UnimplementedLayerError(
        f"{builder} has no kernel for a layer", node=node, log=log.lines, found=found, fix=fix
    )

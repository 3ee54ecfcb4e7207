"""Answers of the agent on a device: the keys that the host uses. Agents of other versions may send further keys."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from edgekd.agent.cli import ErrorReport
from edgekd.agent.engines.records import RuntimeVersion
from edgekd.core.documents import INLINE
from edgekd.deploy.engine_report import EngineReport, TuningReport


@dataclass(frozen=True)
class AgentAnswer:
    """Output of one command: its error, or else its result."""

    error: ErrorReport | None
    result: Any = None


@dataclass(frozen=True)
class StatusAnswer:
    """Result of `status`; runtime: None where the device has none."""

    device: Mapping[str, Any]
    runtime: Mapping[str, Any] | None


@dataclass(frozen=True)
class BundleAnswer:
    """Result of `verify` and `activate`: SHA-256 of the bundle's manifest."""

    identity: str


@dataclass(frozen=True)
class UnpackAnswer(BundleAnswer):
    """Result of `unpack`."""

    slot: Literal["a", "b"]
    fits: bool | None


@dataclass(frozen=True)
class BuildAnswer:
    """Result of `build`."""

    engine: EngineReport = field(metadata=INLINE)
    runtime: RuntimeVersion


@dataclass(frozen=True)
class TuneAnswer:
    """Result of `tune`; engine: keys that replace those of the result of `build`."""

    tuning: TuningReport = field(metadata=INLINE)
    engine: Mapping[str, Any]

"""The form of a network that is fastest on a device, as a small file: the layers that leave INT8, and measurements.

`SLOT/tuning.json` holds the choice of a slot. It is not signed, and needs no signature: it selects a form of the
bundle's own graph, whose SHA-256 it has, and an engine of that form must pass the self-test before it is in service.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekd.agent.engines.records import ALL_FLOAT, AS_SHIPPED, EngineKey, Form, RuntimeVersion
from edgekd.agent.runtimes.types import FLOAT, GRAPH, Source
from edgekd.core.atomic_files import write_file
from edgekd.core.canonical import canonical_json, is_sha256
from edgekd.core.documents import INLINE, to_plain
from edgekd.core.errors import DeviceError

if TYPE_CHECKING:
    from edgekd.agent.state.slots import Slot

FORMAT = 1
FILE = "tuning.json"


@dataclass(frozen=True)
class RelativeTime:
    """Time of a run, measured interleaved with the other forms.

    Args:
        p50: Median of the medians of the rounds, in milliseconds.
        ratio: Ratio to the time of the shipped engine.
        interval: 95 % interval of the ratio: low and high.
    """

    p50: float
    ratio: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class Measurement:
    """A form of the network, built and tested.

    Args:
        key: Name of its engine; null where it could not be built.
        passed: True where it passed the self-test.
        found: Reason of a failure; null where it passed.
        ms: Null where it could not be built.
    """

    form: Form = field(metadata=INLINE)
    key: str | None
    passed: bool
    found: str | None
    ms: RelativeTime | None


@dataclass(frozen=True)
class TuningLimits:
    """Limits of a comparison of forms.

    Args:
        builds: Maximum number of engines with some layers in float.
        rounds: Number of rounds in which all engines were measured.
        least_gain: Minimum gain over the shipped engine, as a share of its time.
    """

    builds: int
    rounds: int
    least_gain: float


@dataclass(frozen=True)
class Choice:
    """Form that was chosen for a device, and the comparison that it was chosen by; None without one."""

    form: Form = field(metadata=INLINE)
    key: EngineKey = field(metadata=INLINE)
    candidates: Sequence[Measurement] = ()
    limits: TuningLimits | None = None

    def suits(self, key: EngineKey) -> bool:
        """Return whether it is for this graph and this runtime, in any version and on any device."""
        return self.key.graph == key.graph and self.key.runtime.name == key.runtime.name


def choice_from_json(content: bytes) -> Choice:
    """Parse the content of a file. Raises ValueError where it is no choice."""
    document = json.loads(content.decode("utf-8"))
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise ValueError(f"expected an object of format {FORMAT}")
    source, layers, runtime = document.get("source"), document.get("float_layers"), document.get("runtime")
    if source not in (GRAPH, FLOAT) or not _texts(layers) or (source == FLOAT and layers):
        raise ValueError("expected a source, graph or float, and for graph a list of float_layers")
    if not isinstance(runtime, dict) or not _texts([runtime.get("name"), runtime.get("version")]):
        raise ValueError("expected a runtime with name and version")
    if not is_sha256(document.get("graph")) or not isinstance(document.get("built_on"), dict):
        raise ValueError("expected the SHA-256 of a graph, and the state of a device")
    try:
        candidates = tuple(_measurement(**each) for each in document["candidates"])
        limits = None if document["limits"] is None else TuningLimits(**document["limits"])
    except (KeyError, TypeError) as error:
        raise ValueError("expected candidates and limits") from error
    key = EngineKey(document["graph"], RuntimeVersion(runtime["name"], runtime["version"]), document["built_on"])
    return Choice(Form(source, tuple(layers or ())), key, candidates, limits)


def _measurement(
    source: Source, float_layers: Sequence[str], ms: Mapping[str, Any] | None, **others: Any
) -> Measurement:
    return Measurement(Form(source, tuple(float_layers)), ms=None if ms is None else RelativeTime(**ms), **others)


def _texts(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(value, str) for value in values)


def choice_of(slot: Slot) -> Choice | None:
    """Return the choice of a slot; None where there is none, or it cannot be read."""
    try:
        return choice_from_json((slot.path / FILE).read_bytes())
    except (OSError, ValueError):
        return None


def read_choice(path: Path, key: EngineKey) -> Choice:
    """Read a choice from a file. Raises DeviceError where it is damaged, or for another graph or runtime."""
    try:
        choice = choice_from_json(path.read_bytes())
    except OSError as error:
        found = error.strerror or str(error)
        raise DeviceError(f"{path}: cannot be read", found=found, fix="check the path") from error
    except ValueError as error:
        raise DeviceError(f"{path}: not a choice of layers", found=str(error), fix="tune without --choice") from error
    if not choice.suits(key):
        raise DeviceError(
            f"{path}: for another graph or runtime",
            expected=f"graph {key.graph}, runtime {key.runtime.name}",
            found=f"graph {choice.key.graph}, runtime {choice.key.runtime.name}",
            fix="tune without --choice",
        )
    return choice


def keep_choice(slot: Slot, choice: Choice) -> bool:
    """Write the choice of a slot; return whether it has changed. Raises SpecError."""
    content = canonical_json({"format": FORMAT, **to_plain(choice)})
    path = slot.path / FILE
    if path.is_file() and path.read_bytes() == content:
        return False
    write_file(path, content)
    return True


def forms(slot: Slot, key: EngineKey) -> tuple[Form, ...]:
    """Return the possible forms of a slot's engine, the preferred first: as chosen, as shipped, in float."""
    choice = choice_of(slot)
    chosen = [choice.form] if choice and choice.suits(key) else []
    return tuple(dict.fromkeys((*chosen, AS_SHIPPED, ALL_FLOAT)))

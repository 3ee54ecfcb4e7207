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
from edgekd.agent.runtimes.types import FLOAT, GRAPH
from edgekd.agent.state.documents import INLINE, to_plain
from edgekd.core.atomic_files import write_file
from edgekd.core.canonical import canonical_json, is_sha256
from edgekd.core.errors import DeviceError

if TYPE_CHECKING:
    from edgekd.agent.state.slots import Slot

FORMAT = 1
FILE = "tuning.json"


@dataclass(frozen=True)
class Choice:
    """Form that was chosen for a device.

    candidates: measurements of each form, as plain JSON types; limits: rules of their comparison, None without one.
    """

    form: Form = field(metadata=INLINE)
    key: EngineKey = field(metadata=INLINE)
    candidates: Sequence[Mapping[str, Any]] = ()
    limits: Mapping[str, Any] | None = None

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
    if not isinstance(document.get("candidates"), list) or not isinstance(document.get("limits"), (dict, type(None))):
        raise ValueError("expected candidates and limits")
    key = EngineKey(document["graph"], RuntimeVersion(runtime["name"], runtime["version"]), document["built_on"])
    return Choice(Form(source, tuple(layers or ())), key, document["candidates"], document["limits"])


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

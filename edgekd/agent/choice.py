"""The form of a network that is fastest on a device, as a small file: which layers leave INT8, and what was measured.

`SLOT/tuning.json` holds the choice of a slot. Nobody signs it, and it can do no harm: it names a form of the bundle's
own graph, whose SHA-256 it carries, and an engine of that form is put into service only when it passes the self-test.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekd.agent.runtimes.types import FLOAT, GRAPH
from edgekd.core.atomic_files import write_file
from edgekd.core.canonical import canonical_json, is_sha256
from edgekd.core.errors import DeviceError

if TYPE_CHECKING:
    from edgekd.agent.slots import Slot

FORMAT = 1
FILE = "tuning.json"


@dataclass(frozen=True)
class Form:
    """The form of the network that an engine is built from.

    source: GRAPH or FLOAT; float_layers: names of the graph's layers whose Q/DQ is left out, in the graph's order.
    """

    source: str = GRAPH
    float_layers: tuple[str, ...] = ()


AS_SHIPPED = Form()
ALL_FLOAT = Form(FLOAT)


@dataclass(frozen=True)
class Choice:
    """The form that was chosen for a device.

    graph: SHA-256 of the bundle's graph; runtime: `name` and `version`; built_on: the state of the device; candidates:
    what was measured of each form, as plain JSON types; limits: by what rules they were compared, None where none were.
    """

    form: Form
    graph: str
    runtime: Mapping[str, str]
    built_on: Mapping[str, Any]
    candidates: Sequence[Mapping[str, Any]] = ()
    limits: Mapping[str, Any] | None = None

    def suits(self, wanted: Mapping[str, Any]) -> bool:
        """Return whether it is for this graph and this runtime, in whatever version and on whatever device."""
        return bool(self.graph == wanted["graph"] and self.runtime["name"] == wanted["runtime"]["name"])

    def as_json(self) -> dict[str, Any]:
        """The content of the file."""
        return {
            "format": FORMAT,
            "graph": self.graph,
            "runtime": dict(self.runtime),
            "built_on": dict(self.built_on),
            "source": self.form.source,
            "float_layers": list(self.form.float_layers),
            "candidates": list(self.candidates),
            "limits": None if self.limits is None else dict(self.limits),
        }


def choice_from_json(content: bytes) -> Choice:
    """The choice in a file. Raises ValueError where it is none."""
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
    return Choice(
        Form(source, tuple(layers or ())),
        document["graph"],
        runtime,
        document["built_on"],
        document["candidates"],
        document["limits"],
    )


def _texts(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(value, str) for value in values)


def choice_of(slot: Slot) -> Choice | None:
    """The choice of a slot; None where there is none, or it cannot be read."""
    try:
        return choice_from_json((slot.path / FILE).read_bytes())
    except (OSError, ValueError):
        return None


def read_choice(path: Path, wanted: Mapping[str, Any]) -> Choice:
    """The choice in a file that somebody gives. Raises DeviceError where it is damaged, or for something else."""
    try:
        choice = choice_from_json(path.read_bytes())
    except OSError as error:
        raise DeviceError(
            f"{path}: cannot be read", found=error.strerror or str(error), fix="check the path"
        ) from error
    except ValueError as error:
        raise DeviceError(f"{path}: not a choice of layers", found=str(error), fix="tune without --choice") from error
    if not choice.suits(wanted):
        raise DeviceError(
            f"{path}: for another graph or runtime",
            expected=f"graph {wanted['graph']}, runtime {wanted['runtime']['name']}",
            found=f"graph {choice.graph}, runtime {choice.runtime['name']}",
            fix="tune without --choice",
        )
    return choice


def keep_choice(slot: Slot, choice: Choice) -> bool:
    """Write the choice of a slot; whether it is another than before. Raises SpecError."""
    content = canonical_json(choice.as_json())
    path = slot.path / FILE
    if path.is_file() and path.read_bytes() == content:
        return False
    write_file(path, content)
    return True


def forms(slot: Slot, wanted: Mapping[str, Any]) -> tuple[Form, ...]:
    """The forms that an engine of a slot may have, the best first: as chosen, as shipped, in float."""
    choice = choice_of(slot)
    chosen = [choice.form] if choice and choice.suits(wanted) else []
    return tuple(dict.fromkeys((*chosen, AS_SHIPPED, ALL_FLOAT)))

"""Software bill of materials of a bundle: CycloneDX JSON, the same bytes each time.

Listed are the files of the bundle, each with its hash and licence, and the tools that made them. What the firmware
brings, such as TensorRT, is not in the bundle and not in the list.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from typing import TYPE_CHECKING, Any

from edgekd.core.bundle.manifest import FileEntry, Licence
from edgekd.core.canonical import canonical_json, json_sha256

if TYPE_CHECKING:
    from cyclonedx.model.bom import Bom
    from cyclonedx.model.component import Component
    from cyclonedx.model.license import License

NAME = "sbom.cdx.json"
"""What it is called in a bundle."""
UNKNOWN = "NOASSERTION"
"""What SPDX calls a licence that nobody has stated."""

_PARTS = {"graph": "model", "agent": "agent"}
"""By which name in `licences` the file with a role goes."""


def sbom(
    name: str, version: str, files: Sequence[FileEntry], tools: Sequence[Mapping[str, Any]], licences: Sequence[Licence]
) -> bytes:
    """The document for a bundle. version: of the bundle; tools: what made it, by `told_tools`; licences: by part."""
    from cyclonedx.model.bom import Bom, BomMetaData
    from cyclonedx.model.component import Component, ComponentType

    known = {entry.part: entry.licence for entry in licences}
    whole = Component(name=name, version=version, type=ComponentType.FIRMWARE, bom_ref="bundle")
    bom = Bom(components=[_component(entry, known) for entry in files], metadata=BomMetaData(component=whole))
    bom.register_dependency(whole, bom.components)
    document = _json(bom)
    # The same inputs give the same bundle, whenever: no time, and a serial number that follows from the rest.
    document["metadata"] = {"component": document["metadata"]["component"], "tools": {"components": list(tools)}}
    del document["serialNumber"]
    number = uuid.uuid5(uuid.NAMESPACE_URL, f"edgekd:{json_sha256(document)}")
    return canonical_json({**document, "serialNumber": number.urn}) + b"\n"


def told_tools(tools: Mapping[str, str]) -> list[dict[str, Any]]:
    """Distributions by name and version, as the document tells of them: with the licences they have here."""
    from cyclonedx.model.bom import Bom
    from cyclonedx.model.component import Component, ComponentType

    kind = ComponentType.LIBRARY
    found = [
        Component(name=name, version=version, type=kind, bom_ref=f"tool:{name}", licenses=_licence(_stated(name)))
        for name, version in tools.items()
    ]
    return list(_json(Bom(components=found))["components"]) if found else []


def tools_in(content: bytes) -> list[dict[str, Any]]:
    """Return the tools of a document that `sbom` wrote. Raises ValueError, KeyError or TypeError for another."""
    return list(json.loads(content)["metadata"]["tools"]["components"])


def _json(bom: Bom) -> dict[str, Any]:
    from cyclonedx.output.json import JsonV1Dot6

    return dict(json.loads(JsonV1Dot6(bom).output_as_string()))


def _component(entry: FileEntry, known: Mapping[str, str]) -> Component:
    from cyclonedx.model import HashAlgorithm, HashType
    from cyclonedx.model.component import Component, ComponentType

    kinds = {"graph": ComponentType.MACHINE_LEARNING_MODEL, "agent": ComponentType.APPLICATION}
    return Component(
        name=entry.path,
        type=kinds.get(entry.role, ComponentType.DATA),
        bom_ref=f"file:{entry.path}",
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=entry.sha256)],
        licenses=_licence(known.get(_PARTS.get(entry.role, ""), "")),
    )


def _licence(expression: str) -> Iterable[License]:
    from cyclonedx.model.license import DisjunctiveLicense, LicenseExpression
    from cyclonedx.spdx import is_expression, is_supported_id

    if not expression or expression == UNKNOWN:
        return ()
    if is_supported_id(expression):
        return (DisjunctiveLicense(id=expression),)
    if is_expression(expression):
        return (LicenseExpression(value=expression),)
    return (DisjunctiveLicense(name=expression),)


def _stated(distribution: str) -> str:
    """Return the licence that an installed distribution states, or None."""
    try:
        told = metadata.metadata(distribution)
    except metadata.PackageNotFoundError:
        return ""
    short = told.get("License-Expression") or told.get("License") or ""
    return short if len(short) <= 60 and "\n" not in short else ""

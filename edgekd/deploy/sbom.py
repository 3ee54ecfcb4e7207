"""Software bill of materials of a bundle: deterministic CycloneDX JSON.

It lists the files of the bundle with hashes and licences, and the tools that made them, but no software of the
firmware, such as TensorRT.
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
"""Name of the document in a bundle."""
UNKNOWN = "NOASSERTION"
"""SPDX's value for an unknown licence."""

_PARTS = {"graph": "model", "agent": "agent"}
"""Part in `licences` by the role of a file."""


def sbom(
    name: str, version: str, files: Sequence[FileEntry], tools: Sequence[Mapping[str, Any]], licences: Sequence[Licence]
) -> bytes:
    """Return the document of a bundle. version: of the bundle; tools: from `tool_components`; licences: by part."""
    from cyclonedx.model.bom import Bom, BomMetaData
    from cyclonedx.model.component import Component, ComponentType

    known = {entry.part: entry.licence for entry in licences}
    whole = Component(name=name, version=version, type=ComponentType.FIRMWARE, bom_ref="bundle")
    bom = Bom(components=[_component(entry, known) for entry in files], metadata=BomMetaData(component=whole))
    bom.register_dependency(whole, bom.components)
    document = _json(bom)
    # Deterministic: no time, and a serial number derived from the rest.
    document["metadata"] = {"component": document["metadata"]["component"], "tools": {"components": list(tools)}}
    del document["serialNumber"]
    number = uuid.uuid5(uuid.NAMESPACE_URL, f"edgekd:{json_sha256(document)}")
    return canonical_json({**document, "serialNumber": number.urn}) + b"\n"


def tool_components(tools: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return distributions, given as versions by name, as components; with the licences that installed ones state."""
    from cyclonedx.model.bom import Bom
    from cyclonedx.model.component import Component, ComponentType

    kind = ComponentType.LIBRARY
    components = [
        Component(name=name, version=version, type=kind, bom_ref=f"tool:{name}", licenses=_licence(_stated(name)))
        for name, version in tools.items()
    ]
    return list(_json(Bom(components=components))["components"]) if components else []


def tools_in(content: bytes) -> list[dict[str, Any]]:
    """Return the tools in a document of `sbom`. Raises ValueError, KeyError or TypeError for other content."""
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
    """Return the licence that an installed distribution states; empty if there is none, or a whole licence text."""
    try:
        fields = metadata.metadata(distribution)
    except metadata.PackageNotFoundError:
        return ""
    licence = fields.get("License-Expression") or fields.get("License") or ""
    return licence if len(licence) <= 60 and "\n" not in licence else ""

"""What a bundle is made of, as a software bill of materials: CycloneDX JSON, the same bytes each time.

Listed are the files of the bundle, each with its hash and licence, and the tools that made them. What the firmware
brings, such as TensorRT, is not in the bundle and not in the list.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from typing import TYPE_CHECKING

from edgekd.bundle.manifest import FileEntry, Licence
from edgekd.canonical import canonical_json, json_sha256

if TYPE_CHECKING:
    from cyclonedx.model.component import Component
    from cyclonedx.model.license import License

NAME = "sbom.cdx.json"
"""What it is called in a bundle."""
UNKNOWN = "NOASSERTION"
"""What SPDX calls a licence that nobody has stated."""

_PARTS = {"graph": "model", "agent": "agent"}
"""By which name in `licences` the file with a role goes."""


def sbom(
    name: str, version: str, files: Sequence[FileEntry], tools: Mapping[str, str], licences: Sequence[Licence]
) -> bytes:
    """The document for a bundle. version: of the bundle; tools: versions by distribution; licences: by part."""
    from cyclonedx.model.bom import Bom, BomMetaData
    from cyclonedx.model.component import Component, ComponentType
    from cyclonedx.model.tool import ToolRepository
    from cyclonedx.output.json import JsonV1Dot6

    known = {entry.part: entry.licence for entry in licences}
    whole = Component(name=name, version=version, type=ComponentType.FIRMWARE, bom_ref="bundle")
    made_by = [
        Component(
            name=tool, version=of, type=ComponentType.LIBRARY, bom_ref=f"tool:{tool}", licenses=_licence(_stated(tool))
        )
        for tool, of in sorted(tools.items())
    ]
    told = {"name": name, "version": version, "files": [(e.path, e.sha256) for e in files], "tools": dict(tools)}
    bom = Bom(
        serial_number=uuid.uuid5(uuid.NAMESPACE_URL, f"edgekd:{json_sha256(told)}"),
        components=[_component(entry, known) for entry in files],
        metadata=BomMetaData(component=whole, tools=ToolRepository(components=made_by)),
    )
    bom.register_dependency(whole, bom.components)
    document = json.loads(JsonV1Dot6(bom).output_as_string())
    del document["metadata"]["timestamp"]  # the same inputs give the same bundle, whenever
    return canonical_json(document) + b"\n"


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
    """What an installed distribution says of its licence; nothing where it says nothing."""
    try:
        told = metadata.metadata(distribution)
    except metadata.PackageNotFoundError:
        return ""
    short = told.get("License-Expression") or told.get("License") or ""
    return short if len(short) <= 60 and "\n" not in short else ""

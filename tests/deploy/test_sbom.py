"""The bill of materials: valid, of this bundle, and the same each time."""

from __future__ import annotations

import json

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from edgekd.core.bundle.manifest import FileEntry, Licence
from edgekd.deploy.sbom import UNKNOWN, sbom, tool_components, tools_in

FILES = [FileEntry("graph.packed", 3, "a" * 64, "graph"), FileEntry("agent.pyz", 3, "b" * 64, "agent")]
FILES += [FileEntry("labels.txt", 1, "c" * 64, "labels")]
TOOLS = {"numpy": "2.0.0", "onnx": "1.18.0", "no-such-distribution": "1"}


def document(licence: str = "MIT") -> bytes:
    return sbom("tiny", "7", FILES, tool_components(TOOLS), [Licence("agent", "Apache-2.0"), Licence("model", licence)])


@pytest.mark.parametrize("licence", ["AGPL-3.0-only", "MIT OR Apache-2.0", "Our own, see LICENCE", UNKNOWN, ""])
def test_it_is_valid_whatever_the_licence_is(licence: str) -> None:
    found = document(licence)
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(found.decode("utf-8")) is None
    (model,) = [each for each in json.loads(found)["components"] if each["type"] == "machine-learning-model"]
    assert ("licenses" in model) == (licence not in (UNKNOWN, ""))


def test_it_lists_every_file_with_its_hash_and_every_tool() -> None:
    found = json.loads(document())
    assert {each["name"]: each["hashes"][0]["content"] for each in found["components"]} == {
        entry.path: entry.sha256 for entry in FILES
    }
    assert {each["name"]: each["version"] for each in found["metadata"]["tools"]["components"]} == TOOLS
    assert found["metadata"]["component"]["version"] == "7"
    assert "timestamp" not in found["metadata"]


def test_it_is_the_same_each_time_and_another_for_another_bundle() -> None:
    assert document() == document()
    again = sbom("tiny", "7", FILES, tools_in(document()), [Licence("agent", "Apache-2.0"), Licence("model", "MIT")])
    assert again == document(), "also from what an older one says of the tools"
    assert json.loads(document("Zlib"))["serialNumber"] != json.loads(document())["serialNumber"]

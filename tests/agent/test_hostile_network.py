"""A network that names files of the camera is refused before anything of it is kept, whoever signed the bundle."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from cameras import Agent, install

from edgekd.agent.runtimes.null import NullRuntime
from edgekd.agent.state.slots import State
from edgekd.core.bundle.archive import extract, file_entry, pack
from edgekd.core.formats import packed_graph
from edgekd.core.formats.protobuf import field, integer_field


def external(location: bytes) -> bytes:
    """An ONNX file with one tensor, whose values are said to be in another file."""
    entry = field(1, b"location") + field(2, location)
    return field(7, field(5, integer_field(1, 4) + integer_field(2, 1) + field(13, entry) + integer_field(14, 1)))


@pytest.fixture
def hostile(bundle: Path, tmp_path: Path) -> Path:
    """The bundle with such a network in place of its own."""
    folder = tmp_path / "hostile"
    manifest = extract(bundle, folder)
    graph = folder / manifest.graph.path
    graph.write_bytes(packed_graph.pack(external(b"../../../../etc/shadow")))
    changed = file_entry(manifest.graph.path, graph, "graph")
    files = tuple(changed if entry.role == "graph" else entry for entry in manifest.files)
    new = replace(manifest, counter=manifest.counter + 1, files=files)
    pack(new, {entry.path: folder / entry.path for entry in files}, tmp_path / "hostile.edgekd")
    return tmp_path / "hostile.edgekd"


@pytest.mark.parametrize("command", ["verify", "unpack", "install"])
def test_a_network_with_values_in_other_files_is_refused(
    agent: Agent, hostile: Path, state: State, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(NullRuntime, "build", lambda *_: pytest.fail("a library got the network"))
    error = agent(command, hostile).error
    assert (error["kind"], error["found"]) == ("BundleError", "external data '../../../../etc/shadow' of tensor ''")
    assert [state.slot(name) for name in ("a", "b")] == [None, None]


def test_a_download_with_such_a_network_is_removed(agent: Agent, hostile: Path, tmp_path: Path) -> None:
    assert agent("fetch", hostile.as_uri(), "--out", tmp_path / "got.edgekd").error["kind"] == "BundleError"
    assert not list(tmp_path.glob("got*"))


def test_the_bundle_for_a_rollback_stays(agent: Agent, bundle: Path, newer: Path, hostile: Path, state: State) -> None:
    for path in (bundle, newer):
        install(state.root, path)
    before = state.active, state.other
    assert None not in before
    assert agent("unpack", hostile).error["kind"] == "BundleError"
    assert (state.active, state.other) == before

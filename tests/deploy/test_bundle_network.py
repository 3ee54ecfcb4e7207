"""Every command on the host that takes a bundle refuses one whose network names other files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from running import Built, EdgeKD
from untrusted_graphs import PLACES, model_of, outside

from edgekd.core.bundle.archive import extract, file_entry, pack
from edgekd.core.bundle.network import require_network
from edgekd.core.formats import packed_graph
from edgekd.core.formats.model_limits import external_data
from edgekd.core.formats.packed_layout import Skeleton


@pytest.mark.parametrize("location", ["../w.bin", "/etc/hostname", "w.bin"])
@pytest.mark.parametrize("nest", PLACES)
def test_external_data_is_found_wherever_a_tensor_is(nest: Callable[[Any], Any], location: str) -> None:
    """Also beside the network: a bundle is complete."""
    model = nest(outside(location))
    with pytest.raises(ValueError, match="external data"):
        require_network(packed_graph.pack(model.SerializeToString()))


def large_model() -> Any:
    """A model with tensors that are cut out, between others that are not."""
    weights = [np.arange(count, dtype=np.float32) for count in (4, 100_000, 3, 60_000, 90)]
    tensors = [numpy_helper.from_array(each, f"t{index}") for index, each in enumerate(weights)]
    return model_of([helper.make_node("Relu", ["x"], ["y"])], tensors)


def test_a_skeleton_is_the_file_without_its_tensors() -> None:
    content = large_model().SerializeToString()
    skeleton = Skeleton(packed_graph.pack(content))
    assert len(skeleton) == len(content)
    assert external_data(skeleton) == []
    with pytest.raises(ValueError, match="of a tensor"):
        Skeleton(packed_graph.pack(content))[50_000]


def test_structure_inside_a_tensor_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A packer may cut out anything, such as the node that names a file."""
    content = outside("/etc/hostname").SerializeToString()
    hidden = packed_graph.Tensor("t", (), 0, len(content) - 70, len(content))
    monkeypatch.setattr(packed_graph, "initializers", lambda _: [hidden])
    packed = packed_graph.pack(content)
    assert packed_graph.unpack(packed) == content
    with pytest.raises(ValueError, match="of a tensor"):
        require_network(packed)


@pytest.fixture(scope="module")
def hostile(tiny_build: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with a network whose weights are in /etc/hostname."""
    folder = tmp_path_factory.mktemp("hostile")
    manifest = extract(tiny_build.bundle, folder / "files")
    graph = folder / "files" / manifest.graph.path
    model = onnx.load_from_string(packed_graph.unpack(graph.read_bytes()))
    model.graph.initializer.append(outside("/etc/hostname").graph.initializer[0])
    graph.write_bytes(packed_graph.pack(model.SerializeToString()))
    changed = file_entry(manifest.graph.path, graph, "graph")
    files = tuple(changed if entry.role == "graph" else entry for entry in manifest.files)
    sources = {entry.path: folder / "files" / entry.path for entry in files}
    pack(replace(manifest, files=files), sources, folder / "hostile.edgekd")
    return folder / "hostile.edgekd"


@pytest.mark.parametrize(
    "arguments",
    [
        ("verify", "BUNDLE"),
        ("inspect", "BUNDLE"),
        ("engine", "BUNDLE", "--device", "null"),
        ("eval", "BUNDLE", "--data", "DATA"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_commands_refuse_such_a_bundle(
    arguments: tuple[str, ...], edgekd: EdgeKD, hostile: Path, tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnxruntime.InferenceSession", lambda *_, **__: pytest.fail("a library got the network"))
    places = {"BUNDLE": hostile, "DATA": tiny_data}
    ran = edgekd(*(places.get(each, each) for each in arguments))
    assert ran.code != 0
    assert "external data '/etc/hostname'" in " ".join(ran.err.split())

"""The agent with OpenVINO: engines that compute, for real bundles."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from cameras import Agent, build
from running import Built

from edgekd.agent.engines.camera import Camera
from edgekd.agent.engines.layer_divergence import layer_divergence
from edgekd.agent.runtimes import AUTOMATIC
from edgekd.agent.runtimes.openvino import OpenVino
from edgekd.agent.state.golden import batches, read_golden
from edgekd.agent.state.slots import State
from edgekd.core.errors import DeviceError
from edgekd.graph.runtimes.onnxruntime import ONNXRUNTIME_CPU

pytest.importorskip("openvino")


@pytest.fixture
def built(agent: Agent, bundle: Path, state: State) -> Camera:
    """A camera with the tiny bundle and its engine."""
    agent("unpack", bundle)
    camera = Camera(state, Path("/"), OpenVino())
    build(camera)
    return camera


def test_it_is_used_only_where_it_is_named(agent: Agent, bundle: Path) -> None:
    assert "openvino" not in [runtime.name for runtime in AUTOMATIC]
    for command, arguments in (("unpack", [bundle]), ("build", []), ("selftest", []), ("activate", [])):
        assert agent(command, *arguments, runtime="openvino").code == 0
    found = agent("status", runtime="openvino").result
    assert found["active"]["engine"]["stale"] == []
    timed = agent("bench", "--iterations", 5, "--seconds", 0, runtime="openvino").result
    assert 0 < timed["inference_ms"]["min"] <= timed["inference_ms"]["p99"]
    assert any("energy" in refused for refused in timed["refused"]) or timed["energy"]


def test_its_engine_computes_what_the_graph_does_and_says_in_what(built: Camera, tiny_build: Built) -> None:
    slot = built.chosen_slot()
    engine = next(slot.engines.glob("*/model.engine"))
    session, golden = OpenVino().load(engine), read_golden(slot)
    with ONNXRUNTIME_CPU.load(tiny_build.out / "graph.onnx", threads=1) as reference:
        for batch in batches(golden.set, golden.spec):
            np.testing.assert_allclose(session.run(batch), reference.run(batch), rtol=0.05, atol=0.05)
    layers = OpenVino().layers(engine)
    assert layers
    assert {layer.precision for layer in layers} >= {"int8", "fp32"}
    assert next(layer for layer in layers if layer.name.startswith("cells8/")).precision == "int8"
    with pytest.raises(DeviceError, match="cannot run"):
        session.run(np.zeros((1, 3, 1, 1), np.float32))
    session.close()
    with pytest.raises(DeviceError, match="closed"):
        session.run(batch)


@pytest.mark.slow
def test_it_gives_inner_tensors(built: Camera) -> None:
    found = layer_divergence(built.chosen_slot(), built.required_runtime())
    assert [each.tensor for each in found] == ["cells8.relu", "cells16.relu"]
    assert all(each.error < 0.2 for each in found)


def test_what_is_no_engine_is_an_error(built: Camera, tmp_path: Path) -> None:
    (tmp_path / "model.engine").write_bytes(b"nothing")
    with pytest.raises(DeviceError, match="cannot load"):
        OpenVino().load(tmp_path / "model.engine")

"""The agent with ONNX Runtime: engines that compute, for real bundles."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from cameras import Agent, build, selftest
from onnx import numpy_helper
from qdq_models import conv_pair
from running import Built

from edgekd.agent.engines.camera import Camera
from edgekd.agent.engines.selftest import SelfTestError
from edgekd.agent.memory import SCRATCH_INPUTS
from edgekd.agent.runtimes import select_runtime
from edgekd.agent.runtimes.onnxruntime import OnnxRuntime
from edgekd.agent.state.slots import State
from edgekd.core.bundle.archive import read_manifest
from edgekd.core.detection.preprocess import to_tensor
from edgekd.core.documents import to_plain
from edgekd.core.errors import DeviceError
from edgekd.detectors.onnx import describe
from edgekd.graph.runtimes.onnxruntime import ONNXRUNTIME_CPU
from edgekd.graph.view import load_graph


@pytest.fixture
def built(agent: Agent, bundle: Path, state: State) -> Camera:
    """A camera with the tiny bundle and its engine."""
    agent("unpack", bundle)
    camera = Camera(state, Path("/"), OnnxRuntime())
    build(camera)
    return camera


def test_it_is_chosen_where_it_is_installed() -> None:
    found = select_runtime(None)
    assert found
    assert found.name == "onnxruntime"
    assert found.version() == onnxruntime_version()


def onnxruntime_version() -> str:
    import onnxruntime

    return str(onnxruntime.__version__)


def test_the_whole_way_into_service(agent: Agent, bundle: Path) -> None:
    for command, arguments in (("unpack", [bundle]), ("build", []), ("selftest", []), ("activate", [])):
        assert agent(command, *arguments, runtime="onnxruntime").code == 0
    found = agent("status", runtime="onnxruntime").result
    assert found["active"]["engine"]["stale"] == []
    assert found["active"]["engine"]["self_test"]["passed"]
    timed = agent("bench", "--iterations", 5, "--seconds", 0, runtime="onnxruntime").result
    assert 0 < timed["inference_ms"]["min"] <= timed["inference_ms"]["p99"]


def test_its_engine_computes_what_the_graph_does(built: Camera, tiny_build: Built) -> None:
    slot = built.chosen_slot()
    engine = next(slot.engines.glob("*/model.engine"))
    spec = describe(load_graph(slot.graph), slot.graph)
    batch = to_tensor(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8), spec.preprocess)
    session = OnnxRuntime().load(engine)
    found = session.run(batch)
    with ONNXRUNTIME_CPU.load(tiny_build.out / "graph.onnx", threads=1) as reference:
        np.testing.assert_allclose(found, reference.run(batch), rtol=1e-4, atol=1e-4)
    session.close()
    with pytest.raises(DeviceError, match="closed"):
        session.run(batch)


def test_an_engine_of_altered_weights_fails_the_self_test(built: Camera) -> None:
    slot = built.chosen_slot()
    model = onnx.load(slot.graph)
    kernel = next(each for each in model.graph.initializer if len(each.dims) == 4)
    kernel.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(kernel) // 2, kernel.name))
    onnx.save(model, slot.graph)
    other = replace(built, runtime=OlderOnnxRuntime())
    build(other)
    with pytest.raises(SelfTestError, match="drifted") as caught:
        selftest(other)
    assert to_plain(caught.value.report)["error"]["scores"] > to_plain(caught.value.report)["tolerance"]["scores"]


class OlderOnnxRuntime(OnnxRuntime):
    """Another version, so that another engine is built."""

    def version(self) -> str:
        return "1.0"


def test_what_is_no_graph_and_what_is_no_input_are_errors(built: Camera, tmp_path: Path) -> None:
    (tmp_path / "model.engine").write_bytes(b"nothing")
    with pytest.raises(DeviceError, match="cannot load"):
        OnnxRuntime().load(tmp_path / "model.engine")
    session = OnnxRuntime().load(next(built.chosen_slot().engines.glob("*/model.engine")))
    with pytest.raises(DeviceError, match="cannot run"):
        session.run(np.zeros((1, 3, 1, 1), np.float32))


def test_the_memory_that_it_does_not_tell_is_estimated(agent: Agent, bundle: Path) -> None:
    how = read_manifest(bundle).detector["preprocess"]
    found = agent("install", bundle, runtime="onnxruntime").result
    (need,) = found["memory"]["models"]
    assert need["estimated"]
    assert need["bytes"] == found["engine"]["bytes"] + (SCRATCH_INPUTS + 2) * 3 * how["height"] * how["width"] * 4


def test_it_says_in_what_it_computes_and_what_each_layer_takes(built: Camera) -> None:
    engine = next(built.chosen_slot().engines.glob("*/model.engine"))
    layers = OnnxRuntime().layers(engine)
    assert layers
    assert all(layer.ms is not None and layer.ms >= 0 for layer in layers)
    precisions = {layer.name: layer.precision for layer in layers}
    assert precisions["images/quantize"] == "reformat"
    assert precisions["cells8"] == "fp32", "fused with its Relu, before Q/DQ is looked at"


def test_an_engine_is_not_said_to_compute_in_what_it_does_not(agent: Agent, bundle: Path) -> None:
    agent("unpack", bundle)
    error = agent("build", "--require", "int8=0.5", runtime="onnxruntime").error
    assert "too little of the engine computes in int8" in error["what"]
    assert "fp32" in error["found"]


def test_onnxruntime_sends_and_keeps_no_events(tmp_path: Path) -> None:
    """It would keep a database of them below the home folder."""
    graph, home = tmp_path / "graph.onnx", tmp_path / "home"
    onnx.save(conv_pair(), graph)
    home.mkdir()
    program = f"from edgekd.agent.runtimes import onnxruntime; from pathlib import Path; path = Path({str(graph)!r})"
    program += "; onnxruntime.OnnxRuntime().load(path)"
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ORT_", "XDG_"))}
    subprocess.run([sys.executable, "-c", program], env={**kept, "HOME": str(home)}, check=True)
    assert not list(home.rglob("*")), "nothing of ONNX Runtime's"

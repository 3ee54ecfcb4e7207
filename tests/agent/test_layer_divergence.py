"""Which inner tensor departs from the network in float: by engines that give them, on the golden frames."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from cameras import Agent, build, selftest
from fake_tensorrt import installed
from test_trtexec import program

from edgekd.agent.engines.camera import Camera
from edgekd.agent.engines.layer_divergence import layer_divergence
from edgekd.agent.engines.selftest import SelfTestError
from edgekd.agent.runtimes import trtexec
from edgekd.agent.runtimes.null import NullRuntime
from edgekd.agent.runtimes.onnxruntime import OnnxRuntime
from edgekd.agent.runtimes.tensorrt import TensorRt
from edgekd.agent.runtimes.tensorrt_dla import TensorRtDla
from edgekd.agent.runtimes.trtexec import Trtexec
from edgekd.agent.runtimes.types import UnsuitedError
from edgekd.agent.state.slots import State
from edgekd.core.documents import to_plain
from edgekd.core.formats.onnx_bytes import FLOAT, inputs, with_outputs
from edgekd.core.formats.plain_graph import plain_graph


@pytest.fixture
def camera(agent: Agent, bundle: Path, state: State) -> Camera:
    """A camera with the tiny bundle, whose network is quantized, and ONNX Runtime."""
    agent("unpack", bundle)
    return Camera(state, Path("/none"), OnnxRuntime())


def tensors(camera: Camera) -> list[str]:
    """The inner tensors that are quantized."""
    onnx_file = camera.chosen_slot().graph.read_bytes()
    return [name for name in plain_graph(onnx_file).scales if name not in inputs(onnx_file)]


def test_every_quantized_tensor_departs_a_little(camera: Camera) -> None:
    found = layer_divergence(camera.chosen_slot(), OnnxRuntime())
    assert [each.tensor for each in found] == tensors(camera)
    assert found
    assert all(0 < each.error < 0.1 for each in found), "what rounding to INT8 costs"


@pytest.mark.parametrize("version", ["8.5.2.2", "10.3.0"])
def test_the_tensor_that_is_wrong_is_named(camera: Camera, version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = tensors(camera)[0]
    installed(monkeypatch, version, breaks=wrong, bends=0.001)
    found = layer_divergence(camera.chosen_slot(), TensorRt())
    assert max(found, key=lambda each: float(each.error)).tensor == wrong
    assert all(each.error < 0.1 for each in found if each.tensor != wrong)


def test_trtexec_gives_inner_tensors_too(camera: Camera, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = program(tmp_path / "bin", 100300)
    monkeypatch.setattr(trtexec, "FOLDERS", (str(path.parent),))
    expected = {each.tensor: each.error for each in layer_divergence(camera.chosen_slot(), OnnxRuntime())}
    found = {each.tensor: each.error for each in layer_divergence(camera.chosen_slot(), Trtexec())}
    assert found == pytest.approx(expected, abs=0.01)
    builds = [call for call in map(json.loads, (path.parent / "log").read_text().splitlines()) if len(call) > 5]
    assert ["--int8" in call for call in builds if any(each.startswith("--onnx") for each in call)] == [True, False]


def test_the_self_test_says_it_where_it_is_asked(camera: Camera) -> None:
    build(camera)
    assert selftest(camera)["layers"] is None
    assert [each["tensor"] for each in selftest(camera, layers=True)["layers"]] == tensors(camera)


def test_a_self_test_that_fails_says_it_too(camera: Camera, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, "8.6.1", bends=0.5)
    on_tensorrt = replace(camera, runtime=TensorRt())
    build(on_tensorrt)
    with pytest.raises(SelfTestError) as caught:
        selftest(on_tensorrt, layers=True)
    assert len(to_plain(caught.value.report)["layers"]) == len(tensors(camera))


def test_what_gives_no_inner_tensors_says_so(camera: Camera, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, "8.6.1", dla_cores=2)
    for runtime in (NullRuntime(), TensorRtDla(0)):
        with pytest.raises(UnsuitedError, match=f"{runtime.name} does not output inner tensors"):
            layer_divergence(camera.chosen_slot(), runtime)


def test_a_network_without_int8_has_nothing_to_compare(camera: Camera) -> None:
    slot = camera.chosen_slot()
    slot.graph.write_bytes(plain_graph(slot.graph.read_bytes()).onnx)
    with pytest.raises(UnsuitedError, match="no inner tensor is quantized"):
        layer_divergence(slot, OnnxRuntime())


def test_more_outputs_change_nothing_else(camera: Camera) -> None:
    content = camera.chosen_slot().graph.read_bytes()
    names = tensors(camera)
    model = onnx.load_from_string(with_outputs(content, names, FLOAT))
    assert [each.name for each in model.graph.output][1:] == names
    del model.graph.output[1:]
    assert model.SerializeToString() == onnx.load_from_string(content).SerializeToString()
    batch = np.zeros((1, 3, 64, 64), np.float32)
    (outputs,) = OnnxRuntime().outputs(with_outputs(content, names, FLOAT), True, [batch]) or ()
    assert set(names) < set(outputs)

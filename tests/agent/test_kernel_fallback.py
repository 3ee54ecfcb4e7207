"""Where a builder has no INT8 kernel for a layer, that layer is built in float, a bounded number of times."""

from __future__ import annotations

from pathlib import Path

import pytest
from cameras import Agent, build, selftest
from fake_tensorrt import installed
from onnx import helper
from qdq_models import conv_pair

from edgekd.agent.engines.camera import Camera
from edgekd.agent.engines.kernel_fallback import MAX_BUILDS, layers_in, options_without
from edgekd.agent.runtimes.builder_log import MAX_LENGTH, MAX_LINES, BuilderLog, unimplemented_node
from edgekd.agent.runtimes.tensorrt import TensorRt
from edgekd.agent.runtimes.types import FLOAT, BuildOptions, UnimplementedLayerError
from edgekd.agent.state.slots import State
from edgekd.core.formats.qdq_graph import QdqGraph

GRAPH = QdqGraph(conv_pair().SerializeToString())


@pytest.fixture
def camera(agent: Agent, bundle: Path, state: State) -> Camera:
    """A camera with the tiny bundle, whose network is quantized."""
    agent("unpack", bundle)
    return Camera(state, Path("/none"), TensorRt())


@pytest.mark.parametrize(
    ("message", "node"),
    [
        (
            "10: [optimizer.cpp::computeCosts::2011] Error Code 10: Internal Error (Could not find any "
            "implementation for node /model.0/conv/Conv + PWN(/model.0/act/Sigmoid, /model.0/act/Mul).)",
            "/model.0/conv/Conv + PWN(/model.0/act/Sigmoid, /model.0/act/Mul)",
        ),
        (
            "Error Code 10: Internal Error (Could not find any implementation for node {ForeignNode[a.b...c/d]} due to "
            "insufficient workspace. See verbose log for requested sizes.)",
            None,
        ),
        (
            "Error Code 10: Internal Error (Could not find any implementation for node n.)",
            "n",
        ),
        ("Could not find any implementation for node conv.1. In computeCosts at optimizer.cpp:4048", "conv.1"),
        (
            "2: [builder.cpp::buildSerializedNetwork::636] Error Code 2: Internal Error (Assertion engine != nullptr)",
            None,
        ),
    ],
)
def test_the_layer_in_an_error(message: str, node: str | None) -> None:
    """Too little workspace is no missing kernel."""
    assert unimplemented_node(["1: an error before it", message]) == node


@pytest.mark.parametrize(
    ("node", "layers"),
    [
        ("first", ("first",)),
        ("first + relu", ("first",)),
        ("{ForeignNode[first...second]}", ("first", "second")),
        ("{ForeignNode[relu...second]}", ("second",)),
        ("second/dequantize + hidden/quantize + second", ("second",)),
        ("x/quantize", ("first",)),
        ("first/int8 + first/dequantize", ("first",)),
        ("first/int8/float32 + first/int8/quantize_quantize_scale_node_clone_0", ("first",)),
        ("{ForeignNode[onnx::MatMul_12 + (Unnamed Layer* 100) [Shuffle] + relu.../second]}", ()),
        ("{ForeignNode[onnx::MatMul_12 + (Unnamed Layer* 100) [Shuffle] + relu...second]}", ("second",)),
        ("PWN(relu)", ()),
        ("firs", ()),
    ],
)
def test_layers_in_a_builders_name(node: str, layers: tuple[str, ...]) -> None:
    assert layers_in(node, GRAPH) == layers


def test_requests_end_in_float() -> None:
    wish, seen = BuildOptions(), []
    for builds in range(1, 20):
        following = options_without(wish, "first" if builds == 1 else "second", GRAPH, builds)
        if following is None:
            break
        seen.append((following.source, following.float_layers))
        wish = following
    assert seen == [("graph", ("first",)), ("graph", ("first", "second")), (FLOAT, ())]
    assert options_without(BuildOptions(), "first", GRAPH, MAX_BUILDS) == BuildOptions(FLOAT)
    assert options_without(BuildOptions(), "unknown", GRAPH, 1) == BuildOptions(FLOAT)


@pytest.mark.parametrize("version", ["8.2.1", "8.5.2.2", "10.3.0"])
@pytest.mark.parametrize("fused", [True, False])
def test_a_layer_without_an_int8_kernel_is_built_in_float(
    camera: Camera, version: str, monkeypatch: pytest.MonkeyPatch, *, fused: bool
) -> None:
    layers = QdqGraph(camera.chosen_slot().graph.read_bytes()).int8_layers()
    missing = (layers[0], layers[-1])
    installed(monkeypatch, version, without_int8_kernel=missing, fused_names=fused)
    found = build(camera)
    assert found["float_layers"] == list(missing)
    assert [each["float_layers"] for each in found["attempts"]] == [[], [layers[0]]]
    assert all(missing[index] in each["node"] for index, each in enumerate(found["attempts"]))
    assert all("Could not find any implementation" in " ".join(each["log"]) for each in found["attempts"])
    assert found["layers"]["int8"] > 0
    assert selftest(camera)["passed"]


def test_too_many_layers_without_a_kernel_end_in_float(camera: Camera, monkeypatch: pytest.MonkeyPatch) -> None:
    layers = QdqGraph(camera.chosen_slot().graph.read_bytes()).int8_layers()
    assert len(layers) > 2
    monkeypatch.setattr("edgekd.agent.engines.kernel_fallback.MAX_BUILDS", 2)
    behaviour = installed(monkeypatch, "8.5.2.2", without_int8_kernel=layers)
    found = build(camera)
    assert found["precision"] == "fp16"
    assert len(found["attempts"]) == 2
    assert len(behaviour.built) == 1
    assert selftest(camera)["passed"]
    assert not build(camera)["changed"], "the engine in float is there, and is not built again"


def test_an_engine_in_float_without_a_kernel_is_an_error(camera: Camera, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, "8.5.2.2")
    slot = camera.chosen_slot()
    error = UnimplementedLayerError("no kernel", node="n")
    monkeypatch.setattr(TensorRt, "build", lambda *arguments: (_ for _ in ()).throw(error))
    with pytest.raises(UnimplementedLayerError):
        build(camera)
    assert not list(slot.engines.iterdir()), "nothing half-built is left"


def test_a_log_is_bounded_and_says_each_thing_once() -> None:
    log = BuilderLog()
    for index in range(MAX_LINES * 2):
        log.add("W", f"message {index // 2}  with\nspaces")
    assert log.lines[0] == "W message 0 with spaces"
    assert len(log.lines) == MAX_LINES
    assert log.errors == []
    assert log.cause == ""


def test_errors_are_kept_after_many_warnings() -> None:
    log = BuilderLog()
    for index in range(MAX_LINES * 2):
        log.add("W", f"Missing scale and zero-point for tensor {index}")
    log.add("E", f"Could not find any implementation for node {'a' * 2 * MAX_LENGTH}.")
    assert len(log.lines) == MAX_LINES + 1
    assert max(map(len, log.lines)) == MAX_LENGTH
    assert unimplemented_node(log.errors) == "a" * 2 * MAX_LENGTH, "names are matched whole"


def test_depthwise_convolutions_leave_int8_together() -> None:
    """TensorRT 8.5.2 has no INT8 kernel for a depthwise convolution before SiLU (NVIDIA/TensorRT issue 3385)."""
    model = conv_pair()
    for node in model.graph.node:
        if node.op_type == "Conv":
            node.attribute.append(helper.make_attribute("group", 2))
    grouped = QdqGraph(model.SerializeToString())
    following = options_without(BuildOptions(), "first", grouped, 1)
    assert following
    assert following.float_layers == ("first", "second")


def test_timings_of_a_build_that_failed_are_kept(camera: Camera, monkeypatch: pytest.MonkeyPatch) -> None:
    layers = QdqGraph(camera.chosen_slot().graph.read_bytes()).int8_layers()
    installed(monkeypatch, "8.5.2.2", without_int8_kernel=layers[:1])
    build(camera)
    (cache,) = camera.state.root.glob("timings/tensorrt/*.cache")
    assert cache.read_bytes().endswith(b"++"), "both builds added to it"

"""Engines run the same graph alike, refuse what they cannot run with one line, and import nothing until asked."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekd.core.cores import usable_cores
from edgekd.core.errors import DeviceError, SpecError
from edgekd.graph.runtimes import runtime_named, runtimes
from edgekd.graph.runtimes.onnxruntime import ONNXRUNTIME_CPU, ONNXRUNTIME_CUDA, BoundSession, OnnxRuntimeSession
from edgekd.graph.runtimes.openvino import OPENVINO_CPU
from edgekd.graph.runtimes.tensorrt import TENSORRT
from edgekd.graph.runtimes.tensorrt_rtx import TENSORRT_RTX, compile_ahead
from edgekd.graph.runtimes.types import HostRuntime

BOUND = replace(ONNXRUNTIME_CPU, name="onnxruntime-bound", memory="cpu")
"""What ONNX Runtime does on a GPU, done in the host's memory."""
RUNNERS = (ONNXRUNTIME_CPU, BOUND, OPENVINO_CPU)
needs_rtx = pytest.mark.skipif(TENSORRT_RTX.version() is None, reason="tensorrt-rtx is not installed")


def usable(engine: HostRuntime) -> HostRuntime:
    available = engine.available()
    if not available.usable:
        pytest.skip(f"{engine.name}: {available.why}")
    return engine


def tensor(values: np.ndarray, name: str) -> TensorProto:
    return numpy_helper.from_array(values, name)


def save(folder: Path, nodes: list, constants: list, outputs: tuple[str, ...] = ("output",)) -> Path:
    """A graph `images` float32 [1, 3, 16, 16] -> `outputs`."""
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, 16, 16])
    results = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4, 16, 16]) for name in outputs]
    graph = helper.make_graph(nodes, "tiny", [images], results, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    path = folder / "tiny.onnx"
    onnx.save(model, path)
    return path


def float_graph(folder: Path) -> Path:
    weights = np.random.default_rng(0).normal(size=(4, 3, 3, 3)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["images", "w"], ["conv"], pads=[1, 1, 1, 1]),
        helper.make_node("Sigmoid", ["conv"], ["output"]),
    ]
    return save(folder, nodes, [tensor(weights, "w")])


def quantized_graph(folder: Path, bias: str | None = None) -> Path:
    """A convolution between Q/DQ nodes, weights INT8 per channel; `bias` "int32" adds one that TensorRT refuses."""
    weights = np.random.default_rng(1).integers(-127, 128, size=(4, 3, 3, 3)).astype(np.int8)
    constants = [
        tensor(np.float32(1 / 127), "x_scale"),
        tensor(np.int8(0), "x_zero"),
        tensor(weights, "w"),
        tensor(np.full(4, 0.01, np.float32), "w_scale"),
        tensor(np.zeros(4, np.int8), "w_zero"),
    ]
    nodes = [
        helper.make_node("QuantizeLinear", ["images", "x_scale", "x_zero"], ["x_q"]),
        helper.make_node("DequantizeLinear", ["x_q", "x_scale", "x_zero"], ["x"]),
        helper.make_node("DequantizeLinear", ["w", "w_scale", "w_zero"], ["w_f"], axis=0),
    ]
    inputs = ["x", "w_f"]
    if bias:
        constants += [
            tensor(np.zeros(4, np.int32), "b"),
            tensor(np.full(4, 1e-4, np.float32), "b_scale"),
            tensor(np.zeros(4, np.int32), "b_zero"),
        ]
        nodes.append(helper.make_node("DequantizeLinear", ["b", "b_scale", "b_zero"], ["b_f"], name="bias_dq", axis=0))
        inputs.append("b_f")
    nodes.append(helper.make_node("Conv", inputs, ["output"], pads=[1, 1, 1, 1]))
    return save(folder, nodes, constants)


def batch() -> np.ndarray:
    return np.random.default_rng(2).random((1, 3, 16, 16), dtype=np.float32)


@pytest.mark.parametrize("make", [float_graph, quantized_graph])
def test_onnx_runtime_and_openvino_agree(tmp_path: Path, make) -> None:
    graph = make(tmp_path)
    usable(OPENVINO_CPU)
    with ONNXRUNTIME_CPU.load(graph) as one, OPENVINO_CPU.load(graph) as other:
        first, second = one.run(batch()), other.run(batch())
        assert one.outputs == other.outputs == ("output",)
    assert first.shape == (1, 4, 16, 16)
    assert first.dtype == second.dtype == np.float32
    assert first.std() > 0.01
    np.testing.assert_allclose(first, second, atol=1e-4)


def test_input_and_output_at_one_place_give_the_same(tmp_path: Path) -> None:
    graph = quantized_graph(tmp_path)
    with ONNXRUNTIME_CPU.load(graph) as plain, BOUND.load(graph) as bound:
        assert type(bound) is BoundSession
        for values in (batch(), np.zeros((1, 3, 16, 16), np.float32), np.ascontiguousarray(batch()[:, ::-1])):
            np.testing.assert_array_equal(bound.run(values), plain.run(values))


def test_a_graph_without_a_fixed_size_is_run_as_it_comes(tmp_path: Path) -> None:
    model = onnx.load(float_graph(tmp_path))
    for value in (model.graph.input[0], model.graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_param = "frames"
    onnx.save(model, tmp_path / "free.onnx")
    with BOUND.load(tmp_path / "free.onnx") as session:
        assert type(session) is OnnxRuntimeSession
        assert session.run(np.concatenate([batch()] * 2)).shape == (2, 4, 16, 16)


def test_a_graph_that_cannot_be_recorded_runs_without(tmp_path: Path, monkeypatch) -> None:
    """As ONNX Runtime refuses to record a graph of which a node is left to the CPU."""
    import onnxruntime

    asked, opened = [], onnxruntime.InferenceSession

    def refusing(content, options, providers):
        asked.append(providers[0][1])
        if providers[0][1]:
            raise RuntimeError("This session cannot use the graph capture feature")
        return opened(content, options, providers=providers)

    monkeypatch.setattr(onnxruntime, "InferenceSession", refusing)
    with replace(BOUND, recorded=(("enable_cuda_graph", "1"),)).load(float_graph(tmp_path)) as session:
        assert session.run(batch()).shape == (1, 4, 16, 16)
    assert asked == [{"enable_cuda_graph": "1"}, {}]


@pytest.mark.parametrize("engine", RUNNERS, ids=lambda engine: engine.name)
def test_an_output_outlives_the_next_run(tmp_path: Path, engine: HostRuntime) -> None:
    with usable(engine).load(float_graph(tmp_path)) as session:
        kept = session.run(batch())
        copy = kept.copy()
        session.run(np.zeros((1, 3, 16, 16), np.float32))
    np.testing.assert_array_equal(kept, copy)


def test_threads_are_pinned_to_what_was_asked_or_to_the_usable_cores(tmp_path: Path) -> None:
    graph = float_graph(tmp_path)
    for asked, expected in ((1, 1), (None, usable_cores())):
        with ONNXRUNTIME_CPU.load(graph, threads=asked) as session:
            assert session.native.get_session_options().intra_op_num_threads == expected


@pytest.mark.parametrize("engine", RUNNERS, ids=lambda engine: engine.name)
def test_streams_run_at_the_same_time_and_agree(tmp_path: Path, engine: HostRuntime) -> None:
    graph = quantized_graph(tmp_path)
    frames = [np.full((1, 3, 16, 16), value, np.float32) for value in (0.0, 0.25, 0.5)]
    with usable(engine).load(graph) as session:
        expected = [session.run(frame) for frame in frames]
    with ExitStack() as stack, ThreadPoolExecutor(3) as pool:
        sessions = [stack.enter_context(each) for each in engine.load_streams(graph, 3, threads=2)]
        for _ in range(20):
            found = list(pool.map(lambda session, frame: session.run(frame), sessions, frames))
            for one, other in zip(found, expected, strict=True):
                np.testing.assert_allclose(one, other, atol=1e-6)


def test_streams_share_the_threads(tmp_path: Path) -> None:
    graph = float_graph(tmp_path)
    for threads, streams, expected in ((4, 2, 2), (1, 3, 1)):
        sessions = ONNXRUNTIME_CPU.load_streams(graph, streams, threads=threads)
        assert [each.native.get_session_options().intra_op_num_threads for each in sessions] == [expected] * streams


@pytest.mark.parametrize("engine", RUNNERS, ids=lambda engine: engine.name)
@pytest.mark.parametrize("content", [b"not a graph" * 99, b""], ids=["garbage", "empty"])
def test_a_file_that_is_no_graph_is_one_line(tmp_path: Path, engine: HostRuntime, content: bytes, capfd) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(content)
    with pytest.raises(DeviceError, match=r"broken\.onnx") as caught:
        usable(engine).load(path)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("engine", RUNNERS, ids=lambda engine: engine.name)
def test_a_missing_file_is_named(tmp_path: Path, engine: HostRuntime) -> None:
    with pytest.raises(DeviceError, match=r"gone\.onnx is not there"):
        usable(engine).load(tmp_path / "gone.onnx")


@pytest.mark.parametrize("engine", RUNNERS, ids=lambda engine: engine.name)
def test_a_wrong_batch_is_a_device_error_that_names_its_shape(tmp_path: Path, engine: HostRuntime) -> None:
    with (
        usable(engine).load(float_graph(tmp_path)) as session,
        pytest.raises(DeviceError, match=r"\(1, 3, 8, 8\)"),
    ):
        session.run(np.zeros((1, 3, 8, 8), np.float32))


@pytest.mark.parametrize("engine", RUNNERS, ids=lambda engine: engine.name)
def test_a_closed_session_says_so(tmp_path: Path, engine: HostRuntime) -> None:
    with usable(engine).load(float_graph(tmp_path)) as session:
        pass
    with pytest.raises(DeviceError, match="closed"):
        session.run(batch())


@pytest.mark.parametrize("engine", RUNNERS, ids=lambda engine: engine.name)
def test_a_graph_with_two_outputs_is_refused_by_name(tmp_path: Path, engine: HostRuntime) -> None:
    weights = tensor(np.ones((4, 3, 1, 1), np.float32), "w")
    nodes = [
        helper.make_node("Conv", ["images", "w"], ["boxes"]),
        helper.make_node("Sigmoid", ["boxes"], ["scores"]),
    ]
    graph = save(tmp_path, nodes, [weights], ("boxes", "scores"))
    with pytest.raises(DeviceError, match="boxes, scores"):
        usable(engine).load(graph)


def test_engines_are_found_by_name_and_a_near_miss_is_suggested() -> None:
    assert [runtime_named(engine.name) for engine in runtimes()] == list(runtimes())
    with pytest.raises(SpecError, match="did you mean 'openvino-cpu'"):
        runtime_named("openvino-cup")


def test_an_unusable_engine_names_the_command_that_helps(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)  # what Python itself does for a module that is not to be found
    assert OPENVINO_CPU.available().install == "pip install openvino"
    with pytest.raises(DeviceError, match="fix: pip install openvino"):
        OPENVINO_CPU.load(float_graph(tmp_path))


def test_cuda_without_a_driver_is_not_usable(monkeypatch) -> None:
    import onnxruntime

    def no_such_library(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr("ctypes.CDLL", no_such_library)
    found = ONNXRUNTIME_CUDA.available()
    assert not found.usable
    assert "libcuda.so.1" in found.why


def test_a_provider_that_falls_back_to_the_cpu_is_an_error_not_a_silent_substitute(tmp_path: Path, monkeypatch) -> None:
    """Where the CUDA provider is really not there: ONNX Runtime itself would run on the CPU without an error."""
    if ONNXRUNTIME_CUDA.available().usable:
        pytest.skip("CUDA works here")
    monkeypatch.setattr("edgekd.graph.runtimes.onnxruntime.require", lambda engine: None)
    with (
        pytest.warns(UserWarning, match="not in available provider"),
        pytest.raises(DeviceError, match="did not start CUDAExecutionProvider"),
    ):
        ONNXRUNTIME_CUDA.load(float_graph(tmp_path))


def test_tensorrt_says_that_engines_are_built_on_the_device(tmp_path: Path) -> None:
    assert not TENSORRT.available().usable
    with pytest.raises(DeviceError, match="built on the device at install time"):
        TENSORRT.load(float_graph(tmp_path))


@needs_rtx
def test_rtx_compiles_a_quantized_graph_without_a_gpu(tmp_path: Path) -> None:
    out = tmp_path / "tiny.engine"
    result = compile_ahead(quantized_graph(tmp_path), ["8.6", "sm_89"], out)
    assert result.sm == ("SM86", "SM89")
    assert result.files == (out,)
    assert result.bytes == out.stat().st_size > 1000
    assert result.seconds > 0
    assert sorted(tmp_path.iterdir()) == [out, tmp_path / "tiny.onnx"]
    assert compile_ahead(tmp_path / "tiny.onnx", ["8.6", "sm_89"], tmp_path / "again.engine").bytes == result.bytes


@needs_rtx
@pytest.mark.parametrize("asked", [["sm_90"], ["8.7", "8.6"], []])
def test_rtx_refuses_gpus_that_it_does_not_know(tmp_path: Path, asked: list[str]) -> None:
    with pytest.raises(DeviceError, match="expected one or more of SM75"):
        compile_ahead(float_graph(tmp_path), asked, tmp_path / "out.engine")
    assert not (tmp_path / "out.engine").exists()


@needs_rtx
def test_rtx_names_the_node_and_operator_that_its_parser_refuses(tmp_path: Path) -> None:
    """ONNX Runtime's own quantizer makes INT32 biases; TensorRT takes none."""
    graph = quantized_graph(tmp_path, bias="int32")
    with pytest.raises(DeviceError, match=r"node bias_dq \(DequantizeLinear\).*Int32") as caught:
        compile_ahead(graph, ["SM86"], tmp_path / "out.engine")
    assert "Cuda" not in str(caught.value)


@needs_rtx
def test_rtx_says_that_garbage_is_no_graph(tmp_path: Path) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"not a graph" * 99)
    with pytest.raises(DeviceError, match=r"broken\.onnx"):
        compile_ahead(path, ["SM86"], tmp_path / "out.engine")


@needs_rtx
def test_rtx_does_not_pretend_to_run_here(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="does not run"):
        TENSORRT_RTX.load(float_graph(tmp_path))


def test_importing_the_package_imports_no_runtime() -> None:
    script = (
        "import sys, edgekd.graph.runtimes, edgekd.deploy.devices.local\n"
        "import edgekd.core.benchmark, edgekd.commands.doctor\n"
        "print(*(m for m in ('onnxruntime', 'openvino', 'tensorrt_rtx', 'tensorrt', 'torch', 'cv2', 'onnx') "
        "if m in sys.modules))"
    )
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == ""

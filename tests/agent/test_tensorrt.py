"""The agent with TensorRT, generation by generation, over fakes that hold it to what each of them has and takes."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from cameras import Agent, activate, bench, build, selftest
from fake_tensorrt import VERSIONS, Behaviour, fake, installed, names_of
from running import Built

from edgekd.agent.engines.camera import Camera
from edgekd.agent.engines.engine import EngineMismatchError, PrecisionError
from edgekd.agent.engines.selftest import SelfTestError
from edgekd.agent.runtimes import AUTOMATIC, select_runtime
from edgekd.agent.runtimes.networks import calibrated_network, float_network
from edgekd.agent.runtimes.tensorrt import TensorRt
from edgekd.agent.runtimes.tensorrt_builder import Builder, workspace_bytes
from edgekd.agent.runtimes.tensorrt_dla import TensorRtDla
from edgekd.agent.runtimes.tensorrt_generations import generation, numbers
from edgekd.agent.runtimes.types import FLOAT, BuildOptions, TensorRtDetails, UnsuitedError
from edgekd.agent.state.golden import batches, read_golden
from edgekd.agent.state.slots import State
from edgekd.core.documents import to_plain
from edgekd.core.errors import DeviceError
from edgekd.core.formats.calibration_cache import from_text
from edgekd.graph.pins import pin
from edgekd.graph.runtimes.onnxruntime import ONNXRUNTIME_CPU

WEAK = [version for version in VERSIONS if not version.startswith("11")]


@pytest.fixture
def camera(agent: Agent, bundle: Path, state: State) -> Camera:
    """A camera with the tiny bundle, whose network is quantized."""
    agent("unpack", bundle)
    return Camera(state, Path("/none"), TensorRt())


@pytest.mark.parametrize("version", VERSIONS)
def test_the_whole_way_into_service(camera: Camera, version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    behaviour = installed(monkeypatch, version)
    found = build(camera)
    assert found["runtime"] == {"name": "tensorrt", "version": version}
    tested = selftest(camera)
    assert tested["passed"]
    assert activate(camera)["changed"]
    timed = bench(camera, 3, 0)
    assert timed["iterations"] == 3
    (record,) = behaviour.built
    assert record["flags"] == ([] if version.startswith("11") else ["FP16", "INT8"])
    assert record["level"] == (3 if numbers(version) >= (8, 6) else None)
    assert record["workspace"] == workspace_bytes(None)


@pytest.mark.parametrize("version", ["8.5.2.2", "10.3.0"])
def test_an_engine_computes_what_the_graph_does(
    camera: Camera, version: str, tiny_build: Built, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(monkeypatch, version)
    engine = Path(build(camera)["file"])
    golden = read_golden(camera.chosen_slot())
    session = TensorRt().load(engine)
    with ONNXRUNTIME_CPU.load(tiny_build.out / "graph.onnx", threads=1) as reference:
        for batch in batches(golden.set, golden.spec):
            np.testing.assert_allclose(session.run(batch), reference.run(batch), rtol=1e-4, atol=1e-4)
    first = session.run(batch)
    assert session.run(np.zeros_like(batch)) is not first
    assert first.any(), "the next run did not write into it"
    with pytest.raises(DeviceError, match=r"expected a batch \(1, 3, 64, 64\)"):
        session.run(batch[:, :, :8])
    session.close()
    with pytest.raises(DeviceError, match="closed"):
        session.run(batch)


@pytest.mark.parametrize("version", VERSIONS)
def test_what_was_realized_is_recorded_and_not_what_was_asked_for(
    camera: Camera, version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(monkeypatch, version)
    found = build(camera)
    assert found["layers"]["int8"] >= 1
    assert found["layers"]["reformat"] >= 1
    assert found["share"]["time"]["int8"] > 0
    assert sum(found["share"]["time"].values()) == pytest.approx(1, abs=1e-3)
    monkeypatch.undo()
    installed(monkeypatch, version, int8_runs=False)
    for folder in camera.chosen_slot().engines.iterdir():
        (folder / "model.engine").write_bytes(b"damaged")
    other = build(camera)
    assert other["changed"]
    assert "int8" not in other["layers"], "asked for, but not what was chosen"
    assert set(other["allowed"]) == (set() if version.startswith("11") else {"fp32", "fp16", "int8"})


def test_an_engine_that_does_not_compute_as_required_is_refused_and_the_old_one_stays(
    camera: Camera, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(monkeypatch, "8.5.2.2")
    build(camera, {"int8": 0.1})
    for command in (selftest, activate):
        command(camera)
    monkeypatch.undo()
    installed(monkeypatch, "8.6.1", int8_runs=False)
    with pytest.raises(PrecisionError, match=r"expected 10\.0% of its time in int8; found fp16 [\d.]+%"):
        build(camera, {"int8": 0.1})
    slot = camera.chosen_slot()
    assert [folder.name for folder in slot.engines.iterdir()] == [slot.engine.name if slot.engine else None]
    with pytest.raises(EngineMismatchError):
        selftest(camera)
    build(camera)
    with pytest.raises(PrecisionError, match="too little of the engine"):
        build(camera, {"int8": 0.1})
    assert len(list(slot.engines.iterdir())) == 2, "one that is there already is refused, and stays"


@pytest.mark.parametrize("version", VERSIONS)
def test_in_float_there_is_no_int8(
    camera: Camera, version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    behaviour = installed(monkeypatch, version)
    made = TensorRt().build(camera.chosen_slot(), tmp_path / "engine", BuildOptions(FLOAT))
    (record,) = behaviour.built
    assert record["flags"] == ([] if version.startswith("11") else ["FP16"])
    assert not {operator for _, operator in record["layers"]} & {"QuantizeLinear", "DequantizeLinear"}
    assert made.precision == ("fp32" if version.startswith("11") else "fp16"), "the tiny graph is not in float16"


def test_what_the_parser_refuses_names_the_node(camera: Camera, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, "8.2.1", refuses=("Sigmoid",))
    with pytest.raises(DeviceError, match=r"cannot parse graph.onnx; found In node .* \(Sigmoid\)"):
        build(camera)
    assert not list(camera.chosen_slot().engines.iterdir())


def test_what_the_builder_says_is_passed_on(camera: Camera, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, "10.3.0", fails=True)
    with pytest.raises(DeviceError, match="found told to find nothing"):
        build(camera)


def test_an_engine_that_computes_something_else_fails_the_self_test_and_says_where(
    camera: Camera, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(monkeypatch, "8.5.2.2", bends=0.5)
    build(camera)
    with pytest.raises(SelfTestError) as caught:
        selftest(camera)
    worst = to_plain(caught.value.report)["worst"]
    assert worst["part"] == "scores"
    assert worst["found"] == pytest.approx(worst["expected"] + 0.5, abs=0.01)


def test_an_engine_of_another_version_is_not_loaded(camera: Camera, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, "8.5.2.2")
    engine = Path(build(camera)["file"])
    monkeypatch.undo()
    installed(monkeypatch, "8.6.1")
    with pytest.raises(DeviceError, match=r"the plan is of 8\.5\.2\.2"):
        TensorRt().load(engine)


# ------------------------------------------------------------------------------------------------------- timing caches


def test_timings_are_kept_for_the_next_build_and_not_for_another_version(
    camera: Camera, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(monkeypatch, "8.5.2.2")
    slot, kept = camera.chosen_slot(), camera.state.root / "timings" / "tensorrt"
    build(camera)
    (cache,) = kept.iterdir()
    assert cache.read_bytes() == b"timings of 8.5.2.2+"
    engine = slot.path / "engine.test"
    details = TensorRt().build(slot, engine, BuildOptions(cache=cache)).details
    assert isinstance(details, TensorRtDetails)
    assert details.timing_cache is True
    assert cache.read_bytes() == b"timings of 8.5.2.2++"
    monkeypatch.undo()
    installed(monkeypatch, "8.6.1")
    build(camera)
    (other,) = kept.iterdir()
    assert other.name != cache.name, "the older is gone"
    assert other.read_bytes() == b"timings of 8.6.1+"


@pytest.mark.parametrize("content", [b"", b"nonsense", b"timings of 8.2.1"])
def test_a_timing_cache_that_does_not_fit_is_replaced(
    camera: Camera, content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(monkeypatch, "10.3.0")
    (tmp_path / "cache").write_bytes(content)
    made = TensorRt().build(camera.chosen_slot(), tmp_path / "engine", BuildOptions(cache=tmp_path / "cache"))
    assert isinstance(made.details, TensorRtDetails)
    assert made.details.timing_cache is False
    assert (tmp_path / "cache").read_bytes() == b"timings of 10.3.0+"


# ----------------------------------------------------------------------------------------------------------------- DLA


@pytest.mark.parametrize("version", WEAK)
def test_the_dla_gets_a_float_graph_and_the_bundles_scales(
    camera: Camera, version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    behaviour = installed(monkeypatch, version, dla_cores=2)
    on_dla = replace(camera, runtime=TensorRtDla(1))
    found = build(on_dla)
    assert found["fallbacks"], "what is decoded"
    assert set(found["layers"]) >= {"dla", "fp16"}
    assert selftest(on_dla)["passed"]
    (record,) = behaviour.built
    assert set(record["flags"]) == {"FP16", "INT8", "GPU_FALLBACK", "PREFER_PRECISION_CONSTRAINTS"}
    assert record["dla"] == 1
    assert record["missing"] == [], "a tensor without a scale keeps its layers from INT8"
    assert {name for name, kind in record["precisions"].items() if kind == "INT8"} & set(record["on_dla"])
    assert not {operator for _, operator in record["layers"]} & {"QuantizeLinear", "DequantizeLinear"}
    engine = Path(found["file"])
    with pytest.raises(DeviceError, match="DLA core 1"):
        TensorRt().load(engine)


def test_layers_that_are_float_in_the_graph_stay_float_on_the_dla(
    camera: Camera, monkeypatch: pytest.MonkeyPatch
) -> None:
    behaviour = installed(monkeypatch, "8.5.2.2", dla_cores=2)
    floating = float_network(camera.chosen_slot().graph).float_layers
    assert floating, "the last ones, whose output is decoded"
    build(replace(camera, runtime=TensorRtDla(0)))
    (record,) = behaviour.built
    assert record["half"] == sorted(floating)


def test_the_scales_of_the_bundle_have_those_of_the_graph_and_more(camera: Camera, tmp_path: Path) -> None:
    from edgekd.core.formats.plain_graph import plain_graph

    slot = camera.chosen_slot()
    file = slot.file("calibration-cache")
    assert file
    network, own = calibrated_network(slot, BuildOptions(), tmp_path), plain_graph(slot.graph.read_bytes())
    assert network.scales == {**own.scales, **from_text(file.read_text("ascii"))}
    file.unlink()
    with pytest.raises(DeviceError, match="cannot be read as scales"):
        calibrated_network(slot, BuildOptions(), tmp_path)


@pytest.mark.parametrize(("version", "cores"), [("8.6.1", 0), ("10.3.0", 1), ("11.4.1", 0)])
def test_a_dla_that_is_not_there_is_said(
    camera: Camera, version: str, cores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(monkeypatch, version, dla_cores=cores)
    with pytest.raises(UnsuitedError, match=f"no DLA core 1 here.*found {cores} cores with TensorRT {version}"):
        build(replace(camera, runtime=TensorRtDla(1)))


def test_from_11_on_the_dla_takes_the_graph_itself(camera: Camera, monkeypatch: pytest.MonkeyPatch) -> None:
    behaviour = installed(monkeypatch, "11.4.1", dla_cores=2)
    build(replace(camera, runtime=TensorRtDla(0)))
    (record,) = behaviour.built
    assert "QuantizeLinear" in {operator for _, operator in record["layers"]}
    assert record["flags"] == ["GPU_FALLBACK"]


@pytest.mark.parametrize("version", VERSIONS)
def test_nodes_that_float16_cannot_hold_are_held_in_float32_where_tensorrt_chooses_types(
    camera: Camera, version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    behaviour = installed(monkeypatch, version)
    graph = camera.chosen_slot().graph
    model = onnx.load(graph)
    names = [node.name for node in model.graph.node if node.op_type == "Conv"][:2]
    pin(model, dict.fromkeys(names, 1e5))
    onnx.save(model, graph)
    build(camera)
    (record,) = behaviour.built
    typed = version.startswith("11")
    assert record["full"] == ([] if typed else sorted(names))
    assert ("PREFER_PRECISION_CONSTRAINTS" in record["flags"]) is not typed


# ------------------------------------------------------------------------------------------- versions, and what is here


@pytest.mark.parametrize(
    ("version", "first"),
    [
        ("8.2.1.8", (8, 2)),
        ("8.4.1", (8, 4)),
        ("8.5.2.2", (8, 4)),
        ("8.6.2", (8, 6)),
        ("9.0.1", (8, 6)),
        ("10.0.1", (10, 0)),
        ("10.16.2.10", (10, 0)),
        ("11.5.0-1+cuda13.5", (11, 0)),
    ],
)
def test_a_version_has_a_generation(version: str, first: tuple[int, int]) -> None:
    assert generation(version).first == first


@pytest.mark.parametrize("version", ["8.0.1", "7.1.3", "x"])
def test_what_is_too_old_is_said(version: str) -> None:
    with pytest.raises(DeviceError, match="too old"):
        generation(version)


def test_it_is_the_first_choice_where_it_is_usable(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [runtime.name for runtime in AUTOMATIC] == ["tensorrt", "trtexec", "onnxruntime"]
    installed(monkeypatch, "8.5.2.2")
    found = select_runtime(None)
    assert found
    assert found.name == "tensorrt"
    sys.modules["tensorrt"].__version__ = "8.0.1"
    assert "too old" in str(TensorRt().problem())


def test_without_a_way_to_the_gpus_memory_it_is_not_usable(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, "8.5.2.2")
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "tensorrt", fake("8.5.2.2", Behaviour()))
    monkeypatch.setattr("edgekd.agent.runtimes.cuda._installed", lambda name: False)
    monkeypatch.setattr("edgekd.agent.runtimes.cuda._library", lambda: None)
    assert TensorRt().problem() == "neither PyCUDA nor cuda-python nor CUDA's libcudart is here"


def test_the_workspace_is_a_part_of_the_memory() -> None:
    gigabyte = 1 << 30
    assert workspace_bytes(None) == gigabyte
    assert [workspace_bytes(count * gigabyte) for count in (0, 4, 8, 32)] == [
        gigabyte // 4,
        gigabyte,
        2 * gigabyte,
        4 * gigabyte,
    ]


# ----------------------------------------------------------------------------------------------- against real bindings


@pytest.mark.parametrize("version", VERSIONS)
def test_what_a_generation_says_is_in_its_bindings(version: str) -> None:
    names, row = names_of(version), generation(version)
    assert set(row.network_flags) <= names["NetworkDefinitionCreationFlag"]
    assert {*row.precision_flags[True], *row.precision_flags[False]} <= names["BuilderFlag"]
    assert not row.constraint or row.constraint in names["BuilderFlag"]
    assert ("builder_optimization_level" in names["IBuilderConfig"]) == row.levels
    assert ("IInt8EntropyCalibrator2" in names) is not row.strongly_typed


def test_a_fake_has_what_its_generation_has_and_no_more() -> None:
    old, new = fake("8.2.1", Behaviour()), fake("11.4.1", Behaviour())
    assert not hasattr(old, "MemoryPoolType")
    assert not hasattr(new, "IInt8EntropyCalibrator2")
    with pytest.raises(AttributeError, match="BuilderFlag"):
        new.BuilderFlag.INT8  # noqa: B018
    with pytest.raises(AttributeError, match="IBuilderConfig has no set_memory_pool_limit"):
        old.IBuilderConfig().set_memory_pool_limit(None, 1)
    with pytest.raises(AttributeError, match="IBuilderConfig has no max_workspace_size"):
        new.IBuilderConfig().max_workspace_size = 1
    with pytest.raises(AttributeError, match="IExecutionContext has no execute_async_v2"):
        new.IExecutionContext().execute_async_v2([], 0)


def test_a_strongly_typed_builder_takes_what_the_newest_generation_says(camera: Camera, tmp_path: Path) -> None:
    """TensorRT for RTX has the interface of TensorRT 11, and builds without a GPU."""
    rtx = pytest.importorskip("tensorrt_rtx")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "tensorrt", rtx)
        builder = Builder(generation("11.4.1"), BuildOptions())
        slot = camera.chosen_slot()
        made, _ = TensorRt()._configure(builder, slot, BuildOptions(), tmp_path)
        builder.config.num_compute_capabilities = 1
        builder.config.set_compute_capability(rtx.ComputeCapability.SM86, 0)
        builder.write(tmp_path / "engine")
    assert made.allowed == ()
    assert (tmp_path / "engine").stat().st_size > 10_000
    assert builder.log.lines == []

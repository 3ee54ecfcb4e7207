"""The fakes of TensorRT's bindings and of trtexec, and the script that records the interface they have."""

from __future__ import annotations

import inspect
import subprocess
from pathlib import Path
from typing import Any

import fake_tensorrt
import onnx
import pytest
from fake_graphs import float_chain, quantized_chain
from fake_tensorrt import Behaviour, fake
from fake_trtexec import install
from record_tensorrt_names import bindings, flags, interface
from tensorrt_tables import RECORDED, VERSIONS, arguments_of, names_of, recorded, trtexec_flags

PREFER = "PREFER_PRECISION_CONSTRAINTS"


# -------------------------------------------------------------------------------------------------------- the interface


@pytest.mark.parametrize("version", VERSIONS)
def test_the_fakes_methods_take_the_recorded_arguments(version: str) -> None:
    module, checked = fake(version, Behaviour()), 0
    for kind, names in names_of(version).items():
        made = getattr(module, kind, None)
        if made is None:
            continue
        for name in names:
            method = inspect.getattr_static(made, name, None)
            overloads = arguments_of(version, kind, name)
            if not inspect.isfunction(method) or not any(overloads):
                continue
            parameters = list(inspect.signature(method).parameters.values())[1:]
            found = [each.name + ("=" if each.default is not each.empty else "") for each in parameters]
            assert found in overloads, f"{kind}.{name}"
            checked += 1
    assert checked > 10


def test_the_recorded_facts_that_the_agent_relies_on() -> None:
    def since(kind: str, name: str) -> list[str]:
        return [version for version in RECORDED if name in names_of(version).get(kind, ())]

    everywhere, before_10, before_11 = list(RECORDED), list(RECORDED)[:4], list(RECORDED)[:-1]
    assert since("BuilderFlag", PREFER) == before_11
    assert since("BuilderFlag", "STRICT_TYPES") == before_10
    assert since("OnnxParser", "parse_from_file") == everywhere
    assert since("IBuilderConfig", "max_workspace_size") == before_10
    assert since("IBuilderConfig", "set_memory_pool_limit") == everywhere[1:]
    assert since("IBuilderConfig", "builder_optimization_level") == everywhere[3:]
    assert since("ICudaEngine", "get_tensor_name") == everywhere[2:]
    assert since("IExecutionContext", "execute_async_v2") == before_10
    assert since("IExecutionContext", "execute_async_v3") == everywhere[2:]
    assert since("ICudaEngine", "device_memory_size_v2") == everywhere[4:]
    assert since("ILayer", "precision") == since("ITensor", "set_dynamic_range") == before_11
    assert since("IInt8EntropyCalibrator2", "get_batch") == before_11
    assert since("IBuilderConfig", "can_run_on_DLA") == since("Builder", "num_DLA_cores") == everywhere
    assert since("DataType", "FP8") == everywhere[3:]
    assert since("DataType", "FP4") == everywhere[5:]


def test_the_flags_of_trtexec_are_those_of_its_version() -> None:
    assert {"--workspace", "--buildOnly"} <= trtexec_flags("8.5.2") - trtexec_flags("10.3.0")
    assert {"--int8", "--fp16", "--calib", "--layerPrecisions"} <= trtexec_flags("8.5.2") & trtexec_flags("10.16.0")
    assert not {"--skipInference", "--builderOptimizationLevel"} & trtexec_flags("8.5.2")
    assert not {"--int8", "--fp16", "--calib", "--layerPrecisions"} & trtexec_flags("11.4.1")
    assert "--memPoolSize" not in trtexec_flags("8.2.1")


def test_a_version_has_what_the_newest_recorded_one_before_it_has() -> None:
    assert recorded("8.5.2.2") is RECORDED["8.5.2"]
    assert recorded("8.6.2") is RECORDED["8.6.1"]
    assert recorded("11.4.1") is RECORDED["11.1"]


def test_names_are_read_from_the_sources_of_bindings() -> None:
    source = """
    // py::class_<Comment>(m, "Comment").def("no", 1);
    py::class_<IBase> base{m, "IProfiler", Doc::descr};
    base.def(py::init<>()).def("size", &IBase::size, "a_b"_a, Doc::text(")"), "c"_a = nullptr);
    py::enum_<IBase::Kind>(base, "Severity").value("LOW", kLOW).export_values();
    py::class_<IDerived, IBase, std::unique_ptr<IDerived, py::nodelete>>(m, "Runtime")
        .def_property("level", get, set)
        .def_property_readonly("count", [](IDerived& self) { return f(self, "x"); })
        .def("__len__", len)
    #if ENABLE_INETWORK_SERIALIZE
        .def("hidden", hidden)
    #endif
        .def("size", lambda)
        .def("size", other, "name"_a);
    py::enum_<Mode>(m, "DeviceType", py::arithmetic{}).value("GPU", kGPU, Doc::gpu);
    """
    assert {each.name for each in bindings(source)} >= {"IProfiler", "Runtime", "DeviceType"}
    assert interface([source]) == {
        "DeviceType": ["GPU"],
        "IProfiler": ["LOW", "Severity", "__init__()", "size(a_b, c=)"],
        "Runtime": ["LOW", "Severity", "__init__()", "count", "level=", "size(...)", "size(name)"],
    }


def test_flags_are_read_from_the_source_of_the_program() -> None:
    source = """
void BuildOptions::parse(Arguments& arguments)
{
    getAndDelOption(arguments, "--saveEngine", engine); // not "--comment"
    log << "--saveEngine was set" << "  --help text";
}
void SafeBuilderOptions::parse(Arguments& arguments)
{
    getAndDelOption(arguments, "--std", standard);
}
"""
    assert flags(source) == ["--saveEngine"]


# ------------------------------------------------------------------------------------------------- through the bindings


class Kept:
    """A logger of a module that keeps severities and messages."""

    def __init__(self, module: Any) -> None:
        kept: list[tuple[Any, str]] = []
        self.kept = kept

        class KeepingLogger(module.ILogger):  # type: ignore[misc]
            def __init__(self) -> None:
                module.ILogger.__init__(self)

            def log(self, severity: Any, msg: str) -> None:
                kept.append((severity, msg))

        self.logger = KeepingLogger()


def test_the_logger_gets_severities_as_the_bindings_have_them() -> None:
    module = fake("8.5.2.2", Behaviour())
    kept = Kept(module)
    builder = module.Builder(kept.logger)
    network = builder.create_network(1)
    config = builder.create_builder_config()
    for name in ("FP16", "INT8"):
        config.set_flag(getattr(module.BuilderFlag, name))
    assert module.OnnxParser(network, kept.logger).parse(quantized_chain("a").SerializeToString())
    assert builder.build_serialized_network(network, config) is not None
    found = {severity for severity, _ in kept.kept}
    assert found == {module.ILogger.WARNING, module.ILogger.INFO, module.ILogger.Severity.VERBOSE}
    assert module.ILogger.ERROR < module.ILogger.WARNING < module.ILogger.INFO
    assert [name for name, _ in module.behaviour.messages] == [severity.name for severity, _ in kept.kept]


def test_ranges_and_precisions_are_set_through_the_bindings() -> None:
    module = fake("8.2.1", Behaviour())
    builder = module.Builder(Kept(module).logger)
    network, config = builder.create_network(1), builder.create_builder_config()
    assert module.OnnxParser(network, Kept(module).logger).parse(float_chain().SerializeToString())
    tensors = [network.get_input(0)]
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        tensors += [layer.get_output(each) for each in range(layer.num_outputs)]
    for each in tensors:
        assert each.set_dynamic_range(-12.7, 12.7)
    network.get_layer(0).precision = module.DataType.HALF
    for name in ("FP16", "INT8", PREFER):
        config.set_flag(getattr(module.BuilderFlag, name))
    assert builder.build_serialized_network(network, config) is not None
    (record,) = module.behaviour.built
    assert (record["precisions"]["a"], record["precisions"]["b"]) == ("FP16", "INT8")
    assert record["missing"] == []


def test_two_constraints_exclude_each_other() -> None:
    module = fake("8.5.2.2", Behaviour())
    kept = Kept(module)
    config = module.Builder(kept.logger).create_builder_config()
    config.set_flag(module.BuilderFlag.OBEY_PRECISION_CONSTRAINTS)
    config.set_flag(getattr(module.BuilderFlag, PREFER))
    assert not config.get_flag(getattr(module.BuilderFlag, PREFER))
    assert kept.kept[-1][0] == module.ILogger.ERROR


def test_a_class_that_is_overridden_wants_its_constructor_called() -> None:
    module = fake("8.5.2.2", Behaviour())

    class Careless(module.IInt8EntropyCalibrator2):  # type: ignore[misc]
        def __init__(self) -> None:
            pass

    with pytest.raises(TypeError, match=r"IInt8EntropyCalibrator2\.__init__\(\) must be called"):
        Careless()


def test_what_is_read_only_cannot_be_set() -> None:
    module = fake("8.5.2.2", Behaviour(dla_cores=2))
    builder = module.Builder(Kept(module).logger)
    with pytest.raises(AttributeError, match="can't set attribute num_DLA_cores"):
        builder.num_DLA_cores = 3
    assert builder.num_DLA_cores == 2


def test_every_class_of_the_fake_is_recorded() -> None:
    for name in (*fake_tensorrt._CLASSES, *fake_tensorrt._OVERRIDDEN, *fake_tensorrt._ENUMERATIONS):
        assert any(name in table for table in RECORDED.values()), name


# ---------------------------------------------------------------------------------------------------------- the program


@pytest.mark.parametrize(("number", "taken"), [(8201, False), (8502, False), (8602, False), (100300, True)])
def test_trtexec_refuses_weights_in_int8_before_10(tmp_path: Path, number: int, taken: bool) -> None:
    done = trtexec(tmp_path, number, quantized_chain("a", constants=True))
    assert (done.returncode == 0) is taken
    if not taken:
        assert "[E] Error[3]: a.weight/int8: invalid weights type of Int8" in done.stderr
        assert "[E] Failed to parse onnx file" in done.stderr
        assert f"&&&& FAILED TensorRT.trtexec [TensorRT v{number}]" in done.stderr


def test_trtexec_says_which_layer_has_no_int8_implementation(tmp_path: Path) -> None:
    options = {"without_int8_kernel": ["b"], "fused_names": True}
    done = trtexec(tmp_path, 8502, quantized_chain("a", "b"), **options)
    assert done.returncode == 1
    fused = "b.weight + b.weight/Q + b + PWN(PWN(b/Sigmoid), b/Mul)"
    assert f"Internal Error (Could not find any implementation for node {fused}.)" in done.stderr
    assert "[E] Error[10]: [optimizer.cpp::computeCosts" in done.stderr


@pytest.mark.parametrize(("number", "flag"), [(8502, "--skipInference"), (100300, "--buildOnly"), (110401, "--int8")])
def test_trtexec_refuses_flags_of_other_versions(tmp_path: Path, number: int, flag: str) -> None:
    path = install(tmp_path / "bin", number)
    done = subprocess.run([path, flag], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"[E] Unknown option: {flag}" in done.stderr


def trtexec(folder: Path, number: int, graph: onnx.ModelProto, **options: Any) -> subprocess.CompletedProcess[str]:
    """Build an engine with the program of a version."""
    onnx.save(graph, folder / "graph.onnx")
    flags = ["--onnx=graph.onnx", "--saveEngine=engine", "--fp16", "--int8"]
    path = install(folder / "bin", number, **options)
    return subprocess.run([path, *flags], capture_output=True, text=True, check=False, cwd=folder)

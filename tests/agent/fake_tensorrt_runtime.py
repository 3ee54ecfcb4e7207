"""The runtime part of the fake bindings: engines, contexts and the inspector.

An engine runs the graph that it was built from with ONNX Runtime. Its plan has the layers and their times.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnxruntime
from fake_cuda import FakeCuda
from fake_tensorrt_builder import EngineLayer, total_ms
from fake_tensorrt_inspector import inspected

PLAN = b"fake TensorRT plan\n"
"""Prefix of a serialized engine. A JSON record and the graph follow."""

_KINDS: dict[str, tuple[str, Any]] = {
    "tensor(float)": ("FLOAT", np.float32),
    "tensor(float16)": ("HALF", np.float16),
    "tensor(int64)": ("INT64", np.int64),
    "tensor(uint8)": ("UINT8", np.uint8),
}
"""Names in DataType and NumPy's types, by ONNX Runtime's type names."""


def logged(trt: Any, logger: Any) -> Callable[[str, str], None]:
    """Return a function that passes messages to a logger and records them for the test."""

    def log(severity: str, message: str) -> None:
        trt.behaviour.messages.append((severity, message))
        logger.log(getattr(trt.ILogger, severity), message)

    return log


class Runtime:
    def __init__(self, logger: Any) -> None:
        assert isinstance(logger, self.trt.ILogger)
        self._log = logged(self.trt, logger)
        self.DLA_core = -1

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> Any:
        if not serialized_engine.startswith(PLAN):
            self._log("ERROR", "magicTag does not match")
            return None
        header, _, graph = serialized_engine[len(PLAN) :].partition(b"\n")
        record = json.loads(header)
        if record["version"] != self.trt.__version__ or record["dla"] not in (None, self.DLA_core):
            self._log("ERROR", f"the plan is of {record['version']}, DLA core {record['dla']}")
            return None
        engine = self.trt.ICudaEngine()
        engine._record, engine._onnx = record, graph
        engine._layers = tuple(EngineLayer(**each) for each in record["engine"])
        engine._native = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
        sides = (("Input", engine._native.get_inputs()), ("Output", engine._native.get_outputs()))
        engine._ports = [(each, side) for side, ports in sides for each in ports]
        return engine


class ICudaEngine:
    device_memory_size = device_memory_size_v2 = 123456

    @property
    def num_bindings(self) -> int:
        return len(self._ports)

    num_io_tensors = num_bindings

    def get_binding_name(self, index: int) -> str:
        return str(self._ports[index][0].name)

    get_tensor_name = get_binding_name

    def binding_is_input(self, index: int) -> bool:
        return bool(self._ports[index][1] == "Input")

    def get_binding_index(self, name: str) -> int:
        return [port.name for port, _ in self._ports].index(name)

    def get_binding_shape(self, index: int) -> tuple[int, ...]:
        return self._shape(self._ports[index][0])

    def get_profile_shape(self, profile_index: int, binding: str) -> list[tuple[int, ...]]:
        assert profile_index == 0
        first, *rest = self.get_tensor_shape(binding)
        assert first == -1, "only a dynamic input has a profile"
        return [(count, *rest) for count in (1, self._record["batch"], self._record["batch"])]

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[tuple[int, ...]]:
        return ICudaEngine.get_profile_shape(self, profile_index, name)

    def _shape(self, port: Any) -> tuple[int, ...]:
        """Return a shape as TensorRT reports it: the batch axis of an engine with dynamic batch is -1."""
        first, *rest = port.shape
        dynamic = self._record["batch"] and isinstance(first, str)
        return (-1 if dynamic else first if isinstance(first, int) else 1, *rest)

    def get_binding_dtype(self, index: int) -> Any:
        return self._dtype(self._ports[index])

    def get_tensor_mode(self, name: str) -> Any:
        return self.trt.TensorIOMode.INPUT if self._port(name)[1] == "Input" else self.trt.TensorIOMode.OUTPUT

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self._shape(self._port(name)[0])

    def get_tensor_dtype(self, name: str) -> Any:
        return self._dtype(self._port(name))

    def create_execution_context(self) -> Any:
        context = self.trt.IExecutionContext()
        context._engine, context._addresses, context.profiler, context._batch = self, {}, None, None
        return context

    def create_engine_inspector(self) -> Any:
        inspector = self.trt.EngineInspector()
        inspector._engine = self
        return inspector

    def _dtype(self, port: Any) -> Any:
        return getattr(self.trt.DataType, _KINDS[port[0].type][0])

    def _port(self, name: str) -> Any:
        return next(port for port in self._ports if port[0].name == name)


class IExecutionContext:
    def execute_async_v2(self, bindings: list[int], stream_handle: int, input_consumed: Any = None) -> bool:
        assert all(type(address) is int for address in bindings)
        names = [port.name for port, _ in self._engine._ports]
        return self._enqueue(dict(zip(names, bindings, strict=True)), stream_handle)

    def set_binding_shape(self, binding: int, shape: tuple[int, ...]) -> bool:
        return self._set_shape(self._engine._ports[binding][0], shape)

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        return self._set_shape(self._engine._port(name)[0], shape)

    def _set_shape(self, port: Any, shape: tuple[int, ...]) -> bool:
        first, *rest = self._engine._shape(port)
        assert first == -1
        assert shape[1:] == tuple(rest)
        self._batch = shape[0]
        return bool(1 <= shape[0] <= self._engine._record["batch"])

    def set_tensor_address(self, name: str, memory: int) -> bool:
        assert type(memory) is int
        self._engine._port(name)
        self._addresses[name] = memory
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        return self._enqueue(self._addresses, stream_handle)

    def _enqueue(self, addresses: Mapping[str, int], stream: int) -> bool:
        gpu = FakeCuda.streams[stream]
        (given, _), *taken = self._engine._ports
        source, goals = gpu.memory[addresses[given.name]], [gpu.memory[addresses[port.name]] for port, _ in taken]

        def work() -> None:
            shape = self._engine._shape(given)
            if shape[0] == -1:
                assert self._batch, "the shape of the input is not set"
                shape = (self._batch, *shape[1:])
            values = source.view(_KINDS[given.type][1])
            outputs = self._engine._native.run(None, {given.name: values[: math.prod(shape)].reshape(shape)})
            for (port, _), output, goal in zip(taken, outputs, goals, strict=True):
                found = (output + self._bend(port.name)).astype(np.float32).reshape(-1).view(np.uint8)
                np.copyto(goal[: len(found)], found)

        gpu.queue.append(work)
        self.trt.behaviour.elapsed_ms += total_ms(self._engine._layers)
        for layer in self._engine._layers if self.profiler else ():
            self.profiler.report_layer_time(layer.name, layer.ms)
        return True

    def _bend(self, name: str) -> float:
        behaviour = self.trt.behaviour
        breaks = name == behaviour.breaks and "INT8" in self._engine._record["flags"]
        return 100.0 if breaks else float(behaviour.bends)


class EngineInspector:
    def get_engine_information(self, format: Any) -> str:  # noqa: A002 the bindings' name
        assert format.name == "JSON"
        assert self._engine._record["verbosity"] == "DETAILED", "else it would say names alone"
        assert self.execution_context._engine is self._engine
        return inspected(self._engine._layers, self.trt.__version__)

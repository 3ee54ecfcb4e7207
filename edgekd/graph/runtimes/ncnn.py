"""ncnn on the CPU: the runtime of phones and small ARM boards. Opens what `edgekd convert --to ncnn` writes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekd.core.cores import usable_cores
from edgekd.core.errors import DeviceError
from edgekd.graph.runtimes.types import Availability, HostRuntime, Session, require, require_file, require_single

if TYPE_CHECKING:
    import numpy as np

PARAM, BIN = ".param", ".bin"
"""Suffixes of a network and of its weights, which are in the same folder."""


class Ncnn(HostRuntime):
    """ncnn's CPU kernels. Layers that are not INT8 compute in float32, whatever type their weights are stored in."""

    def _available_once_imported(self) -> Availability:
        return Availability(True, f"ncnn {self.version()}, CPU")

    def load(self, graph: Path, *, threads: int | None = None) -> NcnnSession:
        """Open a network, `.param` with `.bin` beside it. Raises DeviceError."""
        require(self)
        if graph.suffix != PARAM:
            raise DeviceError(
                f"ncnn does not run {graph.name}",
                expected="a network of its own, .param",
                fix=f"make it with: edgekd convert {graph.name} --to ncnn",
            )
        for each in (graph, graph.with_suffix(BIN)):
            require_file(each)
        return NcnnSession(_net(graph, threads or usable_cores()), graph)


NCNN_CPU = Ncnn("ncnn-cpu", "ncnn", ("ncnn",), "pip install ncnn")


class NcnnSession(Session):
    """A network loaded by ncnn."""

    title = "ncnn"

    def __init__(self, native: Any, graph: Path) -> None:
        inputs, self.outputs = tuple(native.input_names()), tuple(native.output_names())
        require_single(graph, inputs, self.outputs)
        self._input = inputs[0]
        self._native = native

    def _infer(self, batch: np.ndarray) -> np.ndarray:
        import ncnn
        import numpy as np

        if batch.ndim != 4 or len(batch) != 1 or batch.dtype != np.float32:
            raise ValueError("expected one frame in float32")
        frame = np.ascontiguousarray(batch[0])  # ncnn reads its memory while the network runs
        extractor = self._native.create_extractor()
        extractor.input(self._input, ncnn.Mat(frame))
        problem, output = extractor.extract(self.outputs[0])
        if problem:
            raise RuntimeError(f"code {problem}")
        copied: np.ndarray = np.array(output)[None]
        return copied

    def close(self) -> None:
        super().close()
        self._native = None


def _net(graph: Path, threads: int) -> Any:
    """Return ncnn's network. Raises DeviceError."""
    import ncnn

    net = ncnn.Net()
    net.opt.num_threads = threads
    net.opt.use_vulkan_compute = False
    # By default ncnn computes in float16 on CPUs that support it; here the file defines the precision.
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
    net.opt.use_bf16_storage = False
    if net.load_param(str(graph)) or net.load_model(str(graph.with_suffix(BIN))):
        raise DeviceError(
            f"ncnn cannot load {graph}", fix="check that it and its .bin are complete, and convert it again"
        )
    return net


def unknown_layers(kinds: set[str]) -> list[str]:
    """Return the kinds of layers that the installed ncnn does not have, sorted."""
    import ncnn

    return sorted(kind for kind in kinds if ncnn.layer_to_index(kind) < 0)

"""ncnn on the CPU: the runtime of phones and small ARM boards. Opens what `edgekd convert --to ncnn` writes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekd.core.cores import usable_cores
from edgekd.core.errors import DeviceError
from edgekd.graph.runtimes.types import (
    Availability,
    ClosedByWith,
    LoadedApart,
    closed,
    import_problem,
    library_version,
    one_of_each,
    readable,
    require,
)

if TYPE_CHECKING:
    import numpy as np

PARAM, BIN = ".param", ".bin"
"""The suffixes of a network and of its weights, which lie beside each other."""


@dataclass(frozen=True)
class Ncnn(LoadedApart):
    """ncnn's CPU kernels. What is not INT8 computes in float32, however its weights are stored."""

    name: str = "ncnn-cpu"

    def version(self) -> str | None:
        """The version of the installed package."""
        return library_version("ncnn")

    def available(self) -> Availability:
        """Usable when ncnn imports."""
        problem = import_problem("ncnn")
        if problem:
            return Availability(False, problem, "pip install ncnn")
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
            readable(each)
        return NcnnSession(_net(graph, threads or usable_cores()), graph)


NCNN_CPU = Ncnn()


class NcnnSession(ClosedByWith):
    """A network loaded by ncnn."""

    def __init__(self, native: Any, graph: Path) -> None:
        inputs, outputs = tuple(native.input_names()), tuple(native.output_names())
        one_of_each(graph, inputs, outputs)
        self.outputs = outputs
        self._input = inputs[0]
        self._native = native

    def run(self, batch: np.ndarray) -> np.ndarray:
        """The output for `batch` float32 [1, 3, h, w]. Raises DeviceError."""
        import ncnn
        import numpy as np

        if self._native is None:
            raise closed("ncnn")
        if batch.ndim != 4 or len(batch) != 1 or batch.dtype != np.float32:
            raise DeviceError(f"ncnn cannot run the network on {batch.dtype} {batch.shape}", expected="one frame")
        frame = np.ascontiguousarray(batch[0])  # ncnn reads its memory while the network runs
        extractor = self._native.create_extractor()
        extractor.input(self._input, ncnn.Mat(frame))
        problem, output = extractor.extract(self.outputs[0])
        if problem:
            raise DeviceError(f"ncnn cannot run the network on {batch.dtype} {batch.shape}", found=f"code {problem}")
        copied: np.ndarray = np.array(output)[None]
        return copied

    def close(self) -> None:
        """Free the network."""
        self._native = None


def _net(graph: Path, threads: int) -> Any:
    """ncnn's network. Raises DeviceError."""
    import ncnn

    net = ncnn.Net()
    net.opt.num_threads = threads
    net.opt.use_vulkan_compute = False
    # Where the CPU can, ncnn would compute in float16: the file says what is meant.
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
    net.opt.use_bf16_storage = False
    if net.load_param(str(graph)) or net.load_model(str(graph.with_suffix(BIN))):
        raise DeviceError(
            f"ncnn cannot load {graph}", fix="check that it and its .bin are complete, and convert it again"
        )
    return net


def unknown_layers(kinds: set[str]) -> list[str]:
    """Those kinds of layers that the installed ncnn does not have."""
    import ncnn

    return sorted(kind for kind in kinds if ncnn.layer_to_index(kind) < 0)

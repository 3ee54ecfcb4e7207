"""TensorRT through its Python bindings, of which JetPack has those for its own version.

`tensorrt_generations` has what differs between its versions. The engine has the graph's own shapes; of a
network that takes several frames at once it is for 1 up to the number in the manifest.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from edgekd.agent.runtimes import cuda, networks
from edgekd.agent.runtimes.precision import inspected_layers
from edgekd.agent.runtimes.tensorrt_builder import Builder, library
from edgekd.agent.runtimes.tensorrt_generations import generation
from edgekd.agent.runtimes.tensorrt_session import TensorRtSession
from edgekd.agent.runtimes.types import (
    FLOAT,
    BuildOptions,
    EngineDescription,
    Inspection,
    Layer,
    Runtime,
    TensorRtDetails,
)
from edgekd.core.errors import DeviceError

if TYPE_CHECKING:
    import numpy as np

    from edgekd.agent.runtimes.types import EngineSession, FrameSession, Outputs
    from edgekd.agent.state.slots import Slot
    from edgekd.core.detection.types import Preprocess


class TensorRt(Runtime):
    """TensorRT on the GPU."""

    name = "tensorrt"
    core: int | None = None
    """DLA core that engines run on; None for the GPU."""

    def version(self) -> str:
        try:
            return metadata.version("tensorrt")
        except metadata.PackageNotFoundError:
            return str(library().__version__)

    def problem(self) -> str | None:
        spec = find_spec("tensorrt")
        if spec is None or spec.origin is None:  # type stubs alone make a package without an origin
            return "tensorrt is not installed for this Python"
        try:
            generation(self.version())
        except DeviceError as error:
            return str(error)
        return cuda.problem()

    def build(self, slot: Slot, engine: Path, options: BuildOptions) -> EngineDescription:
        builder = Builder(generation(self.version()), options)
        with networks.scratch_folder(engine) as folder:
            result, details = self._configure(builder, slot, options, folder)
            builder.write(engine)
        return replace(result, details=replace(details, log=builder.log.lines))

    def load(self, engine: Path) -> TensorRtSession:
        return TensorRtSession(engine, generation(self.version()), self.core)

    def frame_session(self, session: EngineSession, preprocess: Preprocess) -> FrameSession | None:
        assert isinstance(session, TensorRtSession)
        return session if session.letterbox_on_gpu(preprocess) else None

    def layers(self, engine: Path) -> Sequence[Layer] | None:
        return inspected_layers(self.inspect(engine), engine, "TensorRT")

    def inspect(self, engine: Path) -> Inspection:
        with closing(self.load(engine)) as session:
            return Inspection(session.inspected(), session.profiled())

    def outputs(self, onnx: bytes, quantized: bool, batches: Sequence[np.ndarray]) -> list[Outputs] | None:
        row = generation(self.version())
        builder = Builder(row, BuildOptions())
        with TemporaryDirectory(prefix="edgekd-") as name:
            folder = Path(name)
            graph = networks.inner_network(onnx, folder, int8_constants=row.int8_constants)
            builder.parse(graph, "the network with its inner tensors")
            builder.take_batches(1)
            builder.allow(quantized)
            builder.write(folder / "engine")
            with closing(TensorRtSession(folder / "engine", row, several=True)) as session:
                return [session.outputs(batch) for batch in batches]

    def _configure(
        self, builder: Builder, slot: Slot, options: BuildOptions, folder: Path
    ) -> tuple[EngineDescription, TensorRtDetails]:
        """Pass the network and the settings to the builder; return a description. folder: for temporary files."""
        network = networks.network(slot, options, folder, int8_constants=builder.generation.int8_constants)
        builder.parse(network.path, slot.graph.name)
        builder.take_batches(slot.manifest.detector.get("batch", 1) if self.batches else 1)
        flags = builder.allow(network.quantized)
        builder.hold({name for names in networks.float32_layers(slot.graph).values() for name in names}, "FLOAT")
        precision = "graph" if options.source != FLOAT else "fp16" if flags else network.float_type
        return EngineDescription(precision, flags), builder.settings()

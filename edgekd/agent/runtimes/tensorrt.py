"""TensorRT through its Python bindings, of which JetPack has those for its own version.

What differs between its generations is in `tensorrt_generations`. The engine is for batch 1 and the graph's own shapes.
What a method needs is imported there: most commands of the agent build and run nothing, and are to start quickly.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from edgekd.agent.runtimes.types import FLOAT, Inspection, Layer, Made, Wish
from edgekd.core.errors import DeviceError

if TYPE_CHECKING:
    import numpy as np

    from edgekd.agent.runtimes.tensorrt_builder import Builder
    from edgekd.agent.runtimes.tensorrt_session import TensorRtSession
    from edgekd.agent.runtimes.types import Outputs
    from edgekd.agent.slots import Slot


class TensorRt:
    """TensorRT on the GPU."""

    name = "tensorrt"

    def version(self) -> str:
        """The version of the installed package, which need not be imported for it."""
        from importlib import metadata

        try:
            return metadata.version("tensorrt")
        except metadata.PackageNotFoundError:
            from edgekd.agent.runtimes.tensorrt_builder import library

            return str(library().__version__)

    def problem(self) -> str | None:
        """Usable where its bindings are installed, are new enough, and the GPU's memory can be reached."""
        spec = find_spec("tensorrt")
        if spec is None or spec.origin is None:  # type stubs alone make a package without an origin
            return "tensorrt is not installed for this Python"
        from edgekd.agent.runtimes import cuda
        from edgekd.agent.runtimes.tensorrt_generations import generation

        try:
            generation(self.version())
        except DeviceError as error:
            return str(error)
        return cuda.problem()

    def build(self, slot: Slot, engine: Path, wish: Wish) -> Made:
        """Write the engine, and nothing else, to `engine`. Raises DeviceError."""
        from edgekd.agent.runtimes import networks
        from edgekd.agent.runtimes.tensorrt_builder import Builder
        from edgekd.agent.runtimes.tensorrt_generations import generation

        builder = Builder(generation(self.version()), wish)
        with networks.scratch_folder(engine) as folder:
            made = self._described(builder, slot, wish, folder)
            builder.write(engine)
        return replace(made, more={**made.more, "log": builder.log.lines})

    def load(self, engine: Path) -> TensorRtSession:
        """Open an engine that was built here. Raises DeviceError."""
        from edgekd.agent.runtimes.tensorrt_generations import generation
        from edgekd.agent.runtimes.tensorrt_session import TensorRtSession

        return TensorRtSession(engine, generation(self.version()), self._core())

    def layers(self, engine: Path) -> Sequence[Layer] | None:
        """What the engine inspector and a few profiled runs say. Raises DeviceError."""
        from edgekd.agent.runtimes.precision import layers_of

        raw = self.inspect(engine)
        try:
            return layers_of(raw.layers, raw.times_ms)
        except ValueError as error:
            raise DeviceError(f"{engine}: TensorRT does not say what is in it", found=str(error)) from error

    def inspect(self, engine: Path) -> Inspection:
        """Return the engine inspector's JSON and the profile of a few runs. Raises DeviceError."""
        with closing(self.load(engine)) as session:
            return Inspection(session.inspected(), session.profiled())

    def times(self, engine: Path, iterations: int, seconds: float) -> Sequence[float] | None:
        """Its sessions are timed."""
        return None

    def outputs(self, onnx: bytes, quantized: bool, batches: Sequence[np.ndarray]) -> list[Outputs] | None:
        """What an engine with these outputs gives: another one, in which less is fused. Raises DeviceError."""
        import tempfile

        from edgekd.agent.runtimes import networks
        from edgekd.agent.runtimes.tensorrt_builder import Builder
        from edgekd.agent.runtimes.tensorrt_generations import generation
        from edgekd.agent.runtimes.tensorrt_session import TensorRtSession

        chosen = generation(self.version())
        builder = Builder(chosen, Wish())
        with tempfile.TemporaryDirectory(prefix="edgekd-") as name:
            folder = Path(name)
            graph = networks.inner_network(onnx, folder, int8_constants=chosen.int8_constants)
            builder.parse(graph, "the network with its inner tensors")
            builder.allow(quantized)
            builder.write(folder / "engine")
            with closing(TensorRtSession(folder / "engine", chosen, several=True)) as session:
                return [session.outputs(batch) for batch in batches]

    def clock(self) -> float:
        """This machine's monotonic high-resolution clock."""
        return time.perf_counter()

    def _core(self) -> int | None:
        """The DLA core that the engine runs on; None for the GPU."""
        return None

    def _described(self, builder: Builder, slot: Slot, wish: Wish, folder: Path) -> Made:
        """Give the builder the network and its settings, and return what they were. folder: for temporary files."""
        from edgekd.agent.runtimes import networks

        network = networks.network(slot, wish, folder, int8_constants=builder.generation.int8_constants)
        builder.parse(network.path, slot.graph.name)
        flags = builder.allow(network.quantized)
        precision = "graph" if wish.source != FLOAT else "fp16" if flags else network.float_type
        return Made(precision, flags, more=builder.told())

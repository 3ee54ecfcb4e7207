"""TensorRT on a DLA core of a Xavier or an Orin, with the GPU for layers that the core does not take.

Up to TensorRT 10 the DLA takes no Q/DQ: it gets the network in float, the scales as a calibration cache, and the names
of layers that stay float. From 11.4.1 on it takes the graph itself, on AGX Orin alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekd.agent.runtimes import networks
from edgekd.agent.runtimes.networks import CalibratedNetwork
from edgekd.agent.runtimes.tensorrt import TensorRt
from edgekd.agent.runtimes.tensorrt_builder import Builder
from edgekd.agent.runtimes.types import (
    FLOAT,
    BuildOptions,
    DlaDetails,
    EngineDescription,
    TensorRtDetails,
    UnsuitedError,
)
from edgekd.core.formats.calibration_cache import to_text

if TYPE_CHECKING:
    import numpy as np

    from edgekd.agent.runtimes.types import Outputs
    from edgekd.agent.state.slots import Slot


class TensorRtDla(TensorRt):
    """TensorRT on one DLA core, which takes no dynamic shapes."""

    batches = False

    def __init__(self, core: int) -> None:
        self.core = core
        self.name = f"tensorrt-dla{core}"

    def outputs(self, onnx: bytes, quantized: bool, batches: Sequence[np.ndarray]) -> list[Outputs] | None:
        """Return None: a core computes whole parts of a network, and does not output their inner tensors."""
        return None

    def _configure(
        self, builder: Builder, slot: Slot, options: BuildOptions, folder: Path
    ) -> tuple[EngineDescription, TensorRtDetails]:
        """Configure a build for the core. Raises UnsuitedError where the device or its TensorRT has no such core."""
        cores, core = int(builder.builder.num_DLA_cores), int(self.core or 0)
        if core >= cores:
            raise UnsuitedError(
                f"no DLA core {core} here",
                expected="a Xavier, an Orin NX or AGX Orin, with a TensorRT that has its DLA",
                found=f"{cores} cores with TensorRT {self.version()}",
                fix="use --runtime tensorrt",
            )
        with builder.wrapped(f"choose DLA core {core}"):
            builder.config.default_device_type = builder.trt.DeviceType.DLA
            builder.config.DLA_core = core
            builder.config.set_flag(builder.trt.BuilderFlag.GPU_FALLBACK)
        if builder.generation.strongly_typed or options.source == FLOAT or not networks.quantized(slot.graph):
            result, details = super()._configure(builder, slot, options, folder)
        else:
            network = networks.calibrated_network(slot, options, folder)
            builder.parse(network.path, slot.graph.name)
            builder.take_batches(1)
            result, settings = EngineDescription("graph", builder.allow(True)), builder.settings()
            details = DlaDetails(
                settings.workspace_bytes,
                settings.optimization_level,
                settings.timing_cache,
                held_in_float=self._quantize(builder, network),
                missing_scales=network.missing_scales,
            )
        return replace(result, fallbacks=self._fallbacks(builder)), details

    def _quantize(self, builder: Builder, network: CalibratedNetwork) -> list[str]:
        """Pass the scales, and hold the float layers of the graph in float; return the names of those."""
        trt, config = builder.trt, builder.config
        with builder.wrapped("quantize for the DLA"):
            # Kept by the builder's wrapper, because TensorRT does not keep it alive.
            builder.calibrator = _calibrator(trt, to_text(network.scales, self.version()).encode("utf-8"))
            config.int8_calibrator = builder.calibrator
        return builder.hold(set(network.float_outputs), "HALF")

    def _fallbacks(self, builder: Builder) -> list[str]:
        """Return the layers that the core does not take, and that run on the GPU."""
        with builder.wrapped("check the layers for the DLA"):
            return [layer.name for layer in _layers(builder) if not builder.config.can_run_on_DLA(layer)]


def _layers(builder: Builder) -> list[Any]:
    return [builder.network.get_layer(index) for index in range(builder.network.num_layers)]


def _calibrator(trt: Any, cache: bytes) -> Any:
    """Return a calibrator with a finished cache. The class is made here, because its base is in the library."""

    class CacheCalibrator(trt.IInt8EntropyCalibrator2):  # type: ignore[misc,unused-ignore]
        def __init__(self) -> None:
            trt.IInt8EntropyCalibrator2.__init__(self)

        def get_batch_size(self) -> int:
            return 1

        def get_batch(self, names: list[str]) -> None:
            return None

        def read_calibration_cache(self) -> bytes:
            return cache

        def write_calibration_cache(self, cache: bytes) -> None:
            return None

    return CacheCalibrator()

"""TensorRT on a DLA core of a Xavier or an Orin, with the GPU for what the core does not take.

Up to TensorRT 10 the DLA takes no Q/DQ: it gets the network in float, the scales as a calibration cache, and the layers
that are not to be quantized by name. From 11.4.1 on it takes the graph itself, on AGX Orin alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekd.agent.runtimes.tensorrt import TensorRt
from edgekd.agent.runtimes.types import FLOAT, Made, UnsuitedError, Wish

if TYPE_CHECKING:
    import numpy as np

    from edgekd.agent.runtimes.networks import CalibratedNetwork
    from edgekd.agent.runtimes.tensorrt_builder import Builder
    from edgekd.agent.runtimes.types import Outputs
    from edgekd.agent.slots import Slot


class TensorRtDla(TensorRt):
    """TensorRT on one DLA core."""

    def __init__(self, core: int) -> None:
        self.core = core
        self.name = f"tensorrt-dla{core}"

    def outputs(self, onnx: bytes, quantized: bool, batches: Sequence[np.ndarray]) -> list[Outputs] | None:
        """A core computes whole parts of a network, whose inner tensors it does not give."""
        return None

    def _core(self) -> int:
        return self.core

    def _described(self, builder: Builder, slot: Slot, wish: Wish, folder: Path) -> Made:
        """Raises UnsuitedError where the device or its TensorRT has no such core."""
        from edgekd.agent.runtimes import networks

        cores = int(builder.builder.num_DLA_cores)
        if self.core >= cores:
            raise UnsuitedError(
                f"no DLA core {self.core} here",
                expected="a Xavier, an Orin NX or AGX Orin, with a TensorRT that has its DLA",
                found=f"{cores} cores with TensorRT {self.version()}",
                fix="use --runtime tensorrt",
            )
        with builder.wrapped(f"choose DLA core {self.core}"):
            builder.config.default_device_type = builder.trt.DeviceType.DLA
            builder.config.DLA_core = self.core
            builder.config.set_flag(builder.trt.BuilderFlag.GPU_FALLBACK)
        if builder.generation.strongly_typed or wish.source == FLOAT or not networks.quantized(slot.graph):
            made = super()._described(builder, slot, wish, folder)
            return Made(made.precision, made.allowed, self._fallbacks(builder), made.more)
        network = networks.calibrated_network(slot, wish, folder)
        builder.parse(network.path, slot.graph.name)
        allowed = builder.allow(True)
        kept = self._quantize(builder, network)
        more = {**builder.told(), "held_in_float": kept, "missing_scales": list(network.missing_scales)}
        return Made("graph", allowed, self._fallbacks(builder), more)

    def _quantize(self, builder: Builder, network: CalibratedNetwork) -> list[str]:
        """Serve the scales, and keep the layers in float that are float in the graph; their names."""
        from edgekd.core.formats.calibration_cache import to_text

        trt, config = builder.trt, builder.config
        with builder.wrapped("quantize for the DLA"):
            # Kept by the builder's wrapper, because TensorRT does not keep it alive.
            builder.calibrator = _calibrator(trt, to_text(network.scales, self.version()).encode("utf-8"))
            config.int8_calibrator = builder.calibrator
            config.set_flag(getattr(trt.BuilderFlag, builder.generation.constraint))
            layers = [builder.network.get_layer(index) for index in range(builder.network.num_layers)]
            return [layer.name for layer in layers if _held_in_float(trt, layer, set(network.float_outputs))]

    def _fallbacks(self, builder: Builder) -> list[str]:
        """The layers that the core does not take, and that run on the GPU."""
        with builder.wrapped("ask what the DLA takes"):
            layers = [builder.network.get_layer(index) for index in range(builder.network.num_layers)]
            return [layer.name for layer in layers if not builder.config.can_run_on_DLA(layer)]


def _held_in_float(trt: Any, layer: Any, float_outputs: set[str]) -> bool:
    """Hold a layer in FP16 where it computes one of these tensors; whether it does.

    Tensors have the names of the graph; the layers of one node, such as those of a Split, have others.
    """
    tensors = [layer.get_output(index) for index in range(layer.num_outputs)]
    # The type of indices and shapes must not be set (NvInfer.h at 8.5.2, ILayer::setOutputType).
    held = [index for index, each in enumerate(tensors) if each.name in float_outputs and each.is_execution_tensor]
    if held:
        layer.precision = trt.DataType.HALF
    for index in held:
        layer.set_output_type(index, trt.DataType.HALF)
    return bool(held)


def _calibrator(trt: Any, cache: bytes) -> Any:
    """A calibrator that has its scales already. Made here, because its base class is in the library."""

    class ServingCalibrator(trt.IInt8EntropyCalibrator2):  # type: ignore[misc,unused-ignore]
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

    return ServingCalibrator()

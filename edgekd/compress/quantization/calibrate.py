"""Calibration: histograms of tensors from one pass of frames through the float graph."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import MappingProxyType
from typing import Any

import numpy as np

from edgekd.compress.quantization.ranges import MagnitudeHistogram
from edgekd.core.errors import CompressError
from edgekd.graph.session import copied, cpu_session


def observe(
    model: Any,
    tensors: Sequence[str],
    frames: Iterable[np.ndarray],
    before: Mapping[str, MagnitudeHistogram] = MappingProxyType({}),
) -> dict[str, MagnitudeHistogram]:
    """Return histograms of the magnitudes of `tensors` of a ModelProto over `frames`, each float32 [1, 3, h, w].

    before: histograms of earlier frames, which are continued. Memory: the activations of two frames, and 16 KiB per
    tensor, for any number of frames. Raises CompressError if a value is not finite.
    """
    histograms = {**{name: MagnitudeHistogram() for name in tensors}, **before}
    for values in activations(model, tensors, frames):
        for name, value in values.items():
            try:
                histograms[name].add(value)
            except ValueError as error:
                raise CompressError(
                    f"calibration: tensor {name}", expected="finite values", found=str(error)
                ) from error
    return histograms


def activations(model: Any, tensors: Sequence[str], frames: Iterable[np.ndarray]) -> Iterator[dict[str, np.ndarray]]:
    """Yield the values of tensors for each frame; the next frame runs while the caller handles this one."""
    session, input_name = _session_with_outputs(model, tensors)
    watched = [name for name in tensors if name != input_name]

    def run(frame: np.ndarray) -> dict[str, np.ndarray]:
        # For an empty list of outputs ONNX Runtime returns all outputs.
        values = dict(zip(watched, session.run(watched, {input_name: frame}), strict=True)) if watched else {}
        return {**values, input_name: frame} if input_name in tensors else values

    with ThreadPoolExecutor(1) as ahead:
        waiting: Future[dict[str, np.ndarray]] | None = None
        for frame in frames:
            running = ahead.submit(run, frame)
            if waiting is not None:
                yield waiting.result()
            waiting = running
        if waiting is not None:
            yield waiting.result()


def _session_with_outputs(model: Any, tensors: Sequence[str]) -> tuple[Any, str]:
    """Return an ONNX Runtime session with these inner tensors as further outputs, and the name of its input."""
    import onnx

    model = copied(model)
    present = {value.name for value in [*model.graph.output, *model.graph.input]}
    for name in tensors:
        if name not in present:
            model.graph.output.append(onnx.ValueInfoProto(name=name))
    # No spinning: histograms are computed while the next frame runs.
    return cpu_session(model, spinning=False), model.graph.input[0].name

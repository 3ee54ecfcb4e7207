"""One pass of calibration frames through the float graph, keeping a histogram per tensor and nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgekd.compress.ranges import MagnitudeHistogram
from edgekd.errors import CompressError


def observe(graph: Path, tensors: Sequence[str], frames: Iterable[np.ndarray]) -> dict[str, MagnitudeHistogram]:
    """Histograms of the magnitudes of `tensors` over `frames`, each float32 [1, 3, h, w].

    Memory: the activations of one frame and 16 KiB a tensor, however many frames there are.
    """
    session, input_name = _session_with_outputs(graph, tensors)
    histograms = {name: MagnitudeHistogram() for name in tensors}
    watched = [name for name in tensors if name != input_name]
    for frame in frames:
        values = dict(zip(watched, session.run(watched, {input_name: frame}), strict=True))
        if input_name in histograms:
            values[input_name] = frame
        for name, value in values.items():
            try:
                histograms[name].add(value)
            except ValueError as error:
                raise CompressError(
                    f"calibration: tensor {name}", expected="finite values", found=str(error)
                ) from error
    return histograms


def _session_with_outputs(graph: Path, tensors: Sequence[str]) -> tuple[Any, str]:
    """An ONNX Runtime session that also returns the given inner tensors, and the name of the graph's input."""
    import onnx
    import onnxruntime

    model = onnx.load(graph)
    present = {value.name for value in [*model.graph.output, *model.graph.input]}
    for name in tensors:
        if name not in present:
            model.graph.output.append(onnx.ValueInfoProto(name=name))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session, model.graph.input[0].name

"""Timing of graphs on a device from frame to detections, in one interleaved run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from edgekd.core.benchmark import Basis, FramePipeline, Runs, Timing, benchmark_interleaved
from edgekd.core.detection.decode import decode
from edgekd.core.detection.preprocess import Placement, letterbox
from edgekd.core.detection.types import Detections, DetectorSpec
from edgekd.graph.runtimes.types import Session


class TimedDevice(Protocol):
    """A device that runs graphs in this process, with the clock of its measurements."""

    def load(self, graph: Path) -> Session:
        """Open an ONNX file. Raises DeviceError."""
        ...

    def clock(self) -> float:
        """Return the seconds since a fixed but arbitrary time."""
        ...


def time_graphs(
    graphs: Mapping[str, Path],
    specs: Mapping[str, DetectorSpec],
    frames: Sequence[np.ndarray],
    device: TimedDevice,
    basis: Basis,
    **limits: Any,
) -> dict[str, Timing]:
    """Time each graph with its spec on frames uint8 [h, w, 3] BGR; limits: as in `benchmark_interleaved`."""
    with ExitStack() as stack:
        candidates = {
            label: camera(stack.enter_context(device.load(graph)), specs[label]) for label, graph in graphs.items()
        }
        return benchmark_interleaved(candidates, frames, clock=device.clock, basis=basis, **limits)


def camera(session: Runs, spec: DetectorSpec, open_frame: Callable[[Any], np.ndarray] | None = None) -> FramePipeline:
    """Return the pipeline from frame to detections with a session; open_frame: decodes a compressed frame."""
    return FramePipeline(session, partial(letterbox, preprocess=spec.preprocess), partial(_decoded, spec), open_frame)


def _decoded(spec: DetectorSpec, output: np.ndarray, placement: Placement) -> Detections:
    return decode(output, spec, placement)


def synthetic_frames(spec: DetectorSpec) -> list[np.ndarray]:
    """Return eight frames uint8 [h, w, 3] of noise in the input's shape, for timing without a data set.

    The time of a network does not depend on the picture; decoding takes a little longer with many objects.
    """
    rng = np.random.default_rng(0)
    shape = (spec.preprocess.height, spec.preprocess.width, 3)
    return [rng.integers(0, 256, shape, np.uint8) for _ in range(8)]

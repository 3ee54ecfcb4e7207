"""Shortens timing in tests that need no stable numbers: few frames, fewer warm-ups, and a tenth of the seconds.

`local` is ONNX Runtime, which loads a graph in a tenth of OpenVINO's time. Tests of OpenVINO select it by name.
"""

from edgekd.core.benchmark import benchmark_interleaved
from edgekd.deploy.devices import local
from edgekd.graph.runtimes.onnxruntime import ONNXRUNTIME_CPU

benchmark_interleaved.__kwdefaults__.update(min_seconds=0.2, min_iterations=20, warmup=3)
local.OPENVINO_CPU = ONNXRUNTIME_CPU

"""Print what TensorRT's Python bindings are made of, as the names of what the agent uses of them.

    PYTHONPATH=folder python tests/agent/record_tensorrt_names.py >> names.json

`folder` holds the `tensorrt_bindings` package of one version. Its extension module asks for TensorRT's libraries when
it is loaded, but calls nothing in them; where there are none, empty ones with the few functions that it names do.
tensorrt_names.json has what that gave for 8.6.1, 10.3.0 and 11.4.0.106 on Linux, x86-64.
"""

from __future__ import annotations

import json
from typing import Any

CLASSES = (
    "Builder",
    "BuilderFlag",
    "DataType",
    "DeviceType",
    "EngineInspector",
    "IBuilderConfig",
    "ICudaEngine",
    "IExecutionContext",
    "IHostMemory",
    "IInt8EntropyCalibrator2",
    "ILayer",
    "ILogger",
    "INetworkDefinition",
    "IProfiler",
    "ITensor",
    "ITimingCache",
    "LayerInformationFormat",
    "MemoryPoolType",
    "NetworkDefinitionCreationFlag",
    "OnnxParser",
    "ParserError",
    "ProfilingVerbosity",
    "Runtime",
    "TensorIOMode",
)
"""Those that the agent uses."""


def names(bindings: Any) -> dict[str, list[str]]:
    """The public names of each class, of an enumeration its members."""
    found = {}
    for name in CLASSES:
        kind = getattr(bindings, name, None)
        if kind is not None:
            told = getattr(kind, "__members__", None) or [each for each in dir(kind) if not each.startswith("_")]
            found[name] = sorted(told)
    return found


if __name__ == "__main__":
    import tensorrt_bindings  # type: ignore[import-not-found,unused-ignore]

    print(json.dumps({tensorrt_bindings.__version__: names(tensorrt_bindings)}))

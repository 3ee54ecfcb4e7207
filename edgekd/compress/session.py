"""Graphs in memory, run on the CPU: what calibration, sensitivity and reconstruction look into networks with."""

from __future__ import annotations

from typing import Any


def cpu_session(model: Any, *, spinning: bool = True) -> Any:
    """An ONNX Runtime session on a ModelProto. spinning: whether its threads wait busily, which costs other work."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spinning)))
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])

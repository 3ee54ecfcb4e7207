"""In which precision the layers of an engine compute, read from what TensorRT's engine inspector says of them. Pure.

The inspector's JSON names the format of every tensor and, of layers that have them, the type of the weights. What it
does not tell is `unknown` here, never a guess from what the builder was asked for.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from edgekd.agent.runtimes.types import Layer

REFORMAT, NOTHING, UNKNOWN, DLA = "reformat", "none", "unknown", "dla"
"""In place of a precision: copies that change a format, layers that do nothing, what is not said, and the DLA."""
_TYPES = (
    ("int8", r"u?int8|kint8"),
    ("fp16", r"fp16|half|float16"),
    ("bf16", r"bf16|bfloat16|bfloat"),
    ("fp8", r"fp8\w*|e4m3\w*"),
    ("fp4", r"fp4\w*|e2m1\w*"),
    ("int4", r"int4"),
    ("fp32", r"fp32|float|float32|tf32"),
    ("int32", r"int32"),
    ("int64", r"int64"),
    ("bool", r"bool"),
)
_TACTICS = (
    ("int8", r"i8(i8|f16|f32)|int8"),  # what is read, then what is written
    ("fp16", r"f16f16|fp16|h\d{3,}|_hmma"),
    ("fp32", r"f32f32|sgemm|scudnn|fp32"),
)
_BITS = {"fp32": 32, "int32": 32, "int64": 64, "int4": 4, "fp4": 4, "fp16": 16, "bf16": 16}
_WITHOUT_WORK = ("noop", "constant", "signal", "wait", "shapehostto")
_COPIES = ("reformat", "copynode")
_OPAQUE = ("myelin", "foreignnode")


def layers_of(inspected: str, times_ms: Mapping[str, float] | None = None) -> list[Layer]:
    """The layers in the inspector's JSON of a whole engine, with times by layer name.

    Raises ValueError where it is no such JSON.
    """
    try:
        listed = json.loads(inspected)["Layers"]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"expected the engine inspector's JSON, found {inspected[:60]!r}") from error
    if not isinstance(listed, list):
        raise ValueError(f"expected a list of layers, found {str(listed)[:60]!r}")
    return [_layer(entry, times_ms or {}) for entry in listed]


def realized(layers: Sequence[Layer]) -> dict[str, Any]:
    """What an engine computes in which precision: how many layers, and their share of layers, bytes and time.

    Bytes are those of weights and of what is written. `time` is None where it was not looked at; layers that do nothing
    count nowhere.
    """
    working = [layer for layer in layers if layer.precision != NOTHING]
    timed = any(layer.ms for layer in working)
    counts = _summed((layer.precision, 1) for layer in working)
    moved = _summed((layer.precision, layer.weight_bytes + layer.activation_bytes) for layer in working)
    times = _summed((layer.precision, layer.ms or 0.0) for layer in working)
    return {
        "layers": {name: int(count) for name, count in counts.items()},
        "share": {"layers": _shares(counts), "bytes": _shares(moved), "time": _shares(times) if timed else None},
    }


def share(report: Mapping[str, Any], precision: str) -> tuple[str, float]:
    """The share of a precision in a report, and of what it is: `time` where that was looked at, else `bytes`."""
    of = "time" if report["share"]["time"] is not None else "bytes"
    return of, float(report["share"][of].get(precision, 0.0))


def precision_named(text: str) -> str | None:
    """The precision in a description such as `Channel major FP16 format where channel % 4 == 0`; None where none."""
    words = re.findall(r"[a-z0-9]+", text.lower())
    for name, pattern in _TYPES:
        if any(re.fullmatch(pattern, word) for word in words):
            return name
    return None


def _layer(entry: Any, times_ms: Mapping[str, float]) -> Layer:
    if not isinstance(entry, Mapping):  # all that is said at lower verbosity is the name
        return Layer(str(entry), "", UNKNOWN, ms=times_ms.get(str(entry)))
    name, kind = str(entry.get("Name", "")), str(entry.get("LayerType", ""))
    written = _tensors(entry, "Outputs")
    weights, weight_bytes = _weights(entry)
    return Layer(
        name,
        kind,
        _precision(name, kind, entry, weights),
        weight_bytes,
        sum(_tensor_bytes(tensor) for tensor in written),
        times_ms.get(name),
    )


def _precision(name: str, kind: str, entry: Mapping[str, Any], weights: str | None) -> str:
    """What a layer computes in. The types of its tensors come last: one that reads INT8 may well compute in float."""
    lower = kind.lower()
    if lower.startswith("dla"):
        return DLA
    if lower.startswith(_WITHOUT_WORK):
        return NOTHING
    if any(word in lower for word in _COPIES) or name.startswith("Reformatting CopyNode"):
        return REFORMAT
    if any(word in lower for word in _OPAQUE) or (not weights and name.startswith("{ForeignNode")):
        return UNKNOWN
    if weights:
        return weights
    return _from_tactic(entry) or _from_tensors(entry) or UNKNOWN


def _from_tactic(entry: Mapping[str, Any]) -> str | None:
    """The precision in the name of the chosen kernel, where a layer computes sums of products."""
    tactic = str(entry.get("TacticName", "")).lower()
    return next((name for name, pattern in _TACTICS if re.search(pattern, tactic)), None)


def _from_tensors(entry: Mapping[str, Any]) -> str | None:
    """The one type of what a layer reads and writes; where there are several, the widest float among them."""
    tensors = (*_tensors(entry, "Inputs"), *_tensors(entry, "Outputs"))
    found = {precision_named(_format(tensor)) for tensor in tensors} - {None}
    if len(found) == 1:
        return found.pop()
    return next((name for name in ("fp32", "bf16", "fp16", "fp8") if name in found), None)


def _weights(entry: Mapping[str, Any]) -> tuple[str | None, int]:
    """The type of a layer's weights, and the bytes of weights and bias.

    A convolution that is fused with a pooling (ConvActPool) has them as `ConvWeights` and `ConvBias`.
    """
    precision, total = None, 0
    for key, values in entry.items():
        if key.endswith(("Weights", "Bias")) and isinstance(values, Mapping) and _count(values.get("Count")):
            kind = precision_named(str(values.get("Type", "")))
            total += _count(values.get("Count")) * _BITS.get(kind or "fp32", 8) // 8
            precision = kind if key.endswith("Weights") else precision
    return precision, total


def _tensors(entry: Mapping[str, Any], part: str) -> list[Mapping[str, Any]]:
    listed = entry.get(part)
    return [tensor for tensor in listed if isinstance(tensor, Mapping)] if isinstance(listed, list) else []


def _format(tensor: Mapping[str, Any]) -> str:
    """What is said of a tensor's type: TensorRT 11 says it apart from its layout."""
    return str(
        next((tensor[key] for key in ("DataType", "Datatype", "Format/Datatype", "Format") if key in tensor), "")
    )


def _tensor_bytes(tensor: Mapping[str, Any]) -> int:
    sides = tensor.get("Dimensions")
    count = 1
    for side in sides if isinstance(sides, list) else (0,):
        count *= max(_count(side), 0)
    return count * _BITS.get(precision_named(_format(tensor)) or "fp32", 8) // 8


def _count(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


def _summed(pairs: Iterable[tuple[str, float]]) -> dict[str, float]:
    found: dict[str, float] = {}
    for name, amount in pairs:
        found[name] = found.get(name, 0) + amount
    return dict(sorted(found.items()))


def _shares(amounts: Mapping[str, float]) -> dict[str, float]:
    total = sum(amounts.values())
    return {name: round(amount / total, 4) for name, amount in amounts.items()} if total else {}

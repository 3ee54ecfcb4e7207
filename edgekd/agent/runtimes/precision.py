"""Precision of the layers of an engine, parsed from the JSON of TensorRT's engine inspector. Pure.

The JSON names the format of every tensor and, of layers with weights, their type. A precision that it does not name is
`unknown` here, never a guess from the build options.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from edgekd.agent.runtimes.types import Inspection, Layer
from edgekd.core.errors import DeviceError

REFORMAT, NO_WORK, UNKNOWN, DLA = "reformat", "none", "unknown", "dla"
"""In place of a precision: format conversions, layers without work, layers without details, and layers on the DLA."""
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
    ("int8", r"i8(i8|f16|f32)|int8"),  # input type, then output type
    ("fp16", r"f16f16|fp16|h\d{3,}|_hmma"),
    ("fp32", r"f32f32|sgemm|scudnn|fp32"),
)
_BITS = {"fp32": 32, "int32": 32, "int64": 64, "int4": 4, "fp4": 4, "fp16": 16, "bf16": 16}
_WITHOUT_WORK = ("noop", "constant", "signal", "wait", "shapehostto")
_COPIES = ("reformat", "copynode")
_OPAQUE = ("myelin", "foreignnode")


@dataclass(frozen=True)
class Shares:
    """Shares of each precision, 0 to 1.

    Args:
        layers: Of the layers.
        bytes: Of the bytes of weights and outputs.
        time: Of the time of profiled runs; null without a profile.
    """

    layers: Mapping[str, float]
    bytes: Mapping[str, float]
    time: Mapping[str, float] | None


@dataclass(frozen=True)
class Realized:
    """Number of layers, and shares, by the precision that an engine computes in. Layers without work do not count."""

    layers: Mapping[str, int]
    share: Shares

    def share_of(self, precision: str) -> tuple[str, float]:
        """Return the unit, `time` where there is a profile and else `bytes`, and the share of a precision in it."""
        unit = "bytes" if self.share.time is None else "time"
        return unit, self.shares_in(unit).get(precision, 0.0)

    def shares_in(self, unit: str) -> Mapping[str, float]:
        """Return the shares in `time` or `bytes`."""
        shares: Mapping[str, float] = getattr(self.share, unit)
        return shares


def layers_of(inspected: str, times_ms: Mapping[str, float] | None = None) -> list[Layer]:
    """Parse the layers of an engine in the inspector's JSON; times_ms: by layer name. Raises ValueError."""
    try:
        listed = json.loads(inspected)["Layers"]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"expected the engine inspector's JSON, found {inspected[:60]!r}") from error
    if not isinstance(listed, list):
        raise ValueError(f"expected a list of layers, found {str(listed)[:60]!r}")
    return [_layer(entry, times_ms or {}) for entry in listed]


def inspected_layers(raw: Inspection, engine: Path, source: str) -> list[Layer]:
    """Parse the layers of an inspected engine; source: of the data, for the error. Raises DeviceError."""
    try:
        return layers_of(raw.layers, raw.times_ms)
    except ValueError as error:
        raise DeviceError(f"{source} does not report the layers of {engine}", found=str(error)) from error


def realized(layers: Sequence[Layer]) -> Realized:
    """Sum the layers of an engine by precision."""
    working = [layer for layer in layers if layer.precision != NO_WORK]
    timed = any(layer.ms for layer in working)
    counts = _summed((layer.precision, 1) for layer in working)
    moved = _summed((layer.precision, layer.weight_bytes + layer.activation_bytes) for layer in working)
    times = _summed((layer.precision, layer.ms or 0.0) for layer in working)
    shares = Shares(_shares(counts), _shares(moved), _shares(times) if timed else None)
    return Realized({name: int(count) for name, count in counts.items()}, shares)


def precision_named(text: str) -> str | None:
    """Return the precision in a text such as `Channel major FP16 format where channel % 4 == 0`; None where none."""
    words = re.findall(r"[a-z0-9]+", text.lower())
    for name, pattern in _TYPES:
        if any(re.fullmatch(pattern, word) for word in words):
            return name
    return None


def _layer(entry: Any, times_ms: Mapping[str, float]) -> Layer:
    if not isinstance(entry, Mapping):  # the name alone, at lower verbosity
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
    """Return the precision of a layer. Types of its tensors come last: one that reads INT8 may compute in float."""
    lower = kind.lower()
    if lower.startswith("dla"):
        return DLA
    if lower.startswith(_WITHOUT_WORK):
        return NO_WORK
    if any(word in lower for word in _COPIES) or name.startswith("Reformatting CopyNode"):
        return REFORMAT
    if any(word in lower for word in _OPAQUE) or (not weights and name.startswith("{ForeignNode")):
        return UNKNOWN
    if weights:
        return weights
    return _from_tactic(entry) or _from_tensors(entry) or UNKNOWN


def _from_tactic(entry: Mapping[str, Any]) -> str | None:
    """Return the precision in the name of the chosen kernel; None where it has none."""
    tactic = str(entry.get("TacticName", "")).lower()
    return next((name for name, pattern in _TACTICS if re.search(pattern, tactic)), None)


def _from_tensors(entry: Mapping[str, Any]) -> str | None:
    """Return the type of the inputs and outputs of a layer; of several, the widest float among them."""
    tensors = (*_tensors(entry, "Inputs"), *_tensors(entry, "Outputs"))
    types = {precision_named(_format(tensor)) for tensor in tensors} - {None}
    if len(types) == 1:
        return types.pop()
    return next((name for name in ("fp32", "bf16", "fp16", "fp8") if name in types), None)


def _weights(entry: Mapping[str, Any]) -> tuple[str | None, int]:
    """Return the type of a layer's weights, and the bytes of weights and bias.

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
    """Return the description of a tensor's type; TensorRT 11 has it apart from the layout."""
    return str(
        next((tensor[key] for key in ("DataType", "Datatype", "Format/Datatype", "Format") if key in tensor), "")
    )


def _tensor_bytes(tensor: Mapping[str, Any]) -> int:
    sides = tensor.get("Dimensions")
    count = prod(max(_count(side), 0) for side in (sides if isinstance(sides, list) else (0,)))
    return count * _BITS.get(precision_named(_format(tensor)) or "fp32", 8) // 8


def _count(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


def _summed(pairs: Iterable[tuple[str, float]]) -> dict[str, float]:
    sums: dict[str, float] = {}
    for name, amount in pairs:
        sums[name] = sums.get(name, 0) + amount
    return dict(sorted(sums.items()))


def _shares(amounts: Mapping[str, float]) -> dict[str, float]:
    total = sum(amounts.values())
    return {name: round(amount / total, 4) for name, amount in amounts.items()} if total else {}

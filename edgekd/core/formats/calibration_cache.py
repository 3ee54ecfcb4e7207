"""TensorRT's calibration cache: the scales of a network's tensors as text, for builds without Q/DQ (DLA, TensorRT 8).

Line 1 names version and calibrator; then `tensor: hex` with the big-endian IEEE-754 float32 scale (range / 127).
Shared with the device.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping

_ENTRY = re.compile(r"(?P<name>.+): (?P<digits>[0-9a-fA-F]{1,8})")


def to_text(scales: Mapping[str, float], tensorrt: str) -> str:
    """Return the cache for scales by tensor name, for a TensorRT version such as `8.5.2`."""
    major, minor, patch = (*map(int, re.findall(r"\d+", tensorrt.partition("-")[0])[:3]), 0, 0)[:3]
    number = major * (1000 if major < 10 else 10_000) + minor * 100 + patch  # NV_TENSORRT_VERSION
    lines = [f"TRT-{number}-EntropyCalibration2"]
    lines += [f"{name}: {struct.pack('>f', scale).hex()}" for name, scale in scales.items()]
    return "\n".join(lines) + "\n"


def from_text(text: str) -> dict[str, float]:
    """Parse scales by tensor name. A cache by TensorRT may lack leading zeros. Raises ValueError where malformed."""
    header, *lines = text.split("\n")
    if not header.startswith("TRT-"):
        raise ValueError(f"expected a first line `TRT-version-calibrator`, found {header!r}")
    scales = {}
    for line in filter(None, lines):
        entry = _ENTRY.fullmatch(line)
        if not entry:
            raise ValueError(f"expected `tensor: hex`, found {line!r}")
        scales[entry["name"]] = struct.unpack(">f", bytes.fromhex(entry["digits"].rjust(8, "0")))[0]
    return scales

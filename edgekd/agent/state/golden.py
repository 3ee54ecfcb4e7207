"""The golden set of a bundle in a slot, as inputs of its network."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgekd.core.detection.preprocess import to_tensor
from edgekd.core.detection.types import DetectorSpec, spec_from_json
from edgekd.core.errors import BundleError
from edgekd.core.formats.golden_set import GoldenSet, from_bytes

if TYPE_CHECKING:
    import numpy as np

    from edgekd.agent.state.slots import Slot


@dataclass(frozen=True)
class Golden:
    """A golden set, its file, and the contract of the network that it belongs to."""

    set: GoldenSet
    file: Path
    spec: DetectorSpec


def read_golden(slot: Slot) -> Golden:
    """Read the golden set of a slot's bundle. Raises BundleError where it has none, or a damaged one."""
    file = slot.file("golden")
    if file is None:
        raise BundleError(
            f"slot {slot.name}: the bundle has no golden set",
            expected="a file with role golden",
            fix="build the bundle again with this version of edgekd",
        )
    try:
        return Golden(from_bytes(file.read_bytes()), file, spec_from_json(slot.manifest.detector))
    except (OSError, ValueError) as error:
        raise BundleError(f"{file}: cannot be read as a golden set", found=str(error), fix="unpack it again") from error


def batches(golden: GoldenSet, spec: DetectorSpec) -> Iterator[np.ndarray]:
    """Yield the inputs float32 [1, 3, height, width] of a golden set."""
    for index in range(len(golden.frames)):
        yield to_tensor(golden.canvas(index, spec.preprocess.height, spec.preprocess.width), spec.preprocess)

"""The self-test: whether an engine, on this device, gives what the golden set in its bundle says."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekd.agent.engines import latencies
from edgekd.agent.parity import drift, worst
from edgekd.agent.slots import SELF_TEST
from edgekd.core.atomic_files import write_file
from edgekd.core.canonical import canonical_json
from edgekd.core.detection.preprocess import to_tensor
from edgekd.core.detection.types import DetectorSpec, spec_from_json
from edgekd.core.errors import BundleError, DeviceError
from edgekd.core.formats.golden_set import GoldenSet, from_bytes

if TYPE_CHECKING:
    import numpy as np

    from edgekd.agent.engines import Engine
    from edgekd.agent.runtimes.types import Runtime
    from edgekd.agent.slots import Slot


RUNS, SECONDS = 50, 1.0
"""At least so many runs, and so long, are timed where there is a limit."""


class SelfTestError(DeviceError):
    """An engine gives something else than the golden set says, or takes too long. `report`: the figures."""

    def __init__(self, what: str, *, report: dict[str, Any], **parts: str) -> None:
        super().__init__(what, **parts)
        self.report = report


@dataclass(frozen=True)
class Golden:
    """The golden set of a bundle, the file it lies in, and what the network takes and gives."""

    set: GoldenSet
    file: Path
    spec: DetectorSpec


def read_golden(slot: Slot) -> Golden:
    """The golden set of a slot's bundle. Raises BundleError where it has none, or a damaged one."""
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
    """The inputs float32 [1, 3, height, width] of a golden set."""
    for index in range(len(golden.frames)):
        yield to_tensor(golden.canvas(index, spec.preprocess.height, spec.preprocess.width), spec.preprocess)


def run_self_test(slot: Slot, runtime: Runtime, engine: Path) -> dict[str, Any]:
    """Run the golden frames through an engine; the figures, with `passed`. Raises BundleError, DeviceError."""
    golden = read_golden(slot)
    try:
        with closing(runtime.load(engine)) as session:
            outputs = [session.run(batch) for batch in batches(golden.set, golden.spec)]
            scratch = session.scratch_bytes()
        drifts = [drift(output, golden.set, index, golden.spec.head) for index, output in enumerate(outputs)]
        departures = [worst(output, golden.set, index, golden.spec.head) for index, output in enumerate(outputs)]
    except ValueError as error:
        raise DeviceError(f"slot {slot.name}: the golden set does not fit the engine", found=str(error)) from error
    errors = {name: max(getattr(each, name) for each in drifts) for name in ("boxes", "scores")}
    boxes, scores = golden.set.tolerance
    frame, departure = max(enumerate(departures), key=lambda each: each[1].error)
    return {
        "passed": errors["boxes"] <= boxes and errors["scores"] <= scores,
        "precision": golden.set.precision,
        "frames": len(drifts),
        "error": {name: round(error, 6) for name, error in errors.items()},
        "tolerance": {"boxes": boxes, "scores": scores},
        "scratch_bytes": scratch,
        "worst": {"frame": frame, **asdict(departure), "error": round(departure.error, 6)},
    }


def keep_self_test(slot: Slot, runtime: Runtime, engine: Engine, limit_ms: float | None = None) -> dict[str, Any]:
    """Test an engine, and write its figures beside it, whether it passed or not. Raises as `run_self_test` does.

    limit_ms: what the median of its runs may take at most; None lets it take as long as it likes, and times nothing.
    """
    figures = run_self_test(slot, runtime, engine.file)
    figures["latency"] = None
    if figures["passed"] and limit_ms is not None:
        timed = latencies(slot, runtime, engine, RUNS, SECONDS)
        median = round(timed["inference_ms"]["p50"], 4)
        figures["latency"] = {"limit_ms": limit_ms, "p50_ms": median, "runs": timed["iterations"]}
        figures["passed"] = median <= limit_ms
    kept = {name: value for name, value in figures.items() if name != "worst"}
    write_file(engine.folder / SELF_TEST, canonical_json(kept))
    return figures

"""Self-test of an engine on this device, by the golden set of its bundle."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekd.agent.engines.latency import measure_latency
from edgekd.agent.engines.layer_divergence import TensorDivergence
from edgekd.agent.engines.parity import WorstValue, output_error, worst_value
from edgekd.agent.engines.records import LatencyCheck, PartErrors, SelfTest
from edgekd.agent.state.golden import batches, read_golden
from edgekd.agent.state.slots import SELF_TEST
from edgekd.core.atomic_files import write_file
from edgekd.core.canonical import canonical_json
from edgekd.core.documents import INLINE, to_plain
from edgekd.core.errors import DeviceError

if TYPE_CHECKING:
    from edgekd.agent.engines.engine import Engine
    from edgekd.agent.runtimes.types import Runtime
    from edgekd.agent.state.slots import Slot

MIN_RUNS = 50
"""Timed runs where there is a latency limit."""
MIN_SECONDS = 1.0
"""Seconds of these runs."""


class SelfTestError(DeviceError):
    """The outputs of an engine differ from the golden set, or it is too slow. report: its figures."""

    def __init__(self, what: str, *, report: Any, **parts: str) -> None:
        super().__init__(what, **parts)
        self.report = report


@dataclass(frozen=True)
class SelfTestReport:
    """Result of a self-test with the number that has the largest error, which `selftest.json` does not have."""

    test: SelfTest = field(metadata=INLINE)
    worst: WorstValue


@dataclass(frozen=True)
class SelfTestResult:
    """Result of `selftest`.

    Args:
        slot: Name of the slot.
        key: Name of the engine.
        layers: With `--layers` the divergence of inner tensors from those of the network in float, in its order; else
            null.
    """

    slot: str
    key: str
    report: SelfTestReport = field(metadata=INLINE)
    layers: Sequence[TensorDivergence] | None


def run_self_test(slot: Slot, runtime: Runtime, engine: Path) -> SelfTestReport:
    """Run the golden frames through an engine, one by one and as a batch where it takes several at once, and compare
    its outputs. Raises BundleError, DeviceError.
    """
    import numpy as np

    golden = read_golden(slot)
    try:
        with closing(runtime.load(engine)) as session:
            inputs = list(batches(golden.set, golden.spec))
            outputs = [session.run(batch) for batch in inputs]
            if runtime.batches and golden.spec.batch > 1:
                together = inputs[: golden.spec.batch]
                outputs += np.split(session.run(np.concatenate(together)), len(together))
            scratch = session.scratch_bytes()
        indexed = [(index % len(inputs), output) for index, output in enumerate(outputs)]
        errors = [output_error(output, golden.set, index, golden.spec.head) for index, output in indexed]
        values = [worst_value(output, golden.set, index, golden.spec.head) for index, output in indexed]
    except ValueError as error:
        raise DeviceError(f"slot {slot.name}: the golden set does not fit the engine", found=str(error)) from error
    boxes, scores = max(each.boxes for each in errors), max(each.scores for each in errors)
    tolerance = PartErrors(*golden.set.tolerance)
    worst = max(values, key=lambda each: each.error)
    test = SelfTest(
        boxes <= tolerance.boxes and scores <= tolerance.scores,
        golden.set.precision,
        len(inputs),
        PartErrors(round(boxes, 6), round(scores, 6)),
        tolerance,
        scratch,
    )
    return SelfTestReport(test, replace(worst, error=round(worst.error, 6)))


def keep_self_test(slot: Slot, runtime: Runtime, engine: Engine, limit_ms: float | None = None) -> SelfTestReport:
    """Test an engine, and write the result beside it, passed or not. Raises as `run_self_test` does.

    limit_ms: maximum of the median run time; None to time nothing.
    """
    report = run_self_test(slot, runtime, engine.file)
    if report.test.passed and limit_ms is not None:
        timed = measure_latency(slot, runtime, engine.file, MIN_RUNS, MIN_SECONDS)
        latency = LatencyCheck(limit_ms, round(timed.inference_ms.p50, 4), timed.run.iterations)
        report = replace(report, test=replace(report.test, latency=latency, passed=latency.p50_ms <= limit_ms))
    write_file(engine.folder / SELF_TEST, canonical_json(to_plain(report.test)))
    return report

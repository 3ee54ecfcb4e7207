"""A result of `edgekd engine`, for tests of what is done with it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from edgekd.agent.engines.records import PartErrors, RuntimeVersion
from edgekd.core.benchmark import Stats
from edgekd.core.machine_state import PowerMode
from edgekd.core.statistics import Outliers
from edgekd.deploy.engine_result import (
    DeviceEngine,
    DeviceReport,
    EngineResult,
    EngineTimes,
    SelfTestSummary,
    StepTime,
    Upload,
)

XAVIER = DeviceReport(
    name="ssh://cam1",
    firmware=None,
    compatible=(),
    model="NVIDIA Jetson AGX Xavier",
    serial=None,
    cpu=None,
    gpus=(),
    driver=None,
    l4t="35.4.1",
    os=None,
    kernel="5.10.120-tegra",
    memory_bytes=None,
    power_mode=PowerMode(0, "MAXN"),
)
_ERRORS = PartErrors(0.0, 0.0)
MEASURED = EngineResult(
    bundle=Path("b.edgekd"),
    identity="a" * 64,
    name="tiny",
    target="xavier",
    fits=True,
    device=XAVIER,
    basis="measured",
    runtime=RuntimeVersion("tensorrt", "8.5.2.2"),
    engine=DeviceEngine(
        "a", "key", "file", 1, 1.0, changed=True, layers={"int8": 1}, float_layers=(), missing_scales=None
    ),
    tuning=None,
    self_test=SelfTestSummary(passed=True, precision="int8", frames=3, error=_ERRORS, tolerance=_ERRORS),
    bench=EngineTimes(200, 222.2, (), Stats(4.0, 5.0, 6.0, None, 4.5, 3.5), None, Outliers(0, 0.0, 8.0, 6.0), None),
    activated=False,
    upload=Upload(1, 1),
    steps=(StepTime("upload", 0.0),),
)


def measured(**parts: dict[str, Any]) -> EngineResult:
    """Return MEASURED with other values in some of its parts."""
    return replace(MEASURED, **{name: replace(getattr(MEASURED, name), **values) for name, values in parts.items()})

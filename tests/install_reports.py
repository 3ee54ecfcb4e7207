"""Results of `edgekd engine` as on a Jetson, for tests of their consumers."""

from __future__ import annotations

from edgekd.agent.engines.records import PartErrors, RuntimeVersion
from edgekd.core.benchmark import Stats
from edgekd.core.machine_state import PowerMode
from edgekd.core.statistics import Outliers
from edgekd.deploy.engine_report import (
    DeviceReport,
    EngineLatency,
    EngineReport,
    InstallReport,
    SelfTestErrors,
    UploadReport,
)


def install_report(
    identity: str = "a",
    layers: dict[str, int] | None = None,
    graph: str = "int8",
    p50: float = 4.0,
    l4t: str | None = "35.4.1",
) -> InstallReport:
    """Return a result of an AGX Xavier."""
    return InstallReport(
        bundle="b.edgekd",
        identity=identity * 64,
        name="tiny",
        target="xavier",
        fits=True,
        device=DeviceReport(
            "ssh://cam1",
            model="NVIDIA Jetson AGX Xavier",
            l4t=l4t,
            kernel="5.10.120-tegra",
            power_mode=PowerMode(0, "MAXN"),
        ),
        basis="measured",
        runtime=RuntimeVersion("tensorrt", "8.5.2.2"),
        engine=EngineReport("a", "0" * 16, "model.engine", 1, 1.0, True, layers, (), None),
        tuning=None,
        self_test=SelfTestErrors(True, graph, 3, PartErrors(0.0, 0.0), PartErrors(0.1, 0.1)),
        bench=EngineLatency(
            200, 222.2, [], None, Outliers(0, 0.0, 5.0, 5.0), Stats(p50, 5.0, 6.0, None, 4.5, 3.5), None
        ),
        activated=False,
        upload=UploadReport(1, 1),
        steps=(),
    )

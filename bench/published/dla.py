"""Published throughputs of DLAs: the fit to those of an AGX Orin, and its errors on data not used in the fit."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import log

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from edgekd.hardware.predict.dla import DlaCoefficients, DlaFigures, dla_figures, dla_seconds
from edgekd.hardware.target import load_target

from .rows import described, layers_of, network_facts, network_of, read_csv

MODES = {"MAXN": (52.5, 1.0), "50W": (46.0, 1.0), "30W": (45.0, 1.0), "15W": (20.0, 2 / 3)}
"""For each power mode of AGX Orin: 10^12 dense operations per second of both cores (half of the sparse ones in the
README of NVIDIA-AI-IOT's Deep-Learning-Accelerator-SW), and the memory clock relative to its maximum, 3199 MHz."""
START = {
    "share": (0.6, 0.4),
    "bandwidth": (0.6, 0.6),
    "layer_us": (3.0, 0.7),
    "silu_ns": (0.2, 1.0),
    "sparse": (0.6, 0.3),
}
"""Prior of each coefficient: its median, and the standard deviation of its logarithm."""


@dataclass(frozen=True)
class DlaRow:
    """A throughput. cores: Active cores; device: One core, at the clocks of the run; seconds: Per batch on one core."""

    line: int
    network: str
    batch: int
    cores: int
    sparse: bool
    device: DlaFigures
    seconds: float

    def predicted(self, by: DlaCoefficients) -> float:
        # Cores that run concurrently share the memory bandwidth.
        device = replace(self.device, bandwidth=self.device.bandwidth / self.cores)
        return float(np.sum(dla_seconds(layers_of(self.network), device, by, self.batch, sparse=self.sparse)))


@dataclass(frozen=True)
class Together:
    """A throughput of a GPU and both DLAs, in frames per second. batch, dla_batch: Batch size of the GPU, of a DLA."""

    line: int
    published: str
    target: str
    network: str
    batch: int
    dla_batch: int
    fps: float

    def dla_fps(self, by: DlaCoefficients) -> float:
        """Return the predicted frames per second of both DLAs together."""
        row = DlaRow(self.line, self.network, self.dla_batch, 2, False, dla_figures(load_target(self.target)), 0)
        return 2 * self.dla_batch / row.predicted(by)


def read_dla_rows() -> list[DlaRow]:
    orin = dla_figures(load_target("agx-orin"))
    found = []
    for line, row in enumerate(read_csv("measurements.csv"), start=2):
        if row["unit"] in ("dla", "2dla") and network_of(row) in described():
            cores, batch = 1 if row["unit"] == "dla" else 2, int(row["batch"])
            tops, memory = next(
                (figures for mode, figures in MODES.items() if f"({mode})" in row["device"]), MODES["MAXN"]
            )
            device = DlaFigures(peak=tops / 2 * 1e12, bandwidth=orin.bandwidth * memory)
            seconds = cores * batch / float(row["fps"])
            found.append(DlaRow(line, network_of(row), batch, cores, "2:4" in row["precision"], device, seconds))
    return found


def read_together() -> list[Together]:
    """Return the published throughputs of GPU and DLAs together, at full clocks and with known batch sizes."""
    devices = {each["published"]: each["target"] for each in read_csv("devices.csv")}
    return [
        Together(
            line,
            row["device"],
            devices[row["device"]],
            network_of(row),
            int(row["batch"]),
            int(row["dla_batch"]),
            float(row["fps"]),
        )
        for line, row in enumerate(read_csv("measurements.csv"), start=2)
        if row["unit"] == "gpu+2dla" and row["dla_batch"] and "MaxQ" not in row["device"]
    ]


def fit_dla(rows: Sequence[DlaRow]) -> DlaCoefficients:
    """Fit coefficients by robust least squares on the logarithms of prediction and measurement."""
    prior, spread = (np.array([each[at] for each in START.values()]) for at in range(2))

    def fitted(logs: NDArray[np.float64]) -> DlaCoefficients:
        return DlaCoefficients(**dict(zip(START, map(float, np.exp(logs)), strict=True)), margin=1)

    def residuals(logs: NDArray[np.float64]) -> NDArray[np.float64]:
        errors = [log(row.predicted(fitted(logs)) / row.seconds) for row in rows]
        return np.concatenate([np.array(errors) / 0.1, (logs - np.log(prior)) / spread])

    return fitted(least_squares(residuals, np.log(prior), loss="soft_l1", max_nfev=60, ftol=1e-4).x)


def errors_by_network(rows: Sequence[DlaRow]) -> dict[str, list[float]]:
    """Return errors (of logarithms) of batch times, by families of networks, each left out of its fit."""
    found: dict[str, list[float]] = {}
    for family in sorted({network_facts(row.network)["family"] for row in rows}):
        there = [network_facts(row.network)["family"] == family for row in rows]
        by = fit_dla([row for row, out in zip(rows, there, strict=True) if not out])
        found[family] = [log(row.predicted(by) / row.seconds) for row, out in zip(rows, there, strict=True) if out]
    return found


Gpu = Callable[[Together], float]
"""Predicts the frames per second of the GPU alone."""


def errors_together(rows: Sequence[Together], by: DlaCoefficients, gpu_fps: Gpu) -> list[float]:
    """Return errors (of logarithms) of the throughputs of GPU and DLAs together."""
    return [log((gpu_fps(row) + row.dla_fps(by)) / row.fps) for row in rows]

"""The published measurements as rows that can be predicted, and why the others cannot."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path

import numpy as np

from edgekd.hardware.predict.device import GpuFigures, gpu_figures
from edgekd.hardware.predict.work import Work
from edgekd.hardware.target import load_target

PUBLISHED = Path(__file__).resolve().parent
LOWERED = "a lowered power mode whose clocks are not stated; used for energy"


class Columns:
    """The layers of a network as arrays, under the names of `Work`. operations: of one frame."""

    def __init__(self, works: Sequence[Work]) -> None:
        for field in fields(Work):
            setattr(self, field.name, np.array([getattr(work, field.name) for work in works]))
        self.operations = 2 * sum(work.multiply_adds for work in works)


@dataclass(frozen=True)
class Row:
    """A published measurement. line: in measurements.csv; target: the shipped one that was measured, if it is one.

    network: names its table of layers; power_w: of the whole kit, where measured; old: TensorRT before 8.
    """

    line: int
    published: str
    device: str
    target: str
    model: str
    network: str
    batch: int
    latency_ms: float
    power_w: float | None
    source: str
    gpu: GpuFigures
    old: bool

    @property
    def kind(self) -> tuple[float, str]:
        return self.gpu.sm, self.gpu.precision

    @property
    def place(self) -> tuple[str, str]:
        return self.device, self.gpu.precision

    @property
    def group(self) -> tuple[str, str, str]:
        """Rows that one party measured in one place, which are no independent witnesses."""
        return *self.place, self.source.split("@")[0].split()[0]

    @property
    def columns(self) -> Columns:
        return layers_of(self.network)


@cache
def layers_of(network: str) -> Columns:
    works = []
    for row in read_csv(f"layers/{network}.csv"):
        numbers = {key: int(value) for key, value in row.items() if key not in ("name", "kind", "plugin")}
        works.append(Work(row["name"], row["kind"], **numbers, plugin=row["plugin"] == "1"))  # type: ignore[arg-type]
    return Columns(works)


def read_csv(name: str) -> list[dict[str, str]]:
    with (PUBLISHED / name).open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def why_not(row: Mapping[str, str]) -> str | None:
    """Return the reason why a measurement is not of one batch on one GPU; None where it is."""
    source = row["source"]
    if "DLA" in row["device"]:
        return "runs on the DLA"
    if not row["batch"]:
        return "throughput of a batch that is not stated, on Jetson of GPU and DLAs together"
    if "end-to-end" in source:
        return "a whole Python pipeline, not the network"
    if "low confidence" in source:
        return "its own collector trusts it little"
    return None


def device_for(given: Mapping[str, str], precision: str) -> GpuFigures:
    """Return the measured device: a shipped target, or the figures of devices.csv."""
    if given["target"]:
        return gpu_figures(load_target(given["target"]), precision)
    peak = {"fp16": given["fp16_tflops"], "int8": given["int8_tops"]}[precision]
    return GpuFigures(
        sm=float(given["sm"]),
        precision=precision,  # type: ignore[arg-type]
        peak=float(peak) * 1e12,
        bandwidth=float(given["bandwidth_gbs"]) * 1e9,
        multiprocessors=int(given["multiprocessors"]),
        clock_ghz=float(given["clock_ghz"]),
        server=True,
    )


def read_rows() -> tuple[list[Row], list[Row], dict[str, list[int]]]:
    """Rows to fit and predict, rows with power in a mode of its own, and the lines not used for latency, by reason."""
    devices = {each["published"]: each for each in read_csv("devices.csv")}
    rows: list[Row] = []
    powered: list[Row] = []
    others: dict[str, list[int]] = {}
    for line, row in enumerate(read_csv("measurements.csv"), start=2):
        if reason := why_not(row):
            others.setdefault(reason, []).append(line)
            continue
        given = devices[row["device"]]
        read = Row(
            line=line,
            published=row["device"],
            device=given["device"],
            target=given["target"],
            model=row["model"],
            network=f"{row['model']}-{row['input'].split()[0]}",
            batch=int(row["batch"]),
            latency_ms=float(row["latency_ms"]),
            power_w=float(row["power_w"]) if row["power_w"] else None,
            source=row["source"],
            gpu=device_for(given, row["precision"]),
            old=bool(row["trt"]) and int(row["trt"].split(".")[0]) < 8,
        )
        if "MaxQ" in row["device"]:
            others.setdefault(LOWERED, []).append(line)
            powered.append(read)
        else:
            rows.append(read)
    return rows, powered, others

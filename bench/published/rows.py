"""Published measurements as rows that the model can predict, and reasons why others are left out."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path

import numpy as np

from edgekd.hardware.predict.device import MIB, PRECISIONS, GpuFigures, gpu_figures
from edgekd.hardware.predict.work import Work
from edgekd.hardware.target import load_target

PUBLISHED = Path(__file__).resolve().parent
FLAGS = ("plugin", "silu")  # boolean columns of a layer table
LOWERED = "a lowered power mode whose clocks are not stated; used for energy"
TOO_SLOW = "slower than the same party's other board of that generation by more than any ratio of their figures"
NOISE = 1.05
"""Tolerated ratio between two measurements of the same quantity."""


class Columns:
    """The layers of a network as arrays with the names of `Work`'s fields. operations: Number per frame."""

    def __init__(self, works: Sequence[Work]) -> None:
        for field in fields(Work):
            setattr(self, field.name, np.array([getattr(work, field.name) for work in works]))
        self.operations = 2 * sum(work.multiply_adds for work in works)


@dataclass(frozen=True)
class Row:
    """A published measurement. line: in measurements.csv; target: the measured shipped target, empty if none.

    network: name of its layer table; power_w: of the whole kit, if measured; launch: how kernels are launched: by a
    CUDA `graph`, on a `stream`, or from `python`; old: TensorRT before 8; copies: whether the time includes copies of
    inputs and outputs.
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
    launch: str
    source: str
    gpu: GpuFigures
    old: bool
    copies: bool

    @property
    def kind(self) -> tuple[float, str]:
        return self.gpu.sm, self.gpu.precision

    @property
    def place(self) -> tuple[str, str]:
        return self.device, self.gpu.precision

    @property
    def group(self) -> tuple[str, str, str]:
        """Device, precision and source. Rows with the same group are not independent."""
        return *self.place, self.party

    @property
    def party(self) -> str:
        return self.source.split("@")[0].split()[0]

    @property
    def run(self) -> tuple[str, str, int, tuple[float, str], str]:
        """Everything that identifies the measurement except the board and its clocks."""
        return self.party, self.network, self.batch, self.kind, self.launch

    @property
    def family(self) -> str:
        return network_facts(self.network)["family"]

    @property
    def columns(self) -> Columns:
        return layers_of(self.network)


class Table:
    """Rows as arrays, so that `seconds` is evaluated once per arithmetic unit.

    bytes_copied: Bytes of a batch's inputs and outputs in float32; 0 if the measured time does not include copies.
    """

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = rows
        self.measured = np.array([row.latency_ms for row in rows])
        self.old = np.array([row.old for row in rows])
        self.graph = np.array([row.launch == "graph" for row in rows])
        self.bandwidth = np.array([row.gpu.bandwidth for row in rows])
        self.bytes_copied = np.array([4.0 * row.batch * numbers_copied(row.network) * row.copies for row in rows])
        units = sorted({row.gpu.unit for row in rows})
        self.parts = [Part(self, [at for at, row in enumerate(rows) if row.gpu.unit == unit]) for unit in units]


class Part:
    """The concatenated layers of one arithmetic unit's rows, as arrays named like fields of `Work` and `GpuFigures`.

    at: Indices of the rows; layer: Index of each layer's row; first: Index of each row's first layer.
    """

    def __init__(self, table: Table, at: Sequence[int]) -> None:
        rows = [table.rows[index] for index in at]
        counts = [len(row.columns.kind) for row in rows]  # type: ignore[attr-defined]
        self.at = np.array(at)
        self.layer = np.repeat(at, counts)
        self.first = np.cumsum([0, *counts[:-1]])
        self.batch = np.repeat([row.batch for row in rows], counts)
        self.precision, self.unit = rows[0].gpu.precision, rows[0].gpu.unit
        for name in [field.name for field in fields(Work)]:
            setattr(self, name, np.concatenate([getattr(row.columns, name) for row in rows]))
        for name in ("peak", "bandwidth", "cache", "cache_bandwidth", "multiprocessors", "clock_ghz", "fuses_silu"):
            setattr(self, name, np.repeat([getattr(row.gpu, name) for row in rows], counts))


def numbers_copied(network: str) -> int:
    """Return the number of input and output values of a network per frame."""
    facts = network_facts(network)
    return 3 * int(facts["input"]) ** 2 + int(facts["outputs"] or 0)


@cache
def network_facts(network: str) -> dict[str, str]:
    return next(each for each in read_csv("networks.csv") if f"{each['model']}-{each['input']}" == network)


@cache
def layers_of(network: str) -> Columns:
    works = []
    for row in read_csv(f"layers/{network}.csv"):
        numbers = {key: int(value) for key, value in row.items() if key not in ("name", "kind", *FLAGS)}
        flags = {key: row[key] == "1" for key in FLAGS}
        works.append(Work(row["name"], row["kind"], **numbers, **flags))  # type: ignore[arg-type]
    return Columns(works)


def read_csv(name: str) -> list[dict[str, str]]:
    with (PUBLISHED / name).open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def why_not(row: Mapping[str, str]) -> str | None:
    """Return why a measurement is not usable: not one batch of a known network on one GPU. None if it is usable."""
    source = row["source"]
    if row["unit"] != "gpu":
        return "runs on the DLA, or on GPU and DLAs together"
    if not row["batch"]:
        return "throughput of a batch that is not stated"
    if "end-to-end" in source:
        return "a whole pipeline, not the network"
    if "low confidence" in source:
        return "its own collector trusts it little"
    if not row["latency_ms"] or row["precision"] not in PRECISIONS or network_of(row) not in described():
        return "a network or a precision that is not described here"
    return None


def network_of(row: Mapping[str, str]) -> str:
    """Return the name of a measured network's layer table."""
    return f"{row['model']}-{row['input'].split()[0]}"


@cache
def described() -> frozenset[str]:
    """Return the names of all layer tables."""
    return frozenset(f"{each['model']}-{each['input']}" for each in read_csv("networks.csv"))


def device_for(given: Mapping[str, str], row: Mapping[str, str]) -> GpuFigures:
    """Return the measured device, from a shipped target or from devices.csv, at the clocks of the run."""
    precision = row["precision"]
    if given["target"]:
        gpu = gpu_figures(load_target(given["target"]), precision)
    else:
        peak = {"fp16": given["fp16_tflops"], "int8": given["int8_tops"]}[precision]
        gpu = GpuFigures(
            sm=float(given["sm"]),
            precision=precision,  # type: ignore[arg-type]
            peak=float(peak) * 1e12,
            bandwidth=float(given["bandwidth_gbs"]) * 1e9,
            cache=float(given["l2_mib"]) * MIB,
            multiprocessors=int(given["multiprocessors"]),
            clock_ghz=float(given["clock_ghz"]),
        )
    if not row["clock_ghz"]:
        return gpu
    clock = float(row["clock_ghz"])
    return replace(
        gpu, peak=gpu.peak * clock / gpu.clock_ghz, bandwidth=float(row["bandwidth_gbs"]) * 1e9, clock_ghz=clock
    )


def read_rows() -> tuple[list[Row], list[Row], dict[str, list[int]]]:
    """Return the rows to fit, the rows with power (at full clocks), and lines not used for latency, by reason."""
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
            network=network_of(row),
            batch=int(row["batch"]),
            latency_ms=float(row["latency_ms"]),
            power_w=float(row["power_w"]) if row["power_w"] else None,
            launch=row["launch"],
            source=row["source"],
            gpu=device_for(given, row),
            old=bool(row["trt"]) and int(row["trt"].split(".")[0]) < 8,
            copies="incl. transfers" in row["source"],
        )
        if read.power_w:
            powered.append(replace(read, gpu=device_for(given, {**row, "clock_ghz": ""})))
        if "MaxQ" in row["device"] and not row["clock_ghz"]:
            others.setdefault(LOWERED, []).append(line)
        else:
            rows.append(read)
    slow = slowed_boards(rows)
    others[TOO_SLOW] = [row.line for row in rows if (row.party, row.device) in slow]
    return [row for row in rows if (row.party, row.device) not in slow], powered, others


@dataclass(frozen=True)
class Pipeline:
    """A published latency from frame to detections, of a known network in float16 or in an unstated precision."""

    published: str
    target: str
    network: str
    latency_ms: float
    source: str


def read_pipelines() -> list[Pipeline]:
    """Return the published latencies of whole pipelines, batch size 1."""
    devices = {each["published"]: each["target"] for each in read_csv("devices.csv")}
    return [
        Pipeline(row["device"], devices[row["device"]], network_of(row), float(row["latency_ms"]), row["source"])
        for row in read_csv("measurements.csv")
        if "end-to-end" in row["source"]
        and row["latency_ms"]
        and row["precision"] in ("", "fp16")
        and network_of(row) in described()
    ]


def slowed_boards(rows: Sequence[Row]) -> set[tuple[str, str]]:
    """Return boards, as (source, device), that cannot have run at their nominal clocks.

    At nominal clocks a network is slower than on another board of the same compute capability by at most the largest
    ratio of their figures (peak, bandwidth, clock, cache). This does not depend on predictions.
    """
    found = set()
    for row in rows:
        for other in rows:
            if row.run == other.run:
                figures = ("peak", "bandwidth", "clock_ghz", "cache")
                most = max(getattr(other.gpu, name) / getattr(row.gpu, name) for name in figures)
                if row.latency_ms > NOISE * most * other.latency_ms:
                    found.add((row.party, row.device))
    return found

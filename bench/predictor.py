"""Measure errors of predicted latencies on devices and for networks that were not used in the fit.

The tables in `published/` name their sources. Needs only edgekd.
"""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import ceil, exp, log
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, get_args

import numpy as np
from frame import Blocks, Document, Given, Option, Result, cell, claim, claims_table, head, main, note, table
from numpy.typing import NDArray
from published.dla import Together, errors_by_network, errors_together, fit_dla, read_dla_rows, read_together
from published.rows import Row, Table, layers_of, read_csv, read_pipelines, read_rows
from scipy.optimize import least_squares

from edgekd.core.atomic_files import write_file
from edgekd.hardware.predict import latency
from edgekd.hardware.predict.device import gpu_figures
from edgekd.hardware.predict.dla import DlaCoefficients
from edgekd.hardware.predict.energy import EnergyModel, mode_watts
from edgekd.hardware.predict.latency import COEFFICIENTS, Calibration, Coefficients, LatencyModel, scale_from, seconds
from edgekd.hardware.target import load_target

PACKAGED = Path(latency.__file__).with_name(COEFFICIENTS)
SHARE = 0.9  # nominal coverage of the intervals
INSIDE = (0.88, 0.95)
"""Goal for the coverage on devices left out: least and most."""
MOST_ERROR = 0.10
"""Goal for the median error on devices left out."""
THOR = "Thor"
MOST_ERROR_OF_THOR = 0.20
"""Goal for the median error on Thor, the only device of its generation."""
LEAST_GAIN = 3.0
"""Goal for the median error of the better naive method, relative to the predictor's."""
MOST_OFF = 0.02
"""Goal for the relative error of a network's number of operations."""

OLD = "old_launch_us"
START: dict[str, tuple[float, float, float, float]] = {
    "launch_us": (7, 0.5, 0.1, 100),
    "graph_us": (3.5, 0.5, 0.1, 100),
    "wave": (8192, 0.3, 500, 1e5),
    "bandwidth": (0.75, 0.15, 0.3, 1),
    "cache": (0.25, 0.5, 0.02, 2),
    "cuda_fp32": (0.75, 0.3, 0.2, 2.25),
    "cuda_fp16": (0.65, 0.3, 0.2, 2.25),
    "tensor_fp32": (0.7, 0.2, 0.2, 1),
    "tensor_fp16": (0.7, 0.2, 0.2, 1),
    "tensor_int8": (0.75, 0.2, 0.2, 1),
    "copy": (0.7, 0.5, 0.05, 4),
    "transfer": (0.15, 0.4, 0.02, 1),
    OLD: (9, 0.5, 0.1, 100),
}
"""Prior of each coefficient: its median, the standard deviation of its logarithm, and its bounds.

OLD is the launch time without a CUDA graph before TensorRT 8. CUDA cores may exceed their peak by up to 2.25 times, the
saving of Winograd convolutions.
"""


class Fitted:
    """Fitted coefficients by the names in START."""

    def __init__(self, values: Mapping[str, float]) -> None:
        self.values = values
        self.coefficients = Coefficients(**{name: value for name, value in values.items() if name != OLD})

    def latency_ms(self, rows: Table) -> NDArray[np.float64]:
        """Return the predicted milliseconds of each row, under its measurement's conditions (launches, copies)."""
        by = self.coefficients
        found = rows.bytes_copied / (rows.bandwidth * by.transfer)
        launch = np.where(rows.graph, by.graph_us, np.where(rows.old, self.values[OLD], by.launch_us))
        for part in rows.parts:
            layers = seconds(part, part, by, part.batch, launch[part.layer])
            found[part.at] += np.add.reduceat(layers, part.first)
        return found * 1e3


PRIOR = Fitted({name: float(values[0]) for name, values in START.items()})


def fit(
    rows: Table,
    used: NDArray[np.bool_] | None = None,
    start: Fitted = PRIOR,
    fixed: Mapping[str, float] = MappingProxyType({}),
) -> Fitted:
    """Fit coefficients by robust least squares on the logarithms of prediction and measurement.

    A group of rows from one source and place weighs as much as the square root of its size. used: Mask of rows; by
    default all. fixed: Coefficients that keep a value.
    """
    chosen = np.ones(len(rows.rows), dtype=bool) if used is None else used
    names = [name for name in START if name not in fixed]
    prior, spread, lowest, highest = (np.array([START[name][at] for name in names]) for at in range(4))
    groups = [row.group for row, each in zip(rows.rows, chosen, strict=True) if each]
    counts = Counter(groups)
    weight = np.array([counts[group] ** -0.25 for group in groups])
    measured = np.log(rows.measured)

    def fitted(logs: NDArray[np.float64]) -> Fitted:
        return Fitted({**fixed, **dict(zip(names, map(float, np.exp(logs)), strict=True))})

    def residuals(logs: NDArray[np.float64]) -> NDArray[np.float64]:
        errors = (np.log(fitted(logs).latency_ms(rows)) - measured)[chosen]
        # 0.1 is the typical spread of repeated measurements. The prior determines coefficients without data.
        return np.concatenate([errors * weight / weight.mean() / 0.1, (logs - np.log(prior)) / spread])

    bounds = np.log(lowest), np.log(highest)
    inside = np.clip(np.log([start.values[name] for name in names]), bounds[0] + 1e-3, bounds[1] - 1e-3)
    done = least_squares(residuals, inside, bounds=bounds, loss="soft_l1", x_scale=0.3, max_nfev=60, ftol=1e-3)
    return fitted(done.x)


UnitKind = Literal["device", "family"]
Unit = tuple[UnitKind, str]  # a whole device or a whole family of networks
UNIT_KINDS: tuple[UnitKind, ...] = get_args(UnitKind)


def of(row: Row, unit: Unit) -> bool:
    return bool(getattr(row, unit[0]) == unit[1])


@dataclass(frozen=True)
class Judged:
    """A row predicted without its unit. error: logarithm of predicted / measured.

    seen: whether other rows have its compute capability and precision; placed: the error after correction by other
    measurements of the same device in the same precision, None if there are none.
    """

    at: int
    error: float
    seen: bool
    placed: float | None


@dataclass(frozen=True)
class Margins:
    """Factors of the 90 % interval: see `Calibration`."""

    measured: float
    narrow: float
    wide: float

    def of(self, judged: Judged) -> float:
        if judged.placed is not None:
            return self.measured
        return self.narrow if judged.seen else self.wide


class Study:
    """Fits that leave out units, cached."""

    def __init__(self, rows: Sequence[Row], table: Table | None = None) -> None:
        self.rows = rows
        self.table = table or Table(rows)
        self.measured = self.table.measured
        self.whole = fit(self.table)
        self._made: dict[frozenset[Unit], Fitted] = {frozenset(): self.whole}

    def fit_without(self, *units: Unit, fixed: Mapping[str, float] = MappingProxyType({})) -> Fitted:
        """Fit the rows that are not of these units."""
        key = frozenset(units)
        if key in self._made and not fixed:
            return self._made[key]
        rest = np.array([not any(of(row, unit) for unit in units) for row in self.rows])
        # Start from a fit that leaves out one unit less.
        near = self._made.get(frozenset(units[1:]), self.whole)
        found = fit(self.table, rest, near, fixed)
        note("without", *(name for _, name in units))
        return found if fixed else self._made.setdefault(key, found)

    def without(self, *units: Unit) -> NDArray[np.float64]:
        """Return the milliseconds of every row, predicted by a fit without these units."""
        return self.fit_without(*units).latency_ms(self.table)

    def units(self, kind: UnitKind) -> list[Unit]:
        return [(kind, name) for name in sorted({getattr(row, kind) for row in self.rows})]

    def judge(self, unit: Unit, *hidden: Unit) -> list[Judged]:
        """Predict the rows of a unit by a fit without it and without the hidden units."""
        predicted = self.without(unit, *hidden)
        ratios = self.measured / predicted
        known = [at for at, row in enumerate(self.rows) if not any(of(row, each) for each in (unit, *hidden))]
        kinds = {self.rows[at].kind for at in known}
        found = []
        for at, row in enumerate(self.rows):
            if of(row, unit) and not any(of(row, each) for each in hidden):
                error = log(predicted[at] / row.latency_ms)
                there = [ratios[each] for each in known if self.rows[each].place == row.place]
                placed = error + log(correction(there)) if there else None
                found.append(Judged(at, error, row.kind in kinds, placed))
        return found

    def margins(self, *hidden: Unit) -> Margins:
        """Return the margins by cross-validation over devices and networks, without the hidden units."""
        devices, networks = (
            [judged for unit in self.units(kind) if unit not in hidden for judged in self.judge(unit, *hidden)]
            for kind in UNIT_KINDS
        )
        measured = margin([judged.placed for judged in networks if judged.placed is not None])
        narrow = max(measured, margin([judged.error for judged in devices if judged.seen]))
        wide = max(narrow, margin([judged.error for judged in devices if not judged.seen]))
        return Margins(measured, narrow, wide)

    def left_out(self, kind: UnitKind) -> tuple[NDArray[np.float64], list[bool]]:
        """Return each row's prediction without its unit, and whether the measurement is inside the interval."""
        predicted, inside = np.zeros(len(self.rows)), [False] * len(self.rows)
        for unit in self.units(kind):
            margins = self.margins(unit)
            for judged in self.judge(unit):
                error = judged.error if judged.placed is None else judged.placed
                predicted[judged.at] = self.rows[judged.at].latency_ms * exp(error)
                inside[judged.at] = abs(error) <= log(margins.of(judged))
        return predicted, inside

    def corrections(self) -> dict[str, dict[str, float]]:
        """Return the factor of measured / predicted latency of each measured target, by precision."""
        found: dict[str, dict[str, float]] = {}
        ratios = self.measured / self.whole.latency_ms(self.table)
        for row in self.rows:
            if row.target:
                there = [ratio for ratio, each in zip(ratios, self.rows, strict=True) if each.place == row.place]
                found.setdefault(row.target, {})[row.gpu.precision] = correction(there)
        return {target: dict(sorted(found[target].items())) for target in sorted(found)}

    def scaled_errors(self) -> list[float]:
        """Return errors (of logarithms) of predictions without the device, scaled by other networks measured on it."""
        found = []
        for at, row in enumerate(self.rows):
            ratios = self.measured / self.without(("device", row.device))
            others = [
                ratio
                for ratio, each in zip(ratios, self.rows, strict=True)
                if each.group == row.group and each.model != row.model
            ]
            if others:
                found.append(log(scale_from(others) / ratios[at]))
        return found


def correction(ratios: Sequence[float]) -> float:
    """Return the median of measured / predicted ratios, shrunk towards 1 if there are few."""
    return scale_from(ratios) ** (len(ratios) / (len(ratios) + 1))


def margin(errors: Sequence[float]) -> float:
    """Return the factor that covers a new error (of logarithms) with probability SHARE: the conformal quantile."""
    ordered = sorted(map(abs, errors))
    return exp(ordered[min(ceil((len(ordered) + 1) * SHARE), len(ordered)) - 1])


def by_peak(rows: Sequence[Row]) -> NDArray[np.float64]:
    """Return latencies by peak throughput, from the same network on other devices, if possible in its precision."""

    def alike(row: Row, others: Sequence[Row]) -> list[Row]:
        same = [other for other in others if other.model == row.model]
        exact = [other for other in same if other.gpu.precision == row.gpu.precision]
        return exact or same or list(others)

    return naive(rows, alike, lambda row: row.columns.operations * row.batch / row.gpu.peak)


def by_multiply_adds(rows: Sequence[Row]) -> NDArray[np.float64]:
    """Return latencies scaled by multiply-adds from the device with the nearest peak in that precision."""

    def alike(row: Row, others: Sequence[Row]) -> list[Row]:
        same = [other for other in others if other.gpu.precision == row.gpu.precision]
        apart = [abs(log(other.gpu.peak / row.gpu.peak)) for other in same]
        return [other for other, far in zip(same, apart, strict=True) if far <= min(apart) + 1e-9]

    return naive(rows, alike, lambda row: row.columns.operations * row.batch)


def naive(
    rows: Sequence[Row], alike: Callable[[Row, Sequence[Row]], list[Row]], size: Callable[[Row], float]
) -> NDArray[np.float64]:
    """Return latencies in milliseconds proportional to `size`, by the median over similar rows on other devices."""
    found = []
    for row in rows:
        others = alike(row, [other for other in rows if other.device != row.device])
        found.append(size(row) * scale_from([other.latency_ms / size(other) for other in others]))
    return np.array(found)


@dataclass(frozen=True)
class Powered:
    """A row with measured power. millijoules: energy per frame; watts: budget of its power mode."""

    row: Row
    millijoules: float
    watts: float

    def by(self, model: EnergyModel, latency_ms: float) -> float:
        """Return the predicted millijoules per frame. latency_ms: of the batch at full clocks."""
        operations = self.row.columns.operations * self.row.batch
        return model.frame(self.watts, self.row.gpu, operations, latency_ms) / self.row.batch


def with_power(rows: Sequence[Row]) -> list[Powered]:
    found = []
    for row in rows:
        watts = mode_watts(load_target(row.target))
        if row.power_w and watts:
            found.append(Powered(row, row.power_w * row.latency_ms / row.batch, watts))
    return found


def fit_energy(rows: Sequence[Powered], latency_ms: NDArray[np.float64]) -> EnergyModel:
    """Fit the drawn power as shares of the power mode's. latency_ms: predicted for full clocks."""
    target = np.log([each.millijoules for each in rows])

    def residuals(logs: NDArray[np.float64]) -> NDArray[np.float64]:
        model = EnergyModel(*map(float, np.exp(logs)), margin=1, seen=())
        return np.log([each.by(model, ms) for each, ms in zip(rows, latency_ms, strict=True)]) - target

    done = least_squares(residuals, np.log([0.5, 0.5]), loss="soft_l1", f_scale=0.1)
    return EnergyModel(*map(float, np.exp(done.x)), margin=1, seen=tuple(sorted({each.row.gpu.sm for each in rows})))


def energy_errors(study: Study, rows: Sequence[Powered]) -> list[float]:
    """Return errors (of logarithms) of energies on devices left out of the fits."""
    found = []
    table = Table([each.row for each in rows])
    for device in sorted({each.row.device for each in rows}):
        latency_ms = study.fit_without(("device", device)).latency_ms(table)
        rest = [at for at, each in enumerate(rows) if each.row.device != device]
        model = fit_energy([rows[at] for at in rest], latency_ms[rest])
        for each, ms in zip(rows, latency_ms, strict=True):
            if each.row.device == device:
                found.append(log(each.by(model, ms) / each.millijoules))
    return found


ABLATIONS: dict[str, dict[str, float]] = {
    "without the last wave": {"wave": 1e-9},
    "without launches": {"launch_us": 1e-9, "graph_us": 1e-9, OLD: 1e-9},
    "without the L2 cache": {"cache": 1e-9},
    "copies as fast as their bytes": {"copy": 1.0},
}


def errors_of(rows: Sequence[Row], predicted: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.abs(predicted / np.array([row.latency_ms for row in rows]) - 1)


def median_error(logs: Sequence[float]) -> float:
    """Return the median of |predicted / measured - 1| from logarithms of predicted / measured."""
    return float(np.median(np.abs(np.expm1(logs))))


def lines(
    rows: Sequence[Row], key: Callable[[Row], str], ways: Mapping[str, NDArray[np.float64]], inside: Sequence[bool]
) -> list[dict[str, Any]]:
    found = []
    for name in [*sorted({key(row) for row in rows}), "all"]:
        at = [index for index, row in enumerate(rows) if name in ("all", key(row))]
        chosen = [rows[index] for index in at]
        errors = {way: float(np.median(errors_of(chosen, predicted[at]))) for way, predicted in ways.items()}
        inside_of = float(np.mean([inside[index] for index in at]))
        found.append({"what": name, "rows": len(at), **errors, "inside": inside_of})
    return found


def without_terms(study: Study) -> dict[str, float]:
    """Return the median error on devices left out for each ablation of the model."""
    found = {name: error_without(study, fixed) for name, fixed in ABLATIONS.items()}
    fused = Table(study.rows)
    for part in fused.parts:
        part.fuses_silu = np.ones_like(part.fuses_silu)
    return {**found, "SiLU in the kernel of its convolution everywhere": error_without(Study(study.rows, fused), {})}


def error_without(study: Study, fixed: Mapping[str, float]) -> float:
    """Return the median error on devices left out, with fixed coefficients."""
    predicted = np.zeros(len(study.rows))
    for unit in study.units("device"):
        there = [at for at, row in enumerate(study.rows) if of(row, unit)]
        predicted[there] = study.fit_without(unit, fixed=fixed).latency_ms(study.table)[there]
    return float(np.median(errors_of(study.rows, predicted)))


@dataclass(frozen=True)
class DlaStudy:
    """The fit to the DLAs of AGX Orin. by_network: Errors (of logarithms) for families of networks left out. together:
    Errors of throughputs of GPU and DLAs together, whose devices and networks are in `lines`."""

    coefficients: DlaCoefficients
    rows: int
    by_network: list[float]
    together: list[float]
    lines: list[tuple[str, str]]


def dla_of(study: Study) -> DlaStudy:
    """Fit the DLA of AGX Orin, and predict throughputs of devices with GPU and DLAs running together.

    The GPU is predicted by a fit without its device. Only AGX Orin's DLA is fitted.
    """
    rows, together = read_dla_rows(), read_together()
    coefficients = fit_dla(rows)

    def gpu_fps(row: Together) -> float:
        target = load_target(row.target)
        device = next(each.device for each in study.rows if each.target == row.target)
        by = study.fit_without(("device", device)).coefficients
        layers = seconds(layers_of(row.network), gpu_figures(target, "int8"), by, row.batch)
        return float(row.batch / np.sum(layers))

    by_network = [error for errors in errors_by_network(rows).values() for error in errors]
    errors = errors_together(together, coefficients, gpu_fps)
    return DlaStudy(coefficients, len(rows), by_network, errors, [(row.published, row.network) for row in together])


def model_of(study: Study, powered: Sequence[Powered]) -> tuple[LatencyModel, list[float], DlaStudy]:
    """Return the model to ship, the energy errors (of logarithms) on devices left out, and the fit to DLAs."""
    rows, margins, corrections = study.rows, study.margins(), study.corrections()
    factors = np.array([corrections[each.row.target][each.row.gpu.precision] for each in powered])
    latency_ms = study.whole.latency_ms(Table([each.row for each in powered])) * factors
    errors, energy = energy_errors(study, powered), fit_energy(powered, latency_ms)
    counts = sorted(row.columns.operations // 2 for row in rows)
    calibration = Calibration(
        measured_margin=margins.measured,
        margin=margins.narrow,
        wide_margin=margins.wide,
        scaled_margin=margin(study.scaled_errors()),
        seen=tuple(sorted({row.kind for row in rows})),
        multiply_adds=(int(counts[0]), int(counts[-1])),
    )
    energy, dla = replace(energy, margin=margin(errors)), dla_of(study)
    by = replace(dla.coefficients, margin=margin([*dla.by_network, *dla.together]))
    return LatencyModel(study.whole.coefficients, corrections, calibration, energy, by), errors, dla


def run(given: Given) -> Result:
    rows, lowered, others = read_rows()
    study, powered = Study(rows), with_power(lowered)
    by_device, in_device = study.left_out("device")
    by_network, in_network = study.left_out("family")
    ways = {"error": by_device, "peak_error": by_peak(rows), "multiply_adds_error": by_multiply_adds(rows)}
    model, energies, dla = model_of(study, powered)
    measurements = [
        {
            **{"line": row.line, "device": row.published, "network": row.network, "precision": row.gpu.precision},
            **{"batch": row.batch, "latency_ms": row.latency_ms},
            **{"without_device_ms": float(f"{by_device[at]:.5g}"), "inside": in_device[at]},
            **{"without_network_ms": float(f"{by_network[at]:.5g}"), "inside_without_network": in_network[at]},
        }
        for at, row in enumerate(rows)
    ]
    found = Document(
        used=len(rows),
        left_out=others,
        sizes=sizes(),
        devices=lines(rows, lambda row: row.device, ways, in_device),
        precisions=lines(rows, lambda row: row.gpu.precision, ways, in_device),
        networks=lines(rows, lambda row: row.family, {"error": by_network}, in_network),
        without=without_terms(study),
        energy={"rows": len(powered), "median_error": median_error(energies)},
        dla={
            **{"rows": dla.rows, "networks_error": median_error(dla.by_network)},
            "together": [
                {"device": device, "network": network, "error": float(np.expm1(error))}
                for (device, network), error in zip(dla.lines, dla.together, strict=True)
            ],
        },
        pipelines=pipelines(study),
        model=asdict(model),
        measurements=measurements,
    )
    if given.write_coefficients:
        write_file(PACKAGED, (json.dumps(asdict(model), indent=1) + "\n").encode())
    return {**found, OLD: study.whole.values[OLD], "claims": claims(found)}


def pipelines(study: Study) -> list[dict[str, Any]]:
    """Return published times of whole pipelines, and the predicted times of their engines in half precision."""
    by = study.whole.coefficients
    found = []
    for each in read_pipelines():
        layers = seconds(layers_of(each.network), gpu_figures(load_target(each.target), "fp16"), by)
        found.append({**asdict(each), "engine_ms": float(np.sum(layers) * 1e3)})
    return found


def sizes() -> list[dict[str, Any]]:
    """Return each network's operations by its table, and as published, in 10^9."""
    found = []
    for row in read_csv("networks.csv"):
        name, published = f"{row['model']}-{row['input']}", float(row["gflops"] or 0) or None
        operations = layers_of(name).operations / 1e9
        found.append({"network": name, "gflops": operations, "published": published, "source": row["source"] or None})
    return found


def claims(found: Document) -> list[dict[str, Any]]:
    of_all, networks = found.devices[-1], found.networks[-1]
    off = max(abs(each["gflops"] / each["published"] - 1) for each in found.sizes if each["published"])
    gain = min(of_all["peak_error"], of_all["multiply_adds_error"]) / of_all["error"]
    thor, inside = next(line["error"] for line in found.devices if line["what"] == THOR), of_all["inside"]
    least, most = INSIDE
    return [
        claim("median error on devices left out, at most 0.10", of_all["error"], of_all["error"] <= MOST_ERROR),
        claim("the same of Thor alone, at most 0.20", thor, thor <= MOST_ERROR_OF_THOR),
        claim("share of these in the interval, in whole percent 88 to 95", inside, least <= round(inside, 2) <= most),
        claim("the same of networks left out, at least 0.88", networks["inside"], networks["inside"] >= least),
        claim("median error of the better naive way by that of the predictor, at least 3", gain, gain >= LEAST_GAIN),
        claim("operations of a network's table, at most 0.02 off what is published", off, off <= MOST_OFF),
    ]


def page(found: Document) -> Blocks:
    yield from head("Errors of predicted latencies", found)
    yield """\
Every prediction here is of a device, or of a network, that no coefficient was fitted on. Errors are medians of
|predicted / measured - 1|; inside is the share of measurements in the 90 % interval."""
    yield claims_table(found.claims, ".3g")
    yield "## Devices left out"
    yield """\
The interval of a device comes from the others alone: from devices and from families of networks, each left out in turn.
Peak ratio: the same network's latency on other devices, by the ratio of peaks. Multiply-adds: latency in
proportion to them, as on the measured device whose peak is nearest. Both take the median of all that is known
but for the device."""
    naive_header = "measurements | predictor | peak ratio | multiply-adds | inside"
    yield table(f"device | {naive_header}", (_cells(line, 3) for line in found.devices))
    yield "The same by precision:"
    yield table(f"precision | {naive_header}", (_cells(line, 3) for line in found.precisions))
    yield "## Families of networks left out"
    yield """\
The device is known here: what was measured of other families there, in the same precision, corrects predictions,
as it does for the shipped targets."""
    yield table("family | measurements | predictor | inside", (_cells(line, 1) for line in found.networks))
    yield "## Ablation of the terms"
    yield "Median error on devices left out, fitted anew:"
    yield table(" | error", (f"{name} | {error:.1%}" for name, error in found.without.items()))
    yield from _fitted(found)
    yield "## Pre- and postprocessing"
    yield """\
Published times from a frame to detections, in Python, beside the predicted time of the engine in half precision. What
is left is of pre- and postprocessing, copies and the pipeline itself. It is too little data to predict from, and no
part of a prediction."""
    yield table(
        "device | network | measured, ms | engine, predicted, ms | left, ms",
        (
            f"{each.published} | {each.network} | {each.latency_ms:.1f} | {each.engine_ms:.1f} | "
            f"{each.latency_ms - each.engine_ms:.1f}"
            for each in found.pipelines
        ),
    )
    yield "## Measurements that are not used"
    yield table("why | rows", (f"{reason} | {len(unused)}" for reason, unused in found.left_out.items()))
    yield "## Networks"
    yield "Operations in 10^9, a multiply-add being two, and what is published for them:"
    yield table(
        "network | here | published",
        (
            f"{size.network} | {size.gflops:.2f} | {f'{size.published:g} ({size.source})' if size.published else ''}"
            for size in found.sizes
        ),
    )
    yield f"{found.date}. Every measurement with its two predictions is in the JSON file beside this page."


def _fitted(found: Document) -> Blocks:
    model = found.model
    yield "## Fitted coefficients"
    yield """\
On all measurements: robust least squares of logarithms (soft L1), rows of one party in one place counting
together as the root of their number. Start values and bounds are in the script. Choices made by looking at these
errors: the longer of arithmetic and memory, and the launch beside it; a launch by a CUDA graph, and one of TensorRT
before 8, have times of their own, one from Python has not; SiLU is a kernel of its own in INT8 and before Ampere; the
cache's law; there is no coefficient for the Python around a network; the interval of a device is at least as wide as
that of a family of networks on a device that was measured."""
    values = {**model.coefficients, OLD: found[OLD]}
    values |= {f"energy, {name}": model.energy[name] for name in ("idle", "busy")}
    yield table("coefficient | value", (f"{name} | {value:.4g}" for name, value in values.items()))
    yield "The 90 % interval is the prediction divided and multiplied by"
    margins = {text: model.calibration[name] for name, text in _MARGINS.items()}
    margins["energy"] = model.energy.margin
    yield table(" | factor", (f"{text} | {value:.2f}" for text, value in margins.items()))
    yield "How much longer than the coefficients say targets take that were measured themselves:"
    yield table(
        "target | fp32 | fp16 | int8",
        (
            f"{target} | " + " | ".join(cell(by.get(name), ".2f", "") for name in ("fp32", "fp16", "int8"))
            for target, by in model.corrections.items()
        ),
    )
    energy = found.energy
    yield f"Energy: {energy.rows} measurements of three kits, each left out in turn: error {energy.median_error:.1%}."
    yield "## DLA"
    yield f"""\
{found.dla.rows} throughputs of AGX Orin's DLAs in INT8, dense and with 2:4 sparsity, in four power modes. Each family
of networks left out in turn: median error {found.dla.networks_error:.1%}. The interval is the prediction divided and
multiplied by {model.dla.margin:.2f}."""
    names = [name for name in model.dla if name != "margin"]
    yield table("coefficient | value", (f"{name} | {model.dla[name]:.4g}" for name in names))
    yield """\
GPU and both DLAs at work, which no coefficient was fitted on: the GPU predicted without its device, the DLAs of Xaviers
from those of AGX Orin."""
    yield table(
        "device | network | predicted by measured frames a second",
        (f"{each.device} | {each.network} | {1 + each.error:.2f}" for each in found.dla.together),
    )


def _cells(line: Document, ways: int) -> str:
    errors = [f"{line[way]:.1%}" for way in ("error", "peak_error", "multiply_adds_error")[:ways]]
    return " | ".join([line.what, str(line.rows), *errors, f"{line.inside:.0%}"])


_MARGINS = {
    "measured_margin": "for a target that was measured in that precision",
    "margin": "for another, of a compute capability that was measured in that precision",
    "wide_margin": "for any other, and where there are doubts",
    "scaled_margin": "after measurements on the device itself",
}


if __name__ == "__main__":
    main(run, page, Option("--write-coefficients", False, "into the package"))

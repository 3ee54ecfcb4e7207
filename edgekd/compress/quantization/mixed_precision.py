"""Mixed-precision planning: a number format for each layer that minimizes the error within a size limit.

    costs = measure_costs(source, frames, step)     once per graph; can be stored as JSON
    plan = plan_for(costs, max_bytes)               as often as needed: milliseconds

An error is the relative error (noise power / signal power) of the network's last products that one layer alone causes
(`sensitivity_4bit`). Small errors of different layers are independent, so they add up. Refitting later layers reduces
the sum; all layers are assumed to gain equally.

`float16` is an option for the head, which has no other, and for layers that INT8 makes noisier than the step allows:
elsewhere it would cost speed without a gain in accuracy. `nvfp4` is an option for matrix products if the step allows
it: few GPUs support it. `coded` is an option with many steps, so that the error per saved byte is alike in all layers.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from edgekd.compress.quantization.calibrate import observe
from edgekd.compress.quantization.half import as_half, as_short_half
from edgekd.compress.quantization.layers import LayerView, ProductView, is_dfl, is_layer, layer_of
from edgekd.compress.quantization.placement import QuantizerPlacement, place
from edgekd.compress.quantization.plan import Plan, PlannedLayer
from edgekd.compress.quantization.quantize import PROBES, frames_to_fit, prepared, require_weights, unreadable
from edgekd.compress.quantization.reconstruct import Stored
from edgekd.compress.quantization.rewrite import apply, insert_activation_pairs, store_weights, stored_names
from edgekd.compress.quantization.scales import choose_scales
from edgekd.compress.quantization.sensitivity_4bit import MIN_POWER, Rounded, measure_rounded
from edgekd.compress.steps import Quantize
from edgekd.compress.weight_formats import WeightFormat
from edgekd.core.canonical import file_sha256
from edgekd.core.errors import CompressError
from edgekd.core.formats import packed_graph
from edgekd.core.formats.int8 import quantize_channels
from edgekd.core.formats.nvfp4 import fits as nvfp4_fits
from edgekd.graph.session import copied
from edgekd.graph.view import Graph


@dataclass(frozen=True)
class FormCost:
    """A format of a layer: stored bytes of its weights and scales, output error it adds, and the step of `coded`."""

    form: WeightFormat
    bytes: int
    error: float
    step: float | None = None


@dataclass(frozen=True)
class LayerCosts:
    """The possible formats of a layer. name: node name; weights: number of weights."""

    name: str
    weights: int
    options: tuple[FormCost, ...]


@dataclass(frozen=True)
class Costs:
    """The cost of every choice, layers in graph order. rest_bytes: size of the packed graph without their weights."""

    graph_sha256: str
    rest_bytes: int
    layers: tuple[LayerCosts, ...]


@dataclass(frozen=True)
class PackedSizes:
    """Sizes in a packed graph, in bytes: weights and scales of each layer, by node name, and the rest."""

    layers: Mapping[str, int]
    rest: int

    @property
    def total(self) -> int:
        """Bytes of the packed graph."""
        return self.rest + sum(self.layers.values())


def measure_costs(source: Path, frames: Iterable[np.ndarray], step: Quantize) -> Costs:
    """Measure the cost of each format of each layer of the float ONNX graph `source`.

    frames: calibration frames of the input's shape. Raises CompressError if there is no frame, no layer can be
    quantized, or a weight or an activation is not finite.
    """
    graph, placement = _read(source)
    fitting = list(islice(frames, frames_to_fit(graph, placement.layers, step.frames, walks=1)))
    if not fitting:
        raise CompressError("plan: nothing to measure with", expected="at least one frame", found="none")
    histograms = observe(graph.model, placement.quantized, fitting)
    scales, snr_db = choose_scales(graph, placement, histograms, step.ranges, fitting[:PROBES])
    views = _layers(graph)
    forms = {name: _forms(layer, placement) for name, layer in views.items()}
    few_bits = {name: [form for form in measured_forms(step) if form in forms[name]] for name in placement.layers}
    rounded: dict[str, list[Rounded]] = {name: [] for name in views}
    codes: dict[tuple[WeightFormat, float | None], dict[str, Stored]] = {("float16", None): {}}
    codes["int8", None] = {name: quantize_channels(views[name].weights) for name in few_bits}
    for each in measure_rounded(graph, few_bits, fitting):
        rounded[each.name].append(each)
        codes.setdefault((each.form, each.step), {})[each.name] = each.stored
    sizes = {key: _stored_bytes(graph, placement, scales, stored) for key, stored in codes.items()}
    layers = []
    for name, layer in views.items():
        bytes_in = {key: size.layers[name] for key, size in sizes.items()}
        options = _options(rounded[name], bytes_in, snr_db.get(name))
        quiet = name in snr_db and snr_db[name] >= step.min_snr_db
        layers.append(LayerCosts(name, layer.weights.size, options[1:] if quiet else options))
    # The header of a graph with coded weights is larger.
    rest = max(size.rest for (form, _), size in sizes.items() if form in ("int8", "coded"))
    return Costs(file_sha256(source), rest, tuple(layers))


def measured_forms(step: Quantize) -> tuple[WeightFormat, ...]:
    """Return the low-bit formats to measure for a step: its own, and coded if none of these is for all layers.

    The error of INT8 is derived from one of them.
    """
    own: tuple[WeightFormat, ...] = ("coded", "fp4x", "nvfp4")
    named = tuple(form for form in own if form in step.formats)
    return named if {"coded", "fp4x"} & {*named} else ("coded", *named)


def choices(source: Path) -> dict[str, tuple[WeightFormat, ...]]:
    """Return the possible formats of each layer of the float ONNX graph `source`, for `plan.require_fits`."""
    graph, placement = _read(source)
    return {name: _forms(layer, placement) for name, layer in _layers(graph).items()}


def plan_for(costs: Costs, max_bytes: int | None = None) -> Plan:
    """Return the plan with the smallest error whose packed graph is predicted to have at most `max_bytes`.

    None: no limit. Raises CompressError if even the smallest plan is larger.
    """
    options = [[(option.bytes, option.error) for option in layer.options] for layer in costs.layers]
    if max_bytes is None:
        chosen = [min(range(len(each)), key=lambda index: each[index][::-1]) for each in options]
    else:
        smallest = _smallest(costs)
        if smallest > max_bytes:
            raise CompressError(
                "plan: no choice of formats is small enough",
                expected=f"at most {max_bytes} bytes",
                found=f"at least {smallest} bytes",
                fix="allow coded for every layer, raise the limit, or start from a smaller network",
            )
        chosen = solve(options, max_bytes - costs.rest_bytes)
    layers = []
    for layer, index in zip(costs.layers, chosen, strict=True):
        option = layer.options[index]
        layers.append(PlannedLayer(layer.name, option.form, layer.weights, option.bytes, option.error, option.step))
    size = costs.rest_bytes + sum(layer.bytes for layer in layers)
    return Plan(tuple(layers), costs.graph_sha256, size, _short(sum(layer.error for layer in layers)), max_bytes)


def packed_sizes(model: Any, layers: Collection[str]) -> PackedSizes:
    """Return the sizes of a Q/DQ graph after packing. model: a ModelProto; layers: names of nodes in it."""
    packed = packed_graph.pack(model.SerializeToString())
    bytes_of = {section.name: section.stored_bytes for section in packed_graph.sections(packed)}
    graph = Graph(model)
    of_layers = {
        node.name: sum(bytes_of.get(name, 0) for name in stored_names(graph, node))
        for node in graph.nodes
        if node.name in layers
    }
    return PackedSizes(of_layers, len(packed) - sum(of_layers.values()))


def corrected(costs: Costs, plan: Plan, sizes: PackedSizes) -> Costs:
    """Return the costs corrected by the sizes of a graph that was quantized by a plan from these costs.

    All options of a layer with its format in the plan are scaled by the same factor.
    """
    layers = []
    for layer, planned in zip(costs.layers, plan.layers, strict=True):
        factor = sizes.layers[layer.name] / planned.bytes
        options = [
            replace(option, bytes=round(option.bytes * factor)) if option.form == planned.form else option
            for option in layer.options
        ]
        layers.append(replace(layer, options=tuple(options)))
    return replace(costs, rest_bytes=sizes.rest, layers=tuple(layers))


def ladder(costs: Costs, count: int) -> list[Plan]:
    """Return `count` plans at equal steps of size, from the one with the smallest error down to the smallest size."""
    best = plan_for(costs)
    sizes = np.linspace(best.predicted_bytes, _smallest(costs), count).astype(int)
    return [best, *(plan_for(costs, int(size)) for size in sizes[1:])]


def solve(options: Sequence[Sequence[tuple[int, float]]], max_bytes: int) -> list[int]:
    """Return for each layer the index of an option (bytes, error): exact minimum of the error in at most `max_bytes`.

    The sum of the smallest options must be within the limit.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp  # type: ignore[import-untyped]
    from scipy.sparse import csr_array  # type: ignore[import-untyped]

    sizes, errors = (np.array([option[part] for each in options for option in each], float) for part in (0, 1))
    owner = np.repeat(np.arange(len(options)), [len(each) for each in options])
    one_each = csr_array((np.ones(len(owner)), (owner, np.arange(len(owner)))))
    # The solver stops at an absolute gap of 1e-6, which must be small compared with the errors.
    solution = milp(
        errors * (1e6 / max(errors.max(initial=0), 1e-30)),
        integrality=np.ones(len(owner)),
        bounds=Bounds(0, 1),
        constraints=[LinearConstraint(one_each, 1, 1), LinearConstraint(sizes[None], 0, max_bytes)],
        options={"mip_rel_gap": 0},
    )
    assert solution.x is not None, solution.message
    return [int(np.argmax(solution.x[owner == layer])) for layer in range(len(options))]


def _smallest(costs: Costs) -> int:
    return costs.rest_bytes + sum(min(option.bytes for option in layer.options) for layer in costs.layers)


def _read(source: Path) -> tuple[Graph, QuantizerPlacement]:
    """Return the graph prepared for quantization, and its placement with all possible layers in INT8."""
    graph = prepared(source)
    placement = place(graph, unreadable(graph))
    require_weights(graph, placement.layers, source)
    return graph, placement


def _layers(graph: Graph) -> dict[str, LayerView]:
    """Return every layer with a format, in graph order; the constants of DFL are not weights."""
    layers = [layer_of(graph, node) for node in graph.nodes if is_layer(graph, node) and not is_dfl(graph, node)]
    return {layer.name: layer for layer in layers if layer is not None}


def _forms(layer: LayerView, placement: QuantizerPlacement) -> tuple[WeightFormat, ...]:
    """Return the possible formats of a layer."""
    if layer.name not in placement.layers:
        return ("float16",)
    fits = isinstance(layer, ProductView) and nvfp4_fits(layer.weights.shape)
    return ("float16", "int8", "coded", "fp4x", *(("nvfp4",) if fits else ()))


def _options(
    rounded: Sequence[Rounded], bytes_in: Mapping[tuple[WeightFormat, float | None], int], snr_db: float | None
) -> tuple[FormCost, ...]:
    """Return the options of a layer, float16 first.

    rounded: the layer in each measured format and step, empty without INT8; bytes_in: bytes of its weights, by format
    and step; snr_db: signal-to-noise ratio in INT8.
    """
    options = [FormCost("float16", bytes_in["float16", None], 0.0)]
    if not rounded or snr_db is None:
        return tuple(options)
    # The error of INT8 at the outputs is not measured, but scaled like that of another format of the same layer.
    by_noise = next(each for each in rounded if each.form != "nvfp4")
    gain = by_noise.output_error / by_noise.local_noise if by_noise.local_noise else 1.0
    int8 = gain * 10 ** (-snr_db / 10)
    options.append(FormCost("int8", bytes_in["int8", None], _short(int8)))
    coded = [each for each in rounded if each.form == "coded"]
    if coded:
        options += _coded_options(coded, [bytes_in["coded", each.step] for each in coded], int8)
    for each in rounded:
        if each.form != "coded":
            error = each.output_error + (0.0 if each.form == "nvfp4" else int8)
            options.append(FormCost(each.form, bytes_in[each.form, None], _short(error)))
    return tuple(options)


def _coded_options(rounded: Sequence[Rounded], sizes: Sequence[int], int8: float) -> list[FormCost]:
    """Return options of coded INT8 at steps of quarter octaves, interpolated from the measured ones, finest first.

    sizes: bytes of each of `rounded`; int8: error of INT8. Bytes and the logarithm of the error are nearly linear in
    the logarithm of the step.
    """
    measured = np.log2([each.step or 1.0 for each in rounded])
    wanted = np.arange(round(4 * measured[0]), round(4 * measured[-1]) + 1) / 4
    lengths = np.interp(wanted, measured, sizes)
    errors = np.exp2(np.interp(wanted, measured, np.log2([max(each.output_error, MIN_POWER) for each in rounded])))
    return [
        FormCost("coded", round(length), _short(int8 + error), _short(2**step))
        for step, length, error in zip(wanted.tolist(), lengths.tolist(), errors.tolist(), strict=True)
    ]


def _stored_bytes(
    graph: Graph, placement: QuantizerPlacement, scales: Mapping[str, float], codes: Mapping[str, Stored]
) -> PackedSizes:
    """Return the sizes of a graph with some layers stored as in `codes`, and the others in float16."""
    from onnx import numpy_helper

    model = copied(graph.model)
    layers = _layers(graph)
    # Weights of layers in `codes` are replaced again below.
    rounded: dict[str, np.ndarray] = {}
    for layer in layers.values():
        rounded |= layer.initializers(as_short_half(layer.weights), as_half(layer.bias))
    for initializer in model.graph.initializer:
        if initializer.name in rounded:
            initializer.CopyFrom(numpy_helper.from_array(rounded[initializer.name], initializer.name))
    written = Graph(model)
    insert_activation_pairs(written, placement, scales)
    store_weights(written, codes)
    apply(written)
    return packed_sizes(model, layers)


def _short(value: float) -> float:
    """Round to four digits, for readable plans: more are not significant."""
    return float(f"{value:.4g}")

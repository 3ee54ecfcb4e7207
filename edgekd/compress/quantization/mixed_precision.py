"""Mixed-precision planning: a number format for each layer, so that a packed graph keeps a byte limit at least error.

    costs = measure_costs(source, frames, step)     once for a graph; JSON, to be stored as a stage
    plan = plan_for(costs, max_bytes)               as often as needed: milliseconds

An error is the relative error of the network's last products, noise by signal, that one layer causes alone
(`compress.output_error`). Small errors of different layers are independent, so they add up. Refitting later layers
makes the sum smaller; all layers are assumed to gain by it alike.

`float16` is on offer for the head, which has no other, and where INT8 would be noisier than the step allows: elsewhere
it would cost speed without a gain in accuracy. `nvfp4` is on offer for matrix products, where the step names it: few
GPUs support it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from edgekd.compress.quantization.calibrate import observe
from edgekd.compress.quantization.layers import LayerView, ProductView, is_dfl, is_layer, layer_of
from edgekd.compress.quantization.placement import QuantizerPlacement, place
from edgekd.compress.quantization.plan import Plan, PlannedLayer
from edgekd.compress.quantization.quantize import PROBES, frames_to_fit, prepared, require_weights, unreadable
from edgekd.compress.quantization.reconstruct import Stored
from edgekd.compress.quantization.rewrite import apply, insert_activation_pairs, store_weights, stored_names
from edgekd.compress.quantization.scales import choose_scales
from edgekd.compress.quantization.sensitivity_4bit import Rounded, measure_rounded
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
    """A form of a layer: stored bytes of its weights and scales, and the output error it adds."""

    form: WeightFormat
    bytes: int
    error: float


@dataclass(frozen=True)
class LayerCosts:
    """The forms that the layer `name` with so many `weights` can have."""

    name: str
    weights: int
    options: tuple[FormCost, ...]


@dataclass(frozen=True)
class Costs:
    """The cost of every choice, layers in graph order. rest_bytes: of the packed graph without their weights."""

    graph_sha256: str
    rest_bytes: int
    layers: tuple[LayerCosts, ...]


def measure_costs(source: Path, frames: Iterable[np.ndarray], step: Quantize) -> Costs:
    """Measure the cost of each form of each layer of the float ONNX graph `source`.

    frames: calibration frames of the input's shape. Raises CompressError where nothing can be quantized, or a weight or
    an activation is not finite.
    """
    graph, placement = _read(source)
    fitting = list(islice(frames, frames_to_fit(graph, placement.layers, step.frames, walks=1)))
    if not fitting:
        raise CompressError("plan: nothing to measure with", expected="at least one frame", found="none")
    histograms = observe(source, placement.quantized, fitting)
    scales, snr_db = choose_scales(graph, placement, histograms, step.ranges, fitting[:PROBES])
    views = _layers(graph)
    forms = {name: _forms(layer, placement, "nvfp4" in step.formats) for name, layer in views.items()}
    four_bits = {name: [form for form in forms[name] if form in ("fp4x", "nvfp4")] for name in placement.layers}
    rounded = {(each.form, each.name): each for each in measure_rounded(graph, four_bits, fitting)}
    codes: dict[WeightFormat, dict[str, Stored]] = {"float16": {}, "int8": {}}
    codes["int8"].update({name: quantize_channels(views[name].weights) for name in four_bits})
    for (form, name), each in rounded.items():
        codes.setdefault(form, {})[name] = each.stored
    sizes = {form: _stored_bytes(graph, placement, scales, stored) for form, stored in codes.items()}

    def option(form: WeightFormat, name: str) -> FormCost:
        error = _error(form, name, rounded, snr_db[name]) if name in snr_db else 0.0
        return FormCost(form, sizes[form][0][name], _short(error))

    layers = []
    for name, layer in views.items():
        quiet = name in snr_db and snr_db[name] >= step.min_snr_db
        offered = [form for form in forms[name] if not (quiet and form == "float16")]
        layers.append(LayerCosts(name, layer.weights.size, tuple(option(form, name) for form in offered)))
    return Costs(file_sha256(source), sizes["int8"][1], tuple(layers))


def choices(source: Path) -> dict[str, tuple[WeightFormat, ...]]:
    """Return the forms that each layer of the float ONNX graph `source` can have, for `plan.require_fits`."""
    graph, placement = _read(source)
    return {name: _forms(layer, placement, nvfp4=True) for name, layer in _layers(graph).items()}


def plan_for(costs: Costs, max_bytes: int | None = None) -> Plan:
    """Return the plan with the least error whose packed graph is predicted to have at most `max_bytes`.

    Raises CompressError where even the smallest is larger.
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
                fix="allow fp4x for every layer, raise the limit, or start from a smaller network",
            )
        chosen = solve(options, max_bytes - costs.rest_bytes)
    layers = []
    for layer, index in zip(costs.layers, chosen, strict=True):
        option = layer.options[index]
        layers.append(PlannedLayer(layer.name, option.form, layer.weights, option.bytes, option.error))
    size = costs.rest_bytes + sum(layer.bytes for layer in layers)
    return Plan(tuple(layers), costs.graph_sha256, size, _short(sum(layer.error for layer in layers)), max_bytes)


def ladder(costs: Costs, count: int) -> list[Plan]:
    """Return `count` plans at even steps of size, from the one with the least error down to the smallest."""
    best = plan_for(costs)
    sizes = np.linspace(best.predicted_bytes, _smallest(costs), count).astype(int)
    return [best, *(plan_for(costs, int(size)) for size in sizes[1:])]


def solve(options: Sequence[Sequence[tuple[int, float]]], max_bytes: int) -> list[int]:
    """Select an option (bytes, error) of each layer, with the least total error in at most `max_bytes`: exact.

    The smallest options together must keep the limit.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp  # type: ignore[import-untyped]
    from scipy.sparse import csr_array  # type: ignore[import-untyped]

    sizes, errors = (np.array([option[part] for each in options for option in each], float) for part in (0, 1))
    owner = np.repeat(np.arange(len(options)), [len(each) for each in options])
    one_each = csr_array((np.ones(len(owner)), (owner, np.arange(len(owner)))))
    # The solver stops at an absolute gap of 1e-6, which must be small beside the errors.
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
    """Return the graph as it will be quantized, and its placement with all possible layers in INT8."""
    graph = prepared(source)
    placement = place(graph, unreadable(graph))
    require_weights(graph, placement.layers, source)
    return graph, placement


def _layers(graph: Graph) -> dict[str, LayerView]:
    """Return every layer that has a form, in graph order; DFL's constants are no weights."""
    layers = [layer_of(graph, node) for node in graph.nodes if is_layer(graph, node) and not is_dfl(graph, node)]
    return {layer.name: layer for layer in layers if layer is not None}


def _forms(layer: LayerView, placement: QuantizerPlacement, nvfp4: bool) -> tuple[WeightFormat, ...]:
    """Return the forms of a layer; nvfp4: whether it is on offer for those that can have it."""
    if layer.name not in placement.layers:
        return ("float16",)
    fits = nvfp4 and isinstance(layer, ProductView) and nvfp4_fits(layer.weights.shape)
    return ("float16", "int8", "fp4x", "nvfp4") if fits else ("float16", "int8", "fp4x")


def _error(form: WeightFormat, name: str, rounded: Mapping[tuple[WeightFormat, str], Rounded], snr_db: float) -> float:
    """Return the output error of a form. That of INT8 is not measured, but scaled as fp4x's in the same layers."""
    if form == "float16":
        return 0.0
    if form == "nvfp4":
        return rounded[form, name].output_error
    fp4x = rounded["fp4x", name]
    gain = fp4x.output_error / fp4x.local_noise if fp4x.local_noise else 1.0
    int8 = gain * 10 ** (-snr_db / 10)
    return int8 if form == "int8" else int8 + fp4x.output_error


def _stored_bytes(
    graph: Graph, placement: QuantizerPlacement, scales: Mapping[str, float], codes: Mapping[str, Stored]
) -> tuple[dict[str, int], int]:
    """Return the bytes of each layer's weights and scales in a packed graph, and of the rest of it.

    codes: of some layers as they are stored; the others are stored as float16.
    """
    from onnx import numpy_helper

    model = copied(graph.model)
    layers = _layers(graph)
    # Weights that get codes are replaced once more.
    halved = {name for layer in layers.values() for name in layer.initializers(layer.weights, layer.bias)}
    for initializer in model.graph.initializer:
        if initializer.name in halved:
            half = numpy_helper.to_array(initializer).astype(np.float16).astype(np.float32)
            initializer.CopyFrom(numpy_helper.from_array(half, initializer.name))
    written = Graph(model)
    insert_activation_pairs(written, placement, scales)
    store_weights(written, codes)
    apply(written)
    packed = packed_graph.pack(model.SerializeToString())
    bytes_of = {section.name: section.stored_bytes for section in packed_graph.sections(packed)}
    written = Graph(model)
    of_layers = {
        node.name: sum(bytes_of.get(name, 0) for name in stored_names(written, node))
        for node in written.nodes
        if node.name in layers
    }
    return of_layers, len(packed) - sum(of_layers.values())


def _short(error: float) -> float:
    """Round to four digits: more are not significant, and a plan is read by people."""
    return float(f"{error:.4g}")

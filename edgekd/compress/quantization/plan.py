"""Quantization plans: the number format of every layer's weights, with predicted size and error."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgekd.compress.weight_formats import WeightFormat
from edgekd.core.errors import SpecError, did_you_mean
from edgekd.core.toml import parse_table, read_toml, toml_text

MAX_STEP = 8.0
"""Largest step of a coded layer: beyond it nearly all of its weights are zero."""


@dataclass(frozen=True)
class PlannedLayer:
    """A layer, with the number and format of its weights. bytes: predicted size in the packed graph.

    error: predicted relative error (noise power / signal power) that this layer adds to the network's outputs; step:
    step of `coded` weights, relative to the root mean square of an output's weights.
    """

    name: str
    form: WeightFormat
    weights: int
    bytes: int
    error: float
    step: float | None = None


@dataclass(frozen=True)
class Plan:
    """The layers in graph order, with limit and predictions; these need not be updated if forms are edited by hand.

    graph_sha256: hash of the float graph; max_bytes: size limit, None without one; predicted_bytes: size of the packed
    graph; predicted_error: sum over the layers.
    """

    layers: tuple[PlannedLayer, ...]
    graph_sha256: str
    predicted_bytes: int
    predicted_error: float
    max_bytes: int | None = None

    @property
    def forms(self) -> dict[str, WeightFormat]:
        """The format of each layer, by node name."""
        return {layer.name: layer.form for layer in self.layers}

    @property
    def steps(self) -> dict[str, float]:
        """The step of each layer in `coded`, by node name."""
        return {layer.name: layer.step for layer in self.layers if layer.form == "coded" and layer.step is not None}


def plan_toml(plan: Plan) -> str:
    """Return the plan as readable TOML, for `load_plan`."""
    head = {name: getattr(plan, name) for name in ("graph_sha256", "max_bytes", "predicted_bytes", "predicted_error")}
    if plan.max_bytes is None:
        del head["max_bytes"]
    return "".join([_HEADER, toml_text(head), "layers = [\n", *map(_row, plan.layers), "]\n"])


_HEADER = """\
# How the weights of each layer are stored, in graph order. edgekd wrote this, and quantizes by it.
# To change it, change a `form`:
#   fp4x     4 bits a weight, computes in INT8
#   int8     8 bits a weight, computes in INT8
#   coded    as many bits as its `step` needs, computes in INT8: 4.7 with 0.125, one less for twice the step
#   float16  12 bits a weight, computes in floating point; the head has no other form
#   nvfp4    4.5 bits a weight, computes in floating point; matrix products only, and only Blackwell has it
# bytes and error are predictions: how much of the packed graph the layer takes, and the relative error (noise by
# signal) of the network's outputs that it adds. They need not be changed along with a form.
"""


def _row(layer: PlannedLayer) -> str:
    """Return a layer as one line, with numbers in aligned columns before the name."""
    form, weights, size = f'"{layer.form}",', f"{layer.weights},", f"{layer.bytes},"
    numbers = f"weights = {weights:9} bytes = {size:9} error = {layer.error!r:10}"
    step = "" if layer.step is None else f"step = {layer.step!r}, "
    return f"  {{ form = {form:10} {numbers}, {step}{toml_text({'name': layer.name}).strip()} }},\n"


def load_plan(path: Path) -> Plan:
    """Read a plan from a TOML file.

    Raises SpecError for unknown keys and forms, repeated layers, and coded layers without a step from 0 to MAX_STEP.
    """
    table = read_toml(path)
    rows = table.get("layers")
    for row in rows if isinstance(rows, list) else []:
        # Check each row separately first, so that messages contain the layer's name instead of its index.
        name = row.get("name") if isinstance(row, dict) else None
        parse_table(PlannedLayer, row, f"{path}: layer {name}")
    plan = parse_table(Plan, table, str(path))
    twice = [name for name, count in Counter(layer.name for layer in plan.layers).items() if count > 1]
    if twice:
        raise SpecError(f"{path}: layers {_some(twice)}", expected="each once", found="each more than once")
    for layer in plan.layers:
        if layer.form == "coded" and not 0 < (layer.step or 0) <= MAX_STEP:
            what, expected = f"{path}: layer {layer.name}", f"a step above 0 and up to {MAX_STEP:g} with form coded"
            raise SpecError(what, expected=expected, found="none" if layer.step is None else f"{layer.step:g}")
    return plan


def require_fits(plan: Plan, choices: Mapping[str, Collection[WeightFormat]]) -> None:
    """Raise SpecError for a plan with missing or unknown layers, or with formats that a layer cannot have.

    choices: the possible formats of each layer of the graph, by node name.
    """
    fix = "make a plan for this graph"
    if unknown := [name for name in plan.forms if name not in choices]:
        what, found = f"plan: layers {_some(unknown)}", "none of that name"
        fix = did_you_mean(unknown[0], choices) or fix
        raise SpecError(what, expected="layers of the graph", found=found, fix=fix)
    if missing := [name for name in choices if name not in plan.forms]:
        what, found = f"plan: layers {_some(missing)}", "none of that name in the plan"
        raise SpecError(what, expected="every layer of the graph", found=found, fix=fix)
    for name, form in plan.forms.items():
        if form not in choices[name]:
            raise SpecError(f"plan: layer {name}", expected=" or ".join(choices[name]), found=form)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")

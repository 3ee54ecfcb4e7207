"""A plan is a file that people read and edit, and that is refused only where it cannot be what they meant."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekd.compress.quantization.plan import MAX_STEP, Plan, PlannedLayer, load_plan, plan_toml, require_fits
from edgekd.compress.weight_formats import WEIGHT_FORMATS
from edgekd.core.errors import SpecError

PLAN = Plan(
    layers=(
        PlannedLayer("/model.0/conv/Conv", "int8", 432, 500, 0.002),
        PlannedLayer("/model.1/conv/Conv", "fp4x", 147456, 73728, 1.5e-05),
        PlannedLayer("/head/Conv", "float16", 4096, 7400, 0.0),
    ),
    graph_sha256="ab" * 32,
    predicted_bytes=90000,
    predicted_error=0.002015,
    max_bytes=100000,
)
CHOICES: dict[str, Any] = {
    "/model.0/conv/Conv": WEIGHT_FORMATS,
    "/model.1/conv/Conv": WEIGHT_FORMATS,
    "/head/Conv": ("float16",),
}


def written(folder: Path, text: str) -> Path:
    (folder / "plan.toml").write_text(text, "utf-8")
    return folder / "plan.toml"


def refusal(folder: Path, old: str, new: str) -> str:
    """What is said of PLAN's file after an edit."""
    text = plan_toml(PLAN)
    assert text.count(old) == 1
    with pytest.raises(SpecError) as refused:
        load_plan(written(folder, text.replace(old, new)))
    return str(refused.value)


COUNTS = st.integers(0, 2**40)
ERRORS = st.floats(0, allow_nan=False, allow_infinity=False)
NAMES = st.text(st.characters(exclude_categories=["Cs"]))
UNCODED = st.sampled_from([form for form in WEIGHT_FORMATS if form != "coded"])
LAYERS = st.lists(
    st.builds(PlannedLayer, NAMES, UNCODED, COUNTS, COUNTS, ERRORS)
    | st.builds(PlannedLayer, NAMES, st.just("coded"), COUNTS, COUNTS, ERRORS, st.floats(1e-9, MAX_STEP)),
    unique_by=lambda layer: layer.name,
)


@given(st.builds(Plan, LAYERS.map(tuple), NAMES, COUNTS, ERRORS, st.none() | COUNTS))
def test_what_is_written_is_read_back(tmp_path_factory: pytest.TempPathFactory, plan: Plan) -> None:
    assert load_plan(written(tmp_path_factory.getbasetemp(), plan_toml(plan))) == plan


def test_a_layer_is_a_line_in_graph_order_with_its_form_in_a_column() -> None:
    lines = [line for line in plan_toml(PLAN).splitlines() if "name = " in line]
    assert [line.split('"')[-2] for line in lines] == [layer.name for layer in PLAN.layers]
    assert len({line.index("weights = ") for line in lines}) == 1
    assert plan_toml(PLAN).startswith("#")


def test_a_form_is_edited_by_hand_and_the_predictions_stay(tmp_path: Path) -> None:
    path = written(tmp_path, plan_toml(PLAN).replace('"fp4x", ', '"int8", '))
    edited = load_plan(path)
    assert edited.forms == {**PLAN.forms, "/model.1/conv/Conv": "int8"}
    assert edited.predicted_bytes == PLAN.predicted_bytes
    require_fits(edited, CHOICES)


@pytest.mark.parametrize(
    ("step", "found"),
    [("", "none"), ("step = 0.0, ", "0"), ("step = -1, ", "-1"), ("step = 9, ", "9"), ("step = nan, ", "nan")],
)
def test_coded_weights_need_a_step(step: str, found: str, tmp_path: Path) -> None:
    message = refusal(tmp_path, '"fp4x", ', f'"coded", {step}')
    assert "layer /model.1/conv/Conv; expected a step above 0 and up to 8 with form coded; found " + found in message


def test_the_step_of_a_layer_with_another_form_does_not_count(tmp_path: Path) -> None:
    text = plan_toml(PLAN).replace('"fp4x", ', '"coded", step = 0.25, ')
    assert load_plan(written(tmp_path, text)).steps == {"/model.1/conv/Conv": 0.25}
    assert load_plan(written(tmp_path, text.replace('"coded"', '"int8"'))).steps == {}


def test_an_unknown_form_names_the_layer_and_the_nearest(tmp_path: Path) -> None:
    message = refusal(tmp_path, '"fp4x", ', '"fp4", ')
    assert "/model.1/conv/Conv" in message
    assert "did you mean 'fp4x'?" in message


def test_an_unknown_key_is_refused_in_a_layer_and_outside(tmp_path: Path) -> None:
    message = refusal(tmp_path, "bytes = 7400", "byte = 7400")
    assert "/head/Conv" in message
    assert "did you mean 'bytes'?" in message
    assert "did you mean 'max_bytes'?" in refusal(tmp_path, "max_bytes", "max_byte")


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    assert "'graph_sha256' is missing" in refusal(tmp_path, f'graph_sha256 = "{PLAN.graph_sha256}"', "")


def test_a_layer_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    assert "/model.0/conv/Conv" in refusal(tmp_path, "/model.1/conv/Conv", "/model.0/conv/Conv")


def test_layers_that_are_no_table_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="layers"):
        load_plan(written(tmp_path, 'layers = "all"\n'))
    with pytest.raises(SpecError, match="layer"):
        load_plan(written(tmp_path, "layers = [1]\n"))


def test_a_plan_fits_the_graph_it_names() -> None:
    require_fits(PLAN, CHOICES)


def test_a_layer_that_the_graph_lacks_is_named_with_the_nearest() -> None:
    choices = {name.replace("model.1", "model.11"): forms for name, forms in CHOICES.items()}
    with pytest.raises(SpecError, match=r"layers /model\.1/conv/Conv; .* did you mean '/model\.11/conv/Conv'"):
        require_fits(PLAN, choices)


def test_convolutions_that_the_plan_lacks_are_named_and_counted() -> None:
    more: dict[str, Any] = {f"extra{number}": WEIGHT_FORMATS for number in range(5)}
    with pytest.raises(SpecError, match="layers extra0, extra1, extra2 and 2 more"):
        require_fits(PLAN, {**CHOICES, **more})


def test_a_form_that_the_layer_cannot_have_is_refused() -> None:
    with pytest.raises(SpecError, match=r"layer /model\.1/conv/Conv; expected float16; found fp4x"):
        require_fits(PLAN, {**CHOICES, "/model.1/conv/Conv": ("float16",)})

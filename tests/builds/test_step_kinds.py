"""Compression steps: one declaration each, the orders of a recipe, and a step of another package."""

from __future__ import annotations

import ast
import re
from itertools import product
from pathlib import Path

import pytest

import edgekd
from edgekd.builds.recipe import Recipe, load_recipe, recipe_from, recipe_names, refuse_recipe
from edgekd.builds.stage_kinds import code_versions, kind_of, stage_kinds
from edgekd.builds.step_kinds import in_order, order_text, step_kinds
from edgekd.compress import steps
from edgekd.compress.steps import Distill, LowRank, Prune, Quantize, Recover, Step
from edgekd.core.errors import SpecError
from edgekd.hardware.budget import Budget

ORDERS = re.compile("r?p?f?c?d?(qa*)?|dpf?c?d?(qa*)?|qpa+")
"""Orders of resize, prune, factorize, recover, distill, quantize and quant_aware_distill, by a letter for each."""


def vars_of_step(value: object) -> dict[str, object]:
    """The attributes that a subclass of Step declares itself; none of any other object."""
    return dict(vars(value)) if isinstance(value, type) and issubclass(value, Step) and value is not Step else {}


def test_each_step_is_declared_once_with_settings_of_its_own() -> None:
    kinds = step_kinds()
    assert [kind.name for kind in kinds] == [
        "resize",
        "prune",
        "factorize",
        "recover",
        "distill",
        "quantize",
        "quant_aware_distill",
    ]
    assert {kind.settings for kind in kinds} == {each for each in vars(steps).values() if "kind" in vars_of_step(each)}
    assert {step.kind for name in recipe_names() for step in load_recipe(name).steps} <= {kind.name for kind in kinds}


def test_a_recipe_holds_steps_in_the_orders_that_builds_run() -> None:
    kinds, letters = step_kinds(), "rpfcdqa"
    allowed = 0
    for length in range(6):
        for chosen in product(range(len(kinds)), repeat=length):
            fits = ORDERS.fullmatch("".join(letters[index] for index in chosen)) is not None
            assert in_order([kinds[index] for index in chosen]) == fits, [kinds[index].name for index in chosen]
            allowed += fits
    assert allowed == 135


def test_a_wrong_order_is_refused_with_the_orders_that_there_are() -> None:
    wrong = [{"kind": "quantize"}, {"kind": "distill"}]
    with pytest.raises(SpecError, match="own: steps") as caught:
        recipe_from({"name": "own", "steps": wrong}, "own")
    assert order_text() in str(caught.value)
    assert "found quantize, distill" in str(caught.value)
    listed = "resize, prune, factorize, recover, distill, quantize, quant_aware_distill (any number of times); "
    assert listed + "quant_aware_distill after quantize only; or distill, prune" in order_text()


def test_each_kind_of_stage_that_is_declared_is_registered() -> None:
    """A search's trials depend on the code versions of all of them."""
    declared = set()
    for path in Path(edgekd.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "StageKind":
                name = node.args[0]
                declared |= {name.value} if isinstance(name, ast.Constant) else set()
    assert declared == stage_kinds().keys() == code_versions().keys()
    assert kind_of("score-int8") is stage_kinds()["score"]
    assert kind_of("unknown") is None


def test_what_a_student_lacks_is_refused_before_it_is_trained() -> None:
    """What follows a student is a step of the student's family, not of its teacher's."""
    student = Distill(student="torchvision/fcos_resnet50_fpn")
    with pytest.raises(SpecError, match="recipe own replaces convolutions; expected a detector by Ultralytics"):
        refuse_recipe(Recipe("own", (student, Prune(), LowRank())), Budget(), Path("teacher.pt"))
    refuse_recipe(Recipe("own", (Distill(student="yolo11n.pt"), Prune())), Budget(), Path("teacher.tv.pt"))
    with pytest.raises(SpecError, match=r"trains a student; expected a detector by .*; found small\.onnx"):
        refuse_recipe(Recipe("own", (Distill(student="small.onnx"),)), Budget(), Path("teacher.pt"))


def test_recovery_needs_something_to_recover_from() -> None:
    with pytest.raises(SpecError, match="recipe own has nothing to recover from; fix: prune or factorize before"):
        refuse_recipe(Recipe("own", (Recover(), Quantize())), Budget(), Path("teacher.pt"))
    for before in (Prune(), LowRank()):
        refuse_recipe(Recipe("own", (before, Recover())), Budget(), Path("teacher.pt"))


def test_a_step_that_nobody_declares_is_refused() -> None:
    class Own(Quantize):
        kind = "own"

    with pytest.raises(SpecError, match=r"step own is not declared; expected an entry point of edgekd\.steps"):
        refuse_recipe(Recipe("own", (Own(),)), Budget(), Path("a.onnx"))

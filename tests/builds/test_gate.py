"""What a missed limit says: numbers, layers, levers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgekd.builds.gate import costliest, lever, require_met
from edgekd.builds.recipe import load_recipe
from edgekd.builds.stage_store import Stage
from edgekd.builds.stages.quantize import QuantizeResult
from edgekd.core.detection.types import DetectorSpec, Head, Keypoints, Preprocess
from edgekd.core.errors import BudgetError
from edgekd.hardware.budget import Budget, LimitResult, judge, verdict


def quantized(errors: dict[str, float]) -> Stage[QuantizeResult]:
    forms = dict.fromkeys(errors, "int8")
    result = QuantizeResult(None, None, 0, (len(errors), len(errors)), forms, None, {}, errors, {})
    return Stage("quantize", 1, "", Path(), result, {}, "", 0.0, False, {})


def test_the_costliest_layers_come_first_with_their_share() -> None:
    assert costliest({"a": 1.0, "b": 6.0, "c": 2.0, "d": 1.0}) == [("b", 0.6), ("c", 0.2), ("a", 0.1)]
    assert costliest({"a": 0.0}) == []
    assert costliest({}) == []


def test_a_met_or_undecided_limit_raises_nothing() -> None:
    lines = [LimitResult("max_bytes", 10, 10, True, "measured"), LimitResult("min_fps", 60, 10, None, "stand-in")]
    require_met(lines, load_recipe("ptq"), [], None)


def test_lost_accuracy_names_the_layers_and_lost_size_does_not() -> None:
    accuracy, size = (
        LimitResult("min_retention", 0.98, 0.91, False, "measured"),
        LimitResult("max_bytes", 1e6, 2e6, False, "measured"),
    )
    stages = [quantized({"stem": 3.0, "neck": 1.0})]
    with pytest.raises(BudgetError) as caught:
        require_met([accuracy], load_recipe("ptq"), stages, "report")
    assert "mAP50-95 kept is 91.0%, limit 98.0%; most is lost in stem (75%), neck (25%)" in str(caught.value)
    assert caught.value.report == "report"
    with pytest.raises(BudgetError) as caught:
        require_met([size], load_recipe("ptq"), stages, None)
    assert "bundle size is 2.00 MB, limit 1.00 MB" in str(caught.value)
    assert "stem" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "recipe", "words"),
    [
        ("max_bytes", "float", "recipe ptq or mixed"),
        ("max_bytes", "ptq", "recipe mixed, which stores layers in 4 bits"),
        ("max_graph_bytes", "mixed", "a --max-size of at least 2.00 MB"),
        ("min_retention", "ptq", "more calibration images"),
        ("min_retention", "mixed", "recipe qad"),
        ("min_output", "qad", "a lower --keep"),
        ("min_fps", "ptq", "a smaller input size"),
    ],
)
def test_the_next_lever_depends_on_what_was_done(name: str, recipe: str, words: str) -> None:
    value = 2e6 if "bytes" in name else 0.9
    assert words in lever(LimitResult(name, 1.0, value, False, "measured"), load_recipe(recipe), [])


def test_training_is_no_lever_for_keypoints() -> None:
    spec = DetectorSpec(("a",), Preprocess(64, 64), Head("yolo", keypoints=Keypoints((0.1,))))
    stage = replace(quantized({}), result=replace(quantized({}).result, detector=spec))
    line = LimitResult("min_retention", 0.99, 0.9, False, "measured")
    assert "qad" not in lever(line, load_recipe("ptq"), [stage])


def test_training_is_no_lever_twice() -> None:
    assert "qad" not in lever(LimitResult("min_retention", 0.99, 0.9, False, "measured"), load_recipe("qad"), [])


def test_predicted_energy_is_told_and_never_decides() -> None:
    budget = Budget(max_energy_mj=150.0)
    for energy in (100.0, 200.0, None):
        (line,) = judge(budget, size=1, kept=1.0, fps=1.0, basis="measured", energy_mj=energy)
        assert (line.name, line.value, line.met, line.basis) == ("max_energy_mj", energy, None, "predicted")
        assert line.text(line.limit) == "150 mJ"
    assert verdict([line]) is None


@pytest.mark.parametrize(
    ("name", "limit", "value", "said"),
    [
        ("min_retention", 0.98, 0.97961, "kept is 97.96%, limit 98.00%"),
        ("max_bytes", 5_000_000, 5_000_400, "is 5.0004 MB, limit 5.0000 MB"),
        ("min_fps", 60.0, 59.98, "is 59.98, limit 60.00"),
        ("min_retention", 0.98, 0.91, "kept is 91.0%, limit 98.0%"),
    ],
)
def test_a_limit_that_is_missed_by_little_does_not_look_kept(name: Any, limit: float, value: float, said: str) -> None:
    with pytest.raises(BudgetError) as caught:
        require_met([LimitResult(name, limit, value, False, "measured")], load_recipe("ptq"), [], None)
    assert said in str(caught.value)


def test_a_size_that_is_advised_is_enough() -> None:
    assert "at least 5.01 MB" in lever(
        LimitResult("max_bytes", 5_000_000, 5_000_400, False, "measured"), load_recipe("mixed"), []
    )


def test_a_lever_that_is_the_only_one_is_not_another_one() -> None:
    assert lever(LimitResult("min_output", 0.99, 0.9, False, "measured"), load_recipe("qad"), []) == "a lower --keep"

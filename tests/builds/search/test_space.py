"""Candidates: which make sense, and the recipe of each."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from edgekd.builds.recipe import Recipe, load_recipe
from edgekd.builds.recipe_toml import recipe_toml
from edgekd.builds.search.space import FIELDS, FLOAT, INT8, Candidate, DetectorFacts, recipe_of, space_for
from edgekd.compress.steps import Distill, Prune, QuantAwareDistill, Quantize, Resize
from edgekd.hardware.target import load_target

CHECKPOINT = DetectorFacts(640, trains=True, resizes=True, quant_aware=True, students=("small.pt",))
SPACE = space_for(CHECKPOINT, load_target("xavier"), 30)


def kinds(candidate: Candidate, share: float = 1.0) -> list[type]:
    return [type(step) for step in recipe_of(candidate, SPACE, share).steps]


def test_an_onnx_file_has_its_bits_alone_and_a_target_without_int8_not_even_those() -> None:
    onnx = space_for(DetectorFacts(416), load_target("xavier"), 30)
    assert {each.bits for each in onnx.candidates()} == set(onnx.bits)
    assert len(onnx.candidates()) == len(onnx.bits)
    assert [each.bits for each in space_for(DetectorFacts(416), load_target("nano"), 30).candidates()] == [FLOAT]


def test_without_epochs_nothing_is_trained() -> None:
    space = space_for(CHECKPOINT, load_target("xavier"), 0)
    assert not any(each.trains or each.student for each in space.candidates())
    assert {each.ratio for each in space.candidates()} == set(space.ratio)


def test_each_candidate_comes_once_and_makes_sense() -> None:
    found = SPACE.candidates()
    assert len(set(found)) == len(found)
    for each in found:
        assert each == SPACE.sensible(each)
        assert not each.student or each.recovery
        assert not (each.bits == FLOAT and each.quant_aware)
        assert not each.recovery or each.student or each.ratio or each.image_size < 640
    assert SPACE.image_size == (640, 576, 480, 384, 320)
    assert {each.student for each in found} == {None, "small.pt"}


def test_levels_lead_back_to_the_candidate() -> None:
    for each in SPACE.candidates():
        assert SPACE.at({name: SPACE.level(each, name) for name in FIELDS}) == each


def test_recipes_hold_what_a_candidate_says_and_nothing_else() -> None:
    plain = Candidate(None, 640)
    assert recipe_of(plain, SPACE).steps == load_recipe("ptq").steps
    assert kinds(replace(plain, bits=FLOAT)) == []
    whole = Candidate(None, 480, 0.5, 5.5, 30, "predictions", 10)
    assert kinds(whole) == [Resize, Prune, Distill, Quantize, QuantAwareDistill]
    resize, prune, distill, quantize, aware = recipe_of(whole, SPACE).steps
    assert (resize, prune) == (Resize(480), Prune(ratio=0.5))
    assert isinstance(distill, Distill)
    assert isinstance(quantize, Quantize)
    assert (distill.student, distill.epochs, distill.image_size) == (None, 30, 480)
    assert (quantize.bits, aware) == (5.5, QuantAwareDistill(epochs=10))
    student = replace(whole, student="small.pt", ratio=0.0)
    assert kinds(student) == [Distill, Quantize, QuantAwareDistill], "the student is made for its size at once"
    assert student.epochs == 40


def test_a_student_is_pruned_once_it_is_trained_and_trained_again() -> None:
    both = Candidate("small.pt", 480, 0.35, INT8, 30)
    first, prune, second, _ = recipe_of(both, SPACE).steps
    assert isinstance(first, Distill)
    assert isinstance(second, Distill)
    assert (first.student, prune, second) == ("small.pt", Prune(ratio=0.35), replace(first, student=None))
    assert recipe_of(replace(both, ratio=0.0), SPACE).steps[0] == first, "the stage of a student that is not pruned"
    assert both.epochs == 60


def test_a_rung_has_its_share_of_the_epochs_and_one_at_least() -> None:
    whole = Candidate(None, 480, 0.5, INT8, 30, "all", 10)
    steps = {share: recipe_of(whole, SPACE, share).steps for share in (1.0, 1 / 3, 1e-3)}
    assert [[s.epochs for s in found if isinstance(s, (Distill, QuantAwareDistill))] for found in steps.values()] == [
        [30, 10],
        [10, 3],
        [1, 1],
    ]


@pytest.mark.parametrize("candidate", SPACE.candidates()[::37], ids=lambda each: each.text())
def test_a_recipe_is_read_as_it_was_written(candidate: Candidate, tmp_path: Path) -> None:
    recipe = recipe_of(candidate, SPACE)
    (tmp_path / "recipe.toml").write_text(recipe_toml(recipe), "utf-8")
    read = load_recipe(str(tmp_path / "recipe.toml"))
    assert read == recipe


@pytest.mark.parametrize("name", ["float", "ptq", "mixed", "qad", "distill", "prune", "full"])
def test_shipped_recipes_are_read_as_they_are_written(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    odd = Recipe('a "name"\x7f', recipe.steps, "späte\nZeile")
    (tmp_path / "recipe.toml").write_text(recipe_toml(odd), "utf-8")
    assert load_recipe(str(tmp_path / "recipe.toml")) == odd

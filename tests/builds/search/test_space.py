"""Candidates: which make sense, and the recipe of each."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from edgekd.builds.recipe import Recipe, load_recipe
from edgekd.builds.recipe_toml import recipe_toml
from edgekd.builds.search.space import CHOICES, FLOAT, INT8, Candidate, DetectorFacts, recipe_of, space_for
from edgekd.compress.steps import Distill, Prune, QuantAwareDistill, Quantize, Recover, Resize
from edgekd.hardware.target import load_target

CHECKPOINT = DetectorFacts(640, trains=True, resizes=True, recovers=True, quant_aware=True, students=("small.pt",))
SPACE = space_for(CHECKPOINT, load_target("xavier"), 30)


def kinds(candidate: Candidate) -> list[type]:
    return [type(step) for step in recipe_of(candidate, SPACE).steps]


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
        assert bool(each.recovery) == bool(each.student or each.ratio)
        assert not (each.bits == FLOAT and each.quant_aware)
    assert SPACE.image_size == (640, 576, 480, 384, 320)
    assert {each.student for each in found} == {None, "small.pt"}


def test_levels_lead_back_to_the_candidate() -> None:
    for each in SPACE.candidates():
        assert SPACE.at({name: SPACE.level(each, name) for name in CHOICES}) == each


def test_recipes_hold_what_a_candidate_says_and_nothing_else() -> None:
    plain = Candidate(None, 640)
    assert recipe_of(plain, SPACE).steps == load_recipe("ptq").steps
    assert kinds(replace(plain, bits=FLOAT)) == []
    whole = Candidate(None, 480, 0.5, 5.5, 30, 10)
    assert kinds(whole) == [Resize, Prune, Recover, Quantize, QuantAwareDistill]
    assert kinds(whole.untrained) == [Resize, Prune, Quantize]
    resize, prune, recover, quantize, aware = recipe_of(whole, SPACE).steps
    assert (resize, prune, recover) == (Resize(480), Prune(ratio=0.5), Recover(epochs=30))
    assert isinstance(quantize, Quantize)
    assert (quantize.bits, aware) == (5.5, QuantAwareDistill(epochs=10))
    assert replace(load_recipe("mixed").steps[0], bits=5.5) == quantize
    distilled = recipe_of(whole, replace(SPACE, recovers=False)).steps[2]
    assert isinstance(distilled, Distill)
    assert (distilled.student, distilled.epochs, distilled.image_size) == (None, 30, 480)
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

"""The stages of a distillation are data: order, shares and weights come from the recipe, and mistakes are named."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekd.builds.publish import _step_json
from edgekd.builds.recipe import load_recipe, recipe_from
from edgekd.compress.steps import Distill, DistillStage, Prune, Weights
from edgekd.core.errors import SpecError

shares = st.lists(st.floats(0.01, 10), min_size=1, max_size=5)


@given(shares=shares, progress=st.floats(0, 1))
def test_every_moment_of_a_training_is_in_the_stage_that_its_share_says(shares: list[float], progress: float) -> None:
    stages = tuple(DistillStage(str(at), share, Weights()) for at, share in enumerate(shares))
    found = int(Distill(stages=stages).stage_at(progress).name)
    total = sum(shares)
    assert sum(shares[:found]) / total <= progress + 1e-9
    assert found == len(shares) - 1 or progress < sum(shares[: found + 1]) / total + 1e-9


def test_by_default_predictions_alone_are_compared_so_that_the_teacher_is_cached() -> None:
    assert Distill().uses_cache
    assert all(stage.weights.classes and stage.weights.boxes for stage in Distill().stages)


def test_the_shipped_recipe_says_what_the_defaults_are() -> None:
    assert load_recipe("distill").steps == (Distill(),)


def test_stages_come_from_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "small.yaml").touch()
    (tmp_path / "own.toml").write_text(
        'name = "own"\n[[steps]]\nkind = "distill"\nstudent = "small.yaml"\nwidth = 0.1\n'
        '[[steps.stages]]\nname = "all"\nshare = 1\nadaptive = true\nweights = { neurons = 0.5 }\n'
        '[[steps]]\nkind = "quantize"\n[[steps]]\nkind = "quant_aware_distill"\n',
        "utf-8",
    )
    recipe = load_recipe(str(tmp_path / "own.toml"))
    step = recipe.first(Distill)
    assert step is not None
    assert recipe.quantize is not None
    assert recipe.trains
    assert step.student == str(tmp_path / "small.yaml"), "it lies beside the recipe"
    assert step.stages == (DistillStage("all", 1.0, Weights(neurons=0.5), adaptive=True),)
    changed = recipe.with_settings(Distill, student="yolo11n.yaml", epochs=None)
    assert changed.first(Distill) == Distill("yolo11n.yaml", 0.1, stages=step.stages)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("epochs = 0", "epochs"),
        ("minutes = 0", "minutes"),
        ("width = -1.0", "width"),
        ("stages = []", "at least one"),
        ("mosaic = 2.0", "mosaic"),
        ("class_power = 2.0", "class_power"),
        ("repeat = -0.5", "repeat"),
        ("keep = 0.4", "keep"),
        ('unlabelled = "frames"\nunlabelled_share = 0.99', "unlabelled_share"),
        ("text = -1.0", "text"),
        ("focus = 0.5", "focus; expected 0, or 1 or more"),
        ("warmup_steps = -1", "warmup_steps"),
        ("close_mosaic = -1", "close_mosaic"),
        ("balance_every = -1", "balance_every"),
        ("seed = -1", "seed"),
        ('prompts = { red = ["crimson"] }', "prompts without text"),
        ("prompts = { red = 1 }", "prompts: red"),
        ("prompts = 1", "a table"),
        ('alpha = "agrement"', "agreement"),
        ('[[steps.stages]]\nname = "a"\nshare = 0.0\nweights = {}', "share above 0"),
        ('[[steps.stages]]\nname = "a"\nshare = 1\nweights = { boxes = -1 }', "weight boxes"),
        ('[[steps.stages]]\nname = "a"\nshare = 1\nweights = { bxes = 1 }', "boxes"),
        ('[[steps]]\nkind = "distill"', "at most once each"),
        ("[[steps]]\nkind = [{}]", "step 2: `kind`"),
        ("[[steps]]\nkind = 0x" + "f" * 5000, "step 2: `kind`"),
    ],
)
def test_a_mistake_in_a_distillation_is_named(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text(f'name = "own"\n[[steps]]\nkind = "distill"\n{text}\n', "utf-8")
    with pytest.raises(SpecError, match=said):
        load_recipe(str(tmp_path / "own.toml"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "own.toml: key 'name' is missing; expected a table with name, steps; found no other key"),
        (
            '[[steps]]\nkind = "quantize"',
            "own.toml: key 'name' is missing; expected a table with name, steps; found steps",
        ),
        ('name = "own"', "own.toml: key 'steps' is missing; expected a table with name, steps; found name"),
        ('name = "own"\nsteps = ["quantize"]', r"own.toml: steps\[0\]; expected a table; found 'quantize'"),
        ('name = "own"\n[[steps]]\nkind = "resize"', "own.toml: step 1: key 'image_size' is missing"),
    ],
)
def test_a_mistake_in_a_recipe_is_named(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text(text, "utf-8")
    with pytest.raises(SpecError, match=said):
        load_recipe(str(tmp_path / "own.toml"))


def test_the_identity_of_a_recipe_does_not_depend_on_where_its_frames_lie() -> None:
    here, there = (
        Prune(rounds=2, recovery=Distill(unlabelled=f"{folder}/frames")) for folder in ("/home/one", "/home/other")
    )
    assert _step_json(here) == _step_json(there)
    assert _step_json(here)["recovery"]["unlabelled"] == "frames"


def test_only_what_weighs_counts() -> None:
    assert not Weights().any
    assert all(Weights(**{entry.name: 0.1}).any for entry in fields(Weights))


def test_a_recipe_without_distillation_takes_no_student() -> None:
    with pytest.raises(SpecError, match="has no step distill"):
        recipe_from({"name": "own", "steps": []}, "own").with_settings(Distill, student="yolo11n.yaml")


def test_frames_lie_beside_the_recipe_and_prompts_belong_to_classes(tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text(
        'name = "own"\n[[steps]]\nkind = "distill"\nunlabelled = "frames"\nlabeller = "any.onnx"\ntext = 1\n'
        '[steps.prompts]\nno-helmet = ["bare head", "uncovered hair"]\n',
        "utf-8",
    )
    step = load_recipe(str(tmp_path / "own.toml")).first(Distill)
    assert step is not None
    assert (step.unlabelled, step.labeller) == (str(tmp_path / "frames"), str(tmp_path / "any.onnx"))
    (tmp_path / "own.toml").write_text(
        'name = "own"\n[[steps]]\nkind = "prune"\nrounds = 2\nrecovery = { unlabelled = "frames" }\n', "utf-8"
    )
    prune = load_recipe(str(tmp_path / "own.toml")).first(Prune)
    assert prune
    assert prune.recovery
    assert prune.recovery.unlabelled == str(tmp_path / "frames")
    assert step.prompts == {"no-helmet": ("bare head", "uncovered hair")}

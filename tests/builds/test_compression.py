"""The registries of a build: compression steps and kinds of stages."""

from __future__ import annotations

import ast
from pathlib import Path

import edgekd
from edgekd.builds.compression import APPLY
from edgekd.builds.recipe import load_recipe, recipe_names
from edgekd.builds.stage_kinds import KINDS, code_versions, kind_of
from edgekd.compress.steps import STEPS


def test_each_step_that_a_recipe_may_hold_has_its_function() -> None:
    assert APPLY.keys() == set(STEPS)
    assert len({step.kind for step in STEPS}) == len(STEPS)
    assert {type(step) for name in recipe_names() for step in load_recipe(name).steps} <= APPLY.keys()


def test_each_kind_of_stage_that_is_declared_is_registered() -> None:
    """A search's trials depend on the code versions of all of them."""
    declared = set()
    for path in Path(edgekd.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "StageKind":
                name = node.args[0]
                declared |= {name.value} if isinstance(name, ast.Constant) else set()
    assert declared == KINDS.keys() == code_versions().keys()
    assert kind_of("score-int8") is KINDS["score"]
    assert kind_of("unknown") is None

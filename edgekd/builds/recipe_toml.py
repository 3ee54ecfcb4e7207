"""A recipe as the TOML that `edgekd build --recipe` reads."""

from __future__ import annotations

from edgekd.builds.recipe import Recipe
from edgekd.core.toml import non_default, toml_text


def recipe_toml(recipe: Recipe) -> str:
    """Return a recipe as TOML, without settings at their defaults; paths are unchanged."""
    steps = [{"kind": step.kind, **non_default(step)} for step in recipe.steps]
    return toml_text({"name": recipe.name, "description": recipe.description, "steps": steps})

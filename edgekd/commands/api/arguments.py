"""What is made of the words and paths that users pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgekd.builds.recipe import Budget, Recipe
    from edgekd.hardware.target import Target


def path_or_none(name: str | Path | None) -> Path | None:
    """The path of a file, where one is named."""
    return None if name is None else Path(name)


def names_of(given: str | Path | Sequence[str | Path]) -> tuple[str, ...]:
    """One name, or several, as text."""
    return (str(given),) if isinstance(given, (str, Path)) else tuple(map(str, given))


def target_of(given: str | Path | Target) -> Target:
    """A target, by its name or its file where it is not one. Raises SpecError."""
    from edgekd.hardware.target import Target, load_target

    return given if isinstance(given, Target) else load_target(given)


def target_or_none(given: str | Path | Target | None) -> Target | None:
    """The same, where there is one."""
    return None if given is None else target_of(given)


def recipe_of(given: str | Path | Mapping[str, Any] | Recipe) -> Recipe:
    """A recipe, by its name, its file or its table where it is not one. Raises SpecError."""
    from edgekd.builds.recipe import Recipe, load_recipe

    return given if isinstance(given, Recipe) else load_recipe(given)


def limits(
    max_size: str | int | None,
    keep: str | float | None,
    min_fps: float | None,
    usual: Budget,
    max_energy: str | None = None,
) -> Budget:
    """What is asked for, and the target's own limits where nothing is. Raises SpecError."""
    from edgekd.builds.recipe import Budget
    from edgekd.core.units import parse_energy, parse_share, parse_size

    return Budget(
        max_bytes=usual.max_bytes if max_size is None else parse_size(max_size, "--max-size"),
        min_retention=usual.min_retention if keep is None else parse_share(keep, "--keep"),
        min_fps=usual.min_fps if min_fps is None else min_fps,
        max_energy_mj=usual.max_energy_mj if max_energy is None else parse_energy(max_energy, "--max-energy"),
    )

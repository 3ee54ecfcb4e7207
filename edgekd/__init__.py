"""edgekd: from a trained detector to a bundle for camera firmware.

What `__all__` names is the Python interface: the functions behind the command line, with the same options, and what
they take, return and raise. docs/python.md describes it. A name is imported when it is first used.

This module is shared with the device: Python 3.8, standard library only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgekd.core.version import __version__ as __version__  # explicitly exported, beside __all__

if TYPE_CHECKING:
    from edgekd.builds.recipe import Recipe, load_recipe
    from edgekd.commands.api.building import adapt, build, quantize
    from edgekd.commands.api.compress import distill, factorize, prune
    from edgekd.commands.api.converting import convert
    from edgekd.commands.api.measuring import analyse, bench, predict_latency, score_model
    from edgekd.commands.api.query import check_model, compare, verify
    from edgekd.core.errors import BudgetError, EdgeKDError
    from edgekd.hardware.target import Target, load_target, target_names

__all__ = [
    "BudgetError",
    "EdgeKDError",
    "Recipe",
    "Target",
    "adapt",
    "analyse",
    "bench",
    "build",
    "check_model",
    "compare",
    "convert",
    "distill",
    "factorize",
    "load_recipe",
    "load_target",
    "predict_latency",
    "prune",
    "quantize",
    "score_model",
    "target_names",
    "verify",
]

_MODULES = {
    "commands.api.query": ("check_model", "compare", "verify"),
    "commands.api.building": ("adapt", "build", "quantize"),
    "commands.api.converting": ("convert",),
    "commands.api.compress": ("distill", "factorize", "prune"),
    "commands.api.measuring": ("analyse", "bench", "predict_latency", "score_model"),
    "core.errors": ("BudgetError", "EdgeKDError"),
    "builds.recipe": ("Recipe", "load_recipe"),
    "hardware.target": ("Target", "load_target", "target_names"),
}


def __getattr__(name: str) -> Any:
    """A public name, imported now (PEP 562)."""
    from importlib import import_module

    for module, names in _MODULES.items():
        if name in names:
            found = globals()[name] = getattr(import_module("edgekd." + module), name)
            return found
    raise AttributeError(f"module 'edgekd' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

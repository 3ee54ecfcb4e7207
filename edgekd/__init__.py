"""edgekd: from a trained detector to a bundle for camera firmware.

The names in `__all__` are the Python interface: the functions behind the command line, and the types that they take,
return and raise. docs/guides/python.md describes it. A name is imported when it is first used.

This module is shared with the device: Python 3.8, standard library only. It parses on Python 3.6, too, so
that the entry points can refuse that.
"""

from typing import TYPE_CHECKING, Any

from edgekd.core.version import __version__ as __version__  # explicitly exported, beside __all__

if TYPE_CHECKING:
    from edgekd.builds.recipe import Recipe, load_recipe
    from edgekd.commands.adapt import adapt
    from edgekd.commands.bench import bench
    from edgekd.commands.build import build
    from edgekd.commands.check import check_model
    from edgekd.commands.compare import compare
    from edgekd.commands.convert import convert
    from edgekd.commands.distill import distill
    from edgekd.commands.evaluate import score_model
    from edgekd.commands.factorize import factorize
    from edgekd.commands.predict import predict_latency
    from edgekd.commands.prune import prune
    from edgekd.commands.quantize import quantize
    from edgekd.commands.report import analyse
    from edgekd.commands.verify import verify
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
    "BudgetError": "core.errors",
    "EdgeKDError": "core.errors",
    "Recipe": "builds.recipe",
    "Target": "hardware.target",
    "adapt": "commands.adapt",
    "analyse": "commands.report",
    "bench": "commands.bench",
    "build": "commands.build",
    "check_model": "commands.check",
    "compare": "commands.compare",
    "convert": "commands.convert",
    "distill": "commands.distill",
    "factorize": "commands.factorize",
    "load_recipe": "builds.recipe",
    "load_target": "hardware.target",
    "predict_latency": "commands.predict",
    "prune": "commands.prune",
    "quantize": "commands.quantize",
    "score_model": "commands.evaluate",
    "target_names": "hardware.target",
    "verify": "commands.verify",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used (PEP 562)."""
    from importlib import import_module

    if name not in _MODULES:
        raise AttributeError(f"module 'edgekd' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module("edgekd." + _MODULES[name]), name)
    return value


def __dir__() -> "list[str]":
    return sorted({*globals(), *__all__})

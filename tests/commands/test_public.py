"""The Python interface: few names, light to import, with the command line as a thin layer over them."""

from __future__ import annotations

import ast
import inspect
import pkgutil
import subprocess
import sys
from pathlib import Path
from typing import get_type_hints

import pytest

import edgekd
from edgekd import EdgeKDError, load_recipe, load_target
from edgekd.commands.cli import COMMANDS as COMMAND_LINE
from edgekd.commands.cli import function_of, parser
from edgekd.compress.steps import Quantize

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = {name: function_of(name).__name__ for name in COMMAND_LINE if function_of(name).__name__ in edgekd.__all__}
"""Every command whose function is exported, and which."""
GUESSED = {("build", "data")}
"""Parameters that are inputs, but are not required."""


def test_there_are_few_names_all_of_which_resolve() -> None:
    assert len(edgekd.__all__) <= 25
    assert set(edgekd.__all__) <= set(dir(edgekd))
    for name in edgekd.__all__:
        assert getattr(edgekd, name).__name__ == name
    with pytest.raises(AttributeError, match="quantise"):
        _ = edgekd.quantise  # type: ignore[attr-defined]


def test_no_name_is_that_of_a_module_which_would_take_its_place_once_it_is_imported() -> None:
    assert not set(edgekd.__all__) & {module.name for module in pkgutil.iter_modules(edgekd.__path__)}


def test_type_checkers_are_told_the_same_names() -> None:
    tree = ast.parse((ROOT / "edgekd" / "__init__.py").read_text("utf-8"))
    (told,) = [node for node in tree.body if isinstance(node, ast.If)]
    imported = {
        alias.name: node.module for node in ast.walk(told) if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert set(imported) == set(edgekd.__all__)
    for name, module in imported.items():
        assert getattr(edgekd, name) is getattr(sys.modules[str(module)], name)


@pytest.mark.parametrize("name", edgekd.__all__)
def test_every_name_is_documented(name: str) -> None:
    found = getattr(edgekd, name)
    text = inspect.getdoc(found) or ""
    assert text
    assert text != inspect.getdoc(object)
    assert f"`{name}" in (ROOT / "docs" / "guides" / "python.md").read_text("utf-8")
    if name in COMMANDS.values():
        assert "Raises" in text
        assert "docs/" in text or "bench/" in text or name in ("check_model", "compare"), "where is it from?"
        assert "The command: `edgekd " in text
        for parameter in inspect.signature(found).parameters.values():
            assert parameter.annotation is not inspect.Parameter.empty
        assert inspect.signature(found).return_annotation is not inspect.Signature.empty


def test_the_commands_with_an_exported_function_are_known() -> None:
    assert list(COMMANDS) == (
        "build quantize prune factorize distill adapt convert eval bench predict check report compare verify".split()
    )
    assert COMMANDS["eval"] == "score_model"


@pytest.mark.parametrize("command", COMMAND_LINE)
def test_the_command_line_takes_what_the_function_takes(command: str) -> None:
    parameters = inspect.signature(function_of(command)).parameters
    options = {str(option.name): option for option in parser(command).params}
    assert options.keys() - {"as_json", "log"} == parameters.keys() - {"progress"}
    for name, parameter in parameters.items():
        if isinstance(parameter.default, (int, float, str)) and not isinstance(parameter.default, bool):
            assert options[name].default == parameter.default
        if parameter.default is parameter.empty:
            assert options[name].required


@pytest.mark.parametrize("name", edgekd.__all__)
def test_types_can_be_resolved(name: str) -> None:
    found = getattr(edgekd, name)
    for function in [found] if inspect.isfunction(found) else []:
        hints = get_type_hints(function, include_extras=True)
        assert hints.keys() == {*inspect.signature(function).parameters, "return"}
        if name in COMMANDS.values():
            told = {each for each, hint in hints.items() if hasattr(hint, "__metadata__")}
            assert told == set(hints) - {"progress", "return"}


def test_what_only_configures_comes_by_name() -> None:
    for function in COMMANDS.values():
        for parameter in inspect.signature(getattr(edgekd, function)).parameters.values():
            needed = parameter.default is parameter.empty or (function, parameter.name) in GUESSED
            assert needed == (parameter.kind is parameter.POSITIONAL_OR_KEYWORD), (function, parameter.name)


def test_importing_the_functions_imports_no_heavy_library() -> None:
    script = "import sys, edgekd\nprint(*sorted(name for name in sys.modules if name.startswith('edgekd')))\n"
    script += f"from edgekd import {', '.join(COMMANDS.values())}\nprint(*sorted(sys.modules))\n"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    alone, after = (line.split() for line in done.stdout.splitlines())
    assert alone == ["edgekd", "edgekd.core", "edgekd.core.version"]
    assert not {"onnx", "onnxruntime", "cv2", "scipy", "torch", "typer", "rich", "optuna", "ray"} & set(after)


def test_a_recipe_may_be_a_table() -> None:
    recipe = load_recipe({"name": "own", "steps": [{"kind": "quantize", "ranges": "max"}]})
    assert (recipe.name, recipe.steps) == ("own", (Quantize(ranges="max"),))
    with pytest.raises(EdgeKDError, match="range"):
        load_recipe({"name": "own", "steps": [{"kind": "quantize", "range": "max"}]})


def test_a_target_and_a_recipe_may_be_paths(tmp_path: Path) -> None:
    assert load_target(ROOT / "targets" / "xavier.toml") == load_target("xavier")
    (tmp_path / "own.toml").write_text('name = "own"\nsteps = []\n')
    assert load_recipe(tmp_path / "own.toml").name == "own"

"""The static import graph of a package, for tests of its structure.

Every import statement counts: at the top, inside functions, and under TYPE_CHECKING. That a package's `__init__` runs
before its modules is no import of theirs.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path


def import_graph(package: Path) -> dict[str, set[str]]:
    """The modules of the package in this folder, each with the other modules of it that it imports, by dotted name."""
    files = {_name(package, file): file for file in sorted(package.rglob("*.py"))}
    return {name: set(_imported(name, file, files)) - {name} for name, file in files.items()}


def find_cycle(graph: Mapping[str, set[str]]) -> list[str]:
    """One cycle, in which each importer comes before what it imports and the first is repeated at the end; or []."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        cycle: list[str] = error.args[1]
        return cycle[::-1]
    return []


def _name(package: Path, file: Path) -> str:
    parts = [package.name, *file.relative_to(package).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imported(name: str, file: Path, files: Mapping[str, Path]) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in files)
        elif isinstance(node, ast.ImportFrom):
            base = _base(name, file, node)
            # `from package import name` imports a module where there is one of that name.
            found = {f"{base}.{alias.name}" if f"{base}.{alias.name}" in files else base for alias in node.names}
            yield from found & files.keys()


def _base(name: str, file: Path, node: ast.ImportFrom) -> str:
    """The dotted name behind `from`, also of a relative import."""
    if not node.level:
        return node.module or ""
    parts = name.split(".")
    above = node.level - (file.stem == "__init__")
    return ".".join([*parts[: len(parts) - above], *filter(None, [node.module])])

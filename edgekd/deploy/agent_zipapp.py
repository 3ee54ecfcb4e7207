"""The agent as one file: a deterministic zipapp of the modules that it needs.

The modules are found by following imports: all imports in the agent's own modules, but only those at module level in
modules shared with the host, whose imports inside functions are for the host only.
"""

from __future__ import annotations

import ast
import io
import zipfile
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

NAME = "agent.pyz"
"""Name of the agent in a bundle."""
ENTRIES = ("edgekd.agent.cli", "edgekd.agent.variants", "edgekd.agent.cameras.service")
OWN = "edgekd.agent"

_PACKAGE = Path(__file__).parents[1]
_SHEBANG = b"#!/usr/bin/env python3\n"
_MAIN = f"{OWN}.__main__"
_EPOCH = (1980, 1, 1, 0, 0, 0)
_REGULAR = 0o100644 << 16


@lru_cache(maxsize=1)
def agent_archive() -> bytes:
    """Return the zipapp, for `python3 agent.pyz COMMAND`; deterministic for the same sources and zlib."""
    members = {"__main__.py": _source(_MAIN).read_bytes()}
    members.update({_member(name): _source(name).read_bytes() for name in agent_modules()})
    stream = io.BytesIO()
    stream.write(_SHEBANG)
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in sorted(members.items()):
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.create_system, entry.external_attr = 3, _REGULAR
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, content, compresslevel=9)
    return stream.getvalue()


def agent_modules() -> tuple[str, ...]:
    """Return the names of the modules and packages of edgekd that the agent needs, sorted."""
    modules: set[str] = set()
    pending = set(ENTRIES)
    while pending:
        name = pending.pop()
        modules.add(name)
        parents = [name.rsplit(".", count)[0] for count in range(1, name.count(".") + 1)]
        pending.update({*parents, *_imported(name)} - modules)
    return tuple(sorted(modules))


def _source(name: str) -> Path:
    path = _PACKAGE.joinpath(*name.split(".")[1:])
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _member(name: str) -> str:
    return _source(name).relative_to(_PACKAGE.parent).as_posix()


def _imported(name: str) -> set[str]:
    """Return the modules of edgekd that a module imports."""
    own = f"{name}.".startswith(f"{OWN}.")
    imported = set()
    for node in _statements(ast.parse(_source(name).read_bytes()), in_functions=own):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            imported |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {name for name in imported if name.split(".")[0] == "edgekd" and _source(name).is_file()}


def _statements(node: ast.AST, *, in_functions: bool) -> Iterator[ast.AST]:
    """Yield the nested nodes, except blocks for type checkers and, without `in_functions`, functions."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and isinstance(child.test, ast.Name) and child.test.id == "TYPE_CHECKING":
            continue
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)) and not in_functions:
            continue
        yield child
        yield from _statements(child, in_functions=in_functions)

"""The agent as one file: a zipapp of the modules it needs and no others, the same bytes each time.

What it needs is found by following imports. In the agent's own modules all of them count; in modules that it shares
with the host, those that importing the module carries out: what is imported inside a function there is the host's.
"""

from __future__ import annotations

import ast
import io
import zipfile
from collections.abc import Iterator
from pathlib import Path

NAME = "agent.pyz"
"""What the agent is called in a bundle."""
ENTRY, SERVING, VARIANTS = "edgekd.agent.cli", "edgekd.agent.serving", "edgekd.agent.variants"
OWN = "edgekd.agent"

_PACKAGE = Path(__file__).parents[1]
_SHEBANG = b"#!/usr/bin/env python3\n"
_MAIN = f"import sys\n\nfrom {ENTRY} import main\n\nsys.exit(main())\n"
_EPOCH = (1980, 1, 1, 0, 0, 0)
_REGULAR = 0o100644 << 16


def agent_archive() -> bytes:
    """The zipapp: `python3 agent.pyz COMMAND` runs it. The same sources and zlib give the same bytes."""
    members = {"__main__.py": _MAIN.encode("ascii")}
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
    """Names of the modules and packages of edgekd that the agent needs, sorted."""
    found: set[str] = set()
    waiting = {ENTRY, SERVING, VARIANTS}
    while waiting:
        name = waiting.pop()
        found.add(name)
        parents = [name.rsplit(".", count)[0] for count in range(1, name.count(".") + 1)]
        waiting.update({*parents, *_imported(name)} - found)
    return tuple(sorted(found))


def _source(name: str) -> Path:
    path = _PACKAGE.joinpath(*name.split(".")[1:])
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _member(name: str) -> str:
    return _source(name).relative_to(_PACKAGE.parent).as_posix()


def _imported(name: str) -> set[str]:
    """The modules of edgekd that a module imports."""
    own = f"{name}.".startswith(f"{OWN}.")
    found = set()
    for node in _statements(ast.parse(_source(name).read_bytes()), own):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {name for name in found if name.split(".")[0] == "edgekd" and _source(name).is_file()}


def _statements(node: ast.AST, inside_functions: bool) -> Iterator[ast.AST]:
    """All that is carried out, without what only type checkers read."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and isinstance(child.test, ast.Name) and child.test.id == "TYPE_CHECKING":
            continue
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)) and not inside_functions:
            continue
        yield child
        yield from _statements(child, inside_functions)

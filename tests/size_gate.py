"""The size gate: limits for the length of functions and files. Run by `make check`.

Limits: 60 lines a function, 25 for nine out of ten, 450 lines a file; no `global` statement.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FUNCTION, FUNCTION_P90, FILE = 60, 25, 450


def function_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Return the lines of a function without its docstring and decorators."""
    documented = ast.get_docstring(node) is not None and len(node.body) > 1
    doc = node.body[0]
    docstring = doc.end_lineno - doc.lineno + 1 if documented and doc.end_lineno else 0
    return (node.end_lineno or node.lineno) - node.lineno + 1 - docstring


def main() -> int:
    """Print what is too long. Return 1 if anything is, else 0."""
    problems, lengths = [], []
    for path in sorted((ROOT / "edgekd").rglob("*.py")):
        name, text = path.relative_to(ROOT), path.read_text("utf-8")
        if len(text.splitlines()) > FILE:
            problems.append(f"{name}: {len(text.splitlines())} lines, at most {FILE}")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Global):
                problems.append(f"{name}:{node.lineno}: global statement")
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                lengths.append(function_lines(node))
                if lengths[-1] > FUNCTION:
                    problems.append(f"{name}:{node.lineno}: {node.name} has {lengths[-1]} lines, at most {FUNCTION}")
    p90 = sorted(lengths)[len(lengths) * 9 // 10]
    if p90 > FUNCTION_P90:
        problems.append(f"one function in ten has more than {p90} lines, at most {FUNCTION_P90}")
    print("\n".join(problems) or f"size gate: {len(lengths)} functions, p90 {p90} lines, longest {max(lengths)}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())

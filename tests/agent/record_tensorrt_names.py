"""Record the interface of TensorRT's Python bindings and of trtexec at tags of its open-source repository.

    python tests/agent/record_tensorrt_names.py CHECKOUT TAG... > tests/agent/tensorrt_names.json

CHECKOUT is a git directory of github.com/NVIDIA/TensorRT. Names are read from the pybind11 sources below `python/src`,
flags from `samples/common/sampleOptions.cpp`; nothing is compiled, and no code is copied. tensorrt_names.json holds the
tags 8.2.1, 8.4.1, 8.5.2, v8.6.1, v10.3.0, v10.13.0, v10.16 and v11.1.

Each member is one string: `name` of a read-only property or a member of an enumeration, `name=` of a property that can
be set, `name(a, b=)` of a method, where `=` marks an argument with a default. `(...)`: the binding names no arguments.
Inherited members are listed with the class that inherits them, as `dir` lists them.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

CLASSES = (
    "Builder",
    "BuilderFlag",
    "DataType",
    "DeviceType",
    "EngineInspector",
    "IBuilderConfig",
    "ICudaEngine",
    "IExecutionContext",
    "IHostMemory",
    "IInt8EntropyCalibrator2",
    "ILayer",
    "ILogger",
    "INetworkDefinition",
    "IProfiler",
    "ITensor",
    "ITimingCache",
    "LayerInformationFormat",
    "MemoryPoolType",
    "NetworkDefinitionCreationFlag",
    "OnnxParser",
    "OnnxParserFlag",
    "ParserError",
    "ProfilingVerbosity",
    "Runtime",
    "TensorIOMode",
)
"""The classes that the agent uses, and enumerations whose members show what a version supports."""
FLAGS = "trtexec"
"""Key of the flags, beside the classes."""
BINDINGS = "python/src"
OPTIONS = "samples/common/sampleOptions.cpp"
_COMMENT = re.compile(r'//[^\n]*|/\*.*?\*/|("(?:\\.|[^"\\])*")', re.DOTALL)
_LEFT_OUT = re.compile(r"^ *#if ENABLE_INETWORK_SERIALIZE$.*?^ *#endif", re.DOTALL | re.MULTILINE)
"""Compiled only in NVIDIA's internal builds: the released bindings lack it."""
_DECLARATION = re.compile(r"py::(?P<kind>class_|enum_)<")
_CALL = re.compile(r"\s*\.\s*(?P<name>\w+)\s*\(")
_NAME = re.compile(r'\s*"(?P<name>\w+)"\s*,')
_ARGUMENT = re.compile(r'"(?P<name>\w+)"_a(?P<default>\s*=)?')
_FLAG = re.compile(r'"(?P<flag>--?\w+)"')
_OTHER_PROGRAM = re.compile(r"^void SafeBuilderOptions::parse\(.*?^}", re.DOTALL | re.MULTILINE)
"""Options of the trtexec variant for safety-certified engines, in the same source file."""
_PAIRS = {"(": ")", "{": "}", "<": ">", "[": "]"}


@dataclass
class Binding:
    """A class or enumeration as pybind11 declares it.

    types: its C++ type, then its bases among others; scope: the variable of the class that it is nested in, or `m`.
    """

    name: str
    types: tuple[str, ...]
    scope: str
    exported: bool = False
    members: set[str] = field(default_factory=set)


def closing(text: str, begin: int) -> int:
    """Return the index of the bracket that closes the one at `begin`, ignoring string literals."""
    opened, closed, depth, index = text[begin], _PAIRS[text[begin]], 0, begin
    while True:
        if text[index] == '"':
            index += 1
            while text[index] != '"':
                index += 2 if text[index] == "\\" else 1
        elif text[index] == opened:
            depth += 1
        elif text[index] == closed:
            depth -= 1
            if not depth:
                return index
        index += 1


def bindings(source: str) -> list[Binding]:
    """Return the classes and enumerations that one C++ source binds."""
    source = _LEFT_OUT.sub("", _COMMENT.sub(lambda found: found[1] or " ", source))
    result = []
    for declaration in _DECLARATION.finditer(source):
        end = closing(source, declaration.end() - 1)
        opening = re.compile(r"\s*(?P<variable>\w*)\s*[({]").match(source, end + 1)
        if not opening:
            continue
        types = tuple(part.strip() for part in source[declaration.end() : end].split(","))
        end = closing(source, opening.end() - 1)
        named = re.match(r'\s*(?P<scope>\w+)\s*,\s*"(?P<name>\w+)"', source[opening.end() : end])
        if not named:
            continue
        binding = Binding(named["name"], types, named["scope"])
        _add_chain(binding, source, end + 1)
        variable = opening["variable"]
        if variable:
            for use in re.finditer(rf"\b{variable}(?=\s*\.\s*def)", source):
                _add_chain(binding, source, use.end())
            binding.members.update(_nested(variable, source))
        result.append(binding)
    return result


def _nested(variable: str, source: str) -> Iterator[str]:
    """Yield the name of each enumeration inside a class, and its members where they are exported to the class."""
    for declaration in re.finditer(rf'py::enum_<[^>]*>\s*\(\s*{variable}\s*,\s*"(?P<name>\w+)"', source):
        yield declaration["name"]
        inner = Binding(declaration["name"], (), variable)
        _add_chain(inner, source, closing(source, source.index("(", declaration.start())) + 1)
        yield from inner.members if inner.exported else ()


def _add_chain(binding: Binding, source: str, begin: int) -> None:
    """Add the members of a chain of calls such as `.def(...).def_property(...)`."""
    while call := _CALL.match(source, begin):
        end = closing(source, call.end() - 1)
        arguments = source[call.end() : end]
        binding.exported |= call["name"] == "export_values"
        binding.members.update(filter(None, [_member(call["name"], arguments)]))
        begin = end + 1


def _member(call: str, arguments: str) -> str | None:
    """Return a member in the recorded format; None for names that Python code cannot use."""
    named = _NAME.match(arguments)
    name = named["name"] if named else "__init__" if "py::init" in arguments else ""
    if not name or (name.startswith("_") and name != "__init__"):
        return None
    if call in ("def_property", "def_readwrite"):
        return f"{name}="
    if call in ("value", "def_property_readonly", "def_readonly", "def_property_readonly_static"):
        return name
    if call not in ("def", "def_static"):
        return None
    parts = [each["name"] + ("=" if each["default"] else "") for each in _ARGUMENT.finditer(arguments)]
    unnamed = "" if "py::init<>" in arguments else "..."
    return f"{name}({', '.join(parts) or unnamed})"


def interface(sources: list[str]) -> dict[str, list[str]]:
    """Return the members of each of CLASSES, inherited ones included."""
    found = [binding for source in sources for binding in bindings(source)]
    by_type = {binding.types[0]: binding for binding in found}

    def members(binding: Binding) -> set[str]:
        bases = [by_type[base] for base in binding.types[1:] if base in by_type]
        inherited = (member for base in bases for member in members(base))
        own = {member.split("(")[0] for member in binding.members}
        return binding.members | {member for member in inherited if member.split("(")[0] not in own}

    named = {binding.name: binding for binding in found if binding.scope == "m"}
    return {name: sorted(members(named[name])) for name in CLASSES if name in named}


def flags(source: str) -> list[str]:
    """Return the flags that trtexec takes, from its `sampleOptions.cpp`."""
    without_comments = _COMMENT.sub(lambda found: found[1] or " ", source)
    return sorted({found["flag"] for found in _FLAG.finditer(_OTHER_PROGRAM.sub("", without_comments))})


def recorded(checkout: Path, tag: str) -> dict[str, list[str]]:
    """Return the interface of a tag: members by class, and flags."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(checkout), *arguments]
        return subprocess.run(command, check=True, capture_output=True, encoding="utf-8").stdout

    files = [file for file in git("ls-tree", "-r", "--name-only", tag, BINDINGS).split() if file.endswith(".cpp")]
    return {
        **interface([git("show", f"{tag}:{file}") for file in files]),
        FLAGS: flags(git("show", f"{tag}:{OPTIONS}")),
    }


def written(tables: dict[str, dict[str, list[str]]]) -> str:
    """Return the tables as JSON with one line per class."""
    versions = []
    for tag, table in tables.items():
        lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(members)}" for name, members in table.items())
        versions.append(f" {json.dumps(tag)}: {{\n{lines}\n }}")
    return "{\n" + ",\n".join(versions) + "\n}\n"


if __name__ == "__main__":
    repository, *tags = sys.argv[1:]
    print(written({tag.lstrip("v"): recorded(Path(repository), tag) for tag in tags}), end="")

"""Write the JSON schemas beside this file from the types of the documents: `make schemas`.

A frozen dataclass is an object in which every field is required. Its description is the summary of its docstring, and
that of a field the entry in the docstring's `Args:` section, or the summary of the field's own dataclass.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import inspect
import json
import re
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgekd.commands.keygen import NewKey

FOLDER = Path(__file__).parent
DIALECT = "https://json-schema.org/draft/2020-12/schema"
DOCUMENTS: Mapping[str, tuple[str, Any]] = {
    "keygen": ("`edgekd keygen --json`", NewKey),
}
"""Title and type of each document by the name of its file."""

_SCALARS = {str: "string", Path: "string", bool: "boolean", int: "integer", float: "number", type(None): "null"}
_ARRAYS = (list, tuple, collections.abc.Sequence)
_MAPPINGS = (dict, collections.abc.Mapping)
_ENTRY = re.compile(r" {4}(?P<names>\w+(?:, \w+)*): (?P<text>.+)")


class SchemaError(Exception):
    """A type that has no schema, or lacks a description."""


def schema(name: str, title: str, kind: Any) -> dict[str, Any]:
    """Return the schema of a document. Raises SchemaError."""
    definitions = Definitions()
    root = definitions.object_of(kind) if _is_object(kind) else definitions.schema_of(kind, title)
    definitions.complete()
    found = {"$schema": DIALECT, "$id": f"{name}.json", "title": title, **root}
    return {**found, "$defs": definitions.schemas} if definitions.schemas else found


class Definitions:
    """Schemas of the dataclasses that a document refers to, by name."""

    def __init__(self) -> None:
        self.schemas: dict[str, Any] = {}
        self._kinds: dict[str, Any] = {}

    def complete(self) -> None:
        """Define every class that is referred to, and those that they refer to."""
        while missing := [name for name in self._kinds if name not in self.schemas]:
            for name in missing:
                self.schemas[name] = self.object_of(self._kinds[name])
        self.schemas = dict(sorted(self.schemas.items()))

    def object_of(self, kind: Any) -> dict[str, Any]:
        """Return the schema of a dataclass or TypedDict with all of its fields. Raises SchemaError."""
        properties = self._properties(kind)
        described = {"type": "object", "description": summary(_class(kind))}
        return {**described, "properties": properties, "required": list(properties)}

    def _properties(self, kind: Any) -> dict[str, Any]:
        texts, hints, properties = field_descriptions(_class(kind)), _hints(kind), dict[str, Any]()
        for name, metadata in _documented_fields(_class(kind)).items():
            hint = hints[name]
            own = self._properties(hint) if metadata.get("inline") else {name: self._property(kind, name, hint, texts)}
            if repeated := own.keys() & properties.keys():
                raise SchemaError(f"{_class(kind).__name__}.{name}: keys {sorted(repeated)} are there twice")
            properties.update(own)
        return properties

    def _property(self, kind: Any, name: str, hint: Any, texts: Mapping[str, str]) -> dict[str, Any]:
        """Return the schema of a field. Raises SchemaError where nothing describes it."""
        where = f"{_class(kind).__module__}.{_class(kind).__qualname__}.{name}"
        found = self.schema_of(hint, where)
        if name in texts:
            return {**found, "description": texts[name]}
        members = [each for each in _members(hint) if each is not types.NoneType]
        if not all(map(_is_object, members)):
            raise SchemaError(f"{where}: no description in the `Args:` of its class")
        return found

    def schema_of(self, hint: Any, where: str) -> dict[str, Any]:
        """Return the schema of an annotation. Raises SchemaError for a type that JSON does not have."""
        origin, arguments = typing.get_origin(hint), typing.get_args(hint)
        if hint in _SCALARS:
            return {"type": _SCALARS[hint]}
        if _is_object(hint):
            return self._reference(hint)
        if origin in (typing.Union, types.UnionType):
            return self._union(hint, where)
        if origin is typing.Literal:
            return {"enum": list(arguments)}
        if origin in _ARRAYS:
            return self._array(arguments, where)
        if origin in _MAPPINGS and arguments[0] is str:
            return {"type": "object", "additionalProperties": self.schema_of(arguments[1], where)}
        raise SchemaError(f"{where}: {hint} has no schema")

    def _reference(self, kind: Any) -> dict[str, Any]:
        name = _name(kind)
        known = self._kinds.setdefault(name, kind)
        if known != kind:
            raise SchemaError(f"two classes are called {name}: in {known.__module__} and {kind.__module__}")
        return {"$ref": f"#/$defs/{name}"}

    def _union(self, hint: Any, where: str) -> dict[str, Any]:
        members = [self.schema_of(each, where) for each in _members(hint)]
        if all(member.keys() == {"type"} for member in members):
            return {"type": [member["type"] for member in members]}
        if len(members) == 2 and members[1] == {"type": "null"} and members[0].keys() == {"enum"}:
            return {"enum": [*members[0]["enum"], None]}
        return {"anyOf": members}

    def _array(self, arguments: tuple[Any, ...], where: str) -> dict[str, Any]:
        items = [self.schema_of(each, where) for each in arguments if each is not Ellipsis]
        if len(arguments) == 1 or Ellipsis in arguments:
            return {"type": "array", "items": items[0]}
        return {"type": "array", "prefixItems": items, "items": False, "minItems": len(items)}


def summary(kind: Any) -> str:
    """Return the first paragraph of a class's docstring. Raises SchemaError where it has none."""
    text = inspect.cleandoc(kind.__doc__ or "")
    if not text or text.startswith(f"{kind.__name__}("):  # the signature, which `dataclass` writes
        raise SchemaError(f"{kind.__module__}.{kind.__qualname__}: no docstring")
    return " ".join(text.partition("\n\n")[0].split())


def field_descriptions(kind: Any) -> dict[str, str]:
    """Return the entries in the `Args:` of a class and its bases. Raises SchemaError for one that is no field."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        found.update(_entries(inspect.cleandoc(base.__dict__.get("__doc__") or "")))
    if unknown := found.keys() - typing.get_type_hints(kind).keys():
        raise SchemaError(f"{kind.__module__}.{kind.__qualname__}: describes {sorted(unknown)}, which are no fields")
    return found


def _entries(docstring: str) -> dict[str, str]:
    """Return the entries of the section `Args:` by name, with their continuation lines."""
    lines = iter(docstring.partition("Args:\n")[2].splitlines())
    found: dict[str, str] = {}
    names: list[str] = []
    for line in lines:
        if line.startswith(" " * 8):
            found.update({name: f"{found[name]} {line.strip()}" for name in names})
        elif entry := _ENTRY.fullmatch(line):
            names = entry["names"].split(", ")
            found.update(dict.fromkeys(names, entry["text"]))
        else:
            break
    return found


def _members(hint: Any) -> tuple[Any, ...]:
    """Return the members of a union, else the type itself."""
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def _class(kind: Any) -> Any:
    """Return the class of a generic one with arguments, else the class itself."""
    return typing.get_origin(kind) or kind


def _name(kind: Any) -> str:
    """Return the name of a class, with the arguments of a generic one."""
    arguments = "".join(f"_{re.sub(r'[^A-Za-z0-9]+', '_', _text(each))}" for each in typing.get_args(kind))
    return f"{_class(kind).__name__}{arguments}".rstrip("_")


def _text(kind: Any) -> str:
    return str(kind.__name__ if isinstance(kind, type) else str(kind).replace("typing.", ""))


def _hints(kind: Any) -> dict[str, Any]:
    """Return the types of the fields by name; type variables of a generic class are replaced by its arguments."""
    bound = dict(zip(getattr(_class(kind), "__parameters__", ()), typing.get_args(kind), strict=False))
    return {name: bound.get(hint, hint) for name, hint in typing.get_type_hints(_class(kind)).items()}


def _is_object(kind: Any) -> bool:
    found = _class(kind)
    return isinstance(found, type) and (dataclasses.is_dataclass(found) or typing.is_typeddict(found))


def _documented_fields(kind: Any) -> dict[str, Mapping[Any, Any]]:
    """Return the metadata of the fields that are written, by name."""
    if not dataclasses.is_dataclass(kind):
        return {name: {} for name in typing.get_type_hints(kind)}
    return {field.name: field.metadata for field in dataclasses.fields(kind) if not field.metadata.get("internal")}


def text_of(name: str) -> str:
    """Return the content of a schema's file. Raises SchemaError."""
    return json.dumps(schema(name, *DOCUMENTS[name]), indent=1, ensure_ascii=False) + "\n"


def main() -> None:
    """Write every schema."""
    for name in DOCUMENTS:
        (FOLDER / f"{name}.json").write_text(text_of(name), "utf-8")


if __name__ == "__main__":
    main()

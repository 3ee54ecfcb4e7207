"""docs/reference/json-keys.md: a table of the keys of every JSON document, generated from the schemas."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Set
from typing import Any

INTRODUCTION = """\
# Keys of JSON documents

Every key of every [JSON document](json.md), generated from the types in the code (`make schemas`);
[units](json.md#units) and [exit codes](json.md#exit-codes).
"""


def page(schemas: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the page of the keys of documents. schemas: by name of the document.

    An object that is used in one place only has its rows there; others have their own tables.
    """
    objects = {key: value for each in schemas.values() for key, value in each.get("$defs", {}).items()}
    documents = {name: {key: value for key, value in each.items() if key != "$defs"} for name, each in schemas.items()}
    every = [*documents.values(), *objects.values()]
    uses = Counter(_references(every))
    values = (list(_references(value)) for each in every for value in each.get("properties", {}).values())
    inline = {found[0] for found in values if len(found) == 1 and uses[found[0]] == 1}
    sections = [
        f"## {each['title']}\n\n[Schema](../schemas/{name}.json). {_section(each, objects, inline)}"
        for name, each in documents.items()
    ]
    shared = [f"### {name}\n\n{_section(objects[name], objects, inline)}" for name in sorted(objects.keys() - inline)]
    return "\n".join([INTRODUCTION, *sections, "## Objects\n", *shared])


def _references(part: Any) -> Iterator[str]:
    """Yield the name of the object that each `$ref` in a part of a schema leads to."""
    values = part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()
    for value in values:
        yield from _references(value)
    if isinstance(part, dict) and "$ref" in part:
        yield part["$ref"].rpartition("/")[2]


def _section(described: Mapping[str, Any], objects: Mapping[str, Any], inline: Set[str]) -> str:
    """Return the description of a schema, and a table of its keys where it is an object."""
    if "properties" not in described:
        kinds = _type_text(described)
        return f"{kinds[0].upper()}{kinds[1:]}.\n"
    rows = (f"| {' | '.join(row)} |" for row in _rows(described, "", objects, inline))
    return "\n".join([f"{described['description']}\n", "| key | type | meaning |", "|---|---|---|", *rows, ""])


def _rows(
    described: Mapping[str, Any], prefix: str, objects: Mapping[str, Any], inline: Set[str]
) -> Iterator[tuple[str, str, str]]:
    """Yield key, type and meaning of each key of an object, and of objects that are used only in it."""
    for key, value in described["properties"].items():
        referred = list(_references(value))
        meaning = value.get("description") or objects[referred[0]]["description"]
        kind = _type_text(value)
        if len(referred) != 1 or referred[0] not in inline:
            yield f"`{prefix}{key}`", kind, meaning
        else:
            yield f"`{prefix}{key}`", kind.replace(_link(referred[0]), "object"), meaning
            place = "[]" if "items" in value else ".*" if "additionalProperties" in value else ""
            yield from _rows(objects[referred[0]], f"{prefix}{key}{place}.", objects, inline)


def _link(name: str) -> str:
    return f"[{name}](#{name.lower()})"


def _type_text(described: Mapping[str, Any]) -> str:
    """Return the type in a schema as Markdown."""
    if "$ref" in described:
        return _link(described["$ref"].rpartition("/")[2])
    if "anyOf" in described:
        return " or ".join(map(_type_text, described["anyOf"]))
    if "enum" in described:
        return ", ".join("null" if each is None else f"`{each}`" for each in described["enum"])
    if "prefixItems" in described:
        return f"array of {', '.join(map(_type_text, described['prefixItems']))}"
    if "items" in described:
        count = f"{described['minItems']} " if "minItems" in described else ""
        return f"array of {count}{_in_parentheses(_type_text(described['items']))}"
    if "additionalProperties" in described:
        return f"object with values {_in_parentheses(_type_text(described['additionalProperties']))}"
    kinds = described.get("type", "any")
    return kinds if isinstance(kinds, str) else " or ".join(kinds)


def _in_parentheses(kinds: str) -> str:
    return f"({kinds})" if " or " in kinds or ", " in kinds else kinds

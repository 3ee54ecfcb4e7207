"""docs/schemas/generate.py: JSON schemas of dataclasses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Generic, Literal, NamedTuple, TypeVar

import pytest
from jsonschema import Draft202012Validator

from edgekd.core.documents import INLINE, INTERNAL, to_plain

T = TypeVar("T")


@dataclass(frozen=True)
class Part:
    """A part of the whole.

    Args:
        one: A number, of which the
            description is long.
        two: A file.
    """

    one: int
    two: Path | None


class Pair(NamedTuple):
    """Two numbers, which are a list."""

    low: float
    high: float


@dataclass(frozen=True)
class Box(Generic[T]):
    """A value.

    Args:
        value, copy: What is in the box,
            twice.
    """

    value: T
    copy: T


@dataclass(frozen=True)
class Whole:
    """A whole,
    with its parts.

    More that a schema does not say.

    Args:
        kind: Which one.
        others: Parts by name.
        pair: Two numbers.
        objects: Parts in order.
    """

    part: Part = field(metadata=INLINE)
    kind: Literal["a", "b"] | None
    again: Part
    maybe: Part | None
    others: Mapping[str, Part]
    pair: Pair
    objects: tuple[Part, ...] = ()
    hidden: object = field(default=None, metadata=INTERNAL)


@dataclass(frozen=True)
class Line:
    """A line.

    Args:
        parts: Parts in order.
    """

    parts: tuple[Part, ...]


def test_a_dataclass_is_an_object_with_all_of_its_fields(schema_generator: ModuleType) -> None:
    schema = schema_generator.schema("whole", "The whole", Whole)
    assert schema["description"] == "A whole, with its parts."
    assert schema["properties"]["one"] == {
        "type": "integer",
        "description": "A number, of which the description is long.",
    }
    assert schema["properties"]["two"]["type"] == ["string", "null"]
    assert schema["properties"]["kind"]["enum"] == ["a", "b", None]
    assert schema["properties"]["pair"]["items"] == {"type": "number"}
    assert schema["properties"]["again"] == {"$ref": "#/$defs/Part"}
    assert schema["$defs"]["Part"]["description"] == "A part of the whole."
    assert schema["required"] == ["one", "two", "kind", "again", "maybe", "others", "pair", "objects"]


@pytest.mark.parametrize(
    "change",
    [{"one": 1.5}, {"kind": "c"}, {"again": {}}, {"maybe": 1}, {"others": {"x": {}}}, {"pair": [1, 2, 3]}],
)
def test_a_schema_takes_what_the_writer_writes_and_nothing_else(
    schema_generator: ModuleType, change: dict[str, Any]
) -> None:
    part = Part(1, Path("file"))
    document = to_plain(Whole(part, "a", part, None, {"x": part}, Pair(1.0, 2.0), (part,)))
    validator = Draft202012Validator(schema_generator.schema("whole", "The whole", Whole))
    assert validator.is_valid(document)
    assert not validator.is_valid({**document, **change})


def test_a_generic_class_is_an_object_for_each_of_its_types(schema_generator: ModuleType) -> None:
    schema = schema_generator.schema("boxes", "Boxes", tuple[Box[int], Box[tuple[str, ...]]])
    assert schema["$defs"]["Box_int"]["properties"]["value"]["type"] == "integer"
    assert schema["$defs"]["Box_tuple_str"]["properties"]["copy"]["items"] == {"type": "string"}
    assert schema["$defs"]["Box_int"]["properties"]["copy"]["description"] == "What is in the box, twice."


def test_a_list_of_objects(schema_generator: ModuleType) -> None:
    schema = schema_generator.schema("parts", "Parts", tuple[Part, ...])
    assert schema["items"] == {"$ref": "#/$defs/Part"}
    assert list(schema["$defs"]) == ["Part"]


def test_what_cannot_be_documented_is_an_error(schema_generator: ModuleType) -> None:
    @dataclass(frozen=True)
    class Silent:
        """A class whose field nothing describes."""

        text: str

    @dataclass(frozen=True)
    class Mistaken:
        """A class.

        Args:
            txet: A text.
        """

        text: str

    @dataclass(frozen=True)
    class Twice:
        """A class with a key that its part has, too.

        Args:
            one: A number.
        """

        part: Part = field(metadata=INLINE)
        one: int

    for kind, problem in ((Silent, "no description"), (Mistaken, "txet"), (Twice, "one"), (tuple[Any, ...], "Any")):
        with pytest.raises(schema_generator.SchemaError, match=problem):
            schema_generator.schema("wrong", "Wrong", kind)


def test_two_classes_of_one_name_are_an_error(schema_generator: ModuleType) -> None:
    other = type("Part", (), {"__doc__": "Another.", "__annotations__": {}})
    whole = type("Both", (), {"__doc__": "Both.", "__annotations__": {"part": Part, "other": dataclass(other)}})
    with pytest.raises(schema_generator.SchemaError, match="two classes are called Part"):
        schema_generator.schema("both", "Both", dataclass(whole))


def test_the_page_of_keys_has_an_object_of_one_place_there_and_others_in_tables_of_their_own(
    schema_generator: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents = {"whole": ("The whole", Whole), "box": ("Boxes", Box[Box[int]]), "list": ("Parts", tuple[Part, ...])}
    monkeypatch.setattr(schema_generator, "DOCUMENTS", documents)
    page = schema_generator.keys_page()
    assert "| `others` | object with values [Part](#part) | Parts by name. |" in page
    assert "### Part\n\nA part of the whole.\n" in page
    assert "| `copy` | [Box_int](#box_int) |" in page
    assert "## Parts\n\n[Schema](../schemas/list.json). Array of [Part](#part).\n" in page

    monkeypatch.setattr(schema_generator, "DOCUMENTS", {"line": ("A line", Line)})
    page = schema_generator.keys_page()
    assert "| `parts` | array of object | Parts in order. |\n| `parts[].one` | integer |" in page
    assert "| `parts[].two` | string or null | A file. |" in page
    assert "Part" not in page.partition("## Objects")[2]

"""A result file comes from strangers: it is read whole and right, or refused in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Callable  # noqa: UP035 collections.abc.Callable[...] is Python 3.9

import pytest
from test_validation import SHORT, in_process

from edgekd.agent.validation.coordinator import validate
from edgekd.agent.validation.evidence import MAX_BYTES, from_json, loads
from edgekd.agent.validation.verdicts import INCOMPLETE, NONE_TESTED, exit_code, verdicts
from edgekd.core.errors import SpecError


@pytest.fixture(scope="module")
def content(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A real result."""
    folder = tmp_path_factory.mktemp("validation")
    validate(bundle, folder / "result.json", folder, runtimes=("null",), effort=SHORT, launch=in_process)
    return (folder / "result.json").read_bytes()


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value in a document."""
    found = [path] if path else []
    for key, each in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        found += places(each, (*path, key))
    return found


def test_an_interval_of_a_mean_may_reach_below_0(content: bytes) -> None:
    """Few times, one of them long, as on a busy machine."""
    document = json.loads(content)
    (place,) = [path for path in places(document) if path[-2:] == ("intervals", "mean")][:1]
    inner = document
    for key in place[:-1]:
        inner = inner[key]
    inner["mean"] = [-0.3, 2.5]
    assert verdicts(from_json(document))
    inner["mean"] = [-0.3, -0.2]
    with pytest.raises(SpecError, match="not below 0"):
        from_json(document)


HOSTILE: list[Any] = [None, True, -1, 10**15, "", "x" * 10_000, "\x1b[2J\u202e", [], [[]], {}, {"a": {}}, [1, 2, 3]]


def test_whatever_stands_in_any_place_is_read_or_refused(content: bytes) -> None:
    document = json.loads(content)
    refused = 0
    for path in places(document):
        inner = document
        for key in path[:-1]:
            inner = inner[key]
        right = inner[path[-1]]
        for value in HOSTILE:
            inner[path[-1]] = value
            try:
                found = from_json(document)
                lines = [found.device, *found.system.values(), *(each.line for each in verdicts(found))]
            except SpecError as error:
                refused += 1
                lines = [str(error)]
            for line in lines:
                assert line.isprintable(), (path, value, line)
                assert len(line) < 20_000
        inner[path[-1]] = right
    assert refused > 500


@pytest.mark.parametrize(
    "spoil",
    [
        lambda content: content[:-20],
        lambda content: b"[" * 200_000,
        lambda content: b"\xff\xfe",
        lambda content: b"null",
        lambda content: content.replace(b'"format":1', b'"format":2'),
        lambda content: content.replace(b'"format":1', b'"format":1' + b"0" * 5000),
        lambda content: content.replace(b'"seconds":0.5', b'"seconds":NaN'),
        lambda content: content.replace(b'"seconds":0.5', b'"seconds":1e999'),
        lambda content: b" " * (MAX_BYTES + 1),
    ],
)
def test_what_is_no_result_is_refused_in_one_line(content: bytes, spoil: Callable[[bytes], bytes]) -> None:
    with pytest.raises(SpecError) as caught:
        loads(spoil(content))
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 500


def test_what_a_shell_alone_writes_is_a_result() -> None:
    written = {"format": 1, "complete": True, "problem": {"kind": "no-python", "message": "too old"}, "kit": None}
    system = {"kernel": "4.9.253-tegra", "machine": "aarch64", "l4t": "32.6.1"}
    found = from_json({**written, "system": system, "preparation": None, "attempts": [], "verdicts": []})
    assert found.problem
    assert (found.problem.kind, found.system["l4t"]) == ("no-python", "32.6.1")
    assert verdicts(found) == ()
    assert exit_code(found, ()) == NONE_TESTED


def test_a_result_that_is_not_complete_is_cut_short(content: bytes) -> None:
    document = {**json.loads(content), "complete": False}
    found = from_json(document)
    assert exit_code(found, verdicts(found)) == INCOMPLETE

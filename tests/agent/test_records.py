"""The JSON documents of engines: read as any version of the agent has written them, and written in one way."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from edgekd.agent.engines.engine import ENGINE, RECORD, read_engine
from edgekd.agent.engines.records import (
    ALL_FLOAT,
    AS_SHIPPED,
    EngineKey,
    EngineRecord,
    FailedBuild,
    Form,
    RuntimeVersion,
    folder_name,
    record_from_json,
    self_test_from_json,
)
from edgekd.agent.runtimes.precision import Realized, Shares
from edgekd.agent.runtimes.types import DlaDetails, RuntimeDetails, TensorRtDetails, TrtexecDetails
from edgekd.agent.state.slots import SELF_TEST
from edgekd.core.documents import INLINE, to_plain

KEY = EngineKey("ab" * 32, RuntimeVersion("tensorrt", "8.5.2"), {"device": "nvidia,p3668", "l4t": "35.4.1"})
OLDEST = {"runtime": {"name": "null", "version": "1"}, "built_on": {"device": None}}
SELF_TESTED = {
    "passed": True,
    "precision": "int8",
    "frames": 3,
    "error": {"boxes": 0.1, "scores": 0.2},
    "tolerance": {"boxes": 0.3, "scores": 0.4},
}


@pytest.mark.parametrize(
    "details",
    [
        RuntimeDetails(),
        TensorRtDetails(5, None, True, ("W a warning",)),
        DlaDetails(5, 3, False, (), held_in_float=("first",), missing_scales=("images",)),
        TrtexecDetails("trtexec --onnx=graph.onnx", "images", 5, ("W a warning",)),
    ],
)
def test_a_record_reads_back_as_it_was_written(details: RuntimeDetails) -> None:
    record = EngineRecord(
        KEY,
        Form(float_layers=("first",)),
        details,
        Realized({"int8": 2}, Shares({"int8": 1.0}, {"int8": 1.0}, None)),
        attempts=(FailedBuild((), "first + relu", ("E no kernel",)),),
        seconds=1.5,
        bytes=7,
        sha256="cd" * 32,
    )
    document = json.loads(json.dumps(to_plain(record)))
    assert {"graph", "runtime", "built_on", "source", "float_layers", *to_plain(details)} < document.keys()
    read = record_from_json(document)
    assert type(read.details) is type(details)
    assert json.loads(json.dumps(to_plain(read))) == document


def test_a_record_of_an_older_agent_has_defaults() -> None:
    record = record_from_json(OLDEST)
    assert (record.form, record.precision, record.realized, record.sha256) == (AS_SHIPPED, "graph", None, None)
    assert record_from_json({**OLDEST, "workspace_bytes": 5, "log": ["W"]}).details == TensorRtDetails(5, log=["W"])
    assert KEY.changes_since(record.key)[0].what == "runtime"


@pytest.mark.parametrize(
    "damaged", [{}, {"runtime": None}, {"built_on": []}, {"realized": {"layers": 1}}, {"attempts": [1]}]
)
def test_a_damaged_record_is_none(tmp_path: Path, damaged: dict[str, Any]) -> None:
    (tmp_path / RECORD).write_text(json.dumps({**OLDEST, **damaged} if damaged else {}))
    assert read_engine(tmp_path) is None


def test_the_self_test_of_an_older_agent_has_no_latency(tmp_path: Path) -> None:
    assert self_test_from_json(SELF_TESTED).latency is None
    (tmp_path / RECORD).write_text(json.dumps(OLDEST))
    (tmp_path / ENGINE).touch()
    engine = read_engine(tmp_path)
    assert engine
    assert (engine.self_test, engine.passed, engine.failed) == (None, False, False)
    for document, passed, failed in ((SELF_TESTED, True, False), ({**SELF_TESTED, "passed": False}, False, True)):
        (tmp_path / SELF_TEST).write_text(json.dumps(document))
        assert (engine.passed, engine.failed) == (passed, failed)
    for damaged in ({"passed": 1}, {"error": None}):
        (tmp_path / SELF_TEST).write_text(json.dumps({**SELF_TESTED, **damaged}))
        assert engine.self_test is None


def test_forms_have_folders_of_their_own() -> None:
    names = [folder_name(KEY, form) for form in (AS_SHIPPED, ALL_FLOAT, Form(float_layers=("first",)))]
    assert len(set(names)) == 3
    assert names[0] == "b9ac40a3dd90f005", "another name would build every engine on cameras again"


@dataclass(frozen=True)
class Part:
    """Two values."""

    one: int
    two: Path


@dataclass(frozen=True)
class Whole:
    """A part beside its entries."""

    part: Part = field(metadata=INLINE)
    again: Part
    several: tuple[Part, ...]


def test_inlined_fields_are_entries_of_the_object() -> None:
    part = {"one": 1, "two": "file"}
    whole = Whole(Part(1, Path("file")), Part(1, Path("file")), (Part(1, Path("file")),))
    assert to_plain(whole) == {**part, "again": part, "several": [part]}

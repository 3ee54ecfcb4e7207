"""`edgekd validate-report`: strangers' evidence as a page, in which nothing of theirs is markup."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from running import Built, EdgeKD
from test_json_contract import assert_documented

from edgekd.agent.validation.coordinator import ValidationEffort, validate
from edgekd.agent.validation.evidence import MAX_BYTES


@pytest.fixture(scope="module")
def evidence(tiny_build: Built, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A result of ONNX Runtime on this machine."""
    folder = tmp_path_factory.mktemp("validation")
    validate(
        tiny_build.bundle, folder / "result.json", runtimes=("trtexec", "onnxruntime"), effort=ValidationEffort(60, 0)
    )
    return json.loads((folder / "result.json").read_bytes())


def written(document: Any, folder: Path) -> Path:
    path = folder / "result.json"
    path.write_text(json.dumps(document), "utf-8")
    return path


def test_it_prints_the_verdicts_and_makes_a_page(edgekd: EdgeKD, evidence: Any, tmp_path: Path) -> None:
    path = written(evidence, tmp_path)
    ran = edgekd("validate-report", path)
    assert ran.code == 0
    lines = ran.out.splitlines()
    assert [line for line in lines if line.startswith("confirmed")]
    assert [line for line in lines if line.startswith("not tested  trtexec")]
    assert lines[-1] == f"report: {tmp_path / 'result.html'}"
    page = (tmp_path / "result.html").read_text("utf-8")
    for text in ("<h2>Verdicts</h2>", "<h2>Attempts</h2>", "<h2>System</h2>", "Q/DQ with FP32 weights", "/attempts/1"):
        assert text in page
    assert "://" not in page.replace("http://www.w3.org/2000/svg", ""), "nothing points outside the file"


def test_the_document_is_as_the_schema_says(edgekd: EdgeKD, evidence: Any, tmp_path: Path) -> None:
    assert_documented(evidence, "validation")
    found = edgekd("validate-report", written(evidence, tmp_path), "--out", tmp_path / "page.html", "--json").json
    assert_documented(found, "validate_report")
    assert (found["exit_code"], found["complete"], found["report"]) == (0, True, str(tmp_path / "page.html"))
    assert [each["outcome"] for each in found["verdicts"]] == [each["outcome"] for each in evidence["verdicts"]]


def test_the_verdicts_in_the_file_are_not_believed(edgekd: EdgeKD, evidence: Any, tmp_path: Path) -> None:
    boast = [{**each, "outcome": "confirmed", "text": "the fastest"} for each in evidence["verdicts"]]
    found = edgekd("validate-report", written({**evidence, "verdicts": boast}, tmp_path), "--json").json
    assert {each["outcome"] for each in found["verdicts"]} == {"confirmed", "not tested"}
    assert "the fastest" not in (tmp_path / "result.html").read_text("utf-8")


def test_what_a_shell_alone_wrote_is_a_page_too(edgekd: EdgeKD, tmp_path: Path) -> None:
    document = {
        "format": 1,
        "complete": True,
        "problem": {"kind": "no-python", "message": "no Python 3.8 or newer with NumPy"},
        "kit": None,
        "system": {"kernel": "4.9.253-tegra", "machine": "aarch64", "l4t": "32.6.1"},
        "preparation": None,
        "attempts": [],
        "verdicts": [],
    }
    ran = edgekd("validate-report", written(document, tmp_path), "--json")
    assert_documented(ran.json, "validate_report")
    assert (ran.json["exit_code"], ran.json["verdicts"]) == (3, [])
    page = (tmp_path / "result.html").read_text("utf-8")
    assert "no Python 3.8 or newer with NumPy" in page
    assert "32.6.1" in page


def test_hostile_text_stays_text(edgekd: EdgeKD, evidence: Any, tmp_path: Path) -> None:
    evil = "</table><script>alert(1)</script>\x1b[31m\u202e"

    def spoilt(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {name: spoilt(each, name) for name, each in value.items()} | (
                {evil: evil} if key in ("system", "device") else {}
            )
        if isinstance(value, list):
            return [spoilt(each) for each in value]
        free = key not in ("form", "outcome", "name", "source") and isinstance(value, str)
        return evil if free else value

    ran = edgekd("validate-report", written(spoilt(evidence), tmp_path))
    assert ran.code == 0, ran.err
    page = (tmp_path / "result.html").read_text("utf-8")
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    for text in (page, ran.out):
        assert "\x1b" not in text
        assert "\u202e" not in text


@pytest.mark.parametrize("content", [b"", b"{}", b"[" * 10**6, b'{"format": 1}', b" " * (MAX_BYTES + 1), None])
def test_what_is_no_result_is_one_line(content: bytes | None, edgekd: EdgeKD, tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    if content is not None:
        path.write_bytes(content)
    ran = edgekd("validate-report", path)
    assert (ran.code, ran.out) == (2, "")
    assert (ran.err.count("\n"), str(path) in ran.err) == (1, True)
    assert not (tmp_path / "result.html").exists()

"""The machine-readable output against its published schemas, in docs/schemas."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import pytest
from jsonschema import Draft202012Validator
from running import Built, EdgeKD

from edgekd.core.errors import Cause

SCHEMAS = Path(__file__).resolve().parents[1] / "docs" / "schemas"


def schema_of(name: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((SCHEMAS / f"{name}.json").read_text("utf-8"))
    return document


def closed(schema: Any) -> Any:
    """The schema without room for keys that it does not name: readers must let them pass, edgekd must document them."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    shut = {key: closed(value) for key, value in schema.items()}
    return {"additionalProperties": False, **shut} if "properties" in schema and "type" in schema else shut


def assert_documented(document: Any, name: str) -> None:
    errors = list(Draft202012Validator(closed(schema_of(name))).iter_errors(document))
    assert not errors, "\n".join(f"{error.json_path}: {error.message}" for error in errors)


def objects(schema: Any) -> Iterator[dict[str, Any]]:
    """Every object described in a schema."""
    if isinstance(schema, dict):
        if isinstance(schema.get("properties"), dict):
            yield schema
        for value in schema.values():
            yield from objects(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from objects(value)


def named(described: dict[str, Any]) -> list[dict[str, Any]]:
    """The schemas of the keys of an object, but for `value`: the figure around it says what it is."""
    return [schema for key, schema in described["properties"].items() if key != "value" or "limit" in described]


@pytest.mark.parametrize("path", sorted(SCHEMAS.glob("*.json")), ids=lambda path: path.stem)
def test_a_schema_is_valid_and_promises_every_key_it_names(path: Path) -> None:
    schema = schema_of(path.stem)
    Draft202012Validator.check_schema(schema)
    assert schema["$id"] == path.name
    described = list(objects(schema))
    absent = {
        "role",
        "stretch",
        "input",
        "float_bytes",
        "batch",
        "keypoints",
        "rotated",
        "masks",
    }  # of manifests, which stay as older agents read them
    assert all(set(each["properties"]) - set(each["required"]) <= absent for each in described)
    assert all("description" in value or "$ref" in value for each in described for value in named(each))


def test_schemas_are_those_of_the_types(schema_generator: ModuleType) -> None:
    assert {path.stem for path in SCHEMAS.glob("*.json")} == set(schema_generator.DOCUMENTS)
    for name in schema_generator.DOCUMENTS:
        assert (SCHEMAS / f"{name}.json").read_text("utf-8") == schema_generator.text_of(name), "run `make schemas`"
    assert schema_generator.KEYS_PAGE.read_text("utf-8") == schema_generator.keys_page(), "run `make schemas`"


def test_the_page_of_errors_is_that_of_the_classes(schema_generator: ModuleType) -> None:
    text = schema_generator.error_page()
    assert schema_generator.ERROR_PAGE.read_text("utf-8") == text, "run `make schemas`"
    for word in ("`RollbackError` | `BundleError`", "`SelfTestError` | `DeviceError`", *get_args(Cause)):
        assert word in text


def test_a_schema_refuses_what_is_missing_or_not_documented(tiny_build: Built) -> None:
    validator = Draft202012Validator(closed(schema_of("build")))
    assert validator.is_valid(tiny_build.json)
    assert not validator.is_valid({**tiny_build.json, "extra": 1})
    assert not validator.is_valid({key: value for key, value in tiny_build.json.items() if key != "met"})
    assert not validator.is_valid({**tiny_build.json, "stages": [{"name": "export"}]})
    assert Draft202012Validator(schema_of("build")).is_valid({**tiny_build.json, "extra": 1}), "readers let it pass"


def test_build(tiny_build: Built) -> None:
    assert_documented(tiny_build.json, "build")
    stages = {stage["name"]: stage for stage in tiny_build.json["stages"]}
    assert stages["quantize"]["bytes"] == (tiny_build.out / "graph.onnx").stat().st_size
    assert stages["pack"]["bytes"] == tiny_build.bundle.stat().st_size
    assert stages["score-fp32"]["map50"] == 1.0
    assert stages["export"]["map50"] is None


def test_build_with_a_budget(
    edgekd: EdgeKD, tiny_build: Built, tiny_model: Path, tiny_data: Path, tmp_path: Path
) -> None:
    out = shutil.copytree(tiny_build.out, tmp_path / "out")
    limits = ("--max-size", "1MiB", "--keep", "50%", "--min-fps", "1", "--max-energy", "1J")
    ran = edgekd("build", tiny_model, "--data", tiny_data, "--out", out, *limits, "--json")
    assert_documented(ran.json, "build")
    assert {line["name"]: (line["limit"], line["met"]) for line in ran.json["budget"]} == {
        "max_bytes": (2**20, True),
        "min_retention": (0.5, True),
        "min_fps": (1.0, None),
        "max_energy_mj": (1000.0, None),
    }
    assert_documented(json.loads((out / "ledger.json").read_bytes()), "ledger")


def test_the_ledger(tiny_build: Built) -> None:
    assert_documented(json.loads((tiny_build.out / "ledger.json").read_bytes()), "ledger")


def test_eval(edgekd: EdgeKD, tiny_model: Path, tiny_data: Path) -> None:
    found = edgekd("eval", tiny_model, "--data", tiny_data, "--json").json
    assert_documented(found, "eval")
    assert found["tail"] is None
    both = edgekd("eval", tiny_model, "--data", tiny_data, "--tail", 1, "--json").json
    assert_documented(both, "eval")
    assert both["tail"]["classes"] == ["red", "green"]
    assert both["tail"]["map50_95"] == pytest.approx(both["map50_95"])
    assert found["images"] == 8
    assert found["seconds"] > 0
    assert found["by_size"]["large"] is None


def test_eval_of_a_bundle(edgekd: EdgeKD, tiny_build: Built, tiny_data: Path) -> None:
    assert_documented(edgekd("eval", tiny_build.bundle, "--data", tiny_data, "--json").json, "eval")


@pytest.mark.parametrize("engine", ["onnxruntime-cpu", "openvino-cpu"])
def test_bench(edgekd: EdgeKD, tiny_build: Built, engine: str) -> None:
    flags = ("--iterations", 20, "--seconds", 0, "--device", f"local:{engine}", "--instance-price", 1, "--json")
    found = edgekd("bench", tiny_build.bundle, *flags).json
    assert_documented(found, "bench")
    assert found["iterations"] >= 20
    assert found["host"]["engine"] == engine
    assert found["total_ms"]["p50"] <= found["total_ms"]["p99"]
    assert found["fps"] is found["engine_fps"] is None, "too short a run"
    assert [reason.split(":")[0] for reason in found["refused"]][:3] == ["fps", "engine_fps", "throughput"]
    assert found["throughput"]["fps"] is None
    assert found["cost"]["electricity"] is None


def test_bench_against_another_artifact_with_frames_of_a_folder(
    edgekd: EdgeKD, tiny_build: Built, tiny_model: Path, tiny_data: Path, tmp_path: Path
) -> None:
    places = ("--frames", tiny_data / "images" / "val", "--csv", tmp_path / "a.csv", "--report", tmp_path / "a.html")
    limits = ("--iterations", 60, "--seconds", 0, "--streams", 0, "--device", "local:onnxruntime-cpu")
    ran = edgekd("bench", tiny_build.bundle, "--against", tiny_model, *places, *limits, "--json")
    assert_documented(ran.json, "bench")
    assert ran.json["against"]["artifact"] == str(tiny_model)
    assert ran.json["frames"]["compressed"]
    assert (tmp_path / "a.csv").read_text().count("\n") == 1 + 4 * 60
    assert "<title>tiny-xavier.edgekd" in (tmp_path / "a.html").read_text("utf-8")
    people = edgekd("bench", tiny_model, *limits)
    assert "camera to detections" in people.out
    assert "not reported: fps" in people.out


@pytest.mark.parametrize(("target", "level", "code"), [("xavier", "note", 0), ("nano", "impossible", 1)])
def test_check(edgekd: EdgeKD, tiny_build: Built, target: str, level: str, code: int) -> None:
    ran = edgekd("check", tiny_build.out / "graph.onnx", "--target", target, "--json")
    assert_documented(ran.json, "check")
    assert ran.json["findings"][0]["level"] == level
    assert (ran.json["possible"], ran.code) == (not code, code)


def test_targets(edgekd: EdgeKD) -> None:
    listed = edgekd("targets", "--json").json
    assert_documented(listed, "targets")
    for name in [target["name"] for target in listed]:
        one = edgekd("targets", name, "--json").json
        assert_documented(one, "targets")
        assert one in listed


def test_doctor(edgekd: EdgeKD) -> None:
    ran = edgekd("doctor", "--json")
    assert_documented(ran.json, "doctor")
    assert ran.code == int(any(check["state"] == "broken" for check in ran.json))


def test_inspect(edgekd: EdgeKD, tiny_build: Built) -> None:
    found = edgekd("inspect", tiny_build.bundle, "--json").json
    assert_documented(found, "inspect")
    assert found["format"] == 1
    assert found["evidence"]["before"]["map50"] == 1.0

"""A validation over the fake TensorRT of JetPack 5 and 6: order, evidence and verdicts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_tensorrt import installed
from test_validation import in_process

from edgekd.agent.validation import process
from edgekd.agent.validation.coordinator import ValidationEffort, ValidationError, validate
from edgekd.agent.validation.evidence import ValidationEvidence, loads
from edgekd.agent.validation.verdicts import SOME_REFUTED, Verdict, verdicts
from edgekd.core.bundle.archive import read_head

EFFORT = ValidationEffort(iterations=60, seconds=0)
ALL = ("tensorrt", "tensorrt-dla0", "tensorrt-dla1")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "result.json"


def run(bundle: Path, out: Path, runtimes: tuple[str, ...] = ALL, **options: Any) -> int:
    """Validate here; the exit code."""
    try:
        validate(bundle, out, out.parent, runtimes=runtimes, effort=EFFORT, launch=in_process, **options)
    except ValidationError as error:
        return error.agent_exit_code
    return 0


def judged(out: Path, claim: str) -> dict[tuple[str | None, str | None], Verdict]:
    """The verdicts on a claim, by runtime and form."""
    return {(each.runtime, each.form): each for each in verdicts(loads(out.read_bytes())) if each.claim == claim}


def convolutions(bundle: Path) -> tuple[str, ...]:
    """Names of the convolutions of a bundle's network."""
    return tuple(node.name for node in nodes(bundle) if node.op_type == "Conv")


def node_times(bundle: Path, int8: float, half: float) -> dict[str, tuple[float, float]]:
    """Milliseconds of every layer in INT8 and in FP16."""
    return {node.name: (int8, half) for node in nodes(bundle)}


def nodes(bundle: Path) -> Any:
    import onnx

    from edgekd.core.bundle.archive import read_file
    from edgekd.core.formats.packed_graph import unpack

    return onnx.load_from_string(unpack(read_file(bundle, read_head(bundle).manifest.graph))).graph.node


@pytest.mark.parametrize("version", ["8.5.2.2", "10.3.0"])
def test_the_control_comes_first_and_then_int8_both_ways(
    version: str, bundle: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    behaviour = installed(monkeypatch, version, dla_cores=1)
    run(bundle, out)
    found = json.loads(out.read_bytes())["attempts"]
    assert [(each["runtime"], each["form"]) for each in found] == [
        ("tensorrt", "float"),
        ("tensorrt", "fp32-weights"),
        ("tensorrt", "int8-constants"),
        ("tensorrt-dla0", "float"),
        ("tensorrt-dla0", "calibrated"),
        ("tensorrt-dla1", "float"),
        ("tensorrt-dla1", "calibrated"),
    ]
    operators = [{operator for _, operator in each["layers"]} for each in behaviour.built]
    quantized = ["DequantizeLinear" in each for each in operators]
    both = [True] if version.startswith("8") else [True, True]
    assert quantized == [False, *both, False, False], "DQ alone is not built by 8.x"
    assert [each["dla"] for each in behaviour.built] == [None] * (1 + len(both)) + [0, 0]


@pytest.mark.parametrize(("version", "text"), [("8.5.2.2", "refuses"), ("10.3.0", "builds")])
def test_int8_constants_are_refused_below_10_and_taken_from_10_on(
    version: str, text: str, bundle: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(monkeypatch, version)
    run(bundle, out, ("tensorrt",))
    parsed = judged(out, "parsed")
    assert {form: each.outcome for (_, form), each in parsed.items()} == {
        "float": "confirmed",
        "fp32-weights": "confirmed",
        "int8-constants": "confirmed",
    }
    settled = parsed["tensorrt", "int8-constants"]
    assert settled.text == f"tensorrt {version} {text} DQ on INT8 constants"
    assert ("Int8" in settled.detail) == (text == "refuses")
    raw = json.loads(out.read_bytes())
    assert settled.evidence == "/attempts/2/steps/0"
    assert raw["attempts"][2]["steps"][0]["outcome"] == ("failed" if text == "refuses" else "passed")


def test_the_rule_is_refuted_where_constants_are_taken_below_10(
    bundle: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(monkeypatch, "8.5.2.2")
    monkeypatch.setitem(process.BUILD_OPTIONS, "int8-constants", process.BUILD_OPTIONS["fp32-weights"])
    assert run(bundle, out, ("tensorrt",)) == SOME_REFUTED
    assert judged(out, "parsed")["tensorrt", "int8-constants"].outcome == "refuted"


def test_a_refusal_of_both_forms_says_nothing_of_constants(
    bundle: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(monkeypatch, "8.5.2.2", fails=True)
    assert run(bundle, out, ("tensorrt",)) == SOME_REFUTED
    parsed = judged(out, "parsed")
    assert [each.outcome for each in parsed.values()] == ["refuted", "refuted", "not tested"]


def test_the_raw_layers_and_times_and_the_builders_log_are_kept(
    bundle: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(monkeypatch, "8.5.2.2", dla_cores=1)
    run(bundle, out)
    for attempt in json.loads(out.read_bytes())["attempts"]:
        steps = {each["name"]: each for each in attempt["steps"]}
        if steps["build"]["outcome"] != "passed":
            continue
        raw = steps["inspect"]["result"]
        assert raw["layers_total"] == len(raw["layers"]) > 3
        assert {"Name", "LayerType"} <= set(raw["layers"][0])
        assert set(raw["times_ms"]) <= {each["Name"] for each in raw["layers"]}
        assert isinstance(steps["build"]["result"]["log"], list)
    on_dla = json.loads(out.read_bytes())["attempts"][4]["steps"][0]["result"]
    assert any("falling back to GPU" in line for line in on_dla["log"])


def test_raw_layers_are_bounded(bundle: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, "8.5.2.2")
    monkeypatch.setattr(process, "MAX_RAW_BYTES", 1000)
    run(bundle, out, ("tensorrt",))
    raw = json.loads(out.read_bytes())["attempts"][0]["steps"][1]["result"]
    assert 1 <= len(raw["layers"]) < raw["layers_total"]


@pytest.mark.parametrize(("int8_ms", "outcome"), [(5.0, "confirmed"), (0.05, "refuted")])
def test_the_share_of_int8_is_of_the_time(
    int8_ms: float, outcome: str, bundle: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = {**node_times(bundle, 0.1, 0.1), **dict.fromkeys(convolutions(bundle), (int8_ms, 0.1))}
    installed(monkeypatch, "8.5.2.2", times=times, reformat_ms=0.1)
    run(bundle, out, ("tensorrt",))
    found = judged(out, "int8-share")["tensorrt", "fp32-weights"]
    assert found.number is not None
    assert (found.outcome, found.number > 0.5) == (outcome, outcome == "confirmed")


def on_dla(bundle: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> ValidationEvidence:
    """The evidence of one DLA core."""
    installed(monkeypatch, "8.5.2.2", dla_cores=1)
    run(bundle, out, ("tensorrt-dla0",))
    return loads(out.read_bytes())


def judged_on_dla(found: ValidationEvidence, int8_ms: float, half_ms: float, **changed: Any) -> Verdict:
    """The verdict for these times, known to 1 %, and for another record of the INT8 engine."""
    attempts = []
    for attempt, ms in zip(found.attempts, (half_ms, int8_ms), strict=True):
        assert attempt.build
        assert attempt.bench
        bench = replace(attempt.bench, p50=ms, p50_interval=(0.99 * ms, 1.01 * ms))
        attempts.append(replace(attempt, build=replace(attempt.build, **changed), bench=bench))
    (verdict,) = (each for each in verdicts(replace(found, attempts=tuple(attempts))) if each.claim == "dla-int8")
    return verdict


def test_a_dla_is_in_int8_where_it_is_faster_than_in_fp16_and_nothing_has_fallen_back(
    bundle: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = on_dla(bundle, out, monkeypatch)
    good = judged_on_dla(found, 4.0, 8.0, missing_scales=(), log=())
    assert (good.outcome, good.number, good.unit) == ("confirmed", 2.0, "times as fast")
    assert good.evidence == "/attempts/1/steps/3"
    assert judged_on_dla(found, 7.9, 8.0, missing_scales=(), log=()).outcome == "refuted", (
        "within the error of the times"
    )
    missing = judged_on_dla(found, 4.0, 8.0, missing_scales=("a", "b"), log=())
    assert (missing.outcome, missing.number) == ("refuted", 2)
    text = "W Missing scale and zero-point for tensor a, expect fall back to non-int8 implementation for any layer"
    fallen = judged_on_dla(found, 4.0, 8.0, missing_scales=None, log=(text,))
    assert (fallen.outcome, fallen.detail) == ("refuted", text)
    assert judged_on_dla(found, 4.0, 8.0, missing_scales=(), log=(), dla_layers=0).detail == "no layer is on the DLA"


@pytest.mark.parametrize(("int8_ms", "outcome"), [(1.0, "confirmed"), (2.0, "refuted")])
def test_the_whole_way_from_the_calibration_cache_to_the_verdict_on_the_dla(
    int8_ms: float, outcome: str, bundle: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(monkeypatch, "8.5.2.2", dla_cores=1, times=node_times(bundle, int8_ms, 2.0))
    run(bundle, out, ("tensorrt-dla0",))
    found = judged(out, "dla-int8")["tensorrt-dla0", "calibrated"]
    assert found.outcome == outcome, found
    assert "0 activations without a scale" in found.detail


def test_without_times_of_the_twin_nothing_is_said(bundle: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = on_dla(bundle, out, monkeypatch)
    alone = replace(found.attempts[0], bench=None)
    assert alone.build
    evidence = replace(found, attempts=(alone, found.attempts[1]))
    (verdict,) = (each for each in verdicts(_clean(evidence)) if each.claim == "dla-int8")
    assert (verdict.outcome, verdict.detail) == ("not tested", "no times of both INT8 and FP16")


def _clean(found: ValidationEvidence) -> ValidationEvidence:
    """The same where no scale is missing."""
    attempts = (
        replace(each, build=each.build and replace(each.build, missing_scales=(), log=())) for each in found.attempts
    )
    return replace(found, attempts=tuple(attempts))


def test_a_device_without_dla_is_not_tested(bundle: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, "10.3.0")
    run(bundle, out, ("tensorrt-dla0",))
    found = judged(out, "runtime")["tensorrt-dla0", None]
    assert found.outcome == "not tested"
    assert "no DLA core 0" in found.detail


def test_layers_in_float_for_want_of_a_kernel_are_told(
    bundle: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(monkeypatch, "8.5.2.2", without_int8_kernel=convolutions(bundle)[:1])
    run(bundle, out, ("tensorrt",))
    found = judged(out, "parsed")["tensorrt", "fp32-weights"]
    assert found.outcome == "confirmed"
    assert "1 layers in float" in found.detail


def test_an_int8_engine_that_came_out_in_float_refutes(
    bundle: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(monkeypatch, "8.5.2.2", without_int8_kernel=convolutions(bundle))
    monkeypatch.setattr("edgekd.agent.engines.kernel_fallback.MAX_BUILDS", 1)
    assert run(bundle, out, ("tensorrt",)) == SOME_REFUTED
    assert judged(out, "parsed")["tensorrt", "fp32-weights"].detail == "only in float: no INT8 kernels"


PREDICTION: dict[str, Any] = {"target": "xavier", "precision": "int8", "compatible": "x", "doubts": []}
PREDICTION.update(latency_ms=5, low_ms=1, high_ms=500)


@pytest.mark.parametrize(
    ("changed", "compatible", "mode", "outcome"),
    [
        ({}, "x", "pmode:0000", "confirmed"),
        ({"high_ms": 1.5}, "x", "pmode:0000", "refuted"),
        ({}, "x", "pmode:0002", "not tested"),
        ({}, "y", "pmode:0000", "not tested"),
    ],
)
def test_the_prediction_is_held_against_the_shipped_form_on_its_target_in_its_mode(
    changed: dict[str, float],
    compatible: str,
    mode: str,
    outcome: str,
    bundle: Path,
    out: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, text in {"etc/edgekd/compatible": compatible, "var/lib/nvpmodel/status": mode}.items():
        (out.parent / name).parent.mkdir(parents=True, exist_ok=True)
        (out.parent / name).write_text(text, "utf-8")
    kit = out.parent / "kit.json"
    told = {**PREDICTION, **changed, "power_mode": {"id": 0, "name": "MAXN"}}
    kit.write_text(json.dumps({"predictions": [told]}), "utf-8")
    installed(monkeypatch, "8.5.2.2", times=node_times(bundle, 1.0, 2.0))
    run(bundle, out, ("tensorrt",), kit=kit)
    (found,) = judged(out, "prediction").values()
    assert found.outcome == outcome, found
    if outcome != "not tested":
        assert (found.runtime, found.form, found.unit) == ("tensorrt", "fp32-weights", "ms")


def test_an_engine_that_bends_the_output_fails_the_golden_test(
    bundle: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(monkeypatch, "8.5.2.2", bends=5.0)
    assert run(bundle, out, ("tensorrt",)) == SOME_REFUTED
    assert {each.outcome for each in judged(out, "golden").values()} == {"refuted"}

"""`edgekd predict`, on the tiny detector and its bundle."""

from __future__ import annotations

from pathlib import Path

import pytest
from running import Built, EdgeKD
from test_json_contract import assert_documented

from edgekd.commands.predict import predict_latency
from edgekd.hardware.target import load_target


def test_a_model_is_predicted_and_called_so(edgekd: EdgeKD, tiny_model: Path) -> None:
    found = edgekd("predict", tiny_model, "--target", "xavier", "--json").json
    assert_documented(found, "predict")
    assert (found["basis"], found["precision"], found["measurements"]) == ("predicted", "fp16", 0)
    assert found["low_ms"] < found["latency_ms"] < found["high_ms"]
    assert found["fps"] == pytest.approx(1000 / found["latency_ms"], rel=0.01)
    assert found["low_mj"] < found["energy_mj"] < found["high_mj"]
    assert any("billion multiply-adds" in doubt for doubt in found["doubts"])
    times = [layer["us"] for layer in found["layers"]]
    assert times == sorted(times, reverse=True)
    assert sum(times) == pytest.approx(found["latency_ms"] * 1000, rel=0.01)
    text = edgekd("predict", tiny_model, "--target", "xavier").out
    assert "Predicted, not measured" in text
    assert "Do not trust it far" in text
    assert "mJ a frame" in text


def test_batches_and_the_dla_are_predicted(edgekd: EdgeKD, tiny_model: Path) -> None:
    one, four = (edgekd("predict", tiny_model, "--batch", str(batch), "--json").json for batch in (1, 4))
    assert one["latency_ms"] < four["latency_ms"] < 4 * one["latency_ms"]
    assert four["transfer_ms"] == pytest.approx(4 * one["transfer_ms"], rel=1e-3)
    graph = edgekd("predict", tiny_model, "--cuda-graph", "--json").json
    assert graph["latency_ms"] < one["latency_ms"]
    dense, sparse = (
        edgekd("predict", tiny_model, "--target", "agx-orin", "--dla", *more, "--json").json
        for more in ((), ("--sparse",))
    )
    assert_documented(sparse, "predict")
    assert (sparse["unit"], sparse["sparse"], sparse["precision"], sparse["energy_mj"]) == ("dla", True, "int8", None)
    assert sparse["latency_ms"] <= dense["latency_ms"]  # its layers are too small to gain
    assert "a core of the DLA, int8" in edgekd("predict", tiny_model, "--target", "agx-orin", "--dla").out


def test_a_bundle_is_predicted_in_the_precision_that_it_computes_in(edgekd: EdgeKD, tiny_build: Built) -> None:
    for model in (tiny_build.bundle, tiny_build.out / "graph.onnx"):
        found = edgekd("predict", model, "--json").json
        assert found["precision"] == "int8"
    assert edgekd("predict", tiny_build.bundle, "--target", "nano", "--json").json["precision"] == "fp16"


def test_what_is_not_known_is_null(edgekd: EdgeKD, tiny_model: Path) -> None:
    found = edgekd("predict", tiny_model, "--target", "thor", "--json").json
    assert_documented(found, "predict")
    assert found["energy_mj"] is found["low_mj"] is found["high_mj"] is None
    assert "mJ" not in edgekd("predict", tiny_model, "--target", "thor").out


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--target", "cpu"), "edgekd bench"),
        (("--target", "nano", "--precision", "int8"), "no convolutions in int8"),
        (("--precision", "half"), "no predictions in 'half'"),
        (("--table", "missing.toml"), "missing.toml: cannot read"),
        (("--sparse",), "add --dla"),
        (("--dla", "--cuda-graph"), "are for the GPU"),
        (("--dla", "--precision", "fp16"), "on the DLA are in INT8"),
        (("--dla", "--target", "nano"), "has no DLA"),
    ],
)
def test_what_cannot_be_predicted_is_a_user_s_mistake(
    edgekd: EdgeKD, tiny_model: Path, flags: tuple[str, ...], said: str
) -> None:
    ran = edgekd("predict", tiny_model, *flags)
    assert (ran.code, ran.out) == (2, "")
    assert said in ran.err


def test_measurements_of_the_target_itself_replace_the_model(tiny_model: Path, tmp_path: Path) -> None:
    target = load_target("xavier")
    plain = predict_latency(tiny_model, target=target).document
    table = tmp_path / "table.toml"
    head = 'target = "xavier"\nprecision = "fp16"\nmeasured = "by a test"\n'
    table.write_text(f'{head}[[networks]]\ngraph = "{tiny_model}"\nlatency_ms = {3 * plain["latency_ms"]}\n', "utf-8")
    scaled = predict_latency(tiny_model, target=target, table=table).document
    assert scaled["measurements"] == 1
    assert scaled["latency_ms"] == pytest.approx(3 * plain["latency_ms"], rel=0.01)
    with pytest.raises(Exception, match="another precision; expected int8; found fp16"):
        predict_latency(tiny_model, target=target, precision="int8", table=table)
    doc = Path(__file__).resolve().parents[2] / "docs" / "guides" / "predict.md"
    example = doc.read_text("utf-8").partition("```toml\n")[2].partition("```")[0]
    (tmp_path / "example.toml").write_text(example.replace("yolo11n.int8.onnx", str(tiny_model)), "utf-8")
    assert predict_latency(tiny_model, target=target, table=tmp_path / "example.toml").document["measurements"] == 2

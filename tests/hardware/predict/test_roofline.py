"""Layers lie under the roof of the device that they are predicted for, and on its page."""

from __future__ import annotations

from pathlib import Path

import pytest
from running import EdgeKD

from edgekd.commands.predict import predict_latency
from edgekd.hardware.predict.device import gpu_figures
from edgekd.hardware.predict.roofline import roofline
from edgekd.hardware.predict.work import Work, convolution
from edgekd.hardware.target import load_target


def test_intensity_and_rate_are_those_of_the_work() -> None:
    device = gpu_figures(load_target("xavier"), "int8")
    layer = convolution("a", 64, 128, 400, 9)
    found = roofline([layer, Work("b", "copy", read=10, written=10)], [50.0, 5.0], device)
    operations = 2 * 400 * 9 * 64 * 128
    (point,) = found.points
    assert point.intensity == operations / (64 * 400 + 128 * 400 + 9 * 64 * 128)
    assert point.rate == pytest.approx(operations / 50e-6)
    assert found.other_us == 5.0
    assert found.ridge == pytest.approx(22.6e12 / 136.5e9)
    assert found.roof(1.0) == pytest.approx(136.5e9)
    assert found.roof(1e6) == pytest.approx(22.6e12)


def test_no_predicted_layer_is_above_the_roof(tiny_model: Path) -> None:
    for precision in ("fp16", "int8"):
        roof = predict_latency(tiny_model, target="xavier", precision=precision).roof
        assert roof.points
        assert all(point.rate <= roof.roof(point.intensity) for point in roof.points)


def test_the_page_has_every_layer(edgekd: EdgeKD, tiny_model: Path, tmp_path: Path) -> None:
    page = tmp_path / "roof.html"
    assert edgekd("predict", tiny_model, "--report", page).code == 0
    text = page.read_text("utf-8")
    points = predict_latency(tiny_model, target="xavier").roof.points
    assert text.count('class="layer"') == len(points)
    assert "Predicted, not measured" in text
    assert "<script" not in text
    assert edgekd("predict", tiny_model, "--report", tmp_path / "no" / "x.html").code == 2

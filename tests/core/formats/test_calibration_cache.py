"""The calibration cache is what TensorRT writes and reads."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekd.core.formats.calibration_cache import from_text, to_text

NAMES = st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), min_size=1)


@settings(deadline=None)
@given(st.dictionaries(NAMES, st.floats(0, width=32, allow_nan=False)), st.sampled_from(["8.5.2", "10.3.0"]))
def test_scales_come_back_bit_for_bit(scales: dict[str, float], tensorrt: str) -> None:
    found = from_text(to_text(scales, tensorrt))
    assert list(found) == list(scales)
    assert [np.float32(value).tobytes() for value in found.values()] == [
        np.float32(value).tobytes() for value in scales.values()
    ]


@pytest.mark.parametrize(
    ("version", "number"),
    [
        *(("8.5.2", 8502), ("8.2.1", 8201), ("8.6.1.6", 8601), ("10.3.0", 100300), ("10.13.2", 101302), ("8.5", 8500)),
        ("8.5.2-1+cuda11.4", 8502),
    ],
)
def test_the_first_line_says_version_and_calibrator(version: str, number: int) -> None:
    assert to_text({}, version) == f"TRT-{number}-EntropyCalibration2\n"


def test_a_scale_is_its_big_endian_bytes_in_hexadecimal() -> None:
    assert to_text({"images": 1.0, "/model.0/conv:0": 0.0078125}, "8.5.2").splitlines()[1:] == [
        "images: 3f800000",
        "/model.0/conv:0: 3c000000",
    ]


def test_leading_zeros_may_be_missing() -> None:
    assert from_text("TRT-8502-EntropyCalibration2\na: 0\nb: 800000\n") == {"a": 0.0, "b": 2.0**-126}


@pytest.mark.parametrize(
    "text", ["", "a: 3f800000\n", "TRT-8502-E\na\n", "TRT-8502-E\na: 3g\n", "TRT-8502-E\na: 123456789\n"]
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        from_text(text)

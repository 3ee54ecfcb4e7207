"""ncnn's files are read and written without loss, and weights take INT8 by the scales they are given."""

from __future__ import annotations

import numpy as np
import pytest

from edgekd.deploy.converters.ncnn_model import parse, serialize, with_int8

RNG = np.random.default_rng(0)
WEIGHTS = RNG.normal(size=3 * 2 * 9).astype(np.float32)
BIAS = RNG.normal(size=3).astype(np.float32)
DEPTHWISE = RNG.normal(size=3 * 9).astype(np.float32)
MEMORY = RNG.normal(size=6).astype(np.float32)
PARAM = """7767517
4 4
Input in0 0 1 in0
Convolution conv 1 1 in0 a 0=3 1=3 11=3 5=1 6=54
ConvolutionDepthWise deep 1 1 a b 0=3 1=3 6=27 7=3
MemoryData memory 0 1 m 0=3 1=2
"""
RAW = (0).to_bytes(4, "little")
BIN = b"".join((RAW, WEIGHTS.tobytes(), BIAS.tobytes(), RAW, DEPTHWISE.tobytes(), MEMORY.tobytes()))


def test_what_is_read_and_written_is_the_same() -> None:
    layers = parse(PARAM, BIN)
    assert serialize(layers, narrow=False) == (PARAM, BIN)
    assert [layer.kind for layer in layers] == ["Input", "Convolution", "ConvolutionDepthWise", "MemoryData"]
    np.testing.assert_array_equal(layers[1].weights[0], WEIGHTS)
    np.testing.assert_array_equal(layers[3].weights[0], MEMORY)


def test_filters_are_stored_in_float16_where_that_is_asked_for_or_loses_nothing() -> None:
    layers = parse(PARAM, BIN)
    narrow = parse(*serialize(layers, narrow=True))
    np.testing.assert_array_equal(narrow[1].weights[0], WEIGHTS.astype(np.float16).astype(np.float32))
    np.testing.assert_array_equal(narrow[1].weights[1], BIAS)
    np.testing.assert_array_equal(narrow[3].weights[0], MEMORY)
    _, smaller = serialize(narrow, narrow=False)
    assert len(smaller) == len(serialize(layers, narrow=True)[1]) < 0.7 * len(BIN)


def test_a_convolution_takes_codes_and_the_reciprocals_of_scales() -> None:
    conv = parse(PARAM, BIN)[1]
    codes = RNG.integers(-127, 128, (3, 2, 3, 3)).astype(np.int8)
    layer = with_int8(conv, codes, np.array([0.5, 0.25, 0], np.float32), 0.125)
    assert layer is not None
    assert layer.parameters[8] == "2"
    assert [each.tolist() for each in layer.weights[2:]] == [[2.0, 4.0, 0.0], [8.0]]
    param, content = serialize((layer,), narrow=False)
    assert param.splitlines()[2].endswith("6=54 8=2")
    assert content == b"".join(
        (
            (0x000D4B38).to_bytes(4, "little"),
            codes.tobytes().ljust(56, b"\0"),
            BIAS.tobytes(),
            np.array([2, 4, 0, 8], "<f4").tobytes(),
        )
    )


def test_a_depthwise_convolution_has_a_scale_for_each_channel_and_a_grouped_one_none() -> None:
    deep = parse(PARAM, BIN)[2]
    codes = RNG.integers(-127, 128, (3, 1, 3, 3)).astype(np.int8)
    layer = with_int8(deep, codes, np.array([0.5], np.float32), 1.0)
    assert layer is not None
    assert (layer.parameters[8], layer.weights[1].tolist()) == ("1", [2.0, 2.0, 2.0])
    grouped = parse(PARAM.replace("7=3", "7=1"), BIN)[2]
    assert with_int8(grouped, codes, np.ones(3, np.float32), 1.0) is None
    assert with_int8(parse(PARAM, BIN)[3], codes, np.ones(3, np.float32), 1.0) is None


@pytest.mark.parametrize(
    ("param", "content", "said"),
    [
        ("onnx", BIN, "begins with 7767517"),
        (PARAM, BIN[:-1], "expected 24 bytes of weights"),
        (PARAM, BIN + b"\0" * 8, "8 bytes of weights belong to none"),
        (PARAM.replace("MemoryData", "Mystery"), BIN, "24 bytes of weights belong to none of the layers, among"),
        (PARAM, b"\1" + BIN[1:], "of an unknown type 0x1"),
    ],
)
def test_files_that_do_not_fit_each_other_are_refused(param: str, content: bytes, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse(param, content)

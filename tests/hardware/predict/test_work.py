"""What layers make a device do, in numbers."""

from __future__ import annotations

from edgekd.hardware.predict.work import Work, convolution, multiply_adds


def test_a_convolution_multiplies_every_pair_of_channels_at_every_place() -> None:
    work = convolution("c", inputs=16, outputs=32, positions=100, kernel=9)
    assert work.multiply_adds == 16 * 32 * 9 * 100
    assert (work.weights, work.read, work.written) == (16 * 32 * 9, 1600, 3200)


def test_a_stride_reads_more_places_than_it_writes() -> None:
    assert convolution("c", 16, 32, 100, 9, stride=2).read == 16 * 400


def test_a_depthwise_convolution_has_one_filter_a_channel() -> None:
    work = convolution("c", 16, 16, 100, 9, depthwise=True)
    assert work.multiply_adds == 16 * 9 * 100
    assert work.weights == 16 * 9
    assert work.kind == "depthwise"


def test_what_only_moves_multiplies_nothing() -> None:
    assert multiply_adds([Work("m", "memory", read=100, written=100)]) == 0

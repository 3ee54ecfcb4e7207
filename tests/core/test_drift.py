"""Drift: no alarm on frames like the record's, one on frames that are not, and it says what has moved."""

from __future__ import annotations

import json
from dataclasses import replace

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekd.core.detection.preprocess import letterbox
from edgekd.core.detection.types import Detections, Preprocess
from edgekd.core.drift import (
    ALARM,
    MIN_FRAMES,
    STATISTICS,
    STREAM,
    WINDOW,
    Drift,
    DriftRecord,
    Monitor,
    as_json,
    from_json,
    record_of,
    statistics_of,
    to_json,
)

HOW = Preprocess(64, 96)
NOTHING = Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64))


def spread(count: int, seed: int) -> np.ndarray:
    """Statistics that hang together, lean to one side, and in one case hardly differ."""
    rng = np.random.default_rng(seed)
    common = rng.normal(size=(count, 1))
    found = common + rng.normal(size=(count, len(STATISTICS)))
    found[:, 0] = 100 + 20 * np.exp(0.4 * found[:, 0])
    found[:, -1] = np.round(np.abs(found[:, -1]))
    found[:, -2] = 0.5
    return found


@pytest.fixture(scope="module")
def record() -> DriftRecord:
    return record_of(spread(128, 0))


def watched(record: DriftRecord, statistics: np.ndarray) -> list[Drift | None]:
    monitor = Monitor(record)
    return [monitor.add(row) for row in statistics]


def test_frames_like_the_records_are_hardly_ever_called_drifted(record: DriftRecord) -> None:
    streams = 200
    alarms = sum(
        any(found and found.drifted for found in watched(record, spread(STREAM, seed)))
        for seed in range(1, streams + 1)
    )
    assert alarms <= 3 * ALARM * streams


@pytest.mark.parametrize("at", [0, 3, 7])
def test_what_moves_is_noticed_and_named(record: DriftRecord, at: int) -> None:
    moved = spread(STREAM, 1)
    moved[:, at] += 3 * moved[:, at].std() + 0.3
    found = watched(record, moved)
    assert found[WINDOW - 2] is None
    last = found[-1]
    assert last
    assert last.drifted
    name, mean, low, high = last.moved[0]
    assert name == STATISTICS[at]
    assert mean > high >= low


def test_what_is_over_is_forgotten(record: DriftRecord) -> None:
    moved = np.concatenate([spread(WINDOW, 1) + 5, spread(2 * WINDOW, 2)])
    found = watched(record, moved)
    assert found[WINDOW - 1]
    assert found[WINDOW - 1].drifted
    assert found[-1]
    assert not found[-1].drifted


def test_a_record_is_one_text_and_comes_back(record: DriftRecord) -> None:
    assert from_json(to_json(record)) == record
    assert len(to_json(record)) < 4096
    assert to_json(record_of(spread(128, 0))) == to_json(record)


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"statistics": ["brightness"]},
        {"levels": [0.0]},
        {"knots": []},
        {"mean": ["x"] * len(STATISTICS)},
        {"mean": [float("nan")] * len(STATISTICS)},
        {"precision": [[0.0]]},
        {"limit": 0},
        {"limit": None},
    ],
)
def test_another_text_is_refused(record: DriftRecord, change: dict) -> None:
    with pytest.raises(ValueError, match=r"record|finite|float|statistics"):
        from_json(json.dumps({**json.loads(to_json(record)), **change}).encode())


@given(st.binary(max_size=200))
def test_no_bytes_bring_it_down(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        from_json(content)


def picture(seed: int = 0, width: int = 96, height: int = 64) -> np.ndarray:
    return cv2.GaussianBlur(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8), (0, 0), 2)


def of(frame: np.ndarray, how: Preprocess = HOW, found: Detections = NOTHING) -> np.ndarray:
    batch, at = letterbox(frame, how)
    return statistics_of(batch, at, how, found)


def test_statistics_are_in_grey_levels_whatever_the_network_wants() -> None:
    plain = of(picture())
    for how in (
        replace(HOW, color="bgr"),
        replace(HOW, scale=1.0),
        replace(HOW, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
    ):
        np.testing.assert_allclose(of(picture(), how), plain, rtol=1e-4)
    assert plain[0] == pytest.approx(picture().mean(), abs=3)


def test_what_fills_the_input_up_is_not_looked_at() -> None:
    wide = replace(HOW, width=192)
    np.testing.assert_allclose(of(picture(), wide), of(picture()), rtol=1e-4)


@pytest.mark.parametrize("shape", [(64, 96), (1, 96), (64, 1), (2, 2)])
@pytest.mark.parametrize("value", [0, 255])
def test_any_frame_has_statistics(shape: tuple[int, int], value: int) -> None:
    assert np.isfinite(of(np.full((*shape, 3), value, np.uint8))).all()


def test_each_statistic_goes_where_its_name_says() -> None:
    at = {name: index for index, name in enumerate(STATISTICS)}
    plain = of(picture())
    darker, grey = of(picture() // 2), of(picture().mean(axis=2, keepdims=True).repeat(3, 2).astype(np.uint8))
    blurred = of(cv2.GaussianBlur(picture(), (0, 0), 4))
    noisy = of(np.clip(picture() + np.random.default_rng(1).normal(0, 30, (64, 96, 3)), 0, 255).astype(np.uint8))
    found = of(picture(), found=Detections(np.zeros((3, 4), np.float32), np.full(3, 0.9, np.float32), np.zeros(3, int)))
    assert darker[at["brightness"]] < plain[at["brightness"]]
    assert grey[at["colour"]] < plain[at["colour"]]
    assert blurred[at["detail"]] < plain[at["detail"]]
    assert noisy[at["grain"]] > plain[at["grain"]]
    assert found[at["score"]] == pytest.approx(0.9)
    assert found[at["objects"]] == pytest.approx(np.log(4))


def test_the_fewest_frames_do() -> None:
    assert record_of(spread(MIN_FRAMES, 0)).frames == MIN_FRAMES


def test_it_is_told_as_json(record: DriftRecord) -> None:
    last = watched(record, spread(WINDOW, 1) + 5)[-1]
    assert last
    told = json.loads(json.dumps(as_json(last)))
    assert told["drifted"] is True
    assert set(told["moved"][0]) == {"statistic", "mean", "low", "high"}

"""What two networks make of labelled objects: found, lost and why, false alarms, confusion, shifts of score."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekd.core.detection.types import Detections
from edgekd.data.labels import Truth
from edgekd.evaluation.analysis import counts
from edgekd.evaluation.analysis.matching import Findings, Frame, compare, single_label, size_of

PERSON, DOG = 0, 1
HALF = (0.5, 0.5)
BOX, FAR = (10, 10, 50, 50), (100, 100, 140, 140)


def labels(*rows: tuple[tuple[int, ...], int], crowd: tuple[int, ...] = ()) -> Truth:
    boxes = np.array([box for box, _ in rows], np.float32).reshape(-1, 4)
    crowds = np.isin(np.arange(len(rows)), crowd)
    return Truth(boxes, np.array([kind for _, kind in rows], np.int64), crowds)


def found(*rows: tuple[tuple[int, ...], int, float]) -> Detections:
    boxes = np.array([box for box, _, _ in rows], np.float32).reshape(-1, 4)
    scores = np.array([score for _, _, score in rows], np.float32)
    return Detections(boxes, scores, np.array([kind for _, kind, _ in rows], np.int64))


def looked(truth: Truth, before: Detections, after: Detections) -> Findings:
    return compare([Frame(truth, before, after)], HALF)


SURE = found((BOX, PERSON, 0.9))


@pytest.mark.parametrize(
    ("after", "fate", "reason", "score"),
    [
        (found((BOX, PERSON, 0.6)), "kept", "found", 0.6),
        (found(((12, 12, 50, 50), PERSON, 0.6)), "kept", "found", 0.6),
        (found((BOX, PERSON, 0.5)), "lost", "unsure", 0.5),  # as on a camera, the threshold itself is too little
        (found((BOX, DOG, 0.8), (BOX, PERSON, 0.3)), "lost", "confused", 0.8),
        (found(((35, 10, 75, 50), PERSON, 0.8)), "lost", "misplaced", 0.8),
        (found((FAR, PERSON, 0.8)), "lost", "unseen", None),
        (found(), "lost", "unseen", None),
    ],
)
def test_why_an_object_does_not_count_any_more(after: Detections, fate: str, reason: str, score: float | None) -> None:
    (one,) = looked(labels((BOX, PERSON)), SURE, after).objects
    assert (one.outcome, one.after.reason) == (fate, reason)
    assert one.after.score == (None if score is None else pytest.approx(score))
    assert one.before.found
    (other,) = looked(labels((BOX, PERSON)), after, SURE).objects
    assert other.outcome == {"lost": "gained", "kept": "kept"}[fate]


def test_an_object_is_found_once_and_by_the_surest() -> None:
    twice = found((BOX, PERSON, 0.9), ((11, 11, 50, 50), PERSON, 0.8))
    findings = looked(labels((BOX, PERSON)), twice, found())
    assert findings.objects[0].before.score == pytest.approx(0.9)
    assert [alarm.before for alarm in findings.alarms] == [pytest.approx(0.8)]


def test_false_alarms_at_one_place_are_one() -> None:
    before = found((FAR, DOG, 0.9), ((200, 200, 240, 240), DOG, 0.7))
    after = found((FAR, DOG, 0.6), ((200, 200, 240, 240), PERSON, 0.7))
    alarms = looked(labels((BOX, PERSON)), before, after).alarms
    assert [(alarm.kind, alarm.before, alarm.after) for alarm in alarms] == [
        (DOG, pytest.approx(0.9), pytest.approx(0.6)),
        (DOG, pytest.approx(0.7), None),
        (PERSON, None, pytest.approx(0.7)),
    ]


def test_a_false_alarm_that_nearly_was_one_before_says_so() -> None:
    before = found((FAR, DOG, 0.4), (FAR, PERSON, 0.3))
    (new,) = looked(labels((BOX, PERSON)), before, found((FAR, DOG, 0.6))).alarms
    assert (new.before, new.after, new.nearly) == (None, pytest.approx(0.6), pytest.approx(0.4))
    (gone,) = looked(labels((BOX, PERSON)), found((FAR, DOG, 0.6)), found()).alarms
    assert (gone.before, gone.after, gone.nearly) == (pytest.approx(0.6), None, None)


def test_a_detection_in_a_crowd_is_no_false_alarm_and_the_crowd_no_object() -> None:
    truth = labels(((0, 0, 200, 200), PERSON), crowd=(0,))
    findings = looked(truth, SURE, found((BOX, DOG, 0.9)))
    assert findings.objects == ()
    assert [(alarm.kind, alarm.before) for alarm in findings.alarms] == [(DOG, None)]


def test_confusion_counts_what_is_taken_for_what() -> None:
    truth = labels((BOX, PERSON), (FAR, DOG))
    before, after = looked(truth, found((BOX, PERSON, 0.9), (FAR, DOG, 0.8)), found((BOX, DOG, 0.9))).confusion
    assert before.tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 0]]
    assert after.tolist() == [[0, 1, 0], [0, 0, 1], [0, 0, 0]]
    stray = looked(truth, found(), found(((300, 300, 320, 320), DOG, 0.9))).confusion[1]
    assert stray.tolist() == [[0, 0, 1], [0, 0, 1], [0, 1, 0]]


def test_a_box_has_its_best_class_only_as_in_service() -> None:
    both = found((BOX, PERSON, 0.9), (BOX, DOG, 0.8), (FAR, DOG, 0.7))
    assert single_label(both).classes.tolist() == [PERSON, DOG]
    assert len(single_label(found())) == 0
    assert looked(labels((BOX, PERSON)), both, SURE).alarms[0].box == FAR


def test_sizes_are_those_of_coco() -> None:
    sides = {31.9: "small", 32.0: "medium", 95.9: "medium", 96.0: "large"}
    assert {side: size_of(np.array([0, 0, side, side])) for side in sides} == sides


boxes = st.lists(
    st.tuples(st.integers(0, 90), st.integers(0, 90), st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=5
)


@settings(max_examples=40, deadline=None)
@given(boxes, st.integers(0, 5), st.integers(0, 2**16))
def test_every_object_has_one_fate_and_counts_add_up(rows: list[tuple[int, ...]], drop: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    corners = np.array([(x, y, x + w, y + h) for x, y, w, h in rows], np.float32)
    truth = Truth(corners, rng.integers(0, 2, len(rows)), rng.random(len(rows)) < 0.2)
    sides = []
    for _ in range(2):
        shifted = corners + np.tile(rng.integers(-9, 9, (len(rows), 2)), 2)
        moved = np.concatenate([corners[drop:], shifted]).astype(np.float32)
        scores = np.sort(rng.random(len(moved)))[::-1].astype(np.float32)
        sides.append(Detections(moved, scores, rng.integers(0, 2, len(moved))))
    findings = compare([Frame(truth, *sides)], HALF)
    objects = int((~truth.crowd).sum())
    total = counts.total(findings)
    assert total.objects == len(findings.objects) == objects
    for table, found in zip(findings.confusion, (total.kept + total.lost, total.kept + total.gained), strict=True):
        assert table[:-1].sum() == objects
        assert np.trace(table[:-1, :-1]) == found
    per_class, per_size = counts.by_class(findings, ("person", "dog")), counts.by_size(findings)
    for name in ("kept", "lost", "gained", "missed", "false_before", "false_after"):
        assert sum(getattr(each, name) for each in per_class) == getattr(total, name)
        assert sum(getattr(each, name) for each in per_size) == getattr(total, name)
    same = compare([Frame(truth, sides[0], sides[0])], HALF)
    assert not {each.outcome for each in same.objects} & {"lost", "gained"}
    assert all(alarm.before == alarm.after for alarm in same.alarms)


def test_shifts_are_of_what_both_find() -> None:
    truth = labels((BOX, PERSON), (FAR, DOG))
    findings = looked(truth, found((BOX, PERSON, 0.9), (FAR, DOG, 0.8)), found((BOX, PERSON, 0.7), (FAR, DOG, 0.2)))
    shift = counts.shift_of(findings.objects)
    assert shift is not None
    assert (shift.count, shift.mean) == (1, pytest.approx(-0.2))
    assert sum(shift.bins) == 1
    assert counts.total(findings).shift == pytest.approx(-0.2)
    assert counts.shift_of([each for each in findings.objects if each.outcome == "lost"]) is None
    one = findings.objects[0]
    far = [replace(one, before=replace(one.before, score=0.99), after=replace(one.after, score=0.01))]
    extreme = counts.shift_of(far)
    assert extreme is not None
    assert extreme.bins[0] == 1, "what lies beyond the scale is in its last bin"


def test_confusions_are_listed_by_how_much_they_changed() -> None:
    truth = labels((BOX, PERSON), (FAR, DOG))
    findings = looked(truth, found((BOX, PERSON, 0.9)), found((BOX, DOG, 0.9), (FAR, DOG, 0.8)))
    rows = [(row.truth, row.taken_for, row.before, row.after) for row in counts.confusions(findings)]
    assert rows == [(PERSON, DOG, 0, 1), (DOG, None, 1, 0)]
    assert counts.reasons(findings) == {"confused": 1}

"""The keypoints of a detector, from a checkpoint, from the metadata of a graph, or from a description."""

from __future__ import annotations

from collections.abc import Sequence

from edgekd.core.bundle.detector_rule import MAX_KEYPOINTS
from edgekd.core.detection.types import Keypoints
from edgekd.core.errors import SpecError

COCO_SIGMAS = (
    *(0.026, 0.025, 0.025, 0.035, 0.035),  # nose, eyes, ears
    *(0.079, 0.079, 0.072, 0.072, 0.062, 0.062),  # shoulders, elbows, wrists
    *(0.107, 0.107, 0.087, 0.087, 0.089, 0.089),  # hips, knees, ankles
)
"""Sigmas of COCO's 17 keypoints of a person. Source: cocodataset.org, "Keypoint Evaluation"."""


def keypoints_of(shape: object, sigmas: object, where: str) -> Keypoints:
    """Return the keypoints of a detector. Raises SpecError; where: start of its message.

    shape: number of keypoints, and of values per keypoint, 2 or 3; sigmas: one per keypoint; None or empty for the
    defaults of Ultralytics: COCO's for 17 keypoints with visibility, else 1 / number of keypoints.
    """
    sides = list(shape) if isinstance(shape, (list, tuple)) else []
    if len(sides) != 2 or any(type(side) is not int for side in sides) or not 1 <= sides[0] <= MAX_KEYPOINTS:
        expected = f"a number of keypoints, at most {MAX_KEYPOINTS}, and 2 or 3"
        raise SpecError(f"{where}: shape of keypoints", expected=expected, found=f"{shape!r:.100}")
    count, dimensions = sides
    if dimensions not in (2, 3):
        raise SpecError(f"{where}: numbers of a keypoint", expected="2 or 3", found=str(dimensions))
    usual = COCO_SIGMAS if (count, dimensions) == (17, 3) else (1 / count,) * count
    absent = sigmas is None or (isinstance(sigmas, (list, tuple)) and not sigmas)
    return Keypoints(usual if absent else _checked(sigmas, count, where), dimensions)


def _checked(sigmas: object, count: int, where: str) -> tuple[float, ...]:
    values: Sequence[object] = sigmas if isinstance(sigmas, (list, tuple)) else ()
    numbers = tuple(float(value) for value in values if isinstance(value, (int, float)) and value > 0)
    if len(numbers) != count or len(values) != count:
        raise SpecError(f"{where}: sigmas of keypoints", expected=f"{count} above 0", found=f"{sigmas!r:.100}")
    return numbers

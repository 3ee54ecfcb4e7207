"""Instance masks: weighted sums of a network's prototypes, cropped to the boxes of objects.

A mask is computed when it is read, at the frame's resolution: whoever needs boxes alone pays for one copy of the
prototypes.

Shared with the device: Python 3.8 and NumPy only.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np


@dataclass(frozen=True, eq=False)
class InstanceMasks:
    """Masks of n objects in one frame.

    coefficients: float32 [n, k]; prototypes: float32 [k, h, w]; boxes: float32 [n, 4] x1, y1, x2, y2 in pixels of the
    frame; frame: its height and width; area: top, left, height and width of the frame in pixels of a prototype.
    """

    coefficients: np.ndarray
    prototypes: np.ndarray
    boxes: np.ndarray
    frame: tuple[int, int]
    area: tuple[float, float, float, float]

    def __len__(self) -> int:
        return len(self.coefficients)

    def __getitem__(self, selected: np.ndarray) -> InstanceMasks:
        """Return the masks selected by bool [n]."""
        return replace(self, coefficients=self.coefficients[selected], boxes=self.boxes[selected])

    def crop(self, index: int) -> tuple[int, int, np.ndarray]:
        """Return the left column, the top row, and bool [h, w] of the part of the frame in which one object lies.

        Prototypes are interpolated linearly between the centres of their pixels, as in Ultralytics' `process_mask`.
        """
        top, left, down, across = self.area
        x1, y1, x2, y2 = np.ceil(self.boxes[index]).astype(int).tolist()  # of pixels from x1 to below x2
        if x2 <= x1 or y2 <= y1:
            return x1, y1, np.zeros((max(y2 - y1, 0), max(x2 - x1, 0)), bool)
        rows = _samples(np.arange(y1, y2), top, down, self.frame[0], self.prototypes.shape[1])
        columns = _samples(np.arange(x1, x2), left, across, self.frame[1], self.prototypes.shape[2])
        around = (slice(rows[0][0], rows[1][-1] + 1), slice(columns[0][0], columns[1][-1] + 1))
        values = np.tensordot(self.coefficients[index], self.prototypes[(slice(None), *around)], 1)
        values = _interpolated(_interpolated(values, *rows).T, *columns).T
        return x1, y1, values > 0

    def rle(self, index: int) -> dict[str, Any]:
        """Return the mask of one object as COCO's uncompressed run-length code: `size` and `counts`.

        size: height and width of the frame; counts: pixels outside and inside in turn, column by column. A column has
        at most one run for each row of the prototypes.
        """
        left, top, mask = self.crop(index)
        height, width = self.frame
        padded = np.zeros((mask.shape[0] + 2, mask.shape[1]), bool)
        padded[1:-1] = mask
        column, row = np.nonzero((padded[1:] != padded[:-1]).T)
        changes, times = np.unique((left + column) * height + top + row, return_counts=True)
        # A run that reaches the bottom of the frame goes on where one begins at the top of the next column.
        counts = np.diff(np.concatenate([[0], changes[times == 1], [height * width]])).tolist()
        return {"size": [height, width], "counts": counts if counts[-1] else counts[:-1]}


def _samples(
    pixels: np.ndarray, begin: float, extent: float, frame: int, count: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return for pixels of a frame, ascending, the two prototype pixels around each, and the share of the second.

    The frame covers `extent` of `count` prototype pixels from `begin`; what lies around it is padding, and not read.
    """
    places = begin + (pixels + 0.5) * (extent / frame) - 0.5
    places = np.clip(np.clip(places, begin, max(begin, begin + extent - 1)), 0, count - 1)
    first = np.floor(places).astype(int)
    return first, np.minimum(first + 1, count - 1), (places - first).astype(np.float32)


def _interpolated(values: np.ndarray, first: np.ndarray, second: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Return the rows of values [h, w] at samples, whose first one is the first row."""
    share, begin = share[:, None], first[0]
    return np.asarray(values[first - begin] * (1 - share) + values[second - begin] * share)

"""Labelled data sets: classes, splits, and images with labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from edgekd.core.detection.types import Task
from edgekd.core.errors import DataError
from edgekd.data.labels import Truth

OUTLINED = frozenset[Task]({"obb", "segment"})
"""Tasks that are scored by the polygons of labels; the others read only boxes."""


@dataclass(frozen=True, eq=False)
class Sample:
    """One image file and its labels."""

    image: Path
    truth: Truth


@dataclass(frozen=True, eq=False)
class Split:
    """The samples of one split, in a fixed order."""

    name: str
    samples: tuple[Sample, ...]

    @property
    def images(self) -> tuple[Path, ...]:
        """Paths of the image files."""
        return tuple(sample.image for sample in self.samples)

    def __len__(self) -> int:
        return len(self.samples)


@dataclass(frozen=True, eq=False)
class Dataset:
    """A labelled data set.

    source: folder or file it was loaded from; classes: names, indexed by class id; splits: by name, functions that read
    a split for a task; keypoints: number of keypoints per object, None without keypoints.
    """

    source: Path
    classes: tuple[str, ...]
    splits: Mapping[str, Callable[[Task], Split]]
    keypoints: int | None = None

    @property
    def folder(self) -> Path:
        """Base folder of relative paths into the data set."""
        return self.source if self.source.is_dir() else self.source.parent

    def split(self, name: str, task: Task = "detect") -> Split:
        """Read the split `name`, with the polygons of labels only for a task in OUTLINED: they take time and memory.

        Raises DataError where it is missing or empty, or a label is invalid.
        """
        if name not in self.splits:
            raise DataError(
                f"{self.source} has no split {name!r}",
                expected=f"one of: {', '.join(self.splits) or 'none'}",
                fix=f"add a {name!r} split to the data set, or name another split",
            )
        split = self.splits[name](task if task in OUTLINED else "detect")  # readers cache one split per task
        if not split.samples:
            raise DataError(f"split {name!r} of {self.source} is empty", expected="at least one image")
        return split

"""A labelled data set: its classes, its splits, and their images with labels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from edgekd.core.errors import DataError
from edgekd.data.labels import Truth


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

    def __len__(self) -> int:
        return len(self.samples)


class LazySplits(Mapping[str, Split]):
    """Reads a split when it is first looked up."""

    def __init__(self, readers: Mapping[str, Callable[[], Split]]) -> None:
        self._readers = dict(readers)
        self._read: dict[str, Split] = {}

    def __getitem__(self, name: str) -> Split:
        if name not in self._read:
            self._read[name] = self._readers[name]()
        return self._read[name]

    def __contains__(self, name: object) -> bool:
        # The method of Mapping looks the split up, and so reads it.
        return name in self._readers

    def __iter__(self) -> Iterator[str]:
        return iter(self._readers)

    def __len__(self) -> int:
        return len(self._readers)


@dataclass(frozen=True, eq=False)
class Dataset:
    """A labelled data set. `source` is the folder or file it was loaded from; class ids index `classes`."""

    source: Path
    classes: tuple[str, ...]
    splits: Mapping[str, Split]

    @property
    def folder(self) -> Path:
        """The folder that relative paths into the data set start from."""
        return self.source if self.source.is_dir() else self.source.parent

    def with_splits(self, source: Path, readers: Mapping[str, Callable[[], Split]]) -> Dataset:
        """Return a data set of the same classes, from another file, with splits that `readers` read on demand."""
        return Dataset(source, self.classes, LazySplits(readers))

    def split(self, name: str) -> Split:
        """Return the split `name`. Raises DataError where there is none, it is empty, or its labels are bad."""
        if name not in self.splits:
            raise DataError(
                f"{self.source} has no split {name!r}",
                expected=f"one of: {', '.join(self.splits) or 'none'}",
                fix=f"add a {name!r} split to the data set, or name another split",
            )
        split = self.splits[name]
        if not split.samples:
            raise DataError(f"split {name!r} of {self.source} is empty", expected="at least one image")
        return split

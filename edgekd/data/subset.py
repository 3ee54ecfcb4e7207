"""Subsets of data sets: a small YAML that lists images of another data set by number.

```yaml
subset_of: /data/street
splits:
  train: {of: train, without: [3, 17]}   # indices of images in that split
  val: {of: train, only: [3, 17]}
```

Nothing is copied; labels may have any layout.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from edgekd.core.atomic_files import write_file
from edgekd.core.detection.types import Task
from edgekd.core.errors import DataError
from edgekd.data.types import Dataset, Split

WHOLE = "subset_of"


@dataclass(frozen=True)
class SplitPart:
    """Images of the split `of`, by index: those in `only` (None: all) except those in `without`."""

    of: str
    only: tuple[int, ...] | None = None
    without: tuple[int, ...] = ()

    def select(self, name: str, whole: Dataset, task: Task) -> Split:
        """Return the images as a split of this name, with labels for a task. Raises DataError for an invalid index."""
        samples = whole.split(self.of, task).samples
        chosen, excluded = range(len(samples)) if self.only is None else self.only, set(self.without)
        invalid = next((index for index in (*chosen, *self.without) if not 0 <= index < len(samples)), None)
        if invalid is not None:
            what = f"{whole.source}: split {self.of!r} has no image number {invalid}"
            raise DataError(what, expected=f"0 to {len(samples) - 1}", fix="write the subset again")
        return Split(name, tuple(samples[index] for index in chosen if index not in excluded))


def write_subset(path: Path, whole: Path, parts: Mapping[str, SplitPart]) -> None:
    """Write a `.yaml` file whose splits are parts of those of `whole`. Raises SpecError."""
    splits = {
        name: {key: value for key, value in asdict(part).items() if value is not None} for name, part in parts.items()
    }
    # JSON is a subset of YAML.
    write_file(path, (json.dumps({WHOLE: str(whole.absolute()), "splits": splits}) + "\n").encode("utf-8"))


@dataclass(frozen=True)
class Subset:
    """Description in the file `source`: splits by name, which are parts of those of the data set at `whole`."""

    source: Path
    whole: Path
    parts: Mapping[str, SplitPart]

    def select(self, whole: Dataset) -> Dataset:
        """Return the described part of a data set. Its splits raise DataError as `SplitPart.select` does."""
        readers = {name: cache(partial(part.select, name, whole)) for name, part in self.parts.items()}
        return Dataset(self.source, whole.classes, readers, whole.keypoints)


def read_subset(source: Path, settings: Mapping[str, Any]) -> Subset:
    """Parse the content of the file `source`. Raises DataError."""
    whole, splits = settings[WHOLE], settings.get("splits")
    if not isinstance(whole, str) or not isinstance(splits, dict):
        raise DataError(f"{source}: no subset", expected=f"{WHOLE}: a data set, and splits: parts of it")
    if source.parent == Path(whole):
        fix = "write it into another folder"
        raise DataError(f"{source}: a subset in the folder of its data set would replace it", fix=fix)
    return Subset(source, Path(whole), {str(name): _part(entry, f"{source}: {name}") for name, entry in splits.items()})


def _part(entry: Any, where: str) -> SplitPart:
    if not isinstance(entry, dict) or not isinstance(entry.get("of"), str) or set(entry) - {"of", "only", "without"}:
        raise DataError(f"{where} is {entry!r:.200}", expected="of: a split, and numbers of images in only or without")
    numbers = {key: entry[key] for key in ("only", "without") if key in entry}
    for key, value in numbers.items():
        if not isinstance(value, list) or not all(type(index) is int for index in value):
            raise DataError(f"{where}: {key} is {value!r:.200}", expected="a list of numbers")
    return SplitPart(entry["of"], **{key: tuple(value) for key, value in numbers.items()})

"""Subsets of data sets: a small YAML that names a data set and the images of it.

```yaml
subset_of: /data/street
splits:
  train: {of: train, without: [3, 17]}   # numbers of images, in the order of the whole's split
  val: {of: train, only: [3, 17]}
```

Nothing is copied; labels may have any layout.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from edgekd.core.atomic_files import write_file
from edgekd.core.errors import DataError
from edgekd.data.types import Dataset, Split

WHOLE = "subset_of"


@dataclass(frozen=True)
class Part:
    """Images of a split, by their numbers: those in `only`, None for all, but for those in `without`."""

    of: str
    only: tuple[int, ...] | None = None
    without: tuple[int, ...] = ()

    def select(self, name: str, whole: Dataset) -> Split:
        """Return the images as a split of this name. Raises DataError where there are not as many."""
        samples = whole.split(self.of).samples
        chosen, left_out = range(len(samples)) if self.only is None else self.only, set(self.without)
        beyond = next((index for index in (*chosen, *self.without) if not 0 <= index < len(samples)), None)
        if beyond is not None:
            what = f"{whole.source}: split {self.of!r} has no image number {beyond}"
            raise DataError(what, expected=f"0 to {len(samples) - 1}", fix="write the subset anew")
        return Split(name, tuple(samples[index] for index in chosen if index not in left_out))


def write_subset(path: Path, whole: Path, parts: Mapping[str, Part]) -> None:
    """Write a `.yaml` file with splits that are parts of those of `whole`. Raises SpecError."""
    splits = {name: _written(part) for name, part in parts.items()}
    # JSON is YAML, too.
    write_file(path, (json.dumps({WHOLE: str(whole.absolute()), "splits": splits}) + "\n").encode("utf-8"))


def _written(part: Part) -> dict[str, Any]:
    only = {} if part.only is None else {"only": list(part.only)}
    return {"of": part.of, **only, "without": list(part.without)}


@dataclass(frozen=True)
class Subset:
    """The description of a subset in the file `source`: parts of the splits of the data set at `whole`, by name."""

    source: Path
    whole: Path
    parts: Mapping[str, Part]

    def of(self, whole: Dataset) -> Dataset:
        """Return the data set that it describes. Its splits raise DataError as `Part.select` does."""
        readers: dict[str, Callable[[], Split]] = {
            name: partial(part.select, name, whole) for name, part in self.parts.items()
        }
        return whole.with_splits(self.source, readers)


def read_subset(source: Path, settings: Mapping[str, Any]) -> Subset:
    """Parse the content of a file. Raises DataError."""
    whole, splits = settings[WHOLE], settings.get("splits")
    if not isinstance(whole, str) or not isinstance(splits, dict):
        raise DataError(f"{source}: no subset", expected=f"{WHOLE}: a data set, and splits: parts of it")
    if source.parent == Path(whole):
        fix = "write it into another folder"
        raise DataError(f"{source}: a subset in the folder of the whole would be taken for it", fix=fix)
    return Subset(source, Path(whole), {str(name): _part(entry, f"{source}: {name}") for name, entry in splits.items()})


def _part(entry: Any, where: str) -> Part:
    if not isinstance(entry, dict) or not isinstance(entry.get("of"), str) or set(entry) - {"of", "only", "without"}:
        raise DataError(f"{where} is {entry!r:.200}", expected="of: a split, and numbers of images in only or without")
    numbers = {key: entry[key] for key in ("only", "without") if key in entry}
    for key, value in numbers.items():
        if not isinstance(value, list) or not all(type(index) is int for index in value):
            raise DataError(f"{where}: {key} is {value!r:.200}", expected="a list of numbers")
    return Part(entry["of"], **{key: tuple(value) for key, value in numbers.items()})

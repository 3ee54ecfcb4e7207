"""A part of a data set as a data set of its own: a small YAML that names the whole and which images of it count.

```yaml
subset_of: /data/street
splits:
  train: {of: train, without: [3, 17]}   # numbers of images, in the order of the whole's split
  val: {of: train, only: [3, 17]}
```

Nothing is copied, and labels stay as they are, whatever layout they have.
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

    def taken(self, name: str, whole: Dataset) -> Split:
        """The images, under another name. Raises DataError where there are not as many."""
        samples = whole.split(self.of).samples
        chosen, left_out = range(len(samples)) if self.only is None else self.only, set(self.without)
        beyond = next((at for at in (*chosen, *self.without) if not 0 <= at < len(samples)), None)
        if beyond is not None:
            what = f"{whole.source}: split {self.of!r} has no image number {beyond}"
            raise DataError(what, expected=f"0 to {len(samples) - 1}", fix="write the subset anew")
        return Split(name, tuple(samples[at] for at in chosen if at not in left_out))


def write_subset(path: Path, whole: Path, parts: Mapping[str, Part]) -> None:
    """Write a `.yaml` file: the splits that it has, and what they are of `whole`. Raises SpecError."""
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
        """The data set that it describes, of `whole`, which is opened. Its splits raise DataError as `Part.taken`."""
        readers: dict[str, Callable[[], Split]] = {
            name: partial(part.taken, name, whole) for name, part in self.parts.items()
        }
        return whole.with_splits(self.source, readers)


def read_subset(source: Path, settings: Mapping[str, Any]) -> Subset:
    """The subset that the content of a file describes. Raises DataError."""
    whole, splits = settings[WHOLE], settings.get("splits")
    if not isinstance(whole, str) or not isinstance(splits, dict):
        raise DataError(f"{source}: no subset", expected=f"{WHOLE}: a data set, and splits: parts of it")
    if source.parent == Path(whole):
        fix = "write it into another folder"
        raise DataError(f"{source}: a subset in the folder of the whole would be taken for it", fix=fix)
    return Subset(source, Path(whole), {str(name): _part(told, f"{source}: {name}") for name, told in splits.items()})


def _part(told: Any, where: str) -> Part:
    if not isinstance(told, dict) or not isinstance(told.get("of"), str) or set(told) - {"of", "only", "without"}:
        raise DataError(f"{where} is {told!r}", expected="of: a split, and numbers of images in only or without")
    numbers = {key: told[key] for key in ("only", "without") if key in told}
    for key, value in numbers.items():
        if not isinstance(value, list) or not all(type(at) is int for at in value):
            raise DataError(f"{where}: {key} is {value!r}", expected="a list of numbers")
    return Part(told["of"], **{key: tuple(value) for key, value in numbers.items()})

"""Files and folders of a data set, made by anybody: YAML, JSON and lists read with limits, links followed once."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Container, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from edgekd.core.canonical import short_int
from edgekd.core.detection.checked_spec import checked_classes
from edgekd.core.errors import DataError, SpecError
from edgekd.core.input_files import read_input, shown_path
from edgekd.core.typed_values import value_text

MAX_YAML_BYTES = 1 << 24
"""Bytes of a YAML file; a subset of a million images has 8 MB."""
MAX_LIST_BYTES = 1 << 30
"""Bytes of a list of images: a million paths of 1,000 bytes."""
MAX_JSON_BYTES = 1 << 33
"""Bytes of a COCO JSON; those of the largest public data sets have 5 GB."""
_SHOWN = 200
"""Characters of a value in an error."""


def shown(value: object) -> str:
    """Return a value for an error, shortened."""
    return value_text(value)[:_SHOWN]


def read_text(file: Path, limit: int = MAX_LIST_BYTES) -> str:
    """Return the UTF-8 text of a file of at most `limit` bytes. Raises DataError."""
    try:
        return read_input(file, limit).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is no UTF-8 text: {error.reason} at byte {error.start}") from error


def read_yaml(file: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file. Raises DataError.

    Aliases may name scalars only: a list of aliases of lists of aliases has billions of items within a kilobyte.
    """
    import yaml

    try:
        settings = yaml.load(read_text(file, MAX_YAML_BYTES), _loader())
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error)
        raise DataError(f"{file}{line} is no valid YAML: {problem}") from error
    except (ValueError, OverflowError, RecursionError) as error:  # impossible dates, long numbers, deep nesting
        raise DataError(f"{file} is no valid YAML: {str(error)[:_SHOWN]}") from error
    if not isinstance(settings, dict):
        raise DataError(f"{file} is no data set", expected="train, val and names", found=type(settings).__name__)
    return settings


def _loader() -> Any:
    import yaml

    base: Any = yaml.SafeLoader

    class Loader(base):  # type: ignore[misc]
        """Refuses aliases of lists and mappings."""

        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                alias = self.peek_event()
                if isinstance(self.anchors.get(alias.anchor), yaml.CollectionNode):
                    problem = f"the alias *{alias.anchor} of a list or mapping; write it out"
                    raise yaml.composer.ComposerError(None, None, problem, alias.start_mark)
            return super().compose_node(parent, index)

    def integer(loader: Any, node: Any) -> int:
        return short_int(str(loader.construct_yaml_int(node)))  # hexadecimal ones have no limit of digits

    Loader.add_constructor("tag:yaml.org,2002:int", integer)
    return Loader


def read_json(file: Path) -> Any:
    """Return the value in a JSON file. Raises DataError."""
    try:
        return json.loads(read_text(file, MAX_JSON_BYTES), parse_int=short_int)
    except json.JSONDecodeError as error:
        raise DataError(f"{file} line {error.lineno} is no valid JSON: {error.msg}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file} is no valid JSON: {error}") from error


def places_by_id(images: Sequence[Mapping[str, Any]], file: Path) -> dict[Any, int]:
    """Return the place of each of a COCO JSON's images in the list, by its id. Raises DataError where two have one id.

    The labels of both would be those of the last. Raises KeyError, TypeError for an image without an id.
    """
    places: dict[Any, int] = {}
    for place, image in enumerate(images):
        if places.setdefault(image["id"], place) != place:
            what, fix = f"{file}: two images have the id {shown(image['id'])}", "number the images anew"
            raise DataError(what, expected="another id for each", fix=fix)
    return places


def require_names(names: Sequence[str], file: Path) -> tuple[str, ...]:
    """Return the names of classes. Raises DataError for some that no detector can have."""
    try:
        return checked_classes(names, f"{file}: names")
    except SpecError as error:
        fix = "give each class a name of printable characters"
        raise DataError(error.what, expected=error.expected, found=error.found, fix=fix) from error


def files_below(folder: Path, suffixes: Container[str]) -> Iterator[Path]:
    """Yield the files with some suffixes, in lower case, in a folder and below, following links, each folder once.

    Without the last, a link to its own folder would give each image forty times, and two of them billions of times.
    Raises DataError, also for a pipe or device.
    """
    waiting, seen = [folder], set()
    while waiting:
        place = waiting.pop()
        try:
            status = place.stat()
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(place) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            raise DataError(f"cannot read {shown_path(place)}: {error.strerror}") from error
        # The last is read next, and what is no link goes first.
        waiting += [Path(entry) for entry in reversed(found) if _is_folder(entry)]
        for entry in found:
            path = Path(entry)
            if path.suffix.lower() in suffixes and not _is_folder(entry):
                if not entry.is_file(follow_symlinks=False):  # which the folder knows: no further look at most files
                    _require_regular(path)
                yield path


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _require_regular(path: Path) -> None:
    """Raise DataError for a pipe, socket or device, which would block whoever reads it."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return  # reading it says what is wrong
    if not stat.S_ISREG(mode):
        raise DataError(f"{shown_path(path)}: cannot be read", expected="a regular file", found="a pipe or device")


def require_inside(names: Sequence[str], folder: Path, root: Path, file: Path) -> None:
    """Raise DataError unless each path, relative to a folder, stays in it or in the data set's root.

    The folder may itself be a link: whoever uses the data set made it. A link below it must not lead elsewhere.
    """
    allowed = [f"{os.path.realpath(place)}{os.sep}" for place in (folder, root)]
    parents: dict[Path, str] = {}
    for name in names:
        image = folder / name
        if image.parent not in parents:
            parents[image.parent] = os.path.realpath(image.parent)
        real = os.path.realpath(image) if image.is_symlink() else parents[image.parent] + os.sep + image.name
        if not real.startswith(tuple(allowed)):
            raise DataError(
                f"{file}: image {shown_path(name)}",
                expected="a file inside the data set",
                found=f"a link to {shown_path(real)}",
                fix="copy the image, or make the whole folder of images a link",
            )


def require_relative(names: Sequence[str], file: Path) -> None:
    """Raise DataError for a path that leaves the folder it is relative to."""
    for name in names:
        if not name or "\0" in name or name.startswith("/") or ".." in PurePosixPath(name).parts:
            raise DataError(
                f"{file}: file_name {shown(name)}",
                expected="a path inside the data set, without ..",
                fix="write file_name relative to the folder of the images",
            )

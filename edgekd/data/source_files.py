"""Read untrusted files and folders of a data set: YAML, JSON and lists with limits; links are followed once."""

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
"""Maximum bytes of a YAML file; a subset of a million images has 8 MB."""
MAX_LIST_BYTES = 1 << 30
"""Maximum bytes of a list of images: a million paths of 1,000 bytes."""
MAX_JSON_BYTES = 1 << 33
"""Maximum bytes of a COCO JSON; those of the largest public data sets have 5 GB."""
_SHOWN = 200
"""Maximum characters of a value in an error."""


def shown(value: object) -> str:
    """Return a value as text for errors, shortened."""
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
        return short_int(str(loader.construct_yaml_int(node)))  # Python does not limit the digits of hexadecimal ones

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
    """Return the index of each image in the list of a COCO JSON, by its id.

    Raises DataError for a duplicate id, with which the last image would get the labels of both; KeyError, TypeError for
    an image without an id.
    """
    places: dict[Any, int] = {}
    for place, image in enumerate(images):
        if places.setdefault(image["id"], place) != place:
            what, fix = f"{file}: two images have the id {shown(image['id'])}", "number the images anew"
            raise DataError(what, expected="another id for each", fix=fix)
    return places


def require_names(names: Sequence[str], file: Path) -> tuple[str, ...]:
    """Return the names of classes. Raises DataError for names that no detector can have."""
    try:
        return checked_classes(names, f"{file}: names")
    except SpecError as error:
        fix = "give each class a name of printable characters"
        raise DataError(error.what, expected=error.expected, found=error.found, fix=fix) from error


def files_below(folder: Path, suffixes: Container[str]) -> Iterator[Path]:
    """Yield the files with one of the lower-case suffixes in a folder and below, following links, each folder once.

    If folders were read again, a link to its own folder would yield each image forty times, and two such links billions
    of times. Raises DataError for a folder that cannot be read, and for a pipe or device.
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
        # The last is read next, so that folders are read in the order of their names.
        waiting += [Path(entry) for entry in reversed(found) if _is_folder(entry)]
        for entry in found:
            path = Path(entry)
            if path.suffix.lower() in suffixes and not _is_folder(entry):
                if not entry.is_file(follow_symlinks=False):  # known from the folder: no stat for most files
                    _require_regular(path)
                yield path


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _require_regular(path: Path) -> None:
    """Raise DataError for a pipe, socket or device, whose reader would block."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return  # the error is raised when it is read
    if not stat.S_ISREG(mode):
        raise DataError(f"{shown_path(path)}: cannot be read", expected="a regular file", found="a pipe or device")


def require_inside(names: Sequence[str], folder: Path, root: Path, file: Path) -> None:
    """Raise DataError unless each path, relative to a folder, stays in it or in the data set's root.

    The folder itself may be a link, made by the user of the data set. Links below it must not lead elsewhere.
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

"""Read ONNX files, after checks of their content and of the files with their external data."""

from __future__ import annotations

import mmap
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgekd.core.errors import SpecError, first_line
from edgekd.core.formats.model_limits import ExternalData, external_data
from edgekd.core.input_files import regular_file, shown_path

MAX_BYTES = (1 << 31) - 1
"""Maximum bytes of an ONNX file: the limit of Protocol Buffers. Larger networks need external data."""
MAX_EXTERNAL_BYTES = 1 << 36
"""Maximum bytes of a file with external data."""
_FIX = "check that the file is complete, or export it again"


def read_model(path: Path, *, external: bool = True) -> Any:
    """Read a ModelProto. external: also load external data. Raises SpecError."""
    import onnx

    require_safe(path, external=external)
    with reading(path):
        return onnx.load(path, load_external_data=external)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Convert any error of reading a model to SpecError: protobuf's error type is not part of onnx's interface."""
    try:
        yield
    except SpecError:
        raise
    except Exception as error:
        raise _unreadable(path, first_line(error)) from error


def require_safe(path: Path, *, external: bool = True) -> None:
    """Raise SpecError unless an ONNX file is safe to read. external: also check external data.

    External data must be in regular files in the model's folder or below: no absolute path, no `..`, no symbolic link,
    and no file with several hard links, which may belong to somebody else.
    """
    if not regular_file(path, MAX_BYTES, SpecError):
        raise _unreadable(path, "an empty file")
    try:
        with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            outside = external_data(content)
        for each in outside if external else ():
            _require_beside(path.parent, each)
    except (OSError, ValueError) as error:
        raise _unreadable(path, str(error)[:300]) from error


def _unreadable(path: Path, found: str) -> SpecError:
    """Return the error for a file that is not an ONNX model, or is not safe to read."""
    return SpecError(f"{shown_path(path)}: cannot be read as an ONNX model", found=found, fix=_FIX)


def _require_beside(folder: Path, data: ExternalData) -> None:
    """Raise ValueError unless external data is within a regular file, with one hard link, below the model's folder."""
    location = data.entries.get("location", "")
    parts = location.split("/")
    where = f"external data {location[:100]!r} of tensor {data.tensor[:80]!r}"
    # ONNX Runtime interprets `*/_ORT_MEM_ADDR_/*` as an address in memory.
    if not location.isprintable() or {"\\", "*"} & {*location} or any(part in ("", ".", "..") for part in parts):
        raise ValueError(f"{where}: expected the path of a file in the model's folder")
    place = folder
    for part in parts:
        place = place / part
        status = os.lstat(place)
        if stat.S_ISLNK(status.st_mode):
            raise ValueError(f"{where}: a symbolic link; copy the file to its place")
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f"{where}: not a regular file")
    if status.st_nlink > 1:
        raise ValueError(f"{where}: a file with {status.st_nlink} hard links; copy the file to its place")
    _require_bounds(data, status.st_size, where)


def _require_bounds(data: ExternalData, size: int, where: str) -> None:
    offset, length = (_count(data.entries.get(key, ""), where) for key in ("offset", "length"))
    begin = offset or 0
    end = size if length is None else begin + length
    if size > MAX_EXTERNAL_BYTES or not begin <= end <= size or data.length > end - begin:
        raise ValueError(f"{where}: bytes {begin} to {end} of {size} are not the {data.length} of the tensor")


def _count(text: str, where: str) -> int | None:
    if not text:
        return None
    if not text.isascii() or not text.isdecimal() or len(text) > 18:
        raise ValueError(f"{where}: expected a count of bytes")
    return int(text)

"""Scan of a PyTorch checkpoint before PyTorch reads it: zip directory and pickle, without calling anything it names.

A file of half a megabyte can contain gigabytes of compressed zeros, tensors of terabytes that repeat one number, and
storages that are longer than their records. The scan refuses such files before memory is allocated for them.
"""

from __future__ import annotations

import io
import pickle
import re
import zipfile
from collections.abc import Iterable, Mapping
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from edgekd.core.errors import SpecError
from edgekd.core.input_files import regular_file, shown_path

MAX_BYTES = 1 << 33
"""Limit of a checkpoint's size in bytes; YOLO11x has 0.1 GB, or 0.7 GB with its training state."""
MAX_RECORDS = 100_000
"""Limit of the number of records in the zip file: one per tensor."""
MAX_PICKLE_BYTES = 1 << 24
"""Limit of the pickle's size in bytes; YOLO11x has 0.25 MB, for 1,000 tensors."""
MAX_COPIED = 1 << 24
"""Limit of the items (of lists, text and attributes) that all calls in the pickle copy; YOLO11x has 40,000."""
_PLAIN_NAMES = frozenset(
    {
        "builtins.complex",
        "builtins.set",
        "collections.Counter",
        "collections.OrderedDict",
        "torch.Size",
        "torch._utils._rebuild_parameter",
        "torch._utils._rebuild_parameter_with_state",
        "torch._utils._rebuild_tensor_v2",
        "torch.device",
        "torch.nn.parameter.Parameter",
        "_codecs.encode",
    }
)
"""Functions and types for plain data that a checkpoint may name, beside storages, number formats and layers."""
_NUMBER_FORMAT = re.compile(r"torch\.(bool|(float|int|uint|bfloat|complex)[0-9]+)")
_STORAGE_BYTES = {"Double": 8, "Float": 4, "Half": 2, "BFloat16": 2, "Long": 8, "Int": 4, "Short": 2, "Char": 1}
_STORAGE_BYTES |= {"Byte": 1, "Bool": 1, "ComplexFloat": 8, "ComplexDouble": 16, "Untyped": 1}
"""Bytes per element of a storage, by the name of its type without `Storage`."""


class _Scan(NamedTuple):
    """The names in a pickle that are not plain data, and the data set that its training arguments name."""

    names: frozenset[str]
    training_data: str | None


def scan_checkpoint(path: Path) -> frozenset[str]:
    """Return the names in a checkpoint that are not plain data: of layers, and of anything else that it needs.

    Raises SpecError for a file that torch.save did not write, or that needs much more memory than disk space.
    """
    return _scan(path).names


def training_data(path: Path) -> str | None:
    """Return the data set named in Ultralytics' training arguments of a checkpoint: unchecked text, None without.

    Raises SpecError like `scan_checkpoint`.
    """
    return _scan(path).training_data


def _scan(path: Path) -> _Scan:
    size = regular_file(path, MAX_BYTES, SpecError)
    try:
        with zipfile.ZipFile(path) as archive:
            records = _records(archive.infolist(), size)
            pickles = [name for name in records if name.endswith("/data.pkl")]
            if len(pickles) != 1 or records[pickles[0]] > MAX_PICKLE_BYTES:
                raise ValueError(f"{len(pickles)} records data.pkl, where one of at most {MAX_PICKLE_BYTES} bytes is")
            content = archive.read(pickles[0])
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise _refusal(path, str(error) or "cut short") from error
    try:
        return _scanned(content, pickles[0].removesuffix("data.pkl"), tuple(records.items()))
    except Exception as error:  # a damaged pickle can raise anything
        raise _refusal(path, str(error) or type(error).__name__) from error


@lru_cache(maxsize=8)  # a build reads the same checkpoint in many of its stages
def _scanned(content: bytes, folder: str, records: tuple[tuple[str, int], ...]) -> _Scan:
    """Return the names in a pickle. folder: of its record in the zip file; records: (name, bytes) of each."""
    reader = _RestrictedUnpickler(content, folder, dict(records))
    checkpoint = reader.load()
    arguments = checkpoint.get("train_args") if isinstance(checkpoint, dict) else None
    data = arguments.get("data") if isinstance(arguments, dict) else None
    names = frozenset(name for name in reader.names if not _is_data(name))
    return _Scan(names, data if isinstance(data, str) else None)


def _records(entries: list[zipfile.ZipInfo], size: int) -> dict[str, int]:
    """Return the size of each record in bytes. Raises ValueError if records are compressed, overlap or repeat."""
    if len(entries) > MAX_RECORDS:
        raise ValueError(f"more than {MAX_RECORDS} records")
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
            raise ValueError(f"a compressed record {entry.filename[:80]!r}, which torch.save does not write")
    records = {entry.filename: entry.file_size for entry in entries}
    if len(records) < len(entries) or sum(records.values()) > size:
        raise ValueError("records that overlap or repeat")
    return records


def _is_data(name: str) -> bool:
    return name in _PLAIN_NAMES or _storage_bytes(name) > 0 or _NUMBER_FORMAT.fullmatch(name) is not None


def _storage_bytes(name: str) -> int:
    """Return the bytes per element of a storage type; 0 for any other name."""
    module, _, kind = name.rpartition(".")
    return _STORAGE_BYTES.get(kind.removesuffix("Storage"), 0) if module in ("torch", "torch.storage") else 0


class _Name:
    """Stand-in for a function or type that the pickle names. A call checks the arguments, and returns an `_Object`."""

    def __init__(self, name: str, reader: _RestrictedUnpickler) -> None:
        self.name = name
        self._reader = reader

    def __call__(self, *arguments: Any) -> Any:
        self._reader.spend(arguments)
        if self.name == "torch._utils._rebuild_tensor_v2":
            _require_inside(*arguments[:4])
        return _Object(self._reader)


class _Object:
    """The result of a call: accepts items and attributes, and stores none."""

    def __init__(self, reader: _RestrictedUnpickler) -> None:
        self._reader = reader

    def __setstate__(self, state: Any) -> None:
        self._reader.spend(state if isinstance(state, tuple) else (state,))

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, item: Any) -> None:
        pass

    def extend(self, items: Iterable[Any]) -> None:
        pass


class _Storage:
    """A storage: only its number of elements."""

    def __init__(self, elements: int) -> None:
        self.elements = elements


class _RestrictedUnpickler(pickle._Unpickler):  # type: ignore[name-defined,misc]
    """Python's unpickler, with stand-ins for everything callable.

    The implementation in Python, because the one in C allocates memo memory by an index in the file. folder: folder of
    the records in the zip file; records: bytes of each.
    """

    def __init__(self, content: bytes, folder: str, records: Mapping[str, int]) -> None:
        super().__init__(io.BytesIO(content), encoding="bytes")
        self.names: set[str] = set()
        self._folder, self._records, self._left = folder, records, MAX_COPIED

    def find_class(self, module: str, name: str) -> Any:
        full = f"{'builtins' if module == '__builtin__' else module}.{name}"  # Python 2's name, in protocol 2
        self.names.add(full)
        return _Name(full, self)

    def persistent_load(self, pid: Any) -> _Storage:
        """Return a storage. Raises ValueError if its record is shorter."""
        _, kind, key, _, elements = pid
        if type(elements) is not int or elements < 0 or not isinstance(kind, _Name) or not isinstance(key, str):
            raise ValueError("a storage that torch.save does not write")
        length, needed = self._records.get(f"{self._folder}data/{key}", -1), elements * _storage_bytes(kind.name)
        if not 0 <= needed <= length or not _storage_bytes(kind.name):
            raise ValueError(f"storage {key[:20]!r} of {needed} bytes, whose record has {length}")
        return _Storage(elements)

    def spend(self, arguments: Iterable[Any]) -> None:
        """Count the items that a call copies. Raises ValueError if all calls together copy more than MAX_COPIED."""
        self._left -= sum(len(each) for each in arguments if hasattr(each, "__len__"))
        if self._left < 0:
            raise ValueError(f"calls that copy more than {MAX_COPIED} items")

    def load_newobj(self) -> None:
        stack: list[Any] = self.stack  # type: ignore[attr-defined]
        arguments, kind = stack.pop(), stack.pop()
        if not isinstance(kind, _Name):
            raise ValueError("an object of something that is no class")
        stack.append(kind(*arguments))

    dispatch: ClassVar[dict[int, Any]] = {**pickle._Unpickler.dispatch, pickle.NEWOBJ[0]: load_newobj}  # type: ignore[attr-defined]


def _require_inside(storage: Any, offset: Any, shape: Any, strides: Any) -> None:
    """Raise ValueError for a tensor that extends beyond its storage, or has more elements than it."""
    numbers = (offset, *shape, *strides)
    if not isinstance(storage, _Storage) or any(type(each) is not int or each < 0 for each in numbers):
        raise ValueError("a tensor that torch.save does not write")
    last = offset + sum((side - 1) * stride for side, stride in zip(shape, strides, strict=True))
    if prod(shape) and (last >= storage.elements or prod(shape) > storage.elements):
        raise ValueError(f"a tensor of shape {str(list(shape))[:80]} in a storage of {storage.elements} elements")


def _refusal(path: Path, found: str) -> SpecError:
    return SpecError(
        f"{shown_path(path)}: cannot be read as a checkpoint",
        expected="a file written by torch.save of PyTorch 1.6 or newer",
        found=" ".join(found.split())[:200],
        fix="check that the file is complete; if you trust whoever made it with your machine, add --trust-checkpoint",
    )

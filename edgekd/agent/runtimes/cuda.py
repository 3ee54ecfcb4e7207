"""The seam to the GPU's memory and streams, for engines that want addresses: through PyCUDA, cuda-python or libcudart.

`opened` takes the first that is here. JetPack has CUDA's own library and neither of the packages, so ctypes does it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from edgekd.core.errors import DeviceError

if TYPE_CHECKING:
    import numpy as np

_TO_DEVICE, _TO_HOST = 1, 2  # cudaMemcpyKind
_LIBRARIES = (
    "/usr/local/cuda/lib64/libcudart.so",
    "/usr/local/cuda/lib64/libcudart.so.*",
    "/usr/local/cuda/targets/*/lib/libcudart.so.*",
    "/usr/lib/*-linux-gnu/libcudart.so.*",
    "/usr/local/cuda-*/lib64/libcudart.so.*",
)
_FIX = "install pycuda or cuda-python for this Python, or CUDA's libcudart, as the firmware provides them"


class Cuda(Protocol):
    """Memory of one GPU, and one stream on it in which copies and engines follow each other."""

    @property
    def stream(self) -> int:
        """The stream's handle."""
        ...

    def pinned(self, shape: Sequence[int], kind: Any) -> np.ndarray:
        """An array in host memory that the GPU reads and writes by itself, until `close`. Raises DeviceError."""
        ...

    def allocate(self, count: int) -> int:
        """The address of `count` bytes of GPU memory, until `close`. Raises DeviceError."""
        ...

    def upload(self, address: int, array: np.ndarray) -> None:
        """Put a copy of a pinned array to an address into the stream. Raises DeviceError."""
        ...

    def download(self, array: np.ndarray, address: int) -> None:
        """Put a copy from an address to a pinned array into the stream. Raises DeviceError."""
        ...

    def wait(self) -> None:
        """Until all that is in the stream is done. Raises DeviceError."""
        ...

    def close(self) -> None:
        """Free everything."""
        ...


def problem() -> str | None:
    """Why the GPU's memory cannot be reached; None where it can. Imports nothing."""
    if any(_installed(name) for name in ("pycuda", "cuda")) or _library():
        return None
    return "neither PyCUDA nor cuda-python nor CUDA's libcudart is here"


def opened() -> Cuda:
    """The first GPU, through the first way that is here. Raises DeviceError."""
    if _installed("pycuda"):
        return PyCuda()
    api = _cuda_python()
    if api is not None:
        return RuntimeCuda(api)
    library = _library()
    if library is None:
        raise DeviceError("no way to the GPU's memory", found=problem(), fix=_FIX)
    return RuntimeCuda(_Library(library))


def _installed(name: str) -> bool:
    spec = find_spec(name)
    return spec is not None and (spec.origin is not None or spec.submodule_search_locations is not None)


def _library() -> Path | None:
    """CUDA's runtime library on this system."""
    return next((path for pattern in _LIBRARIES for path in sorted(Path("/").glob(pattern[1:]))), None)


def _cuda_python() -> Any:
    """cuda-python's module for the runtime library, which moved with 12.8; None where there is none."""
    for name in ("cuda.bindings.runtime", "cuda.cudart"):
        try:
            return import_module(name)
        except ImportError:
            continue
    return None


class PyCuda:
    """PyCUDA, in the context that libraries share."""

    def __init__(self) -> None:
        try:
            import pycuda.driver as driver  # type: ignore[import-not-found,unused-ignore]

            driver.init()
            self._context = driver.Device(0).retain_primary_context()
        except Exception as error:  # PyCUDA's errors have no public base class
            raise DeviceError(
                f"PyCUDA finds no GPU: {error}", fix="check `nvidia-smi`, or the rights on /dev"
            ) from error
        self._driver = driver
        self._context.push()
        self._stream = driver.Stream()
        self._kept: list[Any] = []

    @property
    def stream(self) -> int:
        """The stream's handle."""
        return int(self._stream.handle)

    def pinned(self, shape: Sequence[int], kind: Any) -> np.ndarray:
        """An array in page-locked memory. Raises DeviceError."""
        array: np.ndarray = self._call(self._driver.pagelocked_empty, tuple(shape), kind)
        self._kept.append(array)
        return array

    def allocate(self, count: int) -> int:
        """The address of so many bytes. Raises DeviceError."""
        self._kept.append(self._call(self._driver.mem_alloc, count))
        return int(self._kept[-1])

    def upload(self, address: int, array: np.ndarray) -> None:
        """Copy to the GPU, later. Raises DeviceError."""
        self._call(self._driver.memcpy_htod_async, address, array, self._stream)

    def download(self, array: np.ndarray, address: int) -> None:
        """Copy from the GPU, later. Raises DeviceError."""
        self._call(self._driver.memcpy_dtoh_async, array, address, self._stream)

    def wait(self) -> None:
        """Until the stream is empty. Raises DeviceError."""
        self._call(self._stream.synchronize)

    def close(self) -> None:
        """Free everything, and leave the context."""
        if self._context is not None:
            self._kept.clear()
            self._context.pop()
            self._context = None

    def _call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except self._driver.Error as error:
            raise DeviceError(f"the GPU refuses: {error}", fix="free its memory, or start again") from error


class RuntimeCuda:
    """CUDA's runtime library, through functions that give an error code and then what is asked for.

    That is how cuda-python has them; `_Library` has them alike.
    """

    def __init__(self, api: Any) -> None:
        self._api = api
        self._addresses: list[int] = []
        self._hosts: list[int] = []
        self._native: Any = self._call("cudaStreamCreate")

    @property
    def stream(self) -> int:
        """The stream's handle."""
        return int(self._native)

    def pinned(self, shape: Sequence[int], kind: Any) -> np.ndarray:
        """An array in page-locked memory. Raises DeviceError."""
        import ctypes

        import numpy as np

        count = int(np.prod(shape)) * np.dtype(kind).itemsize
        address = int(self._call("cudaMallocHost", count))
        self._hosts.append(address)
        memory = (ctypes.c_ubyte * count).from_address(address)
        return np.frombuffer(memory, kind).reshape(tuple(shape))

    def allocate(self, count: int) -> int:
        """The address of so many bytes. Raises DeviceError."""
        self._addresses.append(int(self._call("cudaMalloc", count)))
        return self._addresses[-1]

    def upload(self, address: int, array: np.ndarray) -> None:
        """Copy to the GPU, later. Raises DeviceError."""
        self._copy(address, array.ctypes.data, array.nbytes, _TO_DEVICE)

    def download(self, array: np.ndarray, address: int) -> None:
        """Copy from the GPU, later. Raises DeviceError."""
        self._copy(array.ctypes.data, address, array.nbytes, _TO_HOST)

    def wait(self) -> None:
        """Until the stream is empty. Raises DeviceError."""
        self._call("cudaStreamSynchronize", self._native)

    def close(self) -> None:
        """Free everything. What cannot be freed goes with the process."""
        while self._addresses:
            self._api.cudaFree(self._addresses.pop())
        while self._hosts:
            self._api.cudaFreeHost(self._hosts.pop())
        if self._native is not None:
            self._api.cudaStreamDestroy(self._native)
            self._native = None

    def _copy(self, goal: int, source: int, count: int, kind: int) -> None:
        kinds = getattr(self._api, "cudaMemcpyKind", None)  # cuda-python wants its own type
        self._call("cudaMemcpyAsync", goal, source, count, kinds(kind) if kinds else kind, self._native)

    def _call(self, name: str, *arguments: Any) -> Any:
        code, *values = getattr(self._api, name)(*arguments)
        if int(code):
            _, why = self._api.cudaGetErrorString(code)
            said = why.decode("ascii", "replace") if isinstance(why, bytes) else str(why)
            raise DeviceError(f"{name}: error {int(code)}", found=said, fix="check the GPU's driver, memory and rights")
        return values[0] if values else None


class _Library:
    """libcudart by ctypes, with the functions that are needed as cuda-python has them."""

    def __init__(self, path: Path) -> None:
        import ctypes

        try:
            self._native = ctypes.CDLL(str(path))
        except OSError as error:
            raise DeviceError(f"{path}: cannot be loaded", found=str(error), fix=_FIX) from error
        self._native.cudaGetErrorString.restype = ctypes.c_char_p
        self._pointer, self._size, self._reference = ctypes.c_void_p, ctypes.c_size_t, ctypes.byref

    def cudaGetErrorString(self, code: int) -> tuple[int, bytes]:  # noqa: N802 CUDA's own names
        """What an error code means."""
        return 0, self._native.cudaGetErrorString(code) or b"unknown"

    def cudaStreamCreate(self) -> tuple[int, int]:  # noqa: N802
        """A stream."""
        return self._given(self._native.cudaStreamCreate)

    def cudaStreamDestroy(self, stream: int) -> tuple[int]:  # noqa: N802
        """Free a stream."""
        return (self._native.cudaStreamDestroy(self._pointer(stream)),)

    def cudaStreamSynchronize(self, stream: int) -> tuple[int]:  # noqa: N802
        """Wait for a stream."""
        return (self._native.cudaStreamSynchronize(self._pointer(stream)),)

    def cudaMalloc(self, count: int) -> tuple[int, int]:  # noqa: N802
        """Memory of the GPU."""
        return self._given(self._native.cudaMalloc, self._size(count))

    def cudaMallocHost(self, count: int) -> tuple[int, int]:  # noqa: N802
        """Page-locked memory of the host."""
        return self._given(self._native.cudaMallocHost, self._size(count))

    def cudaFree(self, address: int) -> tuple[int]:  # noqa: N802
        """Free memory of the GPU."""
        return (self._native.cudaFree(self._pointer(address)),)

    def cudaFreeHost(self, address: int) -> tuple[int]:  # noqa: N802
        """Free memory of the host."""
        return (self._native.cudaFreeHost(self._pointer(address)),)

    def cudaMemcpyAsync(self, goal: int, source: int, count: int, kind: int, stream: int) -> tuple[int]:  # noqa: N802
        """Put a copy into a stream."""
        told = (self._pointer(goal), self._pointer(source), self._size(count), kind, self._pointer(stream))
        return (self._native.cudaMemcpyAsync(*told),)

    def _given(self, function: Callable[..., int], *arguments: Any) -> tuple[int, int]:
        """Call what writes an address into its first argument."""
        address = self._pointer()
        return function(self._reference(address), *arguments), address.value or 0

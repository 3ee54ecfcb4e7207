"""Interface to the memory and streams of the GPU, through PyCUDA, cuda-python or libcudart.

`opened` takes the first that is installed. JetPack has CUDA's own library and neither of the packages: ctypes calls it.
"""

from __future__ import annotations

import ctypes
import shutil
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable  # noqa: UP035 collections.abc.Callable[...] is Python 3.9

from edgekd.core.errors import DeviceError

if TYPE_CHECKING:
    import numpy as np

    Kernel = Callable[[Sequence[Any], Sequence[int], Sequence[int]], None]
    """Enqueues a kernel: its arguments as NumPy scalars, the size of a block, and the number of blocks."""

_TO_DEVICE, _TO_HOST = 1, 2  # cudaMemcpyKind
_LIBRARIES = (
    "/usr/local/cuda/lib64/libcudart.so",
    "/usr/local/cuda/lib64/libcudart.so.*",
    "/usr/local/cuda/targets/*/lib/libcudart.so.*",
    "/usr/lib/*-linux-gnu/libcudart.so.*",
    "/usr/local/cuda-*/lib64/libcudart.so.*",
)
_COMPILER = "/usr/local/cuda/bin/nvcc"  # of JetPack, which the PATH of a service rarely has
_FIX = "install pycuda or cuda-python for this Python, or CUDA's libcudart, as the firmware provides them"


class Cuda(ABC):
    """Memory of one GPU, and one stream on it for copies and engines. All methods but `close` raise DeviceError."""

    @property
    @abstractmethod
    def stream(self) -> int:
        """Handle of the stream."""

    @abstractmethod
    def pinned(self, shape: Sequence[int], kind: Any) -> np.ndarray:
        """Return an array in page-locked host memory, valid until `close`."""

    @abstractmethod
    def allocate(self, count: int) -> int:
        """Return the address of `count` bytes of GPU memory, valid until `close`."""

    @abstractmethod
    def upload(self, address: int, array: np.ndarray) -> None:
        """Enqueue a copy of a pinned array to an address."""

    @abstractmethod
    def download(self, array: np.ndarray, address: int) -> None:
        """Enqueue a copy from an address to a pinned array."""

    def kernel(self, source: str, name: str, definitions: Mapping[str, int]) -> Kernel:
        """Compile a kernel of a source in CUDA C with macros. Raises DeviceError where there is no compiler."""
        raise DeviceError("no compiler for kernels", expected="PyCUDA", fix="install pycuda, or go on without")

    @abstractmethod
    def wait(self) -> None:
        """Wait until the stream is empty."""

    @abstractmethod
    def close(self) -> None:
        """Release all resources."""


def problem() -> str | None:
    """Return why the GPU's memory cannot be reached; None where it can. Imports nothing."""
    if any(_installed(name) for name in ("pycuda", "cuda")) or _library():
        return None
    return "neither PyCUDA nor cuda-python nor CUDA's libcudart is here"


def opened() -> Cuda:
    """Open the first GPU through the first interface that is installed. Raises DeviceError."""
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
    """Return the path of CUDA's runtime library."""
    return next((path for pattern in _LIBRARIES for path in sorted(Path("/").glob(pattern[1:]))), None)


def _cuda_python() -> Any:
    """Import cuda-python's module for the runtime library, which moved with 12.8; None where there is none."""
    for name in ("cuda.bindings.runtime", "cuda.cudart"):
        try:
            return import_module(name)
        except ImportError:
            continue
    return None


class PyCuda(Cuda):
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
        return int(self._stream.handle)

    def pinned(self, shape: Sequence[int], kind: Any) -> np.ndarray:
        array: np.ndarray = self._call(self._driver.pagelocked_empty, tuple(shape), kind)
        self._kept.append(array)
        return array

    def allocate(self, count: int) -> int:
        self._kept.append(self._call(self._driver.mem_alloc, count))
        return int(self._kept[-1])

    def upload(self, address: int, array: np.ndarray) -> None:
        self._call(self._driver.memcpy_htod_async, address, array, self._stream)

    def download(self, array: np.ndarray, address: int) -> None:
        self._call(self._driver.memcpy_dtoh_async, array, address, self._stream)

    def kernel(self, source: str, name: str, definitions: Mapping[str, int]) -> Kernel:
        options = [f"-D{key}={value}" for key, value in definitions.items()]
        try:
            from pycuda.compiler import SourceModule  # type: ignore[import-not-found,unused-ignore]

            compiler = shutil.which("nvcc") or _COMPILER
            function = SourceModule(source, nvcc=compiler, options=options).get_function(name)
        except Exception as error:  # PyCUDA's errors have no public base class
            raise DeviceError(f"PyCUDA cannot compile {name}: {error}", fix="install CUDA's nvcc") from error

        def launch(arguments: Sequence[Any], block: Sequence[int], blocks: Sequence[int]) -> None:
            sizes = {"block": tuple(block), "grid": tuple(blocks)}
            self._call(lambda: function(*arguments, **sizes, stream=self._stream))

        return launch

    def wait(self) -> None:
        self._call(self._stream.synchronize)

    def close(self) -> None:
        if self._context is not None:
            self._kept.clear()
            self._context.pop()
            self._context = None

    def _call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except self._driver.Error as error:
            raise DeviceError(f"the GPU refuses: {error}", fix="free its memory, or start again") from error


class RuntimeCuda(Cuda):
    """CUDA's runtime library, through functions that return an error code and then their results.

    cuda-python has such functions; `_Library` has them alike.
    """

    def __init__(self, api: Any) -> None:
        self._api = api
        self._addresses: list[int] = []
        self._hosts: list[int] = []
        self._native: Any = self._call("cudaStreamCreate")

    @property
    def stream(self) -> int:
        return int(self._native)

    def pinned(self, shape: Sequence[int], kind: Any) -> np.ndarray:
        import numpy as np

        count = int(np.prod(shape)) * np.dtype(kind).itemsize
        address = int(self._call("cudaMallocHost", count))
        self._hosts.append(address)
        memory = (ctypes.c_ubyte * count).from_address(address)
        return np.frombuffer(memory, kind).reshape(tuple(shape))

    def allocate(self, count: int) -> int:
        self._addresses.append(int(self._call("cudaMalloc", count)))
        return self._addresses[-1]

    def upload(self, address: int, array: np.ndarray) -> None:
        self._copy(address, array.ctypes.data, array.nbytes, _TO_DEVICE)

    def download(self, array: np.ndarray, address: int) -> None:
        self._copy(array.ctypes.data, address, array.nbytes, _TO_HOST)

    def wait(self) -> None:
        self._call("cudaStreamSynchronize", self._native)

    def close(self) -> None:
        """Release all resources; errors are ignored, as the process releases the rest."""
        while self._addresses:
            self._api.cudaFree(self._addresses.pop())
        while self._hosts:
            self._api.cudaFreeHost(self._hosts.pop())
        if self._native is not None:
            self._api.cudaStreamDestroy(self._native)
            self._native = None

    def _copy(self, target: int, source: int, count: int, kind: int) -> None:
        kinds = getattr(self._api, "cudaMemcpyKind", None)  # cuda-python has its own type
        self._call("cudaMemcpyAsync", target, source, count, kinds(kind) if kinds else kind, self._native)

    def _call(self, name: str, *arguments: Any) -> Any:
        code, *values = getattr(self._api, name)(*arguments)
        if int(code):
            _, reason = self._api.cudaGetErrorString(code)
            text = reason.decode("ascii", "replace") if isinstance(reason, bytes) else str(reason)
            raise DeviceError(f"{name}: error {int(code)}", found=text, fix="check the GPU's driver, memory and rights")
        return values[0] if values else None


class _Library:
    """libcudart by ctypes, whose functions return what those of cuda-python return."""

    def __init__(self, path: Path) -> None:
        try:
            self._native = ctypes.CDLL(str(path))
        except OSError as error:
            raise DeviceError(f"{path}: cannot be loaded", found=str(error), fix=_FIX) from error
        self._native.cudaGetErrorString.restype = ctypes.c_char_p

    def __getattr__(self, name: str) -> Callable[..., tuple[Any, ...]]:
        """Return a function of `_ARGUMENTS`."""
        if name not in _ARGUMENTS:
            raise AttributeError(name)
        function, has_result, types = getattr(self._native, name), name in _WITH_RESULT, _ARGUMENTS[name]

        def call(*arguments: Any) -> tuple[Any, ...]:
            result = ctypes.c_void_p()
            values = [kind(value) for kind, value in zip(types, arguments)]  # noqa: B905 strict= is Python 3.10
            code = function(*([ctypes.byref(result)] if has_result else []), *values)
            return (code, result.value or 0) if has_result else (code,)

        return call

    def cudaGetErrorString(self, code: int) -> tuple[int, bytes]:  # noqa: N802 CUDA's own name
        """Return the meaning of an error code."""
        return 0, self._native.cudaGetErrorString(code) or b"unknown"


_ADDRESS, _SIZE = ctypes.c_void_p, ctypes.c_size_t
_ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "cudaStreamCreate": (),
    "cudaStreamDestroy": (_ADDRESS,),
    "cudaStreamSynchronize": (_ADDRESS,),
    "cudaMalloc": (_SIZE,),
    "cudaMallocHost": (_SIZE,),
    "cudaFree": (_ADDRESS,),
    "cudaFreeHost": (_ADDRESS,),
    "cudaMemcpyAsync": (_ADDRESS, _ADDRESS, _SIZE, ctypes.c_int, _ADDRESS),
}
"""Types of the arguments of CUDA's functions, without the pointer to the result of those in `_WITH_RESULT`."""
_WITH_RESULT = ("cudaStreamCreate", "cudaMalloc", "cudaMallocHost")

"""The seam to the GPU's memory: three ways that do the same, each over a stand-in, and what is said without a GPU."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edgekd.agent.runtimes import cuda
from edgekd.core.errors import DeviceError


class CudaPython:
    """cuda-python's module, on the host's memory: every function gives an error code, and then what is asked for."""

    def __init__(self, fails: str = "", code: int = 2) -> None:
        self.fails, self.code = fails, code
        self.memory: dict[int, Any] = {}
        self.kinds: list[int] = []
        self.streams = 0

    def cudaMemcpyKind(self, kind: int) -> int:  # noqa: N802 CUDA's own names
        self.kinds.append(kind)
        return kind

    def cudaGetErrorString(self, code: int) -> tuple[int, bytes]:  # noqa: N802
        return 0, {2: b"out of memory"}[code]

    def cudaStreamCreate(self) -> tuple[int, int]:  # noqa: N802
        self.streams += 1
        return 0, 77

    def cudaStreamDestroy(self, stream: int) -> tuple[int]:  # noqa: N802
        self.streams -= 1
        return (0,)

    def cudaStreamSynchronize(self, stream: int) -> tuple[int]:  # noqa: N802
        return (self.code if self.fails == "wait" else 0,)

    def cudaMalloc(self, count: int) -> tuple[int, int | None]:  # noqa: N802
        if self.fails == "malloc":
            return self.code, None
        memory = ctypes.create_string_buffer(count)
        self.memory[ctypes.addressof(memory)] = memory
        return 0, ctypes.addressof(memory)

    cudaMallocHost = cudaMalloc  # noqa: N815

    def cudaFree(self, address: int) -> tuple[int]:  # noqa: N802
        del self.memory[address]
        return (0,)

    cudaFreeHost = cudaFree  # noqa: N815

    def cudaMemcpyAsync(self, goal: int, source: int, count: int, kind: int, stream: int) -> tuple[int]:  # noqa: N802
        assert stream == 77
        ctypes.memmove(goal, source, count)
        return (0,)


def there_and_back(gpu: cuda.Cuda) -> None:
    """What goes to the GPU comes back."""
    given, taken = gpu.pinned((2, 3), np.float32), gpu.pinned((2, 3), np.float32)
    given[:] = np.arange(6).reshape(2, 3)
    address = gpu.allocate(given.nbytes)
    gpu.upload(address, given)
    gpu.download(taken, address)
    gpu.wait()
    np.testing.assert_array_equal(taken, given)


def test_cuda_python_copies_and_frees_everything() -> None:
    api = CudaPython()
    gpu = cuda.RuntimeCuda(api)
    assert gpu.stream == 77
    there_and_back(gpu)
    assert api.kinds == [1, 2]
    gpu.close()
    gpu.close()
    assert (api.memory, api.streams) == ({}, 0)


@pytest.mark.parametrize("fails", ["malloc", "wait"])
def test_what_cuda_refuses_is_said_in_its_words(fails: str) -> None:
    gpu = cuda.RuntimeCuda(CudaPython(fails))
    with pytest.raises(DeviceError, match="error 2; found out of memory"):
        there_and_back(gpu)


class FakePyCuda(ModuleType):
    """pycuda.driver, on the host's memory."""

    class Error(Exception):
        pass

    def __init__(self) -> None:
        super().__init__("pycuda.driver")
        self.entered = 0
        self.memory: list[Any] = []
        self.full = False

    def init(self) -> None:
        pass

    def Device(self, index: int) -> Any:  # noqa: N802 PyCUDA's own names
        assert index == 0
        context = SimpleNamespace(push=lambda: self._enter(1), pop=lambda: self._enter(-1))
        return SimpleNamespace(retain_primary_context=lambda: context)

    def _enter(self, by: int) -> None:
        self.entered += by

    def Stream(self) -> Any:  # noqa: N802
        return SimpleNamespace(handle=77, synchronize=lambda: None)

    def pagelocked_empty(self, shape: tuple[int, ...], kind: Any) -> np.ndarray:
        return np.empty(shape, kind)

    def mem_alloc(self, count: int) -> int:
        if self.full:
            raise self.Error("cuMemAlloc failed: out of memory")
        self.memory.append(ctypes.create_string_buffer(count))
        return ctypes.addressof(self.memory[-1])

    def memcpy_htod_async(self, goal: int, source: np.ndarray, stream: Any) -> None:
        ctypes.memmove(goal, source.ctypes.data, source.nbytes)

    def memcpy_dtoh_async(self, goal: np.ndarray, source: int, stream: Any) -> None:
        ctypes.memmove(goal.ctypes.data, source, goal.nbytes)


def test_pycuda_does_the_same_and_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = FakePyCuda()
    package = ModuleType("pycuda")
    package.driver = driver  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pycuda", package)
    monkeypatch.setitem(sys.modules, "pycuda.driver", driver)
    monkeypatch.setattr(cuda, "_installed", lambda name: True)
    gpu = cuda.opened()
    assert isinstance(gpu, cuda.PyCuda)
    assert (gpu.stream, driver.entered) == (77, 1)
    there_and_back(gpu)
    driver.full = True
    with pytest.raises(DeviceError, match="the GPU refuses: cuMemAlloc failed"):
        gpu.allocate(1)
    gpu.close()
    gpu.close()
    assert driver.entered == 0


def test_pycuda_compiles_and_launches_a_kernel_on_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def source_module(source: str, nvcc: str, options: list[str]) -> Any:
        if source == "broken":
            raise RuntimeError("nvcc compilation of kernel.cu failed")
        seen.append((source, Path(nvcc).name, options))
        return SimpleNamespace(get_function=lambda name: lambda *values, **how: seen.append((name, values, how)))

    driver, package, compiler = FakePyCuda(), ModuleType("pycuda"), ModuleType("pycuda.compiler")
    package.driver, compiler.SourceModule = driver, source_module  # type: ignore[attr-defined]
    for name, module in (("pycuda", package), ("pycuda.driver", driver), ("pycuda.compiler", compiler)):
        monkeypatch.setitem(sys.modules, name, module)
    gpu = cuda.PyCuda()
    gpu.kernel("source", "work", {"LOW_BITS": 4})([np.int32(1)], (32, 8, 1), (2, 3, 1))
    compiled, (name, values, how) = seen
    assert compiled == ("source", "nvcc", ["-DLOW_BITS=4"])
    assert (name, values, how["block"], how["grid"]) == ("work", (1,), (32, 8, 1), (2, 3, 1))
    assert how["stream"].handle == gpu.stream
    with pytest.raises(DeviceError, match=r"PyCUDA cannot compile work: nvcc compilation .* failed"):
        gpu.kernel("broken", "work", {})
    with pytest.raises(DeviceError, match="no compiler for kernels; expected PyCUDA"):
        cuda.RuntimeCuda(CudaPython()).kernel("source", "work", {})


@pytest.mark.parametrize("name", ["cuda.bindings.runtime", "cuda.cudart"])
def test_cuda_python_is_found_under_both_of_its_names(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = CudaPython()

    def imported(wanted: str) -> Any:
        if wanted != name:
            raise ImportError(wanted)
        return found

    monkeypatch.setattr(cuda, "_installed", lambda package: package == "cuda")
    monkeypatch.setattr(cuda, "import_module", imported)
    there_and_back(cuda.opened())


def test_the_library_itself_says_what_is_missing_here() -> None:
    """CUDA's own library, where this host has it; without a GPU the first call says so."""
    path = cuda._library()
    if path is None:
        pytest.skip("no libcudart on this host")
    library = cuda._Library(path)
    assert library.cudaGetErrorString(2) == (0, b"out of memory")
    code, _ = library.cudaStreamCreate()
    if code == 0:
        pytest.skip("this host has a GPU")
    with pytest.raises(DeviceError, match=f"cudaStreamCreate: error {code}; found "):
        cuda.RuntimeCuda(library)


def test_without_any_way_it_says_what_would_help(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cuda, "_installed", lambda name: False)
    monkeypatch.setattr(cuda, "_cuda_python", lambda: None)
    monkeypatch.setattr(cuda, "_LIBRARIES", (f"{tmp_path}/libcudart.so.*",))
    assert cuda.problem() == "neither PyCUDA nor cuda-python nor CUDA's libcudart is here"
    with pytest.raises(DeviceError, match="install pycuda or cuda-python"):
        cuda.opened()
    (tmp_path / "libcudart.so.12").write_bytes(b"no library")
    assert cuda.problem() is None
    with pytest.raises(DeviceError, match=r"libcudart.so.12: cannot be loaded"):
        cuda.opened()

"""Compiles CUDA C kernels with a C++ compiler, and runs them thread by thread on this process's memory."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

_CUDA = """
#include <cstddef>
struct Index { int x, y, z; };
static Index blockIdx, blockDim, threadIdx;
#define __global__
static float __fmul_rn(float a, float b) { return a * b; }
static float __fsub_rn(float a, float b) { return a - b; }
"""
_LOOPS = """
template <typename... Types>
static void launch(void (*kernel)(Types...), const int *block, const int *blocks, Types... values)
{
    blockDim = {block[0], block[1], block[2]};
    for (blockIdx.y = 0; blockIdx.y < blocks[1]; ++blockIdx.y)
        for (blockIdx.x = 0; blockIdx.x < blocks[0]; ++blockIdx.x)
            for (threadIdx.y = 0; threadIdx.y < block[1]; ++threadIdx.y)
                for (threadIdx.x = 0; threadIdx.x < block[0]; ++threadIdx.x)
                    kernel(values...);
}
"""
_TYPES = {"L": ctypes.c_void_p, "i": ctypes.c_int, "f": ctypes.c_float}
"""C types by NumPy's type character."""


class HostCompiler:
    """Compiles kernels into a folder; skips the test if there is no compiler."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._compiler = shutil.which("g++") or pytest.skip("no g++ here")
        self.compiled: list[str] = []

    def __call__(self, source: str, name: str, definitions: Mapping[str, int]) -> Any:
        parameters = source.partition(f"{name}(")[2].partition(")")[0]
        names = ", ".join(each.split()[-1].lstrip("*") for each in parameters.split(","))
        types = parameters.replace("\n", " ")
        run = f'extern "C" void run(const int *block, const int *blocks, {types})\n'
        path, library = self._folder / f"{name}.cpp", self._folder / f"{name}.so"
        if not library.exists():
            path.write_text(f"{_CUDA}{source}{_LOOPS}{run}{{ launch({name}, block, blocks, {names}); }}\n", "ascii")
            macros = [f"-D{key}={value}" for key, value in definitions.items()]
            options = ["-O2", "-ffp-contract=off", "-Wall", "-Werror", "-shared", "-fPIC", *macros]
            subprocess.run([self._compiler, *options, str(path), "-o", str(library)], check=True)
            self.compiled.append(name)
        native = ctypes.CDLL(str(library)).run

        def launch(arguments: Sequence[Any], block: Sequence[int], blocks: Sequence[int]) -> None:
            sizes = [(ctypes.c_int * 3)(*each) for each in (block, blocks)]
            assert np.prod(block) <= 1024, "threads of a block"
            native(*sizes, *(_TYPES[each.dtype.char](each.item()) for each in arguments))

        return launch

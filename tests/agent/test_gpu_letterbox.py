"""The GPU's letterbox makes the input that the host makes, bit for bit: its kernel, compiled for this processor."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_cuda import FakeCuda
from host_kernels import HostCompiler
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekd.agent.runtimes import gpu_letterbox
from edgekd.agent.runtimes.gpu_letterbox import DEFINITIONS, NAME, SOURCE, GpuLetterbox
from edgekd.core.detection.preprocess import letterbox
from edgekd.core.detection.types import Preprocess
from edgekd.core.errors import DeviceError

NORMALISED = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
FORMATS: list[dict[str, Any]] = [
    {},
    {"color": "bgr", "scale": 1.0},
    NORMALISED,
    {"center": False, "input": "uint8"},
    {"stretch": True, "upscale": False, "input": "uint8", "float_bytes": True},
    {"input": "nv12"},
    {"input": "nv12", "float_bytes": True, "center": False},
]


@pytest.fixture(scope="module")
def compiler(tmp_path_factory: pytest.TempPathFactory) -> HostCompiler:
    return HostCompiler(tmp_path_factory.mktemp("kernels"))


@pytest.fixture
def gpu(compiler: HostCompiler, monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    monkeypatch.setattr(FakeCuda, "compiler", staticmethod(compiler))
    return FakeCuda()


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 50), st.integers(1, 50), st.sampled_from(FORMATS))
def test_each_value_is_that_of_the_host(compiler: HostCompiler, height: int, width: int, options: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FakeCuda, "compiler", staticmethod(compiler))
        gpu = FakeCuda()
        preprocess = Preprocess(32, 48, **options)
        on_gpu = GpuLetterbox(gpu, preprocess, batch=2)
        shape = (3 * height, 2 * width) if preprocess.input == "nv12" else (height, width, 3)
        frames = np.random.default_rng(height * 100 + width).integers(0, 256, (2, *shape), np.uint8)
        expected = np.concatenate([letterbox(frame, preprocess)[0] for frame in frames])
        assert on_gpu.dtype == expected.dtype
        found = gpu.pinned(expected.shape, expected.dtype)
        address = gpu.allocate(expected.nbytes)
        for index, frame in enumerate(frames):
            on_gpu.enqueue(frame, index, address + index * expected[:1].nbytes)
        gpu.download(found, address)
        gpu.wait()
        np.testing.assert_array_equal(found, expected)


def test_frames_of_any_layout_and_size_go_one_after_the_other(gpu: FakeCuda) -> None:
    preprocess = Preprocess(32, 48)
    on_gpu, frame = GpuLetterbox(gpu, preprocess, 1), np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    for each in (frame[::2, ::-1], frame, frame[:5, :7], frame[..., ::-1]):
        expected, _ = letterbox(each, preprocess)
        found, address = gpu.pinned(expected.shape, np.float32), gpu.allocate(expected.nbytes)
        on_gpu.enqueue(each, 0, address)
        gpu.download(found, address)
        gpu.wait()
        np.testing.assert_array_equal(found, expected)


def test_a_kernel_that_computes_something_else_is_not_used(gpu: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    host = gpu_letterbox.letterbox
    changed = replace(Preprocess(32, 48), pad_value=113)
    monkeypatch.setattr(gpu_letterbox, "letterbox", lambda frame, _: host(frame, changed))
    with pytest.raises(DeviceError, match=r"expected the values of the host; found \d+ of 4608 values that differ"):
        GpuLetterbox(gpu, Preprocess(32, 48), 1)


def test_without_a_compiler_there_is_none() -> None:
    with pytest.raises(DeviceError, match="no compiler for kernels"):
        GpuLetterbox(FakeCuda(), Preprocess(32, 48), 1)


def test_cuda_s_compiler_takes_the_source(tmp_path: Path) -> None:
    compiler = shutil.which("nvcc")
    if compiler is None:
        pytest.skip("no nvcc here")
    (tmp_path / "kernel.cu").write_text(SOURCE, "ascii")
    options = [f"-D{key}={value}" for key, value in DEFINITIONS.items()]
    command = [compiler, "-ptx", *options, "-o", "kernel.ptx", "kernel.cu"]
    subprocess.run(command, check=True, cwd=tmp_path, capture_output=True)
    ptx = (tmp_path / "kernel.ptx").read_text("ascii")
    assert f".entry {NAME}(" in ptx
    assert "fma.rn.f32" not in ptx, "the host rounds after the product"

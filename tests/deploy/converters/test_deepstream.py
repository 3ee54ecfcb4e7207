"""The folder for DeepStream: what nvinfer is told, and a parser that finds what edgekd finds."""

from __future__ import annotations

import configparser
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from running import Built

from edgekd.commands import convert as convert_module
from edgekd.core.detection.decode import Thresholds, decode
from edgekd.core.detection.preprocess import place
from edgekd.core.detection.types import DetectorSpec, Head, Preprocess
from edgekd.core.errors import SpecError
from edgekd.core.formats.activations import float_activations
from edgekd.core.formats.calibration_cache import from_text
from edgekd.core.formats.plain_graph import plain_graph
from edgekd.deploy.converters.deepstream import CACHE, CONFIG, GRAPH, LABELS, PLAIN, config
from edgekd.deploy.converters.types import ConversionRequest, Source
from edgekd.detectors.export import probe
from edgekd.detectors.onnx import describe
from edgekd.graph.runtimes.onnxruntime import ONNXRUNTIME_CPU
from edgekd.graph.view import load_graph

STUB = Path(__file__).with_name("deepstream_stub")
SIZE = Preprocess(height=64, width=96)
CLASSES = ("a", "b", "c")
RNG = np.random.default_rng(0)


def convert(artifact: Path, out: Path, *targets: str, **told: Any) -> dict[str, Any]:
    return convert_module.convert(artifact, "deepstream", out=out, target=targets, **told).document


def settings(folder: Path) -> dict[str, str]:
    read = configparser.ConfigParser()
    read.read(folder / CONFIG)
    return dict(read["property"])


def makes(folder: Path) -> str:
    return next(line for line in (folder / "Makefile").read_text("utf-8").splitlines() if line.startswith("all:"))


# ------------------------------------------------------------------------------------------------ what the folder says


def test_a_float_detector_is_built_by_nvinfer(tiny_model: Path, tmp_path: Path) -> None:
    found = convert(tiny_model, tmp_path / "out")
    told = settings(tmp_path / "out")
    assert found["parity"]["boxes"] == 0
    assert (told["onnx-file"], told["network-mode"], told["infer-dims"]) == (GRAPH, "2", "3;64;64")
    assert told["model-engine-file"] == "detector.onnx_b1_gpu0_fp16.engine"
    assert (told["cluster-mode"], told["maintain-aspect-ratio"], told["symmetric-padding"]) == ("2", "1", "1")
    assert float(told["net-scale-factor"]) == pytest.approx(1 / 255)
    assert (told["model-color-format"], told["num-detected-classes"]) == ("0", "2")
    assert (tmp_path / "out" / LABELS).read_text("utf-8") == "red\ngreen\n"
    assert makes(tmp_path / "out") == "all: libedgekd_parser.so "
    readme = (tmp_path / "out" / "README.md").read_text("utf-8")
    assert "never run under DeepStream" in readme
    assert "@" not in readme
    listed = {line.split("`")[1] for line in readme.splitlines() if line.startswith("| `")}
    assert listed | {"README.md", "edgekd.json", "metadata.yaml"} == {
        each.name for each in (tmp_path / "out").iterdir()
    }


def test_int8_is_built_by_trtexec_before_or_by_a_cache_for_tensorrt_8(tiny_int8: Path, tmp_path: Path) -> None:
    found = convert(tiny_int8, tmp_path / "new", "orin-nano")
    told = settings(tmp_path / "new")
    assert found["int8"] == {"source": 3, "carried": 3}
    assert (told["network-mode"], told["model-engine-file"]) == ("1", "detector.engine")
    assert "int8-calib-file" not in told
    assert makes(tmp_path / "new").endswith("detector.engine")
    assert "--saveEngine=$@ --int8 --fp16" in (tmp_path / "new" / "Makefile").read_text("utf-8")
    old = convert(tiny_int8, tmp_path / "old", "xavier")
    told = settings(tmp_path / "old")
    assert (told["onnx-file"], told["int8-calib-file"], told["network-mode"]) == (PLAIN, CACHE, "1")
    cache = (tmp_path / "old" / CACHE).read_text("ascii")
    assert cache.startswith("TRT-8502-EntropyCalibration2\n")
    tensors = {name for node in load_graph(tmp_path / "old" / PLAIN).graph.node for name in (*node.input, *node.output)}
    assert set(from_text(cache)) <= tensors
    assert from_text(cache)
    counts = old["calibration_cache"]
    assert 0 < counts["missing"] == counts["activations"] - counts["float_tensors"] - len(from_text(cache))
    assert any(
        f"{counts['missing']} of {counts['activations']} activations have no scale" in note for note in old["notes"]
    )
    assert found["calibration_cache"] is None
    fp32 = convert(tiny_int8, tmp_path / "fp32", "xavier", precision="fp32")
    assert fp32["calibration_cache"] is None


def test_a_bundle_brings_the_scales_of_all_that_may_be_int8(tiny_build: Built, tmp_path: Path) -> None:
    found = convert(tiny_build.bundle, tmp_path / "out", "xavier")
    scales = from_text((tmp_path / "out" / CACHE).read_text("ascii"))
    plain = plain_graph((tiny_build.out / "graph.onnx").read_bytes())
    counts = {
        "activations": len(float_activations(plain.onnx)),
        "float_tensors": len(plain.float_tensors),
        "missing": 0,
    }
    assert found["calibration_cache"] == counts
    assert not any("no scale" in note for note in found["notes"])
    assert scales.keys() == set(float_activations((tmp_path / "out" / PLAIN).read_bytes())) - set(plain.float_tensors)
    assert load_graph(tmp_path / "out" / PLAIN).graph.output[0].name in plain.float_tensors


def test_preprocessing_is_said_as_nvinfer_computes_it() -> None:
    how = replace(SIZE, scale=1.0, mean=(104.0, 117.0, 123.0), std=(2.0, 2.0, 2.0), color="bgr", center=False)
    read = configparser.ConfigParser()
    read.read_string(config(DetectorSpec(CLASSES, how, Head("end2end", nms=False)), 2, None, cached=False))
    told = read["property"]
    frame = RNG.uniform(0, 255, 3)
    theirs = float(told["net-scale-factor"]) * (frame - [float(mean) for mean in told["offsets"].split(";")])
    np.testing.assert_allclose(theirs, (frame * how.scale - how.mean) / how.std, rtol=1e-6)
    assert (told["model-color-format"], told["symmetric-padding"], told["cluster-mode"]) == ("1", "0", "4")
    assert "nms-iou-threshold" not in read["class-attrs-all"]


def test_what_nvinfer_cannot_compute_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    from edgekd.deploy.converters.deepstream import DEEPSTREAM

    spec = describe(load_graph(tiny_model), tiny_model)
    three = replace(spec, preprocess=replace(spec.preprocess, std=(0.2, 0.3, 0.4)))
    with pytest.raises(SpecError, match=r"one number; found std 0\.2, 0\.3, 0\.4"):
        DEEPSTREAM.convert(Source(tiny_model, three), tmp_path, "tiny", ConversionRequest())
    assert not list(tmp_path.iterdir())


# --------------------------------------------------------------------------------------------------- what it finds


@pytest.fixture(scope="module")
def parsed(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What the parser makes of an output, as rows x1, y1, x2, y2, score, class."""
    if not shutil.which("g++"):
        pytest.skip("no g++")
    built: dict[tuple[object, ...], Path] = {}

    def run(output: np.ndarray, spec: DetectorSpec, dims: tuple[int, ...]) -> np.ndarray:
        key = spec.head, spec.classes
        if key not in built:
            built[key] = _built(spec, tmp_path_factory.mktemp(spec.head.kind))
        words = [spec.preprocess.width, spec.preprocess.height, len(spec.classes), *dims]
        done = subprocess.run([built[key], *map(str, words)], input=output.tobytes(), capture_output=True)
        assert done.returncode == 0, done.returncode
        return np.array([line.split() for line in done.stdout.decode().splitlines()], np.float64).reshape(-1, 6)

    return run


def _built(spec: DetectorSpec, folder: Path) -> Path:
    from edgekd.deploy.converters.deepstream import _EngineBuild, _text_files

    for name, text in _text_files(spec, _EngineBuild(2), "test", ()).items():
        (folder / name).write_text(text, "utf-8")
    flags = ["-std=c++11", "-O0", "-Wall", "-Wextra", "-Werror", f"-I{STUB}", f"-I{folder}"]
    sources = [folder / "edgekd_parser.cpp", STUB / "main.cpp"]
    subprocess.run(["g++", *flags, *sources, "-o", folder / "parse"], check=True)
    return folder / "parse"


def ours(output: np.ndarray, spec: DetectorSpec) -> np.ndarray:
    """What edgekd finds without suppressing anything."""
    alone = replace(spec, head=replace(spec.head, nms=False))
    found = decode(output, alone, place(spec.preprocess.width, spec.preprocess.height, SIZE), Thresholds(iou=1.0))
    return np.concatenate([found.boxes, found.scores[:, None], found.classes[:, None]], axis=1)


def assert_same(theirs: np.ndarray, expected: np.ndarray) -> None:
    inside = expected[(expected[:, 2] > expected[:, 0]) & (expected[:, 3] > expected[:, 1])]
    assert len(inside) > 10
    np.testing.assert_allclose(theirs[np.lexsort(theirs.T)], inside[np.lexsort(inside.T)], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("kind", ["yolo", "yolox", "end2end"])
def test_the_parser_finds_what_edgekd_finds(kind: str, parsed: Any) -> None:
    spec = DetectorSpec(CLASSES, SIZE, Head(kind, kind != "end2end"))
    cells = sum((64 // stride) * (96 // stride) for stride in (8, 16, 32))
    if kind == "yolo":
        boxes = np.concatenate([RNG.uniform(-10, 100, (2, cells)), RNG.uniform(1, 40, (2, cells))])
        output = np.concatenate([boxes, RNG.uniform(0, 0.5, (3, cells))])
        output[0, 3] = np.nan
    elif kind == "yolox":
        boxes = np.concatenate([RNG.uniform(-1, 1, (cells, 2)), RNG.uniform(-1, 2, (cells, 2))], axis=1)
        output = np.concatenate([boxes, RNG.uniform(0, 1, (cells, 4))], axis=1)
        output[3, 2] = np.inf
    else:
        corners = RNG.uniform(0, 50, (40, 2))
        output = np.concatenate(
            [corners, corners + 20, RNG.uniform(0, 1, (40, 1)), RNG.integers(0, 3, (40, 1))], axis=1
        )
    batch = output[None].astype(np.float32)
    for dims in (batch.shape[1:], batch.shape):
        assert_same(parsed(batch, spec, dims), ours(batch, spec))


def test_the_parser_reads_what_the_network_gives(tiny_model: Path, parsed: Any) -> None:
    spec = describe(load_graph(tiny_model), tiny_model)
    frame = np.concatenate([probe(spec, 0)[:, :1] * 0, probe(spec, 0)[:, 1:]], axis=1)
    with ONNXRUNTIME_CPU.load(tiny_model) as session:
        output = session.run(frame).copy()
    output[0, 4:] = np.maximum(output[0, 4:], 0.3)  # so that something is found
    expected = ours(output, spec)
    assert len(parsed(output, spec, output.shape[1:])) == len(expected) > 10


def test_the_parser_refuses_another_output(parsed: Any) -> None:
    spec = DetectorSpec(CLASSES, SIZE, Head("yolo"))
    with pytest.raises(AssertionError, match=r"^3"):
        parsed(np.zeros((1, 9, 20), np.float32), spec, (9, 20))

"""A bundle whose network takes raw frames, up to three at once, from the build into service, with each runtime."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cameras import Agent, activate, bench, build, selftest
from fake_cuda import FakeCuda
from fake_tensorrt import installed as fake_bindings
from fake_trtexec import install as fake_program
from host_kernels import HostCompiler
from running import DEVICE

import edgekd
from edgekd.agent.engines.camera import Camera
from edgekd.agent.runtimes import trtexec
from edgekd.agent.runtimes.tensorrt import TensorRt
from edgekd.agent.runtimes.tensorrt_dla import TensorRtDla
from edgekd.agent.runtimes.types import Runtime
from edgekd.agent.serving import Served
from edgekd.agent.state.slots import State
from edgekd.core.bundle.archive import read_manifest
from edgekd.core.detection.decode import Thresholds
from edgekd.core.errors import DeviceError, SpecError
from edgekd.data.dataset import load_dataset
from edgekd.data.images import read_image
from edgekd.deploy.artifact import opened
from edgekd.evaluation.evaluate import finder


@pytest.fixture(scope="module")
def raw(tiny_model: Path, tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with a network in INT8 that takes bytes of up to three frames."""
    out, options = tmp_path_factory.mktemp("raw"), {"device": DEVICE[1], "recipe": "ptq", "max_batch": 3}
    built = edgekd.build(tiny_model, tiny_data, out=out, input_format="uint8", postprocess="graph", **options)
    assert built.map50_95[1] == pytest.approx(built.map50_95[0], abs=0.02)
    return built.bundle


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_detections_on_the_camera_are_those_of_the_host(
    runtime: str, raw: Path, agent: Agent, state: State, tiny_data: Path
) -> None:
    assert read_manifest(raw).detector["preprocess"]["input"] == "uint8"
    assert read_manifest(raw).detector["batch"] == 3
    for command, arguments in (("unpack", [raw]), ("build", []), ("selftest", []), ("activate", [])):
        assert agent(command, *arguments, runtime=runtime).code == 0
    limits = read_manifest(raw).thresholds
    with Served(state.root) as served:
        assert served.model.batch == 3
        frames = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8)
        together = served.model.session.run(frames)
        for frame, output in zip(frames, together, strict=True):
            np.testing.assert_allclose(served.model.session.run(frame[None])[0], output, rtol=1e-4, atol=1e-4)
    with Served(state.root) as served, opened(raw, None, (), False) as (graph, spec):
        thresholds = Thresholds(min(limits.confidence), limits.iou, limits.max_detections)
        with finder(graph, spec, thresholds) as find:
            for sample in load_dataset(tiny_data).split("val").samples[:3]:
                frame = read_image(sample.image)[:, :40]
                _, found = served.detect(frame)
                expected = find(frame)
                kept = expected.only(expected.scores > np.asarray(limits.confidence)[expected.classes])
                assert len(kept)
                np.testing.assert_allclose(found.scores, kept.scores, atol=0.05)


@pytest.mark.parametrize("version", ["8.5.2.2", "10.3.0", "trtexec"])
def test_tensorrt_takes_the_bytes(
    version: str, raw: Path, agent: Agent, state: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent("unpack", raw)
    runtime: Runtime = TensorRt()
    if version == "trtexec":
        trtexec._version.cache_clear()
        path = fake_program(tmp_path / "bin", 8502)
        monkeypatch.setattr(trtexec, "FOLDERS", (str(path.parent),))
        runtime = trtexec.Trtexec()
    else:
        fake_bindings(monkeypatch, version)
    camera = Camera(state, Path("/none"), runtime)
    built = build(camera)
    assert built["layers"]["int8"] >= 1
    assert selftest(camera)["passed"]
    assert bench(camera, 3, 0)["iterations"] == 3
    largest = 3 if runtime.batches else 1
    assert bench(camera, 3, 0, batch=largest)["batch"] == largest
    with pytest.raises(DeviceError, match=f"expected 1 to {largest} frames at once"):
        bench(camera, 3, 0, batch=4)
    assert activate(camera)["changed"]


@pytest.mark.parametrize("version", ["8.5.2.2", "10.3.0", "11.4.1"])
def test_an_engine_of_tensorrt_takes_one_frame_or_several(
    version: str, raw: Path, agent: Agent, state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent("unpack", raw)
    behaviour = fake_bindings(monkeypatch, version, dla_cores=2)
    camera = Camera(state, Path("/none"), TensorRt())
    session = TensorRt().load(Path(build(camera)["file"]))
    frames = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8)
    alone = [session.run(frame[None]) for frame in frames]
    np.testing.assert_allclose(session.run(frames), np.concatenate(alone), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(session.run(frames[1:2]), alone[1], rtol=1e-4, atol=1e-4)
    assert session.run(frames[:2]).shape[0] == 2
    with pytest.raises(DeviceError, match=r"expected at most a batch \(3, 64, 64, 3\); found \(4, "):
        session.run(np.concatenate([frames, frames[:1]]))
    session.close()
    build(replace(camera, runtime=TensorRtDla(0)))
    assert [each["batch"] for each in behaviour.built] == [3, None], "a DLA takes fixed shapes only"


def test_the_gpu_of_tensorrt_prepares_frames_where_it_can(
    raw: Path, agent: Agent, state: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent("unpack", raw)
    fake_bindings(monkeypatch, "10.3.0")
    camera, found = Camera(state, Path("/none"), TensorRt()), []
    build(camera)
    selftest(camera)
    activate(camera)
    frames = [np.random.default_rng(side).integers(0, 256, (side, 90, 3), np.uint8) for side in (40, 50)]
    for compiler in (None, HostCompiler(tmp_path)):
        monkeypatch.setattr(FakeCuda, "compiler", compiler and staticmethod(compiler))
        with Served(state.root) as served:
            assert (served.model.frame_session is None) is (compiler is None)
            found.append(served.model.run(served.model.prepare(frames)))
    np.testing.assert_array_equal(*found)
    assert len(found[0]) == 2


def test_such_a_build_can_be_reported_again_but_is_no_source_of_others(raw: Path, tiny_data: Path) -> None:
    assert edgekd.analyse(raw.parent, images=2).inside is not None
    with pytest.raises(SpecError, match="convert a build without --input"):
        edgekd.convert(raw, to="openvino", out=raw.parent / "converted")
    with pytest.raises(SpecError, match="takes raw frames; expected an input float32; found uint8"):
        edgekd.build(raw.parent / "graph.onnx", tiny_data, recipe="float", out=raw.parent / "again")
    with pytest.raises(SpecError, match="--input; expected float32, uint8, nv12; found rgb"):
        edgekd.build(raw.parent / "graph.onnx", tiny_data, input_format="rgb")

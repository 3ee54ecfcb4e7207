"""A program that feeds frames to what is in service: by the bundle's own thresholds, after a switch by the new one."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from cameras import Agent, identity_of, install, repacked, run
from test_json_contract import assert_documented

from edgekd.agent import serving
from edgekd.agent.cameras import capacity
from edgekd.agent.cameras.service import CameraResult, CameraService
from edgekd.agent.cameras.sources import CameraSource
from edgekd.agent.engines.engine import ENGINE
from edgekd.agent.serving import Served
from edgekd.agent.state.slots import State
from edgekd.core.bundle.archive import read_head
from edgekd.core.detection.decode import Thresholds, decode
from edgekd.core.detection.preprocess import letterbox
from edgekd.core.errors import DeviceError, HashError
from edgekd.deploy.agent_zipapp import agent_archive
from edgekd.deploy.artifact import opened
from edgekd.graph.runtimes.onnxruntime import ONNXRUNTIME_CPU

EXAMPLE = Path(__file__).parents[2] / "examples" / "camera_service.py"


@pytest.fixture
def folder(installed: Path, tmp_path: Path) -> Path:
    """A state folder of its own, with the bundle in service."""
    return Path(shutil.copytree(installed, tmp_path / "state", symlinks=True))


def frame(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (48, 96, 3), np.uint8)


def damage(folder: Path) -> None:
    engine = folder / "active" / "engine" / ENGINE
    engine.write_bytes(engine.read_bytes()[:-1])


def test_a_frame_goes_through_what_is_in_service(folder: Path, bundle: Path) -> None:
    with Served(folder) as served:
        model, found = served.detect(frame())
    assert (model.identity, model.name) == (identity_of(bundle), read_head(bundle).manifest.name)
    assert len(found.boxes) == len(found.scores) == len(found.classes)


def test_detections_are_those_of_the_host_above_each_classs_threshold(
    agent: Agent, bundle: Path, state: State, tmp_path: Path
) -> None:
    limits = replace(read_head(bundle).manifest.thresholds, confidence=(0.01, 0.02))
    lower = repacked(bundle, tmp_path / "lower", thresholds=limits)
    for command, arguments in (("unpack", [lower]), ("build", []), ("selftest", []), ("activate", [])):
        assert agent(command, *arguments, runtime="onnxruntime").code == 0
    least = np.asarray(limits.confidence)
    seen = 0
    with (
        Served(state.root) as served,
        opened(lower, None, (), False) as (graph, spec),
        ONNXRUNTIME_CPU.load(graph) as session,
    ):
        for seed in range(4):
            _, found = served.detect(frame(seed))
            batch, at = letterbox(frame(seed), spec.preprocess)
            thresholds = Thresholds(float(least.min()), limits.iou, limits.max_detections)
            every = decode(session.run(batch), spec, at, thresholds)
            kept = every.scores > least[every.classes]
            np.testing.assert_allclose(found.scores, every.scores[kept], atol=1e-3)
            np.testing.assert_allclose(found.boxes, every.boxes[kept], atol=0.1)
            seen += len(every)
    assert seen, "the network found something to choose from"


def test_a_switch_is_followed_before_the_next_frame(folder: Path, bundle: Path, newer: Path) -> None:
    with Served(folder) as served:
        first, _ = served.detect(frame())
        assert install(folder, newer) == 0
        second, _ = served.detect(frame())
        assert (first.identity, second.identity) == (identity_of(bundle), identity_of(newer))
        with pytest.raises(DeviceError, match="closed"):
            first.detect(frame())
        assert served.model is second, "nothing is opened again without a switch"


def test_where_the_new_model_cannot_be_opened_the_old_one_stays(folder: Path, bundle: Path, newer: Path) -> None:
    with Served(folder) as served:
        served.detect(frame())
        assert install(folder, newer) == 0
        damage(folder)
        model, _ = served.detect(frame())
        assert model.identity == identity_of(bundle)
        assert isinstance(served.problem, HashError)


@pytest.mark.parametrize("what", ["nothing", "damaged"])
def test_without_a_model_there_is_one_line(folder: Path, tmp_path: Path, what: str) -> None:
    if what == "damaged":
        damage(folder)
    kind, told = (DeviceError, "nothing is in service") if what == "nothing" else (HashError, "its engine is damaged")
    with Served(folder if what == "damaged" else tmp_path / "empty") as served, pytest.raises(kind, match=told):
        served.detect(frame())


def test_a_switch_while_a_model_is_opened_is_not_missed(
    folder: Path, newer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opening = serving._open
    calls = []

    def switching(state: State) -> Any:
        model = opening(state)
        if not calls:
            assert install(folder, newer) == 0
        calls.append(model.identity)
        return model

    monkeypatch.setattr(serving, "_open", switching)
    with Served(folder) as served:
        assert served.model.identity == identity_of(newer)
    assert len(calls) == 2


def test_what_switches_without_end_is_an_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stamps = iter(range(100))
    monkeypatch.setattr(serving, "_stamp", lambda state: next(stamps))
    with Served(folder) as served, pytest.raises(DeviceError, match="again and again"):
        served.detect(frame())


def test_the_example_writes_a_line_for_each_frame(folder: Path, bundle: Path, tmp_path: Path) -> None:
    """In a process of its own, with the agent's file as the source of edgekd."""
    (tmp_path / "agent.pyz").write_bytes(agent_archive())
    (tmp_path / "frames").mkdir()
    for seed in range(3):
        cv2.imwrite(str(tmp_path / "frames" / f"{seed}.png"), frame(seed))
    (tmp_path / "frames" / "notes.txt").write_text("no image")
    given = ["--agent", tmp_path / "agent.pyz", "--state", folder, "--source", tmp_path / "frames"]
    given += ["--source", f"other={tmp_path / 'frames'}", "--track", "--status", tmp_path / "status.json"]
    command = [sys.executable, EXAMPLE, *map(str, given)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env={"PYTHONSAFEPATH": "1"})
    assert (done.returncode, done.stderr) == (0, "")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    for camera in ("0", "other"):
        assert [each["frame"] for each in lines if each["camera"] == camera] == [0, 1, 2]
    assert {each["model"] for each in lines} == {identity_of(bundle)}
    assert all(set(thing) == {"class", "score", "box", "track"} for each in lines for thing in each["objects"])
    status = json.loads((tmp_path / "status.json").read_bytes())
    assert status["model"] == identity_of(bundle)
    assert [(each["state"], each["detected"], each["dropped"]) for each in status["cameras"]] == [("ended", 3, 0)] * 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_example_ends_by_a_signal_after_the_frames_on_their_way(folder: Path, tmp_path: Path, number: int) -> None:
    (tmp_path / "agent.pyz").write_bytes(agent_archive())
    given = ["--agent", tmp_path / "agent.pyz", "--state", folder, "--source", "synthetic:96x48@50"]
    command = [sys.executable, EXAMPLE, *map(str, given), "--status", str(tmp_path / "status.json")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stderr
        first = process.stdout.readline()
        process.send_signal(number)
        # Not by communicate(), which loses lines that were buffered with the first.
        rest, errors = process.stdout.read(), process.stderr.read()
    assert (process.returncode, errors) == (0, "")
    (camera,) = json.loads((tmp_path / "status.json").read_bytes())["cameras"]
    assert camera["detected"] == len([first, *rest.splitlines()])
    assert camera["captured"] == camera["detected"] + camera["dropped"]


def test_a_service_of_cameras_goes_on_with_the_new_model(folder: Path, bundle: Path, newer: Path) -> None:
    found: list[str] = []
    detected = threading.Event()

    def frames() -> Iterator[np.ndarray]:
        yield frame()
        assert detected.wait(30)
        assert install(folder, newer) == 0
        yield frame()
        yield frame()

    def result(result: CameraResult) -> None:
        found.append(result.model.identity)
        detected.set()

    CameraService([CameraSource("0", frames, live=False)], lambda: Served(folder), result).run()
    assert found == [identity_of(bundle), identity_of(newer), identity_of(newer)]


@pytest.mark.skipif(not shutil.which("gst-launch-1.0"), reason="no GStreamer")
def test_the_example_stands_behind_a_gstreamer_pipeline(folder: Path, bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "agent.pyz").write_bytes(agent_archive())
    source = "videotestsrc num-buffers=5 ! video/x-raw,width=96,height=48"
    environment = {**os.environ, "LEAKY": "no", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    command = [EXAMPLE.with_name("gstreamer_camera.sh"), source, "--agent", tmp_path / "agent.pyz", "--state", folder]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert [each["frame"] for each in told] == list(range(5))
    assert {each["model"] for each in told} == {identity_of(bundle)}


def test_bench_counts_the_cameras_that_an_engine_serves(
    agent: Agent, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capacity, "SECONDS", 0.2)
    agent("unpack", bundle)
    agent("build", runtime="onnxruntime")
    found = agent(
        "bench", "--iterations", 2, "--seconds", 0, "--cameras", 2, "--camera-fps", 5, runtime="onnxruntime"
    ).document
    assert_documented(found, "agent")
    capacities = found["result"]["cameras"]
    assert (capacities["fps"], capacities["limit"]) == (5, 2)
    assert capacities["runs"][0]["cameras"] == 1
    assert "0 or more" in agent("bench", "--cameras", -1, runtime="onnxruntime").error["expected"]


def test_the_example_says_what_it_cannot_open(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "agent.pyz").write_bytes(agent_archive())
    for given, what in (
        (["--agent", "none.pyz", "--source", "x"], "there is no agent"),
        (["--agent", "agent.pyz", "--state", str(folder), "--source", "none.mp4"], "cannot be opened"),
        (["--agent", "agent.pyz", "--state", "none", "--source", str(tmp_path)], None),
    ):
        done = subprocess.run([sys.executable, EXAMPLE, *given], capture_output=True, text=True, cwd=tmp_path)
        assert "Traceback" not in done.stderr
        assert what is None or what in done.stderr


def test_the_example_ends_a_trial_when_the_model_has_worked(folder: Path, newer: Path, tmp_path: Path) -> None:
    (tmp_path / "agent.pyz").write_bytes(agent_archive())
    (tmp_path / "frames").mkdir()
    for seed in range(3):
        cv2.imwrite(str(tmp_path / "frames" / f"{seed}.png"), frame(seed))
    assert run(folder, "install", newer) == 0
    assert State(folder).activation.trial
    given = ["--agent", tmp_path / "agent.pyz", "--state", folder, "--source", tmp_path / "frames"]

    def serve(frames: int) -> None:
        command = [sys.executable, EXAMPLE, *map(str, given), "--commit-after", str(frames)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
        assert (done.returncode, done.stderr) == (0, "")

    serve(4)
    trial = State(folder).activation.trial
    assert trial, "three frames are not enough"
    serve(3)
    assert State(folder).activation.trial is None
    assert State(folder).active
    assert State(folder).active.identity == identity_of(newer)

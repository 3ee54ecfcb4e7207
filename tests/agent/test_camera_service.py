"""The service of several cameras: every frame accounted for, and no camera slows another, whatever it does."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Callable  # noqa: UP035 collections.abc.Callable[...] is Python 3.9

import numpy as np
import pytest

from edgekd.agent.cameras import capacity, capture
from edgekd.agent.cameras.service import CameraOptions, CameraResult, CameraService
from edgekd.agent.cameras.sources import CameraSource, synthetic_frames
from edgekd.agent.cameras.statistics import ServiceStatus
from edgekd.agent.serving import DriftWatch, Model
from edgekd.core.bundle.manifest import DetectionThresholds
from edgekd.core.detection.preprocess import letterbox
from edgekd.core.detection.types import DetectorSpec, Head, Preprocess
from edgekd.core.errors import DeviceError

SPEC = DetectorSpec(("thing",), Preprocess(32, 32), Head("end2end", nms=False))
SIZE = (24, 32)
ENGINE_S = 0.004


class FakeSession:
    """Detects one object, whose left side is the brightness of the frame; an engine that takes some time."""

    def __init__(self, seconds: float = ENGINE_S, error_at: int = -1) -> None:
        self.seconds, self.error_at = seconds, error_at
        self.runs = 0
        self.batches: list[int] = []
        self.is_closed = False
        self.threads: set[int] = set()

    def run(self, batch: np.ndarray) -> np.ndarray:
        self.runs += 1
        if self.runs == self.error_at:
            raise DeviceError("the engine is gone")
        time.sleep(self.seconds)
        self.batches.append(len(batch))
        lefts = batch[:, 0, 16, 16] * 10
        return np.array([[[left, 8, left + 10, 24, 0.9, 0]] for left in lefts], np.float32)

    def close(self) -> None:
        self.is_closed = True

    def scratch_bytes(self) -> int | None:
        return None


@dataclass
class FakeProvider:
    """Gives a model, which a test may replace."""

    model: Model

    def close(self) -> None:
        self.model.session.close()


def model(session: Any = None, spec: DetectorSpec = SPEC, identity: str = "one", **options: Any) -> Model:
    thresholds, watch = DetectionThresholds((0.5,), 0.7, 100), DriftWatch(None, spec.preprocess)
    return Model("fake", 1, identity, "key", spec, thresholds, session or FakeSession(), watch, **options)


def camera(name: str, fps: float = 100.0, count: int | None = None, **options: Any) -> CameraSource:
    """A live camera, which ends after `count` frames."""

    def frames() -> Iterator[np.ndarray]:
        for number, frame in enumerate(synthetic_frames(SIZE[1], SIZE[0], fps)):
            if number == count:
                return
            yield frame

    return CameraSource(name, frames, **options)


def file(name: str, count: int) -> CameraSource:
    return CameraSource(
        name, lambda: iter([np.full((*SIZE, 3), number, np.uint8) for number in range(count)]), live=False
    )


def serve(
    sources: list[CameraSource],
    seconds: float = 60.0,
    until: Callable[[ServiceStatus], bool] = lambda status: False,
    provider: Any = None,
    **options: Any,
) -> tuple[ServiceStatus, dict[str, list[CameraResult]]]:
    """Serve until all files end, so many seconds are over, or `until`; the final status, and the results."""
    results: dict[str, list[CameraResult]] = defaultdict(list)
    service = CameraService(
        sources,
        lambda: provider or FakeProvider(model()),
        lambda result: results[result.camera].append(result),
        CameraOptions(**options),
    )
    status = service.run(seconds, lambda now: service.stop() if until(now) else None, 0.01)
    for each in status.cameras:
        assert each.frames.pending == 0, "every frame is accounted for"
        numbers = [result.number for result in results[each.name]]
        assert numbers == sorted(set(numbers)), "in order, each once"
        assert len(numbers) == each.frames.detected
    return status, results


def test_every_frame_of_files_is_detected_in_order() -> None:
    status, results = serve([file("a", 30), file("b", 7)], streams=2, preprocess_threads=2)
    assert [each.state for each in status.cameras] == ["ended", "ended"]
    for name, count in (("a", 30), ("b", 7)):
        assert [result.number for result in results[name]] == list(range(count))
        lefts = [float(result.detections.boxes[0, 0]) for result in results[name]]
        np.testing.assert_allclose(lefts, [number / 255 * 10 for number in range(count)], atol=1e-4)
    assert status.stages.engine_s >= 37 * ENGINE_S
    assert status.model == "one"


def test_a_session_is_opened_run_and_closed_by_one_thread() -> None:
    """A context of CUDA belongs to the thread that opened it."""
    threads: list[set[int]] = []

    class Session(FakeSession):
        def run(self, batch: np.ndarray) -> np.ndarray:
            self.threads.add(threading.get_ident())
            return super().run(batch)

        def close(self) -> None:
            self.threads.add(threading.get_ident())

    def open_model() -> FakeProvider:
        session = Session()
        session.threads = {threading.get_ident()}
        threads.append(session.threads)
        return FakeProvider(model(session))

    CameraService([file("a", 20)], open_model, lambda result: None, CameraOptions(streams=2)).run()
    assert [len(each) for each in threads] == [1, 1]
    assert threads[0] != threads[1]


def test_old_frames_of_a_camera_that_floods_are_dropped_and_the_others_keep_theirs() -> None:
    flood = camera("flood", 1e6, max_fps=5000)
    status, _ = serve(
        [flood, camera("a", 20), camera("b", 20)],
        until=lambda now: all(each.frames.captured >= 25 for each in now.cameras),
    )
    lost, *others = [each.frames.dropped / each.frames.captured for each in status.cameras]
    assert lost > 0.3
    assert max(others) < lost / 2


def test_no_more_frames_are_read_than_the_limit() -> None:
    status, _ = serve([camera("flood", 1e6, max_fps=50)], seconds=0.5)
    assert status.cameras[0].frames.captured <= 50 * status.seconds + 3


def dying() -> Iterator[np.ndarray]:
    yield np.zeros((*SIZE, 3), np.uint8)
    raise OSError("rtsp://user:secret@host/stream: gone")


def refusing() -> Iterator[np.ndarray]:
    raise RuntimeError


def test_a_camera_that_dies_is_opened_again_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgekd.agent.cameras.scheduling.FIRST_DELAY_S", 0.02)
    sources = [CameraSource("dies", dying), CameraSource("refuses", refusing), camera("ends", 1e4, 3), camera("a", 40)]
    states = set()

    def retried(now: ServiceStatus) -> bool:
        states.add(now.cameras[1].state)
        return all(each.attempts >= 3 for each in now.cameras[:3]) and now.cameras[3].frames.detected >= 5

    status, results = serve(sources, until=retried)
    dead, refused, ended, alive = status.cameras
    assert "retrying" in states
    assert dead.problem == "rtsp://host/stream: gone"
    assert (refused.problem, ended.problem) == ("RuntimeError", "the stream ended")
    assert {result.number for result in results["dies"]} <= set(range(dead.frames.captured)), "numbers go on"
    assert (alive.attempts, alive.problem) == (1, None)


def test_a_camera_that_blocks_is_replaced_a_few_times_and_never_delivers_late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgekd.agent.cameras.scheduling.FIRST_DELAY_S", 0.01)
    monkeypatch.setattr("edgekd.agent.cameras.service._JOIN_S", 0.1)
    release, stalled = threading.Event(), []
    opened: list[threading.Thread] = []

    def blocking() -> Iterator[np.ndarray]:
        if len(opened) > capture.MAX_ABANDONED:
            raise OSError("gone")
        opened.append(threading.current_thread())
        yield np.zeros((*SIZE, 3), np.uint8)
        release.wait(60)
        yield np.full((*SIZE, 3), 255, np.uint8)

    def enough(now: ServiceStatus) -> bool:
        blocked, alive = now.cameras
        if blocked.state == "stalled" and blocked.attempts == len(opened) == 1 + capture.MAX_ABANDONED:
            stalled.append(now)
        if len(stalled) >= 8 and alive.frames.detected >= 5:
            release.set()
        return release.is_set() and not any(thread.is_alive() for thread in opened[:-1]) and blocked.problem == "gone"

    _, results = serve([CameraSource("blocks", blocking), camera("a", 40)], until=enough, stall_s=0.1)
    late = [result for result in results["blocks"] if result.detections.boxes[0, 0] > 5]
    assert len(late) <= 1, "what was left behind delivers nothing"


DAMAGED = (
    None,
    "frame",
    np.zeros((4, 4), np.uint8),
    np.zeros((4, 4, 4), np.uint8),
    np.zeros((4, 4, 3), np.float32),
    np.zeros((0, 4, 3), np.uint8),
    np.zeros((1, 9000, 3), np.uint8),
    np.zeros(3, np.uint8),
)
STRANGE = (
    np.zeros((1, 1, 3), np.uint8),
    np.zeros((1, 8192, 3), np.uint8),
    np.zeros((8192, 1, 3), np.uint8),
    np.zeros((48, 64, 3), np.uint8)[::2, ::-1],
    np.zeros((48, 64, 3), np.uint8)[..., ::-1],
)


def test_damaged_frames_are_rejected_and_strange_ones_detected() -> None:
    frames = [*DAMAGED, *STRANGE, np.zeros((*SIZE, 3), np.uint8)]
    status, _ = serve([CameraSource("odd", lambda: iter(frames), live=False), file("a", 5)])
    odd, sound = status.cameras
    assert (odd.frames.rejected, odd.frames.detected) == (len(DAMAGED), len(STRANGE) + 1)
    assert odd.problem
    assert "rejected" in odd.problem
    assert sound.frames.detected == 5


def nv12(count: int) -> Iterator[np.ndarray]:
    """Grey frames of 32 x 24 pixels, and some that are damaged."""
    for number in range(count):
        yield np.concatenate([np.full((24, 32), 16 + number, np.uint8), np.full((12, 32), 128, np.uint8)])
    yield from (np.zeros((35, 32), np.uint8), np.zeros((36, 31), np.uint8), np.zeros((24, 32, 3), np.uint8))


@pytest.mark.parametrize("given", ["float32", "nv12"])
def test_nv12_frames_go_to_networks_of_either_input(given: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    session, seen = FakeSession(), []

    def run(batch: np.ndarray) -> np.ndarray:
        seen.append((batch.dtype, batch.shape))
        return np.array([[[0, 8, 10, 24, 0.9, 0]]], np.float32)

    monkeypatch.setattr(session, "run", run)
    provider = FakeProvider(model(session, replace(SPEC, preprocess=Preprocess(32, 32, input=given))))
    status, _ = serve([CameraSource("a", lambda: nv12(4), live=False, nv12=True)], provider=provider)
    assert (status.cameras[0].frames.detected, status.cameras[0].frames.rejected) == (4, 3)
    assert set(seen) == {
        (np.dtype(np.uint8), (1, 48, 32)) if given == "nv12" else (np.dtype(np.float32), (1, 3, 32, 32))
    }


def test_a_switch_to_a_model_with_another_input_is_followed_within_a_frame() -> None:
    provider = FakeProvider(model())
    other = model(spec=replace(SPEC, preprocess=Preprocess(64, 48)), identity="two")
    seen: list[tuple[str, tuple[int, ...]]] = []
    run = other.session.run
    shapes = []
    other.session.run = lambda batch: shapes.append(batch.shape) or run(batch)  # type: ignore[method-assign,func-returns-value]

    def result(found: CameraResult) -> None:
        seen.append((found.model.identity, (found.number,)))
        if found.number == 3:
            provider.model = other

    CameraService([file("a", 10)], lambda: provider, result).run()
    assert [identity for identity, _ in seen] == sorted((identity for identity, _ in seen), key="one two".find)
    assert set(shapes) == {(1, 3, 64, 48)}
    assert len(shapes) >= 4


def grey_files(cameras: int, count: int) -> list[CameraSource]:
    """Files whose frames have the brightness of their camera and number."""

    def frames(name: int) -> Iterator[np.ndarray]:
        return iter([np.full((*SIZE, 3), 20 * name + number, np.uint8) for number in range(count)])

    return [CameraSource(str(name), partial(frames, name), live=False) for name in range(cameras)]


@pytest.mark.parametrize("streams", [1, 2])
def test_frames_that_wait_for_a_busy_engine_go_through_it_together(streams: int) -> None:
    sessions = [FakeSession(0.02) for _ in range(streams)]
    models = iter([model(each, batch=4) for each in sessions])
    found: dict[str, list[float]] = defaultdict(list)

    def result(each: CameraResult) -> None:
        found[each.camera].append(round(float(each.detections.boxes[0, 0]) * 25.5))

    options = CameraOptions(streams=streams)
    CameraService(grey_files(6, 9), lambda: FakeProvider(next(models)), result, options).run()
    assert found == {str(name): [20 * name + number for number in range(9)] for name in range(6)}
    batches = [count for each in sessions for count in each.batches[2:]]  # after those for warming up
    assert sum(batches) == 54
    assert max(batches) == 4


def test_frames_that_find_the_engine_without_work_go_alone() -> None:
    session = FakeSession(0.0)
    serve(
        [camera("a", 30, 12, live=False), camera("b", 30, 12, live=False)],
        provider=FakeProvider(model(session, batch=4)),
    )
    assert session.batches[:2] == [1, 4], "warmed up"
    assert session.batches.count(1) - 1 >= 20, "at most a few met another frame"


def test_a_switch_to_a_model_that_takes_fewer_frames_at_once_is_followed() -> None:
    small = model(FakeSession(), identity="two", batch=2)
    provider, results = FakeProvider(model(FakeSession(0.02), batch=4)), []

    def result(found: CameraResult) -> None:
        results.append(found)
        provider.model = small

    CameraService(grey_files(6, 9), lambda: provider, result).run()
    assert len(results) == 54
    assert max(small.session.batches) == 2  # type: ignore[attr-defined]


class FakeFrameSession(FakeSession):
    """An engine whose device prepares frames."""

    def run_frames(self, frames: Sequence[np.ndarray]) -> np.ndarray:
        assert all(frame.ndim == 3 and frame.dtype == np.uint8 for frame in frames)
        return self.run(np.stack([letterbox(frame, SPEC.preprocess)[0][0] for frame in frames]))


def test_frames_go_as_they_are_to_a_device_that_prepares_them() -> None:
    on_gpu, on_host = (model(FakeFrameSession(), batch=3), model(FakeFrameSession(), identity="two", batch=3))
    on_gpu = replace(on_gpu, frame_session=on_gpu.session)  # type: ignore[arg-type]
    provider, found = FakeProvider(on_gpu), defaultdict(list)

    def result(each: CameraResult) -> None:
        found[each.camera].append(round(float(each.detections.boxes[0, 0]) * 25.5))
        if each.number == 4:
            provider.model = on_host

    CameraService(grey_files(3, 9), lambda: provider, result).run()
    assert found == {str(name): [20 * name + number for number in range(9)] for name in range(3)}
    assert on_host.session.batches  # type: ignore[attr-defined]


@pytest.mark.parametrize("stage", ["open", "engine", "result", "preprocess"])
def test_an_error_of_the_model_or_of_the_results_ends_the_service(stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    session = FakeSession(error_at=6 if stage == "engine" else -1)
    broken: Callable[..., Any] = lambda *_: (_ for _ in ()).throw(DeviceError("the engine is gone"))  # noqa: E731

    def open_model() -> Any:
        return broken() if stage == "open" else FakeProvider(model(session))

    service = CameraService(
        [camera("a"), camera("b")], open_model, broken if stage == "result" else lambda result: None
    )
    if stage == "preprocess":
        prepare = Model.prepare
        monkeypatch.setattr(
            Model, "prepare", lambda self, frames: broken() if len(frames[0]) == SIZE[0] else prepare(self, frames)
        )
    with pytest.raises(DeviceError, match="the engine is gone"):
        service.run(10)
    assert session.is_closed == (stage != "open")
    assert all(each.frames.pending == 0 for each in service.status().cameras)


def test_it_stops_when_it_is_asked_to() -> None:
    service = CameraService([camera("a")], lambda: FakeProvider(model()), lambda result: service.stop())
    status = service.run()
    assert status.cameras[0].frames.detected >= 1
    names = [thread.name for thread in threading.enumerate()]
    assert not [name for name in names if name in ("run_engine", "preprocess", "postprocess", "capture a")]


def test_a_file_that_cannot_be_read_has_failed() -> None:
    status, _ = serve([CameraSource("bad", refusing, live=False), file("a", 3)])
    assert [each.state for each in status.cameras] == ["failed", "ended"]


def test_waiting_for_preprocessing_and_for_postprocessing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    prepare = Model.prepare

    def slowly(self: Model, frames: Sequence[np.ndarray]) -> Any:
        time.sleep(0.02)
        return prepare(self, frames)

    monkeypatch.setattr(Model, "prepare", slowly)
    starved, _ = serve([file("a", 10)], provider=FakeProvider(model(FakeSession(0.0))))
    assert starved.stages.starved_s > 0.05
    monkeypatch.undo()
    service = CameraService([file("a", 10)], lambda: FakeProvider(model()), lambda result: time.sleep(0.03))
    assert service.run().stages.blocked_s > 0.05


@pytest.mark.parametrize("limit", [1, 5, 8, 16])
def test_the_largest_number_is_found_in_few_runs(limit: int) -> None:
    for largest in range(limit + 1):
        asked: list[int] = []

        def holds(number: int, largest: int = largest, asked: list[int] = asked) -> bool:
            asked.append(number)
            return number <= largest

        assert capacity.largest_that_holds(limit, holds) == largest
        assert len(asked) <= 2 * limit.bit_length()
        assert max(asked) <= limit


def test_the_number_of_cameras_depends_on_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capacity, "SECONDS", 0.4)
    monkeypatch.setattr(capacity, "FRAME_SIZE", SIZE[::-1])
    found = capacity.measure_capacity(lambda: capacity.OpenModel(model(FakeSession(0.05))), fps=20, limit=16)
    assert found.largest <= 1, "the engine runs 20 times a second"
    assert [run.holds for run in found.runs][-1] is False
    assert found.runs[0].latency_ms
    assert found.runs[0].latency_ms.p50 >= 50


def test_objects_get_identities_of_each_camera() -> None:
    _, results = serve([file("a", 5), file("b", 5)], track=True)
    for name in "ab":
        tracks = [result.tracks for result in results[name]]
        assert [each.tolist() for each in tracks if each is not None] == [[-1], [0], [0], [0], [0]]

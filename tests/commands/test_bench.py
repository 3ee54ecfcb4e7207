"""`edgekd bench` as a library, on a device with scripted times and power; and its page, its CSV and its words."""

from __future__ import annotations

import csv
import itertools
import json
import re
from pathlib import Path

import boards
import cv2
import numpy as np
import onnx
import pytest
from jsonschema import Draft202012Validator
from test_json_contract import closed, schema_of
from tiny import CELLS

from edgekd.commands.bench import BenchJob, run
from edgekd.core.errors import DataError, SpecError
from edgekd.core.power.null import NullMeter
from edgekd.data.frames import load_frames
from edgekd.deploy.devices.null import NullDevice, ScriptedSession
from edgekd.detectors.interface import Interface, with_interface
from edgekd.detectors.onnx import describe
from edgekd.evaluation.bench_result import BenchResult, ColdStart
from edgekd.evaluation.cost import Prices, cost_of
from edgekd.evaluation.report import bench_files, bench_text
from edgekd.graph.model_file import read_model
from edgekd.hardware.target import load_target

OUTPUT = np.zeros((1, 6, CELLS), np.float32)


class TwoSpeeds(NullDevice):
    """A device on which graphs whose name begins with `slow` take longer."""

    def load(self, graph: Path) -> ScriptedSession:
        session = super().load(graph)
        if graph.name.startswith("slow"):
            session.run = lambda batch: (self.advance(0.006), self.infer())[1]  # type: ignore[method-assign]
        return session


def job(model: Path, device: NullDevice, **options) -> BenchJob:
    settings = {"streams": 0, "iterations": 200, "seconds": 2.5, "root": Path("/nowhere"), "rest": device.advance}
    return BenchJob(model, device, **{**settings, **options})


def assert_documented(found: BenchResult) -> None:
    document = json.loads(json.dumps({**found.document, "host": {}}))
    schema = schema_of("bench")
    del schema["properties"]["host"]
    schema["required"].remove("host")
    document.pop("host")
    Draft202012Validator(closed(schema)).validate(document)


def test_both_states_are_told_exactly(tiny_model: Path) -> None:
    device = NullDevice([0.015625], OUTPUT)
    found = run(job(tiny_model, device))
    assert_documented(found)
    told = found.result
    for times in (told.total_ms, told.engine_ms):
        assert (times.p50, times.p99, times.mean) == (15.625, 15.625, 15.625)
    assert (told.fps, told.engine_fps) == (64, 64)
    assert told.cold_start == ColdStart(load_ms=0.0, first_ms=15.625)
    assert told.basis == "measured"
    assert [reason.split(":")[0] for reason in told.refused] == ["energy"]
    assert found.frames.shapes == ((64, 64),)


def test_the_engine_alone_runs_several_frames_at_once_where_the_graph_takes_them(
    tiny_model: Path, tmp_path: Path
) -> None:
    model = read_model(tiny_model)
    with_interface(model, describe(model, tiny_model), Interface(batch=4), "tiny")
    onnx.save(model, tmp_path / "four.onnx")
    found = run(job(tmp_path / "four.onnx", NullDevice([0.015625], OUTPUT), against=tiny_model, batch=8))
    assert_documented(found)
    told = found.result
    assert (told.batch, told.fps, told.engine_fps, told.engine_ms.p50) == (4, 64, 256, 15.625 / 4)
    assert "256.0 FPS engine only, 4 frames at once (measured)" in list(bench_text.bench_lines(found))
    assert bench_text.bench_rows(told)[-1][0] == "engine only, 4 at once"
    assert found.against
    assert (found.against.result.batch, found.against.result.engine_fps) == (1, 64)
    assert found.against.engine_times_as_fast.ratio == pytest.approx(4)


def test_the_other_artifact_is_measured_in_turns_and_a_verdict_given(tiny_model: Path, tmp_path: Path) -> None:
    slow = tmp_path / "slow.onnx"
    slow.write_bytes(tiny_model.read_bytes())
    jitter = np.random.default_rng(0).uniform(0.0138, 0.0142, 997).tolist()
    found = run(job(tiny_model, TwoSpeeds(jitter, OUTPUT), against=slow))
    assert_documented(found)
    other = found.against
    assert other is not None
    assert other.times_as_fast.ratio == pytest.approx(20 / 14, rel=0.01)
    assert other.times_as_fast.verdict == "faster"
    assert other.engine_times_as_fast.verdict == "faster"
    text = "\n".join(bench_text.against_lines(other))
    assert "camera to detections: 1.4" in text
    assert "faster" in text
    back = run(job(slow, TwoSpeeds(jitter, OUTPUT), against=tiny_model)).against
    assert back.times_as_fast.verdict == "slower"
    same = run(job(tiny_model, NullDevice(jitter, OUTPUT), against=tiny_model)).against
    assert same.times_as_fast.verdict == "cannot tell"


def test_energy_and_cost_are_those_of_the_script(tiny_model: Path, tmp_path: Path) -> None:
    """36 W at work and at rest, 20 ms a frame: 720 mJ, of which nothing is the frame's own."""
    slow = tmp_path / "slow.onnx"
    slow.write_bytes(tiny_model.read_bytes())
    device = TwoSpeeds([0.014], OUTPUT)
    prices = Prices(electricity=0.5, instance=1.8, currency="EUR")
    found = run(job(tiny_model, device, against=slow, meter=NullMeter(lambda: 36.0), prices=prices))
    assert_documented(found)
    told, other = found.result, found.against
    assert told.energy
    assert other
    assert told.energy.gross_mj == pytest.approx(36 * 14)
    assert told.energy.net_mj == pytest.approx(0, abs=1e-6)
    assert other.result.energy.gross_mj == pytest.approx(36 * 20)
    assert other.result.cost.electricity == pytest.approx(720e3 / 3.6e6 * 0.5)  # 1e6 frames of 0.72 J
    assert other.result.cost.instance == pytest.approx(1e6 * 0.020 / 3600 * 1.8)
    assert other.cost_change == pytest.approx(14 / 20 - 1)
    lines = "\n".join(bench_text.bench_lines(found))
    assert "504.0 mJ a frame" in lines
    assert "EUR" in lines


def test_a_cost_that_needs_an_energy_that_nobody_knows_has_no_total() -> None:
    found = cost_of(Prices(electricity=0.3, instance=1.0), None, 100)
    assert (found.electricity, found.total) == (None, None)
    assert found.instance == pytest.approx(1e6 / 100 / 3600)
    assert cost_of(Prices(instance=1.0), None, None).total is None
    assert cost_of(Prices(electricity=0.36), 1000, None).total == pytest.approx(0.36 * 1e6 / 3.6e6 * 1)


def test_a_sustained_run_shows_when_it_slowed_down_and_what_it_settles_at(tiny_model: Path, tmp_path: Path) -> None:
    board = boards.xavier(tmp_path / "board")
    device = NullDevice([0.02], OUTPUT)
    device._latencies_s = (0.02 if device.clock() < 45 else 0.03 for _ in itertools.count())
    found = run(job(tiny_model, device, minutes=1.0, root=board, meter=NullMeter(lambda: 10.0)))
    assert_documented(found)
    sustained = found.sustained
    assert sustained
    assert sustained.fps is None
    assert sustained.slow_down.after_ms / sustained.slow_down.before_ms == pytest.approx(1.5)
    assert sustained.settled_fps == pytest.approx(1000 / 30)
    assert sustained.timeline[0].gpu_mhz == 1377
    assert sustained.timeline[-1].at_s == pytest.approx(60, abs=0.1)
    assert found.conditions.setting.power_mode.name == "MAXN"
    assert any("33.3 FPS, 1.50 times as long" in line for line in bench_text.bench_lines(found))
    page = tmp_path / "page.html"
    bench_files.write_page(page, tiny_model.name, found)
    text = page.read_text("utf-8")
    assert "Temperature, °C" in text
    assert text.count("<polyline") >= 3


@pytest.mark.parametrize(("name", "basis"), [("cpu", "measured"), ("xavier", "stand-in")])
def test_a_machine_that_is_not_the_target_stands_in_for_it(tiny_model: Path, name: str, basis: str) -> None:
    found = run(job(tiny_model, NullDevice([0.02], OUTPUT), target=load_target(name)))
    assert found.basis == basis
    assert any(f"({basis})" in line for line in bench_text.bench_lines(found))


def test_a_camera_that_says_it_is_the_target_is_measured_by_its_rails(tiny_model: Path, tmp_path: Path) -> None:
    board = boards.xavier(tmp_path)
    boards.write(board, {"etc/edgekd/compatible": "nvidia,jetson-agx-xavier"})
    found = run(job(tiny_model, NullDevice([0.02], OUTPUT), target=load_target("xavier"), root=board))
    assert found.basis == "measured"
    assert found.result.energy.meter == "ina3221"
    assert found.result.energy.gross_mj == pytest.approx(11.8 * 20)


def write_frames(folder: Path, count: int = 3) -> Path:
    folder.mkdir()
    for at in range(count):
        frame = np.random.default_rng(at).integers(0, 256, (48, 80, 3), np.uint8)
        cv2.imwrite(str(folder / f"{at}.jpg"), frame)
    return folder


def test_compressed_frames_are_decoded_within_the_time(tiny_model: Path, tmp_path: Path) -> None:
    found = run(job(tiny_model, NullDevice([0.02], OUTPUT), frames=write_frames(tmp_path / "frames")))
    assert_documented(found)
    assert found.result.decode_ms is not None
    assert found.frames.shapes == ((80, 48),)
    assert [row[0].strip() for row in bench_text.bench_rows(found.result)][1] == "decode"


def test_a_video_is_decoded_in_order_over_and_over(tmp_path: Path) -> None:
    file = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(file), cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 48))
    for at in range(5):
        writer.write(np.full((48, 64, 3), 40 * at, np.uint8))
    writer.release()
    source = load_frames(file)
    assert (len(source.items), source.shapes) == (5, ((64, 48),))
    opened = source.make_decoder()
    seen = [round(float(opened(item).mean()) / 40) for item in (*source.items, *source.items)]
    assert seen == [0, 1, 2, 3, 4] * 2


@pytest.mark.parametrize("make", ["nothing", "text", "empty", "broken"])
def test_frames_that_are_none_are_said(tmp_path: Path, make: str) -> None:
    place = tmp_path / "frames"
    if make == "text":
        place.write_text("no video")
    elif make != "nothing":
        place.mkdir()
    if make == "broken":
        (place / "a.jpg").write_bytes(b"\xff\xd8 breaks off")
    with pytest.raises(DataError):
        load_frames(place)


def test_every_sample_is_in_the_csv(tiny_model: Path, tmp_path: Path) -> None:
    found = run(job(tiny_model, NullDevice([0.015625, 0.03125], OUTPUT), iterations=60, seconds=0))
    file = tmp_path / "samples.csv"
    bench_files.write_csv(file, found.timings)
    rows = list(csv.DictReader(file.open()))
    camera = [row for row in rows if row["state"] == "camera"]
    assert len(camera) == found.result.iterations == 60
    assert {row["state"] for row in rows} == {"camera", "engine"}
    assert np.percentile([float(row["inference_ms"]) for row in camera], 50) == pytest.approx(
        found.result.inference_ms.p50, abs=1e-3
    )
    assert camera[0]["decode_ms"] == ""
    with pytest.raises(SpecError, match="cannot write"):
        bench_files.write_csv(tmp_path / "no" / "folder" / "x.csv", found.timings)


def test_a_place_that_is_none_is_said_before_anything_is_measured(edgekd, tiny_model: Path, tmp_path: Path) -> None:
    for flag, place in (("--csv", tmp_path / "no" / "x.csv"), ("--report", tmp_path)):
        ran = edgekd("bench", tiny_model, flag, place)
        assert ran.code == 2
        assert ran.err.count("\n") == 1, "not even begun"
        assert "cannot be written" in ran.err


def test_many_sizes_of_frames_are_told_in_short() -> None:
    assert bench_text._shapes([[64, 48]]) == "64x48"
    assert bench_text._shapes([[1, 2], [3, 4], [5, 6], [7, 8]]) == "4 sizes, 1x2 to 7x8"


def test_the_page_has_the_numbers_and_no_script(tiny_model: Path, tmp_path: Path) -> None:
    slow = tmp_path / "slow<b>.onnx"
    slow.write_bytes(tiny_model.read_bytes())
    found = run(job(tiny_model, TwoSpeeds([0.014], OUTPUT), against=slow))
    page = tmp_path / "page.html"
    bench_files.write_page(page, tiny_model.name, found)
    text = page.read_text("utf-8")
    assert "Compared with" in text
    assert "<b>.onnx" not in text
    assert "<script" not in text
    assert not re.search(r"https?://", text)

"""Sources of frames: what names them, what they yield, and what is refused."""

from __future__ import annotations

import io
import sys
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from edgekd.agent.cameras.sources import MAX_FPS, frame_problem, parse_source, without_credentials, y4m_frames
from edgekd.core.errors import DeviceError, SpecError


@pytest.mark.parametrize(
    ("text", "name", "live", "max_fps"),
    [
        ("/dev/video0", "0", True, MAX_FPS),
        ("door=rtsp://user:secret@host/stream?x=1", "door", True, MAX_FPS),
        ("v4l2src device=/dev/video0 ! videoconvert ! appsink", "0", True, MAX_FPS),
        ("yard=v4l2src device=/dev/video0 ! appsink", "yard", True, MAX_FPS),
        ("video.mp4", "0", False, float("inf")),
        ("-", "0", False, float("inf")),
        ("synthetic:64x48@15", "0", True, float("inf")),
    ],
)
def test_a_source_is_known_by_its_text(text: str, name: str, live: bool, max_fps: float) -> None:
    source = parse_source(text, "0")
    assert (source.name, source.live, source.max_fps) == (name, live, max_fps)


def test_a_pipeline_that_says_so_gives_nv12() -> None:
    pipeline = "nvarguscamerasrc ! nvvidconv ! video/x-raw,format={} ! appsink"
    assert [parse_source(pipeline.format(kind), "0").nv12 for kind in ("NV12", "BGR")] == [True, False]


def test_a_file_with_a_rate_plays_like_a_camera() -> None:
    source = parse_source("video.mp4", "0", fps=15)
    assert (source.live, source.max_fps) == (True, 15)
    assert parse_source("/dev/video0", "0", fps=15).max_fps == MAX_FPS, (
        "what is read more slowly than it comes gets old"
    )


@pytest.mark.parametrize("text", ["synthetic:", "synthetic:0x48@15", "synthetic:64x48@0", "synthetic:99999x48@15"])
def test_a_synthetic_source_names_its_size_and_rate(text: str) -> None:
    with pytest.raises(SpecError, match="synthetic:WIDTHxHEIGHT@FPS"):
        parse_source(text, "0")


def test_synthetic_frames_move() -> None:
    first, second = islice(parse_source("synthetic:64x48@500", "0").open(), 2)
    assert first.shape == (48, 64, 3)
    assert frame_problem(first) is None
    assert (first != second).any()


def test_a_folder_yields_its_images_by_name_and_nothing_of_those_that_are_damaged(tmp_path: Path) -> None:
    for number in (2, 1):
        cv2.imwrite(str(tmp_path / f"{number}.png"), np.full((4, 6, 3), number, np.uint8))
    (tmp_path / "3.jpg").write_bytes(b"no image")
    (tmp_path / "notes.txt").write_text("no image")
    first, second, damaged = parse_source(str(tmp_path), "0").open()
    assert (first[0, 0, 0], second[0, 0, 0], damaged) == (1, 2, None)


def test_a_video_yields_its_frames(tmp_path: Path) -> None:
    file = str(tmp_path / "video.avi")
    writer = cv2.VideoWriter(file, cv2.VideoWriter.fourcc(*"MJPG"), 10, (64, 48))
    for number in range(3):
        writer.write(np.full((48, 64, 3), 60 * number, np.uint8))
    writer.release()
    assert [round(frame.mean(), -1) for frame in parse_source(file, "0").open()] == [0, 60, 120]


def test_what_cannot_be_opened_is_named_without_its_password() -> None:
    with pytest.raises(DeviceError, match=r"none\.mp4: cannot be opened"):
        next(parse_source("none.mp4", "0").open())
    assert without_credentials("rtsp://user:secret@host/a and http://x@y") == "rtsp://host/a and http://y"


def test_yuv4mpeg_is_read_from_a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    # Red, 4 x 2 pixels: Y 76, U 85, V 255, twice, and a frame that was cut.
    planes = bytes([76] * 8 + [85] * 2 + [255] * 2)
    stream = b"YUV4MPEG2 W4 H2 F30:1 Ip A1:1 C420jpeg\nFRAME\n" + planes + b"FRAME X\n" + planes + b"FRAME\n12"
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(stream)))
    found = list(parse_source("-", "0").open())
    assert [each.shape for each in found] == [(2, 4, 3)] * 2
    assert (found[0][..., 2] > 200).all()
    assert (found[0][..., :2] < 60).all()


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"\x00\xff\n",
        b"YUV4MPEG2 W4 H2 C444\n",
        b"YUV4MPEG2 W4 H2 C420p10\n",
        b"YUV4MPEG2 W3 H2 C420\n",
        b"YUV4MPEG2 W-4 H2 C420\n",
        b"YUV4MPEG2 W4000000 H2 C420\n",
        b"YUV4MPEG2 C420\n",
    ],
)
def test_a_stream_of_something_else_is_refused(head: bytes) -> None:
    with pytest.raises(DeviceError, match=r"stdin: .*; expected"):
        next(y4m_frames(io.BytesIO(head)))

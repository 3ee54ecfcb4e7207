"""Image files: decoded, refused when broken, streamed in order."""

from __future__ import annotations

import hashlib
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from edgekd.core.errors import DataError
from edgekd.data import images
from edgekd.data.images import ReadableImages, file_hashes, read_image, read_thumbnail
from edgekd.data.labels import Truth
from edgekd.data.types import Sample

NOTHING = Truth(np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, bool))


def picture(height: int = 48, width: int = 64, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return cv2.GaussianBlur(noise, (9, 9), 0)


def encoded(suffix: str, seed: int = 0) -> bytes:
    return bytes(cv2.imencode(suffix, picture(seed=seed))[1].tobytes())


def make_samples(folder: Path, count: int, broken: tuple[int, ...] = ()) -> list[Sample]:
    for index in range(count):
        data = encoded(".png", seed=index)
        (folder / f"{index:03}.png").write_bytes(data[: len(data) // 2] if index in broken else data)
    return [Sample(folder / f"{index:03}.png", NOTHING) for index in range(count)]


def with_exif(jpeg: bytes, orientation: int, thumbnail: bytes = b"") -> bytes:
    """The JPEG with an EXIF header: its orientation, and the bytes of a thumbnail."""
    entry = struct.pack("<HHHHII", 1, 0x0112, 3, 1, 0, orientation)[2:]
    tiff = b"II*\x00" + struct.pack("<I", 8) + struct.pack("<H", 1) + entry[:8] + struct.pack("<I", orientation)
    header = b"Exif\x00\x00" + tiff + struct.pack("<I", 0) + thumbnail
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(header) + 2) + header + jpeg[2:]


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".webp", ".jpg"])
def test_image_is_decoded_as_bgr(tmp_path: Path, suffix: str) -> None:
    (tmp_path / "a").write_bytes(encoded(suffix))
    image = read_image(tmp_path / "a")
    assert (image.shape, image.dtype) == ((48, 64, 3), np.uint8)
    assert np.abs(image.astype(int) - picture()).mean() < 6


def test_exif_orientation_turns_the_image(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(with_exif(encoded(".jpg"), orientation=6))
    assert read_image(tmp_path / "a.jpg").shape == (64, 48, 3)


def test_thumbnail_is_grey_and_an_eighth(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(encoded(".jpg"))
    thumbnail = read_thumbnail(tmp_path / "a.jpg")
    assert thumbnail.shape == (6, 8)
    assert abs(thumbnail.mean() - cv2.cvtColor(picture(), cv2.COLOR_BGR2GRAY).mean()) < 3


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".bmp", ".tif"])
@pytest.mark.parametrize("share", [0.3, 0.9, 0.995])
def test_truncated_image_is_refused(tmp_path: Path, suffix: str, share: float) -> None:
    data = encoded(suffix)
    (tmp_path / "a").write_bytes(data[: int(len(data) * share)])
    with pytest.raises(DataError, match=str(tmp_path / "a")):
        read_image(tmp_path / "a")


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_truncation_is_told_before_the_decoder_could_paint_over_it(suffix: str) -> None:
    data = encoded(suffix)
    assert not images._is_truncated(data)
    assert not images._is_truncated(data + b"appended by a camera")
    assert not images._is_truncated(data + b"a video of a phone, \xff\xda and \xff\xd0 in it")
    assert all(images._is_truncated(data[:-cut]) for cut in range(8, len(data) // 2))


def test_end_of_an_embedded_thumbnail_is_not_the_end_of_the_image(tmp_path: Path) -> None:
    data = with_exif(encoded(".jpg"), 1, thumbnail=encoded(".jpg", seed=1))
    (tmp_path / "whole.jpg").write_bytes(data)
    (tmp_path / "part.jpg").write_bytes(data[:-40])
    assert read_image(tmp_path / "whole.jpg").shape == (48, 64, 3)
    with pytest.raises(DataError, match="truncated"):
        read_image(tmp_path / "part.jpg")


@pytest.mark.parametrize(("data", "said"), [(b"", "is empty"), (b"%PDF-1.7 not an image", "is no image")])
def test_what_is_no_image_is_refused(tmp_path: Path, data: bytes, said: str) -> None:
    (tmp_path / "a.jpg").write_bytes(data)
    with pytest.raises(DataError, match=said):
        read_image(tmp_path / "a.jpg")


def test_missing_image_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read .*gone\.jpg: No such file"):
        read_image(tmp_path / "gone.jpg")


def test_stream_keeps_order_and_skips_broken_files(tmp_path: Path) -> None:
    samples = make_samples(tmp_path, 40, broken=(3, 17))
    stream = ReadableImages(samples)
    for _ in range(2):  # a second pass starts anew
        seen = list(stream)
        assert [sample for sample, _ in seen] == [s for i, s in enumerate(samples) if i not in (3, 17)]
        assert [file.name for file, _ in stream.skipped] == ["003.png", "017.png"]
        assert "truncated" in stream.skipped[0][1]
    np.testing.assert_array_equal(seen[5][1], picture(seed=6))


def test_too_many_broken_files_stop_the_stream(tmp_path: Path) -> None:
    samples = make_samples(tmp_path, 20, broken=(2, 4))
    with pytest.raises(DataError, match=r"002\.png.*004\.png.*at most 1 of 20"):
        list(ReadableImages(samples))
    assert len(list(ReadableImages(samples, max_bad_share=0.1))) == 18


def test_stream_reads_ahead_within_bounds_and_stops_with_its_reader(tmp_path: Path) -> None:
    samples, others = make_samples(tmp_path, 60), set(threading.enumerate())
    read: list[Path] = []

    def count(path: Path) -> np.ndarray:
        read.append(path)
        return read_image(path)

    stream: Iterator[object] = iter(ReadableImages(samples, read=count))
    next(stream)
    assert 1 <= len(read) <= images.AHEAD + 1
    stream.close()  # type: ignore[attr-defined]
    assert len(read) <= images.AHEAD + 1
    assert not [thread for thread in set(threading.enumerate()) - others if thread.name.startswith("ThreadPool")]


def test_file_hashes_are_sha256_of_the_files(tmp_path: Path) -> None:
    files = [sample.image for sample in make_samples(tmp_path, 3)]
    assert file_hashes(files) == {file: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def test_every_real_image_is_readable(shared: Path) -> None:
    files = sorted((shared / "data" / "coco256" / "images" / "val2017").glob("*.jpg"))
    stream = ReadableImages([Sample(file, NOTHING) for file in files], max_bad_share=0, read=read_thumbnail)
    assert len(list(stream)) == 128

"""Read image files, check them for truncation, prefetch them, and hash them.

OpenCV is imported when the first image is read.
"""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgekd.core.canonical import file_sha256, json_sha256
from edgekd.core.errors import DataError
from edgekd.core.input_files import read_input, regular_file
from edgekd.core.progress import SILENT, Progress
from edgekd.data.image_headers import has_jpeg_end, require_small
from edgekd.data.types import Sample, Split

Image = NDArray[np.uint8]
Reader = Callable[[Path], Image]

# Decoding and hashing release the GIL; a few threads keep the cores busy without taking them from inference.
WORKERS = min(4, os.cpu_count() or 1)
AHEAD = 2 * WORKERS
MAX_IMAGE_BYTES = 1 << 29
"""Maximum bytes of an image file: MAX_PIXELS without compression, and room for metadata."""


def read_image(path: Path) -> Image:
    """Decode an image file: uint8 [h, w, 3] BGR, rotated by its EXIF orientation.

    Raises DataError for a file that is missing, empty, truncated or no image.
    """
    return decode_image(read_input(path, MAX_IMAGE_BYTES), path)


def read_thumbnail(path: Path) -> Image:
    """Decode an image file to grey at an eighth of its size: uint8 [h, w]; several times faster than `read_image`.

    Raises DataError as `read_image` does.
    """
    return decode_image(read_input(path, MAX_IMAGE_BYTES), path, thumbnail=True)


def decode_image(data: bytes, path: Path, *, thumbnail: bool = False) -> Image:
    """Decode the bytes of an image file as `read_image` or `read_thumbnail` does; path: for errors."""
    import cv2

    if not data:
        raise DataError(f"{path} is empty", expected="an image")
    if _is_truncated(data):
        raise DataError(f"{path} is truncated", expected="a complete image", found=f"{len(data)} bytes")
    try:
        require_small(data)
    except ValueError as error:
        raise DataError(f"{path} is no image", expected="JPEG, PNG, WebP, TIFF or BMP", found=str(error)) from error
    try:
        mode = cv2.IMREAD_REDUCED_GRAYSCALE_8 if thumbnail else cv2.IMREAD_COLOR
        image = cv2.imdecode(np.frombuffer(data, np.uint8), mode)
    except cv2.error as error:
        raise DataError(f"{path} cannot be decoded: {error.err}") from error
    if image is None:
        raise DataError(f"{path} is no image", expected="JPEG, PNG, WebP, TIFF or BMP")
    return np.asarray(image, dtype=np.uint8)


def _is_truncated(data: bytes) -> bool:
    """Return whether a JPEG or PNG is incomplete: OpenCV 4 fills the rest with grey and only prints a warning.

    JPEG (ITU-T T.81, B.1.1.2): the marker end-of-image FFD9 follows the last start-of-scan FFDA; neither occurs inside
    coded data, and the end marker of a thumbnail precedes the scan of the image. PNG: the IEND chunk. Bytes after the
    end are allowed: some cameras append metadata, phones a short video, in which any bytes occur. OpenCV refuses
    incomplete files of other formats.
    """
    if data.startswith(b"\xff\xd8"):
        return data.rfind(b"\xff\xd9") <= data.rfind(b"\xff\xda") and not has_jpeg_end(data)
    if data.startswith(b"\x89PNG"):
        return data.rfind(b"IEND") < 0
    return False


def readable_samples(samples: Sequence[Sample], progress: Progress = SILENT) -> list[Sample]:
    """Return the samples of `ReadableImages`, without their images. Raises DataError."""
    return [sample for sample, _ in ReadableImages(samples, progress, label="read images")]


class ReadableImages:
    """Iterate over (sample, image) in order, skipping unreadable files until there are too many.

    A few threads prefetch the next images; at most `AHEAD` wait in memory. After a pass, `skipped` lists the skipped
    files with reasons. Raises DataError naming the first of them once they exceed `max_bad_share` of the samples.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        progress: Progress = SILENT,
        *,
        label: str = "images",
        max_bad_share: float = 0.05,
        read: Reader = read_image,
    ) -> None:
        self.skipped: list[tuple[Path, str]] = []
        self._samples = samples
        self._progress = progress
        self._label = label
        self._max_bad = max_bad_share * len(samples)
        self._read = read

    def __len__(self) -> int:
        return len(self._samples)

    def __iter__(self) -> Iterator[tuple[Sample, Image]]:
        self.skipped.clear()
        for sample, decoded in self._progress.items(self._decoded(), self._label, len(self)):
            try:
                image = decoded.result()
            except DataError as error:
                self._skip(sample.image, error)
                continue
            yield sample, image

    def _decoded(self) -> Iterator[tuple[Sample, Future[Image]]]:
        queue: deque[tuple[Sample, Future[Image]]] = deque()
        pool = ThreadPoolExecutor(WORKERS)
        try:
            for sample in self._samples:
                queue.append((sample, pool.submit(self._read, sample.image)))
                if len(queue) > AHEAD:
                    yield queue.popleft()
            while queue:
                yield queue.popleft()
        finally:
            pool.shutdown(cancel_futures=True)

    def _skip(self, file: Path, error: DataError) -> None:
        self.skipped.append((file, str(error)))
        if len(self.skipped) > self._max_bad:
            first = "; ".join(reason for _, reason in self.skipped[:5])
            raise DataError(
                f"too many unreadable images: {first}",
                expected=f"at most {int(self._max_bad)} of {len(self)}",
                fix="restore or remove these files",
            ) from error


def draw_images(
    samples: Sequence[Sample], count: int, seed: int, progress: Progress = SILENT
) -> list[tuple[Sample, Image]]:
    """Draw at most `count` readable images of a split at random, in the split's order. Raises DataError."""
    order = np.random.default_rng(seed).permutation(len(samples))[:count]
    return list(ReadableImages([samples[index] for index in sorted(order)], progress, label="read images"))


def file_hashes(files: Sequence[Path], progress: Progress = SILENT) -> dict[Path, str]:
    """Return the SHA-256 (hex) of each file. Raises DataError where one cannot be read."""
    with ThreadPoolExecutor(WORKERS) as pool:
        hashes = pool.map(_sha256, files)
        return dict(progress.items(zip(files, hashes, strict=True), "hash images", len(files)))


def _sha256(file: Path) -> str:
    regular_file(file, MAX_IMAGE_BYTES)
    try:
        return file_sha256(file)
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror}") from error


def fingerprint(split: Split, sha256: Callable[[Path], str], progress: Progress) -> str:
    """Return the SHA-256 of a split's images and labels, independent of paths. sha256: hashes a file."""
    rows = []
    for each in progress.items(split.samples, f"hash {split.name}"):
        truth = each.truth
        row = [sha256(each.image), truth.boxes.tolist(), truth.classes.tolist(), truth.crowd.tolist()]
        row += [] if truth.keypoints is None else [truth.keypoints.tolist()]
        if truth.polygons is not None:
            points = b"".join(part.tobytes() for outline in truth.polygons for part in outline)
            row += [[list(map(len, outline)) for outline in truth.polygons], hashlib.sha256(points).hexdigest()]
        rows.append(row)
    return json_sha256([split.name, rows])

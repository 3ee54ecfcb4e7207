"""Data sets that others made: no file of them blocks, exhausts memory, leaves the data set or ends in a traceback."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgekd.core.errors import DataError
from edgekd.data import image_headers
from edgekd.data.dataset import load_dataset, unlabelled
from edgekd.data.frames import load_frames
from edgekd.data.image_headers import image_size
from edgekd.data.images import file_hashes, read_image, read_thumbnail

PICTURE = np.zeros((8, 8, 3), np.uint8)


def yolo(folder: Path, yaml: str = "train: images\nnames: [a]\n") -> Path:
    """Write a data set of one image and one label; return its YAML."""
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True)
    cv2.imwrite(str(folder / "images" / "0.png"), PICTURE)
    (folder / "labels" / "0.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    (folder / "data.yaml").write_text(yaml, "utf-8", "surrogatepass")
    return folder / "data.yaml"


def coco(folder: Path, change: Callable[[dict[str, Any]], object] = lambda _: None) -> Path:
    """Write a COCO data set of one image and one box, changed; return its JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(folder / "0.png"), PICTURE)
    document: dict[str, Any] = {
        "images": [{"id": 1, "file_name": "0.png", "width": 8, "height": 8}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 2, 2]}],
        "categories": [{"id": 1, "name": "a"}],
    }
    change(document)
    (folder / "val.json").write_text(json.dumps(document))
    return folder / "val.json"


def refusal(file: Path, split: str | None = None) -> str:
    """Return the error of a data set, or of reading a split; it has a length that people can read."""
    with pytest.raises(DataError) as caught:
        load_dataset(file).split(split or "train")
    assert len(str(caught.value)) < 2000
    return str(caught.value)


# ------------------------------------------------------------------------------------------------------------- YAML

BILLION = "".join(
    f"a{index}: &a{index} [{', '.join([f'*a{index - 1}' if index else 'x'] * 9)}]\n" for index in range(12)
)


@pytest.mark.parametrize(
    "yaml",
    [
        BILLION + "train: images\nnames: *a11\n",
        "train: images\nnames: &x [a, *x]\n",
        "train: images\nnames: " + "[" * 20_000,
        "train: images\nnames: " + "{a: " * 5_000,
        "train: images\nnames: [" + "9" * 5_000 + "]\n",
        "train: images\nnames: [0x" + "f" * 5_000 + "]\n",
        "train: images\nnames: [2024-13-45]\n",
        "train: images\nnames: ['a\\nb']\n",
        'train: images\nnames: ["a\\nb"]\n',
        'train: images\nnames: ["\\u202e"]\n',
        "train: images\nnames: [[a]]\n",
        "train: images\nnames: {0: a, 2024-01-01: b}\n",
        "train: images\nnames: {? [1, 2] : b}\n",
        "train: images\nnames: [" + "x" * 300_000 + "]\n",
        "train: images\nnames: [" + ", ".join(map(str, range(20_000))) + "]\n",
        "train: images\nnames: !!python/object/apply:os.system [id]\n",
        "train: " + "a" * 5_000 + "\nnames: [a]\n",
        'train: "a\\0b"\nnames: [a]\n',
        "path: " + "b" * 5_000 + "\ntrain: none\nnames: [a]\n",
        "train: {a: b}\nnames: [a]\n",
        "train: 2024-01-01\nnames: [a]\n",
        "train: !!binary aGVsbG8=\nnames: [a]\n",
        "subset_of: data.yaml\nsplits: {train: {of: train}}\n",
        "subset_of: " + "c" * 5_000 + "\nsplits: {train: {of: train}}\n",
    ],
)
def test_a_hostile_yaml_is_refused(yaml: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = yolo(tmp_path / "set", yaml)
    if "'a\\nb'" in yaml:  # a backslash and an n
        assert load_dataset(file).classes == ("a\\nb",)
        return
    refusal(file)


def test_a_subset_of_itself_has_an_end(tmp_path: Path) -> None:
    file = yolo(tmp_path / "set")
    other = tmp_path / "subset.yaml"
    other.write_text(json.dumps({"subset_of": str(other), "splits": {"train": {"of": "train", "without": []}}}))
    assert "a subset of a subset" in refusal(other)
    other.write_text(json.dumps({"subset_of": str(file), "splits": {"train": {"of": "train", "without": []}}}))
    assert len(load_dataset(other).split("train")) == 1


def test_dates_and_aliases_of_text_are_names(tmp_path: Path) -> None:
    file = yolo(tmp_path / "set", "train: &where images\nval: *where\nnames: [2024-01-01, 5, a b]\n")
    dataset = load_dataset(file)
    assert dataset.classes == ("2024-01-01", "5", "a b")
    assert len(dataset.split("val")) == 1


# --------------------------------------------------------------------------------------------------- files and folders


def test_links_in_circles_give_each_image_once(tmp_path: Path) -> None:
    file = yolo(tmp_path / "set")
    for name in ("a", "b", "c"):
        (tmp_path / "set" / "images" / name).symlink_to(tmp_path / "set" / "images")
    (tmp_path / "set" / "images" / "self.png").symlink_to("self.png")
    images = [sample.image.name for sample in load_dataset(file).split("train").samples]
    assert images == ["0.png", "self.png"]
    levels = tmp_path / "levels"
    for level in range(30):  # two ways from each folder to the next
        (levels / f"{level}").mkdir(parents=True)
        for way in ("x", "y"):
            (levels / f"{level}" / way).symlink_to(levels / f"{level + 1}")
    (levels / "30").mkdir()
    cv2.imwrite(str(levels / "30" / "last.png"), PICTURE)
    assert len(unlabelled(levels / "0").samples) == 1


@pytest.mark.parametrize("where", ["images/1.png", "labels/0.txt", "data.yaml", "linked.png"])
def test_a_pipe_or_device_in_a_data_set_does_not_block(where: str, tmp_path: Path) -> None:
    file = yolo(tmp_path / "set")
    place = tmp_path / "set" / where
    place.unlink(missing_ok=True)
    if where == "linked.png":
        (tmp_path / "set" / "images" / where).symlink_to("/dev/zero")
    else:
        os.mkfifo(place)
    message = refusal(tmp_path / "set" if where == "data.yaml" else file)
    assert "regular file" in message or "no data set" in message or "nothing that names" in message


def test_a_pipe_for_an_image_is_an_error_of_whoever_reads_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "0.png")
    for read in (read_image, read_thumbnail, load_frames):
        with pytest.raises(DataError):
            read(tmp_path / "0.png" if read is not load_frames else tmp_path)
    for take in (lambda path: file_hashes([path]), load_frames):  # the second as a video
        with pytest.raises(DataError, match="regular file"):
            take(tmp_path / "0.png")


@pytest.mark.parametrize("path", ["a" * 5_000, "b" * 300 + ".yaml", "c/" * 3_000, "nul\0.yaml", "x" * 5_000 + ".json"])
def test_a_path_that_no_file_system_takes_is_an_error(path: str) -> None:
    assert "no data set" in refusal(Path(path))


@pytest.mark.parametrize("path", ["a" * 5_000, "nul\0"])
def test_frames_of_such_a_path_are_an_error(path: str) -> None:
    for load in (load_frames, unlabelled):
        with pytest.raises(DataError):
            load(Path(path))


def test_a_huge_file_is_refused_by_its_size(tmp_path: Path) -> None:
    file = yolo(tmp_path / "set")
    for where in ("labels/0.txt", "data.yaml"):
        with (tmp_path / "set" / where).open("r+b") as stream:
            stream.truncate(1 << 40)  # without taking place on the disk
        assert "too large" in refusal(file)


@pytest.mark.parametrize("row", ["0 nan 0.5 0.5 0.5", "0 1e400 0.5 0.5 0.5", "9" * 5_000 + " 0.5 0.5 0.5 0.5"])
def test_a_label_without_a_meaning_names_its_line(row: str, tmp_path: Path) -> None:
    file = yolo(tmp_path / "set")
    (tmp_path / "set" / "labels" / "0.txt").write_text(row)
    assert "0.txt line 1" in refusal(file)


# ------------------------------------------------------------------------------------------------------------- COCO


def place(key: str, field: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda document: document[key][0].update({field: value})


HUGE = float("inf")


@pytest.mark.parametrize(
    "change",
    [
        place("categories", "id", HUGE),
        place("categories", "id", float("nan")),
        place("categories", "name", ["a"]),
        place("categories", "name", "a\nb"),
        place("categories", "supercategory", ["none"]),
        place("images", "width", HUGE),
        place("images", "width", float("nan")),
        place("images", "height", -1),
        place("images", "height", 1e300),
        place("images", "id", [1]),
        place("images", "file_name", {"a": 1}),
        place("images", "file_name", "a" * 5_000),
        place("images", "file_name", "nul\0.png"),
        place("images", "file_name", ""),
        place("annotations", "bbox", [float("nan")] * 4),
        place("annotations", "bbox", [1, 1, HUGE, 1]),
        place("annotations", "bbox", [[1]] * 4),
        place("annotations", "image_id", [1]),
        place("annotations", "category_id", {}),
        lambda document: document["annotations"].append(5),
        lambda document: document["images"].append([]),
        lambda document: document["categories"].append("a"),
        lambda document: document.update(categories=[{"id": n, "name": str(n)} for n in range(20_000)]),
    ],
)
def test_a_coco_file_without_a_meaning_is_refused(change: Callable[[dict[str, Any]], object], tmp_path: Path) -> None:
    file = coco(tmp_path, change)
    if "supercategory" in file.read_text():
        assert len(load_dataset(file).split("val")) == 1
        return
    refusal(file, "val")


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a":' * 100_000, '{"images": ' + "9" * 5_000 + "}", "NaN", '"\\ud800"', "\x00"]
)
def test_json_that_is_no_data_set_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "val.json").write_text(text)
    refusal(tmp_path / "val.json", "val")


def test_infinite_numbers_written_as_exponents_are_refused(tmp_path: Path) -> None:
    file = coco(tmp_path)
    file.write_text(file.read_text().replace('"categories": [{"id": 1', '"categories": [{"id": 1e400'))
    assert "category" in refusal(file, "val")


@pytest.mark.parametrize("name", ["../secret.png", "/etc/secret.png", "a/../../secret.png", "./../secret.png"])
def test_a_file_name_outside_the_data_set_is_refused(name: str, tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "secret.png"), PICTURE)
    file = coco(tmp_path / "set", place("images", "file_name", name))
    assert "inside the data set" in refusal(file, "val")


def test_a_link_out_of_the_data_set_is_refused_but_the_folder_of_images_may_be_one(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "secret.png"), PICTURE)
    file = coco(tmp_path / "set")
    (tmp_path / "set" / "0.png").unlink()
    (tmp_path / "set" / "0.png").symlink_to(tmp_path / "secret.png")
    assert "inside the data set" in refusal(file, "val")
    (tmp_path / "set" / "sub").symlink_to(tmp_path)
    file = coco(tmp_path / "set", place("images", "file_name", "sub/secret.png"))
    assert "inside the data set" in refusal(file, "val")
    whole = tmp_path / "whole"
    file = coco(whole)
    (tmp_path / "elsewhere").mkdir()
    (whole / "0.png").rename(tmp_path / "elsewhere" / "0.png")
    (whole / "images").symlink_to(tmp_path / "elsewhere")
    assert len(load_dataset(file).split("val")) == 1
    (whole / "images" / "1.png").symlink_to("0.png")
    file.write_text(file.read_text().replace('"0.png"', '"1.png"'))
    assert len(load_dataset(file).split("val")) == 1


# ------------------------------------------------------------------------------------------------------------ images


def png_of(width: int, height: int) -> bytes:
    """Return a PNG whose header states a size, with less data than that."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    )


def jpeg_of(width: int, height: int, scans: int = 1) -> bytes:
    data = bytearray(cv2.imencode(".jpg", PICTURE)[1].tobytes())
    place = data.index(b"\xff\xc0")
    data[place + 5 : place + 9] = struct.pack(">HH", height, width)
    return bytes(data[:-2]) + b"\xff\xda\x00\x02" * (scans - 1) + b"\xff\xd9"


def changed(suffix: str, width: int, height: int) -> bytes:
    """Return an image file of a format whose header says another size."""
    data = bytearray(cv2.imencode(suffix, PICTURE)[1].tobytes())
    if suffix == ".bmp":
        data[18:26] = struct.pack("<ii", width, -height)
    elif suffix == ".webp":
        assert data[12:16] in (b"VP8 ", b"VP8L")
        size = (
            struct.pack("<HH", width, height)
            if data[12:16] == b"VP8 "
            else struct.pack("<I", width - 1 | (height - 1) << 14)
        )
        at = 26 if data[12:16] == b"VP8 " else 21
        data[at : at + 4] = size
    else:
        offset = struct.unpack_from("<I", data, 4)[0]
        for entry in range(offset + 2, offset + 2 + 12 * struct.unpack_from("<H", data, offset)[0], 12):
            tag = struct.unpack_from("<H", data, entry)[0]
            if tag in (256, 257):
                struct.pack_into("<HHII", data, entry, tag, 4, 1, width if tag == 256 else height)
    return bytes(data)


BOMBS = {
    "png": png_of(60_000, 60_000),
    "jpeg": jpeg_of(65_000, 65_000),
    "bmp": changed(".bmp", 60_000, 60_000),
    "webp": changed(".webp", 16_000, 16_000),
    "tiff": changed(".tiff", 60_000, 60_000),
    "scans": jpeg_of(1_000, 1_000, scans=5_000),
    "zero": png_of(0, 1),
}


@pytest.mark.parametrize("name", BOMBS)
def test_an_image_bomb_is_refused_before_it_is_decoded(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def decode(*_: Any) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(cv2, "imdecode", decode)
    (tmp_path / "bomb.png").write_bytes(BOMBS[name])
    for read in (read_image, read_thumbnail):
        with pytest.raises(DataError, match=r"bomb\.png"):
            read(tmp_path / "bomb.png")


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".webp", ".tiff"])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 700), (700, 3), (256, 255)])
def test_the_size_in_a_header_is_that_of_the_image(suffix: str, height: int, width: int, tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    data = cv2.imencode(suffix, image)[1].tobytes()
    assert image_size(data) == (width, height)
    (tmp_path / f"a{suffix}").write_bytes(data)
    assert read_image(tmp_path / f"a{suffix}").shape == (height, width, 3)


def test_real_images_have_headers(shared: Path) -> None:
    images = sorted(path for path in (shared / "data").rglob("*") if path.suffix.lower() in (".jpg", ".png"))
    assert images
    for path in images[:: max(1, len(images) // 50)]:
        height, width = read_image(path).shape[:2]
        assert sorted(image_size(path.read_bytes()) or ()) == sorted((width, height))  # EXIF may turn it


@given(st.sampled_from(list(BOMBS.values())), st.data())
@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
def test_a_damaged_header_is_an_error_of_one_kind(data: bytes, draw: st.DataObject) -> None:
    place = draw.draw(st.integers(0, min(len(data), 200) - 1))
    bad = data[:place] + draw.draw(st.binary(max_size=8)) + data[place + draw.draw(st.integers(0, 8)) :]
    with suppress(ValueError):
        image_headers.require_small(bad)


def test_an_image_bomb_takes_no_memory(tmp_path: Path) -> None:
    """The peak of a process that reads a hostile image is that of one that reads an ordinary one."""
    code = (
        "import sys; from pathlib import Path; from edgekd.data.images import read_image\n"
        "try: read_image(Path(sys.argv[1]))\nexcept Exception as error: print(type(error).__name__)\n"
        "print(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0])"
    )
    peaks = []
    for name, data in (("small.png", cv2.imencode(".png", PICTURE)[1].tobytes()), ("bomb.png", BOMBS["png"])):
        (tmp_path / name).write_bytes(data)
        done = subprocess.run([sys.executable, "-c", code, tmp_path / name], capture_output=True, text=True, check=True)
        peaks.append(int(done.stdout.split()[-1]))
    assert peaks[1] < peaks[0] + 20_000  # KiB

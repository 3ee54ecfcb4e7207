"""Calibration sets: what is chosen, how it is kept, and that it is never scored."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekd.core.detection.types import Preprocess
from edgekd.core.errors import DataError, SpecError
from edgekd.data.calibration import (
    CalibrationFile,
    CalibrationRule,
    CalibrationSet,
    TraitWeights,
    choose,
    load_rule,
    read_calibration,
    refuse_overlap,
    write_calibration,
)
from edgekd.data.dataset import load_dataset
from edgekd.data.types import Dataset

RULE = load_rule()
Scene = tuple[str, int]  # label file, grey level


def make_dataset(root: Path, train: Sequence[Scene], val: Sequence[Scene] = ((("0 0.5 0.5 0.4 0.4"), 7),)) -> Dataset:
    """Plain grey images; each differs from the others in one pixel."""
    serial = 0
    for split, scenes in (("train", train), ("val", val)):
        for kind in ("images", "labels"):
            (root / kind / split).mkdir(parents=True)
        for index, (labels, grey) in enumerate(scenes):
            image = np.full((32, 32, 3), grey, np.uint8)
            image[0, 0], serial = (serial % 256, serial // 256, 0), serial + 1
            cv2.imwrite(str(root / "images" / split / f"{index:03}.png"), image)
            (root / "labels" / split / f"{index:03}.txt").write_text(labels)
    (root / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [cat, dog, cow]\n")
    return load_dataset(root)


COMMON: list[Scene] = [("0 0.5 0.5 0.4 0.4", 120)] * 60
RARE: list[Scene] = [
    ("2 0.5 0.5 0.4 0.4", 120),  # the only cow
    ("0 0.5 0.5 0.4 0.4", 5),  # the only night
    ("0 0.5 0.5 0.02 0.02", 120),  # the only small object
    ("", 120),  # the only empty scene
]


def test_rare_classes_lights_and_sizes_are_covered(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path, [*COMMON, *RARE])
    chosen = choose(dataset, replace(RULE, count=6))
    names = {file.path for file in chosen.files}
    assert len(names) == 6
    assert names > {f"images/train/{index:03}.png" for index in range(60, 64)}


def test_rare_class_outside_the_drawn_pool_is_covered(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path, [*COMMON, RARE[0]])
    for seed in range(5):
        chosen = choose(dataset, replace(RULE, count=3, pool=3, seed=seed))
        assert "images/train/060.png" in {file.path for file in chosen.files}


def test_balance_lifts_the_rare(tmp_path: Path) -> None:
    scenes: list[Scene] = [("0 0.5 0.5 0.4 0.4", 120)] * 36 + [("1 0.5 0.5 0.4 0.4", 120)] * 12
    dataset = make_dataset(tmp_path, scenes)

    def dogs(balance: float) -> int:
        return sum(
            file.path >= "images/train/036" for file in choose(dataset, replace(RULE, count=16, balance=balance)).files
        )

    assert (dogs(0.0), dogs(1.0)) == (4, 8)
    assert 4 < dogs(0.5) < 8


def test_choice_is_repeatable_and_depends_on_the_seed(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path, [*COMMON, *RARE])
    rule = replace(RULE, count=10)
    first = choose(dataset, rule)
    assert choose(load_dataset(tmp_path), rule) == first
    assert choose(dataset, replace(rule, seed=1)).sha256 != first.sha256


def test_smaller_count_is_the_beginning_of_a_larger(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path, [*COMMON, *RARE])
    large, small = (choose(dataset, replace(RULE, count=count)) for count in (12, 5))
    assert large.files[:5] == small.files


def test_identity_does_not_depend_on_where_the_data_lies(tmp_path: Path) -> None:
    here = choose(make_dataset(tmp_path / "here", [*COMMON, *RARE]), replace(RULE, count=8))
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    there = choose(load_dataset(tmp_path / "there"), replace(RULE, count=8))
    assert there.files == here.files
    assert there.sha256 == here.sha256
    assert replace(here, preprocess=Preprocess(64, 64)).sha256 != here.sha256
    assert all(image.is_file() and "there" in image.parts for image in there.images)


class Notes:
    """Keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def items(self, iterable, label, total=None):  # type: ignore[no-untyped-def]
        yield from iterable

    def note(self, text: str) -> None:
        self.said.append(text)


def test_small_split_is_used_whole_and_says_so(tmp_path: Path) -> None:
    notes = Notes()
    chosen = choose(make_dataset(tmp_path, RARE), RULE, progress=notes)
    assert len(chosen.files) == 4
    assert notes.said == ["calibrating on all 4 images of 'train': fewer than 128"]


def test_unreadable_images_are_left_out_and_named(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path, COMMON)
    (tmp_path / "images" / "train" / "007.png").write_bytes(b"")
    notes = Notes()
    chosen = choose(dataset, replace(RULE, count=60), progress=notes)
    assert "images/train/007.png" not in {file.path for file in chosen.files}
    assert len(chosen.files) == 59
    assert "007.png is empty" in notes.said[0]


def test_data_set_without_the_split_is_told_what_to_add(tmp_path: Path) -> None:
    make_dataset(tmp_path, COMMON)
    (tmp_path / "data.yaml").write_text("val: images/val\nnames: [cat]\n")
    with pytest.raises(DataError, match=r"no split 'train' to calibrate on.*fix: add `train:`"):
        choose(load_dataset(tmp_path), RULE)


def test_image_in_both_splits_is_refused_by_content(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path, RARE)
    chosen = choose(dataset, RULE)
    refuse_overlap(chosen, dataset.split("val"))
    shutil.copy(tmp_path / "images" / "train" / "002.png", tmp_path / "images" / "val" / "renamed.png")
    with pytest.raises(
        DataError, match=r"train/002\.png is in the calibration set and, as .*val/renamed\.png, in the scored"
    ):
        refuse_overlap(chosen, load_dataset(tmp_path).split("val"))


def test_written_set_is_read_back(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path / "data", RARE)
    chosen = choose(dataset, RULE, preprocess=Preprocess(320, 640, mean=(0.1, 0.2, 1e-7), center=False))
    write_calibration(chosen, tmp_path / "set.toml")
    assert read_calibration(tmp_path / "set.toml", dataset) == chosen
    first = (tmp_path / "set.toml").read_bytes()
    write_calibration(chosen, tmp_path / "set.toml")
    assert (tmp_path / "set.toml").read_bytes() == first
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["data", "set.toml"]


NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/\0"), min_size=1, max_size=20)


@given(
    names=st.lists(
        NAMES.filter(lambda name: len(name.encode()) < 200 and name not in {".", ".."}), min_size=1, unique=True
    ),
    text=st.text(st.characters(exclude_categories=["Cs"])),
    floats=st.tuples(*[st.floats(allow_nan=False, allow_infinity=False)] * 3),
)
def test_any_name_and_number_survives_the_file(
    tmp_path_factory: pytest.TempPathFactory, names: list[str], text: str, floats: tuple[float, float, float]
) -> None:
    folder = tmp_path_factory.mktemp("set")
    (folder / "images").mkdir()
    for name in names:
        (folder / "images" / name).touch()
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    files = tuple(CalibrationFile(f"images/{name}", empty) for name in names)
    rule = replace(RULE, description=text)
    written = CalibrationSet(files, rule, Preprocess(32, 64, std=floats), folder, "train")
    write_calibration(written, folder / "set.toml")
    assert read_calibration(folder / "set.toml", Dataset(folder, ("cat",), {})) == written


def test_changed_image_is_named(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path / "data", RARE)
    write_calibration(choose(dataset, RULE), tmp_path / "set.toml")
    image = tmp_path / "data" / "images" / "train" / "001.png"
    image.write_bytes(image.read_bytes() + b"\0")
    with pytest.raises(DataError, match=r"train/001\.png is not the image"):
        read_calibration(tmp_path / "set.toml", dataset)
    image.unlink()
    with pytest.raises(DataError, match=r"cannot read .*train/001\.png"):
        read_calibration(tmp_path / "set.toml", dataset)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("format = 1", "format = 2", "expected format = 1"),
        ("[files]", "[fules]", "is no calibration set"),
        ("002.png", "003.jpg", None),
        ('" = "', '" = "0', "was changed after it was written"),
        ("count = 128", "count = true", "rule: count; expected an integer; found True"),
        ("count = 128", "counts = 128", "unknown key 'counts'"),
        ("height = 64", 'height = "64"', "height; expected an integer; found '64'"),
        ("mean = [0.0, 0.0, 0.0]", "mean = [0.0]", "mean; expected 3 values; found [0.0]"),
        ("[rule]", "[rule", "cannot be read as TOML"),
    ],
)
def test_edited_set_is_refused(tmp_path: Path, old: str, new: str, said: str | None) -> None:
    dataset = make_dataset(tmp_path / "data", RARE)
    file = tmp_path / "set.toml"
    write_calibration(choose(dataset, RULE, preprocess=Preprocess(64, 64)), file)
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))
    with pytest.raises((SpecError, DataError), match=r"set\.toml|003\.jpg") as caught:
        read_calibration(file, dataset)
    assert said is None or said in str(caught.value)


def test_unwritable_place_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    chosen = choose(make_dataset(tmp_path / "data", RARE), RULE)
    with pytest.raises(SpecError, match=r"nowhere/set\.toml: cannot write"):
        write_calibration(chosen, tmp_path / "nowhere" / "set.toml")
    (tmp_path / "set.toml").mkdir()
    with pytest.raises(SpecError, match="cannot write"):
        write_calibration(chosen, tmp_path / "set.toml")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["data", "set.toml"]


def test_shipped_rule_is_found_by_name_and_others_by_path(tmp_path: Path) -> None:
    assert (RULE.name, RULE.count) == ("cover", 128)
    with pytest.raises(SpecError, match=r"'covr'.*did you mean 'cover'\?"):
        load_rule("covr")
    text = "\n".join(f"{key} = {value!r}" for key, value in asdict(RULE).items() if key != "weights")
    (tmp_path / "mine.toml").write_text(f"{text}\n[weights]\nclasses = 1\nbrightness = 0\nsize = 0.5\n")
    assert load_rule(str(tmp_path / "mine.toml")) == replace(RULE, weights=TraitWeights(1, 0, 0.5))
    with pytest.raises(SpecError, match="cannot read"):
        load_rule(str(tmp_path / "gone.toml"))


@pytest.mark.parametrize(
    "change",
    [
        {"count": 0},
        {"seed": -1},
        {"pool": 0},
        {"balance": 1.5},
        {"weights": TraitWeights(-1, 0, 1)},
        {"weights": TraitWeights(0, 0, 0)},
    ],
)
def test_senseless_rule_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(SpecError, match=f"{next(iter(change))} is"):
        CalibrationRule(**{**RULE.__dict__, **change})


def test_real_split_keeps_every_class(shared: Path) -> None:
    dataset = load_dataset(shared / "data" / "ppe")
    chosen = choose(dataset, replace(RULE, count=32))
    truths = {sample.image: sample.truth for sample in dataset.split("train").samples}
    images = [set(truths[image].classes.tolist()) for image in chosen.images]
    assert set().union(*images) == {0, 1, 2, 3, 4}
    assert sum(1 in classes for classes in images) >= 4  # no-helmet: in 1 of 20 images of the split
    refuse_overlap(chosen, dataset.split("val"))

"""The data set that `edgekd build` guesses from a checkpoint, which may be anybody's."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
from running import EdgeKD
from test_cli import assert_refused

from edgekd.commands.arguments import short_name
from edgekd.commands.build import trained_on
from edgekd.core.errors import SpecError
from edgekd.detectors.checkpoint_scan import training_data


def checkpoint(folder: Path, content: Any) -> Path:
    """A file as torch.save writes it, without tensors."""
    with zipfile.ZipFile(folder / "best.pt", "w") as archive:
        archive.writestr("best/data.pkl", pickle.dumps(content, protocol=2))
    return folder / "best.pt"


def trained(folder: Path, data: Any) -> Path:
    """A checkpoint whose training arguments name this data set."""
    return checkpoint(folder, {"epoch": 1, "train_args": {"task": "detect", "data": data}})


class Program:
    """An object whose pickle runs a program when it is loaded."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> Any:
        return os.system, (self.command,)


@pytest.mark.parametrize("suffix", [".yaml", ".yml"])
def test_the_yaml_that_a_checkpoint_was_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    path = tmp_path / f"street{suffix}"
    path.touch()
    assert trained_on(trained(tmp_path, str(path))) == path
    monkeypatch.chdir(tmp_path)
    assert trained_on(trained(tmp_path, path.name)) == Path(path.name)


@pytest.mark.parametrize("kind", ["missing", "text", "folder", "pipe", "null", "long", "number", "empty"])
def test_what_is_no_yaml_file_here_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / ("secret.txt" if kind == "text" else "data.yaml")
    if kind == "text":
        path.touch()
    elif kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    odd = {"null": "a\0b.yaml", "long": "a" * 9_000 + ".yaml", "number": 7, "empty": ""}
    with pytest.raises(SpecError, match="--data") as refused:
        trained_on(trained(tmp_path, odd.get(kind, str(path))))
    assert len(str(refused.value)) < 500
    assert str(refused.value).isprintable()


@pytest.mark.parametrize("content", [{}, [], {"train_args": ["data"]}, {"train_args": None}, {b"train_args": {}}])
def test_a_checkpoint_without_training_arguments_names_none(tmp_path: Path, content: Any) -> None:
    assert training_data(checkpoint(tmp_path, content)) is None


@pytest.mark.parametrize("place", ["data", "arguments"])
def test_training_arguments_that_are_a_program_are_not_run(tmp_path: Path, place: str) -> None:
    program = Program(f"touch {tmp_path / 'ran'}")
    path = checkpoint(tmp_path, {"train_args": {"data": program} if place == "data" else program})
    assert training_data(path) is None
    assert not (tmp_path / "ran").exists()


def test_a_guess_is_shown_before_work_starts_and_an_option_overrides_it(edgekd: EdgeKD, tmp_path: Path) -> None:
    (tmp_path / "street.yaml").write_text("train: nowhere\n", "utf-8")
    model = trained(tmp_path, str(tmp_path / "street.yaml"))
    ran = edgekd("build", model, "--out", tmp_path / "out")
    target, data, *_, refused = ran.err.splitlines()
    assert ran.code == 2
    assert target == "target: xavier, Jetson AGX Xavier 32GB"
    assert data == f"data: {tmp_path / 'street.yaml'}, by the training arguments in the checkpoint; --data overrides"
    assert refused.startswith("edgekd: ")
    ran = edgekd("build", model, "--data", tmp_path / "other.yaml", "--out", tmp_path / "out")
    assert ran.err.splitlines()[1] == f"data: {tmp_path / 'other.yaml'}"


@pytest.mark.parametrize("name", ["detector.onnx", "detector.tv.pt"])
def test_without_a_data_set_the_error_says_how_to_pass_one(edgekd: EdgeKD, tmp_path: Path, name: str) -> None:
    checkpoint(tmp_path, {"weights": {}}).rename(tmp_path / name)
    ran = edgekd("build", tmp_path / name, "--out", tmp_path / "out")
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.endswith("found none; fix: pass --data DATA\n")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--recipe", "float", "--calibration", "16"), ("--calibration 16: recipe float quantizes nothing",)),
        (("--max-size", "0"), ("--max-size 0", "more than 0 bytes")),
        (("--min-fps", "inf"), ("--min-fps inf", "expected a number from 0")),
    ],
)
def test_options_without_an_effect_or_a_meaning_are_refused(
    edgekd: EdgeKD, tiny_model: Path, tiny_data: Path, tmp_path: Path, flags: tuple[str, ...], words: tuple[str, ...]
) -> None:
    assert_refused(edgekd("build", tiny_model, "--data", tiny_data, "--out", tmp_path / "out", *flags), *words)
    assert not (tmp_path / "out").exists()


def test_detectors_whose_names_have_points_have_folders_of_their_own() -> None:
    names = ("best.v1.pt", "best.v2.pt", "street.tv.pt", "yolo11n.yaml")
    assert [short_name(f"models/{name}") for name in names] == ["best.v1", "best.v2", "street", "yolo11n"]

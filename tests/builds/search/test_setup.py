"""What the trials of a search depend on, and what a search refuses before it tries anything."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from edgekd.builds.recipe import load_recipe
from edgekd.builds.run import BuildRequest
from edgekd.builds.search.setup import SearchJob, _refuse_unused_students, settings_of
from edgekd.builds.search.space import DetectorFacts, space_for
from edgekd.commands.search import absolute_if_file
from edgekd.core.errors import SpecError
from edgekd.detectors.interface import Interface
from edgekd.hardware.target import load_target

REQUEST = BuildRequest(Path("tiny.onnx"), Path("data"), load_target("xavier"), load_recipe("ptq"), Path("out"))


def test_a_trial_depends_on_what_a_head_is_described_as_and_not_on_where(tmp_path: Path) -> None:
    head, copy = tmp_path / "head.toml", tmp_path / "copy.toml"
    for file in (head, copy):
        file.write_text('kind = "yolo"\n', "utf-8")
    before, elsewhere = (settings_of(replace(REQUEST, head=str(file))) for file in (head, copy))
    assert before == elsewhere
    head.write_text('kind = "yolox"\n', "utf-8")
    assert settings_of(replace(REQUEST, head=str(head))) != before


def test_a_trial_depends_on_the_interface_of_the_graph_that_ships() -> None:
    other = replace(REQUEST, interface=Interface(input="uint8", postprocess="graph"))
    assert settings_of(other) != settings_of(REQUEST)
    assert set(settings_of(REQUEST)) == {"head", "calibration", "target", "device"}, "keys in stores stay as they are"


@pytest.mark.parametrize(("trains", "epochs"), [(False, 30), (True, 0)])
def test_a_student_that_no_candidate_trains_is_refused(trains: bool, epochs: int) -> None:
    facts = DetectorFacts(64, trains=trains, students=("yolo11n.yaml",) if trains else ())
    space = space_for(facts, REQUEST.target, epochs)
    with pytest.raises(SpecError, match=r"--student yolo11n\.yaml: this search trains no student"):
        _refuse_unused_students(SearchJob(REQUEST, epochs=epochs, students=("yolo11n.yaml",)), space)
    _refuse_unused_students(SearchJob(REQUEST, epochs=epochs), space)


def test_a_student_is_the_same_to_a_process_in_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "small.pt").touch()
    monkeypatch.chdir(tmp_path)
    assert absolute_if_file("small.pt") == str(tmp_path / "small.pt")
    assert absolute_if_file("yolo11n.yaml") == "yolo11n.yaml"

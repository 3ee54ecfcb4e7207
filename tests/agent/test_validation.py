"""One command says all that a device can show of a bundle, goes on after a failure, and names no board.

Runs on cameras' Pythons, too.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cameras import Agent, identity_of
from test_device import XAVIER, planted

from edgekd.agent.commands import Camera
from edgekd.agent.runtimes.null import NullRuntime
from edgekd.agent.runtimes.types import Made, UnsuitedError, Wish
from edgekd.agent.slots import Slot, State
from edgekd.agent.validation import ValidationError, validate


class Named(NullRuntime):
    """A null runtime of another name."""

    def __init__(self, name: str, **told: Any) -> None:
        super().__init__(**told)
        self.name = name


class Missing(Named):
    def problem(self) -> str:
        return "not installed"


class Unsuited(Named):
    def build(self, slot: Slot, engine: Path, wish: Wish) -> Made:
        raise UnsuitedError("no DLA core 0 here")


class Broken(Named):
    def build(self, slot: Slot, engine: Path, wish: Wish) -> Made:
        raise RuntimeError("a library's own error")


def outcomes(report: dict[str, Any]) -> dict[str, str]:
    return {step["name"]: step["outcome"] for step in report["steps"]}


def test_every_step_of_every_runtime_goes_into_one_file(bundle: Path, state: State, tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    runtimes = (Named("one"), Missing("two"), Unsuited("three"), Named("four"))
    report = validate(Camera(state, tmp_path), bundle, out, runtimes, 5, 0)
    assert json.loads(out.read_bytes()) == json.loads(json.dumps(report))
    assert outcomes(report) == {
        "verify": "passed",
        "unpack": "passed",
        "one build": "passed",
        "one selftest": "passed",
        "one bench": "passed",
        "three build": "not here",
        "four build": "passed",
        "four selftest": "passed",
        "four bench": "passed",
    }
    assert [(each["name"], each["version"], each["why"]) for each in report["runtimes"]] == [
        ("one", "1", None),
        ("two", None, "not installed"),
        ("three", "1", None),
        ("four", "1", None),
    ]
    steps = {step["name"]: step["result"] for step in report["steps"]}
    assert steps["verify"]["identity"] == identity_of(bundle)
    assert steps["one build"]["layers"] == {"int8": 1}
    assert steps["one bench"]["inference_ms"]["p50"] == pytest.approx(10)
    assert steps["one selftest"]["worst"]["error"] == 0
    assert (report["complete"], report["failed"], report["tested"]) == (True, [], ["one", "four"])
    assert state.active is None, "nothing is put into service"


def test_it_goes_on_after_a_failure_and_says_which(bundle: Path, state: State, tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    runtimes = (Named("wrong", error=0.5), Broken("broken"), Named("right"))
    with pytest.raises(ValidationError, match="found wrong selftest, broken build") as caught:
        validate(Camera(state, tmp_path), bundle, out, runtimes, 2, 0)
    report = caught.value.report
    assert json.loads(out.read_bytes()) == json.loads(json.dumps(report))
    assert report["failed"] == ["wrong selftest", "broken build"]
    found = {step["name"]: step for step in report["steps"]}
    assert found["wrong selftest"]["result"]["error"] == {"boxes": 0.5, "scores": 0.5}
    assert found["wrong bench"]["outcome"] == "passed", "how fast it is can still be said"
    assert found["broken build"]["error"] == "RuntimeError: a library's own error"
    assert report["tested"] == ["right"]


def test_what_is_known_is_written_before_a_step_that_takes_the_process_with_it(
    bundle: Path, state: State, tmp_path: Path
) -> None:
    class Crash(BaseException):
        pass

    class Crashing(Named):
        def build(self, slot: Slot, engine: Path, wish: Wish) -> Made:
            raise Crash

    with pytest.raises(Crash):
        validate(Camera(state, tmp_path), bundle, tmp_path / "result.json", (Named("one"), Crashing("two")), 2, 0)
    report = json.loads((tmp_path / "result.json").read_bytes())
    assert not report["complete"]
    assert outcomes(report)["one selftest"] == "passed"


def test_a_bundle_that_is_damaged_ends_it(bundle: Path, state: State, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.edgekd"
    damaged.write_bytes(bundle.read_bytes()[:-512])
    with pytest.raises(ValidationError, match="found verify"):
        validate(Camera(state, tmp_path), damaged, tmp_path / "result.json", (Named("one"),), 2, 0)
    assert outcomes(json.loads((tmp_path / "result.json").read_bytes())) == {"verify": "failed"}


def test_no_runtime_at_all_is_a_failure(bundle: Path, state: State, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="found no runtime for a network"):
        validate(Camera(state, tmp_path), bundle, tmp_path / "result.json", (Missing("two"),), 2, 0)


def test_the_command_names_the_device_and_not_the_board(agent: Agent, bundle: Path, tmp_path: Path) -> None:
    root, out = planted(tmp_path / "camera", XAVIER), tmp_path / "result.json"
    answer = agent("validate", bundle, "--out", out, "--iterations", 2, "--seconds", 0, root=root)
    assert answer.result["device"]["model"] == "Jetson-AGX"
    serial = XAVIER["proc/device-tree/serial-number"].strip("\0")
    assert serial
    assert serial not in out.read_text("utf-8")
    assert json.loads(out.read_bytes()) == answer.result


def test_where_it_cannot_write_it_does_nothing(agent: Agent, bundle: Path, tmp_path: Path, state: State) -> None:
    answer = agent("validate", bundle, "--out", tmp_path / "none" / "result.json")
    assert answer.error["kind"] == "SpecError"
    assert not state.root.exists()

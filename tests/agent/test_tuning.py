"""INT8 only where it pays: `tune` with TensorRT's fake, whose layers take given times, and with real runtimes."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import fake_tensorrt
import numpy as np
import pytest
from cameras import Agent, activate, build, renew, tune
from power import cut_at, fresh, listing
from test_json_contract import assert_documented
from test_trtexec import NUMBERS, program, told

from edgekd.agent.engines import selftest
from edgekd.agent.engines.camera import Camera
from edgekd.agent.engines.engine import engine_of, read_engine
from edgekd.agent.runtimes import trtexec
from edgekd.agent.runtimes.null import NullRuntime
from edgekd.agent.runtimes.openvino import OpenVino
from edgekd.agent.state.slots import Slot, State
from edgekd.agent.tuning import TuningEffort
from edgekd.core.errors import DeviceError

QUICK = ("--iterations", 20, "--seconds", 0)
LAYERS = ("cells8", "cells16", "cells32")
"""Those of the tiny detector that have Q/DQ, one after the other."""
SLOW = {"cells8": (9.0, 2.0), "cells16": (1.0, 4.0), "cells32": (1.0, 4.0)}
"""Milliseconds in INT8 and in FP16: one layer does not gain from INT8."""


@pytest.fixture
def tuned(agent: Agent, bundle: Path) -> Any:
    """Unpack the bundle, build its engine and tune it."""

    def run(*flags: object, runtime: str = "tensorrt") -> Any:
        for call in (("unpack", bundle), ("build",)):
            assert agent(*call, runtime=runtime).code == 0
        return agent("tune", *QUICK, *flags, runtime=runtime)

    return run


def times_of(
    monkeypatch: pytest.MonkeyPatch, times: dict[str, tuple[float, float]], reformat_ms: float
) -> fake_tensorrt.Behaviour:
    """Install TensorRT's fake with these times; all other layers take next to nothing."""
    rest = dict.fromkeys(("p3", "p4", "p5"), (0.1, 0.1))
    return fake_tensorrt.installed(
        monkeypatch, "8.5.2.2", times={**rest, **times}, reformat_ms=reformat_ms, fused_names=True
    )


@pytest.mark.parametrize(
    ("times", "reformat_ms", "source", "layers"),
    [
        (SLOW, 0.5, "graph", ["cells8"]),
        (dict.fromkeys(LAYERS, (1.0, 4.0)), 0.5, "graph", []),
        (dict.fromkeys(LAYERS, (4.0, 1.0)), 0.5, "float", []),
        (dict.fromkeys(LAYERS, (2.0, 2.0)), 0.0, "graph", []),
        ({**SLOW, "cells8": (1.0, 4.0), "cells16": (2.0, 1.9)}, 0.5, "graph", []),
    ],
    ids=["one layer", "INT8 wins", "float wins", "a tie", "an island that costs more than it gains"],
)
def test_layers_leave_int8_where_that_is_faster(
    tuned: Any,
    monkeypatch: pytest.MonkeyPatch,
    times: dict[str, tuple[float, float]],
    reformat_ms: float,
    source: str,
    layers: list[str],
) -> None:
    times_of(monkeypatch, times, reformat_ms)
    found = tuned().result
    assert (found["source"], found["float_layers"]) == (source, layers)
    shipped, floating = found["candidates"][:2]
    assert (shipped["source"], shipped["float_layers"], floating["source"]) == ("graph", [], "float")
    chosen = next(each for each in found["candidates"] if each["key"] == found["engine"]["key"])
    assert chosen["ms"]["p50"] <= min(shipped["ms"]["p50"], floating["ms"]["p50"])
    assert chosen["passed"]


@pytest.mark.parametrize("builds", [0, 1, 4])
def test_no_more_engines_are_built_than_allowed(tuned: Any, monkeypatch: pytest.MonkeyPatch, builds: int) -> None:
    behaviour = times_of(monkeypatch, SLOW, 0.5)
    found = tuned("--builds", builds).result
    assert len(found["candidates"]) == len(behaviour.built) <= 2 + builds
    assert found["float_layers"] == (["cells8"] if builds else [])


def test_the_choice_is_what_is_built_served_and_renewed_from_then_on(
    tuned: Any, agent: Agent, state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    times_of(monkeypatch, SLOW, 0.5)
    chosen = tuned().result
    key = chosen["engine"]["key"]
    assert agent("build", runtime="tensorrt").result["key"] == key
    assert agent("selftest", runtime="tensorrt").result["key"] == key
    assert agent("activate", runtime="tensorrt").result["key"] == key
    assert state.active
    assert [folder.name for folder in state.active.engines.iterdir()] == [key]
    assert agent("renew", runtime="tensorrt").result["changed"] is False
    times_of(monkeypatch, {}, 0.5)
    monkeypatch.setattr("edgekd.agent.runtimes.tensorrt.TensorRt.version", lambda _: "8.6.1")
    fake_tensorrt.installed(monkeypatch, "8.6.1")
    renewed = agent("renew", runtime="tensorrt").result
    assert renewed["changed"]
    engine = engine_of(state.active)
    assert engine
    assert engine.record.form.float_layers == ("cells8",), "after an update of the system, too"


def test_tuning_again_changes_nothing_in_service(
    tuned: Any, agent: Agent, state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    times_of(monkeypatch, SLOW, 0.5)
    tuned()
    agent("activate", runtime="tensorrt")
    times_of(monkeypatch, dict.fromkeys(LAYERS, (1.0, 4.0)), 0.5)
    again = agent("tune", *QUICK, runtime="tensorrt").result
    assert again["float_layers"] == []
    assert state.active
    served = engine_of(state.active)
    assert served
    assert served.record.form.float_layers == ("cells8",), "until another is activated"
    assert served.whole
    assert agent("activate", runtime="tensorrt").result["key"] == again["engine"]["key"]


def test_what_was_built_before_a_failure_is_not_built_again(
    tuned: Any, agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    behaviour = times_of(monkeypatch, SLOW, 0.5)

    def fail(*given: object) -> None:
        raise DeviceError("the power went")

    with monkeypatch.context() as patch:
        patch.setattr("edgekd.agent.tuning.measure", fail)
        assert tuned().error["what"] == "the power went"
    built = len(behaviour.built)
    assert built > 2
    assert agent("tune", *QUICK, runtime="tensorrt").result["float_layers"] == ["cells8"]
    assert len(behaviour.built) == built


def test_a_candidate_that_fails_the_self_test_is_not_chosen(tuned: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    run = selftest.run_self_test

    def strict(slot: Slot, runtime: Any, engine: Path) -> selftest.SelfTestReport:
        record = json.loads((engine.parent / "engine.json").read_bytes())
        report = run(slot, runtime, engine)
        return replace(report, test=replace(report.test, passed=not record["float_layers"]))

    times_of(monkeypatch, SLOW, 0.5)
    monkeypatch.setattr(selftest, "run_self_test", strict)
    found = tuned().result
    assert (found["source"], found["float_layers"]) == ("float", []), "the fastest of those that passed"
    refused = next(each for each in found["candidates"] if each["float_layers"] == ["cells8"])
    assert not refused["passed"]
    assert "self-test failed" in refused["found"]


def test_where_int8_is_wrong_float_is_chosen_and_where_all_is_wrong_nothing(
    tuned: Any, agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_tensorrt.installed(monkeypatch, "8.5.2.2", times=dict.fromkeys(LAYERS, (1.0, 4.0)), breaks="output0")
    assert tuned().result["source"] == "float"
    assert agent("tune", "--reset", runtime="tensorrt").code == 0
    fake_tensorrt.installed(monkeypatch, "8.6.1", times=dict.fromkeys(LAYERS, (1.0, 4.0)), bends=100.0)
    error = tuned().error
    assert "no engine passes its self-test" in error["what"]


def test_a_layer_without_an_int8_kernel_is_no_obstacle(tuned: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rest = dict.fromkeys(("p3", "p4", "p5"), (0.1, 0.1))
    fake_tensorrt.installed(
        monkeypatch, "8.5.2.2", times={**rest, **SLOW}, without_int8_kernel=("cells16",), fused_names=True
    )
    found = tuned().result
    chosen = next(each for each in found["candidates"] if each["key"] == found["engine"]["key"])
    assert chosen["passed"]


# ------------------------------------------------------------------------------------------------ the choice as a file


def test_a_choice_is_built_again_without_measuring(
    tuned: Any, agent: Agent, state: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    behaviour = times_of(monkeypatch, SLOW, 0.5)
    first = tuned().result
    record = json.loads((Path(first["engine"]["file"]).parent / "engine.json").read_bytes())
    (tmp_path / "choice.json").write_bytes(Path(first["file"]).read_bytes())
    assert agent("tune", "--reset", runtime="tensorrt").result["float_layers"] == []
    assert not Path(first["file"]).exists()
    times_of(monkeypatch, dict.fromkeys(LAYERS, (1.0, 4.0)), 0.5)
    built = len(behaviour.built)
    again = agent("tune", "--choice", tmp_path / "choice.json", runtime="tensorrt").result
    assert (again["float_layers"], again["engine"]["key"]) == (["cells8"], first["engine"]["key"])
    assert again["candidates"] == first["candidates"]
    assert again["stale"] == []
    assert len(behaviour.built) == built
    same = json.loads((Path(again["engine"]["file"]).parent / "engine.json").read_bytes())
    assert {**same, "seconds": 0} == {**record, "seconds": 0}


def test_a_choice_of_another_version_is_taken_and_says_so(
    tuned: Any, agent: Agent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    times_of(monkeypatch, SLOW, 0.5)
    (tmp_path / "choice.json").write_bytes(Path(tuned().result["file"]).read_bytes())
    agent("tune", "--reset", runtime="tensorrt")
    fake_tensorrt.installed(monkeypatch, "8.6.1")
    found = agent("tune", "--choice", tmp_path / "choice.json", runtime="tensorrt").result
    assert found["stale"] == [{"what": "version", "built": "8.5.2.2", "now": "8.6.1"}]
    assert found["float_layers"] == ["cells8"]


BROKEN: tuple[Any, ...] = (
    b"",
    b"[]",
    b'{"format": 2}',
    {"format": 2},
    {"graph": "0" * 64},
    {"graph": None},
    {"runtime": {"name": "onnxruntime", "version": "1"}},
    {"runtime": "tensorrt"},
    {"source": "tuned"},
    {"source": "float", "float_layers": ["cells8"]},
    {"float_layers": ["cells9"]},
    {"float_layers": "cells8"},
    {"float_layers": [8]},
    {"candidates": None},
    {"built_on": None},
)
"""Contents of a choice, and changes of a right one."""


def test_a_damaged_or_foreign_choice_is_refused_in_one_line(
    tuned: Any, agent: Agent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    times_of(monkeypatch, SLOW, 0.5)
    file = Path(tuned("--builds", 1).result["file"])
    before = file.read_bytes()
    choice = tmp_path / "choice.json"
    for broken in BROKEN:
        content = broken if isinstance(broken, bytes) else json.dumps({**json.loads(before), **broken}).encode()
        choice.write_bytes(content)
        error = agent("tune", "--choice", choice, runtime="tensorrt").error
        assert error["what"].startswith(str(choice)), broken
        assert "\n" not in error["what"], broken
        assert file.read_bytes() == before, broken


def test_a_choice_that_is_missing_is_an_error_and_a_damaged_one_of_a_slot_is_none(
    tuned: Any, agent: Agent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    times_of(monkeypatch, SLOW, 0.5)
    found = tuned().result
    assert "cannot be read" in agent("tune", "--choice", tmp_path / "none.json", runtime="tensorrt").error["what"]
    Path(found["file"]).write_bytes(b"damaged")
    assert agent("build", runtime="tensorrt").result["key"] != found["engine"]["key"]


def test_flags_that_do_not_go_together_are_refused(agent: Agent, bundle: Path, tmp_path: Path) -> None:
    agent("unpack", bundle)
    assert agent("tune", "--reset", "--choice", tmp_path).error["expected"] == "one of them"
    assert agent("tune", "--builds", -1).error["what"] == "--builds -1"


# ------------------------------------------------------------------------------------------------------ other runtimes


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino", "null"])
def test_real_runtimes_tune_for_real(tuned: Any, agent: Agent, runtime: str) -> None:
    if runtime == "openvino" and OpenVino().problem():
        pytest.skip("no OpenVINO here")
    answer = tuned(runtime=runtime)
    assert_documented(answer.document, "agent")
    found = answer.result
    assert len(found["candidates"]) >= 2
    assert all(each["passed"] for each in found["candidates"])
    chosen = [each for each in found["candidates"] if each["key"] == found["engine"]["key"]]
    assert [(each["source"], each["float_layers"]) for each in chosen] == [(found["source"], found["float_layers"])]
    for command in ("build", "selftest", "activate"):
        assert agent(command, runtime=runtime).result["key"] == found["engine"]["key"]


@pytest.mark.release
def test_where_a_program_times_its_runs_engines_still_take_turns(
    tuned: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = program(tmp_path / "bin", NUMBERS["8.5.2"])
    monkeypatch.setattr(trtexec, "FOLDERS", (str(path.parent),))
    found = tuned("--builds", 0, runtime="trtexec").result
    assert (found["source"], found["float_layers"]) == ("graph", []), "both take the same"
    assert [each["ms"]["p50"] for each in found["candidates"]] == [10.0, 10.0]
    timed = [call for call in told(path) if any(word.startswith("--exportTimes") for word in call)]
    engines = [next(word for word in call if word.startswith("--loadEngine")) for call in timed]
    first, second = dict.fromkeys(engines)
    assert engines[-8:] == [first, second, second, first, first, second, second, first]


def test_a_graph_without_qdq_leaves_nothing_to_choose(
    agent: Agent, bundle: Path, state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgekd.agent.runtimes import networks

    agent("unpack", bundle)
    slot = Camera(state).chosen_slot()
    with networks.opened(slot.graph) as graph:
        plain = graph.without_qdq().content()
    slot.graph.write_bytes(plain)
    assert "nothing to choose" in agent("tune", *QUICK).error["what"]


# ---------------------------------------------------------------------------------------------------------- power cuts


class FastInFloat(NullRuntime):
    """The null runtime, whose engines in float take half as long, and are told by their error."""

    def __init__(self) -> None:
        super().__init__(float_error=1e-6)

    def infer(self, answer: np.ndarray, error: float) -> np.ndarray:
        """Let half of a latency pass in float."""
        output = super().infer(answer, error)
        self._now_s -= 0.005 if error else 0.0
        return output


def tune_and_activate(folder: Path) -> None:
    """Tune what is in service, and put what comes of it into service."""
    camera = Camera(State(folder), folder.parent / "root", FastInFloat())
    assert tune(camera, TuningEffort(iterations=20, seconds=0.0))["source"] == "float"
    activate(camera)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a power cut is played by a process of its own")
@pytest.mark.parametrize(
    "forgetful", [pytest.param(False, marks=pytest.mark.release), pytest.param(True, marks=pytest.mark.slow)]
)
def test_a_power_cut_while_tuning_leaves_a_whole_tested_engine_in_service(
    installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forgetful: bool
) -> None:
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    folder = tmp_path / "state"
    tune_and_activate(fresh(installed, folder))
    wanted, count = listing(folder), 0
    while cut_at(count, partial(tune_and_activate, fresh(installed, folder)), forgetful=forgetful):
        active = State(folder).active
        assert active
        engine = engine_of(active)
        assert engine
        assert engine.whole
        assert engine.passed
        tune_and_activate(folder)
        assert listing(folder) == wanted, "nothing is left over"
        count += 1
    assert count > 20


def test_a_choice_survives_what_removes_engines(installed: Path, tmp_path: Path) -> None:
    folder = fresh(installed, tmp_path / "state")
    tune_and_activate(folder)
    camera = Camera(State(folder), folder.parent / "root", FastInFloat())
    assert build(camera)["changed"] is False
    assert renew(camera)["changed"] is False
    active = State(folder).active
    assert active
    assert active.engine
    found = read_engine(active.engine)
    assert found
    assert found.record.form.source == "float"

"""After an update of the system: a new engine beside the old, which serves until the new one passed.

Runs on cameras' Pythons, too.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from cameras import Agent, Answer, activate, build, renew, selftest, status
from power import fresh

from edgekd.agent.engines.camera import Camera
from edgekd.agent.runtimes.null import NullRuntime
from edgekd.agent.state.slots import State
from edgekd.core.errors import DeviceError


@pytest.fixture
def updated(installed: Path, tmp_path: Path) -> State:
    """A state whose engine was built by version 1 of the null runtime."""
    return State(fresh(installed, tmp_path / "updated" / "state"))


def camera(state: State, **told: object) -> Camera:
    """The same device with version 2."""
    return Camera(state, state.root.parent / "root", NullRuntime(version="2", **told))  # type: ignore[arg-type]


def served(state: State) -> str:
    """The name of the engine in service."""
    assert state.active
    assert state.active.engine
    return state.active.engine.name


def test_a_stale_engine_is_replaced(updated: State) -> None:
    old = served(updated)
    found = renew(camera(updated))
    assert found["changed"]
    assert found["stale"] == [{"what": "version", "built": "1", "now": "2"}]
    assert found["tried"] == []
    assert found["engine"]["precision"] == "graph"
    assert found["engine"]["self_test"]["passed"]
    assert found["key"] == served(updated) != old
    assert updated.active
    assert [folder.name for folder in updated.active.engines.iterdir()] == [served(updated)]
    again = renew(camera(updated))
    assert (again["changed"], again["stale"], again["key"]) == (False, [], found["key"])


@pytest.mark.parametrize("told", [{"error": 0.5, "float_error": 0.0}, {"refuses": ("graph",)}])
def test_where_int8_does_not_do_it_is_built_in_float_and_says_so(updated: State, told: dict[str, object]) -> None:
    found = renew(camera(updated, **told))
    assert found["changed"]
    assert found["engine"]["precision"] == "fp16"
    (tried,) = found["tried"]
    assert tried["precision"] == "graph"
    assert "self-test failed" in tried["found"] or "refuse builds" in tried["found"]
    shown = status(camera(updated, **told))["active"]["engine"]
    assert (shown["precision"], shown["stale"]) == ("fp16", [])
    assert renew(camera(updated, **told))["changed"] is False


def test_a_new_build_leads_back_to_int8(updated: State) -> None:
    failing = camera(updated, error=0.5, float_error=0.0)
    floating = renew(failing)["key"]
    better = camera(updated)
    assert selftest(better)["key"] == floating
    built = build(better)
    assert built["key"] != floating, "beside it"
    assert served(updated) == floating
    assert selftest(better)["key"] == built["key"]
    activate(better)
    assert served(updated) == built["key"]
    assert renew(better)["changed"] is False


@pytest.mark.parametrize("told", [{"error": 0.5}, {"refuses": ("graph", "float")}])
def test_where_nothing_passes_the_old_engine_stays(updated: State, told: dict[str, object]) -> None:
    old = served(updated)
    for _ in range(2):
        with pytest.raises(DeviceError, match="no new engine passes its self-test") as caught:
            renew(camera(updated, **told))
        assert served(updated) == old
    assert "float" in str(caught.value) or "fp16" in str(caught.value)
    assert selftest(Camera(updated, updated.root.parent / "root", NullRuntime()))["key"] == old


def test_it_goes_on_from_what_is_there(updated: State) -> None:
    now = camera(updated)
    built = build(now)
    assert renew(now)["key"] == built["key"]


def test_a_damaged_engine_in_service_is_renewed(updated: State) -> None:
    assert updated.active
    assert updated.active.engine
    file = updated.active.engine / "model.engine"
    whole = file.read_bytes()
    file.write_bytes(b"damaged")
    found = renew(Camera(updated, updated.root.parent / "root", NullRuntime()))
    assert found["stale"] == []
    assert file.read_bytes() == whole


def test_what_waits_is_left_alone(updated: State, newer: Path, agent: Agent, tmp_path: Path) -> None:
    from edgekd.agent.commands import unpack

    unpack(camera(updated), newer)
    waiting = updated.candidate
    renew(camera(updated))
    assert updated.candidate == waiting
    assert updated.active_name == "a"


def test_without_anything_in_service_it_says_so(agent: Agent) -> None:
    answer: Answer = agent("renew")
    assert (answer.error["what"].endswith("nothing in service"), answer.error["fix"]) == (
        True,
        "unpack and activate a bundle",
    )

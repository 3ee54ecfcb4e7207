"""Whenever the power goes, one bundle is in service, whole and tested, and the next run ends where this one would."""

from __future__ import annotations

import hashlib
import json
import os
from functools import partial
from pathlib import Path
from typing import Callable  # noqa: UP035 collections.abc.Callable[...] is Python 3.9

import pytest
from cameras import activate, build, identity_of, renew, repacked, run, selftest
from power import cut_at, fresh, listing
from signer import trust_file

from edgekd.agent.engines.camera import Camera
from edgekd.agent.engines.engine import read_engine
from edgekd.agent.runtimes.null import NullRuntime
from edgekd.agent.state.slots import Slot, State
from edgekd.agent.trust_state import held_trust, minimum_counter

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="a power cut is played by a process of its own")
BOTH = [pytest.param(False, marks=pytest.mark.release), True]
"""Without and with what was not flushed being lost."""
SLOW = [BOTH[0], pytest.param(True, marks=pytest.mark.slow)]


@pytest.fixture(autouse=True)
def _quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flushing counts in the process whose power goes, and takes its time nowhere."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


def require_service(folder: Path, among: set[str]) -> str:
    """Exactly one of these bundles is in service, and what a rollback would lead to is as whole as it. Which one."""
    state = State(folder)
    active, previous = state.active, state.previous
    assert active, "something is in service"
    assert active.identity in among
    require_whole(state, active)
    if previous:
        require_whole(state, previous)
    return active.identity


def require_whole(state: State, slot: Slot) -> None:
    """Every file of a slot is as it was packed, and its engine passes the self-test."""
    for entry in slot.manifest.files:
        content = (slot.path / "bundle" / entry.path).read_bytes()
        assert hashlib.sha256(content).hexdigest() == entry.sha256
    assert slot.engine
    engine = read_engine(slot.engine)
    assert engine
    assert engine.whole
    runtime = NullRuntime(version=engine.record.key.runtime.version)
    tested = selftest(Camera(state, state.root.parent / "root", runtime, slot.name))
    assert tested["passed"]
    assert tested["key"] == slot.engine.name


def cut_everywhere(
    installed: Path, folder: Path, work: Callable[[Path], object], among: set[str], goal: str, forgetful: bool
) -> int:
    """Cut `work` at every one of its operations, each time on a new copy of a state; then let it get through.

    The state must serve one of `among` after the cut, and after the second run be as if nothing had happened.
    """
    clean = fresh(installed, folder)
    work(clean)
    wanted = listing(clean)
    count = 0
    while cut_at(count, partial(work, fresh(installed, folder)), forgetful=forgetful):
        require_service(folder, among)
        work(folder)
        assert require_service(folder, among) == goal
        assert listing(folder) == wanted, "nothing is left over"
        count += 1
    return count


@pytest.fixture
def prepared(installed: Path, newer: Path, tmp_path: Path) -> Path:
    """A state with one bundle in service, and a newer one built and tested beside it."""
    folder = fresh(installed, tmp_path / "prepared" / "state")
    assert run(folder, "unpack", newer) == 0
    for command in ("build", "selftest"):
        assert run(folder, command) == 0
    return folder


@pytest.mark.parametrize("forgetful", BOTH)
def test_a_power_cut_while_activating(
    prepared: Path, bundle: Path, newer: Path, tmp_path: Path, forgetful: bool
) -> None:
    both = {identity_of(bundle), identity_of(newer)}
    count = cut_everywhere(
        prepared, tmp_path / "state", lambda folder: run(folder, "activate"), both, identity_of(newer), forgetful
    )
    assert count > 10


@pytest.mark.parametrize("forgetful", BOTH)
def test_a_power_cut_while_rolling_back(
    prepared: Path, bundle: Path, newer: Path, tmp_path: Path, forgetful: bool
) -> None:
    assert run(prepared, "activate") == 0
    both = {identity_of(bundle), identity_of(newer)}

    def roll_back(folder: Path) -> None:
        # A second run after a cut that came late has nothing to do any more, and says so by its exit code.
        run(folder, "rollback")

    count = cut_everywhere(prepared, tmp_path / "state", roll_back, both, identity_of(bundle), forgetful)
    assert count > 8


@pytest.mark.parametrize("forgetful", SLOW)
def test_a_power_cut_while_an_engine_is_replaced(
    installed: Path, bundle: Path, tmp_path: Path, forgetful: bool
) -> None:
    updated = fresh(installed, tmp_path / "updated" / "state")
    newer = NullRuntime(version="2")
    for command in (build, selftest):
        command(Camera(State(updated), updated.parent / "root", newer))

    def replace_engine(folder: Path) -> None:
        activate(Camera(State(folder), folder.parent / "root", newer))

    only = identity_of(bundle)
    count = cut_everywhere(updated, tmp_path / "state", replace_engine, {only}, only, forgetful)
    assert count > 10


@pytest.mark.parametrize("forgetful", BOTH)
def test_a_bundle_that_counts_is_never_in_service_without_its_counter(
    installed: Path, bundle: Path, tmp_path: Path, forgetful: bool
) -> None:
    """Else a power cut could be used to go back: to what was there before, and from there to anything."""
    counted = repacked(bundle, tmp_path / "counted", counter=5)
    ready = fresh(installed, tmp_path / "ready" / "state")
    assert [run(ready, "unpack", counted), run(ready, "build"), run(ready, "selftest")] == [0, 0, 0]
    count, folder = 0, tmp_path / "state"
    while cut_at(count, partial(run, fresh(ready, folder), "activate"), forgetful=forgetful):
        active, stored = State(folder).active, folder / "counter.json"
        assert active
        if active.manifest.counter:
            assert json.loads(stored.read_bytes()) == {"counter": 5}
        if stored.exists():
            assert run(folder, "unpack", bundle) == 1, "what is older is refused from now on"
        assert run(folder, "activate") == 0
        assert json.loads(stored.read_bytes()) == {"counter": 5}
        count += 1
    assert count > 12


@pytest.mark.parametrize("forgetful", BOTH)
def test_a_trial_never_ends_without_its_counter(installed: Path, bundle: Path, tmp_path: Path, forgetful: bool) -> None:
    counted = repacked(bundle, tmp_path / "counted", counter=5)
    ready = fresh(installed, tmp_path / "ready" / "state")
    assert run(ready, "install", counted) == 0
    count, folder = 0, tmp_path / "state"
    while cut_at(count, partial(run, fresh(ready, folder), "commit"), forgetful=forgetful):
        state = State(folder)
        if state.activation.trial is None:
            assert minimum_counter(state, None) == 5
            assert json.loads((folder / "counter.json").read_bytes()) == {"counter": 5}
        assert run(folder, "commit") == 0
        assert run(folder, "rollback") == 0
        assert minimum_counter(State(folder), None) == 5
        count += 1
    assert count > 5


@pytest.mark.parametrize("forgetful", [False, True])
def test_a_power_cut_while_a_trust_file_is_replaced(installed: Path, tmp_path: Path, forgetful: bool) -> None:
    before = fresh(installed, tmp_path / "before" / "state")
    trust_file(before / "trust.json", 1)
    second = trust_file(tmp_path / "2.json", 2)
    count, folder, seen = 0, tmp_path / "state", set()
    while cut_at(count, partial(run, fresh(before, folder), "trust", second), forgetful=forgetful):
        held = held_trust(State(folder), tmp_path / "root")
        assert held
        seen.add(held.trust.version)
        assert run(folder, "trust", second) == 0
        assert (folder / "trust.json").read_bytes() == second.read_bytes()
        count += 1
    assert count > 3
    assert seen == {1, 2}


@pytest.mark.parametrize(
    ("told", "forgetful"),
    [
        pytest.param({}, False, marks=pytest.mark.slow),
        pytest.param({}, True, marks=pytest.mark.release),
        pytest.param({"error": 0.5, "float_error": 0.0}, True, marks=pytest.mark.slow),
    ],
    ids=["int8", "int8-forgetful", "float-forgetful"],
)
def test_a_power_cut_while_an_engine_is_renewed(
    installed: Path, bundle: Path, tmp_path: Path, told: dict[str, float], forgetful: bool
) -> None:
    """In INT8; in float, of which there are as many operations, where what was not flushed is lost."""

    def renew_engine(folder: Path) -> None:
        renew(Camera(State(folder), folder.parent / "root", NullRuntime(version="2", **told)))  # type: ignore[arg-type]

    only = identity_of(bundle)
    count = cut_everywhere(installed, tmp_path / "state", renew_engine, {only}, only, forgetful)
    assert count > 20


@pytest.mark.parametrize("forgetful", BOTH)
@pytest.mark.parametrize("command", ["boot", "commit"])
def test_a_power_cut_while_a_trial_goes_on_or_ends(
    prepared: Path, newer: Path, tmp_path: Path, forgetful: bool, command: str
) -> None:
    """What was not flushed may not have happened: a start more or less is counted, and nothing else differs."""
    assert run(prepared, "install", newer) == 0
    count, folder, seen = 0, tmp_path / "state", set()
    while cut_at(count, partial(run, fresh(prepared, folder), command), forgetful=forgetful):
        assert require_service(folder, {identity_of(newer)})
        trial = State(folder).activation.trial
        seen.add(None if trial is None else trial.tries_done)
        assert run(folder, command) == 0
        assert State(folder).previous, "by hand there is still a way back"
        count += 1
    assert count > 3
    done = 1 if command == "boot" else None
    assert seen == ({0} if forgetful else {0, done}), "the last operation flushes what the others did"


@pytest.mark.parametrize("forgetful", BOTH)
def test_a_power_cut_while_a_trial_that_is_over_leads_back(
    prepared: Path, bundle: Path, newer: Path, tmp_path: Path, forgetful: bool
) -> None:
    assert [run(prepared, "install", newer, "--tries", 1), run(prepared, "boot")] == [0, 0]
    both, folder = {identity_of(bundle), identity_of(newer)}, tmp_path / "state"
    count = cut_everywhere(prepared, folder, lambda state: run(state, "boot"), both, identity_of(bundle), forgetful)
    assert State(folder).activation.rejected == identity_of(newer)
    assert count > 8


@pytest.mark.release
def test_a_power_cut_while_a_bundle_is_installed_in_place_of_another(
    prepared: Path, bundle: Path, newer: Path, tmp_path: Path
) -> None:
    assert run(prepared, "activate") == 0
    third = repacked(bundle, tmp_path / "third", name="third")
    among = {identity_of(newer), identity_of(third)}

    def install_third(folder: Path) -> None:
        run(folder, "install", third)

    count = cut_everywhere(prepared, tmp_path / "state", install_third, among, identity_of(third), True)
    assert count > 100

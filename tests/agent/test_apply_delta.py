"""Deltas on the camera: what is put together goes the way of any bundle, and leaves nothing behind."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from cameras import Agent, identity_of, repacked, run
from power import cut_at, fresh, listing
from signer import signed, trust_file

from edgekd.agent.state.slots import State
from edgekd.core.bundle.delta import DeltaReader
from edgekd.deploy.delta import run as make_delta


@pytest.fixture(scope="module")
def delta(bundle: Path, newer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("delta") / "newer.edgekd-delta"
    make_delta(bundle, newer, out)
    return out


def test_a_delta_is_installed_like_a_bundle(agent: Agent, bundle: Path, newer: Path, delta: Path, state: State) -> None:
    agent("install", bundle)
    found = agent("install", delta).result
    assert (found["identity"], found["active"], found["changed"]) == (identity_of(newer), "b", True)
    assert not list(state.base.glob("*tmp*")), "the temporary file has no name"
    assert agent("install", delta).result["changed"] is False
    assert agent("install", newer).result["changed"] is False, "it is the bundle itself"


def test_the_bundle_of_a_delta(agent: Agent, bundle: Path, newer: Path, delta: Path, tmp_path: Path) -> None:
    agent("unpack", bundle)
    found = agent("patch", delta, "--out", tmp_path / "whole.edgekd").result
    assert (found["identity"], found["old"]) == (identity_of(newer), identity_of(bundle))
    assert (tmp_path / "whole.edgekd").read_bytes() == newer.read_bytes()
    assert agent("patch", newer, "--out", tmp_path / "x").error["what"].endswith("not a delta")


def test_the_old_bundle_may_be_the_one_that_goes(agent: Agent, bundle: Path, newer: Path, tmp_path: Path) -> None:
    third = repacked(bundle, tmp_path / "third", name="third")
    make_delta(bundle, third, tmp_path / "delta")
    agent("install", bundle)
    agent("install", newer, "--tries", 0)
    found = agent("install", tmp_path / "delta").result
    assert (found["identity"], found["active"]) == (identity_of(third), "a")


def test_a_delta_from_a_bundle_that_is_not_here(agent: Agent, bundle: Path, newer: Path, delta: Path) -> None:
    for call in (("install", delta), ("unpack", delta)):
        error = agent(*call).error
        assert (error["expected"], error["found"]) == (identity_of(bundle), "none")
        assert "the whole bundle" in error["fix"]
    agent("install", newer)
    assert agent("install", delta).result["changed"] is False, "what it leads to is here"


def test_whose_deltas_are_taken(agent: Agent, bundle: Path, newer: Path, delta: Path, tmp_path: Path) -> None:
    agent("install", bundle)
    agent("trust", trust_file(tmp_path / "trust.json"))
    for command in ("install", "unpack"):
        assert agent(command, delta).error["kind"] == "SignatureError"
    make_delta(bundle, signed(newer, tmp_path / "signed.edgekd", 1), tmp_path / "delta")
    assert agent("install", tmp_path / "delta").code == 0


def test_an_older_bundle_is_none_the_less_older(agent: Agent, bundle: Path, tmp_path: Path) -> None:
    fifth = repacked(bundle, tmp_path / "fifth", counter=5)
    make_delta(fifth, bundle, tmp_path / "back")
    agent("install", fifth)
    assert agent("install", tmp_path / "back").error["kind"] == "RollbackError"


def test_others_need_not_wait_while_a_delta_is_put_together(
    agent: Agent, bundle: Path, newer: Path, delta: Path, state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent("install", bundle)
    whole, met = DeltaReader.rebuild, []

    def rebuild(*arguments: Any) -> None:
        with State(state.root).locked():
            met.append(State(state.root).active_name)
        whole(*arguments)

    monkeypatch.setattr(DeltaReader, "rebuild", rebuild)
    for command in ("unpack", "install"):
        assert agent(command, delta).result["identity"] == identity_of(newer)
    assert agent("patch", delta, "--out", state.root.parent / "out").code == 0
    assert met == ["a", "b"], "`install` needs nothing put together: what the delta leads to is in a slot"


def test_a_slot_that_goes_meanwhile(
    agent: Agent, bundle: Path, delta: Path, state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the lock another command may replace the old bundle while it is read."""
    agent("install", bundle)
    whole = DeltaReader.rebuild

    def rebuild(*arguments: Any) -> None:
        shutil.rmtree(state.root / "slots" / "a")
        whole(*arguments)

    monkeypatch.setattr(DeltaReader, "rebuild", rebuild)
    error = agent("unpack", delta).error
    assert (error["kind"], "cannot be rebuilt" in error["what"]) == ("BundleError", True)


def test_a_damaged_old_bundle(agent: Agent, bundle: Path, delta: Path, state: State) -> None:
    agent("install", bundle)
    (file,) = (state.root / "slots" / "a" / "bundle").glob("evidence*")
    file.write_bytes(file.read_bytes().replace(b"e", b"f"))
    error = agent("install", delta).error
    assert (error["kind"], error["fix"]) == ("HashError", "get the whole bundle")
    assert not list(state.base.glob("*tmp*")), "the temporary file has no name"
    assert agent("status").result["active"]["identity"] == identity_of(bundle)


def test_room_for_what_is_put_together(
    agent: Agent, bundle: Path, delta: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent("install", bundle)
    usage = type(shutil.disk_usage("/"))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 1000, 1000))
    assert "the bundle, put together" in agent("install", delta).error["expected"]


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="a power cut is played by a process of its own")
def test_a_power_cut_while_a_delta_is_installed(
    installed: Path,
    bundle: Path,
    newer: Path,
    delta: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    folder = tmp_path / "state"
    run(fresh(installed, folder), "install", delta)
    wanted, count = listing(folder), 0

    def work() -> None:
        run(folder, "install", delta)

    while True:
        fresh(installed, folder)
        if not cut_at(count, work, forgetful=True):
            break
        active = State(folder).active
        assert active
        assert active.identity in (identity_of(bundle), identity_of(newer))
        work()
        assert listing(folder) == wanted
        count += 1
    assert count > 100

"""Several models on one camera: each with slots of its own, and all of them in its memory together."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from cameras import Agent, identity_of, repacked
from signer import signed, trust_file

from edgekd.agent.state.slots import State, model_names
from edgekd.core.bundle.archive import read_manifest
from edgekd.core.errors import SpecError


def with_memory(root: Path, kilobytes: int) -> Path:
    """A system that says how much memory it has."""
    (root / "proc").mkdir(parents=True, exist_ok=True)
    (root / "proc/meminfo").write_text(f"MemTotal: {kilobytes} kB\n", "ascii")
    return root


def test_each_model_has_slots_of_its_own(agent: Agent, bundle: Path, newer: Path, tmp_path: Path) -> None:
    assert agent("install", bundle, "--model", "day").result["active"] == "a"
    assert agent("install", newer, "--model", "night").result["trial"] is None, "there is none before it"
    assert agent("status", "--model", "day").result["active"]["identity"] == identity_of(bundle)
    found = agent("status", "--model", "night").result
    assert found["active"]["identity"] == identity_of(newer)
    assert (found["model"], found["models"]) == ("night", ["day", "night"])
    assert (tmp_path / "state/models/night/active/engine/model.engine").is_file()
    nameless = agent("status").result
    assert (nameless["model"], nameless["active"], nameless["models"]) == (None, None, ["day", "night"])


def test_trials_and_counters_are_apart(agent: Agent, bundle: Path, newer: Path, tmp_path: Path) -> None:
    fifth = repacked(bundle, tmp_path / "fifth", counter=5)
    agent("install", fifth, "--model", "day")
    agent("install", bundle, "--model", "night")
    agent("install", newer, "--model", "night", "--tries", 1)
    agent("boot", "--model", "night")
    assert agent("boot", "--model", "day").result["changed"] is False
    assert agent("boot", "--model", "night").result["identity"] == identity_of(bundle)
    assert agent("status", "--model", "day").result["counter"] == 5


@pytest.fixture
def night(bundle: Path, tmp_path: Path) -> Path:
    """A bundle for the model `night`, with a counter, signed by key 1."""
    return signed(repacked(bundle, tmp_path / "night", role="night", counter=9), tmp_path / "night.edgekd", 1)


@pytest.mark.parametrize("trusting", [False, True])
def test_a_bundle_with_a_role_is_for_the_model_of_that_name_alone(
    agent: Agent, night: Path, tmp_path: Path, trusting: bool
) -> None:
    if trusting:
        agent("trust", trust_file(tmp_path / "trust.json"))
    for command in ("unpack", "install"):
        error = agent(command, night, "--model", "day").error
        assert (error["kind"], error["what"]) == ("BundleError", f"{night}: for another model")
        assert (error["expected"], error["found"]) == ("role day, or none", "role night")
        assert agent(command, night).error["fix"] == "install it with --model night"
    assert not list((tmp_path / "state").rglob("manifest.json"))
    assert agent("install", night, "--model", "night").result["role"] == "night"
    assert agent("status", "--model", "night").result["active"]["role"] == "night"


def test_the_counter_of_a_role_is_of_that_role_alone(agent: Agent, bundle: Path, night: Path, tmp_path: Path) -> None:
    assert agent("install", night, "--model", "night").code == 0
    assert agent("status", "--model", "day").result["counter"] == 0, "it raises no other"
    older = repacked(night, tmp_path / "older", counter=8)
    assert agent("install", older, "--model", "night").error["kind"] == "RollbackError"
    for other in ((), ("--model", "day"), ("--model", "new")):
        assert agent("install", older, *other).error["kind"] == "BundleError", "it is under no other name, either"
    assert agent("install", repacked(bundle, tmp_path / "day", role="day"), "--model", "day").code == 0


def test_the_role_is_compared_again_before_a_bundle_goes_into_service(
    agent: Agent, night: Path, tmp_path: Path
) -> None:
    """Its slot was copied to another model, or a program of the camera links it there."""
    for call in (("unpack", night), ("build",), ("selftest",)):
        assert agent(*call, "--model", "night").code == 0
    shutil.copytree(tmp_path / "state/models/night", tmp_path / "state/models/day", symlinks=True)
    assert agent("activate", "--model", "day").error["found"] == "role night"
    assert agent("activate", "--model", "night").code == 0


def test_the_trust_file_is_the_cameras(agent: Agent, bundle: Path, tmp_path: Path) -> None:
    agent("trust", trust_file(tmp_path / "trust.json"))
    assert agent("install", bundle, "--model", "day").error["kind"] == "SignatureError"
    assert agent("install", signed(bundle, tmp_path / "signed.edgekd", 1), "--model", "day").code == 0


def test_all_have_to_fit_into_the_memory(agent: Agent, bundle: Path, newer: Path, tmp_path: Path) -> None:
    root = with_memory(tmp_path / "camera", 1 << 20)
    how = read_manifest(bundle).detector["preprocess"]
    first = agent("install", bundle, "--model", "day", root=root).result
    given = 3 * how["height"] * how["width"] * 4
    need = first["engine"]["bytes"] + 2 * given
    models: list[dict[str, Any]] = [{"model": "day", "bytes": need, "estimated": False}]
    assert first["memory"] == {"bytes": need, "limit_bytes": 1 << 29, "models": models}
    tight = ("--max-memory", 2 * need - 1)
    error = agent("install", newer, "--model", "night", *tight, root=root).error
    assert error["expected"] == f"at most {2 * need - 1} bytes"
    assert "night" in error["found"]
    assert f"day {need}" in error["found"]
    assert agent("status", "--model", "night").result["active"] is None
    second = agent("install", newer, "--model", "night", "--max-memory", 2 * need + 100).result
    assert [each["model"] for each in second["memory"]["models"]] == ["night", "day"]


def test_an_update_counts_once(agent: Agent, bundle: Path, newer: Path) -> None:
    first = agent("install", bundle).result["memory"]
    again = agent("install", newer, "--max-memory", first["bytes"] + 1000).result["memory"]
    assert len(again["models"]) == 1, "it takes the place of the one before"
    assert (again["models"][0]["model"], again["limit_bytes"]) == (None, first["bytes"] + 1000)


def test_half_of_the_memory_unless_something_else_is_said(agent: Agent, bundle: Path, tmp_path: Path) -> None:
    error = agent("install", bundle, root=with_memory(tmp_path / "camera", 10)).error
    assert error["expected"] == "at most 5120 bytes"
    assert agent("install", bundle).result["memory"]["limit_bytes"] is None, "nobody knows how much there is"


@pytest.mark.parametrize("name", ["", "../up", "a/b", "Day", "-x", "x" * 33, ".hidden"])
def test_names_that_are_none(tmp_path: Path, name: str) -> None:
    with pytest.raises(SpecError):
        State.of(tmp_path, name)


def test_names_of_models(tmp_path: Path) -> None:
    assert model_names(tmp_path) == []
    for model in ("b", None, "a"):
        with State.of(tmp_path, model).locked():
            pass
    assert model_names(tmp_path) == [None, "a", "b"]

"""The agent's commands on a real bundle: what each prints, and what it refuses. Runs on cameras' Pythons, too."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import boards
import pytest
from cameras import Agent, activate, build, identity_of, repacked, selftest, status

from edgekd import __version__
from edgekd.agent.engines.camera import Camera
from edgekd.agent.engines.selftest import SelfTestError
from edgekd.agent.runtimes import select_runtime
from edgekd.agent.runtimes.null import NullRuntime
from edgekd.agent.state.slots import State
from edgekd.core.bundle.archive import verify
from edgekd.core.documents import to_plain
from edgekd.core.errors import DeviceError
from edgekd.core.formats.packed_graph import unpack


def served(agent: Agent, bundle: Path) -> None:
    """Put a bundle into service."""
    agent("unpack", bundle)
    for command in ("build", "selftest", "activate"):
        assert agent(command).code == 0


# ----------------------------------------------------------------------------------------------- verify and unpack


def test_verify_says_what_is_in_a_bundle(agent: Agent, bundle: Path) -> None:
    found = agent("verify", bundle).result
    assert found["identity"] == identity_of(bundle)
    assert found["bytes"] == bundle.stat().st_size
    assert found["files"] == len(verify(bundle).files)
    assert (found["name"], found["target"]) == ("tiny", "xavier")


def test_verify_refuses_a_flipped_bit_and_says_where(agent: Agent, bundle: Path, tmp_path: Path) -> None:
    content = bytearray(bundle.read_bytes())
    content[len(content) // 2] ^= 1
    damaged = tmp_path / "damaged.edgekd"
    damaged.write_bytes(content)
    answer = agent("verify", damaged)
    assert answer.error["kind"] == "HashError"
    assert str(damaged) in answer.error["what"]
    assert answer.error["expected"] != answer.error["found"]
    assert answer.document["result"] is None


def test_verify_refuses_what_is_not_there(agent: Agent, tmp_path: Path) -> None:
    answer = agent("verify", tmp_path / "none.edgekd")
    assert (answer.error["kind"], answer.error["fix"]) == ("BundleError", "check the path")


def test_unpack_expands_the_graph_that_was_scored(agent: Agent, bundle: Path, state: State) -> None:
    found = agent("unpack", bundle).result
    assert (found["slot"], found["changed"], found["fits"]) == ("a", True, None)
    slot = state.candidate
    assert slot
    assert found["graph"] == str(slot.graph)
    assert found["graph_bytes"] == slot.graph.stat().st_size
    packed = (slot.path / "bundle" / slot.manifest.graph.path).read_bytes()
    assert slot.graph.read_bytes() == unpack(packed)
    for entry in slot.manifest.files:
        content = (slot.path / "bundle" / entry.path).read_bytes()
        assert hashlib.sha256(content).hexdigest() == entry.sha256


def test_unpacking_twice_changes_nothing(agent: Agent, bundle: Path) -> None:
    first, again = agent("unpack", bundle).result, agent("unpack", bundle).result
    assert again == {**first, "changed": False}


def test_unpacking_a_damaged_bundle_leaves_the_slot_empty(
    agent: Agent, bundle: Path, state: State, tmp_path: Path
) -> None:
    cut = tmp_path / "cut.edgekd"
    cut.write_bytes(bundle.read_bytes()[:-512])
    assert agent("unpack", cut).error["kind"] == "BundleError"
    assert state.candidate is None
    assert list((state.root / "slots").iterdir()) == []


def test_a_bundle_for_another_device_is_refused(agent: Agent, bundle: Path, tmp_path: Path) -> None:
    told = tmp_path / "camera" / "etc" / "edgekd" / "compatible"
    told.parent.mkdir(parents=True)
    told.write_text("acme,gate-7\n", "ascii")
    error = agent("unpack", bundle, root=tmp_path / "camera").error
    assert error["expected"] == "compatible acme,gate-7"
    assert error["found"] == verify(bundle).target.compatible
    told.write_text(verify(bundle).target.compatible, "ascii")
    assert agent("unpack", bundle, root=tmp_path / "camera").result["fits"] is True


def test_there_must_be_room(agent: Agent, bundle: Path, state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"total": 100, "free": 10})
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    error = agent("unpack", bundle).error
    assert f"{bundle.stat().st_size} the bundle" in error["expected"]
    assert error["found"] == "10 bytes free"
    assert state.candidate is None


# -------------------------------------------------------------------------------------- build, self-test and bench


def test_building_twice_builds_once(agent: Agent, bundle: Path) -> None:
    agent("unpack", bundle)
    first = agent("build").result
    assert first["changed"]
    assert Path(first["file"]).stat().st_size == first["bytes"]
    assert first["layers"] == {"int8": 1}
    assert first["share"] == {"layers": {"int8": 1.0}, "bytes": {"int8": 1.0}, "time": None}
    assert agent("build").result == {**first, "changed": False}


def test_a_damaged_engine_is_refused_and_built_again(agent: Agent, bundle: Path) -> None:
    agent("unpack", bundle)
    file = Path(agent("build").result["file"])
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    for command in ("selftest", "bench", "activate"):
        error = agent(command).error
        assert (error["kind"], error["fix"]) == ("HashError", "build --slot a")
    assert agent("build").result["changed"]
    assert file.read_bytes() == whole


def test_the_self_test_passes_and_says_how_close_it_was(agent: Agent, bundle: Path) -> None:
    agent("unpack", bundle)
    agent("build")
    found = agent("selftest").result
    assert found["passed"]
    assert found["error"] == {"boxes": 0.0, "scores": 0.0}
    assert found["precision"] == "int8"
    assert found["frames"] == 3


def test_a_drifting_engine_fails_the_self_test_and_cannot_be_activated(
    agent: Agent, bundle: Path, state: State
) -> None:
    agent("unpack", bundle)
    agent("build")
    wrong = Camera(state, Path("/none"), NullRuntime(error=0.5))
    build(wrong)
    with pytest.raises(SelfTestError, match="drifted from the golden set") as caught:
        selftest(wrong)
    assert to_plain(caught.value.report)["error"] == {"boxes": 0.5, "scores": 0.5}
    assert not to_plain(caught.value.report)["passed"]
    error = agent("activate").error
    assert error["found"] == "one that failed it"
    assert state.active is None


@pytest.mark.parametrize("error", [float("nan"), 1e30])
def test_an_engine_that_gives_no_numbers_fails(agent: Agent, bundle: Path, state: State, error: float) -> None:
    agent("unpack", bundle)
    wrong = Camera(state, Path("/none"), NullRuntime(error=error))
    build(wrong)
    with pytest.raises(SelfTestError):
        selftest(wrong)


def test_a_bundle_without_a_golden_set_is_not_tested(agent: Agent, bundle: Path, tmp_path: Path) -> None:
    files = tuple(entry for entry in verify(bundle).files if entry.role != "golden")
    agent("unpack", repacked(bundle, tmp_path / "old", files=files))
    error = agent("build").error
    assert error["expected"] == "a file with role golden"


def test_bench_gives_percentiles_of_the_engine_alone(agent: Agent, bundle: Path) -> None:
    agent("unpack", bundle)
    agent("build")
    found = agent("bench", "--iterations", 200, "--seconds", 0).result
    assert found["iterations"] == 200
    assert found["inference_ms"]["p50"] == pytest.approx(10)
    assert found["inference_ms"]["p99"] == pytest.approx(10)
    assert found["fps"] == pytest.approx(100)
    assert (found["energy"], found["slow_down"]) == (None, None)
    assert [reason.split(":")[0] for reason in found["refused"]] == ["energy"]
    assert found["inference_ms"]["intervals"]["p50"] == pytest.approx([10, 10])


def test_bench_tells_the_energy_of_a_run_where_the_module_has_power_monitors(
    agent: Agent, bundle: Path, tmp_path: Path
) -> None:
    root = boards.orin_nano(tmp_path / "board")
    agent("unpack", bundle, root=root)
    agent("build", root=root)
    energy = agent("bench", "--iterations", 20, "--seconds", 0.25, root=root).result["energy"]
    assert (energy["meter"], energy["covers"]) == ("ina3221", "module without carrier board: VDD_IN")
    assert energy["watts"] == pytest.approx(7.5)
    assert energy["gross_mj"] == pytest.approx(7.5 * 1000 * energy["seconds"] / energy["frames"])
    assert energy["net_mj"] == pytest.approx(0, abs=1e-6)


def test_bench_tells_no_rate_of_a_run_that_is_too_short(agent: Agent, bundle: Path) -> None:
    agent("unpack", bundle)
    agent("build")
    found = agent("bench", "--iterations", 20, "--seconds", 0).result
    assert found["fps"] is None
    assert "20 frames" in found["refused"][0]
    assert found["runtime"] == {"name": "null", "version": "1"}


@pytest.mark.parametrize("command", ["build", "selftest", "bench", "activate"])
def test_commands_say_that_there_is_no_bundle(agent: Agent, command: str) -> None:
    error = agent(command).error
    assert (error["expected"], error["fix"]) == ("a bundle", "unpack BUNDLE")


@pytest.mark.parametrize("command", ["selftest", "bench", "activate"])
def test_commands_say_that_there_is_no_engine(agent: Agent, bundle: Path, command: str) -> None:
    agent("unpack", bundle)
    error = agent(command).error
    assert (error["kind"], error["fix"]) == ("EngineMismatchError", "build --slot a")


# --------------------------------------------------------------------------------------- activate, roll back, status


def test_a_new_bundle_replaces_the_old_one_and_rolls_back_to_it(agent: Agent, bundle: Path, newer: Path) -> None:
    served(agent, bundle)
    served(agent, newer)
    found = agent("status").result
    assert (found["active"]["slot"], found["active"]["identity"]) == ("b", identity_of(newer))
    assert (found["previous"]["slot"], found["previous"]["identity"]) == ("a", identity_of(bundle))
    assert found["candidate"] is None
    back = agent("rollback").result
    assert (back["active"], back["identity"], back["previous"]) == ("a", identity_of(bundle), None)
    found = agent("status").result
    assert found["rejected"] == identity_of(newer)
    assert (found["candidate"], found["previous"]) == (None, None)


def test_activating_again_changes_nothing(agent: Agent, bundle: Path, newer: Path) -> None:
    served(agent, bundle)
    served(agent, newer)
    again = agent("activate").result
    assert (again["active"], again["changed"], again["previous"]) == ("b", False, "a")


def test_rolling_back_again_leads_nowhere(agent: Agent, bundle: Path, newer: Path) -> None:
    assert agent("rollback").error["kind"] == "RollbackError"
    served(agent, bundle)
    assert agent("rollback").error["found"] == "slot a in service"
    served(agent, newer)
    assert agent("rollback").code == 0
    assert agent("rollback").error["kind"] == "RollbackError"
    assert agent("status").result["active"]["slot"] == "a"


def test_a_rejected_bundle_comes_back_only_when_it_is_unpacked_again(agent: Agent, bundle: Path, newer: Path) -> None:
    served(agent, bundle)
    served(agent, newer)
    agent("rollback")
    assert agent("activate").result["changed"] is False
    assert agent("status").result["active"]["slot"] == "a"
    assert agent("unpack", newer).result["changed"] is False, "it is still there"
    assert agent("activate").result["active"] == "b"


def test_a_third_bundle_takes_the_place_of_the_first(agent: Agent, bundle: Path, newer: Path, tmp_path: Path) -> None:
    served(agent, bundle)
    served(agent, newer)
    third = repacked(bundle, tmp_path / "third", name="third")
    assert agent("unpack", third).result["slot"] == "a"
    found = agent("status").result
    assert (found["previous"], found["candidate"]["name"]) == (None, "third")
    assert agent("rollback").error["kind"] == "RollbackError", "what was there before is gone"
    served(agent, third)
    assert agent("rollback").result["identity"] == identity_of(newer)


def test_what_was_there_before_and_comes_again_is_no_way_back(
    agent: Agent, bundle: Path, newer: Path, tmp_path: Path
) -> None:
    """It has no engine, and waits like any other."""
    served(agent, bundle)
    served(agent, newer)
    agent("unpack", repacked(bundle, tmp_path / "third", name="third"))
    agent("unpack", bundle)
    found = agent("status").result
    assert (found["previous"], found["candidate"]["identity"]) == (None, identity_of(bundle))


def test_an_engine_of_an_older_runtime_is_stale_and_is_replaced_in_its_slot(
    agent: Agent, bundle: Path, state: State
) -> None:
    served(agent, bundle)
    updated = Camera(state, Path("/none"), NullRuntime(version="2"))
    (stale,) = status(updated)["active"]["engine"]["stale"]
    assert stale == {"what": "version", "built": "1", "now": "2"}
    with pytest.raises(DeviceError, match=r"no engine for this device as it is.*one for version 2"):
        activate(updated)
    build(updated)
    with pytest.raises(DeviceError, match="not ready for service"):
        activate(updated)
    assert status(Camera(state, Path("/none"), NullRuntime()))["active"]["engine"]["stale"] == [], "the old one serves"
    selftest(updated)
    assert activate(updated)["changed"]
    assert status(updated)["active"]["engine"]["stale"] == []
    active = state.active
    assert active
    assert len(list(active.engines.iterdir())) == 1, "the old engine is gone"


def test_a_slot_can_be_named(agent: Agent, bundle: Path, newer: Path) -> None:
    served(agent, bundle)
    agent("unpack", newer)
    assert agent("build").result["slot"] == "b"
    assert agent("build", "--slot", "a").result["slot"] == "a"
    assert agent("status").result["active"]["slot"] == "a"


def test_status_of_nothing(agent: Agent, state: State) -> None:
    found = agent("status").result
    assert [found[name] for name in ("active", "candidate", "previous", "rejected")] == [None] * 4
    assert found["agent"] == __version__
    assert found["disk"]["free_bytes"] > 0
    assert not state.root.exists(), "it changes nothing"


def test_one_operation_at_a_time(agent: Agent, bundle: Path, state: State) -> None:
    served(agent, bundle)
    with state.locked():
        error = agent("build").error
        assert (error["expected"], error["fix"]) == ("one operation at a time", "wait for the other to end")
        assert agent("status").result["active"]["slot"] == "a", "which waits for nobody"
    assert agent("build").code == 0


def test_a_damaged_activation_record_is_an_error(agent: Agent, bundle: Path, state: State) -> None:
    served(agent, bundle)
    (state.root / "active" / "activation.json").write_text("{}}", "ascii")
    assert "activation.json: damaged" in agent("rollback").error["what"]


# --------------------------------------------------------------------------------------------------- the command line


def test_wrong_arguments_are_an_error_in_json(agent: Agent) -> None:
    assert agent("frobnicate").error["kind"] == "SpecError"
    assert "--slot" in agent("rollback", "--slot", "a").error["what"], "what a command does not use it does not take"
    assert "BUNDLE" in agent("unpack").error["what"]


def test_what_the_system_refuses_is_an_error_in_json(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(root: Path) -> None:
        raise PermissionError(13, "Permission denied", "/proc/cpuinfo")

    monkeypatch.setattr("edgekd.agent.status.read_device", refuse)
    error = agent("status").error
    assert error["kind"] == "DeviceError"
    assert (error["what"], error["found"]) == ("/proc/cpuinfo: cannot be used", "Permission denied")


def test_an_unknown_runtime_suggests_a_known_one(agent: Agent) -> None:
    error = agent("build", runtime="onnxruntim").error
    assert error["fix"] == "did you mean 'onnxruntime'?"


def test_nothing_that_runs_networks(agent: Agent, bundle: Path, state: State) -> None:
    agent("unpack", bundle)
    with pytest.raises(DeviceError, match="nothing here can run a network"):
        build(Camera(state))
    null = select_runtime("null")
    assert null
    assert null.name == "null"

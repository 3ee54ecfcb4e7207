"""One command for all of an installation, and the trial that decides whether what it installed stays."""

from __future__ import annotations

import json
import shutil
from collections import namedtuple
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cameras import Agent, Answer, identity_of, repacked, status
from signer import signed, trust_file

from edgekd.agent.engines.camera import Camera
from edgekd.agent.engines.selftest import MIN_RUNS
from edgekd.agent.runtimes.null import NullRuntime
from edgekd.agent.state import slots
from edgekd.agent.state.slots import Activation, State, require_room
from edgekd.agent.state.trial import Trial, Uptime, read_uptime
from edgekd.core.bundle.archive import extract, file_entry, pack, read_head
from edgekd.core.errors import DeviceError, DiskFullError


@pytest.fixture
def served(agent: Agent, bundle: Path) -> Agent:
    """The agent, with a bundle in service and committed."""
    assert agent("install", bundle).result["trial"] is None, "there is nothing that it could give way to"
    return agent


def at(root: Path, seconds: float, boot: str = "first") -> None:
    """Let the system below a root say how long it is up."""
    files = {"proc/uptime": f"{seconds:.2f} 1.00\n", "proc/sys/kernel/random/boot_id": f"{boot}\n"}
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, "ascii")


def trial_of(answer: Answer) -> Any:
    return answer.result["trial"]


# ------------------------------------------------------------------------------------------------------------- install


def test_one_command_puts_a_bundle_into_service(agent: Agent, bundle: Path) -> None:
    found = agent("install", bundle).result
    assert (found["identity"], found["slot"], found["active"]) == (identity_of(bundle), "a", "a")
    assert found["engine"]["self_test"]["passed"]
    assert (found["changed"], found["previous"], found["trial"]) == (True, None, None)
    assert agent("status").result["active"]["engine"]["key"] == found["key"] == found["engine"]["key"]


def test_a_file_that_is_cut_short_and_whose_bundle_is_in_a_slot_is_reported(
    served: Agent, bundle: Path, tmp_path: Path
) -> None:
    assert served("install", bundle).result["file_error"] is None
    cut = tmp_path / "cut.edgekd"
    cut.write_bytes(bundle.read_bytes()[:-1])
    for command in ("install", "unpack"):
        answer = served(command, cut)
        assert answer.result["changed"] is False
        assert str(answer.result["file_error"]).startswith(f"{cut}: cut short; expected {bundle.stat().st_size} bytes")


def test_installing_again_changes_nothing(served: Agent, bundle: Path, state: State) -> None:
    before = {path: path.lstat().st_mtime_ns for path in state.root.rglob("*")}
    again = served("install", bundle).result
    assert (again["changed"], again["active"], again["engine"]["self_test"]["passed"]) == (False, "a", True)
    assert {path: path.lstat().st_mtime_ns for path in state.root.rglob("*")} == before


@pytest.mark.parametrize("done", [("unpack",), ("unpack", "build"), ("unpack", "build", "selftest")])
def test_what_is_done_already_is_not_done_again(
    served: Agent, newer: Path, state: State, done: tuple[str, ...]
) -> None:
    for command in done:
        assert served(command, *((newer,) if command == "unpack" else ())).code == 0
    (slot,) = [each for each in (state.candidate,) if each]
    kept = {path: path.stat().st_ino for path in slot.path.rglob("model.engine")}
    found = served("install", newer).result
    assert (found["changed"], found["active"], found["previous"]) == (True, "b", "a")
    assert {path: path.stat().st_ino for path in slot.path.rglob("model.engine")}.items() >= kept.items()


def test_a_bundle_that_is_not_to_be_trusted_changes_nothing(
    agent: Agent, bundle: Path, newer: Path, tmp_path: Path
) -> None:
    agent("trust", trust_file(tmp_path / "trust.json"))
    assert agent("install", signed(bundle, tmp_path / "signed.edgekd", 1)).code == 0
    assert agent("install", newer).error["kind"] == "SignatureError"
    assert agent("status").result["candidate"] is None


def test_an_engine_that_takes_too_long_is_not_put_into_service(served: Agent, bundle: Path, newer: Path) -> None:
    answer = served("install", newer, "--max-latency", 5)
    assert answer.error["kind"] == "SelfTestError"
    assert (answer.error["expected"], answer.error["found"]) == ("at most 5 ms as the median of its runs", "10 ms")
    report = answer.document["result"]
    assert (report["latency"]["limit_ms"], report["latency"]["p50_ms"]) == (5.0, 10.0)
    assert report["latency"]["runs"] >= MIN_RUNS
    assert report["error"] == {"boxes": 0.0, "scores": 0.0}, "what it gives is right"
    assert served("status").result["active"]["identity"] == identity_of(bundle)
    assert served("activate").error["what"] == "slot b: not ready for service"
    assert served("install", newer, "--max-latency", 15).result["engine"]["self_test"]["latency"]["limit_ms"] == 15


def test_the_frames_per_second_of_a_bundle_are_a_limit_on_its_target_alone(
    agent: Agent, bundle: Path, tmp_path: Path
) -> None:
    head = read_head(bundle).manifest
    fast = repacked(bundle, tmp_path / "fast", limits=type(head.limits)(None, None, 200.0))
    here = tmp_path / "camera"
    (here / "etc/edgekd").mkdir(parents=True)
    (here / "etc/edgekd/compatible").write_text(head.target.compatible + "\n", "ascii")
    assert agent("install", fast, root=here).error["expected"] == "at most 5 ms as the median of its runs"
    assert agent("selftest").result["latency"] is None, "this device does not say that it is the target"
    assert agent("install", fast, "--max-latency", 15, root=here).code == 0, "whoever installs knows better"


def test_what_is_required_of_an_engine(served: Agent, newer: Path) -> None:
    assert served("install", newer, "--require", "fp16=0.5").error["kind"] == "PrecisionError"
    assert served("install", newer, "--require", "int8=0.5").code == 0


def test_there_has_to_be_room_before_anything_goes(
    served: Agent, newer: Path, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served("install", newer, "--tries", 0)
    manifest = extract(bundle, tmp_path / "files")
    (tmp_path / "files" / "zero.bin").write_bytes(bytes(2_000_000))
    more = (*manifest.files, file_entry("zero.bin", tmp_path / "files" / "zero.bin", "evidence"))
    large = tmp_path / "large.edgekd"
    pack(replace(manifest, files=more), {entry.path: tmp_path / "files" / entry.path for entry in more}, large)
    usage = type(shutil.disk_usage(tmp_path))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 1000, 1000))
    error = served("install", large).error
    assert error["what"].endswith("state: no room")
    assert f"{large.stat().st_size} the bundle" in error["expected"]
    assert "in the slot that is to be replaced" in error["found"]
    assert served("status").result["previous"]["identity"] == identity_of(bundle), "the way back is still there"
    third = repacked(bundle, tmp_path / "third", name="third")
    assert served("install", third).code == 0, "there is room for what is no larger than what it replaces"


def test_room_for_just_what_is_needed_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "free")(30)
    monkeypatch.setattr(slots.shutil, "disk_usage", lambda folder: usage)
    require_room(tmp_path, {"a bundle": 20, "its graph": 15}, freed=5)
    with pytest.raises(DiskFullError, match="36 bytes: 20 a bundle, 16 its graph"):
        require_room(tmp_path, {"a bundle": 20, "its graph": 16}, freed=5)


def test_a_record_is_written_from_the_reserve_where_the_disk_is_full(
    served: Agent, state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, content: bytes) -> None:
        raise DiskFullError(f"{path}: no room")

    monkeypatch.setattr(slots, "write_file", full)
    state.note(Activation(rejected="0" * 64))
    assert State(state.root).activation == Activation(rejected="0" * 64)


def test_one_installation_at_a_time(served: Agent, newer: Path, state: State) -> None:
    with state.locked():
        assert served("install", newer).error["expected"] == "one operation at a time"


# --------------------------------------------------------------------------------------------------------- the trial


def test_what_is_committed_stays(served: Agent, bundle: Path, newer: Path) -> None:
    assert trial_of(served("install", newer)) == {
        **{"tries_left": 3, "tries_done": 0, "window_s": None, "left_s": None},
        "over": False,
    }
    assert (trial_of(served("boot"))["tries_left"], trial_of(served("status"))["tries_done"]) == (2, 1)
    committed = served("commit").result
    assert (committed["active"], committed["previous"], committed["trial"]) == ("b", "a", None)
    assert committed["changed"]
    assert served("commit").result["changed"] is False
    for _ in range(5):
        assert served("boot").result["active"] == "b"
    assert served("rollback").result["identity"] == identity_of(bundle), "by hand there is still a way back"


def test_starts_without_a_commit_lead_back(served: Agent, bundle: Path, newer: Path) -> None:
    served("install", newer, "--tries", 2)
    assert [served("boot").result["active"] for _ in range(2)] == ["b", "b"]
    assert trial_of(served("status")) == {
        **{"tries_left": 0, "tries_done": 2, "window_s": None, "left_s": None},
        "over": True,
    }
    back = served("boot").result
    assert (back["active"], back["identity"]) == ("a", identity_of(bundle))
    assert (back["changed"], back["rejected"], back["trial"]) == (True, identity_of(newer), None)
    assert served("boot").result["changed"] is False
    assert served("status").result["rejected"] == identity_of(newer)


def test_what_failed_its_trial_comes_back_only_when_it_is_unpacked_again(served: Agent, newer: Path) -> None:
    served("install", newer, "--tries", 1)
    served("boot")
    served("boot")
    assert "was rolled back" in served("install", newer).error["what"]
    served("unpack", newer)
    assert served("install", newer).result["active"] == "b"


def test_nothing_takes_the_place_of_the_way_back(served: Agent, bundle: Path, newer: Path, tmp_path: Path) -> None:
    served("install", newer)
    third = repacked(bundle, tmp_path / "third", name="third")
    for command in ("install", "unpack"):
        assert served(command, third).error["what"].startswith("slot b: on trial")
    assert served("unpack", bundle).code == 1, "nor is the bundle to go back to made a candidate"
    assert served("install", newer).result["changed"] is False
    assert served("status").result["previous"]["identity"] == identity_of(bundle)
    served("commit")
    assert served("install", third).result["active"] == "a"


def test_a_trial_that_is_over_keeps_no_bundle_out(served: Agent, bundle: Path, newer: Path, tmp_path: Path) -> None:
    served("install", newer, "--tries", 1)
    served("boot")
    third = repacked(bundle, tmp_path / "third", name="third")
    found = served("install", third).result
    assert (found["active"], found["previous"]) == ("b", "a")
    assert served("rollback").result["identity"] == identity_of(bundle)


def test_without_a_trial(served: Agent, newer: Path) -> None:
    assert trial_of(served("install", newer, "--tries", 0)) is None
    assert served("boot").result["active"] == "b"
    assert served("boot").result["trial"] is None


def test_time_runs_out(served: Agent, bundle: Path, newer: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    at(root, 100)
    assert trial_of(served("install", newer, "--window", 60))["left_s"] == 60
    at(root, 150)
    assert trial_of(served("status"))["left_s"] == 10
    at(root, 161)
    assert trial_of(served("status"))["over"] is True
    late = served("commit").error
    assert (late["expected"], late["found"]) == ("within 60 s of its installation or start", "61 s")
    assert served("boot").result["identity"] == identity_of(bundle), "although there are tries left"


def test_after_a_boot_the_window_begins_with_the_start(served: Agent, newer: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    at(root, 100)
    served("install", newer, "--window", 60)
    at(root, 5000, "second")
    assert trial_of(served("status"))["left_s"] is None
    assert trial_of(served("boot"))["left_s"] == 60
    at(root, 5059, "second")
    assert served("commit").result["changed"]


def test_where_there_is_no_way_back_it_stays(served: Agent, newer: Path, state: State) -> None:
    served("install", newer, "--tries", 1)
    served("boot")
    previous = state.previous
    assert previous
    assert previous.engine
    (previous.engine / "model.engine").write_bytes(b"torn")
    stays = served("boot").result
    assert (stays["active"], stays["changed"], stays["trial"]) == ("b", False, None)
    assert "model.engine: damaged" in stays["stays"]
    assert served("boot").result["stays"] is None


def test_the_counter_rises_with_the_commit(agent: Agent, bundle: Path, tmp_path: Path) -> None:
    """Until then a bundle between the two may still be needed."""
    agent("install", bundle)
    fifth, second = (repacked(bundle, tmp_path / str(number), counter=number) for number in (5, 2))
    agent("install", fifth)
    assert agent("status").result["counter"] == 0
    agent("rollback")
    assert agent("status").result["counter"] == 0
    assert agent("install", second).result["active"] == "b"
    agent("commit")
    assert agent("status").result["counter"] == 2
    assert agent("install", bundle).error["kind"] == "RollbackError"


def test_nothing_to_commit(agent: Agent) -> None:
    assert "nothing in service" in agent("commit").error["what"]
    assert agent("boot").result["active"] is None


@pytest.mark.parametrize(
    "call", [("--tries", -1), ("--tries", 1001), ("--window", 0), ("--window", "soon"), ("--max-latency", "-1")]
)
def test_wrong_limits(agent: Agent, bundle: Path, call: tuple[str, object]) -> None:
    error = agent("install", bundle, *call).error
    assert error["kind"] == "SpecError"
    assert str(call[1]) in error["what"]


@pytest.mark.parametrize("told", [{}, {"tries_left": "3"}, {"tries_left": 3, "window_s": "1"}, [3], {"tries": 3}])
def test_a_damaged_trial_is_an_error(served: Agent, state: State, told: Any) -> None:
    (state.root / "active" / "activation.json").write_text(json.dumps({"trial": told}), "ascii")
    with pytest.raises(DeviceError, match=r"activation\.json: damaged"):
        status(Camera(state, Path("/none"), NullRuntime()))


def test_uptime_of_a_system(tmp_path: Path) -> None:
    assert read_uptime(tmp_path) == Uptime(None, 0.0)
    at(tmp_path, 12.5, "8d9f")
    assert read_uptime(tmp_path) == Uptime("8d9f", 12.5)
    assert read_uptime(Path("/")).seconds > 0


def test_a_trial_counts() -> None:
    trial = Trial(2, window_s=10).begun(Uptime("x", 100))
    assert not trial.over(Uptime("x", 110))
    assert trial.over(Uptime("x", 110.5))
    assert not trial.over(Uptime("y", 110.5))
    assert not trial.started(Uptime("x", 110.5)).over(Uptime("x", 111))
    assert trial.started(Uptime("x", 1)).started(Uptime("x", 2)).over(Uptime("x", 3))
    unknown = Trial(1, window_s=10).begun(Uptime(None, 0))
    assert unknown.left_s(Uptime(None, 1e9)) is None, "where nobody knows the time, starts alone count"

"""A camera that holds a trust file takes what is signed right and not too old. Runs on cameras' Pythons, too."""

from __future__ import annotations

import hashlib
import json
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from cameras import Agent, Answer, identity_of, repacked, status
from signer import public, sign, signatures, signed, trust_file

from edgekd.agent import commands
from edgekd.agent.engines.camera import Camera
from edgekd.agent.runtimes.null import NullRuntime
from edgekd.agent.state.slots import State
from edgekd.core.bundle.archive import END, BundleReader, member, read_head, replace_signatures
from edgekd.core.bundle.ed25519 import verify
from edgekd.core.bundle.signatures import SignatureEnvelope, key_id, to_json
from edgekd.core.bundle.trust import CounterReset, Key
from edgekd.core.errors import SignatureError

STEPS = ("build", "selftest", "activate")


@pytest.fixture
def good(bundle: Path, tmp_path: Path) -> Path:
    """The bundle, signed by key 1."""
    return signed(bundle, tmp_path / "good.edgekd", 1)


@pytest.fixture
def trusting(tmp_path: Path) -> Path:
    """Where the firmware of the camera that `agent` runs on has its trust file."""
    return trust_file(tmp_path / "root" / "etc" / "edgekd" / "trust.json")


def counting(bundle: Path, folder: Path, counter: int, *keys: int) -> Path:
    """The bundle with a counter, and with its own name for it, signed."""
    return signed(repacked(bundle, folder, counter=counter, name=f"count {counter}"), folder / "signed.edgekd", *keys)


def served(agent: Agent, bundle: Path) -> None:
    assert agent("unpack", bundle).code == 0
    assert [agent(step).code for step in STEPS] == [0, 0, 0]


def committed(agent: Agent, bundle: Path, *options: object) -> None:
    assert agent("install", bundle, *options).code == 0
    assert agent("commit", *options).code == 0


def test_the_tests_sign_as_the_rfc_says() -> None:
    assert verify(public(1), b"message", sign(1, b"message"))
    assert not verify(public(2), b"message", sign(1, b"message"))


# -------------------------------------------------------------------------------------------------------- signatures


def test_verify_says_by_which_trust_file(agent: Agent, good: Path, tmp_path: Path) -> None:
    told = agent("verify", good).result
    assert told["trust"] is None, "this camera trusts everybody"
    assert told["signatures"] == [signature.key for signature in read_head(good).envelope.signatures]
    trust = trust_file(tmp_path / "trust.json", 4)
    told = agent("verify", good, "--trust", trust).result["trust"]
    assert (told["version"], told["keys"], told["threshold"], told["expired"]) == (4, ["key 1"], 1, False)
    other = trust_file(tmp_path / "other.json", bundle=(2,))
    error = agent("verify", good, "--trust", other).error
    assert (error["kind"], error["cause"]) == ("SignatureError", "unknown-key")
    assert str(good) in error["what"]


@pytest.mark.usefixtures("trusting")
@pytest.mark.parametrize("keys", [(), (2,), (9,), (2, 3)])
def test_what_is_not_signed_right_changes_nothing(agent: Agent, bundle: Path, tmp_path: Path, keys: tuple[int]) -> None:
    bad = signed(bundle, tmp_path / "bad.edgekd", *keys)
    for command in ("verify", "unpack"):
        assert agent(command, bad).error["kind"] == "SignatureError"
    assert not list((tmp_path / "state").rglob("bundle"))


@pytest.mark.usefixtures("trusting")
def test_mix_and_match_signatures_of_another_bundle(agent: Agent, bundle: Path, newer: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.edgekd"
    for kind, of in (("bundle", newer), ("trust", bundle)):
        replace_signatures(bundle, signatures(kind, read_head(of).identity, 1), bad)
        assert "wrong" in agent("unpack", bad).error["what"]


@pytest.mark.usefixtures("trusting")
def test_a_signed_bundle_goes_into_service(agent: Agent, good: Path) -> None:
    served(agent, good)
    told = agent("status").result
    assert told["active"]["identity"] == identity_of(good)
    assert told["trust"]["version"] == 1


@pytest.mark.usefixtures("trusting")
def test_a_bad_bundle_costs_nothing_that_a_rollback_leads_to(agent: Agent, bundle: Path, tmp_path: Path) -> None:
    first, second = (counting(bundle, tmp_path / str(count), count, 1) for count in (1, 2))
    served(agent, first)
    served(agent, second)
    third = counting(bundle, tmp_path / "3", 3, 1)
    content = bytearray(third.read_bytes())
    content[-1600] ^= 1
    third.write_bytes(content)
    assert agent("unpack", third).error["kind"] == "HashError"
    assert agent("rollback").result["identity"] == identity_of(first)


def test_a_bundle_is_judged_again_before_it_goes_into_service(agent: Agent, good: Path, tmp_path: Path) -> None:
    agent("unpack", good)
    assert [agent(step).code for step in STEPS[:2]] == [0, 0]
    assert agent("trust", trust_file(tmp_path / "1.json", revoked_bundles=(identity_of(good),))).code == 0
    assert "revoked" in agent("activate").error["what"]


def test_a_rollback_does_not_lead_to_a_revoked_bundle(agent: Agent, good: Path, bundle: Path, tmp_path: Path) -> None:
    served(agent, good)
    served(agent, counting(bundle, tmp_path / "next", 1, 1))
    assert agent("trust", trust_file(tmp_path / "1.json", revoked_bundles=(identity_of(good),))).code == 0
    assert "revoked" in agent("rollback").error["what"]
    assert agent("status").result["active"]["name"] == "count 1"


@pytest.fixture
def pair(bundle: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A bundle that key 1 has signed, and a newer one that key 2 has signed as well."""
    return counting(bundle, tmp_path / "old", 1, 1), counting(bundle, tmp_path / "new", 2, 1, 2)


def revoking(path: Path, *, keys: tuple[int, ...] = (), bundles: tuple[Path, ...] = (), version: int = 2) -> Path:
    """A trust file by which key 2 signs bundles, and these keys and bundles are revoked."""
    return trust_file(
        path,
        version,
        bundle=(2,),
        revoked_keys=tuple(sorted(key_id(public(number)) for number in keys)),
        revoked_bundles=tuple(sorted(map(identity_of, bundles))),
    )


@pytest.mark.usefixtures("trusting")
def test_a_rollback_does_not_lead_to_the_bundle_of_a_revoked_key(
    agent: Agent, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    for each in pair:
        served(agent, each)
    assert agent("trust", revoking(tmp_path / "2.json", keys=(1,))).code == 0
    told = agent("status").result
    assert (told["active"]["revoked"], told["previous"]["revoked"], told["candidate"]) == (False, True, None)
    error = agent("rollback").error
    assert (error["kind"], error["what"]) == ("SignatureError", "slot a: revoked")
    assert (error["cause"], error["found"]) == ("revoked-key", f"key {key_id(public(1))} of its signatures")
    assert error["fix"] == "install a newer bundle; slot b stays in service"
    assert agent("status").result["active"]["identity"] == identity_of(pair[1])


@pytest.mark.usefixtures("trusting")
def test_boot_does_not_lead_to_the_bundle_of_a_revoked_key(
    agent: Agent, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    committed(agent, pair[0])
    assert agent("install", pair[1], "--tries", 1).code == 0
    assert agent("trust", revoking(tmp_path / "2.json", keys=(1,))).code == 0
    assert agent("boot").result["stays"] is None
    over = agent("boot").result
    assert "slot a: revoked" in over["stays"]
    assert "slot b stays in service" in over["stays"]
    assert (over["identity"], over["changed"], over["trial"]) == (identity_of(pair[1]), False, None)


@pytest.mark.usefixtures("trusting")
def test_where_all_is_revoked_what_is_in_service_stays(agent: Agent, pair: tuple[Path, Path], tmp_path: Path) -> None:
    for each in pair:
        served(agent, each)
    assert agent("trust", revoking(tmp_path / "2.json", bundles=pair)).code == 0
    told = agent("status").result
    assert (told["active"]["revoked"], told["previous"]["revoked"]) == (True, True)
    error = agent("rollback").error
    assert error["fix"] == "install a newer bundle; slot b stays in service, revoked, too"
    assert error["cause"] == "revoked-bundle"
    assert agent("boot").result["identity"] == identity_of(pair[1])


@pytest.mark.usefixtures("trusting")
def test_a_key_that_was_replaced_and_not_revoked_does_not_keep_from_going_back(
    agent: Agent, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    for each in pair:
        served(agent, each)
    assert agent("trust", revoking(tmp_path / "2.json")).code == 0
    assert agent("status").result["previous"]["revoked"] is False
    assert agent("rollback").result["identity"] == identity_of(pair[0])


@pytest.mark.usefixtures("trusting")
def test_the_signature_of_a_revoked_key_beside_enough_others_does_not_matter(
    agent: Agent, bundle: Path, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    served(agent, pair[1])
    served(agent, counting(bundle, tmp_path / "3", 3, 1))
    assert agent("trust", revoking(tmp_path / "2.json", keys=(1,))).code == 0
    told = agent("status").result
    assert (told["active"]["revoked"], told["previous"]["revoked"]) == (True, False)
    assert agent("rollback").result["identity"] == identity_of(pair[1])


@pytest.mark.usefixtures("trusting")
def test_signatures_that_cannot_be_read_count_as_revoked_once_a_key_is(
    agent: Agent, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    for each in pair:
        served(agent, each)
    agent("trust", revoking(tmp_path / "2.json", keys=(1,)))
    stored = tmp_path / "state" / "slots" / "a" / "bundle" / "signatures.json"
    for damage in (lambda: stored.write_bytes(b"{}"), stored.unlink):
        damage()
        assert agent("rollback").error["found"] == "its signatures, which are damaged"


def test_the_same_bundle_with_more_signatures_replaces_them(
    agent: Agent, bundle: Path, good: Path, tmp_path: Path
) -> None:
    agent("unpack", bundle)
    assert [agent(step).code for step in STEPS[:2]] == [0, 0]
    agent("trust", trust_file(tmp_path / "1.json"))
    assert agent("activate").error["kind"] == "SignatureError"
    assert agent("unpack", good).result["changed"] is False
    assert agent("activate").code == 0


# ---------------------------------------------------------------------------------------------------- trust files


def test_freeze_an_expired_trust_file_takes_no_new_bundle_and_leaves_the_old_in_service(
    good: Path, bundle: Path, trusting: Path, tmp_path: Path
) -> None:
    clock = [datetime(2026, 6, 1, tzinfo=timezone.utc)]
    camera = Camera(State(tmp_path / "state"), tmp_path / "root", NullRuntime(), clock=lambda: clock[0])
    commands.unpack(camera, good)
    for step in (commands.build, commands.selftest, commands.activate):
        step(camera)
    clock[0] = datetime(2126, 6, 1, tzinfo=timezone.utc)
    with pytest.raises(SignatureError, match="trust file 1: expired"):
        commands.unpack(camera, counting(bundle, tmp_path / "next", 1, 1))
    newer = Camera(camera.state, camera.root, NullRuntime(version="2"), clock=camera.clock)
    for step in (commands.build, commands.selftest, commands.activate):
        step(newer)
    told = status(newer)
    assert (told["trust"]["expired"], told["active"]["identity"]) == (True, identity_of(good))


@pytest.fixture
def clock() -> list[datetime]:
    """The time of the camera's clock, which a test sets."""
    return [datetime(2026, 6, 1, tzinfo=timezone.utc)]


@pytest.fixture
def timed(tmp_path: Path, clock: list[datetime]) -> Camera:
    """A camera with a clock that is set by hand."""
    return Camera(State(tmp_path / "state"), tmp_path / "root", NullRuntime(), clock=lambda: clock[0])


def expiring(path: Path, version: int, expires: str, **changed: Any) -> Path:
    """A trust file whose key for bundles expires."""
    keys = tuple(Key(public(number).hex(), f"key {number}", expires if number == 1 else None) for number in (1, 9))
    return trust_file(path, version, keys=tuple(sorted(keys, key=lambda key: key.id)), **changed)


def test_setting_the_clock_back_revives_no_expired_key(
    timed: Camera, clock: list[datetime], good: Path, tmp_path: Path
) -> None:
    expiring(tmp_path / "root/etc/edgekd/trust.json", 1, "2026-09-01T00:00:00Z")
    clock[0] = datetime(2026, 10, 1, tzinfo=timezone.utc)
    with pytest.raises(SignatureError, match="signed by an expired key"):
        commands.unpack(timed, good)
    clock[0] = datetime(2026, 8, 1, tzinfo=timezone.utc)
    for command in (commands.unpack, commands.verify):
        with pytest.raises(SignatureError, match="signed by an expired key"):
            command(timed, good)


def test_status_has_the_expiry_of_each_key(timed: Camera, clock: list[datetime], tmp_path: Path) -> None:
    expiring(tmp_path / "root/etc/edgekd/trust.json", 1, "2026-09-01T00:00:00Z", bundle=(1, 9))
    clock[0] = datetime(2026, 10, 1, tzinfo=timezone.utc)
    found = sorted(status(timed)["trust"]["bundle_keys"], key=lambda key: str(key["name"]))
    assert found == [
        {"id": key_id(public(1)), "name": "key 1", "expires": "2026-09-01T00:00:00Z", "expired": True},
        {"id": key_id(public(9)), "name": "key 9", "expires": None, "expired": False},
    ]


def test_a_clock_that_was_years_ahead_costs_one_trust_file(
    timed: Camera, clock: list[datetime], good: Path, trusting: Path, tmp_path: Path
) -> None:
    trust_file(trusting, 1, expires="2026-12-01T00:00:00Z")
    clock[0] = datetime(2199, 1, 1, tzinfo=timezone.utc)
    with pytest.raises(SignatureError, match="expired"):
        commands.unpack(timed, good)
    clock[0] = datetime(2026, 6, 2, tzinfo=timezone.utc)
    with pytest.raises(SignatureError, match="expired"):
        commands.unpack(timed, good)
    assert status(timed)["trust"]["expired"]
    newer = trust_file(tmp_path / "2.json", 2, expires="2027-12-01T00:00:00Z")
    assert commands.trust(timed, [newer]).changed
    assert commands.unpack(timed, good).changed


def test_the_time_is_stored_once_a_day_and_by_commands_that_judge(
    timed: Camera, clock: list[datetime], good: Path, trusting: Path, tmp_path: Path
) -> None:
    stored = tmp_path / "state" / "clock.json"
    commands.verify(timed, good)
    status(timed)
    assert not stored.exists(), "they change nothing"
    commands.unpack(timed, good)
    first = stored.stat()
    clock[0] = datetime(2026, 6, 1, 23, tzinfo=timezone.utc)
    commands.unpack(timed, good)
    assert (stored.stat().st_ino, stored.stat().st_mtime_ns) == (first.st_ino, first.st_mtime_ns)
    clock[0] = datetime(2026, 6, 2, tzinfo=timezone.utc)
    commands.unpack(timed, good)
    assert json.loads(stored.read_bytes()) == {"last": "2026-06-02T00:00:00Z"}
    clock[0] = datetime(2026, 5, 2, tzinfo=timezone.utc)
    commands.unpack(timed, good)
    assert json.loads(stored.read_bytes()) == {"last": "2026-06-02T00:00:00Z"}
    trust_file(trusting, 1, expires=None)
    clock[0] = datetime(2199, 6, 2, tzinfo=timezone.utc)
    commands.unpack(timed, good)
    assert json.loads(stored.read_bytes()) == {"last": "2026-06-02T00:00:00Z"}, "nothing expires, no time is needed"


@pytest.mark.usefixtures("trusting")
def test_who_cannot_read_the_state_can_verify(timed: Camera, good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = Path.read_bytes

    def refuse(path: Path) -> bytes:
        if path.name == "clock.json":
            raise PermissionError(13, "Permission denied")
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert commands.verify(timed, good).trust


@pytest.mark.usefixtures("trusting")
def test_a_damaged_time_lets_nothing_in(agent: Agent, good: Path, tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    for content in (b"", b"{}", b'{"last":7}', b'{"last":"tomorrow"}', b"[]"):
        (tmp_path / "state" / "clock.json").write_bytes(content)
        assert agent("unpack", good).error["kind"] == "DeviceError"
        assert "clock.json" in agent("status").result["trust"]["error"]


def test_a_newer_trust_file_takes_over(agent: Agent, bundle: Path, good: Path, trusting: Path, tmp_path: Path) -> None:
    rotated = trust_file(tmp_path / "2.json", 2, by=(9, 10), bundle=(2,), trust=(10,))
    assert agent("trust", rotated).result["changed"]
    assert not agent("trust", rotated).result["changed"]
    assert agent("unpack", good).error["kind"] == "SignatureError"
    assert agent("unpack", signed(bundle, tmp_path / "two.edgekd", 2)).code == 0
    # The one that a newer firmware brings counts, once it is ahead.
    trust_file(trusting, 3, by=(10,), bundle=(1,), trust=(10,))
    assert agent("status").result["trust"]["version"] == 3
    assert agent("unpack", good).code == 0


def test_a_chain_of_trust_files_is_taken_in_one_go(agent: Agent, trusting: Path, tmp_path: Path) -> None:
    second = trust_file(tmp_path / "2.json", 2, by=(9, 10), trust=(10,))
    third = trust_file(tmp_path / "3.json", 3, by=(10, 11), trust=(11,))
    assert "keys of version 1" in agent("trust", third).error["expected"]
    assert agent("trust", trusting, second, third).result["version"] == 3


@pytest.mark.usefixtures("trusting")
def test_a_trust_file_that_does_not_follow_changes_nothing(agent: Agent, tmp_path: Path) -> None:
    bad = [
        trust_file(tmp_path / "stolen.json", 2, by=(66,), trust=(66,)),
        trust_file(tmp_path / "by-bundle-key.json", 2, by=(1,), trust=(1,)),
        trust_file(tmp_path / "same.json", 1, expires=None),
        trust_file(tmp_path / "unsigned.json", 2, by=()),
    ]
    (tmp_path / "no.json").write_bytes(b"{}")
    for path in (*bad, tmp_path / "no.json", tmp_path / "none.json"):
        assert agent("trust", path).error["kind"] == "SignatureError", path
    assert agent("status").result["trust"]["version"] == 1
    assert not (tmp_path / "state" / "trust.json").exists()


def test_without_a_trust_file_the_first_is_taken_as_it_is(agent: Agent, bundle: Path, tmp_path: Path) -> None:
    assert agent("status").result["trust"] is None
    assert agent("trust", trust_file(tmp_path / "1.json", by=())).error["kind"] == "SignatureError"
    assert agent("trust", trust_file(tmp_path / "1.json")).result["changed"]
    assert agent("unpack", bundle).error["kind"] == "SignatureError"


def test_a_damaged_trust_file_lets_nothing_in(agent: Agent, good: Path, trusting: Path) -> None:
    content = bytearray(trusting.read_bytes())
    content[len(content) // 2] ^= 1
    trusting.write_bytes(content)
    assert agent("unpack", good).error["kind"] == "SignatureError"
    told = agent("status").result["trust"]
    assert str(trusting) in told["error"]
    assert told["version"] is None
    trusting.unlink()
    trusting.symlink_to("nowhere")
    assert agent("unpack", good).error["kind"] == "SignatureError"


def test_a_damaged_trust_file_does_not_keep_from_going_back(
    agent: Agent, good: Path, bundle: Path, trusting: Path, tmp_path: Path
) -> None:
    served(agent, good)
    served(agent, counting(bundle, tmp_path / "next", 1, 1))
    trusting.write_bytes(b"{}")
    assert agent("rollback").result["identity"] == identity_of(good)


def test_an_unsigned_copy_takes_no_signatures_away(agent: Agent, bundle: Path, good: Path, tmp_path: Path) -> None:
    agent("unpack", good)
    agent("unpack", bundle)
    assert [agent(step).code for step in STEPS[:2]] == [0, 0]
    agent("trust", trust_file(tmp_path / "1.json"))
    assert agent("activate").code == 0


# ---------------------------------------------------------------------------------------------------------- counters


def test_rollback_an_older_bundle_is_refused_once_a_newer_was_in_service(
    agent: Agent, bundle: Path, tmp_path: Path
) -> None:
    old, new, same = (counting(bundle, tmp_path / str(count), count // 2, 1) for count in (2, 4, 5))
    served(agent, old)
    served(agent, new)
    error = agent("unpack", old).error
    assert (error["kind"], error["expected"], error["found"]) == ("RollbackError", "counter 2 or higher", "counter 1")
    assert agent("unpack", same).code == 0, "equal counters are no order"
    assert agent("status").result["counter"] == 2


def test_unpacking_alone_raises_nothing(agent: Agent, bundle: Path, tmp_path: Path) -> None:
    old, new = (counting(bundle, tmp_path / str(count), count, 1) for count in (1, 2))
    served(agent, old)
    agent("unpack", new)
    assert agent("status").result["counter"] == 1
    assert agent("unpack", old).code == 0


def test_a_rollback_is_possible_and_does_not_lower_the_counter(agent: Agent, bundle: Path, tmp_path: Path) -> None:
    old, new = (counting(bundle, tmp_path / str(count), count, 1) for count in (1, 2))
    served(agent, old)
    served(agent, new)
    assert agent("rollback").result["identity"] == identity_of(old)
    assert agent("status").result["counter"] == 2
    assert agent("unpack", counting(bundle, tmp_path / "third", 1, 1)).error["kind"] == "RollbackError"
    camera = Camera(State(tmp_path / "state"), tmp_path / "root", NullRuntime(version="2"))
    for step in (commands.build, commands.selftest, commands.activate):
        step(camera)  # an update of the system: what is in service gets a new engine, however low its counter is


def test_rolling_back_a_committed_bundle_does_not_let_older_ones_in(agent: Agent, bundle: Path, tmp_path: Path) -> None:
    """Its counter was committed: going back by hand is one step, and opens no way to anything in between."""
    first, between, last = (counting(bundle, tmp_path / str(count), count, 1) for count in (1, 2, 5))
    for each in (first, last):
        assert agent("install", each).code == 0
        assert agent("commit").code == 0
    assert json.loads((tmp_path / "state" / "counter.json").read_bytes()) == {"counter": 5}
    assert agent("rollback").result["identity"] == identity_of(first)
    assert agent("status").result["counter"] == 5
    for command in ("install", "unpack"):
        assert agent(command, between).error["kind"] == "RollbackError"


def test_a_bundle_on_trial_raises_nothing(agent: Agent, bundle: Path, tmp_path: Path) -> None:
    for count in (1, 5):
        assert agent("install", counting(bundle, tmp_path / str(count), count, 1)).code == 0
    assert agent("status").result["counter"] == 1
    assert agent("rollback").code == 0
    assert agent("install", counting(bundle, tmp_path / "2", 2, 1)).code == 0


def test_what_an_older_agent_committed_counts(agent: Agent, bundle: Path, tmp_path: Path) -> None:
    """Earlier agents did not store the counter of a commit: the bundle in service has it."""
    for count in (1, 5):
        assert agent("install", counting(bundle, tmp_path / str(count), count, 1)).code == 0
        assert agent("commit").code == 0
    (tmp_path / "state" / "counter.json").write_text('{"counter":1}')
    between = counting(bundle, tmp_path / "2", 2, 1)
    assert agent("install", between).error["kind"] == "RollbackError"
    assert agent("rollback").code == 0
    assert agent("install", between).error["kind"] == "RollbackError"


def test_a_rollback_works_with_a_damaged_counter(agent: Agent, bundle: Path, tmp_path: Path) -> None:
    first = counting(bundle, tmp_path / "1", 1, 1)
    served(agent, first)
    served(agent, counting(bundle, tmp_path / "2", 2, 1))
    (tmp_path / "state" / "counter.json").write_bytes(b"")
    assert agent("rollback").result["identity"] == identity_of(first)


HIGHEST = 2**53
"""The highest counter that a manifest may have."""


def reset_by(path: Path, version: int, counter: int, since: int) -> Path:
    """A trust file that revokes key 1 in favour of key 2, and resets the counters."""
    revoked = (key_id(public(1)),)
    return trust_file(path, version, bundle=(2,), revoked_keys=revoked, counter_reset=CounterReset(counter, since))


@pytest.mark.usefixtures("trusting")
@pytest.mark.parametrize("by_firmware", [False, True])
def test_a_reset_undoes_the_counter_of_a_thief_once(
    agent: Agent, bundle: Path, trusting: Path, tmp_path: Path, by_firmware: bool
) -> None:
    sixth, seventh, ninth, highest = (
        counting(bundle, tmp_path / str(count), count, 1, 2) for count in (6, 7, 9, HIGHEST)
    )
    committed(agent, counting(bundle, tmp_path / "5", 5, 1))
    committed(agent, highest)
    second = reset_by(trusting if by_firmware else tmp_path / "2.json", 2, 7, 2)
    if not by_firmware:
        assert agent("install", ninth).error["kind"] == "RollbackError"
        assert agent("trust", second).result["changed"]
    assert agent("status").result["counter"] == 7
    assert agent("install", sixth).error["expected"] == "counter 7 or higher"
    committed(agent, seventh)
    committed(agent, ninth)
    assert json.loads((tmp_path / "state" / "counter.json").read_bytes()) == {"counter": 9, "reset": 2}
    assert agent("trust", second).code == 0
    assert agent("trust", reset_by(tmp_path / "3.json", 3, 7, 2)).result["changed"]
    assert agent("status").result["counter"] == 9, "each reset is applied once"
    assert agent("trust", reset_by(tmp_path / "4.json", 4, 8, 4)).result["changed"]
    assert agent("status").result["counter"] == 8


@pytest.mark.usefixtures("trusting")
def test_a_reset_reaches_all_models_and_raises_none(agent: Agent, bundle: Path, tmp_path: Path) -> None:
    third, highest = (counting(bundle, tmp_path / str(count), count, 1) for count in (3, HIGHEST))
    committed(agent, third, "--model", "people")
    committed(agent, highest, "--model", "vehicles")
    skipped = reset_by(tmp_path / "2.json", 2, 7, 2)
    assert agent("trust", reset_by(tmp_path / "5.json", 5, 7, 2)).code == 0, "a camera that was off skips versions"
    assert agent("trust", skipped).error["kind"] == "SignatureError"
    assert agent("status", "--model", "people").result["counter"] == 3
    assert agent("status", "--model", "vehicles").result["counter"] == 7


@pytest.mark.usefixtures("trusting")
def test_only_a_signed_newer_trust_file_resets(agent: Agent, bundle: Path, tmp_path: Path) -> None:
    committed(agent, counting(bundle, tmp_path / "5", 5, 1))
    by_bundle_key = trust_file(tmp_path / "2.json", 2, by=(1,), counter_reset=CounterReset(0, 2))
    same_version = trust_file(tmp_path / "1.json", 1, counter_reset=CounterReset(0, 1))
    for path in (by_bundle_key, same_version):
        assert agent("trust", path).error["kind"] == "SignatureError"
    assert agent("status").result["counter"] == 5


def test_a_damaged_counter_lets_nothing_in(agent: Agent, bundle: Path, tmp_path: Path) -> None:
    served(agent, counting(bundle, tmp_path / "first", 1, 1))
    path = tmp_path / "state" / "counter.json"
    assert json.loads(path.read_bytes()) == {"counter": 1}
    for content in (b"", b"{}", b'{"counter":"1"}', b"[]", b'{"counter":1,"reset":null}'):
        path.write_bytes(content)
        assert agent("unpack", bundle).error["kind"] == "DeviceError"


# ----------------------------------------------------------------------------- what is judged is what is unpacked


def swapped(agent: Agent, monkeypatch: pytest.MonkeyPatch, path: Path, other: Path, call: tuple[object, ...]) -> Answer:
    """Run a command on a path, at which another bundle lies as soon as the head was judged."""
    read = commands.read_device

    def swap(root: Path) -> Any:
        path.unlink()
        path.symlink_to(other)
        return read(root)

    monkeypatch.setattr(commands, "read_device", swap)
    answer = agent(*call)
    monkeypatch.undo()
    assert path.is_symlink()
    return answer


@pytest.mark.usefixtures("trusting")
@pytest.mark.parametrize("command", ["unpack", "install"])
def test_another_bundle_in_the_place_of_the_judged_one_does_not_matter(
    agent: Agent, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    """Both are signed; the second is for another device, or too old, and was never looked at."""
    judged, other = counting(bundle, tmp_path / "2", 2, 1), counting(bundle, tmp_path / "1", 1, 1)
    path = tmp_path / "update.edgekd"
    path.write_bytes(judged.read_bytes())
    answer = swapped(agent, monkeypatch, path, other, (command, path))
    assert answer.result["identity"] == identity_of(judged)
    slot = State(tmp_path / "state").find(identity_of(judged))
    assert slot
    assert (slot.manifest.counter, State(tmp_path / "state").find(identity_of(other))) == (2, None)


@pytest.mark.usefixtures("trusting")
def test_bytes_that_change_in_the_file_are_found(
    agent: Agent, bundle: Path, good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same file, not another one under its name."""
    read = commands.read_device

    def overwrite(root: Path) -> Any:
        content = signed(repacked(bundle, tmp_path / "x", name="other"), tmp_path / "x.edgekd", 1).read_bytes()
        with good.open("r+b") as stream:
            stream.write(content)
            stream.truncate()
        return read(root)

    monkeypatch.setattr(commands, "read_device", overwrite)
    identity = identity_of(good)
    answer = agent("unpack", good)
    assert answer.code == 1 or answer.result["identity"] == identity


@pytest.mark.usefixtures("trusting")
def test_the_network_is_expanded_from_what_was_verified(
    agent: Agent, good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not from the bundle, which may have changed since then."""
    extract, identity = BundleReader.extract, identity_of(good)

    def extract_and_empty(reader: BundleReader, folder: Path) -> None:
        extract(reader, folder)
        good.write_bytes(b"")

    monkeypatch.setattr(BundleReader, "extract", extract_and_empty)
    assert agent("unpack", good).result["identity"] == identity


@pytest.mark.usefixtures("trusting")
def test_a_manifest_is_parsed_only_for_whom_it_is_signed(agent: Agent, tmp_path: Path) -> None:
    """What is no manifest, without a signature, is refused for the signature."""
    content = b"[" * 1000
    envelope = SignatureEnvelope(hashlib.sha256(content).hexdigest())
    bad = tmp_path / "bad.edgekd"
    bad.write_bytes(member("manifest.json", content) + member("signatures.json", to_json(envelope)) + END)
    for command in ("verify", "unpack", "install"):
        assert agent(command, bad).error["kind"] == "SignatureError"

"""What a camera that holds a trust file takes, and what it does not; each attack by its name."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timezone
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keys import EXPIRES, ids, public, sealed, signed_by, trust_of, with_expiry

from edgekd.core.bundle import ed25519
from edgekd.core.bundle.signatures import Signature
from edgekd.core.bundle.trust import (
    MAX_BYTES,
    CounterReset,
    Key,
    Role,
    SignedTrust,
    Trust,
    from_json,
    require_complete,
    require_next,
    require_signed,
    to_json,
)
from edgekd.core.errors import Cause, SignatureError

NOW = datetime(2026, 6, 1, tzinfo=timezone.utc)
LATER = datetime(2027, 6, 1, tzinfo=timezone.utc)
LONG_AGO = datetime(1970, 1, 1, tzinfo=timezone.utc)
BUNDLE, OTHER = "a" * 64, "b" * 64


def names(trust: Trust, *signatures: Signature, sha256: str = BUNDLE, now: datetime = NOW) -> list[str]:
    return [key.name for key in require_signed(trust, sha256, signatures, now)]


def refused(
    message: str,
    trust: Trust,
    *signatures: Signature,
    sha256: str = BUNDLE,
    now: datetime = NOW,
    cause: Cause | None = None,
) -> None:
    with pytest.raises(SignatureError, match=message) as refusal:
        require_signed(trust, sha256, signatures, now)
    assert cause in (None, refusal.value.cause)


# ---------------------------------------------------------------------------------------------------------- bundles


def test_a_signed_bundle_is_taken() -> None:
    assert names(trust_of(), *signed_by("bundle", BUNDLE, 1)) == ["key 1"]


def test_an_unsigned_bundle_is_refused() -> None:
    refused("^not signed; expected valid signatures of 1 of the 1 keys of trust file 1", trust_of(), cause="unsigned")


def test_another_key_does_not_count() -> None:
    (other,) = signed_by("bundle", BUNDLE, 2)
    message = rf"^signed by unknown keys alone;.*found 0 of 1 signatures: {other.key} \(unknown\)"
    refused(message, trust_of(), other, cause="unknown-key")
    message = r"found 0 of 1 signatures: key 8 \(not for such files\)"
    refused(message, trust_of(), *signed_by("bundle", BUNDLE, 8), cause="unknown-key")


def test_a_wrong_signature_is_refused_even_where_others_suffice() -> None:
    (right,), (wrong,) = signed_by("bundle", BUNDLE, 1), signed_by("bundle", OTHER, 2)
    refused("signature of key key 2: wrong", trust_of(bundle=(1, 2)), right, wrong)


def test_signatures_of_keys_that_are_not_known_are_passed_over() -> None:
    """A bundle may be signed by the key that a rotation leads to before a camera has learnt of it."""
    assert names(trust_of(), *signed_by("bundle", BUNDLE, 1, 2)) == ["key 1"]


def test_a_threshold_takes_different_keys() -> None:
    trust = trust_of(bundle=(1, 2, 3), thresholds=(2, 2))
    message = "too few signatures; expected valid signatures of 2 of the 3 keys.*found 1 of 2 signatures: key 1; fix"
    refused(message, trust, *signed_by("bundle", BUNDLE, 1), cause="too-few")
    (one,) = signed_by("bundle", BUNDLE, 1)
    refused("found 1 of 2", trust, *signed_by("bundle", BUNDLE, 4), one, cause="too-few")
    assert len(names(trust, *signed_by("bundle", BUNDLE, 3, 1))) == 2


def test_a_key_counts_once_however_often_it_signed() -> None:
    trust = trust_of(bundle=(1, 2, 3), thresholds=(2, 2))
    (one,) = signed_by("bundle", BUNDLE, 1)
    refused("found 1 of 2 signatures: key 1;", trust, one, one)
    with pytest.raises(SignatureError, match="found 1 of 2 signatures: key 8;"):
        require_complete(SignedTrust(trust, signed_by("trust", trust.sha256, 8) * 2))


@pytest.mark.parametrize("y", [0, 2**255 - 20])
def test_one_key_under_two_ids_is_refused(y: int) -> None:
    """A key plus a point of small order is another point, of the same owner."""
    good = ed25519._decoded(public(1))
    mixed = ed25519._encoded(ed25519._added(good, ed25519._decoded(y.to_bytes(32, "little"))))
    trust, twin = trust_of(), Key(mixed.hex(), "twin")
    keys = tuple(sorted((*trust.keys, twin), key=lambda key: key.id))
    role = Role(tuple(sorted((*trust.bundle.keys, twin.id))), 2)
    with pytest.raises(SignatureError, match="of the prime order"):
        to_json(SignedTrust(replace(trust, keys=keys, bundle=role)))


def test_mix_and_match_a_signature_is_of_one_bundle_only() -> None:
    refused("signature of key key 1: wrong", trust_of(), *signed_by("bundle", OTHER, 1), cause="wrong-signature")


def test_mix_and_match_a_signature_of_a_trust_file_is_none_of_a_bundle() -> None:
    refused("signature of key key 1: wrong", trust_of(), *signed_by("trust", BUNDLE, 1))


def test_freeze_nothing_is_taken_by_an_expired_trust_file() -> None:
    message = f"trust file 1: expired; expected a time before {EXPIRES}"
    refused(message, trust_of(), now=LATER, cause="expired-trust-file")
    forever = replace(trust_of(), expires=None)
    assert names(forever, *signed_by("bundle", BUNDLE, 1), now=LATER)


def test_a_clock_that_is_behind_is_taken_to_be_at_the_day_of_issue() -> None:
    assert names(trust_of(), *signed_by("bundle", BUNDLE, 1), now=LONG_AGO)
    old = with_expiry(trust_of(), 1, trust_of().issued)
    refused("found 0", old, *signed_by("bundle", BUNDLE, 1), now=LONG_AGO)


def test_a_key_that_has_expired_does_not_count() -> None:
    trust = with_expiry(trust_of(), 1, "2026-06-01T00:00:01Z")
    assert names(trust, *signed_by("bundle", BUNDLE, 1))
    message = r"^signed by an expired key;.*found 0 of 1 signatures: key 1 \(expired 2026-06-01T00:00:01Z\)"
    refused(message, trust, *signed_by("bundle", BUNDLE, 1), now=NOW.replace(second=1), cause="expired-key")
    both = with_expiry(trust_of(bundle=(1, 2), thresholds=(2, 2)), 2, trust_of().issued)
    refused("found 1 of 2", both, *signed_by("bundle", BUNDLE, 1, 2), cause="expired-key")


def test_a_revoked_key_does_not_count() -> None:
    trust = replace(trust_of(bundle=(1, 2), thresholds=(2, 2)), revoked_keys=ids(3))
    message = rf"^signed by a revoked key;.*found 1 of 2 signatures: key 1; {ids(3)[0]} \(revoked\)"
    refused(message, trust, *signed_by("bundle", BUNDLE, 1, 3), cause="revoked-key")
    assert len(names(trust, *signed_by("bundle", BUNDLE, 1, 2, 3))) == 2, "it does no harm beside enough others"


def test_a_revoked_bundle_is_refused_whoever_signed_it() -> None:
    trust = replace(trust_of(), revoked_bundles=(BUNDLE,))
    refused(f"bundle {BUNDLE}: revoked", trust, *signed_by("bundle", BUNDLE, 1), cause="revoked-bundle")
    assert names(trust, *signed_by("bundle", OTHER, 1), sha256=OTHER)


# ---------------------------------------------------------------------------------------------------------- rotation

HELD = sealed(trust_of(), 8, 9)


def refused_next(message: str, new: SignedTrust, held: SignedTrust = HELD, now: datetime = NOW) -> None:
    with pytest.raises(SignatureError, match=message):
        require_next(held, new, now)


def test_keys_are_rotated_with_the_old_and_the_new() -> None:
    new = trust_of(2, bundle=(2,), trust=(9, 10))
    require_next(HELD, sealed(new, 8, 9, 10), NOW)
    refused_next("^trust file 2: too few signatures.*keys of version 1; found 1 of 2", sealed(new, 9, 10))
    refused_next("^trust file 2: too few signatures.*its own keys; found 1 of 2", sealed(new, 8, 9))
    refused_next("^trust file 2: not signed.*keys of version 1; found 0 of 2", sealed(new))


def test_one_stolen_key_is_not_enough_to_take_over() -> None:
    refused_next("keys of version 1; found 1", sealed(trust_of(2, bundle=(66,), trust=(66,), thresholds=(1, 1)), 9, 66))


def test_a_key_for_bundles_cannot_change_the_trust() -> None:
    refused_next("keys of version 1; found 0", sealed(trust_of(2, trust=(1,), thresholds=(1, 1)), 1))


def test_rollback_an_older_trust_file_or_another_of_the_same_version_is_refused() -> None:
    second = sealed(trust_of(2), 8, 9)
    refused_next("trust file 1: not newer; expected a version above 2", HELD, held=second)
    refused_next("not newer", sealed(replace(trust_of(2), expires=None), 8, 9), held=second)


def test_versions_may_be_passed_over_while_the_keys_stay() -> None:
    require_next(HELD, sealed(trust_of(7), 8, 9), NOW)


def test_a_camera_that_was_off_follows_a_chain() -> None:
    second = sealed(trust_of(2, trust=(9, 10)), 8, 9, 10)
    third = sealed(trust_of(3, trust=(10, 11)), 9, 10, 11)
    refused_next("keys of version 1; found 1", third)
    require_next(HELD, second, NOW)
    require_next(second, third, NOW)


def test_an_expired_trust_file_can_be_replaced_but_not_by_one_that_has_expired() -> None:
    refused_next("trust file 2: expired", sealed(trust_of(2), 8, 9), now=LATER)
    require_next(HELD, sealed(replace(trust_of(2), expires="2028-01-01T00:00:00Z"), 8, 9), LATER)


def test_what_was_revoked_stays_revoked() -> None:
    old = replace(trust_of(), revoked_keys=ids(5), revoked_bundles=(BUNDLE,))
    held = sealed(old, 8, 9)
    for kept in ({"revoked_keys": old.revoked_keys}, {"revoked_bundles": old.revoked_bundles}):
        refused_next("lacks earlier revocations", sealed(replace(trust_of(2), **kept), 8, 9), held=held)
    more = replace(trust_of(2), revoked_keys=ids(5, 6), revoked_bundles=(BUNDLE, OTHER))
    require_next(held, sealed(more, 8, 9), NOW)


RESET = CounterReset(7, 1)


def test_a_counter_reset_stays_or_is_followed_by_a_newer_one() -> None:
    """One that changed, or was dropped, would not reach cameras that skip versions, or reach some twice."""
    held = sealed(replace(trust_of(1), counter_reset=RESET), 8, 9)
    for reset in (None, CounterReset(6, 1)):
        refused_next("changes an earlier counter reset", sealed(replace(trust_of(3), counter_reset=reset), 8, 9), held)
    for reset in (RESET, CounterReset(5, 2), CounterReset(0, 3)):
        require_next(held, sealed(replace(trust_of(3), counter_reset=reset), 8, 9), NOW)


def test_time_does_not_run_backwards() -> None:
    early = replace(trust_of(2), issued="2025-01-01T00:00:00Z")
    refused_next("issued before version 1", sealed(early, 8, 9))


def test_a_wrong_signature_on_a_trust_file_is_refused() -> None:
    require_complete(HELD)
    for wrong in (sealed(trust_of(2), 8, 9).signatures, signed_by("bundle", HELD.trust.sha256, 8, 9)):
        with pytest.raises(SignatureError, match="wrong"):
            require_complete(SignedTrust(HELD.trust, wrong))


# ---------------------------------------------------------------------------------------------------------- the file


@settings(max_examples=15, deadline=None)
@given(
    st.integers(1, 2**53),
    st.sets(st.integers(1, 5), min_size=1),
    st.sets(st.integers(6, 9), min_size=1),
    st.none() | st.just("2030-02-28T23:59:59Z"),
    st.lists(st.integers(0, 2**256 - 1).map("{:064x}".format), unique=True, max_size=3).map(sorted).map(tuple),
)
def test_a_trust_file_reads_back_as_it_was_written(
    version: int, bundle: set[int], trust: set[int], expires: str | None, revoked: tuple[str, ...]
) -> None:
    told = trust_of(version, sorted(bundle), sorted(trust), (len(bundle), 1))
    signed = sealed(replace(told, expires=expires, revoked_bundles=revoked), *trust)
    assert from_json(to_json(signed)) == signed


def test_a_counter_reset_is_read_and_files_without_one_have_no_field() -> None:
    signed = sealed(replace(trust_of(), counter_reset=RESET), 8, 9)
    assert b'"counter_reset":{"counter":7,"version":1}' in to_json(signed)
    assert from_json(to_json(signed)) == signed
    assert b"counter_reset" not in to_json(HELD)


@given(st.binary(max_size=200))
def test_anything_else_is_refused(content: bytes) -> None:
    with pytest.raises(SignatureError):
        from_json(content)


def change(*route: Any, to: Any) -> Callable[[dict[str, Any]], None]:
    def edit(document: dict[str, Any]) -> None:
        place: Any = document["signed"]
        for step in route[:-1]:
            place = place[step]
        place[route[-1]] = to

    return edit


@pytest.mark.parametrize(
    "edit",
    [
        change("format", to=2),
        change("format", to=True),
        change("version", to=0),
        change("version", to=1.0),
        change("version", to=True),
        change("issued", to="2026-02-30T00:00:00Z"),
        change("issued", to="2026-01-01"),
        change("issued", to="2026-01-01T00:00:00+00:00"),
        change("expires", to="2025-01-01T00:00:00Z"),
        change("expires", to=7),
        change("keys", to=[]),
        change("keys", to={}),
        change("keys", 0, "public", to="00" * 32),
        change("keys", 0, "public", to="01" + "00" * 31),
        change("keys", 0, "public", to="zz" * 32),
        change("keys", 0, "public", to=7),
        change("keys", 0, "name", to=""),
        change("keys", 0, "name", to="a\x1b[31m"),
        change("keys", 0, "expires", to="soon"),
        change("keys", 0, "more", to=1),
        change("bundle", "keys", to=["0" * 64]),
        change("bundle", "threshold", to=0),
        change("bundle", "threshold", to=2),
        change("trust", "threshold", to=3),
        change("trust", "threshold", to=True),
        change("trust", "keys", to=list(ids(8, 9))[::-1]),
        change("trust", "keys", to=[*ids(8, 9), ids(8, 9)[-1]]),
        change("revoked", "keys", to=list(ids(1))),
        change("revoked", "bundles", to=["B" * 64]),
        change("revoked", to=[]),
        change("counter_reset", to=None),
        change("counter_reset", to={}),
        change("counter_reset", to=[7, 1]),
        change("counter_reset", to={"counter": 7}),
        change("counter_reset", to={"counter": 7, "version": 2}),
        change("counter_reset", to={"counter": 7, "version": 0}),
        change("counter_reset", to={"counter": 7, "version": True}),
        change("counter_reset", to={"counter": -1, "version": 1}),
        change("counter_reset", to={"counter": 1.0, "version": 1}),
        change("counter_reset", to={"counter": 7, "version": 1, "more": 1}),
        change("surprise", to=1),
    ],
)
def test_a_broken_rule_is_refused(edit: Callable[[dict[str, Any]], None]) -> None:
    document = json.loads(to_json(HELD))
    edit(document)
    content = json.dumps(document, sort_keys=True, separators=(",", ":")).encode() + b"\n"
    with pytest.raises(SignatureError):
        from_json(content)


MANY = tuple(f"{number:064x}" for number in range(1024))


@pytest.mark.parametrize(
    ("last", "beyond"),
    [
        (replace(trust_of(), version=2**53), replace(trust_of(), version=2**53 + 1)),
        (
            replace(trust_of(), counter_reset=CounterReset(2**53, 1)),
            replace(trust_of(), counter_reset=CounterReset(2**53 + 1, 1)),
        ),
        (replace(trust_of(), revoked_bundles=MANY), replace(trust_of(), revoked_bundles=(*MANY, "f" * 64))),
        (trust_of(bundle=range(1, 63), trust=(63, 64)), trust_of(bundle=range(1, 64), trust=(64, 65))),
    ],
    ids=["version", "counter reset", "revoked", "keys"],
)
def test_the_last_value_in_a_range_is_taken_and_none_beyond_it(last: Trust, beyond: Trust) -> None:
    taken = SignedTrust(last, ())
    assert b'"format":1,' in to_json(taken)
    assert from_json(to_json(taken)) == taken
    with pytest.raises(SignatureError):
        to_json(SignedTrust(beyond, ()))


def test_a_file_that_was_issued_in_the_same_second_may_follow() -> None:
    new = from_json(to_json(sealed(trust_of(2), 8, 9)))
    assert new.trust.issued == HELD.trust.issued
    require_next(HELD, new, NOW)


def test_the_order_of_keys_and_the_spelling_are_fixed() -> None:
    good = to_json(HELD)
    document = json.loads(good)
    for content in (good[:-1], good + b"\n", json.dumps(document).encode(), good.replace(b"key 1", b"key\\u00201")):
        with pytest.raises(SignatureError):
            from_json(content)
    document["signed"]["keys"].reverse()
    with pytest.raises(SignatureError, match="ascending order"):
        from_json(json.dumps(document, sort_keys=True, separators=(",", ":")).encode() + b"\n")


@pytest.mark.parametrize(
    "content",
    [
        b"[" * 100_000,
        b"9" * 4000,
        b'{"signed":{"version":' + b"9" * 250_000 + b"}}",
        b" " * (MAX_BYTES + 1),
        b"{}",
        b"null",
    ],
)
def test_hostile_json_is_a_signature_error(content: bytes) -> None:
    with pytest.raises(SignatureError):
        from_json(content)


def test_a_key_is_named_by_its_hash() -> None:
    (key,) = [key for key in HELD.trust.keys if key.public == public(1).hex()]
    assert key.id == ids(1)[0]

"""The file with the signatures has one byte form, and nothing else is read as one."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekd.core.bundle.signatures import (
    MAX_BYTES,
    MAX_SIGNATURES,
    Signature,
    SignatureEnvelope,
    from_json,
    merged,
    statement,
    to_json,
)
from edgekd.core.errors import SignatureError

digits = "0123456789abcdef"
hashes = st.text(digits, min_size=64, max_size=64)
signatures = st.builds(Signature, hashes, st.text(digits, min_size=128, max_size=128))
seals = st.builds(
    SignatureEnvelope,
    hashes,
    st.lists(signatures, max_size=MAX_SIGNATURES, unique_by=lambda each: each.key).map(merged),
)
ENVELOPE = SignatureEnvelope("a" * 64, (Signature("1" * 64, "2" * 128), Signature("3" * 64, "4" * 128)))


@given(seals)
def test_they_read_back_as_they_were_written(envelope: SignatureEnvelope) -> None:
    assert from_json(to_json(envelope)) == envelope
    assert len(to_json(envelope)) <= MAX_BYTES


@given(st.binary(max_size=300))
def test_anything_else_is_refused(content: bytes) -> None:
    with pytest.raises(SignatureError):
        from_json(content)


def test_the_byte_form_and_what_is_signed_are_pinned() -> None:
    row = f'{{"key":"{"1" * 64}","signature":"{"2" * 128}"}}'
    form = f'{{"format":1,"manifest_sha256":"{"a" * 64}","signatures":[{row}]}}\n'
    assert to_json(SignatureEnvelope("a" * 64, ENVELOPE.signatures[:1])).decode() == form
    assert statement("bundle", "a" * 64) == b"edgekd bundle 1\n" + b"a" * 64 + b"\n"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"format":1', '"format":2'),
        ('"format":1', '"format":true'),
        ('"format":1', '"format":1.0'),
        ('"format":1', '"format":1,"format":1'),
        ('"format":1', ' "format":1'),
        ('"signatures":[', '"more":0,"signatures":['),
        ('"key":"1', '"key":"\\u0031'),
        ('"key":"1', '"key":"A'),
        ('"signature":"2', '"signature":"'),
        ('"signature":"2', '"signature":"22'),
        ("}]}", "}]}\n"),
        ("}]}", "},null]}"),
        ("}]}", '},{"key":7,"signature":7}]}'),
    ],
)
def test_another_spelling_is_refused(old: str, new: str) -> None:
    text = to_json(ENVELOPE).decode()
    assert old in text
    with pytest.raises(SignatureError):
        from_json(text.replace(old, new).encode())


def rows(change: Any) -> bytes:
    document = json.loads(to_json(ENVELOPE))
    document["signatures"] = change(document["signatures"])
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode() + b"\n"


def test_order_repetition_and_number_are_fixed() -> None:
    assert from_json(rows(lambda told: told)) == ENVELOPE
    for change in (lambda told: told[::-1], lambda told: [told[0], *told], lambda told: told * 9):
        with pytest.raises(SignatureError):
            from_json(rows(change))
    many = [Signature(f"{number:064x}", "0" * 128) for number in range(MAX_SIGNATURES + 1)]
    with pytest.raises(SignatureError, match="at most 16"):
        to_json(SignatureEnvelope("a" * 64, tuple(many)))


@pytest.mark.parametrize("content", [b"[" * 8000, b"9" * 8000, b"{}" * 9000, b"null", b"[]", b'{"format":1}'])
def test_hostile_json_is_a_signature_error(content: bytes) -> None:
    with pytest.raises(SignatureError):
        from_json(content)

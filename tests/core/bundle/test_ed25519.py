"""Signatures are checked as RFC 8032 says, and, of what it leaves open, as docs/reference/formats/bundle.md says."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from edgekd.core.bundle import ed25519

P, ORDER = 2**255 - 19, ed25519._ORDER
PUBLISHED = json.loads(Path(__file__).with_name("ed25519_vectors.json").read_text())
"""Test vectors of Wycheproof and ed25519-speccheck; the file names their sources."""

# RFC 8032, section 7.1: tests 1, 2, 3 and SHA(abc): secret key, message, signature.
VECTORS = [
    (
        "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
        "",
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
    ),
    (
        "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
        "72",
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
    ),
    (
        "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
        "af82",
        "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a",
    ),
    (
        "833fe62409237b9d62ec77587520911e9a759cec1d19755b7da901b96dca3d42",
        "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f",
        "dc2a4459e7369633a52b1bf277839a00201009a3efbf3ecb69bea2186c26b58909351fc9ac90b3ecfdfbc7c66431e0303dca179c138ac17ad9bef1177331a704",
    ),
]
# The points of small order, as y in 32 bytes: orders 1, 2, 4, 4, 8, 8, 8, 8.
EIGHTH = 0x7A03AC9277FDC74EC6CC392CFA53202A0F67100D760B3CBA4FD84D3D706A17C7
SMALL = [1, P - 1, 0, 1 << 255, EIGHTH, EIGHTH | 1 << 255, P - EIGHTH, (P - EIGHTH) | 1 << 255]


def key(seed: int) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(seed.to_bytes(32, "big"))


def accepted_by_cryptography(public: bytes, message: bytes, signature: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def le(number: int) -> bytes:
    return number.to_bytes(32, "little")


@pytest.mark.parametrize(("secret", "message", "signature"), VECTORS)
def test_the_vectors_of_the_rfc(secret: str, message: str, signature: str) -> None:
    private = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(secret))
    public, content, told = private.public_key().public_bytes_raw(), bytes.fromhex(message), bytes.fromhex(signature)
    assert private.sign(content) == told
    assert ed25519.sound_key(public)
    assert ed25519.verify(public, content, told)
    assert not ed25519.verify(public, content + b"\0", told)


def test_every_bit_counts_and_cryptography_agrees() -> None:
    """Keys, messages and signatures at random, each also with a bit flipped: both say the same of all of them."""
    chance = random.Random(0)
    for _ in range(12):
        private = key(chance.getrandbits(255))
        public, message = private.public_key().public_bytes_raw(), chance.randbytes(chance.randrange(80))
        signature = private.sign(message)
        assert ed25519.verify(public, message, signature)
        for part in range(3):
            told = [bytearray(public), bytearray(message + b"."), bytearray(signature)]
            told[part][chance.randrange(len(told[part]))] ^= 1 << chance.randrange(8)
            given = tuple(map(bytes, told))
            assert ed25519.verify(*given) == accepted_by_cryptography(*given) == False  # noqa: E712


def test_a_signature_has_no_second_spelling() -> None:
    """S + L means the same as S: whoever took it could be shown a signature as another."""
    private, message = key(7), b"message"
    signature, public = private.sign(message), private.public_key().public_bytes_raw()
    for times in range(1, 8):
        larger = int.from_bytes(signature[32:], "little") + times * ORDER
        if larger < 2**256:
            other = signature[:32] + le(larger)
            assert not ed25519.verify(public, message, other)
            assert not accepted_by_cryptography(public, message, other)


@pytest.mark.parametrize("point", SMALL)
def test_a_key_of_small_order_is_none(point: int) -> None:
    """For such a key R = S*B is a signature of one message in eight, or of all, without anybody's secret."""
    public = le(point)
    assert not ed25519.sound_key(public)
    s = 5
    r = ed25519._encoded(ed25519._sum_of_products(s, ed25519._BASE, 0, ed25519._ZERO))
    taken = [accepted_by_cryptography(public, bytes([number]), r + le(s)) for number in range(40)]
    assert any(taken), "the forgery works where nobody looks at the order"
    assert not any(ed25519.verify(public, bytes([number]), r + le(s)) for number in range(40))


@pytest.mark.parametrize("y", [P, P + 1, P + 18, 2**255 - 1, P | 1 << 255, (P + 1) | 1 << 255])
def test_a_key_has_no_second_spelling(y: int) -> None:
    assert not ed25519.sound_key(le(y))
    assert not ed25519.verify(le(y), b"", le(1) + le(0))


def test_what_is_no_point_is_no_key() -> None:
    chance = random.Random(1)
    found = [ed25519.sound_key(chance.randbytes(32)) for _ in range(40)]
    assert any(found), "half of all numbers are points"
    assert not all(found)
    assert not ed25519.sound_key(le(1 | 1 << 255)), "x = 0 has no odd form"
    assert not any(ed25519.sound_key(bytes(length)) for length in (0, 31, 33, 64))


@pytest.mark.parametrize("point", [each for each in SMALL if each != 1])
def test_a_key_with_a_torsion_part_is_refused(point: int) -> None:
    """Such keys are many spellings of one: its owner could sign for each of them, and count several times."""
    private = key(11)
    good = private.public_key().public_bytes_raw()
    mixed = ed25519._encoded(ed25519._added(ed25519._decoded(good), ed25519._decoded(le(point))))
    assert ed25519.sound_key(good)
    assert not ed25519.sound_key(mixed)
    nonce = 5
    r = ed25519._encoded(ed25519._sum_of_products(nonce, ed25519._BASE, 0, ed25519._ZERO))
    forged = []
    for number in range(40):
        message = bytes([number])
        signature = r + le((nonce + challenge(r, mixed, message) * secret_scalar(11)) % ORDER)
        forged.append(accepted_by_cryptography(mixed, message, signature))
        assert not ed25519.verify(mixed, message, signature)
    assert any(forged), "the owner of the good key can sign for the mixed one"


def test_the_cofactor_does_not_count() -> None:
    """R with a part of small order: what [8] would let pass is refused, as OpenSSL refuses it."""
    public, nonce, message = key(11).public_key().public_bytes_raw(), 5, b"message"
    plain = ed25519._sum_of_products(nonce, ed25519._BASE, 0, ed25519._ZERO)
    for point in SMALL:
        r = ed25519._encoded(ed25519._added(plain, ed25519._decoded(le(point))))
        signature = r + le((nonce + challenge(r, public, message) * secret_scalar(11)) % ORDER)
        assert ed25519.verify(public, message, signature) == (point == 1)
        assert accepted_by_cryptography(public, message, signature) == (point == 1)


def secret_scalar(seed: int) -> int:
    """The scalar of a private key: RFC 8032, section 5.1.5."""
    digest = hashlib.sha512(seed.to_bytes(32, "big")).digest()
    return int.from_bytes(digest[:32], "little") & (2**254 - 8) | 2**254


def challenge(r: bytes, public: bytes, message: bytes) -> int:
    return int.from_bytes(hashlib.sha512(r + public + message).digest(), "little")


@pytest.mark.parametrize("row", PUBLISHED["wycheproof"], ids=lambda row: f"{row[0]}-{row[1]}")
def test_wycheproof(row: tuple[int, str, str, str, str, bool]) -> None:
    _, _, public, message, signature, valid = row
    assert ed25519.verify(*map(bytes.fromhex, (public, message, signature))) == valid


@pytest.mark.parametrize("row", PUBLISHED["speccheck"], ids=lambda row: str(row[0]))
def test_speccheck(row: tuple[int, str, str, str]) -> None:
    """All of them are refused: 6 and 7 for S, the others for a key of small or mixed order."""
    number, *texts = row
    public, message, signature = map(bytes.fromhex, texts)
    assert ed25519.sound_key(public) == (number in (6, 7))
    assert not ed25519.verify(public, message, signature)


def test_other_lengths_are_no_signatures() -> None:
    private = key(3)
    public, signature = private.public_key().public_bytes_raw(), private.sign(b"")
    for told in (b"", signature[:-1], signature + b"\0", signature * 2):
        assert not ed25519.verify(public, b"", told)
    assert not ed25519.verify(public[:-1], b"", signature)


def test_the_base_point_is_the_one_of_the_rfc() -> None:
    assert ed25519._BASE_Y * 5 % P == 4
    assert ed25519._decoded(le(ed25519._BASE_Y)) == ed25519._BASE
    assert ed25519._is_zero(ed25519._sum_of_products(ORDER, ed25519._BASE, 0, ed25519._ZERO))

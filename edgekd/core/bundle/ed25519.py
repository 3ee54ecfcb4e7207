"""Verification of Ed25519 signatures (RFC 8032) in plain Python, the same on cameras and hosts.

Nothing here is secret, so that constant time is not needed. The host signs, by a library for it. Where RFC 8032 leaves
a choice, docs/reference/formats/bundle.md has this one: no cofactor, R compared as bytes, S below the group's order,
and keys in canonical form and of the prime order only.

Shared with the device: Python 3.8, standard library only.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import Tuple  # noqa: UP035 an alias is evaluated, and list[...] is Python 3.9

KEY_BYTES, SIGNATURE_BYTES = 32, 64
CACHED_KEYS = 256
"""Keys whose order is remembered, because finding it takes as long as a signature: more than a trust file has."""

_P = 2**255 - 19
_ORDER = 2**252 + 27742317777372353535851937790883648493
_D = -121665 * pow(121666, _P - 2, _P) % _P
_ROOT = pow(2, (_P - 1) // 4, _P)  # a square root of -1

_Point = Tuple[int, int, int, int]  # noqa: UP006 X, Y, Z, T with x = X/Z, y = Y/Z, x*y = T/Z
_ZERO: _Point = (0, 1, 1, 0)
_BASE_X = 15112221349535400772501151409588531511454012693041857206046113283949847762202
_BASE_Y = 46316835694926478169428394003475163141307993866256225615783033603165251855960
_BASE: _Point = (_BASE_X, _BASE_Y, 1, _BASE_X * _BASE_Y % _P)


@lru_cache(maxsize=CACHED_KEYS)
def sound_key(public: bytes) -> bool:
    """Return whether 32 bytes are a sound public key: a point of the prime order, in canonical form.

    A key with a part of small order is a second name of another key, whose owner could sign for both.
    """
    point = _decoded(public)
    return point is not None and not _is_zero(point) and _is_zero(_sum_of_products(_ORDER, point, 0, _ZERO))


def verify(public: bytes, message: bytes, signature: bytes) -> bool:
    """Return whether `signature` (64 bytes) of `message` is valid for the key `public` (32 bytes)."""
    key = _decoded(public)
    if key is None or not sound_key(public) or len(signature) != SIGNATURE_BYTES:
        return False
    encoded, s = signature[:32], int.from_bytes(signature[32:], "little")
    if s >= _ORDER:
        return False
    k = int.from_bytes(hashlib.sha512(encoded + public + message).digest(), "little") % _ORDER
    x, y, z, t = key
    return _encoded(_sum_of_products(s, _BASE, k, (-x % _P, y, z, -t % _P))) == encoded


def _decoded(content: bytes) -> _Point | None:
    """Return the point that 32 bytes encode; None where they are not the canonical encoding of one."""
    if len(content) != KEY_BYTES:
        return None
    number = int.from_bytes(content, "little")
    y, odd = number & (2**255 - 1), number >> 255
    if y >= _P:
        return None
    u, v = (y * y - 1) % _P, (_D * y * y + 1) % _P
    x = u * pow(v, 3, _P) * pow(u * pow(v, 7, _P), (_P - 5) // 8, _P) % _P
    if v * x * x % _P != u:
        x = x * _ROOT % _P
        if v * x * x % _P != u:
            return None
    if x == 0 and odd:
        return None
    if x & 1 != odd:
        x = _P - x
    return (x, y, 1, x * y % _P)


def _encoded(point: _Point) -> bytes:
    x, y, z, _ = point
    inverse = pow(z, _P - 2, _P)
    x, y = x * inverse % _P, y * inverse % _P
    return (y | (x & 1) << 255).to_bytes(32, "little")


def _is_zero(point: _Point) -> bool:
    x, y, z, _ = point
    return x % _P == 0 and (y - z) % _P == 0


def _added(one: _Point, other: _Point) -> _Point:
    x1, y1, z1, t1 = one
    x2, y2, z2, t2 = other
    a, b = (y1 - x1) * (y2 - x2) % _P, (y1 + x1) * (y2 + x2) % _P
    c, d = 2 * t1 * t2 * _D % _P, 2 * z1 * z2 % _P
    e, f, g, h = b - a, d - c, d + c, b + a
    return (e * f % _P, g * h % _P, f * g % _P, e * h % _P)


def _doubled(point: _Point) -> _Point:
    x, y, z, _ = point
    a, b, c = x * x % _P, y * y % _P, 2 * z * z % _P
    h = a + b
    e, g = h - (x + y) * (x + y), a - b
    f = c + g
    return (e * f % _P, g * h % _P, f * g % _P, e * h % _P)


def _sum_of_products(first: int, one: _Point, second: int, other: _Point) -> _Point:
    """Return first * one + second * other, by four bits of both at a time."""
    ones, others = _multiples(one), _multiples(other)
    total = _ZERO
    for at in range(252, -4, -4):
        for _ in range(4):
            total = _doubled(total)
        total = _added(_added(total, ones[first >> at & 15]), others[second >> at & 15])
    return total


def _multiples(point: _Point) -> list[_Point]:
    found = [_ZERO]
    for _ in range(15):
        found.append(_added(found[-1], point))
    return found

"""Mutated manifests, signatures, trust files, bundles and deltas: none is taken, and every error is of the error tree.

EDGEKD_MUTATIONS in the environment sets how many of each are tried; some hundred thousand were.
"""

from __future__ import annotations

import hashlib
import io
import os
import random
import resource
from collections.abc import Callable
from pathlib import Path

import pytest
from keys import sealed, signed_by, trust_of
from test_archive import manifest_of, write_sources
from test_hostile import network
from test_trust import NOW

from edgekd.agent.trust_state import head_judge
from edgekd.core.bundle import archive, delta, manifest, signatures, trust
from edgekd.core.errors import BundleError, EdgeKDError
from edgekd.deploy.delta import run as make_delta

MUTATIONS = int(os.environ.get("EDGEKD_MUTATIONS", "300"))
GROWTH = 64 << 20
"""Bytes by which the process may grow while all mutations of a kind are tried."""
TOKENS = [
    *(b"[", b"]", b"{", b"}", b'"', b"\\", b",", b":", b"null", b"true", b"-", b"0", b"1e999", b"NaN", b"\\ud800"),
    *(b"9" * 30, b"[" * 500, b'{"":' * 50, b"\xff", b"\x00", b"\xf0\x9f\x98\x80", b"../", b"/", b"\n", b" "),
    *(bytes(512), b"\xff" * 16, b"\x00\x01\x02\x03\x04", b'"keys":[],', b'"format":2,', b'"x-":'),
]


def mutated(content: bytes, chance: random.Random) -> bytes:
    """Bytes that differ in a few places: bits, numbers, tokens, stretches that are cut out, repeated or moved."""
    new = bytearray(content)
    for _ in range(chance.choice((1, 1, 1, 2, 4, 16))):
        at = chance.randrange(len(new) + 1)
        count = chance.choice((1, 1, 2, 4, 16, 64, 512))
        other = chance.randrange(len(new) + 1)
        edit = chance.randrange(7)
        if edit == 0 and at < len(new):
            new[at] ^= 1 << chance.randrange(8)
        elif edit == 1:
            new[at : at + count] = chance.randbytes(count)
        elif edit == 2:
            new[at:at] = chance.choice(TOKENS)
        elif edit == 3:
            new[at : at + count] = chance.choice(TOKENS)
        elif edit == 4:
            del new[at : at + count]
        elif edit == 5:
            new[at:at] = new[other : other + count]
        else:
            del new[at : at + (1 if chance.random() < 0.8 else len(new))]
    return bytes(new)


class Victim:
    """A signed bundle, an older one, the delta between them, and the trust file."""

    def __init__(self, folder: Path) -> None:
        paths = []
        for number, text in enumerate((b"old" * 400, b"new" * 500)):
            place = folder / str(number)
            sources = write_sources(place / "sources", {"a.txt": text, "graph.packed": network(number // 2, layers=1)})
            place.mkdir(exist_ok=True)
            archive.pack(manifest_of(sources), sources, place / "raw")
            identity = archive.read_head(place / "raw").identity
            archive.replace_signatures(place / "raw", signed_by("bundle", identity, 1), place / "signed")
            paths.append(place / "signed")
        self.folder, self.mutated = folder, folder / "mutated"
        self.old, self.new = paths
        archive.extract(self.old, folder / "old")
        make_delta(self.old, self.new, folder / "delta")
        self.delta = (folder / "delta").read_bytes()
        self.bundle = self.new.read_bytes()
        self.begin = 1024 + len(archive.head_members(archive.read_head(self.new)))
        self.records = self.delta[self.begin + 512 :][: int(self.delta[self.begin :][124:135], 8)]
        self.head = archive.read_head(self.new)
        self.trust = sealed(trust_of(), 8, 9)
        self.judge = head_judge(self.trust, NOW)

    def with_manifest(self, content: bytes) -> bytes:
        """The bundle with another manifest and its hash, under the signatures of the old one."""
        envelope = signatures.SignatureEnvelope(hashlib.sha256(content).hexdigest(), self.head.envelope.signatures)
        head = archive.member("manifest.json", content)
        head += archive.member("signatures.json", signatures.to_json(envelope))
        return head + self.bundle[len(archive.head_members(self.head)) :]

    def with_records(self, content: bytes) -> bytes:
        """The delta with other records."""
        return self.delta[: self.begin] + archive.member(delta.DATA, content) + archive.END


@pytest.fixture(scope="module")
def victim(tmp_path_factory: pytest.TempPathFactory) -> Victim:
    folder = tmp_path_factory.mktemp("victim")
    for name in "01":
        (folder / name).mkdir()
    return Victim(folder)


def verified(victim: Victim, content: bytes) -> bool:
    """Return whether a camera with the trust file takes a bundle."""
    victim.mutated.write_bytes(content)
    archive.verify(victim.mutated, victim.judge)
    return True


def parsed_for_anybody(victim: Victim, content: bytes) -> bool:
    """A camera without one takes what keeps every rule; so it is parsed, and written again."""
    manifest.from_json(manifest.to_json(manifest.from_json(content)))
    return False


def trusted(victim: Victim, content: bytes) -> bool:
    """Return whether a trust file counts."""
    trust.require_complete(trust.from_json(content))
    return True


def read_signatures(victim: Victim, content: bytes) -> bool:
    """Signatures have one form; others than before are judged by their keys."""
    assert signatures.to_json(signatures.from_json(content)) == content
    return False


def rebuilt(victim: Victim, content: bytes) -> bool:
    """Return whether a delta leads to another bundle."""
    victim.mutated.write_bytes(content)
    out = io.BytesIO()
    with delta.OldBundle(victim.folder / "old") as old, delta.opened_delta(victim.mutated, victim.judge) as reader:
        reader.rebuild(old, out)
    return out.getvalue() != victim.bundle


Action = Callable[[Victim, bytes], bool]
KINDS: dict[str, tuple[Action, Callable[[Victim], bytes]]] = {
    "bundle": (verified, lambda victim: victim.bundle),
    "manifest, signed": (
        lambda victim, content: verified(victim, victim.with_manifest(content)),
        lambda victim: victim.head.content,
    ),
    "manifest": (parsed_for_anybody, lambda victim: victim.head.content),
    "signatures": (read_signatures, lambda victim: signatures.to_json(victim.head.envelope)),
    "trust file": (trusted, lambda victim: trust.to_json(victim.trust)),
    "delta": (rebuilt, lambda victim: victim.delta),
    "records of a delta": (
        lambda victim, content: rebuilt(victim, victim.with_records(content)),
        lambda victim: victim.records,
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_mutated_is_taken(victim: Victim, kind: str) -> None:
    action, content_of = KINDS[kind]
    content, chance = content_of(victim), random.Random(kind)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(MUTATIONS):
        bad = mutated(content, chance)
        if bad == content:
            continue
        try:
            taken = action(victim, bad)
        except EdgeKDError as error:
            assert isinstance(error, BundleError)  # noqa: PT017 any other is an error of the test
            continue
        assert not taken, bad[:200]
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
    assert grown <= GROWTH


def test_what_is_not_mutated_is_taken(victim: Victim) -> None:
    """Else nothing before would say anything."""
    assert verified(victim, victim.bundle)
    assert trusted(victim, trust.to_json(victim.trust))
    assert not rebuilt(victim, victim.delta)

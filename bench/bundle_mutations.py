"""Ways to manipulate a signed bundle. Each is a function of a random generator and a victim, and returns an attempt.

`mutations.py` tries them. Some attackers have no key. Others have the right key and sign a malformed bundle, because a
reader must not trust the signer to keep the format.
"""

import hashlib
import json
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from bundles import manifest_of, noise

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "core" / "bundle"))
from keys import signed_by, trust_of

from edgekd.agent.trust_state import head_judge
from edgekd.core.bundle import ed25519
from edgekd.core.bundle.archive import MANIFEST, SIGNATURES, pack, replace_signatures, verify
from edgekd.core.bundle.manifest import MAX_FILES, MAX_TOTAL, to_json
from edgekd.core.bundle.signatures import Signature, SignatureEnvelope
from edgekd.core.bundle.signatures import to_json as envelope_json
from edgekd.core.bundle.trust import SignedTrust, Trust
from edgekd.core.canonical import canonical_json
from edgekd.core.errors import RollbackError

BLOCK = 512
COUNTER = 5
NOW = datetime(2026, 6, 1, tzinfo=timezone.utc)
LATER = datetime(2027, 6, 1, tzinfo=timezone.utc)
PATHS = (
    *("../evil", "/etc/passwd", "a/../../b", "./a", "a//b", "a/", "", "..", ".hidden", "a\\..\\b", "C:evil", "-rf"),
    *("manifest.json", "Manifest.JSON", "signatures.json", "a" * 101, "a\0b", "a\nb", "\u00e9", "a b", "~/a", "a*"),
)


@dataclass(frozen=True)
class Attempt:
    """A bundle given to a camera. now: the camera's time; trust: its trust file, None for the victim's."""

    content: bytes
    now: datetime = NOW
    trust: Trust | None = None


@dataclass(frozen=True)
class Victim:
    """A signed bundle, another one by the same keys, an older one, and the trust file of the camera."""

    content: bytes
    other: bytes
    older: bytes
    trust: Trust
    head: dict[str, Any] = field(repr=False)

    @property
    def members(self) -> list[bytes]:
        """The archive's members, each with header and padding, without the end-of-archive blocks."""
        return members(self.content)


Way = Callable[[random.Random, Victim], Attempt]


def signature(number: int, sha256: str, kind: str = "bundle") -> Signature:
    """Return the signature of a bundle's or trust file's hash by a key; key 1 is the trusted one."""
    (made,) = signed_by(kind, sha256, number)
    return made


def trust_in(*numbers: int) -> Trust:
    """Return a trust file that lets each of these keys sign bundles and trust files."""
    return trust_of(1, numbers, numbers, (1, 1))


def make_victim(folder: Path, sizes: Sequence[int] = (1800, 0, 512, 700)) -> Victim:
    """Make a signed bundle with files of these sizes in bytes, and the other data that an attacker could have."""
    made = []
    for name, counter in (("victim", COUNTER), ("other", COUNTER + 1), ("older", COUNTER - 1)):
        place = folder / name
        place.mkdir()
        sources = {f"part{at}.bin": place / f"{at}" for at in range(len(sizes))}
        for at, size in enumerate(sizes):
            (place / f"{at}").write_bytes(noise(at + 100 * counter, size))
        manifest = manifest_of(name, sources, {"part0.bin": "graph"}, counter)
        pack(manifest, sources, place / "bundle")
        sha256 = hashlib.sha256(to_json(manifest)).hexdigest()
        replace_signatures(place / "bundle", [signature(1, sha256)], place / "bundle")
        made.append((place / "bundle").read_bytes())
    return Victim(*made, trust_in(1), json.loads(content_of(members(made[0])[0])))


def taken(attempt: Attempt, victim: Victim, path: Path) -> bool:
    """Write an attempt to `path` and verify it as a camera does. Return True, or raise BundleError."""
    path.write_bytes(attempt.content)
    judge = head_judge(SignedTrust(attempt.trust or victim.trust), attempt.now)
    if verify(path, judge).counter < COUNTER:
        raise RollbackError("older than what is in service")  # the agent's commands check this, `verify` does not
    return True


def members(content: bytes) -> list[bytes]:
    """Return the members of an archive, each with header and padding, without the end-of-archive blocks."""
    found, at = [], 0
    while content[at]:
        end = at + BLOCK + int(content[at + 124 : at + 135], 8)
        end += -end % BLOCK
        found.append(content[at:end])
        at = end
    return found


def content_of(member: bytes) -> bytes:
    return member[BLOCK : BLOCK + int(member[124:135], 8)]


WIDTHS = {
    **{"name": 100, "mode": 8, "uid": 8, "gid": 8, "size": 12, "mtime": 12, "sum": 8, "type": 1, "link": 100},
    **{"magic": 8, "uname": 32, "gname": 32, "dev": 16, "prefix": 155, "rest": 12},
}
"""Fields of a ustar header, and their widths in bytes."""


def header(path: str | bytes, length: int, **changed: bytes) -> bytes:
    """Return a ustar header with a correct checksum. changed: raw values of fields, valid or not."""
    raw = path.encode("utf-8", "surrogateescape") if isinstance(path, str) else path
    usual = {"name": raw, "mode": b"0000644", "uid": b"0000000", "gid": b"0000000", "mtime": b"%011o" % 0}
    usual |= {"size": b"%011o" % (length % 8**11), "sum": b" " * 8, "type": b"0", "magic": b"ustar\x0000"}
    values = {**usual, **changed}
    block = b"".join(values.get(name, b"").ljust(width, b"\0")[:width] for name, width in WIDTHS.items())
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


def member(path: str | bytes, content: bytes, **changed: bytes) -> bytes:
    return header(path, len(content), **changed) + content + bytes(-len(content) % BLOCK)


def whole(parts: Sequence[bytes]) -> bytes:
    return b"".join(parts) + bytes(2 * BLOCK)


def resealed(victim: Victim, document: Any, number: int | None, raw: bytes | None = None) -> bytes:
    """Return the victim with a new manifest and its hash, signed by key `number`; None keeps the old signature.

    raw: Bytes of the manifest in place of `document`.
    """
    content = canonical_json(document) + b"\n" if raw is None else raw
    sha256 = hashlib.sha256(content).hexdigest()
    had = json.loads(content_of(victim.members[1]))["signatures"][0]
    made = Signature(had["key"], had["signature"]) if number is None else signature(number, sha256)
    head = [member(MANIFEST, content), member(SIGNATURES, envelope_json(SignatureEnvelope(sha256, (made,))))]
    return whole([*head, *victim.members[2:]])


def lengthened(chance: random.Random, victim: Victim) -> Attempt:
    """Append zeros, noise, another bundle or a member after the end."""
    more = [bytes(chance.choice([1, 512, 1024])), chance.randbytes(512), victim.other, member("evil", b"x")]
    return Attempt(victim.content + chance.choice(more))


def blocks_moved(chance: random.Random, victim: Victim) -> Attempt:
    """Swap, repeat, drop or overwrite blocks of 512 bytes."""
    blocks = [victim.content[at : at + BLOCK] for at in range(0, len(victim.content), BLOCK)]
    one, two = sorted(chance.sample(range(len(blocks)), 2))
    edit = chance.randrange(4)
    if edit == 0:
        blocks[one], blocks[two] = blocks[two], blocks[one]
    elif edit == 1:
        blocks.insert(two, blocks[one])
    elif edit == 2:
        del blocks[one:two]
    else:
        blocks[two] = blocks[one]
    return Attempt(b"".join(blocks))


def members_moved(chance: random.Random, victim: Victim) -> Attempt:
    """Reorder, drop or repeat whole members."""
    parts = victim.members
    edit = chance.randrange(3)
    if edit == 0:
        chance.shuffle(parts)
    elif edit == 1:
        del parts[chance.randrange(len(parts))]
    else:
        parts.insert(chance.randrange(len(parts) + 1), chance.choice(parts))
    return Attempt(whole(parts))


def spliced(chance: random.Random, victim: Victim) -> Attempt:
    """Mix and match: combine members of two signed bundles."""
    ours, theirs = victim.members, members(victim.other)
    picked = [chance.choice(pair) for pair in zip(ours, theirs, strict=True)]
    if picked == theirs:
        picked[-1] = ours[-1]
    return Attempt(whole(picked))


def extra_member(chance: random.Random, victim: Victim) -> Attempt:
    """Insert a member that the manifest does not list, at any position, under any name."""
    parts = victim.members
    name = chance.choice(["evil", "part0.bin", *PATHS])
    parts.insert(chance.randrange(len(parts) + 1), member(name, chance.randbytes(chance.choice([0, 10, 600]))))
    return Attempt(whole(parts))


def other_header(chance: random.Random, victim: Victim) -> Attempt:
    """Change fields of a header, with a correct checksum: links, devices, modes, times, long names."""
    parts = victim.members
    at = chance.randrange(len(parts))
    content = content_of(parts[at])
    name = parts[at][:100].rstrip(b"\0")
    field_, value = chance.choice(
        [
            *(("type", kind) for kind in (b"1", b"2", b"3", b"4", b"5", b"6", b"7", b"x", b"g", b"L", b"K", b"S")),
            *(("link", b"/etc/passwd"), ("mode", b"0004755\0"), ("uid", b"0001750\0"), ("mtime", b"14000000000\0")),
            *(("magic", b"ustar  \0"), ("prefix", b"../.."), ("uname", b"root"), ("dev", b"1"), ("rest", b"x")),
            *(("size", b"%011o\0" % chance.randrange(8**11)), ("size", b"77777777777\0"), ("size", b"-0000000001\0")),
            *(("size", b"\x80" + b"\xff" * 11), ("size", b"           \0"), ("size", b"00000000010 ")),
            *(("name", chance.choice(PATHS).encode("utf-8")), ("name", b"x" * 100)),
        ]
    )
    parts[at] = header(name, len(content), **{field_: value}) + parts[at][BLOCK:]
    return Attempt(whole(parts))


def rewritten_manifest(chance: random.Random, victim: Victim) -> Attempt:
    """Replace the manifest and its hash, and keep the old signature."""
    document = json.loads(json.dumps(victim.head))
    edit = chance.randrange(5)
    if edit == 0:
        document["counter"] += chance.randrange(1, 1000)
    elif edit == 1:
        document["name"] += chance.choice("abc")
    elif edit == 2:
        document["thresholds"]["confidence"][0] = chance.random()
    elif edit == 3:
        entry = chance.choice(document["files"])
        entry["sha256"] = chance.randbytes(32).hex()
    else:
        document["x-note"] = chance.random()
    return Attempt(resealed(victim, document, None))


def replaced_graph(chance: random.Random, victim: Victim) -> Attempt:
    """Replace the network and the manifest, with the old signature or one by an unknown key."""
    document = json.loads(json.dumps(victim.head))
    content = chance.randbytes(chance.randrange(1, 2000))
    document["files"][0].update(length=len(content), sha256=hashlib.sha256(content).hexdigest())
    bad = members(resealed(victim, document, chance.choice([None, 2, 3])))
    bad[2] = member("part0.bin", content)
    return Attempt(whole(bad))


def signed_nonsense(chance: random.Random, victim: Victim) -> Attempt:
    """Sign a manifest that breaks a rule, with the right key: the reader must not trust the signer."""
    document = json.loads(json.dumps(victim.head))
    files = document["files"]
    entry = chance.choice(files)
    edits: list[Callable[[], Any]] = [
        lambda: entry.update(path=chance.choice(PATHS)),
        lambda: entry.update(length=chance.choice([-1, MAX_TOTAL + 1, 8**11, 2**63, 1e9, "10", None, True])),
        lambda: entry.update(length=entry["length"] + chance.choice([1, 511, 512, 10**6, MAX_TOTAL // 2])),
        lambda: entry.update(role=chance.choice(["engine", "", None, "Graph"])),
        lambda: entry.update(path=chance.choice(files)["path"].upper()),
        lambda: files.append(dict(entry)),
        lambda: files.insert(0, dict(files[-1])),
        lambda: files.extend({**entry, "path": f"q{at:06d}"} for at in range(MAX_FILES)),
        lambda: files.clear(),
        lambda: document.update(format=chance.choice([0, 2, "1", None, True, 1.0])),
        lambda: document.update(surprise=1),
        lambda: document.pop(chance.choice(sorted(document))),
        lambda: document.update(counter=chance.choice([-1, 2**53 + 1, 1.5, "5", None])),
        lambda: document["detector"]["classes"].append("more"),
        lambda: document.update({chance.choice(sorted(set(document) - {"tensorrt"})): None}),
    ]
    chance.choice(edits)()
    if document == victim.head:
        document["surprise"] = 1
    return Attempt(resealed(victim, document, 1))


def signed_bad_json(chance: random.Random, victim: Victim) -> Attempt:
    """Sign invalid or ambiguous JSON with the right key."""
    good = canonical_json(victim.head)
    deep = chance.choice([10, 1000, 100_000])
    raw = chance.choice(
        [
            b"[" * deep,
            b'{"a":' * deep,
            b"9" * chance.choice([30, 5000, 100_000]),
            good[:-1] + b',"counter":%d}' % chance.randrange(100),
            good.replace(b'"counter":5', b'"counter":' + b"9" * chance.choice([21, 400])),
            good.replace(b'"counter":5', b'"counter":NaN'),
            good.replace(b'"counter":5', b'"counter":1e999'),
            b"\xef\xbb\xbf" + good,
            good.decode().encode("utf-16"),
            good.replace(b"victim", b"vic\\ud800tim"),
            good.replace(b"victim", b"vic\0tim"),
            good[: chance.randrange(len(good))],
            chance.randbytes(chance.randrange(200)),
            good + good,
            good.ljust((1 << 20) + 1),
        ]
    )
    return Attempt(resealed(victim, None, 1, raw))


def _with_signatures(victim: Victim, content: bytes) -> bytes:
    parts = victim.members
    parts[1] = member(SIGNATURES, content)
    return whole(parts)


def wrong_signature(chance: random.Random, victim: Victim) -> Attempt:
    """Replace the signature: none, by an unknown key, under another key's id, of another bundle or kind, malleated."""
    parts = victim.members
    sha256 = hashlib.sha256(content_of(parts[0])).hexdigest()
    good, stranger = signature(1, sha256), signature(chance.randrange(2, 10**6), sha256)
    theirs = hashlib.sha256(content_of(members(victim.other)[0])).hexdigest()
    s = int.from_bytes(bytes.fromhex(good.value)[32:], "little")
    larger = s + chance.randrange(1, 15) * ed25519._ORDER
    bits = bytearray.fromhex(good.value)
    bits[chance.randrange(64)] ^= 1 << chance.randrange(8)
    choices: list[tuple[Signature, ...]] = [
        (),
        (stranger,),
        (replace(stranger, key=good.key),),
        (replace(good, key=stranger.key),),
        (signature(1, theirs),),
        (signature(1, sha256, "trust"),),
        (replace(good, value=good.value[:64] + larger.to_bytes(32, "little").hex()),),
        (replace(good, value=bytes(bits).hex()),),
        (replace(good, value=(b"\1" + bytes(63)).hex()),),
        (replace(good, value=bytes(64).hex()),),
    ]
    return Attempt(_with_signatures(victim, envelope_json(SignatureEnvelope(sha256, chance.choice(choices)))))


def other_spelling(chance: random.Random, victim: Victim) -> Attempt:
    """Encode the right signatures differently."""
    good = content_of(victim.members[1])
    spaces = good.replace(b":", b": ", chance.randrange(1, 4))
    upper = good.replace(b'"signature":"', b'"signature":"A', 1)
    twice = good.replace(b'"signatures":[', b'"signatures":[],"signatures":[')
    more = good.replace(b'{"format"', b'{"a":%d,"format"' % chance.randrange(1000))
    return Attempt(_with_signatures(victim, chance.choice([spaces, upper, twice, more, good + b"\n", good[:-1]])))


def met_too_late(chance: random.Random, victim: Victim) -> Attempt:
    """Freeze attack: the valid bundle after the trust file or the key has expired."""
    if chance.random() < 0.5:
        return Attempt(victim.content, LATER)
    (key,) = victim.trust.keys
    ended = replace(victim.trust, expires=None, keys=(replace(key, expires="2026-03-01T00:00:00Z"),))
    return Attempt(victim.content, NOW, ended)


def met_elsewhere(chance: random.Random, victim: Victim) -> Attempt:
    """The valid bundle on a camera that trusts another key, requires two keys, or has revoked the bundle."""
    edit = chance.randrange(3)
    if edit == 0:
        return Attempt(victim.content, NOW, trust_in(chance.randrange(2, 10**6)))
    if edit == 1:
        both = trust_in(1, chance.randrange(2, 10**6))
        return Attempt(victim.content, NOW, replace(both, bundle=replace(both.bundle, threshold=2)))
    sha256 = hashlib.sha256(content_of(victim.members[0])).hexdigest()
    return Attempt(victim.content, NOW, replace(victim.trust, revoked_bundles=(sha256,)))


def rolled_back(chance: random.Random, victim: Victim) -> Attempt:
    """Rollback attack: an older bundle, signed by the right key."""
    if chance.random() < 0.3:
        return Attempt(victim.older)
    document = {**victim.head, "counter": chance.randrange(COUNTER)}
    return Attempt(resealed(victim, document, 1))


WAYS: tuple[Way, ...] = (
    *(lengthened, blocks_moved, members_moved, spliced, extra_member, other_header, rewritten_manifest),
    *(replaced_graph, signed_nonsense, signed_bad_json, wrong_signature, other_spelling),
    *(met_too_late, met_elsewhere, rolled_back),
)


def attempt(way: Way, chance: random.Random, victim: Victim) -> Attempt:
    """Return an attempt of this kind that differs from the unchanged victim."""
    while True:
        made = way(chance, victim)
        if made != Attempt(victim.content):
            return made

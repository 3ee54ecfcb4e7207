"""One fuzzed reader, in a process of its own: `python bench/fuzz_target.py READER SECONDS SCRATCH`.

Started by `fuzz_bundle.py`. What is imported inside the block below is instrumented, and nothing else.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import atheris

with atheris.instrument_imports(include=["edgekd.agent", "edgekd.core.bundle", "edgekd.core.canonical", "json"]):
    from mutations import NOW, Attempt, Victim, content_of, make_victim, signature, taken

    from edgekd.core.bundle import signatures, trust
    from edgekd.core.bundle.trust import SignedTrust
    from edgekd.core.errors import BundleError

MAX_LENGTH = 1 << 15


def reader(name: str, victim: Victim, scratch: Path) -> Callable[[bytes], None]:
    """Return the fuzzed function: it takes bytes, and raises where the fault is edgekd's rather than theirs."""

    def archive(content: bytes) -> None:
        genuine = content in (victim.content, victim.other)
        if not genuine and taken(Attempt(content, NOW), victim, scratch / "met.edgekd"):
            raise AssertionError("taken, and nobody signed it")

    def round_trip(parse: Callable[[bytes], Any], write: Callable[[Any], bytes]) -> Callable[[bytes], None]:
        def parsed(content: bytes) -> None:
            try:
                found = parse(content)
            except BundleError:
                return
            if write(found) != content:
                raise AssertionError("read, and written another way")

        return parsed

    return {
        "archive": archive,
        "signatures": round_trip(signatures.from_json, signatures.to_json),
        "trust": round_trip(trust.from_json, trust.to_json),
    }[name]


def first_inputs(name: str, victim: Victim) -> list[bytes]:
    if name == "archive":
        return [victim.content, victim.other, victim.older]
    if name == "signatures":
        return [content_of(victim.members[1])]
    return [trust.to_json(SignedTrust(victim.trust, (signature(1, victim.trust.sha256, "trust"),)))]


def fuzz(name: str, seconds: int, scratch: Path) -> None:
    """Fuzz one reader in this process, which then exits: with 0 where nothing was found."""
    place, corpus = scratch / "victim", scratch / "corpus"
    place.mkdir()
    corpus.mkdir()
    victim = make_victim(place)
    for at, content in enumerate(first_inputs(name, victim)):
        (corpus / str(at)).write_bytes(content)
    given = [sys.argv[0], str(corpus), f"-max_total_time={seconds}", f"-max_len={MAX_LENGTH}", "-print_final_stats=1"]
    atheris.Setup(given, reader(name, victim, scratch))
    atheris.Fuzz()


if __name__ == "__main__":
    fuzz(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))

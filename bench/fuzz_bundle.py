"""Coverage-guided search for bytes at which reading a bundle, its signatures or a trust file fails in another way than
with a clean `BundleError`, or that are taken although nobody signed them.

    pip install atheris; python bench/fuzz_bundle.py [--seconds S]

Each of three readers gets its share of the time, in a process of its own, beginning with what edgekd writes.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from common import RESULTS, conditions, conditions_lines, table, write_results
from mutations import NOW, Attempt, Victim, content_of, make_victim, signature, taken

from edgekd.bundle import signatures, trust
from edgekd.bundle.trust import SignedTrust
from edgekd.errors import BundleError

READERS = ("archive", "signatures", "trust")
MAX_LENGTH = 1 << 15


def reader(name: str, victim: Victim, scratch: Path) -> Callable[[bytes], None]:
    """What is fuzzed: takes bytes, and raises where something is wrong with edgekd rather than with them."""

    def archive(content: bytes) -> None:
        if content != victim.content and taken(Attempt(content, NOW), victim, scratch / "met.edgekd"):
            raise AssertionError("taken, and nobody signed it")

    def told(parse: Callable[[bytes], Any], write: Callable[[Any], bytes]) -> Callable[[bytes], None]:
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
        "signatures": told(signatures.from_json, signatures.to_json),
        "trust": told(trust.from_json, trust.to_json),
    }[name]


def first_inputs(name: str, victim: Victim) -> list[bytes]:
    """What the search begins with."""
    if name == "archive":
        return [victim.content, victim.other, victim.older]
    if name == "signatures":
        return [content_of(victim.members[1])]
    return [trust.to_json(SignedTrust(victim.trust, (signature(1, victim.trust.sha256, "trust"),)))]


def fuzz(name: str, seconds: int, scratch: Path) -> None:
    """Fuzz one reader in this process, which then ends: 0 where nothing was found."""
    import atheris

    atheris.instrument_all()
    place = scratch / "victim"
    place.mkdir()
    victim = make_victim(place)
    corpus = scratch / "corpus"
    corpus.mkdir()
    for at, content in enumerate(first_inputs(name, victim)):
        (corpus / str(at)).write_bytes(content)
    given = [sys.argv[0], str(corpus), f"-max_total_time={seconds}", f"-max_len={MAX_LENGTH}", "-print_final_stats=1"]
    atheris.Setup(given, reader(name, victim, scratch))
    atheris.Fuzz()


def run(name: str, seconds: int) -> dict[str, Any]:
    """Fuzz one reader in a process of its own, and read what it says."""
    with tempfile.TemporaryDirectory(prefix="edgekd-") as scratch:
        command = [sys.executable, __file__, "--reader", name, "--seconds", str(seconds), "--scratch", scratch]
        done = subprocess.run(command, capture_output=True, text=True, cwd=scratch, errors="replace")
    tried = re.search(r"stat::number_of_executed_units: (\d+)", done.stderr)
    covered = re.findall(r"\bcov: (\d+)", done.stderr)
    return {
        "reader": name,
        "seconds": seconds,
        "inputs": int(tried[1]) if tried else None,
        "covered": [int(covered[0]), int(covered[-1])] if covered else None,
        "found": None if done.returncode == 0 else done.stderr[-2000:],
    }


def page(found: Mapping[str, Any]) -> list[str]:
    """The document as a page."""
    rows = [
        [
            row["reader"],
            str(row["seconds"]),
            f"{row['inputs']:,}" if row["inputs"] else "unknown",
            " to ".join(map(str, row["covered"])) if row["covered"] else "unknown",
            "nothing" if row["found"] is None else "a failure: see the JSON",
        ]
        for row in found["rows"]
    ]
    return [
        "# Coverage-guided fuzzing of what reads bundles",
        "",
        f"`{found['command']}`, Atheris {found['atheris']}",
        "",
        *table(["reader", "seconds", "inputs", "places covered, first to last", "found"], rows),
        "",
        *conditions_lines(found),
    ]


def main() -> int:
    """0 when nothing was found, else 1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=300, help="for each reader (%(default)s)")
    parser.add_argument("--out", type=Path, default=RESULTS / "fuzz_bundle.json")
    parser.add_argument("--reader", choices=READERS, help=argparse.SUPPRESS)
    parser.add_argument("--scratch", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.reader:
        fuzz(given.reader, given.seconds, given.scratch)
        return 0
    from importlib.metadata import version

    now = conditions(threads=1)
    rows = [run(name, given.seconds) for name in READERS]
    found = {
        "question": "are there bytes at which reading a bundle fails, or that are taken and nobody signed?",
        "command": f"python bench/fuzz_bundle.py --seconds {given.seconds}",
        "atheris": version("atheris"),
        "rows": rows,
        **now,
    }
    write_results(given.out, found, page(found))
    return 0 if all(row["found"] is None and row["inputs"] for row in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())

"""How many of 100,000 and more manipulated bundles does a camera take? It should take none, and fail at none.

python bench/tamper.py [--each N]
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
import tracemalloc
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common import RESULTS, conditions, conditions_lines, table, use_cores, write_results
from mutations import WAYS, Attempt, Victim, Way, attempt, make_victim, taken

EACH = 5600
SEED = 0
LARGE = (11_900_000, 50_000, 40_000, 10_000)
LIMITS = {"attempts": 100_000, "accepted": 0, "crashes": 0, "memory_bytes": 64_000_000}


def run(way: Way, victim: Victim, each: int, path: Path) -> dict[str, Any]:
    """Try one way many times."""
    chance, accepted, crashes = random.Random(f"{SEED} {way.__name__}"), 0, []
    began = time.perf_counter()
    for _ in range(each):
        try:
            accepted += taken(attempt(way, chance, victim), victim, path)
        except Exception as error:  # what a camera must not do, whatever it is
            crashes.append(f"{type(error).__name__}: {error}"[:200])
    return {
        "way": way.__name__,
        "told": (way.__doc__ or "").strip(),
        "attempts": each,
        "accepted": accepted,
        "crashes": len(crashes),
        "first_crash": crashes[0] if crashes else None,
        "seconds": round(time.perf_counter() - began, 1),
    }


def peak_memory(victim: Victim, path: Path) -> int:
    """Bytes that Python held at most while bundles of 12 MB were met: the right one, and one of each way."""
    chance, peak = random.Random(SEED), 0
    for way in (None, *WAYS):
        made = Attempt(victim.content) if way is None else attempt(way, chance, victim)
        path.write_bytes(made.content)
        small = Attempt(b"", made.now, made.trust)
        del made
        tracemalloc.start()
        _taken_from_disk(small, victim, path)
        peak = max(peak, tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    return peak


def _taken_from_disk(circumstances: Attempt, victim: Victim, path: Path) -> None:
    from edgekd.agent.trust_state import head_judge
    from edgekd.core.bundle.archive import verify
    from edgekd.core.bundle.trust import SignedTrust
    from edgekd.core.errors import BundleError

    try:
        verify(path, head_judge(SignedTrust(circumstances.trust or victim.trust), circumstances.now))
    except BundleError:
        return


def page(found: Mapping[str, Any]) -> list[str]:
    """The document as a page."""
    rows = [
        [row["way"].replace("_", " "), row["told"], f"{row['attempts']:,}", str(row["accepted"]), str(row["crashes"])]
        for row in found["ways"]
    ]
    total = [["all", "", f"{found['attempts']:,}", str(found["accepted"]), str(found["crashes"])]]
    return [
        "# Manipulated bundles",
        "",
        f"`{found['command']}`",
        "",
        f"A signed bundle of {found['bundle_bytes']:,} bytes, manipulated in {len(found['ways'])} ways, met by what "
        "verifies on a camera, with a trust file. Refused means: with a clean `BundleError`. The chance is seeded.",
        "",
        *table(["way", "what", "attempts", "accepted", "crashes"], rows + total),
        "",
        f"Memory that Python held at most while verifying {found['large_bytes'] / 1e6:.1f} MB, the right bundle and "
        f"one of each way: {found['memory_bytes'] / 1e6:.1f} MB (limit {LIMITS['memory_bytes'] / 1e6:.0f} MB).",
        "",
        *conditions_lines(found),
    ]


def main() -> int:
    """0 when nothing was accepted, nothing crashed, and memory was bounded; else 1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--each", type=int, default=EACH, help="attempts of each way (%(default)s)")
    parser.add_argument("--out", type=Path, default=RESULTS / "tamper.json")
    given = parser.parse_args()
    use_cores(1)
    now = conditions(threads=1)
    with tempfile.TemporaryDirectory(prefix="edgekd-") as scratch:
        small, large = Path(scratch) / "small", Path(scratch) / "large"
        small.mkdir()
        large.mkdir()
        victim, heavy = make_victim(small), make_victim(large, LARGE)
        path = Path(scratch) / "met.edgekd"
        if not taken(Attempt(victim.content), victim, path):
            raise SystemExit("the bundle itself is refused: nothing can be said of what is made of it")
        ways = [run(way, victim, given.each, path) for way in WAYS]
        found = {
            "question": "how many manipulated bundles does a camera take?",
            "command": f"python bench/tamper.py --each {given.each}",
            "seed": SEED,
            "bundle_bytes": len(victim.content),
            "large_bytes": len(heavy.content),
            "limits": LIMITS,
            "attempts": sum(row["attempts"] for row in ways),
            "accepted": sum(row["accepted"] for row in ways),
            "crashes": sum(row["crashes"] for row in ways),
            "memory_bytes": peak_memory(heavy, path),
            "ways": ways,
            **now,
        }
    write_results(given.out, found, page(found))
    kept = found["accepted"] == found["crashes"] == 0 and found["memory_bytes"] <= LIMITS["memory_bytes"]
    return 0 if kept else 1


if __name__ == "__main__":
    raise SystemExit(main())

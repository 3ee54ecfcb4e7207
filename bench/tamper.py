"""Count how many of 100,000 and more manipulated bundles a camera accepts, and at how many it crashes: none, none."""

import random
import tracemalloc
from dataclasses import replace
from pathlib import Path

from frame import Blocks, Document, Given, Option, Result, head, main, table
from mutations import WAYS, Attempt, Victim, Way, attempt, make_victim, taken, verified

EACH = 5600
SEED = 0
LARGE = (11_900_000, 50_000, 40_000, 10_000)
LIMITS = {"attempts": 100_000, "accepted": 0, "crashes": 0, "memory_bytes": 64_000_000}


def tried(way: Way, victim: Victim, each: int, path: Path) -> Result:
    chance, accepted, crashes = random.Random(f"{SEED} {way.__name__}"), 0, []
    for _ in range(each):
        try:
            accepted += taken(attempt(way, chance, victim), victim, path)
        except Exception as error:  # any error of a camera is a result
            crashes.append(f"{type(error).__name__}: {error}"[:200])
    return {
        "way": way.__name__,
        "told": (way.__doc__ or "").strip(),
        "attempts": each,
        "accepted": accepted,
        "crashes": len(crashes),
        "first_crash": crashes[0] if crashes else None,
    }


def peak_memory(victim: Victim, path: Path) -> int:
    """Return the most bytes that Python held while it met bundles of 12 MB: the right one, and one of each way."""
    chance, peak = random.Random(SEED), 0
    for way in (None, *WAYS):
        made = Attempt(victim.content) if way is None else attempt(way, chance, victim)
        path.write_bytes(made.content)
        circumstances = replace(made, content=b"")
        del made
        tracemalloc.start()
        verified(circumstances, victim, path)
        peak = max(peak, tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    return peak


def page(found: Document) -> Blocks:
    yield from head("Manipulated bundles", found)
    yield (
        f"A signed bundle of {found.bundle_bytes:,} bytes, manipulated in {len(found.ways)} ways, met by what "
        "verifies on a camera, with a trust file. Refused means: with a clean `BundleError`. The chance is seeded."
    )
    total = Document(found, way="all", told="")
    yield table(
        "way | what | attempts | accepted | crashes",
        (
            f"{row.way.replace('_', ' ')} | {row.told} | {row.attempts:,} | {row.accepted} | {row.crashes}"
            for row in (*found.ways, total)
        ),
    )
    yield (
        f"Memory that Python held at most while verifying {found.large_bytes / 1e6:.1f} MB, the right bundle and "
        f"one of each way: {found.memory_bytes / 1e6:.1f} MB (limit {LIMITS['memory_bytes'] / 1e6:.0f} MB)."
    )


def run(given: Given) -> Result:
    small, large, path = (given.scratch / name for name in ("small", "large", "met.edgekd"))
    small.mkdir()
    large.mkdir()
    victim, heavy = make_victim(small), make_victim(large, LARGE)
    if not taken(Attempt(victim.content), victim, path):
        raise SystemExit("the bundle itself is refused: nothing can be said of what is made of it")
    ways = [tried(way, victim, given.each, path) for way in WAYS]
    return {
        "bundle_bytes": len(victim.content),
        "large_bytes": len(heavy.content),
        **{name: sum(row[name] for row in ways) for name in ("attempts", "accepted", "crashes")},
        "memory_bytes": peak_memory(heavy, path),
        "ways": ways,
    }


if __name__ == "__main__":
    main(
        run,
        page,
        Option("--each", EACH, "attempts of each way (%(default)s)"),
        holds=lambda found: found.accepted == found.crashes == 0 and found.memory_bytes <= LIMITS["memory_bytes"],
        cores=1,
    )

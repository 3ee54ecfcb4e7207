"""How long packing, signing and verifying 12 MB takes, in how much memory, and whether it is the same bytes each time.

Verifying is the whole of it: every hash, and a signature in plain Python. A process is timed from its start to its end,
the agent with it; the rest inside one process. Memory is the largest resident size of the process, and of one that does
nothing. Two processes pack with another hash seed, umask, time zone and folder.

    python bench/bundle_speed.py [--rounds N]
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from bundles import manifest_of, noise
from common import RESULTS, conditions, conditions_lines, table, use_cores, write_results
from mutations import NOW, signature, trust_of

from edgekd.agent.trust_state import head_judge
from edgekd.core.bundle import ed25519
from edgekd.core.bundle.archive import pack, read_head, replace_signatures, verify
from edgekd.core.bundle.signatures import statement
from edgekd.core.bundle.trust import SignedTrust, to_json
from edgekd.deploy.agent_zipapp import agent_archive

SIZES = {
    "agent.pyz": 0,
    "evidence.json": 20_000,
    "golden.set": 80_000,
    "graph.packed": 11_500_000,
    "report.html": 300_000,
}
ROLES = {"graph.packed": "graph", "agent.pyz": "agent", "golden.set": "golden", "report.html": "report"}
LIMITS = {"verify_s": 0.5, "pack_s": 2.0, "memory_bytes": 64_000_000}
TRUSTED = (1,)

MEMORY = "import resource, sys; print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"


def write_sources(folder: Path) -> dict[str, Path]:
    """Files of the sizes that a bundle of 12 MB has, with the real agent."""
    folder.mkdir(parents=True)
    for at, (name, size) in enumerate(SIZES.items()):
        (folder / name).write_bytes(noise(at, size) if size else agent_archive())
    return {name: folder / name for name in SIZES}


def pack_all(sources: Mapping[str, Path], out: Path) -> None:
    """Hash the files, write the bundle, sign it."""
    pack(manifest_of("speed", sources, ROLES), sources, out)
    replace_signatures(out, [signature(1, read_head(out).identity)], out)


def seconds(work: Callable[[], object], rounds: int) -> dict[str, float]:
    """Median, 90th percentile and best of some rounds."""
    samples = []
    for _ in range(rounds):
        began = time.perf_counter()
        work()
        samples.append(time.perf_counter() - began)
    p50, p90 = np.percentile(samples, (50, 90))
    return {"p50_s": round(float(p50), 4), "p90_s": round(float(p90), 4), "min_s": round(min(samples), 4)}


def packed_elsewhere(scratch: Path) -> list[str]:
    """SHA-256 of what processes pack that differ in all that must not matter."""
    found = []
    settings = (("0", "UTC", 0o022, "one"), ("4711", "Pacific/Auckland", 0o077, "two/deeper"))
    for seed, zone, mask, name in settings:
        folder = scratch / name
        folder.mkdir(parents=True)
        environment = {**os.environ, "PYTHONHASHSEED": seed, "TZ": zone, "LC_ALL": "C"}
        command = [sys.executable, __file__, "--pack-here"]
        before = os.umask(mask)
        try:
            subprocess.run(command, cwd=folder, env=environment, check=True)
        finally:
            os.umask(before)
        found.append(hashlib.sha256((folder / "bundle.edgekd").read_bytes()).hexdigest())
    return found


def resident_bytes(*command: object) -> int:
    """The largest resident size of a process."""
    script = f"import subprocess; subprocess.run({list(map(str, command))!r}, check=True, stdout=-3)\n{MEMORY}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return int(done.stdout) * 1024


def measure(scratch: Path, rounds: int) -> dict[str, Any]:
    """Everything that is measured of one bundle."""
    sources, bundle = write_sources(scratch / "sources"), scratch / "bundle.edgekd"
    packing = seconds(lambda: pack_all(sources, bundle), rounds)
    trust = trust_of(*TRUSTED)
    allowed = head_judge(SignedTrust(trust), NOW)
    (scratch / "trust.json").write_bytes(to_json(SignedTrust(trust, (signature(1, trust.sha256, "trust"),))))
    head = read_head(bundle)
    (made,), key = head.envelope.signatures, bytes.fromhex(trust.keys[0].public)
    message, value = statement("bundle", head.identity), bytes.fromhex(made.value)
    agent = (sys.executable, sources["agent.pyz"], "verify", bundle, "--trust", scratch / "trust.json")
    return {
        "bundle_bytes": bundle.stat().st_size,
        "seconds": {
            "pack and sign": packing,
            "verify": seconds(lambda: verify(bundle, allowed), rounds),
            "of that, one signature": seconds(lambda: ed25519.verify(key, message, value), rounds),
            "agent.pyz verify, a process": seconds(lambda: subprocess.run(agent, check=True, stdout=-3), rounds),
        },
        "memory_bytes": resident_bytes(*agent),
        "memory_of_nothing_bytes": resident_bytes(sys.executable, "-c", "pass"),
        "packed_elsewhere": packed_elsewhere(scratch),
        "packed_here": hashlib.sha256(bundle.read_bytes()).hexdigest(),
    }


def same(found: Mapping[str, Any]) -> bool:
    """Whether all processes packed the same bytes."""
    return {found["packed_here"]} == set(found["packed_elsewhere"])


def within(found: Mapping[str, Any]) -> bool:
    """Whether every limit is kept."""
    told = found["seconds"]
    return (
        same(found)
        and told["pack and sign"]["p50_s"] <= LIMITS["pack_s"]
        and told["agent.pyz verify, a process"]["p50_s"] <= LIMITS["verify_s"]
        and found["memory_bytes"] <= LIMITS["memory_bytes"]
    )


def page(found: Mapping[str, Any]) -> list[str]:
    """The document as a page."""
    rows = [
        [name, *(f"{row[part]:.4f}" for part in ("p50_s", "p90_s", "min_s"))] for name, row in found["seconds"].items()
    ]
    return [
        "# Packing and verifying a bundle of 12 MB",
        "",
        f"`{found['command']}`",
        "",
        f"The bundle has {found['bundle_bytes'] / 1e6:.2f} MB and one signature. One core; {found['rounds']} rounds.",
        "",
        *table(["", "median, s", "90th percentile", "best"], rows),
        "",
        f"Limits, by medians: packing {LIMITS['pack_s']} s, verifying {LIMITS['verify_s']} s. Memory of the agent's "
        f"process at most {found['memory_bytes'] / 1e6:.1f} MB (limit {LIMITS['memory_bytes'] / 1e6:.0f} MB), of one "
        f"that does nothing {found['memory_of_nothing_bytes'] / 1e6:.1f} MB.",
        "",
        f"Packed in {len(found['packed_elsewhere'])} processes with other hash seeds, umasks, time zones, folders: "
        f"{'the same bytes' if same(found) else 'OTHER BYTES'}.",
        "",
        *conditions_lines(found),
    ]


def main() -> int:
    """0 when all limits are kept, else 1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, default=RESULTS / "bundle_speed.json")
    parser.add_argument("--pack-here", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.pack_here:
        pack_all(write_sources(Path("files")), Path("bundle.edgekd"))
        return 0
    use_cores(1)
    now = conditions(threads=1)
    with tempfile.TemporaryDirectory(prefix="edgekd-") as scratch:
        found = {
            "question": "how long does a bundle of 12 MB take to pack and to verify, and is it the same bytes?",
            "command": f"python bench/bundle_speed.py --rounds {given.rounds}",
            "rounds": given.rounds,
            "limits": LIMITS,
            **measure(Path(scratch), given.rounds),
            **now,
        }
    write_results(given.out, found, page(found))
    return 0 if within(found) else 1


if __name__ == "__main__":
    raise SystemExit(main())

"""Measure time and memory of packing, signing and verifying 12 MB, and whether packing is reproducible.

Verifying checks every hash, and the signature in pure Python. The agent is timed as a process, the rest in-process.
"""

import hashlib
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from bundle_mutations import NOW, signature, trust_in
from bundles import manifest_of, noise, packed_noise
from common import durations, summary_s
from frame import Blocks, Document, Given, Option, Result, head, in_process, main, table

from edgekd.agent.trust_state import head_judge
from edgekd.core.bundle import ed25519
from edgekd.core.bundle.archive import pack, read_head, replace_signatures, verify
from edgekd.core.bundle.signatures import statement
from edgekd.core.bundle.trust import SignedTrust, to_json
from edgekd.deploy.agent_zipapp import agent_archive

GRAPH_BYTES = 11_500_000
NOISE_BYTES = {"evidence.json": 20_000, "golden.set": 80_000, "report.html": 300_000}
ROLES = {"graph.packed": "graph", "agent.pyz": "agent", "golden.set": "golden", "report.html": "report"}
LIMITS = {"verify_s": 0.5, "pack_s": 2.0, "memory_bytes": 64_000_000}

MEMORY = "import resource; print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"


def write_sources(folder: Path) -> dict[str, Path]:
    """Write the files of a bundle of 12 MB, with the real agent and a valid graph. Return their paths by name."""
    folder.mkdir(parents=True)
    files = {name: noise(at, count) for at, (name, count) in enumerate(NOISE_BYTES.items())}
    files |= {"agent.pyz": agent_archive(), "graph.packed": packed_noise(GRAPH_BYTES)}
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return {name: folder / name for name in sorted(files)}


def pack_all(sources: Mapping[str, Path], out: Path) -> None:
    pack(manifest_of("speed", sources, ROLES), sources, out)
    replace_signatures(out, [signature(1, read_head(out).identity)], out)


def packed_elsewhere(scratch: Path) -> list[str]:
    """Pack in processes that differ in hash seed, time zone, umask and folder. Return the SHA-256 of each bundle."""
    found = []
    for seed, zone, mask, name in (("0", "UTC", 0o022, "one"), ("4711", "Pacific/Auckland", 0o077, "two/deeper")):
        folder = scratch / name
        folder.mkdir(parents=True)
        environment = {**os.environ, "PYTHONHASHSEED": seed, "TZ": zone, "LC_ALL": "C"}
        subprocess.run(in_process(pack_here), cwd=folder, env=environment, umask=mask, check=True)
        found.append(hashlib.sha256((folder / "bundle.edgekd").read_bytes()).hexdigest())
    return found


def pack_here() -> Result:
    pack_all(write_sources(Path("files")), Path("bundle.edgekd"))
    return {}


def resident_bytes(*command: object) -> int:
    script = f"import subprocess; subprocess.run({list(map(str, command))!r}, check=True, stdout=-3)\n{MEMORY}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return int(done.stdout) * 1024


def run(given: Given) -> Result:
    scratch = given.scratch
    sources, bundle = write_sources(scratch / "sources"), scratch / "bundle.edgekd"
    pack_all(sources, bundle)
    trust = trust_in(1)
    allowed = head_judge(SignedTrust(trust), NOW)
    (scratch / "trust.json").write_bytes(to_json(SignedTrust(trust, (signature(1, trust.sha256, "trust"),))))
    seal_head = read_head(bundle)
    (made,), key = seal_head.envelope.signatures, bytes.fromhex(trust.keys[0].public)
    message, value = statement("bundle", seal_head.identity), bytes.fromhex(made.value)
    agent = (sys.executable, sources["agent.pyz"], "verify", bundle, "--trust", scratch / "trust.json")
    works = {
        "pack and sign": lambda: pack_all(sources, bundle),
        "verify": lambda: verify(bundle, allowed),
        "of that, one signature": lambda: ed25519.verify(key, message, value),
        "agent.pyz verify, a process": lambda: subprocess.run(agent, check=True, stdout=-3),
    }
    return {
        "bundle_bytes": bundle.stat().st_size,
        "seconds": {name: summary_s(durations(work, given.rounds)) for name, work in works.items()},
        "memory_bytes": resident_bytes(*agent),
        "memory_of_nothing_bytes": resident_bytes(sys.executable, "-c", "pass"),
        "packed_elsewhere": packed_elsewhere(scratch),
        "packed_here": hashlib.sha256(bundle.read_bytes()).hexdigest(),
    }


def same(found: Document) -> bool:
    return {found.packed_here} == set(found.packed_elsewhere)


def within(found: Document) -> bool:
    return (
        same(found)
        and found.seconds["pack and sign"].p50_s <= LIMITS["pack_s"]
        and found.seconds["agent.pyz verify, a process"].p50_s <= LIMITS["verify_s"]
        and found.memory_bytes <= LIMITS["memory_bytes"]
    )


def page(found: Document) -> Blocks:
    yield from head("Packing and verifying a bundle of 12 MB", found)
    yield f"The bundle has {found.bundle_bytes / 1e6:.2f} MB and one signature. One core; {found.rounds} rounds."
    yield table(
        " | median, s | 90th percentile | best",
        (f"{name} | {row.p50_s:.4f} | {row.p90_s:.4f} | {row.min_s:.4f}" for name, row in found.seconds.items()),
    )
    yield (
        f"Limits, by medians: packing {LIMITS['pack_s']} s, verifying {LIMITS['verify_s']} s. Memory of the agent's "
        f"process at most {found.memory_bytes / 1e6:.1f} MB (limit {LIMITS['memory_bytes'] / 1e6:.0f} MB), of one "
        f"that does nothing {found.memory_of_nothing_bytes / 1e6:.1f} MB."
    )
    yield (
        f"Packed in {len(found.packed_elsewhere)} processes with other hash seeds, umasks, time zones, folders: "
        f"{'the same bytes' if same(found) else 'OTHER BYTES'}."
    )


if __name__ == "__main__":
    main(run, page, Option("--rounds", 15), holds=within, cores=1)

"""Do RAUC, SWUpdate and Mender take what edgekd packs for them, and what do they make of it with one bit changed?

Each system's own program judges: first by the command that checks a file, then, where that lets it pass, by the one
that takes the content out of it, as an installation does. What comes out is compared with what went in. A third of the
bits lie anywhere, a third in the first 4 KiB and a third in the last, where descriptions and signatures are.

    python bench/firmware_systems.py [--each N]

Needs the Debian packages rauc, squashfs-tools, swupdate, mender-artifact and openssl.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bundles import manifest_of, noise
from common import RESULTS, conditions, conditions_lines, table, use_cores, write_results

from edgekd.core.bundle.archive import pack
from edgekd.deploy.agent_zipapp import NAME, agent_archive
from edgekd.deploy.firmware import PACKAGERS, Packaging, wrap

EACH = 201
SEED = 0
ENDS = 4096
GRAPH_BYTES = 100_000
DEVICE = "camera"
REFUSED, LATER, SAME, OTHER = "refused", "refused later", "same content", "other content"
STUB = """#!/bin/sh
[ "$2" = status ] && {{ echo '{{"result": {{"active": null}}}}'; exit 0; }}
[ "$1" = -c ] && exec python3 "$@"
cp "$3" '{out}'
exit 1
"""
"""Stands in for the camera's Python: what SWUpdate hands to the agent is kept, and nothing is installed."""


@dataclass(frozen=True)
class System:
    """One kind of file. check: the command that judges it; taken: the bundle that comes out of it, None if refused."""

    name: str
    told: str
    packaging: Packaging
    check: Callable[[Path], Sequence[object]]
    taken: Callable[[Path, Path], bytes | None]


def succeeds(command: Sequence[object], folder: Path, **environment: str) -> bool:
    """Whether a program ends well."""
    told = [str(word) for word in command]
    given = {**os.environ, "TMPDIR": str(folder), **environment}
    return subprocess.run(told, cwd=folder, env=given, capture_output=True, timeout=120).returncode == 0


def write_bundle(folder: Path) -> Path:
    """A bundle with the agent and a network that nobody would want."""
    sources = {NAME: folder / NAME, "graph.packed": folder / "graph.packed"}
    sources[NAME].write_bytes(agent_archive())
    sources["graph.packed"].write_bytes(noise(SEED, GRAPH_BYTES))
    pack(manifest_of("noise", sources, {NAME: "agent", "graph.packed": "graph"}, 1), sources, folder / "bundle")
    return folder / "bundle"


def write_keys(folder: Path) -> None:
    """A key, its certificate and its public half."""
    made = ("openssl", "ecparam", "-genkey", "-name", "prime256v1", "-noout", "-out", "key.pem")
    certified = ("openssl", "req", "-x509", "-new", "-key", "key.pem", "-subj", "/CN=bench", "-out", "cert.pem")
    public = ("openssl", "pkey", "-in", "key.pem", "-pubout", "-out", "public.pem")
    if not all(succeeds(command, folder) for command in (made, certified, public)):
        raise SystemExit("openssl makes no keys")


def content_of(folder: Path) -> bytes | None:
    """The bundle that a program has put into a folder."""
    found = next(folder.rglob("bundle.edgekd"), None)
    return found.read_bytes() if found else None


def systems(keys: Path, scratch: Path) -> Iterator[System]:
    """Every kind of file, as it is made and as its programs judge it."""
    key, cert, public = keys / "key.pem", keys / "cert.pem", keys / "public.pem"
    signed = {"key": str(key), "certificate": str(cert), "compatible": (DEVICE,)}

    def extracted(made: Path, out: Path) -> bytes | None:
        return content_of(out) if succeeds(("rauc", "extract", "--keyring", cert, made, out / "x"), scratch) else None

    def installed(made: Path, out: Path) -> bytes | None:
        kept, stub, conf = out / "kept", out / "stub", out / "conf"
        stub.write_text(STUB.format(out=kept), "utf-8")
        stub.chmod(0o755)
        conf.write_text(f"python='{stub}'\nagent='{stub}'\n", "utf-8")
        succeeds(("swupdate", "-i", made, "-k", cert, "-H", f"x:{DEVICE}"), scratch, EDGEKD_CONF=str(conf))
        return kept.read_bytes() if kept.is_file() else None

    def dumped(made: Path, out: Path) -> bytes | None:
        return content_of(out) if succeeds(("mender-artifact", "dump", "--files", out, made), scratch) else None

    info = ("rauc", "info", "--keyring", cert)
    yield System(
        "rauc", "`rauc info`, then `rauc extract`", Packaging("rauc", **signed), lambda p: (*info, p), extracted
    )
    plain = Packaging("rauc", **signed, plain=True)
    yield System("rauc, plain", "the same", plain, lambda p: (*info, p), extracted)
    check = ("swupdate", "-c", "-k", cert, "-H", f"x:{DEVICE}", "-i")
    state = str(scratch / "state")
    swu = Packaging("swupdate", **signed, state=state)
    yield System("swupdate", "`swupdate -c`, then `swupdate -i`", swu, lambda p: (*check, p), installed)
    mender = Packaging("mender", key=str(key), compatible=(DEVICE,))
    validate = ("mender-artifact", "validate", "-k", public)
    told = "`mender-artifact validate`, then `dump`"
    yield System("mender", told, mender, lambda p: (*validate, p), dumped)


def changed(content: bytes, number: int, chance: random.Random) -> bytes:
    """The content with one bit changed: anywhere, near the beginning, or near the end."""
    places = (range(len(content)), range(ENDS), range(len(content) - ENDS, len(content)))
    bad = bytearray(content)
    bad[chance.choice(places[number % 3])] ^= 1 << chance.randrange(8)
    return bytes(bad)


def judged(system: System, made: Path, bundle: bytes, scratch: Path) -> str:
    """What a system's programs make of a file."""
    if not succeeds(system.check(made), scratch):
        return REFUSED
    with tempfile.TemporaryDirectory(dir=scratch) as out:
        taken = system.taken(made, Path(out))
    if taken is None:
        return LATER
    return SAME if taken == bundle else OTHER


def measured(system: System, bundle: Path, each: int, scratch: Path) -> dict[str, Any]:
    """Make a file, have it judged, and have it judged again with one bit changed, many times."""
    made = scratch / f"made{PACKAGERS[system.packaging.system].suffix}"
    began = time.perf_counter()
    wrap(system.packaging, bundle, made)
    seconds = time.perf_counter() - began
    began = time.perf_counter()
    right = judged(system, made, bundle.read_bytes(), scratch)
    judging = time.perf_counter() - began
    again = scratch / f"again{made.suffix}"
    wrap(system.packaging, bundle, again)
    content, chance = made.read_bytes(), random.Random(f"{SEED} {system.name}")
    bad, found = scratch / f"bad{made.suffix}", Counter[str]()
    for number in range(each):
        bad.write_bytes(changed(content, number, chance))
        found[judged(system, bad, bundle.read_bytes(), scratch)] += 1
    return {
        "system": system.name,
        "judged_by": system.told,
        "untouched": right,
        "bytes": len(content),
        "bundle_bytes": bundle.stat().st_size,
        "make_seconds": round(seconds, 3),
        "judge_seconds": round(judging, 3),
        "same_bytes_again": again.read_bytes() == content,
        "changed": each,
        **{name.replace(" ", "_"): found[name] for name in (REFUSED, LATER, SAME, OTHER)},
    }


def page(found: Mapping[str, Any]) -> list[str]:
    """The document as a page."""
    header = ["file for", "judged by", "untouched", "bytes", "the same bytes again", "made in s", "judged in s"]
    header += ["changed", "refused by the check", "refused later", "accepted, same content", "accepted, other content"]
    rows = [
        [
            *(row["system"], row["judged_by"]),
            "accepted" if row["untouched"] == SAME else row["untouched"],
            f"{row['bytes']:,}",
            "yes" if row["same_bytes_again"] else "no",
            *(f"{row['make_seconds']:.2f}", f"{row['judge_seconds']:.2f}"),
            *(str(row[name]) for name in ("changed", "refused", "refused_later", "same_content", "other_content")),
        ]
        for row in found["systems"]
    ]
    return [
        "# Files for firmware systems",
        "",
        f"`{found['command']}`",
        "",
        f"A bundle of {found['systems'][0]['bundle_bytes']:,} bytes, packed by `edgekd pack --format` and signed, "
        "met by each system's own programs: untouched, and with one bit changed. The chance is seeded.",
        "",
        *table(header, rows),
        "",
        "RAUC's format `verity` is checked when it is read, as `extract` does and the kernel during an installation: "
        "`info` looks at the signature, and the hashes in it. Accepted with the same content: the same "
        "bundle comes out; the bit lies where nobody looks, such as the filling between two members.",
        "",
        f"Programs: {', '.join(f'{name} {version}' for name, version in found['programs'].items())}.",
        "",
        *conditions_lines(found),
    ]


def versions() -> dict[str, str]:
    """The Debian packages whose programs judge."""
    found = {}
    for name in ("rauc", "squashfs-tools", "swupdate", "mender-artifact", "openssl"):
        done = subprocess.run(["dpkg-query", "-W", "-f=${Version}", name], capture_output=True, text=True)
        found[name] = done.stdout or "unknown"
    return found


def main() -> int:
    """0 when every untouched file was accepted, and no changed one with other content; else 1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--each", type=int, default=EACH, help="changed files of each system (%(default)s)")
    parser.add_argument("--out", type=Path, default=RESULTS / "firmware_systems.json")
    given = parser.parse_args()
    for program in ("rauc", "mksquashfs", "swupdate", "mender-artifact", "openssl"):
        if shutil.which(program) is None:
            raise SystemExit(f"{program}: not installed")
    use_cores(1)
    now = conditions(threads=1)
    with tempfile.TemporaryDirectory(prefix="edgekd-") as folder:
        scratch = Path(folder)
        write_keys(scratch)
        bundle = write_bundle(scratch)
        rows = [measured(system, bundle, given.each, scratch) for system in systems(scratch, scratch)]
    found = {
        "question": "do firmware systems take what edgekd packs for them, and refuse it changed?",
        "command": f"python bench/firmware_systems.py --each {given.each}",
        "seed": SEED,
        "programs": versions(),
        "systems": rows,
        **now,
    }
    write_results(given.out, found, page(found))
    return 0 if all(row["untouched"] == SAME and not row["other_content"] for row in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())

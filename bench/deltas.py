"""How much of a bundle has to travel, where the cameras have another one? Deltas between builds of one detector.

What is compared is told as NAME=BUNDLE, or, where the old one is another, by --pair; the same bundle with other
thresholds, and with another counter alone, is made here. Each delta is applied, and what comes of it compared with the
bundle, byte for byte; applying is timed on one core. For comparison: the bundle itself, compressed by xz, which knows
nothing of the old one, and a delta without the network taken apart.

    edgekd build model.pt --data DATA --target xavier --out runs/old
    edgekd build model.pt --data DATA --target xavier --calibration 64 --out runs/calibration
    edgekd build later.pt --data DATA --target xavier --out runs/later
    python bench/deltas.py runs/old/model-xavier.edgekd "other calibration=runs/calibration/model-xavier.edgekd" ...
"""

from __future__ import annotations

import argparse
import lzma
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from common import HERE, RESULTS, conditions, conditions_lines, table, use_cores, write_results

sys.path.insert(0, str(HERE.parent / "tests" / "agent"))
from cameras import repacked

from edgekd.core.bundle.archive import extract, read_manifest
from edgekd.core.bundle.delta import WHOLE, OldBundle, rebuild
from edgekd.core.bundle.manifest import Thresholds
from edgekd.deploy import delta


@dataclass(frozen=True)
class Row:
    """One change of a bundle.

    bytes: of the delta; plain_bytes: of one in which the network stays as it is compressed; xz_bytes: of the new
    bundle, compressed; pieces: bytes by how the delta has them.
    """

    change: str
    new_bytes: int
    bytes: int
    plain_bytes: int
    xz_bytes: int
    pieces: Mapping[str, int]
    apply_s: float
    identical: bool


def measure(change: str, old: Path, new: Path, scratch: Path) -> Row:
    """Make and apply a delta."""
    out, again = scratch / "delta", scratch / "again.edgekd"
    told = delta.run(old, new, out)
    with patch.object(delta, "_parts", lambda entry, content: {WHOLE: content}):
        plain = delta.run(old, new, scratch / "plain")
    folder = scratch / change.replace(" ", "-")
    extract(old, folder)
    began = time.perf_counter()
    rebuild(out, OldBundle(folder), again)
    seconds = time.perf_counter() - began
    return Row(
        change=change,
        new_bytes=told["new_bytes"],
        bytes=told["bytes"],
        plain_bytes=plain["bytes"],
        xz_bytes=len(lzma.compress(new.read_bytes(), preset=9)),
        pieces=told["pieces"],
        apply_s=round(seconds, 2),
        identical=again.read_bytes() == new.read_bytes(),
    )


def page(found: Mapping[str, Any]) -> list[str]:
    """The document as a page."""
    rows = [
        [
            row["change"],
            f"{row['new_bytes']:,}",
            f"{row['bytes']:,}",
            f"{1 - row['bytes'] / row['new_bytes']:.1%}",
            f"{row['plain_bytes']:,}",
            f"{row['xz_bytes']:,}",
            f"{row['apply_s']:.2f}",
            "yes" if row["identical"] else "NO",
        ]
        for row in found["rows"]
    ]
    header = ["what changed", "new bundle, bytes", "delta, bytes", "saved", "network not taken apart", "bundle by xz"]
    return [
        "# Deltas",
        "",
        f"`{found['command']}`",
        "",
        *(found["notes"] or ["What each bundle is, its name says."]),
        "",
        *table([*header, "applied in, s", "same bytes"], rows),
        "",
        *conditions_lines(found),
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """0 when every delta gave its bundle, else 1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", nargs="*", metavar="NAME=BUNDLE")
    parser.add_argument("--pair", nargs=3, action="append", default=[], metavar=("NAME", "OLD", "NEW"))
    parser.add_argument("--note", action="append", default=[], help="what is to be said of the bundles, on the page")
    parser.add_argument("--out", type=Path, default=RESULTS / "deltas.json")
    given = parser.parse_args(arguments)
    use_cores(1)
    now = conditions(threads=1)
    with tempfile.TemporaryDirectory(prefix="edgekd-") as folder:
        scratch = Path(folder)
        was = read_manifest(given.old)
        other = Thresholds(tuple(1 - each for each in was.thresholds.confidence), was.thresholds.iou, 100)
        pairs = [
            ("another counter", given.old, repacked(given.old, scratch / "counter", counter=was.counter + 1)),
            ("other thresholds", given.old, repacked(given.old, scratch / "thresholds", thresholds=other)),
        ]
        pairs += [(name, given.old, Path(path)) for name, _, path in (each.partition("=") for each in given.new)]
        pairs += [(name, Path(old), Path(new)) for name, old, new in given.pair]
        rows = [measure(name, old, new, scratch) for name, old, new in pairs]
    named = [f'"{each.partition("=")[0]}=NEW"' for each in given.new]
    named += [f'--pair "{name}" OLD NEW' for name, _, _ in given.pair]
    found = {
        "question": "how much of a bundle has to travel, where the cameras have another one?",
        "command": " ".join(["python bench/deltas.py OLD", *named]),
        "old_bytes": given.old.stat().st_size,
        "notes": given.note,
        "rows": [asdict(row) for row in rows],
        **now,
    }
    write_results(given.out, found, page(found))
    return 0 if all(row.identical for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())

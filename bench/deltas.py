"""Measure deltas between builds of one detector: how many bytes to send to cameras that have another build.

Pairs are given as NAME=BUNDLE, or by `--pair` with another old bundle. Copies of the bundle with another counter, and
with other thresholds, are made here. Each delta is applied on one core, and the result compared byte for byte.

    edgekd build model.pt --data DATA --target xavier --out runs/old
    edgekd build model.pt --data DATA --target xavier --calibration 64 --out runs/calibration
    python bench/deltas.py runs/old/model-xavier.edgekd "other calibration=runs/calibration/model-xavier.edgekd" ...
"""

import lzma
import sys
from dataclasses import asdict
from pathlib import Path
from unittest.mock import patch

from common import HERE, durations
from frame import Blocks, Document, Given, Option, Result, head, main, table, yes

sys.path.insert(0, str(HERE.parent / "tests" / "agent"))
from cameras import repacked

from edgekd.core.bundle.archive import extract, read_manifest
from edgekd.core.bundle.delta import OldBundle, rebuild
from edgekd.core.bundle.manifest import DetectionThresholds
from edgekd.deploy import delta


def measure(change: str, old: Path, new: Path, scratch: Path) -> Result:
    """Make and apply a delta, and return its row.

    `bytes`: size of the delta; `plain_bytes`: size of a delta that does not unpack the network; `xz_bytes`: size of the
    new bundle compressed with xz; `pieces`: bytes by how the delta stores them.
    """
    out, again = scratch / "delta", scratch / "again.edgekd"
    made = delta.run(old, new, out)
    with patch.object(delta, "_parts", lambda entry, content: {}):
        plain = delta.run(old, new, scratch / "plain")
    folder = scratch / change.replace(" ", "-")
    extract(old, folder)
    with OldBundle(folder, scratch) as source:
        (seconds,) = durations(lambda: rebuild(out, source, again), 1)
    return {
        "change": change,
        "new_bytes": made.new_bytes,
        "bytes": made.bytes,
        "plain_bytes": plain.bytes,
        "xz_bytes": len(lzma.compress(new.read_bytes(), preset=9)),
        "pieces": asdict(made.pieces),
        "apply_s": round(seconds, 2),
        "identical": again.read_bytes() == new.read_bytes(),
    }


def page(found: Document) -> Blocks:
    yield from head("Deltas", found)
    yield "\n".join(found.notes or ["What each bundle is, its name says."])
    yield table(
        "what changed | new bundle, bytes | delta, bytes | saved | network not taken apart | bundle by xz | "
        "applied in, s | same bytes",
        (
            f"{row.change} | {row.new_bytes:,} | {row.bytes:,} | {1 - row.bytes / row.new_bytes:.1%} | "
            f"{row.plain_bytes:,} | {row.xz_bytes:,} | {row.apply_s:.2f} | {yes(row.identical, 'NO')}"
            for row in found.rows
        ),
    )


def run(given: Given) -> Result:
    was = read_manifest(given.old)
    other = DetectionThresholds(tuple(1 - each for each in was.thresholds.confidence), was.thresholds.iou, 100)
    pairs = [
        ("another counter", given.old, repacked(given.old, given.scratch / "counter", counter=was.counter + 1)),
        ("other thresholds", given.old, repacked(given.old, given.scratch / "thresholds", thresholds=other)),
        *((name, given.old, Path(path)) for name, _, path in (each.partition("=") for each in given.new)),
        *((name, Path(old), Path(new)) for name, old, new in given.pair),
    ]
    return {"notes": given.note, "rows": [measure(*pair, given.scratch) for pair in pairs]}


if __name__ == "__main__":
    options = (
        Option("old", type=Path),
        Option("new", nargs="*", metavar="NAME=BUNDLE"),
        Option("--pair", [], nargs=3, action="append", metavar=("NAME", "OLD", "NEW")),
        Option("--note", [], "what is to be said of the bundles, on the page", action="append"),
    )
    main(run, page, *options, holds=lambda found: all(row.identical for row in found.rows), cores=1)

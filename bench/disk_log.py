"""Reconstruct the disk after a power cut from QEMU's log of all writes of a machine (driver `blklogwrites`).

The disk has a volatile write cache, as real ones do. Flushed writes are on the disk. Of unflushed writes each sector of
512 bytes is lost with some probability, so writes can be torn and reordered. Writes older than the last `CACHE_BYTES`
have left the cache and are on the disk, too.
"""

import random
import struct
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import BinaryIO

SECTOR_BYTES = 512
CACHE_BYTES = 32 << 20  # DRAM cache of a large eMMC or SD card
MAGIC = 0x6A736677736872  # log format of Linux's device mapper target log-writes
SUPERBLOCK = struct.Struct("<QQQI")  # magic, version, number of entries, bytes per sector
HEADER = struct.Struct(
    "<QQQQ"
)  # first sector, number of sectors, flags, length of a mark; the data follow the header's sector
FLUSH = 1  # flag: all earlier writes are on the disk
FORCED = 2  # flag: the write is on the disk once it is done (FUA)
DISCARD = 4  # flag: no data follow


@dataclass(frozen=True)
class Write:
    """A write or flush.

    Args:
        offset: Position on the disk in bytes.
        size: Bytes; 0 for a flush.
        data_at: Position of the data in the log in bytes.
        flags: FLUSH, FORCED.
    """

    offset: int
    size: int
    data_at: int
    flags: int


@dataclass(frozen=True)
class Survivors:
    """Outcome of a cut: the writes that reached the disk, in order, as (offset, data); counts of sectors."""

    runs: list[tuple[int, bytes]]
    unflushed: int
    lost: int


def read_log(log: Path) -> Iterator[Write]:
    """Yield the complete entries of a log, which a cut may have truncated. Raises ValueError if it is not a log."""
    with log.open("rb") as file:
        start = file.read(SUPERBLOCK.size)
        if not start:
            return  # cut before the first write
        magic, version, _, sector_bytes = SUPERBLOCK.unpack(start)
        if magic != MAGIC or version != 1 or sector_bytes != SECTOR_BYTES:
            raise ValueError(f"{log}: no log of writes in sectors of {SECTOR_BYTES} bytes")
        end, position = log.stat().st_size, SECTOR_BYTES
        while position + SECTOR_BYTES <= end:
            file.seek(position)
            sector, sectors, flags, _ = HEADER.unpack(file.read(HEADER.size))
            size = sectors * SECTOR_BYTES
            position += SECTOR_BYTES
            if flags & DISCARD:
                continue
            if (not size and not flags) or position + size > end:
                return  # cut within an entry
            yield Write(sector * SECTOR_BYTES, size, position, flags)
            position += size


def count_writes(log: Path) -> int:
    """Return the number of entries of a log that is still being written, 0 if it is empty."""
    with log.open("rb") as file:
        start = file.read(SUPERBLOCK.size)
    return SUPERBLOCK.unpack(start)[2] if len(start) == SUPERBLOCK.size else 0


def survivors(log: Path, lost_share: float, chance: random.Random) -> Survivors:
    """Return the writes that are on the disk after a cut at the end of a log.

    Args:
        log: QEMU's write log.
        lost_share: Probability that an unflushed sector is lost.
        chance: Random generator.
    """
    entries = list(read_log(log))
    unflushed = _unflushed(entries)
    runs: list[tuple[int, bytes]] = []
    total = lost = 0
    with log.open("rb") as file:
        for index, entry in enumerate(entries):
            data = _data(file, entry)
            if index not in unflushed:
                runs += [(entry.offset, data)] if data else []
                continue
            kept = [chance.random() >= lost_share for _ in range(entry.size // SECTOR_BYTES)]
            total, lost = total + len(kept), lost + kept.count(False)
            runs += [(entry.offset + start, data[start:end]) for start, end in _runs(kept)]
    return Survivors(runs, total, lost)


def write_runs(runs: Iterable[tuple[int, bytes]], disk: Path) -> None:
    """Write (offset, data) pairs to a qcow2 disk image. Raises CalledProcessError or OSError."""
    with tempfile.TemporaryDirectory(prefix="edgekd-runs-", dir=disk.parent) as folder:
        commands = []
        for index, (offset, data) in enumerate(runs):
            file = Path(folder, str(index))
            file.write_bytes(data)
            commands.append(f"write -q -s {file} {offset} {len(data)}\n")
        script = "".join(commands).encode()
        done = subprocess.run(("qemu-io", "-f", "qcow2", str(disk)), input=script, capture_output=True, check=True)
    if b"rror" in done.stdout + done.stderr or b"failed" in done.stdout + done.stderr:
        raise OSError(f"{disk}: {(done.stdout + done.stderr)[-500:]!r}")  # the exit code is 0 even then


def _unflushed(entries: list[Write]) -> set[int]:
    """Return the indices of writes that are in the cache at the end of the log."""
    cached: dict[int, int] = {}  # bytes by index, oldest first
    for index, entry in enumerate(entries):
        if entry.flags & FLUSH:
            cached.clear()
        if entry.size and not entry.flags & FORCED:
            cached[index] = entry.size
    excess = sum(cached.values()) - CACHE_BYTES
    for index in list(cached):
        if excess <= 0:
            break
        excess -= cached.pop(index)
    return set(cached)


def _data(file: BinaryIO, entry: Write) -> bytes:
    file.seek(entry.data_at)
    return file.read(entry.size)


def _runs(kept: list[bool]) -> Iterator[tuple[int, int]]:
    """Yield start and end in bytes of each run of kept sectors."""
    for is_kept, sectors in groupby(range(len(kept)), key=kept.__getitem__):
        if is_kept:
            first, *more = sectors
            yield first * SECTOR_BYTES, (first + len(more) + 1) * SECTOR_BYTES

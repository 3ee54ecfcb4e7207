"""Files of others are read within their limits, and within their own length."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

from edgekd.core.input_files import read_input


def test_a_small_file_takes_little_memory_whatever_the_limit(tmp_path: Path) -> None:
    (tmp_path / "small").write_bytes(b"small")
    tracemalloc.start()
    try:
        assert read_input(tmp_path / "small", 1 << 33) == b"small"
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()

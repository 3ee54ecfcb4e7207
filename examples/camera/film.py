#!/usr/bin/env python3
"""Write the pictures of a folder as a film, YUV4MPEG in 4:2:0, which stands in for a camera's sensor.

python film.py FOLDER OUT [COUNT]
"""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np

COUNT = 8  # frames, if not given: a camera in an emulator detects a few in a second


def write_film(folder: Path, out: Path, count: int = COUNT) -> None:
    """Write the first pictures of a folder, in the order of their names, all in the size of the first."""
    read = (cv2.imread(str(file)) for file in sorted(folder.iterdir())[:count])
    pictures = [picture for picture in read if picture is not None]
    height, width = (side // 2 * 2 for side in pictures[0].shape[:2])
    with out.open("wb") as stream:
        stream.write(f"YUV4MPEG2 W{width} H{height} F2:1 Ip A1:1 C420\n".encode("ascii"))
        for picture in pictures:
            even = np.ascontiguousarray(picture[:height, :width])
            stream.write(b"FRAME\n" + cv2.cvtColor(even, cv2.COLOR_BGR2YUV_I420).tobytes())


if __name__ == "__main__":
    write_film(Path(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:4]))

#!/usr/bin/env python3
"""Render the scenes that `edgekd demo` runs on: `write_scenes.py FOLDER`, a folder that does not exist yet."""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
from demo_scenes.scenes import write_dataset

TRAIN = 60  # minimum for the drift record
VAL = 36
JPEG = (cv2.IMWRITE_JPEG_QUALITY, 35, cv2.IMWRITE_JPEG_OPTIMIZE, 1, cv2.IMWRITE_JPEG_PROGRESSIVE, 1)
"""JPEG settings that keep all scenes together below 1.5 MB, at a loss of about 0.01 mAP50-95."""

if __name__ == "__main__":
    print(write_dataset(Path(sys.argv[1]), TRAIN, VAL, JPEG))

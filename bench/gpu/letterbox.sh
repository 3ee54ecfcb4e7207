#!/usr/bin/env bash
# Compares the letterbox on a GPU with the host's, bit for bit, and times both. Run in the repository's root, on a
# Jetson or another machine with an NVIDIA GPU; the result goes to $OUT (default: runs/gpu/letterbox).
# Needs: CUDA's nvcc, and python3 with NumPy, OpenCV and PyCUDA.
set -euo pipefail
OUT=$(realpath -m "${OUT:-runs/gpu/letterbox}")
mkdir -p "$OUT"
PYTHONPATH=. python3 bench/gpu/letterbox.py | tee "$OUT/letterbox.txt"

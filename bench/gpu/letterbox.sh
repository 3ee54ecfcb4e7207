#!/usr/bin/env bash
# Proves the letterbox on a GPU, bit for bit beside the host's, and times both. Run in the repository's root, on a Jetson
# or another machine with an NVIDIA GPU; the result goes to $OUT (default: runs/gpu/letterbox).
# Needs: CUDA's nvcc, and python3 with NumPy, OpenCV and PyCUDA.
set -euo pipefail
OUT=$(realpath -m "${OUT:-runs/gpu/letterbox}")
mkdir -p "$OUT"
PYTHONPATH=. python3 bench/gpu/letterbox.py | tee "$OUT/letterbox.txt"

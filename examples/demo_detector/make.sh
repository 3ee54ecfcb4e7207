#!/usr/bin/env bash
# Trains the demo's detector on a GPU: renders scenes, trains, exports, scores. Takes about SECONDS_TO_TRAIN + 150 s.
# Run in the repository's root; results go to $OUT (default: runs/demo_detector). To ship the result:
#   cp $OUT/detector.onnx edgekd/data/demo/ && cp $OUT/demo_detector.json bench/results/
set -euo pipefail
OUT=${OUT:-runs/demo_detector}
export PYTHONPATH=$PWD:${PYTHONPATH:-} PYTHONUNBUFFERED=1
python3 examples/demo_detector/train.py --out "$OUT" --scenes "${SCENES:-30000}" --seconds "${SECONDS_TO_TRAIN:-300}" "$@"
python3 examples/demo_detector/score.py "$OUT" --scenes "${SCORED:-256}" --out "$OUT/demo_detector.json"

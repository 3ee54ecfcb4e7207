#!/usr/bin/env bash
# Times a float graph and its INT8 Q/DQ version on one engine, frame to detections; on a GPU by default.
# Run in the repository's root after `edgekd demo`; results go to $OUT (default: bench/results).
# Needs: pip install -e . && pip uninstall -y onnxruntime && pip install onnxruntime-gpu
#   BEFORE, AFTER: the two graphs (default: the demo's). ENGINE: another engine, such as onnxruntime-cpu.
set -euo pipefail
OUT=${OUT:-bench/results}
ENGINE=${ENGINE:-onnxruntime-cuda}
BEFORE=${BEFORE:-edgekd/demo/detector.onnx}
AFTER=${AFTER:-runs/demo/graph.onnx}
export PYTHONPATH=$PWD:${PYTHONPATH:-}
mkdir -p "$OUT"
for graph in before after; do
    if [ $graph = before ]; then model=$BEFORE; else model=$AFTER; fi
    python3 -m edgekd bench "$model" --device "local:$ENGINE" --iterations "${ITERATIONS:-500}" --json \
        >"$OUT/$ENGINE-$graph.json"
done
python3 - "$OUT" "$ENGINE" <<'PYTHON'
import json, sys
from pathlib import Path

out, engine = Path(sys.argv[1]), sys.argv[2]
for graph in ("before", "after"):
    found = json.loads((out / f"{engine}-{graph}.json").read_text())
    inference, total = found["inference_ms"], found["total_ms"]
    print(f"{graph}: inference p50 {inference['p50']:.2f} ms, total p50 {total['p50']:.2f} ms, {found['fps']:.1f} FPS")
PYTHON

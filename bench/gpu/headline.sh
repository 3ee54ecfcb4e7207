#!/usr/bin/env bash
# Runs bench/headline.py on a GPU with the PPE images: from a large detector to a small bundle. ENGINE times the graphs
# (default: openvino-cpu). A call stops after LIMIT seconds. Results are in $OUT (default: runs/gpu/headline); a call
# with START=that folder continues: headline.json and .md (the result so far), headline-state.tgz (finished rows,
# graphs, the stages of the build), headline-logs.tgz.
# Run in the repository's root. WEIGHTS: the large detector, in one file or in parts WEIGHTS.00 ...; STUDENT: the
# student's initial checkpoint; MINUTES: of training with the large detector as teacher; SHARED: a folder with data/ppe.
# Further arguments go to the benchmark.
# Needs: python3 with PyTorch, torchvision, OpenCV, SciPy, Matplotlib, ONNX, ONNX Runtime, setuptools; and in WHEELS the
# missing ones of ultralytics ultralytics-thop ultralytics-platform onnxslim faster-coco-eval typer rich cryptography
# cyclonedx-python-lib optuna openvino. Ultralytics is required. Downloads nothing.
set -euo pipefail
OUT=$(realpath -m "${OUT:-runs/gpu/headline}")
. bench/gpu/environment.sh
LARGE=$WORK/large.pt
if [ -f "$WEIGHTS" ]; then cp "$WEIGHTS" "$LARGE"; else cat "$WEIGHTS".[0-9]* >"$LARGE"; fi
STUDENT=${STUDENT:-$SHARED/models/yolo11n.pt}
if [ -n "${START:-}" ]; then tar -xzf "$START/headline-state.tgz" -C "$WORK/bench"; fi
ENGINE=${ENGINE:-openvino-cpu}

bench=("$python" bench/headline.py --model "$LARGE" --student "$STUDENT" --data "$SHARED/data/ppe" --device "$DEVICE")
bench+=(--work "$WORK/bench" --out "$OUT/headline.json" --engine "$ENGINE" --threads "$(nproc)")
bench+=(--minutes "${MINUTES:-4}" --quantized-epochs "${EPOCHS:-10}" --batch "${BATCH:-32}")
timeout --kill-after 10 "$((LIMIT - SECONDS))" "${bench[@]}" "$@" || echo "stopped with status $? (124: out of time)"
cd "$WORK/bench"
find . -maxdepth 1 -name '*.log' | tar -czf "$OUT/headline-logs.tgz" -T -
# Large files are not kept: the large detector's float graphs are exported again.
find . -type f -size -40M ! -path './data/*' ! -name '*.log' -print0 | tar -czf "$OUT/headline-state.tgz" --null -T -

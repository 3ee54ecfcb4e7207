#!/usr/bin/env bash
# Runs a training benchmark on a GPU with the PPE images: `training.sh distillation` for bench/distillation.py, or
# `training.sh pruning` for bench/pruning.py. A call stops after LIMIT seconds. Results are in $OUT (default:
# runs/gpu/BENCH); a call with START=that folder continues: $NAME.json and .md (the result so far), $NAME-rows.json,
# $NAME-logs.tgz, and $NAME-state.tgz (finished checkpoints, and the state of an interrupted training).
# Run in the repository's root. NAME: name of the result; WEIGHTS: the teacher, or the detector to prune; STUDENT, WIDTH
# (distillation): an Ultralytics model or a checkpoint, and the factor of its width; EPOCHS, or MINUTES in place of them
# (distillation); SHARED: a folder with data/ppe, and models/yolo11n-ppe.pt if WEIGHTS is not set. Further arguments go
# to the benchmark: --seeds 0 1 2, --unlabelled 0.5 (distillation), --ablation, --ratio 0.5 (pruning)
# Needs: python3 with PyTorch, torchvision, OpenCV, SciPy, Matplotlib, ONNX, ONNX Runtime, setuptools; and in WHEELS the
# missing ones of ultralytics ultralytics-thop ultralytics-platform onnxslim faster-coco-eval typer rich torch-pruning
# openvino. Ultralytics is required. Downloads nothing.
set -euo pipefail
BENCH=$1
shift
OUT=$(realpath -m "${OUT:-runs/gpu/$BENCH}")
NAME=${NAME:-$BENCH}
. bench/gpu/environment.sh
WEIGHTS=${WEIGHTS:-$SHARED/models/yolo11n-ppe.pt}

if [ -n "${START:-}" ]; then
    if [ -f "$START/$NAME-rows.json" ]; then cp "$START/$NAME-rows.json" "$WORK/bench/rows.json"; fi
    if [ -f "$START/$NAME-state.tgz" ]; then tar -xzf "$START/$NAME-state.tgz" -C "$WORK/bench"; fi
fi

bench=("$python" "bench/$BENCH.py" --model "$WEIGHTS" --data "$SHARED/data/ppe" --work "$WORK/bench")
bench+=(--out "$OUT/$NAME.json" --device "$DEVICE" --threads "$(nproc)" --batch "${BATCH:-32}")
bench+=(${STUDENT:+--student "$STUDENT"} ${WIDTH:+--width "$WIDTH"} ${MINUTES:+--minutes "$MINUTES"})
bench+=(${EPOCHS:+--epochs "$EPOCHS"} ${SIZE:+--image-size "$SIZE"} ${IMAGES:+--images "$IMAGES"})
timeout --kill-after 10 "$((LIMIT - SECONDS))" "${bench[@]}" "$@" || echo "stopped with status $? (124: out of time)"
cd "$WORK/bench"
find . -maxdepth 1 -name '*.log' | tar -czf "$OUT/$NAME-logs.tgz" -T -
for graph in *.onnx; do rm -rf "${graph%.onnx}.training"; done # an exported training is finished
kept=(-name 'start-*.pt' -o -name '*.training')
# The pruning benchmark times all graphs at the end, and looks for the narrower model by the pruned graph's latency.
if [ "$BENCH" = pruning ]; then kept=(-name '*.pt' -o -name '*.onnx' -o -name '*.json' -o -name '*.training'); fi
find . -maxdepth 1 \( "${kept[@]}" \) ! -name rows.json | tar -czf "$OUT/$NAME-state.tgz" -T -
if [ -f rows.json ]; then cp rows.json "$OUT/$NAME-rows.json"; fi

#!/usr/bin/env bash
# Runs a bench of trainings on a GPU, on the PPE images: `training.sh distillation` or `training.sh pruning`, which is
# bench/distillation.py or bench/pruning.py. Within LIMIT seconds a call; what is done by then is in $OUT (default:
# runs/gpu/BENCH), and a call with START=that folder goes on: $NAME.json and .md (the result so far), $NAME-rows.json,
# $NAME-logs.tgz, and $NAME-state.tgz (what was trained so far, and the training that was cut, if there is one).
# Run in the repository's root. NAME: of the result; WEIGHTS: the teacher, or what is pruned; STUDENT, WIDTH: with
# distillation, a model by Ultralytics or a checkpoint; EPOCHS, or with distillation MINUTES in their place; SHARED: a
# folder with data/ppe, and models/yolo11n-ppe.pt where WEIGHTS is not given. Further arguments go to the bench:
# --seeds 0 1 2, --unlabelled 0.5 (distillation), --ablation, --ratio 0.5 (pruning)
# Needs: python3 with PyTorch, torchvision, OpenCV, SciPy, Matplotlib, ONNX, ONNX Runtime, setuptools; and in WHEELS what
# is missing of ultralytics ultralytics-thop ultralytics-platform onnxslim faster-coco-eval typer rich torch-pruning
# openvino. Ultralytics has to be there. Nothing is fetched.
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
for graph in *.onnx; do rm -rf "${graph%.onnx}.training"; done # what is exported is trained
kept=(-name 'start-*.pt' -o -name '*.training')
# A bench of pruning times at the end what it has made, and a narrower model is made like a pruned one.
if [ "$BENCH" = pruning ]; then kept=(-name '*.pt' -o -name '*.onnx' -o -name '*.json' -o -name '*.training'); fi
find . -maxdepth 1 \( "${kept[@]}" \) ! -name rows.json | tar -czf "$OUT/$NAME-state.tgz" -T -
if [ -f rows.json ]; then cp rows.json "$OUT/$NAME-rows.json"; fi

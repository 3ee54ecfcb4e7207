#!/usr/bin/env bash
# Runs bench/stand_in.py on a GPU with ONNX Runtime's CUDA provider, then bench/camera_to_detections.py --gpu if SHARED
# has its images. Run in the repository's root; results go to $OUT (default: runs/gpu/stand_in).
# ENGINE, BEFORE, AFTER: options of bench/stand_in.py; SECONDS_EACH: seconds per part; ROUNDS: rounds of
# bench/camera_to_detections.py.
# Needs: python3 with PyTorch, torchvision, OpenCV, SciPy, Matplotlib, ONNX, setuptools; and in WHEELS onnxruntime-gpu
# and the missing ones of ultralytics ultralytics-thop ultralytics-platform onnxslim faster-coco-eval typer rich.
# A wheel that is too large for one transfer is sent in parts, over several calls: `split -b 60M WHEEL WHEEL.part-`,
# then `stand_in.sh keep` with one part in WHEELS at a time. Parts are kept in KEPT; the call that measures joins them.
set -euo pipefail
OUT=$(realpath -m "${OUT:-runs/gpu/stand_in}")
KEPT=${KEPT:-$HOME/.cache/edgekd-wheels}
if [ "${1:-}" = keep ]; then
    mkdir -p "$KEPT"
    mv "${WHEELS:-.whl}"/*.part-* "$KEPT"
    ls -l "$KEPT"
    exit
fi
if compgen -G "$KEPT/*.part-*" >/dev/null; then
    for first in "$KEPT"/*.part-aa; do cat "${first%aa}"* >"${WHEELS:-.whl}/$(basename "${first%.part-aa}")"; done
fi
. bench/gpu/environment.sh
bench=("$python" bench/stand_in.py --engine "${ENGINE:-onnxruntime-cuda}" --out "$OUT/stand_in.json")
bench+=(--threads "$(nproc)" --seconds "${SECONDS_EACH:-6}" --iterations "${ITERATIONS:-300}")
read -ra after <<<"${AFTER:-}"
bench+=(${BEFORE:+--before "$BEFORE"} ${AFTER:+--after "${after[@]}"})
"${bench[@]}" || echo "stopped with status $? (1: the goals are not reached)"
if [ -d "$SHARED/data/coco256" ] && [ "${ENGINE:-onnxruntime-cuda}" = onnxruntime-cuda ]; then
    "$python" bench/camera_to_detections.py --gpu --shared "$SHARED" --models demo yolo11n.pt --cores "$(nproc)" \
        --rounds "${ROUNDS:-8}" --seconds 3 --out "$OUT/camera_to_detections_gpu.json" || echo "stopped with status $?"
fi

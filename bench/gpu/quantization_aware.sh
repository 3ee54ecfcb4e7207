#!/usr/bin/env bash
# Quantization-aware training on a GPU: trains a float YOLO on the PPE images, continues from it with edgekd's training
# and with Ultralytics' `quantize=8`, and scores the results. One model per call, which stops after LIMIT seconds.
# Results are in $OUT (default: runs/gpu/quantization_aware); a call with START=that folder continues: $MODEL.json and
# .md (the result so far), $MODEL-rows.json, and the float checkpoint in parts, $MODEL.pt.00 ...
# Run in the repository's root. MODEL: yolo11s, yolo11m, ...; WEIGHTS: a trained float checkpoint, to use in place of
# training one; SHARED: a folder with data/ppe. Further arguments go to bench/quantization_aware.py.
# Needs: python3 with PyTorch, torchvision, OpenCV, SciPy, Matplotlib, ONNX, ONNX Runtime, setuptools; and in WHEELS the
# missing ones of ultralytics ultralytics-thop ultralytics-platform nvidia-modelopt omegaconf pulp huggingface_hub
# onnxslim faster-coco-eval. Ultralytics is required. Downloads nothing.
set -euo pipefail
OUT=${OUT:-runs/gpu/quantization_aware}
MODEL=${MODEL:-yolo11s}
SIZE=${SIZE:-640}
. bench/gpu/environment.sh

TEACHER=$WORK/$MODEL.pt
if [ -n "${START:-}" ]; then
    cat "$START/$MODEL.pt".* >"$TEACHER"
    if [ -f "$START/$MODEL-rows.json" ]; then cp "$START/$MODEL-rows.json" "$WORK/bench/rows.json"; fi
elif [ -n "${WEIGHTS:-}" ]; then
    cp "$WEIGHTS" "$TEACHER"
else
    "$python" - "$MODEL" "$SHARED/data/ppe" "$WORK" "$DEVICE" "$SIZE" "${MINUTES_TO_TRAIN:-4}" "${IMAGES:-}" <<'PYTHON'
import shutil, sys
from pathlib import Path

sys.path.insert(0, "bench")
from common import copy_data
from ultralytics import YOLO

model, data, work, device, size, minutes, images = sys.argv[1:]
copied = copy_data(Path(data), Path(work, "data"), int(images) if images else None)
yolo = YOLO(f"{model}.yaml")
hardware = {"amp": False, "workers": 0} if device == "cpu" else {"amp": "bf16", "cache": "ram"}
settings = {"time": float(minutes) / 60, "imgsz": int(size), "batch": 32, "plots": False, "device": device, **hardware}
yolo.train(data=copied, project=work, name="float", **settings)
shutil.copy(yolo.trainer.best, Path(work, f"{model}.pt"))
PYTHON
fi
split -b 15M -d "$TEACHER" "$OUT/$MODEL.pt."

bench=("$python" bench/quantization_aware.py --model "$TEACHER" --data "$SHARED/data/ppe" --work "$WORK/bench")
bench+=(--out "$OUT/$MODEL.json" --peer "$python" --device "$DEVICE" --threads "$(nproc)" --image-size "$SIZE")
bench+=(--epochs "${EPOCHS:-20}" --batch "${BATCH:-32}" ${IMAGES:+--images "$IMAGES"} --part 8 --peers)
timeout --kill-after 10 "$((LIMIT - SECONDS))" "${bench[@]}" "$@" || echo "stopped with status $? (124: out of time)"
(cd "$WORK/bench" && find . -maxdepth 1 -name '*.log' | tar -czf - -T -) >"$OUT/$MODEL-logs.tgz"
cp "$WORK/bench/rows.json" "$OUT/$MODEL-rows.json"

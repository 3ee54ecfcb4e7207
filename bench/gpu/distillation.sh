#!/usr/bin/env bash
# Distillation on a GPU: students of one teacher on the PPE images, without distillation, with Ultralytics' own, and with
# edgekd's, each from the same start; scored on val and test. Within LIMIT seconds a call; what is done by then is in $OUT
# (default: runs/gpu/distillation), and a call with START=that folder goes on: $NAME.json and .md (the result so far),
# $NAME-rows.json, $NAME-logs.tgz, and $NAME-state.tgz (students' starts, and the training that was cut, if there is one).
# Run in the repository's root. NAME: of the result; WEIGHTS: the teacher; STUDENT, WIDTH: the student, a model by
# Ultralytics or a checkpoint; EPOCHS, or MINUTES in their place; SHARED: a folder with data/ppe, and models/yolo11n-ppe.pt
# where WEIGHTS is not given. Further arguments go to bench/distillation.py: --ablation, --unlabelled 0.5, --seeds 0 1 2
# Needs: python3 with PyTorch, torchvision, OpenCV, SciPy, Matplotlib, ONNX, ONNX Runtime, setuptools; and in WHEELS what
# is missing of ultralytics ultralytics-thop ultralytics-platform onnxslim faster-coco-eval typer rich. Ultralytics has to
# be there. Nothing is fetched.
set -euo pipefail
OUT=$(realpath -m "${OUT:-runs/gpu/distillation}")
NAME=${NAME:-distillation}
WHEELS=${WHEELS:-.whl}
SHARED=${SHARED:-../shared}
DEVICE=${DEVICE:-0}
LIMIT=${LIMIT:-560}
WEIGHTS=${WEIGHTS:-$SHARED/models/yolo11n-ppe.pt}
WORK=$(mktemp -d)
trap 'rm -rf "$WORK"' EXIT
mkdir -p "$OUT" "$WORK/ultralytics/Ultralytics" "$WORK/bench"
touch "$WORK/ultralytics/Ultralytics/Arial.ttf" # a font that is there is not downloaded
export PYTHONUNBUFFERED=1 YOLO_CONFIG_DIR=$WORK/ultralytics YOLO_OFFLINE=True YOLO_AUTOINSTALL=False

# An environment that sees the machine's packages: Ultralytics' command has to lie beside its interpreter.
site='import sysconfig; print(sysconfig.get_paths()["purelib"])'
python3 -m venv --without-pip "$WORK/venv"
python=$WORK/venv/bin/python
python3 -c "$site" >"$("$python" -c "$site")/machine.pth"
install=(python3 -m pip --python "$python" install -q --no-index --no-deps)
"${install[@]}" --ignore-installed "$WHEELS"/*.whl
"${install[@]}" --no-build-isolation -e .
# Ultralytics reads its own log with polars, and does without where that fails; the import must not.
"$python" -c 'import polars' 2>/dev/null || touch "$("$python" -c "$site")/polars.py"

if [ -n "${START:-}" ]; then
    if [ -f "$START/$NAME-rows.json" ]; then cp "$START/$NAME-rows.json" "$WORK/bench/rows.json"; fi
    if [ -f "$START/$NAME-state.tgz" ]; then tar -xzf "$START/$NAME-state.tgz" -C "$WORK/bench"; fi
fi

bench=("$python" bench/distillation.py --model "$WEIGHTS" --data "$SHARED/data/ppe" --work "$WORK/bench")
bench+=(--student "${STUDENT:-yolo11n.yaml}" ${WIDTH:+--width "$WIDTH"} --out "$OUT/$NAME.json" --device "$DEVICE")
bench+=(--threads "$(nproc)" --batch "${BATCH:-32}" ${EPOCHS:+--epochs "$EPOCHS"} ${MINUTES:+--minutes "$MINUTES"})
bench+=(${SIZE:+--image-size "$SIZE"} ${IMAGES:+--images "$IMAGES"})
timeout --kill-after 10 "$((LIMIT - SECONDS))" "${bench[@]}" "$@" || echo "stopped with status $? (124: out of time)"
cd "$WORK/bench"
find . -maxdepth 1 -name '*.log' | tar -czf "$OUT/$NAME-logs.tgz" -T -
find . -maxdepth 1 \( -name 'start-*.pt' -o -name '*.training' \) | tar -czf "$OUT/$NAME-state.tgz" -T -
if [ -f rows.json ]; then cp rows.json "$OUT/$NAME-rows.json"; fi

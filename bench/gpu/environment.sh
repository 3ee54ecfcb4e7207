# shellcheck shell=bash
# Sourced by the scripts that train. Creates $WORK, a temporary folder with $WORK/bench, which is removed at exit, and
# $python, a virtual environment with the machine's packages, the wheels in $WHEELS, and edgekd. Downloads nothing.
WHEELS=${WHEELS:-.whl}
SHARED=${SHARED:-../shared}
DEVICE=${DEVICE:-0}
LIMIT=${LIMIT:-560}
WORK=$(mktemp -d)
trap 'rm -rf "$WORK"' EXIT
mkdir -p "$OUT" "$WORK/ultralytics/Ultralytics" "$WORK/bench"
touch "$WORK/ultralytics/Ultralytics/Arial.ttf" # Ultralytics downloads this font if it is missing
export PYTHONUNBUFFERED=1 YOLO_CONFIG_DIR=$WORK/ultralytics YOLO_OFFLINE=True YOLO_AUTOINSTALL=False

# Ultralytics' command must be in the interpreter's folder.
site='import sysconfig; print(sysconfig.get_paths()["purelib"])'
python3 -m venv --without-pip "$WORK/venv"
python=$WORK/venv/bin/python
python3 -c "$site" >"$("$python" -c "$site")/machine.pth"
install=(python3 -m pip --python "$python" install -q --no-index --no-deps)
"${install[@]}" --ignore-installed "$WHEELS"/*.whl
"${install[@]}" --no-build-isolation -e .
# Ultralytics reads its log with polars. It tolerates errors of polars, but not a failing import: add an empty module.
"$python" -c 'import polars' 2>/dev/null || touch "$("$python" -c "$site")/polars.py"

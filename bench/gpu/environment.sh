# shellcheck shell=bash
# Sourced by the scripts that train. Makes $WORK, a folder that goes when the script ends, with $WORK/bench in it, and
# $python, an environment that sees the machine's packages, the wheels in $WHEELS, and edgekd. Nothing is fetched.
WHEELS=${WHEELS:-.whl}
SHARED=${SHARED:-../shared}
DEVICE=${DEVICE:-0}
LIMIT=${LIMIT:-560}
WORK=$(mktemp -d)
trap 'rm -rf "$WORK"' EXIT
mkdir -p "$OUT" "$WORK/ultralytics/Ultralytics" "$WORK/bench"
touch "$WORK/ultralytics/Ultralytics/Arial.ttf" # a font that is there is not downloaded
export PYTHONUNBUFFERED=1 YOLO_CONFIG_DIR=$WORK/ultralytics YOLO_OFFLINE=True YOLO_AUTOINSTALL=False

# Ultralytics' command has to lie beside its interpreter.
site='import sysconfig; print(sysconfig.get_paths()["purelib"])'
python3 -m venv --without-pip "$WORK/venv"
python=$WORK/venv/bin/python
python3 -c "$site" >"$("$python" -c "$site")/machine.pth"
install=(python3 -m pip --python "$python" install -q --no-index --no-deps)
"${install[@]}" --ignore-installed "$WHEELS"/*.whl
"${install[@]}" --no-build-isolation -e .
# Ultralytics reads its own log with polars, and does without where that fails; the import must not.
"$python" -c 'import polars' 2>/dev/null || touch "$("$python" -c "$site")/polars.py"

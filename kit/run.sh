#!/bin/sh
# edgekd's validation kit: builds, tests and times the detector beside this script by every runtime of this machine, and
# writes all evidence into one file. Any POSIX sh. No network, nothing is installed, nothing is put into service.
#
# usage: sh run.sh [--out FILE] [--quick]
#
# exit code: 0 every claim that could be tested is confirmed; 1 one is refuted; 2 wrong usage, or a damaged kit;
#            3 nothing could be tested; 4 cut short: a process crashed, was killed or took too long
set -u
LC_ALL=C
PYTHONDONTWRITEBYTECODE=1
CUDA_CACHE_DISABLE=1    # the cache is in the home folder
ORT_DISABLE_TELEMETRY=1 # ONNX Runtime also writes there, and sends these data
export LC_ALL PYTHONDONTWRITEBYTECODE CUDA_CACHE_DISABLE ORT_DISABLE_TELEMETRY

usage='usage: sh run.sh [--out FILE] [--quick]'
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd) || exit 2
out=$here/result.json
quick=
while [ $# -gt 0 ]; do
    case $1 in
        --out)
            [ $# -ge 2 ] || { echo "$usage" >&2; exit 2; }
            out=$2
            shift
            ;;
        --out=*) out=${1#--out=} ;;
        --quick) quick=--quick ;;
        -h | --help)
            echo "$usage"
            exit 0
            ;;
        *)
            echo "run.sh: unknown argument; $usage" >&2
            exit 2
            ;;
    esac
    shift
done
case $out in
    /*) ;;
    *) out=$PWD/$out ;;
esac
cd "$here" || exit 2

# plain TEXT: print the characters of a text that need no escape in JSON.
plain() {
    printf '%s' "$1" | tr -cd 'A-Za-z0-9 .,:;()_+=>~-'
}

# write_result COMPLETE KIND MESSAGE: write a complete result.json, with nothing but a shell.
write_result() {
    l4t=$(sed -n 's/^# R\([0-9]*\) .*REVISION: \([0-9.]*\).*/"\1.\2"/p' /etc/nv_tegra_release 2>/dev/null)
    {
        printf '{"format":1,"complete":%s,' "$1"
        printf '"problem":{"kind":"%s","message":"%s"},' "$2" "$(plain "$3")"
        printf '"kit":null,"system":{"kernel":"%s","machine":"%s","l4t":%s,' \
            "$(plain "$(uname -r)")" "$(plain "$(uname -m)")" "${l4t:-null}"
        printf '"power_mode":null,"device":null,"versions":null,"governors":null,"clocks_locked":null,'
        printf '"clock_limits_mhz":null},'
        printf '"preparation":null,"attempts":[],"verdicts":[]}\n'
    } >"$out.new" && mv -f "$out.new" "$out" && return
    echo "run.sh: cannot write $out" >&2
    exit 2
}

# end CODE KIND MESSAGE: write a result, and exit.
end() {
    write_result true "$2" "$3"
    echo "run.sh: $3" >&2
    echo "result: $out" >&2
    exit "$1"
}

write_result false started 'started, and not come to its end'

sha256sum -c SHA256SUMS >/dev/null 2>&1 || end 2 damaged-kit 'the kit is damaged: its SHA-256 are not as in SHA256SUMS; download it again'

# The rank of a Python: 0 too old, 1 without NumPy, 2 with it, 3 with ONNX Runtime, 4 with TensorRT. Valid in every Python 3.
# shellcheck disable=SC2016
probe='
import sys
rank = 1 if sys.version_info >= (3, 8) else 0
if rank:
    try:
        import numpy
        from importlib.util import find_spec
        rank = 4 if find_spec("tensorrt") else 3 if find_spec("onnxruntime") else 2
    except ImportError:
        pass
sys.stdout.write("%d %s" % (rank, ".".join(map(str, sys.version_info[:3]))))
'
python=
best=1
seen=
for candidate in python3 python3.13 python3.12 python3.11 python3.10 python3.9 python3.8; do
    command -v "$candidate" >/dev/null 2>&1 || continue
    found=$("$candidate" -c "$probe" 2>/dev/null) || found="1 that ends with exit code $?"
    rank=${found%% *}
    case $rank in
        0) why='is too old' ;;
        1) why='has no NumPy that can be imported' ;;
        *) why='would do' ;;
    esac
    seen="$seen; $candidate (${found#* }) $why"
    if [ "$rank" -gt "$best" ]; then
        best=$rank
        python=$candidate
    fi
done
[ -n "$python" ] || end 3 no-python "no Python 3.8 or newer with NumPy${seen:-; no python3 at all}"

echo "Python: $python; result: $out" >&2
# shellcheck disable=SC2086
answer=$("$python" agent.pyz validate ./*.edgekd --kit kit.json --out "$out" $quick)
code=$?
# The agent writes its own result before it starts anything. If it has not, its output is the only information.
if grep -q '"kind":"started"' "$out"; then
    write_result false crashed "$python ended with exit code $code: $(printf '%.600s' "$answer")"
    code=4
fi
# Python itself also exits with 1 for an unhandled exception.
[ "$code" -ne 1 ] || grep -q '"outcome":"refuted"' "$out" || code=4
[ "$code" -le 4 ] || code=4
case $code in
    0) verdict='every claim that could be tested is confirmed' ;;
    1) verdict='a claim is refuted' ;;
    2) verdict='it could not be run' ;;
    3) verdict='nothing could be tested' ;;
    *) verdict='cut short: a process crashed, was killed or took too long' ;;
esac
echo "verdict: $verdict (exit code $code)" >&2
echo "result: $out: please send it back, whatever the verdict is" >&2
exit "$code"

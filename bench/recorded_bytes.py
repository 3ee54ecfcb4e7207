"""Record the SHA-256 of every file of every build stage, or compare builds with the record.

For refactorings that must not change results.

    python bench/recorded_bytes.py            # compare; exit code 1 and a line for each difference
    python bench/recorded_bytes.py --write    # record

Floating-point sums depend on the processor and on library versions. On another machine, first run `--write` there at a
revision that is known to be right.
"""

import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from common import HERE, copy_data, host_line, use_cores
from frame import Option, parser_of

from edgekd import build
from edgekd.core.atomic_files import write_file
from edgekd.core.documents import to_plain
from edgekd.data.demo import DETECTOR
from edgekd.deploy.devices.local import LocalDevice
from edgekd.graph.runtimes.onnxruntime import ONNXRUNTIME_CPU

IMAGES = 16  # per split: enough for every stage to do some work
WITH_TIMES = ("agent.pyz", "bundle.edgekd", "evidence.json", "report.html", "samples.json", "sbom.cdx.json")
"""Files that are not compared: they contain times, the agent or versions of libraries."""
CASES = (("demo", "ptq"), ("yolo11n.pt", "ptq"), ("yolo26n.pt", "ptq"), ("yolox_nano.onnx", "mixed"))

sys.path.insert(0, str(HERE.parent / "examples" / "demo_detector"))
from demo_scenes.scenes import write_dataset  # noqa: E402


def main() -> int:
    given = parser_of(sys.modules[__name__], (Option("--write", False, "record"),), 2).parse_args()
    use_cores(given.threads)
    with tempfile.TemporaryDirectory() as scratch:
        found = {f"{model}, {recipe}": recorded(model, recipe, given.shared, Path(scratch)) for model, recipe in CASES}
    machine = host_line(to_plain(LocalDevice(ONNXRUNTIME_CPU, 2).facts()))
    if given.write:
        write_file(
            given.out, (json.dumps({"machine": machine, "builds": found}, indent=1, sort_keys=True) + "\n").encode()
        )
        return 0
    known = json.loads(given.out.read_bytes())
    if known["machine"] != machine:
        print(f"recorded elsewhere: {known['machine']}; here: {machine}", file=sys.stderr)
    differences = list(compared(known["builds"], found))
    print("\n".join(differences) or f"{sum(map(len, found.values()))} files of {len(found)} builds are as recorded")
    return bool(differences)


def recorded(model: str, recipe: str, shared: Path, scratch: Path) -> dict[str, str]:
    """Build a detector. Return the SHA-256 of each file by "STAGE VERSION: NAME"."""
    folder = scratch / f"{model}-{recipe}"
    if model == "demo":
        source, data = DETECTOR, folder / "scenes"
        write_dataset(data, train=IMAGES, val=IMAGES)
    else:
        source, data = shared / "models" / model, copy_data(shared / "data" / "coco256", folder / "data", IMAGES)
    out = folder / "out"
    size = "0.8MB" if recipe == "mixed" else None
    build(source, data, target="xavier", recipe=recipe, max_size=size, calibration=IMAGES, out=out, fresh=True)
    ledger = json.loads((out / "ledger.json").read_bytes())
    return {
        f"{stage['name']} {stage['version']}: {name}": sha256
        for stage in ledger["stages"]
        for name, sha256 in (stage["files"] or {"": "no files"}).items()
        if name not in WITH_TIMES
    }


def compared(known: Mapping[str, Mapping[str, str]], found: Mapping[str, Mapping[str, str]]) -> list[str]:
    lines = []
    for build_name in sorted({*known, *found}):
        before, after = known.get(build_name, {}), found.get(build_name, {})
        for name in sorted({*before, *after}):
            if before.get(name) != after.get(name):
                lines.append(f"{build_name}: {name}: {before.get(name, 'missing')} -> {after.get(name, 'missing')}")
    return lines


if __name__ == "__main__":
    sys.exit(main())

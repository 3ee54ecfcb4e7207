"""Write the parts of README.md that follow from results: table, size-accuracy chart, badges (`make schemas`).

`--check` writes nothing, and fails if a file is out of date.
"""

from __future__ import annotations

import sys
from pathlib import Path
from statistics import mean

sys.path.insert(0, str(Path(__file__).parent))
import drawing
from generated import between, write
from result_values import Row, average, by_method, detector, grouped, number, only, percent, result, score, share, table
from results_accuracy import coded_share, coded_share_of, map_of

from edgekd.core.toml import read_toml

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PICTURES = ROOT / "docs" / "pictures"
PTQ = "edgekd, recipe `ptq`"
PART = 8.0  # the table shows coded INT8 in 1/8 of the float file
SPEED_MODEL = "yolo11n"
ULTRALYTICS = "Ultralytics, `distill_model=`, `dis=6`"
DISTILLED = (
    (
        "distillation_pruned_cpu",
        "edgekd, `recover`",
        "mAP50-95 of a pruned student in equal CPU time, all images labelled; edgekd uses no labels",
    ),
    (
        "distillation_pseudo_labels_cpu",
        "edgekd, with unlabelled frames",
        "a tenth labelled, more time; in edgekd the teacher labels the rest",
    ),
)


def results() -> str:
    """Return the table of results: six rows, also those in which edgekd is behind."""
    rows = [*quantization(), *training(), *speed()]
    lines = ([what, ours, theirs, f"[{name}](bench/results/{name}.md)"] for what, ours, theirs, name in rows)
    return table(["", "edgekd", "compared with", "table"], lines) + "\n"


def quantization() -> list[tuple[str, str, str, str]]:
    """Return the rows about quantization without training."""
    groups = grouped(result("quantization_baselines")["rows"], lambda row: row["model"])
    names = ", ".join(detector(model) for model in groups)
    ours, peers = [], []
    for rows in groups.values():
        (whole,) = (row for row in rows if row["method"] == "float32")
        kept = {row["method"]: map_of(row, "val") / map_of(whole, "val") for row in rows if row["scores"]}
        ours.append(percent(kept[PTQ]))
        best = max((way for way in kept if not way.startswith(("float32", "edgekd"))), key=kept.__getitem__)
        peers.append(f"{tool_of(best)} {percent(kept[best])}")
    coded = result("coded_weights")["models"]
    return [
        (
            f"mAP50-95 kept in INT8 without training: {names}",
            ", ".join(ours),
            f"best of four other tools: {', '.join(peers)}",
            "quantization_baselines",
        ),
        (
            f"kept in 1/{PART:g} of the float file without training, {len(coded)} detectors",
            percent(coded_share(PART)),
            "",
            "coded_weights",
        ),
    ]


def tool_of(method: str) -> str:
    """Return the tool that a method's name begins with; `the same ...` is a further setting of ONNX Runtime."""
    return "ONNX Runtime" if method.startswith("the same") else method.partition(",")[0].partition(" `")[0]


def training() -> list[tuple[str, str, str, str]]:
    """Return the rows about pruning and distillation."""
    recovery, ours = result("recovery_cpu"), ("map50_95", "test")
    whole, pruned, recovered = by_method(recovery["rows"]).values()
    seconds = number(average(recovered, "cpu_seconds"))
    return [
        (
            f"kept without {percent(recovery['ratio'], 0)} of the multiply-adds, {seconds} CPU seconds of training",
            percent(share(recovered, whole, *ours)),
            f"before recovery {percent(share(pruned, whole, *ours))}",
            "recovery_cpu",
        ),
        *(distilled(*each) for each in DISTILLED),
    ]


def distilled(name: str, way: str, what: str) -> tuple[str, str, str, str]:
    """Return the row that compares distillation by edgekd with labels alone and with Ultralytics' own distillation.

    Means over the seeds that all three have: each seed starts from another student, and a run may be incomplete.
    """
    methods = by_method(result(name)["rows"])
    compared = [methods[method] for method in (way, "no distillation", ULTRALYTICS)]
    seeds = set.intersection(*({row["seed"] for row in rows} for rows in compared))
    mine, alone, peer = (
        score(average((row for row in rows if row["seed"] in seeds), "map50_95", "test")) for rows in compared
    )
    return what, mine, f"labels alone {alone}, Ultralytics {peer}", name


def speed() -> list[tuple[str, str, str, str]]:
    """Return the row about frames per second."""
    run = result("camera_to_detections")
    rows = run["models"][SPEED_MODEL]
    best = max((row for row in rows if row["contender"].startswith("edgekd")), key=lambda row: float(row["fps"]))
    peer = only(rows, contender="Ultralytics predict")
    what = f"frames per second from JPEG, {SPEED_MODEL}, {run['cores']} CPU cores"
    return [(what, number(best["fps"], 1), f"{peer['contender']} {number(peer['fps'], 1)}", "camera_to_detections")]


def size_points() -> tuple[str, list[drawing.Point]]:
    """Return the title and the points of the chart: the best setting of each tool, and edgekd at several sizes."""
    coded = result("coded_weights")
    rows = result("quantization_baselines")["rows"]
    whole = {row["model"]: row for row in by_method(rows)["float32"] if row["model"] in coded["models"]}
    points = [drawing.Point("float32", times_smaller=1.0, share=1.0)]
    best = dict[str, drawing.Point]()
    for method, group in by_method(row for row in rows if row["model"] in whole).items():
        tool = tool_of(method)
        point = mean_point(tool, group, whole)
        if tool == "edgekd":
            points.append(point)
        elif tool != "float32" and (tool not in best or best[tool].share < point.share):
            best[tool] = point
    for part in coded["parts"]:
        kept = mean(coded_share_of(model, part) for model in whole)
        points.append(drawing.Point(f"1/{part:g}", part, kept, ours=True))
    names = " and ".join(detector(model) for model in whole)
    return f"mAP50-95 kept without training, mean of {names}", [*points, *best.values()]


def mean_point(tool: str, group: list[Row], whole: dict[str, Row]) -> drawing.Point:
    """Return the point of a method, mean of the detectors."""
    key = "packed_bytes" if tool == "edgekd" else "bytes"
    smaller = 1 / mean(row[key] / whole[row["model"]]["bytes"] for row in group)
    kept = mean(map_of(row, "val") / map_of(whole[row["model"]], "val") for row in group)
    ours = tool == "edgekd"
    return drawing.Point(f"1/{smaller:.2g}" if ours else tool, smaller, kept, ours=ours)


def badges() -> dict[str, str]:
    """Return the badges: file names and pictures."""
    project = read_toml(ROOT / "pyproject.toml")["project"]
    return {
        "python": drawing.badge("python", project["requires-python"].removeprefix(">=") + "+"),
        "licence": drawing.badge("licence", project["license"]),
        "targets": drawing.badge("targets", str(len(list((ROOT / "targets").glob("*.toml"))))),
    }


def main() -> None:
    title, points = size_points()
    pictures = {
        "size-light": drawing.size_chart(title, points, drawing.LIGHT),
        "size-dark": drawing.size_chart(title, points, drawing.DARK),
        **{f"badge-{name}": picture for name, picture in badges().items()},
    }
    write(
        {
            **{PICTURES / f"{name}.svg": picture for name, picture in pictures.items()},
            README: between(README.read_text("utf-8"), "results", results()),
        }
    )


if __name__ == "__main__":
    main()

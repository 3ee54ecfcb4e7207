"""Ultralytics' own `val` of ONNX graphs. Prints a JSON line for each: `map50_95` and `map50`, or `error`.

    python ultralytics_val.py DATA.yaml SIZE GRAPH.onnx ...

The settings of edgekd's scorer: square letterboxed frames one at a time, ONNX Runtime on the CPU.
"""

import json
import sys
from typing import Any

from ultralytics import YOLO


def score(data: str, size: int, graph: str) -> dict[str, Any]:
    """Return the scores of a graph on the split `val`, or `error` if it cannot be scored."""
    settings = {"batch": 1, "rect": False, "device": "cpu", "plots": False, "verbose": False, "workers": 0}
    try:
        box = YOLO(graph, task="detect").val(data=data, imgsz=size, **settings).box
    except Exception as error:  # any error of a peer becomes a row of the table
        return {"error": f"{type(error).__name__}: {error}"}
    return {"map50_95": float(box.map), "map50": float(box.map50)}


if __name__ == "__main__":
    for path in sys.argv[3:]:
        print("\n" + json.dumps(score(sys.argv[1], int(sys.argv[2]), path)), flush=True)

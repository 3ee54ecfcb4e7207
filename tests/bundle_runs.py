"""End-to-end check of a detector: built in INT8, scored, installed by the agent, and run on a frame."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import onnx

import edgekd as api
from edgekd.agent.cli import COMMANDS, main
from edgekd.agent.serving import Served
from edgekd.core.bundle.archive import read_head
from edgekd.core.detection.decode import decode_by_class
from edgekd.core.detection.preprocess import letterbox
from edgekd.deploy.artifact import opened
from edgekd.graph.runtimes.onnxruntime import ONNXRUNTIME_CPU


def require_bundle_runs(model: Path, data: Path, folder: Path, head: str | None = None) -> None:
    """Build a detector. Fail if its scores differ from its evidence, or the agent's detections from the host's."""
    given = {"target": "cpu", "recipe": "ptq", "device": "local:onnxruntime-cpu"}
    bundle = api.build(model, data, out=folder / "out", head=head, **given).bundle
    assert api.score_model(bundle, data).score.map50_95 == read_head(bundle).manifest.evidence.after.map50_95
    require_agent_runs(bundle, data, folder)


def require_agent_runs(bundle: Path, data: Path, folder: Path) -> None:
    """Install an INT8 bundle. Fail if the agent's detections in a frame differ from the host's."""
    options = {"--state": folder / "state", "--root": folder, "--runtime": "onnxruntime"}
    for command, *arguments in (["unpack", bundle], ["build"], ["selftest"], ["activate"]):
        known = [word for name, value in options.items() if name in COMMANDS[command][1] for word in (name, value)]
        assert main([command, *map(str, [*arguments, *known])]) == 0, command
    frame = cv2.imread(str(next((data / "images" / "val").glob("*.png"))))
    with Served(folder / "state") as served, opened(bundle, None, (), False) as (graph, spec):
        assert "QuantizeLinear" in {node.op_type for node in onnx.load(graph).graph.node}
        _, found = served.detect(frame)
        batch, placement = letterbox(frame, spec.preprocess)
        with ONNXRUNTIME_CPU.load(graph) as session:
            expected = decode_by_class(session.run(batch), spec, placement, read_head(bundle).manifest.thresholds)
    assert len(found) > 0
    np.testing.assert_allclose(found.boxes, expected.boxes, atol=1e-3)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-5)
    np.testing.assert_array_equal(found.classes, expected.classes)

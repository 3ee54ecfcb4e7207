"""A build leaves a record of training images in the bundle, by which whatever runs it on a camera notices drift."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny
from cameras import install
from running import Built

from edgekd.agent import serving
from edgekd.agent.serving import Served
from edgekd.builds.pipeline import build
from edgekd.builds.recipe import load_recipe
from edgekd.builds.run import BuildRequest
from edgekd.core import drift
from edgekd.core.bundle.archive import extract, read_manifest
from edgekd.core.drift import MIN_FRAMES, WINDOW, Drift, from_json
from edgekd.data.images import read_image
from edgekd.hardware.target import load_target


def build_into(out: Path, model: Path, data: Path) -> Path:
    return build(BuildRequest(model, data, load_target("xavier"), load_recipe("ptq"), out)).bundle


@pytest.fixture
def bundle(tiny_model: Path, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A build that takes the few training images there are for enough."""
    monkeypatch.setattr(drift, "MIN_FRAMES", 4)
    return build_into(tmp_path / "out", tiny_model, tiny_data)


def test_a_build_with_few_training_images_has_no_record(tiny_build: Built) -> None:
    assert not any(entry.role == "drift" for entry in read_manifest(tiny_build.bundle).files)
    assert "12 training images, too few to notice drift by" in (tiny_build.out / "report.html").read_text("utf-8")
    assert MIN_FRAMES > 12


def test_the_record_is_of_the_training_images_and_the_same_each_time(
    bundle: Path, tiny_model: Path, tiny_data: Path, tmp_path: Path
) -> None:
    manifest = extract(bundle, tmp_path / "files")
    name = next(entry.path for entry in manifest.files if entry.role == "drift")
    record = from_json((tmp_path / "files" / name).read_bytes())
    assert record.frames == 12
    means = [read_image(file).mean() for file in sorted((tiny_data / "images" / "train").iterdir())]
    assert record.knots[0][0] == pytest.approx(min(means), abs=2)
    assert record.knots[0][-1] == pytest.approx(max(means), abs=2)
    assert build_into(tmp_path / "again", tiny_model, tiny_data).read_bytes() == bundle.read_bytes()


@pytest.mark.slow
def test_a_camera_notices_that_it_has_become_dark(bundle: Path, tiny_data: Path, tmp_path: Path, monkeypatch) -> None:
    """A frame every few seconds is looked at; the others cost nothing."""
    assert install(tmp_path / "state", bundle) == 0
    now = [0.0]
    monkeypatch.setattr(serving.DriftWatch.__init__, "__defaults__", (lambda: now[0],))
    files = sorted((tiny_data / "images" / "train").iterdir())
    with Served(tmp_path / "state") as served:

        def seen(dim: int) -> Drift | None:
            for number in range(2 * WINDOW):
                now[0] += serving.DRIFT_INTERVAL_S / 2 + 0.01
                served.detect(read_image(files[number % len(files)]) // dim)
            return served.model.drift

        assert seen(1)
        dark = seen(8)
    assert dark
    assert dark.drifted
    moved = {name: (mean, low) for name, mean, low, _ in dark.moved}
    assert moved["brightness"][0] < moved["brightness"][1]


def test_without_a_record_nothing_is_known(tiny_build: Built, tmp_path: Path) -> None:
    assert install(tmp_path / "state", tiny_build.bundle) == 0
    with Served(tmp_path / "state") as served:
        served.detect(np.zeros((tiny.SIDE, tiny.SIDE, 3), np.uint8))
        assert served.model.drift is None

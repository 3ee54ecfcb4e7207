"""Models for different conditions: the one that knows what is seen is asked, and a switch opens and builds nothing."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cameras import Agent, identity_of, install, repacked, run

from edgekd.agent import serving
from edgekd.agent.serving import Served
from edgekd.agent.state.slots import State
from edgekd.agent.variants import Variants
from edgekd.core.bundle.archive import extract, file_entry, pack
from edgekd.core.detection.preprocess import letterbox
from edgekd.core.drift import MIN_FRAMES, WINDOW, record_of, statistics_of, to_json
from edgekd.core.errors import DeviceError, SpecError
from edgekd.deploy.delta import run as make_delta

DAY, NIGHT = 140, 12


def frame(light: int, seed: int) -> np.ndarray:
    """A frame uint8 [48, 96, 3] about as bright as `light`."""
    rng = np.random.default_rng(seed)
    return np.clip(rng.normal(light, light / 4, (48, 96, 3)) + rng.normal(0, light / 8), 0, 255).astype(np.uint8)


def frames(light: int, count: int) -> Iterator[np.ndarray]:
    for seed in range(count):
        yield frame(light, 1000 * light + seed)


def record(folder: Path, light: int) -> bytes:
    """The record of frames as bright as `light`, by the model in service."""
    rows = []
    with Served(folder) as served:
        for seed in range(MIN_FRAMES):
            shown = frame(light, seed)
            found = served.detect(shown)[1]
            batch, at = letterbox(shown, served.model.spec.preprocess)
            rows.append(statistics_of(batch, at, served.model.spec.preprocess, found))
    return to_json(record_of(np.array(rows)))


def with_record(bundle: Path, folder: Path, name: str, content: bytes) -> Path:
    """The bundle under another name, with a record."""
    folder.mkdir()
    manifest = extract(bundle, folder / "files")
    (folder / "files" / "drift.json").write_bytes(content)
    roles = {**{entry.path: entry.role for entry in manifest.files}, "drift.json": "drift"}
    files = tuple(file_entry(path, folder / "files" / path, roles[path]) for path in sorted(roles))
    pack(replace(manifest, name=name, files=files), {path: folder / "files" / path for path in roles}, folder / name)
    return folder / name


@pytest.fixture(scope="module")
def both(bundle: Path, installed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state folder with a model for the day, and one for the night under that name: not to be changed."""
    folder = tmp_path_factory.mktemp("both")
    day, night = (
        with_record(bundle, folder / name, name, record(installed, light))
        for name, light in (("day", DAY), ("night", NIGHT))
    )
    assert install(folder / "state", day) == 0
    assert run(folder / "state", "install", night, "--model", "night") == 0
    return folder / "state"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every frame is looked at."""
    now = [0.0]

    def time() -> float:
        now[0] += serving.DRIFT_INTERVAL_S + 0.01
        return now[0]

    monkeypatch.setattr(serving.DriftWatch.__init__, "__defaults__", (time,))


def names(served: Variants, shown: Iterator[np.ndarray]) -> list[str]:
    return [served.detect(each)[0].name for each in shown]


@pytest.mark.usefixtures("clock")
def test_it_follows_the_light_and_comes_back(both: Path) -> None:
    with Variants(both, [None, "night"]) as served:
        assert set(names(served, frames(DAY, 2 * WINDOW))) == {"day"}
        dark = names(served, frames(NIGHT, 2 * WINDOW))
        assert dark[0] == "day", "one dark frame is nothing yet"
        assert dark[-1] == "night"
        assert dark == sorted(dark), "it does not go to and fro"
        light = names(served, frames(DAY, 3 * WINDOW))
        assert (light[0], light[-1]) == ("night", "day")
        assert light == sorted(light, reverse=True)


@pytest.mark.usefixtures("clock")
def test_a_switch_opens_nothing(both: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Variants(both, [None, "night"]) as served:
        first, second = served.model, None
        served.use("night")
        second = served.model
        served.use(None)
        monkeypatch.setattr(serving, "_open", lambda state: pytest.fail("opened again"))
        assert served.detect(frame(DAY, 0))[0] is first
        served.use("night")
        assert served.detect(frame(DAY, 0))[0] is second


@pytest.mark.usefixtures("clock")
def test_the_firmware_may_decide(both: Path) -> None:
    with Variants(both, ["night", None], automatic=False) as served:
        assert set(names(served, frames(DAY, 2 * WINDOW))) == {"night"}
        distances = served.distances()
        assert distances[None] < 1 < distances["night"]
        served.use(None)
        assert served.detect(frame(DAY, 0))[0].name == "day"
        with pytest.raises(SpecError, match="no variant fog"):
            served.use("fog")


@pytest.mark.usefixtures("clock")
def test_one_that_is_not_there_is_no_choice(both: Path) -> None:
    with Variants(both, [None, "fog"]) as served:
        assert set(names(served, frames(NIGHT, 2 * WINDOW))) == {"day"}
        with pytest.raises(DeviceError, match="nothing is in service"):
            served.use("fog")
        assert served.model.name == "day"


@pytest.mark.parametrize("given", [[], [None, None], ["a", "a"]])
def test_names_are_each_told_once(both: Path, given: list[str | None]) -> None:
    with pytest.raises(SpecError):
        Variants(both, given)


def test_a_variant_comes_as_a_delta_from_the_model_beside_it(
    agent: Agent, bundle: Path, newer: Path, state: State, tmp_path: Path
) -> None:
    make_delta(bundle, newer, tmp_path / "night.delta")
    assert agent("install", tmp_path / "night.delta", "--model", "night").error["found"] == "none"
    agent("install", bundle)
    found = agent("install", tmp_path / "night.delta", "--model", "night").result
    assert (found["identity"], found["active"]) == (identity_of(newer), "a")
    assert agent("status").result["active"]["identity"] == identity_of(bundle), "the other stays what it is"
    other = repacked(bundle, tmp_path / "other", name="other")
    make_delta(newer, other, tmp_path / "back.delta")
    assert agent("install", tmp_path / "back.delta").result["identity"] == identity_of(other)


def test_variants_are_updated_one_by_one(both: Path, bundle: Path, newer: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(both, tmp_path / "state", symlinks=True))
    with Variants(folder, [None, "night"], automatic=False) as served:
        assert served.detect(frame(DAY, 0))[0].name == "day"
        assert install(folder, newer) == 0
        assert served.detect(frame(DAY, 0))[0].identity == identity_of(newer)
        served.use("night")
        assert served.detect(frame(DAY, 0))[0].name == "night"
        assert served.problem is None

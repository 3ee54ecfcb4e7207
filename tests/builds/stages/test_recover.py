"""The stage `recover`: predictions shared by trainings, and a build whose pruned detector is trained without labels."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from random_detector import write_detector
from running import EdgeKD

from edgekd.builds.ledger import ledger_row
from edgekd.builds.stages import recover
from edgekd.builds.stages.base import StageContext
from edgekd.compress.steps import QuantAwareDistill, Recover
from edgekd.core.detection.types import Preprocess
from edgekd.core.errors import SpecError
from edgekd.core.progress import SILENT
from edgekd.data.dataset import load_dataset
from edgekd.detectors.results import TrainingRun

RECIPE = """
name = "own"
[[steps]]
kind = "prune"
images = 6
ratio = 0.2
[[steps]]
kind = "recover"
epochs = 2
batch = 5
[[steps]]
kind = "quantize"
"""


class Runs:
    """The stage with a training that writes where its cache is; counts trainings."""

    def __init__(self, folder: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.dataset = folder, load_dataset(data)
        self.caches: list[Path] = []
        self.states: list[Path] = []
        family = SimpleNamespace(libraries=(), suffix=".pt", capability=lambda _: self._train)
        monkeypatch.setattr(recover, "require_family", lambda _: family)
        for name in ("student", "other", "teacher", "stranger"):
            (folder / name).write_text(name)

    def _train(
        self, checkpoint: Path, teacher: Path, out: Path, data: Path, step: Any, cache: Path, state: Path, *_: Any
    ) -> Any:
        self.caches.append(cache)
        self.states.append(state)
        cache.write_bytes(b"predictions")
        state.write_bytes(b"state")
        out.write_bytes(checkpoint.read_bytes())
        return TrainingRun(step.epochs, 7 * step.epochs, ({"boxes": 1 / 3},), 1.0)

    def __call__(
        self, step: Recover, student: str = "student", teacher: str = "teacher", side: int = 64, *, fresh: bool = False
    ) -> Any:
        context = StageContext.within(self.folder / "out", fresh, SILENT)
        graph: Any = SimpleNamespace(result=SimpleNamespace(spec=SimpleNamespace(preprocess=Preprocess(side, side))))
        return recover.run(context, step, self.folder / student, self.folder / teacher, graph, self.dataset)

    def quantized(self, step: QuantAwareDistill, graph: str) -> Any:
        """Train a quantized graph with this content."""
        context = StageContext.within(self.folder / "out", False, SILENT)
        (self.folder / recover.GRAPH).write_text(graph)
        result = SimpleNamespace(
            spec=SimpleNamespace(preprocess=Preprocess(64, 64)), detector=None, opset=17, layers=(1, 1), forms={}
        )
        source: Any = SimpleNamespace(path=self.folder, files=(), sha256=graph, result=result)
        files = self.folder / "student", self.folder / "teacher"
        return recover.quant_aware_distill(context, step, *files, source, self.dataset)


@pytest.fixture
def runs(tmp_path: Path, tiny_data: Path, monkeypatch: pytest.MonkeyPatch) -> Runs:
    return Runs(tmp_path, tiny_data, monkeypatch)


def test_trainings_beside_one_teacher_share_its_predictions(runs: Runs) -> None:
    step = Recover(epochs=2)
    stages = [runs(step), runs(replace(step, epochs=3, seed=1)), runs(step, "other")]
    assert len({stage.key for stage in stages}) == 3
    assert len(set(runs.caches)) == 1
    assert runs.caches[0].parent == runs.folder / "out" / "stages"
    others = (runs(step, teacher="stranger"), runs(step, side=96), runs(replace(step, images=4)))
    assert len({stage.key for stage in (*stages, *others)}) == 6
    assert len(set(runs.caches)) == 4
    assert runs(replace(step, cache_size="1GB")).cached, "a limit of disk space changes no result"
    assert len(runs.caches) == 6


def test_a_quantized_graph_is_trained_beside_the_same_predictions(runs: Runs) -> None:
    runs(Recover())
    steps = (QuantAwareDistill(), QuantAwareDistill(seed=1), QuantAwareDistill())
    stages = [runs.quantized(step, graph) for step, graph in zip(steps, ("one", "one", "two"), strict=True)]
    assert len({stage.key for stage in stages}) == 3, "the graph and the step are inputs"
    assert len(set(runs.states)) == 4
    assert set(runs.caches) == {runs.caches[0]}


def test_each_training_has_a_state_of_its_own_which_is_gone_afterwards(runs: Runs) -> None:
    for step, student in ((Recover(), "student"), (Recover(seed=1), "student"), (Recover(), "other")):
        runs(step, student)
    assert len(set(runs.states)) == 3
    assert {state.parent for state in runs.states} == {runs.folder / "out" / "stages"}
    assert not any(state.exists() for state in runs.states)


def test_the_ledger_has_updates_and_cpu_seconds(runs: Runs) -> None:
    for stage in (runs(Recover(epochs=2)), runs(Recover(epochs=2))):
        row = ledger_row(stage)
        assert row.updates == 14
        assert row.cpu_seconds is not None
        assert row.cpu_seconds >= 0
        assert stage.result.losses == ({"boxes": 0.333333},)


def test_a_fresh_build_predicts_and_trains_anew(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    runs(Recover())
    runs.states[0].write_bytes(b"of a killed training")
    found = []

    def train(*known: Any) -> Any:
        found.append((known[5].exists(), known[6].exists()))
        return Runs._train(runs, *known)

    monkeypatch.setattr(runs, "_train", train)
    runs(Recover(), fresh=True)
    assert found == [(False, False)]


@pytest.mark.parametrize(
    ("name", "value"), [("epochs", 0), ("batch", 0), ("learning_rate", 0.0), ("images", 0), ("cache_size", "much")]
)
@pytest.mark.parametrize("kind", [Recover, QuantAwareDistill])
def test_settings_without_sense_are_refused(kind: type[Recover | QuantAwareDistill], name: str, value: Any) -> None:
    with pytest.raises(SpecError, match=f"{kind.kind}: {name}|cache_size"):
        kind(**{name: value})


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning", "ignore::UserWarning")
def test_a_build_prunes_recovers_and_quantizes(edgekd: EdgeKD, tiny_data: Path, tmp_path: Path) -> None:
    pytest.importorskip("ultralytics")
    detector = write_detector(tmp_path, "yolov3-tiny.yaml", 0.125, 64)
    (tmp_path / "own.toml").write_text(RECIPE, "utf-8")
    flags = ("--data", tiny_data, "--out", tmp_path / "out", "--recipe", tmp_path / "own.toml")
    ran = edgekd("build", detector, *flags, "--json")
    assert ran.code == 0, ran.err
    ledger = json.loads((tmp_path / "out" / "ledger.json").read_bytes())
    rows = {row["name"]: row for row in ledger["stages"]}
    assert list(rows).index("prune") < list(rows).index("recover") < list(rows).index("quantize")
    assert rows["recover"]["updates"] == 2 * 3
    assert rows["recover"]["cpu_seconds"] > 0
    assert ledger["lineage"]["student_sha256"] == rows["recover"]["files"]["recovered.pt"]

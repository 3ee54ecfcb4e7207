"""`edgekd build --search`: from a budget to a bundle, on the tiny pair; stopped, resumed, shared."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
from once import once
from running import BRIEFLY, EdgeKD
from test_cli import assert_refused
from test_json_contract import assert_documented

from edgekd.builds.recipe import load_recipe
from edgekd.builds.run import BuildRequest
from edgekd.builds.search.cost_filter import Cost
from edgekd.builds.search.leases import leased
from edgekd.builds.search.pareto import Point
from edgekd.builds.search.setup import SearchJob, siblings
from edgekd.builds.search.space import Candidate
from edgekd.builds.search.trials import Task, time_trial
from edgekd.commands import search
from edgekd.core.bundle.archive import verify
from edgekd.core.canonical import file_sha256
from edgekd.core.errors import DataError, DeviceError, EngineRefusedError
from edgekd.core.progress import SILENT, Progress
from edgekd.data.dataset import load_dataset
from edgekd.deploy.engine import EngineJob
from edgekd.deploy.fleet import Board
from edgekd.hardware.budget import Budget
from edgekd.hardware.target import load_target

pytest.importorskip("optuna")
LIMITS = ("--max-size", "600kB", "--keep", "90%")
QUICK = {**os.environ, **BRIEFLY}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """More scenes than others need, of which some are held out: not to be changed."""
    return once(tmp_path_factory, "search-data", lambda folder: tiny.write_data(folder, 24, 8))


@pytest.fixture(scope="module")
def searched(tiny_model: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a search in a process of its own: not to be changed, but to be copied."""

    def run_search(folder: Path) -> None:
        done = subprocess.run(
            command(tiny_model, data, folder / "out"), capture_output=True, text=True, timeout=300, env=QUICK
        )
        assert done.returncode == 0, done.stderr
        assert_documented(json.loads(done.stdout), "build")

    return once(tmp_path_factory, "searched", run_search) / "out"


def copy_of(searched: Path, name: str) -> Path:
    """Return a copy beside the folder of the search: what is in it names the data by relative paths."""
    return Path(shutil.copytree(searched, searched.parents[1] / name / "out"))


def command(model: Path, data: Path, out: Path, *flags: str) -> list[str]:
    given = ["--data", str(data), "--out", str(out), "--search", *LIMITS, "--json", *flags]
    return [sys.executable, "-m", "edgekd", "build", str(model), *given]


def result(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "search.json").read_bytes())
    return found


def trials(out: Path) -> Iterator[Path]:
    return out.glob("stages/trial-*/stage.json")


def wait_for(count: int, out: Path, run: subprocess.Popen[bytes]) -> None:
    """Until so many trials are done, or the search ends without them; mostly asleep: it needs the core."""
    while len(list(trials(out))) < count and run.poll() is None:
        time.sleep(0.01)


def summary(out: Path) -> dict[str, Any]:
    """What two searches have in common that did the same, whatever time they took."""
    found = result(out)
    found["points"] = [{k: v for k, v in point.items() if k != "seconds"} for point in found["points"]]
    found["winner"].pop("seconds")
    return {key: value for key, value in found.items() if key != "seconds"}


# ------------------------------------------------------------------------------------------------------- what it leaves


def test_a_search_leaves_what_it_found_and_the_bundle_of_the_winner(searched: Path, tiny_model: Path) -> None:
    found = result(searched)
    assert_documented(found, "search")
    assert found["reason"] == "the budget is met with a margin"
    assert found["winner"]["rung"] == 1
    assert found["held_out"] == 6
    assert [row["images"] for row in found["rungs"]] == [6, 6]
    assert all(0 <= row["noise"] < 0.5 for row in found["points"])
    assert [row["noise"] for row in found["points"] if row["bits"] == 32] in ([], [0.0])
    bundle = verify(searched / "tiny-xavier.edgekd")
    assert bundle.lineage.recipe == "searched"
    ledger = json.loads((searched / "ledger.json").read_bytes())
    assert_documented(ledger, "ledger")
    assert ledger["search"]["tried"] == found["tried"] == len(found["points"])
    assert ledger["lineage"]["model_sha256"] == file_sha256(tiny_model)
    assert all(line["met"] for line in ledger["budget"])
    report = (searched / "report.html").read_text("utf-8")
    assert "How the recipe was found" in report
    assert found["winner"]["text"] in report


def test_a_trial_says_the_bytes_that_the_bundle_has(searched: Path) -> None:
    (line,) = [
        line for line in json.loads((searched / "ledger.json").read_bytes())["budget"] if line["name"] == "max_bytes"
    ]
    assert result(searched)["winner"]["bytes"] == pytest.approx(line["value"], rel=0.05)


def test_nothing_was_chosen_on_what_is_scored_nor_made_of_what_it_was_chosen_on(searched: Path, data: Path) -> None:
    whole = load_dataset(data)
    scored = {sample.image for sample in whole.split("val").samples}
    final = load_dataset(searched / "search" / "final.yaml")
    held_out = [sample.image for sample in load_dataset(searched / "search" / "rung1.yaml").split("val").samples]
    trained = [sample.image for sample in final.split("train").samples]
    assert {sample.image for sample in final.split("val").samples} == scored
    assert not set(held_out) & {*trained, *scored}
    assert len(held_out) + len(trained) == len(whole.split("train"))
    calibrated = [path.read_text("utf-8") for path in searched.glob("stages/calibrate-*/calibration.toml")]
    assert calibrated
    assert not [image for image in held_out for summary in calibrated if image.name in summary.split("[files]")[1]]


def test_the_recipe_that_was_found_can_be_built_without_a_search(
    edgekd: EdgeKD, searched: Path, tiny_model: Path, tmp_path: Path
) -> None:
    # Its stages are done already, if it is the recipe that was found: another one would leave another graph.
    shutil.copytree(searched / "stages", tmp_path / "out" / "stages")
    flags = ("--data", searched / "search" / "final.yaml", "--out", tmp_path / "out", *LIMITS)
    ran = edgekd("build", tiny_model, *flags, "--recipe", searched / "recipe.toml", "--json")
    assert ran.code == 0, ran.err
    assert ran.json["search"] is None
    graphs = [file_sha256(out / "graph.onnx") for out in (searched, tmp_path / "out")]
    assert graphs[0] == graphs[1]
    assert load_recipe(str(searched / "recipe.toml")).name == "searched"


# ------------------------------------------------------------------------------------------------ again, killed, shared


@pytest.mark.slow
def test_again_nothing_is_tried_and_fresh_everything_by_workers_who_find_the_same(
    edgekd: EdgeKD, searched: Path, tiny_model: Path, data: Path, tmp_path: Path
) -> None:
    out = copy_of(searched, tmp_path.name)
    before = {path: path.stat().st_mtime_ns for path in trials(out)}
    flags = ("--data", data, "--out", out, "--search", *LIMITS)
    ran = edgekd("build", tiny_model, *flags)
    assert ran.code == 0, ran.err
    assert {path: path.stat().st_mtime_ns for path in trials(out)} == before
    assert summary(out) == summary(searched)
    assert result(searched)["seconds"] > 0
    assert result(out)["seconds"] == pytest.approx(result(searched)["seconds"], abs=0.02), "what tries took when made"
    fresh = command(tiny_model, data, out, "--fresh", "--workers", "2")
    done = subprocess.run(fresh, capture_output=True, text=True, timeout=300, env=QUICK)
    assert done.returncode == 0, done.stderr
    assert not {path.stat().st_mtime_ns for path in trials(out)} & set(before.values())
    assert summary(out) == summary(searched)


@pytest.mark.parametrize(
    "kills",
    [
        pytest.param(((0, 2), (2, 1)), marks=pytest.mark.slow, id="twice"),
        pytest.param(((0, 2), (2, 1), (4, 1)), marks=pytest.mark.release, id="thrice"),
    ],
)
def test_a_search_that_is_killed_ends_with_its_workers_goes_on_and_finds_the_same(
    searched: Path, tiny_model: Path, data: Path, tmp_path: Path, kills: tuple[tuple[int, int], ...]
) -> None:
    """kills: how many trials are done before each, and its number of workers."""
    out = tmp_path / "out"
    for count, workers in kills:
        shared = command(tiny_model, data, out, "--workers", str(workers))
        with subprocess.Popen(shared, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=QUICK) as run:
            wait_for(count + 1, out, run)
            children = descendants(run.pid)
            run.send_signal(signal.SIGKILL)
        assert workers == 1 or len(children) >= 2
        assert gone(children)
        kept = {path: path.read_bytes() for path in trials(out)}
        assert len(kept) > count
    done = subprocess.run(command(tiny_model, data, out), capture_output=True, text=True, timeout=300, env=QUICK)
    assert done.returncode == 0, done.stderr
    assert {path: path.read_bytes() for path in kept} == kept, "no finished trial is repeated"
    assert summary(out) == summary(searched)
    assert file_sha256(out / "graph.onnx") == file_sha256(searched / "graph.onnx")


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """The address of a Ray cluster of processes on this machine, which offers two boards."""
    pytest.importorskip("ray")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder:
        flags = [f"--port={address.split(':')[1]}", "--node-ip-address=127.0.0.1", f"--temp-dir={folder}", "--block"]
        flags += ["--num-cpus=2", "--num-gpus=0", '--resources={"board": 2}', "--object-store-memory=80000000"]
        flags += ["--include-dashboard=false", "--no-monitor", "--disable-usage-stats"]
        start = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", *flags]
        with subprocess.Popen(start, stdout=subprocess.PIPE, text=True, stderr=subprocess.DEVNULL) as ray:
            assert ray.stdout
            assert any("Ray runtime started" in line for line in ray.stdout)
            yield address
            started = descendants(ray.pid)
            ray.kill()
        for process in started:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)


@pytest.mark.release
def test_on_a_cluster_that_loses_a_worker_the_same_is_found(
    searched: Path, tiny_model: Path, data: Path, cluster: str, tmp_path: Path
) -> None:
    target = load_target("xavier")
    budget = Budget(max_bytes=600_000, min_retention=0.9)
    job = BuildRequest(tiny_model, data, target, load_recipe(target.recipe), tmp_path / "out", budget)
    ended, killed = threading.Event(), []
    hunter = threading.Thread(target=lambda: killed.append(kill_one("ray::_make", ended)))
    hunter.start()
    try:
        search.run(SearchJob(job, cluster=cluster))
    finally:
        ended.set()
        hunter.join()
    assert killed[0] is not None
    assert summary(job.out) == summary(searched)
    assert not list(job.out.glob("stages/.*.edgekd-tmp")), "what the killed one had begun is gone"


def kill_one(name: str, ended: threading.Event) -> int | None:
    """The process with this name that was killed; None where there was none till the end."""
    while not ended.wait(0.01):
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with suppress(FileNotFoundError, ProcessLookupError):
                if path.read_bytes().startswith(name.encode("ascii")):
                    os.kill(int(path.parent.name), signal.SIGKILL)
                    return int(path.parent.name)
    return None


@pytest.mark.slow
def test_on_a_cluster_trials_queue_for_boards_and_say_where_they_failed(
    tiny_model: Path, cluster: str, tmp_path: Path
) -> None:
    from edgekd.builds.search.cluster import cluster_trials, joined_cluster

    boards = (Board("a", "null"), Board("b", "null"))
    job = BuildRequest(tiny_model, tmp_path, load_target("xavier"), load_recipe("ptq"), tmp_path)
    (tmp_path / "search").mkdir()

    # Inside, so that they travel by value.
    def make(task: Task, out: Path) -> Point:
        if task.candidate.image_size == 99:
            raise DataError("no such image", fix="restore it")
        return Point(task.candidate, task.rung, 1.0, Cost(1.0, 1.0, None), 1.0)

    def measure(task: Task, point: Point, out: Path) -> Point:
        with leased("board", [board.name for board in task.boards], out) as name:
            (out / f"{name}.busy").mkdir()  # which fails where it is there
            time.sleep(0.05)
            (out / f"{name}.busy").rmdir()
        return replace(point, cost=Cost(1.0, 2.0, None))

    def task(wanted: tuple[Candidate, int]) -> Task:
        return Task(job, *wanted, 0, "", boards)

    with (
        joined_cluster(cluster, None, 6, len(boards)) as joint,
        cluster_trials(joint, task, tmp_path, SILENT, (make, measure)) as run_trials,
    ):
        assert (joint.gpus, joint.boards) == (0, 2)
        found = run_trials([(Candidate(None, side), 0) for side in range(8)])
        assert [point.candidate.image_size for point in found] == list(range(8))
        assert {point.cost.latency_ms for point in found} == {2.0}
        with pytest.raises(DataError, match=f"{socket.gethostname()}: no such image; fix: restore it"):
            run_trials([(Candidate(None, 99), 0)])


def test_a_candidate_is_timed_on_the_board_that_answers(
    searched: Path, tiny_model: Path, data: Path, tmp_path: Path
) -> None:
    out = copy_of(searched, tmp_path.name)
    lost = Board("lost", "null", python=str(tmp_path / "no-python"))
    boards = (lost, Board("bench", "null"))
    candidate = Candidate(None, 64, bits=16.0)
    recipe = load_recipe(str(searched / "recipe.toml"))
    job = BuildRequest(tiny_model, searched / "search" / "rung0.yaml", load_target("xavier"), recipe, out)
    task = Task(job, candidate, 0, 0, "", boards)
    point = Point(candidate, 0, 1.0, Cost(1.0, 1.0, 3.0), 1.0)
    (timed, again) = (time_trial(task, point, out) for _ in range(2))
    (stage,) = out.glob("stages/board-*/stage.json")
    results = json.loads(stage.read_bytes())["results"]
    assert (results["board"], results["basis"]) == ("bench", "rehearsed")
    assert timed.cost == Cost(1.0, results["latency_ms"], 3.0)
    assert timed.seconds > point.seconds
    assert again.cost == timed.cost
    with pytest.raises(DeviceError, match="no-python"):
        time_trial(replace(task, boards=(lost,)), point, out)
    assert time_trial(task, replace(point, error="prune: not faster"), out).cost == point.cost


def test_a_candidate_that_no_board_can_use_has_failed_and_is_not_tried_there_again(
    searched: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = copy_of(searched, tmp_path.name)
    boards = tuple(Board(name, "null") for name in ("refusing", "lost"))
    recipe = load_recipe(str(searched / "recipe.toml"))
    job = BuildRequest(tiny_model, searched / "search" / "rung0.yaml", load_target("xavier"), recipe, out)
    task = Task(job, Candidate(None, 64, bits=16.0), 0, 0, "", boards)
    point = Point(task.candidate, 0, 1.0, Cost(1.0, 1.0, 3.0), 1.0)
    request = []

    def refuse(job: EngineJob, parts: object, progress: Progress) -> None:
        request.append(job.device.name)
        raise (EngineRefusedError if len(request) == 1 else DeviceError)(f"answer {len(request)}")

    monkeypatch.setattr("edgekd.builds.search.boards.install", refuse)
    for _ in range(2):
        found = time_trial(task, point, out)
        assert found.error == "answer 1"
        assert found.candidate == point.candidate
    assert len(request) == 2


def descendants(parent: int) -> list[int]:
    found: list[int] = []
    with suppress(FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
        for child in Path(f"/proc/{parent}/task/{parent}/children").read_text("ascii").split():
            found += [int(child), *descendants(int(child))]
    return found


def gone(processes: list[int]) -> bool:
    """Whether all of them end soon."""
    end = time.monotonic() + 30
    while time.monotonic() < end:
        if not any(running(each) for each in processes):
            return True
        time.sleep(0.1)
    return False


def running(process: int) -> bool:
    try:
        os.kill(process, 0)
        return ") Z" not in Path(f"/proc/{process}/stat").read_text("ascii")
    except (ProcessLookupError, FileNotFoundError):
        return False


def test_a_search_that_ended_by_its_time_ends_there_again(
    edgekd: EdgeKD, searched: Path, tiny_model: Path, data: Path, tmp_path: Path
) -> None:
    out = copy_of(searched, tmp_path.name)
    flags = ("--data", data, "--out", out, *LIMITS, "--time", "0.001s")
    for _ in range(2):
        assert edgekd("build", tiny_model, *flags).code == 0
        found = result(out)
        assert found["reason"] == "the time is over"
        assert {point["rung"] for point in found["points"]} == {0}
        assert "It was not tried in full" in found["why"][-1]


def test_two_searches_in_one_folder_are_one_too_many(
    edgekd: EdgeKD, tiny_model: Path, data: Path, tmp_path: Path
) -> None:
    from edgekd.commands.search import _exclusive

    with _exclusive(tmp_path / "out" / "search"):
        flags = ("--data", data, "--out", tmp_path / "out", "--search", *LIMITS)
        assert_refused(edgekd("build", tiny_model, *flags), "another search is running")


# ------------------------------------------------------------------------------------------------------------- budgets


def test_a_budget_that_cannot_be_met_builds_the_nearest_and_says_so(
    edgekd: EdgeKD, searched: Path, tiny_model: Path, data: Path, tmp_path: Path
) -> None:
    out = copy_of(searched, tmp_path.name)
    limit = int(0.95 * min(point["bytes"] for point in result(searched)["points"]))  # a tenth less would be refused
    flags = ("--data", data, "--out", out, "--search", "--max-size", limit, "--keep", "50%")
    ran = edgekd("build", tiny_model, *flags)
    assert ran.code == 3, ran.err
    assert "budget missed: bundle size" in ran.err
    found = result(out)
    assert found["reason"] == "every candidate that may fit was tried"
    assert set(found["lacking"]) == {"max_bytes"}
    assert found["why"][0].startswith("None keeps every limit")


def test_a_budget_that_nothing_fits_ends_with_what_to_do(
    edgekd: EdgeKD, searched: Path, tiny_model: Path, data: Path, tmp_path: Path
) -> None:
    out = copy_of(searched, tmp_path.name)
    flags = ("--data", data, "--out", out, "--search", "--max-size", "1kB")
    assert_refused(edgekd("build", tiny_model, *flags), "nothing came of any candidate", "allow more")
    assert result(out)["winner"] is None
    assert_documented(result(out), "search")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--search",), ("nothing to search for", "--keep")),
        (("--search", "--keep", "90%", "--recipe", "ptq"), ("--search with --recipe",)),
        (("--time", "1h", "--keep", "90%", "--plan", "p.toml"), ("--search with --plan",)),
        (("--time", "soon", "--keep", "90%"), ("--time soon: no duration", "such as 8h")),
        (("--search", "--keep", "90%", "--calibration", "set.toml"), ("a search chooses its own images",)),
        (("--search", "--keep", "90%", "--workers", "2", "--target", "cpu"), ("--workers 2 for target cpu",)),
        (("--search", "--keep", "90%", "--cluster", "auto", "--target", "cpu"), ("--cluster auto for target cpu",)),
        (("--search", "--keep", "90%", "--cluster", "auto", "--workers", "2"), ("leave out --workers",)),
        (("--search", "--keep", "90%", "--gpus", "2"), ("--gpus without --cluster",)),
        (("--cluster", "auto"), ("--cluster without --search",)),
        (("--trials", "3"), ("--trials without --search",)),
        (("--epochs", "5"), ("--epochs without --search",)),
        (("--workers", "2"), ("--workers without --search",)),
        (("--round", "2"), ("--round without --search",)),
        (("--search", "--max-size", "0"), ("--max-size 0", "more than 0 bytes")),
        (("--student", "a.pt", "--student", "b.pt"), ("a recipe trains one",)),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_runs(
    edgekd: EdgeKD, tiny_model: Path, data: Path, tmp_path: Path, flags: tuple[str, ...], words: tuple[str, ...]
) -> None:
    assert_refused(edgekd("build", tiny_model, "--data", data, "--out", tmp_path / "out", *flags), *words)
    assert not list(tmp_path.glob("out/*"))


def test_without_optuna_a_search_is_refused_before_anything_runs(
    edgekd: EdgeKD, tiny_model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    flags = ("--data", data, "--out", tmp_path / "out", "--search", *LIMITS)
    assert_refused(edgekd("build", tiny_model, *flags), "a search needs Optuna", "edgekd[search]")
    assert not list(tmp_path.glob("out/*"))


@pytest.mark.parametrize(("flag", "value"), [("--min-fps", "10"), ("--max-energy", "1J")])
def test_what_nobody_can_predict_is_not_searched_for(
    edgekd: EdgeKD, tiny_model: Path, data: Path, tmp_path: Path, flag: str, value: str
) -> None:
    flags = ("--data", data, "--out", tmp_path / "out", "--search", flag, value)
    source = (Path(__file__).resolve().parents[2] / "targets" / "xavier.toml").read_text("utf-8")
    lines = [line for line in source.splitlines() if not line.startswith("clock_ghz")]
    (tmp_path / "own.toml").write_text("\n".join(lines), "utf-8")
    ran = edgekd("build", tiny_model, *flags, "--target", tmp_path / "own.toml")
    assert_refused(ran, f"{flag}: ", "cannot be predicted", f"leave out {flag}")


def test_too_few_training_images_are_said(edgekd: EdgeKD, tiny_model: Path, tmp_path: Path) -> None:
    few = tiny.write_data(tmp_path / "few", 3, 2)
    ran = edgekd("build", tiny_model, "--data", few, "--out", tmp_path / "out", "--search", "--keep", "90%")
    assert_refused(ran, "too few training images", "at least four")


# ------------------------------------------------------------------------------------------------------------ detectors


def test_smaller_members_of_a_family_are_found_beside_a_checkpoint(tmp_path: Path) -> None:
    for name in ("yolo11x", "yolo11m", "yolo11n", "yolo26n", "yolo11n-ppe", "yolo11x-ppe", "own"):
        (tmp_path / f"{name}.pt").touch()
    names = lambda model: [Path(found).name for found in siblings(tmp_path / model)]  # noqa: E731
    assert names("yolo11x.pt") == ["yolo11m.pt", "yolo11n.pt"]
    assert names("yolo11x-ppe.pt") == ["yolo11n-ppe.pt"]
    assert names("yolo11n.pt") == names("own.pt") == names("yolo11x.onnx") == []


@pytest.fixture(scope="module")
def taught(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that has learnt to find some of the squares."""
    pytest.importorskip("ultralytics")
    from random_detector import write_detector

    from edgekd.compress.steps import Distill, DistillStage, Weights
    from edgekd.detectors.ultralytics.distill import distill_student

    folder = tmp_path_factory.mktemp("taught")
    start = write_detector(folder, "yolov8n.yaml", 0.125, 64)
    labels = (DistillStage("labels", 1.0, Weights()),)
    step = Distill(str(start), epochs=12, batch=3, image_size=64, learning_rate=0.01, stages=labels)
    step = replace(step, warmup_steps=0, mosaic=0.0, final_rate=0.1, amp=False)
    distill_student(start, folder / "taught.pt", data, step, folder / "state")
    return folder / "taught.pt"


@pytest.mark.release
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning", "ignore::UserWarning")
def test_a_checkpoint_is_resized_pruned_and_the_best_are_trained_by_cached_predictions(
    edgekd: EdgeKD, taught: Path, data: Path, tmp_path: Path
) -> None:
    limits = ("--max-size", "1MB", "--min-fps", "1")
    flags = ("--data", data, "--out", tmp_path / "out", "--search", *limits, "--epochs", "1", "--trials", "4")
    ran = edgekd("build", taught, *flags)
    assert ran.code in (0, 3), ran.err
    found = result(tmp_path / "out")
    assert_documented(found, "search")
    assert found["refused"] > 0, "float is too large"
    assert found["trainings_saved"] > 0
    assert sorted(row["rung"] for row in found["points"]) == [0, 0, 1, 1]
    pruned = [row for row in found["points"] if row["recovery"]]
    assert all(row["noise"] > 0 for row in pruned)
    stages = tmp_path / "out" / "stages"
    trained = [row for row in pruned if row["rung"] == 1]
    assert len(list(stages.glob("recover-*/stage.json"))) == len({(row["image_size"], row["ratio"]) for row in trained})
    assert len(list(stages.glob("teacher-*.predictions"))) == len({row["image_size"] for row in trained})
    for record in stages.glob("quant_aware_distill-*/stage.json"):
        assert json.loads(record.read_bytes())["results"]["epochs"] == 1, "a third, but one at least"


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning", "ignore::UserWarning")
def test_a_detector_that_finds_nothing_is_not_searched_for(edgekd: EdgeKD, data: Path, tmp_path: Path) -> None:
    pytest.importorskip("ultralytics")
    from random_detector import write_detector

    untrained = write_detector(tmp_path, "yolov8n.yaml", 0.125, 64)
    flags = ("--data", data, "--out", tmp_path / "out", "--search", "--keep", "1%")
    assert_refused(edgekd("build", untrained, *flags), "finds nothing", "train it first")

"""The pages of `edgekd ui`: what they show, what they refuse to show, and what hostile files do to them: nothing."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from result_folders import change, write_search
from running import EdgeKD
from test_cli import assert_refused

from edgekd.builds.run_progress import read_progress, recorded
from edgekd.commands.web.app import HOST, create_app, listen
from edgekd.commands.web.runs import MAX_DEPTH, find_runs
from edgekd.core.errors import SpecError
from edgekd.core.progress import SILENT


@pytest.fixture
def client(runs: Path) -> Any:
    return create_app(runs).test_client()


def page(client: Any, path: str, status: int = 200) -> str:
    answer = client.get(path, base_url=f"http://{HOST}")
    assert answer.status_code == status
    return str(answer.get_data(as_text=True))


def words(html: str) -> str:
    """The text of a page that people see."""
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", html)).split())


def section(html: str, name: str) -> str:
    return html.partition(f'<section id="{name}">')[2].partition("</section>")[0]


def test_the_overview_lists_builds_searches_and_their_states(client: Any) -> None:
    html = page(client, "/")
    builds = section(html, "builds")
    assert re.findall(r'href="(/run/[^"]*)"', builds).count("/run/first") == 1
    assert set(re.findall(r'href="/run/([^"]*)"', builds)) == {"first", "nightly/second", "tried", "failed"}
    rows = {name: words(row) for name, row in re.findall(r'href="/run/([^"]*)"(.*?)</tr>', builds, re.DOTALL)}
    assert "failed" in rows["failed"]
    assert re.search(r"tiny.onnx for xavier ✓ done .* kB was 5.66 kB 0.774 was 0.774 ptq", rows["first"])
    assert len(re.findall("<input [^>]*checked", builds)) == 2, "the two newest, to compare with one click"
    assert "of 12" in words(section(html, "searches"))
    assert "2 points: % of the mAP50-95 kept over MB of the bundle." in html


def test_a_build_has_a_page_with_its_figures_stages_and_plan(client: Any, runs: Path) -> None:
    (runs / "first" / "plan.toml").write_text('note = "<b>"\n')
    html = page(client, "/run/first")
    shown = words(html)
    for text in ("0.774", "100.0 % kept", "smaller", "stand-in", "predicted", "quantize", "red", "Model SHA-256"):
        assert text in shown
    assert 'note = "<b>"' in shown
    assert 'href="/report/first"' in html
    assert "/compare?run=first&amp;run=nightly%2Fsecond" in html
    assert 'id="progress"' not in html


def test_a_failed_build_says_why_and_a_search_how_far_it_is(client: Any) -> None:
    assert "no room on &lt;the&gt; camera" in page(client, "/run/failed")
    assert "It took 40.0 s so far." in words(page(client, "/run/tried"))


def test_a_running_build_shows_its_loop_its_losses_and_what_it_is_doing(client: Any, runs: Path) -> None:
    (runs / "live" / "stages" / ".distill-0123456789abcdef.01234567.edgekd-tmp").mkdir(parents=True)
    with recorded(runs / "live", "build", "m.pt", "xavier", SILENT) as progress:
        for epoch in range(3):
            progress.epoch("distill", epoch, {"box_loss": 3.0 - epoch})
        items = progress.items(range(10), "distill")
        next(items), next(items)
        while not (runs / "live" / "progress.json").exists() or read_progress(runs / "live").loop is None:
            time.sleep(0.02)
        html = page(client, "/run/live")
        assert "running · since 20" in words(html)
        assert "Running: distill" in words(section(html, "progress"))
        assert 'max="10" value="1"' in html
        assert "box_loss: 3 in the first epoch, 1 in the last." in html
        assert re.search(r'href="/run/([^"]*)"', section(page(client, "/"), "builds"))[1] == "live"  # type: ignore[index]
    change(runs / "live" / "progress.json", state="running")  # as a kill leaves it
    html = page(client, "/run/live")
    assert "■ stopped" in words(html)
    assert "Ended in: distill" in words(html)


def test_a_row_of_a_command_that_builds_no_bundle_names_it(client: Any, runs: Path) -> None:
    (runs / "pruned").mkdir()
    with recorded(runs / "pruned", "prune", "m.pt", "xavier", SILENT) as progress:
        progress.stage("prune", {}, 1.0)
    assert "m.pt for xavier, edgekd prune" in words(section(page(client, "/"), "builds"))


def test_two_builds_are_compared_number_by_number(client: Any, runs: Path) -> None:
    html = page(client, "/compare?run=first&run=nightly/second")
    rows = {name: words(row) for name, row in re.findall(r'scope="row">([^<]*)(.*?)</tr>', html, re.DOTALL)}
    assert rows["mAP50-95"].endswith("= same")
    assert rows["Latency of a frame, median"].endswith("−50.0% ▲ better")
    assert "B is better in Latency of a frame, median ." in words(html)
    assert "None." in section(html, "settings")
    back = page(client, "/compare?run=nightly/second&run=first")
    assert "B is worse in Latency of a frame, median ." in words(back)


def test_settings_that_differ_are_listed_with_both_values(client: Any, runs: Path) -> None:
    second = runs / "nightly" / "second"
    (record,) = second.glob("stages/quantize-*/stage.json")
    inputs = json.loads(record.read_bytes())["inputs"]
    change(record, inputs={**inputs, "step": {**inputs["step"], "frames": 99}})
    limit = {"name": "max_bytes", "limit": 550_000, "value": 3e5, "met": True, "basis": "measured"}
    change(second / "ledger.json", budget=[limit])
    shown = words(section(page(client, "/compare?run=first&run=nightly/second"), "settings"))
    assert "quantize, frames 12 99" in shown
    assert "limit, bundle size – 0.55 MB" in shown
    assert "ranges" not in shown


def test_times_of_other_machines_are_not_judged(client: Any, runs: Path) -> None:
    ledger = runs / "nightly" / "second" / "ledger.json"
    change(ledger, host={**json.loads(ledger.read_bytes())["host"], "threads": 999})
    html = page(client, "/compare?run=first&run=nightly/second")
    assert "their times do not compare" in html
    assert "better" not in words(section(html, "numbers"))


@pytest.mark.parametrize("query", ["", "?run=first", "?run=first&run=failed", "?run=first&run=../first"])
def test_only_two_finished_builds_are_compared(client: Any, query: str) -> None:
    html = page(client, f"/compare{query}", 404 if ".." in query else 400)
    assert "two finished builds" in html or "no such page" in html


def test_a_fleet_shows_each_board(client: Any, runs: Path, edgekd: EdgeKD, tmp_path: Path) -> None:
    boards = '[[boards]]\nname = "lab"\ndevice = "null"\n[[boards]]\nname = "gate"\ndevice = "ssh://127.0.0.1:9"\n'
    (tmp_path / "fleet.toml").write_text(boards)
    bundle = runs / "first" / "tiny-xavier.edgekd"
    flags = ("--fleet", tmp_path / "fleet.toml", "--out", runs / "fleet")
    assert edgekd("engine", bundle, *flags).code == 1
    shown = words(section(page(client, "/"), "fleets"))
    assert "1 of 2 boards passed" in shown
    assert re.search(r"lab null 10.0 ms 10.0 ms 100 FPS rehearsed 1 int8 null", shown)
    assert "cannot be reached" in shown
    (runs / "fleet" / "fleet.json").unlink()  # as while it runs
    shown = words(page(client, "/run/fleet"))
    assert "lab null 10.0 ms" in shown
    assert "gate" not in shown.partition("Boards")[2]


@pytest.mark.parametrize("name", ["ledger.json", "progress.json", "search.json", "fleet.json"])
@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b'{"model": 1}', b"\xff\xfe", b"[" * 100_000, b"1" * 10_000],
    ids=["empty", "cut", "list", "null", "type", "bytes", "deep", "digits"],
)
def test_a_broken_file_is_a_line_with_the_reason(client: Any, runs: Path, name: str, content: bytes) -> None:
    (runs / "first" / name).write_bytes(content)
    for path in ("/", "/run/first"):
        html = page(client, path)
        assert f"{name}: cannot be read" in words(section(html, "problems"))
    assert "nightly/second" in page(client, "/")


@pytest.mark.parametrize("number", ["1" + "0" * 400, "1e999", "NaN", "-1", "1.7976931348623157e308"])
@pytest.mark.parametrize("key", ["p50_ms", "ms", "seconds", "map50_95", "kept", "bytes", "max_bytes", "done"])
def test_numbers_of_any_size_break_no_page(client: Any, runs: Path, key: str, number: str) -> None:
    """A number in files that no build has written, in place of each of that name."""
    change(runs / "tried" / "progress.json", loop={"label": "scan", "done": 1, "total": 2}, state="running")
    for file in runs.glob("*/*.json"):
        file.write_text(re.sub(rf'"{key}": -?\d[\d.e-]*', f'"{key}": {number}', file.read_text("utf-8")), "utf-8")
    for path in ("/", "/run/first", "/run/tried", "/compare?run=first&run=nightly/second"):
        assert client.get(path, base_url=f"http://{HOST}").status_code in ((200, 400) if "?" in path else (200,))


def test_names_cannot_become_markup(client: Any, runs: Path) -> None:
    evil = '"><img src=x onerror=alert(1)>'
    shutil.move(runs / "first", runs / evil)
    change(runs / evil / "ledger.json", model=evil, target=evil)
    change(runs / evil / "progress.json", state="failed", error=evil, lines=[evil])
    for path in ("/", f"/run/{evil}", f"/compare?run={evil}&run=nightly/second"):
        html = page(client, path)
        assert "<img" not in html
        assert "&lt;img" in html


@pytest.mark.parametrize(
    "path",
    [
        "/run/../secret",
        "/run/first/../../secret",
        "/run/%2e%2e/secret",
        "/run/..%2fsecret",
        "/run/..%5csecret",
        "/run//etc",
        "/run/%2fetc",
        "/run/%00",
        "/report/../secret",
        "/report/%2e%2e%2fsecret",
        "/report/failed%2f..%2f..%2fsecret",
        "/first/report.html",
        "/style.css/../../secret",
        "/run/first/stages",
    ],
)
def test_no_path_outside_is_served(client: Any, runs: Path, path: str) -> None:
    shutil.copytree(runs / "first", runs.parent / "secret")
    (runs.parent / "secret" / "report.html").write_text("SECRET")
    answer = client.get(path, base_url=f"http://{HOST}", follow_redirects=True)
    assert answer.status_code == 404
    assert b"SECRET" not in answer.data


def test_no_link_leads_outside(client: Any, runs: Path) -> None:
    secret = runs.parent / "secret"
    shutil.copytree(runs / "first", secret)
    (secret / "report.html").write_text("SECRET")
    (runs / "linked").symlink_to(secret)
    assert page(client, "/run/linked", 404)
    for name in ("report.html", "ledger.json", "tiny-xavier.edgekd"):
        (runs / "first" / name).unlink()
        (runs / "first" / name).symlink_to(secret / name)
    (runs / "first" / "plan.toml").symlink_to(secret / "report.html")
    html = page(client, "/run/first")
    assert "is not shown" in html
    assert "SECRET" not in html
    assert "0.774" not in words(html).partition("score-fp32")[0]
    assert "SECRET" not in page(client, "/report/first", 400)
    (runs / "circle").mkdir()
    (runs / "circle" / "ledger.json").symlink_to("ledger.json")
    assert "circle" in page(client, "/")


@pytest.mark.parametrize("bundle", ["../../secret/tiny-xavier.edgekd", "{root}/secret/tiny-xavier.edgekd", "..", ""])
def test_a_bundle_that_a_ledger_names_outside_is_not_opened(client: Any, runs: Path, bundle: str) -> None:
    shutil.copytree(runs / "first", runs.parent / "secret")
    change(runs / "first" / "ledger.json", bundle=bundle.format(root=runs.parent))
    html = page(client, "/run/first")
    assert "is not shown" in words(html) or not bundle
    assert 'id="stages"' not in html


def test_pipes_and_folders_in_place_of_files_are_problems_and_nothing_waits(client: Any, runs: Path) -> None:
    (runs / "first" / "ledger.json").unlink()
    os.mkfifo(runs / "first" / "ledger.json")
    (runs / "failed" / "progress.json").unlink()
    (runs / "failed" / "progress.json").mkdir()
    (runs / "failed" / "search.json").mkdir()
    write_search(runs / "failed" / "below")
    html = page(client, "/")
    assert "a pipe, socket or device" in html
    assert "failed/below" in html


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8420", "127.0.0.1.evil.example", "10.0.0.1", ""])
def test_another_name_that_leads_here_is_refused(client: Any, host: str) -> None:
    answer = client.get("/", headers={"Host": host})
    assert answer.status_code == 400
    assert b"first" not in answer.data
    assert client.get("/", headers={"Host": f"{HOST}:8420"}).status_code == 200


def test_nothing_but_get_is_answered_and_pages_may_ask_nobody_else(client: Any) -> None:
    for method in ("post", "put", "delete", "patch"):
        assert getattr(client, method)("/", base_url=f"http://{HOST}").status_code == 405
    for path in ("/", "/run/first", "/nowhere", "/compare", "/style.css", "/ui.js"):
        answer = client.get(path, base_url=f"http://{HOST}")
        policy = answer.headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; connect-src 'self'")
        assert "unsafe" not in policy
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert not re.search(rb"(?:src|href|url\()=?['\"]?(?:https?:)?//", answer.data)
        assert b" style=" not in answer.data
    report = client.get("/report/first", base_url=f"http://{HOST}")
    assert report.headers["Content-Security-Policy"].startswith("sandbox allow-scripts; default-src 'none'")
    assert b"<title>tiny for" in report.data


def test_a_page_that_has_not_changed_is_not_sent_again(client: Any, runs: Path) -> None:
    first = client.get("/", base_url=f"http://{HOST}")
    asked = {"If-None-Match": first.headers["ETag"]}
    assert client.get("/", base_url=f"http://{HOST}", headers=asked).status_code == 304
    change(runs / "first" / "progress.json", state="failed")
    assert client.get("/", base_url=f"http://{HOST}", headers=asked).status_code == 200


def test_one_result_folder_can_be_shown_and_an_empty_one_says_what_to_do(runs: Path, tmp_path: Path) -> None:
    alone = create_app(runs / "first").test_client()
    assert 'href="/run/"' in page(alone, "/")
    assert "0.774" in page(alone, "/run/")
    assert "<title>tiny for" in page(alone, "/report/")
    (tmp_path / "empty").mkdir()
    assert "No runs yet" in page(create_app(tmp_path / "empty").test_client(), "/")


def test_folders_are_found_to_a_depth_and_odd_names_are_said(tmp_path: Path) -> None:
    deep = tmp_path.joinpath(*"abcdefgh")
    for folder in [deep, *deep.parents[:8]]:
        write_search(folder)
    assert len(find_runs(tmp_path)[0]) == 1 + MAX_DEPTH
    write_search(Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff")))
    write_search(tmp_path / ".hidden")
    found, (problem,) = find_runs(tmp_path)
    assert len(found) == 1 + MAX_DEPTH
    assert "not UTF-8" in problem


def test_a_result_folder_may_have_any_name(tmp_path: Path) -> None:
    for name in ("search", "stages", "nightly/search"):
        write_search(tmp_path / name)
    write_search(tmp_path / "search" / "stages")
    assert [run.name for run in find_runs(tmp_path)[0]] == ["nightly/search", "search", "stages"]


def test_what_cannot_be_served_is_refused(edgekd: EdgeKD, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_refused(edgekd("ui", tmp_path / "missing"), "missing: no folder")
    with listen(0) as taken:
        port = taken.getsockname()[1]
        assert_refused(edgekd("ui", tmp_path, "--port", port), f"--port {port}", "--port 0")
    monkeypatch.setitem(__import__("sys").modules, "flask", None)
    with pytest.raises(SpecError, match=r'needs Flask.*pip install "edgekd\[ui\]"'):
        create_app(tmp_path)

"""A device that does not answer as it should: on purpose, or because it is broken."""

from __future__ import annotations

import asyncio
import copy
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from install_reports import install_report

from edgekd.commands.cli.bundle_printing import print_engine
from edgekd.core.documents import to_plain
from edgekd.core.errors import DeviceError, EdgeKDError
from edgekd.core.progress import Progress
from edgekd.deploy.devices.answers import MAX_ANSWER_BYTES, MAX_ERROR_CHARS, MAX_STDERR_BYTES
from edgekd.deploy.devices.connection import ProgramResult, Upload, read_tail
from edgekd.deploy.devices.process import connect_local
from edgekd.deploy.engine import Contents, EngineJob, install

# ------------------------------------------------------------------------------------------- program around the agent

GREETING = json.dumps({"python": [3, 8, 10]})


@pytest.fixture
def site(tmp_path: Path) -> Callable[..., str]:
    """Write an interpreter that prints these lines, whatever it is told, and this to stderr; return its path."""

    def write(*lines: str, err: str = "", wait: bool = True, last: str = "") -> str:
        (tmp_path / "out").write_text("".join(f"{line}\n" for line in lines), "utf-8")
        (tmp_path / "err").write_text(err, "utf-8")
        script = tmp_path / "python"
        end = last or ("exec cat > /dev/null" if wait else "exit 1")
        script.write_text(f"#!/bin/sh\ncat {tmp_path}/out\ncat {tmp_path}/err >&2\n{end}\n", "utf-8")
        script.chmod(0o755)
        return str(script)

    return write


@pytest.mark.parametrize(
    "greeting",
    [
        '{"python": "3.8"}',
        '{"python": [3]}',
        '{"python": [3, 8, null]}',
        '{"python": {}}',
        "{}",
        '{"python": ' + "[" * 100_000 + "]" * 100_000 + "}",
        '{"python": [3, 8, ' + "9" * 5000 + "]}",
        '{"python": [3, 8, 1e400]}',
        '{"problem": null}',
        '{"problem": []}',
        '{"problem": {}}',
        '{"problem": {"what": 5}}',
        '{"problem": {"what": "a", "note": "b"}}',
        '{"problem": {"what": "a", "expected": {"b": 1}}}',
    ],
    ids=lambda text: text[:40],
)
def test_a_greeting_of_another_kind_is_an_error_of_the_device(site: Callable[..., str], greeting: str) -> None:
    with pytest.raises(DeviceError, match=r"^cam: "), connect_local("cam", site(greeting)):
        pass


@pytest.mark.parametrize(
    "answer",
    [
        '{"kept": "0"}',
        '{"kept": true}',
        '{"path": 5, "kept": 3}',
        '{"kept": 0, "path": "/etc/passwd"}',
        '{"kept": 0, "more": 1}',
        "[]",
        "{",
    ],
)
def test_an_answer_to_an_upload_of_another_kind(site: Callable[..., str], tmp_path: Path, answer: str) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    python = site(GREETING, answer, wait=False)
    with connect_local("cam", python) as connection, pytest.raises(DeviceError, match=r"^cam: "):
        connection.put(tmp_path / "file", "/upload", ["0" * 64])


def test_a_negative_count_of_bytes_that_are_there_counts_as_none(site: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    sha256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    answers = ({"kept": -5, "sha256": empty}, {"path": f"/upload/{sha256}"})
    with connect_local("cam", site(GREETING, *map(json.dumps, answers))) as connection:
        assert connection.put(tmp_path / "file", "/upload", [sha256]) == Upload(f"/upload/{sha256}", 3, 3)


def test_a_device_that_takes_no_bytes_does_not_keep_the_host_waiting(
    site: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(bytes(1 << 20))
    python = site(GREETING, '{"kept": 0}', last="exec sleep 3")
    with connect_local("cam", python) as connection:
        monkeypatch.setattr("edgekd.deploy.devices.connection._ANSWER_S", 0.5)
        with pytest.raises(DeviceError, match="no answer to the upload of file"):
            connection.put(tmp_path / "file", "/upload", ["0" * 64])


def test_a_program_that_answers_wrongly_and_stays_is_not_waited_for(
    site: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgekd.deploy.devices.process._CLOSING_S", 0.2)
    python = site("{nonsense", last=f"sleep 60\ntouch {tmp_path}/stayed")
    with pytest.raises(DeviceError, match="unexpected answer"), connect_local("cam", python):
        pass
    assert not (tmp_path / "stayed").exists()


def test_a_long_answer_is_refused_before_it_is_parsed(site: Callable[..., str]) -> None:
    answer = json.dumps({"code": 0, "out": "a" * MAX_ANSWER_BYTES, "err": ""})
    with (
        connect_local("cam", site(GREETING, answer)) as connection,
        pytest.raises(DeviceError, match=f"at most {MAX_ANSWER_BYTES} bytes"),
    ):
        connection.run("status", ["agent"], 60)


def test_text_of_a_device_does_not_reach_the_terminal_as_it_is(site: Callable[..., str]) -> None:
    problem = {"what": "\x1b[2J\x1b]0;title\x07 \u202e \ud800" + "a" * 5000, "fix": "\x9b31m run this"}
    with pytest.raises(DeviceError) as caught, connect_local("cam", site(json.dumps({"problem": problem}))):
        pass
    assert str(caught.value).isprintable()
    assert r"\x1b[2J" in str(caught.value)
    assert r"\x9b31m run this" in str(caught.value)
    assert len(str(caught.value)) < MAX_ERROR_CHARS + 500
    assert caught.value.what.isprintable()


def test_the_last_line_of_stderr_is_shown_without_its_control_characters(site: Callable[..., str]) -> None:
    err = "x" * 100_000 + "\n" + "\x1b[31m" + "y" * 100_000
    with pytest.raises(DeviceError) as caught, connect_local("cam", site(err=err, wait=False)):
        pass
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1000


def test_of_an_endless_stderr_the_end_is_kept() -> None:
    chunks = [bytes([index]) * 50_000 for index in range(20)]
    tail = bytearray()

    async def read(count: int) -> bytes:
        return chunks.pop(0) if chunks else b""

    asyncio.run(read_tail(read, tail))
    assert len(tail) == MAX_STDERR_BYTES
    assert tail.endswith(bytes([19]) * 50_000)


# ------------------------------------------------------------------------------------------- the agent

IDENTITY = "5" * 64
REPORT = install_report()
RUNTIME = {"name": "tensorrt", "version": "8.5.2"}
MS = {"p50": 1.0, "ratio": 0.9, "interval": [0.8, 1.0]}
FORM: dict[str, Any] = {"source": "graph", "float_layers": []}
HONEST: dict[str, Any] = {
    "status": {"device": to_plain(REPORT.device), "runtime": RUNTIME},
    "verify": {"identity": IDENTITY},
    "unpack": {"identity": IDENTITY, "slot": "a", "fits": True},
    "build": {**to_plain(REPORT.engine), "runtime": RUNTIME},
    "tune": {
        **FORM,
        "candidates": [{**FORM, "key": "k", "passed": True, "found": None, "ms": MS}],
        "limits": {"builds": 4, "rounds": 3, "least_gain": 0.02},
        "engine": {"key": "k"},
    },
    "selftest": to_plain(REPORT.self_test),
    "bench": to_plain(REPORT.bench),
    "activate": {"identity": IDENTITY},
}


class Agent:
    """A device whose agent has these results, or gives this output to every command."""

    name, runtime, remote, python = "cam", None, True, "python3"

    def __init__(self, results: dict[str, Any], out: str | None = None) -> None:
        self.results, self.out = results, out

    @contextmanager
    def connect(self, python: str | None, stop: object = None) -> Iterator[Agent]:
        yield self

    def claim(self, folder: str) -> None: ...

    def put(self, file: Path, folder: str, keep: Sequence[str], progress: Progress) -> Upload:
        return Upload(f"{folder}/{file.name}", 1, 1)

    def run(self, doing: str, command: Sequence[str], limit_s: float) -> ProgramResult:
        answer = {"command": command[2], "ok": True, "error": None, "result": self.results.get(command[2])}
        return ProgramResult(0, json.dumps(answer) if self.out is None else self.out, "")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Contents]:
    """A bundle, as far as it matters here."""
    bundle = tmp_path_factory.mktemp("bundle") / "a.edgekd"
    bundle.write_bytes(os.urandom(8))
    manifest: Any = SimpleNamespace(name="a", target=SimpleNamespace(name="xavier"), role=None)
    return bundle, Contents(manifest, IDENTITY, bundle, None, bundle)


def installed(files: tuple[Path, Contents], agent: Any) -> Any:
    return install(EngineJob(files[0], agent, activate=True, tune=True), files[1])


def test_an_honest_agent(files: tuple[Path, Contents], capsys: pytest.CaptureFixture[str]) -> None:
    report = installed(files, Agent(HONEST))
    assert report.engine.key == "k"
    assert report.activated
    print_engine(report)
    assert "tuned: INT8 as shipped stays" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["verify", "unpack", "activate"])
def test_an_answer_for_another_bundle(files: tuple[Path, Contents], command: str) -> None:
    results = copy.deepcopy(HONEST)
    results[command]["identity"] = "6" * 64
    with pytest.raises(DeviceError, match=f"cam: {command}: an answer for another bundle; expected {IDENTITY}"):
        installed(files, Agent(results))


@pytest.mark.parametrize("command", HONEST)
@pytest.mark.parametrize("result", [None, [], "text", 5, {}])
def test_results_of_another_kind(files: tuple[Path, Contents], command: str, result: object) -> None:
    with pytest.raises(DeviceError, match="cam: unexpected answers"):
        installed(files, Agent({**HONEST, command: result}))


@pytest.mark.parametrize(
    "out",
    [
        '{"error": 5, "result": null}',
        '{"error": {}, "result": null}',
        '{"error": {"kind": [], "what": "a", "expected": null, "found": null, "fix": null}}',
        '{"error": {"kind": "HashError", "what": {}, "expected": null, "found": null, "fix": null}}',
        "[" * 100_000,
        "9" * 5000,
        '"\ud800"',
    ],
    ids=range(7),
)
def test_what_is_no_answer_of_an_agent(files: tuple[Path, Contents], out: str) -> None:
    with pytest.raises(DeviceError, match="the agent gave no answer"):
        installed(files, Agent({}, out))


def test_an_error_of_an_agent_is_shown_without_its_control_characters(files: tuple[Path, Contents]) -> None:
    error = {"kind": "HashError", "what": "\x1b[2J" + "a" * 5000, "expected": "\x07", "found": None, "fix": "\x9b"}
    with pytest.raises(EdgeKDError) as caught:
        installed(files, Agent({}, json.dumps({"error": error, "result": None})))
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < MAX_ERROR_CHARS + 500


def test_numbers_that_are_none(files: tuple[Path, Contents]) -> None:
    results = copy.deepcopy(HONEST)
    results["bench"]["inference_ms"]["p50"] = float("nan")
    with pytest.raises(DeviceError, match="finite numbers"):
        installed(files, Agent(results))


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of each value inside a document."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from places(item, (*path, key))


PLACES = [path for path in places(HONEST) if path]
JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just("\x1b[2J"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@given(path=st.sampled_from(PLACES), junk=JUNK)
def test_a_device_that_answers_anything_is_an_error_or_a_printable_result(
    files: tuple[Path, Contents], path: tuple[Any, ...], junk: object
) -> None:
    results = copy.deepcopy(HONEST)
    holder = results
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = junk
    lines: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("builtins.print", lambda *texts, **_: lines.extend(map(str, texts)))
        try:
            report = installed(files, Agent(results))
            json.dumps(to_plain(report), allow_nan=False)
            print_engine(report)
        except EdgeKDError as error:
            lines.append(str(error))
    assert all(part.isprintable() for line in lines for part in line.split("\n"))

"""Downloads that break, go on, and are taken only where they are to be trusted: from a server that obeys."""

from __future__ import annotations

import hashlib
import json
import random
import socketserver
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, Callable  # noqa: UP035 collections.abc.Callable[...] is Python 3.9

import pytest
from cameras import Agent, fetch, identity_of, repacked
from signer import signed, trust_file

from edgekd.agent.engines.camera import Camera
from edgekd.agent.fetching import FetchRequest
from edgekd.agent.state.slots import State
from edgekd.core.canonical import file_sha256
from edgekd.core.errors import BundleError, DeviceError, HashError


@dataclass
class Served:
    """What a server has, and how it behaves. break_at: after how many bytes the next connections end; asked: ranges."""

    content: bytes
    tag: str | None = '"1"'
    ranges: bool = True
    status: int | None = None
    location: str | None = None
    told_length: bool = True
    break_at: list[int] = field(default_factory=list)
    asked: list[str | None] = field(default_factory=list)


class _Handler(BaseHTTPRequestHandler):
    def __init__(self, served: Served, *told: Any) -> None:
        self._served = served
        super().__init__(*told)

    def do_GET(self) -> None:
        """Send the file, or the end of it, or what else was asked for."""
        served, asked = self._served, self.headers.get("Range")
        served.asked.append(asked)
        if served.status or served.location:
            self.send_response(served.status or 302)
            self.send_header("Location", served.location or "")
            self.end_headers()
            return
        begin = int(asked[6:-1]) if asked and served.ranges else 0
        if self.headers.get("If-Range") not in (None, served.tag):
            begin = 0
        if begin >= len(served.content):
            self.send_error(416)
            return
        self.send_response(206 if begin else 200)
        body = served.content[begin:]
        if served.told_length:
            self.send_header("Content-Length", str(len(body)))
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{len(served.content) - 1}/{len(served.content)}")
        if served.tag:
            self.send_header("ETag", served.tag)
        self.end_headers()
        self.wfile.write(body[: served.break_at.pop(0)] if served.break_at else body)

    def log_message(self, *told: Any) -> None:
        """Say nothing."""


class _Server(socketserver.ThreadingMixIn, HTTPServer):
    daemon_threads = True

    def handle_error(self, *told: Any) -> None:
        """Say nothing: clients go away."""


@pytest.fixture
def served(bundle: Path) -> Served:
    return Served(bundle.read_bytes())


@pytest.fixture
def url(served: Served) -> Iterator[str]:
    server = _Server(("127.0.0.1", 0), partial(_Handler, served))
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/model.edgekd"
    server.shutdown()
    server.server_close()
    thread.join()


Fetch = Callable[..., Any]


@pytest.fixture
def get(url: str, tmp_path: Path) -> Fetch:
    """Fetch the file into a new place, without any wait."""

    def run(**told: Any) -> Any:
        waits: list[float] = []
        order = FetchRequest(**{"url": url, "out": tmp_path / "got.edgekd", "timeout_s": 5.0, **told})
        return {**fetch(Camera(State(tmp_path / "state"), tmp_path / "root"), order, waits.append), "waits": waits}

    return run


def left(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.name.startswith("got")}


def test_a_file_is_fetched(get: Fetch, served: Served, bundle: Path, tmp_path: Path) -> None:
    found = get()
    assert (tmp_path / "got.edgekd").read_bytes() == served.content
    assert (found["kind"], found["identity"]) == ("bundle", identity_of(bundle))
    assert (found["bytes"], found["received_bytes"], found["resumed_bytes"]) == (len(served.content),) * 2 + (0,)
    assert found["connections"] == 1
    assert left(tmp_path) == {"got.edgekd"}


def test_a_download_goes_on_where_its_connections_broke(get: Fetch, served: Served, tmp_path: Path) -> None:
    chance = random.Random(0)
    served.break_at = [chance.randrange(len(served.content) // 8) for _ in range(7)]
    broken = sum(served.break_at)
    found = get()
    assert (tmp_path / "got.edgekd").read_bytes() == served.content
    assert found["connections"] == 8
    assert found["received_bytes"] == len(served.content), "nothing came twice"
    assert served.asked[0] is None
    assert served.asked[-1] == f"bytes={broken}-"


def test_a_later_call_goes_on(get: Fetch, served: Served, tmp_path: Path) -> None:
    served.break_at = [5000, *[0] * 8]
    with pytest.raises(DeviceError, match="it goes on from there") as caught:
        get()
    assert f"5000 of {len(served.content)} bytes" in str(caught.value)
    assert left(tmp_path) == {"got.edgekd.part", "got.edgekd.part.json"}
    found = get()
    assert (found["resumed_bytes"], found["received_bytes"]) == (5000, len(served.content) - 5000)
    assert left(tmp_path) == {"got.edgekd"}


def test_what_was_not_noted_as_flushed_comes_again(get: Fetch, served: Served, tmp_path: Path) -> None:
    """A power cut may leave a file longer than what is certainly right of it."""
    served.break_at = [5000, *[0] * 8]
    with pytest.raises(DeviceError):
        get()
    with (tmp_path / "got.edgekd.part").open("ab") as stream:
        stream.write(bytes(3000))
    assert get()["resumed_bytes"] == 5000
    assert (tmp_path / "got.edgekd").read_bytes() == served.content


@pytest.mark.parametrize("how", ["another file there", "no ranges there", "another address", "a damaged note"])
def test_a_download_begins_anew(get: Fetch, served: Served, newer: Path, tmp_path: Path, url: str, how: str) -> None:
    served.break_at = [5000, *[0] * 8]
    with pytest.raises(DeviceError):
        get()
    more = {}
    if how == "another file there":
        served.content, served.tag = newer.read_bytes(), '"2"'
    elif how == "no ranges there":
        served.ranges = False
    elif how == "another address":
        more["url"] = f"{url}?2"
    else:
        (tmp_path / "got.edgekd.part.json").write_bytes(b"{")
    get(**more)
    assert (tmp_path / "got.edgekd").read_bytes() == served.content


def test_two_versions_of_a_file_are_never_taken_for_one(get: Fetch, served: Served, tmp_path: Path) -> None:
    """Without an ETag nothing says that the file has changed; what is made of both does not verify, and goes."""
    good = served.content
    served.tag, served.content, served.break_at = None, good[:4000] + b"other" + good[4005:], [5000, *[0] * 8]
    with pytest.raises(DeviceError):
        get()
    served.content = good
    with pytest.raises(BundleError):
        get()
    assert left(tmp_path) == set()
    get()
    assert (tmp_path / "got.edgekd").read_bytes() == good


def test_a_certain_file(get: Fetch, served: Served, bundle: Path, newer: Path, tmp_path: Path) -> None:
    found = get(sha256=file_sha256(bundle))
    again = get(sha256=file_sha256(bundle))
    assert (found["changed"], again["changed"], again["connections"]) == (True, False, 0)
    with pytest.raises(HashError, match="not the requested file"):
        get(sha256=file_sha256(newer))
    assert (tmp_path / "got.edgekd").read_bytes() == served.content, "what was there is as it was"
    assert left(tmp_path) == {"got.edgekd"}


def test_a_file_without_a_length(get: Fetch, served: Served, tmp_path: Path) -> None:
    served.told_length = False
    get()
    assert (tmp_path / "got.edgekd").read_bytes() == served.content


@pytest.mark.parametrize("told_length", [True, False])
def test_a_file_that_is_too_large(get: Fetch, served: Served, tmp_path: Path, told_length: bool) -> None:
    served.told_length = told_length
    with pytest.raises(DeviceError, match="too large"):
        get(max_bytes=1000)
    assert left(tmp_path) == set()


def test_servers_that_say_no(get: Fetch, served: Served, tmp_path: Path) -> None:
    served.status = 404
    with pytest.raises(DeviceError, match="HTTP 404"):
        get()
    assert len(served.asked) == 1, "it will not come into being by asking"
    served.status = 503
    with pytest.raises(DeviceError, match="HTTP 503"):
        get(tries=3)
    assert len(served.asked) == 4
    assert left(tmp_path) == set()


def test_it_waits_longer_and_longer(get: Fetch, served: Served) -> None:
    served.break_at = [0, 0, 0, 1000, 0]
    assert get()["waits"] == [2, 4, 8, 1, 2]


def test_only_from_where_it_may_come(get: Fetch, served: Served, tmp_path: Path) -> None:
    for address in ("ftp://example.com/x", "/etc/passwd", "data:,x", "gopher://x"):
        with pytest.raises(Exception, match="expected https://, http:// or file://"):
            get(url=address)
    served.location = (tmp_path / "secret").as_uri()
    with pytest.raises(DeviceError):
        get()
    with pytest.raises(DeviceError, match="cannot be fetched"):
        get(url=(tmp_path / "none").as_uri())


def test_a_file_of_this_machine(get: Fetch, bundle: Path, tmp_path: Path) -> None:
    get(url=bundle.resolve().as_uri())
    assert (tmp_path / "got.edgekd").read_bytes() == bundle.read_bytes()


def test_from_the_command_line(
    agent: Agent, url: str, served: Served, bundle: Path, newer: Path, tmp_path: Path
) -> None:
    agent("trust", trust_file(tmp_path / "trust.json"))
    out = tmp_path / "got.edgekd"
    assert agent("fetch", url, "--out", out).error["kind"] == "SignatureError"
    assert left(tmp_path) == set(), "what may not be taken does not stay"
    served.content = signed(bundle, tmp_path / "signed.edgekd", 1).read_bytes()
    digest = hashlib.sha256(served.content).hexdigest()
    assert agent("fetch", url, "--out", out, "--sha256", digest).result["identity"] == identity_of(bundle)
    assert agent("install", out).result["active"] == "a"
    assert agent("fetch", url, "--out", out, "--sha256", "x").error["what"] == "--sha256 x"
    assert agent("fetch", url, "--out", tmp_path / "none" / "x").error["kind"] == "SpecError"


def test_one_download_at_a_time(get: Fetch, tmp_path: Path) -> None:
    import fcntl

    with (tmp_path / "got.edgekd.part").open("ab") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        with pytest.raises(DeviceError, match="one download at a time"):
            get()


def test_the_note_is_plain(get: Fetch, served: Served, url: str, tmp_path: Path) -> None:
    served.break_at = [5000, *[0] * 8]
    with pytest.raises(DeviceError):
        get()
    told = json.loads((tmp_path / "got.edgekd.part.json").read_bytes())
    assert told == {"url": url, "validator": '"1"', "total": len(served.content), "kept": 5000}


def test_other_bundles_do_not_matter(get: Fetch, bundle: Path, tmp_path: Path, served: Served) -> None:
    served.content = repacked(bundle, tmp_path / "third", name="third").read_bytes()
    assert get()["identity"] != identity_of(bundle)

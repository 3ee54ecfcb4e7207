"""The web application of `edgekd ui`: routes, and headers that keep everything on this machine.

The only module that imports Flask. It answers only GET, with pages of the result folders that were found, their
reports, one style sheet and one script. It never opens a path from a request.
"""

from __future__ import annotations

import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekd.commands.web.pages import comparison_page, overview_page, problem_page, run_page
from edgekd.commands.web.runs import REPORT, Run, find_runs
from edgekd.core.errors import EdgeKDError, SpecError
from edgekd.core.input_files import read_input
from edgekd.evaluation.report.page import style_sheet

if TYPE_CHECKING:
    from flask import Flask, Response

HOST = "127.0.0.1"
"""The only address that is served, which other machines cannot reach."""
HOSTS = [HOST, "localhost"]
"""Allowed host names of a request; others are refused, as protection from DNS rebinding."""
MAX_REPORT_BYTES = 1 << 28
"""Maximum bytes of a report; that of the demo has 750 kB."""
_FOLDER = Path(__file__).parent
_OWN = "default-src 'none'; connect-src 'self'; img-src data:; script-src 'self'; style-src 'self'"
PAGE_POLICY = f"{_OWN}; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
"""Content-Security-Policy of pages: only their own style sheet and script, and no other address."""
REPORT_POLICY = (
    "sandbox allow-scripts; default-src 'none'; img-src data:; script-src 'unsafe-inline'; style-src 'unsafe-inline'"
)
"""Content-Security-Policy of reports: an untrusted report can neither read other pages nor open connections."""
HEADERS = {
    "Cache-Control": "no-cache",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def create_app(root: Path) -> Flask:
    """Return the application that shows the result folders in a folder. Raises SpecError without Flask."""
    try:
        import flask
    except ImportError as error:
        raise SpecError("edgekd ui: needs Flask", found=str(error), fix='pip install "edgekd[ui]"') from error
    app = flask.Flask("edgekd", static_folder=None, template_folder=None)
    app.config["TRUSTED_HOSTS"] = HOSTS

    def found(name: str) -> Run:
        """Return the result folder of that name; respond with 404 if there is none."""
        runs = {run.name: run for run in find_runs(root)[0]}
        return runs[name] if name in runs else flask.abort(404)

    @app.get("/")
    def overview() -> str:
        return overview_page(root)

    @app.get("/run/", defaults={"name": ""})
    @app.get("/run/<path:name>")
    def run(name: str) -> str:
        return run_page(found(name))

    @app.get("/compare")
    def compare() -> str:
        return comparison_page([found(name) for name in flask.request.args.getlist("run")[:2]])

    @app.get("/report/", defaults={"name": ""})
    @app.get("/report/<path:name>")
    def report(name: str) -> Response:
        page = read_input(found(name).file(REPORT), MAX_REPORT_BYTES, SpecError)
        return flask.Response(page, mimetype="text/html", headers={"Content-Security-Policy": REPORT_POLICY})

    @app.get("/style.css")
    def style() -> Response:
        return flask.Response(style_sheet() + (_FOLDER / "ui.css").read_text("utf-8"), mimetype="text/css")

    @app.get("/ui.js")
    def script() -> Response:
        return flask.Response((_FOLDER / "ui.js").read_text("utf-8"), mimetype="text/javascript")

    @app.errorhandler(EdgeKDError)
    def refuse(error: EdgeKDError) -> tuple[str, int]:
        return problem_page("This cannot be shown", str(error)), 400

    @app.errorhandler(404)
    def not_found(error: Any) -> tuple[str, int]:
        return problem_page("Not found", "There is no such page, or no result folder of that name any more."), 404

    @app.after_request
    def protect(response: Response) -> Response:
        response.headers.setdefault("Content-Security-Policy", PAGE_POLICY)
        response.headers.update(HEADERS)
        response.add_etag()
        response.make_conditional(flask.request)
        return response

    return app


def listen(port: int) -> socket.socket:
    """Return a socket that listens on the loopback address. port: 0 for a free one. Raises SpecError."""
    listening = socket.socket()
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((HOST, port))
        listening.listen()
    except (OSError, OverflowError) as error:
        listening.close()
        fix = "pass another --port, or --port 0 for a free one"
        raise SpecError(f"--port {port}: cannot listen", found=str(error), fix=fix) from error
    return listening


def serve(app: Flask, listening: socket.socket) -> None:
    """Answer requests on a socket until Ctrl-C."""
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        """Handler that does not log requests, because pages poll every two seconds."""

        def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
            pass

    server = make_server(HOST, 0, app, threaded=True, request_handler=Quiet, fd=listening.fileno())
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        pass
    finally:
        server.server_close()

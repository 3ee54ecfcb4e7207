#!/usr/bin/env python3
"""Commit a model on trial once the camera works with it: after a number of processed frames from each camera.

Does nothing without a trial. Fails if the camera does not work in time, or if the agent refuses to commit.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

POLL_S = 2.0


def main() -> int:
    """Wait until enough frames of each camera were processed, then commit. Return the exit code."""
    given = arguments()
    service = agent(given, "status")["result"]
    if service is None or service["trial"] is None:
        return 0
    deadline, problem = time.monotonic() + given.seconds, "the camera does not run this model"
    first: dict[str, int] = {}
    while time.monotonic() < deadline:
        counts = detected(Path(given.status), service["active"]["identity"])
        first = first or counts
        missing = [name for name in first if counts.get(name, 0) - first[name] < given.frames]
        if first and not missing:
            answer = agent(given, "commit")  # may fail while another operation runs, such as an engine build
            if answer["ok"]:
                return 0
            problem = answer["error"]
        elif first:
            problem = f"less than {given.frames} frames of {', '.join(missing)}"
        time.sleep(POLL_S)
    print(f"not committed: {problem}", file=sys.stderr)
    return 1


def detected(status: Path, identity: str) -> dict[str, int]:
    """Return the number of processed frames by camera; empty until the program reports on this model."""
    try:
        report = json.loads(status.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return {camera["name"]: camera["detected"] for camera in report["cameras"]} if report["model"] == identity else {}


def agent(given: argparse.Namespace, command: str) -> Any:
    """Run a command of the agent and return its JSON answer."""
    words = [sys.executable, given.agent, command, "--state", given.state]
    return json.loads(subprocess.run(words, stdout=subprocess.PIPE, check=False).stdout)


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--agent", default="/usr/lib/edgekd/agent.pyz")
    parser.add_argument("--state", default="/var/lib/edgekd")
    parser.add_argument("--status", default="/run/edgekd/cameras.json", help="status file of the camera's program")
    parser.add_argument("--frames", type=int, default=100, help="frames of each camera")
    parser.add_argument("--seconds", type=float, default=300.0, help="time for them")
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())

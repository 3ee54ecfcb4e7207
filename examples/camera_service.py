#!/usr/bin/env python3
"""A camera service: reads frames, writes detections as JSON lines, and uses the model that the agent has in service.

    python3 camera_service.py --source /dev/video0
    python3 camera_service.py --source door=rtsp://10.0.0.2/stream --source yard=rtsp://10.0.0.3/stream --track
    python3 camera_service.py --source video.mp4 --out detections.jsonl
    python3 camera_service.py --source frames/
    python3 camera_service.py --source "v4l2src ! videoconvert ! video/x-raw,format=BGR ! appsink drop=1"
    ffmpeg -i rtsp://cam/stream -f yuv4mpegpipe - | python3 camera_service.py --source -
    python3 camera_service.py --source /dev/video0 --commit-after 100

A line for each frame: {"camera", "frame", "time", "model", "counter", "engine", "ms", "drift", "objects": [{"class",
"score", "box"}]}. "ms" is the time from capture to detections. Boxes are x1, y1, x2, y2 in pixels. Models with
keypoints add "keypoints", each x, y and visibility; models with rotated boxes add "rotated", centre x, y, width, height
and angle in radians. `--track` adds "track", null for a new object. "drift" above 1 means that frames differ from the
model's data; it is null if unknown. `--status` writes the file described in docs/guides/several-cameras.md. With
`--commit-after` the service reports its starts to the agent, and commits a new model after so many frames. A model that
cannot run, or that crashes the service, is rolled back.

Needs Python 3.8, NumPy, OpenCV, the agent, and the engine's runtime. A source with `!` is a GStreamer pipeline, which
not every OpenCV can open. `-` is YUV4MPEG on stdin, as FFmpeg and GStreamer's `y4menc` write it: see
gstreamer_camera.sh. SIGTERM and Ctrl-C end the service after the frames in progress. As a systemd unit it notifies the
watchdog with each status, so WatchdogSec must be a multiple of `--status-interval`.
"""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path


def line(result):
    """Return the JSON line of a frame's result."""
    found, model = result.detections, result.model
    objects = [
        {
            "class": model.spec.classes[index],
            "score": round(float(score), 4),
            "box": [round(float(edge), 1) for edge in box],
        }
        for box, score, index in zip(found.boxes, found.scores, found.classes)  # noqa: B905 strict is Python 3.10
    ]
    if found.keypoints is not None:
        for each, points in zip(objects, found.keypoints):  # noqa: B905 strict is Python 3.10
            each["keypoints"] = [[round(float(number), 2) for number in point] for point in points]
    if found.rotated is not None:
        for each, box in zip(objects, found.rotated):  # noqa: B905 strict is Python 3.10
            each["rotated"] = [round(float(number), 3) for number in box]
    if result.tracks is not None:
        for each, track in zip(objects, result.tracks.tolist()):  # noqa: B905 strict is Python 3.10
            each["track"] = track if track >= 0 else None
    taken = datetime.fromtimestamp(result.taken_at, timezone.utc).isoformat(timespec="milliseconds")
    frame = {"camera": result.camera, "frame": result.number, "time": taken}
    frame.update(model=model.identity, counter=model.counter, engine=model.key)
    return json.dumps({**frame, "ms": round(result.latency_ms, 2), "drift": result.drift, "objects": objects})


class Trial:
    """Trials of new models, with the agent's commands `boot` and `commit`."""

    def __init__(self, agent, state, frames):
        self._command, self._state, self._frames = [sys.executable, agent], state, frames
        self._model, self._done = None, 0
        if frames:
            self._run("boot")

    def worked(self, model):
        """Count a frame of a model, and commit the model after `frames` of them."""
        if model.identity != self._model:
            self._model, self._done = model.identity, 0
        self._done += 1
        if self._frames and self._done == self._frames:
            self._run("commit")

    def _run(self, command):
        done = subprocess.run([*self._command, command, "--state", self._state], capture_output=True, text=True)
        if done.returncode:
            print(f"{command}: {done.stdout.strip() or done.stderr.strip()}", file=sys.stderr, flush=True)


class Reporter:
    """Writes the status to a file, and each new problem to stderr."""

    def __init__(self, file, opened):
        self._file, self._opened, self._known = file, opened, {}

    def report(self, status):
        """Report a status of the service."""
        from edgekd.core.documents import to_plain

        problems = {f"camera {each.name}": each.problem and f"{each.state}: {each.problem}" for each in status.cameras}
        problems["the new model is not used"] = next(filter(None, (served.problem for served in self._opened)), None)
        for name, problem in problems.items():
            if problem and problem != self._known.get(name):
                print(f"{name}: {problem}", file=sys.stderr, flush=True)
        self._known = problems
        if self._file:
            temporary = Path(f"{self._file}.new")
            temporary.write_text(json.dumps(to_plain(status)), encoding="utf-8")
            os.replace(temporary, self._file)  # noqa: PTH105 atomic: readers never see a partial file


class Watchdog:
    """Notifies systemd's watchdog while frames are detected, or none arrive."""

    def __init__(self, address):
        self._address, self._taken, self._detected = address, 0, 0

    def report(self, status):
        """Notify the watchdog, unless frames were captured since the last status and none was detected."""
        taken = sum(camera.frames.captured - camera.frames.rejected for camera in status.cameras)
        detected = sum(camera.frames.detected for camera in status.cameras)
        works = detected > self._detected or taken == self._taken
        self._taken, self._detected = taken, detected
        if self._address and works:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as stream:
                stream.sendto(b"WATCHDOG=1", self._address.replace("@", "\0", 1))


def main():
    """Serve until all sources have ended, or until SIGTERM or SIGINT."""
    given = arguments()
    if not Path(given.agent).exists():
        raise SystemExit(f"{given.agent}: there is no agent; take agent.pyz out of a bundle, or name it with --agent")
    sys.path.insert(0, given.agent)
    from edgekd.agent.cameras.service import CameraOptions, CameraService
    from edgekd.agent.cameras.sources import parse_source
    from edgekd.agent.serving import Served
    from edgekd.core.errors import EdgeKDError

    out = Path(given.out).open("a", encoding="utf-8") if given.out else sys.stdout  # noqa: SIM115 till the end
    opened = []

    def open_model():
        opened.append(Served(given.state))
        return opened[-1]

    def result(found):
        print(line(found), file=out, flush=True)
        trial.worked(found.model)

    try:
        sources = [parse_source(text, str(number), given.fps) for number, text in enumerate(given.source)]
        options = CameraOptions(
            streams=given.streams, preprocess_threads=given.preprocess_threads, track=given.track, stall_s=given.stall
        )
        service = CameraService(sources, open_model, result, options)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: service.stop())
        trial, reporter = Trial(given.agent, given.state, given.commit_after), Reporter(given.status, opened)
        watchdog = Watchdog(os.environ.get("NOTIFY_SOCKET"))

        def report(status):
            reporter.report(status)
            watchdog.report(status)

        status = service.run(on_status=report, status_interval_s=given.status_interval)
        reporter.report(status)
    except EdgeKDError as error:
        raise SystemExit(f"camera_service: {error}") from error
    if any(camera.state == "failed" for camera in status.cameras):
        raise SystemExit(1)


def arguments():
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--agent", default="/usr/lib/edgekd/agent.pyz", help="the agent that the firmware has")
    parser.add_argument("--state", default="/var/lib/edgekd", help="the agent's state folder")
    parser.add_argument("--source", required=True, action="append", metavar="[NAME=]SOURCE", help="one for each camera")
    parser.add_argument("--fps", type=float, help="play files at this rate like live cameras, whose old frames drop")
    parser.add_argument("--track", action="store_true", help="give objects identities from frame to frame")
    parser.add_argument("--streams", type=int, default=1, metavar="N", help="sessions of the engine that run at once")
    parser.add_argument("--preprocess-threads", type=int, default=1, metavar="N")
    parser.add_argument("--stall", type=float, default=10.0, metavar="S", help="seconds before a camera is reopened")
    parser.add_argument("--out", help="file to append lines to; default: stdout")
    parser.add_argument("--status", metavar="FILE", help="file with the status as JSON, best in memory: /run")
    parser.add_argument("--status-interval", type=float, default=10.0, metavar="S")
    parser.add_argument(
        "--commit-after", type=int, default=0, metavar="N", help="frames; 0: trials are not its concern"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()

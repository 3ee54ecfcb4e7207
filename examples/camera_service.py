#!/usr/bin/env python3
"""A service for a camera: frames in, detections out as JSON lines, always by the model that the agent has in service.

    python3 camera_service.py --source /dev/video0
    python3 camera_service.py --source video.mp4 --out detections.jsonl
    python3 camera_service.py --source frames/
    python3 camera_service.py --source "v4l2src ! videoconvert ! video/x-raw,format=BGR ! appsink drop=1"
    ffmpeg -i rtsp://cam/stream -f yuv4mpegpipe - | python3 camera_service.py --source -
    python3 camera_service.py --source /dev/video0 --commit-after 100

A line for each frame: {"frame", "time", "model", "counter", "engine", "ms", "drift", "objects": [{"class", "score",
"box"}]}: boxes as x1, y1, x2, y2 in pixels, and of a model that has some "keypoints", each x, y and how visible, or
"rotated", centre x, y, width, height and angle in radians; drift above 1 where the camera sees other things than the
model knows, null where that is not known. With `--commit-after` the service counts its starts with the agent, and ends
the trial of a new model when that has worked on so many frames: one that cannot be run, or takes the service down, is
led away from.

Needs Python 3.8, NumPy, OpenCV, the agent, and whatever runs the engine; a source with `!` is a GStreamer pipeline,
which not every OpenCV can open; `-` is YUV4MPEG on stdin, as FFmpeg and GStreamer's `y4menc` write it: see
gstreamer_camera.sh. SIGTERM and Ctrl-C end it after the frame.
"""

import argparse
import json
import signal
import subprocess
import sys
import time
from datetime import datetime, timezone
from pathlib import Path

IMAGES = {".jpg", ".jpeg", ".png", ".bmp"}


def frames(source):
    """Frames uint8 [h, w, 3] BGR of a folder of images, a video, a device, or a pipeline."""
    import cv2

    if source == "-":
        yield from frames_of_y4m(sys.stdin.buffer)
        return
    if Path(source).is_dir():
        for file in sorted(Path(source).iterdir()):
            frame = cv2.imread(str(file)) if file.suffix.lower() in IMAGES else None
            if frame is not None:
                yield frame
        return
    capture = cv2.VideoCapture(source, cv2.CAP_GSTREAMER) if "!" in source else cv2.VideoCapture(source)
    if not capture.isOpened():
        raise SystemExit(f"{source}: cannot be opened as a folder, a video, a device or a pipeline")
    while True:
        there, frame = capture.read()
        if not there:
            break
        yield frame
    capture.release()


def frames_of_y4m(stream):
    """Frames uint8 [h, w, 3] BGR of a YUV4MPEG stream with planes of 4:2:0."""
    import cv2
    import numpy as np

    head = stream.readline(1024).decode("ascii", "replace").split()
    told = {word[0]: word[1:] for word in head[1:]}
    if head[:1] != ["YUV4MPEG2"] or not told.get("C", "420").startswith("420") or told.get("C", "").startswith("420p"):
        raise SystemExit("stdin: expected YUV4MPEG in 4:2:0 with 8 bits; put format=I420 and y4menc into the pipeline")
    width, height = int(told["W"]), int(told["H"])
    if width % 2 or height % 2:
        raise SystemExit(f"stdin: expected an even width and height, found {width}x{height}")
    while stream.readline(1024).startswith(b"FRAME"):
        planes = stream.read(width * height * 3 // 2)
        if len(planes) < width * height * 3 // 2:
            break  # cut in the middle of a frame
        yield cv2.cvtColor(np.frombuffer(planes, np.uint8).reshape(-1, width), cv2.COLOR_YUV2BGR_I420)


def line(number, model, found, seconds):
    """What is told of a frame."""
    names = model.spec.classes
    objects = [
        {"class": names[which], "score": round(float(score), 4), "box": [round(float(edge), 1) for edge in box]}
        for box, score, which in zip(found.boxes, found.scores, found.classes)  # noqa: B905 strict is Python 3.10
    ]
    if found.keypoints is not None:
        for each, points in zip(objects, found.keypoints):  # noqa: B905 strict is Python 3.10
            each["keypoints"] = [[round(float(number), 2) for number in point] for point in points]
    if found.rotated is not None:
        for each, box in zip(objects, found.rotated):  # noqa: B905 strict is Python 3.10
            each["rotated"] = [round(float(number), 3) for number in box]
    now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
    told = {"frame": number, "time": now, "model": model.identity, "counter": model.counter, "engine": model.key}
    drift = None if model.drift is None else model.drift.distance
    return json.dumps({**told, "ms": round(1000 * seconds, 2), "drift": drift, "objects": objects})


class Trial:
    """The trial of new models, by what the agent's commands `boot` and `commit` do."""

    def __init__(self, agent, state, frames):
        self._command, self._state, self._frames = [sys.executable, agent], state, frames
        self._model, self._done = None, 0
        if frames:
            self._run("boot")

    def worked(self, model):
        """One more frame went through a model; commits it after as many as were asked for."""
        if model.identity != self._model:
            self._model, self._done = model.identity, 0
        self._done += 1
        if self._frames and self._done == self._frames:
            self._run("commit")

    def _run(self, command):
        done = subprocess.run([*self._command, command, "--state", self._state], capture_output=True, text=True)
        if done.returncode:
            print(f"{command}: {done.stdout.strip() or done.stderr.strip()}", file=sys.stderr, flush=True)


def serve(served, source, out, trial, wanted):
    """Detect until the source ends or `wanted` says no; a model that cannot be opened is told once on stderr."""
    told = None
    for number, frame in enumerate(frames(source)):
        began = time.perf_counter()
        model, found = served.detect(frame)
        print(line(number, model, found, time.perf_counter() - began), file=out, flush=True)
        trial.worked(model)
        if served.problem is not None and served.problem is not told:
            print(f"the new model is not used: {served.problem}", file=sys.stderr, flush=True)
        told = served.problem
        if not wanted():
            break


def main():
    """0 where the source came to its end, or it was asked to end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--agent", default="/usr/lib/edgekd/agent.pyz", help="the agent that the firmware has")
    parser.add_argument("--state", default="/var/lib/edgekd", help="the agent's state folder")
    parser.add_argument("--source", required=True)
    parser.add_argument("--out", help="file to append lines to; default: stdout")
    parser.add_argument(
        "--commit-after", type=int, default=0, metavar="N", help="frames; 0: trials are not its concern"
    )
    given = parser.parse_args()
    if not Path(given.agent).exists():
        raise SystemExit(f"{given.agent}: there is no agent; take agent.pyz out of a bundle, or name it with --agent")
    sys.path.insert(0, given.agent)
    from edgekd.agent.serving import Served
    from edgekd.core.errors import EdgeKDError

    asked = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: asked.append(True))
    out = Path(given.out).open("a", encoding="utf-8") if given.out else sys.stdout  # noqa: SIM115 till the end
    try:
        trial = Trial(given.agent, given.state, given.commit_after)
        with Served(given.state) as served:
            serve(served, given.source, out, trial, lambda: not asked)
    except EdgeKDError as error:
        raise SystemExit(f"camera_service: {error}") from error


if __name__ == "__main__":
    main()

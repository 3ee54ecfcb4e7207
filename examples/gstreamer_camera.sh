#!/bin/sh
# Detect in frames of any GStreamer source: a pipeline that feeds camera_service.py.
#
#   gstreamer_camera.sh "v4l2src device=/dev/video0"
#   gstreamer_camera.sh "nvarguscamerasrc ! nvvidconv" --commit-after 100
#   gstreamer_camera.sh "rtspsrc location=rtsp://cam/stream latency=100 ! decodebin" --out found.jsonl
#
# Arguments after the source are options of camera_service.py. Frames go through a pipe as YUV 4:2:0, half the bytes of
# BGR. If the service is slower than the source, the pipeline drops frames: `leaky=downstream`. Set LEAKY=no for files.
# Needs gst-launch-1.0, videoconvert (plugins-base) and y4menc (plugins-good). Ctrl-C ends both.
set -eu
source=${1:?usage: gstreamer_camera.sh SOURCE [FLAGS OF camera_service.py]}
shift
[ "${LEAKY:-downstream}" = no ] && queue="queue" || queue="queue leaky=downstream max-size-buffers=2"
# Word splitting of the pipeline is intended. Frames leave by descriptor 3, so that GStreamer prints nothing among them.
# shellcheck disable=SC2086
{
    gst-launch-1.0 -q $source ! $queue ! videoconvert ! video/x-raw,format=I420 ! y4menc ! fdsink fd=3 3>&1 1>&2
} | exec python3 "$(dirname "$0")/camera_service.py" --source - "$@"

#!/bin/sh
# Frames of any GStreamer source through the model in service: a pipeline in front of camera_service.py.
#
#   gstreamer_camera.sh "v4l2src device=/dev/video0"
#   gstreamer_camera.sh "nvarguscamerasrc ! nvvidconv" --commit-after 100
#   gstreamer_camera.sh "rtspsrc location=rtsp://cam/stream latency=100 ! decodebin" --out found.jsonl
#
# What follows the source are flags of camera_service.py. Frames go through a pipe as YUV 4:2:0, half the bytes of BGR;
# where the service is slower than the source, the pipeline drops frames: `leaky=downstream`. Set LEAKY=no for files.
# Needs gst-launch-1.0, videoconvert (plugins-base) and y4menc (plugins-good). Ctrl-C ends both.
set -eu
source=${1:?usage: gstreamer_camera.sh SOURCE [FLAGS OF camera_service.py]}
shift
[ "${LEAKY:-downstream}" = no ] && queue="queue" || queue="queue leaky=downstream max-size-buffers=2"
# The pipeline's words are split on purpose. Frames leave by descriptor 3: nothing that GStreamer says gets among them.
# shellcheck disable=SC2086
{
    gst-launch-1.0 -q $source ! $queue ! videoconvert ! video/x-raw,format=I420 ! y4menc ! fdsink fd=3 3>&1 1>&2
} | exec python3 "$(dirname "$0")/camera_service.py" --source - "$@"

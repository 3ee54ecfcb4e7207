#!/bin/sh
# The camera's sensor: a film that begins again for ever, as YUV4MPEG on stdout.
film=${1:-/usr/share/camera/film.y4m}
head -n 1 "$film"
while tail -n +2 "$film"; do :; done 2>/dev/null

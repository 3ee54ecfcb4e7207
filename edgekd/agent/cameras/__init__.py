"""Several cameras in one service: capture, fair scheduling, detection, tracking and statistics; docs/cameras.md."""
